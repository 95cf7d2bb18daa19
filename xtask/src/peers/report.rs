//! Medians, ratios and verdicts: as a table for people and as JSON.

use std::fmt;

use serde_json::{Value, json};

use super::plan::{Line, Unit};
use super::round::{Measured, Samples};

/// Everything that was measured, and what follows from it.
pub(super) struct Report<'a> {
    lines: Vec<(&'a Line, &'a Measured)>,
    /// How busy the cores were before each round.
    noise: Vec<f64>,
    rounds: usize,
    cores: [usize; 2],
}

/// kfab's figure divided by another, and what that ratio has to be.
#[derive(Debug, PartialEq)]
struct Verdict {
    against: String,
    target: f64,
    /// Nothing when one of the two has no figure.
    ratio: Option<f64>,
    /// Another that has no figure may have been better: then the target may be missed, and is never met.
    incomplete: bool,
    lower_is_better: bool,
}

impl Verdict {
    fn met(&self) -> bool {
        self.word() == "met"
    }

    fn word(&self) -> &'static str {
        let reached = |ratio: f64| match self.lower_is_better {
            true => ratio <= self.target,
            false => ratio >= self.target,
        };
        match self.ratio {
            Some(ratio) if !reached(ratio) => "MISSED",
            Some(_) if !self.incomplete => "met",
            _ => "not measured",
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(lines: &'a [Line], all: &'a [Measured], noise: Vec<f64>, cores: [usize; 2]) -> Self {
        Self { lines: lines.iter().zip(all).collect(), rounds: noise.len(), noise, cores }
    }

    /// True when every target was measured and met.
    pub(super) fn all_met(&self) -> bool {
        self.lines.iter().flat_map(|(line, measured)| verdicts(line, measured)).all(|verdict| verdict.met())
    }

    /// The whole report for programs. Figures are in ns, messages a second and bytes a second.
    pub(super) fn json(&self) -> Value {
        let lines = self.lines.iter().map(|(line, measured)| {
            let sources = sources(line, measured).into_iter().map(|source| {
                let Source { role, name, samples } = source;
                let spread = samples.spread();
                json!({
                    "role": role, "name": name, "median": samples.median(), "samples": samples.figures,
                    "min": spread.map(|s| s.0), "max": spread.map(|s| s.1), "failures": samples.failures,
                })
            });
            let verdicts = verdicts(line, measured).into_iter().map(|verdict| {
                json!({
                    "against": verdict.against, "ratio": verdict.ratio, "target": verdict.target,
                    "verdict": verdict.word(),
                })
            });
            json!({
                "name": line.name, "unit": unit_name(line.unit),
                "better": if line.unit.lower_is_better() { "lower" } else { "higher" },
                "sources": sources.collect::<Vec<_>>(), "verdicts": verdicts.collect::<Vec<_>>(),
            })
        });
        json!({
            "machine": machine(), "cores": self.cores, "rounds": self.rounds, "busy_before_rounds": self.noise,
            "lines": lines.collect::<Vec<_>>(),
        })
    }
}

struct Source<'a> {
    role: &'static str,
    name: String,
    samples: &'a Samples,
}

fn sources<'a>(line: &Line, measured: &'a Measured) -> Vec<Source<'a>> {
    let mut all = vec![Source { role: "kfab", name: "kfab".to_owned(), samples: &measured.kfab }];
    if let Some(limit) = &line.limit {
        if line.unit.lower_is_better() {
            let samples = &measured.beside_limit;
            all.push(Source { role: "kfab", name: "kfab, median of a run".to_owned(), samples });
        }
        all.push(Source { role: "limit", name: limit.name.replace('_', " "), samples: &measured.limit });
    }
    let peers = line.peers.iter().zip(&measured.peers);
    all.extend(peers.map(|(call, samples)| Source { role: "peer", name: call.name(), samples }));
    all
}

fn best(line: &Line, measured: &Measured) -> Option<(String, f64)> {
    let medians = line.peers.iter().zip(&measured.peers);
    let medians = medians.filter_map(|(call, samples)| Some((call.name(), samples.median()?)));
    match line.unit.lower_is_better() {
        true => medians.min_by(|a, b| a.1.total_cmp(&b.1)),
        false => medians.max_by(|a, b| a.1.total_cmp(&b.1)),
    }
}

fn verdicts(line: &Line, measured: &Measured) -> Vec<Verdict> {
    let lower_is_better = line.unit.lower_is_better();
    let over = |ours: &Samples, other: Option<f64>| Some(ours.median()? / other?);
    let mut all = Vec::new();
    if let Some(limit) = &line.limit {
        let ratio = over(&measured.beside_limit, measured.limit.median());
        let against = limit.name.replace('_', " ");
        all.push(Verdict { against, target: limit.target, ratio, incomplete: false, lower_is_better });
    }
    if let Some(target) = line.target {
        let best = best(line, measured);
        let ratio = over(&measured.kfab, best.as_ref().map(|best| best.1));
        let against = best.map_or("the best peer".to_owned(), |best| best.0);
        let incomplete = measured.peers.iter().any(|peer| peer.median().is_none());
        all.push(Verdict { against, target, ratio, incomplete, lower_is_better });
    }
    all
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Nanoseconds => "ns",
        Unit::Messages => "msg/s",
        Unit::Bytes => "B/s",
    }
}

