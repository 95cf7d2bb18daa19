//! `kfab perf`: one test at a time, many sizes, over any provider, here or against a server.

use super::pingpong::limits_text;
use crate::args::{FabricArgs, LoadArgs};
use crate::bench::figures::Row;
use crate::bench::{self, Client, Load, Test};
use crate::failure::{Failure, Result};
use crate::limits::{self, Scope};
use crate::place::Pin;
use crate::show::{self, bar::Bar, csv, svg, table, units};
use crate::stop;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::path::PathBuf;

/// Seconds per size, if nobody says.
const SECONDS: f64 = 1.0;
const SIZES: [usize; 8] = [8, 64, 512, 4 << 10, 32 << 10, 256 << 10, 1 << 20, 4 << 20];

#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = false)]
pub(crate) struct PerfArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// One-way latency: half the round trip
    Lat(TestArgs),
    /// Bytes per second in one direction
    Bw(TestArgs),
    /// Messages per second in one direction
    Rate(TestArgs),
    /// One-sided reads of the peer's memory
    Read(TestArgs),
    /// One-sided writes to the peer's memory
    Write(TestArgs),
    /// What the machine can do without kfab: cache line, memcpy, TCP, wake-up
    Limit(LimitArgs),
    /// How fast a sleeping receiver wakes up, and what it costs while asleep
    Wake(super::wake::WakeArgs),
}

#[derive(Args, Debug)]
struct TestArgs {
    /// A server's address, as `kfab serve` prints it; without one, a peer process is started here
    address: Option<String>,
    #[command(flatten)]
    fabric: FabricArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    output: Output,
}

#[derive(Args, Debug)]
struct Output {
    /// One JSON document
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated values
    #[arg(long)]
    csv: bool,
    /// A plot: latency percentiles or bandwidth by size
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct LimitArgs {
    /// The two CPUs (A,B), `auto` or `none`
    #[arg(long, value_name = "A,B", default_value = "auto")]
    pin: Pin,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// The JSON document.
#[derive(Serialize)]
struct Document<'a> {
    test: &'a str,
    provider: String,
    window: usize,
    wait: &'a str,
    rows: &'a [Row],
}

/// Before minutes of measuring: whether the plot can be written in the end.
fn check_output(args: &Output) -> Result<()> {
    let Some(file) = &args.svg else { return Ok(()) };
    let new = !file.exists();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|e| Failure::usage(format!("--svg {}: {e}", file.display())))?;
    if new {
        let _ = std::fs::remove_file(file);
    }
    Ok(())
}

pub(crate) fn run(args: &PerfArgs) -> Result<()> {
    match &args.what {
        What::Lat(a) => test(Test::Latency, a),
        What::Bw(a) => test(Test::Bandwidth, a),
        What::Rate(a) => test(Test::Rate, a),
        What::Read(a) => test(Test::Read, a),
        What::Write(a) => test(Test::Write, a),
        What::Limit(a) => limit(a),
        What::Wake(a) => super::wake::run(a),
    }
}

fn limit(args: &LimitArgs) -> Result<()> {
    let mut bar = Bar::new(1);
    bar.begin("limits".into());
    let mut rows = Vec::new();
    let outcome = limits::measure(&args.pin, Scope::Full, &mut rows, &mut |part| bar.tick(part));
    bar.end();
    drop(bar);
    if rows.is_empty() {
        return outcome;
    }
    if args.json {
        show::print_json(&serde_json::json!({ "rows": rows, "cpus": args.pin.cpus()? }))?;
    } else {
        show::print(&limits_text(&rows))?;
    }
    outcome
}

fn test(test: Test, args: &TestArgs) -> Result<()> {
    let window = args.load.window.unwrap_or(test.window());
    if test == Test::Latency && window != 1 {
        return Err(Failure::usage(format!(
            "--window {window}: latency is measured with one message under way"
        )));
    }
    let sizes = args
        .load
        .size
        .as_ref()
        .map_or(if test == Test::Rate { vec![8] } else { SIZES.to_vec() }, |s| s.0.clone());
    for &size in &sizes {
        args.load.window_of(size, window)?;
    }
    check_output(&args.output)?;
    let mut rows = Vec::new();
    let outcome = measure(test, args, &sizes, &mut rows);
    if !rows.is_empty() {
        report(test, args, window, &rows)?;
    }
    outcome?;
    stop::check()
}

fn measure(test: Test, args: &TestArgs, sizes: &[usize], rows: &mut Vec<Row>) -> Result<()> {
    if let Some(address) = &args.address {
        let client = Client::with_server(address, &args.fabric, &args.load)?;
        let mut bar = Bar::new(sizes.len());
        return all_sizes(&client, test, args, sizes, rows, &mut bar);
    }
    let schemes = args.fabric.schemes()?;
    bench::check(&args.fabric, &schemes, &args.load.pin, args.load.wait)?;
    let mut bar = Bar::new(sizes.len() * schemes.len());
    for scheme in schemes {
        let client = Client::with_child(scheme, &args.fabric, &args.load).map_err(|f| f.during(scheme))?;
        all_sizes(&client, test, args, sizes, rows, &mut bar).map_err(|f| f.during(scheme))?;
    }
    Ok(())
}

fn all_sizes(
    client: &Client,
    test: Test,
    args: &TestArgs,
    sizes: &[usize],
    rows: &mut Vec<Row>,
    bar: &mut Bar,
) -> Result<()> {
    for &size in sizes {
        stop::check()?;
        bar.begin(format!("{} {} {}", test.name(), client.via(), units::size(size)));
        let load = Load::of(&args.load, size, args.load.window_of(size, test.window())?, SECONDS);
        rows.push(client.run(test, &load, &mut |part| bar.tick(part))?);
        bar.end();
    }
    Ok(())
}

fn report(test: Test, args: &TestArgs, window: usize, rows: &[Row]) -> Result<()> {
    let mut providers: Vec<&str> = rows.iter().map(|r| r.provider.as_str()).collect();
    providers.dedup();
    let document = Document {
        test: test.name(),
        provider: providers.join(","),
        window,
        wait: args.load.wait.name(),
        rows,
    };
    match &args.output {
        o if o.json => show::print_json(&document)?,
        o if o.csv => show::print(&csv::perf(rows))?,
        _ => {
            let fewer = if rows.iter().any(|r| r.window < window) { " (fewer of the largest)" } else { "" };
            let what = match test {
                Test::Latency => "one-way latency (half the round trip)".to_owned(),
                Test::Read | Test::Write => {
                    format!("one-sided: latency of one whole operation; rate with {window} under way{fewer}")
                }
                _ => format!("one direction, {window} under way{fewer}, counted and timed by the receiver"),
            };
            let (name, wait) = (test.name(), args.load.wait.name());
            show::print(&format!("{name}: {what}; waiting: {wait}\n\n{}", table::perf(rows)))?;
        }
    }
    match &args.output.svg {
        Some(file) => svg::draw(file, rows),
        None => Ok(()),
    }
}
