//! Notices: a one-sided access tells the window's owner that it has ended, once and after its bytes.

mod common;

use common::*;
use kfab::{Endpoint, EndpointConfig, FaultAction, FaultRule, Kind, Limits, Op, Peer, Rights, Window};
use std::collections::HashSet;
use std::time::{Duration, Instant};

const BOTH: Rights = Rights::READ.union(Rights::WRITE);

/// A client, its handle for the owner, the owner and its window; they have met.
fn scene(scheme: &str, len: usize) -> (Endpoint, Peer, Endpoint, Window) {
    let (a, b, to_b) = pair(scheme);
    let window = b.window(len, BOTH).unwrap();
    meet(&to_b, &b);
    (a, to_b, b, window)
}

fn meet(to_b: &Peer, b: &Endpoint) {
    to_b.send(b"hello").wait().unwrap();
    assert_eq!(&b.recv().wait().unwrap()[..], b"hello");
}

fn two_rails() -> EndpointConfig {
    let listen = vec!["tcp:127.0.0.1:0".into(), "tcp:127.0.0.2:0".into()];
    EndpointConfig { listen, ..config("tcp") }
}

fn bytes_of(w: &Window, at: usize, len: usize) -> Vec<u8> {
    let mut now = vec![0; len];
    assert_eq!(w.read_at(at, &mut now), len);
    now
}

#[test]
fn the_owner_is_told_when_the_bytes_are_there() {
    on_all("written", |s| {
        let (a, to_b, b, w) = scene(s, 4 << 20);
        for (i, len) in [0, 1, 8, 40, 41, 4096, 65_536, 65_537, 1 << 20, 3 << 20].into_iter().enumerate() {
            let (data, value) = (pattern(len, i), u64::MAX - i as u64);
            let in_slab = i % 2 == 0;
            let written = if in_slab {
                let mut buffer = a.buffer(len).unwrap();
                buffer.get_mut().unwrap().copy_from_slice(&data);
                to_b.write_notify(w.key(), 7, buffer, value)
            } else {
                to_b.write_notify(w.key(), 7, &data[..], value)
            };
            let n = w.notice().wait().unwrap();
            assert!(bytes_of(&w, 7, len) == data, "{len} bytes over {s}");
            assert_eq!((n.value(), n.bytes(), n.access()), (value, len as u64, Rights::WRITE));
            written.wait().unwrap();
            n.from().send(b"seen").wait().unwrap();
            assert_eq!(&a.recv().wait().unwrap()[..], b"seen");
        }
        drop(b);
    });
}

#[test]
fn the_owner_is_told_when_its_memory_was_read_to_the_end() {
    on_all("read", |s| {
        let (a, to_b, b, w) = scene(s, 4 << 20);
        let data = pattern(4 << 20, 1);
        w.write_at(0, &data);
        let read_only = b.window_of(kfab::Buffer::adopt(data.clone())).unwrap();
        for (w, len) in [(&w, 0), (&w, 1), (&w, 5000), (&read_only, 300_000), (&w, 4 << 20)] {
            let read = to_b.read_notify(w.key(), 0, a.buffer(len).unwrap(), 3);
            let n = w.notice().wait().unwrap();
            assert_eq!((n.value(), n.bytes(), n.access()), (3, len as u64, Rights::READ), "over {s}");
            // What the owner does to its memory now comes too late to be read.
            let before = bytes_of(w, 0, 1);
            w.write_at(0, &[!before[0]]);
            assert!(read.wait().unwrap()[..] == data[..len], "{len} bytes over {s}");
            w.write_at(0, &before);
        }
        let mut none = w.notice();
        assert!(!none.is_done(), "a notice too many");
    });
}

#[test]
fn notices_nobody_takes_hold_their_senders_up_and_none_is_lost() {
    on_all("credit", |s| {
        let (a, to_b, b, w) = scene(s, 8 * 4096);
        let n = 3 * Limits::default().credits as usize;
        let write = |i: usize| to_b.write_notify(w.key(), 8 * i as u64, &i.to_le_bytes(), i as u64);
        let mut ops: Vec<Op<()>> = (0..n).map(write).collect();
        // The owner looks away: what its credits allow is there, the rest waits with its operation.
        let (mut pending, mut waiting) = (0, 0);
        let begun = Instant::now();
        // What has left may still be on its way.
        while begun.elapsed() < Duration::from_millis(300) || waiting < n - pending {
            assert!(begun.elapsed() < Duration::from_secs(20), "{waiting} of {} came over {s}", n - pending);
            b.progress();
            pending = ops.iter_mut().filter_map(|o| (!o.is_done()).then_some(())).count();
            waiting = b.stats().lane.notices;
        }
        assert!(pending >= n - Limits::default().credits as usize - 1, "{pending} of {n} wait over {s}");
        assert!(a.stats().lane.deferred > 0);
        assert!((n - pending..=Limits::default().credits as usize).contains(&waiting), "{waiting} over {s}");
        // Messages wait with them, and come with them.
        let message = to_b.send(b"behind");
        let t = std::thread::spawn(move || ops.into_iter().for_each(|o| o.wait().unwrap()));
        let mut seen = HashSet::new();
        for _ in 0..n {
            let notice = w.notice().wait().unwrap();
            let at = notice.value() as usize;
            assert!(seen.insert(at), "{at} came twice over {s}");
            assert_eq!(bytes_of(&w, 8 * at, 8), at.to_le_bytes());
        }
        assert_eq!(&b.recv().wait().unwrap()[..], b"behind");
        t.join().unwrap();
        message.wait().unwrap();
        assert!(!w.notice().is_done());
        assert_eq!(b.stats().lane.notices, 0);
    });
}

