//! Real processes: killed with SIGKILL at any point, restarted, refused. The children are this program run again in a role.
//!
//! A survivor is a process of its own, so that several work at once and each counts its own descriptors and memory.

mod common;

use common::child::{self, Kid};
use common::level::{Level, Rng};
use common::node::{self, Server, ask, at, fabric_with, place};
use common::times::Times;
use common::*;
use kfab::{Buffer, Endpoint, FabricEvent, Fate, Kind, Op, Peer, SendOptions, WindowKey};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use std::time::{Duration, Instant};

/// Not a test of its own: what the children do.
#[test]
fn child_main() {
    let Some(role) = child::role() else { return };
    match role[0].as_str() {
        "echo" => node::echo(&role[1..]),
        "survivor" => survive(&role[1], &role[2], role[3].parse().unwrap()),
        "busy" => {
            child::listen(|_| {});
            loop {
                std::hint::spin_loop();
            }
        }
        "adopter" => adopt(role[1] == "hidden"),
        "reader" => read_adopted(&role[1], &role[2]),
        "taken" => {
            let e = fabric_with(None).open(at(&role[1])).unwrap_err();
            child::say(&format!("kind {:?}", e.kind()));
        }
        other => panic!("{other}"),
    }
}

/// Survivors of one scheme at once, and the kills that each of them sees.
const SURVIVORS: usize = 3;
const ROUNDS: usize = 10;

/// The survivor's endpoint, with limits that keep the test short.
fn survivor(scheme: &str) -> Endpoint {
    let mut c = config(scheme);
    c.limits.probe_after = Duration::from_millis(100);
    c.limits.peer_timeout = Duration::from_secs(2);
    fabric().open(c).unwrap()
}

/// What the scheme promises, kill to error.
fn promised(scheme: &str) -> Duration {
    if scheme == "shm" { Duration::from_millis(100) } else { Duration::from_secs(2) }
}

/// The same with what a busy machine may add: the killed process needs a processor to die on, as the survivor does to hear of it.
fn bound(scheme: &str) -> Duration {
    promised(scheme) + Duration::from_secs(5)
}

/// Waits for all operations; each must end well or as `PeerLost`. How many were lost.
fn all_end<T: kfab::Finish>(ops: Vec<Op<T>>, until: Instant, what: &str) -> usize {
    let ended = ops.into_iter().map(|o| o.wait_timeout(until.saturating_duration_since(Instant::now())));
    let lost =
        ended.filter_map(Result::err).inspect(|e| assert_eq!(e.kind(), Kind::PeerLost, "{what}: {e:?}"));
    lost.count()
}

/// The same for operations begun after the death: they may also find that nobody is there any more, each within its own limit.
fn none_reaches<T: kfab::Finish>(ops: Vec<Op<T>>, limit: Duration, what: &str) -> usize {
    let until = Instant::now() + limit;
    let ended = ops.into_iter().map(|o| o.wait_timeout(until.saturating_duration_since(Instant::now())));
    let lost = ended.filter_map(Result::err).inspect(|e| {
        assert!(matches!(e.kind(), Kind::PeerLost | Kind::Unreachable), "{what}: {e:?}");
    });
    lost.count()
}

/// A peer that is about to die, and its killer.
struct Scene<'a> {
    a: &'a Endpoint,
    peer: &'a Peer,
    server: &'a Server,
    kill: &'a mut dyn FnMut(),
    /// What an operation may take to end, from the kill.
    limit: Duration,
}

