//! The machine itself: its state, the verbs that users reach through `kfab`, and the poll loop.

use crate::events::Stream as EventStream;
use crate::faults::{FaultAction, FaultId, FaultRule, Faults};
use crate::limits::Limits;
use crate::matcher::Matcher;
use crate::message::*;
use crate::onesided::Windows;
use crate::ops::{Ops, Proto};
use crate::peer::{Peer, PeerCounters};
use crate::tab::Tab;
use crate::transmit::NOWHERE;
use kfab_core::mem::{Buffer, Pool, Room};
use kfab_core::spi::{Address, Conn, Delivery, Event, Port};
use kfab_core::{Error, Fate, Kind, Result};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::Waker;

/// What the machine works with during one call: the lane's ports, the caller's monotonic clock, the lane's memory.
pub struct Io<'a> {
    /// The ports, always the same ones in the same order.
    pub ports: &'a mut [Box<dyn Port>],
    /// Nanoseconds of a monotonic clock, never 0.
    pub now: u64,
    /// Where buffers for arriving messages come from.
    pub pool: &'a Pool,
}

impl Io<'_> {
    /// What peers call a port: its number, and in the upper half its epoch, so that no key of another fits it.
    #[inline(always)]
    pub(crate) fn port_name(&self, port: usize) -> u16 {
        (port as u16) ^ (u16::from(self.ports[port].epoch()) << 8)
    }
}

/// A connection as the machine sees it.
#[derive(Debug)]
pub(crate) struct ConnState {
    pub(crate) port: usize,
    pub(crate) conn: Conn,
    pub(crate) peer: Option<u32>,
    /// We dialed it (for this peer) or the peer did.
    pub(crate) dialed: bool,
    /// The transport has reported it up: frames may be posted.
    pub(crate) ready: bool,
    /// The peer's hello has come: it is a rail.
    pub(crate) up: bool,
    pub(crate) live: bool,
    pub(crate) closing: bool,
    /// `post` refused; wait for `Writable`.
    pub(crate) blocked: bool,
    /// The body being taken.
    pub(crate) taking: Option<crate::receive::Taking>,
    pub(crate) delivery: Delivery,
    pub(crate) rank: u8,
    pub(crate) weight: u64,
    pub(crate) max_body: usize,
    pub(crate) eager_max: usize,
    /// Above this many bytes a message in a slab is fetched.
    pub(crate) fetch_min: usize,
    /// Its port has one-sided access.
    pub(crate) rma: bool,
    pub(crate) unacked_bytes: usize,
    /// Bytes of one-sided transfers under way over it, ours and those a peer was asked to fetch.
    pub(crate) rma_bytes: usize,
    /// The peer's number of its port at the other end.
    pub(crate) far_port: u16,
    /// When the transport had it up.
    pub(crate) ready_at: u64,
    pub(crate) used_at: u64,
    /// The last frame from the other end, and since when it owes an answer to a probe (0: it does not).
    pub(crate) heard_at: u64,
    pub(crate) asked_at: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) rx_bytes: u64,
    pub(crate) tx_frames: u64,
    pub(crate) rx_frames: u64,
    /// Frames that were sent again over it.
    pub(crate) resent: u64,
    pub(crate) pace: crate::pace::Pace,
}

/// Multiply-shift over small integers that the providers themselves hand out: no peer chooses them.
#[derive(Default)]
pub(crate) struct ConnHasher(u64);

impl Hasher for ConnHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u64(u64::from(*b)));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(23) ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn write_usize(&mut self, n: usize) {
        self.write_u64(n as u64);
    }
}

type ConnIndex = HashMap<(usize, Conn), u32, BuildHasherDefault<ConnHasher>>;

