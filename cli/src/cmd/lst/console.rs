//! The console's state in a node: the session, groups of nodes, batches of tests; and what is asked of it.
//!
//! One command at a time changes it. Loads need no session of the console's own and run beside.

use crate::cmd::lnet::{LoadWords, LstRequest, TestWords};
use crate::failure::{Failure, Result};
use crate::stop;
use futures_lite::future::block_on;
use lnet_shim::command;
use lnet_shim::nid::{Nid, ProcessId};
use lnet_shim::node::Node;
use lnet_shim::selftest::load::{LoadSpec, Progress};
use lnet_shim::selftest::{Console, Distribute, NodeStat, TestSpec};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

/// How often progress is told.
const BEAT: Duration = Duration::from_millis(200);
/// The shortest pause between two looks whether a batch has ended, and the part of its time that a pause is at most: so its end is seen
/// soon enough not to matter.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOKS: u32 = 20;
/// How long a command waits for another one's end.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most groups, batches, tests of a batch.
const MAX_NAMES: usize = 1024;

/// How far, and a word on it; `false`: whoever asked wants to know no more than the end.
pub(crate) type Say<'a> = dyn FnMut(f64, &str) -> bool + 'a;

/// The console of a node.
pub(crate) struct Consoles {
    node: Node,
    session: Mutex<Option<Session>>,
}

struct Session {
    name: String,
    console: Console,
    force: bool,
    groups: Vec<(String, Vec<ProcessId>)>,
    batches: Vec<Batch>,
}

struct Batch {
    name: String,
    tests: Vec<Test>,
    /// It was begun, and nobody knows yet that it has ended.
    begun: bool,
}

struct Test {
    words: TestWords,
    from: String,
    to: String,
    clients: Vec<ProcessId>,
    servers: Vec<ProcessId>,
}

/// Nodes that have not answered, and why. They are not asked again: each question would take its whole time.
#[derive(Default)]
struct Silent(Vec<(ProcessId, lnet_shim::Error)>);

impl Silent {
    /// Those of `nodes` that answer still.
    fn rest(&self, nodes: &[ProcessId]) -> Vec<ProcessId> {
        nodes.iter().copied().filter(|n| self.0.iter().all(|(silent, _)| silent != n)).collect()
    }

    /// What came of a question to each of `nodes`.
    fn answers<T>(
        &mut self,
        nodes: Vec<ProcessId>,
        results: Vec<lnet_shim::Result<T>>,
    ) -> Vec<(ProcessId, T)> {
        let mut answers = Vec::new();
        for (node, result) in nodes.into_iter().zip(results) {
            match result {
                Ok(answer) => answers.push((node, answer)),
                Err(error) => self.0.push((node, error)),
            }
        }
        answers
    }

    /// Where all must answer.
    fn none(self) -> Result<()> {
        self.0.into_iter().next().map_or(Ok(()), |(_, error)| Err(failure(error)))
    }

    fn show(&self) -> Value {
        let one = |(node, why): &(ProcessId, lnet_shim::Error)| json!({ "nid": node.nid.to_string(), "why": why.to_string() });
        self.0.iter().map(one).collect()
    }
}

fn failure(error: lnet_shim::Error) -> Failure {
    crate::cmd::lnet::failure(error)
}

fn nid(text: &str) -> Result<Nid> {
    text.parse().map_err(|e: lnet_shim::nid::ParseError| Failure::usage(format!("NID {text:?}: {e}")))
}

fn seconds(what: &str, s: f64) -> Result<Duration> {
    crate::cmd::lnet::seconds(what, s)
}

/// Bytes of bulk.
fn size(text: &str) -> Result<u32> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(1 << 10),
        "m" | "mib" => Some(1 << 20),
        _ => None,
    };
    let bytes = digits.parse::<u32>().ok().zip(unit).and_then(|(n, unit)| n.checked_mul(unit));
    bytes
        .filter(|n| (1..=1 << 20).contains(n))
        .ok_or_else(|| Failure::usage(format!("--size: {text:?} is not 1 B to 1 MiB")))
}

fn spec(words: &TestWords) -> Result<TestSpec> {
    if !(1..=256).contains(&words.concurrency) {
        return Err(Failure::usage(format!(
            "--concurrency: {} is out of range: 1 to 256",
            words.concurrency
        )));
    }
    Ok(TestSpec {
        kind: words.test.parse().map_err(failure)?,
        size: size(&words.size)?,
        check: words.check.parse().map_err(failure)?,
        concurrency: words.concurrency,
        loops: words.loops,
        distribute: words.distribute.parse().map_err(failure)?,
    })
}

