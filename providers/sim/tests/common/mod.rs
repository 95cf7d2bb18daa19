//! Two or more ports driven in virtual time, with everything they reported kept.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use kfab_core::mem::{Buffer, Landing};
use kfab_core::spi::{Body, Conn, DownReason, Event, Frame, Inline, Port};
use kfab_sim::World;

/// A port and what it reported; bodies are taken as they come.
pub struct Node {
    pub port: Option<Box<dyn Port>>,
    pub frames: Vec<(Conn, u32, Vec<u8>)>,
    pub up: Vec<Conn>,
    pub incoming: Vec<Conn>,
    pub down: Vec<(Conn, DownReason)>,
    pub writable: usize,
    pub rma: Vec<(u64, Option<Vec<u8>>, bool)>,
    pub broken_takes: usize,
    pending: Vec<(Conn, u32)>,
}

pub fn number(header: &[u8; 16]) -> u32 {
    u32::from_le_bytes([header[0], header[1], header[2], header[3]])
}

pub fn header(n: u32) -> [u8; 16] {
    let mut h = [0x5a; 16];
    h[..4].copy_from_slice(&n.to_le_bytes());
    h
}

/// The body that goes with a number.
pub fn body(n: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (n as usize * 31 + i * 7) as u8).collect()
}

impl Node {
    pub fn new(port: Box<dyn Port>) -> Node {
        Node {
            port: Some(port),
            frames: Vec::new(),
            up: Vec::new(),
            incoming: Vec::new(),
            down: Vec::new(),
            writable: 0,
            rma: Vec::new(),
            broken_takes: 0,
            pending: Vec::new(),
        }
    }

    pub fn port(&mut self) -> &mut dyn Port {
        self.port.as_mut().unwrap().as_mut()
    }

    pub fn poll(&mut self) -> bool {
        let mut events = Vec::new();
        let busy = self.port().poll(0, &mut events);
        assert_eq!(busy, !events.is_empty());
        events.into_iter().for_each(|e| self.on(e));
        busy
    }

    fn on(&mut self, e: Event) {
        match e {
            Event::Up { conn } => self.up.push(conn),
            Event::Incoming { conn } => self.incoming.push(conn),
            Event::Down { conn, reason, .. } => {
                assert!(self.pending.iter().all(|(c, _)| *c != conn), "Down before Taken");
                assert!(self.down.iter().all(|(c, _)| *c != conn), "Down twice");
                self.down.push((conn, reason));
            }
            Event::Frame { conn, header, body_len: 0, .. } => {
                self.frames.push((conn, number(&header), Vec::new()))
            }
            Event::Frame { conn, header, body_len, .. } => {
                let landing = Landing::whole(Buffer::adopt(vec![0; body_len])).unwrap();
                match self.port().take(conn, Some(landing)) {
                    Some(l) => self.frames.push((conn, number(&header), bytes(l))),
                    None => self.pending.push((conn, number(&header))),
                }
            }
            Event::Taken { conn, landing, ok } => {
                let at = self.pending.iter().position(|(c, _)| *c == conn).expect("Taken without take");
                let (_, n) = self.pending.remove(at);
                if ok { self.frames.push((conn, n, bytes(landing))) } else { self.broken_takes += 1 }
            }
            Event::RmaDone { token, landing, result } => {
                self.rma.push((token.0, landing.map(|l| bytes(Some(l))), result.is_ok()));
            }
            Event::Writable { .. } => self.writable += 1,
        }
    }

    /// Posts frame `n` with its body; `false` if there is no room.
    pub fn send(&mut self, conn: Conn, n: u32, len: usize) -> bool {
        let b = body(n, len);
        let f = Frame { header: header(n), inline: Inline::EMPTY, body: Body::Borrowed(&b), more: false };
        self.port().post(conn, &[f]) == 1
    }

    pub fn numbers(&self) -> Vec<u32> {
        self.frames.iter().map(|f| f.1).collect()
    }

    /// Asserts that every body is the one of its number.
    pub fn check_bodies(&self) {
        for (_, n, b) in &self.frames {
            assert_eq!(*b, body(*n, b.len()), "frame {n}");
        }
    }
}

fn bytes(l: Option<Landing>) -> Vec<u8> {
    l.unwrap().into_buffer().unwrap().to_vec()
}

/// Polls all until none has anything to report.
pub fn poll_all(nodes: &mut [&mut Node]) {
    let mut busy = true;
    while busy {
        busy = false;
        for n in nodes.iter_mut().filter(|n| n.port.is_some()) {
            busy |= n.poll();
        }
    }
}

/// Steps the world until `done`, or fails after `ns` of virtual time.
pub fn run_until(
    world: &World,
    nodes: &mut [&mut Node],
    ns: u64,
    mut done: impl FnMut(&mut [&mut Node]) -> bool,
) {
    let end = world.now() + ns;
    loop {
        poll_all(nodes);
        if done(nodes) {
            return;
        }
        assert!(world.now() < end, "not done after {ns} ns:\n{}", world.trace().join("\n"));
        if world.next_event().is_none_or(|t| t > end) {
            world.advance(end - world.now());
        } else {
            world.step();
        }
    }
}

/// Lets the world run for `ns`.
pub fn run_for(world: &World, nodes: &mut [&mut Node], ns: u64) {
    let end = world.now() + ns;
    poll_all(nodes);
    while world.next_event().is_some_and(|t| t <= end) {
        world.step();
        poll_all(nodes);
    }
    world.advance(end - world.now());
}

/// Connects `a` to `b`; the names at both ends.
pub fn connect(world: &World, a: &mut Node, b: &mut Node) -> (Conn, Conn) {
    let way = b.port().ways().remove(0);
    let conn = a.port().connect(&way).unwrap();
    let (ups, ins) = (a.up.len(), b.incoming.len());
    run_until(world, &mut [a, b], 1_000_000_000, |n| n[0].up.len() > ups && n[1].incoming.len() > ins);
    assert_eq!(a.up.last(), Some(&conn));
    (conn, *b.incoming.last().unwrap())
}
