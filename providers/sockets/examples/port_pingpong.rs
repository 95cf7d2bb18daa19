//! What a port costs over the bare socket: ping-pong and stream, raw TCP beside two ports, in two threads pinned to cores 0
//! and 1. Prints medians of interleaved rounds and their ratios. Run it in release mode on a quiet machine:
//! `cargo run --release -p kfab-sockets --example port_pingpong`.

use kfab_core::mem::{Buffer, Landing};
use kfab_core::spi::{Body, Conn, Event, Frame, HEADER_LEN, Inline, Port, PortConfig, Provider};
use kfab_sockets::Sockets;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const ROUNDS: usize = 9;

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(e) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("not pinned to core {cpu}: {e}");
    }
}

fn read_all(s: &mut TcpStream, buf: &mut [u8]) {
    let mut at = 0;
    while at < buf.len() {
        match s.read(&mut buf[at..]) {
            Ok(0) => panic!("the peer hung up"),
            Ok(n) => at += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e}"),
        }
    }
}

fn write_all(s: &mut TcpStream, buf: &[u8]) {
    let mut at = 0;
    while at < buf.len() {
        match s.write(&buf[at..]) {
            Ok(n) => at += n,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(e) => panic!("{e}"),
        }
    }
}

/// Runs `a` here on core 0 and `b` on core 1; what `a` measured.
fn both<T>(a: impl FnOnce() -> T, b: impl FnOnce() + Send) -> T {
    let placed = std::sync::Barrier::new(2);
    std::thread::scope(|s| {
        s.spawn(|| {
            pin(1);
            placed.wait();
            b();
        });
        placed.wait();
        pin(0);
        a()
    })
}

fn raw_pair() -> (TcpStream, TcpStream) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let a = TcpStream::connect(l.local_addr().unwrap()).unwrap();
    let b = l.accept().unwrap().0;
    for s in [&a, &b] {
        s.set_nodelay(true).unwrap();
        s.set_nonblocking(true).unwrap();
    }
    (a, b)
}

/// One way, in seconds.
fn raw_pingpong(size: usize, n: usize) -> f64 {
    let (mut a, mut b) = raw_pair();
    let mut mine = vec![1; size];
    both(
        || {
            let start = Instant::now();
            for _ in 0..n {
                write_all(&mut a, &mine);
                read_all(&mut a, &mut mine);
            }
            start.elapsed().as_secs_f64() / n as f64 / 2.0
        },
        || {
            let mut buf = vec![2; size];
            for _ in 0..n {
                read_all(&mut b, &mut buf);
                write_all(&mut b, &buf);
            }
        },
    )
}

/// Bytes per second.
fn raw_stream(size: usize, n: usize) -> f64 {
    let (mut a, mut b) = raw_pair();
    let mine = vec![1; size];
    both(
        || {
            let start = Instant::now();
            (0..n).for_each(|_| write_all(&mut a, &mine));
            read_all(&mut a, &mut [0]);
            (size * n) as f64 / start.elapsed().as_secs_f64()
        },
        || {
            let mut buf = vec![2; size];
            (0..n).for_each(|_| read_all(&mut b, &mut buf));
            write_all(&mut b, &[1]);
        },
    )
}

struct Side {
    port: Box<dyn Port>,
    conn: Conn,
    events: Vec<Event>,
    start: Instant,
}

impl Side {
    fn poll(&mut self) {
        let now = self.start.elapsed().as_nanos() as u64;
        self.port.poll(now, &mut self.events);
    }

    fn post(&mut self, inline: &[u8], body: Body<'_>, more: bool) {
        let f = Frame { header: [0; HEADER_LEN], inline: Inline::new(inline).unwrap(), body, more };
        while self.port.post(self.conn, &[f]) == 0 {
            self.poll();
        }
    }

    /// Polls until `n` frames are whole; their bodies land in `room`.
    fn receive(&mut self, mut n: usize, room: &mut Option<Landing>) {
        while n > 0 {
            self.poll();
            let mut events = std::mem::take(&mut self.events);
            for e in events.drain(..) {
                match e {
                    Event::Frame { body_len: 0, .. } => n -= 1,
                    Event::Frame { conn, .. } => {
                        if let Some(l) = self.port.take(conn, room.take()) {
                            (*room, n) = (l, n - 1);
                        }
                    }
                    Event::Taken { landing, ok: true, .. } => (*room, n) = (landing, n - 1),
                    Event::Writable { .. } => {}
                    e => panic!("{e:?}"),
                }
            }
            self.events = events;
        }
    }
}

fn port_pair(config: &PortConfig) -> (Side, Side) {
    let (mut a, mut b) = (Sockets.open(config).unwrap(), Sockets.open(config).unwrap());
    let ab = a.connect(&b.ways()[0]).unwrap();
    let start = Instant::now();
    let (mut up, mut ba) = (false, None);
    while !up || ba.is_none() {
        let now = start.elapsed().as_nanos() as u64;
        let mut events = Vec::new();
        a.poll(now, &mut events);
        up |= events.iter().any(|e| matches!(e, Event::Up { .. }));
        events.clear();
        b.poll(now, &mut events);
        ba = ba.or(events.iter().find_map(|e| match e {
            Event::Incoming { conn } => Some(*conn),
            _ => None,
        }));
        assert!(start.elapsed() < Duration::from_secs(5), "no connection");
    }
    let side = |port, conn| Side { port, conn, events: Vec::new(), start };
    (side(a, ab), side(b, ba.unwrap()))
}

