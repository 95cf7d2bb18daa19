//! How connections begin and end: close, kill -9, strangers, garbage, wrong keys, limits, storms, sleep.

mod common;
#[path = "../../../kfab/tests/common/skip.rs"]
mod skip;

use common::*;
use kfab_core::spi::{Body, Conn, DownReason, Event, PortConfig, Provider, Way};
use kfab_sockets::Sockets;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use skip::skip;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[test]
fn close_after_sending_is_closed_on_both_sides() {
    for c in [config(), keyed(1, true)] {
        let mut p = Pair::new(&c);
        let body = pattern(900_000, 5);
        p.a.send(p.ab, 1, b"last words", Body::Borrowed(&body));
        p.a.port.close(p.ab);
        p.a.port.close(p.ab);
        assert_eq!(p.a.port.post(p.ab, &[frame(9, b"", Body::Empty, false)]), 1, "accepted and dropped");
        let got = p.receive(1);
        assert!(got[0].body == body && got[0].inline == b"last words");
        assert_eq!(down("b", &mut p.b, &mut p.a).0, DownReason::Closed);
        assert_eq!(down("a", &mut p.a, &mut p.b).0, DownReason::Closed);
        assert_eq!(p.a.port.post(p.ab, &[frame(9, b"", Body::Empty, false)]), 1);
        assert!(p.a.next().is_none() && p.b.next().is_none(), "an event after the end");
    }
}

#[test]
fn frames_that_cross_a_close_arrive() {
    let mut p = Pair::new(&config());
    let body = pattern(50_000, 6);
    p.b.send(p.ba, 1, b"crossing", Body::Borrowed(&body));
    p.a.port.close(p.ab);
    let got = drive(&mut p.b, &mut p.a, 1);
    assert!(got[0].body == body && got[0].inline == b"crossing");
    assert_eq!(down("a", &mut p.a, &mut p.b).0, DownReason::Closed);
    assert_eq!(down("b", &mut p.b, &mut p.a).0, DownReason::Closed);
}

#[test]
fn both_sides_may_close_at_once() {
    let mut p = Pair::new(&config());
    p.a.port.close(p.ab);
    p.b.port.close(p.ba);
    assert_eq!(down("a", &mut p.a, &mut p.b).0, DownReason::Closed);
    assert_eq!(down("b", &mut p.b, &mut p.a).0, DownReason::Closed);
}

#[test]
fn a_dropped_port_says_goodbye() {
    let Pair { a, mut b, ba, .. } = Pair::new(&config());
    drop(a);
    let e = until("the end", || b.next());
    assert!(matches!(&e, Event::Down { conn, reason: DownReason::Closed, .. } if *conn == ba), "{e:?}");
}

#[test]
fn an_untaken_body_comes_before_the_end() {
    for take in [true, false] {
        let mut p = Pair::new(&config());
        let body = pattern(3000, 7);
        p.a.send(p.ab, 1, b"x", Body::Borrowed(&body));
        p.a.port.close(p.ab);
        let e = until("the frame", || {
            p.a.poll();
            p.b.next()
        });
        assert!(matches!(e, Event::Frame { body_len: 3000, .. }));
        for _ in 0..50 {
            p.a.poll();
            assert!(p.b.next().is_none(), "the end overtook the body");
        }
        let landed = p.b.port.take(p.ba, take.then(|| landing(3000))).expect("all of it had arrived");
        assert_eq!(landed.is_some(), take);
        if let Some(l) = landed {
            assert_eq!(l.into_buffer().unwrap()[..], body);
        }
        assert_eq!(down("b", &mut p.b, &mut p.a).0, DownReason::Closed);
    }
}

#[test]
fn an_untaken_body_outlives_even_the_time_limit_of_a_close() {
    let mut p = Pair::new(&config());
    let body = pattern(3000, 8);
    p.a.send(p.ab, 1, b"x", Body::Borrowed(&body));
    let e = until("the frame", || p.b.next());
    assert!(matches!(e, Event::Frame { body_len: 3000, .. }));
    p.b.port.close(p.ba);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        p.a.poll();
        assert!(p.b.next().is_none(), "the end overtook the body");
        std::thread::sleep(Duration::from_millis(1));
    }
    let l = p.b.port.take(p.ba, Some(landing(3000))).expect("all of it had arrived").unwrap();
    assert_eq!(l.into_buffer().unwrap()[..], body);
    let (reason, detail) = down("b", &mut p.b, &mut p.a);
    assert!(reason == DownReason::Broken && detail.contains("body"), "{reason:?} {detail}");
}

