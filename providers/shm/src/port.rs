//! The port: a listener, the connections, one epoll descriptor. Called by the lane that drives it, one thread at a time.
//!
//! How a poll goes: what is pending; the rings of the hot links (no system call, nothing allocated); links that wait for room;
//! and every [`CONTROL_NS`] or [`CONTROL_POLLS`] polls a look at epoll, where deaths, greetings and requests show.

use crate::conns::{Attempt, Conns, Patience, Source, State};
use crate::ctl::{self, Got};
use crate::greet::{End, Greeting, Host, Parts, Progress};
use crate::link::{Link, Posted, hostile};
use crate::mem::{Access, Farewell, Slots};
use crate::name;
use crate::regions::Regions;
use crate::wire::{Denial, Msg};
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::{
    Caps, Conn, DownReason, Event, Exposure, Frame, Next, Port, PortConfig, RemoteKey, Rights, Rma,
    RmaStarted, RmaToken, Small, Way,
};
use kfab_core::sys::heavy_barrier;
use kfab_core::{Error, Kind, Result};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Frames that one poll reports at most.
const BATCH: usize = 64;
/// The short way up looks at so many links at most.
const SHORT_SCAN: usize = 4;
/// Frames that it takes from one link while others may have some too.
const SHORT_TURN: u32 = 64;
/// A look at epoll at least so often, by the caller's clock: bounds how late a death is seen.
const CONTROL_NS: u64 = 30_000;
/// The same by polls, for a clock that stands still.
const CONTROL_POLLS: u32 = 4096;
/// Readiness reports taken at once.
const REPORTS: usize = 64;
/// Polls that an ended link may take to be drained: far more than a ring has lines.
const DRAINS: u32 = 8192;
/// Packets taken from one control socket at a time.
const PACKETS: usize = 64;
/// A listener that was put aside is looked at again after this time.
const LISTEN_AGAIN_NS: u64 = 10_000_000;
/// A dial that found the backlog full is tried again after this time.
const DIAL_AGAIN_NS: u64 = 2_000_000;

/// A port over shared memory.
pub(crate) struct ShmPort {
    pub(crate) caps: Caps,
    pub(crate) config: PortConfig,
    name: String,
    boot: String,
    listener: OwnedFd,
    /// `false` while too many greetings are under way.
    listening: bool,
    epoll: OwnedFd,
    doorbell: OwnedFd,
    pub(crate) conns: Conns,
    pub(crate) attempts: Vec<Conn>,
    pub(crate) hot: Vec<Conn>,
    /// Where the next scan of the hot links starts.
    turn: usize,
    /// Where the next look of the short way starts, and how many frames the link there may still give before it is another's turn.
    short_turn: usize,
    short_left: u32,
    /// Links whose caller waits for room.
    pub(crate) blocked: Vec<Conn>,
    /// Links that are ending: drained, then reported down.
    pub(crate) ending: Vec<Conn>,
    /// Links that were ended before their peer hung up: it may still be in our windows.
    pub(crate) lingering: Vec<Link>,
    pub(crate) slots: Slots,
    pub(crate) regions: Regions,
    pub(crate) now_ns: u64,
    control_at_ns: u64,
    polls: u32,
    /// Links we have said goodbye on, whose peers have not answered.
    pub(crate) closing: Vec<Conn>,
    /// The next deadline of a greeting or a goodbye.
    timer_ns: Option<u64>,
    pub(crate) armed: bool,
    pub(crate) sweep_at_ns: u64,
    /// The short way is free until then: nothing but the rings of the hot links has to be looked at. 0: a poll is due.
    short_until_ns: u64,
}

fn os(what: &str, e: Errno) -> Error {
    Error::os("open", what, e)
}

