//! The port of a card that is there: one card's port, its connections, one completion queue, one shared receive queue, one epoll descriptor. Called by `rail`
//! for the lane that drives it, one thread at a time.
//!
//! How a poll goes: the completion queue until it is empty or the batch is full (`flow`), then the links with something to do,
//! then (every few polls, or after a sleep) epoll for the side channels (`connect`), then links with a deadline or an end.

use crate::device::{self, Card, Gid};
use crate::ffi;
use crate::flow::Look;
use crate::link::{ByQpn, Link, Phase, Table};
use crate::manager::Manager;
use crate::memory::{EXTRA, Memory};
use crate::rail::{Numbers, Plan};
use crate::reaper::Reaper;
use crate::rma::Exposures;
use crate::side;
use crate::sys::{self, Async, Context, Cq, POLL_BATCH, Pd, Polled, QpLimits};
use crate::wire::{CREDITS, RESERVE};
use kfab_core::spi::{Conn, DownReason, Event, Next, PortConfig, Small};
use kfab_core::{Error, Kind, Result};
use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Events that one poll reports, about.
pub(crate) const EVENTS_MAX: usize = 256;
/// While nothing else calls for it, epoll is asked so often by the caller's clock, ns ...
const EPOLL_AFTER_NS: u64 = 500_000;
/// ... and at every Nth poll at the latest.
const EPOLL_EVERY: u32 = 256;
/// Readiness reports taken from epoll at once: each may cost the making of a queue pair.
const EPOLL_BATCH: usize = 16;
/// Requests of one queue pair under way.
pub(crate) const SEND_DEPTH: usize = 128;
/// Pieces of memory in one request.
const SGES: usize = 4;
/// Entries of the completion queue, half for receives and half for requests: at first, as all of them take their turn and few stay in
/// the processor's cache ...
const CQ_FIRST: usize = 2048;
/// ... and as more are needed, at most.
pub(crate) const CQ_MAX: usize = 65_536;
/// Work that got no completion for this long is not coming: beyond all retries of the card.
pub(crate) const STALLED: Duration = Duration::from_secs(10);
/// How often that is looked for.
const STALL_EVERY: Duration = Duration::from_secs(1);

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const COMPLETIONS: u64 = u64::MAX - 2;
const ASYNC: u64 = u64::MAX - 3;
const REAPER: u64 = u64::MAX - 4;
const MANAGER: u64 = u64::MAX - 5;

/// A port over verbs.
pub(crate) struct VerbsPort {
    pub(crate) config: PortConfig,
    pub(crate) card: Card,
    pub(crate) gid: Gid,
    /// Largest message of the card's port, bytes.
    pub(crate) max_message: usize,
    pub(crate) mtu: u8,
    pub(crate) lid: u16,
    /// Reads that a queue pair serves, and starts, at a time.
    pub(crate) reads: (u8, u8),
    pub(crate) local: SocketAddr,
    pub(crate) limits: QpLimits,
    // Queue pairs before the queues they use.
    pub(crate) links: Table,
    pub(crate) by_qpn: ByQpn,
    pub(crate) reaper: Reaper,
    /// The connection manager, where there is one ...
    pub(crate) manager: Option<Manager>,
    /// ... and whether our queue pairs are to be connected through it.
    pub(crate) managed: bool,
    pub(crate) memory: Memory,
    pub(crate) exposures: Exposures,
    /// Requests posted by all queue pairs; the completion queue has room for `requests_max`.
    pub(crate) requests: usize,
    pub(crate) requests_max: usize,
    /// Its entries, and how many they may become.
    entries: usize,
    entries_max: usize,
    pub(crate) cq: Arc<Cq>,
    pub(crate) pd: Arc<Pd>,
    context: Arc<Context>,
    /// Completions polled and not handled.
    pub(crate) polled: Polled,
    /// Events to report with the next poll.
    pub(crate) pending: VecDeque<Event>,
    /// Links to look at.
    pub(crate) list: Vec<Conn>,
    /// Links whose frames wait for company.
    pub(crate) dirty: Vec<Conn>,
    /// Links that were refused for want of what all share.
    pub(crate) starved: Vec<Conn>,
    /// Links with a deadline or an end.
    pub(crate) watch: Vec<Conn>,
    pub(crate) queue: VecDeque<Conn>,
    /// Our attempts under way.
    pub(crate) running: usize,
    /// Strangers being heard.
    pub(crate) heard: usize,
    pub(crate) listener: OwnedFd,
    pub(crate) listening: bool,
    /// No descriptor was left for who came: when to try again.
    pub(crate) listen_at: Option<Instant>,
    /// Attempts are being started.
    pub(crate) dialing: bool,
    pub(crate) epoll: Arc<OwnedFd>,
    timer: OwnedFd,
    armed: bool,
    pub(crate) ticks: u32,
    /// When epoll was asked last, by the caller's clock.
    asked_ns: u64,
    stall_look: Instant,
    /// The card said that its port is down ...
    pub(crate) down: bool,
    /// ... or is taken out, or of no use any more.
    pub(crate) lost: bool,
}

