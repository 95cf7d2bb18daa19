//! The steps that look at dependencies: the oldest Rust they allow, licences, sources, advisories.

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::count::Counts;
use super::{Options, Outcome, find, tools};
use crate::sh::Sh;

/// The `incompatible_msrv` lint (step clippy) covers our own calls; this covers everything we depend on, and
/// builds with the oldest toolchain itself where rustup has it.
pub(super) fn msrv(_: &Options) -> anyhow::Result<Outcome> {
    let metadata = find::metadata(true)?;
    let promised = promised(&metadata)?;
    let newer = newer_than(&metadata, promised);
    ensure!(newer.is_empty(), "need a newer Rust than {}.{}: {}", promised.0, promised.1, newer.join(", "));
    let toolchain = format!("{}.{}", promised.0, promised.1);
    if Sh::new(["rustup", "run", &toolchain, "rustc", "--version"]).works() {
        let check = ["cargo", "check", "--locked", "--workspace", "--target-dir", "target/msrv"];
        Sh::new(["rustup", "run", &toolchain]).args(check).run()?;
        return Ok(Outcome::Passed);
    }
    let why = format!(
        "a build with Rust {toolchain}, which is not installed (rustup toolchain install {toolchain})"
    );
    Ok(Outcome::with(Counts::default(), vec![why]))
}

type Version = (u64, u64);

fn version(text: &str) -> Option<Version> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// The version that every member of the workspace promises.
fn promised(metadata: &Value) -> anyhow::Result<Version> {
    let members = metadata["workspace_members"].as_array().context("no workspace members")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let mut promised = None;
    for package in packages.iter().filter(|package| members.contains(&package["id"])) {
        let name = &package["name"];
        let Some(own) = package["rust_version"].as_str().and_then(version) else {
            bail!("{name} does not say rust-version.workspace = true")
        };
        ensure!(*promised.get_or_insert(own) == own, "{name} promises another Rust than the workspace");
    }
    promised.context("the workspace has no member")
}

fn newer_than(metadata: &Value, promised: Version) -> Vec<String> {
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let newer = packages.filter_map(|package| {
        let needs = package["rust_version"].as_str()?;
        let named =
            || format!("{} {} ({needs})", package["name"].as_str().unwrap_or("?"), package["version"]);
        (version(needs)? > promised).then(named)
    });
    newer.collect()
}

/// Advisories need the database of RustSec, which is fetched over the network: where that cannot be reached,
/// the step says that they were not checked.
pub(super) fn deny(_: &Options) -> anyhow::Result<Outcome> {
    tools::ensure_tool(&tools::DENY)?;
    Sh::line("cargo deny --locked --all-features --log-level error check --hide-inclusion-graph licenses bans sources").run()?;
    let database = "https://github.com/RustSec/advisory-db";
    if Sh::new(["git", "ls-remote", "--quiet", database, "HEAD"]).limit_s(20).works() {
        Sh::line("cargo deny --locked --all-features check advisories").run()?;
        return Ok(Outcome::Passed);
    }
    let why = format!("advisories: {database} cannot be reached");
    Ok(Outcome::with(Counts::default(), vec![why]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ours: &str, theirs: &str) -> Value {
        serde_json::json!({
            "workspace_members": ["a"],
            "packages": [
                { "id": "a", "name": "ours", "version": "0.1.0", "rust_version": ours },
                { "id": "b", "name": "theirs", "version": "2.0.0", "rust_version": theirs },
                { "id": "c", "name": "silent", "version": "1.0.0", "rust_version": null },
            ],
        })
    }

    #[test]
    fn a_dependency_that_needs_a_newer_rust_is_named() {
        let sample = sample("1.88", "1.90.0");
        let newer = newer_than(&sample, promised(&sample).unwrap());
        assert_eq!(newer, ["theirs \"2.0.0\" (1.90.0)"]);
    }

    #[test]
    fn older_and_equal_ones_pass() {
        for theirs in ["1.88", "1.88.0", "1.9.5", "1"] {
            let sample = sample("1.88", theirs);
            assert!(newer_than(&sample, promised(&sample).unwrap()).is_empty(), "{theirs}");
        }
    }

    #[test]
    fn a_member_that_promises_nothing_is_an_error() {
        let mut sample = sample("1.88", "1.60");
        sample["packages"][0]["rust_version"] = Value::Null;
        assert!(promised(&sample).unwrap_err().to_string().contains("ours"));
    }
}
