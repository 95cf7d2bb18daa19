//! `kfab pingpong`: how fast two processes talk here, over every provider, beside what the machine could do.

use crate::args::{FabricArgs, LoadArgs, WaitArg};
use crate::bench::figures::Row;
use crate::bench::{self, Client, Load, Test};
use crate::failure::{Failure, Result};
use crate::limits::{self, Limit, Scope};
use crate::serve::session::clock_ns;
use crate::show::bar::Bar;
use crate::show::table::{Table, latency_cells};
use crate::show::units;
use crate::stop;
use clap::Args;
use rustix::time::ClockId;
use serde::Serialize;

/// Sizes, if nobody says: the sizes of requests, pages, stripes.
const SIZES: [usize; 4] = [8, 4 << 10, 64 << 10, 1 << 20];
/// Seconds for latency, and as many for bandwidth, of one size.
const SECONDS: f64 = 0.6;

#[derive(Args, Debug)]
pub(crate) struct PingpongArgs {
    /// A server's address, as `kfab serve` prints it; without one, a peer process is started here
    address: Option<String>,
    #[command(flatten)]
    fabric: FabricArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// A line of the table.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    latency: Row,
    /// Absent where Ctrl-C came before it was measured.
    #[serde(flatten)]
    stream: Option<Stream>,
}

#[derive(Serialize)]
struct Stream {
    stream_window: usize,
    stream_msg_per_s: f64,
    stream_bytes_per_s: f64,
}

#[derive(Default, Serialize)]
struct Report {
    rows: Vec<Line>,
    limits: Vec<Limit>,
    /// Providers that were left out, and why.
    unavailable: Vec<String>,
    /// Of both sides, of this side, or none.
    cpus: Option<Vec<u32>>,
    wait: &'static str,
    /// The part of its CPU that this side got while it measured and spun; much less than 1 on a busy machine.
    cpu_share: Option<f64>,
}

/// Below this part of a CPU the figures tell more about the other programs.
const QUIET: f64 = 0.9;

pub(crate) fn run(args: &PingpongArgs) -> Result<()> {
    let mut report = Report { wait: args.load.wait.name(), ..Default::default() };
    let sizes = args.load.size.as_ref().map_or(SIZES.to_vec(), |s| s.0.clone());
    for &size in &sizes {
        window(args, size)?;
    }
    let outcome = measure(args, &sizes, &mut report);
    let interrupted = matches!(&outcome, Err(f) if f.code == crate::failure::INTERRUPTED);
    if outcome.is_ok() || interrupted || !report.rows.is_empty() {
        show(args, &report)?;
    }
    outcome?;
    stop::check()
}

fn measure(args: &PingpongArgs, sizes: &[usize], report: &mut Report) -> Result<()> {
    if let Some(address) = &args.address {
        let client = Client::with_server(address, &args.fabric, &args.load)?;
        report.cpus = args.load.pin.cpus()?.map(|(mine, _)| vec![mine]);
        let mut bar = Bar::new(sizes.len());
        return sizes.iter().try_for_each(|&size| one(&client, args, size, &mut bar, report));
    }
    let schemes = args.fabric.schemes()?;
    report.unavailable = unavailable(args, &schemes);
    if schemes.is_empty() {
        return Err(Failure::unavailable(format!(
            "no provider can run here: {}",
            report.unavailable.join("; ")
        )));
    }
    bench::check(&args.fabric, &schemes, &args.load.pin, args.load.wait)?;
    report.cpus = args.load.pin.cpus()?.map(|(mine, theirs)| vec![mine, theirs]);
    let mut bar = Bar::new(schemes.len() * sizes.len() + 1);
    bar.begin("the machine's limits".into());
    limits::measure(&args.load.pin, Scope::Brief, &mut report.limits, &mut |part| bar.tick(part))?;
    bar.end();
    let before = [ClockId::ProcessCPUTime, ClockId::Monotonic].map(clock_ns);
    for scheme in schemes {
        let client = Client::with_child(scheme, &args.fabric, &args.load).map_err(|f| f.during(scheme))?;
        for &size in sizes {
            one(&client, args, size, &mut bar, report).map_err(|f| f.during(scheme))?;
        }
    }
    if args.load.wait == WaitArg::Spin {
        let after = [ClockId::ProcessCPUTime, ClockId::Monotonic].map(clock_ns);
        report.cpu_share = Some((after[0] - before[0]) as f64 / (after[1] - before[1]).max(1) as f64);
    }
    Ok(())
}

/// Providers that nobody ruled out and that cannot run.
fn unavailable(args: &PingpongArgs, schemes: &[&str]) -> Vec<String> {
    if !args.fabric.provider.is_empty() || !args.fabric.device.is_empty() {
        return Vec::new();
    }
    let all = crate::providers::providers();
    let missing = all.iter().filter(|p| !schemes.contains(&p.scheme()));
    missing.filter_map(|p| p.probe().err().map(|why| format!("{}: {why}", p.scheme()))).collect()
}

