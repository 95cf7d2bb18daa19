//! The soak: one endpoint and several child processes over shared memory and sockets, with random kills, restarts and fault rules,
//! for as long as `KFAB_SOAK_SECS` says. What was acknowledged has arrived, once, while its receiver lives; nothing leaks.

mod common;

use common::child::{self, Kid};
use common::level::{Level, Rng};
use common::node::{at, fabric_with, place};
use common::sys::counting::{Counting, live_bytes};
use common::watched_for;
use kfab::{Endpoint, EndpointConfig, FaultAction, FaultRule, Kind, Op, Peer, SendOptions};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[global_allocator]
static HEAP: Counting = Counting;

const CHILDREN: usize = 3;
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
    child::say(&format!("ready {}", e.address()));
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
        drop(m.from().send(&n.to_le_bytes()));
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

/// What has been counted.
#[derive(Default, Debug)]
struct Sums {
    conversations: AtomicU64,
    acknowledged: AtomicU64,
    lost: AtomicU64,
    kills: AtomicU64,
    faults: AtomicU64,
    struck: AtomicU64,
}

fn add(a: &AtomicU64, n: u64) {
    a.fetch_add(n, Ordering::Relaxed);
}

/// A fault for this peer, by chance.
fn fault(e: &Endpoint, peer: &Peer, rng: &mut Rng) -> kfab::FaultId {
    let action = match rng.below(5) {
        0 | 1 => FaultAction::Drop,
        2 => FaultAction::Delay { ns: 1_000_000 + rng.below(20_000_000) },
        3 => FaultAction::Duplicate,
        _ => FaultAction::Cut,
    };
    let port = (action == FaultAction::Cut || rng.below(2) == 0).then(|| rng.below(2) as usize);
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
fn reap(under_way: &mut VecDeque<(u64, Op<()>)>, limit: usize, acknowledged: &mut Vec<u64>, sums: &Sums) {
    while under_way.len() > limit {
        let (n, op) = under_way.pop_front().unwrap();
        match op.wait_timeout(PATIENCE) {
            Ok(()) => acknowledged.push(n),
            Err(e) => {
                assert!(matches!(e.kind(), Kind::PeerLost | Kind::Unreachable), "message {n}: {e:?}");
                add(&sums.lost, 1);
            }
        }
    }
}

/// One life of a child: messages, faults, and then a kill, or an account of what arrived.
fn life(e: &Endpoint, places: &str, rng: &mut Rng, sums: &Sums) {
    let mut kid = Kid::start("sink", &[places]);
    let address = kid.says("ready");
    let peer = e.peer(&address).unwrap();
    let mut next = 0;
    let mut acknowledged = Vec::new();
    for _ in 0..1 + rng.below(4) {
        let rule = (rng.below(2) == 0).then(|| fault(e, &peer, rng));
        let doomed = rng.below(6) == 0;
        let count = 50 + rng.below(400);
        let fatal = rng.below(count);
        let mut under_way = VecDeque::new();
        for i in 0..count {
            let len = match rng.below(40) {
                0 => rng.below(1 << 20),
                1..=4 => rng.below(40_000),
                _ => rng.below(200),
            };
            let options = SendOptions { delivered: true, ordered: rng.below(4) == 0, tag: None };
            under_way.push_back((next, peer.send_with(&message(next, len as usize)[..], options)));
            next += 1;
            reap(&mut under_way, 64, &mut acknowledged, sums);
            if doomed && i == fatal {
                kid.shoot();
                add(&sums.kills, 1);
            }
        }
        reap(&mut under_way, 0, &mut acknowledged, sums);
        if let Some(rule) = rule {
            add(&sums.faults, 1);
            add(&sums.struck, e.remove_fault(rule).expect("the rule was there"));
        }
        add(&sums.acknowledged, acknowledged.len() as u64);
        if doomed {
            break;
        }
        account(&mut kid, &acknowledged);
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

/// The children's answers: each must be to a question, nothing more is asked of them.
fn answers(e: &Endpoint, stop: &std::sync::atomic::AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match e.recv().wait_timeout(Duration::from_millis(100)) {
            Ok(m) => assert_eq!(m.len(), 8),
            Err(e) => assert!(matches!(e.kind(), Kind::TimedOut | Kind::PeerLost), "{e:?}"),
        }
    }
}

/// Some lives of each child, side by side, until the time is over; then all children are gone.
fn epoch(e: &Endpoint, places: &[String], seed: u64, until: Instant, sums: &Sums) {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        let answers = s.spawn(|| answers(e, &stop));
        let lives: Vec<_> = places
            .iter()
            .enumerate()
            .map(|(i, places)| {
                s.spawn(move || {
                    let mut rng = Rng(seed * 31 + i as u64);
                    while Instant::now() < until {
                        life(e, places, &mut rng, sums);
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
        let e = fabric_with(None).open(limits(EndpointConfig::default())).unwrap();
        let places: Vec<String> = (0..CHILDREN)
            .map(|i| format!("{},{}", place("shm", &format!("soak{i}")), place("tcp", "")))
            .collect();
        let (begun, sums) = (Instant::now(), Sums::default());
        let (mut level, mut epochs) = (None, 0);
        while epochs < 3 || begun.elapsed() < Duration::from_secs(seconds) {
            epoch(
                &e,
                &places,
                seed + epochs,
                Instant::now() + EPOCH.min(Duration::from_secs(seconds / 3)),
                &sums,
            );
            epochs += 1;
            settle(&e);
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
        drop(e);
        let end = Level::now();
        assert!(
            end.fds <= before.fds && end.threads <= before.threads,
            "{end:?} at the end, {before:?} before"
        );
        let n = |a: &AtomicU64| a.load(Ordering::Relaxed);
        assert!(n(&sums.acknowledged) > 0 && n(&sums.struck) > 0, "{sums:?}");
    });
}

/// All children are dead: nothing of them is left.
fn settle(e: &Endpoint) {
    let end = Instant::now() + PATIENCE;
    loop {
        while e.peek(None).is_some() {
            let _ = e.recv().wait();
        }
        let s = e.stats();
        if (s.lane.ops, s.lane.unacked, s.lane.deferred, s.lane.conns) == (0, 0, 0, 0) && s.pool.in_use == 0 {
            return;
        }
        assert!(Instant::now() < end, "left: {s:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