/// The protocol of one lane. See the crate documentation for the rooms it is made of.
///
/// For whoever adds a call: unless it is of the short way, or touches operations' results only, it begins with `close_tab` (see `tab`).
pub struct Machine {
    pub(crate) limits: Limits,
    pub(crate) identity: u64,
    pub(crate) keyed: bool,
    /// Source of session numbers.
    pub(crate) sessions: u64,
    pub(crate) my_address: String,
    /// Those of the ports.
    pub(crate) schemes: Vec<String>,
    /// Schemes that were to have a port here and have none, and why.
    pub(crate) missing: Vec<(String, String)>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) free_peers: Vec<u32>,
    /// Forgotten peers that a list still names.
    pub(crate) free_later: Vec<u32>,
    /// What peers counted that are known no more.
    pub(crate) past_totals: PeerCounters,
    /// Messages that have come, each with its number.
    pub(crate) last_nth: u64,
    /// Credit units of what waits here of peers that are gone.
    pub(crate) left_behind: u64,
    pub(crate) by_identity: HashMap<u64, u32>,
    pub(crate) by_address: HashMap<String, u32>,
    pub(crate) conns: Vec<ConnState>,
    pub(crate) free_conns: Vec<u32>,
    conn_index: ConnIndex,
    /// The connection of the last frame: most frames come from the one before.
    pub(crate) last_conn: (usize, Conn, u32),
    pub(crate) ops: Ops,
    pub(crate) matcher: Matcher,
    pub(crate) windows: Windows,
    pub(crate) stream: EventStream,
    pub(crate) faults: Faults,
    /// Frames that a fault rule made late: (due, peer, sequence number).
    pub(crate) late: Vec<(u64, u32, u32)>,
    pub(crate) timed: Vec<u32>,
    pub(crate) dirty: Vec<u32>,
    /// Rails that were given up in the middle of a body, until their ports say that they are down.
    pub(crate) leaving: Vec<u32>,
    /// Large messages whose receive is over.
    pub(crate) orphans: Vec<crate::orphans::Orphan>,
    /// Frames that wait: for the end of a twin on a dying connection, or of a fault rule that stalls their sender.
    pub(crate) parked: Vec<crate::parked::Parked>,
    /// Counts polls, and frames that came by the short way.
    pub(crate) round: u64,
    /// The short way is closed from that round on, until the next poll.
    pub(crate) short_until: u64,
    pub(crate) unflushed: bool,
    pub(crate) next_tick: u64,
    /// Peers that wait for the memory of what they sent: see [`Machine::owe_ack_soon`].
    pub(crate) soon: Vec<u32>,
    pub(crate) soon_at: u64,
    pub(crate) closed: bool,
    /// Deadlines of operations, ns; the earliest on top.
    pub(crate) deadlines: BinaryHeap<Reverse<(u64, OpId)>>,
    /// Connections whose hello has not come yet.
    pub(crate) greeting: Vec<u32>,
    /// Messages that are handed over and not booked.
    pub(crate) tab: Tab,
    events: Vec<Event>,
}

const NO_CONN: u32 = u32::MAX;
/// Frames taken by the short way between two polls at most. Who always finds one there would look at nothing else: newcomers, other
/// ports, timers. A poll takes up to a batch of them by the long way: more often would cost a stream a fifth of its rate.
const SHORT_ROUNDS: u64 = 4096;

impl Machine {
    /// A machine with a fresh identity. `identity` must be random: peers tell restarts by it. `keyed` says whether the fabric
    /// has a key (both sides must agree).
    pub fn new(limits: Limits, identity: u64, keyed: bool) -> Machine {
        let limits = limits.in_time();
        Machine {
            ops: Ops::new(limits.max_ops),
            limits,
            identity,
            keyed,
            sessions: identity,
            my_address: String::new(),
            schemes: Vec::new(),
            missing: Vec::new(),
            peers: Vec::new(),
            free_peers: Vec::new(),
            free_later: Vec::new(),
            past_totals: PeerCounters::NONE,
            last_nth: 0,
            left_behind: 0,
            by_identity: HashMap::new(),
            by_address: HashMap::new(),
            conns: Vec::new(),
            free_conns: Vec::new(),
            conn_index: ConnIndex::default(),
            last_conn: (0, Conn(u64::MAX), NO_CONN),
            matcher: Matcher::default(),
            windows: Windows::default(),
            stream: EventStream::new(),
            faults: Faults::default(),
            late: Vec::new(),
            timed: Vec::new(),
            dirty: Vec::new(),
            leaving: Vec::new(),
            orphans: Vec::new(),
            parked: Vec::new(),
            round: 1,
            short_until: SHORT_ROUNDS,
            unflushed: false,
            next_tick: u64::MAX,
            soon: Vec::new(),
            soon_at: u64::MAX,
            closed: false,
            deadlines: BinaryHeap::new(),
            greeting: Vec::new(),
            tab: Tab::CLOSED,
            events: Vec::with_capacity(256),
        }
    }

