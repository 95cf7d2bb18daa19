//! A message for which the receiver has no memory waits, and its sender with what it says next, until there is some.

mod common;

use common::*;
use kfab::{Kind, PoolConfig, SendOptions};
use std::time::Duration;

#[test]
fn a_message_without_memory_waits_for_it() {
    on_all("no memory", |s| {
        let mut c = config(s);
        c.pool = PoolConfig { region_bytes: 2 << 20, max_bytes: 2 << 20, ..c.pool };
        let (a, b) = (open(s), fabric().open(c).unwrap());
        let to_b = a.peer(&b.address().to_string()).unwrap();
        to_b.send("hello").wait().unwrap();
        assert_eq!(&b.recv().wait().unwrap()[..], b"hello");
        for round in 0..3 {
            let all: Vec<_> = std::iter::from_fn(|| b.buffer(1000).ok()).collect();
            let options = SendOptions { delivered: true, ..Default::default() };
            let first = pattern(1000, round);
            let ops = [to_b.send_with(&first[..], options), to_b.send_with("second", options)];
            // The second may come over another rail.
            let mut got = Vec::new();
            match b.recv().wait_timeout(Duration::from_millis(300)) {
                Ok(m) => got.push(m.to_vec()),
                Err(e) => assert_eq!(e.kind(), Kind::TimedOut, "over {s}"),
            }
            assert!(!got.contains(&first), "over {s}: there is no memory for it");
            drop(all);
            while got.len() < 2 {
                let m = b.recv().wait_timeout(Duration::from_secs(20));
                let m = m.unwrap_or_else(|e| panic!("over {s}: {e:?}; {:?}", b.stats().lane));
                got.push(m.to_vec());
            }
            got.sort_by_key(Vec::len);
            assert!(got[0] == b"second" && got[1] == first, "over {s}");
            ops.into_iter().for_each(|op| op.wait_timeout(Duration::from_secs(20)).unwrap());
        }
        let totals = a.stats().lane.totals;
        assert_eq!((totals.lost, totals.failovers), (0, 0), "over {s}");
    });
}
