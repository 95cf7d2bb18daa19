//! How connections come up and go away: dialling, accepting, greeting, closing, ends. Part of `port`.
//!
//! A close in good order: each side sends a goodbye after its last frame, the side asked to close as soon as it hears the other's. The
//! connection ends when ours was acknowledged by the peer's card and the peer's has come, so nothing under way is lost either way.
//!
//! Coming up, on the side channel:
//! ```text
//! connector                          acceptor
//! greeting                <->        greeting (see `kfab_core::auth::greeting`)
//! Params                   ->        makes its queue pair and connects it, ready to receive and send
//!                          <-        Params
//! connects its queue pair
//! confirmation             ->        only now is the connection reported
//! ```
//! By hand, here, or through the connection manager (`manager`): if either side wants that.
//! With a key all after the greeting is sealed, so a replayed proof gets no queue pair and nobody between the two can put in
//! another's. Frames are not encrypted: no card seals them.

use crate::link::{Link, Phase, tag};
use crate::port::{PROVIDE, VerbsPort, watch_listener};
use crate::side;
use crate::sys::{Keep, Qp, Route};
use crate::wire::{CREDITS, DIALECT, MAX_BODY, PARAMS_LEN, Params};
use kfab_core::auth::greeting::{Greeter, Outcome, Terms};
use kfab_core::auth::random_u64;
use kfab_core::spi::{Conn, DownReason, Event, Way};
use kfab_core::{Error, Fate, Kind, Result};
use rustix::event::epoll;
use rustix::io::Errno;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Attempts of ours that are under way at once, whatever the configuration allows: making queue pairs keeps the processor busy, not
/// the wire, so more at once would only make each take longer.
pub(crate) const DIALS_MAX: usize = 8;
/// Without a descriptor for who came the listener is looked at again after this time.
const LISTEN_AGAIN: Duration = Duration::from_millis(100);
/// How long we wait for the peer's goodbye after ours.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

impl VerbsPort {
    pub(crate) fn dial(&mut self, way: &Way) -> Result<Conn> {
        let bad = |why: &str| Error::new(Kind::InvalidArgument, "connect", format!("{way}: {why}"));
        if way.scheme != crate::SCHEME {
            return Err(bad("not a way of verbs"));
        }
        let to: SocketAddr = way.rest.parse().map_err(|_| bad("expected verbs:ADDRESS:PORT"))?;
        if self.down {
            let why = format!("{way}: {} port {} is down", self.card.name, self.card.port);
            return Err(Error::new(Kind::Unavailable, "connect", why));
        }
        if self.links.len() >= self.config.max_conns {
            let why = format!("{way}: the port has {} connections (PortConfig::max_conns)", self.links.len());
            return Err(Error::new(Kind::Limit, "connect", why));
        }
        let conn = self.links.insert(|id| Link { to: Some(to), ..Link::new(id, Phase::Queued, true) });
        let conn =
            conn.ok_or_else(|| Error::new(Kind::Limit, "connect", "the port has 65536 connections"))?;
        self.queue.push_back(conn);
        self.dial_queued();
        Ok(conn)
    }

