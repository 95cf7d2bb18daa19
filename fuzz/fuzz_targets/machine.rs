//! The protocol machine against hostile peers: frames of every kind with fields that are right, nearly right or nonsense, on
//! connections that come and go, while the user's operations run. Nothing panics, memory stays bounded, every operation ends.
#![no_main]

use kfab_core::mem::{Buffer, Landing, Pool, Slice};
use kfab_core::spi::{
    Address, Caps, Conn, Delivery, DownReason, Event, Exposure, Frame, Inline, Port, RemoteKey, Rights, Rma,
    RmaStarted, RmaToken, Way,
};
use kfab_core::{Error, Kind, Result};
use kfab_proto::{Io, Limits, Machine, OpId, Outcome, Payload, SendOptions, Started, Want, WindowId, WindowKey, WindowMemory};
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};

/// What target and port share.
#[derive(Default)]
struct Wire {
    events: VecDeque<Event>,
    bodies: HashMap<Conn, Vec<u8>>,
    /// Connections that are up, in the order they came.
    conns: Vec<Conn>,
    next: u64,
    /// The port answers later, refuses frames, refuses one-sided access.
    late: bool,
    full: bool,
    no_rma: bool,
    exposed: usize,
}

struct Fake {
    wire: Arc<Mutex<Wire>>,
    caps: Caps,
    fd: std::fs::File,
}

impl Port for Fake {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn ways(&self) -> Vec<Way> {
        vec![Way::new("fake", "here")]
    }

    fn connect(&mut self, way: &Way) -> Result<Conn> {
        if way.rest == "nowhere" {
            return Err(Error::new(Kind::InvalidArgument, "connect", "nowhere"));
        }
        let mut w = self.wire.lock().unwrap();
        w.next += 1;
        let conn = Conn(w.next);
        w.conns.push(conn);
        w.events.push_back(Event::Up { conn });
        Ok(conn)
    }

    fn close(&mut self, conn: Conn) {
        let mut w = self.wire.lock().unwrap();
        down(&mut w, conn, DownReason::Closed);
    }

