//! The state of a node and its entry points.
//!
//! Callers hold one lock around the engine. They call one entry point, then drain [`Engine::poll`]. Internally everything
//! settles through three queues (outputs of the core, messages to dispatch, messages to ourselves), so no path recurses.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::fault::Faults;
use super::health::{Credits, Health, status_of};
use super::oneshot::OneShot;
use super::peers::{Peer, PeerId, PeerInfo, PeerNi};
use super::routes::Route;
use super::send::{Message, Stage};
use super::stats::{Counts, NiInfo, NodeStats};
use super::{NiConfig, NodeParams, Time};
use crate::core::*;
use crate::error::{Error, ErrorKind, Result};
use crate::network::{Command, Failure, Rx, TxId, Upcall};
use crate::nid::{Nid, NidList, ProcessId};
use kfab::topo::Topology;

/// Where the events of a descriptor go.
#[derive(Clone)]
pub enum Sink {
    /// To the user.
    User(EventSink),
    /// To the engine itself.
    Internal(Purpose),
}

/// What the engine uses a descriptor for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Others ping us.
    PingTarget,
    /// Others push to us.
    PushTarget,
    /// We ask a peer about itself.
    DiscoveryPing(u64),
    /// We tell a peer about us.
    DiscoveryPush(u64),
    /// We ask whether an interface, ours or a peer's, works again.
    Recovery(Nid),
}

impl Handler for Sink {
    fn reserve(&self, n: usize) -> bool {
        match self {
            Self::User(sink) => sink.reserve(n),
            Self::Internal(_) => true,
        }
    }

    fn release(&self, n: usize) {
        if let Self::User(sink) = self {
            sink.release(n);
        }
    }
}

/// What the engine wants done.
pub enum Effect {
    /// Give a command to the network of this NID.
    Command(Nid, Command),
    /// Give an event to its owner.
    Event(EventSink, Event),
    /// Tell who waits for a discovery.
    Discovered(OneShot<Result<PeerInfo>>, Result<PeerInfo>),
    /// Tell who asked for it that it is time.
    Alarm(OneShot<()>),
}

/// A local interface.
pub(super) struct Ni {
    pub(super) config: NiConfig,
    pub(super) credits: Credits,
    pub(super) health: Health,
    /// Without a link: whatever its health, it is taken last.
    pub(super) fatal: bool,
    pub(super) used: u64,
    pub(super) sent: Counts,
    pub(super) received: Counts,
    pub(super) dropped: Counts,
}

