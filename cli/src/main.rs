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

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Messages and bulk data over whatever the node has: look at it, measure it, watch it.
#[derive(Parser, Debug)]
#[command(name = "kfab", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Latency, bandwidth and message rate between two processes, over every provider
    Pingpong(cmd::pingpong::PingpongArgs),
    #[command(hide = true)]
    PeerProcess(child::PeerArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::PeerProcess(_)) {
        stop::install();
    }
    let outcome = match &cli.command {
        Command::Pingpong(a) => cmd::pingpong::run(a),
        Command::PeerProcess(a) => child::run(a),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(f) => {
            eprintln!("kfab: {f}");
            ExitCode::from(f.code)
        }
    }
}