#[test]
fn a_peer_that_says_goodbye_and_reads_no_more_is_not_waited_for() {
    let Pair { mut a, mut b, ab, ba } = Pair::new(&config());
    // As much as the kernel takes, and more.
    let body = pattern(60_000, 9);
    while a.port.post(ab, &[frame(1, b"", Body::Borrowed(&body), false)]) == 1 {
        a.poll();
    }
    b.port.close(ba);
    let start = Instant::now();
    let (reason, detail) = loop {
        assert!(start.elapsed() < Duration::from_secs(20), "no end");
        match a.next() {
            Some(Event::Down { reason, detail, .. }) => break (reason, detail),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    assert!(reason == DownReason::Broken && detail.contains("last frames"), "{reason:?} {detail}");
    drop(b);
}

#[test]
fn nobody_there_is_refused() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut a = Side::new(&config());
    let conn = a.port.connect(&Way::new("tcp", free.to_string())).unwrap();
    let e = until("refusal", || a.next());
    let Event::Down { conn: c, reason, detail } = e else { panic!("{e:?}") };
    assert_eq!((c, reason), (conn, DownReason::Refused));
    assert!(detail.contains(&free.to_string()), "{detail}");
    for bad in ["nowhere", "127.0.0.1", "127.0.0.1:0", "0.0.0.0:5", "1.2.3.4:99999"] {
        assert_eq!(
            a.port.connect(&Way::new("tcp", bad)).unwrap_err().kind(),
            kfab_core::Kind::InvalidArgument
        );
    }
    assert!(a.port.connect(&Way::new("shm", "127.0.0.1:5")).is_err());
}

#[test]
fn a_listener_that_never_answers_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut a = Side::new(&PortConfig { connect_timeout: Duration::from_millis(200), ..config() });
    a.port.connect(&Way::new("tcp", silent.local_addr().unwrap().to_string())).unwrap();
    assert!(a.port.deadline().is_some());
    let e = until("the timeout", || a.next());
    assert!(
        matches!(&e, Event::Down { reason: DownReason::Refused, detail, .. } if detail.contains("200ms")),
        "{e:?}"
    );
    assert!(a.port.deadline().is_none());
}

#[test]
fn closing_an_attempt_lets_the_next_one_begin() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let c = PortConfig { max_connecting: 1, connect_timeout: LIMIT * 2, ..config() };
    let (mut a, mut b) = (Side::new(&c), Side::new(&c));
    let first = a.port.connect(&Way::new("tcp", silent.local_addr().unwrap().to_string())).unwrap();
    let second = a.port.connect(&b.way()).unwrap();
    for _ in 0..100 {
        b.poll();
        assert!(a.next().is_none(), "the bound on attempts was passed");
    }
    a.port.close(first);
    assert!(matches!(a.next(), Some(Event::Down { conn, reason: DownReason::Closed, .. }) if conn == first));
    until("the second", || {
        b.poll();
        matches!(a.next(), Some(Event::Up { conn }) if conn == second).then_some(())
    });
}

#[test]
fn other_keys_are_denied_and_the_other_side_never_hears_of_it() {
    let all = [config(), keyed(1, true), keyed(1, false), keyed(2, true)];
    for (i, x) in all.iter().enumerate() {
        for y in all.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, y)| y) {
            let (mut a, mut b) = (Side::new(x), Side::new(y));
            a.port.connect(&b.way()).unwrap();
            let (reason, detail) = down("the denial", &mut a, &mut b);
            assert_eq!(reason, DownReason::Denied, "{detail}");
            for _ in 0..50 {
                assert!(b.next().is_none());
            }
        }
    }
}

/// A plain connection to `b` that has greeted, as this crate's golden bytes say.
fn greeted(b: &mut Side) -> (TcpStream, Conn) {
    let mut s = TcpStream::connect(b.addr()).unwrap();
    s.set_read_timeout(Some(LIMIT)).unwrap();
    s.write_all(b"kfab-tcp\x02\x00\x00\x00\x00\x00\x00\x00").unwrap();
    let e = until("incoming", || b.next());
    let Event::Incoming { conn } = e else { panic!("{e:?}") };
    let mut answer = [0; 16];
    s.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"kfab-tcp\x02\x00\x00\x00\x00\x00\x00\x00");
    (s, conn)
}

fn record(inline: &[u8], body: &[u8]) -> Vec<u8> {
    let mut r = (body.len() as u32).to_le_bytes().to_vec();
    r.extend_from_slice(&[inline.len() as u8, 0, 0, 0]);
    r.extend_from_slice(&[5; 16]);
    r.extend_from_slice(inline);
    r.extend_from_slice(body);
    r
}

