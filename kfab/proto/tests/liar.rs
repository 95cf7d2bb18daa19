//! A peer that speaks the protocol and sends without credit: it is given up before it fills our memory, and others are served.

use kfab_core::mem::{Pool, PoolConfig};
use kfab_core::spi::{Address, Body, Conn, Delivery, Event, Frame, Inline, Port};
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

const EAGER: u8 = 1;
const BATCH: u8 = 2;
const HELLO: u8 = 0;
const RTS: u8 = 3;
const CTS: u8 = 4;
const PIECE: u8 = 5;
const DONE: u8 = 6;
const ACK: u8 = 7;
const READ: u8 = 10;
const NOTICE: u8 = 12;

/// A header: kind, sequence number.
fn header(kind: u8, seq: u32) -> [u8; 16] {
    let mut h = [0; 16];
    h[..4].copy_from_slice(&(u32::from(kind) | seq << 8).to_le_bytes());
    h
}

fn hello() -> Inline {
    let mut b = b"kfab".to_vec();
    b.extend(VERSION.to_le_bytes());
    b.extend(0u16.to_le_bytes());
    b.extend(99u64.to_le_bytes());
    b.extend(1024u32.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    b.extend(4096u32.to_le_bytes());
    b.extend(5u64.to_le_bytes());
    b.extend(4096u32.to_le_bytes());
    Inline::new(&b).expect("a hello fits")
}

/// A machine, and a port that somebody speaks through who keeps to no rules.
struct Stage {
    world: World,
    ports: Vec<Box<dyn Port>>,
    pool: Pool,
    machine: Machine,
    liar: Box<dyn Port>,
    conn: Conn,
    greeted: bool,
}

impl Stage {
    fn new() -> Stage {
        let world = World::new(3, WorldConfig::new(Delivery::Connection));
        let ports = vec![world.port(0, 0)];
        let mut liar = world.port(1, 0);
        let mut machine = Machine::new(Limits::default(), 1, false);
        machine.set_address(&Address::new(ports[0].ways()));
        let conn = liar.connect(&ports[0].ways()[0]).unwrap();
        let pool = Pool::new(PoolConfig::default());
        Stage { world, ports, pool, machine, liar, conn, greeted: false }
    }

    /// The liar says hello and takes what comes: the headers of it.
    fn hear(&mut self) -> Vec<[u8; 16]> {
        let (mut events, mut headers) = (Vec::new(), Vec::new());
        self.liar.poll(self.world.now() + 1, &mut events);
        for e in events {
            match e {
                Event::Up { .. } => drop(self.say(header(HELLO, 0), hello(), b"sim:1.0")),
                Event::Frame { conn, header, body_len, .. } => {
                    self.greeted = true;
                    headers.push(header);
                    if body_len > 0 {
                        self.liar.take(conn, None);
                    }
                }
                _ => {}
            }
        }
        headers
    }

    fn say(&mut self, header: [u8; 16], inline: Inline, body: &[u8]) -> bool {
        let body = if body.is_empty() { Body::Empty } else { Body::Borrowed(body) };
        self.liar.post(self.conn, &[Frame { header, inline, body, more: false }]) == 1
    }

    fn with<R>(&mut self, f: impl FnOnce(&mut Machine, &mut Io<'_>) -> R) -> R {
        let now = self.world.now() + 1;
        f(&mut self.machine, &mut Io { ports: &mut self.ports, now, pool: &self.pool })
    }

    /// Why the liar was given up, if it was.
    fn lost(&mut self) -> Option<String> {
        self.machine.drain_events().0.into_iter().find_map(|e| match e {
            FabricEvent::PeerLost { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

/// What a liar sends.
struct Lie {
    kind: u8,
    inline: Inline,
    body: Vec<u8>,
    /// Frames in a step of 5 us.
    at_once: usize,
}

/// Such frames without end, none of theirs acknowledged; how many messages waited at most, and why the peer was given up.
fn lie(lie: Lie) -> (usize, String) {
    let mut s = Stage::new();
    let (mut seq, mut most) = (0, 0);
    for _ in 0..20_000 {
        s.hear();
        for _ in 0..lie.at_once {
            if s.greeted && s.say(header(lie.kind, seq), lie.inline, &lie.body) {
                seq = (seq + 1) % (1 << 24);
            }
        }
        s.with(|m, io| m.poll(io));
        most = most.max(s.machine.stats().unexpected);
        if let Some(reason) = s.lost() {
            assert_eq!(s.machine.stats().unacked, 0);
            return (most, reason);
        }
        s.world.advance(5_000);
    }
    panic!("{seq} frames, {most} messages wait, and nobody minds");
}

#[test]
fn who_sends_without_credit_is_given_up() {
    let limits = Limits::default();
    for len in [8, 8192] {
        let (inline, body) = match Inline::new(&vec![7; len]) {
            Some(few) => (few, Vec::new()),
            None => (Inline::EMPTY, vec![7; len]),
        };
        let (most, why) = lie(Lie { kind: EAGER, inline, body, at_once: 1 });
        assert!(why.contains("credit"), "{why}");
        assert_eq!(most as u32, limits.credits / limits.units(len), "{len} bytes");
    }
}

#[test]
fn who_wants_answers_and_acknowledges_none_is_given_up() {
    // A window that there is not, length 0: each is denied.
    let inline = Inline::new(&[3; 32]).unwrap();
    let (_, why) = lie(Lie { kind: READ, inline, body: Vec::new(), at_once: 32 });
    assert!(why.contains("acknowledges"), "{why}");
}

/// Promises a message, answers everything but the call for its bytes. Its receive is over; what it holds is freed in the end.
#[test]
fn a_promise_that_is_not_kept_holds_no_memory_when_its_receive_is_over() {
    const LEN: usize = 1 << 20;
    let mut promise = LEN.to_le_bytes()[..6].to_vec();
    promise.extend([0; 34]);
    let promise = Inline::new(&promise).unwrap();
    for dropped in [false, true] {
        let mut s = Stage::new();
        let (mut promised, mut called, mut op, mut over) = (false, 0u16, None, None);
        let freed_after = loop {
            let headers = s.hear();
            called += headers.iter().filter(|h| h[0] & 15 == CTS).count() as u16;
            if s.greeted && !promised {
                promised = s.say(header(RTS, 0), promise, &[]);
            }
            if !headers.is_empty() {
                let mut answer = header(ACK, 0);
                answer[4..6].copy_from_slice(&called.to_le_bytes());
                s.say(answer, Inline::EMPTY, &[]);
            }
            s.with(|m, io| m.poll(io));
            if op.is_none() && s.machine.stats().unexpected == 1 {
                let Started::Pending(id) = s.with(|m, io| m.recv(io, Want::default(), None)).unwrap() else {
                    panic!("nothing has come")
                };
                op = Some(id);
            }
            let now = s.world.now();
            if let (Some(id), None, 1) = (op, over, called) {
                assert_eq!(s.pool.stats().in_use, LEN);
                over = Some(now);
                if dropped {
                    s.with(|m, io| m.detach(io, id));
                } else {
                    assert!(s.with(|m, io| m.cancel(io, id, kfab_core::Kind::TimedOut)));
                    assert!(s.machine.take(id).unwrap().is_err());
                }
            }
            if let Some(since) = over.filter(|_| s.pool.stats().in_use == 0) {
                break now - since;
            }
            assert!(now < 200_000_000_000, "{:?}", s.machine.stats());
            s.world.advance(1_000_000);
        };
        assert_eq!((s.machine.stats().ops, s.lost()), (0, None));
        assert!((50_000_000_000..70_000_000_000).contains(&freed_after), "{freed_after} ns");
    }
}

/// Frames of every kind with something reserved in them, each with its twin that has zero there.
#[test]
fn who_sets_what_is_reserved_is_given_up() {
    const RECORD: usize = 12;
    let cases: [(u8, usize, usize, usize, &str); 5] = [
        // Kind, bytes inline, bytes of body, which byte of both is reserved.
        (PIECE, 16, 1024, 12, "a bad piece"),
        (DONE, 16, 0, 15, "a bad end of operation"),
        (NOTICE, 32, 0, 28, "a bad notice"),
        (BATCH, 0, RECORD, 1, "a bad batch"),
        (BATCH, 0, RECORD, 0, "a bad batch"),
    ];
    for (kind, inline, body, reserved, why) in cases {
        for lies in [false, true] {
            let mut bytes = vec![0; inline + body];
            bytes[reserved] |= u8::from(lies);
            if kind == NOTICE {
                // Of a write.
                bytes[24] = 2;
            }
            let (mut s, mut said) = (Stage::new(), false);
            for _ in 0..100 {
                s.hear();
                if s.greeted && !said {
                    said = s.say(header(kind, 0), Inline::new(&bytes[..inline]).unwrap(), &bytes[inline..]);
                }
                s.with(|m, io| m.poll(io));
                s.world.advance(100_000);
            }
            let lost = s.lost();
            assert!(said && lost.is_some() == lies, "{kind}: {lost:?}");
            assert!(lost.is_none_or(|l| l.contains(why)), "{kind}");
        }
    }
}
