//! Operations let go of: what was begun goes on to its end, and nothing stays behind. And those of a caller who lets time pass.

mod common;

use common::*;
use kfab::{Buffer, Kind, Rights};
use std::time::{Duration, Instant};

#[test]
fn a_send_that_is_let_go_arrives_all_the_same() {
    on_all("dropped", |s| {
        for posted_first in [false, true] {
            let (a, b, to_b) = pair(s);
            for (i, len) in [10, 5000, 300_000, 3 << 20].into_iter().enumerate() {
                let want = pattern(len, i);
                let early = posted_first.then(|| b.recv());
                drop(to_b.send(&want[..]));
                let m = early.unwrap_or_else(|| b.recv()).wait();
                let m =
                    m.unwrap_or_else(|e| panic!("{len} bytes over {s}, posted first {posted_first}: {e:?}"));
                assert_eq!(&m[..], &want[..]);
            }
            let end = Instant::now() + Duration::from_secs(10);
            while a.stats().lane.ops + b.stats().lane.ops > 0 {
                assert!(Instant::now() < end, "{:?} {:?}", a.stats().lane, b.stats().lane);
                std::thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(a.stats().pool.in_use, 0);
        }
    });
}

/// A caller that loses its processor between beginning and polling has not waited: the peer is not given up before it was tried.
#[test]
fn time_that_passes_before_the_first_look_is_not_the_peers() {
    on_all("starved", |s| {
        let mut c = config(s);
        c.progress = kfab::Progress::Inline;
        (c.limits.probe_after, c.limits.peer_timeout) = (Duration::from_millis(100), Duration::from_secs(1));
        let (a, b) = (fabric().open(c).unwrap(), open(s));
        let sent = a.peer(&b.address().to_string()).unwrap().send("late");
        let got = b.recv();
        std::thread::sleep(Duration::from_millis(2500));
        sent.wait().unwrap_or_else(|e| panic!("over {s}: {e:?}"));
        assert_eq!(&got.wait().unwrap()[..], b"late");
    });
}

/// Two callers wait, one of them beside the other's sleep; both get their message and go. The helper polls from then on.
#[test]
fn after_the_last_of_two_who_waited_the_helper_polls() {
    on_all("two waited", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send("hello").wait().unwrap();
        b.recv().wait().unwrap();
        for round in 0..20 {
            std::thread::scope(|threads| {
                let waits = [0, 1].map(|_| threads.spawn(|| b.recv().wait().unwrap().len()));
                // Long enough for both to sleep.
                std::thread::sleep(Duration::from_millis(10));
                let sent = [to_b.send("one"), to_b.send("two")];
                sent.into_iter().for_each(|s| s.wait().unwrap());
                waits.into_iter().for_each(|w| assert_eq!(w.join().unwrap(), 3));
            });
            // Nobody waits there now: only the helper can tell that this has arrived.
            let options = kfab::SendOptions { delivered: true, ..Default::default() };
            let told = to_b.send_with("three", options).wait_timeout(Duration::from_secs(5));
            told.unwrap_or_else(|e| panic!("round {round} over {s}: {e:?}"));
            b.recv().wait().unwrap();
        }
        drop(a);
    });
}

/// A receive dropped with its message, as `select!` does with the branch it does not take, loses nothing: neither one that found its
/// message waiting nor one that was seen to be done.
#[test]
fn a_receive_dropped_with_its_message_gives_it_back_in_its_place() {
    on_all("given back", |s| {
        let (_a, b, to_b) = pair(s);
        let options = kfab::SendOptions { tag: Some(7), ordered: true, ..Default::default() };
        for (i, len) in [0, 10, 5000, 300_000].into_iter().enumerate() {
            let want = [pattern(len, 2 * i), pattern(len, 2 * i + 1)];
            for seen in [false, true] {
                let sent = want.each_ref().map(|w| to_b.send_with(&w[..], options));
                while b.peek(Some((7, 0))).is_none() {
                    b.progress();
                }
                let mut op = b.recv_tagged(7, 0);
                while seen && !op.is_done() {}
                drop(op);
                let mut got = want.each_ref().map(|_| {
                    let m = b.recv_tagged(7, 0).wait_timeout(Duration::from_secs(5));
                    m.unwrap_or_else(|e| panic!("{len} bytes over {s}, seen {seen}: {e:?}")).to_vec()
                });
                // One that was still being fetched goes back when it has come.
                if len == 300_000 && !seen && got[0] == want[1] {
                    got.swap(0, 1);
                }
                assert!(got == want, "{len} bytes over {s}, seen {seen}");
                sent.into_iter().for_each(|s| s.wait().unwrap());
            }
        }
        assert_eq!(b.stats().pool.in_use, 0);
    });
}

