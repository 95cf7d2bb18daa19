//! IPv6 from end to end: addresses, messages, large ones, windows, and a server that hears both families.

mod common;

use common::node::plain_fabric;
use common::skip::skip;
use common::{config, pattern, watched};
use kfab::{Endpoint, EndpointConfig, Rights};
use std::net::TcpListener;

/// Whether this machine has it; if not, that is said.
fn is_here() -> bool {
    let bound = TcpListener::bind("[::1]:0");
    if let Err(e) = &bound {
        skip("ipv6", &format!("no IPv6 here: {e}"));
    }
    bound.is_ok()
}

/// With a key, as listening beyond loopback asks for one.
fn at(place: &str) -> Endpoint {
    plain_fabric().open(EndpointConfig { listen: vec![format!("tcp:{place}")], ..config("tcp") }).unwrap()
}

/// Messages of all sizes there and back, and a window.
fn talk(a: &Endpoint, b: &Endpoint, way: &str) {
    let to_b = a.peer(way).unwrap();
    for (i, len) in [0, 8, 5_000, 300_000, 3 << 20].into_iter().enumerate() {
        let want = pattern(len, i);
        let sent = to_b.send(&want[..]);
        let m = b.recv().wait().unwrap();
        assert_eq!(&m[..], &want[..]);
        sent.wait().unwrap();
        let back = m.from().send(&m);
        assert_eq!(&a.recv().wait().unwrap()[..], &want[..]);
        back.wait().unwrap();
    }
    let window = b.window(100_000, Rights::READ | Rights::WRITE).unwrap();
    let bytes = pattern(100_000, 9);
    to_b.write(window.key(), 0, &bytes[..]).wait().unwrap();
    let read = to_b.read(window.key(), 0, a.buffer(100_000).unwrap()).wait().unwrap();
    assert_eq!(&read[..], &bytes[..]);
}

#[test]
fn two_endpoints_on_the_loopback_address() {
    watched("IPv6", || {
        if !is_here() {
            return;
        }
        let (a, b) = (at("[::1]:0"), at("[::1]:0"));
        let way = b.address().to_string();
        assert!(way.starts_with("tcp:[::1]:"), "{way}");
        talk(&a, &b, &way);
        assert!(a.stats().peers[0].info.rails[0].tx_bytes > 3 << 20);
    });
}

#[test]
fn a_server_on_the_wildcard_hears_both_families() {
    watched("both families", || {
        if !is_here() {
            return;
        }
        let server = at("[::]:0");
        let port = server.address().to_string().rsplit(':').next().unwrap().to_owned();
        for (client, there) in [("[::1]:0", "[::1]"), ("127.0.0.1:0", "127.0.0.1")] {
            talk(&at(client), &server, &format!("tcp:{there}:{port}"));
        }
    });
}
