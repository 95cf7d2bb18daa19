//! What is measured, and the arithmetic.

use anyhow::bail;
use std::time::{Duration, Instant};

/// A figure to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// The median round trip with one call under way, ns.
    Latency,
    /// Calls a second with `flight` under way.
    Rate,
    /// Bytes a second that the server puts into the client's memory.
    Read,
    /// Bytes a second that the server gets from the client's memory.
    Write,
}

impl Job {
    pub fn parse(word: &str) -> anyhow::Result<Job> {
        Ok(match word {
            "lat" => Job::Latency,
            "rate" => Job::Rate,
            "read" => Job::Read,
            "write" => Job::Write,
            other => bail!("no job {other}"),
        })
    }
}

/// How it is measured.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub job: Job,
    pub size: usize,
    pub flight: usize,
    pub length: Duration,
}

/// Round trips in one reading of the clock: reading it takes as long as a small part of one.
const BATCH: u32 = 16;

/// The median time of `call`, ns.
pub fn median(length: Duration, mut call: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let warm = Instant::now();
    while warm.elapsed() < length / 5 {
        call()?;
    }
    let begun = Instant::now();
    let mut all = Vec::new();
    while begun.elapsed() < length {
        let start = Instant::now();
        for _ in 0..BATCH {
            call()?;
        }
        all.push(start.elapsed().as_nanos() as f64 / f64::from(BATCH));
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

/// Rounds of `round`, which makes a number of calls; calls a second after a warm-up.
pub fn rate(length: Duration, mut round: impl FnMut() -> anyhow::Result<u64>) -> anyhow::Result<f64> {
    let warm = Instant::now();
    while warm.elapsed() < length / 5 {
        round()?;
    }
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < length {
        count += round()?;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}
