//! What failures cost, whether they are tried again, and how health comes back.

use super::*;

/// Section 8 of the specification, written down again: whose health a class costs, and whether it may be sent again.
const CLASSES: [(Failure, bool, bool, bool); 10] = [
    (Failure::LocalInterrupt, true, false, true),
    (Failure::LocalDropped, true, false, true),
    (Failure::LocalAborted, true, false, true),
    (Failure::LocalNoRoute, true, false, true),
    (Failure::LocalTimeout, true, false, true),
    (Failure::LocalError, true, false, false),
    (Failure::RemoteDropped, false, true, true),
    (Failure::RemoteError, false, true, false),
    (Failure::RemoteTimeout, false, true, false),
    (Failure::NetworkTimeout, true, true, false),
];

/// Two nodes that know each other, whose PUTs from the first fail in this way.
fn failing(local: usize, remote: usize, failure: Failure, params: NodeParams) -> World {
    let mut w = World::new(&[&[A1, A2][..local], &[B1, B2][..remote]], params);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let rule = FaultRule { kind: Some(MsgType::Put), ..FaultRule::all(FaultAction::Fail(failure)) };
    w.engines[0].add_fault(rule).unwrap();
    w
}

/// What all of our interfaces, and all of the peer's, have lost.
fn losses(w: &World) -> (u32, u32) {
    let lost = |all: &[NiInfo]| all.iter().map(|i| 1000 - i.health).sum();
    (lost(&w.engines[0].nis()), lost(&w.engines[0].peer(nid(B1)).unwrap().interfaces))
}

#[test]
fn each_class_costs_what_it_should_and_is_sent_again_where_there_is_another_way() {
    for (failure, ours, theirs, again) in CLASSES {
        for (local, remote) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let mut w = failing(local, remote, failure, NodeParams::default());
            let queue = w.put(0, B1, b"x");
            w.run();
            let ways = if ours { local } else { remote };
            let resends = if again && ways > 1 { 2 } else { 0 };
            let case = format!("{failure:?}, {local} of ours, {remote} of the peer's");
            assert_eq!(w.engines[0].stats().resends, resends, "{case}");
            // Where a peer has one interface there is nothing to choose, and it keeps its health.
            let attempts = 100 * (resends as u32 + 1);
            let cost = |is: bool| if is { attempts } else { 0 };
            assert_eq!(losses(&w), (cost(ours), cost(theirs && remote > 1)), "{case}");
            let all = events(&queue);
            assert!(all.len() == 1 && all[0].0 == EventKind::Send && !all[0].1.is_ok(), "{case}: {all:?}");
        }
    }
}

#[test]
fn a_resend_leaves_the_interface_that_failed() {
    for failure in [Failure::LocalDropped, Failure::RemoteDropped] {
        let mut w = failing(2, 2, failure, NodeParams::default());
        w.put(0, B1, b"x");
        w.run();
        // Three attempts, on two of each kind: no interface has had all of them.
        let most = |all: &[NiInfo]| all.iter().map(|i| 1000 - i.health).max().unwrap();
        let (ours, theirs) = (w.engines[0].nis(), w.engines[0].peer(nid(B1)).unwrap().interfaces);
        assert_eq!(most(&ours).max(most(&theirs)), 200, "{failure:?}");
    }
}

#[test]
fn the_retry_count_bounds_resends() {
    for retry_count in [0, 1, 5] {
        let params = NodeParams { retry_count, ..NodeParams::default() };
        let mut w = failing(2, 2, Failure::RemoteDropped, params);
        w.put(0, B1, b"x");
        w.run();
        assert_eq!(w.engines[0].stats().resends, u64::from(retry_count));
        assert_eq!(w.engines[0].stats().send_failures, 1);
    }
}

#[test]
fn the_recovery_limit_ends_pings() {
    for (limit, pings_go_on) in [(sec(0), true), (sec(20), false)] {
        let params =
            NodeParams { recovery_limit: limit, max_recovery_ping_interval: sec(5), ..NodeParams::default() };
        let mut w = World::new(&[&[A1], &[B1, B2]], params);
        assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
        w.dead.push(nid(B2));
        for _ in 0..4 {
            w.put(0, B1, b"x");
            w.run();
        }
        assert!(losses(&w).1 > 0);
        let pings = |w: &mut World, time| {
            w.log.clear();
            w.pass(time);
            w.log.iter().filter(|l| l.1 == nid(B2)).count()
        };
        assert!(pings(&mut w, sec(18)) >= 4);
        pings(&mut w, sec(10));
        assert_eq!(pings(&mut w, sec(600)) > 100, pings_go_on, "limit {limit:?}");
        // What is not asked does not come back.
        w.dead.clear();
        w.pass(sec(600));
        assert_eq!(losses(&w).1 == 0, pings_go_on, "limit {limit:?}");
    }
}

/// The sensitivity may be zero: then health is no matter.
#[test]
fn without_sensitivity_nothing_is_lost() {
    let params = NodeParams { health_sensitivity: 0, ..NodeParams::default() };
    let mut w = failing(2, 2, Failure::NetworkTimeout, params);
    w.put(0, B1, b"x");
    w.run();
    assert_eq!(losses(&w), (0, 0));
    w.log.clear();
    w.pass(sec(600));
    assert!(w.log.is_empty(), "nobody is asked whether it is well");
}
