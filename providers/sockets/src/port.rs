//! The port: a listener, the links, one edge-triggered epoll descriptor. Called by the lane that drives it, one thread at a
//! time. The life of links that are not up is in `attempts`.
//!
//! How a poll goes: what is pending, then the links known to have work, then the hot ones by reading their sockets directly,
//! then (every few polls only, while some are hot) epoll. Each poll reports a bounded batch.

use crate::attempts::{Attempts, Timers};
use crate::link::{End, Link, Phase, Shared};
use crate::net::{self, Rail};
use crate::send::{BATCH, QUEUE_MAX, Sender, Wrote};
use crate::table::{HOT_MAX, Hot, Table};
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::{
    Caps, Conn, DownReason, Event, Exposure, Frame, Next, Port, PortConfig, Rights, Rma, RmaStarted,
    RmaToken, Small, Way,
};
use kfab_core::{Error, Kind, Result};
use rustix::event::{Timespec, epoll};
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Events that one poll reports at most (and one more per link that ends in it).
const EVENTS_MAX: usize = 256;
/// Readiness reports taken from epoll at once.
const EPOLL_BATCH: usize = 64;
/// While links are hot, epoll is asked at every Nth poll at most.
const EPOLL_EVERY: u32 = 64;
/// The same while a link waits for room in its socket.
const EPOLL_EVERY_BLOCKED: u32 = 4;
/// Polls without sleep after which hot links leave epoll: each arrival then costs the kernel one wake-up call less.
const DETACH_AFTER: u32 = 1024;
/// A detached link that waits for room in its socket tries at every Nth poll.
const RETRY_EVERY: u32 = 8;
/// The epoll name of the listener; no link has it.
pub(crate) const LISTENER: u64 = u64::MAX;

/// A port over TCP.
pub(crate) struct TcpPort {
    pub(crate) caps: Caps,
    pub(crate) config: PortConfig,
    pub(crate) rail: Rail,
    pub(crate) listener: OwnedFd,
    pub(crate) links: Table,
    pub(crate) shared: Shared,
    /// Events found outside a poll.
    pub(crate) pending: VecDeque<Event>,
    /// Links that may have work without a new edge.
    pub(crate) ready: VecDeque<Conn>,
    /// Links with frames that wait for company.
    dirty: Vec<Conn>,
    hot: Hot,
    /// The last link that had to wait for room in its socket.
    blocked: Option<Conn>,
    ticks: u32,
    /// Polls since the last sleep or detachment.
    awake: u32,
    every: u32,
    pub(crate) attempts: Attempts,
    pub(crate) timers: Timers,
    epoll: OwnedFd,
}