fn room(size: usize) -> Option<Landing> {
    Landing::whole(Buffer::adopt(vec![0; size])).ok()
}

fn port_pingpong(config: &PortConfig, size: usize, n: usize) -> f64 {
    let (mut a, mut b) = port_pair(config);
    let serve = |side: &mut Side, first: bool| {
        let source = [Buffer::adopt(vec![3; size]).as_source()];
        let (inline, body) =
            if size <= 40 { (&[7; 40][..size], Body::Empty) } else { (&[][..], Body::Owned(&source)) };
        let mut room = room(size);
        for _ in 0..n {
            if first {
                side.post(inline, body, false);
                side.receive(1, &mut room);
            } else {
                side.receive(1, &mut room);
                side.post(inline, body, false);
            }
        }
    };
    both(
        || {
            let start = Instant::now();
            serve(&mut a, true);
            start.elapsed().as_secs_f64() / n as f64 / 2.0
        },
        || {
            serve(&mut b, false);
            let end = Instant::now();
            while end.elapsed() < Duration::from_millis(20) {
                b.poll();
            }
        },
    )
}

/// Bytes per second in pieces of `piece`, from owned memory into landings.
fn port_stream(config: &PortConfig, piece: usize, n: usize) -> f64 {
    let (mut a, mut b) = port_pair(config);
    both(
        || {
            let source = [Buffer::adopt(vec![3; piece]).as_source()];
            let start = Instant::now();
            (0..n).for_each(|_| a.post(&[], Body::Owned(&source), false));
            a.receive(1, &mut None);
            (piece * n) as f64 / start.elapsed().as_secs_f64()
        },
        || {
            b.receive(n, &mut room(piece));
            b.post(&[1], Body::Empty, false);
            std::thread::sleep(Duration::from_millis(20));
        },
    )
}

/// Frames of 8 bytes per second, coalesced, an answer to each 64.
fn port_rate(config: &PortConfig, n: usize) -> f64 {
    let (mut a, mut b) = port_pair(config);
    both(
        || {
            let start = Instant::now();
            for _ in 0..n / 64 {
                (0..64).for_each(|_| a.post(&[7; 8], Body::Empty, true));
                a.poll();
            }
            a.receive(1, &mut None);
            n as f64 / start.elapsed().as_secs_f64()
        },
        || {
            b.receive(n / 64 * 64, &mut None);
            b.post(&[1], Body::Empty, false);
            std::thread::sleep(Duration::from_millis(20));
        },
    )
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// Medians of interleaved rounds; the best rounds beside them, which a busy machine disturbs less. Seconds are
/// better few (`unit` above 1), bytes per second better many.
fn compare(what: &str, unit: f64, raw: impl Fn() -> f64, ours: impl Fn() -> f64) {
    let (mut r, mut o) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        r.push(raw());
        o.push(ours());
    }
    let best =
        |v: &[f64]| v.iter().copied().reduce(if unit > 1.0 { f64::min } else { f64::max }).unwrap_or(0.0);
    let (rb, ob) = (best(&r), best(&o));
    let (r, o) = (median(r), median(o));
    println!(
        "{what:<38} raw {:>8.3} port {:>8.3} ratio {:.3}   best: raw {:>8.3} port {:>8.3} ratio {:.3}",
        r * unit,
        o * unit,
        o / r,
        rb * unit,
        ob * unit,
        ob / rb
    );
}

fn main() {
    let plain = PortConfig::default();
    let key = kfab_core::auth::FabricKey::from_bytes([1; 32]);
    let sealed = PortConfig { key: Some(key), ..PortConfig::default() };
    let wanted = std::env::args().nth(1).unwrap_or_else(|| "latency stream rate sealed".to_owned());
    let rate = |c: &PortConfig| median((0..ROUNDS).map(|_| port_rate(c, 300_000)).collect()) / 1e6;
    if wanted.contains("latency") {
        compare("8 B one way, us", 1e6, || raw_pingpong(8, 3_000), || port_pingpong(&plain, 8, 3_000));
        compare(
            "32 B raw against 8 B port, us",
            1e6,
            || raw_pingpong(32, 3_000),
            || port_pingpong(&plain, 8, 3_000),
        );
        compare(
            "64 KiB one way, us",
            1e6,
            || raw_pingpong(65_536, 500),
            || port_pingpong(&plain, 65_536, 500),
        );
    }
    if wanted.contains("stream") {
        for piece in [64, 256, 512, 1024] {
            let n = (128 << 10) / piece;
            let what = format!("stream in {piece} KiB, GB/s (raw 1 MiB)");
            compare(&what, 1e-9, || raw_stream(1 << 20, 128), || port_stream(&plain, piece << 10, n));
        }
    }
    if wanted.contains("rate") {
        println!("8 B frames coalesced, M/s: {:.2}", rate(&plain));
    }
    if wanted.contains("sealed") {
        println!("8 B frames coalesced and sealed, M/s: {:.2}", rate(&sealed));
        compare(
            "sealed 8 B one way, us",
            1e6,
            || raw_pingpong(8, 3_000),
            || port_pingpong(&sealed, 8, 3_000),
        );
        compare(
            "sealed 64 KiB one way, us",
            1e6,
            || raw_pingpong(65_536, 500),
            || port_pingpong(&sealed, 65_536, 500),
        );
    }
}
