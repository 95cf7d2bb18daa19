//! Frames: their parts, sizes, order and number.

use crate::bench::{Bench, all_arrived, body, header, number, numbers};
use crate::node::Node;
use kfab_core::mem::{Buffer, Slice};
use kfab_core::spi::{Body, Caps, Conn, Frame, INLINE_MAX, Inline};

/// The most that a single body of these tests holds: a port with a huge `max_body` need not be filled.
const LARGE: usize = 4 << 20;

/// Sizes around every boundary a port is likely to have.
fn sizes(caps: &Caps) -> Vec<usize> {
    let mut s = vec![0, 1, 63, 64, 65, 4095, 4096, 4097];
    s.extend([caps.eager_max.saturating_sub(1), caps.eager_max, caps.eager_max + 1, caps.fragment]);
    s.extend([caps.max_body.saturating_sub(1), caps.max_body]);
    s.retain(|n| *n <= caps.max_body.min(LARGE));
    s.sort_unstable();
    s.dedup();
    s
}

fn caps_of(x: &mut Node) -> Caps {
    x.port().caps().clone()
}

pub(super) fn inline_parts_of_every_length(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let part = |n: usize| -> Vec<u8> { (0..n).map(|i| (n * 5 + i) as u8).collect() };
    for n in 0..=INLINE_MAX {
        x.send(cx, header(n as u32), &part(n), Body::Empty);
        b.frames(&mut [&mut x, &mut y], n + 1);
    }
    for (n, g) in y.frames.iter().enumerate() {
        assert_eq!((number(&g.header), &g.inline, g.body.len()), (n as u32, &part(n), 0));
    }
}

/// Sends one frame of each size, with whatever body `send` makes, and checks what arrives.
fn each_size(b: &Bench, mut send: impl FnMut(&Bench, &mut Node, Conn, u32, usize)) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    let sizes = sizes(&caps);
    for (i, len) in sizes.iter().enumerate() {
        send(b, &mut x, cx, i as u32, *len);
        b.frames(&mut [&mut x, &mut y], i + 1);
        let g = &y.frames[i];
        assert_eq!((number(&g.header), g.body.len()), (i as u32, *len));
        assert_eq!(g.inline, [7; 8]);
    }
    all_arrived(&y, &caps, sizes.len() as u32);
}

pub(super) fn borrowed_bodies_of_every_size(b: &Bench) {
    each_size(b, |_, x, c, i, len| x.send(c, header(i), &[7; 8], Body::Borrowed(&body(i, len))));
}

pub(super) fn owned_bodies_of_every_size(b: &Bench) {
    each_size(b, |b, x, c, i, len| {
        let buffer = b.pool.copy_from(&body(i, len)).expect("memory");
        x.send(c, header(i), &[7; 8], Body::Owned(&[buffer.as_source()]));
    });
    each_size(b, |_, x, c, i, len| {
        let buffer = Buffer::adopt(body(i, len));
        x.send(c, header(i), &[7; 8], Body::Owned(&[buffer.as_source()]));
    });
}

pub(super) fn owned_bodies_of_several_slices(b: &Bench) {
    each_size(b, |b, x, c, i, len| {
        let whole = body(i, len);
        let cuts = [0, len / 7, len / 7, len / 3, len - len / 4, len];
        let slices: Vec<Slice> = cuts
            .windows(2)
            .enumerate()
            .map(|(k, w)| match k % 2 {
                0 => b.pool.copy_from(&whole[w[0]..w[1]]).expect("memory").as_source(),
                // A part of another region, not at its beginning.
                _ => Buffer::adopt(whole.clone()).slice(w[0]..w[1]).as_source(),
            })
            .collect();
        x.send(c, header(i), &[7; 8], Body::Owned(&slices));
    });
    // More slices than a system call or a work request takes at once.
    let (mut x, mut y, cx, _) = b.connected();
    let len = caps_of(&mut x).max_body.min(3000);
    let whole = Buffer::adopt(body(1, len));
    let slices: Vec<Slice> = (0..len).map(|i| whole.slice(i..i + 1).as_source()).collect();
    x.send(cx, header(1), &[], Body::Owned(&slices));
    b.frames(&mut [&mut x, &mut y], 1);
    assert_eq!(y.frames[0].body, body(1, len));
}

pub(super) fn window_memory_as_body(b: &Bench) {
    each_size(b, |b, x, c, i, len| {
        let w = b.pool.alloc_window(len + 10).expect("memory");
        w.write(5, &body(i, len));
        let part = w.as_source().part(5, len).expect("inside");
        x.send(c, header(i), &[7; 8], Body::Owned(&[part]));
    });
}

