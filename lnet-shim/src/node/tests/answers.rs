//! Answers that are waited for, and do not come.

use super::*;

/// Two operations of one descriptor; the answer to one of them is lost.
#[test]
fn an_operation_ends_though_another_of_its_descriptor_was_answered() {
    for lost_first in [false, true] {
        let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
        let (_, _served) = w.serve(1, 9, 16);
        assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
        let queue = EventQueue::new(16);
        let memory = SharedBytes::new(b"twice".to_vec());
        let sink = Sink::User(queue.sink());
        let md = w.engines[0].core().md_bind(memory.memory(), SourceOptions::once(8), sink).unwrap();
        let target = ProcessId::lnet(nid(B1));
        let put = |w: &mut World, lose: bool| {
            let kind = Some(MsgType::Ack);
            let rule = lose.then(|| {
                w.engines[0].add_fault(FaultRule { kind, ..FaultRule::all(FaultAction::Drop) }).unwrap()
            });
            let put = PutParams { target, portal: 9, match_bits: 7, offset: 0, hdr_data: 1, ack: true };
            w.engines[0].put(w.now, md, put, None).unwrap();
            w.run();
            rule.map(|id| w.engines[0].remove_faults(Some(id)));
        };
        put(&mut w, lost_first);
        w.pass(sec(100));
        put(&mut w, !lost_first);
        let all = events(&queue);
        assert_eq!(all.iter().filter(|e| e.0 == EventKind::Ack).count(), 1, "{all:?}");
        assert!(all.iter().all(|e| e.1.is_ok() && !e.2), "{all:?}");
        // The one that was lost has its own time.
        let left = if lost_first { 49 } else { 149 };
        w.pass(sec(left));
        assert_eq!(events(&queue), []);
        w.pass(sec(3));
        assert_eq!(events(&queue), [(EventKind::Unlink, Status::TimedOut, true)]);
        assert_eq!(w.engines[0].stats().response_timeouts, 1);
    }
}