    /// The address that peers are told, so that they can connect back.
    pub fn set_address(&mut self, a: &Address) {
        self.my_address = a.to_string();
    }

    /// The schemes that were to have a port here and have none, and why: said when a peer that has a better way is reached by a worse.
    pub fn set_missing(&mut self, schemes: Vec<(String, String)>) {
        self.missing = schemes;
    }

    /// The limits in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    // ---- peers ----

    /// The peer at an address; connections come when they are needed. The same address gives the same peer, for as long as it is known:
    /// when [`Limits::max_peers`] are, those make room that nothing was owed to or by for [`Limits::peer_timeout`], oldest first, and operations
    /// under their names fail with `PeerLost` from then on. `Limit` if there is none.
    pub fn peer(&mut self, io: &mut Io<'_>, address: &Address) -> Result<PeerId> {
        self.close_tab();
        let text = address.to_string();
        if let Some(&pi) = self.by_address.get(&text) {
            let p = &mut self.peers[pi as usize];
            (p.wanted, p.known_at) = (true, io.now);
            return Ok(p.name);
        }
        let reachable = address
            .ways()
            .iter()
            .any(|w| io.ports.iter().any(|p| p.ways().iter().any(|m| m.scheme == w.scheme)));
        if !reachable {
            let have: Vec<_> = io.ports.iter().flat_map(|p| p.ways()).map(|w| w.scheme).collect();
            return Err(Error::new(
                Kind::Unreachable,
                "peer",
                format!("no provider here for {text}; this endpoint has {}", have.join(", ")),
            ));
        }
        let pi = self.new_peer(io, Some(address.clone()), true)?;
        self.by_address.insert(text, pi);
        self.list_candidates(io, pi);
        Ok(self.peers[pi as usize].name)
    }

    /// The name of whoever a peer has turned out to be.
    pub(crate) fn real_name(&self, id: PeerId) -> PeerId {
        let p = self.peers.get(id.index as usize).filter(|p| p.name == id);
        p.and_then(|p| p.alias).unwrap_or(id)
    }

    #[inline]
    pub(crate) fn peer_index(&self, id: PeerId, op: &'static str) -> Result<u32> {
        match self.peers.get(id.index as usize) {
            Some(p) if p.name == id && !self.closed => Ok(p.alias.map_or(id.index, |a| a.index)),
            _ if self.closed => Err(Error::new(Kind::Closed, op, "the endpoint is closed")),
            _ => Err(Error::new(Kind::PeerLost, op, "the peer is gone")),
        }
    }

    // ---- verbs ----

    /// Sends a message. Ends when the memory may be reused, or with [`SendOptions::delivered`] when the peer has it. Without
    /// credit it waits; that is no error. Peer death: `PeerLost`, with the fate.
    ///
    /// `None`: it has ended already.
    #[inline(always)]
    pub fn send(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        payload: Payload<'_>,
        opts: SendOptions,
    ) -> Result<Option<OpId>> {
        self.close_tab();
        let pi = self.peer_index(to, "send")?;
        self.send_message(io, pi, payload, opts)
    }

    /// Receives a message that `want` accepts, into a buffer (else into a fresh one if it is large).
    #[inline]
    pub fn recv(&mut self, io: &mut Io<'_>, want: Want, into: Option<Buffer>) -> Result<Started> {
        self.receive(io, want, into.map(Room::One))
    }