impl Ni {
    pub(super) fn is_up(&self) -> bool {
        !self.health.down && !self.fatal
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Awaited {
    /// The answer to an operation.
    Answer(OpId),
    /// The end of a descriptor.
    End(MdHandle),
}

/// Until when something is waited for; then the descriptor ends.
pub(super) struct Tracked {
    pub(super) md: MdHandle,
    pub(super) deadline: Time,
    /// Who is to blame if it does not come.
    pub(super) peer: Option<Nid>,
}

/// How one message is to be sent, beyond what it says itself.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SendFlags {
    /// From this NI only.
    pub(super) local: Option<Nid>,
    /// To exactly the NID it names.
    pub(super) exact: bool,
    /// A recovery ping: never repeated, over the wire even to ourselves.
    pub(super) recovery: bool,
}

/// Something a delay rule holds back.
pub(super) enum Delayed {
    Send(TxId),
    Receive(Nid, Rx),
}

/// The machine of a node.
pub struct Engine {
    pub(super) params: NodeParams,
    pub(super) core: Core<Sink>,
    pub(super) nis: Vec<Ni>,
    pub(super) peers: HashMap<PeerId, Peer>,
    pub(super) peer_nis: HashMap<Nid, PeerNi>,
    pub(super) messages: HashMap<TxId, Message>,
    pub(super) ready: VecDeque<TxId>,
    /// Messages that have got the credit they waited for.
    pub(super) granted: VecDeque<(TxId, Stage)>,
    pub(super) loopback: VecDeque<Incoming>,
    pub(super) flags: HashMap<OpId, SendFlags>,
    pub(super) tracked: HashMap<Awaited, Tracked>,
    /// Payloads being fetched, by the NID of the network that does it.
    fetches: HashMap<OpId, Nid>,
    pub(super) delayed: BTreeMap<(Time, u64), Delayed>,
    alarms: BTreeMap<(Time, u64), OneShot<()>>,
    pub(super) effects: VecDeque<Effect>,
    pub(super) faults: Faults,
    pub(super) priorities: Vec<(NidList, u32)>,
    pub(super) routes: Vec<Route>,
    pub(super) preferred_gateways: Vec<(NidList, NidList)>,
    pub(super) next_route_check: Time,
    pub(super) pairs: Vec<(NidList, NidList)>,
    topology: Option<Topology>,
    pub(super) stats: NodeStats,
    pub(super) next_id: u64,
    pub(super) ping: super::discovery::PingState,
    /// NIDs by the number that stands for them in the upper bits of `via`.
    pub(super) vias: Vec<Nid>,
    next_tick: Time,
}

impl Engine {
    /// A node without interfaces. `interface_cookie` must differ at each start.
    pub fn new(params: NodeParams, interface_cookie: u64) -> Self {
        let mut engine = Self {
            core: Core::new(interface_cookie, params.max_waiting, params.max_waiting_bytes),
            faults: Faults::new(params.seed),
            priorities: Vec::new(),
            routes: Vec::new(),
            preferred_gateways: Vec::new(),
            next_route_check: Time::ZERO,
            pairs: Vec::new(),
            topology: None,
            nis: Vec::new(),
            peers: HashMap::new(),
            peer_nis: HashMap::new(),
            messages: HashMap::new(),
            ready: VecDeque::new(),
            granted: VecDeque::new(),
            loopback: VecDeque::new(),
            flags: HashMap::new(),
            tracked: HashMap::new(),
            fetches: HashMap::new(),
            delayed: BTreeMap::new(),
            alarms: BTreeMap::new(),
            effects: VecDeque::new(),
            stats: NodeStats::default(),
            next_id: 1,
            ping: Default::default(),
            vias: Vec::new(),
            next_tick: Time::ZERO,
            params,
        };
        engine.post_ping_targets();
        engine
    }

    /// The next thing to do. Empty once everything has settled.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(super) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Adds an interface and tells peers.
    pub fn add_ni(&mut self, now: Time, config: NiConfig) -> Result<()> {
        self.is_new(config.nid)?;
        if !self.vias.contains(&config.nid) {
            self.vias.push(config.nid);
        }
        self.nis.push(Ni {
            config,
            credits: Credits::new(config.credits),
            health: Health::default(),
            fatal: false,
            used: 0,
            sent: Counts::default(),
            received: Counts::default(),
            dropped: Counts::default(),
        });
        self.interfaces_changed(now);
        self.settle(now);
        Ok(())
    }

    /// `Exists` for a NID that is ours.
    pub(super) fn is_new(&self, nid: Nid) -> Result<()> {
        match self.is_local(nid) {
            true => Err(Error::new(
                ErrorKind::Exists,
                "interface",
                format!("{nid} is an interface of this node already"),
            )),
            false => Ok(()),
        }
    }

    /// Removes an interface and tells peers. Messages that wait for it fail.
    pub fn remove_ni(&mut self, now: Time, nid: Nid) -> Result<()> {
        let at = self.nis.iter().position(|n| n.config.nid == nid);
        let none = || Error::new(ErrorKind::NotFound, "interface", format!("{nid} is none of this node"));
        let at = at.ok_or_else(none)?;
        self.nis.remove(at);
        let of_ni: Vec<TxId> =
            self.messages.iter().filter(|(_, m)| m.local == Some(nid)).map(|(id, _)| *id).collect();
        for id in of_ni {
            self.sent(now, id, Err(Failure::LocalError));
        }
        self.abort_fetches(Some(nid), Status::Local);
        self.interfaces_changed(now);
        self.settle(now);
        Ok(())
    }