    /// Starts attempts up to the storm bound.
    fn dial_queued(&mut self) {
        // One that fails at once asks for the next: this loop has it, not a call within a call for each.
        if std::mem::replace(&mut self.dialing, true) {
            return;
        }
        while self.running < self.config.max_connecting.clamp(1, DIALS_MAX)
            && let Some(conn) = self.queue.pop_front()
        {
            let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Queued) else { continue };
            let Some(to) = l.to else { continue };
            l.phase = Phase::Dialing;
            l.deadline = Some(Instant::now() + self.config.connect_timeout);
            self.running += 1;
            self.watch.push(conn);
            match side::dial(self.local, to) {
                Ok(fd) => {
                    let _ = epoll::add(
                        &self.epoll,
                        &fd,
                        epoll::EventData::new_u64(conn.0),
                        epoll::EventFlags::OUT,
                    );
                    if let Some(l) = self.links.get(conn) {
                        l.socket = Some(fd);
                    }
                }
                Err(e) => self.end(conn, DownReason::of_dial(&e), format!("{to}: {e}")),
            }
        }
        self.dialing = false;
    }

    /// A link that was on its way up is so no more.
    pub(crate) fn left_attempt(&mut self, before: Phase, ours: bool) {
        match before {
            Phase::Dialing | Phase::Greeting if ours => {
                self.running -= 1;
                self.dial_queued();
            }
            Phase::Greeting => {
                self.heard -= 1;
                self.listen_again();
            }
            _ => {}
        }
    }

    fn listen_again(&mut self) {
        self.listen_at = None;
        if !self.listening && !self.lost {
            self.listening = watch_listener(&self.epoll, &self.listener, true).is_ok();
        }
    }

    pub(crate) fn accept(&mut self) {
        loop {
            if self.heard >= self.config.max_connecting.max(1) {
                // Further ones wait in the kernel.
                self.listening = watch_listener(&self.epoll, &self.listener, false).is_err();
                return;
            }
            match side::accept(&self.listener) {
                Ok(Some(fd)) => self.hear_stranger(fd),
                Ok(None) => return,
                Err(e) => {
                    tracing::warn!(%e, "a connection cannot be accepted (`ulimit -n`?)");
                    // It stays there, and would be reported again at once.
                    self.listening = watch_listener(&self.epoll, &self.listener, false).is_err();
                    self.listen_at = (!self.listening).then(|| Instant::now() + LISTEN_AGAIN);
                    return;
                }
            }
        }
    }

    fn hear_stranger(&mut self, fd: std::os::fd::OwnedFd) {
        let until = Instant::now() + self.config.connect_timeout;
        let conn = self.links.insert(|id| Link {
            greeter: Some(Box::new(Greeter::acceptor())),
            deadline: Some(until),
            ..Link::new(id, Phase::Greeting, false)
        });
        let Some(conn) = conn else { return };
        let _ = epoll::add(&self.epoll, &fd, epoll::EventData::new_u64(conn.0), epoll::EventFlags::IN);
        if let Some(l) = self.links.get(conn) {
            l.socket = Some(fd);
        }
        self.heard += 1;
        self.watch.push(conn);
        self.greet(conn);
    }

    /// The side channel of a link has something.
    pub(crate) fn side_ready(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn) else { return };
        match l.phase {
            Phase::Queued => {}
            Phase::Dialing => self.dialed(conn),
            Phase::Greeting => self.greet(conn),
            Phase::Up | Phase::Ending => self.side_word(conn),
        }
    }

    /// What this port demands of every connection. Cards seal nothing.
    fn terms(&self) -> Terms {
        Terms { dialect: &DIALECT, key: self.config.key.clone(), seal: false }
    }

    fn dialed(&mut self, conn: Conn) {
        let terms = self.terms();
        let Some(l) = self.links.get(conn) else { return };
        let Some(fd) = &l.socket else { return };
        if let Err(e) = side::dialed(fd) {
            let to = l.to.map(|t| t.to_string()).unwrap_or_default();
            return self.end(conn, DownReason::of_dial(&e.into()), format!("{to}: {e}"));
        }
        let _ = epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(conn.0), epoll::EventFlags::IN);
        let mut out = Vec::new();
        match Greeter::connector(&terms, &mut out) {
            Ok(g) => {
                l.greeter = Some(Box::new(g));
                l.phase = Phase::Greeting;
                self.say(conn, &out);
            }
            Err(e) => self.end(conn, DownReason::Denied, e.to_string()),
        }
    }

    fn say(&mut self, conn: Conn, bytes: &[u8]) {
        let Some(fd) = self.links.get(conn).and_then(|l| l.socket.as_ref()) else { return };
        if !bytes.is_empty()
            && let Err(e) = side::say(fd, bytes)
        {
            self.end(conn, DownReason::Broken, format!("the side channel: {e}"));
        }
    }

    fn greet(&mut self, conn: Conn) {
        let (full, terms) = (self.is_full(), self.terms());
        loop {
            let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Greeting) else { return };
            let (Some(fd), Some(g)) = (&l.socket, &mut l.greeter) else { return };
            let n = match side::hear(fd, g.space()) {
                Ok(0) => return self.end(conn, DownReason::Broken, "the peer hung up while greeting"),
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(e) => return self.end(conn, DownReason::Broken, format!("the side channel: {e}")),
            };
            let mut out = Vec::new();
            let outcome = g.received(n, &terms, full, &mut out);
            self.say(conn, &out);
            let waited = matches!(outcome, Outcome::More);
            self.greeted(conn, outcome);
            if let Some(l) = self.links.get(conn).filter(|l| !waited && l.phase == Phase::Greeting) {
                l.deadline = Some(Instant::now() + self.config.connect_timeout);
            }
        }
    }

    /// `true` if strangers are to be turned away.
    fn is_full(&mut self) -> bool {
        let others = self.links.len() - self.heard;
        others >= self.config.max_conns || self.down || !self.has_room()
    }

    /// Whether there are receives for another connection; makes room for them where that is possible.
    fn has_room(&mut self) -> bool {
        while !self.memory.has_room(PROVIDE) {
            if self.memory.is_whole() || !self.grow() {
                return false;
            }
        }
        true
    }

    fn greeted(&mut self, conn: Conn, outcome: Outcome) {
        match outcome {
            Outcome::More => {}
            Outcome::Agreed => {
                if let Err(e) = self.agreed(conn) {
                    self.end(conn, DownReason::Broken, e.to_string());
                }
            }
            Outcome::Word(word) => match Params::parse(&word) {
                Ok(p) => {
                    if let Err(e) = self.join(conn, &p) {
                        self.end(conn, DownReason::Broken, e.to_string());
                    }
                }
                Err(why) => self.end(conn, DownReason::Hostile, why),
            },
            Outcome::Confirmed => {
                if let Some(l) = self.links.get(conn) {
                    l.confirmed = true;
                }
                self.is_up(conn);
            }
            Outcome::Refuse => self.end(conn, DownReason::Denied, "we refused"),
            Outcome::Denied(why) => self.end(conn, DownReason::Denied, why),
            Outcome::Full => {
                self.end(conn, DownReason::Broken, "the peer has no room for another connection")
            }
            Outcome::Garbage(why) => self.end(conn, DownReason::Hostile, why),
        }
    }

    /// Both sides agree: the connector tells first where its queue pair is.
    fn agreed(&mut self, conn: Conn) -> Result<()> {
        if self.links.get(conn).is_some_and(|l| l.ours) {
            self.make_queue_pair(conn, self.managed)?;
            self.tell(conn);
        }
        if let Some(g) = self.links.get(conn).and_then(|l| l.greeter.as_mut()) {
            g.hear(PARAMS_LEN);
        }
        Ok(())
    }

    /// Tells the peer where our queue pair is.
    fn tell(&mut self, conn: Conn) {
        let mut out = Vec::new();
        if let Some(l) = self.links.get(conn)
            && let (Some(own), Some(g)) = (&l.own, &mut l.greeter)
        {
            g.say(own.as_bytes(), &mut out);
        }
        self.say(conn, &out);
    }

    fn make_queue_pair(&mut self, conn: Conn, managed: bool) -> Result<()> {
        let failed = |what: &str, e: std::io::Error| Error::os("connect", what, e);
        let manager = if managed { self.manager_port()? } else { 0 };
        let mut qp = Qp::new(&self.pd, &self.cq, &self.memory.srq, tag(conn), &self.limits)
            .map_err(|e| failed("a queue pair (its number is limited by the card)", e))?;
        if qp.inline() < crate::wire::HEAD_MAX {
            qp.fail();
            return Err(Error::new(
                Kind::Unavailable,
                "connect",
                "the card takes no 64 bytes of inline data",
            ));
        }
        // What there is no room for, `provide` names.
        self.has_room();
        self.memory.provide(PROVIDE)?;
        let psn = random_u64()? as u32 & 0xff_ffff;
        let Some(l) = self.links.get(conn) else { return Ok(()) };
        l.own = Some(Params {
            qpn: qp.number().into(),
            psn: psn.into(),
            max_body: (MAX_BODY as u32).into(),
            credits: CREDITS.into(),
            lid: self.lid.into(),
            mtu: self.mtu,
            reads: self.reads.0,
            manager: manager.into(),
            place: if managed && !l.ours { crate::manager::new_pass()? } else { self.gid.bytes },
        });
        self.by_qpn.insert(qp.number(), conn);
        l.qp = Some(qp);
        Ok(())
    }

    /// Connects the queue pair to the peer's, or has it connected.
    fn join(&mut self, conn: Conn, peer: &Params) -> Result<()> {
        let Some(l) = self.links.get(conn) else { return Ok(()) };
        let ours = l.ours;
        let managed = peer.manager.get() != 0 || (!ours && self.managed);
        if !ours {
            self.make_queue_pair(conn, managed)?;
        }
        let Some(l) = self.links.get(conn) else { return Ok(()) };
        (l.credits, l.credits_max) = (peer.credits.get(), peer.credits.get());
        if !managed {
            self.join_by_hand(conn, peer)?;
        } else if ours {
            return self.ask_manager(conn, peer);
        }
        if !ours {
            self.tell(conn);
        }
        self.confirm(conn);
        Ok(())
    }

    fn join_by_hand(&mut self, conn: Conn, peer: &Params) -> Result<()> {
        let Some(l) = self.links.get(conn) else { return Ok(()) };
        let (Some(qp), Some(own)) = (&mut l.qp, &l.own) else { return Ok(()) };
        let route = Route {
            qpn: peer.qpn.get(),
            own_psn: own.psn.get(),
            psn: peer.psn.get(),
            gid: peer.place,
            lid: peer.lid.get(),
            mtu: i32::from(self.mtu.min(peer.mtu)),
            reads_out: self.reads.1.min(peer.reads),
            reads_in: self.reads.0,
            port: self.card.port,
            gid_index: self.gid.index,
        };
        l.ready = true;
        qp.connect(&route).map_err(|e| Error::os("connect", format!("connect the queue pair: {route:?}"), e))
    }

    /// The last word of the greeting: said by the connector, awaited by the acceptor.
    pub(crate) fn confirm(&mut self, conn: Conn) {
        let mut out = Vec::new();
        let Some(g) = self.links.get(conn).and_then(|l| l.greeter.as_mut()) else { return };
        let last = g.confirm(&mut out);
        self.say(conn, &out);
        self.greeted(conn, last);
    }

    /// Reports the connection, if all that makes it one has come.
    pub(crate) fn is_up(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Greeting) else { return };
        if !l.ready || !l.confirmed {
            return;
        }
        l.phase = Phase::Up;
        l.greeter = None;
        l.deadline = None;
        l.known = true;
        let ours = l.ours;
        self.pending.push_back(if ours { Event::Up { conn } } else { Event::Incoming { conn } });
        self.list(conn);
        self.left_attempt(Phase::Greeting, ours);
    }

    /// Something on the side channel of a link that is up: the end, or the word that comes before it.
    fn side_word(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn) else { return };
        let Some(fd) = &l.socket else { return };
        let mut byte = [0; 16];
        match side::hear(fd, &mut byte) {
            Ok(0) | Err(Errno::CONNRESET) => {}
            Ok(n) => {
                if byte[..n].iter().all(|b| *b == side::PARTING) {
                    l.parted = true;
                } else {
                    self.end(conn, DownReason::Hostile, "garbage on the side channel");
                }
                return;
            }
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(e) => {
                // Nobody answers on this way: the peer may live, and be reached by another.
                let _ = epoll::delete(&self.epoll, fd);
                return self.end(conn, DownReason::Broken, format!("the side channel: {e}"));
            }
        }
        let _ = epoll::delete(&self.epoll, fd);
        l.eof = Some(Instant::now());
        self.watch.push(conn);
    }

    pub(crate) fn begin_close(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn).filter(|l| l.end.is_none() && !l.closing) else { return };
        if l.phase != Phase::Up {
            return self.end(conn, DownReason::Closed, "closed before it was up");
        }
        self.part(conn);
    }

    /// The goodbye is due, now or after what waits.
    pub(crate) fn part(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn).filter(|l| !l.closing && l.phase == Phase::Up) else { return };
        l.closing = true;
        l.deadline = Some(Instant::now() + CLOSE_TIMEOUT);
        self.watch.push(conn);
        self.list(conn);
        self.look_for_goodbye(conn);
    }

    /// `true` if an end can be reported without waiting for anything.
    pub(crate) fn has_ends(&mut self) -> bool {
        let watch = std::mem::take(&mut self.watch);
        let ends = watch.iter().any(|c| {
            let Some(l) = self.links.get(*c) else { return false };
            let drained = l.qp.as_ref().is_none_or(|q| !q.awaits()) && !l.dying;
            l.phase == Phase::Ending && drained && (l.qp.is_some() || l.waiting.is_none())
        });
        self.watch = watch;
        ends
    }

    /// Looks at links with a deadline or an end; `true` if anything came of it.
    pub(crate) fn watched(&mut self, now: Instant, events: &mut Vec<Event>) -> bool {
        let had = events.len();
        if self.listen_at.is_some_and(|at| at <= now) {
            self.listen_again();
        }
        let mut watch = std::mem::take(&mut self.watch);
        watch.sort_unstable();
        watch.dedup();
        for conn in watch {
            let Some(l) = self.links.get(conn) else { continue };
            if l.phase != Phase::Ending && l.next_deadline().is_some_and(|d| d <= now) {
                self.overdue(conn);
            }
            let Some(l) = self.links.get(conn) else { continue };
            let over = l.phase == Phase::Ending && self.finish(conn, now, events);
            if let Some(l) = self.links.get(conn).filter(|_| !over)
                && (l.phase == Phase::Ending || l.next_deadline().is_some())
            {
                self.watch.push(conn);
            }
        }
        events.len() > had
    }

    fn overdue(&mut self, conn: Conn) {
        // What this port was too slow to hear does not count against the peer.
        if self.links.get(conn).is_some_and(|l| l.phase == Phase::Greeting) {
            self.greet(conn);
        }
        let overdue = |l: &&mut Link| l.next_deadline().is_some_and(|d| d <= Instant::now());
        let Some(l) = self.links.get(conn).filter(overdue) else { return };
        let (reason, why) = match l.phase {
            Phase::Queued | Phase::Dialing | Phase::Greeting => (DownReason::Refused, "no answer in time"),
            _ if l.eof.is_some() => match (l.peer_goodbye, l.goodbye_acked, l.parted) {
                (true, ..) | (_, true, _) => (DownReason::Closed, ""),
                (.., true) => (DownReason::Broken, "the peer's port ended the connection"),
                _ => (DownReason::PeerDead, "the peer's side channel ended without a goodbye"),
            },
            _ if l.disconnected.is_some() => match l.peer_goodbye || l.goodbye_acked {
                true => (DownReason::Closed, ""),
                false => {
                    (DownReason::Broken, "the connection manager says that the peer's queue pair is gone")
                }
            },
            _ if l.goodbye_acked => (DownReason::Closed, "the peer did not say goodbye"),
            _ => (DownReason::Broken, "the goodbye was not acknowledged"),
        };
        self.end(conn, reason, why);
    }

    /// Goes on with an end: drains the queue pair, hands out what is left, reports. `true` when the link is gone.
    fn finish(&mut self, conn: Conn, now: Instant, events: &mut Vec<Event>) -> bool {
        let Some(l) = self.links.get(conn) else { return true };
        // A driver forgets what the completion queue holds of a queue pair that goes: all that came before the end is handled first, in a whole poll.
        if l.qp.is_some() && self.ticks.wrapping_sub(l.ended_at) < 2 {
            return false;
        }
        // Requests that ask for no completion hold nothing. Those of them that went well before the end are never told of.
        if l.qp.as_ref().is_some_and(|q| q.awaits()) && l.deadline.is_some_and(|d| now < d) {
            return false;
        }
        self.end_queue_pair(conn, events);
        let Some(l) = self.links.get(conn) else { return true };
        if l.dying {
            return false;
        }
        let (reason, detail) = l.end.clone().unwrap_or((DownReason::Broken, String::new()));
        if !l.known || reason == DownReason::Hostile {
            for (slot, _) in std::mem::take(&mut l.backlog) {
                self.memory.buried(slot);
            }
        }
        self.deliver(conn, events);
        let Some(l) = self.links.get(conn) else { return true };
        if l.waiting.is_some() || !l.backlog.is_empty() {
            return false;
        }
        if let Some(s) = l.socket.as_ref().filter(|_| l.eof.is_none()) {
            let _ = side::say(s, &[side::PARTING]);
        }
        if l.known {
            events.push(Event::Down { conn, reason, detail });
        }
        self.links.remove(conn);
        true
    }

    /// Everything that was lent to the queue pair comes back; nothing more arrives. Where something is still under way on one that
    /// broke, that takes until the reaper is done.
    fn end_queue_pair(&mut self, conn: Conn, events: &mut Vec<Event>) {
        let Some(l) = self.links.get(conn) else { return };
        // Nothing was on its way to it: it went in good order, or was never used.
        let used = l.progress > 0 || (l.ready && l.confirmed);
        let well = !used || matches!(l.end, Some((DownReason::Closed, _)));
        let waiting = std::mem::take(&mut l.rma_waiting);
        for (rma, token) in waiting {
            let landing = crate::rma::landing_of(rma);
            let result = Err(Error::new(Kind::PeerLost, "rma", "the connection ended"));
            events.push(Event::RmaDone { token, landing, result });
        }
        let Some(l) = self.links.get(conn) else { return };
        let Some(mut qp) = l.qp.take() else { return };
        self.memory.orphan(l.backlog.len() + usize::from(l.waiting.is_some()));
        self.by_qpn.remove(qp.number());
        if well {
            let n = qp.staged() + qp.flying();
            let keeps = qp.destroy();
            self.lost(n, keeps, events);
            self.memory.withdraw(PROVIDE, true);
        } else {
            let n = qp.staged();
            let keeps = qp.unstage();
            l.dying = qp.holds();
            self.lost(n, keeps, events);
            self.reaper.take(conn, qp);
        }
        self.wake_starved();
    }

    /// So many requests are no more, with their queue pair, and this is the memory of some.
    fn lost(&mut self, n: usize, keeps: Vec<Keep>, events: &mut Vec<Event>) {
        self.requests = self.requests.saturating_sub(n);
        for keep in keeps {
            let error = Error::new(Kind::PeerLost, "rma", "the connection ended").with_fate(Fate::Unknown);
            self.dispose(keep, Err(error), events);
        }
    }

    /// Queue pairs that broke are gone.
    pub(crate) fn reaped(&mut self, events: &mut Vec<Event>) {
        while let Some((conn, n, keeps)) = self.reaper.next() {
            self.lost(n, keeps, events);
            self.memory.withdraw(PROVIDE, false);
            if let Some(l) = self.links.get(conn) {
                l.dying = false;
                self.watch.push(conn);
            }
        }
        debug_assert!(
            self.requests == 0 || !self.reaper.is_idle() || self.links.iter_mut().any(|l| l.qp.is_some()),
            "{} requests of no queue pair",
            self.requests
        );
        self.wake_starved();
    }

    /// Gives the memory of a request back to whom it belongs.
    pub(crate) fn dispose(&mut self, keep: Keep, result: Result<()>, events: &mut Vec<Event>) {
        match keep {
            Keep::Nothing | Keep::Piece | Keep::Goodbye => {}
            Keep::Frame(slot, _) => self.memory.sent(slot),
            Keep::Read(landing, _, token) => {
                events.push(Event::RmaDone { token, landing: Some(landing), result })
            }
            Keep::Write(_, _, token) | Keep::Lost(token) => {
                events.push(Event::RmaDone { token, landing: None, result })
            }
        }
    }
}
