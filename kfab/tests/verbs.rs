//! The whole stack over RDMA cards: two rails that share the load, one cut and healed, both cut with sockets in
//! their place, an idle connection closed.
//!
//! Needs two cables with a card at each end, as `cargo xtask lab --cards 4 --wire switch` makes them; elsewhere the tests say what is
//! missing and do nothing. `KFAB_LAB_RDMA=1` demands them.

mod common;

use common::child::{self, Kid};
use common::traffic::{self, Arrivals, Numbers, is_filled, send_until};
use common::watched_for;
use kfab::{Endpoint, EndpointConfig, Fabric, Limits, Peer, Rights, SendOptions, WindowKey};
use kfab_core::spi::Provider;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tracing::span;

/// One test at a time: they share the cables.
static ALONE: Mutex<()> = Mutex::new(());
/// Seconds that no test takes, whatever the host of the guest does besides.
const WATCH_S: u64 = 900;
/// How long single steps may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// A guest on a busy host may stand still for seconds.
const PEER_TIMEOUT: Duration = Duration::from_secs(40);
/// Connections that are to stay open.
const LONG: Duration = Duration::from_secs(600);
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

/// What the `rdma` tool says.
fn rdma(words: &str) -> String {
    let out = Command::new("rdma").args(words.split(' ')).output().expect("the rdma tool (iproute2)");
    assert!(out.status.success(), "rdma {words}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Milliseconds of a clock that all processes share.
fn now_ms() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1000 + t.tv_nsec as u64 / 1_000_000
}

/// When a connection of this process first ended on a card since it was last asked, ms; 0: none did.
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Listens to what provider and protocol trace of connections, and shows it.
struct Ends;

/// The fields of an event as text.
struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {}={value:?}", field.name());
    }
}

impl tracing::Subscriber for Ends {
    fn enabled(&self, m: &tracing::Metadata<'_>) -> bool {
        m.target() == "kfab" || m.name() == "end"
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, e: &tracing::Event<'_>) {
        let (now, mut fields) = (now_ms(), Fields(String::new()));
        e.record(&mut fields);
        eprintln!("  {now} ms, process {}:{}", std::process::id(), fields.0);
        if e.metadata().name() == "end" {
            let _ = ENDED.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
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
        limits: Limits { peer_timeout: PEER_TIMEOUT, ..Default::default() },
        ..Default::default()
    };
    Fabric::new((kfab_verbs::Verbs, kfab_sockets::Sockets)).open(c).unwrap()
}

/// An endpoint on these cards and nothing else, whose idle connections are closed after this time.
fn only_on(cards: &[&str], idle_close: Duration) -> Endpoint {
    let limits = Limits { idle_close, peer_timeout: PEER_TIMEOUT, ..Default::default() };
    let devices = cards.iter().map(|c| format!("verbs:{c}")).collect();
    let c = EndpointConfig { providers: vec!["verbs".into()], devices, limits, ..Default::default() };
    Fabric::new((kfab_verbs::Verbs,)).open(c).unwrap()
}

/// Two cards, then sockets.
type Traffic = traffic::Pair<3>;

/// The two ends; both are processes of their own.
struct Pair(Traffic);

impl Pair {
    fn start() -> Pair {
        let sink = Kid::start("sink", &[]);
        let ready = sink.says("ready");
        let (address, window) = ready.split_once(' ').unwrap();
        let source = Kid::start("source", &[address, window]);
        source.says("ready");
        Pair(Traffic { source, sink, patience: PATIENCE })
    }

    /// Does something to the cables, waits until what comes is shared as `is_good` wants, and prints how long that took.
    fn disturb(&mut self, what: &str, mut it: impl FnMut(), mut is_good: impl FnMut([f64; 3]) -> bool) {
        self.0.ask("again");
        self.0.source.tell("ended");
        self.0.source.says("ended");
        let done_ms = now_ms();
        it();
        self.until(what, &mut is_good);
        let [gap, resumed, sink_saw] = self.0.ask("gap")[..] else { panic!("not three numbers") };
        self.0.source.tell("ended");
        let source_saw: u64 = self.0.source.says("ended").parse().unwrap();
        // Either end may have been the first to see it; where nobody did, it was the protocol that gave the rail up.
        let saw = [source_saw, sink_saw].into_iter().filter(|t| *t > 0);
        let (first, last) = (saw.clone().min(), saw.max());
        println!("{what}: done at {done_ms} ms, resumed at {resumed} ms");
        let after = |t: Option<u64>| t.map_or("-".into(), |t| format!("{} ms", t as i64 - done_ms as i64));
        let since = |t: Option<u64>| t.map_or("-".into(), |t| format!("{} ms", resumed as i64 - t as i64));
        println!(
            "{what}: traffic stood still for at most {gap} ms; the first end saw the error after {}, the last after {}; it went on {} after \
             the cut, {} and {} after these errors",
            after(first),
            after(last),
            since(Some(done_ms)),
            since(first),
            since(last)
        );
    }