impl Consoles {
    pub(crate) fn new(node: Node) -> Consoles {
        Consoles { node, session: Mutex::new(None) }
    }

    /// The session, unless another command is at it for longer than a call to a node takes: `run --for` and `stat` take their time.
    fn lock(&self) -> Result<MutexGuard<'_, Option<Session>>> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.session.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => {
                    let busy = Failure::failed("another command is at work on this session");
                    return Err(
                        busy.hint("Ctrl-C ends it there; a batch runs beside other commands without --for")
                    );
                }
            }
        }
    }

    /// Does what is asked.
    pub(crate) fn answer(&self, request: &LstRequest, say: &mut Say<'_>) -> Result<Value> {
        match request {
            LstRequest::Load(words) => return self.load(words, say),
            LstRequest::SessionNew { name, timeout_s, force } => {
                return self.begin(name, seconds("--timeout", *timeout_s)?, *force);
            }
            LstRequest::SessionEnd => return self.end(),
            LstRequest::SessionShow => {
                let show = |s: &Session| {
                    let nodes = distinct(s.groups.iter().flat_map(|g| &g.1));
                    json!({ "name": s.name, "nodes": nodes.len(), "batches": s.batches.len() })
                };
                return Ok(self.lock()?.as_ref().map_or(Value::Null, show));
            }
            _ => {}
        }
        let mut guard = self.lock()?;
        let none = || Failure::failed("no session").hint("begin one with `kfab lst session new NAME`");
        let session = guard.as_mut().ok_or_else(none)?;
        match request {
            LstRequest::GroupAdd { name, nids } => session.group_add(name, nids),
            LstRequest::GroupList => Ok(session.group_list()),
            LstRequest::BatchAdd { name } => session.batch_add(name),
            LstRequest::BatchList => Ok(session.batch_list()),
            LstRequest::TestAdd { batch, from, to, test } => session.test_add(batch, from, to, test),
            LstRequest::Run { batch, seconds: s } => {
                let time = s.map(|s| seconds("--for", s)).transpose()?;
                session.run(batch, time, say)
            }
            LstRequest::Stop { batch } => session.stop(batch),
            LstRequest::Stat { group, seconds: s } => {
                let nodes = session.group(group)?.to_vec();
                session.watch(&nodes, seconds("--interval", *s)?, say)
            }
            _ => Ok(Value::Null),
        }
    }

    fn begin(&self, name: &str, timeout: Duration, force: bool) -> Result<Value> {
        let mut guard = self.lock()?;
        if let Some(s) = guard.as_ref() {
            let what = format!("there is a session already: {}", s.name);
            return Err(Failure::failed(what).hint("end it with `kfab lst session end`"));
        }
        let console = Console::new(self.node.clone(), name, timeout);
        let (groups, batches) = Default::default();
        *guard = Some(Session { name: name.to_owned(), console, force, groups, batches });
        Ok(Value::Null)
    }

    fn end(&self) -> Result<Value> {
        let Some(session) = self.lock()?.take() else { return Err(Failure::failed("no session")) };
        block_on(session.console.end()).map_err(failure)?;
        Ok(Value::Null)
    }

    /// A session and a test from this node, with latencies.
    fn load(&self, words: &LoadWords, say: &mut Say<'_>) -> Result<Value> {
        let nids = words.nids.iter().map(|t| nid(t)).collect::<Result<Vec<Nid>>>()?;
        let TestSpec { kind, size, check, concurrency, loops, distribute } = spec(&words.test)?;
        if distribute != Distribute::All {
            let what = "--distribute: a load has one client, which calls all nodes";
            return Err(Failure::usage(what).hint("with more clients: `kfab lst test add`"));
        }
        let duration = seconds("--duration", words.duration)?;
        let timeout = seconds("--timeout", words.timeout)?;
        let spec =
            LoadSpec { kind, size, check, concurrency, loops, duration, timeout, stop_on_error: false };
        let progress = Progress::default();
        std::thread::scope(|scope| {
            let load = scope.spawn(|| command::lst(&self.node, &nids, spec, words.force, &progress));
            let started = Instant::now();
            while !load.is_finished() {
                std::thread::sleep(BEAT.min(duration));
                let calls = progress.calls.load(Ordering::Relaxed);
                let text = format!("{calls} RPCs, {} errors", progress.errors.load(Ordering::Relaxed));
                let part = started.elapsed().as_secs_f64() / duration.as_secs_f64();
                if !say(part, &text) || stop::pressed() {
                    progress.stop.store(true, Ordering::Relaxed);
                }
            }
            let show = load.join().map_err(|_| Failure::failed("the load panicked"))?.map_err(failure)?;
            serde_json::to_value(&show).map_err(|e| Failure::failed(e.to_string()))
        })
    }
}