#[test]
fn records_cut_anywhere_arrive_whole() {
    let mut b = Side::new(&config());
    let (mut s, _) = greeted(&mut b);
    s.set_nodelay(true).unwrap();
    let r = record(b"inline", &[9; 30]);
    for cut in 1..r.len() {
        s.write_all(&r[..cut]).unwrap();
        for _ in 0..3 {
            b.poll();
        }
        s.write_all(&r[cut..]).unwrap();
        let mut idle = Side::new(&config());
        let got = drive(&mut idle, &mut b, 1);
        assert_eq!((&got[0].inline[..], &got[0].body[..]), (&b"inline"[..], &[9; 30][..]), "{cut}");
    }
}

#[test]
fn a_peer_cut_off_at_every_length_is_broken_and_nothing_false_arrives() {
    let mut b = Side::new(&config());
    let r = record(b"in", &[9; 20]);
    for cut in 0..r.len() {
        let (mut s, conn) = greeted(&mut b);
        s.write_all(&r[..cut]).unwrap();
        drop(s);
        let mut taken = None;
        let reason = until("the end", || match b.next()? {
            Event::Frame { body_len: 20, .. } if cut >= 26 => {
                assert!(b.port.take(conn, Some(landing(20))).is_none());
                None
            }
            Event::Taken { ok, landing, .. } => {
                assert!(landing.is_some());
                taken = Some(ok);
                None
            }
            Event::Down { reason, conn: c, .. } => (c == conn).then_some(reason),
            e => panic!("{e:?}"),
        });
        assert_eq!((reason, taken), (DownReason::Broken, (cut >= 26).then_some(false)), "{cut}");
    }
}

#[test]
fn garbage_ends_that_connection_only() {
    let mut p = Pair::new(&config());
    for (at, value) in [(2, 0x20), (3, 1), (4, 41), (5, 7), (6, 1), (7, 255)] {
        let (mut s, conn) = greeted(&mut p.b);
        let mut r = record(b"", b"");
        r[at] = value;
        s.write_all(&r).unwrap();
        let e = until("the end", || p.b.next());
        assert!(matches!(e, Event::Down { conn: c, reason: DownReason::Hostile, .. } if c == conn), "{e:?}");
    }
    p.a.send(p.ab, 1, b"still here", Body::Empty);
    assert_eq!(p.receive(1)[0].inline, b"still here");
}

#[test]
fn an_encrypted_stream_that_is_tampered_with_is_hostile() {
    // A relay between two ports that flips one bit late in the stream.
    let (mut a, mut b) = (Side::new(&keyed(3, true)), Side::new(&keyed(3, true)));
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let (way, to) = (Way::new("tcp", relay.local_addr().unwrap().to_string()), b.addr());
    std::thread::spawn(move || relay_flipping(relay, to));
    let ab = a.port.connect(&way).unwrap();
    let (mut up, mut incoming) = (false, false);
    until("both ends", || {
        up |= matches!(a.next(), Some(Event::Up { .. }));
        incoming |= matches!(b.next(), Some(Event::Incoming { .. }));
        (up && incoming).then_some(())
    });
    let secret = pattern(5000, 1);
    a.send(ab, 1, b"secret", Body::Borrowed(&secret));
    let (reason, _) = down("b", &mut b, &mut a);
    assert_eq!(reason, DownReason::Hostile);
}

fn relay_flipping(relay: TcpListener, to: SocketAddr) {
    let (mut from, _) = relay.accept().unwrap();
    let mut to = TcpStream::connect(to).unwrap();
    let (mut back_from, mut back_to) = (to.try_clone().unwrap(), from.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut back_from, &mut back_to));
    let (mut buf, mut seen) = ([0; 4096], 0);
    while let Ok(n @ 1..) = from.read(&mut buf) {
        // 64 bytes of greeting and 24 of confirmation pass; the 200th byte does not.
        if (seen..seen + n).contains(&200) {
            buf[200 - seen] ^= 1;
        }
        seen += n;
        if to.write_all(&buf[..n]).is_err() {
            return;
        }
    }
}