/// Receives that a connection needs.
pub(crate) const PROVIDE: usize = (CREDITS + RESERVE) as usize;

impl VerbsPort {
    pub(crate) fn open(
        plan: &Plan,
        card: Card,
        gid: Gid,
        at: SocketAddr,
        epoll: Arc<OwnedFd>,
        numbers: Numbers,
    ) -> Result<VerbsPort> {
        let (config, managed) = (&plan.config, plan.managed);
        let unavailable = |why: String| Error::new(Kind::Unavailable, "open", why);
        let os = |what: &'static str| move |e: std::io::Error| Error::os("open", what, e);
        let context = device::open(&card.name).map_err(unavailable)?;
        let attr = context.attr().map_err(os("query the card"))?;
        let port = context.port(card.port).map_err(os("query the port"))?;
        let pd = Pd::new(&context).map_err(os("a protection domain"))?;
        let positive = |n: std::ffi::c_int| usize::try_from(n).unwrap_or(0);
        let entries_max = CQ_MAX.min(positive(attr.max_cqe));
        let depth = (entries_max / 2)
            .min(positive(attr.max_srq_wr))
            .min(config.max_conns.saturating_mul(PROVIDE) + EXTRA);
        if depth < PROVIDE {
            return Err(unavailable(format!("{} has no shared receive queues", card.name)));
        }
        let mut memory = Memory::new(&pd, &card.name, plan.caps.node, depth)?;
        let (cq, entries) = first_queue(&context, entries_max).map_err(os("a completion queue"))?;
        let receives = memory.allow(entries / 2);
        let (listener, local) = side::listen(at)?;
        let timer = watch_all(&epoll, &listener, &cq, &context).map_err(os("an epoll descriptor"))?;
        let reaper = Reaper::start().map_err(os("a thread"))?;
        epoll::add(&epoll, reaper.fd(), epoll::EventData::new_u64(REAPER), epoll::EventFlags::IN)
            .map_err(|e| Error::os("open", "an epoll descriptor", e))?;
        let manager = match Manager::open(&card, local.ip()) {
            Ok(m) => Some(m),
            Err(why) if managed => return Err(unavailable(format!("{}: {why}", card.name))),
            Err(why) => {
                tracing::debug!(card = card.name, why, "a port without a connection manager");
                None
            }
        };
        if let Some(m) = &manager {
            epoll::add(&epoll, m, epoll::EventData::new_u64(MANAGER), epoll::EventFlags::IN)
                .map_err(|e| Error::os("open", "an epoll descriptor", e))?;
        }
        let reads = |n: std::ffi::c_int| u8::try_from(n.clamp(1, 16)).unwrap_or(1);
        Ok(VerbsPort {
            config: config.clone(),
            gid,
            max_message: (port.max_msg_sz as usize).clamp(4096, 1 << 30),
            mtu: mtu_of(&port),
            lid: port.lid,
            reads: (reads(attr.max_qp_rd_atom), reads(attr.max_qp_init_rd_atom)),
            local,
            limits: QpLimits {
                depth: SEND_DEPTH.min(positive(attr.max_qp_wr)),
                sges: SGES.min(positive(attr.max_sge)),
            },
            links: Table::after(numbers.conns),
            by_qpn: ByQpn::default(),
            reaper,
            manager,
            managed,
            memory,
            exposures: Exposures::after(numbers.exposures),
            requests: 0,
            requests_max: entries - receives - 1,
            entries,
            entries_max,
            cq,
            pd,
            context,
            polled: Polled::default(),
            pending: VecDeque::new(),
            list: Vec::new(),
            dirty: Vec::new(),
            starved: Vec::new(),
            watch: Vec::new(),
            queue: VecDeque::new(),
            running: 0,
            heard: 0,
            listener,
            listening: true,
            listen_at: None,
            dialing: false,
            epoll,
            timer,
            armed: true,
            ticks: 0,
            asked_ns: 0,
            stall_look: Instant::now(),
            down: port.state != ffi::PORT_ACTIVE,
            lost: false,
            card,
        })
    }

