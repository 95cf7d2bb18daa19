//! Receive pools: exhausted and refilled, shared, outlived.

mod common;

use common::*;
use kfab::{Buffer, Endpoint, Kind, Pooled, SendOptions};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const ORDERED: SendOptions = SendOptions { tag: None, ordered: true, delivered: false };

fn place(m: &Pooled) -> usize {
    m.as_ptr() as usize
}

/// Waits, with both ends making progress, until something is so.
fn until(what: &str, ends: &[&Endpoint], so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !so() {
        assert!(Instant::now() < end, "{what}");
        for e in ends {
            e.progress();
        }
    }
}

#[test]
fn an_exhausted_pool_lets_senders_wait_and_goes_on() {
    on_all("exhausted", |s| {
        let (a, b, to_b) = pair(s);
        let (count, size) = (4, 8192);
        let pool = b.recv_with().pool(count, size).unwrap();
        assert_eq!((pool.free(), pool.count(), pool.size()), (count, count, size));
        let credits = a.limits().credits as usize;
        let body = |i: usize| pattern([8, 40, 41, 3000, size][i % 5], i);
        let total = count + 3 * credits;
        let mut sent: Vec<_> = (0..total).map(|i| to_b.send_with(&body(i)[..], ORDERED)).collect();
        // All buffers are in use: what follows waits by credit, here and there.
        let mut held: Vec<_> = (0..count).map(|_| pool.next().wait().unwrap()).collect();
        held.iter().enumerate().for_each(|(i, m)| assert_eq!(m[..], body(i)[..], "{i} over {s}"));
        assert_eq!(pool.free(), 0);
        let places: BTreeSet<usize> = held.iter().map(place).collect();
        assert_eq!(places.len(), count);
        assert_eq!(pool.next().wait_timeout(Duration::from_millis(30)).unwrap_err().kind(), Kind::TimedOut);
        assert_eq!(pool.next().cancel().unwrap_err().kind(), Kind::Canceled);
        until("the credit is used up", &[&a, &b], || {
            let waits = b.stats().lane.unexpected;
            assert!(waits <= credits, "{waits} messages wait over {s}");
            a.stats().lane.deferred > 0 && waits * 8 >= credits
        });
        assert!(sent.iter_mut().any(|o| !o.is_done()), "some sends wait");
        // What strangers make us hold is their credit and no more; a block is at most twice as long as what is in it.
        let limits = b.limits();
        let most = 2 * (limits.credits * limits.credit_bytes) as usize;
        assert!(b.stats().pool.in_use <= most, "{} bytes over {s}", b.stats().pool.in_use);
        // One goes back, one comes: always the same memory, and in order.
        for i in count..total {
            held.remove(0);
            let m = pool.next().wait().unwrap();
            assert_eq!(m[..], body(i)[..], "{i} over {s}");
            assert!(places.contains(&place(&m)), "{i} over {s} lies elsewhere");
            assert_eq!(m.from(), held.last().unwrap_or(&m).from());
            held.push(m);
            assert!(pool.free() <= 1, "{} free", pool.free());
            a.progress();
        }
        sent.into_iter().for_each(|o| o.wait().unwrap());
        drop(held);
        assert_eq!(pool.free(), count);
        drop(pool);
        assert_eq!((b.stats().lane.ops, b.stats().lane.posted), (0, 0));
        // A socket keeps a buffer ready as long as bulk comes.
        until("the last buffer goes back", &[&a, &b], || b.stats().pool.in_use == 0);
    });
}

