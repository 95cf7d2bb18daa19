//! What is in the tree: packages, their features, and tests by the beginning of their name.
//!
//! Steps look here for what they have to run, so that a new test is picked up, and a step whose tests
//! are not there yet says so instead of passing.

use std::collections::{BTreeMap, BTreeSet};
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
        found.extend(
            names_in(&text, prefix).into_iter().map(|name| Test { package: owner.name.clone(), name }),
        );
    }
    Ok(found)
}

/// The integration test programs whose source names `variable`: package and program.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn programs_reading(variable: &str) -> anyhow::Result<BTreeSet<(String, String)>> {
    let packages = packages()?;
    let mut found = BTreeSet::new();
    for path in crate::tidy::tree::rust_files()? {
        let program =
            packages.iter().find_map(|p| Some((p, program_of(path.strip_prefix(&p.folder).ok()?)?)));
        let Some((package, program)) = program else { continue };
        let text = std::fs::read_to_string(root().join(&path)).with_context(|| path.display().to_string())?;
        if text.contains(&format!("\"{variable}\"")) {
            found.insert((package.name.clone(), program));
        }
    }
    Ok(found)
}

/// The Rust files that contain `text`, from the root.
///
/// # Errors
/// When the tree cannot be read.
pub(crate) fn files_saying(text: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for path in crate::tidy::tree::rust_files()? {
        let said = std::fs::read_to_string(root().join(&path)).with_context(|| path.display().to_string())?;
        if said.contains(text) {
            found.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// The test program that a file belongs to, by its path inside the package.
fn program_of(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("tests").ok()?;
    let first = Path::new(inside.components().next()?.as_os_str());
    Some(first.file_stem()?.to_string_lossy().into_owned())
}

/// The functions marked `#[test]` whose name begins so.
fn names_in(text: &str, prefix: &str) -> Vec<String> {
    let code = crate::tidy::code::blank(text);
    let part = |c: &char| c.is_alphanumeric() || *c == '_';
    let marked = |at: usize| {
        let head = code[..at].rsplit([';', '{', '}']).next().unwrap_or_default();
        head.contains("#[test]")
    };
    let all = code.match_indices("fn ").filter(|(at, _)| code[at + 3..].starts_with(prefix) && marked(*at));
    all.map(|(at, _)| code[at + 3..].chars().take_while(part).collect()).collect()
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
        let text = "#[test]\nfn loom_two() {}\nfn loom_helper() {}\n// #[test] fn loom_comment() {}\n\
            #[test]\nfn other() { \"fn loom_text\"; }\n#[test]\n#[ignore = \"long\"]\nfn loom_one() {}";
        assert_eq!(names_in(text, "loom_"), ["loom_two", "loom_one"]);
    }

    #[test]
    fn a_test_program_is_known_by_its_path() {
        let of = |path: &str| program_of(Path::new(path));
        assert_eq!(of("tests/simulation/node.rs").as_deref(), Some("simulation"));
        assert_eq!(of("tests/api.rs").as_deref(), Some("api"));
        assert_eq!(of("src/lib.rs"), None);
    }

    #[test]
    fn the_workspace_is_read() {
        let packages = packages().unwrap();
        let here = packages.iter().find(|package| package.name == "xtask").unwrap();
        assert_eq!(here.folder, Path::new("xtask"));
    }
}
