//! Runs everything in turn, round after round.

use std::io::Write;

use super::plan::Line;
use super::{Bench, kfab, rpc};

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
    /// Of the same runs, the figures that are measured as the limit is.
    pub(super) beside_limit: Samples,
    pub(super) limit: Samples,
    /// In the order of the line's peers.
    pub(super) peers: Vec<Samples>,
}

/// How busy the two cores were with other work, before each round: 0 is idle, 1 is taken altogether. A figure
/// from a busy machine says little, whoever it flatters.
pub(super) fn busy(cores: [usize; 2]) -> Option<f64> {
    let before = ticks(&std::fs::read_to_string("/proc/stat").ok()?, cores)?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let after = ticks(&std::fs::read_to_string("/proc/stat").ok()?, cores)?;
    let (busy, all) = (after.0 - before.0, after.1 - before.1);
    (all > 0.0).then_some(busy / all)
}

/// Ticks that the cores were busy, and all ticks, from the text of `/proc/stat`.
fn ticks(stat: &str, cores: [usize; 2]) -> Option<(f64, f64)> {
    let mut sum = (0.0, 0.0);
    for core in cores {
        let name = format!("cpu{core}");
        let mut lines = stat.lines().map(str::split_whitespace);
        let line = lines.find_map(|mut words| (words.next() == Some(name.as_str())).then_some(words))?;
        let ticks: Vec<f64> = line.filter_map(|word| word.parse().ok()).take(8).collect();
        let all: f64 = ticks.iter().sum();
        sum = (sum.0 + all - ticks.get(3)? - ticks.get(4)?, sum.1 + all);
    }
    Some(sum)
}

/// Runs `rounds` rounds; in each, every line in turn: its limit, kfab, then its peers. Progress goes to standard error.
pub(super) fn measure(bench: &Bench, lines: &[Line], rounds: usize) -> (Vec<Measured>, Vec<f64>) {
    let none = |line: &Line| Measured {
        kfab: Samples::default(),
        beside_limit: Samples::default(),
        limit: Samples::default(),
        peers: vec![Samples::default(); line.peers.len()],
    };
    let mut all: Vec<Measured> = lines.iter().map(none).collect();
    let mut noise = Vec::new();
    for round in 1..=rounds {
        noise.push(busy(bench.cores).unwrap_or(1.0));
        for (at, (line, measured)) in lines.iter().zip(&mut all).enumerate() {
            eprint!("\rround {round}/{rounds}, line {}/{}: {:<24}", at + 1, lines.len(), line.name);
            let _ = std::io::stderr().flush();
            one(bench, line, measured);
        }
    }
    eprintln!();
    (all, noise)
}

fn one(bench: &Bench, line: &Line, measured: &mut Measured) {
    // Beside the run it is held against: a host may move the cores apart meanwhile.
    if let (Some(limit), Some(_)) = (&line.limit, &bench.kfab) {
        measured.limit.take(kfab::limits(bench).and_then(|limits| kfab::limit(&limits, limit)));
    }
    match line.rpc {
        _ if bench.kfab.is_none() => {}
        Some(job) => {
            measured.kfab.take(rpc::run(bench, rpc::ours(line.provider), job, line.size, line.window));
        }
        None => match kfab::run(bench, line) {
            Ok(figures) => {
                measured.kfab.take(Ok(figures.beside_peers));
                measured.beside_limit.take(Ok(figures.beside_limit));
            }
            Err(error) => measured.kfab.take(Err(error)),
        },
    }
    for (call, samples) in line.peers.iter().zip(&mut measured.peers) {
        samples.take(call.run(bench, line.unit, line.window));
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
    fn busy_ticks_of_the_two_cores_are_added_up() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 10 0 5 80 5 0 0 0 0 0\ncpu1 1 1 1 50 0 1 1 1 0 0\ncpu11 7 7 7 7 7\n";
        assert_eq!(ticks(stat, [0, 1]), Some((21.0, 156.0)));
        assert_eq!(ticks(stat, [0, 2]), None);
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