/// What the survivor is doing when the peer dies; how many operations were lost, and when the last of those under way ended.
type Deed = fn(Scene<'_>) -> (usize, Instant);

const DEEDS: [(&str, Deed); 4] =
    [("idle", idle), ("stream", stream), ("rendezvous", rendezvous), ("one-sided", one_sided)];

/// Kills servers in the middle of the deed; each time everything ends in time, the next server at the same address answers at
/// once, and nothing is left at the end. Several survivors at once.
fn killed_while(name: &'static str) {
    watched_for(name, 200, move || {
        let start = |scheme| Kid::start("survivor", &[name, scheme, &ROUNDS.to_string()]);
        let kids: Vec<Vec<Kid>> =
            SCHEMES.iter().map(|s| (0..SURVIVORS).map(|_| start(*s)).collect()).collect();
        for (scheme, kids) in SCHEMES.iter().zip(kids) {
            let (mut heard, mut dying, mut first) = (Times::default(), Times::default(), Times::default());
            for kid in &kids {
                let limit = Duration::from_secs(150);
                heard.add(&kid.says_within("heard", limit).expect("a survivor hangs"));
                dying.add(&kid.says("dying"));
                first.add(&kid.says("first"));
                kid.says("well");
            }
            println!(
                "{name} over {scheme}: kill to error {heard}; kill to end of process {dying}; start to answer {first}"
            );
            let late = heard.over(promised(scheme));
            if late > 0 {
                println!("{name} over {scheme}: {late} of {} later than promised", heard.len());
            }
            assert_eq!(heard.len(), SURVIVORS * ROUNDS);
            assert!(heard.median() < promised(scheme) + Duration::from_millis(400), "{heard}");
            assert!(heard.worst() < bound(scheme), "{heard}");
            assert!(first.worst() < Duration::from_secs(8), "a restarted server is reached after {first}");
        }
    });
}

/// A survivor's life.
fn survive(name: &'_ str, scheme: &str, rounds: usize) {
    child::listen(|_| {});
    let deed = DEEDS.iter().find(|(n, _)| *n == name).expect("a deed").1;
    let mut rng = Rng(u64::from(std::process::id()));
    let a = survivor(scheme);
    let at = place(scheme, name);
    let mut level = None;
    let (mut heard, mut dying, mut first) = (Times::default(), Times::default(), Times::default());
    let mut lost = 0;
    for round in 0..rounds {
        let mut kid = Kid::start("echo", &[&at]);
        let server = Server::of(&kid);
        let peer = a.peer(&server.address).unwrap();
        let begun = Instant::now();
        ask(&a, &peer, format!("round {round}").as_bytes())
            .unwrap_or_else(|e| panic!("round {round}: {e:?}; {:?} {:?}", a.events(), peer.info()));
        first.push(begun.elapsed());
        let watch = kid.death();
        let mut killed = None;
        let pause = Duration::from_micros(rng.below(4000));
        let mut kill = || {
            std::thread::sleep(pause);
            killed = Some(Instant::now());
            kid.shoot();
        };
        let (n, ended) =
            deed(Scene { a: &a, peer: &peer, server: &server, kill: &mut kill, limit: bound(scheme) });
        lost += n;
        let killed = killed.expect("the deed kills");
        dying.push(watch.join().unwrap().saturating_duration_since(killed));
        let took = ended.saturating_duration_since(killed);
        heard.push(took);
        drop(kid);
        let (events, _) = a.events();
        let told =
            events.iter().filter(|e| matches!(e, FabricEvent::PeerLost { peer: p, .. } if *p == peer.id()));
        assert!(told.count() >= 1, "{events:?}");
        assert!(took < bound(scheme), "heard of it after {took:?}: {events:?}");
        drop(peer);
        if round == rounds / 3 {
            level = Some(Level::now());
        }
    }
    assert!(lost > 0, "nothing was under way when the peers died");
    let s = a.stats();
    assert_eq!((s.lane.ops, s.lane.unacked, s.lane.deferred, s.lane.conns), (0, 0, 0, 0), "{s:?}");
    assert_eq!(s.pool.in_use, 0, "{s:?}");
    level.unwrap().regained(name, 8 << 10);
    child::say(&format!("heard {}", heard.line()));
    child::say(&format!("dying {}", dying.line()));
    child::say(&format!("first {}", first.line()));
    child::say("well");
}

/// A server that was killed while nothing was asked of it, and started again at the same place, is another: that is told, once, and it
/// answers. Over shared memory the death itself is told.
#[test]
fn a_restart_is_told() {
    watched("restart", || {
        let a = survivor("tcp");
        let at = place("tcp", "restart");
        let kid = Kid::start("echo", &[&at]);
        let peer = a.peer(&Server::of(&kid).address).unwrap();
        ask(&a, &peer, b"first").unwrap();
        assert!(a.events().0.iter().all(|e| e.name() != "peer_restarted"));
        drop(kid);
        let kid = Kid::start("echo", &[&at]);
        Server::of(&kid);
        // What is asked before the other has said who it is ends with the one that was meant.
        if let Err(e) = ask(&a, &peer, b"second") {
            assert_eq!(e.kind(), Kind::PeerLost, "{e:?}");
            ask(&a, &peer, b"third").unwrap();
        }
        let (events, _) = a.events();
        let told: Vec<_> = events.iter().filter(|e| e.name() == "peer_restarted").collect();
        assert_eq!(told, [&FabricEvent::PeerRestarted { peer: peer.id() }], "{events:?}");
    });
}

/// Nobody waits for the peer when it dies, so there is nothing to end with an error: the next that is asked of it does.
#[test]
fn a_death_between_two_operations_is_told_to_the_next() {
    for scheme in SCHEMES {
        watched(&format!("between over {scheme}"), move || {
            let (a, at) = (survivor(scheme), place(scheme, "between"));
            let mut kid = Kid::start("echo", &[&at]);
            let address = Server::of(&kid).address;
            let peer = a.peer(&address).unwrap();
            ask(&a, &peer, b"first").unwrap();
            kid.kill();
            let limit = Instant::now() + bound(scheme);
            // Of a socket that ended nobody knows yet what it means.
            let noticed = if scheme == "shm" { "peer_lost" } else { "rail_down" };
            while a.events().0.iter().all(|e| e.name() != noticed) {
                assert!(Instant::now() < limit, "its death was not noticed");
                std::thread::sleep(Duration::from_millis(1));
            }
            let e = peer.send(b"second").within(bound(scheme)).wait().unwrap_err();
            assert_eq!((e.kind(), e.fate()), (Kind::PeerLost, Fate::NotSent), "{e}");
            // Whoever goes on waits for it to come back, and finds it.
            let waits = peer.send(b"third");
            let kid = Kid::start("echo", &[&at]);
            assert_eq!(Server::of(&kid).address, address);
            waits.within(bound(scheme)).wait().unwrap();
        });
    }
}

#[test]
fn killed_while_idly_waited_for() {
    killed_while("idle");
}

#[test]
fn killed_in_mid_stream() {
    killed_while("stream");
}

#[test]
fn killed_in_mid_rendezvous() {
    killed_while("rendezvous");
}

#[test]
fn killed_in_mid_write_and_read() {
    killed_while("one-sided");
}

fn idle(Scene { a, peer, kill, limit, .. }: Scene<'_>) -> (usize, Instant) {
    let waits: Vec<_> = (0..4).map(|_| a.recv_with().from(peer).post()).collect();
    kill();
    let n = all_end(waits, Instant::now() + limit, "a receive from the dead");
    (n, Instant::now())
}

fn stream(Scene { a, peer, kill, limit, .. }: Scene<'_>) -> (usize, Instant) {
    let ops = |n: u32| {
        let opt = |i: u32| SendOptions {
            delivered: i.is_multiple_of(3),
            ordered: i.is_multiple_of(5),
            tag: i.is_multiple_of(7).then_some(9),
        };
        (0..n).map(|i| peer.send_with(&pattern(i as usize % 3000, 1)[..], opt(i))).collect::<Vec<_>>()
    };
    let waits: Vec<_> = (0..50).map(|_| a.recv_with().from(peer).post()).collect();
    let sent = ops(2000);
    kill();
    let until = Instant::now() + limit;
    let n = all_end(sent, until, "a send to the dead") + all_end(waits, until, "a receive from the dead");
    let heard = Instant::now();
    let n = n + none_reaches(ops(20), limit, "a send after the death");
    while a.peek(None).is_some() {
        drop(a.recv().wait().unwrap());
    }
    while a.peek(Some((0, u64::MAX))).is_some() {
        drop(a.recv_tagged(0, u64::MAX).wait().unwrap());
    }
    (n, heard)
}

fn rendezvous(Scene { a, peer, kill, limit, .. }: Scene<'_>) -> (usize, Instant) {
    let big = |i: usize| {
        let mut b = a.buffer((2 << 20) + i).unwrap();
        b.get_mut().unwrap().fill(i as u8);
        b
    };
    // One more than there can be answers: it hears of the death, whatever was done before.
    let waits: Vec<_> = (0..7).map(|_| a.recv_with().from(peer).post()).collect();
    let sent: Vec<_> = (0..6).map(|i| peer.send(big(i))).collect();
    kill();
    let until = Instant::now() + limit;
    let n = all_end(sent, until, "a large send to the dead");
    let waited: Vec<_> =
        waits.into_iter().map(|w| w.wait_timeout(until.saturating_duration_since(Instant::now()))).collect();
    let heard = Instant::now();
    let mut lost = 0;
    for w in waited {
        match w {
            // Whole or not at all.
            Ok(m) => assert!(m.len() >= 2 << 20 && m.iter().all(|x| *x == m[0])),
            Err(e) => {
                assert_eq!(e.kind(), Kind::PeerLost, "{e:?}");
                lost += 1;
            }
        }
    }
    (n + lost, heard)
}

fn one_sided(Scene { a, peer, server, kill, limit }: Scene<'_>) -> (usize, Instant) {
    let data = pattern(3 << 20, 4);
    let write = || peer.write(&server.window, 5, &data[..]);
    let read = || peer.read(&server.window, 0, a.buffer(3 << 20).unwrap());
    let writes: Vec<_> = (0..2).map(|_| write()).collect();
    let reads: Vec<_> = (0..2).map(|_| read()).collect();
    let mut witness = a.recv_with().from(peer).post();
    kill();
    let until = Instant::now() + limit;
    let mut n = all_end(writes, until, "a write to the dead") + all_end(reads, until, "a read from the dead");
    // Over shared memory writes and reads are done in the call: they go on until the peer is known to be dead.
    while !witness.is_done() {
        assert!(Instant::now() < until, "writes to the dead go on");
        // One that begins when the peer is lost already finds nobody, and is not waited for.
        match peer.write(&server.window, 0, b"late").wait_timeout(Duration::from_millis(2)) {
            Ok(()) => {}
            Err(e) if e.kind() == Kind::PeerLost => n += 1,
            Err(e) => assert!(matches!(e.kind(), Kind::Unreachable | Kind::TimedOut), "{e:?}"),
        }
    }
    n += all_end(vec![witness], until, "a receive from the dead");
    let heard = Instant::now();
    (n, heard)
}

/// The time from kill to error beside what the machine has to do: measured, not judged.
#[test]
#[ignore = "measures: cargo test -p kfab --test processes -- --ignored --nocapture how_fast"]
fn how_fast_a_death_is_heard_of() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    for scheme in SCHEMES {
        for spinners in [0, cpus, 4 * cpus] {
            let _busy: Vec<Kid> = (0..spinners).map(|_| Kid::start("busy", &[])).collect();
            for (name, _) in DEEDS {
                let kid = Kid::start("survivor", &[name, scheme, "50"]);
                let times = |word| {
                    let mut t = Times::default();
                    t.add(&kid.says_within(word, Duration::from_secs(200)).expect("a survivor hangs"));
                    t
                };
                let (heard, dying) = (times("heard"), times("dying"));
                let late = heard.over(promised(scheme));
                println!(
                    "{name} over {scheme}, {spinners} busy processes, 50 kills: kill to error {heard}; kill to end of process {dying}; {late} late"
                );
            }
        }
    }
}

