//! The lab step: the verbs provider on soft-RoCE cards, in guests of `cargo xtask lab`.
//!
//! Test programs are those that the step `tests` has built; in a guest they find cards, and `KFAB_LAB_RDMA=1` makes them fail
//! instead of skip where they find none. Nothing in here asserts how fast anything is.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::count::Counts;
use super::{Options, Outcome};
use crate::lab;
use crate::sh::Sh;

/// A guest and what runs in it. In `script` a program of the tree is written as `@PACKAGE/PROGRAM`.
struct Job {
    what: &'static str,
    options: &'static str,
    script: &'static str,
    limit_s: u64,
    /// Also on the kernel that only a full run takes.
    everywhere: bool,
}

const JOBS: &[Job] = &[
    Job {
        what: "conformance, and what only cards can show",
        options: "--cards 2",
        script: "@kfab-verbs/cards && @kfab-verbs/conformance --test-threads 1",
        limit_s: 900,
        everywhere: true,
    },
    Job {
        what: "two rails, one and both cut and healed, under the whole stack",
        options: "--cards 4 --wire switch --memory 1536",
        script: "@kfab/verbs --test-threads 1 --nocapture",
        limit_s: 600,
        everywhere: true,
    },
    Job {
        what: "cards on two NUMA nodes, memory and threads beside them",
        options: "--numa 2 --cards 4 --card-nodes 0,0,1,1 --memory 1536",
        script: "@kfab/verbs_numa --test-threads 1 --nocapture",
        limit_s: 300,
        everywhere: false,
    },
];

/// The kernel of every run, and the one that `--full` adds.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

pub(super) fn run(options: &Options) -> anyhow::Result<Outcome> {
    let kernels = if options.full { &KERNELS[..] } else { &KERNELS[..1] };
    for kernel in kernels {
        if let Err(why) = lab::prepare(kernel) {
            return Ok(Outcome::Skipped(format!("no lab here: {why:#}")));
        }
    }
    let programs = programs()?;
    let mut sum = Counts::default();
    for (at, kernel) in kernels.iter().enumerate() {
        for job in JOBS.iter().filter(|job| at == 0 || job.everywhere) {
            println!("  {kernel}: {}", job.what);
            let counts = boot(kernel, job, &programs)?;
            ensure!(counts.passed > 0, "{kernel}: no test ran: {}", job.what);
            sum.add(&counts);
        }
    }
    Ok(Outcome::Tests(sum))
}

fn boot(kernel: &str, job: &Job, programs: &[(String, PathBuf)]) -> anyhow::Result<Counts> {
    let me = std::env::current_exe().context("finding this program")?;
    let limit = job.limit_s.to_string();
    let guest = Sh::new([&*me.to_string_lossy(), "lab", "--kernel", kernel, "--limit", &limit])
        .args(job.options.split_whitespace())
        .args(["--", "sh", "-c", &with_paths(job.script, programs)?])
        .env("KFAB_LAB_RDMA", "1")
        .limit_s(job.limit_s + 60);
    Ok(Counts::read(&guest.tee()?))
}

/// The script with the programs' paths.
fn with_paths(script: &str, programs: &[(String, PathBuf)]) -> anyhow::Result<String> {
    let words = script.split(' ').map(|word| match word.strip_prefix('@') {
        None => Ok(word.to_owned()),
        Some(name) => {
            let found = programs.iter().find(|(n, _)| n == name);
            let (_, path) = found.with_context(|| format!("the tree has no test program {name}"))?;
            Ok(path.to_string_lossy().into_owned())
        }
    });
    words.collect::<anyhow::Result<Vec<_>>>().map(|words| words.join(" "))
}

/// All test programs of the workspace, as `PACKAGE/PROGRAM`. Built as the step `tests` builds them: nothing is built twice.
fn programs() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let cargo = Sh::line("cargo test --locked --workspace --no-run --message-format=json-render-diagnostics");
    let said = cargo.read()?;
    Ok(said.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?)).collect())
}

/// The program that a message of cargo's tells of.
fn program(message: &Value) -> Option<(String, PathBuf)> {
    let path = message["executable"].as_str()?;
    let target = &message["target"];
    if target["kind"].as_array()?.iter().all(|kind| kind != "test") {
        return None;
    }
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let manifest = std::fs::read_to_string(manifest).ok()?;
    let package =
        manifest.lines().find_map(|line| line.strip_prefix("name = "))?.trim_matches('"').to_owned();
    Some((format!("{package}/{}", target["name"].as_str()?), path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_programs_of_the_tree() {
        let programs = [("a/b".to_owned(), PathBuf::from("/x/b-123"))];
        assert_eq!(with_paths("@a/b --x && true", &programs).unwrap(), "/x/b-123 --x && true");
        let error = with_paths("@a/c", &programs).unwrap_err().to_string();
        assert!(error.contains("a/c"), "{error}");
    }

    #[test]
    fn test_programs_are_known_from_what_cargo_says() {
        let message = |kind: &str| {
            let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
            serde_json::json!({
                "manifest_path": manifest, "executable": "/t/x-1", "target": { "kind": [kind], "name": "x" },
            })
        };
        assert_eq!(program(&message("test")), Some(("xtask/x".to_owned(), "/t/x-1".into())));
        assert_eq!(program(&message("bin")), None);
        assert_eq!(program(&serde_json::json!({ "reason": "build-finished" })), None);
    }
}
