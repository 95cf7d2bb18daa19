//! What can be seen of an endpoint from outside: events by several readers, logs, and Prometheus' text.

mod common;

use common::{fabric, pair, watched};
use kfab::prometheus::{Exporter, text};
use kfab::{
    EndpointConfig, FabricEvent, FaultAction, FaultRule, Kind, Limits, Progress, RailHealth, SendOptions,
};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn get(at: SocketAddr, what: &str) -> String {
    let mut s = TcpStream::connect(at).unwrap();
    write!(s, "GET {what} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).unwrap();
    answer
}

/// The value of a sample in a text.
fn sample(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|l| l.starts_with(name) && l[name.len()..].starts_with(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn every_reader_sees_every_event() {
    watched("readers", || {
        let (a, b, to_b) = pair("tcp");
        let mut first = a.subscribe();
        let mut second = a.subscribe();
        to_b.send(b"x").wait().unwrap();
        b.recv().wait().unwrap();
        let up = |e: &FabricEvent| matches!(e, FabricEvent::PeerUp { via, .. } if via == "tcp");
        for (events, lost) in [first.read(), second.read(), a.events()] {
            assert_eq!((events.iter().filter(|e| up(e)).count(), lost), (1, 0), "{events:?}");
        }
        assert_eq!(first.read(), (vec![], 0));
        // It waits before the peer goes: one that is begun when that is known already looks for it once more.
        let waits = a.recv_with().from(&to_b).post();
        drop(b);
        assert_eq!(waits.wait().unwrap_err().kind(), Kind::PeerLost);
        let after: Vec<_> = first.read().0.iter().map(FabricEvent::name).collect();
        let count = |name: &str| after.iter().filter(|n| **n == name).count();
        assert_eq!((count("peer_lost"), count("rail_down")), (1, 1), "{after:?}");
        drop((a, to_b));
        assert_eq!(second.read(), (vec![], 0), "nothing once the endpoint is gone");
    });
}

#[test]
fn bytes_are_those_of_the_messages() {
    watched("bytes", || {
        for scheme in common::SCHEMES {
            // Nobody drives the sender before it waits: till then there is no connection, and what waits for it leaves together.
            let still = EndpointConfig { progress: Progress::Inline, ..common::config(scheme) };
            let (a, b) = (fabric().open(still).unwrap(), common::open(scheme));
            let to_b = a.peer(&b.address().to_string()).unwrap();
            // The large one is promised the long way.
            let large = common::pattern(100_000, 3);
            let sends: Vec<_> = (0..100).map(|_| to_b.send(b"8 bytes.")).collect();
            let last = to_b.send(&large[..]);
            let receiver = std::thread::spawn(move || {
                for _ in 0..100 {
                    assert_eq!(&b.recv().wait().unwrap()[..], b"8 bytes.");
                }
                (b.recv().wait().unwrap(), b)
            });
            sends.into_iter().for_each(|s| s.wait().unwrap());
            last.wait().unwrap();
            let (message, b) = receiver.join().unwrap();
            assert!(message[..] == large[..]);
            let (tx, rx) = (to_b.info().unwrap().counters, b.stats().lane.totals);
            assert!(tx.coalesced > 50, "over {scheme}: {}", tx.coalesced);
            assert_eq!((tx.tx_messages, tx.tx_bytes), (101, 100_800), "over {scheme}");
            assert_eq!((rx.rx_messages, rx.rx_bytes), (101, 100_800), "over {scheme}");
        }
    });
}

#[test]
fn a_peer_with_two_names_is_one() {
    watched("names", || {
        let (a, b) = (fabric().endpoint().unwrap(), fabric().endpoint().unwrap());
        let to_a = b.peer(&a.address().to_string()).unwrap();
        to_a.send("hello").wait().unwrap();
        let older = a.recv().wait().unwrap().from();
        let mut rule = FaultRule {
            peer: Some(older.id()),
            port: None,
            action: FaultAction::Duplicate,
            chance: 1.0,
            seed: 1,
        };
        let before = a.add_fault(rule).unwrap();
        // By a part of its address it is nobody known, until it says who it is.
        let part = b.address().ways().iter().find(|w| w.scheme == "tcp").unwrap().to_string();
        let newer = a.peer(&part).unwrap();
        newer.send("to the new name").wait().unwrap();
        assert_eq!(&b.recv().wait().unwrap()[..], b"to the new name");
        assert!(a.remove_fault(before) > Some(0), "it moved to the new name");
        rule.peer = Some(older.id());
        let after = a.add_fault(rule).unwrap();
        older.send("to the old one").wait().unwrap();
        assert_eq!(&b.recv().wait().unwrap()[..], b"to the old one");

        let (old, new) = (older.info().unwrap(), newer.info().unwrap());
        assert!(old.up && new.up && !old.rails.is_empty());
        assert_eq!((old.counters.tx_messages, new.counters.tx_messages), (2, 2));
        let stats = a.stats();
        assert_eq!((stats.peers.len(), stats.lane.peers), (1, 1));
        assert!(a.remove_fault(after) > Some(0), "it was made for the new name");
    });
}

#[test]
fn what_is_late_finds_a_peer_by_its_other_name() {
    watched("late", || {
        let (a, b) = (fabric().open(common::config("tcp")).unwrap(), fabric().endpoint().unwrap());
        b.peer(&a.address().to_string()).unwrap().send("hello").wait().unwrap();
        let older = a.recv().wait().unwrap().from();
        let action = FaultAction::Delay { ns: 1_000_000_000 };
        let late = FaultRule { peer: Some(older.id()), port: None, action, chance: 1.0, seed: 1 };
        let rule = a.add_fault(late).unwrap();
        let sent = older.send("late");
        let part = b.address().ways().iter().find(|w| w.scheme == "tcp").unwrap().to_string();
        let newer = a.peer(&part).unwrap();
        let second = newer.send("later");
        // They are not ordered: of two that are overdue together either may come first.
        let mut got = [(); 2].map(|()| b.recv().wait_timeout(Duration::from_secs(20)).unwrap().to_vec());
        got.sort_unstable();
        assert_eq!(got, [&b"late"[..], b"later"]);
        for s in [sent, second] {
            s.wait().unwrap();
        }
        assert_eq!(a.stats().peers.len(), 1, "they are one");
        assert!(a.remove_fault(rule) > Some(1));
    });
}

#[test]
fn any_endpoint_can_be_scraped() {
    watched("scrape", || {
        let (a, b, to_b) = pair("tcp");
        let a = Arc::new(a);
        let exporter = Exporter::serve(&a, "127.0.0.1:0".parse().unwrap()).unwrap();
        for _ in 0..3 {
            to_b.send(b"seven b").wait().unwrap();
            b.recv().wait().unwrap();
        }
        let answer = get(exporter.address(), "/metrics");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        assert_eq!(sample(body, "kfab_tx_messages_total"), 3.0);
        assert_eq!(sample(body, "kfab_tx_bytes_total"), 21.0);
        assert_eq!(sample(body, "kfab_events_total{event=\"peer_up\"}"), 1.0);
        assert_eq!(sample(body, "kfab_events_total{event=\"missed\"}"), 0.0);
        let peer = "peer=\"peer 0.0\"";
        assert_eq!(sample(body, &format!("kfab_peer_credit_limit{{{peer}}}")), 1024.0);
        assert!((1.0..1024.0).contains(&sample(body, "kfab_min_credits")));
        assert!((1.0..1024.0).contains(&sample(body, &format!("kfab_peer_min_credits{{{peer}}}"))));
        let rail = format!("{{{peer},rail=\"0\",via=\"tcp\"}}");
        assert_eq!(sample(body, &format!("kfab_rail_healthy{rail}")), 1.0);
        assert_eq!(sample(body, &format!("kfab_rail_resent_total{rail}")), 0.0);
        assert!(get(exporter.address(), "/").starts_with("HTTP/1.1 404"));
        let taken = Exporter::serve(&a, exporter.address()).unwrap_err();
        assert!(taken.to_string().contains(&exporter.address().to_string()), "{taken}");
        // It does not keep the endpoint open, and goes when dropped.
        drop(a);
        assert!(exporter.address().port() != 0);
        drop(exporter);
    });
}

fn named(events: &[FabricEvent], name: &str) -> Vec<FabricEvent> {
    events.iter().filter(|e| e.name() == name).cloned().collect()
}

#[test]
fn a_stall_is_told_once_in_a_while() {
    common::on_all("stall", |s| {
        let few = EndpointConfig { limits: Limits { credits: 64, ..Limits::default() }, ..common::config(s) };
        let (a, b) = (common::open(s), fabric().open(few).unwrap());
        let to_b = a.peer(&b.address().to_string()).unwrap();
        let begun = Instant::now();
        to_b.send(b"first").wait().unwrap();
        let sent: Vec<_> = (0..100).map(|_| to_b.send(b"one of many")).collect();
        let mut events = a.events().0;
        let seconds = begun.elapsed().as_secs() as usize;
        let info = to_b.info().unwrap();
        assert!(info.counters.credit_stalls >= 30 && info.deferred >= 30, "{info:?}");
        let told = named(&events, "credit_stall");
        assert!((1..=1 + seconds).contains(&told.len()), "{told:?} in {seconds} s");
        assert!(
            matches!(told[0], FabricEvent::CreditStall { peer, stalls: 1 } if peer == to_b.id()),
            "{told:?}"
        );
        for i in 0..101 {
            assert_eq!(b.recv().wait().unwrap().len(), if i == 0 { 5 } else { 11 });
        }
        sent.into_iter().for_each(|o| o.wait().unwrap());
        assert_eq!(a.stats().lane.totals.min_credits, 0);
        // The twin: with credit nothing is told.
        to_b.send(b"last").wait().unwrap();
        events = a.events().0;
        assert_eq!(named(&events, "credit_stall"), []);
    });
}

#[test]
fn a_rule_that_strikes_and_what_is_sent_again_are_told() {
    common::on_all("struck", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send(b"calm").wait().unwrap();
        b.recv().wait().unwrap();
        assert!(a.events().0.iter().all(|e| !matches!(e.name(), "resent" | "fault_struck")));
        let rule =
            FaultRule { peer: Some(to_b.id()), port: None, action: FaultAction::Drop, chance: 1.0, seed: 1 };
        let id = a.add_fault(rule).unwrap();
        let options = SendOptions { delivered: true, ..Default::default() };
        let lost: Vec<_> = (0..5).map(|_| to_b.send_with(b"lost at first", options)).collect();
        let struck = a.events().0;
        let hits: Vec<u64> = struck
            .iter()
            .filter_map(|e| match e {
                FabricEvent::FaultStruck { rule, peer, hits } if *rule == id && *peer == to_b.id() => {
                    Some(*hits)
                }
                _ => None,
            })
            .collect();
        assert!(hits.starts_with(&[1, 2, 4]), "{hits:?}");
        assert!(a.remove_fault(id).unwrap() >= 5);
        lost.into_iter().for_each(|o| o.wait().unwrap());
        (0..5).for_each(|_| assert_eq!(&b.recv().wait().unwrap()[..], b"lost at first"));
        let again = [struck, a.events().0].concat();
        let told = named(&again, "resent");
        let FabricEvent::Resent { peer, frames } = &told[0] else { panic!("{told:?}") };
        assert!(*peer == to_b.id() && *frames >= 1);
        let info = to_b.info().unwrap();
        assert!(info.counters.resent >= 5 && info.unacked == 0, "{info:?}");
        assert_eq!(info.rails.iter().map(|r| r.resent).sum::<u64>(), info.counters.resent, "{info:?}");
        assert_eq!((info.rails[0].scheme.as_str(), info.rails[0].health), (s, RailHealth::Good));
    });
}

#[test]
fn every_sample_belongs_to_a_metric_that_was_declared_once() {
    let (a, b, to_b) = pair("shm");
    let rule = FaultRule { peer: None, port: None, action: FaultAction::Drop, chance: 0.5, seed: 1 };
    a.add_fault(rule).unwrap();
    to_b.send(b"x").wait().unwrap();
    b.recv().wait().unwrap();
    let text = text(&a.stats());
    let mut declared = HashSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(declared.insert(rest.split(' ').next().unwrap().to_owned()), "{line} twice");
        } else if !line.starts_with('#') {
            let name = line.split([' ', '{']).next().unwrap();
            assert!(declared.contains(name), "{line}");
            assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
    for name in ["tx_messages_total", "peer_tx_messages_total", "rail_tx_bytes_total", "peer_losses_total"] {
        assert!(declared.contains(&format!("kfab_{name}")), "{name}");
    }
    let idle = fabric().endpoint().unwrap();
    assert!(kfab::prometheus::text(&idle.stats()).contains("kfab_peers 0"));
}

#[test]
fn an_endpoint_says_what_is_in_force() {
    let mut c = common::config("tcp");
    (c.ports.max_conns, c.pool.max_bytes, c.wait) = (77, 64 << 20, kfab::Wait::Sleep);
    c.limits.credits = 128;
    let e = fabric().open(c).unwrap();
    let said = e.config();
    assert_eq!((said.ports.max_conns, said.pool.max_bytes, said.wait), (77, 64 << 20, kfab::Wait::Sleep));
    assert_eq!((said.ports.max_connecting, e.limits().credits), (128, 128));
}
