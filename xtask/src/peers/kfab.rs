//! kfab's own figures, and the limits that it measures.
//!
//! `kfab perf TEST --provider P --size N --window W --json` prints `{"rows": [{"size", "mean_ns", "msg_per_s",
//! "bytes_per_s", ...}]}`; `kfab perf limit --json` prints rows with a `name` and the figure of each.

use anyhow::{Context, bail};
use serde_json::Value;

use super::Bench;
use super::plan::{Limit, Line, Provider, Unit};
use super::programs::Job;
use crate::sh::Sh;

/// What a run gave: the figure to hold beside the peers', and the one to hold beside a limit.
pub(super) struct Figures {
    /// Of latencies the mean, which is what peers print.
    pub(super) beside_peers: f64,
    /// Of latencies the median, which is what limits are.
    pub(super) beside_limit: f64,
}

/// Runs kfab once for `line`.
///
/// # Errors
/// When it fails or prints no such figure.
pub(super) fn run(bench: &Bench, line: &Line) -> anyhow::Result<Figures> {
    let provider = if line.provider == Provider::Shm { "shm" } else { "sockets" };
    let words =
        ["perf", line.test, "--provider", provider, "--size", &line.size.to_string()].map(str::to_owned);
    let out = json(bench, &words, &["--window", &line.window.to_string()])?;
    let [beside_peers, beside_limit] = match line.unit {
        Unit::Nanoseconds => ["mean_ns", "p50_ns"],
        Unit::Messages => ["msg_per_s"; 2],
        Unit::Bytes => ["bytes_per_s"; 2],
    }
    .map(|field| {
        let row = rows(&out).find(|row| row["size"].as_u64() == Some(line.size));
        let figure = row.and_then(|row| row[field].as_f64()).filter(|figure| *figure > 0.0);
        figure.with_context(|| format!("no {field} for size {} in: {out}", line.size))
    });
    Ok(Figures { beside_peers: beside_peers?, beside_limit: beside_limit? })
}

/// kfab's own messages as a base for what stands on them: a whole round trip, messages or bytes a second.
///
/// # Errors
/// When it fails or prints no such figure.
pub(super) fn messages(bench: &Bench, provider: Provider, job: Job, size: u64) -> anyhow::Result<f64> {
    let (test, field, times) = match job {
        Job::Latency => ("lat", "p50_ns", 2.0),
        Job::Rate => ("rate", "msg_per_s", 1.0),
        _ => ("bw", "bytes_per_s", 1.0),
    };
    let name = if provider == Provider::Shm { "shm" } else { "sockets" };
    let words = ["perf", test, "--provider", name, "--size", &size.to_string()].map(str::to_owned);
    let out = json(bench, &words, &["--wait", "spin"])?;
    let figure = rows(&out).find_map(|row| row[field].as_f64()).filter(|figure| *figure > 0.0);
    figure.map(|figure| figure * times).with_context(|| format!("no {field} in: {out}"))
}

/// Measures every limit once.
///
/// # Errors
/// When kfab fails or prints no JSON.
pub(super) fn limits(bench: &Bench) -> anyhow::Result<Value> {
    json(bench, &["perf".to_owned(), "limit".to_owned()], &[])
}

/// The figure of one limit in what [`limits`] returned.
///
/// # Errors
/// When there is no such row, or it has no figure.
pub(super) fn limit(limits: &Value, limit: &Limit) -> anyhow::Result<f64> {
    let named = |row: &&Value| {
        row["name"] == limit.name && (limit.size.is_none() || row["size"].as_u64() == limit.size)
    };
    let row = rows(limits).find(named);
    let row = row.with_context(|| format!("no row {} {:?} in: {limits}", limit.name, limit.size))?;
    let figure = row["one_way_ns"].as_f64().or_else(|| row["bytes_per_s"].as_f64());
    figure.filter(|figure| *figure > 0.0).with_context(|| format!("no figure in: {row}"))
}

fn rows(document: &Value) -> impl Iterator<Item = &Value> {
    document["rows"].as_array().into_iter().flatten()
}

fn json(bench: &Bench, words: &[String], more: &[&str]) -> anyhow::Result<Value> {
    let Some(kfab) = &bench.kfab else { bail!("kfab was left out") };
    let [a, b] = bench.cores;
    let sh = Sh::new(["taskset".to_owned(), "-c".to_owned(), format!("{a},{b}")]);
    let sh = sh.args([kfab.to_string_lossy()]).args(words).args(more).args(["--json"]);
    let out = sh.quiet().limit_s(120).read()?;
    serde_json::from_str(&out).with_context(|| format!("no JSON: {out}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_found_by_name_and_size() {
        let document = serde_json::json!({ "rows": [
            { "name": "cache_line", "one_way_ns": 41.5 },
            { "name": "memcpy", "size": 65536, "bytes_per_s": 5e10 },
            { "name": "memcpy", "size": 1048576, "bytes_per_s": 3e10 },
        ]});
        let of = |name, size| limit(&document, &Limit { name, size, target: 1.0 });
        assert_eq!(of("cache_line", None).unwrap(), 41.5);
        assert_eq!(of("memcpy", Some(1 << 20)).unwrap(), 3e10);
        assert!(of("memcpy", Some(8)).is_err());
    }
}
