//! Load on self-test services, from this node: RPCs counted as RPCs, with latencies.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::pattern::{self, Check};
use super::rpc::{Bulk, Rpc, status_of};
use crate::core::{Memory, SharedBytes};
use crate::error::{Error, ErrorKind, Result};
use crate::nid::ProcessId;
use crate::wire::lst::{LstBody, Service};

/// The most calls in flight to each target, and to all of them.
pub(super) const MAX_CONCURRENCY: u32 = 256;
pub(super) const MAX_IN_FLIGHT: u32 = 1024;

/// What each call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// A ping.
    Ping,
    /// The server's bytes come here.
    Read,
    /// Our bytes go there.
    Write,
}

/// What to run.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct LoadSpec {
    /// What each call does.
    pub kind: Kind,
    /// Bytes of bulk, 1 to 1 MiB.
    pub size: u32,
    /// How bulk is checked.
    pub check: Check,
    /// Calls in flight to each target, at most 256.
    pub concurrency: u32,
    /// Calls of each of these; 0: until stopped.
    pub loops: u32,
    /// How long at most.
    pub duration: Duration,
    /// How long one call may take.
    pub timeout: Duration,
    /// End at the first error.
    pub stop_on_error: bool,
}

impl Default for LoadSpec {
    fn default() -> Self {
        Self {
            kind: Kind::Ping,
            size: 4096,
            check: Check::None,
            concurrency: 1,
            loops: 0,
            duration: Duration::from_secs(10),
            timeout: Duration::from_secs(64),
            stop_on_error: false,
        }
    }
}

/// Counters that run while a load runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Calls that ended well.
    pub calls: AtomicU64,
    /// Calls that did not.
    pub errors: AtomicU64,
    /// Bulk, bytes.
    pub bytes: AtomicU64,
    /// Set to end the load.
    pub stop: AtomicBool,
    /// Latencies in nanoseconds, once the load has ended.
    pub(super) latency: Mutex<Option<Histogram<u64>>>,
}

/// What came of a load.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// What was run.
    pub spec: LoadSpec,
    /// Calls that ended well.
    pub calls: u64,
    /// Calls that did not.
    pub errors: u64,
    /// Seconds.
    pub seconds: f64,
    /// RPCs per second (not messages).
    pub rpcs_per_second: f64,
    /// MiB of bulk per second.
    pub mib_per_second: f64,
    /// How long calls took.
    pub latency_us: Latency,
}

/// How long calls took, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 90 per cent took no longer.
    pub p90: f64,
    /// 99 per cent took no longer.
    pub p99: f64,
    /// 99.9 per cent took no longer.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    /// The longest.
    pub max: f64,
}

impl Latency {
    /// From nanoseconds in this order, as they travel between nodes.
    pub(super) fn of_ns(all: [u64; 5]) -> Self {
        let [p50, p90, p99, p99_9, max] = all.map(|ns| ns as f64 / 1000.0);
        Self { p50, p90, p99, p99_9, max }
    }
}

/// One call of a load.
pub(super) async fn one_call(rpc: &Rpc, target: ProcessId, spec: &LoadSpec, seq: u32) -> Result<()> {
    let failed = |status: u32| Error::new(ErrorKind::Io, "selftest", format!("the server says {status}"));
    if spec.kind == Kind::Ping {
        let body = |ids: super::rpc::Ids| LstBody::Ping { reply_id: ids.reply_id, seq, sec: 0, nsec: 0 };
        return match rpc.call(target, Service::Ping, body, Bulk::None, spec.timeout).await? {
            LstBody::PingReply { status: 0, seq: back } if back == seq => Ok(()),
            other => Err(failed(status_of(&other))),
        };
    }
    let mut data = vec![0; spec.size as usize];
    let write = spec.kind == Kind::Write;
    if write {
        pattern::fill(&mut data, spec.check);
    }
    let memory = SharedBytes::new(data);
    let bulk = if write { Bulk::From(memory.memory()) } else { Bulk::Into(memory.memory()) };
    let (len, check) = (memory.len() as u32, spec.check.number());
    let op = if write { 2 } else { 1 };
    let body = |ids: super::rpc::Ids| {
        let (reply_id, bulk_id) = (ids.reply_id, ids.bulk_id);
        LstBody::Brw { reply_id, bulk_id, op, len, check }
    };
    match status_of(&rpc.call(target, Service::Brw, body, bulk, spec.timeout).await?) {
        0 if write || pattern::check(&memory.to_vec(), spec.check) => Ok(()),
        0 => Err(Error::new(ErrorKind::Protocol, "selftest", "bulk data is not what it should be")),
        status => Err(failed(status)),
    }
}

