//! What leaves first where a connection has less room than there is to say: control frames, then messages, then pieces of large transfers.
//! And what is not sent at all: frames for credit alone, while traffic flows both ways.

use kfab_core::mem::{Landing, Pool, PoolConfig, Slice};
use kfab_core::spi::*;
use kfab_core::{Error, Kind, Result};
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

const STEP: u64 = 20_000;
/// Kinds of frames as they travel: the low four bits of a header.
const MESSAGE: u8 = 1;
const CTS: u8 = 4;
const PIECE: u8 = 5;
const ACK: u8 = 7;

/// What was posted, by kind; and how many frames more the port takes.
#[derive(Default)]
struct Seen {
    kinds: Vec<u8>,
    room: Option<usize>,
    refused: Option<Conn>,
}

/// A port that is watched, and that takes as many frames as it is told.
struct Watched {
    port: Box<dyn Port>,
    seen: Arc<Mutex<Seen>>,
}

impl Port for Watched {
    fn caps(&self) -> &Caps {
        self.port.caps()
    }
    fn ways(&self) -> Vec<Way> {
        self.port.ways()
    }
    fn connect(&mut self, way: &Way) -> Result<Conn> {
        self.port.connect(way)
    }
    fn close(&mut self, conn: Conn) {
        self.port.close(conn);
    }
    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        let mut seen = self.seen.lock().unwrap();
        let n = frames.len().min(seen.room.unwrap_or(usize::MAX));
        let n = if n == 0 { 0 } else { self.port.post(conn, &frames[..n]) };
        seen.kinds.extend(frames[..n].iter().map(|f| f.header[0] & 0xf));
        seen.room = seen.room.map(|r| r - n);
        if n < frames.len() && seen.room == Some(0) {
            seen.refused = Some(conn);
        }
        n
    }
    fn flush(&mut self) {
        self.port.flush();
    }
    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        let mut seen = self.seen.lock().unwrap();
        if seen.room != Some(0)
            && let Some(conn) = seen.refused.take()
        {
            events.push(Event::Writable { conn });
        }
        drop(seen);
        self.port.poll(now_ns, events)
    }
    fn take(&mut self, conn: Conn, landing: Option<Landing>) -> Option<Option<Landing>> {
        self.port.take(conn, landing)
    }
    fn expose(&mut self, _: &Slice, _: Rights) -> Result<Exposure> {
        Err(Error::new(Kind::Unavailable, "expose", "not here"))
    }
    fn revoke(&mut self, exposure: Exposure) {
        self.port.revoke(exposure);
    }
    fn rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        self.port.rma(conn, rma, token)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.port.fd()
    }
    fn arm(&mut self) -> bool {
        self.port.arm()
    }
}

struct End {
    machine: Machine,
    ports: Vec<Box<dyn Port>>,
    pool: Pool,
    seen: Arc<Mutex<Seen>>,
}

impl End {
    fn new(world: &World, host: u32) -> End {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let ports: Vec<Box<dyn Port>> =
            vec![Box::new(Watched { port: world.port(host, 0), seen: seen.clone() })];
        let mut machine = Machine::new(Limits::default(), u64::from(host) + 1, false);
        machine.set_address(&format!("sim:{host}.0").parse().unwrap());
        End { machine, ports, pool: Pool::new(PoolConfig::default()), seen }
    }

    fn with<R>(&mut self, now: u64, f: impl FnOnce(&mut Machine, &mut Io<'_>) -> R) -> R {
        f(&mut self.machine, &mut Io { ports: &mut self.ports, now: now + 1, pool: &self.pool })
    }

    fn send(&mut self, now: u64, to: PeerId, bytes: &[u8]) -> Option<OpId> {
        self.with(now, |m, io| m.send(io, to, Payload::Bytes(bytes), SendOptions::default())).unwrap()
    }

    /// A receive that has to wait.
    fn recv(&mut self, now: u64) -> OpId {
        match self.with(now, |m, io| m.recv(io, Want { tag: None, from: None }, None)).unwrap() {
            Started::Pending(op) => op,
            Started::Done(o) => panic!("{o:?} is there already"),
        }
    }

    /// The message of a receive, once it is there.
    fn taken(&mut self, op: OpId) -> Option<Message> {
        match self.machine.take(op)? {
            Ok(Outcome::Message(m)) => Some(m),
            other => panic!("{other:?}"),
        }
    }

    fn takes(&self, room: Option<usize>) -> Vec<u8> {
        let mut seen = self.seen.lock().unwrap();
        seen.room = room;
        std::mem::take(&mut seen.kinds)
    }
}

/// Two that know each other, and how each calls the other.
struct Pair {
    world: World,
    a: End,
    b: End,
    to_b: PeerId,
    to_a: PeerId,
}

impl Pair {
    fn new() -> Pair {
        let mut config = WorldConfig::new(Delivery::Connection);
        config.queue_frames = 10_000;
        let world = World::new(5, config);
        let (mut a, mut b) = (End::new(&world, 0), End::new(&world, 1));
        let to_b = a.with(0, |m, io| m.peer(io, &"sim:1.0".parse().unwrap())).unwrap();
        let first = b.recv(0);
        a.send(0, to_b, b"hello");
        let mut p = Pair { world, a, b, to_b, to_a: to_b };
        p.to_a = p.until(|p| p.b.taken(first)).from;
        p.pass(100);
        p
    }

