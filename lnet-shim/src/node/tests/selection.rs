//! The order in which interfaces are chosen (section 8 of the specification), one level at a time: each test makes all higher levels
//! equal and all lower ones speak for the other interface.

use super::*;
use kfab::topo::{Allowed, Topology};

/// Interfaces of ours, by what is put into their configuration, and a peer on the same network.
fn world(configure: impl Fn(usize, &mut NiConfig)) -> World {
    let mut w = World::new(&[&[], &[B1]], NodeParams::default());
    for (i, text) in [A1, A2].into_iter().enumerate() {
        let mut config = NiConfig::new(nid(text));
        configure(i, &mut config);
        w.engines[0].add_ni(w.now, config).unwrap();
    }
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w
}

/// Which of our interfaces (0 or 1) the next PUTs go by, from this memory.
fn sources(w: &mut World, n: usize, memory: &SharedBytes) -> Vec<usize> {
    w.log.clear();
    for _ in 0..n {
        let queue = EventQueue::new(8);
        let sink = Sink::User(queue.sink());
        let md = w.engines[0].core().md_bind(memory.memory(), SourceOptions::once(1), sink).unwrap();
        let target = ProcessId::lnet(nid(B1));
        let put = PutParams { target, portal: 9, match_bits: 7, offset: 0, hdr_data: 0, ack: false };
        w.engines[0].put(w.now, md, put, None).unwrap();
        w.run();
    }
    let puts = w.log.iter().filter(|l| l.2 == MsgType::Put);
    puts.map(|l| usize::from(l.0 == nid(A2))).collect()
}

fn somewhere() -> SharedBytes {
    SharedBytes::new(vec![1; 8])
}

/// Health of `i` goes down by one failure; it is not asked whether it is well.
fn fail(w: &mut World, i: usize) {
    let local = Some(nid([A1, A2][i]));
    let rule = FaultRule { local, ..FaultRule::all(FaultAction::Fail(Failure::LocalError)) };
    let id = w.engines[0].add_fault(rule).unwrap();
    sources(w, 4, &somewhere());
    assert!(w.engines[0].nis()[i].health < 1000);
    w.engines[0].remove_faults(Some(id));
}

/// Two NUMA nodes, 10 within and 21 between.
fn two_nodes(w: &mut World) {
    let root = std::env::temp_dir().join(format!("lnet-shim-numa-{}-{:p}", std::process::id(), w));
    for (i, distances) in ["10 21", "21 10"].into_iter().enumerate() {
        let node = root.join(format!("sys/devices/system/node/node{i}"));
        std::fs::create_dir_all(&node).unwrap();
        std::fs::write(node.join("distance"), distances).unwrap();
        std::fs::write(node.join("cpulist"), format!("{i}\n")).unwrap();
    }
    std::fs::write(root.join("sys/devices/system/node/online"), "0-1\n").unwrap();
    let topology = Topology::from_sysfs(&root, &Allowed::of_current_thread());
    std::fs::remove_dir_all(&root).unwrap();
    assert_eq!((topology.distance(0, 1), topology.distance(1, 1)), (Some(21), Some(10)), "{topology}");
    w.engines[0].set_topology(topology);
}

#[test]
fn a_link_counts_before_health() {
    let mut w = world(|_, _| {});
    fail(&mut w, 1);
    w.engines[0].upcall(w.now, nid(A1), Upcall::Link(false));
    assert_eq!(sources(&mut w, 3, &somewhere()), [1; 3]);
    assert!(!w.engines[0].nis()[0].up && w.engines[0].nis()[0].health == 1000);
    assert_eq!(
        w.engines[0].ping_info().small.iter().map(|e| e.status).collect::<Vec<_>>(),
        [STATUS_DOWN, STATUS_UP]
    );
    // With no other, it is better than nothing.
    w.engines[0].upcall(w.now, nid(A2), Upcall::Link(false));
    assert_eq!(sources(&mut w, 1, &somewhere()), [0]);
    w.engines[0].upcall(w.now, nid(A1), Upcall::Link(true));
    assert_eq!(sources(&mut w, 3, &somewhere()), [0; 3]);
    assert!(w.engines[0].nis()[0].up);
}

