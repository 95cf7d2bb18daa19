//! The soak: one endpoint and several child processes over shared memory and two rails of sockets, with messages, one-sided access and
//! receives that are given up, random kills, restarts and fault rules, for as long as `KFAB_SOAK_SECS` says. What was acknowledged has
//! arrived, once, while its receiver lives, and was answered, once; what was written is there; nothing leaks.

mod common;

use common::child::{self, Kid};
use common::level::{Level, Rng};
use common::node::{Server, at, fabric_with, hex, place};
use common::sys::counting::{Counting, live_bytes};
use common::watched_for;
use kfab::{
    Buffer, Endpoint, EndpointConfig, FaultAction, FaultRule, Kind, Message, Op, Peer, Rights, SendOptions,
    WindowKey,
};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[global_allocator]
static HEAP: Counting = Counting;

const CHILDREN: usize = 3;
/// A child's window has so many places, each with what was last written there, of so many bytes at most.
const PLACES: usize = 8;
const PLACE: usize = 128 << 10;
/// Bytes that may be in use after an epoch beyond those after the second: queues keep the room that they once needed.
const LIVE_MORE: usize = 256 << 10;
/// Time between two looks at what the process holds.
const EPOCH: Duration = Duration::from_secs(10);
/// Nothing may take longer to end: the liveness limit, faults that last, and a busy machine.
const PATIENCE: Duration = Duration::from_secs(25);

/// Not a test of its own: what the children do.
#[test]
fn child_main() {
    let Some(role) = child::role() else { return };
    assert_eq!(role[0], "sink");
    sink(&role[1]);
}

fn limits(mut c: EndpointConfig) -> EndpointConfig {
    c.limits.probe_after = Duration::from_millis(200);
    c.limits.peer_timeout = Duration::from_secs(3);
    c
}

/// Receives numbered messages and answers each; told `report`, says which numbers it has.
fn sink(places: &str) {
    let seen: Arc<Mutex<Vec<u64>>> = Arc::default();
    let report = seen.clone();
    child::listen(move |_| {
        let seen = report.lock().unwrap();
        let list: Vec<_> = seen.iter().map(|w| format!("{w:x}")).collect();
        child::say(&format!("got {}", list.join(" ")));
    });
    let e = fabric_with(None).open(limits(at(places))).unwrap();
    let window = e.window(PLACES * PLACE, Rights::READ | Rights::WRITE).unwrap();
    child::say(&format!("ready {} {}", e.address(), hex(&window.key().to_bytes())));
    loop {
        // A receive ends early when its large message is broken off.
        let Ok(m) = e.recv().wait() else { continue };
        let n = number(&m);
        {
            let mut seen = seen.lock().unwrap();
            let word = (n / 64) as usize;
            if seen.len() <= word {
                seen.resize(word + 1, 0);
            }
            if seen[word] >> (n % 64) & 1 != 0 {
                child::say(&format!("doubled {n}"));
            }
            seen[word] |= 1 << (n % 64);
        }
        drop(m.from().send(&answer(n, std::process::id())[..]));
    }
}

/// A message with a number, of some length.
fn message(n: u64, len: usize) -> Vec<u8> {
    let mut v: Vec<u8> = (0..len.max(8)).map(|i| (i as u64 * 7 + n) as u8).collect();
    v[..8].copy_from_slice(&n.to_le_bytes());
    v
}

/// The number of a message; fails if it is damaged.
fn number(m: &[u8]) -> u64 {
    let n = u64::from_le_bytes(m[..8].try_into().unwrap());
    if message(n, m.len()) != m {
        child::say(&format!("damaged {n}"));
        std::process::exit(3);
    }
    n
}

/// The answer to message `n` of a child; some are large.
fn answer(n: u64, child: u32) -> Vec<u8> {
    let len = if n.is_multiple_of(30) { 150_000 } else { 12 };
    let mut v = message(n, len);
    v[8..12].copy_from_slice(&child.to_le_bytes());
    v
}

/// What has been counted.
#[derive(Default, Debug)]
struct Sums {
    conversations: AtomicU64,
    acknowledged: AtomicU64,
    lost: AtomicU64,
    answers: AtomicU64,
    given_up: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    kills: AtomicU64,
    faults: AtomicU64,
    struck: AtomicU64,
}

fn add(a: &AtomicU64, n: u64) {
    a.fetch_add(n, Ordering::Relaxed);
}

/// What all threads share: the endpoint, the sums, and which answers have come in this epoch, by child and number.
struct Desk {
    e: Endpoint,
    sums: Sums,
    answered: Mutex<HashSet<(u32, u64)>>,
}