    /// Says how far NUMA nodes are from each other: interfaces near a message's memory are taken before others then.
    pub fn set_topology(&mut self, topology: Topology) {
        self.topology = Some(topology);
    }

    /// Whether a topology is wanted and has not been given.
    pub(super) fn wants_topology(&self) -> bool {
        self.topology.is_none() && self.nis.iter().any(|n| n.config.node.is_some())
    }

    /// From memory to an interface, as far as it counts. What is not known is near.
    pub(super) fn distance(&self, memory: Option<u32>, ni: &Ni) -> u32 {
        let known = memory.zip(ni.config.node).zip(self.topology.as_ref());
        let distance = known.and_then(|((memory, card), topology)| topology.distance(memory, card));
        distance.unwrap_or(0).max(self.params.numa_range)
    }

    fn link(&mut self, nid: Nid, up: bool) {
        let Some(ni) = self.ni_mut(nid) else { return };
        let was_up = ni.is_up();
        ni.fatal = !up;
        if was_up != ni.is_up() {
            tracing::info!(%nid, up, "link");
            self.post_ping_targets();
        }
    }

    /// Whether a NID is ours.
    pub fn is_local(&self, nid: Nid) -> bool {
        nid.is_lo() || self.nis.iter().any(|n| n.config.nid == nid)
    }

    /// Our first NID.
    pub fn primary(&self) -> Nid {
        self.nis.first().map_or(Nid::LO, |n| n.config.nid)
    }

    pub(super) fn ni_mut(&mut self, nid: Nid) -> Option<&mut Ni> {
        self.nis.iter_mut().find(|n| n.config.nid == nid)
    }

    /// The core, for calls that need no time: attach, bind, lazy.
    pub fn core(&mut self) -> &mut Core<Sink> {
        &mut self.core
    }

    /// Begins a PUT; if an ACK is wanted it is given up after `timeout` (default: the transaction timeout).
    pub fn put(&mut self, now: Time, md: SourceMd, put: PutParams, timeout: Option<Time>) -> Result<()> {
        let op = self.core.put(md, put)?;
        if put.ack {
            self.track(now, op, md, put.target, timeout);
        }
        self.settle(now);
        Ok(())
    }

    /// Begins a GET; the REPLY is given up after `timeout` (default: the transaction timeout).
    #[allow(clippy::too_many_arguments)]
    pub fn get(
        &mut self,
        now: Time,
        md: SourceMd,
        target: ProcessId,
        portal: u32,
        match_bits: u64,
        offset: u32,
        timeout: Option<Time>,
    ) -> Result<()> {
        let op = self.core.get(md, target, portal, match_bits, offset)?;
        self.track(now, op, md, target, timeout);
        self.settle(now);
        Ok(())
    }

    /// Sets until when the answer to an operation is waited for.
    pub(super) fn track(
        &mut self,
        now: Time,
        op: OpId,
        md: SourceMd,
        target: ProcessId,
        timeout: Option<Time>,
    ) {
        self.start_ticking(now);
        let deadline = now + timeout.unwrap_or(self.params.transaction_timeout);
        let (md, peer) = (md.handle(), Some(target.nid));
        self.tracked.insert(Awaited::Answer(op), Tracked { md, deadline, peer });
    }

    /// Ends a descriptor by itself, with [`Status::TimedOut`], unless it has gone by then.
    pub fn expire(&mut self, now: Time, md: MdHandle, timeout: Time) {
        self.start_ticking(now);
        self.tracked.insert(Awaited::End(md), Tracked { md, deadline: now + timeout, peer: None });
    }

    /// After a rest the next tick is one tick away, not overdue.
    fn start_ticking(&mut self, now: Time) {
        if self.next_tick < now {
            self.next_tick = now + self.params.tick();
        }
    }

