//! What the shm port alone costs: two processes on two cores, next to a bare cache line and a bare memcpy of the same run.
//!
//! `cargo run --release -p kfab-shm --example port_pingpong [CORE CORE]`

use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{
    Body, Conn, Event, Frame, HEADER_LEN, Inline, Port, PortConfig, Provider, RemoteKey, Rights, Rma,
    RmaStarted, RmaToken, Way,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const ECHO: u8 = 0;
const COUNT: u8 = 1;
const REPORT: u8 = 2;
const WINDOW: u8 = 3;
const SLEEPY: u8 = 4;
const WINDOW_BYTES: usize = 8 << 20;

/// A port with one connection and a cheap clock.
struct Side {
    port: Box<dyn Port>,
    conn: Conn,
    events: Vec<Event>,
    begun: Instant,
    now_ns: u64,
    polls: u32,
}

impl Side {
    fn new(port: Box<dyn Port>) -> Side {
        Side { port, conn: Conn(0), events: Vec::new(), begun: Instant::now(), now_ns: 1, polls: 0 }
    }

    #[inline]
    fn poll(&mut self) {
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(64) {
            self.now_ns = self.begun.elapsed().as_nanos() as u64 + 1;
        }
        self.events.clear();
        self.port.poll(self.now_ns, &mut self.events);
    }

    fn send(&mut self, kind: u8, inline: &[u8], body: Body<'_>) {
        let header = [kind; HEADER_LEN];
        let f = Frame { header, inline: Inline::new(inline).expect("short"), body, more: false };
        while self.port.post(self.conn, &[f]) == 0 {
            let now = self.begun.elapsed().as_nanos() as u64 + 1;
            self.port.poll(now, &mut self.events);
        }
    }

    /// Spins until a frame comes; `false` when the connection is down.
    fn wait(&mut self, landing: &mut Option<Landing>) -> bool {
        loop {
            self.poll();
            for e in &self.events {
                match e {
                    Event::Frame { body_len, .. } => {
                        if *body_len > 0 {
                            *landing = self.port.take(self.conn, landing.take()).flatten();
                        }
                        return true;
                    }
                    Event::Down { .. } => return false,
                    _ => {}
                }
            }
        }
    }

    fn sleep(&mut self) {
        if self.port.arm() {
            let fd = self.port.fd();
            let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], None);
        }
    }
}

fn pin(core: usize) {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        eprintln!("could not pin to core {core}");
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "serve") {
        return serve(args[2].parse().expect("a core"));
    }
    let core = |i: usize, d| args.get(i).map_or(d, |a| a.parse().expect("a core number"));
    let (mine, theirs) = (core(1, 0), core(2, 1));
    let exe = std::env::current_exe().expect("this program");
    let mut child = Command::new(exe)
        .args(["serve", &theirs.to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the other process");
    let mut way = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut way).expect("its way");
    pin(mine);
    client(&way, mine, theirs);
    child.wait().expect("its end");
}

fn serve(core: usize) {
    pin(core);
    let mut s = Side::new(kfab_shm::Shm.open(&PortConfig::default()).expect("a port"));
    println!("{}", s.port.ways()[0].rest);
    let pool = Pool::new(Default::default());
    let window = pool.alloc_window(WINDOW_BYTES).expect("memory");
    let mut landing = Landing::whole(pool.alloc(64 << 10).expect("memory")).ok();
    let (mut count, mut sleepy) = (0u64, false);
    loop {
        if sleepy {
            s.sleep();
        }
        s.poll();
        for e in std::mem::take(&mut s.events) {
            match e {
                Event::Incoming { conn } => s.conn = conn,
                Event::Down { .. } => return,
                Event::Frame { header, inline, body_len, .. } => match header[0] {
                    COUNT => count += 1,
                    REPORT => s.send(REPORT, &count.to_le_bytes(), Body::Empty),
                    SLEEPY => sleepy = !sleepy,
                    WINDOW => {
                        let x = s
                            .port
                            .expose(&window.as_source(), Rights::READ | Rights::WRITE)
                            .expect("a window");
                        s.send(
                            WINDOW,
                            &[x.key.region.to_le_bytes(), x.key.secret.to_le_bytes()].concat(),
                            Body::Empty,
                        );
                    }
                    _ if body_len == 0 => s.send(ECHO, inline.as_slice(), Body::Empty),
                    _ => {
                        landing = s.port.take(s.conn, landing.take()).flatten();
                        let b = landing.take().and_then(Landing::into_buffer).expect("our buffer");
                        s.send(ECHO, &[], Body::Borrowed(&b[..body_len]));
                        landing = Landing::whole(b).ok();
                    }
                },
                _ => {}
            }
        }
    }
}