impl TcpPort {
    pub(crate) fn open(config: &PortConfig, mut rail: Rail, shared: Shared, caps: Caps) -> Result<TcpPort> {
        let listener = rail.listen()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| Error::os("open", "an epoll descriptor", e))?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &listener, epoll::EventData::new_u64(LISTENER), flags)
            .map_err(|e| Error::os("open", "watch the listener", e))?;
        Ok(TcpPort {
            caps,
            config: config.clone(),
            rail,
            listener,
            links: Table::default(),
            shared,
            pending: VecDeque::new(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            hot: Hot::default(),
            blocked: None,
            ticks: 0,
            awake: 0,
            every: 1,
            attempts: Attempts::default(),
            timers: Timers::default(),
            epoll,
        })
    }

    /// Lets epoll watch a link's socket from now on.
    pub(crate) fn watch(&self, id: Conn, fd: &OwnedFd) -> std::result::Result<(), End> {
        watch(&self.epoll, id, fd)
    }

    /// Puts a link in the list of those with work.
    pub(crate) fn make_ready(&mut self, id: Conn) {
        if let Some(l) = self.links.get(id).filter(|l| !l.in_ready) {
            l.in_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Ends a link: hands back a lent landing, then says why. An untaken body holds the end back.
    pub(crate) fn finish(&mut self, id: Conn, end: End, events: &mut Vec<Event>) {
        let Some(link) = self.links.get(id) else { return };
        if link.is_untaken() {
            link.dead = Some(end);
            return;
        }
        if let Some(mut link) = self.links.remove(id) {
            self.bury(&mut link, end, events);
        }
    }

    fn bury(&mut self, link: &mut Link, end: End, events: &mut Vec<Event>) {
        if let Some(landing) = link.abandon() {
            events.push(Event::Taken { conn: link.id, landing, ok: false });
        }
        link.drain(&mut self.shared);
        if end.reason == DownReason::Closed || matches!(link.phase, Phase::Refusing) {
            link.shut();
        }
        self.hot.remove(link.id);
        self.attempts.ended(link);
        tracing::debug!(conn = link.id.0, reason = ?end.reason, detail = end.detail, "connection down");
        if link.known {
            events.push(Event::Down { conn: link.id, reason: end.reason, detail: end.detail });
        }
    }

    /// The same outside a poll: the events wait for the next one.
    fn finish_later(&mut self, id: Conn, end: End) {
        let mut events = Vec::new();
        self.finish(id, end, &mut events);
        self.pending.extend(events);
    }

    /// Gives one link a turn; `true` if anything happened.
    fn serve(&mut self, id: Conn, events: &mut Vec<Event>, limit: usize) -> bool {
        let Some(link) = self.links.get(id) else { return false };
        if !link.is_open() {
            return self.serve_attempt(id, events);
        }
        if link.is_untaken() || link.dead.is_some() {
            return false;
        }
        let was_up = matches!(link.phase, Phase::Up);
        match link.pump(&mut self.shared, events, limit) {
            Ok(turn) => {
                if was_up && matches!(link.phase, Phase::Closing) {
                    // The peer's goodbye: our last frames have as long as after a goodbye of ours.
                    self.timers.start(link);
                }
                if turn.again {
                    self.make_ready(id);
                }
                turn.moved
            }
            Err(end) => {
                self.finish(id, end, events);
                true
            }
        }
    }

    /// Writes what a link has queued; tells a refused caller of new room.
    fn push_out(&mut self, id: Conn, events: &mut Vec<Event>) {
        let Some(link) = self.links.get(id) else { return };
        if let Err(end) = link.write(&mut self.shared) {
            return self.finish(id, end, events);
        }
        if link.tx_blocked {
            self.blocked = Some(id);
        }
        if link.refused && link.is_open() && link.tx.len() <= QUEUE_MAX / 2 {
            link.refused = false;
            events.push(Event::Writable { conn: id });
        }
    }

    fn push_out_dirty(&mut self, events: &mut Vec<Event>) {
        while let Some(id) = self.dirty.pop() {
            if let Some(link) = self.links.get(id) {
                link.dirty = false;
                self.push_out(id, events);
            }
        }
    }

    fn serve_ready(&mut self, events: &mut Vec<Event>, limit: usize) -> bool {
        let mut moved = false;
        for _ in 0..self.ready.len() {
            if events.len() >= limit {
                return true;
            }
            let Some(id) = self.ready.pop_front() else { break };
            let Some(link) = self.links.get(id) else { continue };
            link.in_ready = false;
            moved |= self.serve(id, events, limit);
        }
        moved
    }

    fn serve_hot(&mut self, events: &mut Vec<Event>, limit: usize) -> bool {
        let mut moved = false;
        for i in 0..HOT_MAX {
            let Some(id) = self.hot.at(i) else { continue };
            let Some(link) = self.links.get(id) else { continue };
            if link.in_ready || events.len() >= limit {
                continue;
            }
            link.readable = true;
            if link.detached && link.tx_blocked && self.awake.is_multiple_of(RETRY_EVERY) {
                link.tx_blocked = false;
                self.push_out(id, events);
            }
            let now = self.serve(id, events, limit);
            moved |= now;
            if let Some(cold) = self.hot.note(i, now) {
                self.cool(cold);
            }
        }
        moved
    }

    /// A link is hot no longer: it gets one more turn, in case an edge was seen but not followed.
    fn cool(&mut self, id: Conn) {
        self.attach(id);
        if let Some(link) = self.links.get(id) {
            link.readable = true;
            self.make_ready(id);
        }
    }

    /// Puts a link back into epoll, which reports at once what it missed.
    fn attach(&mut self, id: Conn) {
        let Some(link) = self.links.get(id).filter(|l| l.detached) else { return };
        link.detached = false;
        let Some(fd) = &link.fd else { return };
        if let Err(end) = watch(&self.epoll, id, fd) {
            self.finish_later(id, end);
        }
    }

    /// Counts polls; after many without sleep the hot links leave epoll, and memory that was not used since goes back.
    fn stay_awake(&mut self) {
        self.awake += 1;
        if self.awake < DETACH_AFTER {
            return;
        }
        self.awake = 0;
        if !std::mem::take(&mut self.shared.bulk) {
            self.shared.spare = None;
        }
        for i in 0..HOT_MAX {
            let Some(link) = self.hot.at(i).and_then(|id| self.links.get(id)).filter(|l| !l.detached) else {
                continue;
            };
            if let Some(fd) = link.fd.as_ref().filter(|_| link.is_open()) {
                link.detached = epoll::delete(&self.epoll, fd).is_ok();
            }
        }
    }

    /// Asks epoll what changed, without waiting, and marks the links; `true` if anything not hot did.
    fn harvest(&mut self, events: &mut Vec<Event>) -> bool {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut news = false;
        loop {
            let mut room = [const { MaybeUninit::uninit() }; EPOLL_BATCH];
            let Ok((reports, _)) = epoll::wait(&self.epoll, &mut room, Some(&NOW)) else { return news };
            // Few at once may stay hot; many are served as epoll names them.
            let few = reports.len() <= HOT_MAX;
            for r in reports.iter() {
                news |= self.report(r.data.u64(), r.flags, few, events);
            }
            if reports.len() < EPOLL_BATCH {
                return news;
            }
        }
    }

    /// One readiness report.
    fn report(&mut self, name: u64, flags: epoll::EventFlags, few: bool, events: &mut Vec<Event>) -> bool {
        use epoll::EventFlags as F;
        if name == LISTENER {
            self.attempts.accept_ready = true;
            return true;
        }
        let id = Conn(name);
        let Some(link) = self.links.get(id) else { return false };
        if flags.intersects(F::RDHUP | F::HUP | F::ERR) {
            link.hup = true;
        }
        let out = flags.contains(F::OUT) && link.tx_blocked;
        if !link.is_open() {
            (link.readable, link.tx_blocked) = (true, link.tx_blocked && !out);
            self.make_ready(id);
            return true;
        }
        let readable = flags.intersects(F::IN | F::RDHUP | F::HUP | F::ERR);
        link.readable |= readable;
        if out {
            link.tx_blocked = false;
            self.push_out(id, events);
        }
        let was_hot = self.hot.has(id);
        if readable {
            self.make_ready(id);
            if few && let Some(cold) = self.hot.add(id) {
                self.cool(cold);
            }
        }
        (readable && !was_hot) || out
    }

    /// `true` if it is epoll's turn.
    fn is_epoll_turn(&mut self) -> bool {
        if self.hot.is_empty() {
            return true;
        }
        self.ticks += 1;
        let blocked = self.blocked.and_then(|id| self.links.get(id)).is_some_and(|l| l.tx_blocked);
        let every = if blocked { self.every.min(EPOLL_EVERY_BLOCKED) } else { self.every };
        if self.ticks < every {
            return false;
        }
        self.ticks = 0;
        true
    }

    fn ask_epoll(&mut self, events: &mut Vec<Event>, limit: usize) -> bool {
        let news = self.harvest(events);
        self.every = if news { 1 } else { (self.every * 2).min(EPOLL_EVERY) };
        let mut moved = self.serve_ready(events, limit);
        if self.attempts.accept_ready {
            moved |= self.accept();
        }
        moved
    }

    /// The short way up: reads the one hot link past everything that a poll does, until it is time for a poll.
    #[inline]
    fn next_bare(&mut self, now_ns: u64, into: &mut Small) -> Next {
        let Some(id) = self.hot.only() else { return Next::Poll };
        self.ticks += 1;
        let is_calm = self.pending.is_empty() && self.ready.is_empty() && self.dirty.is_empty();
        if !is_calm || self.ticks >= self.every || self.timers.is_next(now_ns) {
            return Next::Poll;
        }
        let Some(link) = self.links.get(id).filter(|l| l.is_calm()) else { return Next::Poll };
        let (next, rest) = match link.next_bare(&mut self.shared, into) {
            Ok(None) => return Next::Nothing,
            Ok(Some(frame)) => (if frame { Next::Frame } else { Next::Poll }, !link.rx.is_empty()),
            Err(end) => {
                self.finish_later(id, end);
                return Next::Poll;
            }
        };
        self.hot.stir();
        if rest {
            self.make_ready(id);
        }
        next
    }

    /// Queues frames on a link that is up; the number accepted.
    fn enqueue(link: &mut Link, frames: &[Frame<'_>], sh: &mut Shared) -> std::result::Result<usize, End> {
        if let ([f], None, Some(fd)) = (frames, &link.session, &link.fd)
            && !link.tx_blocked
            && link.tx.is_quick(f)
        {
            match link.tx.frame_now(f, fd.as_fd(), &mut sh.pool) {
                Ok(Wrote::All) => {}
                wrote => link.wrote(wrote, sh)?,
            }
            return Ok(1);
        }
        let mut now = false;
        let mut accepted = 0;
        for f in frames {
            if link.tx.len() >= QUEUE_MAX {
                link.write(sh)?;
                if link.tx.len() >= QUEUE_MAX {
                    break;
                }
            }
            let len = f.body.len();
            if len > crate::wire::MAX_BODY {
                let why = format!(
                    "a body of {len} bytes was posted; at most {} are carried",
                    crate::wire::MAX_BODY
                );
                return Err(End::new(DownReason::Broken, why));
            }
            accepted += 1;
            let direct = Sender::is_direct(f, link.session.is_some()) && !link.tx_blocked;
            match link.fd.as_ref().filter(|_| direct) {
                Some(fd) => {
                    let wrote = link.tx.frame_direct(f, fd.as_fd(), &mut sh.pool);
                    link.wrote(wrote, sh)?;
                    now = false;
                }
                None => {
                    link.tx.frame(f, link.session.as_deref_mut(), &mut sh.pool);
                    now |= !f.more;
                }
            }
            if link.is_mute() {
                return Ok(frames.len());
            }
        }
        if now || link.tx.len() >= BATCH {
            link.write(sh)?;
        }
        Ok(accepted)
    }
}

/// By edges: a report for each arrival, and when a full socket has room again.
fn watch(epoll: &OwnedFd, id: Conn, fd: &OwnedFd) -> std::result::Result<(), End> {
    use epoll::EventFlags as F;
    let flags = F::IN | F::OUT | F::RDHUP | F::ET;
    epoll::add(epoll, fd, epoll::EventData::new_u64(id.0), flags)
        .map_err(|e| End::broken("watch the socket", e))
}

impl Port for TcpPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn ways(&self) -> Vec<Way> {
        self.rail.addresses().into_iter().map(|a| Way::new(crate::SCHEME, a.to_string())).collect()
    }

    fn connect(&mut self, way: &Way) -> Result<Conn> {
        let bad = |why: String| Error::new(Kind::InvalidArgument, "connect", format!("{way}: {why}"));
        if way.scheme != crate::SCHEME {
            return Err(bad(format!("not a {} way", crate::SCHEME)));
        }
        let to = net::parse(&way.rest).ok_or_else(|| bad("expected ADDRESS:PORT".to_owned()))?;
        if to.port() == 0 || to.ip().is_unspecified() {
            return Err(bad("nobody can be reached there".to_owned()));
        }
        if self.links.len() >= self.config.max_conns {
            let why = format!("{} connections are open (PortConfig::max_conns)", self.links.len());
            return Err(Error::new(Kind::Limit, "connect", why));
        }
        Ok(self.start(to))
    }

    fn close(&mut self, conn: Conn) {
        let Some(link) = self.links.get(conn) else { return };
        let ended = match link.phase {
            Phase::Up => {
                self.timers.start(link);
                link.goodbye(&mut self.shared)
            }
            Phase::Closing => return,
            _ => Err(End::new(DownReason::Closed, "closed before it was up")),
        };
        if let Err(end) = ended {
            let mut events = Vec::new();
            self.finish(conn, end, &mut events);
            self.next_attempts(&mut events);
            self.pending.extend(events);
        }
    }

    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        let Some(link) = self.links.get(conn) else { return frames.len() };
        match link.phase {
            Phase::Up if !link.is_mute() => {}
            // The peer closes in good order and our last frames are on their way: what is offered now would be lost.
            Phase::Closing if link.peer_said_goodbye() => return 0,
            Phase::Up | Phase::Closing => return frames.len(),
            _ => {
                link.refused = true;
                return 0;
            }
        }
        match Self::enqueue(link, frames, &mut self.shared) {
            Ok(n) => {
                link.refused |= n < frames.len();
                if link.tx_blocked {
                    self.blocked = Some(conn);
                }
                if !link.dirty && !link.tx_blocked && !link.tx.is_empty() {
                    link.dirty = true;
                    self.dirty.push(conn);
                }
                if link.hup {
                    self.make_ready(conn);
                }
                n
            }
            Err(end) => {
                self.finish_later(conn, end);
                frames.len()
            }
        }
    }

    fn flush(&mut self) {
        if !self.dirty.is_empty() {
            let mut events = Vec::new();
            self.push_out_dirty(&mut events);
            self.pending.extend(events);
        }
    }

    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        let limit = before + EVENTS_MAX;
        self.stay_awake();
        // What is pending came first: nothing may overtake it.
        let n = self.pending.len().min(EVENTS_MAX);
        events.extend(self.pending.drain(..n));
        if !self.pending.is_empty() {
            return true;
        }
        self.push_out_dirty(events);
        if self.timers.is_due(now_ns) {
            self.expire(now_ns, events);
        }
        let mut moved = self.serve_ready(events, limit);
        moved |= self.serve_hot(events, limit);
        if self.is_epoll_turn() && events.len() < limit {
            moved |= self.ask_epoll(events, limit);
        }
        moved || events.len() > before
    }

    fn next_small(&mut self, now_ns: u64, into: &mut Small) -> Next {
        self.next_bare(now_ns, into)
    }

    fn take(&mut self, conn: Conn, landing: Option<Landing>) -> Option<Option<Landing>> {
        let Some(link) = self.links.get(conn).filter(|l| l.is_untaken()) else { return Some(landing) };
        let taken = link.take(landing, &mut self.shared);
        let dead = link.dead.take();
        let end = match (taken, dead) {
            (Ok(Some(landing)), end) => {
                match end {
                    None => self.make_ready(conn),
                    Some(end) => self.finish_later(conn, end),
                }
                return Some(landing);
            }
            (Ok(None), None) => return None,
            (Ok(None), Some(end)) | (Err(end), _) => end,
        };
        self.finish_later(conn, end);
        None
    }

    fn expose(&mut self, _memory: &Slice, _rights: Rights) -> Result<Exposure> {
        Err(Error::new(Kind::Unavailable, "expose", "sockets have no one-sided access of their own"))
    }

    fn revoke(&mut self, _exposure: Exposure) {}

    fn rma(&mut self, _conn: Conn, rma: Rma, _token: RmaToken) -> RmaStarted {
        let landing = match rma {
            Rma::Read { landing, .. } => Some(landing),
            Rma::Write { .. } => None,
        };
        RmaStarted::Failed(
            landing,
            Error::new(Kind::Unavailable, "rma", "sockets have no one-sided access of their own"),
        )
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> bool {
        let mut events = Vec::new();
        self.awake = 0;
        for i in 0..HOT_MAX {
            if let Some(id) = self.hot.at(i) {
                self.attach(id);
            }
        }
        self.push_out_dirty(&mut events);
        self.harvest(&mut events);
        self.pending.extend(events);
        let listener_waits = self.attempts.accept_ready && self.timers.accept_again_ns.is_none();
        // Memory that nothing may come for is given back.
        self.shared.spare = None;
        self.timers.asleep = self.pending.is_empty() && self.ready.is_empty() && !listener_waits;
        self.timers.asleep
    }

    fn deadline(&self) -> Option<u64> {
        self.timers.next_ns()
    }
}

impl Drop for TcpPort {
    /// Sends what the sockets take at once, and a goodbye where all of it went, so that peers can tell an end from a crash.
    fn drop(&mut self) {
        for link in self.links.iter_mut() {
            let _ = link.goodbye(&mut self.shared);
        }
    }
}
