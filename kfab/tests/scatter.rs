//! One message, several buffers: gathered by the sender, cut or scattered by the receiver.

mod common;

use common::*;
use kfab::{Buffer, Kind, Rights};
use std::time::Duration;

#[test]
fn a_message_is_cut_where_it_lies() {
    on_all("parts", |s| {
        let (a, b, to_b) = pair(s);
        for len in [20, 5000, 700_000] {
            let want = pattern(len, 3);
            // Gathered from three, cut into three others; into memory of the provider's choice or of the receiver's.
            let part = |r: std::ops::Range<usize>| Buffer::adopt(want[r].to_vec());
            for own in [false, true] {
                let r = b.recv_with();
                let r = if own { r.into(b.buffer(len + 9).unwrap()) } else { r }.post();
                let sent = to_b.send(vec![part(0..1), part(1..len - 7), part(len - 7..len)]);
                let parts = r.wait().unwrap().into_parts(&[4, 0, len - 10]).unwrap();
                sent.wait().unwrap();
                assert_eq!(parts.iter().map(|p| p.len()).collect::<Vec<_>>(), [4, 0, len - 10, 6]);
                assert_eq!(parts.iter().flat_map(|p| p.iter().copied()).collect::<Vec<_>>(), want);
            }
        }
        to_b.send(b"short").wait().unwrap();
        let e = b.recv().wait().unwrap().into_parts(&[3, 3]).unwrap_err();
        assert_eq!(e.kind(), Kind::Truncated, "{e}");
        assert_eq!((a.stats().pool.in_use, b.stats().pool.in_use), (0, 0), "the parts are gone");
    });
}

