//! Two machines joined by a cable with a card at each end: all kinds of traffic, and then the other one's power fails.
//!
//! Needs two guests, as `cargo xtask lab --two` makes them, and runs in both, where `LAB_SIDE` says which one this is; elsewhere the test
//! says what is missing and does nothing.

mod common;

use common::{pattern, watched_for};
use kfab::{Endpoint, EndpointConfig, Fabric, Kind, Limits, Message, Op, Peer, Rights, WindowKey};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where the far side listens.
const AT: &str = "verbs:10.8.0.2:7000";
/// After this long a silent peer is lost.
const PEER_TIMEOUT: Duration = Duration::from_secs(10);
/// That, and what hosts take that are busy with other things.
const BOUND: Duration = Duration::from_secs(60);
/// Seconds that neither side takes.
const WATCH_S: u64 = 400;
const WINDOW: usize = 256 << 10;
/// What goes inline, in a slot, from its own buffer, by rendezvous.
const LENGTHS: [usize; 5] = [8, 40, 1000, 10_000, 1 << 20];

fn open(listen: Option<&str>) -> Endpoint {
    let c = EndpointConfig {
        providers: vec!["verbs".into()],
        listen: listen.map(Into::into).into_iter().collect(),
        limits: Limits { peer_timeout: PEER_TIMEOUT, ..Default::default() },
        ..Default::default()
    };
    Fabric::new((kfab_verbs::Verbs,)).open(c).unwrap()
}

/// `lab WORDS`.
fn lab(words: &[&str]) {
    let done = Command::new("lab").args(words).status().expect("the lab's helper");
    assert!(done.success(), "lab {words:?}");
}

/// Lets the other side do what it wants with a window, and echoes.
fn far() {
    let e = open(Some(AT));
    let window = e.window(WINDOW, Rights::READ | Rights::WRITE).unwrap();
    window.write_at(0, &pattern(WINDOW, 1));
    lab(&["mark", "up"]);
    let first = e.recv().wait().unwrap();
    first.from().send(&window.key().to_bytes()[..]).wait().unwrap();
    loop {
        let m = e.recv().wait().unwrap();
        let to = m.from();
        to.send(m.into_buffer().unwrap()).wait().unwrap();
    }
}

/// One of each: messages there and back, a read, a write that is read back.
fn round(e: &Endpoint, to: &Peer, key: &WindowKey, seed: usize) -> kfab::Result<()> {
    for len in LENGTHS {
        let answer = e.recv_with().from(to).post();
        to.send(&pattern(len, seed)[..]).wait()?;
        assert!(answer.wait()?[..] == pattern(len, seed), "an echo of {len} bytes is another");
    }
    to.write(key, 0, &pattern(WINDOW, seed)[..]).wait()?;
    let back = to.read(key, 0, e.buffer(WINDOW)?).wait()?;
    assert!(back[..] == pattern(WINDOW, seed), "what was written is not what was read");
    Ok(())
}

/// The operation has to end with this error, in time.
fn ends<T: kfab::Finish + std::fmt::Debug>(what: &str, op: Op<T>, kind: Kind, since: Instant) {
    let error = op.wait_timeout(BOUND.saturating_sub(since.elapsed())).expect_err(what);
    println!("{what}: {error}, after {:.1} s", since.elapsed().as_secs_f64());
    assert_eq!(error.kind(), kind, "{what}: {error}");
}

fn near() {
    lab(&["await", "up", "120"]);
    let e = open(None);
    let to = e.peer(AT).unwrap();
    let answer: Op<Message> = e.recv_with().from(&to).post();
    to.send(&b"the key"[..]).wait().unwrap();
    let key = WindowKey::from_bytes(&answer.wait().unwrap()).unwrap();
    let first = to.read(&key, 0, e.buffer(WINDOW).unwrap()).wait().unwrap();
    assert!(first[..] == pattern(WINDOW, 1), "not what the window's owner wrote");
    for seed in 2..10 {
        round(&e, &to, &key, seed).unwrap();
    }
    // One that nothing but the end of the peer will end, on an endpoint that owes nothing else.
    let idle = open(None);
    let same = idle.peer(AT).unwrap();
    same.send(&b"hello"[..]).wait().unwrap();
    let mut waits = idle.recv_with().from(&same).tag(7, 0).post();
    std::thread::sleep(Duration::from_secs(2));
    assert!(!waits.is_done(), "the peer lives");

    let begun = Instant::now();
    let killer = std::thread::spawn(|| lab(&["kill"]));
    let mut seed = 10;
    let error = loop {
        match round(&e, &to, &key, seed) {
            Ok(()) => seed += 1,
            Err(error) => break error,
        }
        assert!(begun.elapsed() < BOUND, "the peer answers though it is dead");
    };
    killer.join().unwrap();
    println!("what was under way: {error}, after {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(error.kind(), Kind::PeerLost, "{error}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    ends("a receive", waits, Kind::PeerLost, begun);
    // Nobody is there any more, so nobody is found: what begins now ends as well.
    let (receive, begun) = (e.recv_with().from(&to).post(), Instant::now());
    let (small, large) = (to.send(&[1; 8][..]), to.send(&pattern(1 << 20, 3)[..]));
    let read = to.read(&key, 0, e.buffer(WINDOW).unwrap());
    ends("a small message after it", small, Kind::Unreachable, begun);
    ends("a large one", large, Kind::Unreachable, begun);
    ends("a read", read, Kind::Unreachable, begun);
    ends("another receive", receive, Kind::Unreachable, begun);
}

#[test]
fn traffic_crosses_and_the_loss_of_a_machine_ends_what_waits_for_it() {
    match std::env::var("LAB_SIDE").as_deref() {
        Ok("a") => watched_for("the near side", WATCH_S, near),
        Ok("b") => watched_for("the far side", WATCH_S, far),
        _ => println!("skipped: two guests with a card each are needed"),
    }
}