/// Several receives that have their messages, dropped in any order: the messages wait in the order in which they came, also before what
/// came meanwhile.
#[test]
fn what_several_receives_give_back_keeps_its_order() {
    on_all("several given back", |s| {
        let (_a, b, to_b) = pair(s);
        let options = kfab::SendOptions { tag: Some(7), ordered: true, ..Default::default() };
        for (i, lens) in [[10; 4], [5000; 4], [300_000; 4], [300_000, 10, 5000, 10]].into_iter().enumerate() {
            for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let want: Vec<_> = (0..).zip(lens).map(|(n, len)| pattern(len, 10 * i + n)).collect();
                let mut ops: Vec<_> = (0..3).map(|_| Some(b.recv_tagged(7, 0))).collect();
                let sent: Vec<_> = want.iter().map(|w| to_b.send_with(&w[..], options)).collect();
                for op in ops.iter_mut().flatten() {
                    while !op.is_done() {}
                }
                while b.peek(Some((7, 0))).is_none() {}
                order.into_iter().for_each(|n| drop(ops[n].take()));
                for (n, want) in want.iter().enumerate() {
                    let m = b.recv_tagged(7, 0).wait_timeout(Duration::from_secs(5));
                    let m = m.unwrap_or_else(|e| panic!("{lens:?} bytes over {s}, dropped {order:?}: {e:?}"));
                    assert!(
                        m[..] == want[..],
                        "{lens:?} bytes over {s}, dropped {order:?}: message {n} is another"
                    );
                }
                sent.into_iter().for_each(|s| s.wait().unwrap());
            }
        }
        assert_eq!(b.stats().pool.in_use, 0);
    });
}

/// Who waits for a message gets one that another has let go of, although it sleeps by then.
#[test]
fn what_is_given_back_wakes_who_waits_for_it() {
    on_all("given on", |s| {
        let (_a, b, to_b) = pair(s);
        to_b.send("mine").wait().unwrap();
        let mut op = b.recv();
        while !op.is_done() {}
        std::thread::scope(|threads| {
            let other = threads.spawn(|| b.recv().wait_timeout(Duration::from_secs(5)));
            std::thread::sleep(Duration::from_millis(20));
            let dropped = Instant::now();
            drop(op);
            assert_eq!(&other.join().unwrap().unwrap()[..], b"mine");
            assert!(dropped.elapsed() < Duration::from_secs(4), "woken by its deadline only");
        });
    });
}

/// The same of notices, of vectors and of pools.
#[test]
fn notices_vectors_and_pooled_messages_are_given_back() {
    on_all("given back, others", |s| {
        let (_a, b, to_b) = pair(s);
        let within = Duration::from_secs(5);

        let window = b.window(64, kfab::Rights::WRITE).unwrap();
        to_b.write_notify(window.key(), 0, b"first", 1).wait().unwrap();
        to_b.write_notify(window.key(), 0, b"second", 2).wait().unwrap();
        let mut op = window.notice();
        while !op.is_done() {}
        let value = op.wait().unwrap().value();
        // This one finds it waiting.
        b.progress();
        drop(window.notice());
        assert_eq!(window.notice().wait_timeout(within).unwrap().value(), 3 - value);

        let parts = || b.recv_with().post_all(vec![b.buffer(4).unwrap(), b.buffer(60).unwrap()]);
        let mut op = parts();
        to_b.send("in two buffers").wait().unwrap();
        while !op.is_done() {}
        drop(op);
        assert_eq!(&b.recv().wait_timeout(within).unwrap()[..], b"in two buffers");

        let pool = b.recv_with().pool(2, 64).unwrap();
        let mut op = pool.next();
        to_b.send("in a pool").wait().unwrap();
        while !op.is_done() {}
        drop(op);
        assert_eq!(&pool.next().wait_timeout(within).unwrap()[..], b"in a pool");
        assert_eq!(pool.free(), 2);
    });
}

