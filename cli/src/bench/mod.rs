//! The client's side of a measurement: a connection to a server (its own child or a `kfab serve`) and the tests it can run.
//!
//! Every test runs in rounds of a known number of operations, each about [`ROUND`] long, so that Ctrl-C and the progress bar have
//! their say and both sides always agree on what is to come.

pub(crate) mod figures;
mod latency;
mod onesided;
mod stream;

use crate::args::{FabricArgs, LoadArgs, WaitArg};
use crate::child::PeerProcess;
use crate::control::{self, REPLY, REQUEST, Reply, Request, VERSION};
use crate::failure::{Failure, INTERRUPTED, Result};
use crate::place::Pin;
use crate::stop;
use figures::Row;
use kfab::{Endpoint, Kind, Peer};
use std::time::{Duration, Instant};

/// About how long a round takes at most, and at least.
const ROUND: Duration = Duration::from_millis(100);
const ROUND_MIN: Duration = Duration::from_millis(10);
/// Operations of the first round.
const FIRST: u64 = 4;
/// How long a warm-up takes that has no number.
const SETTLE: Duration = Duration::from_millis(30);
/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    /// Half a round trip.
    Latency,
    /// Bytes in one direction.
    Bandwidth,
    /// Messages in one direction.
    Rate,
    /// One-sided reads of a window.
    Read,
    /// One-sided writes to a window.
    Write,
}

impl Test {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Test::Latency => "lat",
            Test::Bandwidth => "bw",
            Test::Rate => "rate",
            Test::Read => "read",
            Test::Write => "write",
        }
    }

    /// Operations under way, if nobody says.
    pub(crate) fn window(self) -> usize {
        match self {
            Test::Latency => 1,
            Test::Rate => 64,
            _ => 16,
        }
    }
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Length {
    Iterations(u64),
    Duration(Duration),
}

/// One test of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) size: usize,
    pub(crate) window: usize,
    pub(crate) length: Length,
    pub(crate) warmup: Option<u64>,
    pub(crate) check: bool,
}

impl Load {
    /// About how long a round should take: a small part of the whole, because on a busy machine it takes longer.
    fn round(&self) -> Duration {
        match self.length {
            Length::Iterations(_) => ROUND,
            Length::Duration(d) => (d / 20).clamp(ROUND_MIN, ROUND),
        }
    }

    /// As the command line says, with `seconds` where it does not.
    pub(crate) fn of(args: &LoadArgs, size: usize, window: usize, seconds: f64) -> Load {
        let length = match (args.iterations, args.duration) {
            (Some(n), _) => Length::Iterations(n),
            (None, Some(d)) => Length::Duration(d),
            _ => Length::Duration(Duration::from_secs_f64(seconds)),
        };
        Load { size, window, length, warmup: args.warmup, check: !args.no_check }
    }
}

/// Whether the command line can work over all these providers, before anything is measured over the first.
pub(crate) fn check(fabric: &FabricArgs, schemes: &[&str], pin: &Pin, wait: WaitArg) -> Result<()> {
    fabric.key()?;
    pin.cpus()?;
    fabric.check_devices(schemes, wait)
}

/// A connection to a server.
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    pub(crate) peer: Peer,
    /// The provider under test; `None` where the fabric chose.
    pub(crate) scheme: Option<String>,
    /// The child, if the server is one: dropped last.
    _process: Option<PeerProcess>,
}

impl Client {
    /// Starts a child over one provider and connects to it. Both are pinned.
    pub(crate) fn with_child(scheme: &str, fabric: &FabricArgs, load: &LoadArgs) -> Result<Client> {
        let cpus = load.pin.cpus()?;
        let process = PeerProcess::start(scheme, fabric, load.wait, cpus.map(|c| c.1))?;
        crate::place::pin(cpus.map(|c| c.0));
        let endpoint = fabric.fabric()?.open(fabric.config(&[scheme], load.wait))?;
        let address = process.address.clone();
        Client::connect(endpoint, &address, Some(scheme.to_owned()), Some(process))
    }

    /// Connects to a server by its address, over the given providers (none: all). This side is pinned; the server is where it is.
    pub(crate) fn with_server(address: &str, fabric: &FabricArgs, load: &LoadArgs) -> Result<Client> {
        let schemes = fabric.schemes()?;
        crate::place::pin(load.pin.cpus()?.map(|c| c.0));
        let endpoint = fabric.fabric()?.open(fabric.config(&schemes, load.wait))?;
        Client::connect(endpoint, address, None, None)
    }

    fn connect(
        endpoint: Endpoint,
        address: &str,
        scheme: Option<String>,
        process: Option<PeerProcess>,
    ) -> Result<Client> {
        let peer = endpoint.peer(address)?;
        let client = Client { endpoint, peer, scheme, _process: process };
        let op = client.peer.send_tagged(REQUEST, &to_json(&Request::Hello { version: VERSION })?[..]);
        finish(op, ANSWER)?;
        match client.reply()? {
            Reply::Hello { version: VERSION, .. } => Ok(client),
            other => Err(unexpected(&other)),
        }
    }

    /// The provider that carries the traffic now.
    pub(crate) fn via(&self) -> String {
        if let Some(s) = &self.scheme {
            return s.clone();
        }
        let stats = self.endpoint.stats();
        let rails = self.peer.info().map(|i| i.rails).unwrap_or_default();
        let mut names: Vec<String> = Vec::new();
        for rail in rails.iter().filter(|r| r.active) {
            let way = stats.ports.get(rail.port).and_then(|p| p.ways.first());
            let scheme = way.and_then(|w| w.split_once(':')).map_or("?", |(s, _)| s);
            if !names.iter().any(|n| n == scheme) {
                names.push(scheme.to_owned());
            }
        }
        names.join("+")
    }

