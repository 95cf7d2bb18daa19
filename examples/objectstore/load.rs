//! A small load: threads that put objects and read them back, and remember what was acknowledged.

use crate::client::Objects;
use lnet_shim::rpc::Result;
use std::time::{Duration, Instant};

/// The bytes of an object: each is told from all others.
pub fn content(thread: u32, n: u32, len: usize) -> Vec<u8> {
    let seed = thread.wrapping_mul(0x9e37_79b9) ^ n.wrapping_mul(0x85eb_ca6b);
    (0..len as u32).map(|i| (seed.wrapping_add(i).wrapping_mul(0x9e37_79b1) >> 24) as u8).collect()
}

pub fn name(thread: u32, n: u32) -> String {
    format!("load-{thread}-{n:06}")
}

/// What a load did.
pub struct Report {
    /// Objects acknowledged by each thread: number 0 up to this.
    pub acknowledged: Vec<u32>,
    pub took: Duration,
    /// Of a put, sorted.
    latencies: Vec<Duration>,
}

impl Report {
    pub fn summary(&self, len: usize) -> String {
        let all: u32 = self.acknowledged.iter().sum();
        let per_s = f64::from(all) / self.took.as_secs_f64();
        let at = |q: f64| {
            self.latencies.get((self.latencies.len() as f64 * q) as usize).copied().unwrap_or_default()
        };
        format!(
            "{all} objects of {len} bytes put and read back: {per_s:.0} a second, {:.1} MB/s; put p50 {:?}, p99 {:?}, worst {:?}",
            per_s * len as f64 * 2.0 / 1e6,
            at(0.5),
            at(0.99),
            at(0.999_999),
        )
    }
}

/// Puts objects of `len` bytes for a while, each synced and read back.
pub fn run(objects: &Objects, threads: u32, len: usize, length: Duration) -> Result<Report> {
    let begun = Instant::now();
    let one = |thread: u32| {
        let (mut n, mut latencies) = (0, Vec::new());
        while begun.elapsed() < length {
            let data = content(thread, n, len);
            let start = Instant::now();
            objects.put(&name(thread, n), &data, true)?;
            latencies.push(start.elapsed());
            assert!(
                objects.get(&name(thread, n), 0, len)? == data,
                "object {n} of thread {thread} is not what was put"
            );
            n += 1;
        }
        Ok((n, latencies))
    };
    let ended: Vec<Result<(u32, Vec<Duration>)>> = std::thread::scope(|s| {
        let running: Vec<_> = (0..threads).map(|thread| s.spawn(move || one(thread))).collect();
        running.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
    });
    let (mut acknowledged, mut latencies) = (Vec::new(), Vec::new());
    for e in ended {
        let (n, mut times) = e?;
        acknowledged.push(n);
        latencies.append(&mut times);
    }
    latencies.sort();
    Ok(Report { acknowledged, took: begun.elapsed(), latencies })
}
