//! What the tests of the API share: watchdogs, endpoints by provider, patterns.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod child;
pub(crate) mod level;
pub(crate) mod node;
pub(crate) mod relay;
pub(crate) mod skip;
pub(crate) mod sys;
pub(crate) mod times;
pub(crate) mod traffic;

use kfab::{Endpoint, EndpointConfig, Fabric, Peer};
use std::sync::mpsc;
use std::time::Duration;

/// Ends the test run if `f` hangs.
pub(crate) fn watched(name: &str, f: impl FnOnce() + Send + 'static) {
    watched_for(name, 180, f);
}

/// Ends the test run if `f` takes more than `seconds`.
pub(crate) fn watched_for(name: &str, seconds: u64, f: impl FnOnce() + Send + 'static) {
    let (tx, rx) = mpsc::channel();
    let t = std::thread::spawn(move || {
        f();
        let _ = tx.send(());
    });
    match rx.recv_timeout(Duration::from_secs(seconds)) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            eprintln!("{name} hangs");
            std::process::exit(99);
        }
        _ => t.join().unwrap_or_else(|e| std::panic::resume_unwind(e)),
    }
}

pub(crate) const SCHEMES: [&str; 2] = ["shm", "tcp"];

/// Whether the tests run in the lab, over its cards.
fn in_lab() -> bool {
    std::env::var_os("KFAB_LAB_RDMA").is_some()
}

pub(crate) fn fabric() -> Fabric {
    if in_lab() {
        return Fabric::new((kfab_verbs::Verbs, kfab_shm::Shm, kfab_sockets::Sockets));
    }
    Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets))
}

pub(crate) fn config(scheme: &str) -> EndpointConfig {
    EndpointConfig { providers: vec![scheme.into()], ..Default::default() }
}

pub(crate) fn open(scheme: &str) -> Endpoint {
    fabric().open(config(scheme)).unwrap()
}

/// Two endpoints and the first's handle for the second.
pub(crate) fn pair(scheme: &str) -> (Endpoint, Endpoint, Peer) {
    let (a, b) = (open(scheme), open(scheme));
    let p = a.peer(&b.address().to_string()).unwrap();
    (a, b, p)
}

pub(crate) fn on_all(name: &'static str, f: impl Fn(&str) + Send + Sync + Clone + 'static) {
    for s in if in_lab() { &["verbs"][..] } else { &SCHEMES } {
        let f = f.clone();
        watched(&format!("{name} over {s}"), move || f(s));
    }
}

pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 253 + seed) as u8).collect()
}