    /// Makes the completion queue twice as large; `false` if it has become as large as it can.
    pub(crate) fn grow(&mut self) -> bool {
        let entries = self.entries_max.min(self.entries * 2);
        if entries == self.entries {
            return false;
        }
        if let Err(e) = self.cq.resize(entries) {
            tracing::debug!(card = self.card.name, entries, %e, "the completion queue does not grow");
            self.entries_max = self.entries;
            return false;
        }
        self.entries = entries;
        self.requests_max = entries - self.memory.allow(entries / 2) - 1;
        true
    }

    /// Whether the completion queue has no room for so many more requests, nor can get it.
    #[inline]
    pub(crate) fn is_crowded(&mut self, more: usize) -> bool {
        self.requests + more >= self.requests_max && !self.grow()
    }

    /// Puts a link onto the list of those to look at.
    pub(crate) fn list(&mut self, conn: Conn) {
        if let Some(l) = self.links.get(conn).filter(|l| !l.listed) {
            l.listed = true;
            self.list.push(conn);
        }
    }

    /// Begins the end of a connection; the first reason counts.
    pub(crate) fn end(&mut self, conn: Conn, reason: DownReason, detail: impl Into<String>) {
        let Some(l) = self.links.get(conn) else { return };
        if l.end.is_some() {
            return;
        }
        let (before, detail) = (l.phase, detail.into());
        tracing::debug!(name: "end", card = self.card.name, conn = conn.0, ?reason, detail, "a connection ends");
        l.end = Some((reason, detail));
        l.ended_at = self.ticks;
        l.phase = Phase::Ending;
        l.deadline = Some(Instant::now() + DRAIN);
        l.greeter = None;
        if let Some(qp) = &mut l.qp {
            qp.fail();
        }
        let ours = l.ours;
        self.watch.push(conn);
        self.left_attempt(before, ours);
    }

    /// Handles completions. Whether there were any, and whether there are none left.
    fn completions(&mut self, events: &mut Vec<Event>) -> (bool, bool) {
        let mut busy = false;
        let mut more = true;
        loop {
            while let Some(wc) = self.polled.next() {
                busy = true;
                self.completed(&wc, events);
            }
            if !more {
                return (busy, true);
            }
            if events.len() >= EVENTS_MAX {
                return (busy, false);
            }
            match self.cq.poll(&mut self.polled) {
                Ok(n) => more = n == POLL_BATCH,
                Err(e) => {
                    self.end_all(&e.to_string());
                    return (busy, true);
                }
            }
        }
    }

    pub(crate) fn end_all(&mut self, why: &str) {
        for conn in self.links.names() {
            self.end(conn, DownReason::Broken, why);
        }
    }

    fn look_at_list(&mut self, events: &mut Vec<Event>) -> bool {
        let list = std::mem::take(&mut self.list);
        let busy = !list.is_empty();
        for conn in list {
            if let Some(l) = self.links.get(conn) {
                l.listed = false;
            }
            if self.look(conn, events) == Look::More {
                self.list(conn);
            }
        }
        busy
    }

