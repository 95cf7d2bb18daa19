//! `kfab perf wake`: a receiver that sleeps is woken by a message; beside it, in turn, a thread that sleeps on a bare eventfd.
//! Then the receiver sleeps for a while and says what processor time that cost.

use crate::args::{FabricArgs, LoadArgs, WaitArg};
use crate::bench::figures::Histogram;
use crate::bench::{Client, unexpected};
use crate::control::{Reply, Request};
use crate::failure::Result;
use crate::limits::eventfd_wake;
use crate::place::Pin;
use crate::serve::session::clock_ns;
use crate::show::{self, bar::Bar, table::Table, units};
use crate::stop;
use clap::Args;
use rustix::time::ClockId;
use serde::Serialize;
use std::time::Duration;

/// Turns of each side, and wake-ups per turn.
const TURNS: usize = 4;
/// How long the receiver is left to fall asleep.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the last sleep lasts.
const SLEEP: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(crate) struct WakeArgs {
    #[command(flatten)]
    fabric: FabricArgs,
    /// Wake-ups of each kind
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(4..=100_000))]
    iterations: u64,
    /// CPUs of waker and sleeper (A,B), `auto` or `none`
    #[arg(long, value_name = "A,B", default_value = "auto")]
    pin: Pin,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// What was seen of one kind of sleeper.
#[derive(Serialize)]
struct Wakes {
    name: String,
    p50_ns: f64,
    p90_ns: f64,
    p99_ns: f64,
    max_ns: f64,
}

#[derive(Serialize)]
struct Report {
    test: &'static str,
    rows: Vec<Wakes>,
    /// Processor time of the whole process in percent of the time asleep, by provider.
    asleep_cpu_percent: Vec<(String, f64)>,
}

impl Wakes {
    fn of(name: &str, h: &Histogram) -> Wakes {
        let q = |q| h.quantile(q);
        Wakes { name: name.to_owned(), p50_ns: q(0.5), p90_ns: q(0.9), p99_ns: q(0.99), max_ns: h.max() }
    }
}

pub(crate) fn run(args: &WakeArgs) -> Result<()> {
    let mut report = Report { test: "wake", rows: Vec::new(), asleep_cpu_percent: Vec::new() };
    let schemes = crate::providers::chosen(&args.fabric.provider)?;
    let mut bar = Bar::new(schemes.len());
    for scheme in schemes {
        bar.begin(format!("wake {scheme}"));
        one(args, scheme, &mut report, &bar).map_err(|f| f.during(scheme))?;
        bar.end();
    }
    drop(bar);
    if args.json {
        return show::print_json(&report);
    }
    let mut table = Table::new(1, &["sleeper", "p50", "p90", "p99", "max"]);
    for w in &report.rows {
        let mut cells = vec![w.name.clone()];
        cells.extend([w.p50_ns, w.p90_ns, w.p99_ns, w.max_ns].map(units::time));
        table.row(cells);
    }
    let ms = PAUSE.as_millis();
    let mut text = format!(
        "From the sender's call to the sleeper's return; both kinds in turn, {ms} ms apart.\n\n{}\n",
        table.text()
    );
    for (scheme, percent) in &report.asleep_cpu_percent {
        text += &format!("processor time of a receiver asleep on {scheme}: {percent:.3} %\n");
    }
    show::print(&text)
}

fn one(args: &WakeArgs, scheme: &str, report: &mut Report, bar: &Bar) -> Result<()> {
    let load = LoadArgs {
        size: None,
        window: None,
        iterations: None,
        duration: None,
        warmup: None,
        no_check: false,
        pin: args.pin.clone(),
        wait: WaitArg::Sleep,
    };
    let client = Client::with_child(scheme, &args.fabric, &load)?;
    let cpus = args.pin.cpus()?;
    let each = (args.iterations / TURNS as u64).max(1);
    let (mut ours, mut theirs) = (Histogram::new(), Histogram::new());
    for turn in 0..TURNS {
        stop::check()?;
        bar.tick(turn as f64 / (TURNS + 1) as f64);
        theirs.add(&eventfd_wake(cpus, each)?);
        wakes(&client, each)?.into_iter().for_each(|ns| ours.record(ns as f64));
    }
    report.rows.push(Wakes::of(&format!("kfab {scheme}"), &ours));
    report.rows.push(Wakes::of("eventfd", &theirs));
    report.asleep_cpu_percent.push((scheme.to_owned(), asleep(&client)?));
    Ok(())
}

fn wakes(client: &Client, count: u64) -> Result<Vec<u64>> {
    client.prepare(Request::Wake { count })?;
    for _ in 0..count {
        std::thread::sleep(PAUSE);
        let stamp = clock_ns(ClockId::Monotonic).to_le_bytes();
        client.peer.send(&stamp).wait()?;
        client.endpoint.recv_with().from(&client.peer).post().wait()?;
    }
    match client.reply()? {
        Reply::Woken { ns } => Ok(ns),
        other => Err(unexpected(&other)),
    }
}

/// Processor time in percent.
fn asleep(client: &Client) -> Result<f64> {
    client.prepare(Request::Idle)?;
    std::thread::sleep(SLEEP);
    client.peer.send(b"good morning").wait()?;
    match client.reply()? {
        Reply::Slept { cpu_ns, wall_ns } => Ok(cpu_ns as f64 * 100.0 / wall_ns.max(1) as f64),
        other => Err(unexpected(&other)),
    }
}
