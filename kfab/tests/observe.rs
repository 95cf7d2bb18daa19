//! What can be seen of an endpoint from outside: events by several readers, logs, and Prometheus' text.

mod common;

use common::{fabric, pair, watched};
use kfab::prometheus::{Exporter, text};
use kfab::{FabricEvent, FaultAction, FaultRule, Kind};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

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
        drop(b);
        let e = a.recv_with().from(&to_b).post().wait();
        assert!(e.is_err_and(|e| matches!(e.kind(), Kind::PeerLost | Kind::Unreachable)));
        let lost = |e: &FabricEvent| matches!(e, FabricEvent::PeerLost { .. } | FabricEvent::RailDown { .. });
        assert!(first.read().0.iter().any(lost));
        drop((a, to_b));
        assert_eq!(second.read(), (vec![], 0), "nothing once the endpoint is gone");
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
        assert!(get(exporter.address(), "/").starts_with("HTTP/1.1 404"));
        let taken = Exporter::serve(&a, exporter.address()).unwrap_err();
        assert!(taken.to_string().contains(&exporter.address().to_string()), "{taken}");
        // It does not keep the endpoint open, and goes when dropped.
        drop(a);
        assert!(exporter.address().port() != 0);
        drop(exporter);
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