#[test]
fn what_is_refused_is_not_told_and_costs_no_credit() {
    on_all("refused", |s| {
        let (_a, to_b, b, w) = scene(s, 4096);
        let other = b.window(4096, BOTH).unwrap();
        // A card's connection breaks with each access that is refused: there few have to do.
        let n = if s == "verbs" { 12 } else { 2 * Limits::default().credits as u64 };
        let key = w.key().clone();
        let waiting = w.notice();
        drop(to_b.write_notify(&key, 0, b"in time", 1));
        assert_eq!(waiting.wait().unwrap().value(), 1);
        let waiting = w.notice();
        drop(to_b.write_notify(other.key(), 0, b"elsewhere", 2));
        drop(w);
        assert_eq!(waiting.wait().unwrap_err().kind(), Kind::Closed);
        for i in 0..n {
            let e = to_b.write_notify(&key, 0, b"late", i).wait().unwrap_err();
            assert_eq!(e.kind(), Kind::AccessDenied, "over {s}");
        }
        assert_eq!(other.notice().wait().unwrap().value(), 2);
        assert!(!other.notice().is_done());
        meet(&to_b, &b);
    });
}

#[test]
fn a_wait_can_be_awaited_bounded_dropped_and_cancelled() {
    on_all("waits", |s| {
        let (_a, to_b, b, w) = scene(s, 4096);
        let e = w.notice().wait_timeout(Duration::from_millis(10)).unwrap_err();
        assert_eq!(e.kind(), Kind::TimedOut);
        assert_eq!(w.notice().cancel().unwrap_err().kind(), Kind::Canceled);
        let got = futures_lite::future::block_on(async {
            let (mut first, second) = (w.notice(), w.notice());
            assert!(futures_lite::future::poll_once(&mut first).await.is_none());
            to_b.write_notify(w.key(), 0, b"x", 5).await.unwrap();
            // It may have come already: to drop the operation gives it back.
            drop(first);
            second.await.unwrap().value()
        });
        assert_eq!(got, 5);
        // One that has ended and was not looked at.
        let op = w.notice();
        to_b.write_notify(w.key(), 0, b"y", 6).wait().unwrap();
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end {
            b.progress();
        }
        drop(op);
        assert_eq!(w.notice().wait_timeout(Duration::from_secs(10)).unwrap().value(), 6);
        let left = w.notice();
        drop(b);
        assert_eq!(left.wait().unwrap_err().kind(), Kind::Closed);
    });
}

#[test]
fn rails_that_break_double_nothing_and_lose_nothing() {
    watched("rails", || {
        let (a, b) = (fabric().open(two_rails()).unwrap(), fabric().open(two_rails()).unwrap());
        let to_b = a.peer(&b.address().to_string()).unwrap();
        let each = 200_000;
        let w = b.window(8 * each, BOTH).unwrap();
        meet(&to_b, &b);
        let key = w.key().clone();
        let t = std::thread::spawn(move || {
            for i in 0..160 {
                let port = i / 5 % 2;
                let rule = FaultRule {
                    peer: None,
                    port: Some(port),
                    action: FaultAction::Cut,
                    chance: 1.0,
                    seed: 1,
                };
                let cut = (i % 5 == 3).then_some(rule);
                // Several under way, each into a place of its own.
                let at = (i % 8 * each) as u64;
                let written = to_b.write_notify(&key, at, &pattern(each, i)[..], i as u64);
                let fault = cut.map(|rule| a.add_fault(rule).unwrap());
                written.wait().unwrap();
                fault.map(|id| a.remove_fault(id));
                // The owner has looked.
                assert_eq!(a.recv().wait().unwrap()[..], i.to_le_bytes());
            }
            a
        });
        for i in 0..160usize {
            let n = w.notice().wait().unwrap();
            assert_eq!(n.value(), i as u64);
            assert!(
                bytes_of(&w, i % 8 * each, each) == pattern(each, i),
                "write {i} was told before it was there"
            );
            n.from().send(&i.to_le_bytes()).wait().unwrap();
        }
        let a = t.join().unwrap();
        assert!(!w.notice().is_done());
        let failovers = a.stats().lane.totals.failovers;
        assert!(failovers > 0, "no rail broke while it was used");
    });
}

#[test]
fn a_write_to_a_peer_that_is_known_by_another_name_arrives() {
    watched("names", || {
        let (a, b) = (fabric().open(config("tcp")).unwrap(), fabric().open(two_rails()).unwrap());
        let w = b.window(300_000, BOTH).unwrap();
        // The owner calls first, and calls itself by both its addresses.
        meet(&b.peer(&a.address().to_string()).unwrap(), &a);
        let one = b.address().ways()[0].to_string();
        let data = pattern(300_000, 1);
        let written = a.peer(&one).unwrap().write_notify(w.key(), 0, &data[..], 9);
        assert_eq!(w.notice().wait().unwrap().value(), 9);
        assert!(bytes_of(&w, 0, data.len()) == data);
        written.wait().unwrap();
    });
}