/// Messages of a stream under way at once.
fn window(args: &PingpongArgs, size: usize) -> Result<usize> {
    args.load.window_of(size, if size <= 4096 { 64 } else { 16 })
}

/// One size: latency first, then a stream of messages.
fn one(client: &Client, args: &PingpongArgs, size: usize, bar: &mut Bar, report: &mut Report) -> Result<()> {
    stop::check()?;
    bar.begin(format!("{} {}", client.via(), units::size(size)));
    let load = Load::of(&args.load, size, 1, SECONDS);
    let latency = client.run(Test::Latency, &load, &mut |part| bar.tick(part / 2.0))?;
    let load = Load { window: window(args, size)?, ..load };
    let streamed = client.run(Test::Bandwidth, &load, &mut |part| bar.tick(0.5 + part / 2.0));
    let stream = streamed.as_ref().ok().and_then(|row| row.rate.as_ref()).map(|rate| Stream {
        stream_window: load.window,
        stream_msg_per_s: rate.msg_per_s,
        stream_bytes_per_s: rate.bytes_per_s,
    });
    report.rows.push(Line { latency, stream });
    bar.end();
    streamed.map(drop)
}

fn show(args: &PingpongArgs, report: &Report) -> Result<()> {
    if args.json {
        return crate::show::print_json(report);
    }
    crate::show::print(&text(report))
}

fn text(report: &Report) -> String {
    let place = match report.cpus.as_deref() {
        Some([a, b]) => format!("two processes, CPU {a} and CPU {b}"),
        Some([a]) => format!("this side on CPU {a}"),
        _ => "not pinned".to_owned(),
    };
    let mut out = format!(
        "One-way latency (half the round trip) and one-way streams; {place}, waiting: {}.\n\n",
        report.wait
    );
    let head = [
        "provider",
        "size",
        "p50",
        "/limit",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "bandwidth",
        "/limit",
        "messages",
    ];
    let mut table = Table::new(1, &head);
    let mut before = None;
    for line in &report.rows {
        let r = &line.latency;
        if before.is_some_and(|p| p != &r.provider) {
            table.gap();
        }
        before = Some(&r.provider);
        let ratio = |v: Option<f64>, limit: Option<f64>| match (v, limit) {
            (Some(v), Some(l)) if l > 0.0 => format!("{:.2}", v / l),
            _ => "-".to_owned(),
        };
        let p50 = r.latency.as_ref().map(|l| l.p50_ns);
        let beside = limits::latency_limit(&report.limits, &r.provider, r.size);
        let mut cells = vec![r.provider.clone(), units::size(r.size)];
        cells.extend(latency_cells(r.latency.as_ref()));
        cells.insert(3, ratio(p50, beside));
        let beside = limits::bandwidth_limit(&report.limits, &r.provider, r.size);
        let dash = || "-".to_owned();
        let stream = line.stream.as_ref();
        let bytes_per_s = stream.map(|s| s.stream_bytes_per_s);
        cells.push(bytes_per_s.map_or_else(dash, units::bandwidth));
        cells.push(ratio(bytes_per_s, beside));
        cells.push(stream.map_or_else(dash, |s| units::rate(s.stream_msg_per_s)));
        table.row(cells);
    }
    out += &table.text();
    for l in report.rows.iter().filter_map(|l| l.latency.latency.as_ref()).filter(|l| l.batch > 1).take(1) {
        out += &format!(
            "\nBelow 1.5 us, p50 is over {} round trips per reading of the clock; the tail is of single ones.\n",
            l.batch
        );
    }
    if !report.limits.is_empty() {
        out += "\nThe machine's limits, measured in the same run without kfab (`/limit` is the figure divided by the one that fits):\n\n";
        out += &limits_text(&report.limits);
    }
    if let Some(share) = report.cpu_share.filter(|s| *s < QUIET) {
        let percent = share * 100.0;
        out += &format!(
            "\nThe machine is busy: this side got {percent:.0} % of its CPU. On a quiet machine the figures are better.\n"
        );
    }
    for why in &report.unavailable {
        out += &format!("left out: {why}\n");
    }
    out
}

/// A table of limits.
pub(crate) fn limits_text(limits: &[Limit]) -> String {
    let mut table = Table::new(1, &["limit", "size", "one way", "bandwidth"]);
    for l in limits {
        let what = match l.name {
            "cache_line" => "one cache line, CPU to CPU",
            "memcpy" => "memcpy, one core",
            "tcp_pingpong" => "TCP on loopback, spinning",
            "tcp_stream" => "TCP stream on loopback, spinning",
            "eventfd_wake" => "waking a sleeper by eventfd",
            other => other,
        };
        let dash = || "-".to_owned();
        table.row(vec![
            what.to_owned(),
            l.size.map_or_else(dash, units::size),
            l.one_way_ns.map_or_else(dash, units::time),
            l.bytes_per_s.map_or_else(dash, units::bandwidth),
        ]);
    }
    table.text()
}
