//! `cargo xtask test`: everything that must hold before a change lands.
//!
//! [`STEPS`] is the list; a new step is one line there. Steps run in order, each announced with its time, and
//! the first that fails ends the run. A step that cannot run here says so and why; it never passes in silence.

use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;

use self::count::Counts;

pub(crate) mod count;
mod demands;
mod deps;
pub(crate) mod find;
mod lab;
mod loom;
mod steps;
pub(crate) mod tools;
mod tsan;

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only format, lints, tidy and tests
    #[arg(long)]
    quick: bool,
    /// Only lists the steps
    #[arg(long)]
    list: bool,
    /// Runs the other steps too when one fails
    #[arg(long)]
    keep_going: bool,
    /// The lab on both kernels and whole, with its own checks (many minutes more)
    #[arg(long)]
    full: bool,
    /// Seconds for each fuzz target, which ends after 2,000 inputs in any case
    #[arg(long, default_value_t = 10)]
    fuzz_seconds: u64,
    /// Only these steps
    steps: Vec<String>,
}

/// How a step ended, when it did not fail.
enum Outcome {
    /// Everything it checks holds.
    Passed,
    /// It ran this many tests.
    Tests(Counts),
    /// What could be checked holds, with this many tests; the rest could not be checked here, for these reasons.
    Partly(Counts, Vec<String>),
    /// It could not run here, for this reason.
    Skipped(String),
}

impl Outcome {
    /// Of a step that ran so many tests, if it runs tests, and could not check everything if there are reasons for that.
    fn with(counts: Counts, unchecked: Vec<String>) -> Self {
        match (counts == Counts::default(), unchecked.is_empty()) {
            (true, true) => Self::Passed,
            (false, true) => Self::Tests(counts),
            _ => Self::Partly(counts, unchecked),
        }
    }

    fn counts(&self) -> Counts {
        match self {
            Self::Tests(counts) | Self::Partly(counts, _) => *counts,
            Self::Passed | Self::Skipped(_) => Counts::default(),
        }
    }

