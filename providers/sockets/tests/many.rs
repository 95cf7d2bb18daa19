//! Many peers on one port: memory of idle ones, and that the process runs out of descriptors in good order.
//! One test per process image: both look at what the whole process uses.

mod common;

use common::*;
use kfab_core::spi::{Body, Event, PortConfig};

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

/// Connects `n` times from `a` to `b` and sends a body over each.
fn connect_all(a: &mut Side, b: &mut Side, n: usize, body: &[u8]) {
    for _ in 0..n {
        a.port.connect(&b.way()).unwrap();
    }
    let (mut up, mut seen) = (0, 0);
    until("all connections", || {
        a.poll();
        for e in std::mem::take(&mut a.events) {
            let Event::Up { conn } = e else { panic!("{e:?}") };
            a.send(conn, up, b"hello", Body::Borrowed(body));
            up += 1;
        }
        // Polled only when all it reported has been dealt with: untaken bodies keep staging memory.
        let e = b.events.pop_front().or_else(|| b.next());
        match e {
            None | Some(Event::Incoming { .. }) => {}
            Some(Event::Taken { ok, landing, .. }) => {
                assert!(ok && landing.unwrap().into_buffer().unwrap()[..] == *body);
                seen += 1;
            }
            Some(e) => {
                if let Pending::Done(g) = b.receive(e) {
                    assert!(g.body == body);
                    seen += 1;
                }
            }
        }
        (seen == n).then_some(())
    });
}

#[test]
fn idle_peers_are_cheap_and_descriptors_are_a_named_limit() {
    let c = PortConfig { connect_timeout: LIMIT, ..config() };
    let (mut a, mut b) = (Side::new(&c), Side::new(&c));
    let body = pattern(20_000, 1);
    // The first burst pays for what the allocator keeps.
    connect_all(&mut a, &mut b, 300, &body);
    let before = resident_bytes();
    const N: usize = 1000;
    connect_all(&mut a, &mut b, N, &body);
    // Both ends of each connection live here.
    let each = resident_bytes().saturating_sub(before) / N / 2;
    println!("{each} bytes per idle connection");
    assert!(each <= 8 << 10, "{each} bytes per idle connection");

    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let low = rustix::process::Rlimit { current: Some(open + 10), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, low).unwrap();
    for _ in 0..40 {
        a.port.connect(&b.way()).unwrap();
    }
    let detail = until("the limit", || {
        b.poll();
        match a.next()? {
            Event::Down { detail, .. } => Some(detail),
            _ => None,
        }
    });
    assert!(detail.contains("ulimit -n"), "{detail}");
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    // Those that did get a descriptor come up once the other side has some again.
    a.events.clear();
    let conn = a.port.connect(&b.way()).unwrap();
    until("connections again", || {
        b.poll();
        matches!(a.next(), Some(Event::Up { conn: c }) if c == conn).then_some(())
    });
}