/// A figure with the prefix that keeps it short.
fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Nanoseconds if value < 1e3 => format!("{value:.0} ns"),
        Unit::Nanoseconds => format!("{:.2} us", value / 1e3),
        Unit::Messages if value < 1e6 => format!("{:.0} k/s", value / 1e3),
        Unit::Messages => format!("{:.1} M/s", value / 1e6),
        Unit::Bytes => format!("{:.2} GB/s", value / 1e9),
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, Linux {}", kernel.trim())
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = self.cores;
        writeln!(f, "{}; cores {a} and {b}; {} rounds, medians (lowest to highest)", machine(), self.rounds)?;
        let noise: Vec<String> = self.noise.iter().map(|busy| format!("{:.0} %", busy * 100.0)).collect();
        let quiet = self.noise.iter().all(|busy| *busy < 0.1);
        let said = if quiet { "quiet" } else { "NOT QUIET: the figures below say little" };
        writeln!(f, "cores busy with other work before each round: {} ({said})", noise.join(", "))?;
        for (line, measured) in &self.lines {
            writeln!(f, "\n{}", line.name)?;
            let best = best(line, measured).map(|best| best.0);
            for Source { role, name, samples } in sources(line, measured) {
                let mark = if role == "peer" && best.as_ref() == Some(&name) { "*" } else { " " };
                let said = match (samples.median(), samples.spread()) {
                    (Some(median), Some((low, high))) => {
                        let [median, low, high] = [median, low, high].map(|value| figure(line.unit, value));
                        format!("{median:>11}   ({low} to {high})")
                    }
                    _ => format!("{:>11}", "-"),
                };
                writeln!(f, "{mark} {name:<26}{said}")?;
                if let Some(reason) = samples.failures.first() {
                    let short = reason.split_whitespace().collect::<Vec<_>>().join(" ");
                    let short: String = short.chars().take(160).collect();
                    writeln!(
                        f,
                        "      {} of {} rounds failed: {short}",
                        samples.failures.len(),
                        self.rounds
                    )?;
                }
            }
            for verdict in verdicts(line, measured) {
                let sign = if verdict.lower_is_better { "<=" } else { ">=" };
                let ratio = verdict.ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"));
                let Verdict { against, target, .. } = &verdict;
                writeln!(f, "  -> {ratio} {against}, must be {sign} {target}x: {}", verdict.word())?;
            }
        }
        let all: Vec<Verdict> =
            self.lines.iter().flat_map(|(line, measured)| verdicts(line, measured)).collect();
        let count = |word: &str| all.iter().filter(|verdict| verdict.word() == word).count();
        let (met, missed, none) = (count("met"), count("MISSED"), count("not measured"));
        writeln!(f, "\n{met} targets met, {missed} missed, {none} not measured")
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::*;

    fn samples(figures: &[f64]) -> Samples {
        Samples { figures: figures.to_vec(), failures: Vec::new() }
    }

    /// The first peers' figures; those after them have the last one's.
    fn measured(line: &Line, kfab: f64, limit: f64, peers: &[f64]) -> Measured {
        let figures = peers.iter().chain(std::iter::repeat(&peers[peers.len() - 1]));
        let all = figures.take(line.peers.len()).map(|&figure| samples(&[figure])).collect();
        let (kfab, limit) = (samples(&[kfab]), samples(&[limit]));
        Measured { beside_limit: kfab.clone(), kfab, limit, peers: all }
    }

    #[test]
    fn a_latency_is_judged_against_the_limit_and_the_fastest_peer() {
        let lines = plan::lines();
        let line = &lines[0];
        let verdicts = verdicts(line, &measured(line, 80.0, 50.0, &[100.0, 75.0, 300.0]));
        assert_eq!(verdicts.iter().map(Verdict::word).collect::<Vec<_>>(), ["met", "MISSED"]);
        assert!((verdicts[1].ratio.unwrap() - 80.0 / 75.0).abs() < 1e-9);
        assert_eq!(verdicts[1].against, line.peers[1].name());
    }

    #[test]
    fn a_rate_must_be_higher() {
        let lines = plan::lines();
        let line = lines.iter().find(|line| line.name == "shm rate 8 B").unwrap();
        let word = |kfab| verdicts(line, &measured(line, kfab, 0.0, &[10e6, 20e6]))[0].word();
        assert_eq!((word(30e6), word(29e6)), ("met", "MISSED"));
    }

    #[test]
    fn a_target_is_not_met_while_a_peer_has_no_figure() {
        let lines = plan::lines();
        let line = lines.iter().find(|line| line.name == "shm rate 8 B").unwrap();
        let lines = std::slice::from_ref(line);
        for (kfab, word) in [(30e6, "not measured"), (29e6, "MISSED")] {
            let mut measured = [measured(line, kfab, 0.0, &[10e6, 20e6])];
            measured[0].peers[0] = Samples::default();
            let report = Report::new(lines, &measured, vec![0.0], [0, 1]);
            assert!(!report.all_met());
            assert_eq!(report.json()["lines"][0]["verdicts"][0]["verdict"], word);
        }
    }

    #[test]
    fn what_has_no_figure_is_not_measured_and_not_met() {
        let lines = plan::lines();
        let line = &lines[..1];
        let none = Samples::default;
        let all = [Measured { kfab: none(), beside_limit: none(), ..measured(&line[0], 1.0, 1.0, &[1.0]) }];
        let report = Report::new(line, &all, vec![0.5], [0, 1]);
        assert!(!report.all_met());
        assert!(report.to_string().contains("50 % (NOT QUIET"), "{report}");
        assert!(report.to_string().contains("0 targets met, 0 missed, 2 not measured"), "{report}");
        assert_eq!(report.json()["lines"][0]["verdicts"][0]["verdict"], "not measured");
    }
}