    /// Whether all that the step checks was checked.
    fn whole(&self) -> bool {
        matches!(self, Self::Passed | Self::Tests(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Tests(counts) => write!(f, "passed: {counts}"),
            Self::Partly(counts, why) if *counts == Counts::default() => {
                write!(f, "passed; NOT CHECKED: {}", why.join("; "))
            }
            Self::Partly(counts, why) => write!(f, "passed: {counts}; NOT CHECKED: {}", why.join("; ")),
            Self::Skipped(why) => write!(f, "SKIPPED: {why}"),
        }
    }
}

type Run = fn(&Options) -> anyhow::Result<Outcome>;

struct Step {
    name: &'static str,
    what: &'static str,
    quick: bool,
    run: Run,
}

const fn step(name: &'static str, quick: bool, run: Run, what: &'static str) -> Step {
    Step { name, what, quick, run }
}

/// Every step, in order; those marked true are the quick ones.
const STEPS: &[Step] = &[
    step("packages", false, steps::packages, "native packages, installed through apt where that is possible"),
    step("fmt", true, steps::fmt, "rustfmt"),
    step("tidy", true, steps::tidy, "the rules of this repository"),
    step("clippy", true, steps::clippy, "lints, every target, with and without optional features"),
    step("msrv", false, deps::msrv, "no dependency and no call needs a newer Rust than we promise"),
    step("deny", false, deps::deny, "licences, bans, sources and advisories of dependencies"),
    step("doc", false, steps::doc, "documentation without a warning"),
    step("tests", true, steps::tests, "unit, integration and doc tests of the whole workspace"),
    step("lab", false, lab::run, "the verbs provider on soft-RoCE cards, in guests under QEMU"),
    step("features", false, steps::features, "tests with the optional features on"),
    step("seeds", false, steps::seeds, "the simulator, many seeds"),
    step("loom", false, loom::run, "lock-free code under every interleaving (loom)"),
    step("tsan", false, tsan::run, "lock-free code under ThreadSanitizer"),
    step("fuzz", false, steps::fuzz, "each fuzz target for some seconds or 2,000 inputs"),
    step("benches", false, steps::benches, "benchmarks compile"),
];

/// Runs the chosen steps.
///
/// # Errors
/// When a step's name is unknown or a step fails; the error names the step.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let chosen = choose(options)?;
    if options.list {
        chosen.iter().for_each(|step| println!("{:<9} {}", step.name, step.what));
        return Ok(ExitCode::SUCCESS);
    }
    let begun = Instant::now();
    let (mut lines, mut failed, mut unchecked) = (Vec::new(), Vec::new(), Vec::new());
    let mut sum = Counts::default();
    for (at, step) in chosen.iter().enumerate() {
        println!("\n== {}/{} {}: {}", at + 1, chosen.len(), step.name, step.what);
        let start = Instant::now();
        let outcome = (step.run)(options);
        let took_s = start.elapsed().as_secs_f64();
        let said = match outcome {
            Ok(outcome) => {
                sum.add(&outcome.counts());
                if !outcome.whole() {
                    unchecked.push(step.name);
                }
                outcome.to_string()
            }
            Err(error) => {
                failed.push(step.name);
                format!("FAILED: {error:#}")
            }
        };
        println!("== {} {said} ({took_s:.1} s)", step.name);
        lines.push(format!("{:<9} {took_s:7.1} s  {said}", step.name));
        if !failed.is_empty() && !options.keep_going {
            break;
        }
    }
    println!("\n== {} of {} steps in {:.0} s", lines.len(), chosen.len(), begun.elapsed().as_secs_f64());
    lines.iter().for_each(|line| println!("{line}"));
    if !unchecked.is_empty() {
        println!(
            "\n!! NOT CHECKED on this machine, or only in part: {} (the reasons are above)",
            unchecked.join(", ")
        );
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if sum != Counts::default() {
        println!("\n{sum}");
    }
    Ok(ExitCode::SUCCESS)
}

fn choose(options: &Options) -> anyhow::Result<Vec<&'static Step>> {
    for name in &options.steps {
        if !STEPS.iter().any(|step| step.name == name) {
            let names: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
            bail!("no step '{name}'; there are: {}", names.join(", "));
        }
    }
    let named = |step: &Step| options.steps.is_empty() || options.steps.iter().any(|name| name == step.name);
    Ok(STEPS.iter().filter(|step| named(step) && (step.quick || !options.quick)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(quick: bool, steps: &[&str]) -> Options {
        let steps = steps.iter().map(|&step| step.to_owned()).collect();
        Options { quick, list: false, keep_going: false, full: false, fuzz_seconds: 1, steps }
    }

    #[test]
    fn steps_are_chosen_by_name_and_by_speed() {
        let names = |options: &Options| -> Vec<&str> {
            choose(options).unwrap().iter().map(|step| step.name).collect()
        };
        assert_eq!(names(&options(true, &[])), ["fmt", "tidy", "clippy", "tests"]);
        assert_eq!(names(&options(false, &["loom"])), ["loom"]);
        assert_eq!(names(&options(false, &["lab"])), ["lab"]);
        assert_eq!(names(&options(false, &[])).len(), STEPS.len());
    }

    #[test]
    fn what_was_not_checked_is_told() {
        let counts = Counts { passed: 2, ..Counts::default() };
        let why = || vec!["no network".to_owned()];
        let outcomes = [
            (Outcome::with(Counts::default(), vec![]), true, "passed"),
            (Outcome::with(counts, vec![]), true, "passed: 2 passed, 0 failed, 0 skipped"),
            (Outcome::with(Counts::default(), why()), false, "passed; NOT CHECKED: no network"),
            (
                Outcome::with(counts, why()),
                false,
                "passed: 2 passed, 0 failed, 0 skipped; NOT CHECKED: no network",
            ),
            (Outcome::Skipped("no network".to_owned()), false, "SKIPPED: no network"),
        ];
        for (outcome, whole, said) in outcomes {
            assert_eq!((outcome.whole(), outcome.to_string().as_str()), (whole, said));
        }
    }

    #[test]
    fn an_unknown_step_is_met_by_name() {
        let error = choose(&options(false, &["lom"])).err().unwrap().to_string();
        assert!(error.contains("no step 'lom'") && error.contains("loom"), "{error}");
    }
}