    /// The first message that waits and that `want` accepts; it stays where it is.
    pub fn peek(&self, want: Want) -> Option<Peeked> {
        let from = want.from.map(|from| self.real_name(from));
        self.matcher.peek(&Want { from, ..want })
    }

    /// Ends an operation early, as `Canceled` or `TimedOut`. `false` if it has ended already. What the peer may have seen is in
    /// the error's fate; memory still lent to a transport is freed when it comes back. A receive's message is not lost: another gets it.
    pub fn cancel(&mut self, io: &mut Io<'_>, op: OpId, kind: Kind) -> bool {
        self.close_tab();
        if !self.ops.is_waiting(op) {
            return false;
        }
        let text = if kind == Kind::TimedOut { "the deadline passed" } else { "cancelled" };
        let name = self.ops.name(op);
        let fate = self.withdraw(io, op);
        self.ops.complete(op, Err(Error::new(kind, name, text).with_fate(fate)));
        true
    }

    /// Takes the protocol's side of an operation back as far as it can; the fate tells how far that was.
    fn withdraw(&mut self, io: &mut Io<'_>, op: OpId) -> Fate {
        match self.ops.proto(op) {
            Some(Proto::Recv { .. } | Proto::RecvAll { .. }) => {
                self.matcher.withdraw(op);
                self.end_op(op);
                Fate::NotSent
            }
            Some(Proto::Send { peer } | Proto::Large { peer, .. }) => {
                let pi = peer.index;
                let q = &mut self.peers[pi as usize].tx.deferred;
                match q.iter().position(|d| d.op == op) {
                    Some(at) => {
                        q.remove(at);
                        // There may be credit for the one behind it.
                        self.mark_dirty(pi);
                        self.drop_exposure(io, op);
                        self.end_op(op);
                        Fate::NotSent
                    }
                    None => {
                        if let Some(Proto::Large { canceled, .. }) = self.ops.proto(op) {
                            *canceled = true;
                        }
                        Fate::Unknown
                    }
                }
            }
            // Its message goes on coming, and then waits for the next receive.
            Some(Proto::Fetch { .. } | Proto::Pieces { waited: Some(_), .. }) => {
                self.orphan(io.now, op);
                Fate::NotSent
            }
            // Pieces still on their way are discarded; memory that a port is filling is freed when the port gives it back.
            Some(Proto::Pieces { .. }) => {
                self.end_op(op);
                Fate::Unknown
            }
            Some(Proto::Write { .. }) => {
                self.withdraw_write(op);
                Fate::Unknown
            }
            // It ends when its memory is back.
            Some(Proto::Back { .. }) => Fate::NotSent,
            Some(Proto::Notice { .. }) => {
                self.withdraw_notice(op);
                Fate::NotSent
            }
            _ => Fate::Unknown,
        }
    }

    /// The result of an ended operation, once.
    #[inline]
    pub fn take(&mut self, op: OpId) -> Option<Result<Outcome>> {
        self.ops.take(op)
    }

    /// The same for one that hands nothing over: `true` once, when it has ended well.
    #[inline(always)]
    pub fn take_unit(&mut self, op: OpId) -> bool {
        self.ops.take_unit(op)
    }

    /// Whom to wake when the operation ends.
    pub fn set_waker(&mut self, op: OpId, waker: &Waker) {
        self.ops.set_waker(op, waker);
    }

    /// The operation ends with `TimedOut` if it has not ended by `at_ns` (the caller's clock).
    pub fn set_deadline(&mut self, op: OpId, at_ns: u64) {
        // Operations that ended early leave their entry behind: sweep when those outnumber the living.
        if self.deadlines.len() > 1024 + 2 * self.ops.live() {
            self.deadlines.retain(|Reverse((_, op))| self.ops.is_waiting(*op));
        }
        self.deadlines.push(Reverse((at_ns, op)));
        self.next_tick = self.next_tick.min(at_ns);
    }