    fn pass(&mut self, steps: u32) {
        for _ in 0..steps {
            let now = self.world.now();
            self.a.with(now, |m, io| m.poll(io));
            self.b.with(now, |m, io| m.poll(io));
            self.world.advance(STEP);
        }
    }

    fn until<R>(&mut self, mut f: impl FnMut(&mut Pair) -> Option<R>) -> R {
        for _ in 0..100_000 {
            if let Some(r) = f(self) {
                return r;
            }
            self.pass(1);
        }
        panic!("it never comes true");
    }
}

#[test]
fn control_frames_leave_before_messages_and_messages_before_pieces() {
    let mut p = Pair::new();
    let now = p.world.now();
    let (large, there) = (vec![7; 2 << 20], vec![9; 2 << 20]);
    // Pieces that would fill the connection for long, after the first few.
    let at_b = p.b.recv(now);
    p.a.takes(Some(4));
    let sent = p.a.send(now, p.to_b, &large).expect("pieces under way");
    p.until(|p| p.a.seen.lock().unwrap().refused.map(drop));
    let begun = p.a.takes(Some(0));
    assert!(begun.ends_with(&[PIECE]), "{begun:?}");
    // Now messages; and last the answer to a promise of the other side, which is a control frame.
    let now = p.world.now();
    let small: Vec<_> = (0..3).map(|i| p.a.send(now, p.to_b, &[i; 3000])).collect();
    assert!(small.iter().all(Option::is_some), "there is no room for them");
    let at_a = p.a.recv(now);
    let promised = p.b.send(now, p.to_a, &there).expect("a promise");
    p.pass(50);
    assert_eq!(p.a.takes(None), [], "the port takes nothing");
    p.pass(1);
    let order = p.a.takes(None);
    let at =
        |kind: u8| order.iter().position(|k| *k == kind).unwrap_or_else(|| panic!("no {kind} in {order:?}"));
    let last_message = order.iter().rposition(|k| *k == MESSAGE).unwrap();
    assert!(at(CTS) < at(MESSAGE) && last_message < at(PIECE), "{order:?}");
    assert_eq!(order.iter().filter(|k| **k == MESSAGE).count(), 3, "{order:?}");
    // All of it arrives, whole. The first receive has the message that was sent first.
    let got = p.until(|p| p.b.taken(at_b));
    assert!(got.bytes() == large);
    let got = p.until(|p| p.a.taken(at_a));
    assert!(got.bytes() == there);
    p.until(|p| (p.a.machine.has_ended(sent) && p.b.machine.has_ended(promised)).then_some(()));
}

/// A rule doubles a frame, and the port takes only the first of the two: it has left, and nothing else may have its number.
#[test]
fn a_doubled_frame_has_left_when_one_of_the_two_has() {
    let mut p = Pair::new();
    let (first, there) = (vec![1; 3000], vec![9; 2 << 20]);
    p.a.takes(Some(1));
    let now = p.world.now();
    let rule = FaultRule { peer: None, port: None, action: FaultAction::Duplicate, chance: 1.0, seed: 1 };
    let rule = p.a.with(now, |m, io| m.add_fault(io, rule)).unwrap();
    p.a.send(now, p.to_b, &first);
    assert_eq!((p.a.takes(Some(0)), p.a.machine.remove_fault(rule)), (vec![MESSAGE], Some(1)));
    // The answer to a promise is a control frame, which goes before messages that wait.
    let at_a = p.a.recv(now);
    p.b.send(now, p.to_a, &there).expect("a promise");
    p.pass(50);
    p.a.takes(None);
    let got = p.until(|p| p.a.taken(at_a));
    assert!(got.bytes() == there);
    // Nothing came twice.
    for want in [&first[..], b"second"] {
        let now = p.world.now();
        if want != first {
            p.a.send(now, p.to_b, want);
            p.pass(50);
        }
        let Started::Done(Outcome::Message(m)) =
            p.b.with(now, |m, io| m.recv(io, Want { tag: None, from: None }, None)).unwrap()
        else {
            panic!("{} bytes did not come", want.len())
        };
        assert!(m.bytes() == want, "{} bytes instead of {}", m.bytes().len(), want.len());
    }
}

/// Messages to and fro, one after the other: frames with nothing but an acknowledgement or credit, by both.
fn bare(both_ways: bool) -> usize {
    let mut p = Pair::new();
    p.a.takes(None);
    p.b.takes(None);
    // Enough to spend the credit several times over.
    let rounds = Limits::default().credits as usize * 3;
    for i in 0..rounds {
        let now = p.world.now();
        let at_b = p.b.recv(now);
        p.a.send(now, p.to_b, &i.to_le_bytes());
        let m = p.until(|p| p.b.taken(at_b));
        assert_eq!(m.bytes(), i.to_le_bytes());
        if both_ways {
            let now = p.world.now();
            let at_a = p.a.recv(now);
            p.b.send(now, p.to_a, m.bytes());
            let back = p.until(|p| p.a.taken(at_a));
            assert_eq!(back.bytes(), i.to_le_bytes());
        }
    }
    let info = p.a.machine.peer_info(p.to_b).unwrap();
    assert!(info.credits > info.credit_limit / 2 && info.counters.credit_stalls == 0, "{info:?}");
    [&p.a, &p.b].iter().map(|e| e.takes(None).iter().filter(|k| **k == ACK).count()).sum()
}

#[test]
fn no_frame_is_spent_on_credit_while_traffic_flows_both_ways() {
    assert_eq!(bare(true), 0);
    // The twin: where nothing flows back, somebody has to say it.
    assert!(bare(false) >= 3 * 3);
}