impl Session {
    fn group(&self, name: &str) -> Result<&[ProcessId]> {
        let found = self.groups.iter().find(|g| g.0 == name);
        found.map(|g| &g.1[..]).ok_or_else(|| Failure::failed(format!("no such group: {name}")))
    }

    fn group_add(&mut self, name: &str, nids: &[String]) -> Result<Value> {
        let nids = nids.iter().map(|t| nid(t)).collect::<Result<Vec<Nid>>>()?;
        if self.groups.iter().any(|g| g.0 == name) || self.groups.len() >= MAX_NAMES {
            return Err(Failure::failed(format!("there is a group {name} already, or too many")));
        }
        let nodes: Vec<ProcessId> = nids.into_iter().map(ProcessId::lnet).collect();
        for node in &nodes {
            // A node may be in several groups, but joins once.
            if !self.groups.iter().any(|g| g.1.contains(node)) {
                block_on(self.console.add_node(*node, self.force)).map_err(failure)?;
            }
        }
        self.groups.push((name.to_owned(), nodes));
        Ok(Value::Null)
    }

    fn group_list(&self) -> Value {
        let one = |(name, nodes): &(String, Vec<ProcessId>)| {
            let nids: Vec<String> = nodes.iter().map(|n| n.nid.to_string()).collect();
            json!({ "name": name, "nids": nids })
        };
        self.groups.iter().map(one).collect()
    }

    /// The place of a batch; its number on the nodes is one more.
    fn batch(&self, name: &str) -> Result<usize> {
        let found = self.batches.iter().position(|b| b.name == name);
        found.ok_or_else(|| Failure::failed(format!("no such batch: {name}")))
    }

    fn batch_add(&mut self, name: &str) -> Result<Value> {
        if self.batch(name).is_ok() || self.batches.len() >= MAX_NAMES {
            return Err(Failure::failed(format!("there is a batch {name} already, or too many")));
        }
        self.batches.push(Batch { name: name.to_owned(), tests: Vec::new(), begun: false });
        Ok(Value::Null)
    }

    fn batch_list(&mut self) -> Value {
        let test = |t: &Test| {
            let w = &t.words;
            json!({
                "test": w.test, "size": w.size, "check": w.check, "concurrency": w.concurrency,
                "loops": w.loops, "distribute": w.distribute, "from": t.from, "to": t.to,
            })
        };
        let count = self.batches.len();
        let one = |at: usize| {
            let mut silent = Silent::default();
            let running = self.running(at, &mut silent);
            let b = &self.batches[at];
            let tests: Vec<Value> = b.tests.iter().map(test).collect();
            json!({ "name": b.name, "tests": tests, "running": running, "silent": silent.show() })
        };
        (0..count).map(one).collect()
    }

    fn test_add(&mut self, batch: &str, from: &str, to: &str, words: &TestWords) -> Result<Value> {
        let at = self.batch(batch)?;
        let (clients, servers) = (self.group(from)?.to_vec(), self.group(to)?.to_vec());
        self.rests(at)?;
        if self.batches[at].tests.len() >= MAX_NAMES {
            return Err(Failure::failed(format!("batch {batch} has {MAX_NAMES} tests: that is the most")));
        }
        let spec = spec(words)?;
        block_on(self.console.add_test(at as u64 + 1, &clients, &servers, spec)).map_err(failure)?;
        let (words, from, to) = (words.clone(), from.to_owned(), to.to_owned());
        self.batches[at].tests.push(Test { words, from, to, clients, servers });
        Ok(Value::Null)
    }

    fn clients(&self, at: usize) -> Vec<ProcessId> {
        distinct(self.batches[at].tests.iter().flat_map(|t| &t.clients))
    }

    fn servers(&self, at: usize) -> Vec<ProcessId> {
        distinct(self.batches[at].tests.iter().flat_map(|t| &t.servers))
    }

