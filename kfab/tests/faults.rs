//! Fault rules of the public API over real providers: what each does, that it ends with the rule, and that nothing is lost or doubled.

mod common;

use common::{on_all, pair};
use kfab::{Endpoint, FaultAction, FaultId, FaultRule, Kind, Peer, SendOptions};
use std::time::{Duration, Instant};

const MS: Duration = Duration::from_millis(1);

fn rule(to: &Peer, action: FaultAction) -> FaultRule {
    FaultRule { peer: Some(to.id()), port: None, action, chance: 1.0, seed: 7 }
}

fn add(e: &Endpoint, to: &Peer, action: FaultAction) -> FaultId {
    e.add_fault(rule(to, action)).unwrap()
}

/// Two that know each other.
fn acquainted(scheme: &str) -> (Endpoint, Endpoint, Peer, Peer) {
    let (a, b, to_b) = pair(scheme);
    to_b.send(b"hello").wait().unwrap();
    let to_a = b.recv().wait().unwrap().from();
    (a, b, to_b, to_a)
}

/// Nothing arrives meanwhile.
fn silent(e: &Endpoint, time: Duration) {
    let r = e.recv().wait_timeout(time);
    assert!(r.as_ref().is_err_and(|e| e.kind() == Kind::TimedOut), "{r:?}");
}

fn hear(e: &Endpoint, what: &[u8]) {
    assert_eq!(&e.recv().wait_timeout(Duration::from_secs(30)).unwrap()[..], what);
}

#[test]
fn a_stalled_peer_is_neither_heard_nor_spoken_to_until_the_rule_goes() {
    on_all("stall", |s| {
        let (a, b, to_b, to_a) = acquainted(s);
        let stall = add(&a, &to_b, FaultAction::Stall);
        let sent = to_b.send_with(b"to the stalled", SendOptions { delivered: true, ..Default::default() });
        to_a.send(b"from the stalled").wait().unwrap();
        silent(&b, 100 * MS);
        silent(&a, 100 * MS);
        assert!(a.remove_fault(stall).unwrap() >= 1, "the rule did not strike");
        hear(&b, b"to the stalled");
        hear(&a, b"from the stalled");
        sent.wait().unwrap();
        silent(&b, 20 * MS);
    });
}

#[test]
fn delayed_frames_come_late_and_once() {
    on_all("delay", |s| {
        let (a, b, to_b, _) = acquainted(s);
        let late = add(&a, &to_b, FaultAction::Delay { ns: 300_000_000 });
        let begun = Instant::now();
        let sent: Vec<_> = (0..3).map(|i| to_b.send(&[i; 60])).collect();
        let next = |_| {
            let m = b.recv().wait().unwrap();
            assert!(begun.elapsed() >= 300 * MS, "{:?}", begun.elapsed());
            m[0]
        };
        let mut got: Vec<u8> = (0..3).map(next).collect();
        got.sort_unstable();
        assert_eq!(got, [0, 1, 2]);
        sent.into_iter().for_each(|o| o.wait().unwrap());
        assert!(a.remove_fault(late).unwrap() >= 3);
        silent(&b, 20 * MS);
    });
}

#[test]
fn doubled_frames_are_delivered_once() {
    on_all("duplicate", |s| {
        let (a, b, to_b, _) = acquainted(s);
        let before = b.stats().lane.totals.duplicates;
        let twice = add(&a, &to_b, FaultAction::Duplicate);
        for i in 0..50u8 {
            to_b.send(&[i; 100]).wait().unwrap();
            hear(&b, &[i; 100]);
        }
        assert!(a.remove_fault(twice).unwrap() >= 50);
        silent(&b, 50 * MS);
        assert!(b.stats().lane.totals.duplicates >= before + 50, "{:?}", b.stats().lane);
    });
}

#[test]
fn a_cut_rail_stays_closed_until_the_rule_goes() {
    on_all("cut", |s| {
        let (a, b, to_b, _) = acquainted(s);
        let cut = add(&a, &to_b, FaultAction::Cut);
        let sent = to_b.send_with(b"over the next", SendOptions { delivered: true, ..Default::default() });
        silent(&b, 200 * MS);
        assert!(to_b.info().unwrap().rails.is_empty());
        assert!(a.remove_fault(cut).unwrap() >= 1, "a connection was cut");
        hear(&b, b"over the next");
        sent.wait().unwrap();
        let names: Vec<_> = a.events().0.iter().map(kfab::FabricEvent::name).collect();
        let count = |n: &str| names.iter().filter(|x| **x == n).count();
        assert!(count("fault_struck") >= 1, "{names:?}");
        assert_eq!((count("rail_down"), count("rail_up")), (1, 2), "{names:?}");
    });
}

#[test]
fn a_chance_of_nothing_does_nothing_and_what_is_no_chance_is_refused() {
    on_all("chance", |s| {
        let (a, b, to_b, to_a) = acquainted(s);
        let all = [FaultAction::Cut, FaultAction::Stall, FaultAction::Drop, FaultAction::Duplicate];
        let never = all.map(|action| a.add_fault(FaultRule { chance: 0.0, ..rule(&to_b, action) }).unwrap());
        to_b.send(b"there").wait().unwrap();
        hear(&b, b"there");
        to_a.send(b"and back").wait().unwrap();
        hear(&a, b"and back");
        assert_eq!(never.map(|id| a.remove_fault(id)), [Some(0); 4]);
        for chance in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
            for action in all {
                let e = a.add_fault(FaultRule { chance, ..rule(&to_b, action) }).unwrap_err();
                assert_eq!(e.kind(), Kind::InvalidArgument);
                assert!(e.to_string().contains(&format!("a chance of {chance}")), "{e}");
            }
        }
    });
}
