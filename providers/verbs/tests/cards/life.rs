//! The tests themselves.

use crate::driver::{Node, PATIENCE, Peer, WINDOW, connect, header, key_of, until};
use crate::machine::{
    cards, count, counters, expect, expect_resources, forget_address, gid_index, link, manager_at,
    move_address, put_in, resources, stranger, take_out, without,
};
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{Body, DownReason, Provider, Rights, Rma};
use kfab_core::{Fate, Kind};
use kfab_verbs::Verbs;
use std::collections::HashSet;
use std::time::{Duration, Instant};

fn pair() -> (Node, Node) {
    let c = cards().expect("checked before");
    (Node::open(&c[0]), Node::open(&c[1]))
}

pub(crate) fn probe_names_the_cards() {
    let all = Verbs.probe().expect("cards");
    for d in &all {
        assert!(d.detail.contains("ACTIVE") && d.detail.contains("Mbit/s"), "{d:?}");
        assert!(d.detail.contains("10.8.0."), "the address of the lab's cable is missing: {d:?}");
        assert!(d.caps.rma && d.caps.weight > 0);
        let n = Node::open(&d.name);
        assert!(d.detail.contains(n.way().rest.rsplit_once(':').expect("a port").0), "{} {d:?}", n.way());
    }
}

pub(crate) fn two_hundred_connections() {
    let before = resources();
    let (mut a, mut b) = pair();
    let with_ports = resources();
    let way = b.way();
    let names: Vec<_> = (0..200).map(|_| a.port.connect(&way).expect("a way")).collect();
    until("200 connections", &mut [&mut a, &mut b], |n| {
        assert!(n[0].down.is_empty(), "{:?}", n[0].down);
        n[0].up.len() == 200 && n[1].incoming.len() == 200
    });
    let body: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();
    for (i, c) in names.iter().enumerate() {
        assert!(a.send(*c, i as u32, &[], Body::Borrowed(&body)));
    }
    until("a frame over each", &mut [&mut a, &mut b], |n| n[1].frames.len() == 200);
    assert!(b.frames.iter().all(|f| f.3 == body));
    assert_eq!(b.frames.iter().map(|f| f.1).collect::<HashSet<_>>().len(), 200);
    assert_eq!(b.frames.iter().map(|f| f.0).collect::<HashSet<_>>().len(), 200);
    let held = resources().join(" ");
    assert!(held.contains("qp 201"), "200 connections are 200 queue pairs: {held}");
    names.iter().for_each(|c| a.port.close(*c));
    until("200 ends", &mut [&mut a, &mut b], |n| n[0].down.len() == 200 && n[1].down.len() == 200);
    let all = a.down.values().chain(b.down.values());
    all.for_each(|d| assert_eq!(d.0, DownReason::Closed, "{}", d.1));
    // The ports keep memory for the next connections, and nothing of these.
    expect(&without(&with_ports, "mr"), || without(&resources(), "mr"));
    drop((a, b));
    expect_resources(&before);
}

pub(crate) fn no_receiver_is_ever_not_ready() {
    const FRAMES: u32 = 6000;
    let before = counters("rnr");
    let sent_before: u64 = counters("rdma_sends").values().sum();
    let (mut a, mut b) = pair();
    let (ca, cb) = connect(&mut a, &mut b);
    let body = vec![0x5A; 3000];
    let (mut sa, mut sb, mut turn) = (0, 0, 0u32);
    let limit = Instant::now() + PATIENCE;
    while a.frames.len() < FRAMES as usize || b.frames.len() < FRAMES as usize {
        assert!(Instant::now() < limit, "{} and {} frames", a.frames.len(), b.frames.len());
        let len = |n: u32| [0, 100, 3000][n as usize % 3];
        while sa < FRAMES && a.send(ca, sa, &[1; 40], Body::Borrowed(&body[..len(sa)])) {
            sa += 1;
        }
        while sb < FRAMES && b.send(cb, sb, &[], Body::Borrowed(&body[..len(sb)])) {
            sb += 1;
        }
        // One side is often late.
        turn += 1;
        a.poll();
        if turn.is_multiple_of(5) {
            b.poll();
        }
    }
    for n in [&a, &b] {
        assert!(n.frames.iter().enumerate().all(|(i, f)| f.1 == header(i as u32)));
        assert!(n.writable > 0, "the test never filled the connection");
    }
    assert_eq!(counters("rnr"), before, "a receiver was not ready");
    assert!(counters("rdma_sends").values().sum::<u64>() > sent_before, "the counters do not count");
}

