//! Connections that are not up yet, and the clock: the storm bound, accepting, greetings, deadlines. Part of `port`.
//!
//! A stranger costs one link of less than a kilobyte until [`PortConfig::connect_timeout`](kfab_core::spi::PortConfig) has
//! passed, and at most `max_connecting` strangers are heard at a time: further ones wait in the kernel, or displace one that
//! has been silent for [`PATIENCE`].

use crate::link::{End, Link, Phase};
use crate::net::explain;
use crate::port::TcpPort;
use kfab_core::spi::{Conn, DownReason, Event};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// How long we wait for the peer's goodbye after ours.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stranger is safe from being displaced by others.
pub(crate) const PATIENCE: Duration = Duration::from_millis(500);
/// The longest time between two polls that counts for a deadline where nobody slept.
const AWAKE: Duration = Duration::from_millis(100);
/// How long accepting rests when the process has no descriptor left.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Connections on their way up.
#[derive(Default)]
pub(crate) struct Attempts {
    /// Ours, waiting for their turn.
    queue: VecDeque<Conn>,
    /// Ours, under way.
    running: usize,
    /// Those of others, in order of arrival; may hold names of some that ended or came up.
    /// Bound: twice `max_connecting`.
    strangers: VecDeque<Conn>,
    /// How many of them are still there.
    heard: usize,
    /// The listener has more to accept.
    pub(crate) accept_ready: bool,
    /// More wait at the listener than may be heard.
    crowded: bool,
}

impl Attempts {
    /// A link is gone.
    pub(crate) fn ended(&mut self, link: &Link) {
        match link.phase {
            Phase::Up | Phase::Closing | Phase::Queued => {}
            _ if link.attempt => self.running -= 1,
            _ => self.heard_out(),
        }
    }

    /// A stranger is one no more.
    fn heard_out(&mut self) {
        self.heard -= 1;
        self.accept_ready |= std::mem::take(&mut self.crowded);
    }
}

/// Deadlines of links, by the caller's clock.
#[derive(Default)]
pub(crate) struct Timers {
    now_ns: u64,
    /// Started since the last poll: the clock may have moved on, so they run from the next poll.
    fresh: Vec<Conn>,
    running: Vec<(u64, Conn)>,
    earliest_ns: Option<u64>,
    pub(crate) accept_again_ns: Option<u64>,
    /// The caller went to sleep: the time until the next poll is waiting.
    pub(crate) asleep: bool,
    /// How long the last two polls lay apart beyond [`AWAKE`] though nobody slept.
    away_ns: u64,
}

impl Timers {
    /// The link's deadline runs from the next poll.
    pub(crate) fn start(&mut self, link: &mut Link) {
        link.deadline_ns = None;
        self.fresh.push(link.id);
    }

    /// `true` if [`TcpPort::expire`] has something to do.
    #[inline]
    pub(crate) fn is_due(&mut self, now_ns: u64) -> bool {
        let away = now_ns.saturating_sub(std::mem::replace(&mut self.now_ns, now_ns));
        self.away_ns = match std::mem::take(&mut self.asleep) {
            false => away.saturating_sub(ns(AWAKE)),
            true => 0,
        };
        self.away_ns > 0 || self.is_next(now_ns)
    }

    /// The same for whoever leaves it to the next poll.
    #[inline]
    pub(crate) fn is_next(&self, now_ns: u64) -> bool {
        !self.fresh.is_empty() || self.next_ns().is_some_and(|t| t <= now_ns)
    }

    /// When that will be.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        if !self.fresh.is_empty() {
            return Some(self.now_ns);
        }
        self.earliest_ns.into_iter().chain(self.accept_again_ns).min()
    }
}

fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl TcpPort {
    /// Makes a link that will connect as soon as the storm bound lets it.
    pub(crate) fn start(&mut self, to: SocketAddr) -> Conn {
        let id = self.links.insert(|id| Link::new(id, Some(to), None));
        if let Some(link) = self.links.get(id) {
            self.timers.start(link);
        }
        self.attempts.queue.push_back(id);
        let mut events = Vec::new();
        self.next_attempts(&mut events);
        self.pending.extend(events);
        id
    }

    /// Starts queued connections up to the bound.
    pub(crate) fn next_attempts(&mut self, events: &mut Vec<Event>) {
        while self.attempts.running < self.config.max_connecting.max(1) {
            let Some(id) = self.attempts.queue.pop_front() else { return };
            let Some(to) = self.links.get(id).and_then(|l| l.to) else { continue };
            let made = match self.rail.connect(to) {
                Ok(fd) => self.watch(id, &fd).map(|()| fd),
                Err(e) => Err(refusal(&e, to)),
            };
            match (made, self.links.get(id)) {
                (Ok(fd), Some(link)) => {
                    (link.fd, link.phase, link.attempt) = (Some(fd), Phase::Connecting, true);
                    self.attempts.running += 1;
                }
                (Err(end), _) => self.finish(id, end, events),
                (Ok(_), None) => {}
            }
        }
    }

    /// Gives a link that is not up a turn.
    pub(crate) fn serve_attempt(&mut self, id: Conn, events: &mut Vec<Event>) -> bool {
        let full = self.links.len().saturating_sub(self.attempts.heard) >= self.config.max_conns;
        let Some(link) = self.links.get(id) else { return false };
        let mut result = Ok(None);
        if matches!(link.phase, Phase::Connecting) {
            result = match (&link.fd, link.to) {
                (Some(fd), Some(to)) => match sockopt::socket_error(fd) {
                    Ok(Ok(())) if rustix::net::getpeername(fd).is_ok() => {
                        link.connected(&mut self.shared).map(|()| None)
                    }
                    Ok(Ok(())) => Ok(None),
                    Ok(Err(e)) | Err(e) => Err(refusal(&e.into(), to)),
                },
                _ => Ok(None),
            };
        }
        if result.is_ok() {
            let _ = link.write(&mut self.shared);
            result = link.settled().and_then(|()| link.greet(&mut self.shared, full));
        }
        match result {
            Ok(None) => return false,
            Ok(Some(event)) => {
                if link.attempt {
                    self.attempts.running -= 1
                } else {
                    self.attempts.heard_out()
                }
                if std::mem::take(&mut link.refused) {
                    self.pending.push_back(Event::Writable { conn: id });
                }
                events.push(event);
                link.readable = true;
                self.make_ready(id);
            }
            Err(end) => self.finish(id, end, events),
        }
        self.next_attempts(events);
        true
    }

    /// Accepts what waits at the listener, within the bounds.
    pub(crate) fn accept(&mut self) -> bool {
        let mut moved = false;
        while self.attempts.heard < self.config.max_connecting.max(1) || self.displace() {
            let fd = match self.rail.accept(&self.listener) {
                Ok(fd) => fd,
                Err(Errno::AGAIN) => {
                    self.attempts.accept_ready = false;
                    return moved;
                }
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(e) => {
                    tracing::warn!(listener = %self.rail.local, "accept: {}", explain(&e.into()));
                    self.timers.accept_again_ns = Some(self.timers.now_ns.saturating_add(ns(ACCEPT_REST)));
                    self.attempts.accept_ready = false;
                    return moved;
                }
            };
            moved = true;
            let id = self.links.insert(|id| Link::new(id, None, None));
            let watched = self.watch(id, &fd);
            self.attempts.heard += 1;
            self.remember(id);
            if let Some(link) = self.links.get(id) {
                *link = Link::new(id, None, Some(fd));
                link.readable = true;
                self.timers.start(link);
            }
            match watched {
                Ok(()) => self.make_ready(id),
                Err(end) => self.finish(id, end, &mut Vec::new()),
            }
        }
        let soon = self.timers.now_ns.saturating_add(ns(ACCEPT_REST));
        self.timers.accept_again_ns = Some(soon);
        (self.attempts.accept_ready, self.attempts.crowded) = (false, true);
        moved
    }

    /// Adds a stranger to the list, which then is swept if half of it can only be names of the past.
    fn remember(&mut self, id: Conn) {
        if self.attempts.strangers.len() >= self.config.max_connecting.max(1).saturating_mul(2) {
            let links = &mut self.links;
            self.attempts.strangers.retain(|id| links.get(*id).is_some_and(|l| !l.is_open()));
        }
        self.attempts.strangers.push_back(id);
    }

    /// Makes room for a newcomer by dropping the oldest stranger, if it has been silent long enough.
    fn displace(&mut self) -> bool {
        while let Some(id) = self.attempts.strangers.front().copied() {
            let oldest = self.links.get(id).filter(|l| !l.is_open());
            let timeout = ns(self.config.connect_timeout);
            match oldest
                .map(|l| l.deadline_ns.map(|d| d.saturating_sub(timeout).saturating_add(ns(PATIENCE))))
            {
                None => drop(self.attempts.strangers.pop_front()),
                Some(Some(safe_until)) if safe_until <= self.timers.now_ns => {
                    self.attempts.strangers.pop_front();
                    self.finish(id, End::new(DownReason::Denied, "silent, and others wait"), &mut Vec::new());
                    return true;
                }
                Some(_) => return false,
            }
        }
        false
    }

    /// What we did ourselves between two polls (proofs of a key take a while, and a storm brings many) is no time that a peer had.
    fn excuse(&mut self, away_ns: u64) {
        for (at, id) in &mut self.timers.running {
            if let Some(link) = self.links.get(*id).filter(|l| l.deadline_ns == Some(*at)) {
                *at = at.saturating_add(away_ns);
                link.deadline_ns = Some(*at);
            }
        }
    }

    /// Starts fresh deadlines and ends the links whose time is up.
    pub(crate) fn expire(&mut self, now_ns: u64, events: &mut Vec<Event>) {
        match std::mem::take(&mut self.timers.away_ns) {
            0 => {}
            away_ns => self.excuse(away_ns),
        }
        let mut fresh = std::mem::take(&mut self.timers.fresh);
        for id in fresh.drain(..) {
            let Some(link) = self.links.get(id) else { continue };
            let span = match link.phase {
                Phase::Up => continue,
                Phase::Closing => CLOSE_TIMEOUT,
                _ => self.config.connect_timeout,
            };
            let at = now_ns.saturating_add(ns(span));
            link.deadline_ns = Some(at);
            self.timers.running.push((at, id));
        }
        self.timers.fresh = fresh;
        if self.timers.accept_again_ns.is_some_and(|t| t <= now_ns) {
            self.timers.accept_again_ns = None;
            self.attempts.accept_ready = true;
            self.accept();
        }
        let mut running = std::mem::take(&mut self.timers.running);
        running.retain(|(at, id)| {
            let stands = self.links.get(*id).is_some_and(|l| l.deadline_ns == Some(*at));
            if stands && *at <= now_ns {
                self.time_is_up(*id, events);
                return false;
            }
            stands
        });
        self.timers.earliest_ns = running.iter().map(|(at, _)| *at).min();
        self.timers.running = running;
        self.next_attempts(events);
    }

    fn time_is_up(&mut self, id: Conn, events: &mut Vec<Event>) {
        let waiting = self.attempts.queue.len();
        let Some(link) = self.links.get(id) else { return };
        let to = link.to.map(|a| a.to_string()).unwrap_or_default();
        let after = self.config.connect_timeout;
        let end = match link.phase {
            Phase::Queued => End::new(
                DownReason::Refused,
                format!("{to}: not begun within {after:?}, {waiting} wait (PortConfig::max_connecting)"),
            ),
            Phase::Closing if link.is_untaken() => {
                End::new(DownReason::Broken, "a body waited to be taken for too long after the close")
            }
            Phase::Closing if link.tx.is_empty() => {
                End::new(DownReason::Closed, "all was sent; the peer did not answer the goodbye")
            }
            Phase::Closing => End::new(DownReason::Broken, "the peer did not take the last frames"),
            _ => End::new(DownReason::Refused, format!("{to}: no answer within {after:?}")),
        };
        self.finish(id, end, events);
    }
}

/// Why a connection could not be made.
fn refusal(e: &std::io::Error, to: SocketAddr) -> End {
    End::new(DownReason::of_dial(e), format!("{to}: {}", explain(e)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfab_core::spi::{Port, PortConfig};
    use std::net::TcpStream;
    use std::time::Instant;

    #[test]
    fn strangers_that_went_are_forgotten() {
        let config = PortConfig { max_connecting: 4, ..PortConfig::default() };
        let mut port = crate::open(&config).unwrap();
        let (start, mut events) = (Instant::now(), Vec::new());
        for n in 0..50 {
            let stranger = TcpStream::connect(port.rail.local).unwrap();
            let mut poll_until = |heard: usize| {
                while port.attempts.heard != heard {
                    assert!(start.elapsed() < Duration::from_secs(60), "{n}: stuck");
                    port.poll(start.elapsed().as_nanos() as u64, &mut events);
                }
            };
            poll_until(1);
            drop(stranger);
            poll_until(0);
            assert!(port.attempts.strangers.len() <= 8, "{}", port.attempts.strangers.len());
        }
        assert_eq!(port.links.len(), 0);
        assert!(events.is_empty(), "{events:?}");
    }
}