    /// Does everything that can be done now.
    pub fn settle(&mut self, now: Time) {
        loop {
            if let Some(output) = self.core.poll() {
                self.on_output(now, output);
            } else if let Some(incoming) = self.loopback.pop_front() {
                let _ = self.core.receive(incoming);
            } else if let Some((id, stage)) = self.granted.pop_front() {
                self.on_grant(now, id, stage);
            } else if let Some(id) = self.ready.pop_front() {
                self.dispatch(now, id);
            } else {
                return;
            }
        }
    }

    fn on_output(&mut self, now: Time, output: Output<Sink>) {
        match output {
            Output::Event(sink, event) => self.on_event(now, sink, event),
            Output::Send(out) => self.begin_message(now, out),
            Output::Fetch(fetch) => self.begin_fetch(fetch),
            Output::Answered(op) => drop(self.tracked.remove(&Awaited::Answer(op))),
            Output::Refuse { via } => self.hold(via, |via| Command::Refuse { via }),
            Output::Parked { via, bytes } => self.hold(via, |via| Command::Hold { via, bytes }),
            Output::Unparked { via, bytes } => self.hold(via, |via| Command::Release { via, bytes }),
        }
    }

    fn on_event(&mut self, now: Time, sink: Sink, event: Event) {
        if event.unlinked {
            self.tracked.remove(&Awaited::End(event.md));
        }
        match sink {
            Sink::User(sink) => self.effects.push_back(Effect::Event(sink, event)),
            Sink::Internal(purpose) => self.internal_event(now, purpose, event),
        }
    }

    /// The network a message came from, and its word for where.
    fn locate(&self, via: u64) -> Option<(Nid, u64)> {
        Some((self.vias.get((via >> 48) as usize).copied()?, via & 0xffff_ffff_ffff))
    }

    fn hold(&mut self, via: u64, command: impl Fn(u64) -> Command) {
        if let Some((nid, conn)) = self.locate(via) {
            self.effects.push_back(Effect::Command(nid, command(conn)));
        }
    }

    fn begin_fetch(&mut self, fetch: Fetch) {
        let Some((nid, via)) = self.locate(fetch.via) else {
            return self.core.fetched(fetch.op, Status::Local);
        };
        self.fetches.insert(fetch.op, nid);
        self.effects.push_back(Effect::Command(nid, Command::Fetch(Fetch { via, ..fetch })));
    }

    /// A network has fetched a payload, or could not.
    fn fetched(&mut self, op: OpId, result: std::result::Result<(), Failure>) {
        if self.fetches.remove(&op).is_some() {
            self.core.fetched(op, result.map_or_else(status_of, |()| Status::Ok));
        }
    }

    /// Fetches by a network that is gone have failed.
    fn abort_fetches(&mut self, of: Option<Nid>, status: Status) {
        let gone = |nid: &Nid| of.is_none_or(|of| of == *nid);
        let ops: Vec<OpId> = self.fetches.iter().filter(|(_, n)| gone(n)).map(|(op, _)| *op).collect();
        for op in ops {
            self.fetches.remove(&op);
            self.core.fetched(op, status);
        }
    }

    /// Takes what the network of `local` has to say.
    pub fn upcall(&mut self, now: Time, local: Nid, upcall: Upcall) {
        match upcall {
            Upcall::Received(rx) => self.received(now, local, rx),
            Upcall::Sent(id, result) => self.sent(now, id, result),
            Upcall::Fetched(op, result) => self.fetched(op, result),
            Upcall::PeerLost(nid) => self.peer_lost(now, nid),
            Upcall::Link(up) => self.link(local, up),
        }
        self.settle(now);
    }

