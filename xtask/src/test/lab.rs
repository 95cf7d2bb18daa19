//! The lab step: the verbs provider on soft-RoCE (and, in full runs, soft-iWARP) cards, in guests of `cargo xtask lab`.
//!
//! Test programs are those that the step `tests` has built; in a guest they find cards, and `KFAB_LAB_RDMA=1` makes them fail
//! instead of skip where they find none. Nothing in here asserts how fast anything is.

mod shown;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::count::Counts;
use super::{Options, Outcome};
use crate::apt::Unobtainable;
use crate::lab;
use crate::sh::Sh;

/// A guest and what runs in it. In `script` a program of the tree, or one of its tests, is written as `@PACKAGE/PROGRAM`.
struct Job {
    what: &'static str,
    options: &'static str,
    script: &'static str,
    /// What runs in a second guest, if there is one.
    companion: Option<&'static str>,
    /// Several times what it takes: hosts are busy.
    limit_s: u64,
    runs: Runs,
    judge: Judge,
}

/// What came of a guest whose script ended well, from the script and what it printed; an error if that will not do.
type Judge = fn(&str, &str) -> anyhow::Result<Counts>;

/// Of test programs: each must have run something.
fn tests_ran(script: &str, said: &str) -> anyhow::Result<Counts> {
    let programs = script.split_whitespace().filter(|word| word.starts_with('@')).count();
    let results: Vec<Counts> = Counts::each(said).collect();
    ensure!(results.len() >= programs, "{programs} programs, but only {} results", results.len());
    ensure!(results.iter().all(|counts| counts.passed > 0), "a program ran no test");
    Ok(Counts::read(said))
}

/// In which runs a guest takes part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Runs {
    /// All, and on every kernel.
    Everywhere,
    /// All, on the first kernel.
    Always,
    /// Full ones, on the first kernel.
    Full,
}

impl Runs {
    fn on(self, kernel: usize, full: bool) -> bool {
        match self {
            Runs::Everywhere => true,
            Runs::Always => kernel == 0,
            Runs::Full => kernel == 0 && full,
        }
    }
}

/// A guest in which verbs cannot be used, and what the program says then. All in one guest would be faster, and not true: the first
/// three are decided when it boots.
struct Refusal {
    options: &'static str,
    script: &'static str,
    says: &'static str,
}

/// Part of a full run.
const REFUSALS: &[Refusal] = &[
    Refusal { options: "--cards 0", script: "@kfab-verbs/cards", says: "no RDMA card" },
    Refusal {
        options: "--user nobody --memlock 64",
        script: "@kfab-verbs/cards",
        says: "the limit on locked memory is 64 KiB",
    },
    Refusal {
        options: "--wire veth",
        script: "lab link 0 down; ip link set a0 down; @kfab-verbs/cards",
        says: "is DOWN",
    },
    Refusal {
        options: "--cards 2",
        script: "chmod 600 /dev/infiniband/uverbs*; setpriv --reuid 65534 --clear-groups @kfab-verbs/cards",
        says: "no permission to open",
    },
    Refusal {
        options: "--cards 2",
        script: "mount --bind /dev/null /usr/lib/x86_64-linux-gnu/libibverbs.so.1; @kfab-verbs/cards",
        says: "no libibverbs.so.1",
    },
];
const REFUSAL_LIMIT_S: u64 = 600;
const SELFTEST_LIMIT_S: u64 = 1800;