    /// The user lets go. A receive is withdrawn, or its message put back in front of the queue: dropping a future loses nothing. So
    /// is the wait for a notice.
    /// Everything else goes on to its end unwatched.
    pub fn detach(&mut self, io: &mut Io<'_>, op: OpId) {
        self.close_tab();
        let waits =
            |p: &mut Proto| matches!(p, Proto::Recv { .. } | Proto::RecvAll { .. } | Proto::Notice { .. });
        if self.ops.proto(op).is_some_and(waits) {
            self.withdraw(io, op);
        } else {
            self.orphan(io.now, op);
        }
        if let Some(Ok(outcome)) = self.ops.detach(op) {
            self.give_back(outcome);
        }
    }

    /// The user lets go of the value of an operation that it never looked at: what came from a peer goes to the next that waits for it, or
    /// to its place in the queue.
    pub fn give_back(&mut self, outcome: Outcome) {
        self.close_tab();
        match outcome {
            Outcome::Message(m) => self.give_again(m),
            Outcome::Parts(p) => self.give_again(p.gathered()),
            Outcome::Notice(n) => self.notice_again(n),
            Outcome::Unit | Outcome::Buffer(_) | Outcome::Buffers(_) => {}
        }
    }

    // ---- progress ----

    /// One round: takes what the ports have, delivers it, sends what waits, runs due timers. `false`: there was nothing to do.
    pub fn poll(&mut self, io: &mut Io<'_>) -> bool {
        self.close_tab();
        self.round += 1;
        self.short_until = self.round + SHORT_ROUNDS;
        if self.unflushed {
            self.unflushed = false;
            io.ports.iter_mut().for_each(|p| p.flush());
        }
        let mut busy = false;
        for port in 0..io.ports.len() {
            let mut events = std::mem::take(&mut self.events);
            busy |= io.ports[port].poll(io.now, &mut events);
            if !events.is_empty() {
                self.on_events(io, port, &mut events);
            }
            self.events = events;
        }
        if !self.parked.is_empty() {
            self.retry_parked(io);
        }
        if !self.soon.is_empty() {
            self.acknowledge_soon(io.now);
        }
        if io.now >= self.next_tick {
            self.tick(io);
        }
        if !self.dirty.is_empty() {
            busy = true;
            self.drain_dirty(io);
        }
        if self.unflushed {
            self.unflushed = false;
            io.ports.iter_mut().for_each(|p| p.flush());
        }
        busy
    }

    /// `true` if a message to this peer would be the first to wait: for credit, or for room in its rail.
    pub fn has_stalled(&self, to: PeerId) -> bool {
        self.peers.get(to.index as usize).is_some_and(|p| {
            let free = |ci: &u32| !self.conns[*ci as usize].blocked;
            p.name == to
                && p.tx.is_drained()
                && !p.active.is_empty()
                && (p.tx.credit() == 0 || !p.active.iter().any(free))
        })
    }

    /// `true` if the operation's result waits.
    #[inline]
    pub fn has_ended(&self, op: OpId) -> bool {
        !self.ops.is_waiting(op)
    }

    /// Frames are handled where they lie: moving each event once more would cost as much as handling it.
    #[inline]
    fn on_events(&mut self, io: &mut Io<'_>, port: usize, events: &mut Vec<Event>) {
        for e in events.iter_mut() {
            if let Event::Frame { conn, header, inline, body_len } = e {
                self.on_frame_event(io, port, *conn, header, inline, *body_len);
            } else {
                let done = Event::Writable { conn: Conn(u64::MAX) };
                let e = std::mem::replace(e, done);
                self.on_event(io, port, e);
            }
        }
        events.clear();
    }

    pub(crate) fn drain_dirty(&mut self, io: &mut Io<'_>) {
        // A peer that becomes dirty again meanwhile is served in the next round: no loop without end.
        let mut list = std::mem::take(&mut self.dirty);
        for pi in list.drain(..) {
            self.peers[pi as usize].dirty = false;
            if !self.peers[pi as usize].rx.held.is_empty() {
                self.release_held(io, pi);
            }
            self.drain(io, pi);
        }
        if self.dirty.is_empty() {
            self.dirty = list;
        }
    }

