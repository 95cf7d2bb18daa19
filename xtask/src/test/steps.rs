//! The steps that only call cargo.

use std::path::Path;

use anyhow::{bail, ensure};

use super::count::Counts;
use super::demands::Demands;
use super::{Options, Outcome, find};
use crate::sh::Sh;
use crate::{apt, fuzz as fuzzing, tidy as tidying};

/// Optional features that are linted and tested: package, feature, and the native package it needs.
const FEATURES: &[(&str, &str, &str)] = &[("kfab-topo", "hwloc", "libhwloc-dev")];

/// Packages outside the workspace: that their lock files fit is seen by no other step.
const APART: [&str; 2] = ["fuzz/Cargo.toml", "benches/rpc-peers/Cargo.toml"];

/// Seeds for each scenario of a simulator.
const SEEDS: &str = "200";

pub(super) fn packages(_: &Options) -> anyhow::Result<Outcome> {
    let missing = apt::install(apt::PACKAGES)?;
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    Ok(match names.is_empty() {
        true => Outcome::Passed,
        false => Outcome::Skipped(format!("not installed: {}", names.join(", "))),
    })
}

pub(super) fn fmt(_: &Options) -> anyhow::Result<Outcome> {
    Sh::line("cargo fmt --all --check").run()?;
    Ok(Outcome::Passed)
}

pub(super) fn tidy(_: &Options) -> anyhow::Result<Outcome> {
    tidying::check()?;
    for manifest in APART {
        Sh::line("cargo update --workspace --locked --quiet --manifest-path").args([manifest]).run()?;
    }
    Ok(Outcome::Passed)
}

pub(super) fn clippy(_: &Options) -> anyhow::Result<Outcome> {
    const DENY: [&str; 5] = ["--", "-D", "warnings", "-D", "clippy::incompatible_msrv"];
    Sh::line("cargo clippy --locked --workspace --all-targets").args(DENY).run()?;
    // In the workspace others turn its features on.
    Sh::line("cargo clippy --locked --lib -p kfab").args(DENY).run()?;
    let (usable, unusable) = usable_features()?;
    for (package, feature) in usable {
        Sh::line("cargo clippy --locked --all-targets -p")
            .args([package, "--features", feature])
            .args(DENY)
            .run()?;
    }
    Ok(Outcome::with(Counts::default(), unusable))
}

pub(super) fn doc(_: &Options) -> anyhow::Result<Outcome> {
    Sh::line("cargo doc --locked --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings").run()?;
    Ok(Outcome::Passed)
}

pub(super) fn tests(_: &Options) -> anyhow::Result<Outcome> {
    let demands = Demands::of_this_machine()?;
    let cargo = demands.put_to(Sh::line("cargo test --locked --workspace"));
    Ok(Outcome::with(counted(&cargo)?, demands.skipped()?))
}

pub(super) fn features(_: &Options) -> anyhow::Result<Outcome> {
    let mut sum = Counts::default();
    let (usable, unusable) = usable_features()?;
    if usable.is_empty() {
        return Ok(Outcome::Skipped(unusable.join("; ")));
    }
    for (package, feature) in usable {
        let cargo = Sh::line("cargo test --locked -p").args([package, "--features", feature]);
        sum.add(&counted(&cargo)?);
    }
    Ok(Outcome::with(sum, unusable))
}

/// A package and a feature of it.
type Feature = (&'static str, &'static str);

/// The features of the tree that can be built here, and why others cannot.
fn usable_features() -> anyhow::Result<(Vec<Feature>, Vec<String>)> {
    let packages = find::packages()?;
    let exists = |name: &str, feature: &str| {
        packages.iter().any(|p| p.name == name && p.features.iter().any(|f| f == feature))
    };
    let (mut usable, mut unusable) = (Vec::new(), Vec::new());
    for &(package, feature, native) in FEATURES {
        match (exists(package, feature), apt::has(native)) {
            (false, _) => bail!("{package} has no feature {feature}"),
            (true, false) => unusable.push(format!("{package}/{feature}: {native} is missing")),
            (true, true) => usable.push((package, feature)),
        }
    }
    Ok((usable, unusable))
}

/// Test programs that read how many seeds to run from `KFAB_SEEDS` run again, with many.
pub(super) fn seeds(_: &Options) -> anyhow::Result<Outcome> {
    let found = find::programs_reading(concat!("KFAB_", "SEEDS"))?;
    if found.is_empty() {
        return Ok(Outcome::Skipped("no test program reads how many seeds to run".into()));
    }
    let mut sum = Counts::default();
    for (package, program) in found {
        let cargo = Sh::line("cargo test --locked -p").args([&package, "--test", &program]);
        let cargo = cargo.args(optimised()).env(concat!("KFAB_", "SEEDS"), SEEDS);
        let counts = Counts::read(&cargo.tee()?);
        ensure!(counts.passed > 0, "{package}: no test of {program} ran");
        sum.add(&counts);
    }
    Ok(Outcome::Tests(sum))
}

pub(super) fn fuzz(options: &Options) -> anyhow::Result<Outcome> {
    let targets = fuzzing::targets(Path::new("fuzz"))?;
    if targets.is_empty() {
        return Ok(Outcome::Skipped("fuzz/fuzz_targets has no target".into()));
    }
    if !apt::has("g++") {
        return Ok(Outcome::Skipped("libFuzzer needs g++".into()));
    }
    fuzzing::smoke(&targets, options.fuzz_seconds, true)?;
    let (n, seconds, inputs) = (targets.len(), options.fuzz_seconds, fuzzing::SMOKE_INPUTS);
    println!("  {n} targets, each {inputs} inputs or {seconds} s, whichever is first");
    Ok(Outcome::Passed)
}

/// Benchmarks are built in the dev profile: whether they compile does not hang on the optimiser.
pub(super) fn benches(_: &Options) -> anyhow::Result<Outcome> {
    Sh::line("cargo bench --locked --workspace --benches --no-run --profile dev").run()?;
    Ok(Outcome::Passed)
}

/// Our own crates optimised, with assertions and overflow checks on; what they depend on is taken as built for
/// the other tests.
fn optimised() -> Vec<String> {
    let ours = ["kfab-core", "kfab-proto", "kfab-sim", "kfab"];
    ours.iter()
        .flat_map(|name| ["--config".into(), format!("profile.dev.package.{name}.opt-level=2")])
        .collect()
}

/// Runs a test command; it must have run something.
fn counted(cargo: &Sh) -> anyhow::Result<Counts> {
    let counts = Counts::read(&cargo.tee()?);
    if counts.passed == 0 {
        bail!("no test ran: {}", cargo.shown());
    }
    Ok(counts)
}
