//! Processes killed in the middle of bulk: calls of the others end, their memory comes back, and a restarted one is reached.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use lnet_shim::core::{Access, EventQueue, MeParams, SharedBytes, TargetOptions, Unlink};
use lnet_shim::nid::{Nid, ProcessId};
use lnet_shim::node::{NiConfig, Node, NodeParams};
use lnet_shim::tcp::TcpParams;

const WAIT: Duration = Duration::from_secs(30);
const ROLE: &str = "LNET_SHIM_KILL_ROLE";
const PORT: u16 = 19899;

fn node(text: &str) -> Node {
    let nid: Nid = text.parse().unwrap();
    let node = Node::new(NodeParams { fail_on_peer_lost: true, ..NodeParams::default() }).unwrap();
    let params = TcpParams { min_reconnect: Duration::from_millis(50), ..TcpParams::unprivileged(PORT) };
    node.add_tcp(NiConfig::new(nid), params).unwrap();
    node
}

fn serve(node: &Node) {
    let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::PutGet) };
    let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(9, 7) };
    let sink = EventQueue::new(4).sink();
    node.attach(entry, SharedBytes::zeroed(1 << 20).memory(), options, &sink).unwrap();
}

/// Puts and gets 1 MiB for ever from four threads until `stop`; counts what went well and what did not.
fn load(
    node: &Node,
    to: &str,
    stop: &Arc<AtomicBool>,
    good: &Arc<AtomicU64>,
    bad: &Arc<AtomicU64>,
) -> Vec<std::thread::JoinHandle<()>> {
    let target = ProcessId::lnet(to.parse().unwrap());
    let one = |i: usize| {
        let (node, stop, good, bad) = (node.clone(), stop.clone(), good.clone(), bad.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                let well = if i < 2 {
                    block_on(node.put_bytes(target, 9, 7, vec![1; 1 << 20], WAIT)).is_ok()
                } else {
                    block_on(node.get_bytes(target, 9, 7, 0, 1 << 20, WAIT)).is_ok()
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

fn child(test: &str, role: &str) -> Child {
    let me = std::env::current_exe().unwrap();
    let mut child = Command::new(me)
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The harness may print before it on the same line.
    assert!(lines.any(|l| l.is_ok_and(|l| l.contains("READY"))));
    child
}

fn until(what: &str, mut f: impl FnMut() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_killed_server_fails_calls_and_its_successor_serves() {
    if std::env::var(ROLE).is_ok() {
        let node = node("127.0.11.2@tcp");
        serve(&node);
        println!("READY");
        std::thread::sleep(WAIT * 4);
        return;
    }
    let test = "a_killed_server_fails_calls_and_its_successor_serves";
    let mut server = child(test, "server");
    let client = node("127.0.11.1@tcp");
    let (stop, good, bad) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
    let threads = load(&client, "127.0.11.2@tcp", &stop, &good, &bad);
    for _ in 0..2 {
        let before = good.load(Ordering::Relaxed);
        until("calls go well", || good.load(Ordering::Relaxed) > before + 8);
        let failed = bad.load(Ordering::Relaxed);
        server.kill().unwrap();
        server.wait().unwrap();
        until("all four notice", || bad.load(Ordering::Relaxed) >= failed + 4);
        server = child(test, "server");
    }
    let before = good.load(Ordering::Relaxed);
    until("the successor serves", || good.load(Ordering::Relaxed) > before + 8);
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|t| t.join().unwrap());
    until("nothing is left", || {
        client.with_engine(|e, _| e.core().objects().1 == 2 && e.stats().messages == 0)
    });
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
fn a_killed_client_leaves_nothing_behind() {
    if std::env::var(ROLE).is_ok() {
        let node = node("127.0.12.1@tcp");
        let (stop, good, bad) = <(Arc<AtomicBool>, Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let threads = load(&node, "127.0.12.2@tcp", &stop, &good, &bad);
        until("calls go well", || good.load(Ordering::Relaxed) > 8);
        println!("READY");
        threads.into_iter().for_each(|t| t.join().unwrap());
        return;
    }
    let server = node("127.0.12.2@tcp");
    serve(&server);
    for _ in 0..2 {
        let mut client = child("a_killed_client_leaves_nothing_behind", "client");
        assert!(!server.connections().is_empty());
        client.kill().unwrap();
        client.wait().unwrap();
        until("connections go", || server.connections().is_empty());
        until("messages end", || server.with_engine(|e, _| e.stats().messages == 0));
        let peer = server.with_engine(|e, _| e.peer("127.0.12.1@tcp".parse().unwrap())).unwrap();
        assert!(peer.interfaces.iter().all(|i| i.credits == i.max_credits), "{peer:?}");
        assert_eq!(server.with_engine(|e, _| e.core().objects().1), 3);
    }
}
