//! `kfab perf wake`: a receiver that sleeps is woken by a message; beside it, in turn, a thread that sleeps on a bare eventfd.
//! Then both sides sleep for a while and say what processor time that cost.

use crate::args::{FabricArgs, LoadArgs, WaitArg};
use crate::bench::figures::Histogram;
use crate::bench::{self, Client, unexpected};
use crate::control::{Reply, Request};
use crate::failure::Result;
use crate::limits::{eventfd_wake, median};
use crate::place::Pin;
use crate::serve::session::{WAKE_LIMIT, clock_ns};
use crate::show::{self, bar::Bar, table::Table, units};
use crate::stop;
use clap::Args;
use rustix::time::ClockId;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Wake-ups in a turn: few, because how deep the processors of a machine sleep changes by the second.
const TURN: u64 = 20;
/// The longest sleep that can be asked for, seconds.
const MAX_SLEEP_S: u64 = WAKE_LIMIT.as_secs() - 5;
/// How long the receiver is left to fall asleep.
const PAUSE: Duration = Duration::from_millis(2);
/// How often a sleeper looks whether it should stop: rarely enough to cost nothing.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
pub(crate) struct WakeArgs {
    #[command(flatten)]
    fabric: FabricArgs,
    /// Wake-ups of each kind
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(4..=100_000))]
    iterations: u64,
    /// How long both sides sleep at the end, whole seconds, 1 to 25
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = asleep_s)]
    asleep: u64,
    /// CPUs of waker and sleeper (A,B), `auto` or `none`
    #[arg(long, value_name = "A,B", default_value = "auto")]
    pin: Pin,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

fn asleep_s(text: &str) -> std::result::Result<u64, String> {
    let s = text.parse().ok().filter(|s| (1..=MAX_SLEEP_S).contains(s));
    s.ok_or_else(|| format!("whole seconds, 1 to {MAX_SLEEP_S}"))
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
    providers: Vec<Sleeper>,
}

/// What was seen of one provider.
#[derive(Serialize)]
struct Sleeper {
    name: String,
    /// The median over all turns of its median beside the eventfd's.
    wake_ratio: f64,
    asleep_s: u64,
    /// Processor time of a whole process that waits in a receive, in percent of the time that it slept.
    receiver_cpu_percent: f64,
    /// The same of a process that has an endpoint and calls nothing.
    idle_cpu_percent: f64,
}

impl Wakes {
    fn of(name: &str, h: &Histogram) -> Wakes {
        let q = |q| h.quantile(q);
        Wakes { name: name.to_owned(), p50_ns: q(0.5), p90_ns: q(0.9), p99_ns: q(0.99), max_ns: h.max() }
    }
}

pub(crate) fn run(args: &WakeArgs) -> Result<()> {
    let mut report = Report { test: "wake", rows: Vec::new(), providers: Vec::new() };
    let schemes = args.fabric.schemes()?;
    bench::check(&args.fabric, &schemes, &args.pin, WaitArg::Sleep)?;
    let mut bar = Bar::new(schemes.len());
    let outcome = schemes.into_iter().try_for_each(|scheme| {
        bar.begin(format!("wake {scheme}"));
        one(args, scheme, &mut report, &bar).map_err(|f| f.during(scheme))?;
        bar.end();
        Ok(())
    });
    drop(bar);
    if !report.rows.is_empty() {
        print(args, &report)?;
    }
    outcome
}

fn print(args: &WakeArgs, report: &Report) -> Result<()> {
    if args.json {
        return show::print_json(report);
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
    for p in &report.providers {
        text += &format!(
            "{}: {:.2} x an eventfd (median over turns); processor time while asleep for {} s: {:.3} % who receives, {:.3} % who is idle\n",
            p.name, p.wake_ratio, p.asleep_s, p.receiver_cpu_percent, p.idle_cpu_percent
        );
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
    let turns = (args.iterations / TURN).max(1);
    let each = args.iterations / turns;
    let (mut ours, mut theirs, mut ratios) = (Histogram::new(), Histogram::new(), Vec::new());
    for turn in 0..turns {
        if turn > 0 && stop::pressed() {
            break;
        }
        bar.tick(turn as f64 / (turns + 1) as f64);
        let bare = eventfd_wake(cpus, each)?;
        let mut kfab = Histogram::new();
        wakes(&client, each)?.into_iter().for_each(|ns| kfab.record(ns as f64));
        ratios.push(kfab.quantile(0.5) / bare.quantile(0.5).max(1.0));
        theirs.add(&bare);
        ours.add(&kfab);
    }
    if !ratios.is_empty() {
        report.rows.push(Wakes::of(&format!("kfab {scheme}"), &ours));
        report.rows.push(Wakes::of("eventfd", &theirs));
    }
    stop::check()?;
    let (receiver_cpu_percent, idle_cpu_percent) = asleep(&client, Duration::from_secs(args.asleep))?;
    report.providers.push(Sleeper {
        name: scheme.to_owned(),
        wake_ratio: median(ratios),
        asleep_s: args.asleep,
        receiver_cpu_percent,
        idle_cpu_percent,
    });
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

/// Processor time in percent, of the server in its receive and of this process.
fn asleep(client: &Client, time: Duration) -> Result<(f64, f64)> {
    client.prepare(Request::Idle)?;
    let (cpu, wall) = (clock_ns(ClockId::ProcessCPUTime), clock_ns(ClockId::Monotonic));
    let until = Instant::now() + time;
    while Instant::now() < until {
        stop::check()?;
        std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    let percent = |cpu_ns: u64, wall_ns: u64| cpu_ns as f64 * 100.0 / wall_ns.max(1) as f64;
    let mine = percent(clock_ns(ClockId::ProcessCPUTime) - cpu, clock_ns(ClockId::Monotonic) - wall);
    client.peer.send(b"good morning").wait()?;
    match client.reply()? {
        Reply::Slept { cpu_ns, wall_ns } => Ok((percent(cpu_ns, wall_ns), mine)),
        other => Err(unexpected(&other)),
    }
}