/// The names of shared memory that this machine has.
fn left_behind() -> Vec<String> {
    let list = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    list.map(|f| f.file_name().to_string_lossy().into_owned()).filter(|n| n.contains("kfab")).collect()
}

#[test]
fn a_killed_process_leaves_no_file_and_its_place_is_free_at_once() {
    for scheme in SCHEMES {
        watched(&format!("place over {scheme}"), move || {
            let at = place(scheme, "place");
            for _ in 0..10 {
                let mut kid = Kid::start("echo", &[&at]);
                let server = Server::of(&kid);
                let a = survivor(scheme);
                ask(&a, &a.peer(&server.address).unwrap(), b"x").unwrap();
                kid.kill();
                assert_eq!(left_behind(), Vec::<String>::new());
            }
        });
    }
}

#[test]
fn the_wrong_key_is_refused_and_the_right_one_is_not() {
    for scheme in SCHEMES {
        watched(&format!("key over {scheme}"), move || {
            let kid = Kid::start("echo", &[&place(scheme, "key"), "7"]);
            let server = Server::of(&kid);
            for key in [Some(8), None] {
                let mut c = config(scheme);
                c.limits.peer_timeout = Duration::from_secs(3);
                let a = fabric_with(key).open(c).unwrap();
                let e = a.peer(&server.address).unwrap().send(b"let me in").wait().unwrap_err();
                assert_eq!(e.kind(), Kind::AuthFailed, "key {key:?} over {scheme}: {e:?}");
            }
            let a = fabric_with(Some(7)).open(config(scheme)).unwrap();
            let peer = a.peer(&server.address).unwrap();
            ask(&a, &peer, &pattern(300_000, 3)).unwrap();
            let s = a.stats();
            assert_eq!(s.peers.len(), 1, "{s:?}");
        });
    }
}