fn client(way: &str, mine: usize, theirs: usize) {
    let mut s = Side::new(kfab_shm::Shm.open(&PortConfig::default()).expect("a port"));
    s.conn = s.port.connect(&Way::new("shm", way.trim())).expect("a way");
    while !s.events.iter().any(|e| matches!(e, Event::Up { .. })) {
        s.now_ns = s.begun.elapsed().as_nanos() as u64;
        s.poll();
    }
    let (mut lines, mut eights, mut fours, mut sixtyfours, mut rates) =
        (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..5 {
        lines.push(cache_line(mine, theirs));
        eights.push(latency(&mut s, 0, 200_000));
        fours.push(latency(&mut s, 4096, 50_000));
        sixtyfours.push(latency(&mut s, 64 << 10, 5_000));
        rates.push(rate(&mut s));
    }
    let (line, eight) = (median(lines), median(eights));
    println!("cache line, one way          {line:8.1} ns");
    println!("8 B, one way                 {eight:8.1} ns   {:.2} x the cache line", eight / line);
    println!("4 KiB, one way               {:8.1} ns", median(fours));
    println!("64 KiB, one way              {:8.1} ns", median(sixtyfours));
    println!("8 B rate                     {:8.1} M/s", median(rates));
    bandwidth(&mut s);
    wakeups(&mut s, mine, theirs);
    let conn = s.conn;
    s.port.close(conn);
    while s.wait(&mut None) {}
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// One cache line going to and fro between two threads: what no message can be faster than.
fn cache_line(mine: usize, theirs: usize) -> f64 {
    const N: u64 = 200_000;
    #[repr(align(128))]
    struct Line(AtomicU64);
    let line = Line(AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(theirs);
            for i in 0..N {
                while line.0.load(Ordering::Acquire) != 2 * i + 1 {
                    std::hint::spin_loop();
                }
                line.0.store(2 * i + 2, Ordering::Release);
            }
        });
        pin(mine);
        let mut begun = Instant::now();
        for i in 0..N {
            if i == N / 10 {
                begun = Instant::now();
            }
            line.0.store(2 * i + 1, Ordering::Release);
            while line.0.load(Ordering::Acquire) != 2 * i + 2 {
                std::hint::spin_loop();
            }
        }
        begun.elapsed().as_nanos() as f64 / (N - N / 10) as f64 / 2.0
    })
}

fn latency(s: &mut Side, body: usize, n: u32) -> f64 {
    let data = vec![3; body];
    let mut landing = Landing::whole(Buffer::adopt(vec![0; body.max(1)])).ok();
    let mut begun = Instant::now();
    for i in 0..n + n / 10 {
        if i == n / 10 {
            begun = Instant::now();
        }
        let body = if body == 0 { Body::Empty } else { Body::Borrowed(&data) };
        s.send(ECHO, &u64::from(i).to_le_bytes(), body);
        s.wait(&mut landing);
    }
    begun.elapsed().as_nanos() as f64 / f64::from(n) / 2.0
}

/// Frames of 8 bytes, 16 to a post, until the other side has counted all.
fn rate(s: &mut Side) -> f64 {
    const N: usize = 4_000_000;
    let f = Frame {
        header: [COUNT; HEADER_LEN],
        inline: Inline::new(&[7; 8]).expect("short"),
        body: Body::Empty,
        more: false,
    };
    let frames = [f; 16];
    let begun = Instant::now();
    let mut sent = 0;
    while sent < N {
        let n = s.port.post(s.conn, &frames);
        sent += n;
        if n < frames.len() {
            s.poll();
        }
    }
    s.send(REPORT, &[], Body::Empty);
    s.wait(&mut None);
    sent as f64 / begun.elapsed().as_secs_f64() / 1e6
}