#[test]
fn strangers_are_bounded_and_displaced_and_members_still_come_in() {
    let c = PortConfig { max_connecting: 4, connect_timeout: Duration::from_millis(1500), ..keyed(1, true) };
    let (mut a, mut b) = (Side::new(&c), Side::new(&c));
    let mut strangers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(b.addr()).unwrap()).collect();
    strangers[0].write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    strangers[1].write_all(&[0xFF; 500]).unwrap();
    for _ in 0..100 {
        b.poll();
    }
    let conn = a.port.connect(&b.way()).unwrap();
    let mut tries = 1;
    until("a member to come in", || {
        b.poll();
        match a.next() {
            Some(Event::Up { .. }) => Some(()),
            Some(Event::Down { .. }) => {
                tries += 1;
                a.port.connect(&b.way()).unwrap();
                None
            }
            _ => None,
        }
    });
    until("and be reported", || match b.next()? {
        Event::Incoming { .. } => Some(()),
        e => panic!("a stranger was reported: {e:?}"),
    });
    let _ = (conn, tries);
    // All strangers have been shown the door once the handshake limit is over.
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(4000) {
        b.poll();
        std::thread::sleep(Duration::from_millis(5));
    }
    for s in &mut strangers {
        s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let end = s.read(&mut [0; 64]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
}

/// Sockets of this host that connect, or are connected, to a local port.
fn sockets_to(at: SocketAddr) -> usize {
    let all = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (port, time_wait) = (format!(":{:04X}", at.port()), "06");
    let fields = all.lines().skip(1).map(|l| l.split_whitespace().skip(2).take(2).collect::<Vec<_>>());
    fields.filter(|f| f[0].ends_with(&port) && f[1] != time_wait).count()
}

#[test]
fn two_hundred_connections_with_few_attempts_at_once() {
    const AT_ONCE: usize = 8;
    let c = PortConfig { max_connecting: AT_ONCE, connect_timeout: LIMIT, ..config() };
    let (mut a, mut b) = (Side::new(&c), Side::new(&c));
    let conns: Vec<Conn> = (0..200).map(|_| a.port.connect(&b.way()).unwrap()).collect();
    for (i, c) in conns.iter().enumerate() {
        assert_eq!(a.port.post(*c, &[frame(i as u64, b"early", Body::Empty, false)]), 0, "not up yet");
    }
    let (mut up, mut writable) = (0, 0);
    let mut seen = vec![0; 200];
    assert_eq!(sockets_to(b.addr()), AT_ONCE, "the first of them, and no more");
    until("all of them", || {
        a.poll();
        for e in std::mem::take(&mut a.events) {
            match e {
                Event::Up { conn } => {
                    up += 1;
                    let n = conns.iter().position(|c| *c == conn).unwrap() as u64;
                    a.send(conn, n, b"hello", Body::Borrowed(&pattern(200, n)));
                }
                Event::Writable { .. } => writable += 1,
                e => panic!("{e:?}"),
            }
        }
        if up < 200 {
            let under_way = sockets_to(b.addr()) - up;
            assert!(under_way <= AT_ONCE, "{under_way} under way, {up} are up");
        }
        match b.next() {
            Some(Event::Incoming { .. }) | None => {}
            Some(e) => match b.receive(e) {
                Pending::Done(g) => {
                    let n = u64::from_le_bytes(g.header[..8].try_into().unwrap());
                    assert_eq!(g.body, pattern(200, n));
                    seen[n as usize] += 1;
                }
                Pending::Waiting(_) => panic!("200 bytes came in two"),
            },
        }
        (seen.iter().all(|n| *n == 1)).then_some(())
    });
    assert_eq!((up, writable), (200, 200));
    drop(a);
    let mut ends = 0;
    until("all ends", || {
        if let Some(e) = b.next() {
            assert!(matches!(e, Event::Down { reason: DownReason::Closed, .. }), "{e:?}");
            ends += 1;
        }
        (ends == 200).then_some(())
    });
}

#[test]
fn limits_are_named() {
    let c = PortConfig { max_conns: 1, ..config() };
    let mut p = Pair::new(&c);
    let e = p.a.port.connect(&p.b.way()).unwrap_err();
    assert!(e.kind() == kfab_core::Kind::Limit && e.to_string().contains("max_conns"), "{e}");
    let mut third = Side::new(&config());
    third.port.connect(&p.b.way()).unwrap();
    assert_eq!(down("the third", &mut third, &mut p.b).0, DownReason::Broken);
    let way = p.b.way().rest;
    let Err(e) = Sockets.open(&PortConfig { listen: Some(way), ..config() }) else { panic!("opened twice") };
    assert_eq!(e.kind(), kfab_core::Kind::AddressInUse);
}

#[test]
fn ipv6_and_devices_work() {
    for c in [
        PortConfig { listen: Some("[::1]:0".to_owned()), ..config() },
        PortConfig { device: Some("lo".to_owned()), ..config() },
        PortConfig { listen: Some("0.0.0.0:0".to_owned()), ..config() },
        PortConfig { listen: Some("[::]:0".to_owned()), ..config() },
    ] {
        if c.listen.as_deref().is_some_and(|l| l.starts_with('[')) && TcpListener::bind("[::1]:0").is_err() {
            skip("ipv6", "no IPv6 here");
            continue;
        }
        let mut p = Pair::new(&c);
        p.a.send(p.ab, 1, b"hi", Body::Empty);
        assert_eq!(p.receive(1)[0].inline, b"hi");
        p.b.send(p.ba, 2, b"ho", Body::Empty);
        assert_eq!(drive(&mut p.b, &mut p.a, 1)[0].inline, b"ho");
    }
    let devices = Sockets.probe().unwrap();
    assert!(devices.iter().any(|d| d.name == "lo" && d.scheme == "tcp" && d.detail.contains("127.0.0.1")));
}

#[test]
fn a_sleeper_wakes_and_an_idle_port_sleeps() {
    let mut p = Pair::new(&config());
    p.a.send(p.ab, 1, b"x", Body::Empty);
    p.receive(1);
    let arm = |side: &mut Side| {
        until("arming", || {
            if side.port.arm() {
                Some(())
            } else {
                side.poll();
                None
            }
        })
    };
    let readable = |side: &Side, ms: i64| {
        let t = Timespec { tv_sec: ms / 1000, tv_nsec: (ms % 1000) * 1_000_000 };
        poll(&mut [PollFd::from_borrowed_fd(side.port.fd(), PollFlags::IN)], Some(&t)).unwrap() == 1
    };
    for n in 0..50 {
        arm(&mut p.b);
        assert!(!readable(&p.b, 20), "woken without work");
        p.a.send(p.ab, n, b"wake", Body::Empty);
        assert!(readable(&p.b, 5000), "not woken");
        assert_eq!(p.receive(1)[0].header, header(n));
    }
    // With work at hand there is no sleep.
    p.a.send(p.ab, 1, b"x", Body::Empty);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!p.b.port.arm());
    p.receive(1);
    // An untaken body is the caller's business: no spinning on it.
    p.a.send(p.ab, 1, b"x", Body::Borrowed(&pattern(100_000, 1)));
    let e = until("the frame", || {
        p.a.poll();
        p.b.next()
    });
    arm(&mut p.b);
    assert!(!readable(&p.b, 20), "spins on an untaken body");
    let (Pending::Done(_) | Pending::Waiting(_)) = p.b.receive(e);
}

