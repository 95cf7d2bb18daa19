//! A thousand peers on one endpoint over sockets: all are reached, all answer, none costs much while it is idle.

mod common;

use common::child::{self, Kid};
use common::level::Level;
use common::*;
use kfab::{Endpoint, EndpointConfig, Kind, Op, Peer, Progress};
use std::time::{Duration, Instant};

const PEERS: usize = 1000;
/// Descriptors of an endpoint besides its connections: listener, epoll, eventfds.
const FDS_EACH: u64 = 6;
/// Descriptors of the process with most of them: a thousand endpoints.
const FDS: u64 = PEERS as u64 * (FDS_EACH + 2) + 200;

/// Not a test of its own: what the child does.
#[test]
fn child_main() {
    let Some(role) = child::role() else { return };
    assert_eq!(role[0], "thousand");
    raise_limit(FDS).unwrap();
    child::listen(|_| {});
    let config = EndpointConfig { progress: Progress::Inline, ..config("tcp") };
    let all: Vec<Endpoint> = (0..PEERS).map(|_| fabric().open(config.clone()).unwrap()).collect();
    // In pieces that fit a line.
    for part in all.chunks(50) {
        let list: Vec<_> = part.iter().map(|e| e.address().to_string()).collect();
        child::say(&format!("part {}", list.join(" ")));
    }
    child::say("ready");
    let mut waits: Vec<Option<Op<_>>> = all.iter().map(|e| Some(e.recv())).collect();
    let mut answers: Vec<Op<()>> = Vec::new();
    // Looks at the one that was active last far more often than at all: 999 idle endpoints of this side are not what is measured.
    let mut last = 0;
    for round in 0u64.. {
        let chosen = if round.is_multiple_of(2000) { 0..all.len() } else { last..last + 1 };
        for i in chosen {
            match waits[i].take().unwrap().try_take() {
                Err(op) => waits[i] = Some(op),
                Ok(m) => {
                    let m = m.unwrap();
                    answers.push(m.from().send(&m));
                    waits[i] = Some(all[i].recv());
                    last = i;
                }
            }
        }
        answers.retain_mut(|a| !a.is_done());
    }
}

/// Raises the limit of descriptors to `n`; why that is not permitted, if it is not.
fn raise_limit(n: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|c| c >= n) {
        return Ok(());
    }
    // Beyond the hard limit only root may go.
    let want = Rlimit { current: Some(n), maximum: now.maximum.map(|m| m.max(n)) };
    let raised = setrlimit(Resource::Nofile, want);
    raised.map_err(|e| format!("{n} descriptors are needed, the hard limit is {:?}: {e}", now.maximum))
}

/// Median round trip to one peer.
fn round_trip(a: &Endpoint, peer: &Peer) -> Duration {
    let mut times: Vec<_> = (0..3000)
        .map(|_| {
            let begun = Instant::now();
            peer.send(b"12345678").wait().unwrap();
            a.recv().wait_timeout(Duration::from_secs(20)).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_thousand_peers() {
    if let Err(e) = raise_limit(FDS) {
        return skip::skip("descriptors", &e);
    }
    watched_for("a thousand peers", 200, || {
        let kid = Kid::start("thousand", &[]);
        let mut addresses: Vec<String> = Vec::new();
        while addresses.len() < PEERS {
            addresses.extend(kid.says("part").split(' ').map(str::to_owned));
        }
        kid.says("ready");
        let a = open("tcp");
        let first = a.peer(&addresses[0]).unwrap();
        first.send(b"x").wait().unwrap();
        a.recv().wait().unwrap();
        let alone = round_trip(&a, &first);

        let before = Level::now();
        let begun = Instant::now();
        let peers: Vec<_> = addresses.iter().map(|x| a.peer(x).unwrap()).collect();
        let sent: Vec<_> = (0..PEERS).map(|i| peers[i].send(&(i as u64).to_le_bytes())).collect();
        let mut seen = vec![false; PEERS];
        for _ in 0..PEERS {
            let m = a.recv().wait_timeout(Duration::from_secs(60)).unwrap();
            let i = u64::from_le_bytes(m[..].try_into().unwrap()) as usize;
            assert_eq!(m.from(), peers[i], "peer {i} answers for another");
            assert!(!std::mem::replace(&mut seen[i], true), "{i} came twice");
        }
        sent.into_iter().for_each(|o| o.wait().unwrap());
        println!("{PEERS} peers reached and answered in {:?}", begun.elapsed());
        let with = Level::now();
        assert!(with.fds >= before.fds + PEERS - 1, "{with:?} {before:?}");
        let each = (with.rss_kib - before.rss_kib) as f64 / PEERS as f64;
        println!("memory: {each:.1} KiB per idle peer, threads {} (were {})", with.threads, before.threads);
        assert!(each <= 32.0, "{each} KiB per peer");
        assert_eq!(with.threads, before.threads, "no thread per peer");
        let among = round_trip(&a, &first);
        println!(
            "latency to one of {PEERS} peers {among:?}, alone {alone:?}: x{:.2}",
            among.as_secs_f64() / alone.as_secs_f64()
        );

        drop(kid);
        let late = peers[7].send(b"anyone?").wait_timeout(Duration::from_secs(30)).unwrap_err();
        assert!(matches!(late.kind(), Kind::PeerLost | Kind::Unreachable), "{late:?}");
        drop(a);
        let end = Level::now();
        assert!(end.fds < before.fds, "{end:?} after closing, {before:?} before");
    });
}