#[test]
fn a_message_is_scattered_into_buffers() {
    on_all("scatter", |s| {
        let (_a, b, to_b) = pair(s);
        for len in [0, 10, 100_000] {
            let want = pattern(len, 5);
            let sent = to_b.send(&want[..]);
            let m = b.recv().wait().unwrap();
            sent.wait().unwrap();
            let mut into = [b.buffer(3).unwrap(), b.buffer(len.max(1)).unwrap(), b.buffer(50).unwrap()];
            into.iter_mut().for_each(|i| i.get_mut().unwrap().fill(0xEE));
            assert_eq!(m.scatter(&mut into).unwrap(), len);
            let got: Vec<u8> = into.iter().flat_map(|i| i.iter().copied()).collect();
            assert_eq!(got[..len], want[..]);
            assert!(got[len..].iter().all(|x| *x == 0xEE), "what is not needed stays as it is");
        }
        to_b.send(b"twelve bytes").wait().unwrap();
        let m = b.recv().wait().unwrap();
        let e = m.scatter(&mut [b.buffer(4).unwrap(), b.buffer(7).unwrap()]).unwrap_err();
        assert_eq!(e.kind(), Kind::Truncated, "{e}");
        let shared = b.buffer(20).unwrap();
        let other = shared.slice(0..20);
        let mut into = [b.buffer(4).unwrap(), shared];
        into[0].get_mut().unwrap().fill(0xEE);
        assert_eq!(m.scatter(&mut into).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(into[0][..], [0xEE; 4], "nothing is copied");
        drop(other);
        assert_eq!(m.scatter(&mut into).unwrap(), 12);
        assert_eq!(&into[1][..8], b"ve bytes");
    });
}

/// Cuts of a message's room: buffers of these lengths, marked, so that it shows what was written.
fn marked(e: &kfab::Endpoint, lens: &[usize]) -> Vec<Buffer> {
    let one = |n: &usize| {
        let mut b = e.buffer(*n).unwrap();
        b.get_mut().unwrap().fill(0xEE);
        b
    };
    lens.iter().map(one).collect()
}

/// Ways to cut room for `len` bytes: even and uneven, with single bytes and empty ones, unaligned, with room to spare.
fn cuts(len: usize) -> Vec<Vec<usize>> {
    let third = len / 3;
    vec![
        vec![len],
        vec![len + 100],
        vec![1, len],
        vec![third + 1, 0, third + 1, 1, third + 1, 77],
        vec![len.saturating_sub(1), 1],
        vec![1, 1, 1, len / 2 + 1, len / 2 + 1],
        vec![13; len / 13 + 1].into_iter().take(200).chain([len]).collect(),
    ]
}

#[test]
fn a_message_is_received_into_buffers() {
    on_all("vector", |s| {
        let (a, b, to_b) = pair(s);
        let sizes = [0, 1, 8, 40, 41, 1000, 8192, 8193, 65_536, 65_537, 300_001, (3 << 20) + 5];
        for (i, len) in sizes.into_iter().enumerate() {
            let want = pattern(len, i);
            for (j, lens) in cuts(len).into_iter().enumerate() {
                // From a slab, where it may be fetched, or from bytes; asked for before it comes, or after; one named first.
                let (in_slab, early) = (j % 2 == 0, (i + j / 2) % 2 == 0);
                let recv = || match (b.recv_with().tag(0, 7), j) {
                    (r, 0) => r.into(marked(&b, &lens).remove(0)).post_all(vec![]),
                    (r, _) => r.post_all(marked(&b, &lens)),
                };
                let early = early.then(recv);
                let sent = if in_slab {
                    let mut x = a.buffer(len).unwrap();
                    x.get_mut().unwrap().copy_from_slice(&want);
                    to_b.send_tagged(3, x)
                } else {
                    to_b.send_tagged(3, &want[..])
                };
                let r = early.unwrap_or_else(recv);
                let m = r.wait().unwrap();
                sent.wait().unwrap();
                assert_eq!((m.len(), m.tag()), (len, Some(3)));
                assert_eq!(m.slices().collect::<Vec<_>>().concat(), want, "{len} into {lens:?} over {s}");
                m.from().send("got it").wait().unwrap();
                let buffers = m.into_buffers();
                assert_eq!(buffers.iter().map(|b| b.len()).collect::<Vec<_>>(), lens);
                let all = buffers.iter().flat_map(|b| b.iter().copied()).collect::<Vec<_>>();
                assert!(all[len..].iter().all(|x| *x == 0xEE), "{len} into {lens:?} over {s}: beyond it");
                assert_eq!(&a.recv().wait().unwrap()[..], b"got it");
            }
        }
        assert_eq!((a.stats().pool.in_use, b.stats().pool.in_use), (0, 0));
        assert_eq!((a.stats().lane.ops, b.stats().lane.ops), (0, 0));
    });
}

#[test]
fn a_message_larger_than_its_buffers_is_truncated_and_others_follow() {
    on_all("small vectors", |s| {
        let (a, b, to_b) = pair(s);
        // More often than there is credit: the credit of what is dropped comes back too.
        let often = a.limits().credits as usize + 10;
        for (len, often) in [(10, often), (2000, often), (300_000, 3)] {
            for i in 0..often {
                let r = b.recv_with().post_all(marked(&b, &[3, len - 4]));
                let one = b.recv_with().into(b.buffer(len - 1).unwrap()).post();
                let sent = [(); 2].map(|()| to_b.send(Buffer::adopt(pattern(len, i))));
                assert_eq!(r.wait().unwrap_err().kind(), Kind::Truncated, "{len} over {s}");
                assert_eq!(one.wait().unwrap_err().kind(), Kind::Truncated, "{len} over {s}");
                sent.into_iter().for_each(|o| o.wait().unwrap());
            }
        }
        let shared = b.buffer(10).unwrap();
        let e = b.recv_with().post_all(vec![b.buffer(10).unwrap(), shared.clone()]).wait().unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
        drop(shared);
        // None at all: for a message of no bytes, and only for that.
        let r = b.recv_with().post_all(vec![]);
        to_b.send("").wait().unwrap();
        assert!(r.wait().unwrap().is_empty());
        to_b.send("after").wait().unwrap();
        let m = b.recv_with().post_all(marked(&b, &[2, 3])).wait().unwrap();
        assert_eq!(m.slices().collect::<Vec<_>>(), [&b"af"[..], b"ter"]);
    });
}

#[test]
fn a_vector_that_is_cancelled_or_dropped_loses_no_message() {
    on_all("cancelled vector", |s| {
        let (_a, b, to_b) = pair(s);
        for len in [5, 3000, 500_000] {
            let want = pattern(len, 1);
            let lens = [1, len / 2, len];
            assert_eq!(
                b.recv_with().post_all(marked(&b, &lens)).cancel().unwrap_err().kind(),
                Kind::Canceled
            );
            let late = b.recv_with().post_all(marked(&b, &lens)).wait_timeout(Duration::from_millis(5));
            assert_eq!(late.unwrap_err().kind(), Kind::TimedOut);
            // Dropped with the message in it: that goes back, to a receive of one buffer or of several.
            for several in [false, true] {
                let dropped = b.recv_with().post_all(marked(&b, &lens));
                let sent = to_b.send(Buffer::adopt(want.clone()));
                while b.stats().lane.posted > 0 {
                    b.progress();
                }
                drop(dropped);
                if several {
                    let m = b.recv_with().post_all(marked(&b, &lens)).wait().unwrap();
                    assert_eq!(m.slices().collect::<Vec<_>>().concat(), want, "{len} over {s}");
                } else {
                    assert_eq!(b.recv().wait().unwrap()[..], want[..], "{len} over {s}");
                }
                sent.wait().unwrap();
            }
            // Ended early at any moment of its coming, it is had by this receive or by the next.
            for spins in 0..20 {
                let r = b.recv_with().post_all(marked(&b, &lens));
                let sent = to_b.send(Buffer::adopt(want.clone()));
                for _ in 0..spins * spins {
                    b.progress();
                }
                match r.cancel() {
                    Ok(m) => assert_eq!(m.slices().collect::<Vec<_>>().concat(), want),
                    Err(e) => {
                        assert_eq!((e.kind(), e.fate()), (Kind::Canceled, kfab::Fate::NotSent));
                        assert_eq!(b.recv().wait().unwrap()[..], want[..], "{len} over {s}");
                    }
                }
                sent.wait().unwrap();
            }
        }
        to_b.send("last").wait().unwrap();
        assert_eq!(&b.recv().wait().unwrap()[..], b"last");
        assert_eq!((b.stats().pool.in_use, b.stats().lane.ops), (0, 0));
    });
}

#[test]
fn a_peer_that_goes_ends_a_vector_and_frees_it() {
    on_all("lost vector", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send("x").wait().unwrap();
        let from_a = b.recv().wait().unwrap().from();
        let waits = b.recv_with().from(&from_a).post_all(marked(&b, &[100, 100_000]));
        drop(a);
        assert_eq!(waits.wait().unwrap_err().kind(), Kind::PeerLost, "{s}");
        assert_eq!((b.stats().pool.in_use, b.stats().lane.ops), (0, 0));
    });
}

