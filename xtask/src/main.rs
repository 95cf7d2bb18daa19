//! Tasks of the kfab repository: `cargo xtask TASK`.
//!
//! This file only reads the command line and hands over to one module for each task.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod lab;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the kfab repository", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
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

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Lab(Words { words }) => lab::run(words),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
