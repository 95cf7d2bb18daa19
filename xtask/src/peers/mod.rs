//! `cargo xtask peers`: kfab beside the installed peers, in one run, with the ratios.
//!
//! [`plan`] lists what is compared with what, [`programs`] knows how each program is run and read, [`round`]
//! runs everything in turn (A B A B, so that a slow minute hits all alike), and [`report`] takes medians and
//! prints. Nothing is dropped: a run that fails is counted and its reason shown.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::apt;
use crate::sh::{Sh, root, target_dir};

mod kfab;
mod pair;
mod plan;
mod programs;
mod report;
mod round;
mod rpc;

/// Options of `cargo xtask peers`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install the peers first: apt packages, and a Python environment below target/peers
    #[arg(long)]
    install: bool,
    /// Only the lines of this provider
    #[arg(long, value_enum)]
    only: Option<plan::Provider>,
    /// Only the lines whose name contains this
    #[arg(long)]
    line: Option<String>,
    /// Rounds; in each, everything runs once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// At most three rounds, a quarter of the iterations: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// The two cores to run on [default: the first two this process may use]
    #[arg(long, value_delimiter = ',', num_args = 2)]
    cores: Vec<usize>,
    /// The kfab program [default: built in release]
    #[arg(long)]
    kfab: Option<PathBuf>,
    /// Peers and limits only
    #[arg(long)]
    without_kfab: bool,
    /// Print JSON instead of the table (progress goes to standard error)
    #[arg(long)]
    json: bool,
    /// Exit with 1 when a target is missed or was not measured
    #[arg(long)]
    strict: bool,
}

/// Where and how long programs run.
struct Bench {
    cores: [usize; 2],
    /// Divides every count of iterations.
    divide: u64,
    /// kfab's program; nothing when only peers run.
    kfab: Option<PathBuf>,
    /// Where the peers from PyPI and our MPI programs lie.
    folder: PathBuf,
}

/// The task itself.
///
/// # Errors
/// When kfab cannot be built, no peer is there, or the options make no sense.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let folder = target_dir().join("peers");
    if options.install {
        install(&folder)?;
    }
    let kfab = if options.without_kfab { None } else { Some(kfab_program(options)?) };
    let divide = if options.quick { 4 } else { 1 };
    let bench = Bench { cores: cores(options)?, divide, kfab, folder };
    programs::compile_mpi(&bench)?;
    let wanted = |line: &plan::Line| {
        options.only.is_none_or(|provider| provider == line.provider)
            && options.line.as_ref().is_none_or(|part| line.name.contains(part.as_str()))
    };
    let lines: Vec<plan::Line> = plan::lines().into_iter().filter(wanted).collect();
    ensure!(!lines.is_empty(), "no line matches; there are: {}", plan::names().join(", "));
    let rounds = if options.quick { options.rounds.min(3) } else { options.rounds };
    ensure!(rounds > 0, "--rounds must be at least 1");
    if lines.iter().any(|line| line.rpc.is_some()) {
        // Without it the lines say that they were not measured.
        rpc::build(&bench).unwrap_or_else(|error| eprintln!("{error:#}"));
    }
    let (results, noise) = round::measure(&bench, &lines, rounds);
    let report = report::Report::new(&lines, &results, noise, bench.cores);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report.json())?);
    } else {
        print!("{report}");
    }
    let missed = options.strict && !report.all_met();
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn install(folder: &std::path::Path) -> anyhow::Result<()> {
    apt::install(apt::PEERS)?;
    let python = folder.join("venv/bin/pip");
    if !python.is_file() {
        let venv = folder.join("venv");
        Sh::new(["python3", "-m", "venv", &venv.to_string_lossy()]).run()?;
    }
    Sh::new([&python.to_string_lossy()]).args(["install", "--quiet"]).args(programs::FROM_PYPI).run()
}

fn kfab_program(options: &Options) -> anyhow::Result<PathBuf> {
    if let Some(path) = &options.kfab {
        ensure!(path.is_file(), "--kfab {}: no such file", path.display());
        return Ok(path.clone());
    }
    eprintln!("building kfab in release");
    Sh::line("cargo build --quiet --release --locked --bin kfab").quiet().run()?;
    Ok(target_dir().join("release/kfab"))
}

fn cores(options: &Options) -> anyhow::Result<[usize; 2]> {
    let may = allowed_cores().context("cannot read the cores this process may use")?;
    let chosen = if options.cores.is_empty() { may.clone() } else { options.cores.clone() };
    ensure!(chosen.iter().all(|core| may.contains(core)), "may use only the cores {may:?}");
    ensure!(chosen.len() >= 2 && chosen[0] != chosen[1], "two cores are needed, here are {may:?}");
    Ok([chosen[0], chosen[1]])
}

fn allowed_cores() -> Option<Vec<usize>> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    parse_list(list.trim())
}

/// A kernel list such as `0-2,5`.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cores.extend(first.parse::<usize>().ok()?..=last.parse().ok()?);
    }
    Some(cores)
}

/// A path below the root of the repository, as a word of a command.
fn source(path: &str) -> String {
    root().join(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cores_is_read() {
        assert_eq!(parse_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("3"), Some(vec![3]));
        assert_eq!(parse_list("a"), None);
    }
}
