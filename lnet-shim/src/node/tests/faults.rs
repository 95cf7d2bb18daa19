//! Which messages a fault rule strikes, and how often.

use super::super::fault::Faults;
use super::*;

fn drops(a: &FaultAction) -> bool {
    matches!(a, FaultAction::Drop)
}

fn header(portal: u32) -> LnetHeader {
    let handle = crate::wire::lnet::WireHandle::NONE;
    let body = Body::Put { handle, match_bits: 7, hdr_data: 0, portal, offset: 0 };
    LnetHeader { dest: ProcessId::lnet(nid(A1)), src: ProcessId::lnet(nid(B1)), payload_len: 0, body }
}

#[test]
fn a_rule_with_an_interval_strikes_once_in_each() {
    let mut first = Vec::new();
    for seed in 1..=20 {
        let mut faults = Faults::new(seed);
        let every = Frequency::Every(sec(10));
        faults.add(FaultRule { frequency: every, ..FaultRule::all(FaultAction::Drop) }).unwrap();
        // Ten messages a second, for 200 s.
        let times = (0..2000).map(|i| sec(1000) + Duration::from_millis(i * 100));
        let struck: Vec<Time> =
            times.filter(|t| faults.strike(*t, nid(A1), &header(9), drops).is_some()).collect();
        assert!((19..=20).contains(&struck.len()), "seed {seed}: {}", struck.len());
        assert!(struck.windows(2).all(|w| w[1] - w[0] >= sec(10)), "seed {seed}: {struck:?}");
        assert_eq!((faults.list()[0].2, faults.list()[0].3), (2000, struck.len() as u64));
        first.push(struck[0] - sec(1000));
    }
    assert!(first.iter().all(|t| *t <= sec(10)), "{first:?}");
    first.sort_unstable();
    first.dedup();
    assert!(first.len() > 5, "the first is at a random time: {first:?}");
}

#[test]
fn a_rarely_used_path_is_struck_when_it_is_used() {
    let mut faults = Faults::new(3);
    let every = Frequency::Every(sec(10));
    faults.add(FaultRule { frequency: every, ..FaultRule::all(FaultAction::Drop) }).unwrap();
    faults.strike(sec(1), nid(A1), &header(9), drops);
    // An interval that nothing came in is over; its strike is not saved up.
    let late = [100, 101, 105, 110].map(|s| faults.strike(sec(s), nid(A1), &header(9), drops).is_some());
    assert_eq!(late, [true, false, false, true]);
}

#[test]
fn a_rule_for_an_interface_leaves_the_others_alone() {
    let mut w = World::new(&[&[A1], &[B1, B2]], NodeParams::default());
    let (_, served) = w.serve(1, 9, 16);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let rule = FaultRule { local: Some(nid(B2)), ..FaultRule::all(FaultAction::Drop) };
    w.engines[1].add_fault(rule).unwrap();
    w.log.clear();
    for _ in 0..8 {
        w.put(0, B1, b"x");
        w.run();
    }
    let came = |to: &str| w.log.iter().filter(|l| l.1 == nid(to) && l.2 == MsgType::Put).count();
    assert_eq!((came(B1), came(B2)), (4, 4));
    let events = std::iter::from_fn(|| served.try_recv()).filter(|e| e.kind == EventKind::Put).count();
    assert_eq!((events, w.engines[1].stats().fault_drops), (4, 4));
    let dropped: Vec<u64> = w.engines[1].nis().iter().map(|n| n.dropped.put).collect();
    assert_eq!(dropped, [0, 4]);
}

#[test]
fn a_rule_for_a_portal_strikes_its_requests_alone() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    let (nine, _served) = w.serve(1, 9, 4);
    let (ten, _served) = w.serve(1, 10, 4);
    w.engines[1].add_fault(FaultRule { portal: Some(10), ..FaultRule::all(FaultAction::Drop) }).unwrap();
    // ACKs have no portal.
    w.engines[0].add_fault(FaultRule { portal: Some(9), ..FaultRule::all(FaultAction::Drop) }).unwrap();
    let target = ProcessId::lnet(nid(B1));
    for portal in [9, 10] {
        let (md, _, queue) = w.bind(0, b"data");
        let put = PutParams { target, portal, match_bits: 7, offset: 0, hdr_data: 1, ack: true };
        w.engines[0].put(w.now, md, put, None).unwrap();
        w.run();
        assert_eq!(events(&queue).len(), if portal == 9 { 2 } else { 1 });
    }
    assert_eq!((nine.to_vec(), ten.to_vec()), (b"data".to_vec(), vec![0; 4]));
    assert_eq!(w.engines[1].faults()[0].3, 1);
    assert_eq!((w.engines[0].faults()[0].2, w.engines[0].stats().fault_drops), (0, 0));
}