const JOBS: &[Job] = &[
    Job {
        what: "conformance, and what only cards can show",
        options: "--cards 2",
        script: "@kfab-verbs/cards && @kfab-verbs/kfab_verbs --test-threads 1 hostile:: && \
            @kfab-verbs/conformance --test-threads 1 verbs::",
        companion: None,
        limit_s: 1800,
        runs: Runs::Everywhere,
        judge: tests_ran,
    },
    Job {
        what: "`kfab info` beside `ibv_devinfo`, and measurements over a card and across a cable",
        options: "--cards 4 --wire switch",
        script: shown::SCRIPT,
        companion: None,
        limit_s: 600,
        runs: Runs::Always,
        judge: shown::judge,
    },
    Job {
        what: "conformance, connected through the manager",
        options: "--cards 2",
        script: "@kfab-verbs/conformance --test-threads 1 verbs-cm::",
        companion: None,
        limit_s: 1200,
        runs: Runs::Full,
        judge: tests_ran,
    },
    Job {
        what: "cards that only the manager connects: conformance, LNet, the object store",
        options: "--cards 2 --iwarp --memory 2048",
        script: "@kfab-verbs/conformance --test-threads 1 verbs:: && @lnet-shim/kfi --test-threads 1 && \
            @kfab-examples/objectstore --test-threads 1",
        companion: None,
        limit_s: 1800,
        runs: Runs::Full,
        judge: tests_ran,
    },
    Job {
        what: "two rails, one and both cut and healed, under the whole stack",
        options: "--cards 4 --wire switch --memory 1536",
        script: "@kfab/verbs --test-threads 1 --nocapture && @kfab/found_rails --test-threads 1 --nocapture",
        companion: None,
        limit_s: 1800,
        runs: Runs::Everywhere,
        judge: tests_ran,
    },
    Job {
        what: "cards on two NUMA nodes, memory and threads beside them",
        options: "--numa 2 --cards 4 --card-nodes 0,0,1,1 --memory 1536",
        script: "@kfab/verbs_numa --test-threads 1 --nocapture",
        companion: None,
        limit_s: 900,
        runs: Runs::Always,
        judge: tests_ran,
    },
    Job {
        what: "the API's own tests, over two rails",
        options: "--cards 4 --wire switch --memory 1536",
        script: "@kfab/api --test-threads 1 && @kfab/scatter --test-threads 1 && \
            @kfab/receive_pool --test-threads 1 && @kfab/notices --test-threads 1 && \
            @kfab/no_memory --test-threads 1",
        companion: None,
        limit_s: 1800,
        runs: Runs::Full,
        judge: tests_ran,
    },
    Job {
        what: "LNet and the object store over cards",
        options: "--cards 2 --memory 2048",
        script: "@kfab-cli/command lnet:: --test-threads 1 && @lnet-shim/kfi --test-threads 1 && \
            @lnet-shim/kfi_killed --test-threads 1 && @kfab-examples/objectstore --test-threads 1",
        companion: None,
        limit_s: 1800,
        runs: Runs::Full,
        judge: tests_ran,
    },
    Job {
        what: "two machines: traffic between them, and the loss of one",
        options: "--cards 1",
        script: "@kfab/verbs_two --nocapture",
        companion: Some("@kfab/verbs_two --nocapture"),
        limit_s: 900,
        runs: Runs::Full,
        judge: tests_ran,
    },
];

/// The kernel of every run, and the one that `--full` adds.
const KERNELS: [&str; 2] = ["6.1", "6.12"];

pub(super) fn run(options: &Options) -> anyhow::Result<Outcome> {
    let kernels = if options.full { &KERNELS[..] } else { &KERNELS[..1] };
    // All of them first: a machine without network should not find out after minutes.
    for (at, kernel) in kernels.iter().enumerate() {
        let iwarp = JOBS.iter().any(|job| job.options.contains("--iwarp") && job.runs.on(at, options.full));
        match lab::prepare(kernel, iwarp) {
            Err(why) if why.is::<Unobtainable>() => {
                return Ok(Outcome::Skipped(format!("kernel {kernel}: {why:#}")));
            }
            prepared => prepared?,
        }
    }
    let programs = programs()?;
    let mut sum = Counts::default();
    for (at, kernel) in kernels.iter().enumerate() {
        for job in JOBS.iter().filter(|job| job.runs.on(at, options.full)) {
            println!("  {kernel}: {}", job.what);
            let start = Instant::now();
            let counts = boot(kernel, job, &programs)?;
            println!("  {kernel}: {}: {counts}, {:.0} s", job.what, start.elapsed().as_secs_f64());
            sum.add(&counts);
        }
    }
    if options.full {
        sum.add(&selftest()?);
        for refusal in REFUSALS {
            refused(refusal, &programs)?;
            sum.passed += 1;
        }
    }
    Ok(Outcome::Tests(sum))
}

/// The lab's own checks.
fn selftest() -> anyhow::Result<Counts> {
    println!("  {}: the lab itself", KERNELS[0]);
    let checks = lab_with(&["--kernel", KERNELS[0], "--selftest"])?.limit_s(SELFTEST_LIMIT_S);
    let passed = checks.tee()?.lines().filter(|line| line.starts_with("ok ")).count();
    ensure!(passed > 0, "no check ran");
    Ok(Counts { passed: passed as u64, ..Counts::default() })
}