fn bandwidth(s: &mut Side) {
    s.send(WINDOW, &[], Body::Empty);
    let key = loop {
        s.poll();
        if let Some(Event::Frame { inline, .. }) = s.events.first() {
            let b = inline.as_slice();
            let word = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
            break RemoteKey { region: word(0), base: 0, secret: word(8) };
        }
    };
    let pool = Pool::new(Default::default());
    let big = pool.alloc(4 << 20).expect("memory");
    let mut landing = Landing::whole(big).expect("ours");
    // Maps the window, and touches it.
    for round in 0..2 {
        let l = Landing::whole(landing.into_buffer().expect("a buffer")).expect("ours");
        landing = match s.port.rma(s.conn, Rma::Read { landing: l, key, offset: 0 }, RmaToken(round)) {
            RmaStarted::Done(l) => l.expect("the landing"),
            RmaStarted::Failed(_, e) => panic!("{e}"),
            RmaStarted::Pending => loop {
                s.poll();
                if let Some(Event::RmaDone { landing, .. }) = s.events.drain(..).next() {
                    break landing.expect("the landing");
                }
            },
        };
    }
    let begun = Instant::now();
    const N: u64 = 20_000_000;
    for i in 0..N {
        assert!(s.port.write_now(s.conn, &key, (i & 511) * 8, &i.to_le_bytes()), "it is mapped");
    }
    println!("8 B write rate               {:8.1} M/s", N as f64 / begun.elapsed().as_secs_f64() / 1e6);
    let (from, mut to) = (vec![1u8; 4 << 20], vec![2u8; 4 << 20]);
    let source = pool.copy_from(&from).expect("memory");
    let mut buffer = landing.into_buffer().expect("a buffer");
    for size in [64 << 10, 1 << 20, 4 << 20] {
        let rounds = (256 << 20) / size;
        let (mut copies, mut reads, mut writes) = (vec![], vec![], vec![]);
        for _ in 0..5 {
            copies.push(gbs(size, rounds, || {
                to[..size].copy_from_slice(&from[..size]);
                std::hint::black_box(&mut to);
            }));
            let mut l = Landing::prefix(buffer, size).ok();
            reads.push(gbs(size, rounds, || {
                let landing = l.take().expect("ours");
                match s.port.rma(s.conn, Rma::Read { landing, key, offset: 0 }, RmaToken(1)) {
                    RmaStarted::Done(back) => l = back,
                    _ => panic!("not at once"),
                }
            }));
            buffer = l.and_then(Landing::into_buffer).expect("a buffer");
            let part = source.as_source().part(0, size).expect("inside");
            writes.push(gbs(size, rounds, || {
                match s.port.rma(s.conn, Rma::Write { source: part.clone(), key, offset: 0 }, RmaToken(1)) {
                    RmaStarted::Done(_) => {}
                    _ => panic!("not at once"),
                }
            }));
        }
        let (c, r, w) = (median(copies), median(reads), median(writes));
        println!(
            "{:5} KiB  memcpy {c:6.1}  read {r:6.1} ({:.2} x)  write {w:6.1} ({:.2} x)  GB/s",
            size >> 10,
            r / c,
            w / c
        );
    }
}

fn gbs(size: usize, rounds: usize, mut f: impl FnMut()) -> f64 {
    f();
    let begun = Instant::now();
    (0..rounds).for_each(|_| f());
    (size * rounds) as f64 / begun.elapsed().as_nanos() as f64
}

/// Both sides asleep between messages, next to two bare eventfds.
fn wakeups(s: &mut Side, mine: usize, theirs: usize) {
    const N: u32 = 20_000;
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let (a, b) = (eventfd(0, flags).expect("an eventfd"), eventfd(0, flags).expect("an eventfd"));
    let wait = |fd: &std::os::fd::OwnedFd| {
        let _ = poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], None);
        let _ = rustix::io::read(fd, &mut [0u8; 8]);
    };
    let ring = |fd: &std::os::fd::OwnedFd| rustix::io::write(fd, &1u64.to_ne_bytes()).expect("rung");
    let bare = std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(theirs);
            for _ in 0..N {
                wait(&a);
                ring(&b);
            }
        });
        let begun = Instant::now();
        for _ in 0..N {
            ring(&a);
            wait(&b);
        }
        begun.elapsed().as_nanos() as f64 / f64::from(N) / 2.0
    });
    pin(mine);
    s.send(SLEEPY, &[], Body::Empty);
    let begun = Instant::now();
    for _ in 0..N {
        s.send(ECHO, &[0; 8], Body::Empty);
        let mut came = false;
        while !came {
            s.sleep();
            s.poll();
            came = s.events.iter().any(|e| matches!(e, Event::Frame { .. }));
        }
    }
    let ours = begun.elapsed().as_nanos() as f64 / f64::from(N) / 2.0;
    s.send(SLEEPY, &[], Body::Empty);
    println!(
        "asleep, one way              {ours:8.0} ns   {:.2} x two bare eventfds ({bare:.0} ns)",
        ours / bare
    );
}