/// What one peer has sent and nobody has taken, when its connection ends, are no receives for the next peer.
pub(crate) fn what_the_dead_have_sent_is_no_receive_for_the_living() {
    /// All that may be under way to a peer that takes nothing.
    const CREDITS: u32 = 32;
    let before = counters("rnr");
    let body = vec![0x5A; 3000];
    let (mut a, mut b) = pair();
    let (ca, cb) = connect(&mut a, &mut b);
    b.holds = Some(0);
    let sent = (0..CREDITS).take_while(|n| a.send(ca, *n, &[], Body::Borrowed(&body))).count();
    assert_eq!(sent, CREDITS as usize);
    until("the first frame", &mut [&mut a, &mut b], |n| n[1].holds == Some(1));
    // Neither that the others are here nor that the connection has ended is told before what waits is taken.
    let settle = |nodes: &mut [&mut Node]| {
        let settled = Instant::now() + Duration::from_millis(500);
        until("nothing", nodes, |_| Instant::now() > settled);
    };
    settle(&mut [&mut a, &mut b]);
    drop(a);
    settle(&mut [&mut b]);

    let mut next = Node::open(&cards().expect("checked before")[0]);
    let (cn, _) = connect(&mut next, &mut b);
    // The living says nothing for as long as a receiver may be asked again.
    let sent = (0..CREDITS).take_while(|n| next.send(cn, *n, &[], Body::Borrowed(&body))).count();
    assert_eq!(sent, CREDITS as usize);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(counters("rnr"), before, "a receiver was not ready");
    until("the next one's first frame", &mut [&mut next, &mut b], |n| n[1].holds == Some(2));
    // The dead one's are there still.
    b.holds = None;
    b.port.take(cb, None);
    until("the end", &mut [&mut b], |n| n[0].down.contains_key(&cb));
    assert_eq!(b.frames.iter().filter(|f| f.0 == cb).count(), CREDITS as usize - 1);
}

pub(crate) fn a_large_read_and_write_in_pieces() {
    let (mut a, mut b) = pair();
    let (ca, _) = connect(&mut a, &mut b);
    let pool = Pool::new(Default::default());
    // More than soft-RoCE's largest message, 8 MiB.
    let len = (9 << 20) + 123;
    let w = pool.alloc_window(len).expect("memory");
    let e = b.port.expose(&w.as_source(), Rights::READ | Rights::WRITE).expect("exposed");
    let bytes: Vec<u8> = (0..len).map(|i| (i ^ (i >> 9)) as u8).collect();
    let source = pool.copy_from(&bytes).expect("memory").as_source();
    a.start(ca, Rma::Write { source, key: e.key, offset: 0 }, 1);
    until("the write", &mut [&mut a, &mut b], |n| n[0].rma.contains_key(&1));
    assert!(a.rma[&1].1.is_ok(), "{:?}", a.rma[&1].1);
    let mut got = vec![0; len];
    w.read(0, &mut got);
    assert!(got == bytes, "the write arrived changed");
    let landing = Landing::whole(Buffer::adopt(vec![0; len - 7])).expect("one owner");
    a.start(ca, Rma::Read { landing, key: e.key, offset: 7 }, 2);
    until("the read", &mut [&mut a, &mut b], |n| n[0].rma.contains_key(&2));
    let (back, result) = a.rma.remove(&2).expect("waited for");
    assert!(
        result.is_ok() && back.expect("handed back")[..] == bytes[7..],
        "the read arrived changed: {result:?}"
    );
    b.port.revoke(e);
}