impl Desk {
    /// An answer, whoever received it: each is whole and comes once.
    fn answered(&self, m: &Message) {
        let n = u64::from_le_bytes(m[..8].try_into().unwrap());
        let child = u32::from_le_bytes(m[8..12].try_into().unwrap());
        assert!(m[..] == answer(n, child), "answer {n} of {child} is damaged");
        assert!(self.answered.lock().unwrap().insert((child, n)), "answer {n} of {child} came twice");
        add(&self.sums.answers, 1);
    }

    /// A receive that ends early, now or later; a message that it has got is an answer like others.
    fn give_up(&self, mut op: Op<Message>, rng: &mut Rng) {
        let ended = match rng.below(4) {
            0 => op.cancel(),
            1 => op.wait_timeout(Duration::from_micros(rng.below(300))),
            2 if !op.is_done() => return add(&self.sums.given_up, 1),
            _ => op.within(Duration::from_millis(1)).wait(),
        };
        match ended {
            Ok(m) => self.answered(&m),
            Err(e) => {
                let gone = matches!(e.kind(), Kind::PeerLost | Kind::Unreachable);
                let early = gone || matches!(e.kind(), Kind::Canceled | Kind::TimedOut);
                assert!(early, "a receive that was given up: {e:?}");
                add(&self.sums.given_up, 1);
            }
        }
    }

    /// An operation to a peer that may die: what it got, if it ended well.
    fn ended<T: kfab::Finish>(&self, what: &str, op: Op<T>) -> Option<T> {
        match op.wait_timeout(PATIENCE) {
            Ok(t) => Some(t),
            Err(e) => {
                assert!(matches!(e.kind(), Kind::PeerLost | Kind::Unreachable), "{what}: {e:?}");
                add(&self.sums.lost, 1);
                None
            }
        }
    }
}

/// What a place of a child's window holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// This message, of so many bytes.
    Has(u64, usize),
    /// It is being written or read.
    Busy,
    /// A write was lost, and nobody knows how much of it is there.
    Unknown,
}

/// An access under way.
enum Access {
    Write(usize, (u64, usize), Op<()>),
    Read(usize, (u64, usize), Op<Buffer>),
}

/// The window of a child in one of its lives.
struct Far<'a> {
    desk: &'a Desk,
    peer: &'a Peer,
    key: WindowKey,
    places: [Place; PLACES],
    under_way: VecDeque<Access>,
}

impl Far<'_> {
    /// Begins to write or to read a place.
    fn begin(&mut self, n: u64, rng: &mut Rng) {
        let i = rng.below(PLACES as u64) as usize;
        let at = (i * PLACE) as u64;
        let Place::Has(old, len) = self.places[i] else { return };
        self.places[i] = Place::Busy;
        self.under_way.push_back(if len == 0 || rng.below(2) == 0 {
            let most = if rng.below(8) == 0 { PLACE } else { 2_000 };
            let new = message(n, rng.below(most as u64) as usize);
            Access::Write(i, (n, new.len()), self.peer.write(&self.key, at, &new[..]))
        } else {
            let into = self.desk.e.buffer(len).unwrap();
            Access::Read(i, (old, len), self.peer.read(&self.key, at, into))
        });
    }

    /// Waits for the oldest until so many are left.
    fn reap(&mut self, limit: usize) {
        while self.under_way.len() > limit {
            match self.under_way.pop_front().unwrap() {
                Access::Write(i, (n, len), op) => {
                    let done = self.desk.ended("a write", op);
                    self.places[i] = done.map_or(Place::Unknown, |()| Place::Has(n, len));
                    add(&self.desk.sums.writes, u64::from(done.is_some()));
                }
                Access::Read(i, (n, len), op) => {
                    if let Some(b) = self.desk.ended("a read", op) {
                        assert!(b[..] == message(n, len), "write {n} of {len} bytes is not there");
                        add(&self.desk.sums.reads, 1);
                    }
                    self.places[i] = Place::Has(n, len);
                }
            }
        }
    }

    /// Every place whose write was told to have ended has it.
    fn account(&mut self) {
        self.reap(0);
        for i in 0..PLACES {
            if let Place::Has(n, len @ 1..) = self.places[i] {
                let into = self.desk.e.buffer(len).unwrap();
                let op = self.peer.read(&self.key, (i * PLACE) as u64, into);
                self.under_way.push_back(Access::Read(i, (n, len), op));
            }
        }
        self.reap(0);
    }
}

