//! Real processes: killed with SIGKILL at any point, restarted, refused. The children are this program run again in a role.

mod common;

use common::child::{self, Kid};
use common::level::{Level, Rng};
use common::node::{self, Server, ask, at, fabric_with, place};
use common::*;
use kfab::{Endpoint, FabricEvent, Kind, Op, Peer, SendOptions};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// One test at a time: descriptors and threads of the process are counted.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Not a test of its own: what the children do.
#[test]
fn child_main() {
    let Some(role) = child::role() else { return };
    match role[0].as_str() {
        "echo" => node::echo(&role[1..]),
        "taken" => {
            let e = fabric_with(None).open(at(&role[1])).unwrap_err();
            child::say(&format!("kind {:?}", e.kind()));
        }
        other => panic!("{other}"),
    }
}

const ROUNDS: usize = 30;

/// The survivor, with limits that keep the test short.
fn survivor(scheme: &str) -> Endpoint {
    let mut c = config(scheme);
    c.limits.probe_after = Duration::from_millis(100);
    c.limits.peer_timeout = Duration::from_secs(2);
    fabric().open(c).unwrap()
}

/// The promise of the scheme, and what a busy machine adds to it.
fn promised(scheme: &str) -> Duration {
    let slack = Duration::from_secs(2);
    slack + if scheme == "shm" { Duration::from_millis(100) } else { Duration::from_secs(2) }
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

/// What the survivor is doing when the peer dies; how many operations were lost, and when the last of those under way ended.
type Deed = fn(&Endpoint, &Peer, &Server, &mut dyn FnMut(), Duration) -> (usize, Instant);

/// Kills the server `ROUNDS` times in the middle of `deed`; each time everything ends in time, the next server at the same address
/// answers at once, and nothing is left at the end.
fn killed_while(name: &'static str, deed: Deed) {
    let _alone = alone();
    for scheme in SCHEMES {
        watched_for(&format!("{name} over {scheme}"), 200, move || {
            let mut rng = Rng(u64::from(std::process::id()));
            let a = survivor(scheme);
            let at = place(scheme, name);
            let (mut level, mut first) = (None, Duration::ZERO);
            let (mut times, mut lost) = (Vec::new(), 0);
            for round in 0..ROUNDS {
                let mut kid = Kid::start("echo", &[&at]);
                let server = Server::of(&kid);
                let peer = a.peer(&server.address).unwrap();
                let begun = Instant::now();
                ask(&a, &peer, format!("round {round}").as_bytes())
                    .unwrap_or_else(|e| panic!("round {round}: {e:?}; {:?} {:?}", a.events(), peer.info()));
                first = first.max(begun.elapsed());
                let mut killed = None;
                let pause = Duration::from_micros(rng.below(4000));
                let mut kill = || {
                    std::thread::sleep(pause);
                    kid.shoot();
                    killed = Some(Instant::now());
                };
                let (n, heard) = deed(&a, &peer, &server, &mut kill, promised(scheme));
                lost += n;
                let took = heard.duration_since(killed.expect("the deed kills"));
                drop(kid);
                let (events, _) = a.events();
                let told = events
                    .iter()
                    .filter(|e| matches!(e, FabricEvent::PeerLost { peer: p, .. } if *p == peer.id()));
                assert!(told.count() >= 1, "{events:?}");
                times.push((took, events));
                drop(peer);
                if round == 4 {
                    level = Some(Level::now());
                }
            }
            let s = a.stats();
            assert_eq!((s.lane.ops, s.lane.unacked, s.lane.deferred, s.lane.conns), (0, 0, 0, 0), "{s:?}");
            assert_eq!(s.pool.in_use, 0, "{s:?}");
            level.unwrap().regained(name, 8 << 10);
            times.sort_by_key(|(took, _)| *took);
            let (median, (worst, slowest)) = (times[ROUNDS / 2].0, times.pop().unwrap());
            println!(
                "{name} over {scheme}: {lost} operations lost; heard of it after {median:?}, at most {worst:?}; reached the next after {first:?}"
            );
            assert!(lost > 0 && worst < promised(scheme), "{lost} lost, {worst:?}: {slowest:?}");
            assert!(first < Duration::from_secs(2), "a restarted server is reached after {first:?}");
        });
    }
}

#[test]
fn killed_while_idly_waited_for() {
    killed_while("idle", |a, peer, _, kill, limit| {
        let waits: Vec<_> = (0..4).map(|_| a.recv_with().from(peer).post()).collect();
        kill();
        let n = all_end(waits, Instant::now() + limit, "a receive from the dead");
        (n, Instant::now())
    });
}

#[test]
fn killed_in_mid_stream() {
    killed_while("stream", |a, peer, _, kill, limit| {
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
    });
}

#[test]
fn killed_in_mid_rendezvous() {
    killed_while("rendezvous", |a, peer, _, kill, limit| {
        let big = |i: usize| {
            let mut b = a.buffer((2 << 20) + i).unwrap();
            b.get_mut().unwrap().fill(i as u8);
            b
        };
        let waits: Vec<_> = (0..6).map(|_| a.recv_with().from(peer).post()).collect();
        let sent: Vec<_> = (0..6).map(|i| peer.send(big(i))).collect();
        kill();
        let until = Instant::now() + limit;
        let mut n = all_end(sent, until, "a large send to the dead");
        for w in waits {
            match w.wait_timeout(until.saturating_duration_since(Instant::now())) {
                // Whole or not at all.
                Ok(m) => assert!(m.len() >= 2 << 20 && m.iter().all(|x| *x == m[0])),
                Err(e) => {
                    assert_eq!(e.kind(), Kind::PeerLost, "{e:?}");
                    n += 1;
                }
            }
        }
        (n, Instant::now())
    });
}

#[test]
fn killed_in_mid_write_and_read() {
    killed_while("one-sided", |a, peer, server, kill, limit| {
        let data = pattern(3 << 20, 4);
        let write = || peer.write(&server.window, 5, &data[..]);
        let read = || peer.read(&server.window, 0, a.buffer(3 << 20).unwrap());
        let writes: Vec<_> = (0..2).map(|_| write()).collect();
        let reads: Vec<_> = (0..2).map(|_| read()).collect();
        kill();
        let until = Instant::now() + limit;
        let mut n =
            all_end(writes, until, "a write to the dead") + all_end(reads, until, "a read from the dead");
        let heard = Instant::now();
        // Over shared memory writes and reads are done in the call: go on until one finds the peer dead.
        while n == 0 {
            assert!(Instant::now() < until, "writes to the dead go on");
            n += none_reaches(vec![peer.write(&server.window, 0, b"late")], limit, "a write after the death");
        }
        (n, heard)
    });
}

/// The names of shared memory that this machine has.
fn left_behind() -> Vec<String> {
    let list = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    list.map(|f| f.file_name().to_string_lossy().into_owned()).filter(|n| n.contains("kfab")).collect()
}

#[test]
fn a_killed_process_leaves_no_file_and_its_place_is_free_at_once() {
    let _alone = alone();
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
    let _alone = alone();
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
    let _alone = alone();
    for scheme in SCHEMES {
        watched(&format!("second over {scheme}"), move || {
            let place = place(scheme, "second");
            let first = fabric().open(at(&place)).unwrap();
            let e = fabric().open(at(&place)).unwrap_err();
            assert_eq!(e.kind(), Kind::AddressInUse, "{e:?}");
            assert_eq!(Kid::start("taken", &[&place]).says("kind"), "AddressInUse");
            drop(first);
            fabric().open(at(&place)).unwrap();
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
    let _alone = alone();
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