    fn descriptors(&mut self, events: &mut Vec<Event>) -> bool {
        let mut ready = Vec::with_capacity(EPOLL_BATCH);
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&zero)).is_err() {
            return false;
        }
        let busy = !ready.is_empty();
        for e in ready {
            match e.data.u64() {
                LISTENER => self.accept(),
                TIMER => {
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                }
                COMPLETIONS => self.cq.take_events(),
                ASYNC => self.asynchronous(),
                REAPER => self.reaped(events),
                MANAGER => self.manager_says(),
                id => self.side_ready(Conn(id)),
            }
        }
        busy
    }

    fn asynchronous(&mut self) {
        let port = u64::from(self.card.port);
        while let Some(e) = self.context.next_async() {
            match e {
                Async::PortDown(p) if p == port => {
                    self.down = true;
                    let why = format!("{} port {port} went down", self.card.name);
                    self.end_all(&why);
                }
                Async::PortUp(p) if p == port => {
                    self.down = self.lost;
                    self.changed();
                }
                Async::PortChanged(p) if p == port => self.changed(),
                Async::Fatal => self.lose("the card reported a fatal error"),
                _ => {}
            }
        }
    }

    /// What a cable brings along, or an administrator, may be other than when it was last looked at.
    fn changed(&mut self) {
        if let Ok(port) = self.context.port(self.card.port) {
            (self.mtu, self.lid) = (mtu_of(&port), port.lid);
        }
        if let Some(gid) = device::gid_again(&self.card, &self.gid, self.local.ip()) {
            self.gid = gid;
        }
    }

    /// The card is taken out, or beyond help: nobody is connected here any more.
    pub(crate) fn lose(&mut self, why: &str) {
        (self.down, self.lost) = (true, true);
        // Strangers would keep the card here as long as they keep calling.
        if std::mem::take(&mut self.listening) {
            let _ = watch_listener(&self.epoll, &self.listener, false);
        }
        self.end_all(why);
    }

    /// `true` when the card is lost and nobody waits for anything that has to do with it.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.lost && self.links.len() == 0 && self.pending.is_empty()
    }

    /// Gives up everything made on the card; the numbers used.
    pub(crate) fn close(self) -> Numbers {
        let numbers = Numbers { conns: self.links.last(), exposures: self.exposures.last() };
        drop(self);
        sys::manager::forget_lost_cards();
        numbers
    }

    /// Ends links whose work got no completion for too long.
    fn look_for_stalls(&mut self, now: Instant) {
        if self.requests == 0 || now < self.stall_look {
            return;
        }
        self.stall_look = now + STALL_EVERY;
        let mut stalled = Vec::new();
        for l in self.links.iter_mut().filter(|l| l.phase == Phase::Up) {
            let waits = l.qp.as_ref().is_some_and(|q| q.awaits());
            match l.seen {
                (n, Some(since)) if waits && n == l.progress => {
                    if now.duration_since(since) > STALLED {
                        stalled.push(l.id);
                    }
                }
                _ => l.seen = (l.progress, waits.then_some(now)),
            }
        }
        for conn in stalled {
            self.end(conn, DownReason::Broken, "the card reported no end of work for 10 s");
        }
    }

    fn next_deadline(&mut self) -> Option<Instant> {
        let watch = std::mem::take(&mut self.watch);
        let first = watch.iter().filter_map(|c| self.links.get(*c)?.next_deadline()).min();
        self.watch = watch;
        let stall = (self.requests > 0).then_some(self.stall_look);
        first.into_iter().chain(stall).chain(self.listen_at).min()
    }

    fn set_timer(&mut self) {
        let next = self
            .next_deadline()
            .map(|d| d.saturating_duration_since(Instant::now()) + Duration::from_micros(100));
        set(&self.timer, next.unwrap_or_default());
    }

    pub(crate) fn ring_dirty(&mut self) {
        for conn in std::mem::take(&mut self.dirty) {
            self.ring(conn);
        }
    }
}

/// How long what is under way may take to be flushed.
const DRAIN: Duration = Duration::from_millis(200);
/// Between the end of the side channel and the verdict that the peer is dead: its last words may still be in the card.
const LAST_WORDS: Duration = Duration::from_millis(2);
/// After the manager has said that the peer's queue pair is gone: the side channel may know why.
const BETTER_WORDS: Duration = Duration::from_millis(200);

impl Link {
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let alive = self.phase != Phase::Ending;
        let eof = self.eof.filter(|_| alive).map(|t| t + LAST_WORDS);
        let gone = self.disconnected.filter(|_| alive).map(|t| t + BETTER_WORDS);
        // An end that waits for the caller's `take` needs no timer.
        let drains = self.phase != Phase::Ending || self.qp.is_some();
        self.deadline.filter(|_| drains).into_iter().chain(eof).chain(gone).min()
    }
}