    fn post(&mut self, _: Conn, frames: &[Frame<'_>]) -> usize {
        let w = self.wire.lock().unwrap();
        assert!(frames.iter().all(|f| f.body.len() <= self.caps.max_body));
        if w.full { 0 } else { frames.len() }
    }

    fn flush(&mut self) {}

    fn poll(&mut self, _: u64, events: &mut Vec<Event>) -> bool {
        let mut w = self.wire.lock().unwrap();
        // A frame with a body is the last until the body was taken.
        while let Some(e) = w.events.pop_front() {
            let stop = matches!(e, Event::Frame { body_len, .. } if body_len > 0);
            events.push(e);
            if stop {
                break;
            }
        }
        !events.is_empty()
    }

    fn take(&mut self, conn: Conn, landing: Option<Landing>) -> Option<Option<Landing>> {
        let mut w = self.wire.lock().unwrap();
        let body = w.bodies.remove(&conn).unwrap_or_default();
        let landing = landing.map(|mut l| {
            let n = body.len().min(l.len());
            l.copy_from(0, &body[..n]);
            l
        });
        if w.late {
            w.events.push_front(Event::Taken { conn, landing, ok: true });
            return None;
        }
        Some(landing)
    }

    fn expose(&mut self, _: &Slice, _: Rights) -> Result<Exposure> {
        let mut w = self.wire.lock().unwrap();
        w.exposed += 1;
        w.next += 1;
        Ok(Exposure { key: RemoteKey { region: w.next, base: 0, secret: 1 }, id: w.next })
    }

    fn revoke(&mut self, _: Exposure) {
        let mut w = self.wire.lock().unwrap();
        w.exposed = w.exposed.checked_sub(1).expect("revoked what was not exposed");
    }

    fn rma(&mut self, _: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        let landing = match rma {
            Rma::Read { landing, .. } => Some(landing),
            Rma::Write { .. } => None,
        };
        let mut w = self.wire.lock().unwrap();
        match (w.no_rma, w.late) {
            (true, _) => RmaStarted::Failed(landing, Error::new(Kind::AccessDenied, "rma", "no")),
            (_, true) => {
                w.events.push_back(Event::RmaDone { token, landing, result: Ok(()) });
                RmaStarted::Pending
            }
            _ => RmaStarted::Done(landing),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn arm(&mut self) -> bool {
        self.wire.lock().unwrap().events.is_empty()
    }
}

/// The connection goes down, after the frames it still has.
fn down(w: &mut Wire, conn: Conn, reason: DownReason) {
    if let Some(i) = w.conns.iter().position(|c| *c == conn) {
        w.conns.remove(i);
        w.events.push_back(Event::Down { conn, reason, detail: String::new() });
    }
}

/// The input, byte by byte; zeros after its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        let Some((b, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *b
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// Mostly small, sometimes large or at an edge.
    fn number(&mut self) -> u64 {
        match self.byte() {
            b @ 0..=199 => u64::from(b) & 63,
            200..=219 => u64::from(u16::from_le_bytes(self.bytes())),
            220..=239 => u64::from(u32::from_le_bytes(self.bytes())),
            240..=247 => u64::MAX - u64::from(self.byte()),
            _ => u64::from_le_bytes(self.bytes()),
        }
    }
}

/// One machine, its port, its user.
struct Play<'a> {
    input: Input<'a>,
    wire: Arc<Mutex<Wire>>,
    ports: Vec<Box<dyn Port>>,
    machine: Machine,
    pool: Pool,
    now: u64,
    ops: Vec<OpId>,
    window: WindowId,
    key: WindowKey,
    seq: HashMap<Conn, u32>,
}

macro_rules! io {
    ($s:ident) => {
        &mut Io { ports: &mut $s.ports, now: $s.now, pool: &$s.pool }
    };
}

impl<'a> Play<'a> {
    fn new(bytes: &'a [u8]) -> Play<'a> {
        let mut input = Input(bytes);
        let how = input.byte();
        let delivery =
            [Delivery::Datagram, Delivery::Connection, Delivery::Process][usize::from(how & 3) % 3];
        let caps = Caps {
            delivery,
            max_body: 4096,
            eager_max: 1024,
            fetch_min: 0,
            fragment: 2048,
            rma: how & 4 != 0,
            zero_copy: how & 8 != 0,
            sees_death: false,
            weight: 1,
            rank: 0,
            node: None,
        };
        let wire =
            Arc::new(Mutex::new(Wire { late: how & 16 != 0, no_rma: how & 32 != 0, ..Wire::default() }));
        let fd = std::fs::File::open("/dev/null").unwrap();
        let mut ports: Vec<Box<dyn Port>> = vec![Box::new(Fake { wire: wire.clone(), caps, fd })];
        let limits =
            Limits { credits: 64, max_message: 1 << 20, max_ops: 256, max_peers: 16, ..Limits::default() };
        let mut machine = Machine::new(limits, 99, false);
        machine.set_address(&"fake:here".parse().unwrap());
        let pool = Pool::new(Default::default());
        let memory = WindowMemory::Shared(pool.alloc_window(10_000).unwrap());
        let mut io = Io { ports: &mut ports, now: 1, pool: &pool };
        let (window, key) = machine.open_window(&mut io, memory, Rights::READ | Rights::WRITE).unwrap();
        Play { input, wire, ports, machine, pool, now: 1, ops: Vec::new(), window, key, seq: HashMap::new() }
    }

    fn step(&mut self) {
        match self.input.byte() % 12 {
            0 => {
                let mut w = self.wire.lock().unwrap();
                if w.conns.len() < 8 {
                    w.next += 1;
                    let conn = Conn(w.next);
                    w.conns.push(conn);
                    w.events.push_back(Event::Incoming { conn });
                }
            }
            1 | 2 => self.hello(),
            3..=7 => self.frame(),
            8 => self.user(),
            9 => self.end_conn(),
            10 => {
                let mut w = self.wire.lock().unwrap();
                w.full = !w.full;
                if !w.full {
                    let all = w.conns.clone();
                    w.events.extend(all.into_iter().map(|conn| Event::Writable { conn }));
                }
            }
            _ => self.now += u64::from(self.input.byte()).pow(3) * 1_000,
        }
        self.poll();
    }

    fn poll(&mut self) {
        for _ in 0..50 {
            if !self.machine.poll(io!(self)) {
                return;
            }
        }
    }

    fn conn(&mut self) -> Option<Conn> {
        let i = usize::from(self.input.byte());
        let w = self.wire.lock().unwrap();
        (!w.conns.is_empty()).then(|| w.conns[i % w.conns.len()])
    }

    fn end_conn(&mut self) {
        use DownReason::*;
        let Some(conn) = self.conn() else { return };
        let reason = [Closed, Broken, Refused, Denied, PeerDead, Hostile][usize::from(self.input.byte()) % 6];
        down(&mut self.wire.lock().unwrap(), conn, reason);
    }

    fn deliver(&self, conn: Conn, header: [u8; 16], inline: &[u8], body: Vec<u8>) {
        let mut w = self.wire.lock().unwrap();
        // One body at a time and connection.
        if w.bodies.contains_key(&conn) {
            return;
        }
        let body_len = body.len();
        if body_len > 0 {
            w.bodies.insert(conn, body);
        }
        let inline = Inline::new(&inline[..inline.len().min(40)]).unwrap();
        w.events.push_back(Event::Frame { conn, header, inline, body_len });
    }

    /// A greeting that is right but for what the input changes.
    fn hello(&mut self) {
        let Some(conn) = self.conn() else { return };
        let id = u64::from(self.input.byte() % 4) + 1;
        let session = u64::from(self.input.byte() % 2);
        let mut b = Vec::new();
        b.extend(b"kfab");
        b.extend(kfab_proto::VERSION.to_le_bytes());
        b.extend(0u16.to_le_bytes());
        b.extend(id.to_le_bytes());
        b.extend(u32::from(self.input.byte()).to_le_bytes());
        b.extend(u32::from(self.input.byte() & 6).to_le_bytes());
        b.extend(4096u32.to_le_bytes());
        b.extend(session.to_le_bytes());
        b.extend((u32::from(self.input.byte() % 8) << 10).to_le_bytes());
        if self.input.byte() > 240 {
            let at = usize::from(self.input.byte()) % b.len();
            b[at] ^= self.input.byte();
        }
        let address = ["fake:a", "fake:b", "other:c", ""][usize::from(self.input.byte()) % 4];
        self.seq.insert(conn, 0);
        self.deliver(conn, [0; 16], &b, address.into());
    }

    /// A frame of any kind, with the next sequence number or another one.
    fn frame(&mut self) {
        let Some(conn) = self.conn() else { return };
        let kind = self.input.byte();
        let next = self.seq.entry(conn).or_insert(0);
        let seq = match self.input.byte() {
            0..=199 => {
                *next += 1;
                *next - 1
            }
            b @ 200..=230 => next.wrapping_add(u32::from(b)).wrapping_sub(210),
            _ => self.input.number() as u32,
        };
        let mut header = [0; 16];
        // Mostly kinds and flags that exist.
        header[0] = if kind < 220 { kind % 13 | (self.input.byte() & 0x70) } else { kind };
        header[1..4].copy_from_slice(&seq.to_le_bytes()[..3]);
        header[4..6].copy_from_slice(&(self.input.number() as u16).to_le_bytes());
        header[6..8].copy_from_slice(&(self.input.number() as u16).to_le_bytes());
        header[8..].copy_from_slice(&self.input.number().to_le_bytes());
        let inline = self.inline(header[0] & 15, header[0] & 0x10 != 0);
        let len = if self.input.byte() & 1 == 0 { 0 } else { (self.input.number() % 4097) as usize };
        let body = if header[0] & 15 == 2 { self.batch() } else { vec![self.input.byte(); len] };
        self.deliver(conn, header, &inline, body);
    }

    fn inline(&mut self, kind: u8, tagged: bool) -> Vec<u8> {
        let key = self.key.to_bytes();
        let mut b = Vec::new();
        let words = |p: &mut Self, b: &mut Vec<u8>, n: usize| {
            (0..n).for_each(|_| b.extend(p.input.number().to_le_bytes()))
        };
        match kind {
            3 => words(self, &mut b, 5),
            4 => {
                words(self, &mut b, 2);
                (0..2).for_each(|_| b.extend((self.input.number() as u32).to_le_bytes()));
            }
            5 | 6 => {
                words(self, &mut b, 1);
                b.extend((self.input.number() as u32).to_le_bytes());
                b.extend([0; 4]);
            }
            9 | 10 => {
                // A key that is right, as a peer who was given it has it.
                b.extend(&key[8..24]);
                words(self, &mut b, if kind == 9 && tagged { 3 } else { 2 });
            }
            12 => {
                b.extend(&key[8..24]);
                words(self, &mut b, 1);
                b.extend([1 + (self.input.byte() & 1), 0, 0, 0, 0, 0, 0, 0]);
            }
            _ => (0..usize::from(self.input.byte()) % 41).for_each(|_| b.push(self.input.byte())),
        }
        if self.input.byte() > 250 {
            b.truncate(usize::from(self.input.byte()));
        }
        b
    }

    /// Records of a batch; the last may lie about its length.
    fn batch(&mut self) -> Vec<u8> {
        let mut b = Vec::new();
        for _ in 0..1 + self.input.byte() % 4 {
            let len = self.input.byte() % 40;
            let said = if self.input.byte() > 240 { self.input.number() as u16 } else { u16::from(len) };
            b.extend([self.input.byte() & 0x30, 0]);
            b.extend(said.to_le_bytes());
            b.extend(self.input.number().to_le_bytes());
            b.extend(std::iter::repeat_n(7, usize::from(len)));
        }
        b
    }

    /// Something that the user of the machine does.
    fn user(&mut self) {
        let peers = self.machine.peers();
        let peer = peers.get(usize::from(self.input.byte()) % peers.len().max(1)).copied();
        let options = self.input.byte();
        let options = SendOptions {
            tag: (options & 1 != 0).then_some(5),
            ordered: options & 2 != 0,
            delivered: options & 4 != 0,
        };
        let (what, len) = (self.input.byte(), (self.input.number() % 20_000) as usize);
        let io = io!(self);
        let started = match (what % 8, peer) {
            (0, from) => self.machine.recv(
                io,
                Want {
                    tag: (what & 64 != 0).then_some((5, u64::from(what))),
                    from: from.filter(|_| what & 32 != 0),
                },
                None,
            ),
            (1, Some(p)) => self.machine.send(io, p, Payload::Bytes(&vec![1; len]), options).map(begun),
            (2, Some(p)) => self.machine.send(io, p, Payload::Buffer(Buffer::adopt(vec![2; len])), options).map(begun),
            (3, Some(p)) => self.machine.read(io, p, &self.key, 5, Buffer::adopt(vec![0; len]), Some(3)),
            (4, Some(p)) => self.machine.write(io, p, &self.key, 5, Payload::Bytes(&vec![3; len]), Some(4)).map(begun),
            (5, _) => {
                let text = ["fake:a", "fake:b", "fake:nowhere,fake:c", "other:x"][len % 4];
                let _ = self.machine.peer(io, &text.parse::<Address>().unwrap());
                return;
            }
            (7, _) => self.machine.recv_notice(self.window),
            (6, _) if !self.ops.is_empty() => {
                let op = self.ops[len % self.ops.len()];
                self.machine.cancel(io, op, Kind::Canceled);
                return;
            }
            _ => return,
        };
        if let Ok(Started::Pending(op)) = started {
            self.ops.push(op);
        }
    }

    /// All connections break and nobody answers any more; then the endpoint closes: every operation has ended, once.
    fn end(mut self) {
        {
            let mut w = self.wire.lock().unwrap();
            w.full = false;
            for conn in w.conns.clone() {
                down(&mut w, conn, DownReason::Broken);
            }
        }
        self.poll();
        let in_use = self.pool.stats().in_use;
        assert!(in_use <= 64 << 20, "{in_use} bytes are held for peers that are gone");
        self.machine.close(io!(self));
        self.poll();
        for op in &self.ops {
            assert!(self.machine.take(*op).is_some(), "{op:?} has not ended: {}", self.machine.describe(*op));
            assert!(self.machine.take(*op).is_none(), "{op:?} ended twice");
        }
        assert_eq!(self.machine.stats().ops, 0);
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut play = Play::new(bytes);
    while !play.input.0.is_empty() {
        play.step();
    }
    play.end();
});

/// A send or write as if it handed something over.
fn begun(op: Option<OpId>) -> Started {
    op.map_or(Started::Done(Outcome::Unit), Started::Pending)
}
