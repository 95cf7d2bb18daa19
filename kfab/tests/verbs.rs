//! The whole stack over RDMA cards: two rails that share the load, one cut and healed, both cut with sockets in their place.
//!
//! Needs two cables with a card at each end, as `cargo xtask lab --cards 4 --wire switch` makes them; elsewhere the tests say what is
//! missing and do nothing. `KFAB_LAB_RDMA=1` demands them.

mod common;

use common::child::{self, Kid};
use common::watched_for;
use kfab::{Endpoint, EndpointConfig, Fabric, Limits, Peer, Rights, SendOptions, WindowKey};
use kfab_core::spi::Provider;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// One test at a time: they share the cables.
static ALONE: Mutex<()> = Mutex::new(());
/// Places in the sink's window, and their length.
const PLACES: usize = 4;
const PLACE: usize = 256 << 10;

/// Whether the cards are here; if not, the reason is printed.
fn cards_are_here() -> bool {
    let why = match kfab_verbs::Verbs.probe() {
        Err(why) => why.reason,
        Ok(all) => {
            let names: Vec<_> = all.iter().map(|d| d.name.as_str()).collect();
            if ["rxe_a0", "rxe_a1", "rxe_b0", "rxe_b1"].iter().all(|n| names.contains(n)) {
                return true;
            }
            format!("two cables with a card at each end are needed, there are {}", names.join(" "))
        }
    };
    assert!(std::env::var_os("KFAB_LAB_RDMA").is_none(), "KFAB_LAB_RDMA demands cards: {why}");
    println!("skipped: {why}");
    false
}

/// Both cables as they should be, whatever a test that failed left.
struct Cables(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Cables {
    /// `None`, with a printed reason, where they are not.
    fn new() -> Option<Cables> {
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        cards_are_here().then_some(Cables(alone))
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        for (rail, how) in [("0", "pass"), ("0", "up"), ("1", "pass"), ("1", "up")] {
            let _ = Command::new("lab").args(["link", rail, how]).status();
        }
    }
}

/// `lab link RAIL HOW`.
fn link(rail: usize, how: &str) {
    let done = Command::new("lab").args(["link", &rail.to_string(), how]).status().expect("the lab's helper");
    assert!(done.success(), "lab link {rail} {how}");
}

/// All counters of all cards that tell of a receiver that was not ready.
fn not_ready() -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    for card in std::fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten() {
        let counters = std::fs::read_dir(card.path().join("ports/1/hw_counters"));
        for c in counters.into_iter().flatten().flatten() {
            if c.file_name().to_string_lossy().contains("rnr") {
                all.insert(c.path(), std::fs::read_to_string(c.path()).unwrap());
            }
        }
    }
    assert!(!all.is_empty(), "no counter of receivers that are not ready");
    all
}

/// An endpoint at one end of both cables, and on loopback for when both are cut.
fn on_cards(end: char) -> Endpoint {
    let c = EndpointConfig {
        providers: vec!["verbs".into(), "tcp".into()],
        devices: (0..2).map(|rail| format!("verbs:rxe_{end}{rail}")).collect(),
        // A guest on a busy host may stand still for seconds.
        limits: Limits { peer_timeout: Duration::from_secs(40), ..Default::default() },
        ..Default::default()
    };
    Fabric::new((kfab_verbs::Verbs, kfab_sockets::Sockets)).open(c).unwrap()
}

/// The two ends; both are processes of their own.
struct Pair {
    source: Kid,
    sink: Kid,
    /// The longest time in which the sink got nothing, ms.
    gap_ms: u64,
}

/// What the sink has got so far: messages, and bytes by port (two cards, then tcp).
#[derive(Debug, Clone, Copy)]
struct Got {
    messages: u64,
    ports: [u64; 3],
}

impl Pair {
    fn start() -> Pair {
        let sink = Kid::start("sink", &[]);
        let ready = sink.says("ready");
        let (address, window) = ready.split_once(' ').unwrap();
        let source = Kid::start("source", &[address, window]);
        source.says("ready");
        Pair { source, sink, gap_ms: 0 }
    }

    fn got(&mut self) -> Got {
        self.sink.tell("got");
        let said = self.sink.says("got");
        let n: Vec<u64> = said.split(' ').map(|n| n.parse().unwrap()).collect();
        self.gap_ms = self.gap_ms.max(n[4]);
        Got { messages: n[0], ports: [n[1], n[2], n[3]] }
    }

