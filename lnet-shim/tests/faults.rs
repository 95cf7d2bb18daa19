//! Ten thousand puts over real sockets with one in ten messages lost and one in ten delayed, on both sides: every call ends
//! once, none is executed twice, and nothing is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use lnet_shim::ErrorKind;
use lnet_shim::core::{Access, EventSink, MeParams, SharedBytes, TargetOptions, Unlink};
use lnet_shim::nid::{Nid, ProcessId};
use lnet_shim::node::{FaultAction, FaultRule, Frequency, NiConfig, Node, NodeParams};
use lnet_shim::tcp::TcpParams;

const CALLS: u64 = 10_000;
const THREADS: u64 = 128;

fn node(text: &str, seed: u64) -> Node {
    let nid: Nid = text.parse().unwrap();
    let node = Node::new(NodeParams { seed, ..NodeParams::default() }).unwrap();
    node.add_tcp(NiConfig::new(nid), TcpParams::unprivileged(19900)).unwrap();
    node
}

fn one_in_ten(node: &Node, action: FaultAction) {
    let rule = FaultRule { frequency: Frequency::OneIn(10), ..FaultRule::all(action) };
    node.with_engine(|engine, _| engine.add_fault(rule)).unwrap();
}

#[test]
fn ten_thousand_calls_under_loss_and_delay() {
    let (client, server) = (node("127.0.13.1@tcp", 1), node("127.0.13.2@tcp", 2));
    let server_nid = server.primary();
    let seen = Arc::new(Mutex::new(HashMap::<u64, u32>::new()));
    let count = seen.clone();
    let sink = EventSink::callback(100_000, move |event| {
        *count.lock().unwrap().entry(event.match_bits).or_default() += 1;
    });
    let entry = MeParams { ignore_bits: u64::MAX, unlink: Unlink::Retain, ..MeParams::new(9, 0) };
    let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::Put) };
    server.attach(entry, SharedBytes::zeroed(4096).memory(), options, &sink).unwrap();
    assert!(block_on(client.discover(server_nid, false)).is_ok());
    for n in [&client, &server] {
        one_in_ten(n, FaultAction::Drop);
        one_in_ten(n, FaultAction::Delay(Duration::from_millis(5)));
    }
    let (good, late) = <(AtomicU64, AtomicU64)>::default();
    std::thread::scope(|scope| {
        for t in 0..THREADS {
            let (client, good, late) = (&client, &good, &late);
            scope.spawn(move || {
                for id in (t..CALLS).step_by(THREADS as usize) {
                    let target = ProcessId::lnet(server_nid);
                    let put =
                        client.put_bytes(target, 9, id, vec![id as u8; 100], Duration::from_millis(300));
                    match block_on(put) {
                        Ok(n) => {
                            assert_eq!(n, 100);
                            good.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::TimedOut, "{e}");
                            late.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (good, late) = (good.into_inner(), late.into_inner());
    assert_eq!(good + late, CALLS);
    // A put is lost, or its acknowledgement is.
    assert!((CALLS / 10..CALLS / 3).contains(&late), "{late} calls timed out");
    let seen = seen.lock().unwrap();
    assert!(seen.values().all(|n| *n == 1), "executed twice");
    assert!(seen.len() as u64 >= good && (seen.len() as u64) < CALLS);
    let start = Instant::now();
    while client.with_engine(|e, _| e.core().objects().1 != 2 || e.stats().messages != 0) {
        assert!(start.elapsed() < Duration::from_secs(20), "something is left");
        std::thread::sleep(Duration::from_millis(20));
    }
}