pub(crate) fn nothing_is_written_after_revoke() {
    let pool = Pool::new(Default::default());
    for round in 0..10u64 {
        let (mut a, mut b) = pair();
        let (ca, _) = connect(&mut a, &mut b);
        let w = pool.alloc_window(1 << 20).expect("memory");
        let e = b.port.expose(&w.as_source(), Rights::WRITE).expect("exposed");
        let source = pool.copy_from(&vec![0xAB; 64 << 10]).expect("memory").as_source();
        for i in 0..64 {
            a.start(ca, Rma::Write { source: source.clone(), key: e.key, offset: (i % 16) << 16 }, i);
        }
        until("some writes", &mut [&mut a, &mut b], |n| n[0].rma.len() as u64 > round);
        b.port.revoke(e);
        w.fill(0);
        until("all writes end", &mut [&mut a, &mut b], |n| n[0].rma.len() == 64);
        std::thread::sleep(Duration::from_millis(20));
        let mut got = vec![1; 1 << 20];
        w.read(0, &mut got);
        assert!(got.iter().all(|x| *x == 0), "round {round}: a peer wrote after revoke had returned");
        a.start(ca, Rma::Write { source, key: e.key, offset: 0 }, 99);
        until("a late write ends", &mut [&mut a, &mut b], |n| n[0].rma.contains_key(&99));
        assert!(a.rma[&99].1.is_err());
        let refused = a.rma.values().filter_map(|r| r.1.as_ref().err());
        let kinds: Vec<_> = refused.map(|e| (e.kind(), e.fate())).collect();
        assert!(kinds.contains(&(Kind::AccessDenied, Fate::Refused)), "nothing was refused: {kinds:?}");
    }
}

pub(crate) fn peers_killed_in_mid_write() {
    const ROUNDS: u64 = 50;
    // Far more than a card moves while a process dies.
    const WRITES: u64 = 64;
    let c = cards().expect("checked before");
    let before = resources();
    let mut a = Node::open(&c[0]);
    let pool = Pool::new(Default::default());
    let source = pool.copy_from(&vec![0x77; 512 << 10]).expect("memory").as_source();
    let with_port = resources();
    let (mut cut, mut registrations) = (0, Vec::new());
    for round in 0..ROUNDS {
        let mut peer = Peer::spawn(&c[1]);
        let conn = a.port.connect(&peer.way).expect("a way");
        a.frames.clear();
        until("the peer's key", &mut [&mut a], |n| !n[0].frames.is_empty());
        let key = key_of(&a.frames[0].2);
        a.rma.clear();
        // In some rounds it dies in peace: small frames have arrived, and no completion will ever tell so. (The port's own assertion
        // that no request is counted for ever.)
        let writes = if round % 5 == 4 { 0 } else { WRITES };
        if writes == 0 {
            (0..7).for_each(|n| assert!(a.send(conn, n, &[7], Body::Empty)));
            let seen = Instant::now() + Duration::from_millis(50);
            until("they have arrived", &mut [&mut a], |_| Instant::now() > seen);
        }
        for i in 0..writes {
            let offset = (i * source.len() as u64) % (WINDOW - source.len()) as u64;
            a.start(conn, Rma::Write { source: source.clone(), key, offset }, i);
        }
        until("some writes", &mut [&mut a], |n| writes == 0 || n[0].rma.len() as u64 > round % 4);
        peer.kill();
        let killed = Instant::now();
        until("every operation ends", &mut [&mut a], |n| {
            n[0].rma.len() as u64 == writes && n[0].down.contains_key(&conn)
        });
        assert!(killed.elapsed() < Duration::from_secs(100), "the end took {:?}", killed.elapsed());
        let (reason, why) = &a.down[&conn];
        assert!(matches!(reason, DownReason::PeerDead | DownReason::Broken), "{reason:?} {why}");
        cut += u32::from(a.rma.values().any(|r| r.1.is_err()));
        registrations.push(count(&resources(), &c[0], "mr"));
    }
    assert!(cut > 0, "no kill met a write under way");
    // Nothing of any connection is left, and not a registration for each: some memory is kept for the next.
    expect(&without(&with_port, "mr"), || without(&resources(), "mr"));
    let (first, last) = (registrations.first().expect("rounds"), registrations.last().expect("rounds"));
    assert!(*last <= first + 3, "registrations grow: {registrations:?}");
    drop(a);
    expect_resources(&before);
}

