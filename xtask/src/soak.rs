//! The soak: long tests that a plain run leaves out.
//!
//! A soak test is an ordinary test named `soak_*` and marked `#[ignore]`; it reads how long to run from the
//! variable `KFAB_SOAK_SECS`. This task finds them in the tree, so none is forgotten.

use std::process::ExitCode;

use anyhow::ensure;

use crate::sh::Sh;
use crate::test::count::Counts;
use crate::test::find;

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds that each soak test runs
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Only the tests whose name contains this
    #[arg(default_value = "soak_")]
    filter: String,
}

/// Runs every soak test, one after the other.
///
/// # Errors
/// When there is no soak test, or one fails.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let tests = find::tests_named("soak_")?;
    ensure!(!tests.is_empty(), "the tree has no soak test (a test named soak_*)");
    let mut sum = Counts::default();
    for (package, names) in find::by_package(&tests) {
        println!("soak: {package}: {} tests, {} s each", names.len(), options.seconds);
        let limit_s = 900 + (options.seconds + 120) * names.len() as u64;
        let out = Sh::line("cargo test --locked -p")
            .args([&package])
            .args(["--", "--ignored", "--test-threads=1", "--nocapture", &options.filter])
            .env("KFAB_SOAK_SECS", options.seconds.to_string())
            .limit_s(limit_s)
            .tee()?;
        sum.add(&Counts::read(&out));
    }
    ensure!(sum.passed > 0, "no soak test matches '{}'", options.filter);
    println!("{sum}");
    Ok(ExitCode::SUCCESS)
}
