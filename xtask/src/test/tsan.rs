//! The ThreadSanitizer step: tests of the crates that hold unsafe code, instrumented.
//!
//! The standard library cannot be rebuilt with instrumentation where rust-src is absent, so ThreadSanitizer
//! does not see the ordering that the slow paths of std's mutexes and channels make, and reports accesses that
//! they do order. Safe code cannot race, whatever std does; a race has to go through an unsafe block, and those
//! lie in the files that `tidy` lists. So the sanitizer writes its reports to files and this step judges
//! each: one with such a file in either access's stack fails the step, the others are counted and shown.
//! A twin that is wrong on purpose runs first and must be reported, so that silence means something.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::count::Counts;
use super::{Options, Outcome, find, tools};
use crate::sh::{Sh, root, target_dir};
use crate::tidy::rust::{UNSAFE_FILES, may_hold_unsafe};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const FLAGS: &str = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer";
/// Crates whose tests run instrumented, where they hold unsafe code.
const CRATES: &[&str] = &["kfab-core", "kfab-shm"];
const TWIN: &str = "xtask/src/test/twin/ring/broken.rs";

pub(super) fn run(_: &Options) -> anyhow::Result<Outcome> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Ok(Outcome::Skipped(format!("written for {TARGET}")));
    }
    let crates = crates_with_unsafe()?;
    if crates.is_empty() {
        return Ok(Outcome::Skipped(format!("no unsafe file in {}", CRATES.join(", "))));
    }
    let dir = target_dir().join("tsan");
    let logs = dir.join("reports");
    ensure!(
        !reports(&twin(&dir, &logs)?).is_empty(),
        "the broken ring was not reported: the sanitizer is blind"
    );
    println!("  the ring that is broken on purpose was reported");
    clear(&logs)?;
    let mut cargo = tools::unstable("cargo test --locked --lib --tests --target").args([TARGET]);
    for name in &crates {
        cargo = cargo.args(["-p", name]);
    }
    // Judged here are rings, lock and pairs of ports; the conformance cases are not (see `NOT_JUDGED`) and run in step `tests`.
    // One test at a time, on one thread: what one has unmapped the next may map again, by system calls that the sanitizer does not
    // see. Threads that a test starts itself are what is looked at.
    let cargo = cargo.args(["--", "--test-threads", "1", "--skip", "shm::", "--skip", "shm-key::"]);
    let out = cargo
        .env("RUSTFLAGS", FLAGS)
        .env("CARGO_TARGET_DIR", dir.as_os_str())
        .env("TSAN_OPTIONS", options(&logs))
        .env("KFAB_SLOW", "1")
        .tee()?;
    judge(&read_logs(&logs)?)?;
    Ok(Outcome::Tests(Counts::read(&out)))
}

/// Not judged: the entry that plays a peer who writes anywhere at any time (its races are its purpose), and the conformance cases
/// (each maps and unmaps its segments by system calls that the sanitizer does not see, so the next case's use of the same
/// addresses looks like a race), and the threads that share a block (its last owner is told from the others by `Arc`'s fence, and the
/// sanitizer knows no fences). The rings and the lock are judged by their own tests and by the pairs of ports.
const NOT_JUDGED: [&str; 3] = ["kfab_shm::fuzz", "kfab_conformance", "owners_on_many_threads"];

fn options(logs: &Path) -> String {
    let known = root().join("providers/shm/tests/tsan.supp");
    let logs = logs.join("report");
    format!("exitcode=0 history_size=7 suppressions={} log_path={}", known.display(), logs.display())
}

fn crates_with_unsafe() -> anyhow::Result<Vec<String>> {
    let files = crate::tidy::tree::rust_files()?;
    let packages = find::packages()?.into_iter().filter(|package| CRATES.contains(&package.name.as_str()));
    let holds = |folder: &PathBuf| files.iter().any(|file| file.starts_with(folder) && may_hold_unsafe(file));
    Ok(packages.filter(|package| holds(&package.folder)).map(|package| package.name).collect())
}

