//! A node with threads: an [`Engine`] under a lock, networks below it, callers above.
//!
//! Threads: one for timers, and those of the networks. Calls never block on the network; futures and queues do the waiting.
//! Callbacks of event sinks run on whichever thread brought the event, with no lock held. Dropping the last [`Node`] ends
//! all of it: every descriptor gets its last event, with [`Status::Shutdown`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::engine::{Effect, Engine, Sink};
use super::oneshot::OneShot;
use super::peers::PeerInfo;
use super::{NiConfig, NodeParams, Time};
use crate::core::*;
use crate::error::{Error, ErrorKind, Result};
use crate::kfi::{Book, KfiNetwork, KfiParams};
use crate::network::{Command, ConnectionInfo, Failure, Network, Upcall, Upper};
use crate::nid::{Nid, ProcessId};
use crate::tcp::{self, TcpNetwork, TcpParams};
use crate::wire::ping::{self, PingInfo};
use futures_lite::future;
use kfab::topo::Placement;

/// The sink of a ping, as LNet's tools have it: the largest that every network carries.
const PING_SINK: usize = 3960;

/// A node. Clones are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
    _guard: Arc<Guard>,
}

/// Ends the node when the last handle goes.
struct Guard(Weak<Inner>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(inner) = self.0.upgrade() {
            inner.shutdown();
        }
    }
}

struct Inner {
    engine: Mutex<Engine>,
    networks: RwLock<HashMap<Nid, Arc<dyn Network>>>,
    /// Held while an interface is added: its network is up before the engine knows it, and what it has to say must wait.
    opening: RwLock<()>,
    start: Instant,
    timer: Condvar,
    stop: AtomicBool,
}

/// What a ping found.
#[derive(Debug, Clone)]
pub struct PingReport {
    /// What the peer says about itself.
    pub info: PingInfo,
    /// Round trip.
    pub time: Duration,
}

/// What effects come to: commands by network, and sinks whose callbacks are to run.
#[derive(Default)]
struct Work {
    commands: Vec<(Nid, Vec<Command>)>,
    sinks: Vec<EventSink>,
    discovered: Vec<(OneShot<Result<PeerInfo>>, Result<PeerInfo>)>,
    alarms: Vec<OneShot<()>>,
}

impl Work {
    fn collect(&mut self, engine: &mut Engine) {
        while let Some(effect) = engine.poll() {
            match effect {
                Effect::Command(nid, command) => match self.commands.last_mut().filter(|c| c.0 == nid) {
                    Some((_, list)) => list.push(command),
                    None => self.commands.push((nid, vec![command])),
                },
                Effect::Event(sink, event) => {
                    sink.push(event);
                    self.sinks.push(sink);
                }
                Effect::Discovered(waiter, result) => self.discovered.push((waiter, result)),
                Effect::Alarm(waiter) => self.alarms.push(waiter),
            }
        }
    }
}

/// Nanoseconds of the wall clock: differs at each start.
pub(crate) fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
}

impl Inner {
    fn now(&self) -> Time {
        self.start.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<R>(&self, f: impl FnOnce(&mut Engine, Time) -> R) -> R {
        let mut work = Work::default();
        let mut engine = self.lock();
        let now = self.now();
        let had_timer = engine.next_timeout();
        let result = f(&mut engine, now);
        engine.settle(now);
        work.collect(&mut engine);
        let wake = engine.next_timeout().is_some_and(|t| had_timer.is_none_or(|h| t < h));
        drop(engine);
        if wake {
            self.timer.notify_one();
        }
        self.perform(work);
        result
    }

    /// Does all work, and the work that comes of it, with no lock held.
    fn perform(&self, mut work: Work) {
        while !work.commands.is_empty() {
            let mut upcalls = Vec::new();
            for (nid, commands) in std::mem::take(&mut work.commands) {
                let mut these = Vec::new();
                match self.network(nid) {
                    Some(network) => network.submit(commands, &mut these),
                    None => these.extend(commands.into_iter().filter_map(unsendable)),
                }
                upcalls.extend(these.into_iter().map(|u| (nid, u)));
            }
            if upcalls.is_empty() {
                break;
            }
            let mut engine = self.lock();
            let now = self.now();
            for (nid, upcall) in upcalls {
                engine.upcall(now, nid, upcall);
            }
            work.collect(&mut engine);
        }
        for sink in work.sinks {
            sink.run();
        }
        work.alarms.into_iter().for_each(|waiter| waiter.complete(()));
        for (waiter, result) in work.discovered {
            waiter.complete(result);
        }
    }

    fn network(&self, nid: Nid) -> Option<Arc<dyn Network>> {
        self.networks.read().unwrap_or_else(PoisonError::into_inner).get(&nid).cloned()
    }

    fn run_timers(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let engine = self.lock();
            let now = self.now();
            let next = engine.next_timeout().map_or(Duration::from_secs(1), |t| t.saturating_sub(now));
            if !next.is_zero() {
                let sleep = next.min(Duration::from_secs(1));
                drop(self.timer.wait_timeout(engine, sleep).unwrap_or_else(PoisonError::into_inner));
                continue;
            }
            drop(engine);
            self.with(|engine, now| engine.handle_timeout(now));
        }
    }

