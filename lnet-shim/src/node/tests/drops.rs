//! What is dropped on its way in, and where that is counted.

use super::*;

/// A PUT for `dest` that comes from `src` over the interface `at` of node 0.
fn arrives(w: &mut World, at: &str, src: &str, dest: &str, match_bits: u64, bytes: &[u8]) {
    let handle = crate::wire::lnet::WireHandle::NONE;
    let body = Body::Put { handle, match_bits, hdr_data: 0, portal: 9, offset: 0 };
    let (src, dest) = (ProcessId::lnet(nid(src)), ProcessId::lnet(nid(dest)));
    let header = LnetHeader { dest, src, payload_len: bytes.len() as u32, body };
    let rx = Rx { via: 3, peer: src, header, payload: bytes.to_vec().into() };
    w.engines[0].upcall(w.now, nid(at), Upcall::Received(rx));
    w.run();
}

#[test]
fn what_is_for_another_network_is_dropped_and_counted() {
    let mut w = World::new(&[&[A1, "10.0.0.1@tcp7"]], NodeParams::default());
    let (memory, served) = w.serve(0, 9, 16);
    for dest in ["10.9.0.1@tcp5", "10.0.0.1@tcp7"] {
        arrives(&mut w, A1, B1, dest, 7, b"for them");
    }
    assert!(served.try_recv().is_none());
    assert_eq!(memory.to_vec(), [0; 16]);
    let dropped = w.engines[0].nis()[0].dropped;
    assert_eq!((dropped.put, dropped.bytes), (2, 16));
    arrives(&mut w, A1, B1, A1, 7, b"for us");
    assert_eq!(memory.to_vec()[..6], *b"for us");
    assert_eq!(w.engines[0].nis()[0].dropped.put, 2);
}

#[test]
fn drops_are_counted_for_the_peer_that_brought_them() {
    let (a3, b3) = ("10.2.0.1@tcp1", "10.2.0.2@tcp1");
    let mut w = World::new(&[&[A1, a3], &[B1, b3]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let (_memory, _served) = w.serve(0, 9, 4);
    arrives(&mut w, A1, B1, A1, 8, b"no match");
    arrives(&mut w, A1, B1, A1, 7, b"too long, but cut");
    arrives(&mut w, a3, b3, "10.9.0.1@tcp5", 7, b"elsewhere");
    w.engines[0].add_fault(FaultRule::all(FaultAction::Drop)).unwrap();
    arrives(&mut w, a3, b3, a3, 7, b"rule");
    let peer = w.engines[0].peer(nid(B1)).unwrap();
    let dropped = |n: &str| peer.interfaces.iter().find(|i| i.nid == nid(n)).unwrap().dropped;
    assert_eq!((dropped(B1).put, dropped(B1).bytes), (1, 8));
    assert_eq!((dropped(b3).put, dropped(b3).bytes), (2, 13));
    assert_eq!((dropped(B1).total(), dropped(b3).total()), (1, 2));
}
