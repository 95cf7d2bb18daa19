//! Back-pressure, and traffic in both directions.

use crate::bench::{Bench, all_arrived, body, header, numbers};
use crate::node::Node;
use kfab_core::spi::{Body, Conn, Delivery, Frame, INLINE_MAX, Inline};

/// A port must have refused a peer that does not poll after this many bytes.
const BOUND: usize = 256 << 20;

/// Posts frames from number `at` on until one is refused; the next number. Bodies are owned for every other frame.
fn fill(b: &Bench, x: &mut Node, cx: Conn, mut at: u32) -> u32 {
    let len = x.port().caps().max_body.min(4096);
    let mut total = 0;
    loop {
        let data = b.pool.copy_from(&body(at, len)).expect("memory");
        let slices = [data.as_source()];
        let body = if at.is_multiple_of(2) { Body::Owned(&slices) } else { Body::Borrowed(&data) };
        let f = Frame { header: header(at), inline: Inline::EMPTY, body, more: false };
        if x.post(cx, &[f]) == 0 {
            return at;
        }
        at += 1;
        total += len + 64;
        assert!(total < BOUND, "{at} frames were accepted while the peer did not poll: no bound");
    }
}

pub(super) fn a_full_connection_refuses_and_loses_nothing(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = x.port().caps().clone();
    let mut at = fill(b, &mut x, cx, 0);
    // Polling the sender alone may make some room in the transport, but not without end.
    for _ in 0..3 {
        b.quiet(&mut [&mut x]);
        at = fill(b, &mut x, cx, at);
    }
    assert!(x.down.is_empty(), "a full connection was taken for a broken one");
    let before = x.writable.len();
    b.until("room again", &mut [&mut x, &mut y], |n| n[0].writable.len() > before);
    assert!(x.writable.iter().all(|c| *c == cx));
    at = fill(b, &mut x, cx, at);
    b.frames(&mut [&mut x, &mut y], at as usize);
    b.quiet(&mut [&mut x, &mut y]);
    all_arrived(&y, &caps, at);
}

pub(super) fn a_batch_is_accepted_in_part(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let caps = x.port().caps().clone();
    let len = caps.max_body.min(2000);
    let bodies: Vec<Vec<u8>> = (0..64).map(|i| body(i, len)).collect();
    let frame = |n: u32| (header(n), n as usize % 64);
    let (mut next, mut partly) = (0u32, false);
    let mut total = 0;
    // The number of a frame goes on; its body repeats with 64, so only the header tells it.
    while total < BOUND {
        let parts: Vec<_> = (next..next + 64).map(frame).collect();
        let frames: Vec<Frame<'_>> = parts
            .iter()
            .map(|(h, i)| Frame {
                header: *h,
                inline: Inline::EMPTY,
                body: Body::Borrowed(&bodies[*i]),
                more: false,
            })
            .collect();
        let n = x.post(cx, &frames);
        next += n as u32;
        total += n * len;
        partly |= n > 0 && n < 64;
        if n < 64 {
            break;
        }
    }
    assert!(total < BOUND, "no bound");
    b.until("what was accepted arrives", &mut [&mut x, &mut y], |n| n[1].frames.len() >= next as usize);
    b.quiet(&mut [&mut x, &mut y]);
    let mut got: Vec<u32> = y.frames.iter().map(|g| crate::bench::number(&g.header)).collect();
    if caps.delivery == Delivery::Datagram {
        got.sort_unstable();
    }
    assert_eq!(got, (0..next).collect::<Vec<_>>(), "accepted in part: {partly}");
    assert!(y.frames.iter().all(|g| g.body == bodies[crate::bench::number(&g.header) as usize % 64]));
    assert!(!x.writable.is_empty(), "Writable follows a refusal");
}

pub(super) fn a_full_connection_does_not_block_others(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let mut z = b.open(&Default::default());
    let (cz, _) = b.connect(&mut x, &mut z);
    let caps = x.port().caps().clone();
    let at = fill(b, &mut x, cx, 0);
    for i in 0..50 {
        x.send(cz, header(i), &[3; INLINE_MAX], Body::Borrowed(&body(i, 100)));
        b.frames(&mut [&mut x, &mut z], i as usize + 1);
    }
    all_arrived(&z, &caps, 50);
    b.frames(&mut [&mut x, &mut y], at as usize);
    all_arrived(&y, &caps, at);
}

/// Offers frames from `at` on, up to `end`, until one is refused; the number of the next one.
fn offer(x: &mut Node, cx: Conn, mut at: u32, end: u32) -> u32 {
    let max = x.port().caps().max_body;
    while at < end {
        let data = body(at, [0, 10, 3000, 20_000][at as usize % 4].min(max));
        let f = Frame { header: header(at), inline: Inline::EMPTY, body: Body::Borrowed(&data), more: false };
        if x.post(cx, &[f]) == 0 {
            break;
        }
        at += 1;
    }
    at
}

pub(super) fn both_directions_at_once(b: &Bench) {
    const N: u32 = 400;
    let (mut x, mut y, cx, cy) = b.connected();
    let caps = x.port().caps().clone();
    let (mut at_x, mut at_y) = (0, 0);
    b.until("all frames of both sides", &mut [&mut x, &mut y], |n| {
        at_x = offer(n[0], cx, at_x, N);
        at_y = offer(n[1], cy, at_y, N);
        n.iter().all(|n| n.frames.len() == N as usize)
    });
    all_arrived(&x, &caps, N);
    all_arrived(&y, &caps, N);
}

pub(super) fn ping_pong(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    for i in 0..200u32 {
        let len = i as usize % 3 * 50;
        x.send(cx, header(i), &i.to_le_bytes(), Body::Borrowed(&body(i, len)));
        b.frames(&mut [&mut x, &mut y], i as usize + 1);
        y.send(cy, header(i), &i.to_le_bytes(), Body::Borrowed(&body(i, len)));
        b.frames(&mut [&mut y, &mut x], i as usize + 1);
    }
    assert_eq!(numbers(&x), (0..200).collect::<Vec<_>>());
    assert_eq!(numbers(&y), (0..200).collect::<Vec<_>>());
}
