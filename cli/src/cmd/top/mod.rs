//! `kfab top`: what a running endpoint does, live on a terminal or as one snapshot.

mod model;
mod screen;

use crate::failure::{Failure, Result};
use clap::Args;
use kfab::MONITOR_PREFIX;
use model::{Snapshot, View};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

/// How long an endpoint may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// Process id, or a part of the process's or socket's name; without one, the only endpoint there is
    which: Option<String>,
    /// One snapshot as text; rates are over one interval
    #[arg(long)]
    once: bool,
    /// One snapshot as JSON
    #[arg(long)]
    json: bool,
    /// Milliseconds between two looks
    #[arg(long, value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    interval: u64,
}

/// An endpoint that can be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    name: String,
    pid: u32,
    command: String,
}

/// A connection to one.
struct Watch {
    stream: BufReader<UnixStream>,
    name: String,
}

pub(crate) fn run(args: &TopArgs) -> Result<()> {
    let found = choose(&list()?, args.which.as_deref())?;
    let mut watch = Watch::open(&found.name)?;
    let interval = Duration::from_millis(args.interval);
    if args.json {
        let mut document = watch.read()?;
        model::null_unknown(&mut document);
        return crate::show::print_json(&document);
    }
    if args.once {
        let mut view = View::new(watch.snapshot()?, Instant::now());
        std::thread::sleep(interval);
        view.advance(watch.snapshot()?, Instant::now());
        return crate::show::print(&screen::plain(&view, &found.command));
    }
    screen::run(&mut watch, &found.command, interval)
}

impl Watch {
    fn open(name: &str) -> Result<Watch> {
        let connect = || {
            let s = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
            s.set_read_timeout(Some(PATIENCE))?;
            s.set_write_timeout(Some(PATIENCE))?;
            Ok(s)
        };
        let stream = connect().map_err(|e: std::io::Error| Failure::unavailable(format!("{name}: {e}")))?;
        Ok(Watch { stream: BufReader::new(stream), name: name.to_owned() })
    }

    /// The next snapshot's text.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let r = self.stream.get_mut().write_all(b"stats\n").and_then(|()| self.stream.read_line(&mut line));
        match r {
            Ok(n) if n > 0 => Ok(line),
            Err(e) if !matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                Err(Failure::unavailable(format!("{}: no answer: {e}", self.name)))
            }
            _ => Err(Failure::unavailable(format!(
                "{}: the endpoint is gone, or belongs to another user",
                self.name
            ))),
        }
    }

    fn snapshot(&mut self) -> Result<Snapshot> {
        self.read()
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.line()?;
        serde_json::from_str(&line)
            .map_err(|e| Failure::failed(format!("{}: not a snapshot: {e}", self.name)))
    }
}

/// All endpoints of this machine (of this network namespace) that serve their counters.
fn list() -> Result<Vec<Found>> {
    let path = "/proc/net/unix";
    let text = std::fs::read_to_string(path).map_err(|e| Failure::unavailable(format!("{path}: {e}")))?;
    Ok(parse(&text, |pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
    }))
}

fn parse(text: &str, command_of: impl Fn(u32) -> String) -> Vec<Found> {
    let name_of = |line: &str| line.split_whitespace().nth(7)?.strip_prefix('@').map(str::to_owned);
    let listening = |line: &&str| line.split_whitespace().nth(3) == Some("00010000");
    let mut all: Vec<Found> = Vec::new();
    for name in text.lines().filter(listening).filter_map(name_of) {
        let pid =
            name.strip_prefix(MONITOR_PREFIX).and_then(|r| r.split('.').next()).and_then(|p| p.parse().ok());
        if let Some(pid) = pid {
            all.push(Found { command: command_of(pid), pid, name });
        }
    }
    all.sort_by(|a, b| (a.pid, &a.name).cmp(&(b.pid, &b.name)));
    all
}

fn choose(all: &[Found], which: Option<&str>) -> Result<Found> {
    let is = |f: &&Found| which.is_none_or(|w| w.parse() == Ok(f.pid) || f.name == w);
    let fits = |f: &&Found| which.is_some_and(|w| f.name.contains(w) || f.command.contains(w));
    let mut fitting: Vec<&Found> = all.iter().filter(is).collect();
    if fitting.is_empty() {
        fitting = all.iter().filter(fits).collect();
    }
    let shown = |list: &[&Found]| {
        list.iter().map(|f| format!("\n  {} ({}, pid {})", f.name, f.command, f.pid)).collect::<String>()
    };
    match (fitting[..].len(), which) {
        (1, _) => Ok(fitting[0].clone()),
        (0, Some(w)) if !all.is_empty() => {
            let list = shown(&all.iter().collect::<Vec<_>>());
            Err(Failure::unavailable(format!("no endpoint fits {w:?}; there are:{list}")))
        }
        (0, _) => Err(Failure::unavailable("no endpoint of this machine serves its counters")
            .hint("start `kfab serve`, or call `Monitor::serve` in your program")),
        _ => Err(Failure::usage(format!(
            "say which endpoint (a process id or a socket's name):{}",
            shown(&fitting)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIX: &str = "Num       RefCount Protocol Flags    Type St Inode Path
0000: 00000002 00000000 00010000 0001 01 11 @kfab-stats.20.0
0000: 00000002 00000000 00010000 0001 01 12 @kfab-stats.7.1
0000: 00000003 00000000 00000000 0001 03 13 @kfab-stats.7.1
0000: 00000002 00000000 00010000 0001 01 14 @kfab-stats.x.1
0000: 00000002 00000000 00010000 0001 01 15 /run/other
";

    #[test]
    fn endpoints_are_found_and_chosen() {
        let all = parse(UNIX, |pid| format!("prog{pid}"));
        assert_eq!(
            all.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
            ["kfab-stats.7.1", "kfab-stats.20.0"]
        );
        assert_eq!(choose(&all, Some("20")).unwrap().pid, 20);
        assert_eq!(choose(&all, Some("prog7")).unwrap().pid, 7);
        assert_eq!(choose(&all, Some("stats.20")).unwrap().pid, 20);
        assert_eq!(choose(&all, Some("kfab-stats.7.1")).unwrap().pid, 7);
        assert!(choose(&all, Some("kfab-stats")).unwrap_err().what.contains("kfab-stats.20.0"));
        // What it is goes before what it is a part of.
        let more = parse(UNIX, |_| "prog20".to_owned());
        assert_eq!(choose(&more, Some("20")).unwrap().pid, 20);
        assert!(choose(&all, None).unwrap_err().what.contains("kfab-stats.20.0"));
        assert!(choose(&all, Some("99")).unwrap_err().what.contains("prog7"));
        assert!(choose(&[], None).unwrap_err().hint.is_some());
    }
}
