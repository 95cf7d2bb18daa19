//! What this machine could do without us: the limits that our figures stand beside. Each is measured here and now, by the
//! simplest program there is, on the same two CPUs.

mod cache_line;
mod memory;
mod tcp;
mod wake;

use crate::failure::Result;
use crate::place::{Pin, pin, share_a_cpu};
use crate::stop;
use serde::Serialize;
use std::time::Duration;

pub(crate) use wake::eventfd_wake;

/// A limit.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Limit {
    /// `cache_line`, `memcpy`, `tcp_pingpong`, `tcp_stream`, `eventfd_wake`.
    pub(crate) name: &'static str,
    /// Bytes, where it depends on the size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<usize>,
    /// Nanoseconds from one side to the other, median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) one_way_ns: Option<f64>,
    /// Bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_per_s: Option<f64>,
}

impl Limit {
    fn latency(name: &'static str, size: Option<usize>, ns: f64) -> Limit {
        Limit { name, size, one_way_ns: Some(ns), ..Default::default() }
    }

    fn bandwidth(name: &'static str, size: usize, bytes_per_s: f64) -> Limit {
        Limit { name, size: Some(size), bytes_per_s: Some(bytes_per_s), ..Default::default() }
    }
}

/// What a provider's latency at this size stands beside, ns: shared memory a cache line, TCP a bare socket.
pub(crate) fn latency_limit(all: &[Limit], provider: &str, size: usize) -> Option<f64> {
    let fits = |l: &&Limit| match (provider, l.name) {
        ("shm", "cache_line") => size <= 64,
        ("tcp", "tcp_pingpong") => l.size == Some(size),
        _ => false,
    };
    all.iter().find(fits)?.one_way_ns
}

/// What a provider's bandwidth at this size stands beside, bytes/s: shared memory one copy, TCP a bare stream of large messages.
pub(crate) fn bandwidth_limit(all: &[Limit], provider: &str, size: usize) -> Option<f64> {
    let fits = |l: &&Limit| match (provider, l.name) {
        ("shm", "memcpy") => l.size == Some(size) && size >= 64 << 10,
        ("tcp", "tcp_stream") => l.size.is_some_and(|s| size >= s),
        _ => false,
    };
    all.iter().find(fits)?.bytes_per_s
}

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Beside a ping-pong: a second or so.
    Brief,
    /// Everything.
    Full,
}

/// Spins once: relaxed on two CPUs, politely on one.
#[derive(Clone, Copy)]
pub(crate) struct Spin {
    pub(crate) shared_cpu: bool,
}

impl Spin {
    #[inline]
    pub(crate) fn once(self) {
        if self.shared_cpu { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

/// Measures into `all`, which has what there is when it ends early. `progress` is told the part that is done.
pub(crate) fn measure(
    pins: &Pin,
    scope: Scope,
    all: &mut Vec<Limit>,
    progress: &mut dyn FnMut(f64),
) -> Result<()> {
    let cpus = pins.cpus()?;
    let spin = Spin { shared_cpu: share_a_cpu(cpus) };
    let full = scope == Scope::Full;
    let (memory, pingpong): (&[usize], &[usize]) = if full {
        (&[64, 4 << 10, 64 << 10, 1 << 20, 4 << 20, 16 << 20], &[8, 4 << 10, 64 << 10])
    } else {
        (&[4 << 10, 64 << 10, 1 << 20], &[8, 4 << 10, 64 << 10])
    };
    let part = Duration::from_millis(if full { 150 } else { 60 });
    let total = (memory.len() + pingpong.len() + 3) as f64;
    let mut step = |all: &[Limit]| {
        progress(all.len() as f64 / total);
        stop::check()
    };
    // The threads that measure are made here, so that this one's own placement is nobody's business.
    all.push(cache_line::measure(cpus, spin, part));
    step(all)?;
    for &size in memory {
        all.push(memory::measure(cpus, size, part));
        step(all)?;
    }
    for &size in pingpong {
        all.push(tcp::ping_pong(cpus, spin, size, part * 2)?);
        step(all)?;
    }
    all.push(tcp::stream(cpus, spin, 1 << 20, part * 2)?);
    step(all)?;
    if full {
        all.push(Limit::latency("eventfd_wake", None, eventfd_wake(cpus, 300)?.quantile(0.5)));
        step(all)?;
    }
    Ok(())
}

/// Runs two threads, one on each CPU, and gives what the first returns.
pub(crate) fn on_two<A: Send, B: Send>(
    cpus: Option<(u32, u32)>,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    std::thread::scope(|s| {
        let b = s.spawn(move || {
            pin(cpus.map(|c| c.1));
            second()
        });
        let a = s.spawn(move || {
            pin(cpus.map(|c| c.0));
            first()
        });
        let end = |r: std::thread::Result<_>| r.unwrap_or_else(|e| std::panic::resume_unwind(e));
        let a = end(a.join());
        (a, b.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    })
}

/// The one in the middle.
pub(crate) fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_find_the_limit_they_stand_beside() {
        let all = [
            Limit::latency("cache_line", None, 50.0),
            Limit::latency("tcp_pingpong", Some(8), 6000.0),
            Limit::bandwidth("memcpy", 1 << 20, 3e10),
            Limit::bandwidth("tcp_stream", 1 << 20, 5e9),
        ];
        assert_eq!(latency_limit(&all, "shm", 8), Some(50.0));
        assert_eq!(latency_limit(&all, "shm", 4096), None);
        assert_eq!(latency_limit(&all, "tcp", 8), Some(6000.0));
        assert_eq!(bandwidth_limit(&all, "shm", 1 << 20), Some(3e10));
        assert_eq!(bandwidth_limit(&all, "tcp", 4 << 20), Some(5e9));
        assert_eq!(bandwidth_limit(&all, "tcp", 64 << 10), None);
    }
}