    /// Sends a request.
    pub(crate) fn request(&self, request: Request) -> Result<()> {
        control::send(&self.peer, REQUEST, &request)
    }

    /// Waits for a reply; Ctrl-C ends the waiting.
    pub(crate) fn reply(&self) -> Result<Reply> {
        let m = finish(self.endpoint.recv_with().from(&self.peer).tag(REPLY, 0).post(), ANSWER)?;
        match control::parse(&m).map_err(|e| Failure::failed(format!("the server's reply is {e}")))? {
            Reply::Refused { why } => Err(Failure::failed(format!("the server refuses: {why}"))),
            reply => Ok(reply),
        }
    }

    /// A request that is answered by `Ready`.
    pub(crate) fn prepare(&self, request: Request) -> Result<()> {
        self.request(request)?;
        match self.reply()? {
            Reply::Ready => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Runs one test of one size. On Ctrl-C the row has the figures so far, if there are any.
    pub(crate) fn run(&self, test: Test, load: &Load, tick: &mut dyn FnMut(f64)) -> Result<Row> {
        let mut row = match test {
            Test::Latency => latency::run(self, load, tick),
            Test::Bandwidth | Test::Rate => stream::run(self, load, tick),
            Test::Read | Test::Write => onesided::run(self, test, load, tick),
        }?;
        row.test = test.name();
        row.provider = self.via();
        row.window = load.window;
        Ok(row)
    }
}

pub(crate) fn unexpected(reply: &Reply) -> Failure {
    Failure::failed(format!("the server answers {reply:?}, which is no answer to the request"))
}

fn to_json(request: &Request) -> Result<Vec<u8>> {
    serde_json::to_vec(request).map_err(|e| Failure::failed(e.to_string()))
}

/// Waits for an operation for at most `limit`, with an eye on Ctrl-C.
pub(crate) fn finish<T: kfab::Finish + Unpin>(mut op: kfab::Op<T>, limit: Duration) -> Result<T> {
    let until = Instant::now() + limit;
    for round in 0u64.. {
        match op.try_take() {
            Ok(r) => return Ok(r?),
            Err(o) => op = o,
        }
        if round % 1024 == 0 {
            stop::check()?;
            if Instant::now() > until {
                let e = op.cancel().err().filter(|e| e.kind() != Kind::Canceled);
                return Err(e.map_or_else(|| no_answer(limit), Failure::from));
            }
        }
        if round > 20_000 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Err(no_answer(limit))
}

fn no_answer(limit: Duration) -> Failure {
    Failure::unavailable(format!("the server does not answer within {} s", limit.as_secs()))
        .hint("it serves one client at a time; is another one busy with it?")
}

/// Runs `round(count)` again and again: first to settle, then for as long as the load says. Returns early, with what there is, on
/// Ctrl-C. `round` is told whether its figures count.
pub(crate) fn rounds(
    load: &Load,
    tick: &mut dyn FnMut(f64),
    mut round: impl FnMut(u64, bool) -> Result<Duration>,
) -> Result<()> {
    let mut per_op = settle(load, &mut round)?;
    let (started, mut done, mut any) = (Instant::now(), 0, false);
    loop {
        let fits = (load.round().as_nanos() as f64 / per_op.max(1.0)) as u64;
        let (left, part) = match load.length {
            Length::Iterations(n) => (n - done, done as f64 / n as f64),
            Length::Duration(d) => {
                let left = d.saturating_sub(started.elapsed());
                let n = (left.as_nanos() as f64 / per_op.max(1.0)) as u64;
                (if any { n } else { n.max(1) }, 1.0 - left.as_secs_f64() / d.as_secs_f64())
            }
        };
        tick(part.clamp(0.0, 1.0));
        let count = left.min(fits.max(1)).min(control::MAX_COUNT);
        if count == 0 {
            return Ok(());
        }
        if stop::pressed() {
            return if any { Ok(()) } else { Err(Failure::interrupted()) };
        }
        let took = match round(count, true) {
            // Interrupted in the middle: the rounds before count.
            Err(f) if f.code == INTERRUPTED && any => return Ok(()),
            r => r?,
        };
        per_op = took.as_nanos() as f64 / count as f64;
        done += count;
        any = true;
    }
}

/// Warms up; nanoseconds per operation.
fn settle(load: &Load, round: &mut impl FnMut(u64, bool) -> Result<Duration>) -> Result<f64> {
    if let Some(n) = load.warmup.filter(|n| *n > 0) {
        return warm_up(load, n, round);
    }
    let (mut count, started) = (FIRST, Instant::now());
    loop {
        stop::check()?;
        let took = round(count, false)?;
        let settled = took * 3 > SETTLE && started.elapsed() > SETTLE;
        if load.warmup == Some(0) || settled || took > ROUND || started.elapsed() > 10 * SETTLE {
            return Ok(took.as_nanos() as f64 / count as f64);
        }
        count = if took * 4 > SETTLE { count } else { count * 4 };
    }
}

/// A warm-up of a known length, in rounds as the measurement.
fn warm_up(load: &Load, n: u64, round: &mut impl FnMut(u64, bool) -> Result<Duration>) -> Result<f64> {
    let (mut left, mut next) = (n, FIRST);
    loop {
        stop::check()?;
        let count = next.min(left).min(control::MAX_COUNT);
        let per_op = round(count, false)?.as_nanos() as f64 / count as f64;
        left -= count;
        if left == 0 {
            return Ok(per_op);
        }
        next = ((load.round().as_nanos() as f64 / per_op.max(1.0)) as u64).max(1);
    }
}