#[test]
fn more_buffers_than_a_provider_has_reads_under_way() {
    on_all("many buffers", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send("x").wait().unwrap();
        b.recv().wait().unwrap();
        let bytes = pattern(300_000, 2);
        // Over shm memory that has not been mapped: reads wait for that, and not so many at once.
        let window = b.window_of(Buffer::adopt(bytes.clone())).unwrap();
        let shared = b.window(300_000, Rights::READ).unwrap();
        shared.write_at(0, &bytes);
        for key in [window.key(), shared.key()] {
            let got = to_b.read_all(key, 0, marked(&a, &[60; 5000])).wait().unwrap();
            assert!(got.iter().flat_map(|b| b.iter().copied()).eq(bytes.iter().copied()), "over {s}");
        }
        let mut x = a.buffer(300_000).unwrap();
        x.get_mut().unwrap().copy_from_slice(&bytes);
        let sent = to_b.send(x);
        let m = b.recv_with().post_all(marked(&b, &[50; 6001])).wait().unwrap();
        assert!(m.slices().flatten().eq(bytes.iter()), "over {s}");
        sent.wait().unwrap();
        assert_eq!((a.stats().pool.in_use, a.stats().lane.ops, b.stats().lane.ops), (0, 0, 0));
    });
}

#[test]
fn a_window_is_read_into_buffers() {
    on_all("vector read", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send("x").wait().unwrap();
        b.recv().wait().unwrap();
        let size = 2 << 20;
        let bytes = pattern(size, 9);
        let (shared, fixed) =
            (b.window(size, Rights::READ).unwrap(), b.window_of(Buffer::adopt(bytes.clone())).unwrap());
        shared.write_at(0, &bytes);
        for key in [shared.key(), fixed.key()] {
            for (len, offset) in [(0, 5), (1, 0), (4096, 1), (100_003, 77), (1 << 20, 1 << 20)] {
                for mut lens in cuts(len) {
                    // All of each buffer is read: as much as there is.
                    let mut left = size - offset;
                    lens.iter_mut().for_each(|n| {
                        *n = left.min(*n);
                        left -= *n;
                    });
                    let read = to_b.read_all(key, offset as u64, marked(&a, &lens));
                    let got = read.wait().unwrap();
                    assert_eq!(got.iter().map(|b| b.len()).collect::<Vec<_>>(), lens);
                    let all = got.iter().flat_map(|b| b.iter().copied()).collect::<Vec<_>>();
                    assert!(all == bytes[offset..offset + all.len()], "{lens:?} at {offset} over {s}");
                }
            }
            let e = to_b.read_all(key, size as u64 - 10, marked(&a, &[5, 6])).wait().unwrap_err();
            assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
        }
        let x = a.buffer(10).unwrap();
        let e = to_b.read_all(fixed.key(), 0, vec![a.buffer(10).unwrap(), x.clone()]).wait().unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument, "{e}");
        let key = shared.key().clone();
        drop((shared, x));
        let e = to_b.read_all(&key, 0, marked(&a, &[5, 0, 100_000])).wait().unwrap_err();
        assert_eq!(e.kind(), Kind::AccessDenied, "{e}");
        assert_eq!((a.stats().pool.in_use, a.stats().lane.ops), (0, 0));
    });
}