const CHILD: &str = "KFAB_SOCKETS_TEST_CHILD";

/// Not a test of its own: the process that `kill_minus_nine` starts and kills.
#[test]
fn child() {
    let Ok(way) = std::env::var(CHILD) else { return };
    let mut a = Side::new(&config());
    let conn = a.port.connect(&Way::new("tcp", way)).unwrap();
    let body = pattern(100_000, 1);
    let mut n = 0;
    until("the end", || {
        for e in {
            a.poll();
            std::mem::take(&mut a.events)
        } {
            assert!(matches!(e, Event::Up { .. } | Event::Writable { .. }), "{e:?}");
        }
        n += a.port.post(conn, &[frame(n, b"more", Body::Borrowed(&body), false)]) as u64;
        None::<()>
    });
}

struct Child(std::process::Child);

impl Child {
    fn start(to: &Side) -> Child {
        let mut c = std::process::Command::new(std::env::current_exe().unwrap());
        c.args(["child", "--exact", "--nocapture"]).env(CHILD, to.way().rest);
        c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Child(c.spawn().unwrap())
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn kill_minus_nine_is_seen_and_what_arrived_was_true() {
    for run in 0..3 {
        let mut b = Side::new(&config());
        let mut child = Child::start(&b);
        let body = pattern(100_000, 1);
        let (mut seen, mut killed, mut waiting) = (0u64, None, false);
        let reason = until("the end", || {
            let e = b.next();
            if seen >= 20 + run * 13 && killed.is_none() {
                child.kill();
                killed = Some(Instant::now());
            }
            match e? {
                Event::Incoming { .. } => {}
                Event::Taken { ok, landing, .. } => {
                    waiting = false;
                    if ok {
                        assert!(landing.unwrap().into_buffer().unwrap()[..] == body);
                        seen += 1;
                    } else {
                        assert!(killed.is_some() && landing.is_some());
                    }
                }
                Event::Down { reason, .. } => return Some(reason),
                e => match b.receive(e) {
                    Pending::Done(g) => {
                        assert!(g.body == body && g.header == header(seen));
                        seen += 1;
                    }
                    Pending::Waiting(g) => {
                        assert_eq!(g.header, header(seen));
                        waiting = true;
                    }
                },
            }
            None
        });
        assert!(reason == DownReason::Broken && !waiting && killed.is_some(), "{reason:?}");
    }
}
