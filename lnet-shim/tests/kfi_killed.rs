//! kfi: processes killed in the middle of bulk. Operations of the others end, windows close, memory comes back, and a restarted
//! one is reached.

mod common;

use common::killed::{Load, Part, ready};
use common::*;
use lnet_shim::kfi::{Book, KfiParams};
use lnet_shim::node::{Node, NodeParams};

const ROLE: &str = "LNET_SHIM_KFI_ROLE";

fn place(scheme: &str, test: &str, who: &str) -> String {
    let port = if test == "server" { 20_310 } else { 20_320 };
    match (scheme, who) {
        ("shm", _) => format!("shm:lnet-kfi-{test}-{who}"),
        // The ends of the lab's first cable.
        ("verbs", "client") => format!("verbs:10.8.0.1:{port}"),
        ("verbs", _) => format!("verbs:10.8.0.2:{}", port + 1),
        (_, "client") => format!("tcp:127.0.0.1:{port}"),
        _ => format!("tcp:127.0.0.1:{}", port + 1),
    }
}

/// A node of test `test` that is the `who` of it: client 57, server 58.
fn node(scheme: &str, test: &str, who: &str) -> Kfi {
    let at = endpoint(scheme, Some(place(scheme, test, who)));
    // Over shm an address names this boot of the machine as well.
    let own = at.address().to_string();
    let boot = own.split_once('@').map_or(String::new(), |(_, boot)| format!("@{boot}"));
    let book = Book::new();
    for (nid, who) in [("57@kfi", "client"), ("58@kfi", "server")] {
        book.set(nid.parse().unwrap(), &[format!("{}{boot}", place(scheme, test, who))]).unwrap();
    }
    let node = Node::new(NodeParams { fail_on_peer_lost: true, ..quick() }).unwrap();
    // Before others can reach it: what matches nothing is dropped, and its sender waits in vain.
    let nid = if who == "client" {
        "57@kfi"
    } else {
        drop(serve(&node, 1 << 20));
        "58@kfi"
    };
    Kfi::of(node, nid, vec![at], &book, &KfiParams::default())
}

#[test]
fn a_killed_server_fails_calls_and_its_successor_serves() {
    const TEST: &str = "a_killed_server_fails_calls_and_its_successor_serves";
    if let Ok(scheme) = std::env::var(ROLE) {
        let _server = node(&scheme, "server", "server");
        ready("");
        std::thread::sleep(WAIT * 4);
        return;
    }
    on_all(TEST, |scheme| {
        let mut server = Part::start(TEST, &[(ROLE, scheme)]);
        let client = node(scheme, "server", "client");
        let load = Load::start(&client.node, "58@kfi");
        for _ in 0..3 {
            load.goes_well(|| client.report());
            let (failed, ended) = (load.failed(), load.ended());
            server.kill();
            until_or("who waits for the dead one notices", || load.failed() > failed, || client.report());
            // A call that begins between two servers waits for the next one.
            server = Part::start(TEST, &[(ROLE, scheme)]);
            let all = || load.ended().iter().zip(ended).all(|(now, then)| *now > then);
            until_or("all four calls end", all, || client.report());
        }
        load.goes_well(|| client.report());
        load.join(true);
        client.at_rest();
        assert_eq!(client.node.with_engine(|e, _| e.core().objects().1), 2);
        server.kill();
    });
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    const TEST: &str = "a_killed_client_leaves_nothing_behind";
    if let Ok(scheme) = std::env::var(ROLE) {
        let client = node(&scheme, "client", "client");
        let load = Load::start(&client.node, "58@kfi");
        load.goes_well(|| client.report());
        ready("");
        return load.join(false);
    }
    on_all(TEST, |scheme| {
        let server = node(scheme, "client", "server");
        for _ in 0..3 {
            Part::start(TEST, &[(ROLE, scheme)]).kill();
            server.at_rest();
            let peer = server.node.with_engine(|e, _| e.peer("57@kfi".parse().unwrap())).unwrap();
            assert!(peer.interfaces.iter().all(|i| i.credits == i.max_credits), "{peer:?}");
            assert_eq!(server.node.with_engine(|e, _| e.core().objects().1), 3);
        }
    });
}
