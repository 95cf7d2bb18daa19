//! The `kfab` command: what is there (`info`), how fast it is (`pingpong`, `perf`), and what it does just now (`serve`, `top`).
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 unavailable or unreachable, 130 interrupted.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod child;
mod cmd;
mod control;
mod failure;
mod limits;
mod payload;
mod place;
mod providers;
mod serve;
mod show;
mod stop;
mod system;

use clap::{Parser, Subcommand};
use std::io::IsTerminal;
use std::process::ExitCode;

/// What holds for every command.
const AFTER_HELP: &str = "\
Exit codes:
  0    Done
  1    Failed
  2    Usage: the command line makes no sense
  3    Something is unavailable or does not answer
  130  Interrupted by Ctrl-C, SIGTERM or SIGHUP

Variables:
  KFAB_LOG  What is said: off, error, warn (otherwise), info, debug or trace
  KFAB_KEY  The fabric's key, for commands without --key-file
  NO_COLOR  No colours; otherwise they are on terminals only";

/// Messages and bulk data over whatever the node has: look at it, measure it, watch it.
#[derive(Parser, Debug)]
#[command(name = "kfab", version, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Providers, devices, limits, the machine, and why something is unavailable
    Info(cmd::info::InfoArgs),
    /// Latency, bandwidth and message rate between two processes, over every provider
    Pingpong(cmd::pingpong::PingpongArgs),
    /// One test at a time: latency, bandwidth, rate, one-sided access, limits, wake-up
    Perf(cmd::perf::PerfArgs),
    /// Answer pingpong and perf of others until Ctrl-C
    Serve(serve::ServeArgs),
    /// Watch the counters of a running endpoint
    Top(cmd::top::TopArgs),
    /// An LNet node, and the commands that look at it and change it
    Lnet(cmd::lnet::LnetArgs),
    /// Self-test of LNet nodes, ours or Lustre's
    Lst(cmd::lst::LstArgs),
    /// Make a fabric key
    Keygen(cmd::keygen::KeygenArgs),
    #[command(hide = true)]
    PeerProcess(child::PeerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_peer = matches!(cli.command, Command::PeerProcess(_));
    if !is_peer {
        stop::install();
    }
    logs(is_peer);
    let outcome = system::raise_fd_limit().and_then(|()| run(&cli.command));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => {
            eprintln!("kfab: {f}");
            ExitCode::from(f.code)
        }
    }
}

/// What the fabric says goes to standard error: warnings, and more with `KFAB_LOG=debug`.
/// A level that is none is named, but not again by a peer process.
fn logs(is_peer: bool) {
    let wanted = std::env::var_os("KFAB_LOG").unwrap_or_default().to_string_lossy().into_owned();
    let level = wanted.parse().ok().filter(|_| !wanted.is_empty());
    if level.is_none() && !wanted.is_empty() && !is_peer {
        eprintln!(
            "kfab: KFAB_LOG: {wanted:?} is none of off, error, warn, info, debug and trace; warn is taken"
        );
    }
    let level = level.unwrap_or(tracing_subscriber::filter::LevelFilter::WARN);
    // https://no-color.org: set and not empty.
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let ansi = std::io::stderr().is_terminal() && !no_colour;
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(ansi).init();
}

fn run(command: &Command) -> failure::Result<()> {
    match command {
        Command::Info(a) => cmd::info::run(a),
        Command::Perf(a) => cmd::perf::run(a),
        Command::Serve(a) => serve::run(a),
        Command::Top(a) => cmd::top::run(a),
        Command::Keygen(a) => cmd::keygen::run(a),
        Command::Lnet(a) => cmd::lnet::run(a),
        Command::Lst(a) => cmd::lst::run(a),
        Command::Pingpong(a) => cmd::pingpong::run(a),
        Command::PeerProcess(a) => child::run(a),
    }
}
