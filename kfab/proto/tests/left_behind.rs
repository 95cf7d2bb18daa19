//! Peers that come, leave messages behind and go, to a host that receives none of them: so many are kept, then nobody new is let in.

mod end;

use end::End;
use kfab_core::spi::Delivery;
use kfab_core::{Kind, Result};
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};
use std::time::Duration;

/// Units of credit of each peer.
const CREDITS: u32 = 64;
/// Units that may be left behind.
const LEFT: u64 = 200;
/// Messages that each life leaves behind, of one unit each.
const EACH: u64 = 40;
const LEN: usize = 1_000;

const GREETING: &[u8] = b"I am new";

fn limits() -> Limits {
    Limits {
        credits: CREDITS,
        max_left_behind: LEFT,
        probe_after: Duration::from_millis(50),
        peer_timeout: Duration::from_secs(1),
        reconnect: (Duration::from_millis(1), Duration::from_millis(10)),
        ..Limits::default()
    }
}

fn contents(life: u64, n: u64) -> Vec<u8> {
    (0..LEN as u64).map(|i| (life * 31 + n * 7 + i / 253) as u8).collect()
}

/// The host that receives nothing, one that stays its peer, and one that comes and goes.
struct Scene {
    world: World,
    ends: [End; 3],
}

impl Scene {
    fn new(delivery: Delivery, rma: bool) -> Scene {
        Scene::with(delivery, rma, limits())
    }

    fn with(delivery: Delivery, rma: bool, limits: Limits) -> Scene {
        let world = World::new(1, WorldConfig { rma, ..WorldConfig::new(delivery) });
        let ends = [0, 1, 2].map(|host| End::new(&world, host, &[0], limits.clone()));
        Scene { world, ends }
    }

    fn pass(&mut self) {
        for e in &mut self.ends {
            e.with(self.world.now(), |m, io| m.poll(io));
        }
        self.world.advance(100_000);
    }

    fn end_of(&mut self, host: usize, op: OpId) -> Result<Outcome> {
        for _ in 0..100_000 {
            if let Some(r) = self.ends[host].machine.take(op) {
                return r;
            }
            self.pass();
        }
        panic!("an operation has no end: {:?}", self.ends[host].machine);
    }

    /// One message, until the other host has it.
    fn send(&mut self, from: usize, to: usize, bytes: &[u8]) -> Result<()> {
        self.send_to(from, &format!("sim:{to}.0"), bytes)
    }

    fn send_to(&mut self, from: usize, address: &str, bytes: &[u8]) -> Result<()> {
        let options = SendOptions { delivered: true, ..Default::default() };
        let op = self.ends[from].with(self.world.now(), |m, io| {
            let to = m.peer(io, &address.parse().unwrap())?;
            m.send(io, to, Payload::Buffer(io.pool.copy_from(bytes)?), options)
        })?;
        op.map_or(Ok(()), |op| self.end_of(from, op).map(drop))
    }

    /// The first message of a life. The host may have known the one before: then what is sent ends once with the loss of that.
    fn greet(&mut self) -> Result<()> {
        self.send_anew(2, 0, GREETING)
    }

    fn send_anew(&mut self, from: usize, to: usize, bytes: &[u8]) -> Result<()> {
        match self.send(from, to, bytes) {
            Err(e) if e.kind() == Kind::PeerLost => self.send(from, to, bytes),
            sent => sent,
        }
    }

    /// A message that waits at a host.
    fn receive(&mut self, host: usize) -> Vec<u8> {
        match self.ends[host].with(self.world.now(), |m, io| m.recv(io, Want::default(), None)).unwrap() {
            Started::Done(Outcome::Message(m)) => m.bytes().to_vec(),
            other => panic!("none waits: {other:?}"),
        }
    }

    /// The host that comes and goes is somebody new.
    fn restart(&mut self, life: u64) {
        self.world.crash(2);
        self.world.restart(2);
        self.ends[2] = End::known_as(1_000 + life, &self.world, 2, &[0], limits());
    }

    fn left_behind(&mut self) -> u64 {
        self.ends[0].machine.stats().left_behind
    }
}

