//! kfi: processes killed in the middle of bulk. Operations of the others end, windows close, memory comes back, and a restarted
//! one is reached.

mod common;

use common::*;
use futures_lite::future::block_on;
use lnet_shim::kfi::{Book, KfiParams};
use lnet_shim::nid::ProcessId;
use lnet_shim::node::{Node, NodeParams};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const ROLE: &str = "LNET_SHIM_KFI_ROLE";

fn place(scheme: &str, test: &str, who: &str) -> String {
    let port = if test == "server" { 20_310 } else { 20_320 };
    match (scheme, who) {
        ("shm", _) => format!("shm:lnet-kfi-{test}-{who}"),
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

/// Puts and gets 1 MiB for ever from four threads until `stop`; counts what went well and what did not.
fn load(
    node: &Node,
    stop: &Arc<AtomicBool>,
    good: &Arc<AtomicU64>,
    bad: &Arc<AtomicU64>,
) -> Vec<std::thread::JoinHandle<()>> {
    let target = ProcessId::lnet("58@kfi".parse().unwrap());
    let one = |i: usize| {
        let (node, stop, good, bad) = (node.clone(), stop.clone(), good.clone(), bad.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                let well = if i < 2 {
                    block_on(node.put_bytes(target, PORTAL, BITS, vec![1; 1 << 20], WAIT)).is_ok()
                } else {
                    block_on(node.get_bytes(target, PORTAL, BITS, 0, 1 << 20, WAIT)).is_ok()
                };
                if well { &good } else { &bad }.fetch_add(1, Ordering::Relaxed);
                if !well {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    };
    (0..4).map(|i| std::thread::spawn(one(i))).collect()
}

fn child(test: &str, scheme: &str) -> Child {
    let me = std::env::current_exe().unwrap();
    let mut child = Command::new(me)
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, scheme)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The harness may print before it on the same line.
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains("READY"))));
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_server_fails_calls_and_its_successor_serves() {
    const TEST: &str = "a_killed_server_fails_calls_and_its_successor_serves";
    if let Ok(scheme) = std::env::var(ROLE) {
        let _server = node(&scheme, "server", "server");
        println!("READY");
        std::thread::sleep(WAIT * 4);
        return;
    }
    on_all(TEST, |scheme| {
        let mut server = child(TEST, scheme);
        let client = node(scheme, "server", "client");
        let (stop, good, bad) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let threads = load(&client.node, &stop, &good, &bad);
        for _ in 0..3 {
            let before = good.load(Ordering::Relaxed);
            until_or("calls go well", || good.load(Ordering::Relaxed) > before + 8, || client.report());
            let failed = bad.load(Ordering::Relaxed);
            kill(server);
            until_or("all four notice", || bad.load(Ordering::Relaxed) >= failed + 4, || client.report());
            server = child(TEST, scheme);
        }
        let before = good.load(Ordering::Relaxed);
        until_or("the successor serves", || good.load(Ordering::Relaxed) > before + 8, || client.report());
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|t| t.join().unwrap());
        client.at_rest();
        assert_eq!(client.node.with_engine(|e, _| e.core().objects().1), 2);
        kill(server);
    });
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    const TEST: &str = "a_killed_client_leaves_nothing_behind";
    if let Ok(scheme) = std::env::var(ROLE) {
        let client = node(&scheme, "client", "client");
        let (stop, good, bad) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let threads = load(&client.node, &stop, &good, &bad);
        until("calls go well", || good.load(Ordering::Relaxed) > 8);
        println!("READY");
        threads.into_iter().for_each(|t| t.join().unwrap());
        return;
    }
    on_all(TEST, |scheme| {
        let server = node(scheme, "client", "server");
        for _ in 0..3 {
            kill(child(TEST, scheme));
            server.at_rest();
            let peer = server.node.with_engine(|e, _| e.peer("57@kfi".parse().unwrap())).unwrap();
            assert!(peer.interfaces.iter().all(|i| i.credits == i.max_credits), "{peer:?}");
            assert_eq!(server.node.with_engine(|e, _| e.core().objects().1), 3);
        }
    });
}
