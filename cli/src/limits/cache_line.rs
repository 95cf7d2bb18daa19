//! One cache line bounced between two CPUs: nothing that two programs say to each other can be faster.

use super::{Limit, Spin, median, on_two};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A line of its own (two, where lines are fetched in pairs).
#[repr(align(128))]
struct Line(AtomicU64);

/// Bounces per reading of the clock, and where the machine is so busy that a bounce waits for the scheduler.
const BURST: u64 = 2_000;
const BURST_BUSY: u64 = 20;

pub(super) fn measure(cpus: Option<(u32, u32)>, spin: Spin, part: Duration) -> Limit {
    let relaxed = bounce(cpus, spin, part / 2, true);
    let hot = if spin.shared_cpu { relaxed } else { bounce(cpus, spin, part / 2, false) };
    Limit::latency("cache_line", None, relaxed.min(hot))
}

/// The median of many bursts, ns one way. `pause`: with the processor's hint that this is a spin.
fn bounce(cpus: Option<(u32, u32)>, spin: Spin, part: Duration, pause: bool) -> f64 {
    let (line, done) = (Line(AtomicU64::new(0)), AtomicBool::new(false));
    let wait_for = |value: u64| {
        while line.0.load(Ordering::Acquire) != value {
            if pause || spin.shared_cpu {
                spin.once();
            }
        }
    };
    let ping = || {
        let (started, mut next, mut bursts) = (Instant::now(), 0, Vec::new());
        let mut burst = |bounces: u64| {
            let start = Instant::now();
            for _ in 0..bounces {
                line.0.store(next + 1, Ordering::Release);
                next += 2;
                wait_for(next);
            }
            start.elapsed().as_nanos() as f64 / (2 * bounces) as f64
        };
        let first = Duration::from_nanos((burst(BURST_BUSY) * (2 * BURST) as f64) as u64);
        let bounces = if first > part { BURST_BUSY } else { BURST };
        while started.elapsed() < part || bursts.len() < 3 {
            bursts.push(burst(bounces));
        }
        done.store(true, Ordering::Release);
        line.0.store(u64::MAX, Ordering::Release);
        median(bursts)
    };
    let pong = || {
        let mut next = 1;
        loop {
            let seen = line.0.load(Ordering::Acquire);
            if seen == next {
                line.0.store(next + 1, Ordering::Release);
                next += 2;
            } else if seen == u64::MAX && done.load(Ordering::Acquire) {
                return;
            } else if pause || spin.shared_cpu {
                spin.once();
            }
        }
    };
    on_two(cpus, ping, pong).0
}