pub(super) fn many_frames_arrive(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    let len = |n: u32| ((n as usize * 37) % 900).min(caps.max_body) * usize::from(!n.is_multiple_of(3));
    let mut sent = 0;
    b.until("3000 frames arrive", &mut [&mut x, &mut y], |n| {
        for _ in 0..16 {
            if sent < 3000 {
                let data = body(sent, len(sent));
                let f = Frame {
                    header: header(sent),
                    inline: Inline::EMPTY,
                    body: Body::Borrowed(&data),
                    more: false,
                };
                sent += n[0].post(cx, &[f]) as u32;
            }
        }
        n[1].frames.len() == 3000
    });
    b.quiet(&mut [&mut x, &mut y]);
    all_arrived(&y, &caps, 3000);
    assert!(y.frames.iter().all(|g| g.body.len() == len(number(&g.header))));
}

pub(super) fn a_batch_arrives(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    let parts: Vec<(u32, Vec<u8>)> =
        (0..32).map(|i| (i, body(i, (i as usize * 50).min(caps.max_body)))).collect();
    let frames: Vec<Frame<'_>> = parts
        .iter()
        .map(|(i, d)| Frame {
            header: header(*i),
            inline: Inline::EMPTY,
            body: Body::Borrowed(d),
            more: false,
        })
        .collect();
    let mut at = x.post(cx, &frames);
    assert!(at > 0, "an idle connection takes a frame");
    b.until("32 frames arrive", &mut [&mut x, &mut y], |n| {
        at += n[0].post(cx, &frames[at..]);
        n[1].frames.len() == 32
    });
    all_arrived(&y, &caps, 32);
}

fn with_more(x: &mut Node, cx: Conn, n: u32) {
    for i in 0..n {
        let data = body(i, 20);
        let f = Frame { header: header(i), inline: Inline::EMPTY, body: Body::Borrowed(&data), more: true };
        assert_eq!(x.post(cx, &[f]), 1);
    }
}

pub(super) fn more_waits_for_flush(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    with_more(&mut x, cx, 5);
    x.port().flush();
    // The sender is not polled again: the flush must have done it.
    b.frames(&mut [&mut y], 5);
    all_arrived(&y, &caps, 5);
    with_more(&mut x, cx, 5);
    x.send(cx, header(5), &[], Body::Empty);
    b.frames(&mut [&mut y], 11);
    x.port().flush();
    b.quiet(&mut [&mut x, &mut y]);
    assert_eq!(y.frames.len(), 11);
}

pub(super) fn more_leaves_with_poll(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    with_more(&mut x, cx, 5);
    b.frames(&mut [&mut x, &mut y], 5);
    all_arrived(&y, &caps, 5);
}

pub(super) fn a_borrowed_body_may_change_after_post(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    let sizes = sizes(&caps);
    for (i, len) in sizes.iter().enumerate() {
        let mut data = body(i as u32, *len);
        x.send(cx, header(i as u32), &[], Body::Borrowed(&data));
        data.fill(0xBD);
        drop(data);
        b.frames(&mut [&mut x, &mut y], i + 1);
    }
    all_arrived(&y, &caps, sizes.len() as u32);
}

pub(super) fn owned_memory_is_let_go(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = caps_of(&mut x);
    for (i, len) in sizes(&caps).into_iter().enumerate() {
        let buffer = b.pool.copy_from(&body(i as u32, len)).expect("memory");
        x.send(cx, header(i as u32), &[], Body::Owned(&[buffer.as_source()]));
        drop(buffer);
        let pool = &b.pool;
        b.until("the memory is let go", &mut [&mut x, &mut y], |n| {
            n[1].frames.len() == i + 1 && pool.stats().in_use == 0
        });
    }
    numbers(&y);
}

pub(super) fn too_large_a_body_is_refused(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    let caps = caps_of(&mut x);
    if caps.max_body > 64 << 20 {
        return;
    }
    let (small, large) = (body(0, 10), body(1, caps.max_body + 1));
    let f = |n, d| Frame { header: header(n), inline: Inline::EMPTY, body: Body::Borrowed(d), more: false };
    let n = x.post(cx, &[f(0, &small), f(1, &large), f(2, &small)]);
    b.quiet(&mut [&mut x, &mut y]);
    assert!(numbers(&y).iter().all(|n| *n == 0), "the frame, or one after it, arrived");
    if x.ended(cx).is_none() {
        assert_eq!((n, y.frames.len()), (1, 1), "accepted although it is too large");
        y.send(cy, header(7), &[], Body::Empty);
        x.send(cx, header(3), &[], Body::Borrowed(&body(3, 10)));
        b.until("the connection goes on", &mut [&mut x, &mut y], |n| {
            n[0].frames.len() == 1 && n[1].frames.len() == 2
        });
    }
}