impl ShmPort {
    pub(crate) fn open(config: &PortConfig) -> Result<ShmPort> {
        let boot = name::boot()?;
        let name = match &config.listen {
            Some(text) => name::of_listen(text, &boot)?,
            None => name::random()?,
        };
        let listener = ctl::listener(&name).map_err(|e| os(&format!("listen as shm:{name}@{boot}"), e))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| os("an epoll descriptor", e))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let doorbell = eventfd(0, flags).map_err(|e| os("an eventfd", e))?;
        let watch = |fd: &OwnedFd, s: Source| {
            epoll::add(&epoll, fd, epoll::EventData::new_u64(s.to_u64()), epoll::EventFlags::IN)
                .map_err(|e| os("watch a descriptor", e))
        };
        watch(&listener, Source::Listener)?;
        watch(&doorbell, Source::Doorbell)?;
        Ok(ShmPort {
            caps: crate::caps(),
            config: config.clone(),
            name,
            boot,
            listener,
            listening: true,
            epoll,
            doorbell,
            conns: Conns::default(),
            attempts: Vec::new(),
            hot: Vec::new(),
            turn: 0,
            short_turn: 0,
            short_left: SHORT_TURN,
            blocked: Vec::new(),
            ending: Vec::new(),
            lingering: Vec::new(),
            slots: Slots::new()?,
            regions: Regions::default(),
            now_ns: 0,
            control_at_ns: 0,
            polls: 0,
            closing: Vec::new(),
            timer_ns: None,
            armed: false,
            sweep_at_ns: 0,
            short_until_ns: 0,
        })
    }

    fn watch(&self, fd: &OwnedFd, s: Source) -> std::result::Result<(), End> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(s.to_u64()), epoll::EventFlags::IN)
            .map_err(|e| End::new(DownReason::Broken, format!("watch a descriptor: {e}")))
    }

    fn host(&self) -> Host<'_> {
        Host { key: self.config.key.as_ref(), doorbell: self.doorbell.as_fd(), slots: self.slots.fd() }
    }

    /// The look at epoll: who came, who died, who asks.
    fn control(&mut self, events: &mut Vec<Event>) -> bool {
        const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.polls = 0;
        self.control_at_ns = self.now_ns.saturating_add(CONTROL_NS);
        if !self.listening && self.attempts.len() < self.config.max_connecting {
            self.listen(true);
        }
        let mut space = [const { MaybeUninit::uninit() }; REPORTS];
        let reports: &[epoll::Event] = match epoll::wait(&self.epoll, &mut space, Some(&NOW)) {
            Ok((reports, _)) => reports,
            Err(_) => &[],
        };
        for r in reports {
            match Source::from_u64(r.data.u64()) {
                Source::Listener => self.accept(events),
                Source::Doorbell => self.answer_doorbell(),
                Source::Socket(c) => self.socket_ready(c, events),
                Source::Process(c) => self.peer_gone(c, true),
            }
        }
        let found = !reports.is_empty();
        if !self.attempts.is_empty() {
            self.tend_attempts(events);
        }
        if self.now_ns >= self.sweep_at_ns {
            self.sweep(events);
        }
        self.timer_ns = self.next_timer();
        found
    }

    /// The next poll looks at epoll.
    pub(crate) fn look_soon(&mut self) {
        self.control_at_ns = 0;
        self.poll_first();
    }

    /// The short way is closed until the next poll.
    pub(crate) fn poll_first(&mut self) {
        self.short_until_ns = 0;
    }

    /// Until when nothing but rings has to be looked at.
    fn short_until_ns(&self) -> u64 {
        let busy = self.armed || !(self.blocked.is_empty() && self.ending.is_empty());
        if busy || self.hot.len() > SHORT_SCAN {
            return 0;
        }
        self.control_at_ns.min(self.timer_ns.unwrap_or(u64::MAX))
    }

    /// `true` if the next poll looks at epoll.
    pub(crate) fn looks_soon(&self) -> bool {
        self.control_at_ns == 0
    }

    fn connect_timeout_ns(&self) -> u64 {
        u64::try_from(self.config.connect_timeout.as_nanos()).unwrap_or(u64::MAX)
    }

    fn next_timer(&mut self) -> Option<u64> {
        let timeout = self.connect_timeout_ns();
        let conns = &mut self.conns;
        let attempts = self.attempts.iter().filter_map(|c| match conns.state(*c) {
            Some(State::Attempt(a)) if a.greeting.is_dialling() => Some(a.again_ns),
            Some(State::Attempt(a)) => a.patience.look_at_ns(timeout),
            _ => None,
        });
        let first = attempts.min();
        let closing = self.closing.iter().filter_map(|c| conns.link(*c).and_then(|l| l.close_by_ns));
        // No room for greetings, or no descriptors: look again later.
        let again = (!self.listening).then_some(self.now_ns.saturating_add(LISTEN_AGAIN_NS));
        closing.chain(first).chain(again).min()
    }

    fn answer_doorbell(&mut self) {
        let _ = rustix::io::read(&self.doorbell, &mut [0u8; 8]);
        self.wake_cold();
    }

    fn accept(&mut self, events: &mut Vec<Event>) {
        while self.attempts.len() < self.config.max_connecting {
            let socket = match ctl::accept(&self.listener) {
                Ok(s) => s,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => return self.listen(false),
            };
            if self.is_full() {
                let _ = ctl::send(&socket, &Msg::Deny(Denial::Full), &[]);
                continue;
            }
            match Greeting::server(socket) {
                Ok(g) => {
                    let conn = self.start(g, false);
                    self.watch_attempt(conn, events);
                }
                Err(end) => tracing::warn!(detail = end.detail, "a stranger was sent away"),
            }
        }
        self.listen(false);
    }

    /// Watches the listener or not: connections beyond the bound of greetings wait in the kernel's backlog.
    fn listen(&mut self, on: bool) {
        let flags = if on { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
        let data = epoll::EventData::new_u64(Source::Listener.to_u64());
        if epoll::modify(&self.epoll, &self.listener, data, flags).is_ok() {
            self.listening = on;
        }
    }

    fn is_full(&self) -> bool {
        self.conns.len() + self.lingering.len() >= self.config.max_conns.min(Conns::MAX)
    }

    fn start(&mut self, greeting: Greeting, known: bool) -> Conn {
        let patience = Patience::default();
        let a = Attempt { greeting, patience, again_ns: 0, known, refused: false, failed: None };
        let conn = self.conns.insert(State::Attempt(Box::new(a)));
        self.attempts.push(conn);
        conn
    }

    fn watch_attempt(&mut self, conn: Conn, events: &mut Vec<Event>) {
        let Some(State::Attempt(a)) = self.conns.state(conn) else { return };
        let Some(socket) = a.greeting.socket() else { return };
        let data = epoll::EventData::new_u64(Source::Socket(conn).to_u64());
        if let Err(e) = epoll::add(&self.epoll, socket, data, epoll::EventFlags::IN) {
            self.attempt_over(conn, End::new(DownReason::Broken, format!("watch a socket: {e}")), events);
        }
    }

    /// Lets a greeting go on.
    fn advance(&mut self, conn: Conn, events: &mut Vec<Event>) {
        let Some(State::Attempt(_)) = self.conns.state(conn) else { return };
        let Some(State::Attempt(mut a)) = self.conns.state(conn).map(|s| std::mem::replace(s, State::Free))
        else {
            return;
        };
        let went = a.greeting.advance(&self.host());
        let (known, refused, now) = (a.known, a.refused, self.now_ns);
        if let Ok(Progress::Again) = went {
            a.again_ns = now + DIAL_AGAIN_NS;
        }
        self.conns.set(conn, State::Attempt(a));
        match went {
            Ok(Progress::Wait | Progress::Again) => {}
            Ok(Progress::Dialled) => self.watch_attempt(conn, events),
            Ok(Progress::Up(parts)) => self.up(conn, *parts, known, refused, events),
            Err(end) => self.attempt_over(conn, end, events),
        }
    }

    fn up(&mut self, conn: Conn, parts: Parts, known: bool, refused: bool, events: &mut Vec<Event>) {
        self.attempts.retain(|c| *c != conn);
        if let Err(end) = self.watch(&parts.pidfd, Source::Process(conn)) {
            return self.attempt_over(conn, end, events);
        }
        self.conns.set(conn, State::Up(Box::new(Link::new(parts))));
        self.hot.push(conn);
        events.push(if known { Event::Up { conn } } else { Event::Incoming { conn } });
        if refused {
            events.push(Event::Writable { conn });
        }
        // Packets and frames may have come with the greeting.
        self.socket_ready(conn, events);
    }

    fn attempt_over(&mut self, conn: Conn, end: End, events: &mut Vec<Event>) {
        self.attempts.retain(|c| *c != conn);
        let State::Attempt(a) = self.conns.remove(conn) else { return };
        tracing::debug!(conn = conn.0, reason = ?end.reason, detail = end.detail, "no connection");
        if a.known {
            events.push(Event::Down { conn, reason: end.reason, detail: end.detail });
        }
    }

    /// Dials, deadlines and failures of the greetings.
    fn tend_attempts(&mut self, events: &mut Vec<Event>) {
        let now = self.now_ns;
        let timeout = self.connect_timeout_ns();
        let mut dialled = 0;
        for conn in self.attempts.clone() {
            let Some(State::Attempt(a)) = self.conns.state(conn) else { continue };
            let late = a.patience.is_over(now, timeout);
            let (dialling, again) = (a.greeting.is_dialling(), a.again_ns);
            if let Some(end) = a.failed.take() {
                self.attempt_over(conn, end, events);
            } else if late {
                let why = format!("no answer within {:?}", self.config.connect_timeout);
                self.attempt_over(conn, End::new(DownReason::Refused, why), events);
            } else if !dialling {
                dialled += 1;
            } else if now >= again && dialled < self.config.max_connecting {
                dialled += 1;
                self.advance(conn, events);
            }
        }
    }

    fn socket_ready(&mut self, conn: Conn, events: &mut Vec<Event>) {
        for _ in 0..PACKETS {
            let link = match self.conns.state(conn) {
                Some(State::Up(l)) => l,
                Some(State::Attempt(_)) => return self.advance(conn, events),
                _ => return,
            };
            match ctl::recv(&link.socket) {
                Got::Nothing => return,
                Got::End => return self.peer_gone(conn, false),
                Got::Packet(msg, fds) => {
                    if let Err(end) = self.request(conn, msg, fds, events) {
                        return self.end(conn, end);
                    }
                }
            }
        }
    }

    /// The peer hung up or died. What is in the ring is still reported.
    fn peer_gone(&mut self, conn: Conn, dead: bool) {
        let Some(link) = self.conns.link(conn) else { return };
        link.gone = true;
        let pid = link.pid;
        let end = match link.channel.peer_said() {
            _ if link.closing => End::new(DownReason::Closed, "closed"),
            Some(Farewell::Goodbye) => End::new(DownReason::Closed, "closed by the peer"),
            Some(Farewell::BrokenOff) => End::new(DownReason::Broken, format!("broken off by process {pid}")),
            None if dead => End::new(DownReason::PeerDead, format!("process {pid} died")),
            None => End::new(DownReason::PeerDead, format!("process {pid} is gone without a word")),
        };
        self.end(conn, end);
    }

    /// Ends a link once its ring is drained (at once, if the peer is hostile).
    pub(crate) fn end(&mut self, conn: Conn, end: End) {
        let Some(link) = self.conns.link(conn) else { return };
        // It is watched no longer: a closed socket would keep the descriptor readable for ever.
        let _ = epoll::delete(&self.epoll, &link.socket);
        let _ = epoll::delete(&self.epoll, &link.pidfd);
        let hostile = end.reason == DownReason::Hostile;
        if link.ending.is_none() {
            self.ending.push(conn);
        } else if !hostile {
            return;
        }
        link.ending = Some(end);
        self.poll_first();
    }

    /// Reports links down that have nothing left to report.
    pub(crate) fn bury(&mut self, events: &mut Vec<Event>) {
        for conn in std::mem::take(&mut self.ending) {
            let Some(link) = self.conns.link(conn) else { continue };
            let Some(end) = link.ending.clone() else { continue };
            link.drains += u32::from(link.untaken == 0);
            let hopeless = end.reason == DownReason::Hostile || link.drains > DRAINS;
            let drained = hopeless || link.channel.is_empty();
            if link.untaken != 0 || !drained {
                if !std::mem::replace(&mut link.hot, true) {
                    self.hot.push(conn);
                }
                self.ending.push(conn);
                continue;
            }
            let State::Up(mut link) = self.conns.remove(conn) else { continue };
            self.hot.retain(|c| *c != conn);
            self.blocked.retain(|c| *c != conn);
            self.closing.retain(|c| *c != conn);
            link.fail_waiting(&end, events);
            if !link.closing {
                let good = end.reason == DownReason::Closed;
                link.channel.say(if good { Farewell::Goodbye } else { Farewell::BrokenOff });
            }
            if !link.gone {
                let _ = rustix::net::shutdown(&link.socket, rustix::net::Shutdown::Both);
                self.lingering.push(*link);
            }
            tracing::debug!(conn = conn.0, reason = ?end.reason, detail = end.detail, "connection down");
            events.push(Event::Down { conn, reason: end.reason, detail: end.detail });
        }
    }

    #[inline(always)]
    fn scan_hot(&mut self, events: &mut Vec<Event>) {
        let n = self.hot.len();
        let mut left = BATCH;
        let mut at = self.turn;
        for _ in 0..n {
            if at >= n {
                at = 0;
            }
            let conn = self.hot[at];
            at += 1;
            let Some(link) = self.conns.link(conn) else { continue };
            match link.receive(conn, events, left) {
                Ok(0) => {}
                Ok(k) => {
                    left -= k;
                    if left == 0 {
                        break;
                    }
                }
                Err(end) => {
                    // What cannot be parsed is not looked at again.
                    self.end(conn, end);
                    self.hot.retain(|c| *c != conn);
                    break;
                }
            }
        }
        self.turn = at;
    }

    /// Tells callers of links that have room again.
    fn unblock(&mut self, events: &mut Vec<Event>) {
        for conn in std::mem::take(&mut self.blocked) {
            let Some(link) = self.conns.link(conn) else { continue };
            match link.channel.has_room() {
                Ok(true) => {
                    link.refused = false;
                    events.push(Event::Writable { conn });
                }
                Ok(false) => self.blocked.push(conn),
                Err(h) => self.end(conn, hostile(h)),
            }
        }
    }

    /// What the short way down could not send goes the long one, which sees to whatever it was.
    #[cold]
    #[inline(never)]
    fn post_one(&mut self, conn: Conn, header: u128, bytes: &[u8]) -> bool {
        self.post(conn, &[Frame::of_bytes(header, bytes)]) == 1
    }

    /// There is no room for what the caller wants to send: `Event::Writable` will follow.
    #[cold]
    fn refuse(&mut self, conn: Conn) {
        let Some(link) = self.conns.link(conn).filter(|l| !l.refused) else { return };
        link.refused = true;
        if self.armed {
            // Somebody sleeps, and was promised to be woken for room. As in `prepare_sleep`.
            link.channel.want_room();
            heavy_barrier();
            if link.channel.has_room() != Ok(false) {
                let _ = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
            }
        }
        self.blocked.push(conn);
        self.poll_first();
    }

    /// The short way up from one link.
    #[inline(always)]
    fn next_of(&mut self, conn: Conn, into: &mut Small) -> Next {
        into.conn = conn;
        self.conns.link(conn).map_or(Next::Nothing, |link| link.next_small(into))
    }

    /// The same from several: one that always has a frame keeps the others waiting for so many only.
    #[inline(never)]
    fn next_in_turn(&mut self, into: &mut Small) -> Next {
        for i in 0..self.hot.len() {
            let next = self.next_of(self.hot[(self.short_turn + i) % self.hot.len()], into);
            if next != Next::Nothing {
                self.short_left -= 1;
                if self.short_left == 0 {
                    self.short_left = SHORT_TURN;
                    self.short_turn = (self.short_turn + 1) % self.hot.len();
                }
                return next;
            }
        }
        Next::Nothing
    }

    /// Fails a connection attempt outside a poll.
    fn fail_attempt(&mut self, conn: Conn, end: End) {
        if let Some(State::Attempt(a)) = self.conns.state(conn) {
            a.failed = Some(end);
        }
    }
}

