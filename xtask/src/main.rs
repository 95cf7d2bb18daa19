//! Tasks of the kfab repository: `cargo xtask TASK`.
//!
//! This file only reads the command line and hands over to one module for each task. Every task is run
//! from the root of the repository, wherever it was called; the lab is told where that was.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

mod apt;
mod fuzz;
mod lab;
mod peers;
mod sh;
mod soak;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the kfab repository", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is needed, then lint, test and check everything
    Test(test::Options),
    /// Check the rules that keep the repository in order
    Tidy,
    /// Run the installed peers beside kfab, interleaved, and print the ratios
    Peers(peers::Options),
    /// Run the soak tests (ignored by a plain test run) for a given time
    Soak(soak::Options),
    /// Run the fuzz targets for a given time each
    Fuzz(fuzz::Options),
    /// The machine lab; every word after `lab` goes to it as it is
    #[command(disable_help_flag = true)]
    Lab(Words),
}

/// Words that are handed on verbatim.
#[derive(Args)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let here = std::env::current_dir();
    std::env::set_current_dir(sh::root())?;
    match task {
        Task::Test(options) => test::run(&options),
        Task::Tidy => tidy::run(),
        Task::Peers(options) => peers::run(&options),
        Task::Soak(options) => soak::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Lab(Words { words }) => lab::run(words, &here.context("the current folder is gone")?),
    }
}

fn main() -> ExitCode {
    run(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
