//! The session of a self-test node: its batches and their tests.
//!
//! Pure state but for the threads of running client tests, which end when asked to or with the session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::errno;
use super::load::{self, Kind, LoadSpec, Progress};
use super::pattern::Check;
use super::rpc::Rpc;
use crate::nid::ProcessId;
use crate::wire::lst::{FrameworkStats, Service, SessionId, TestParams, TestRequest};

/// Limits of what a console may order; see also [`load::check_in_flight`].
pub(super) const MAX_DESTINATIONS: u32 = load::MAX_IN_FLIGHT;
const MAX_TESTS: usize = 256;

/// A test of a batch.
struct Test {
    request: TestRequest,
    destinations: Vec<ProcessId>,
    progress: Arc<Progress>,
    active: Arc<AtomicU32>,
}

#[derive(Default)]
struct Batch {
    tests: Vec<Test>,
}

/// The session a node is in.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) name: [u8; 32],
    pub(super) features: u32,
    pub(super) timeout: Duration,
    pub(super) heard: Instant,
    started: Instant,
    batches: HashMap<u64, Batch>,
}

impl Session {
    pub(super) fn new(id: SessionId, name: [u8; 32], features: u32, timeout: Duration) -> Self {
        let now = Instant::now();
        Self { id, name, features, timeout, heard: now, started: now, batches: HashMap::new() }
    }

    /// Whether its console has been silent for too long.
    pub(super) fn is_stale(&self) -> bool {
        !self.timeout.is_zero() && self.heard.elapsed() > self.timeout
    }

    pub(super) fn batches(&self) -> u32 {
        self.batches.len() as u32
    }

    /// What is wrong with a test, as an error number.
    pub(super) fn check_test(&self, t: &TestRequest) -> Result<(), u32> {
        let known = t.service == Service::Brw as u32 || t.service == Service::Ping as u32;
        let tests: usize = self.batches.values().map(|b| b.tests.len()).sum();
        if !known {
            return Err(errno::NO_ENTRY);
        }
        let sized = match t.params {
            TestParams::Bulk { op, check, len, offset } => {
                (1..=2).contains(&op)
                    && Check::from_number(check.into()).is_some()
                    && (1..=1 << 20).contains(&len)
                    && offset == 0
            }
            TestParams::Ping { .. } => true,
        };
        let in_flight = match t.is_client {
            true => load::check_in_flight(t.destinations as usize, t.concurrency).is_ok(),
            false => t.destinations <= MAX_DESTINATIONS && t.concurrency <= load::MAX_CONCURRENCY,
        };
        if sized && in_flight && tests < MAX_TESTS { Ok(()) } else { Err(errno::INVALID) }
    }

    pub(super) fn add_test(&mut self, request: TestRequest, destinations: Vec<ProcessId>) {
        let (progress, active) = Default::default();
        let test = Test { request, destinations, progress, active };
        self.batches.entry(request.batch).or_default().tests.push(test);
    }

    /// Starts the client tests of a batch.
    pub(super) fn run(&mut self, batch: u64, rpc: &Arc<Rpc>) -> Result<(), u32> {
        let batch = self.batches.get_mut(&batch).ok_or(errno::NO_ENTRY)?;
        for test in batch.tests.iter_mut().filter(|t| t.request.is_client) {
            test.start(rpc);
        }
        Ok(())
    }

    /// Stops the client tests of a batch; they end when their calls have.
    pub(super) fn stop(&mut self, batch: u64) -> Result<(), u32> {
        let batch = self.batches.get(&batch).ok_or(errno::NO_ENTRY)?;
        batch.tests.iter().for_each(|t| t.progress.stop.store(true, Ordering::Relaxed));
        Ok(())
    }

    /// How many tests of a batch (0: all, else the test of this number) run.
    pub(super) fn active(&self, batch: u64, test: u32) -> Result<u32, u32> {
        let batch = self.batches.get(&batch).ok_or(errno::NO_ENTRY)?;
        let chosen = batch.tests.iter().enumerate().filter(|(i, _)| test == 0 || *i as u32 + 1 == test);
        Ok(chosen.filter(|(_, t)| t.active.load(Ordering::Relaxed) > 0).count() as u32)
    }

    /// The tests of a batch; of all without one.
    fn tests(&self, batch: Option<u64>) -> impl Iterator<Item = &Test> {
        let chosen = self.batches.iter().filter(move |(id, _)| batch.is_none_or(|b| b == **id));
        chosen.flat_map(|(_, b)| &b.tests)
    }

    /// Latencies of the client tests (of a batch) that have run: 50, 90, 99, 99.9 per cent, and the longest, nanoseconds.
    pub(super) fn latency_ns(&self, batch: Option<u64>) -> Option<[u64; 5]> {
        let mut all = load::new_histogram().ok()?;
        for test in self.tests(batch) {
            if let Some(h) = &*test.progress.latency.lock().unwrap_or_else(|p| p.into_inner()) {
                all.add(h).ok()?;
            }
        }
        (!all.is_empty()).then(|| load::percentiles(&all))
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Errors are those of one batch, if one is given.
    pub(super) fn stats(&self, batch: Option<u64>) -> FrameworkStats {
        let errors = |service: Service| {
            let of = self.tests(batch).filter(|t| t.request.service == service as u32);
            of.map(|t| t.progress.errors.load(Ordering::Relaxed)).sum::<u64>() as u32
        };
        let runs = |b: &&Batch| b.tests.iter().any(|t| t.active.load(Ordering::Relaxed) > 0);
        FrameworkStats {
            running_ms: self.elapsed().as_millis() as u32,
            active_batches: self.batches.values().filter(runs).count() as u32,
            zombie_sessions: 0,
            brw_errors: errors(Service::Brw),
            ping_errors: errors(Service::Ping),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for test in self.batches.values().flat_map(|b| &b.tests) {
            test.progress.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Test {
    fn spec(&self) -> LoadSpec {
        let r = &self.request;
        let (kind, size, check) = match r.params {
            TestParams::Bulk { op, check, len, .. } => {
                let kind = if op == 1 { Kind::Read } else { Kind::Write };
                (kind, len, Check::from_number(check.into()).unwrap_or(Check::None))
            }
            TestParams::Ping { .. } => (Kind::Ping, 8, Check::None),
        };
        LoadSpec {
            kind,
            size,
            check,
            concurrency: r.concurrency,
            loops: if r.loops == u32::MAX { 0 } else { r.loops },
            duration: Duration::MAX,
            stop_on_error: r.stop_on_error,
            ..LoadSpec::default()
        }
    }

    /// Starts one thread that runs the test, unless it runs.
    fn start(&mut self, rpc: &Arc<Rpc>) {
        if self.active.swap(1, Ordering::Relaxed) > 0 {
            return;
        }
        let (spec, rpc, targets) = (self.spec(), rpc.clone(), self.destinations.clone());
        self.progress = Arc::default();
        let (progress, active) = (self.progress.clone(), self.active.clone());
        let body = move || {
            if let Err(error) = load::run(&rpc, &targets, spec, &progress) {
                tracing::warn!(%error, "self-test");
                progress.errors.fetch_add(1, Ordering::Relaxed);
            }
            active.store(0, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("lst-test".into()).spawn(body).is_err() {
            self.active.store(0, Ordering::Relaxed);
        }
    }
}