/// The program must end with status 1 and the reason.
fn refused(refusal: &Refusal, programs: &[(String, PathBuf)]) -> anyhow::Result<()> {
    let script = with_paths(refusal.script, programs)?;
    let script = format!("{{ {script}; }} 2>&1; echo \"status $?\"");
    let said = guest(KERNELS[0], refusal.options, REFUSAL_LIMIT_S, &script, None)?.tee()?;
    let (wanted, status) = (refusal.says, "status 1");
    ensure!(said.contains(wanted) && said.contains(status), "'{wanted}' and '{status}' were expected");
    Ok(())
}

fn boot(kernel: &str, job: &Job, programs: &[(String, PathBuf)]) -> anyhow::Result<Counts> {
    let script = with_paths(job.script, programs)?;
    let companion = job.companion.map(|script| with_paths(script, programs)).transpose()?;
    let guest = guest(kernel, job.options, job.limit_s, &script, companion.as_deref())?;
    (job.judge)(job.script, &guest.tee()?).with_context(|| format!("{kernel}: {}", job.what))
}

/// A guest that runs a script, and another beside it if there is something for it to run.
fn guest(
    kernel: &str,
    options: &str,
    limit_s: u64,
    script: &str,
    companion: Option<&str>,
) -> anyhow::Result<Sh> {
    let limit = limit_s.to_string();
    let two = companion.map_or(vec![], |script| vec!["--two", script]);
    Ok(lab_with(&["--kernel", kernel, "--limit", &limit])?
        .args(options.split_whitespace())
        .args(two)
        .args(["--", "sh", "-c", script])
        .env("KFAB_LAB_RDMA", "1")
        .limit_s(limit_s + 60))
}

fn lab_with(words: &[&str]) -> anyhow::Result<Sh> {
    let me = std::env::current_exe().context("finding this program")?;
    Ok(Sh::new([&*me.to_string_lossy(), "lab"]).args(words.iter().copied()))
}

/// The script with the programs' paths.
fn with_paths(script: &str, programs: &[(String, PathBuf)]) -> anyhow::Result<String> {
    let words = script.split(' ').map(|word| match word.strip_prefix('@') {
        None => Ok(word.to_owned()),
        Some(name) => {
            let found = programs.iter().find(|(n, _)| n == name);
            let (_, path) = found.with_context(|| format!("the tree has no program {name}"))?;
            Ok(path.to_string_lossy().into_owned())
        }
    });
    words.collect::<anyhow::Result<Vec<_>>>().map(|words| words.join(" "))
}

/// All test programs of the workspace and what they run, as `PACKAGE/PROGRAM`. Built as the step `tests` builds them: nothing is built twice.
fn programs() -> anyhow::Result<Vec<(String, PathBuf)>> {
    let cargo = Sh::line("cargo test --locked --workspace --no-run --message-format=json-render-diagnostics");
    let said = cargo.read()?;
    Ok(said.lines().filter_map(|line| program(&serde_json::from_str(line).ok()?)).collect())
}

/// The program that a message of cargo's tells of.
fn program(message: &Value) -> Option<(String, PathBuf)> {
    let path = message["executable"].as_str()?;
    let target = &message["target"];
    // A program's own unit tests have its name, too; those of a library have the library's.
    let wanted: &[&str] = if message["profile"]["test"] == true { &["test", "lib"] } else { &["bin"] };
    if target["kind"].as_array()?.iter().all(|kind| wanted.iter().all(|w| kind != w)) {
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
    fn each_program_must_have_run_tests() {
        let line =
            |passed: u64| format!("test result: ok. {passed} passed; 0 failed; 2 ignored; finished in 1s\n");
        let script = "@a/b --test-threads 1 && @a/c name";
        assert_eq!(tests_ran(script, &(line(3) + &line(1))).unwrap().passed, 4);
        assert!(tests_ran(script, &(line(3) + &line(0))).is_err());
        assert!(tests_ran(script, &line(3)).is_err());
        assert!(tests_ran(script, "").is_err());
    }

    #[test]
    fn programs_are_known_from_what_cargo_says() {
        let message = |kind: &str, test: bool| {
            let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
            serde_json::json!({
                "manifest_path": manifest, "executable": "/t/x-1", "target": { "kind": [kind], "name": "x" },
                "profile": { "test": test },
            })
        };
        for (kind, test) in [("test", true), ("lib", true), ("bin", false)] {
            assert_eq!(program(&message(kind, test)), Some(("xtask/x".to_owned(), "/t/x-1".into())));
        }
        assert_eq!(program(&message("bin", true)), None);
        assert_eq!(program(&serde_json::json!({ "reason": "build-finished" })), None);
    }
}