    /// Waits until what comes is shared as `is_good` wants.
    fn until(&mut self, what: &str, mut is_good: impl FnMut([f64; 3]) -> bool) {
        let begun = Instant::now();
        loop {
            let before = self.0.got();
            self.0.more(10);
            let s = self.0.shares(before);
            if is_good(s) {
                println!("{what}: after {:?}, shares {s:.2?}", begun.elapsed());
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: not so, shares {s:.2?}");
        }
    }

    /// Ends the traffic: all that was sent has arrived, once each.
    fn finish(self) {
        println!("each message once; {}", self.0.finish());
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
    tracing::subscriber::set_global_default(Ends).unwrap();
    let count = Arc::new(AtomicU64::new(0));
    // The longest time without a message, when it ended, and when the last message came.
    let gap = Arc::new(Mutex::new((0, 0, now_ms())));
    let (seen_by, seen_gap, seen_e) = (count.clone(), gap.clone(), e.clone());
    let mut arrivals = Arrivals::<3>::new();
    child::listen(move |word| {
        if word == "got" {
            return child::say(&arrivals.line(&seen_e, seen_by.load(Ordering::Relaxed)));
        }
        let mut gap = seen_gap.lock().unwrap();
        if word == "again" {
            *gap = (0, 0, now_ms());
            ENDED.store(0, Ordering::Relaxed);
        }
        child::say(&format!("{word} {} {} {}", gap.0, gap.1, ENDED.load(Ordering::Relaxed)));
    });
    child::say(&format!("ready {} {}", e.address(), common::node::hex(&window.key().to_bytes())));
    let mut numbers = Numbers::default();
    loop {
        let m = e.recv().wait().unwrap();
        let now = now_ms();
        let mut g = gap.lock().unwrap();
        if now - g.2 > g.0 {
            (g.0, g.1) = (now - g.2, now);
        }
        g.2 = now;
        drop(g);
        numbers.take(&m, length);
        count.fetch_add(1, Ordering::Relaxed);
    }
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
    tracing::subscriber::set_global_default(Ends).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    child::listen(move |word| match word {
        "ended" => child::say(&format!("ended {}", ENDED.swap(0, Ordering::Relaxed))),
        _ => stopped.store(true, Ordering::Relaxed),
    });
    child::say("ready");
    let mut written = 0u64;
    let n = send_until(&e, &to, length, |n| {
        if n > 0 && n.is_multiple_of(6) {
            write_and_read(&e, &to, &key, written);
            written += 1;
        }
        stop.load(Ordering::Relaxed)
    });
    let c = e.stats().lane.totals;
    child::say(&format!(
        "sent {n} {written} writes read back, {} frames sent again, {} fail-overs",
        c.resent, c.failovers
    ));
    std::thread::sleep(Duration::from_secs(60));
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
    watched_for("two cards", WATCH_S, || {
        let before = not_ready();
        let mut pair = Pair::start();
        pair.0.more(10);
        let start = pair.0.got();
        pair.0.more(30);
        let s = pair.0.shares(start);
        println!("shares of two equal rails: {s:.2?}");
        assert!(s[0] > 0.2 && s[1] > 0.2 && s[2] == 0.0, "{s:?}");
        assert_eq!(not_ready(), before, "a receiver was not ready");
        for (cut, how, cure) in [(0, "down", "up"), (1, "down", "up"), (1, "drop", "pass")] {
            let what = format!("rail {cut} {how}: the other carries it");
            pair.disturb(&what, || link(cut, how), |s| s[1 - cut] > 0.95);
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
    watched_for("both cut", WATCH_S, || {
        let mut pair = Pair::start();
        pair.until("at first", |s| s[0] > 0.2 && s[1] > 0.2);
        for (how, cure) in [("down", "up"), ("drop", "pass")] {
            let both = || {
                link(0, how);
                link(1, how);
            };
            pair.disturb(&format!("both {how}: sockets carry it"), both, |s| s[2] > 0.95);
            link(0, cure);
            link(1, cure);
            pair.until(&format!("both {cure}: the cards carry it"), |s| {
                s[0] > 0.2 && s[1] > 0.2 && s[2] == 0.0
            });
        }
        pair.finish();
    });
}

/// Both cables are networks of their own, and the two ends name their cards in different orders.
#[test]
fn cards_are_paired_with_those_on_their_network() {
    let Some(_cables) = Cables::new() else { return };
    watched_for("pairs", WATCH_S, || {
        let (a, b) = (only_on(&["rxe_a1", "rxe_a0"], LONG), only_on(&["rxe_b0", "rxe_b1"], LONG));
        let to = a.peer(&b.address().to_string()).unwrap();
        let receive = b.recv();
        to.send(&[7; 100][..]).wait().unwrap();
        assert_eq!(&receive.wait().unwrap()[..], [7; 100]);
        let ports = || -> Vec<usize> {
            let mut all: Vec<_> =
                a.stats().peers.iter().flat_map(|p| &p.info.rails).map(|r| r.port).collect();
            all.sort_unstable();
            all
        };
        while ports() != [0, 1] {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Every connection has a socket beside it, between the addresses of the cards.
        let said =
            Command::new("ss").args(["-Htn", "state", "established", "src", "10.8.0.0/16"]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let network = |end: &str| end.rsplit_once('.').map(|(n, _)| n.to_owned());
        let ends: Vec<Vec<_>> =
            said.lines().map(|l| l.split_whitespace().skip(2).take(2).map(network).collect()).collect();
        assert_eq!(ends.len(), 4, "two connections, seen from both ends: {said}");
        assert!(ends.iter().all(|e| e[0] == e[1]), "{said}");
    });
}

/// Keys of before open nothing on a card that was put back: such a window is reached by messages, a new one by the card.
#[test]
fn a_window_outlives_the_absence_of_its_card() {
    let Some(_cables) = Cables::new() else { return };
    watched_for("a card put back", WATCH_S, || {
        let (a, b) = (only_on(&["rxe_a0"], LONG), only_on(&["rxe_b0"], LONG));
        let to = a.peer(&b.address().to_string()).unwrap();
        let window = || b.window(PLACES * PLACE, Rights::READ | Rights::WRITE).unwrap();
        let old = window();
        write_and_read(&a, &to, old.key(), 0);
        // This ends when nobody holds the card any more.
        rdma("link delete rxe_b0");
        rdma("link add rxe_b0 type rxe netdev b0");
        // Until it is found nobody listens there, and the peer may be given up for that, with what has left and not arrived: only
        // a message that is told to be there is.
        let (begun, there) = (Instant::now(), SendOptions { delivered: true, ..Default::default() });
        while let Err(e) = to.send_with(&b"again"[..], there).wait() {
            assert!(begun.elapsed() < PATIENCE, "{e}");
        }
        assert_eq!(&b.recv().wait().unwrap()[..], b"again");
        a.events();
        write_and_read(&a, &to, old.key(), 1);
        let new = window();
        write_and_read(&a, &to, new.key(), 2);
        drop(old);
        write_and_read(&a, &to, new.key(), 3);
        let (events, _) = a.events();
        let broken = events.iter().any(|e| matches!(e.name(), "rail_down" | "peer_lost"));
        assert!(!broken, "a key of before was used: {events:?}");
    });
}

#[test]
fn an_idle_connection_is_closed_and_made_again() {
    let Some(_cables) = Cables::new() else { return };
    watched_for("idle", WATCH_S, || {
        let idle_close = Duration::from_millis(300);
        let (a, b) = (only_on(&["rxe_a0"], idle_close), only_on(&["rxe_b0"], idle_close));
        let to = a.peer(&b.address().to_string()).unwrap();
        // Beside the one that every card has for itself.
        let queue_pairs = || -> u64 {
            let said = rdma("resource show");
            let line = said.lines().find(|l| l.contains("rxe_a0")).unwrap();
            line.split(' ').skip_while(|w| *w != "qp").nth(1).unwrap().parse().unwrap()
        };
        let none = queue_pairs();
        for round in 0..3u8 {
            let receive = b.recv();
            to.send(&[round; 100][..]).wait().unwrap();
            assert_eq!(&receive.wait().unwrap()[..], [round; 100]);
            while queue_pairs() > none {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let (events, _) = a.events();
        let names: Vec<_> = events.iter().map(kfab::FabricEvent::name).collect();
        let count = |name: &str| names.iter().filter(|n| **n == name).count();
        assert_eq!((count("rail_up"), count("peer_lost")), (3, 0), "{events:?}");
    });
}
