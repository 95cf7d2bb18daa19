//! Frames between two ports of one process: contents, order, bodies of all kinds, back-pressure, encryption.

mod common;

use common::*;
use kfab_core::mem::{Buffer, Pool, WindowMem};
use kfab_core::spi::{Body, Conn, Event, Frame, Next, PortConfig, RmaStarted};

fn policies() -> [PortConfig; 3] {
    [config(), keyed(1, false), keyed(1, true)]
}

#[test]
fn small_frames_arrive_in_order_and_whole() {
    for c in policies() {
        let mut p = Pair::new(&c);
        for n in 0..1000u64 {
            let inline = pattern((n % 41) as usize, n);
            p.a.send(p.ab, n, &inline, Body::Empty);
        }
        for (n, got) in p.receive(1000).into_iter().enumerate() {
            let n = n as u64;
            assert_eq!(
                got,
                Got { conn: p.ba, header: header(n), inline: pattern((n % 41) as usize, n), body: vec![] }
            );
        }
    }
}

#[test]
fn frames_that_wait_leave_at_flush_and_at_poll() {
    let mut p = Pair::new(&config());
    assert_eq!(p.a.port.post(p.ab, &[frame(1, b"x", Body::Empty, true)]), 1);
    for _ in 0..100 {
        assert!(p.b.next().is_none(), "left before the flush");
    }
    p.a.port.flush();
    let got = until("the flushed frame", || p.b.next());
    assert!(matches!(got, Event::Frame { .. }));
    assert_eq!(p.a.port.post(p.ab, &[frame(2, b"y", Body::Empty, true)]), 1);
    assert_eq!(p.receive(1)[0].inline, b"y");
}

#[test]
fn the_short_way_and_the_long_one_keep_one_order() {
    let mut p = Pair::new(&config());
    let body = pattern(5000, 1);
    let (mut short, mut want) = (0, 0u64);
    for round in 0..300u64 {
        // One alone, several together, with and without bodies, in all orders.
        let kinds = [round % 3, (round / 3) % 3, (round / 9) % 3];
        for (i, kind) in kinds.into_iter().enumerate().take(1 + (round % 4) as usize) {
            let body = if kind == 2 { Body::Borrowed(&body[..]) } else { Body::Empty };
            let f = frame(want, &pattern(8 * kind as usize, want), body, round % 2 == 1 && i < 2);
            assert_eq!(p.a.port.post(p.ab, &[f]), 1);
            want += 1;
        }
        p.a.port.flush();
        let mut next = want - (1 + (round % 4)).min(3);
        until("all of the round", || {
            short += u64::from(p.b.short() == Next::Frame);
            let e = p.b.events.pop_front().or_else(|| p.b.next());
            match e {
                None => {}
                Some(Event::Taken { .. }) => {}
                Some(e) => {
                    let (Pending::Done(got) | Pending::Waiting(got)) = p.b.receive(e);
                    assert_eq!(got.header, header(next));
                    assert_eq!(got.inline, pattern(got.inline.len(), next));
                    next += 1;
                }
            }
            (next == want).then_some(())
        });
    }
    assert!(short > 50, "the short way was open {short} times only");
}

#[test]
fn small_frames_that_fill_the_socket_are_cut_nowhere() {
    let mut p = Pair::new(&config());
    let mut accepted = 0;
    while p.a.port.post(p.ab, &[frame(accepted, &pattern(1 + accepted as usize % 40, 3), Body::Empty, false)])
        == 1
    {
        accepted += 1;
        assert!(accepted < 10_000_000, "no back-pressure");
    }
    for (n, got) in p.receive(accepted as usize).into_iter().enumerate() {
        assert!(got.header == header(n as u64) && got.inline == pattern(1 + n % 40, 3), "{n}: {got:?}");
    }
}