    fn shutdown(&self) {
        self.stop.store(true, Ordering::Release);
        self.timer.notify_all();
        let networks = std::mem::take(&mut *self.networks.write().unwrap_or_else(PoisonError::into_inner));
        for network in networks.into_values() {
            network.shutdown();
        }
        self.with(|engine, now| engine.shutdown(now));
    }
}

/// The outcome of a command whose network has gone.
fn unsendable(command: Command) -> Option<Upcall> {
    match command {
        Command::Transmit(tx) => Some(Upcall::Sent(tx.id, Err(Failure::LocalError))),
        Command::Fetch(fetch) => Some(Upcall::Fetched(fetch.op, Err(Failure::LocalError))),
        _ => None,
    }
}

impl Upper for Inner {
    fn upcalls(&self, local: Nid, upcalls: Vec<Upcall>) {
        drop(self.opening.read());
        self.with(|engine, now| {
            for upcall in upcalls {
                engine.upcall(now, local, upcall);
            }
        });
    }
}

impl Node {
    /// A node without interfaces.
    pub fn new(params: NodeParams) -> Result<Self> {
        let inner = Arc::new(Inner {
            engine: Mutex::new(Engine::new(params, wall_ns())),
            networks: RwLock::default(),
            opening: RwLock::default(),
            start: Instant::now(),
            timer: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let runner = inner.clone();
        std::thread::Builder::new()
            .name("lnet-timer".into())
            .spawn(move || runner.run_timers())
            .map_err(|e| Error::io("node", "starting the timer thread", e))?;
        let guard = Arc::new(Guard(Arc::downgrade(&inner)));
        Ok(Self { inner, _guard: guard })
    }

    /// Adds a tcp interface: binds, listens, tells peers. See [`TcpNetwork::start`] for its errors.
    pub fn add_tcp(&self, mut config: NiConfig, params: TcpParams) -> Result<()> {
        let pid = self.inner.lock().params.pid;
        let upper: Weak<dyn Upper> = Arc::downgrade(&(self.inner.clone() as Arc<dyn Upper>));
        let me = ProcessId { nid: config.nid, pid };
        let _opening = self.inner.opening.write();
        self.is_new(config.nid)?;
        let network = TcpNetwork::start(params, me, wall_ns(), upper)?;
        config.node = config.node.or_else(|| config.nid.ip().and_then(tcp::numa_node));
        self.add_network(config, Arc::new(network))
    }

    /// Adds a kfi interface over endpoints of kfab, one for each lane; see [`KfiNetwork::start`]. `book` says where peers are.
    pub fn add_kfi(
        &self,
        config: NiConfig,
        endpoints: Vec<Arc<kfab::Endpoint>>,
        book: &Book,
        params: &KfiParams,
    ) -> Result<()> {
        let _opening = self.inner.opening.write();
        self.is_new(config.nid)?;
        let network = KfiNetwork::start(config.nid, endpoints, book, params, &self.upper())?;
        self.add_network(config, Arc::new(network))
    }

    /// Before anything is opened for an interface: the one there is of this NID would be lost to it.
    fn is_new(&self, nid: Nid) -> Result<()> {
        self.inner.lock().is_new(nid)
    }

    /// Adds an interface over any network. Its upcalls go to [`Node::upper`].
    pub fn add_network(&self, config: NiConfig, network: Arc<dyn Network>) -> Result<()> {
        self.is_new(config.nid)?;
        self.inner.networks.write().unwrap_or_else(PoisonError::into_inner).insert(config.nid, network);
        self.inner.with(|engine, now| engine.add_ni(now, config))?;
        if self.inner.lock().wants_topology() {
            // Takes milliseconds, so not under the lock, and only where there is a choice to be made with it.
            let topology = kfab::topo::Topology::discover();
            self.inner.lock().set_topology(topology);
        }
        Ok(())
    }

    /// What a network makes its upcalls to.
    pub fn upper(&self) -> Weak<dyn Upper> {
        Arc::downgrade(&(self.inner.clone() as Arc<dyn Upper>))
    }

    /// Where threads and memory of an interface are, where they were to be in a part of the machine.
    pub fn placement(&self, nid: Nid) -> Vec<Placement> {
        self.inner.network(nid).map(|n| n.placement()).unwrap_or_default()
    }

    /// Removes an interface and ends its connections.
    pub fn remove_network(&self, nid: Nid) -> Result<()> {
        self.inner.with(|engine, now| engine.remove_ni(now, nid))?;
        let network = self.inner.networks.write().unwrap_or_else(PoisonError::into_inner).remove(&nid);
        if let Some(network) = network {
            network.shutdown();
        }
        Ok(())
    }

    /// Runs `f` on the engine, then does what comes of it. For what has no call of its own. The node is locked meanwhile:
    /// `f` must not call it.
    pub fn with_engine<R>(&self, f: impl FnOnce(&mut Engine, Time) -> R) -> R {
        self.inner.with(f)
    }

    fn hooked(&self, sink: &EventSink) -> Sink {
        let weak = Arc::downgrade(&self.inner);
        sink.set_hook(Arc::new(move || {
            if let Some(inner) = weak.upgrade() {
                inner.with(|engine, now| engine.kick(now));
            }
        }));
        Sink::User(sink.clone())
    }

    /// Attaches memory to a portal: a match entry with one descriptor.
    pub fn attach(
        &self,
        entry: MeParams,
        memory: Arc<dyn Memory>,
        options: TargetOptions,
        sink: &EventSink,
    ) -> Result<(MeHandle, MdHandle)> {
        let sink = self.hooked(sink);
        self.inner.with(|engine, now| engine.attach(now, entry, memory, options, sink))
    }

    /// Attaches memory that goes by itself after `timeout`: its last event then says [`Status::TimedOut`].
    pub fn attach_for(
        &self,
        entry: MeParams,
        memory: Arc<dyn Memory>,
        options: TargetOptions,
        sink: &EventSink,
        timeout: Duration,
    ) -> Result<MdHandle> {
        let sink = self.hooked(sink);
        self.inner.with(|engine, now| {
            let (_, md) = engine.attach(now, entry, memory, options, sink)?;
            engine.expire(now, md, timeout);
            Ok(md)
        })
    }

    /// Attaches new memory to an entry that was made to stay.
    pub fn attach_to(
        &self,
        me: MeHandle,
        memory: Arc<dyn Memory>,
        options: TargetOptions,
        sink: &EventSink,
    ) -> Result<MdHandle> {
        let sink = self.hooked(sink);
        self.inner.with(|engine, _| engine.core().md_attach(me, memory, options, sink))
    }

    /// Makes memory known for PUT and GET.
    pub fn bind(
        &self,
        memory: Arc<dyn Memory>,
        options: SourceOptions,
        sink: &EventSink,
    ) -> Result<SourceMd> {
        let sink = self.hooked(sink);
        self.inner.with(|engine, _| engine.core().md_bind(memory, options, sink))
    }

    /// Ends a descriptor.
    pub fn unlink_md(&self, md: MdHandle) -> Result<()> {
        self.inner.with(|engine, _| engine.core().md_unlink(md, Status::Ok))
    }

    /// Ends a match entry and its descriptor.
    pub fn unlink_me(&self, me: MeHandle) -> Result<()> {
        self.inner.with(|engine, _| engine.core().me_unlink(me))
    }

    /// Sets whether PUTs wait at a portal until there is memory for them.
    pub fn set_lazy(&self, portal: u32, lazy: bool) -> Result<()> {
        self.inner.with(|engine, _| engine.core().set_lazy(portal, lazy))
    }

    /// Begins a PUT. Its ACK, if wanted, is given up after `timeout` (default: the transaction timeout).
    pub fn put(&self, md: SourceMd, put: PutParams, timeout: Option<Duration>) -> Result<()> {
        self.inner.with(|engine, now| engine.put(now, md, put, timeout))
    }

    /// Begins a GET. Its REPLY is given up after `timeout` (default: the transaction timeout), but not before the message has left: while it
    /// waits for a connection or for credit, the network's own limit counts (tcp: `sock_timeout`).
    pub fn get(
        &self,
        md: SourceMd,
        target: ProcessId,
        portal: u32,
        match_bits: u64,
        offset: u32,
        timeout: Option<Duration>,
    ) -> Result<()> {
        self.inner.with(|engine, now| engine.get(now, md, target, portal, match_bits, offset, timeout))
    }

    /// Puts bytes and waits for the ACK; gives how many the target took. A future that is dropped leaves the operation
    /// to end by itself.
    pub async fn put_bytes(
        &self,
        target: ProcessId,
        portal: u32,
        match_bits: u64,
        bytes: Vec<u8>,
        timeout: Duration,
    ) -> Result<u32> {
        let queue = EventQueue::new(4);
        let md = self.bind(SharedBytes::new(bytes).memory(), SourceOptions::once(2), &queue.sink())?;
        let put = PutParams { target, portal, match_bits, offset: 0, hdr_data: 0, ack: true };
        self.begun(md, self.put(md, put, Some(timeout)))?;
        self.answer(&queue, md, "put", EventKind::Ack).await
    }

    /// Gets up to `len` bytes.
    pub async fn get_bytes(
        &self,
        target: ProcessId,
        portal: u32,
        match_bits: u64,
        offset: u32,
        len: usize,
        timeout: Duration,
    ) -> Result<Vec<u8>> {
        let queue = EventQueue::new(4);
        let memory = SharedBytes::zeroed(len);
        let options = SourceOptions { truncate: true, ..SourceOptions::once(2) };
        let md = self.bind(memory.memory(), options, &queue.sink())?;
        self.begun(md, self.get(md, target, portal, match_bits, offset, Some(timeout)))?;
        let got = self.answer(&queue, md, "get", EventKind::Reply).await?;
        let mut bytes = memory.to_vec();
        bytes.truncate(got as usize);
        Ok(bytes)
    }

    /// How many match entries and descriptors exist.
    #[cfg(test)]
    pub(crate) fn objects(&self) -> (usize, usize) {
        self.inner.with(|engine, _| engine.core().objects())
    }

    /// What has not begun needs its descriptor no more.
    pub(crate) fn begun(&self, md: SourceMd, result: Result<()>) -> Result<()> {
        result.inspect_err(|_| drop(self.unlink_md(md.handle())))
    }

    /// Waits for the answer to one operation, or the word that there will be none.
    async fn answer(
        &self,
        queue: &EventQueue,
        md: SourceMd,
        op: &'static str,
        kind: EventKind,
    ) -> Result<u32> {
        loop {
            let event = queue.recv().await;
            if event.kind == kind && event.status.is_ok() {
                return Ok(event.mlength);
            }
            if !event.status.is_ok() || event.unlinked && event.kind == EventKind::Unlink {
                let _ = self.unlink_md(md.handle());
                let error = match event.status {
                    Status::Unreachable => ErrorKind::Unreachable,
                    Status::Local => ErrorKind::Io,
                    Status::Shutdown => ErrorKind::Closed,
                    _ => ErrorKind::TimedOut,
                };
                return Err(Error::new(error, op, format!("{:?}", event.status)));
            }
        }
    }

    /// Asks a node about itself, as `lctl ping` does.
    pub async fn ping(&self, nid: Nid, timeout: Duration) -> Result<PingReport> {
        let start = Instant::now();
        let (get, alarm) = (
            self.get_bytes(ProcessId::lnet(nid), 0, ping::MATCH_BITS, 0, PING_SINK, timeout),
            OneShot::default(),
        );
        self.inner.with(|engine, now| engine.alarm(now, timeout, alarm.clone()));
        let late = async {
            alarm.recv().await;
            Err(Error::new(ErrorKind::TimedOut, "get", "TimedOut: it could not even be sent"))
        };
        let bytes = future::or(get, late).await?;
        let info = PingInfo::decode(&bytes)?;
        Ok(PingReport { info, time: start.elapsed() })
    }

    /// Finds out about a peer, and tells it about us. `force`: even if we know.
    pub async fn discover(&self, nid: Nid, force: bool) -> Result<PeerInfo> {
        let waiter = OneShot::default();
        self.inner.with(|engine, now| engine.discover(now, nid, force, waiter.clone()));
        waiter.recv().await
    }

    /// Our first NID.
    pub fn primary(&self) -> Nid {
        self.inner.lock().primary()
    }

    /// All connections of all networks.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let networks: Vec<_> =
            self.inner.networks.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        networks.iter().flat_map(|n| n.connections()).collect()
    }
}