/// Sets a timer, once; zero: not at all.
pub(crate) fn set(timer: &OwnedFd, after: Duration) {
    let value = Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
    let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    if let Err(e) = timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec) {
        tracing::warn!(%e, "the timer of a port cannot be set");
    }
}

/// A completion queue and its entries: few, if it can grow.
fn first_queue(context: &Arc<Context>, most: usize) -> std::io::Result<(Arc<Cq>, usize)> {
    let few = most.min(CQ_FIRST);
    let cq = Cq::new(context, few / 2)?;
    Ok(if cq.resize(few).is_ok() { (cq, few) } else { (Cq::new(context, most)?, most) })
}

fn mtu_of(port: &ffi::PortAttr) -> u8 {
    u8::try_from(port.active_mtu.clamp(1, 5)).unwrap_or(1)
}

fn watch_all(epoll: &OwnedFd, listener: &OwnedFd, cq: &Cq, context: &Context) -> std::io::Result<OwnedFd> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let add =
        |fd: BorrowedFd<'_>, n| epoll::add(epoll, fd, epoll::EventData::new_u64(n), epoll::EventFlags::IN);
    add(listener.as_fd(), LISTENER)?;
    add(timer.as_fd(), TIMER)?;
    add(cq.as_fd(), COMPLETIONS)?;
    add(context.async_fd(), ASYNC)?;
    Ok(timer)
}

/// For pausing and resuming the listener.
pub(crate) fn watch_listener(epoll: &OwnedFd, listener: &OwnedFd, on: bool) -> rustix::io::Result<()> {
    if on {
        epoll::add(epoll, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)
    } else {
        epoll::delete(epoll, listener)
    }
}

/// What `rail` hands on: see [`kfab_core::spi::Port`].
impl VerbsPort {
    pub(crate) fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        let had = events.len();
        events.extend(self.pending.drain(..));
        self.ring_dirty();
        let (mut busy, drained) = self.completions(events);
        busy |= self.look_at_list(events);
        self.ticks = self.ticks.wrapping_add(1);
        let ask = std::mem::take(&mut self.armed)
            || !self.watch.is_empty()
            || self.ticks.is_multiple_of(EPOLL_EVERY)
            || now_ns.wrapping_sub(self.asked_ns) >= EPOLL_AFTER_NS;
        if ask {
            self.asked_ns = now_ns;
            let more = self.descriptors(events);
            busy |= more;
            let now = Instant::now();
            // Completions that came before a side channel ended are handled before the end.
            busy |= drained && self.watched(now, events);
            self.look_for_stalls(now);
            self.memory.age(now);
            if self.ticks.is_multiple_of(1024) && !self.memory.cache.is_empty() {
                self.memory.cache.sweep();
            }
        }
        if let Err(e) = self.memory.post_many() {
            self.end_all(&e.to_string());
        }
        self.ring_dirty();
        events.extend(self.pending.drain(..));
        busy || events.len() > had
    }

    #[inline]
    pub(crate) fn next_small(&mut self, into: &mut Small) -> Next {
        let due = self.armed
            || !self.pending.is_empty()
            || !self.list.is_empty()
            || !self.dirty.is_empty()
            || !self.watch.is_empty();
        if due || (self.polled.is_empty() && self.cq.poll(&mut self.polled).is_err()) {
            return Next::Poll;
        }
        if self.polled.is_empty() {
            // Time to spare: receives posted now need not be posted before the next message leaves.
            return if self.memory.post_many().is_ok() { Next::Nothing } else { Next::Poll };
        }
        self.next_frame(into)
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.ring_dirty();
        if !self.pending.is_empty() || !self.list.is_empty() || !self.polled.is_empty() || self.has_ends() {
            return false;
        }
        self.cq.take_events();
        if self.cq.request_event().is_err() || !matches!(self.cq.poll(&mut self.polled), Ok(0)) {
            return false;
        }
        self.set_timer();
        self.armed = true;
        true
    }
}

impl Drop for VerbsPort {
    fn drop(&mut self) {
        tracing::debug!(card = self.card.name, receives = self.memory.posted(), "a port closes");
        for l in self.links.iter_mut() {
            if let Some(s) = &l.socket {
                let _ = side::say(s, &[side::PARTING]);
            }
            if let Some(mut qp) = l.qp.take() {
                qp.fail();
                drop(qp.destroy());
            }
        }
    }
}
