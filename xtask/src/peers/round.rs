//! Runs everything in turn, round after round.

use std::io::Write;

use super::plan::Line;
use super::{Bench, kfab};

/// What one program gave in all rounds: a figure or a reason for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples {
    pub(super) figures: Vec<f64>,
    pub(super) failures: Vec<String>,
}

impl Samples {
    fn take(&mut self, outcome: anyhow::Result<f64>) {
        match outcome {
            Ok(figure) => self.figures.push(figure),
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    /// The middle figure; the mean of the middle two when their number is even.
    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted = self.figures.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match (sorted.len(), sorted.len() % 2) {
            (0, _) => None,
            (_, 1) => Some(sorted[half]),
            _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
        }
    }

    /// The lowest and the highest figure.
    pub(super) fn spread(&self) -> Option<(f64, f64)> {
        let low = self.figures.iter().copied().reduce(f64::min)?;
        Some((low, self.figures.iter().copied().fold(low, f64::max)))
    }
}

/// What was measured for one line.
pub(super) struct Measured {
    pub(super) kfab: Samples,
    pub(super) limit: Samples,
    /// In the order of the line's peers.
    pub(super) peers: Vec<Samples>,
}

/// Runs `rounds` rounds; in each, every line in turn: kfab, then its peers. The limits are measured at the
/// beginning of each round. Progress goes to standard error.
pub(super) fn measure(bench: &Bench, lines: &[Line], rounds: usize) -> Vec<Measured> {
    let none = |line: &Line| Measured {
        kfab: Samples::default(),
        limit: Samples::default(),
        peers: vec![Samples::default(); line.peers.len()],
    };
    let mut all: Vec<Measured> = lines.iter().map(none).collect();
    for round in 1..=rounds {
        let wanted = bench.kfab.is_some() && lines.iter().any(|line| line.limit.is_some());
        let limits = wanted.then(|| kfab::limits(bench).map_err(|error| format!("{error:#}")));
        for (at, (line, measured)) in lines.iter().zip(&mut all).enumerate() {
            eprint!("\rround {round}/{rounds}, line {}/{}: {:<24}", at + 1, lines.len(), line.name);
            let _ = std::io::stderr().flush();
            one(bench, line, measured, limits.as_ref());
        }
    }
    eprintln!();
    all
}

type Limits = Result<serde_json::Value, String>;

fn one(bench: &Bench, line: &Line, measured: &mut Measured, limits: Option<&Limits>) {
    if bench.kfab.is_some() {
        measured.kfab.take(kfab::run(bench, line));
    }
    for (call, samples) in line.peers.iter().zip(&mut measured.peers) {
        samples.take(call.run(bench, line.unit));
    }
    if let (Some(limit), Some(limits)) = (&line.limit, limits) {
        let found = limits.as_ref().map_err(|error| anyhow::anyhow!("{error}"));
        measured.limit.take(found.and_then(|limits| kfab::limit(limits, limit)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spread_keep_every_figure() {
        let samples = |figures: &[f64]| Samples { figures: figures.to_vec(), failures: Vec::new() };
        assert_eq!(samples(&[9.0, 1.0, 5.0]).median(), Some(5.0));
        assert_eq!(samples(&[9.0, 1.0]).median(), Some(5.0));
        assert_eq!(samples(&[]).median(), None);
        assert_eq!(samples(&[3.0, 9.0, 1.0]).spread(), Some((1.0, 9.0)));
    }

    #[test]
    fn a_failure_is_kept_with_its_reason() {
        let mut samples = Samples::default();
        samples.take(Ok(2.0));
        samples.take(Err(anyhow::anyhow!("refused")));
        assert_eq!(
            (samples.median(), samples.failures.as_slice()),
            (Some(2.0), ["refused".to_owned()].as_slice())
        );
    }
}