    /// The next time at which `poll` must be called although no port has news; `None`: only news matter.
    pub fn deadline(&self, ports: &[Box<dyn Port>]) -> Option<u64> {
        let mine = if self.dirty.is_empty() { self.next_tick.min(self.soon_at) } else { 0 };
        let theirs = ports.iter().filter_map(|p| p.deadline()).min().unwrap_or(u64::MAX);
        Some(mine.min(theirs)).filter(|t| *t != u64::MAX)
    }

    /// `true` if a round would send something now: frames wait for a flush, or a peer has become ready to send to.
    pub fn wants_poll(&self) -> bool {
        self.unflushed || !self.dirty.is_empty()
    }

    /// `true` after [`Machine::close`].
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Says goodbye to all peers and ends every operation with `Closed`. The ports may be dropped after one more flush.
    pub fn close(&mut self, io: &mut Io<'_>) {
        self.close_tab();
        if self.closed {
            return;
        }
        for pi in 0..self.peers.len() as u32 {
            self.drain(io, pi);
            self.say_bye(io, pi);
        }
        io.ports.iter_mut().for_each(|p| p.flush());
        self.closed = true;
        self.peers.iter_mut().for_each(|p| p.short = NOWHERE);
        for id in self.ops.all() {
            self.drop_exposure(io, id);
            let why = Error::new(Kind::Closed, self.ops.name(id), "the endpoint was closed");
            self.ops.finish(id, Err(why.with_fate(Fate::Unknown)));
        }
        self.close_windows(io);
    }

    /// After [`Machine::close`] and the last flush: lets go of all memory but the results that wait to be taken.
    pub fn forget_all(&mut self) {
        debug_assert!(self.closed);
        (self.peers, self.conns, self.conn_index) = Default::default();
        (self.free_peers, self.free_later, self.free_conns) = Default::default();
        (self.by_identity, self.by_address) = Default::default();
        (self.timed, self.dirty, self.late, self.parked, self.greeting) = Default::default();
        (self.matcher, self.windows, self.deadlines) = Default::default();
        (self.events, self.unflushed, self.next_tick) = (Vec::new(), false, u64::MAX);
        (self.soon, self.soon_at) = (Vec::new(), u64::MAX);
        self.last_conn.2 = NO_CONN;
    }

    // ---- faults ----

    /// Adds a fault rule; `Kind::Limit` above [`crate::MAX_RULES`], `Kind::InvalidArgument` if its chance is none.
    pub fn add_fault(&mut self, io: &mut Io<'_>, mut rule: FaultRule) -> Result<FaultId> {
        self.close_tab();
        rule.peer = rule.peer.map(|p| self.real_name(p));
        if !(0.0..=1.0).contains(&rule.chance) {
            let why = format!("a chance of {}: it must be 0.0 to 1.0", rule.chance);
            return Err(Error::new(Kind::InvalidArgument, "fault", why));
        }
        let id = self.faults.add(rule).ok_or_else(|| {
            Error::new(Kind::Limit, "fault", format!("{} fault rules are in force", crate::MAX_RULES))
        })?;
        for pi in 0..self.peers.len() as u32 {
            self.refresh_rails(pi);
        }
        if rule.action == FaultAction::Cut {
            self.cut_rails(io);
        }
        Ok(id)
    }

    /// Removes a fault rule; how often it struck, `None` if there is none of that name.
    pub fn remove_fault(&mut self, id: FaultId) -> Option<u64> {
        self.close_tab();
        let hits = self.faults.remove(id);
        for pi in 0..self.peers.len() as u32 {
            self.refresh_rails(pi);
            self.heal(pi);
        }
        hits
    }

    // ---- connections by their port's name ----

