//! Waking a thread that sleeps on an eventfd: what any wake-up of a sleeping receiver costs at least.

use super::on_two;
use crate::bench::figures::Histogram;
use crate::failure::{Failure, Result};
use crate::serve::session::clock_ns;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::time::ClockId;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long the waker lets the sleeper fall asleep.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);

/// Times from just before the write to just after the sleeper has read, `count` of them.
pub(crate) fn eventfd_wake(cpus: Option<(u32, u32)>, count: u64) -> Result<Histogram> {
    let no = |e: rustix::io::Errno| Failure::unavailable(format!("eventfd: {e}"));
    let there = eventfd(0, EventfdFlags::CLOEXEC).map_err(no)?;
    let back = eventfd(0, EventfdFlags::CLOEXEC).map_err(no)?;
    let at = AtomicU64::new(0);
    let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
    let take = |fd: &rustix::fd::OwnedFd| {
        poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&patience)).is_ok_and(|n| n == 1)
            && rustix::io::read(fd, &mut [0; 8]).is_ok()
    };
    let wake = || {
        for _ in 0..count {
            std::thread::sleep(PAUSE);
            at.store(clock_ns(ClockId::Monotonic), Ordering::Release);
            if rustix::io::write(&there, &1u64.to_ne_bytes()).is_err() || !take(&back) {
                return;
            }
        }
    };
    let sleep = || {
        let mut seen = Histogram::new();
        for _ in 0..count {
            if !take(&there) {
                break;
            }
            let now = clock_ns(ClockId::Monotonic);
            seen.record(now.saturating_sub(at.load(Ordering::Acquire)) as f64);
            let _ = rustix::io::write(&back, &1u64.to_ne_bytes());
        }
        seen
    };
    Ok(on_two(cpus, wake, sleep).1)
}