#[test]
fn nobody_sleeps_on_what_the_short_way_left() {
    let mut p = Pair::new(&config());
    p.a.send(p.ab, 0, b"warm", Body::Empty);
    p.receive(1);
    let mut seen = 0;
    for n in 0..200u64 {
        for i in 0..3 {
            p.a.port.post(p.ab, &[frame(3 * n + i, b"12345678", Body::Empty, true)]);
        }
        p.a.port.flush();
        let first = until("the first", || {
            seen += u64::from(p.b.short() == Next::Frame);
            p.b.events.pop_front().or_else(|| {
                p.b.poll_fully();
                p.b.events.pop_front()
            })
        });
        assert!(matches!(first, Event::Frame { header: h, .. } if h == header(3 * n)), "{first:?}");
        if p.b.events.is_empty() {
            assert!(!p.b.port.arm(), "two frames lie there");
        }
        let rest: Vec<_> = std::iter::from_fn(|| p.b.events.pop_front()).collect();
        let missing = 2 - rest.len();
        assert_eq!(p.receive(missing).len(), missing);
    }
    assert!(seen > 20, "the short way was open {seen} times only");
}

#[test]
fn bodies_of_every_size_and_kind() {
    for c in policies() {
        let mut p = Pair::new(&c);
        let pool = Pool::new(Default::default());
        for (n, len) in [1, 63, 4095, 4096, 4097, 8192, 65_536, 300_000, 1 << 20].into_iter().enumerate() {
            let want = pattern(len, n as u64);
            p.a.send(p.ab, 1, b"borrowed", Body::Borrowed(&want));
            assert_eq!(p.receive(1)[0].body, want);
            let cut = len / 3;
            let parts = [
                pool.copy_from(&want[..cut]).unwrap().as_source(),
                pool.copy_from(&want[cut..]).unwrap().as_source(),
            ];
            p.a.send(p.ab, 2, b"owned", Body::Owned(&parts));
            assert_eq!(p.receive(1)[0].body, want);
            let w: WindowMem = pool.alloc_window(len).unwrap();
            w.write(0, &want);
            p.a.send(p.ab, 3, b"window", Body::Owned(&[w.as_source()]));
            assert_eq!(p.receive(1)[0].body, want);
        }
    }
}

#[test]
fn many_bodies_in_one_batch_both_ways() {
    for c in policies() {
        let mut p = Pair::new(&c);
        let bodies: Vec<Vec<u8>> = (0..40).map(|i| pattern(i * 997, i as u64)).collect();
        let shared: Vec<Buffer> = bodies.iter().map(|b| Buffer::adopt(b.clone())).collect();
        let slices: Vec<_> = shared.iter().map(|b| [b.as_source()]).collect();
        let frames: Vec<Frame<'_>> = slices
            .iter()
            .enumerate()
            .map(|(i, s)| {
                frame(i as u64, &[i as u8], if i == 0 { Body::Empty } else { Body::Owned(s) }, i % 3 != 0)
            })
            .collect();
        assert_eq!(p.a.port.post(p.ab, &frames), 40);
        assert_eq!(p.b.port.post(p.ba, &frames), 40);
        for (i, got) in p.receive(40).into_iter().enumerate() {
            assert_eq!(
                (got.header, &got.inline[..], &got.body),
                (header(i as u64), &[i as u8][..], &bodies[i])
            );
        }
        for (i, got) in drive(&mut p.b, &mut p.a, 40).into_iter().enumerate() {
            assert_eq!((got.header, &got.body), (header(i as u64), &bodies[i]));
        }
        drop(slices);
        assert!(
            shared.into_iter().all(|mut b| b.get_mut().is_some()),
            "a share is still held after all was sent"
        );
    }
}

#[test]
fn a_body_can_be_discarded_or_land_short() {
    for c in policies() {
        let mut p = Pair::new(&c);
        for len in [100usize, 200_000] {
            let body = pattern(len, 3);
            for (n, room) in [(1, None), (2, Some(10)), (3, Some(len / 2)), (4, Some(len + 9))] {
                p.a.send(p.ab, n, b"", Body::Borrowed(&body));
                p.a.send(p.ab, n + 100, b"after", Body::Empty);
                let e = until("the frame", || {
                    p.a.poll();
                    p.b.next()
                });
                assert!(matches!(e, Event::Frame { conn, body_len, .. } if conn == p.ba && body_len == len));
                for _ in 0..20 {
                    assert!(p.b.next().is_none(), "an event before the body was taken");
                }
                let landed = p.b.port.take(p.ba, room.map(landing)).unwrap_or_else(|| {
                    until("the body", || {
                        p.a.poll();
                        match p.b.next()? {
                            Event::Taken { landing, ok: true, .. } => Some(landing),
                            e => panic!("{e:?}"),
                        }
                    })
                });
                assert_eq!(landed.is_some(), room.is_some());
                if let Some(l) = landed {
                    let got = l.into_buffer().expect("a whole buffer");
                    let n = len.min(got.len());
                    assert_eq!(&got[..n], &body[..n]);
                    assert!(got[n..].iter().all(|b| *b == 0xEE), "bytes beyond the body were touched");
                }
                let after = p.receive(1);
                assert_eq!((after[0].header, &after[0].inline[..]), (header(n + 100), &b"after"[..]));
            }
        }
    }
}