    /// An error for a batch that runs.
    fn rests(&mut self, at: usize) -> Result<()> {
        match self.running(at, &mut Silent::default()) {
            0 => Ok(()),
            _ => Err(Failure::failed(format!("batch {} is running", self.batches[at].name))
                .hint("stop it with `kfab lst stop`")),
        }
    }

    /// How many tests of a batch run. One may have ended by itself.
    fn running(&mut self, at: usize, silent: &mut Silent) -> u32 {
        let running = if self.batches[at].begun { self.active(at, silent) } else { 0 };
        self.batches[at].begun = running > 0;
        running
    }

    /// How many tests of a batch run on those clients that answer.
    fn active(&self, at: usize, silent: &mut Silent) -> u32 {
        let clients = silent.rest(&self.clients(at));
        let active = block_on(self.console.active(at as u64 + 1, &clients));
        silent.answers(clients, active).iter().map(|(_, n)| n).sum()
    }

    /// Runs a batch. With a time: until that is over or all tests have ended, and then stops it; what the servers did meanwhile. A node
    /// that falls silent is told of and ends nothing.
    fn run(&mut self, batch: &str, time: Option<Duration>, say: &mut Say<'_>) -> Result<Value> {
        let at = self.batch(batch)?;
        if self.batches[at].tests.is_empty() {
            return Err(Failure::failed(format!("batch {batch} has no test")));
        }
        self.rests(at)?;
        let (servers, clients, mut silent) = (self.servers(at), self.clients(at), Silent::default());
        let (before, clients_before) = (self.look(&servers, &mut silent), self.look(&clients, &mut silent));
        std::mem::take(&mut silent).none()?;
        let started = Instant::now();
        block_on(self.console.run(at as u64 + 1, &clients)).map_err(failure)?;
        self.batches[at].begun = true;
        let Some(time) = time else { return Ok(json!({ "running": true, "nodes": [] })) };
        let mut told = started;
        while started.elapsed() < time && !stop::pressed() && self.active(at, &mut silent) > 0 {
            let left = time.saturating_sub(started.elapsed());
            std::thread::sleep((started.elapsed() / LOOKS).clamp(FIRST_LOOK, BEAT).min(left));
            if told.elapsed() < BEAT {
                continue;
            }
            told = Instant::now();
            let rpcs: u64 = figures(&before, &self.look(&servers, &mut silent)).map(|f| f.rpcs).sum();
            let part = started.elapsed().as_secs_f64() / time.as_secs_f64();
            if !say(part, &format!("{rpcs} RPCs, {} nodes silent", silent.0.len())) {
                break;
            }
        }
        let (after, took) = (self.look(&servers, &mut silent), started.elapsed());
        let left = self.stop(batch).err().map(|f| f.what);
        let end = Instant::now() + Duration::from_secs(60);
        while self.active(at, &mut silent) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let (errors, latencies) = self.client_figures(at, &clients_before, &mut silent);
        Ok(json!({
            "seconds": took.as_secs_f64(), "client_errors": errors, "clients": latencies, "nodes": rows(&before, &after, took),
            "silent": silent.show(), "not_stopped": left,
        }))
    }

    fn stop(&mut self, batch: &str) -> Result<Value> {
        let at = self.batch(batch)?;
        block_on(self.console.stop(at as u64 + 1, &self.clients(at))).map_err(failure)?;
        Ok(Value::Null)
    }

    /// Calls of a batch that failed, as its clients count them, and latencies as they saw them. Lustre's count all batches as one: what
    /// has been added to that since `before`.
    fn client_figures(&self, at: usize, before: &Look, silent: &mut Silent) -> (u64, Vec<Value>) {
        let clients = silent.rest(&self.clients(at));
        let ask = |node: &ProcessId| block_on(self.console.batch_stat(*node, at as u64 + 1));
        let all = clients.iter().map(ask).collect();
        let (mut errors, mut shown) = (0, Vec::new());
        for (node, stat) in silent.answers(clients, all) {
            errors += match stat {
                Some(stat) => stat.errors,
                None => figures(before, &self.look(&[node], silent)).map(|f| f.failed).sum(),
            };
            let latency = stat.and_then(|s| s.latency);
            shown.push(json!({ "nid": node.nid.to_string(), "latency_us": latency }));
        }
        (errors, shown)
    }