#[test]
fn a_network_without_a_link_is_left() {
    let (a3, b3) = ("10.2.0.1@tcp1", "10.2.0.2@tcp1");
    let mut w = World::new(&[&[A1, a3], &[B1, b3]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    for (down, goes_by) in [(A1, a3), (a3, A1)] {
        w.engines[0].upcall(w.now, nid(down), Upcall::Link(false));
        w.log.clear();
        for _ in 0..4 {
            w.put(0, B1, b"x");
            w.run();
        }
        assert!(w.log.iter().filter(|l| l.2 == MsgType::Put).all(|l| l.0 == nid(goes_by)), "{:?}", w.log);
        w.engines[0].upcall(w.now, nid(down), Upcall::Link(true));
    }
}

#[test]
fn health_counts_before_priority() {
    let mut w = world(|i, c| c.priority = i as u32);
    assert_eq!(sources(&mut w, 3, &somewhere()), [0; 3]);
    fail(&mut w, 0);
    assert_eq!(sources(&mut w, 3, &somewhere()), [1; 3]);
}

#[test]
fn priority_counts_before_numa() {
    let mut w = world(|i, c| (c.priority, c.node) = (i as u32, Some(i as u32)));
    two_nodes(&mut w);
    assert_eq!(sources(&mut w, 3, &somewhere().on_node(1)), [0; 3]);
}

#[test]
fn numa_counts_before_credits() {
    let mut w = world(|i, c| (c.credits, c.node) = (if i == 0 { 256 } else { 16 }, Some(i as u32)));
    two_nodes(&mut w);
    assert_eq!(sources(&mut w, 3, &somewhere().on_node(1)), [1; 3]);
    assert_eq!(sources(&mut w, 3, &somewhere().on_node(0)), [0; 3]);
    // A GET counts by the memory it fills.
    let queue = EventQueue::new(8);
    let (memory, options) = (somewhere().on_node(1).memory(), SourceOptions::once(2));
    let md = w.engines[0].core().md_bind(memory, options, Sink::User(queue.sink())).unwrap();
    w.log.clear();
    w.engines[0].get(w.now, md, ProcessId::lnet(nid(B1)), 9, 7, 0, None).unwrap();
    w.run();
    assert_eq!(w.log[0].0, nid(A2));
    // Within `numa_range` all are as near, and credits decide.
    w.engines[0].params.numa_range = 21;
    assert_eq!(sources(&mut w, 3, &somewhere().on_node(1)), [0; 3]);
    // Memory of which it is not known is as near to all.
    w.engines[0].params.numa_range = 0;
    assert_eq!(sources(&mut w, 3, &somewhere()), [0; 3]);
}

#[test]
fn credits_count_before_turns() {
    let mut w = world(|i, c| c.credits = if i == 0 { 256 } else { 258 });
    assert_eq!(sources(&mut w, 4, &somewhere()), [1; 4]);
    // Those under way count against an interface, until both have as many left.
    w.stuck = Some(vec![]);
    assert_eq!(sources(&mut w, 4, &somewhere()), [1, 1, 0, 1]);
}

#[test]
fn equals_take_turns() {
    let mut w = world(|_, _| {});
    let turns = sources(&mut w, 6, &somewhere());
    assert!(turns.windows(2).all(|w| w[0] != w[1]), "{turns:?}");
}

/// The same order among the peer's interfaces.
#[test]
fn the_peers_interfaces_go_by_health_priority_pair_credits_and_turn() {
    let mut w = World::new(&[&[A1], &[B1, B2]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let to = |w: &mut World| {
        sources(w, 2, &somewhere());
        let puts: Vec<Nid> = w.log.iter().filter(|l| l.2 == MsgType::Put).map(|l| l.1).collect();
        if puts[0] == puts[1] { Some(puts[0]) } else { None }
    };
    assert_eq!(to(&mut w), None, "turns");
    let list = |text: &str| text.parse::<crate::nid::NidList>().unwrap();
    // Credits: one message to B2 is stuck.
    w.engines[0].set_peer_priorities(vec![(list(B2), 0)]);
    w.stuck = Some(vec![]);
    assert_eq!(sources(&mut w, 1, &somewhere()), [0]);
    w.stuck = None;
    w.engines[0].set_peer_priorities(vec![]);
    assert_eq!(to(&mut w), Some(nid(B1)), "credits");
    w.engines[0].set_pairs(vec![(list(A1), list(B2))]);
    assert_eq!(to(&mut w), Some(nid(B2)), "a pair before credits");
    w.engines[0].set_peer_priorities(vec![(list(B1), 0)]);
    assert_eq!(to(&mut w), Some(nid(B1)), "priority before a pair");
    let fails = FaultRule { dst: Some(list(B1)), ..FaultRule::all(FaultAction::Fail(Failure::RemoteError)) };
    w.engines[0].add_fault(fails).unwrap();
    sources(&mut w, 1, &somewhere());
    w.engines[0].remove_faults(None);
    assert_eq!(to(&mut w), Some(nid(B2)), "health before priority");
}
