//! What tests share: nodes on an endpoint, patterns, watchdogs, processes to kill.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod killed;

use kfab::{Endpoint, EndpointConfig, Fabric, Progress};
use lnet_shim::core::*;
use lnet_shim::kfi::{Book, KfiParams};
use lnet_shim::nid::Nid;
use lnet_shim::node::{NiConfig, Node, NodeParams};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

pub(crate) const WAIT: Duration = Duration::from_secs(30);
pub(crate) const PORTAL: u32 = 9;
pub(crate) const BITS: u64 = 7;

/// What the tests run over: what every machine has; the cards where `KFAB_LAB_RDMA=1` demands them, as in `cargo xtask lab`.
pub(crate) fn schemes() -> &'static [&'static str] {
    if std::env::var_os("KFAB_LAB_RDMA").is_some() { &["verbs"] } else { &["shm", "tcp"] }
}

/// Ends the test run unless it is dropped in time.
pub(crate) fn watchdog(name: &str, seconds: u64) -> mpsc::Sender<()> {
    let (alive, dropped) = mpsc::channel();
    let name = name.to_owned();
    std::thread::spawn(move || {
        if dropped.recv_timeout(Duration::from_secs(seconds)) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("{name} hangs");
            std::process::exit(99);
        }
    });
    alive
}

pub(crate) fn on_all(name: &str, f: impl Fn(&'static str)) {
    for scheme in schemes() {
        let _watchdog = watchdog(&format!("{name} over {scheme}"), 180);
        f(scheme);
    }
}

pub(crate) fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 253 + seed * 7) as u8).collect()
}

pub(crate) fn until(what: &str, done: impl FnMut() -> bool) {
    until_or(what, done, String::new);
}

/// Waits until `done`; if that takes too long, says what `report` has to say.
pub(crate) fn until_or(what: &str, mut done: impl FnMut() -> bool, report: impl Fn() -> String) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT, "{what}: {}", report());
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn fabric() -> Fabric {
    Fabric::new((kfab_shm::Shm, kfab_verbs::Verbs, kfab_sockets::Sockets))
}

/// An endpoint over this provider alone.
pub(crate) fn over(scheme: &str) -> EndpointConfig {
    EndpointConfig { providers: vec![scheme.into()], ..Default::default() }
}

/// An endpoint that kfi's thread makes progress for.
pub(crate) fn endpoint(scheme: &str, listen: Option<String>) -> Arc<Endpoint> {
    // A machine full of tests may let a thread wait for long.
    endpoint_with(scheme, listen, Progress::Inline, Duration::from_secs(20))
}

pub(crate) fn endpoint_with(
    scheme: &str,
    listen: Option<String>,
    progress: Progress,
    peer_timeout: Duration,
) -> Arc<Endpoint> {
    let mut config = EndpointConfig { listen: listen.into_iter().collect(), progress, ..over(scheme) };
    config.limits.peer_timeout = peer_timeout;
    Arc::new(fabric().open(config).unwrap())
}

/// Timers for tests that lose peers.
pub(crate) fn quick() -> NodeParams {
    NodeParams { recovery_interval: Duration::from_millis(200), ..NodeParams::default() }
}

/// A node with a kfi interface.
pub(crate) struct Kfi {
    pub(crate) node: Node,
    pub(crate) nid: Nid,
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Kfi {
    pub(crate) fn start(nid: &str, scheme: &str, book: &Book) -> Kfi {
        Self::with_params(nid, scheme, book, NodeParams::default())
    }

    pub(crate) fn with_params(nid: &str, scheme: &str, book: &Book, params: NodeParams) -> Kfi {
        Self::on(nid, vec![endpoint(scheme, None)], book, params, &KfiParams::default())
    }

    pub(crate) fn with_lanes(nid: &str, scheme: &str, book: &Book, lanes: usize, params: &KfiParams) -> Kfi {
        let endpoints = (0..lanes).map(|_| endpoint(scheme, None)).collect();
        Self::on(nid, endpoints, book, NodeParams::default(), params)
    }

    pub(crate) fn on(
        nid: &str,
        endpoints: Vec<Arc<Endpoint>>,
        book: &Book,
        params: NodeParams,
        kfi: &KfiParams,
    ) -> Kfi {
        Self::of(Node::new(params).unwrap(), nid, endpoints, book, kfi)
    }

    /// Adds the interface to a node there is.
    pub(crate) fn of(
        node: Node,
        nid: &str,
        endpoints: Vec<Arc<Endpoint>>,
        book: &Book,
        kfi: &KfiParams,
    ) -> Kfi {
        let nid: Nid = nid.parse().unwrap();
        let addresses: Vec<String> = endpoints.iter().map(|e| e.address().to_string()).collect();
        book.set(nid, &addresses).unwrap();
        let endpoint = endpoints[0].clone();
        node.add_kfi(NiConfig::new(nid), endpoints, book, kfi).unwrap();
        Kfi { node, nid, endpoint }
    }

    /// What is going on.
    pub(crate) fn report(&self) -> String {
        let (stats, peers) = self.node.with_engine(|e, _| (e.stats(), e.peers()));
        let connections = self.node.connections();
        format!("{stats:?}\n{peers:?}\n{connections:?}\n{:#?}", self.endpoint.stats())
    }

    /// Messages this node's endpoint has sent.
    pub(crate) fn messages(&self) -> u64 {
        self.endpoint.stats().lane.totals.tx_messages
    }

    /// Waits until nothing is under way: no message, no window, no memory but what is idle.
    pub(crate) fn at_rest(&self) {
        until("messages end", || self.node.with_engine(|e, _| e.stats().messages == 0));
        until("windows are closed", || self.endpoint.stats().lane.windows == 0);
        until("memory is back", || self.endpoint.stats().pool.in_use == 0);
    }
}

/// Memory that others may fill and take, from its beginning or where they say.
pub(crate) fn serve(node: &Node, len: usize) -> (SharedBytes, EventQueue) {
    let (memory, queue) = (SharedBytes::zeroed(len), EventQueue::new(4096));
    let options = TargetOptions { manage_remote: true, truncate: true, ..TargetOptions::new(Access::PutGet) };
    let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(PORTAL, BITS) };
    node.attach(entry, memory.memory(), options, &queue.sink()).unwrap();
    (memory, queue)
}
