//! What the tests share: a port with its events, two of them driven in turn, and a watchdog.
#![allow(dead_code, unreachable_pub)]

use kfab_core::auth::FabricKey;
use kfab_core::mem::{Buffer, Landing};
use kfab_core::spi::{
    Body, Conn, DownReason, Event, Frame, HEADER_LEN, Inline, Next, Port, PortConfig, Provider, Small, Way,
};
use kfab_sockets::Sockets;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Nothing in these tests may take longer.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A port and what it reported.
pub struct Side {
    pub port: Box<dyn Port>,
    pub events: VecDeque<Event>,
    start: Instant,
    turns: u64,
}

/// What arrived, body and all.
#[derive(Debug, PartialEq, Eq, Clone)]
pub struct Got {
    pub conn: Conn,
    pub header: [u8; HEADER_LEN],
    pub inline: Vec<u8>,
    pub body: Vec<u8>,
}

pub fn config() -> PortConfig {
    PortConfig { connect_timeout: Duration::from_secs(3), ..PortConfig::default() }
}

pub fn keyed(byte: u8, encrypt: bool) -> PortConfig {
    PortConfig { key: Some(FabricKey::from_bytes([byte; 32])), encrypt, ..config() }
}

impl Side {
    pub fn new(config: &PortConfig) -> Side {
        let port = Sockets.open(config).expect("open a port");
        Side { port, events: VecDeque::new(), start: Instant::now(), turns: 0 }
    }

    pub fn way(&self) -> Way {
        self.port.ways().first().cloned().expect("a way")
    }

    pub fn addr(&self) -> std::net::SocketAddr {
        self.way().rest.parse().expect("an address")
    }

    /// A round: by the short way and in full in turn, as the caller of a port does.
    pub fn poll(&mut self) -> bool {
        self.turns += 1;
        if self.turns.is_multiple_of(2) {
            match self.short() {
                Next::Frame => return true,
                Next::Nothing => return false,
                Next::Poll => {}
            }
        }
        self.poll_fully()
    }

    /// The short way up; a frame is in `events` then.
    pub fn short(&mut self) -> Next {
        let mut small = Small::EMPTY;
        let next = self.port.next_small(self.start.elapsed().as_nanos() as u64, &mut small);
        if next == Next::Frame {
            let mut header = [0; HEADER_LEN];
            header[..8].copy_from_slice(&small.header[0].to_ne_bytes());
            header[8..].copy_from_slice(&small.header[1].to_ne_bytes());
            let Small { conn, inline, .. } = small;
            self.events.push_back(Event::Frame { conn, header, inline, body_len: 0 });
        }
        next
    }

    pub fn poll_fully(&mut self) -> bool {
        let mut events = Vec::new();
        let moved = self.port.poll(self.start.elapsed().as_nanos() as u64, &mut events);
        self.events.extend(events);
        moved
    }

    /// The next event, if one has been reported.
    pub fn next(&mut self) -> Option<Event> {
        self.poll();
        self.events.pop_front()
    }

    /// Posts one frame; the test fails if it is refused.
    pub fn send(&mut self, conn: Conn, n: u64, inline: &[u8], body: Body<'_>) {
        assert_eq!(self.port.post(conn, &[frame(n, inline, body, false)]), 1, "refused");
    }

    /// Turns a frame event into its contents, taking the body into memory of `room` bytes.
    pub fn receive(&mut self, e: Event) -> Pending {
        let Event::Frame { conn, header, inline, body_len } = e else { panic!("not a frame: {e:?}") };
        let mut got = Got { conn, header, inline: inline.as_slice().to_vec(), body: Vec::new() };
        if body_len == 0 {
            return Pending::Done(got);
        }
        match self.port.take(conn, Some(landing(body_len))) {
            Some(l) => {
                got.body = l.expect("a landing").into_buffer().expect("a whole buffer").to_vec();
                Pending::Done(got)
            }
            None => Pending::Waiting(got),
        }
    }
}

pub enum Pending {
    Done(Got),
    Waiting(Got),
}

pub fn landing(len: usize) -> Landing {
    Landing::whole(Buffer::adopt(vec![0xEE; len])).expect("sole owner")
}

pub fn header(n: u64) -> [u8; HEADER_LEN] {
    let mut h = [0; HEADER_LEN];
    h[..8].copy_from_slice(&n.to_le_bytes());
    h[8..].copy_from_slice(&(!n).to_le_bytes());
    h
}

pub fn frame<'a>(n: u64, inline: &[u8], body: Body<'a>, more: bool) -> Frame<'a> {
    Frame { header: header(n), inline: Inline::new(inline).expect("inline fits"), body, more }
}

pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(31) ^ (i >> 8) ^ seed.wrapping_mul(17)) as u8).collect()
}

/// Calls `f` until it gives something; fails after [`LIMIT`].
pub fn until<T>(what: &str, mut f: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(t) = f() {
            return t;
        }
        assert!(start.elapsed() < LIMIT, "{what}: nothing after {LIMIT:?}");
    }
}

/// Two ports with one connection between them.
pub struct Pair {
    pub a: Side,
    pub b: Side,
    pub ab: Conn,
    pub ba: Conn,
}

impl Pair {
    pub fn new(config: &PortConfig) -> Pair {
        Pair::of(Side::new(config), Side::new(config))
    }

    pub fn of(mut a: Side, mut b: Side) -> Pair {
        let ab = a.port.connect(&b.way()).expect("connect");
        let (mut up, mut ba) = (false, None);
        until("the connection", || {
            match a.next() {
                Some(Event::Up { conn }) if conn == ab => up = true,
                Some(e) => panic!("{e:?}"),
                None => {}
            }
            match b.next() {
                Some(Event::Incoming { conn }) => ba = Some(conn),
                Some(e) => panic!("{e:?}"),
                None => {}
            }
            ba.filter(|_| up)
        });
        Pair { a, b, ab, ba: ba.expect("incoming") }
    }

    /// Polls both until `b` has received `n` frames, taking their bodies.
    pub fn receive(&mut self, n: usize) -> Vec<Got> {
        let (a, b) = (&mut self.a, &mut self.b);
        drive(a, b, n)
    }
}

/// Polls both until `b` has received `n` frames, taking their bodies.
pub fn drive(a: &mut Side, b: &mut Side, n: usize) -> Vec<Got> {
    let mut out: Vec<Got> = Vec::new();
    let mut waiting = None;
    until("frames", || {
        a.poll();
        while out.len() < n {
            match b.next() {
                None => break,
                Some(Event::Taken { landing, ok, conn }) => {
                    assert!(ok);
                    let mut got: Got = waiting.take().expect("a body was awaited");
                    assert_eq!(got.conn, conn);
                    got.body = landing.expect("a landing").into_buffer().expect("a whole buffer").to_vec();
                    out.push(got);
                }
                Some(Event::Writable { .. }) => {}
                Some(e) => match b.receive(e) {
                    Pending::Done(g) => out.push(g),
                    Pending::Waiting(g) => waiting = Some(g),
                },
            }
        }
        (out.len() == n).then_some(())
    });
    out
}

/// Waits for the end of a connection on one side while driving both.
pub fn down(what: &str, side: &mut Side, other: &mut Side) -> (DownReason, String) {
    until(what, || {
        other.poll();
        match side.next() {
            Some(Event::Down { reason, detail, .. }) => Some((reason, detail)),
            _ => None,
        }
    })
}
