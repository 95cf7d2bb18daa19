//! Real processes: killed at any point, restarted, stopped, asleep. The child is this program, run again with `KFAB_SHM_CHILD`.

mod common;
#[path = "../../../kfab/tests/common/skip.rs"]
mod skip;

use common::{Watchdog, frame, now, open, pump, sleep_on, try_open, until};
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{
    Body, Conn, DownReason, Event, Port, PortConfig, RemoteKey, Rights, Rma, RmaStarted, RmaToken, Way,
};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use skip::skip;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// One test at a time: descriptors and threads of the process are counted.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

const CHILD: &str = "KFAB_SHM_CHILD";

/// This program as a child that runs the test `child_main` with a role.
fn child_of(role: &str, arg: &str) -> Command {
    let mut c = Command::new(std::env::current_exe().unwrap());
    c.args(["--exact", "child_main", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{role} {arg}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    c
}

fn spawn(role: &str, arg: &str) -> Child {
    child_of(role, arg).spawn().unwrap()
}

/// The first line of a child that starts with `word`; the rest of it.
fn line(child: &mut Child, word: &str) -> String {
    let mut out = BufReader::new(child.stdout.as_mut().unwrap());
    loop {
        let mut l = String::new();
        assert!(out.read_line(&mut l).unwrap() > 0, "the child said nothing");
        if let Some((_, rest)) = l.split_once(word) {
            return rest.trim().to_owned();
        }
    }
}

/// Not a test of its own: what the children do.
#[test]
fn child_main() {
    let Ok(what) = std::env::var(CHILD) else { return };
    let (role, arg) = what.split_once(' ').unwrap();
    // The parent holds the other end: a child does not outlive a test that failed.
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let named = |name: &str| PortConfig { listen: Some(name.to_owned()), ..PortConfig::default() };
    match role {
        "echo" => echo(open(&named(arg)), false),
        "sleepy" => echo(open(&named(arg)), true),
        "flood" => flood(arg),
        "write" => write_for_ever(arg),
        "owner" => own(arg),
        "reader" => read(arg),
        role => panic!("{role}"),
    }
}

/// Gives every frame back; opens a window that the parent may write.
fn echo(mut port: Box<dyn Port>, sleepy: bool) {
    let pool = Pool::new(Default::default());
    let window = pool.alloc_window(1 << 20).unwrap();
    println!("\nready {}", port.ways()[0]);
    let mut events = Vec::new();
    loop {
        if sleepy && port.arm() {
            sleep_on(&*port, Duration::from_secs(30));
        }
        port.poll(now(), &mut events);
        for e in events.drain(..) {
            match e {
                Event::Incoming { conn } => {
                    let x = port.expose(&window.as_source(), Rights::READ | Rights::WRITE).unwrap();
                    let mut f = frame(0, Body::Empty);
                    f.header = [255; 16];
                    let key = [x.key.region.to_le_bytes(), x.key.secret.to_le_bytes()].concat();
                    f.inline = kfab_core::spi::Inline::new(&key).unwrap();
                    port.post(conn, &[f]);
                }
                Event::Frame { conn, header, inline, body_len } => {
                    let mut body = Vec::new();
                    if body_len > 0 {
                        let l = Landing::whole(Buffer::adopt(vec![0; body_len])).unwrap();
                        body = port.take(conn, Some(l)).flatten().unwrap().into_buffer().unwrap().to_vec();
                    }
                    let body = if body.is_empty() { Body::Empty } else { Body::Borrowed(&body) };
                    // The parent never has more under way than fits.
                    port.post(conn, &[kfab_core::spi::Frame { header, inline, body, more: false }]);
                }
                _ => {}
            }
        }
    }
}

/// Connects and sends without end.
fn flood(way: &str) {
    let mut port = open(&PortConfig::default());
    let conn = port.connect(&way.parse::<kfab_core::spi::Address>().unwrap().ways()[0]).unwrap();
    let body = vec![7; 3000];
    for i in 0u64.. {
        pump(&mut *port);
        let b = if i % 3 == 0 { Body::Borrowed(&body) } else { Body::Empty };
        port.post(conn, &[frame(i, b)]);
    }
}

/// Connects, is told a window's key in the first frame, and writes it without end: through `write_now` and `rma`.
fn write_for_ever(way: &str) {
    let mut port = open(&PortConfig::default());
    let conn = port.connect(&way.parse::<kfab_core::spi::Address>().unwrap().ways()[0]).unwrap();
    let source = Buffer::adopt(vec![0xee; 256 << 10]);
    let mut key = None;
    loop {
        for e in pump(&mut *port) {
            if let Event::Frame { inline, .. } = e {
                let w = |i: usize| u64::from_le_bytes(inline.as_slice()[i..i + 8].try_into().unwrap());
                key = Some(RemoteKey { region: w(0), base: 0, secret: w(8) });
            }
        }
        let Some(key) = key else { continue };
        let _ = port.write_now(conn, &key, 8, &[0xee; 8]);
        let _ = port.rma(conn, Rma::Write { source: source.as_source(), key, offset: 0 }, RmaToken(1));
    }
}

/// What the memory of an owner holds.
fn owned() -> Vec<u8> {
    (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Adopts memory and tells its key to whoever comes; a `hidden` process lets nobody but root look into it, as one may be that changed
/// its user.
fn own(what: &str) {
    if what == "hidden" {
        set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap();
    }
    let mut port = open(&PortConfig::default());
    let memory = Buffer::adopt(owned());
    let x = port.expose(&memory.as_source(), Rights::READ | Rights::TRANSFER).unwrap();
    println!("\nready {}", port.ways()[0]);
    loop {
        for e in pump(&mut *port) {
            let Event::Incoming { conn } = e else { continue };
            let key = [x.key.region, x.key.base, x.key.secret].map(u64::to_le_bytes).concat();
            let mut f = frame(0, Body::Empty);
            f.inline = kfab_core::spi::Inline::new(&key).unwrap();
            port.post(conn, &[f]);
        }
    }
}

/// Reads an owner's memory twice, says what came of it, and that the connection still carries frames.
fn read(way: &str) {
    let mut port = open(&PortConfig::default());
    let conn = up(&mut *port, way);
    let mut key = None;
    until("a key", || {
        for e in pump(&mut *port) {
            let Event::Frame { inline, .. } = e else { panic!("{e:?}") };
            let w = |i: usize| u64::from_le_bytes(inline.as_slice()[i..i + 8].try_into().unwrap());
            key = Some(RemoteKey { region: w(0), base: w(8), secret: w(16) });
        }
        key.is_some()
    });
    let (key, want) = (key.unwrap(), owned());
    for token in 1..3 {
        let landing = Landing::whole(Buffer::adopt(vec![0; 5000])).unwrap();
        match port.rma(conn, Rma::Read { landing, key, offset: 777 }, RmaToken(token)) {
            RmaStarted::Done(Some(l)) => {
                assert!(l.into_buffer().unwrap()[..] == want[777..5777]);
                println!("\nread whole");
            }
            RmaStarted::Failed(Some(l), e) => {
                assert_eq!((l.len(), e.kind()), (5000, kfab_core::Kind::Unavailable), "{e}");
                println!("\nread {}", e.context());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(port.post(conn, &[frame(1, Body::Empty)]), 1);
    assert!(pump(&mut *port).is_empty(), "the connection is not what was refused");
    println!("\nread ended");
    std::thread::sleep(Duration::from_secs(30));
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Mappings of this process of memory that has no name in a file system: segments, and slabs and windows of peers.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|l| l.contains("/memfd:")).count()
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn up(port: &mut dyn Port, way: &str) -> Conn {
    let conn = port.connect(&Way::new("shm", way.trim_start_matches("shm:"))).unwrap();
    until("up", || {
        pump(port).iter().any(|e| match e {
            Event::Up { conn: c } => *c == conn,
            Event::Down { conn: c, reason, detail } if *c == conn => panic!("{reason:?}: {detail}"),
            _ => false,
        })
    });
    conn
}

/// A server is killed at a random point of a busy exchange, 50 times under the same name; each time its client hears of it
/// within 100 ms, and the next server is reachable at once.
#[test]
fn killed_servers_are_reported_and_replaced() {
    let _alone = alone();
    let _w = Watchdog::start(120);
    let name = format!("kfab-kill.{}", std::process::id());
    let mut rng = Rng(u64::from(std::process::id()));
    let mut port = open(&PortConfig::default());
    let (fds, maps, mut times) = (descriptors(), mappings(), Vec::new());
    let mut most = 0;
    for round in 0..50 {
        let mut child = spawn("echo", &name);
        let way = line(&mut child, "ready ");
        let conn = up(&mut *port, &way);
        let body = vec![round as u8; 5000];
        let end = Instant::now() + Duration::from_micros(rng.below(3000));
        let (mut key, mut i, mut credit) = (None, 0u64, 32);
        while Instant::now() < end {
            if credit > 0 {
                let b = if i.is_multiple_of(5) { Body::Borrowed(&body) } else { Body::Empty };
                credit -= port.post(conn, &[frame(i % 200, b)]);
                i += 1;
            }
            if let Some(key) = key {
                let _ = port.write_now(conn, &key, 64, &[1; 8]);
                let source = Buffer::adopt(vec![1; 4096]).as_source();
                let _ = port.rma(conn, Rma::Write { source, key, offset: 0 }, RmaToken(i));
            }
            for e in pump(&mut *port) {
                match e {
                    Event::Frame { header, inline, body_len, .. } => {
                        if header[0] == 255 {
                            let w = |i: usize| {
                                u64::from_le_bytes(inline.as_slice()[i..i + 8].try_into().unwrap())
                            };
                            key = Some(RemoteKey { region: w(0), base: 0, secret: w(8) });
                        } else {
                            credit += 1;
                        }
                        if body_len > 0 {
                            port.take(conn, None);
                        }
                    }
                    Event::RmaDone { .. } | Event::Writable { .. } => {}
                    e => panic!("{e:?}"),
                }
            }
        }
        most = most.max(mappings());
        child.kill().unwrap();
        let killed = Instant::now();
        let mut down = None;
        until("down", || {
            for e in pump(&mut *port) {
                assert!(down.is_none(), "{e:?} after Down");
                match e {
                    Event::Frame { body_len, .. } if body_len > 0 => drop(port.take(conn, None)),
                    Event::Down { reason, .. } => down = Some(reason),
                    _ => {}
                }
            }
            down.is_some()
        });
        times.push(killed.elapsed());
        assert_eq!(down, Some(DownReason::PeerDead));
        kill(child);
        assert_eq!(descriptors(), fds, "round {round}: descriptors are left");
        assert_eq!(mappings(), maps, "round {round}: mappings are left");
    }
    assert!(most >= maps + 2, "its segment and its window were mapped: {most}, {maps} before");
    times.sort_unstable();
    let (median, worst) = (times[25], times[49]);
    let late = times.iter().filter(|t| **t > Duration::from_millis(100)).count();
    println!("kill to report: median {median:?}, worst {worst:?}, {late} of 50 over 100 ms");
    // Wider than the promised 100 ms: the killed process needs a processor to die on, and a busy machine has none for it. 1.7 s was seen
    // with 24 processes on 2 processors, where the median was still a few ms.
    assert!(median < Duration::from_millis(500) && worst < Duration::from_secs(10), "{times:?}");
}

/// Clients are killed while they flood a server.
#[test]
fn killed_clients_are_reported_and_leave_nothing() {
    let _alone = alone();
    let _w = Watchdog::start(120);
    let mut rng = Rng(u64::from(std::process::id()) + 7);
    let mut port = open(&PortConfig::default());
    let way = port.ways()[0].to_string();
    let (fds, maps, tasks) = (descriptors(), mappings(), threads());
    for round in 0..50 {
        let child = spawn("flood", &way);
        let (mut conn, mut down, mut frames) = (None, None, 0u64);
        let mut child = Some(child);
        let mut end = None;
        until("incoming, frames, death, down", || {
            for e in pump(&mut *port) {
                match e {
                    Event::Incoming { conn: c } => {
                        conn = Some(c);
                        end = Some(Instant::now() + Duration::from_micros(rng.below(3000)));
                    }
                    Event::Frame { conn: c, header, inline, body_len } => {
                        assert_eq!(Some(c), conn);
                        assert_eq!(inline.as_slice()[0], header[0]);
                        frames += 1;
                        if body_len > 0 {
                            let l = Landing::whole(Buffer::adopt(vec![0; body_len])).unwrap();
                            let b = port.take(c, Some(l)).flatten().unwrap().into_buffer().unwrap();
                            assert!(b.iter().all(|x| *x == 7));
                        }
                    }
                    Event::Down { reason, .. } => down = Some(reason),
                    e => panic!("{e:?}"),
                }
            }
            if end.is_some_and(|e| Instant::now() > e)
                && let Some(c) = child.take()
            {
                kill(c);
            }
            down.is_some()
        });
        assert_eq!(down, Some(DownReason::PeerDead), "round {round}, after {frames} frames");
        assert_eq!(descriptors(), fds, "round {round}: descriptors are left");
        assert_eq!(mappings(), maps, "round {round}: mappings are left");
    }
    assert!(threads() <= tasks + 1, "threads are left");
}

/// While its client spins, and while it sleeps on the descriptor: a death is told in time.
#[test]
fn a_death_wakes_a_sleeper() {
    let _alone = alone();
    let _w = Watchdog::start(60);
    let name = format!("kfab-sleep.{}", std::process::id());
    let mut child = spawn("echo", &name);
    let way = line(&mut child, "ready ");
    let mut port = open(&PortConfig::default());
    let conn = up(&mut *port, &way);
    until("its key", || pump(&mut *port).iter().any(|e| matches!(e, Event::Frame { .. })));
    until("armed", || {
        pump(&mut *port);
        port.arm()
    });
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        kill(child);
    });
    assert!(sleep_on(&*port, Duration::from_secs(10)), "the sleeper was not woken");
    let mut events = Vec::new();
    until("down", || {
        events.extend(pump(&mut *port));
        !events.is_empty()
    });
    assert!(
        matches!(&events[..], [Event::Down { conn: c, reason: DownReason::PeerDead, .. }] if *c == conn),
        "{events:?}"
    );
    killer.join().unwrap();
    until("quiet again", || {
        pump(&mut *port);
        port.arm()
    });
    assert!(!sleep_on(&*port, Duration::from_millis(20)), "the descriptor stays readable");
}

/// Both sides sleep between messages, 100,000 times: no wake-up is lost.
#[test]
fn no_wake_up_is_lost() {
    let _alone = alone();
    let _w = Watchdog::start(150);
    let name = format!("kfab-wake.{}", std::process::id());
    let mut child = spawn("sleepy", &name);
    let way = line(&mut child, "ready ");
    let mut port = open(&PortConfig::default());
    let conn = up(&mut *port, &way);
    let mut rng = Rng(3);
    let mut wait = |port: &mut dyn Port, want: u8| {
        let begun = Instant::now();
        loop {
            if let Some(Event::Frame { header, .. }) = pump(port).pop() {
                return assert_eq!(header[0], want);
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "no answer");
            // Now and then a look without sleeping, so that both ways of waiting meet.
            if rng.below(4) != 0 && port.arm() {
                assert!(sleep_on(port, Duration::from_secs(10)), "a wake-up was lost");
            }
        }
    };
    wait(&mut *port, 255);
    for i in 0..100_000u64 {
        assert_eq!(port.post(conn, &[frame(i % 200, Body::Empty)]), 1);
        wait(&mut *port, (i % 200) as u8);
    }
    kill(child);
}

/// Two processes write a window without end; it is taken back: from then on nothing changes in it.
#[test]
fn revoked_windows_are_still() {
    let _alone = alone();
    let _w = Watchdog::start(60);
    let mut port = open(&PortConfig::default());
    let way = port.ways()[0].to_string();
    let children = [spawn("write", &way), spawn("write", &way)];
    let mut conns = Vec::new();
    until("both are here", || {
        conns.extend(pump(&mut *port).into_iter().filter_map(|e| match e {
            Event::Incoming { conn } => Some(conn),
            _ => None,
        }));
        conns.len() == 2
    });
    let pool = Pool::new(Default::default());
    for round in 0..100 {
        let window = pool.alloc_window(256 << 10).unwrap();
        let x = port.expose(&window.as_source(), Rights::WRITE).unwrap();
        let mut f = frame(0, Body::Empty);
        let key = [x.key.region.to_le_bytes(), x.key.secret.to_le_bytes()].concat();
        f.inline = kfab_core::spi::Inline::new(&key).unwrap();
        conns.iter().for_each(|c| assert_eq!(port.post(*c, &[f]), 1));
        let mut all = vec![0; 256 << 10];
        until("somebody writes", || {
            pump(&mut *port);
            window.read(0, &mut all);
            all[(256 << 10) - 1] == 0xee
        });
        port.revoke(x);
        window.fill(round);
        let want = vec![round; 256 << 10];
        for _ in 0..20 {
            window.read(0, &mut all);
            assert!(all == want, "round {round}: written after revoke");
        }
    }
    children.into_iter().for_each(kill);
}

/// The same name, five times, each time without waiting for anything.
#[test]
fn a_restarted_server_is_reachable_at_once() {
    let _alone = alone();
    let _w = Watchdog::start(60);
    let name = format!("kfab-again.{}", std::process::id());
    let mut port = open(&PortConfig::default());
    let mut way = String::new();
    for _ in 0..5 {
        let mut child = spawn("echo", &name);
        let w = line(&mut child, "ready ");
        assert!(way.is_empty() || w == way, "the same name, another way");
        way = w;
        let conn = up(&mut *port, &way);
        assert_eq!(port.post(conn, &[frame(5, Body::Borrowed(b"hello"))]), 1);
        until("an answer", || {
            pump(&mut *port).iter().any(|e| match e {
                Event::Frame { header, body_len, .. } => {
                    if *body_len > 0 {
                        port.take(conn, None);
                    }
                    header[0] == 5
                }
                _ => false,
            })
        });
        kill(child);
        // At once: no wait for the death to be noticed.
    }
    assert!(try_open(&PortConfig { listen: Some(name), ..PortConfig::default() }).is_ok());
}

/// Adopted memory is read by the kernel where that is permitted. Where it is not (`EPERM`), the operation fails so that it can be done by
/// messages, with the memory given back, at once the next time, and the connection goes on.
#[test]
fn adopted_memory_that_the_kernel_does_not_show_is_refused_softly() {
    let _alone = alone();
    let _w = Watchdog::start(60);
    for (owner, said) in [
        ("seen", ["whole", "whole"]),
        ("hidden", ["process_vm_readv: Operation not permitted", "process_vm_readv is not permitted here"]),
    ] {
        let start = |role: &str, arg: &str| {
            let mut c = child_of(role, arg);
            if rustix::process::geteuid().is_root() {
                // Root sees all.
                std::os::unix::process::CommandExt::uid(&mut c, 65534);
            }
            c.spawn()
        };
        let mut all = vec![match start("owner", owner) {
            Ok(c) => c,
            Err(e) => return skip("users", &format!("no process of another user: {e}")),
        }];
        let way = line(&mut all[0], "ready ");
        all.push(start("reader", &way).unwrap());
        let mut out = BufReader::new(all[1].stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut next = || out.by_ref().find_map(|l| l.strip_prefix("read ").map(str::to_owned));
        for said in said {
            let got = next().expect("the reader ended");
            assert!(got.starts_with(said), "{owner}: {got:?}, not {said:?}");
        }
        assert_eq!(next().as_deref(), Some("ended"));
        all.into_iter().for_each(kill);
    }
}

/// A process of another user gets no connection, and is not even announced.
#[test]
fn another_user_is_sent_away() {
    let _alone = alone();
    let _w = Watchdog::start(60);
    if !rustix::process::geteuid().is_root() {
        return skip("users", "only root starts a process of another user");
    }
    let mut port = open(&PortConfig::default());
    let way = port.ways()[0].to_string();
    use std::os::unix::process::CommandExt;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_main", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("flood {way}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .uid(65534)
        .spawn();
    let child = match child.as_mut() {
        Ok(child) => child,
        Err(e) => return skip("users", &format!("no process of another user: {e}")),
    };
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        let events = pump(&mut *port);
        assert!(events.is_empty(), "{events:?}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