/// Compiles and runs the broken ring; returns what the sanitizer wrote of it.
fn twin(dir: &Path, logs: &Path) -> anyhow::Result<String> {
    clear(logs)?;
    let program = dir.join("broken-ring");
    let program = program.to_string_lossy();
    tools::unstable("rustc --edition 2024 -g -A warnings")
        .args(FLAGS.split_whitespace())
        .args(["-o", &program, TWIN])
        .run()?;
    Sh::new([&program]).env("TSAN_OPTIONS", options(logs)).limit_s(60).quiet().read()?;
    read_logs(logs)
}

fn clear(logs: &Path) -> anyhow::Result<()> {
    if logs.exists() {
        std::fs::remove_dir_all(logs)?;
    }
    std::fs::create_dir_all(logs).with_context(|| logs.display().to_string())
}

fn read_logs(logs: &Path) -> anyhow::Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(logs)? {
        all.push_str(&String::from_utf8_lossy(&std::fs::read(entry?.path())?));
    }
    Ok(all)
}

fn judge(log: &str) -> anyhow::Result<()> {
    let all = log.matches("WARNING: ThreadSanitizer").count();
    let ours = reports(log);
    println!("  {all} reports, {} of them with an unsafe file in an access's stack", ours.len());
    if let Some(first) = ours.first() {
        bail!("ThreadSanitizer: {} reports in {}; the first:\n{first}", ours.len(), UNSAFE_FILES.join(", "));
    }
    Ok(())
}

/// The reports of `log` that have a file which may hold unsafe code in the stack of one of the two accesses,
/// and everything that is no data race (a bad unlock, a use after free).
fn reports(log: &str) -> Vec<&str> {
    let all = log.split("==================\n").filter(|text| text.contains("WARNING: ThreadSanitizer"));
    let ours = |text: &&str| !text.contains("data race") || accesses(text).any(in_unsafe_file);
    all.filter(|text| !NOT_JUDGED.iter().any(|n| text.contains(n))).filter(ours).collect()
}

/// The frames of the two racing accesses: everything before the report goes on to say where the memory and the
/// threads come from.
fn accesses(report: &str) -> impl Iterator<Item = &str> {
    let over = |line: &&str| {
        let line = line.trim_start();
        !["Location is", "Thread T", "Mutex M", "SUMMARY", "As if synchronized"]
            .iter()
            .any(|s| line.starts_with(s))
    };
    report.lines().take_while(over).filter(|line| line.trim_start().starts_with('#'))
}

fn in_unsafe_file(frame: &str) -> bool {
    let root = root();
    let mut words = frame.split_whitespace();
    words.any(|word| {
        let path = Path::new(word.split(':').next().unwrap_or(word));
        let ours = path.strip_prefix(&root).unwrap_or(path);
        !ours.is_absolute() && may_hold_unsafe(ours)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(access: &str, created: &str) -> String {
        format!(
            "==================\nWARNING: ThreadSanitizer: data race (pid=1)\n  Write of size 8 by thread T1:\n    \
             #0 f {access}:17:3 (x+0x1)\n\n  Previous read of size 8 by main thread:\n    #0 g /rustc/a/core/x.rs:1\n\n  \
             Location is heap block\n  Thread T1 created by main thread at:\n    #0 h {created}:9:1\nSUMMARY: x\n\
             ==================\n"
        )
    }

    #[test]
    fn a_race_through_an_unsafe_file_is_ours() {
        let log = report("providers/shm/src/ring/spsc.rs", "tests/a.rs");
        assert_eq!(reports(&log).len(), 1);
        let full = root().join("kfab/core/src/mem/slab.rs");
        assert_eq!(reports(&report(&full.to_string_lossy(), "tests/a.rs")).len(), 1);
        assert!(judge(&log).unwrap_err().to_string().contains("spsc.rs"));
    }

    #[test]
    fn what_only_std_orders_is_counted_and_let_pass() {
        let log = report("providers/shm/src/lib.rs", "providers/shm/src/ring/spsc.rs");
        assert!(reports(&log).is_empty());
        assert!(judge(&log).is_ok());
        assert!(reports(&report("/rustc/abc/library/std/src/sys/ring/x.rs", "tests/a.rs")).is_empty());
    }

    #[test]
    fn anything_but_a_data_race_is_ours() {
        let log =
            "==================\nWARNING: ThreadSanitizer: heap-use-after-free (pid=1)\n==================\n";
        assert_eq!(reports(log).len(), 1);
    }
}
