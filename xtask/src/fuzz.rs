//! The fuzz targets: `cargo xtask fuzz`, and the smoke run of `cargo xtask test`.
//!
//! Targets are found in `fuzz/fuzz_targets/*.rs`; a target that is not registered in `fuzz/Cargo.toml` is an
//! error, so that none is silently left out. Inputs that are worth keeping lie in `fuzz/seeds/TARGET/`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};

use crate::test::tools;

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only lists the targets
    #[arg(long)]
    list: bool,
    /// Only these targets
    targets: Vec<String>,
}

/// Runs the fuzz targets.
///
/// # Errors
/// When a named target does not exist, the tools are missing, or a target finds a failure.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let all = targets(Path::new("fuzz"))?;
    if options.list {
        all.iter().for_each(|target| println!("{target}"));
        return Ok(ExitCode::SUCCESS);
    }
    for name in &options.targets {
        ensure!(all.contains(name), "no fuzz target '{name}'; there are: {}", all.join(", "));
    }
    let chosen = if options.targets.is_empty() { all } else { options.targets.clone() };
    ensure!(!chosen.is_empty(), "fuzz/fuzz_targets has no target");
    smoke(&chosen, options.seconds, false)?;
    Ok(ExitCode::SUCCESS)
}

/// The targets of the fuzz crate in `folder`, by name.
///
/// # Errors
/// When a target's file is not registered in the manifest, or a registered one has no file.
pub(crate) fn targets(folder: &Path) -> anyhow::Result<Vec<String>> {
    let files = folder.join("fuzz_targets");
    let mut found = Vec::new();
    if files.is_dir() {
        for entry in std::fs::read_dir(&files)? {
            let path = entry?.path();
            if let (Some("rs"), Some(stem)) = (ending(&path), path.file_stem()) {
                found.push(stem.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    let manifest = folder.join("Cargo.toml");
    let manifest = std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    let registered: Vec<&str> = registered(&manifest).collect();
    for name in &found {
        ensure!(registered.contains(&name.as_str()), "fuzz/Cargo.toml has no [[bin]] for {name}.rs");
    }
    for name in registered {
        ensure!(found.iter().any(|f| f == name), "fuzz/Cargo.toml names {name}, but {name}.rs is missing");
    }
    Ok(found)
}

fn ending(path: &Path) -> Option<&str> {
    path.extension().and_then(|ending| ending.to_str())
}

fn registered(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .filter_map(|line| line.trim().strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""))
}

/// The most inputs of a bounded run.
pub(crate) const SMOKE_INPUTS: u32 = 2000;

/// Runs each of `targets` for `seconds` (`bounded`: and at most [`SMOKE_INPUTS`], always the same), stopping at the first that finds a
/// failure.
///
/// # Errors
/// When cargo-fuzz cannot be had, a target does not build, or one finds a failure (its input is then in
/// `fuzz/artifacts/TARGET`, and the command that replays it is printed by cargo-fuzz).
pub(crate) fn smoke(targets: &[String], seconds: u64, bounded: bool) -> anyhow::Result<()> {
    tools::ensure_tool(&tools::FUZZ)?;
    // On its own, so that a slow build is not taken for a target that hangs.
    tools::unstable("cargo fuzz build").limit_s(3600).run()?;
    for target in targets {
        let inputs = if bounded { format!("{SMOKE_INPUTS} inputs or ") } else { String::new() };
        println!("  fuzz {target}: {inputs}{seconds} s");
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(&corpus)?;
        let mut run = tools::unstable("cargo fuzz run").args([target.as_str(), &corpus]);
        let seeds = format!("fuzz/seeds/{target}");
        if Path::new(&seeds).is_dir() {
            run = run.args([&seeds]);
        }
        let limits =
            [format!("-max_total_time={seconds}"), "-timeout=10".into(), "-rss_limit_mb=4096".into()];
        // The same numbers every time: a run that is red for one is red for all. `cargo xtask fuzz --seconds N` goes on for longer.
        let limits = limits
            .into_iter()
            .chain(["-seed=1".to_owned()])
            .chain(bounded.then(|| format!("-runs={SMOKE_INPUTS}")));
        run = run.args(["--", "-print_final_stats=1"]).args(limits).limit_s(300 + seconds);
        if let Err(error) = run.run() {
            bail!("fuzz target {target}: {error:#}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str, manifest: &str, files: &[&str]) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-fuzz-{name}-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("fuzz_targets")).unwrap();
        std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        files.iter().for_each(|file| std::fs::write(folder.join("fuzz_targets").join(file), "").unwrap());
        folder
    }

    #[test]
    fn targets_are_found_in_the_folder() {
        let manifest = "[[bin]]\npath = \"fuzz_targets/b.rs\"\n[[bin]]\npath = \"fuzz_targets/a.rs\"\n";
        let folder = folder("found", manifest, &["b.rs", "a.rs", "notes.txt"]);
        assert_eq!(targets(&folder).unwrap(), ["a", "b"]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_target_and_its_registration_go_together() {
        let stray = folder("stray", "", &["a.rs"]);
        assert!(targets(&stray).unwrap_err().to_string().contains("no [[bin]] for a.rs"));
        let lost = folder("lost", "path = \"fuzz_targets/a.rs\"\n", &[]);
        assert!(targets(&lost).unwrap_err().to_string().contains("a.rs is missing"));
        std::fs::remove_dir_all(stray).unwrap();
        std::fs::remove_dir_all(lost).unwrap();
    }
}
