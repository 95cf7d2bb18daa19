//! Operations let go of: what was begun goes on to its end, and nothing stays behind. And those of a caller who lets time pass.

mod common;

use common::*;
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
        (c.limits.probe_after, c.limits.peer_timeout) =
            (Duration::from_millis(100), Duration::from_millis(300));
        let (a, b) = (fabric().open(c).unwrap(), open(s));
        let sent = a.peer(&b.address().to_string()).unwrap().send("late");
        let got = b.recv();
        std::thread::sleep(Duration::from_millis(900));
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
