//! tcp: processes killed in the middle of bulk. Calls of the others end, their memory comes back, and a restarted one is reached.

mod common;

use common::killed::{Load, Part, ready};
use common::*;
use lnet_shim::nid::Nid;
use lnet_shim::node::{NiConfig, Node, NodeParams};
use lnet_shim::tcp::TcpParams;
use std::time::Duration;

const ROLE: &str = "LNET_SHIM_KILL_ROLE";
const PORT: u16 = 19899;

fn node(text: &str) -> Node {
    let nid: Nid = text.parse().unwrap();
    let node = Node::new(NodeParams { fail_on_peer_lost: true, ..NodeParams::default() }).unwrap();
    let params = TcpParams { min_reconnect: Duration::from_millis(50), ..TcpParams::unprivileged(PORT) };
    node.add_tcp(NiConfig::new(nid), params).unwrap();
    node
}

#[test]
fn a_killed_server_fails_calls_and_its_successor_serves() {
    const TEST: &str = "a_killed_server_fails_calls_and_its_successor_serves";
    if std::env::var(ROLE).is_ok() {
        let node = node("127.0.11.2@tcp");
        drop(serve(&node, 1 << 20));
        ready("");
        std::thread::sleep(WAIT * 4);
        return;
    }
    let _watchdog = watchdog(TEST, 180);
    let mut server = Part::start(TEST, &[(ROLE, "server")]);
    let client = node("127.0.11.1@tcp");
    let load = Load::start(&client, "127.0.11.2@tcp");
    for _ in 0..2 {
        load.goes_well(String::new);
        let failed = load.failed();
        server.kill();
        until("all four notice", || load.failed() >= failed + 4);
        server = Part::start(TEST, &[(ROLE, "server")]);
    }
    load.goes_well(String::new);
    load.join(true);
    until("nothing is left", || {
        client.with_engine(|e, _| e.core().objects().1 == 2 && e.stats().messages == 0)
    });
    server.kill();
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    const TEST: &str = "a_killed_client_leaves_nothing_behind";
    if std::env::var(ROLE).is_ok() {
        let load = Load::start(&node("127.0.12.1@tcp"), "127.0.12.2@tcp");
        load.goes_well(String::new);
        ready("");
        return load.join(false);
    }
    let _watchdog = watchdog(TEST, 180);
    let server = node("127.0.12.2@tcp");
    drop(serve(&server, 1 << 20));
    for _ in 0..2 {
        let client = Part::start(TEST, &[(ROLE, "client")]);
        assert!(!server.connections().is_empty());
        client.kill();
        until("connections go", || server.connections().is_empty());
        until("messages end", || server.with_engine(|e, _| e.stats().messages == 0));
        let peer = server.with_engine(|e, _| e.peer("127.0.12.1@tcp".parse().unwrap())).unwrap();
        assert!(peer.interfaces.iter().all(|i| i.credits == i.max_credits), "{peer:?}");
        assert_eq!(server.with_engine(|e, _| e.core().objects().1), 3);
    }
}
