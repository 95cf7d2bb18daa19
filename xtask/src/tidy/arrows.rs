//! The rule about which crate may depend on which.

use serde_json::Value;

use super::Finding;
use super::tree::Tree;
use crate::sh::root;

/// What the crates below a folder may depend on, of the crates of this workspace.
struct Arrow {
    folder: &'static str,
    /// True when dependencies for tests count as well.
    tests_too: bool,
    allowed: fn(&str) -> bool,
    says: &'static str,
}

const ARROWS: &[Arrow] = &[
    Arrow {
        folder: "providers/",
        tests_too: true,
        allowed: |path| path != "kfab" && path != "lnet-shim",
        says: "a provider knows the contract, not kfab",
    },
    Arrow {
        folder: "kfab/",
        tests_too: false,
        allowed: |path| path.starts_with("kfab/"),
        says: "core, proto and topo stand on each other only",
    },
    Arrow {
        folder: "kfab",
        tests_too: false,
        allowed: |path| path.starts_with("kfab/"),
        says: "kfab names no provider (a test may)",
    },
    Arrow {
        folder: "lnet-shim",
        tests_too: false,
        allowed: |path| path == "kfab",
        says: "the shim uses the public API only (a test may name a provider)",
    },
];

/// Dependencies run one way.
pub(super) fn arrows(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in tree.metadata["packages"].as_array().into_iter().flatten() {
        let Some(folder) = package["manifest_path"].as_str().map(from_root).and_then(parent) else {
            continue;
        };
        let fits = |arrow: &&Arrow| match arrow.folder.ends_with('/') {
            true => folder.starts_with(arrow.folder),
            false => folder == arrow.folder,
        };
        let Some(arrow) = ARROWS.iter().find(fits) else { continue };
        for (path, kind) in local_dependencies(package) {
            let counts = arrow.tests_too || kind != "dev";
            if counts && !(arrow.allowed)(&path) {
                let what = format!("depends on {path} ({kind}): {}", arrow.says);
                findings.push(Finding::new(&format!("{folder}/Cargo.toml"), 0, what));
            }
        }
    }
    findings
}

/// The folders of the workspace that a package depends on, with the kind of each dependency.
fn local_dependencies(package: &Value) -> Vec<(String, String)> {
    let all = package["dependencies"].as_array().into_iter().flatten();
    let local = all.filter_map(|dependency| {
        let path = from_root(dependency["path"].as_str()?);
        Some((path, dependency["kind"].as_str().unwrap_or("normal").to_owned()))
    });
    local.collect()
}

fn from_root(path: &str) -> String {
    let root = format!("{}/", root().display());
    path.strip_prefix(&root).unwrap_or(path).to_owned()
}

fn parent(path: String) -> Option<String> {
    path.rsplit_once('/').map(|(folder, _)| folder.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(folder: &str, dependency: &str, kind: Option<&str>) -> Tree {
        let metadata = serde_json::json!({ "packages": [{
            "manifest_path": format!("{folder}/Cargo.toml"),
            "dependencies": [{ "path": dependency, "kind": kind }, { "name": "serde", "kind": null }],
        }]});
        Tree { files: Vec::new(), metadata }
    }

    #[test]
    fn arrows_that_point_back_are_found() {
        let bad = [
            ("providers/shm", "kfab", None),
            ("providers/shm", "kfab", Some("dev")),
            ("kfab", "providers/shm", None),
            ("kfab/core", "providers/sim", None),
            ("kfab/proto", "kfab", Some("build")),
            ("lnet-shim", "kfab/core", None),
        ];
        for (folder, dependency, kind) in bad {
            assert_eq!(
                arrows(&tree(folder, dependency, kind)).len(),
                1,
                "{folder} -> {dependency} ({kind:?})"
            );
        }
    }

    #[test]
    fn arrows_that_point_down_pass() {
        let good = [
            ("providers/shm", "kfab/core", None),
            ("providers/sim", "kfab/proto", None),
            ("kfab", "kfab/proto", None),
            ("kfab", "providers/shm", Some("dev")),
            ("kfab/proto", "kfab/core", None),
            ("lnet-shim", "kfab", None),
            ("lnet-shim", "providers/sockets", Some("dev")),
            ("cli", "providers/shm", None),
        ];
        for (folder, dependency, kind) in good {
            assert_eq!(arrows(&tree(folder, dependency, kind)), [], "{folder} -> {dependency} ({kind:?})");
        }
    }
}
