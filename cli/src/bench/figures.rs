//! What a measurement gives: one row per test, provider and size.

use serde::Serialize;

/// Units of the histograms: tenths of nanoseconds, for a cache line crosses in 40 ns.
const PER_NS: f64 = 10.0;

/// Latencies, in nanoseconds, with three significant digits from 0.1 ns to 1000 s.
#[derive(Clone)]
pub(crate) struct Histogram {
    inner: hdrhistogram::Histogram<u64>,
}

impl Histogram {
    pub(crate) fn new() -> Histogram {
        let inner = hdrhistogram::Histogram::new_with_bounds(1, 10_000_000_000_000, 3);
        Histogram { inner: inner.expect("bounds that hdrhistogram accepts") }
    }

    #[inline]
    pub(crate) fn record(&mut self, ns: f64) {
        self.inner.saturating_record((ns * PER_NS) as u64);
    }

    /// Takes in what another saw.
    pub(crate) fn add(&mut self, other: &Histogram) {
        // Both have the same bounds.
        let _ = self.inner.add(&other.inner);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }

    /// The value below which the part `q` of all lies.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        self.inner.value_at_quantile(q) as f64 / PER_NS
    }

    pub(crate) fn mean(&self) -> f64 {
        self.inner.mean() / PER_NS
    }

    pub(crate) fn min(&self) -> f64 {
        self.inner.min() as f64 / PER_NS
    }

    pub(crate) fn max(&self) -> f64 {
        self.inner.max() as f64 / PER_NS
    }
}

/// The figures of one test, provider and size. Latencies are one way for `lat`, whole operations for `read` and `write`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) test: &'static str,
    pub(crate) provider: String,
    /// Bytes per message.
    pub(crate) size: usize,
    pub(crate) window: usize,
    #[serde(flatten)]
    pub(crate) latency: Option<Latency>,
    /// Absent where Ctrl-C came before it was measured.
    #[serde(flatten)]
    pub(crate) rate: Option<Rate>,
}

/// How much, and how fast.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Rate {
    /// Operations measured.
    pub(crate) count: u64,
    /// Messages per second, in one direction.
    pub(crate) msg_per_s: f64,
    /// Bytes per second, in one direction.
    pub(crate) bytes_per_s: f64,
}

impl Rate {
    fn of(size: usize, count: u64, msg_per_s: f64) -> Rate {
        Rate { count, msg_per_s, bytes_per_s: msg_per_s * size as f64 }
    }
}

/// Latencies in nanoseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_ns: f64,
    pub(crate) p90_ns: f64,
    pub(crate) p99_ns: f64,
    pub(crate) p999_ns: f64,
    pub(crate) p9999_ns: f64,
    pub(crate) mean_ns: f64,
    pub(crate) min_ns: f64,
    pub(crate) max_ns: f64,
    /// Operations per reading of the clock for p50, mean and min; the rest is always from single ones.
    pub(crate) batch: u64,
}

impl Latency {
    fn of(single: &Histogram, batched: Option<&Histogram>) -> Latency {
        let body = batched.unwrap_or(single);
        let p50_ns = body.quantile(0.5);
        Latency {
            p50_ns,
            p90_ns: single.quantile(0.9).max(p50_ns),
            p99_ns: single.quantile(0.99).max(p50_ns),
            p999_ns: single.quantile(0.999).max(p50_ns),
            p9999_ns: single.quantile(0.9999).max(p50_ns),
            mean_ns: body.mean(),
            min_ns: body.min(),
            max_ns: single.max(),
            batch: if batched.is_some() { super::latency::BATCH } else { 1 },
        }
    }
}

impl Row {
    pub(crate) fn of_latency(
        size: usize,
        count: u64,
        single: &Histogram,
        batched: Option<&Histogram>,
    ) -> Row {
        let latency = Latency::of(single, batched);
        let rate = Rate::of(size, count, 1e9 / latency.mean_ns);
        Row { size, latency: Some(latency), rate: Some(rate), ..Default::default() }
    }

    pub(crate) fn take_latency(&mut self, single: &Histogram, batched: Option<&Histogram>) {
        if !single.is_empty() {
            self.latency = Some(Latency::of(single, batched));
        }
    }
}

/// A sum over rounds.
pub(crate) struct Throughput {
    size: usize,
    count: u64,
    ns: u64,
}

impl Throughput {
    pub(crate) fn new(size: usize) -> Throughput {
        Throughput { size, count: 0, ns: 0 }
    }

    pub(crate) fn add(&mut self, count: u64, ns: u64) {
        self.count += count;
        self.ns += ns;
    }

    pub(crate) fn row(&self) -> Row {
        let rate = Rate::of(self.size, self.count, self.count as f64 * 1e9 / self.ns as f64);
        Row { size: self.size, rate: (self.ns > 0).then_some(rate), ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_what_was_recorded() {
        let mut h = Histogram::new();
        for i in 1..=1000 {
            h.record(f64::from(i) / 2.0);
        }
        let l = Latency::of(&h, None);
        assert!((l.p50_ns - 250.0).abs() < 1.0 && (l.p99_ns - 495.0).abs() < 1.0, "{l:?}");
        assert_eq!((l.min_ns, l.batch), (0.5, 1));
        let mut t = Throughput::new(100);
        let nothing = serde_json::to_value(t.row()).unwrap();
        assert!(nothing.get("count").is_none() && nothing.get("msg_per_s").is_none(), "{nothing}");
        t.add(10, 1_000);
        let row = serde_json::to_value(t.row()).unwrap();
        assert_eq!(["count", "msg_per_s", "bytes_per_s"].map(|k| row[k].as_f64().unwrap()), [10.0, 1e7, 1e9]);
    }
}