/// A fault for this peer, by chance.
fn fault(e: &Endpoint, peer: &Peer, rng: &mut Rng) -> kfab::FaultId {
    let action = match rng.below(5) {
        0 | 1 => FaultAction::Drop,
        2 => FaultAction::Delay { ns: 1_000_000 + rng.below(20_000_000) },
        3 => FaultAction::Duplicate,
        _ => FaultAction::Cut,
    };
    // Shared memory and two rails, where the child has them.
    let port = (action == FaultAction::Cut || rng.below(2) == 0).then(|| rng.below(3) as usize);
    let rule = FaultRule {
        peer: Some(peer.id()),
        port,
        action,
        chance: 0.05 + rng.below(30) as f64 / 100.0,
        seed: rng.below(1 << 30),
    };
    e.add_fault(rule).unwrap()
}

/// The numbers that the peer acknowledged; those whose send has ended are taken from the queue.
fn reap(under_way: &mut VecDeque<(u64, Op<()>)>, limit: usize, acknowledged: &mut Vec<u64>, desk: &Desk) {
    while under_way.len() > limit {
        let (n, op) = under_way.pop_front().unwrap();
        acknowledged.extend(desk.ended("a message", op).map(|()| n));
    }
}

/// One life of a child: messages, faults, and then a kill, or an account of what arrived.
fn life(desk: &Desk, places: &str, rng: &mut Rng) {
    let (e, sums) = (&desk.e, &desk.sums);
    let mut kid = Kid::start("sink", &[places]);
    let server = Server::of(&kid);
    let peer = e.peer(&server.address).unwrap();
    let lost_before = peer.info().map_or(0, |i| i.counters.lost);
    let places = [Place::Has(0, 0); PLACES];
    let mut far = Far { desk, peer: &peer, key: server.window, places, under_way: VecDeque::new() };
    let mut next = 0;
    let mut acknowledged = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let rule = (rng.below(2) == 0).then(|| fault(e, &peer, rng));
        let doomed = rng.below(6) == 0;
        let count = 50 + rng.below(400);
        let fatal = rng.below(count);
        let mut under_way = VecDeque::new();
        let mut receives = VecDeque::new();
        for i in 0..count {
            let len = match rng.below(40) {
                0 => rng.below(1 << 20),
                1..=4 => rng.below(40_000),
                _ => rng.below(200),
            };
            let options = SendOptions { delivered: true, ordered: rng.below(4) == 0, tag: None };
            under_way.push_back((next, peer.send_with(&message(next, len as usize)[..], options)));
            if rng.below(6) == 0 {
                far.begin(next, rng);
                far.reap(4);
            }
            if rng.below(10) == 0 {
                let any = e.recv_with();
                receives.push_back(if rng.below(2) == 0 { any.from(&peer) } else { any }.post());
            }
            if receives.len() > rng.below(4) as usize {
                desk.give_up(receives.pop_front().unwrap(), rng);
            }
            next += 1;
            reap(&mut under_way, 64, &mut acknowledged, desk);
            if doomed && i == fatal {
                kid.shoot();
                add(&sums.kills, 1);
            }
        }
        reap(&mut under_way, 0, &mut acknowledged, desk);
        receives.into_iter().for_each(|op| desk.give_up(op, rng));
        far.reap(0);
        if let Some(rule) = rule {
            add(&sums.faults, 1);
            add(&sums.struck, e.remove_fault(rule).expect("the rule was there"));
        }
        add(&sums.acknowledged, acknowledged.len() as u64);
        if doomed {
            break;
        }
        account(&mut kid, &acknowledged);
        far.account();
        // Where neither has given the other up, each has its answer.
        let whole = || peer.info().is_some_and(|i| i.counters.lost == lost_before);
        desk.all_answered(kid.id(), &acknowledged, whole);
        acknowledged.clear();
    }
    add(&sums.conversations, 1);
}

