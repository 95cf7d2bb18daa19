//! Everybody's turn comes: whoever is busy with one peer, has slept, or only sends, forgets nobody.

mod common;

use common::*;
use kfab::{Kind, SendOptions};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TOLD: SendOptions = SendOptions { tag: None, ordered: false, delivered: true };

/// Lets time pass without giving up the processor.
fn spin(d: Duration) {
    let until = Instant::now() + d;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// A server that always finds a message of one client waiting, and so never has to look further, serves the others too: who is there,
/// who has yet to come, and whose time is up.
#[test]
fn one_that_floods_does_not_keep_the_others_out() {
    for progress in [kfab::Progress::Inline, Default::default()] {
        on_all("flood", move |s| {
            let mut c = config(s);
            c.progress = progress;
            let server = fabric().open(c).unwrap();
            let address = server.address().to_string();
            let (over, all) = (AtomicBool::new(false), AtomicU64::new(0));
            std::thread::scope(|threads| {
                let flood = threads.spawn(|| {
                    let client = open(s);
                    let to = client.peer(&address).unwrap();
                    while !over.load(Ordering::Relaxed) {
                        let sends: Vec<_> = (0..64).map(|_| to.send(b"flood")).collect();
                        sends.into_iter().for_each(|s| drop(s.wait()));
                    }
                });
                let other = threads.spawn(|| {
                    // The flood is there.
                    while all.load(Ordering::Relaxed) <= 1000 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let client = open(s);
                    let to = client.peer(&address).unwrap();
                    to.send_with("other", TOLD).wait_timeout(Duration::from_secs(8))
                });
                // A time that ends while the flood lasts.
                let never = server.recv_tagged(1, 0).within(Duration::from_millis(500));
                let begun = Instant::now();
                let mut others = 0;
                while !other.is_finished() {
                    let m = server.recv().wait().unwrap();
                    others += u32::from(&m[..] == b"other");
                    all.fetch_add(1, Ordering::Relaxed);
                    spin(Duration::from_micros(5));
                    assert!(begun.elapsed() < Duration::from_secs(20));
                }
                other.join().unwrap().unwrap_or_else(|e| panic!("over {s}, {progress:?}: {e}"));
                while others == 0 {
                    others += u32::from(&server.recv().wait().unwrap()[..] == b"other");
                }
                let left = Duration::from_secs(1).saturating_sub(begun.elapsed());
                std::thread::sleep(left);
                assert_eq!(never.wait().unwrap_err().kind(), Kind::TimedOut);
                over.store(true, Ordering::Relaxed);
                while !flood.is_finished() {
                    drop(server.recv().wait_timeout(Duration::from_millis(10)));
                }
            });
        });
    }
}

/// A peer that was left in peace for longer than `peer_timeout` is not given up when it is spoken to again: it has not been asked yet.
#[test]
fn a_question_after_a_long_pause_is_answered() {
    for progress in [kfab::Progress::Inline, Default::default()] {
        on_all("pause", move |s| {
            let mut c = config(s);
            (c.limits.probe_after, c.limits.peer_timeout) =
                (Duration::from_millis(100), Duration::from_secs(1));
            c.progress = progress;
            let (a, b) = (fabric().open(c).unwrap(), open(s));
            let to_b = a.peer(&b.address().to_string()).unwrap();
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    for _ in 0..3 {
                        let m = b.recv().wait().unwrap();
                        // Not at once: it is the probe that tells that somebody is there.
                        std::thread::sleep(Duration::from_millis(50));
                        m.from().send(&m).wait().unwrap();
                    }
                });
                for i in 0..3u8 {
                    to_b.send(&[i]).wait().unwrap_or_else(|e| panic!("{i} over {s}, {progress:?}: {e}"));
                    let m = a.recv().wait_timeout(Duration::from_secs(20));
                    assert_eq!(m.unwrap_or_else(|e| panic!("{i} over {s}, {progress:?}: {e}"))[..], [i]);
                    if i < 2 {
                        std::thread::sleep(Duration::from_millis(1500));
                    }
                }
            });
        });
    }
}

/// Who only sends, and looks at none of its operations, sends all the same: the thread that sleeps for it is woken when there is room.
#[test]
fn what_found_no_room_goes_when_there_is_room() {
    on_all("room", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send_with("hello", TOLD).wait().unwrap();
        b.recv().wait().unwrap();
        for (count, len) in [(60, 7168), (60, 6144), (100, 3072), (700, 16)] {
            // The helper is asleep by now.
            std::thread::sleep(Duration::from_millis(50));
            let body = pattern(len, count);
            (0..count).for_each(|_| drop(to_b.send(&body[..])));
            let begun = Instant::now();
            for i in 0..count {
                let m = b.recv().wait_timeout(Duration::from_secs(5));
                let m = m.unwrap_or_else(|e| panic!("{i} of {count} of {len} bytes over {s}: {e}"));
                assert!(m[..] == body[..]);
            }
            assert!(begun.elapsed() < Duration::from_secs(4), "{count} of {len} bytes over {s}");
        }
        drop(a);
    });
}

/// A message for which there is credit does not wait for one before it that was given up.
#[test]
fn who_is_first_after_a_cancelled_one_goes() {
    on_all("first after", |s| {
        let (a, b, to_b) = pair(s);
        for _ in 0..a.limits().credits - 4 {
            drop(to_b.send("waits"));
        }
        let large = to_b.send(&[1; 16 << 10]);
        let small = to_b.send_tagged(1, "small");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(large.cancel().unwrap_err().kind(), Kind::Canceled, "over {s}");
        let m = b.recv_tagged(1, 0).wait_timeout(Duration::from_secs(5));
        assert_eq!(&m.unwrap_or_else(|e| panic!("over {s}: {e}"))[..], b"small");
        small.wait().unwrap();
    });
}