    #[inline(always)]
    pub(crate) fn conn_at(&mut self, port: usize, conn: Conn) -> Option<u32> {
        let (p, c, i) = self.last_conn;
        if p == port && c == conn && i != NO_CONN {
            return Some(i);
        }
        let i = *self.conn_index.get(&(port, conn))?;
        self.last_conn = (port, conn, i);
        Some(i)
    }

    pub(crate) fn add_conn(&mut self, io: &Io<'_>, port: usize, conn: Conn, peer: Option<u32>) -> u32 {
        let caps = io.ports[port].caps();
        if self.schemes.len() <= port {
            let first = io.ports.iter().map(|p| p.ways().into_iter().next());
            self.schemes = first.map(|w| w.map_or_else(String::new, |w| w.scheme)).collect();
        }
        let c = ConnState {
            port,
            conn,
            peer,
            dialed: peer.is_some(),
            ready: peer.is_none(),
            up: false,
            live: true,
            closing: false,
            blocked: false,
            taking: None,
            delivery: caps.delivery,
            rank: caps.rank,
            weight: u64::from(caps.weight.max(1)),
            max_body: caps.max_body,
            eager_max: caps.eager_max,
            fetch_min: caps.fetch_min.max(self.limits.fetch_min),
            rma: caps.rma,
            unacked_bytes: 0,
            rma_bytes: 0,
            far_port: 0,
            ready_at: io.now,
            used_at: io.now,
            heard_at: io.now,
            asked_at: 0,
            tx_bytes: 0,
            rx_bytes: 0,
            tx_frames: 0,
            rx_frames: 0,
            resent: 0,
            pace: Default::default(),
        };
        let ci = match self.free_conns.pop() {
            Some(ci) => {
                self.conns[ci as usize] = c;
                ci
            }
            None => {
                self.conns.push(c);
                (self.conns.len() - 1) as u32
            }
        };
        self.conn_index.insert((port, conn), ci);
        ci
    }

    pub(crate) fn remove_conn(&mut self, ci: u32) {
        let c = &mut self.conns[ci as usize];
        c.live = false;
        c.up = false;
        self.conn_index.remove(&(c.port, c.conn));
        self.leaving.retain(|l| *l != ci);
        if self.last_conn.2 == ci {
            self.last_conn.2 = NO_CONN;
        }
        self.free_conns.push(ci);
    }

    // ---- bookkeeping of operations ----

    /// An operation began to wait for this peer.
    #[inline(always)]
    pub(crate) fn expect(&mut self, now: u64, pi: u32) {
        let p = &mut self.peers[pi as usize];
        if p.expects == 0 {
            p.expect_since = now;
            // Nobody has waited for a connection until now, whenever one was last missed.
            if p.tx.unacked.is_empty() && p.tx.is_drained() {
                p.cut_since = None;
            }
        }
        p.expects += 1;
        // Where the port itself sees a death, nobody has to be probed.
        if p.keep || p.rails.is_empty() {
            self.set_timer(pi, now);
        }
    }

    /// An operation waits no more for its peer.
    #[inline(always)]
    pub(crate) fn unexpect(&mut self, old: &Proto) {
        if let Some(peer) = old.peer()
            && let Some(p) = self.peers.get_mut(peer.index as usize).filter(|p| p.name == peer)
        {
            p.expects = p.expects.saturating_sub(1);
            if let Proto::Pieces { asked: true, .. } = old {
                p.tx.reads = p.tx.reads.saturating_sub(1);
                if !p.tx.asks.is_empty() {
                    self.mark_dirty(peer.index);
                }
            }
        }
    }

    /// Ends the protocol's side of an operation.
    #[inline(always)]
    pub(crate) fn end_op(&mut self, op: OpId) -> Proto {
        let old = self.ops.end_proto(op);
        self.unexpect(&old);
        old
    }

    /// Ends both sides of an operation.
    #[inline(always)]
    pub(crate) fn finish(&mut self, op: OpId, result: Result<Outcome>) {
        self.ops.complete(op, result);
        self.end_op(op);
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("peers", &self.peers.len())
            .field("ops", &self.ops.live())
            .finish_non_exhaustive()
    }
}
