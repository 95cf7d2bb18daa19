//! Taking bodies: into what, when, and what must wait meanwhile.

use crate::bench::{Bench, body, header, number};
use crate::node::Node;
use kfab_core::mem::{Buffer, Landing, WindowMem};
use kfab_core::spi::{Body, Conn, Frame, Inline};
use std::collections::HashMap;

/// Body sizes worth taking: small, a page and a bit, the largest.
fn sizes(x: &mut Node) -> Vec<usize> {
    let max = x.port().caps().max_body.min(4 << 20);
    let mut s = vec![1, 40, 64, 5000, max];
    s.retain(|n| *n <= max);
    s
}

/// For each size: sends a body, takes it with `landing(len)`, and hands what came back to `check`.
fn take_with(
    b: &Bench,
    landing: impl Fn(&Bench, usize) -> Option<Landing>,
    check: impl Fn(usize, Option<Landing>, Vec<u8>),
) {
    let (mut x, mut y, cx, cy) = b.connected();
    y.auto_take = false;
    for (i, len) in sizes(&mut x).into_iter().enumerate() {
        let sent = body(i as u32, len);
        x.send(cx, header(i as u32), &[i as u8], Body::Borrowed(&sent));
        b.until("the frame arrives", &mut [&mut x, &mut y], |n| n[1].waiting.len() == 1);
        let (got, waits) = y.waiting[0].clone();
        assert_eq!((got.conn, number(&got.header), got.inline, waits), (cy, i as u32, vec![i as u8], len));
        y.take(landing(b, len));
        b.until("the body is delivered", &mut [&mut x, &mut y], |n| n[1].landed.len() == 1);
        let (conn, back) = y.landed.remove(0);
        assert_eq!(conn, cy);
        check(len, back, sent);
    }
    // Whatever was left over must not disturb the next frame.
    x.send(cx, header(99), &[1, 2, 3], Body::Empty);
    b.frames(&mut [&mut x, &mut y], 1);
    assert_eq!((number(&y.frames[0].header), &y.frames[0].inline[..]), (99, &[1, 2, 3][..]));
}

fn buffer(b: &Bench, len: usize) -> Option<Landing> {
    let mut buffer = b.pool.alloc(len).expect("memory");
    buffer.get_mut().expect("the only owner").fill(0xC3);
    Some(Landing::whole(buffer).expect("the only owner"))
}

fn bytes(l: Option<Landing>) -> Buffer {
    l.expect("the landing comes back").into_buffer().expect("made from a buffer")
}

pub(super) fn an_exact_landing(b: &Bench) {
    take_with(b, buffer, |_, back, sent| assert!(bytes(back)[..] == sent[..], "{} bytes differ", sent.len()));
}

pub(super) fn a_longer_landing_keeps_its_rest(b: &Bench) {
    let landing = |b: &Bench, len| buffer(b, len + 100);
    take_with(b, landing, |len, back, sent| {
        let got = bytes(back);
        assert_eq!(got.len(), len + 100);
        assert!(got[..len] == sent[..], "{len} bytes differ");
        assert!(got[len..].iter().all(|x| *x == 0xC3), "bytes beyond the body were written");
    });
}

pub(super) fn a_shorter_landing_cuts(b: &Bench) {
    let landing = |b: &Bench, len: usize| {
        let whole = b.pool.copy_from(&vec![0xC3; len]).expect("memory");
        Some(Landing::prefix(whole, len / 2).expect("the only owner"))
    };
    take_with(b, landing, |len, back, sent| {
        let got = bytes(back);
        assert_eq!(got.len(), len, "a prefix gives its buffer back whole");
        assert!(got[..len / 2] == sent[..len / 2], "{} bytes differ", len / 2);
        assert!(got[len / 2..].iter().all(|x| *x == 0xC3), "bytes beyond the landing were written");
    });
}

pub(super) fn a_body_may_be_discarded(b: &Bench) {
    take_with(b, |_, _| None, |_, back, _| assert!(back.is_none(), "a landing came from nowhere"));
}

pub(super) fn a_landing_in_a_window(b: &Bench) {
    let w = b.pool.alloc_window((4 << 20) + 200).expect("memory");
    let check = w.clone();
    let landing = move |_: &Bench, len| {
        w.fill(0x3C);
        Landing::window(&w, 100, len)
    };
    take_with(b, landing, move |len, back, sent| {
        assert_eq!(back.expect("the landing comes back").len(), len);
        let mut got = vec![0; len + 200];
        check.read(0, &mut got);
        assert!(got[100..100 + len] == sent[..], "{len} bytes differ");
        assert!(
            got[..100].iter().chain(&got[100 + len..]).all(|x| *x == 0x3C),
            "bytes around it were written"
        );
    });
}

fn send_four(x: &mut Node, cx: Conn) {
    x.send(cx, header(0), &[], Body::Borrowed(&body(0, 700)));
    x.send(cx, header(1), &[], Body::Empty);
    x.send(cx, header(2), &[], Body::Borrowed(&body(2, 30)));
    x.send(cx, header(3), &[], Body::Empty);
}