/// Who waits for a notice is told at once that its window is gone.
#[test]
fn a_closed_window_wakes_who_waits_for_its_notices() {
    on_all("closed window", |s| {
        let b = open(s);
        let window = b.window(64, kfab::Rights::WRITE).unwrap();
        let waits = window.notice();
        std::thread::scope(|threads| {
            let other = threads.spawn(|| waits.wait_timeout(Duration::from_secs(5)).unwrap_err());
            std::thread::sleep(Duration::from_millis(20));
            let dropped = Instant::now();
            drop(window);
            assert_eq!(other.join().unwrap().kind(), kfab::Kind::Closed);
            assert!(dropped.elapsed() < Duration::from_secs(4), "woken by its deadline only");
        });
    });
}

/// A pool whose buffers all lie in messages that were given back serves these: no buffer will be free before.
#[test]
fn a_pool_serves_what_was_given_back_although_it_has_no_buffer() {
    on_all("dry pool", |s| {
        let (_a, b, to_b) = pair(s);
        let within = Duration::from_secs(5);
        let pool = b.recv_with().pool(1, 64).unwrap();
        let mut op = pool.next();
        to_b.send("once more").wait().unwrap();
        while !op.is_done() {}
        // Given back while nobody waits, and while somebody does.
        drop(op);
        let mut op = pool.next();
        while !op.is_done() {}
        let next = pool.next();
        drop(op);
        assert_eq!(&next.wait_timeout(within).unwrap()[..], b"once more");
        assert_eq!(pool.free(), 1);
        drop(pool);

        // Large ones, each of which takes longer than a wait for it.
        const LEN: usize = 8 << 20;
        let pool = b.recv_with().pool(2, LEN).unwrap();
        (0..4).for_each(|i| drop(to_b.send(Buffer::adopt(pattern(LEN, i)))));
        let end = Instant::now() + Duration::from_secs(60);
        let mut got = 0;
        while got < 4 {
            assert!(Instant::now() < end, "{got} over {s}");
            if let Ok(m) = pool.next().wait_timeout(Duration::from_micros(200)) {
                assert!((0..4).any(|i| m[..] == pattern(LEN, i)), "over {s}");
                got += 1;
            }
        }
    });
}

/// Memory of a window of its own region is given back to the system when the window closes, although a peer had mapped it.
#[test]
fn a_closed_window_is_mapped_nowhere() {
    watched("mapped", || {
        // Larger than a slab.
        const LEN: usize = 65 << 20;
        let maps = || {
            let all = std::fs::read_to_string("/proc/self/maps").unwrap();
            let len = |l: &str| {
                let (from, to) = l.split(' ').next()?.split_once('-')?;
                Some(usize::from_str_radix(to, 16).ok()? - usize::from_str_radix(from, 16).ok()?)
            };
            all.lines().filter(|l| l.contains("memfd:") && len(l).is_some_and(|n| n >= LEN)).count()
        };
        let (a, b) = (open("shm"), open("shm"));
        let to_b = a.peer(&b.address().to_string()).unwrap();
        to_b.send("hello").wait().unwrap();
        b.recv().wait().unwrap();
        for _ in 0..4 {
            let window = b.window(LEN, kfab::Rights::READ | kfab::Rights::WRITE).unwrap();
            let got = to_b.read(window.key(), 8, a.buffer(8).unwrap()).wait().unwrap();
            assert_eq!(got[..], [0; 8]);
            assert!(maps() >= 2, "its owner and its reader have it");
            drop(window);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while maps() > 0 {
            assert!(Instant::now() < end, "{} mappings", maps());
            a.progress();
            b.progress();
        }
    });
}

/// A write that waits for somebody to be there and is given up is over: nothing of it is kept, and nothing of it is sent later.
#[test]
fn a_write_that_never_left_keeps_nothing_when_it_is_given_up() {
    on_all("given up", |s| {
        let (a, b, to_b) = pair(s);
        let window = b.window(4096, Rights::WRITE).unwrap();
        let key = window.key().clone();
        to_b.send("hello").wait().unwrap();
        b.recv().wait().unwrap();
        drop((window, b));
        let gone = a.recv_with().from(&to_b).post().wait_timeout(Duration::from_secs(20)).unwrap_err();
        assert!(matches!(gone.kind(), Kind::PeerLost | Kind::Unreachable), "{gone}");
        for _ in 0..3 {
            let late = to_b.write(&key, 0, b"late").wait_timeout(Duration::from_millis(5)).unwrap_err();
            assert!(matches!(late.kind(), Kind::TimedOut | Kind::Unreachable | Kind::PeerLost), "{late}");
        }
        let s = a.stats();
        assert_eq!((s.lane.ops, s.pool.in_use), (0, 0));
    });
}