/// Posts until refused; the number accepted.
fn fill(side: &mut Side, conn: Conn, body: &[u8]) -> u64 {
    let mut n = 0;
    while side.port.post(conn, &[frame(n, b"", Body::Borrowed(body), false)]) == 1 {
        n += 1;
        assert!(n < 100_000, "no back-pressure");
    }
    n
}

#[test]
fn a_slow_reader_holds_the_writer_back_and_nothing_is_lost() {
    for c in policies() {
        let mut p = Pair::new(&c);
        let body = pattern(10_000, 1);
        let accepted = fill(&mut p.a, p.ab, &body);
        assert!(accepted > 50, "{accepted}");
        assert_eq!(p.a.port.post(p.ab, &[frame(0, b"", Body::Empty, false)]), 0, "still refused");
        let mut seen = 0;
        let mut writable = false;
        until("everything", || {
            p.a.poll();
            writable |= p.a.events.drain(..).any(|e| matches!(e, Event::Writable { conn } if conn == p.ab));
            if let Some(e) = p.b.next() {
                let got = match e {
                    Event::Taken { landing, ok, .. } => {
                        assert!(ok);
                        Some(landing.unwrap().into_buffer().expect("a whole buffer").to_vec())
                    }
                    e => match p.b.receive(e) {
                        Pending::Done(g) => {
                            assert_eq!(g.header, header(seen));
                            Some(g.body)
                        }
                        Pending::Waiting(_) => None,
                    },
                };
                if let Some(got) = got {
                    assert!(got == body, "frame {seen}");
                    seen += 1;
                }
            }
            (seen == accepted && writable).then_some(())
        });
        p.a.send(p.ab, 7, b"again", Body::Empty);
        assert_eq!(p.receive(1)[0].inline, b"again");
    }
}

#[test]
fn small_frames_in_batches_stay_in_order() {
    let mut p = Pair::new(&config());
    const N: u64 = 200_000;
    let (mut sent, mut seen) = (0u64, 0u64);
    until("all", || {
        if sent < N {
            let batch: Vec<Frame<'_>> =
                (sent..N.min(sent + 64)).map(|n| frame(n, b"8 bytes!", Body::Empty, true)).collect();
            sent += p.a.port.post(p.ab, &batch) as u64;
        }
        p.a.poll();
        p.b.poll();
        for e in p.b.events.drain(..) {
            let Event::Frame { header: h, inline, body_len: 0, .. } = e else { panic!("{e:?}") };
            assert_eq!((h, inline.as_slice()), (header(seen), &b"8 bytes!"[..]));
            seen += 1;
        }
        (seen == N).then_some(())
    });
}

#[test]
fn one_sided_access_is_refused_with_the_landing() {
    use kfab_core::spi::{RemoteKey, Rights, Rma, RmaToken};
    let mut p = Pair::new(&config());
    let rma = Rma::Read { landing: landing(8), key: RemoteKey::default(), offset: 0 };
    let RmaStarted::Failed(Some(l), e) = p.a.port.rma(p.ab, rma, RmaToken(1)) else { panic!() };
    assert_eq!((l.len(), e.kind()), (8, kfab_core::Kind::Unavailable));
    let w = Pool::new(Default::default()).alloc_window(8).unwrap();
    assert_eq!(
        p.a.port.expose(&w.as_source(), Rights::READ).unwrap_err().kind(),
        kfab_core::Kind::Unavailable
    );
    assert!(!p.a.port.caps().rma);
}
