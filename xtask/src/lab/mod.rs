//! The machine lab: `cargo xtask lab`.
//!
//! `main.rs` hands every word after `lab` to [`run`].

use std::process::ExitCode;

/// Runs the lab with the words that followed `lab` on the command line.
///
/// # Errors
/// Always, until the lab exists.
pub(crate) fn run(args: Vec<String>) -> anyhow::Result<ExitCode> {
    anyhow::bail!("the lab is not built yet (asked for: {})", args.join(" "))
}
