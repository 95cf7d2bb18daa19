//! Ending connections and ports.

use crate::bench::{Bench, all_arrived, body, header, number, numbers};
use crate::node::Node;
use kfab_core::spi::{Body, Conn, Delivery, DownReason, Frame, Inline};

/// Waits until a connection has ended at both sides, and looks that this is all.
fn both_end(b: &Bench, x: &mut Node, y: &mut Node, cx: Conn, cy: Conn) {
    b.until("both ends go down", &mut [x, y], |n| n[0].ended(cx).is_some() && n[1].ended(cy).is_some());
    b.quiet(&mut [x, y]);
    assert_eq!(x.ended(cx), Some(DownReason::Closed), "at the one side");
    assert_eq!(y.ended(cy), Some(DownReason::Closed), "at the other side");
}

/// Posts frames `0..n` as room comes, of all kinds of sizes.
fn post_all(b: &Bench, x: &mut Node, y: &mut Node, cx: Conn, n: u32) {
    let max = x.port().caps().max_body;
    let mut at = 0;
    b.until("all is accepted", &mut [x, y], |nodes| {
        while at < n {
            let data = body(at, [0, 5, 500, 9000, 30_000][at as usize % 5].min(max));
            let f =
                Frame { header: header(at), inline: Inline::EMPTY, body: Body::Borrowed(&data), more: false };
            if nodes[0].post(cx, &[f]) == 0 {
                return false;
            }
            at += 1;
        }
        true
    });
}

pub(super) fn everything_arrives_before_closed(b: &Bench) {
    for n in [0, 1, 2, 100] {
        let (mut x, mut y, cx, cy) = b.connected();
        let caps = x.port().caps().clone();
        post_all(b, &mut x, &mut y, cx, n);
        x.port().close(cx);
        both_end(b, &mut x, &mut y, cx, cy);
        all_arrived(&y, &caps, n);
    }
}

pub(super) fn unread_frames_do_not_hurt_a_close(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    let caps = x.port().caps().clone();
    let ten = |n: &mut Node, conn| {
        let one = |i: &u32| {
            let data = body(*i, 1000);
            let f =
                Frame { header: header(*i), inline: Inline::EMPTY, body: Body::Borrowed(&data), more: false };
            n.post(conn, &[f]) == 1
        };
        (0..10).take_while(one).count() as u32
    };
    ten(&mut y, cy);
    b.quiet(&mut [&mut y]);
    // All these wait at x, unread, when it closes.
    let sent = ten(&mut x, cx);
    x.port().close(cx);
    both_end(b, &mut x, &mut y, cx, cy);
    all_arrived(&y, &caps, sent);
    let got = numbers(&x);
    if caps.delivery != Delivery::Datagram {
        assert_eq!(got, (0..got.len() as u32).collect::<Vec<_>>(), "what it still reads is in order");
    }
}

pub(super) fn both_sides_close(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    x.send(cx, header(1), &[], Body::Borrowed(&body(1, 100)));
    y.send(cy, header(2), &[], Body::Borrowed(&body(2, 100)));
    x.port().close(cx);
    y.port().close(cy);
    both_end(b, &mut x, &mut y, cx, cy);
    assert!(numbers(&x).iter().all(|n| *n == 2) && numbers(&y).iter().all(|n| *n == 1));
}

pub(super) fn a_closed_connection_swallows_posts(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    x.send(cx, header(1), &[], Body::Empty);
    x.port().close(cx);
    let data = body(2, 1000);
    let f = Frame { header: header(2), inline: Inline::EMPTY, body: Body::Borrowed(&data), more: false };
    // Where nobody keeps what is sent, nothing may be swallowed that could not be read.
    let keeps = x.port().caps().delivery != Delivery::Process;
    let swallows = |n| if keeps { n } else { 0 };
    assert_eq!(x.port().post(cx, &[f, f]), swallows(2), "after close");
    x.port().flush();
    both_end(b, &mut x, &mut y, cx, cy);
    assert_eq!(x.port().post(cx, &[f, f, f]), swallows(3), "after Down, at the closing side");
    assert_eq!(y.port().post(cy, &[f]), swallows(1), "after Down, at the other side");
    b.quiet(&mut [&mut x, &mut y]);
    assert_eq!(numbers(&y), [1]);
    assert!(x.frames.is_empty() && x.writable.is_empty());
}

pub(super) fn close_twice_is_harmless(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    x.port().close(cx);
    x.port().close(cx);
    both_end(b, &mut x, &mut y, cx, cy);
    x.port().close(cx);
    y.port().close(cy);
    b.quiet(&mut [&mut x, &mut y]);
    assert_eq!((x.down.len(), y.down.len()), (1, 1));
    b.connect(&mut x, &mut y);
}

pub(super) fn a_dropped_port_is_noticed(b: &Bench) {
    let (mut x, y, cx, _) = b.connected();
    drop(y);
    b.until("the peer's end", &mut [&mut x], |n| n[0].ended(cx).is_some());
    b.quiet(&mut [&mut x]);
    assert_eq!(x.down.len(), 1);
    // The port itself is none the worse.
    let mut z = b.open(&Default::default());
    let (cx, cz) = b.connect(&mut x, &mut z);
    x.send(cx, header(5), &[], Body::Borrowed(&body(5, 50)));
    b.frames(&mut [&mut x, &mut z], 1);
    assert_eq!((z.frames[0].conn, number(&z.frames[0].header)), (cz, 5));
}

pub(super) fn drop_with_traffic_lets_memory_go(b: &Bench) {
    for first in ["sender", "receiver"] {
        let (mut x, mut y, cx, _) = b.connected();
        let len = x.port().caps().max_body.min(8192);
        y.auto_take = false;
        for i in 0..1000 {
            let data = b.pool.copy_from(&body(i, len)).expect("memory");
            let f = Frame {
                header: header(i),
                inline: Inline::EMPTY,
                body: Body::Owned(&[data.as_source()]),
                more: false,
            };
            if x.post(cx, &[f]) == 0 {
                break;
            }
        }
        for _ in 0..20 {
            y.poll(b.rig.now());
            b.rig.idle();
        }
        if first == "sender" {
            drop(x);
            b.quiet(&mut [&mut y]);
            assert_eq!(b.pool.stats().in_use, 0, "lent memory outlived the port that had it");
            drop(y);
        } else {
            drop(y);
            b.until("the end", &mut [&mut x], |n| n[0].ended(cx).is_some());
            assert_eq!(b.pool.stats().in_use, 0, "lent memory outlived its connection");
        }
    }
}

pub(super) fn closing_one_leaves_the_others(b: &Bench) {
    let (mut x, mut y, c1, d1) = b.connected();
    let (c2, d2) = b.connect(&mut x, &mut y);
    x.send(c1, header(1), &[], Body::Borrowed(&body(1, 3000)));
    x.send(c2, header(2), &[], Body::Borrowed(&body(2, 3000)));
    x.port().close(c1);
    both_end(b, &mut x, &mut y, c1, d1);
    x.send(c2, header(3), &[], Body::Borrowed(&body(3, 3000)));
    b.frames(&mut [&mut x, &mut y], 3);
    let mut on_second: Vec<u32> =
        y.frames.iter().filter(|g| g.conn == d2).map(|g| number(&g.header)).collect();
    on_second.sort_unstable();
    assert_eq!(on_second, [2, 3]);
    numbers(&y);
    assert_eq!((x.down.len(), y.down.len()), (1, 1));
}