pub(super) fn no_next_frame_before_take(b: &Bench) {
    use kfab_core::spi::Delivery;
    let (mut x, mut y, cx, _) = b.connected();
    let ordered = x.port().caps().delivery != Delivery::Datagram;
    y.auto_take = false;
    send_four(&mut x, cx);
    // The node itself checks that no frame of the connection is reported while a body waits.
    b.until("a body waits", &mut [&mut x, &mut y], |n| n[1].waiting.len() == 1);
    b.quiet(&mut [&mut x, &mut y]);
    assert_eq!(y.waiting.len(), 1);
    if ordered {
        assert!(y.frames.is_empty(), "a frame overtook the body before it");
    }
    y.take(None);
    b.until("the other body waits", &mut [&mut x, &mut y], |n| n[1].waiting.len() == 1);
    b.quiet(&mut [&mut x, &mut y]);
    y.take(None);
    b.until("the other frames", &mut [&mut x, &mut y], |n| n[1].frames.len() == 2 && n[1].landed.len() == 2);
    let mut rest: Vec<u32> = y.frames.iter().map(|g| number(&g.header)).collect();
    if !ordered {
        rest.sort_unstable();
    }
    assert_eq!(rest, [1, 3]);
}

pub(super) fn other_connections_go_on_while_a_body_waits(b: &Bench) {
    let (mut x, mut y, c1, d1) = b.connected();
    let (c2, d2) = b.connect(&mut x, &mut y);
    y.auto_take = false;
    x.send(c1, header(0), &[], Body::Borrowed(&body(0, 700)));
    b.until("a body waits", &mut [&mut x, &mut y], |n| n[1].waiting.len() == 1);
    for i in 1..20 {
        x.send(c2, header(i), &[], Body::Empty);
        b.frames(&mut [&mut x, &mut y], i as usize);
    }
    assert!(y.frames.iter().all(|g| g.conn == d2));
    assert_eq!(y.waiting[0].0.conn, d1);
    y.take(buffer(b, 700));
    b.until("the body is delivered", &mut [&mut x, &mut y], |n| n[1].landed.len() == 1);
    assert!(bytes(y.landed.remove(0).1)[..] == body(0, 700)[..]);
}

/// The length of body `n` of a peer that says much and little in turn: whoever guesses the next from the last is often right, and often not.
fn varied(n: u32, max: usize) -> usize {
    const LENS: [usize; 12] =
        [1 << 16, 1 << 16, 9000, 1 << 16, 70, 1 << 16, 1 << 16, 20_000, 8192, 66_000, 1 << 16, 33];
    LENS[n as usize % LENS.len()].min(max)
}

/// Where body `n` lands: for the most part where any memory would do.
fn varied_landing(b: &Bench, window: &WindowMem, n: u32, len: usize) -> Option<Landing> {
    match n % 7 {
        0..=3 => Some(b.pool.landing(len).expect("memory")),
        4 => buffer(b, len + 10),
        5 => Landing::window(window, 0, len),
        _ => None,
    }
}

pub(super) fn bodies_of_any_length_land_anywhere(b: &Bench) {
    const EACH: u32 = 150;
    let (mut x, mut y, c1, d1) = b.connected();
    let (c2, d2) = b.connect(&mut x, &mut y);
    let max = x.port().caps().max_body;
    let windows = [0, 1].map(|_| b.pool.alloc_window(1 << 17).expect("memory"));
    y.auto_take = false;
    let (mut posted, mut done, mut under) = ([0; 2], 0, HashMap::new());
    b.until("all bodies arrive", &mut [&mut x, &mut y], |nodes| {
        let [x, y] = nodes else { unreachable!("two nodes") };
        for (conn, n) in [c1, c2].into_iter().zip(&mut posted) {
            let body = body(*n, varied(*n, max));
            let f =
                Frame { header: header(*n), inline: Inline::EMPTY, body: Body::Borrowed(&body), more: false };
            if *n < EACH {
                *n += x.post(conn, &[f]) as u32;
            }
        }
        for (conn, back) in y.landed.drain(..) {
            assert!(conn == d1 || conn == d2);
            let n = under.remove(&conn).expect("it was taken");
            let sent = body(n, varied(n, max));
            let window = &windows[usize::from(conn == d2)];
            done += 1;
            match (n % 7, back) {
                (6, back) => assert!(back.is_none(), "a landing came from nowhere"),
                (5, back) => {
                    let mut got = vec![0; sent.len()];
                    assert_eq!(back.expect("the landing comes back").len(), sent.len());
                    window.read(0, &mut got);
                    assert!(got == sent, "body {n} differs");
                }
                (kind, back) => {
                    let got = bytes(back);
                    let rest = if kind == 4 { 10 } else { 0 };
                    assert_eq!(got.len(), sent.len() + rest);
                    assert!(got[..sent.len()] == sent[..], "body {n} differs");
                    assert!(
                        got[sent.len()..].iter().all(|b| *b == 0xC3),
                        "bytes beyond body {n} were written"
                    );
                }
            }
        }
        while let Some((got, len)) = y.waiting.first().cloned() {
            let n = number(&got.header);
            assert_eq!(len, varied(n, max));
            let window = &windows[usize::from(got.conn == d2)];
            under.insert(got.conn, n);
            y.take(varied_landing(b, window, n, len));
        }
        done == 2 * EACH
    });
}
