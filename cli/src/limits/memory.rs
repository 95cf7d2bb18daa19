//! One copy of the payload by one core, over and over the same memory: what a message with a single copy can reach.

use super::{Limit, on_two};
use std::hint::black_box;
use std::time::{Duration, Instant};

pub(super) fn measure(cpus: Option<(u32, u32)>, size: usize, part: Duration) -> Limit {
    let copy = || {
        let (from, mut to) = (vec![0x5au8; size], vec![0u8; size]);
        let burst = ((1 << 20) / size).max(1);
        let mut round = || {
            for _ in 0..burst {
                to.copy_from_slice(black_box(&from));
                black_box(&mut to);
            }
        };
        // The first round makes the pages.
        round();
        let (started, mut rounds) = (Instant::now(), 0);
        while rounds < 3 || started.elapsed() < part {
            round();
            rounds += 1;
        }
        // Bytes over time, the machine's hiccups included, as messages are counted.
        (rounds * burst * size) as f64 * 1e9 / started.elapsed().as_nanos().max(1) as f64
    };
    Limit::bandwidth("memcpy", size, on_two(cpus, copy, || ()).0)
}
