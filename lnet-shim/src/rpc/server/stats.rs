//! What a service has done: counts, and how long its calls waited, ran and moved data.

use hdrhistogram::Histogram;
use std::collections::HashMap;

/// The most job ids that are counted apart; the rest go under `(others)`.
const JOBS_MAX: usize = 1024;

/// What one job has asked of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobStats {
    /// Calls begun.
    pub calls: u64,
    /// Bytes of bulk data moved for those that have ended, both ways.
    pub bulk_bytes: u64,
}

/// One service on all lanes, since the server began.
#[derive(Clone, Debug)]
pub struct ServiceStats {
    /// Its name.
    pub name: String,
    /// Its portal.
    pub portal: u8,
    /// Calls answered well.
    pub ok: u64,
    /// Calls that the handler answered with an error.
    pub failed: u64,
    /// Calls given up: cancelled, or the client is gone.
    pub abandoned: u64,
    /// Calls whose time was up before they began.
    pub expired: u64,
    /// Bytes of bulk data moved, both ways.
    pub bulk_bytes: u64,
    /// From a call's arrival to its beginning, ns.
    pub queue_ns: Histogram<u64>,
    /// From a call's beginning to its end, ns. Calls that ended at once share the time of their turn.
    pub service_ns: Histogram<u64>,
    /// Of that, moving bulk data, ns; calls without are not counted.
    pub bulk_ns: Histogram<u64>,
    /// By job id.
    pub jobs: HashMap<Box<str>, JobStats>,
}

impl ServiceStats {
    pub(crate) fn new(name: &str, portal: u8) -> ServiceStats {
        ServiceStats {
            name: name.to_owned(),
            portal,
            ok: 0,
            failed: 0,
            abandoned: 0,
            expired: 0,
            bulk_bytes: 0,
            queue_ns: histogram(),
            service_ns: histogram(),
            bulk_ns: histogram(),
            jobs: HashMap::new(),
        }
    }

    /// One line for a person.
    pub fn summary(&self) -> String {
        let us = |h: &Histogram<u64>, q| h.value_at_quantile(q) as f64 / 1e3;
        format!(
            "{} (portal {}): {} ok, {} failed, {} abandoned, {} expired; queue p50 {:.1} p99 {:.1} us; \
             service p50 {:.1} p99 {:.1} us; bulk {} bytes, p50 {:.1} p99 {:.1} us",
            self.name,
            self.portal,
            self.ok,
            self.failed,
            self.abandoned,
            self.expired,
            us(&self.queue_ns, 0.5),
            us(&self.queue_ns, 0.99),
            us(&self.service_ns, 0.5),
            us(&self.service_ns, 0.99),
            self.bulk_bytes,
            us(&self.bulk_ns, 0.5),
            us(&self.bulk_ns, 0.99),
        )
    }

    /// Takes in what another lane saw.
    pub(crate) fn add(&mut self, other: &ServiceStats) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.abandoned += other.abandoned;
        self.expired += other.expired;
        self.bulk_bytes += other.bulk_bytes;
        // All have the same bounds.
        let _ = self.queue_ns.add(&other.queue_ns);
        let _ = self.service_ns.add(&other.service_ns);
        let _ = self.bulk_ns.add(&other.bulk_ns);
        for (job, stats) in &other.jobs {
            self.count_job(job, *stats);
        }
    }

    pub(crate) fn count_job(&mut self, job: &str, more: JobStats) {
        let others = self.jobs.len() >= JOBS_MAX && !self.jobs.contains_key(job);
        let job = if others { "(others)" } else { job };
        let stats = match self.jobs.get_mut(job) {
            Some(stats) => stats,
            None => self.jobs.entry(job.into()).or_default(),
        };
        stats.calls += more.calls;
        stats.bulk_bytes += more.bulk_bytes;
    }
}

/// Nanoseconds up to 1000 s, two significant digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1_000_000_000_000, 2).expect("bounds that hdrhistogram accepts")
}