    /// Bytes by port since `before`, as shares of their sum.
    fn shares(&mut self, before: Got) -> [f64; 3] {
        let now = self.got();
        let by: Vec<u64> = (0..3).map(|i| now.ports[i].saturating_sub(before.ports[i])).collect();
        let all = by.iter().sum::<u64>().max(1) as f64;
        [by[0] as f64 / all, by[1] as f64 / all, by[2] as f64 / all]
    }

    /// Waits until the sink has `n` more messages.
    fn more(&mut self, n: u64) -> Duration {
        let (begun, from) = (Instant::now(), self.got().messages);
        while self.got().messages < from + n {
            assert!(begun.elapsed() < Duration::from_secs(60), "traffic does not go on: {:?}", self.got());
            std::thread::sleep(Duration::from_millis(5));
        }
        begun.elapsed()
    }

    /// Waits until what comes is shared as `is_good` wants.
    fn until(&mut self, what: &str, mut is_good: impl FnMut([f64; 3]) -> bool) {
        let begun = Instant::now();
        loop {
            let before = self.got();
            self.more(10);
            let s = self.shares(before);
            if is_good(s) {
                println!("{what}: after {:?}, shares {s:.2?}", begun.elapsed());
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{what}: not so, shares {s:.2?}");
        }
    }

    /// Ends the traffic: all that was sent has arrived, once each.
    fn finish(mut self) {
        self.source.tell("stop");
        let said = self.source.says("sent");
        let (sent, rest) = said.split_once(' ').unwrap();
        let sent: u64 = sent.parse().unwrap();
        let begun = Instant::now();
        while self.got().messages < sent {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?} of {sent} arrived", self.got());
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(self.got().messages, sent, "more arrived than was sent");
        assert!(self.source.lives() && self.sink.lives());
        println!("{sent} messages, each once; {rest}");
    }
}

/// Not a test of its own: what the children do.
#[test]
fn child_main() {
    let Some(role) = child::role() else { return };
    match role[0].as_str() {
        "sink" => sink(),
        "source" => source(&role[1], &role[2]),
        other => panic!("{other}"),
    }
}

/// Receives numbered messages, each exactly once and whole.
fn sink() {
    let e = Arc::new(on_cards('b'));
    let window = e.window(PLACES * PLACE, Rights::READ | Rights::WRITE).unwrap();
    let (count, gap) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (seen_by, seen_gap, seen_e) = (count.clone(), gap.clone(), e.clone());
    // Bytes of connections that are gone count too: a connection's counter that went back is a new one's.
    let (mut last, mut gone) = (HashMap::new(), [0u64; 3]);
    child::listen(move |_| {
        let mut by = gone;
        for r in seen_e.stats().peers.into_iter().flat_map(|p| p.info.rails) {
            let before = last.insert((r.rail, r.port), r.rx_bytes).unwrap_or(0);
            if r.rx_bytes < before {
                gone[r.port] += before;
                by[r.port] += before;
            }
        }
        last.iter().for_each(|((_, port), bytes)| by[*port] += bytes);
        let gap = seen_gap.swap(0, Ordering::Relaxed);
        let n = seen_by.load(Ordering::Relaxed);
        child::say(&format!("got {n} {} {} {} {gap}", by[0], by[1], by[2]));
    });
    child::say(&format!("ready {} {}", e.address(), common::node::hex(&window.key().to_bytes())));
    let mut seen = Vec::new();
    let mut last = Instant::now();
    loop {
        let m = e.recv().wait().unwrap();
        gap.fetch_max(last.elapsed().as_millis() as u64, Ordering::Relaxed);
        last = Instant::now();
        let n = u64::from_le_bytes(m[..8].try_into().unwrap()) as usize;
        if seen.len() <= n {
            seen.resize(n + 1, false);
        }
        assert!(!std::mem::replace(&mut seen[n], true), "message {n} came twice");
        let expected = length(n as u64);
        assert_eq!(m.len(), expected, "message {n} has another length");
        assert!(is_filled(&m[8..], n as u8), "message {n} is damaged");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whether all bytes are `b`; in pieces that are compared fast without optimisation.
fn is_filled(bytes: &[u8], b: u8) -> bool {
    bytes.chunks(4096).all(|c| c == &[b; 4096][..c.len()])
}

/// Mostly 1 MiB, some of the sizes that go inline and eagerly.
fn length(n: u64) -> usize {
    match n % 10 {
        7 => 24,
        8 => 1000,
        9 => 10_000,
        _ => 1 << 20,
    }
}

/// Sends numbered messages, a few under way at a time, writes into the sink's window and reads it back, until told to stop.
fn source(address: &str, window: &str) {
    let e = on_cards('a');
    let to = e.peer(address).unwrap();
    let digits = (0..window.len() / 2).map(|i| u8::from_str_radix(&window[2 * i..2 * i + 2], 16).unwrap());
    let key = WindowKey::from_bytes(&digits.collect::<Vec<_>>()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    child::listen(move |_| stopped.store(true, Ordering::Relaxed));
    child::say("ready");
    let (mut under_way, mut n, mut written) = (VecDeque::new(), 0u64, 0u64);
    while !stop.load(Ordering::Relaxed) {
        under_way.push_back(numbered(&e, &to, n));
        n += 1;
        if n.is_multiple_of(6) {
            write_and_read(&e, &to, &key, written);
            written += 1;
        }
        if under_way.len() >= 8
            && let Some(oldest) = under_way.pop_front()
        {
            kfab::Op::<()>::wait(oldest).expect("a send");
        }
        for event in e.events().0 {
            eprintln!("source: {event:?}");
        }
    }
    under_way.into_iter().for_each(|o| o.wait().expect("a send"));
    let c = e.stats().lane.totals;
    child::say(&format!(
        "sent {n} {written} writes read back, {} frames sent again, {} fail-overs",
        c.resent, c.failovers
    ));
    std::thread::sleep(Duration::from_secs(60));
}

fn numbered(e: &Endpoint, to: &Peer, n: u64) -> kfab::Op<()> {
    let mut b = e.buffer(length(n)).unwrap();
    let bytes = b.get_mut().unwrap();
    bytes.fill(n as u8);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    to.send_with(b, SendOptions { delivered: true, ..Default::default() })
}

/// Writes a place of the window and looks at it from here.
fn write_and_read(e: &Endpoint, to: &Peer, key: &WindowKey, n: u64) {
    let offset = (n % PLACES as u64) * PLACE as u64;
    let mut b = e.buffer(PLACE).unwrap();
    b.get_mut().unwrap().fill(n as u8 ^ 0x5a);
    to.write(key, offset, b).wait().expect("a write");
    let back = to.read(key, offset, e.buffer(PLACE).unwrap()).wait().expect("a read");
    assert!(is_filled(&back, n as u8 ^ 0x5a), "write {n} is not what was read");
}

#[test]
fn large_traffic_uses_both_cards_and_survives_the_loss_of_one() {
    let Some(_cables) = Cables::new() else { return };
    watched_for("two cards", 400, || {
        let before = not_ready();
        let mut pair = Pair::start();
        pair.more(10);
        let start = pair.got();
        pair.more(30);
        let s = pair.shares(start);
        println!("shares of two equal rails: {s:.2?}");
        assert!(s[0] > 0.2 && s[1] > 0.2 && s[2] == 0.0, "{s:?}");
        assert_eq!(not_ready(), before, "a receiver was not ready");
        for (cut, how, cure) in [(0, "down", "up"), (1, "down", "up"), (1, "drop", "pass")] {
            pair.got();
            pair.gap_ms = 0;
            link(cut, how);
            pair.until(&format!("rail {cut} {how}: the other carries it"), |s| s[1 - cut] > 0.95);
            println!("rail {cut} {how}: traffic stood still for at most {} ms", pair.gap_ms);
            link(cut, cure);
            pair.until(&format!("rail {cut} {cure}: used again"), |s| s[cut] > 0.2);
        }
        pair.finish();
        // Soft-RoCE of 6.12 counts one refusal at a card whose link goes down, which no sender is ever told of.
        let told = |m: BTreeMap<PathBuf, String>| {
            m.into_iter().filter(|(p, _)| !p.ends_with("send_rnr_err")).collect::<Vec<_>>()
        };
        assert_eq!(told(not_ready()), told(before), "a sender heard that a receiver was not ready");
    });
}

#[test]
fn sockets_take_over_when_both_cards_are_cut_and_step_back() {
    let Some(_cables) = Cables::new() else { return };
    watched_for("both cut", 400, || {
        let mut pair = Pair::start();
        pair.until("at first", |s| s[0] > 0.2 && s[1] > 0.2);
        for (how, cure) in [("down", "up"), ("drop", "pass")] {
            pair.got();
            pair.gap_ms = 0;
            link(0, how);
            link(1, how);
            pair.until(&format!("both {how}: sockets carry it"), |s| s[2] > 0.95);
            println!("both {how}: traffic stood still for at most {} ms", pair.gap_ms);
            link(0, cure);
            link(1, cure);
            pair.until(&format!("both {cure}: the cards carry it"), |s| {
                s[0] > 0.2 && s[1] > 0.2 && s[2] == 0.0
            });
        }
        pair.finish();
    });
}
