//! The loom step: every test named `loom_*`, built with `--cfg loom` in a target folder of its own.

use anyhow::ensure;

use super::count::Counts;
use super::{Options, Outcome, find};
use crate::sh::{Sh, target_dir};

pub(super) fn run(_: &Options) -> anyhow::Result<Outcome> {
    let found = find::tests_named("loom_")?;
    if found.is_empty() {
        let prepared = find::files_saying(concat!("cfg(", "loom)"))?;
        ensure!(
            prepared.is_empty(),
            "{} is built for loom, but no test is named loom_*",
            prepared.join(", ")
        );
        return Ok(Outcome::Skipped("the tree has no test named loom_*".into()));
    }
    let mut sum = Counts::default();
    for (package, names) in find::by_package(&found) {
        // The explorer and what it explores are optimised; everything else would only take long to build.
        let optimised = |name: &str| format!("profile.dev.package.{name}.opt-level=3");
        let cargo = Sh::line("cargo test --locked")
            .args(["--config", &optimised("loom"), "--config", &optimised(&package)])
            .args(["-p", &package, "--lib", "--tests", "--", "loom_"])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", target_dir().join("loom").as_os_str())
            .env("LOOM_LOG", "off");
        let counts = Counts::read(&cargo.tee()?);
        let all = names.len() as u64;
        ensure!(counts.passed >= all, "{package}: {counts}, but it has {all}: {}", names.join(", "));
        sum.add(&counts);
    }
    Ok(Outcome::Tests(sum))
}