/// Who waits for an answer in short receives hears of a silent peer's death all the same.
#[test]
fn short_receives_do_not_hide_a_silent_peer() {
    watched("silent", || {
        let mut c = config("tcp");
        (c.limits.probe_after, c.limits.peer_timeout) =
            (Duration::from_millis(100), Duration::from_millis(500));
        let a = fabric().open(c).unwrap();
        let b = fabric()
            .open(kfab::EndpointConfig { progress: kfab::Progress::Inline, ..config("tcp") })
            .unwrap();
        let to_b = a.peer(&b.address().to_string()).unwrap();
        let hello = to_b.send("hello");
        b.recv().wait().unwrap();
        hello.wait().unwrap();
        // From now on nobody makes progress there.
        to_b.send("are you there").wait().unwrap();
        let begun = Instant::now();
        loop {
            let e = a.recv_with().from(&to_b).post().wait_timeout(Duration::from_millis(50)).unwrap_err();
            if e.kind() == Kind::PeerLost {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "{e}");
        }
    });
}

/// Two who wait on one endpoint sleep, both: neither wakes the other for nothing.
#[test]
fn two_who_wait_on_an_idle_endpoint_sleep() {
    on_all("two sleep", |s| {
        let (a, b, to_b) = pair(s);
        to_b.send_with("hello", TOLD).wait().unwrap();
        b.recv().wait().unwrap();
        let switches = |thread: &str| -> u64 {
            let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
            let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse().unwrap()
        };
        std::thread::scope(|threads| {
            let (tell, told) = std::sync::mpsc::channel();
            for _ in 0..2 {
                let tell = tell.clone();
                let b = &b;
                threads.spawn(move || {
                    let me = std::fs::read_link("/proc/thread-self").unwrap();
                    tell.send(me.file_name().unwrap().to_str().unwrap().to_owned()).unwrap();
                    assert_eq!(b.recv().wait().unwrap()[..], b"wake"[..]);
                });
            }
            let waiting = [told.recv().unwrap(), told.recv().unwrap()];
            let all = || waiting.iter().map(|t| switches(t)).sum::<u64>();
            // Those who wake each other do so all the time. A thread that loses its processor with the lane's lock makes the other nap for
            // it, but not for long: the middle of many looks is what counts.
            let mut looks = [0; 9].map(|_| {
                let before = all();
                std::thread::sleep(Duration::from_millis(100));
                all() - before
            });
            looks.sort_unstable();
            (0..2).for_each(|_| to_b.send("wake").wait().unwrap());
            let n = looks[looks.len() / 2];
            assert!(n < 40, "they slept {looks:?} times in tenths of a second over {s}");
        });
        drop(a);
    });
}

/// A thread that polls all the time takes from under a sleeping caller what would have woken it: it wakes it itself.
#[test]
fn who_sleeps_beside_a_spinning_thread_is_woken() {
    on_all("spinning", |s| {
        let mut c = config(s);
        c.progress = kfab::Progress::Spinning;
        // No timer wakes it instead.
        (c.limits.probe_after, c.limits.peer_timeout) = (Duration::from_secs(30), Duration::from_secs(60));
        let (a, b) = (fabric().open(c).unwrap(), open(s));
        let to_a = b.peer(&a.address().to_string()).unwrap();
        to_a.send_with("hello", TOLD).wait().unwrap();
        assert_eq!(&a.recv().wait().unwrap()[..], b"hello");
        std::thread::scope(|threads| {
            threads.spawn(|| {
                for i in 0..5u8 {
                    std::thread::sleep(Duration::from_millis(100));
                    to_a.send([i].as_slice()).wait().unwrap();
                }
            });
            let begun = Instant::now();
            for i in 0..5u8 {
                let m = a.recv().wait_timeout(Duration::from_secs(5)).unwrap();
                assert_eq!(&m[..], [i]);
            }
            // It would look by itself at the end of its time.
            assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        });
    });
}

/// A time that is longer than any clock is for ever, not a moment ago.
#[test]
fn the_longest_times_are_for_ever() {
    on_all("for ever", |s| {
        let long = Duration::MAX;
        let mut c = config(s);
        c.limits.probe_after = long;
        (c.limits.peer_timeout, c.limits.rail_timeout, c.limits.idle_close) = (long, long, long);
        c.ports.connect_timeout = long;
        let (a, b) = (fabric().open(c.clone()).unwrap(), fabric().open(c).unwrap());
        let to_a = b.peer(&a.address().to_string()).unwrap();
        let waits: Vec<_> = [Duration::from_millis(u64::MAX), Duration::from_secs(1 << 60), long]
            .into_iter()
            .map(|d| a.recv_tagged(1, 0).within(d))
            .collect();
        to_a.send_with("hello", TOLD).wait_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(&a.recv().wait_timeout(Duration::from_millis(u64::MAX)).unwrap()[..], b"hello");
        std::thread::sleep(Duration::from_millis(300));
        for w in waits {
            assert_eq!(w.cancel().unwrap_err().kind(), Kind::Canceled, "it had not ended");
        }
        assert!(to_a.info().unwrap().up);
        // A receive that is over half way through a large message: what waits for the rest of it waits, too.
        let large = pattern(32 << 20, 1);
        let (sent, receive) = (to_a.send(&large[..]), a.recv());
        std::thread::sleep(Duration::from_millis(3));
        let m = receive.cancel().or_else(|_| a.recv().wait_timeout(Duration::from_secs(30))).unwrap();
        assert!(m[..] == large[..]);
        sent.wait().unwrap();
        to_a.send_with("still here", TOLD).wait_timeout(Duration::from_secs(20)).unwrap();
    });
}
