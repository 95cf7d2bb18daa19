//! What is in the tree: packages, their features, and tests by the beginning of their name.
//!
//! Steps look here for what they have to run, so that a new test is picked up, and a step whose tests
//! are not there yet says so instead of passing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::sh::{Sh, root};

/// A package of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    /// Its folder, seen from the root of the repository.
    pub(crate) folder: PathBuf,
    pub(crate) features: Vec<String>,
}

/// A test function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) package: String,
    pub(crate) name: String,
}

/// What `cargo metadata` says of the workspace, with its dependencies when `deps` is true.
///
/// # Errors
/// When cargo cannot read the workspace.
pub(crate) fn metadata(deps: bool) -> anyhow::Result<Value> {
    let cargo = Sh::line("cargo metadata --format-version 1 --locked").quiet();
    let cargo = if deps { cargo } else { cargo.args(["--no-deps"]) };
    serde_json::from_str(&cargo.read()?).context("cargo metadata printed no JSON")
}

/// The packages of the workspace.
///
/// # Errors
/// As [`metadata`].
pub(crate) fn packages() -> anyhow::Result<Vec<Package>> {
    let all = metadata(false)?;
    let all = all["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(all.iter().filter_map(read_package).collect())
}

fn read_package(value: &Value) -> Option<Package> {
    let manifest = Path::new(value["manifest_path"].as_str()?);
    let folder = manifest.parent()?.strip_prefix(root()).ok()?.to_path_buf();
    let features = value["features"].as_object()?.keys().cloned().collect();
    Some(Package { name: value["name"].as_str()?.to_owned(), folder, features })
}

/// Every test of the workspace whose name begins with `prefix`.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn tests_named(prefix: &str) -> anyhow::Result<Vec<Test>> {
    let packages = packages()?;
    let mut found = Vec::new();
    for path in crate::tidy::tree::rust_files()? {
        let text = std::fs::read_to_string(root().join(&path)).with_context(|| path.display().to_string())?;
        let owner = packages.iter().filter(|p| path.starts_with(&p.folder));
        let Some(owner) = owner.max_by_key(|p| p.folder.components().count()) else { continue };
        found.extend(names_in(&text, prefix).map(|name| Test { package: owner.name.clone(), name }));
    }
    Ok(found)
}

fn names_in<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = String> + 'a {
    let code = crate::tidy::code::blank(text);
    let names: Vec<String> = code
        .split("fn ")
        .skip(1)
        .filter(|rest| rest.starts_with(prefix))
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect();
    names.into_iter()
}

/// Tests by the package that has them.
pub(crate) fn by_package(tests: &[Test]) -> BTreeMap<String, Vec<&str>> {
    let mut map: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for test in tests {
        map.entry(test.package.clone()).or_default().push(&test.name);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_found_by_the_beginning_of_their_name() {
        let text = "fn loom_two() {}\n// fn loom_comment() {}\nasync fn other() { \"fn loom_text\"; }\nfn loom_one() {}";
        assert_eq!(names_in(text, "loom_").collect::<Vec<_>>(), ["loom_two", "loom_one"]);
    }

    #[test]
    fn the_workspace_is_read() {
        let packages = packages().unwrap();
        let here = packages.iter().find(|package| package.name == "xtask").unwrap();
        assert_eq!(here.folder, Path::new("xtask"));
    }
}
