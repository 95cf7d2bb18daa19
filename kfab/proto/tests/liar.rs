//! A peer that speaks the protocol and sends without credit: it is given up before it fills our memory, and others are served.

use kfab_core::mem::{Pool, PoolConfig};
use kfab_core::spi::{Address, Body, Conn, Delivery, Event, Frame, Inline, Port};
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

const EAGER: u8 = 1;
const HELLO: u8 = 0;
const READ: u8 = 10;

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

fn post(port: &mut dyn Port, conn: Conn, header: [u8; 16], inline: Inline, body: &[u8]) -> bool {
    let body = if body.is_empty() { Body::Empty } else { Body::Borrowed(body) };
    port.post(conn, &[Frame { header, inline, body, more: false }]) == 1
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
    let world = World::new(3, WorldConfig::new(Delivery::Connection));
    let mut ports = vec![world.port(0, 0)];
    let mut liar = world.port(1, 0);
    let pool = Pool::new(PoolConfig::default());
    let mut machine = Machine::new(Limits::default(), 1, false);
    machine.set_address(&Address::new(ports[0].ways()));
    let conn = liar.connect(&ports[0].ways()[0]).unwrap();
    let (mut greeted, mut seq, mut most) = (false, 0, 0);
    for _ in 0..20_000 {
        let now = world.now() + 1;
        let mut events = Vec::new();
        liar.poll(now, &mut events);
        for e in events {
            match e {
                Event::Up { conn } => drop(post(&mut *liar, conn, header(HELLO, 0), hello(), b"sim:1.0")),
                Event::Frame { conn, body_len, .. } => {
                    greeted = true;
                    if body_len > 0 {
                        liar.take(conn, None);
                    }
                }
                _ => {}
            }
        }
        for _ in 0..lie.at_once {
            if greeted && post(&mut *liar, conn, header(lie.kind, seq), lie.inline, &lie.body) {
                seq = (seq + 1) % (1 << 24);
            }
        }
        machine.poll(&mut Io { ports: &mut ports, now, pool: &pool });
        most = most.max(machine.stats().unexpected);
        let lost = machine.drain_events().0.into_iter().find_map(|e| match e {
            FabricEvent::PeerLost { reason, .. } => Some(reason),
            _ => None,
        });
        if let Some(reason) = lost {
            assert_eq!(machine.stats().unacked, 0);
            return (most, reason);
        }
        world.advance(5_000);
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
    const RTS: u8 = 3;
    const ACK: u8 = 7;
    const LEN: u64 = 1 << 20;
    for dropped in [false, true] {
        let world = World::new(3, WorldConfig::new(Delivery::Connection));
        let mut ports = vec![world.port(0, 0)];
        let mut liar = world.port(1, 0);
        let pool = Pool::new(PoolConfig::default());
        let mut machine = Machine::new(Limits::default(), 1, false);
        machine.set_address(&Address::new(ports[0].ways()));
        let conn = liar.connect(&ports[0].ways()[0]).unwrap();
        let mut promise = LEN.to_le_bytes()[..6].to_vec();
        promise.extend([0; 34]);
        let (mut greeted, mut promised, mut acked, mut op, mut over) = (false, false, 0u16, None, None);
        let freed_after = loop {
            let now = world.now() + 1;
            let (mut events, mut news) = (Vec::new(), false);
            liar.poll(now, &mut events);
            for e in events {
                match e {
                    Event::Up { conn } => drop(post(&mut *liar, conn, header(HELLO, 0), hello(), b"sim:1.0")),
                    Event::Frame { conn, header, body_len, .. } => {
                        (greeted, news) = (true, true);
                        acked += u16::from(![HELLO, ACK, 8, 11].contains(&(header[0] & 15)));
                        if body_len > 0 {
                            liar.take(conn, None);
                        }
                    }
                    _ => {}
                }
            }
            if greeted && !promised {
                promised = post(&mut *liar, conn, header(RTS, 0), Inline::new(&promise).unwrap(), &[]);
            }
            if news {
                let mut answer = header(ACK, 0);
                answer[4..6].copy_from_slice(&acked.to_le_bytes());
                post(&mut *liar, conn, answer, Inline::EMPTY, &[]);
            }
            let mut io = Io { ports: &mut ports, now, pool: &pool };
            machine.poll(&mut io);
            if promised && op.is_none() && machine.stats().unexpected == 1 {
                let Ok(Started::Pending(id)) = machine.recv(&mut io, Want::default(), None) else { panic!() };
                op = Some(id);
            }
            if let (Some(id), None, true) = (op, over, acked == 1) {
                assert_eq!(pool.stats().in_use, LEN as usize);
                over = Some(now);
                if dropped {
                    machine.detach(&mut io, id);
                } else {
                    assert!(machine.cancel(&mut io, id, kfab_core::Kind::TimedOut));
                    assert!(machine.take(id).unwrap().is_err());
                }
            }
            if let Some(since) = over.filter(|_| pool.stats().in_use == 0) {
                break now - since;
            }
            assert!(now < 200_000_000_000, "{:?}", machine.stats());
            world.advance(1_000_000);
        };
        assert_eq!(machine.stats().ops, 0);
        assert!((50_000_000_000..70_000_000_000).contains(&freed_after), "{freed_after} ns");
        let lost = |e: &FabricEvent| matches!(e, FabricEvent::PeerLost { .. });
        assert!(!machine.drain_events().0.iter().any(lost), "it was given up altogether");
    }
}