/// Runs a load against all `targets` at once and blocks until it has ended. `progress` can be watched, and stops it.
///
/// The targets must have been told to serve (a session and a server-side test: see [`super::Console`]); our own agents
/// serve always.
pub fn run(rpc: &Rpc, targets: &[ProcessId], spec: LoadSpec, progress: &Progress) -> Result<LoadReport> {
    check_in_flight(targets.len(), spec.concurrency)?;
    if spec.size == 0 || spec.size > 1 << 20 {
        return Err(Error::new(
            ErrorKind::Invalid,
            "load",
            format!("{} bytes are not 1 to 1048576", spec.size),
        ));
    }
    let start = Instant::now();
    let all = Mutex::new(new_histogram()?);
    std::thread::scope(|scope| {
        for target in targets {
            for _ in 0..spec.concurrency {
                scope.spawn(|| worker(rpc, *target, &spec, progress, start, &all));
            }
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let histogram = all.into_inner().unwrap_or_else(|p| p.into_inner());
    let calls = progress.calls.load(Ordering::Relaxed);
    let latency_us = Latency::of_ns(percentiles(&histogram));
    *progress.latency.lock().unwrap_or_else(|p| p.into_inner()) = Some(histogram);
    Ok(LoadReport {
        spec,
        calls,
        errors: progress.errors.load(Ordering::Relaxed),
        seconds,
        rpcs_per_second: calls as f64 / seconds,
        mib_per_second: progress.bytes.load(Ordering::Relaxed) as f64 / seconds / (1 << 20) as f64,
        latency_us,
    })
}

/// Whether so many calls may be in flight to each of so many targets.
pub(super) fn check_in_flight(targets: usize, concurrency: u32) -> Result<()> {
    let all = (targets as u64).saturating_mul(concurrency.into());
    if concurrency <= MAX_CONCURRENCY && (1..=u64::from(MAX_IN_FLIGHT)).contains(&all) {
        return Ok(());
    }
    let what = format!(
        "{concurrency} calls in flight to each of {targets} servers are {all}: a client has 1 to {MAX_CONCURRENCY} to each, \
        {MAX_IN_FLIGHT} in all"
    );
    Err(Error::new(ErrorKind::Invalid, "load", what))
}

/// 50, 90, 99, 99.9 per cent, and the longest.
pub(super) fn percentiles(h: &Histogram<u64>) -> [u64; 5] {
    let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|q| h.value_at_quantile(q));
    [p50, p90, p99, p999, h.max()]
}

pub(super) fn new_histogram() -> Result<Histogram<u64>> {
    // One nanosecond to an hour.
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3)
        .map_err(|e| Error::new(ErrorKind::Invalid, "load", e.to_string()))
}

fn worker(
    rpc: &Rpc,
    target: ProcessId,
    spec: &LoadSpec,
    progress: &Progress,
    start: Instant,
    all: &Mutex<Histogram<u64>>,
) {
    let Ok(mut own) = new_histogram() else { return };
    let mut seq = 0;
    while !progress.stop.load(Ordering::Relaxed) && start.elapsed() < spec.duration {
        let begun = Instant::now();
        let result = block_on(one_call(rpc, target, spec, seq));
        own.saturating_record(begun.elapsed().as_nanos() as u64);
        note(&result, spec, progress);
        if result.is_err() && spec.stop_on_error {
            progress.stop.store(true, Ordering::Relaxed);
        }
        seq = seq.wrapping_add(1);
        if spec.loops != 0 && seq >= spec.loops {
            break;
        }
    }
    let _ = all.lock().unwrap_or_else(|p| p.into_inner()).add(&own);
}

fn note(result: &Result<()>, spec: &LoadSpec, progress: &Progress) {
    match result {
        Ok(()) => {
            progress.calls.fetch_add(1, Ordering::Relaxed);
            if spec.kind != Kind::Ping {
                progress.bytes.fetch_add(spec.size.into(), Ordering::Relaxed);
            }
        }
        Err(error) => {
            tracing::debug!(%error, "self-test call");
            progress.errors.fetch_add(1, Ordering::Relaxed);
            // A peer that refuses at once must not make this loop burn.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