#[test]
fn the_buffers_count_against_the_bound_of_the_endpoint() {
    let mut c = config("shm");
    c.pool.max_bytes = 512 << 20;
    let e = fabric().open(c).unwrap();
    let pool = |count, size| e.recv_with().pool(count, size);
    for (count, size) in [(5, 128 << 20), (1, 513 << 20), (1, usize::MAX), (usize::MAX, 1), (1 << 40, 64)] {
        let error = pool(count, size).unwrap_err();
        assert_eq!(error.kind(), Kind::Limit, "{count} of {size} bytes: {error}");
        assert_eq!((e.stats().pool.bytes, e.stats().lane.ops), (0, 0), "{count} of {size} bytes");
    }
    let held = pool(3, 128 << 20).unwrap();
    assert_eq!((held.free(), e.stats().pool.bytes), (3, 384 << 20));
    let window = e.window(127 << 20, kfab::Rights::READ).map(|_| ());
    assert!(window.is_ok(), "{window:?}");
    let error = pool(2, 65 << 20).unwrap_err();
    assert!(error.kind() == Kind::Limit && error.to_string().contains("max_bytes"), "{error}");
    assert_eq!(held.free(), 3, "the other is as it was");
    drop(held);
    assert_eq!(pool(4, 128 << 20).unwrap().free(), 4, "there is room again");
}

#[test]
fn who_waits_for_a_buffer_gets_the_next() {
    on_all("dry", |s| {
        let (_a, b, to_b) = pair(s);
        let pool = b.recv_with().pool(1, 100).unwrap();
        for i in 0..200u64 {
            drop(to_b.send_with(&i.to_le_bytes(), ORDERED));
        }
        let number = |m: &Pooled| u64::from_le_bytes(m[..].try_into().unwrap());
        let first = pool.next().wait().unwrap();
        assert_eq!(number(&first), 0);
        // Asked for by several before one is there; given up by one of them.
        let (second, given_up, third) = (pool.next(), pool.next(), pool.next());
        drop(given_up);
        let t = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(first);
        });
        let second = second.wait().unwrap();
        assert_eq!(number(&second), 1);
        drop(second);
        assert_eq!(number(&third.wait().unwrap()), 2);
        t.join().unwrap();
        // A stream in async code, whose consumers hold on to messages in another task.
        let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
        rt.block_on(async {
            for i in 3..200 {
                let m = pool.next().await.unwrap();
                assert_eq!(number(&m), i, "over {s}");
                tokio::spawn(async move {
                    tokio::task::yield_now().await;
                    drop(m);
                });
            }
        });
        until("the last has gone back", &[&b], || pool.free() == 1);
    });
}

#[test]
fn all_peers_share_a_pool_by_tag() {
    on_all("shared", |s| {
        let b = open(s);
        let pool = b.recv_with().tag(0x70, 0xf).pool(8, 70_000).unwrap();
        let address = b.address().to_string();
        let n = 100;
        // Large ones too: they are fetched, or come in pieces, straight into a buffer of the pool.
        let body = |from: usize, i: usize| pattern(if i % 10 == 3 { 70_000 } else { i + 1 }, from * 1000 + i);
        let senders: Vec<_> = (0..3usize)
            .map(|k| {
                let (a, address) = (open(s), address.clone());
                std::thread::spawn(move || {
                    let to_b = a.peer(&address).unwrap();
                    for i in 0..n {
                        let options = SendOptions { tag: Some(0x70 + k as u64), ..ORDERED };
                        to_b.send_with(Buffer::adopt(body(k, i)), options).wait().unwrap();
                    }
                    to_b.send("not for the pool").wait().unwrap();
                    a
                })
            })
            .collect();
        let mut next = [0; 3];
        let mut places = BTreeSet::new();
        for _ in 0..3 * n {
            let m = pool.next().wait().unwrap();
            let k = (m.tag().unwrap() - 0x70) as usize;
            places.insert(place(&m));
            // Messages of one sender keep their order up to where a large one takes longer to come.
            let i =
                (0..n).find(|i| m[..] == body(k, *i)[..]).unwrap_or_else(|| panic!("{k}: {} bytes", m.len()));
            assert!(i.abs_diff(next[k]) <= 8, "{k}: {i} after {}", next[k]);
            next[k] += 1;
        }
        assert_eq!(next, [n; 3]);
        assert!(places.len() <= 8, "{} places", places.len());
        (0..3).for_each(|_| assert_eq!(&b.recv().wait().unwrap()[..], b"not for the pool"));
        senders.into_iter().for_each(|t| drop(t.join().unwrap()));
    });
}

