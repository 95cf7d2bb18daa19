//! The loom step: every test named `loom_*`, built with `--cfg loom` in a target folder of its own.

use anyhow::ensure;

use super::count::Counts;
use super::{Options, Outcome, find};
use crate::sh::{Sh, target_dir};

pub(super) fn run(_: &Options) -> anyhow::Result<Outcome> {
    let found = find::tests_named("loom_")?;
    if found.is_empty() {
        return Ok(Outcome::Skipped("the tree has no test named loom_*".into()));
    }
    let mut sum = Counts::default();
    for (package, names) in find::by_package(&found) {
        let cargo = Sh::line("cargo test --locked -p").args([&package, "--lib", "--tests", "--", "loom_"]);
        let cargo = cargo
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", target_dir().join("loom").as_os_str())
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "3")
            .env("LOOM_LOG", "off");
        let counts = Counts::read(&cargo.tee()?);
        let all = names.len() as u64;
        ensure!(counts.passed >= all, "{package}: {counts}, but it has {all}: {}", names.join(", "));
        sum.add(&counts);
    }
    Ok(Outcome::Tests(sum))
}
