//! Our RPC, and the RPC systems it stands beside: the program of `benches/rpc-peers`, which has a workspace of its own so that
//! nothing else is built with those systems.

use std::path::PathBuf;

use anyhow::Context;

use super::plan::Provider;
use super::programs::Job;
use super::{Bench, source};
use crate::sh::Sh;

/// Builds the program.
///
/// # Errors
/// When it cannot be built.
pub(super) fn build(bench: &Bench) -> anyhow::Result<()> {
    eprintln!("building rpc-peers in release");
    let manifest = source("benches/rpc-peers/Cargo.toml");
    let folder = folder(bench);
    let target = folder.to_string_lossy();
    Sh::line("cargo build --quiet --release --locked --manifest-path")
        .args([&*manifest, "--target-dir", &target])
        .quiet()
        .run()
}

/// Runs one system (`shm`, `sockets`, `tonic`, `tarpc`) once; nanoseconds a round trip, calls a second or bytes a second.
///
/// # Errors
/// When it fails or prints no figure.
pub(super) fn run(bench: &Bench, system: &str, job: Job, size: u64, flight: u64) -> anyhow::Result<f64> {
    let word = match job {
        Job::Latency => "lat",
        Job::Rate => "rate",
        Job::Put | Job::Bandwidth => "write",
        Job::Get => "read",
    };
    let [a, b] = bench.cores;
    let seconds = 1.0 / bench.divide as f64;
    let program = folder(bench).join("release/rpc-peers").to_string_lossy().into_owned();
    let words =
        format!("{system} {word} --size {size} --flight {flight} --seconds {seconds} --cores {a},{b}");
    let out = Sh::new([program]).args(words.split(' ')).quiet().limit_s(60).read()?;
    out.trim().parse().with_context(|| format!("no figure in: {out}"))
}

/// The system's name for our RPC over a provider.
pub(super) fn ours(provider: Provider) -> &'static str {
    if provider == Provider::Shm { "shm" } else { "sockets" }
}

fn folder(bench: &Bench) -> PathBuf {
    bench.folder.join("rpc")
}