#[test]
fn a_pool_outlives_large_messages_and_dead_peers() {
    on_all("outlives", |s| {
        let (a, b, to_b) = pair(s);
        let pool = b.recv_with().pool(2, 100).unwrap();
        // Too large, with somebody waiting for a buffer beside it.
        for len in [101, 5000, 300_000] {
            let ops = [pool.next(), pool.next(), pool.next()];
            let sent = to_b.send(Buffer::adopt(pattern(len, 0)));
            let [too_large, fits, waits] = ops;
            assert_eq!(too_large.wait().unwrap_err().kind(), Kind::Truncated, "{len} over {s}");
            sent.wait().unwrap();
            to_b.send_with("fits", ORDERED).wait().unwrap();
            to_b.send_with("too", ORDERED).wait().unwrap();
            assert_eq!((&fits.wait().unwrap()[..], &waits.wait().unwrap()[..]), (&b"fits"[..], &b"too"[..]));
            assert_eq!(pool.free(), 2, "{len} over {s}");
        }
        // A pool of one peer ends with it, one of all goes on.
        to_b.send("who").wait().unwrap();
        let of_a = pool.next().wait().unwrap().from();
        let only_a = b.recv_with().tag(1, 0).from(&of_a).pool(2, 100).unwrap();
        let ops = [only_a.next(), only_a.next(), only_a.next()];
        drop(a);
        ops.into_iter().for_each(|op| assert_eq!(op.wait().unwrap_err().kind(), Kind::PeerLost, "{s}"));
        assert_eq!(only_a.next().wait().unwrap_err().kind(), Kind::PeerLost);
        assert_eq!(only_a.free(), 0);
        let c = open(s);
        c.peer(&b.address().to_string()).unwrap().send("from another").wait().unwrap();
        assert_eq!(&pool.next().wait().unwrap()[..], b"from another");
        assert_eq!(pool.free(), 2);
        // Bad descriptions are said.
        for r in [b.recv_with().pool(0, 1), b.recv_with().pool(1, 0)] {
            assert_eq!(r.unwrap_err().kind(), Kind::InvalidArgument);
        }
        let e = b.recv_with().into(b.buffer(5).unwrap()).pool(1, 5).unwrap_err();
        assert_eq!(e.kind(), Kind::InvalidArgument);
        let most = b.limits().max_ops;
        assert_eq!(b.recv_with().pool(most + 1, 1).unwrap_err().kind(), Kind::Limit);
        drop(b);
        assert_eq!(pool.next().wait().unwrap_err().kind(), Kind::Closed);
    });
}

#[test]
fn a_dropped_pool_gives_back_what_was_not_asked_for() {
    on_all("dropped pool", |s| {
        let (a, b, to_b) = pair(s);
        let pool = b.recv_with().pool(6, 6000).unwrap();
        let body = |i: usize| pattern([8, 6000][i % 2], i);
        let sent: Vec<_> = (0..5).map(|i| to_b.send_with(&body(i)[..], ORDERED)).collect();
        let kept = pool.next().wait().unwrap();
        until("five have come", &[&a, &b], || pool.free() == 1);
        let asked = pool.next();
        drop(pool);
        assert_eq!(kept[..], body(0)[..]);
        assert_eq!(asked.wait().unwrap()[..], body(1)[..], "{s}");
        for i in 2..5 {
            assert_eq!(b.recv().wait().unwrap()[..], body(i)[..], "{i} over {s}");
        }
        drop(kept);
        sent.into_iter().for_each(|o| o.wait().unwrap());
        // Who waited for a buffer that will never come is told.
        let pool = b.recv_with().pool(1, 8).unwrap();
        let (has_one, has_none) = (pool.next(), pool.next());
        drop(pool);
        assert_eq!(has_none.wait().unwrap_err().kind(), Kind::Closed);
        to_b.send("last").wait().unwrap();
        assert_eq!(&has_one.wait().unwrap()[..], b"last");
        assert_eq!((b.stats().lane.ops, b.stats().lane.posted, b.stats().lane.unexpected), (0, 0, 0));
    });
}