    fn peer_lost(&mut self, now: Time, nid: Nid) {
        tracing::debug!(%nid, "peer lost");
        self.core.forget_sender(nid);
        if !self.params.fail_on_peer_lost {
            return;
        }
        let lost: Vec<MdHandle> =
            self.tracked.extract_if(|_, t| t.peer == Some(nid)).map(|(_, t)| t.md).collect();
        for md in lost {
            let _ = self.core.md_unlink(md, Status::Unreachable);
        }
        self.settle(now);
    }

    /// When [`Engine::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Time> {
        let sick = |h: &Health| h.next_ping.is_some();
        let busy = !self.tracked.is_empty()
            || self.nis.iter().any(|n| sick(&n.health))
            || self.peer_nis.values().any(|p| sick(&p.health));
        let delayed = self.delayed.keys().next().map(|k| k.0);
        let alarm = self.alarms.keys().next().map(|k| k.0);
        let tick = busy.then_some(self.next_tick);
        [delayed, alarm, tick, self.route_check_due()].into_iter().flatten().min()
    }

    /// Does what has come due.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(entry) = self.delayed.first_entry().filter(|e| e.key().0 <= now) {
            match entry.remove() {
                Delayed::Send(id) => self.ready.push_back(id),
                Delayed::Receive(local, rx) => self.accept(now, local, rx),
            }
        }
        while let Some(entry) = self.alarms.first_entry().filter(|e| e.key().0 <= now) {
            self.effects.push_back(Effect::Alarm(entry.remove()));
        }
        if now >= self.next_tick {
            self.next_tick = now + self.params.tick();
            self.expire_answers(now);
            self.recover(now);
        }
        self.check_routes(now);
        self.settle(now);
    }

    /// Tells `waiter` when an answer that was to come within `timeout` should have come, or the word that it does not: what is being sent
    /// keeps its memory, and ends when the network says so, which may be much later.
    pub fn alarm(&mut self, now: Time, timeout: Time, waiter: OneShot<()>) {
        let id = self.id();
        self.alarms.insert((now + timeout + 2 * self.params.tick(), id), waiter);
    }

    fn expire_answers(&mut self, now: Time) {
        let late: Vec<Tracked> = self.tracked.extract_if(|_, t| t.deadline <= now).map(|(_, t)| t).collect();
        for tracked in late {
            self.stats.response_timeouts += 1;
            if let Some(nid) = tracked.peer {
                self.peer_failed(now, nid);
            }
            let _ = self.core.md_unlink(tracked.md, Status::TimedOut);
        }
    }

    /// Ends everything: messages fail, and each descriptor gets its last event, with [`Status::Shutdown`].
    pub fn shutdown(&mut self, now: Time) {
        let messages: Vec<TxId> = self.messages.keys().copied().collect();
        for id in messages {
            self.fail_message(id, Status::Shutdown);
        }
        self.abort_fetches(None, Status::Shutdown);
        self.settle(now);
        self.core.unlink_all(Status::Shutdown);
        self.settle(now);
    }

    /// Tries messages that wait at lazy portals again: event queues have room.
    pub fn kick(&mut self, now: Time) {
        for portal in self.core.waiting_portals() {
            self.core.retry_waiting(portal);
        }
        self.settle(now);
    }

    /// The counters.
    pub fn stats(&self) -> NodeStats {
        NodeStats { core: self.core.counters(), messages: self.messages.len(), ..self.stats }
    }

    /// The local interfaces.
    pub fn nis(&self) -> Vec<NiInfo> {
        self.nis.iter().map(Ni::info).collect()
    }

    /// Attaches memory in one go: entry and descriptor.
    pub fn attach(
        &mut self,
        now: Time,
        params: MeParams,
        memory: Arc<dyn Memory>,
        options: TargetOptions,
        sink: Sink,
    ) -> Result<(MeHandle, MdHandle)> {
        let me = self.core.me_attach(params)?;
        let md = self.core.md_attach(me, memory, options, sink);
        if md.is_err() {
            self.core.me_unlink(me)?;
        }
        self.settle(now);
        Ok((me, md?))
    }
}
