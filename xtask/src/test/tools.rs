//! Cargo's helpers that a fresh machine lacks, and the compiler that takes unstable flags.

use anyhow::Context;

use crate::sh::Sh;

/// A cargo subcommand that `cargo install` provides.
pub(crate) struct Tool {
    name: &'static str,
    version: &'static str,
    flags: &'static str,
}

/// cargo-deny; it asks for nothing but licences and a dependency graph, so it is built without its defaults.
pub(crate) const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", flags: "--no-default-features" };

/// cargo-fuzz.
pub(crate) const FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2", flags: "" };

/// Installs `tool` when it is not there.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn ensure_tool(tool: &Tool) -> anyhow::Result<()> {
    let sub = tool.name.trim_start_matches("cargo-");
    if Sh::new(["cargo", sub, "--version"]).works() {
        return Ok(());
    }
    println!("  {} is missing: installing {}", tool.name, tool.version);
    let install = format!("cargo install --quiet --locked {} --version {}", tool.name, tool.version);
    let dir = crate::sh::target_dir().join("tools");
    Sh::line(&install)
        .args(tool.flags.split_whitespace())
        .env("CARGO_TARGET_DIR", dir.as_os_str())
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .run()
        .with_context(|| format!("{} is missing and cannot be installed", tool.name))
}

/// `cargo_line` under a compiler that takes `-Z` flags: nightly where rustup has one, else the toolchain of
/// this workspace told to take them (the sanitizer runtimes come with both).
pub(crate) fn unstable(cargo_line: &str) -> Sh {
    if Sh::line("rustup run nightly rustc --version").works() {
        Sh::line("rustup run nightly").args(cargo_line.split_whitespace())
    } else {
        Sh::line(cargo_line).env("RUSTC_BOOTSTRAP", "1")
    }
}