/// Everything acknowledged is there; it may be on its way from the child's fabric to its receive.
fn account(kid: &mut Kid, acknowledged: &[u64]) {
    let begun = Instant::now();
    loop {
        kid.tell("report");
        let said = kid.says("got");
        let words: Vec<u64> = said.split_whitespace().map(|w| u64::from_str_radix(w, 16).unwrap()).collect();
        let has = |n: &u64| words.get((n / 64) as usize).is_some_and(|w| w >> (n % 64) & 1 != 0);
        let missing: Vec<_> = acknowledged.iter().filter(|n| !has(n)).collect();
        if missing.is_empty() {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(15),
            "acknowledged and lost: {missing:?} of {}",
            acknowledged.len()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Desk {
    /// Waits for the answers to all of these, while the conversation is `whole`.
    fn all_answered(&self, child: u32, acknowledged: &[u64], whole: impl Fn() -> bool) {
        let begun = Instant::now();
        loop {
            let answered = self.answered.lock().unwrap();
            let missing: Vec<_> = acknowledged.iter().filter(|n| !answered.contains(&(child, **n))).collect();
            if missing.is_empty() || !whole() {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(15), "no answers to {missing:?} of {child}");
            drop(answered);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The children's answers that no other receive gets.
fn answers(desk: &Desk, stop: &std::sync::atomic::AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match desk.e.recv().wait_timeout(Duration::from_millis(100)) {
            Ok(m) => desk.answered(&m),
            Err(e) => assert!(matches!(e.kind(), Kind::TimedOut | Kind::PeerLost), "{e:?}"),
        }
    }
}

/// Some lives of each child, side by side, until the time is over; then all children are gone.
fn epoch(desk: &Desk, places: &[String], seed: u64, until: Instant) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let answers = s.spawn(|| answers(desk, &stop));
        let lives: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(i, places)| {
                s.spawn(move || {
                    let mut rng = Rng(seed * 31 + i as u64);
                    while Instant::now() < until {
                        life(desk, places, &mut rng);
                    }
                })
            })
            .collect();
        let ends: Vec<_> = lives.into_iter().map(|l| l.join()).collect();
        stop.store(true, Ordering::Relaxed);
        answers.join().unwrap();
        ends.into_iter().for_each(|e| e.unwrap_or_else(|p| std::panic::resume_unwind(p)));
    });
}

#[test]
#[ignore = "runs for minutes: cargo xtask soak"]
fn soak_kill_cut_restart() {
    let seconds: u64 = std::env::var("KFAB_SOAK_SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(30);
    let seed = std::env::var("KFAB_SOAK_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(u64::from(std::process::id()));
    println!("seed {seed} (KFAB_SOAK_SEED repeats its choices)");
    watched_for("soak", seconds + 240, move || {
        let before = Level::now();
        let listen = vec!["tcp:127.0.0.1:0".to_owned(); 2];
        let e = fabric_with(None).open(limits(EndpointConfig { listen, ..Default::default() })).unwrap();
        let rails = || format!("{},{}", place("tcp", ""), place("tcp", ""));
        // One has no shared memory: what is cut off there is one rail of two.
        let places: Vec<String> =
            (0..CHILDREN)
                .map(|i| {
                    if i == 0 {
                        rails()
                    } else {
                        format!("{},{}", place("shm", &format!("soak{i}")), rails())
                    }
                })
                .collect();
        let begun = Instant::now();
        let desk = Desk { e, sums: Sums::default(), answered: Mutex::default() };
        let (e, sums) = (&desk.e, &desk.sums);
        let (mut level, mut epochs) = (None, 0);
        while epochs < 3 || begun.elapsed() < Duration::from_secs(seconds) {
            let until = Instant::now() + EPOCH.min(Duration::from_secs(seconds / 3));
            epoch(&desk, &places, seed + epochs, until);
            epochs += 1;
            settle(e);
            *desk.answered.lock().unwrap() = HashSet::new();
            // What nobody reads is kept (up to a bound), and would look like a leak.
            let (events, missed) = e.events();
            let seen = events.len();
            let (s, now) = (e.stats(), Level::now());
            drop(events);
            let live = live_bytes();
            println!("{:>4} s: {sums:?} {now:?}, {} KiB in use", begun.elapsed().as_secs(), live >> 10);
            println!("        {seen} events, {missed} missed; {} peers, slabs {:?}", s.lane.peers, s.pool);
            assert_eq!((s.lane.peers, s.pool.regions), (CHILDREN, 1), "{s:?}");
            if epochs <= 2 {
                level = Some((now, live));
            } else if let Some((_, warm)) = level {
                assert!(live < warm + LIVE_MORE, "{live} bytes are in use, {warm} were after the warm-up");
            }
        }
        level.expect("three epochs at least").0.regained("after the warm-up", 8 << 10);
        let totals = e.stats().lane.totals;
        let Desk { e, sums, .. } = desk;
        drop(e);
        let end = Level::now();
        assert!(
            end.fds <= before.fds && end.threads <= before.threads,
            "{end:?} at the end, {before:?} before"
        );
        let n = |a: &AtomicU64| a.load(Ordering::Relaxed);
        let all =
            [&sums.acknowledged, &sums.answers, &sums.given_up, &sums.writes, &sums.reads, &sums.struck];
        assert!(all.into_iter().all(|a| n(a) > 0) && totals.failovers > 0, "{sums:?} {totals:?}");
    });
}

/// All children are dead: nothing of them is left.
fn settle(e: &Endpoint) {
    let end = Instant::now() + PATIENCE;
    loop {
        while e.peek(None).is_some() {
            // What is still with its sender goes with it.
            let _ = e.recv().wait_timeout(Duration::from_secs(1));
        }
        let s = e.stats();
        if (s.lane.ops, s.lane.unacked, s.lane.deferred, s.lane.conns) == (0, 0, 0, 0) && s.pool.in_use == 0 {
            return;
        }
        assert!(Instant::now() < end, "left: {s:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