fn nobody_new_is_let_in_while_too_much_is_left(delivery: Delivery, rma: bool) {
    let mut s = Scene::new(delivery, rma);
    s.send(1, 0, b"I stay").unwrap();
    assert_eq!(s.receive(0), b"I stay");
    let mut lives = 0;
    let refused = loop {
        s.restart(lives);
        let sent = s.greet().and_then(|()| (1..EACH).try_for_each(|n| s.send(2, 0, &contents(lives, n))));
        if let Err(e) = sent {
            break e;
        }
        lives += 1;
        assert!(lives < 100, "nobody is turned away: {:?}", s.ends[0].machine.stats());
    };
    assert_eq!(refused.kind(), Kind::Unreachable, "{refused}");
    // That the one before is gone may be known only when the next has come in, and of the last not even then.
    let (left, all) = (s.left_behind(), lives * EACH);
    assert!(
        (LEFT..LEFT + 2 * EACH).contains(&left) && (all - EACH..=all).contains(&left),
        "{left} units of {all}"
    );
    let in_use = s.ends[0].pool.stats().in_use as u64;
    assert!(in_use < 3 * (LEFT + u64::from(CREDITS)) * 1024, "{in_use} bytes");
    let (events, _) = s.ends[0].machine.drain_events();
    let told = |e: &FabricEvent| matches!(e, FabricEvent::Rejected { reason } if reason.contains("Limits::max_left_behind"));
    assert!(events.iter().any(told), "{events:?}");

    // Whoever is in is no worse off, both ways, also by a name that it has not called by yet; and who is called by the host comes in.
    s.send(1, 0, b"still here").unwrap();
    s.send_to(1, "sim:0.0,tcp:somewhere", b"by another name").unwrap();
    s.send_anew(0, 2, b"you are called").unwrap();
    s.send(0, 1, b"so am I").unwrap();
    assert_eq!(s.receive(1), b"so am I");

    // What was left is there, whole and in order, and when enough of it has been received others come in.
    let message = |n| if n % EACH == 0 { GREETING.to_vec() } else { contents(n / EACH, n % EACH) };
    let (left, mut next) = (s.left_behind(), 0);
    while s.left_behind() >= LEFT {
        assert!(s.receive(0) == message(next), "message {next}");
        next += 1;
    }
    assert_eq!(next, left - LEFT + 1);
    s.restart(99);
    s.greet().unwrap();
    (next..all).for_each(|n| assert!(s.receive(0) == message(n), "message {n}"));
    assert_eq!([s.receive(0), s.receive(0)], [b"still here".to_vec(), b"by another name".to_vec()]);
    assert_eq!(s.receive(0), GREETING);
    assert_eq!((s.left_behind(), s.ends[0].machine.stats().unexpected), (0, 0));
    assert_eq!(s.world.violations(), Vec::<String>::new());
}

#[test]
fn over_connections() {
    nobody_new_is_let_in_while_too_much_is_left(Delivery::Connection, false);
}

#[test]
fn over_one_sided_connections() {
    nobody_new_is_let_in_while_too_much_is_left(Delivery::Connection, true);
}

#[test]
fn over_datagrams() {
    nobody_new_is_let_in_while_too_much_is_left(Delivery::Datagram, false);
}

#[test]
fn over_memory() {
    nobody_new_is_let_in_while_too_much_is_left(Delivery::Process, true);
}

#[test]
fn notices_of_the_gone_count_too() {
    let mut s = Scene::new(Delivery::Connection, true);
    let (window, key) = s.ends[0]
        .with(s.world.now(), |m, io| {
            let memory = WindowMemory::Shared(io.pool.alloc_window(64)?);
            m.open_window(io, memory, kfab_core::spi::Rights::WRITE)
        })
        .unwrap();
    let now = s.world.now();
    let op = s.ends[2].with(now, |m, io| {
        let to = m.peer(io, &"sim:0.0".parse().unwrap()).unwrap();
        m.write(io, to, &key, 0, Payload::Bytes(b"here"), Some(7)).unwrap()
    });
    if let Some(op) = op {
        s.end_of(2, op).unwrap();
    }
    for _ in 0..1_000 {
        s.pass();
    }
    assert_eq!((s.ends[0].machine.stats().notices, s.left_behind()), (1, 0));
    s.restart(1);
    s.greet().unwrap();
    assert_eq!((s.ends[0].machine.stats().notices, s.left_behind()), (1, 1));
    match s.ends[0].machine.recv_notice(window) {
        Ok(Started::Done(Outcome::Notice(n))) => assert_eq!((n.value, n.bytes), (7, 4)),
        other => panic!("{other:?}"),
    }
    assert_eq!(s.left_behind(), 0);
}

/// Who has heard that it is welcome, and sends over memory what nobody keeps, is let in although it becomes too much meanwhile. Wherever the moment
/// falls: what it was told was sent arrives, or the peer is lost to it.
#[test]
fn who_was_welcomed_is_not_turned_away() {
    let mut met = 0;
    for at in 0..200 {
        let mut s = Scene::with(Delivery::Process, true, Limits { max_left_behind: EACH, ..limits() });
        (0..EACH).for_each(|n| s.send(1, 0, &contents(1, n)).unwrap());
        let now = s.world.now();
        let first = s.ends[2].with(now, |m, io| {
            let to = m.peer(io, &"sim:0.0".parse().unwrap()).unwrap();
            m.send(io, to, Payload::Bytes(b"first"), SendOptions::default()).unwrap()
        });
        for n in 0..2_000 {
            if n == at {
                s.world.crash(1);
            }
            for e in &mut s.ends {
                e.with(s.world.now(), |m, io| m.poll(io));
            }
            s.world.advance(1_000);
        }
        let first = first.map_or(Some(Ok(Outcome::Unit)), |op| s.ends[2].machine.take(op));
        met += u32::from(s.left_behind() == EACH);
        (0..EACH).for_each(|n| assert!(s.receive(0) == contents(1, n)));
        let second = s.send(2, 0, b"second");
        assert!(second.is_ok(), "the host died at {at} us: {second:?}");
        if matches!(first, Some(Ok(_))) {
            assert_eq!(s.receive(0), b"first", "the host died at {at} us");
        }
    }
    assert!(met > 100, "it never became too much: {met}");
}
