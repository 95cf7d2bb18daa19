//! Times of many rounds, from several processes: what they were, shown as a distribution.

use std::fmt;
use std::time::Duration;

/// Durations, microseconds, sorted when shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<u64>);

impl Times {
    pub(crate) fn push(&mut self, d: Duration) {
        self.0.push(d.as_micros() as u64);
    }

    /// For a line that a child says.
    pub(crate) fn line(&self) -> String {
        self.0.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Adds those of such a line.
    pub(crate) fn add(&mut self, line: &str) {
        self.0.extend(line.split_whitespace().map(|t| t.parse::<u64>().expect("a time")));
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// How many took longer.
    pub(crate) fn over(&self, d: Duration) -> usize {
        self.0.iter().filter(|t| Duration::from_micros(**t) > d).count()
    }

    /// The time that `percent` of them did not exceed.
    pub(crate) fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let i = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        Duration::from_micros(sorted.get(i).copied().unwrap_or(0))
    }

    pub(crate) fn median(&self) -> Duration {
        self.at(50)
    }

    pub(crate) fn worst(&self) -> Duration {
        self.at(100)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |p| self.at(p).as_secs_f64() * 1e3;
        write!(f, "{:.1} / {:.1} / {:.1} ms (median, 90 %, worst)", ms(50), ms(90), ms(100))
    }
}