#[test]
fn a_place_belongs_to_one() {
    for scheme in SCHEMES {
        watched(&format!("second over {scheme}"), move || {
            let place = place(scheme, "second");
            let first = fabric().open(at(&place)).unwrap();
            let e = fabric().open(at(&place)).unwrap_err();
            assert_eq!(e.kind(), Kind::AddressInUse, "{e:?}");
            assert_eq!(Kid::start("taken", &[&place]).says("kind"), "AddressInUse");
            drop(first);
            // A child that another test is just starting has the descriptors too, until its exec.
            let end = Instant::now() + Duration::from_secs(5);
            while let Err(e) = fabric().open(at(&place)) {
                assert!(e.kind() == Kind::AddressInUse && Instant::now() < end, "{e:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

/// Which way the peer is reached by, as the event and the counters say.
fn reached_by(a: &Endpoint, peer: &Peer) -> (String, Option<String>) {
    let (events, lost) = a.events();
    assert_eq!(lost, 0);
    let up: Vec<_> = events
        .iter()
        .filter_map(|e| match e {
            FabricEvent::PeerUp { peer: p, via, fallback } if *p == peer.id() => {
                Some((via.clone(), fallback.clone()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(up.len(), 1, "{events:?}");
    let (s, info) = (a.stats(), peer.info().unwrap());
    let used: Vec<_> = info.rails.iter().filter(|r| r.active && r.tx_frames > 0).collect();
    assert!(!used.is_empty(), "{info:?}");
    for r in used {
        assert!(s.ports[r.port].ways[0].starts_with(&up[0].0), "{info:?} {s:?}");
    }
    up[0].clone()
}

#[test]
fn on_one_host_it_is_shared_memory_and_else_tcp_and_that_is_said() {
    watched("path", || {
        let kid = Kid::start("echo", &[&format!("{},{}", place("shm", "path"), place("tcp", "path"))]);
        let address = Server::of(&kid).address;
        let (shm, tcp) = address.split_once(',').unwrap();
        assert!(shm.starts_with("shm:") && tcp.starts_with("tcp:"), "{address}");
        let both = || fabric_with(None).endpoint().unwrap();

        let a = both();
        let peer = a.peer(&address).unwrap();
        ask(&a, &peer, &pattern(100_000, 1)).unwrap();
        assert_eq!(reached_by(&a, &peer), ("shm".to_owned(), None));

        // Only the worse way is given: no fallback, nothing better was there.
        let a = both();
        let peer = a.peer(tcp).unwrap();
        ask(&a, &peer, b"by tcp").unwrap();
        assert_eq!(reached_by(&a, &peer), ("tcp".to_owned(), None));

        // The better way is dead.
        let boot = shm.split_once('@').unwrap().1;
        for dead in [format!("shm:nobody.here@{boot}"), "shm:nobody.here@00000000".to_owned()] {
            let a = both();
            let peer = a.peer(&format!("{dead},{tcp}")).unwrap();
            ask(&a, &peer, &pattern(100_000, 1)).unwrap();
            let (via, fallback) = reached_by(&a, &peer);
            assert_eq!(via, "tcp");
            let said = fallback.expect("the fallback is said");
            assert!(said.contains(&dead), "{said}");
        }
    });
}

/// Bytes of a message from adopted memory: many frames, if it goes by those.
const ADOPTED: usize = 3 << 20;

/// Sends messages from adopted memory to whoever asks, and has a window of such memory. A `hidden` process lets no other look into it.
fn adopt(hidden: bool) {
    child::listen(|_| {});
    if hidden {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    }
    let e = open("shm");
    let window = e.window_of(Buffer::adopt(pattern(ADOPTED, 9))).unwrap();
    child::say(&format!("ready {} {}", e.address(), node::hex(&window.key().to_bytes())));
    loop {
        let m = e.recv().wait().unwrap();
        let seed = usize::from(m[0]);
        m.from().send(Buffer::adopt(pattern(ADOPTED, seed))).wait().unwrap();
    }
}

/// Has such messages sent and reads the window; says how many frames the messages came in.
fn read_adopted(address: &str, key: &str) {
    child::listen(|_| {});
    let key = WindowKey::from_bytes(&node::bytes(key)).unwrap();
    let e = open("shm");
    let peer = e.peer(address).unwrap();
    for seed in [1, 2, 3] {
        // Into a buffer of its own, and into one that the fabric takes.
        let mut wait = e.recv_with().from(&peer);
        if seed == 2 {
            wait = wait.into(Buffer::adopt(vec![0; ADOPTED]));
        }
        let wait = wait.post();
        peer.send(&[seed as u8][..]).wait().unwrap();
        let m = wait.wait().unwrap();
        assert!(m[..] == pattern(ADOPTED, seed), "message {seed}");
    }
    let frames: u64 = peer.info().unwrap().rails.iter().map(|r| r.rx_frames).sum();
    for (at, len) in [(0, ADOPTED), (777, 5_000), (ADOPTED - 1, 1)] {
        let b = peer.read(&key, at as u64, e.buffer(len).unwrap()).wait().unwrap();
        assert!(b[..] == pattern(ADOPTED, 9)[at..at + len], "{len} bytes at {at}");
    }
    let lost = e.events().0.iter().any(|e| matches!(e, FabricEvent::PeerLost { .. }));
    assert!(!lost, "the connection is not what was refused");
    child::say(&format!("frames {frames}"));
    std::thread::sleep(Duration::from_secs(60));
}

/// Adopted memory is fetched by the kernel, in a few frames; where the kernel refuses, it comes in pieces, as whole.
#[test]
fn adopted_memory_arrives_where_the_kernel_does_not_show_it() {
    watched("adopted", || {
        let mut frames = Vec::new();
        for owner in ["seen", "hidden"] {
            let kid = Kid::start_plain("adopter", &[owner]);
            let said = kid.says("ready");
            let (address, key) = said.split_once(' ').unwrap();
            let reader = Kid::start_plain("reader", &[address, key]);
            frames.push(reader.says("frames").parse::<usize>().unwrap());
        }
        assert!(frames[0] < 20 && frames[1] > 60, "{frames:?} frames of {ADOPTED} bytes a message");
    });
}