impl Port for ShmPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn ways(&self) -> Vec<Way> {
        vec![Way::new(crate::SCHEME, format!("{}@{}", self.name, self.boot))]
    }

    fn connect(&mut self, way: &Way) -> Result<Conn> {
        if way.scheme != crate::SCHEME {
            let why = format!("{way}: not a {} way", crate::SCHEME);
            return Err(Error::new(Kind::InvalidArgument, "connect", why));
        }
        let name = name::of_way(&way.rest, &self.boot)?;
        if self.is_full() {
            let why = format!("{} connections are open (PortConfig::max_conns)", self.conns.len());
            return Err(Error::new(Kind::Limit, "connect", why));
        }
        self.look_soon();
        Ok(self.start(Greeting::client(name), true))
    }

    fn close(&mut self, conn: Conn) {
        self.look_soon();
        let by = self.now_ns.saturating_add(self.connect_timeout_ns());
        match self.conns.state(conn) {
            Some(State::Up(link)) if !link.closing => {
                link.closing = true;
                link.close_by_ns = Some(by);
                self.closing.push(conn);
                // The goodbye lies after all that was pushed; the end of the socket makes the peer look.
                link.channel.say(Farewell::Goodbye);
                let _ = rustix::net::shutdown(&link.socket, rustix::net::Shutdown::Write);
            }
            Some(State::Attempt(_)) => {
                self.fail_attempt(conn, End::new(DownReason::Closed, "closed before it was up"));
            }
            _ => {}
        }
    }

    #[inline]
    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        let Some(link) = self.conns.link(conn) else {
            if let Some(State::Attempt(a)) = self.conns.state(conn) {
                a.refused = true;
            }
            return 0;
        };
        // Nobody keeps what is sent through memory: here it must not be dropped. `Down` is on its way.
        if !link.is_open() {
            return 0;
        }
        match link.post(frames) {
            Posted::All => frames.len(),
            Posted::Some(n) => {
                self.refuse(conn);
                n
            }
            Posted::Failed(end) => {
                self.end(conn, end);
                frames.len()
            }
        }
    }

    #[inline]
    fn post_small(&mut self, conn: Conn, header: u128, bytes: &[u8]) -> bool {
        let sent = self.conns.link(conn).is_some_and(|l| l.post_small(header, bytes));
        sent || self.post_one(conn, header, bytes)
    }

    #[inline]
    fn next_small(&mut self, now_ns: u64, into: &mut Small) -> Next {
        if now_ns >= self.short_until_ns {
            return Next::Poll;
        }
        let next = match self.hot[..] {
            [conn] => self.next_of(conn, into),
            _ => self.next_in_turn(into),
        };
        if next != Next::Nothing {
            return next;
        }
        // Not for politeness: loads that come less often let the peer's line arrive in one journey.
        std::hint::spin_loop();
        Next::Nothing
    }

    fn flush(&mut self) {}

    #[inline]
    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        self.now_ns = now_ns;
        let before = events.len();
        let mut moved = false;
        if self.armed {
            self.disarm();
        }
        self.scan_hot(events);
        if !self.blocked.is_empty() {
            self.unblock(events);
        }
        self.polls += 1;
        // Frames first: whoever was woken by one gets it before the descriptors are looked at.
        if self.polls >= CONTROL_POLLS
            || now_ns >= self.control_at_ns
            || self.timer_ns.is_some_and(|t| now_ns >= t)
        {
            moved |= self.control(events);
        }
        if !self.ending.is_empty() {
            self.bury(events);
        }
        self.short_until_ns = self.short_until_ns();
        moved || events.len() > before
    }

    fn take(&mut self, conn: Conn, mut landing: Option<Landing>) -> Option<Option<Landing>> {
        if let Some(link) = self.conns.link(conn).filter(|l| l.untaken != 0) {
            link.take(landing.as_mut());
        }
        Some(landing)
    }

    #[inline]
    fn take_now(&mut self, conn: Conn, into: &mut Landing) -> bool {
        let link = self.conns.link(conn).filter(|l| l.untaken != 0);
        link.map(|l| l.take(Some(into))).is_some()
    }

    fn expose(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure> {
        self.expose_memory(memory, rights)
    }

    fn revoke(&mut self, exposure: Exposure) {
        self.revoke_memory(exposure);
    }

    fn rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        self.start_rma(conn, rma, token)
    }

    #[inline]
    fn write_now(&mut self, conn: Conn, key: &RemoteKey, offset: u64, bytes: &[u8]) -> bool {
        let link = self.conns.link(conn).filter(|l| l.is_open());
        link.is_some_and(|l| l.far.write_now(&l.channel, key, offset, bytes))
    }

    #[inline]
    fn read_now(&mut self, conn: Conn, key: &RemoteKey, offset: u64, into: &mut Landing) -> bool {
        let link = self.conns.link(conn).filter(|l| l.is_open());
        link.is_some_and(|l| crate::rma::read(l, *key, offset, into) == Access::Done)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> bool {
        self.prepare_sleep()
    }

    fn deadline(&self) -> Option<u64> {
        if self.looks_soon() { Some(0) } else { self.timer_ns }
    }
}

impl Drop for ShmPort {
    /// Takes all windows back, and says goodbye so that peers can tell an end from a crash.
    fn drop(&mut self) {
        self.revoke_all();
        for (_, link) in self.conns.links() {
            link.channel.say(Farewell::Goodbye);
        }
    }
}