    /// The counters of those nodes that answer.
    fn look(&self, nodes: &[ProcessId], silent: &mut Silent) -> Vec<(ProcessId, NodeStat)> {
        let nodes = silent.rest(nodes);
        let stats = block_on(self.console.stats(&nodes));
        silent.answers(nodes, stats)
    }

    /// What nodes do in a while.
    fn watch(&self, nodes: &[ProcessId], time: Duration, say: &mut Say<'_>) -> Result<Value> {
        let mut silent = Silent::default();
        let (before, started) = (self.look(nodes, &mut silent), Instant::now());
        std::mem::take(&mut silent).none()?;
        while started.elapsed() < time && !stop::pressed() {
            std::thread::sleep(BEAT.min(time.saturating_sub(started.elapsed())));
            if !say(started.elapsed().as_secs_f64() / time.as_secs_f64(), "looking") {
                break;
            }
        }
        let (after, took) = (self.look(nodes, &mut silent), started.elapsed());
        Ok(
            json!({ "seconds": took.as_secs_f64(), "nodes": rows(&before, &after, took), "silent": silent.show() }),
        )
    }
}

type Look = [(ProcessId, NodeStat)];

/// What a node has done between two looks.
struct Figures {
    node: ProcessId,
    /// Calls it served.
    rpcs: u64,
    /// Bytes put, which clients read.
    put: u64,
    /// Bytes got, which clients wrote.
    got: u64,
    /// Replies that could not be sent.
    errors: u64,
    /// Requests that it had no room for or did not understand.
    dropped: u64,
    /// Calls of its own client tests that failed.
    failed: u64,
}

/// Of each node that answered both times. The counters wrap.
fn figures<'a>(before: &'a Look, after: &'a Look) -> impl Iterator<Item = Figures> + use<'a> {
    let more = |a: u32, b: u32| u64::from(a.wrapping_sub(b));
    after.iter().filter_map(move |(node, a)| {
        let (_, b) = before.iter().find(|(n, _)| n == node)?;
        Some(Figures {
            node: *node,
            rpcs: more(a.rpc.received, b.rpc.received),
            put: a.rpc.bulk_put.wrapping_sub(b.rpc.bulk_put),
            got: a.rpc.bulk_get.wrapping_sub(b.rpc.bulk_get),
            errors: more(a.rpc.errors, b.rpc.errors),
            dropped: more(a.rpc.dropped, b.rpc.dropped),
            failed: more(a.framework.brw_errors, b.framework.brw_errors)
                + more(a.framework.ping_errors, b.framework.ping_errors),
        })
    })
}

fn rows(before: &Look, after: &Look, took: Duration) -> Vec<Value> {
    let per_second = |n: u64| n as f64 / took.as_secs_f64();
    let row = |f: Figures| {
        json!({
            "nid": f.node.nid.to_string(), "rpcs": f.rpcs, "rpcs_per_second": per_second(f.rpcs),
            "read_bytes_per_second": per_second(f.put), "written_bytes_per_second": per_second(f.got),
            "errors": f.errors, "dropped": f.dropped,
        })
    };
    figures(before, after).map(row).collect()
}

/// Each once.
fn distinct<'a>(nodes: impl Iterator<Item = &'a ProcessId>) -> Vec<ProcessId> {
    nodes.copied().collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnet_shim::wire::lst::{FrameworkStats, RpcStats};

    #[test]
    fn figures_are_of_the_time_between() {
        let nid = "57@kfi".parse().unwrap();
        let look = |n: u32| {
            let rpc = RpcStats {
                errors: n,
                sent: n,
                received: n,
                dropped: n,
                expired: n,
                bulk_get: n.into(),
                bulk_put: n.into(),
            };
            let framework = FrameworkStats { brw_errors: n, ..Default::default() };
            [(ProcessId::lnet(nid), NodeStat { framework, rpc, lnet: Default::default() })]
        };
        let rows = rows(&look(u32::MAX), &look(2), Duration::from_secs(1));
        assert_eq!(["rpcs", "errors", "dropped"].map(|k| rows[0][k].as_u64()), [Some(3); 3], "{rows:?}");
    }

    #[test]
    fn sizes_of_bulk_have_bounds() {
        assert_eq!([size("1").unwrap(), size("4KiB").unwrap(), size("1M").unwrap()], [1, 4096, 1 << 20]);
        for bad in ["0", "2M", "x", "4T", "", "99999999999"] {
            assert!(size(bad).unwrap_err().what.contains("1 MiB"), "{bad}");
        }
    }
}