/// Ends by an error, then works again.
fn broken_by(how: &str, back: &str) {
    let (mut a, mut b) = pair();
    let (ca, cb) = connect(&mut a, &mut b);
    link(how);
    let mut n = 0;
    let mut posts = 0;
    until("the connection breaks", &mut [&mut a, &mut b], |nodes| {
        posts += 1;
        if posts % 50 == 0 {
            n += 1;
            nodes[0].send(ca, n, &[], Body::Empty);
            nodes[1].send(cb, n, &[], Body::Empty);
        }
        nodes[0].down.contains_key(&ca) && nodes[1].down.contains_key(&cb)
    });
    link(back);
    for (node, conn) in [(&a, ca), (&b, cb)] {
        let (reason, why) = &node.down[&conn];
        assert!(matches!(reason, DownReason::Broken | DownReason::PeerDead), "{reason:?} {why}");
    }
    works_again(&mut a, &mut b);
}

/// Connects until a frame has come through.
pub(crate) fn works_again(a: &mut Node, b: &mut Node) {
    let limit = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < limit, "no connection after healing: {:?}", a.down);
        // The card tells late that its port is up again; until then it says that it is down.
        let Ok(conn) = a.port.connect(&b.way()) else {
            a.poll();
            b.poll();
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        until("an outcome", &mut [a, b], |n| n[0].up.contains(&conn) || n[0].down.contains_key(&conn));
        if a.up.contains(&conn) && a.send(conn, 77, &[], Body::Empty) {
            let before = b.frames.len();
            until("a frame or an end", &mut [a, b], |n| {
                n[1].frames.len() > before || n[0].down.contains_key(&conn)
            });
            if b.frames.len() > before {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn a_cut_link_breaks_and_heals() {
    broken_by("down", "up");
}

pub(crate) fn packets_lost_in_silence_end_in_an_error() {
    broken_by("drop", "pass");
}

pub(crate) fn a_port_that_is_down_is_used_when_it_comes_up() {
    let c = cards().expect("checked before");
    link("down");
    let (mut a, mut b) = (Node::open(&c[0]), Node::open(&c[1]));
    let e = a.port.connect(&b.way()).expect_err("a connection over a port that is down");
    assert!(e.to_string().contains("is down") && e.kind() == Kind::Unavailable, "{e}");
    link("up");
    works_again(&mut a, &mut b);
}

/// It is taken away and given again, behind another; ports that are open go on from its new place.
pub(crate) fn an_address_may_move_in_the_cards_table() {
    let card = cards().expect("checked before").remove(0);
    let (mut a, mut b) = pair();
    let before = gid_index(&card, OWN).expect("the address of the lab's cable");
    move_address(&card, OWN, OTHER, PEERS);
    let limit = Instant::now() + PATIENCE;
    while gid_index(&card, OWN).is_none_or(|index| index == before) {
        assert!(Instant::now() < limit, "the address is where it was");
        std::thread::sleep(Duration::from_millis(20));
    }
    works_again(&mut a, &mut b);
    works_again(&mut b, &mut a);
    drop((a, b));
    forget_address(&card, OTHER);
}

/// The addresses at the ends of the lab's cable, and one that nobody has.
const OWN: &str = "10.8.0.1";
const PEERS: &str = "10.8.0.2";
const OTHER: &str = "10.8.9.1";

pub(crate) fn a_card_taken_out_is_let_go_and_used_again() {
    let before = resources();
    let (mut a, mut b) = pair();
    let (ca, cb) = connect(&mut a, &mut b);
    let pool = Pool::new(Default::default());
    let window = pool.alloc_window(1 << 20).expect("memory");
    let exposure = b.port.expose(&window.as_source(), Rights::WRITE).expect("a window");
    let (card, way) = (cards().expect("checked before").remove(1), b.way());
    // Work is under way when it happens.
    for token in 0..20 {
        let source = pool.alloc(1 << 20).expect("memory").as_source();
        a.start(ca, Rma::Write { source, key: exposure.key, offset: 0 }, token);
    }
    let mut out = take_out(&card);
    until("the card is let go", &mut [&mut a, &mut b], |n| {
        let ended = n[0].down.contains_key(&ca) && n[1].down.contains_key(&cb) && n[0].rma.len() == 20;
        ended && out.try_wait().expect("a child").is_some()
    });
    assert!(out.wait().expect("a child").success() && !cards().expect("the other").contains(&card));
    let e = b.port.connect(&a.way()).expect_err("a connection without a card");
    assert!(e.to_string().contains("taken out") && e.kind() == Kind::Unavailable, "{e}");
    b.port.expose(&window.as_source(), Rights::WRITE).expect_err("a window on no card");

    // Peers have a key to the window, which is still open: the other epoch tells them that it opens nothing any more.
    let epoch = b.port.epoch();
    put_in(&card);
    works_again(&mut a, &mut b);
    assert_eq!(b.way(), way);
    assert!(b.port.epoch() != epoch && a.port.epoch() == 0);
    let after = b.port.expose(&window.as_source(), Rights::WRITE).expect("a window");
    assert!(after.id > exposure.id && !b.incoming[1..].contains(&cb), "names are not used again");
    b.port.revoke(exposure);
    let (ca, _) = connect(&mut a, &mut b);
    let source = pool.copy_from(&[7; 4096]).expect("memory").as_source();
    a.start(ca, Rma::Write { source, key: after.key, offset: 100 }, 100);
    until("the write ends", &mut [&mut a, &mut b], |n| n[0].rma.len() == 21);
    let mut got = [0; 4096];
    window.read(100, &mut got);
    assert_eq!(got, [7; 4096], "the end of the old window took the new one along");
    b.port.revoke(after);
    drop((a, b));
    expect_resources(&before);
}

pub(crate) fn the_manager_connects_when_asked() {
    let c = cards().expect("checked before");
    let ids = |card: &str| count(&resources(), card, "cm_id");
    for (one, other, more) in [("", "", 0), ("+cm", "", 1), ("", "+cm", 1), ("+cm", "+cm", 1)] {
        let (mut a, mut b) = (Node::open(&format!("{}{one}", c[0])), Node::open(&format!("{}{other}", c[1])));
        let before = (ids(&c[0]), ids(&c[1]));
        let (ca, cb) = connect(&mut a, &mut b);
        assert_eq!((ids(&c[0]), ids(&c[1])), (before.0 + more, before.1 + more), "{one:?} to {other:?}");
        a.send(ca, 1, b"there", Body::Empty);
        b.send(cb, 2, b"back", Body::Empty);
        until("a frame each way", &mut [&mut a, &mut b], |n| n.iter().all(|n| n.frames.len() == 1));
    }
}

pub(crate) fn a_strangers_request_is_nothing() {
    let c = cards().expect("checked before");
    let (mut a, mut b) = (Node::open(&format!("{}+cm", c[0])), Node::open(&format!("{}+cm", c[1])));
    let with_ports = resources();
    let way = b.way();
    let ip = way.rest.rsplit_once(':').expect("a port").0;
    let mut asks = stranger(ip, manager_at(ip));
    until("the stranger is refused", &mut [&mut a, &mut b], |_| asks.try_wait().expect("a child").is_some());
    assert!(!asks.wait().expect("a child").success());
    expect_resources(&with_ports);
    assert!(b.incoming.is_empty());
    works_again(&mut a, &mut b);
}

pub(crate) fn the_short_way_down_keeps_the_order() {
    let (mut a, mut b) = pair();
    let (ca, _) = connect(&mut a, &mut b);
    let lengths: Vec<usize> = (0..600).map(|n| [8, 0, 40, 41, 100, 232, 233, 1000, 16_000][n % 9]).collect();
    let text = |n: usize| -> Vec<u8> { (0..lengths[n]).map(|at| (n + at) as u8).collect() };
    let (mut n, mut waited) = (0, 0);
    until("all frames", &mut [&mut a, &mut b], |nodes| {
        // Every third takes the long way. Nothing is polled between, so that credits run out.
        while n < lengths.len() {
            let bytes = text(n);
            let sent = match n % 3 {
                0 => nodes[0].send(ca, n as u32, &[], Body::Borrowed(&bytes)),
                _ => nodes[0].port.post_small(ca, u128::from_le_bytes(header(n as u32)), &bytes),
            };
            if !sent {
                waited += 1;
                break;
            }
            n += 1;
        }
        nodes[1].frames.len() == lengths.len()
    });
    assert!(waited > 0 && a.down.is_empty(), "{waited} {:?}", a.down);
    for (n, (_, head, inline, body)) in b.frames.iter().enumerate() {
        assert_eq!((*head, [&inline[..], body].concat()), (header(n as u32), text(n)), "frame {n}");
        assert!(n % 3 == 0 || inline.len() == if lengths[n] <= 40 { lengths[n] } else { 0 }, "frame {n}");
    }
}
