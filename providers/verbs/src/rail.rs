//! What an endpoint holds of a card: its port while the card is there, and the wait for its return after it was taken out. Made by the
//! provider, called by the lane that drives it.
//!
//! A card is taken out under our hands (or breaks beyond use): its connections end, and when all of them have been reported everything
//! made on it is given up, which is what the kernel waits for. From then on the card is looked for. It comes back at the same address, in another
//! epoch: peers have keys to windows of before that name nothing any more, and reach those by messages.

use crate::device::{self, Card, Gid};
use crate::networks::Networks;
use crate::port::VerbsPort;
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::{
    Caps, Conn, Event, Exposure, Frame, Next, Port, PortConfig, Rights, Rma, RmaStarted, RmaToken, Small, Way,
};
use kfab_core::{Error, Kind, Result};
use rustix::event::epoll;
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a card that was taken out is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a port is opened, each time in the same way.
pub(crate) struct Plan {
    pub(crate) config: PortConfig,
    pub(crate) caps: Caps,
    /// Through the connection manager.
    pub(crate) managed: bool,
    /// Whom it leads to.
    pub(crate) networks: Networks,
}

/// Numbers of connections and exposures are never used again, also not by the port of a card that came back.
#[derive(Clone, Copy, Default)]
pub(crate) struct Numbers {
    pub(crate) conns: u64,
    pub(crate) exposures: u64,
}

/// See the module.
pub(crate) struct Rail {
    plan: Plan,
    label: String,
    at: SocketAddr,
    /// The card's address is none of the host's (InfiniBand): it goes by its name alone.
    named: bool,
    epoll: Arc<OwnedFd>,
    here: Option<VerbsPort>,
    /// How often the card was put back.
    epoch: u8,
    away: Away,
}

/// While the card is not there.
struct Away {
    timer: OwnedFd,
    look: Instant,
    numbers: Numbers,
}

impl Rail {
    pub(crate) fn open(plan: Plan, card: Card, gid: Gid, at: SocketAddr) -> Result<Rail> {
        let os = |e: rustix::io::Errno| Error::os("open", "an epoll descriptor", std::io::Error::from(e));
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(os)?);
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)
            .map_err(os)?;
        let label = card.label.clone();
        let named = gid.ip() != at.ip();
        let port = VerbsPort::open(&plan, card, gid, at, epoll.clone(), Numbers::default())?;
        let away = Away { timer, look: Instant::now(), numbers: Numbers::default() };
        Ok(Rail { at: port.local, named, plan, label, epoll, here: Some(port), epoch: 0, away })
    }

    /// The port of the card that is there: for tests that do what no honest peer does.
    #[cfg(test)]
    pub(crate) fn here(&mut self) -> &mut VerbsPort {
        self.here.as_mut().expect("the card is there")
    }

    /// Gives the card up once nothing of it is with the caller any more.
    fn let_go(&mut self) {
        let Some(port) = self.here.take_if(|p| p.is_over()) else { return };
        self.away.numbers = port.close();
        self.away.look = Instant::now() + LOOK_EVERY;
        let (timer, data) = (&self.away.timer, epoll::EventData::new_u64(0));
        let _ = epoll::add(&self.epoll, timer, data, epoll::EventFlags::IN);
        tracing::warn!(card = self.label, "a card is gone; it is looked for");
    }

    /// Looks whether the card is there again.
    fn look(&mut self) {
        let _ = rustix::io::read(&self.away.timer, &mut [0; 8]);
        if Instant::now() < self.away.look {
            return;
        }
        self.away.look = Instant::now() + LOOK_EVERY;
        let Some((card, gid)) = self.found() else { return };
        match VerbsPort::open(&self.plan, card, gid, self.at, self.epoll.clone(), self.away.numbers) {
            Ok(port) => {
                let _ = epoll::delete(&self.epoll, &self.away.timer);
                tracing::info!(card = self.label, "a card is back");
                self.here = Some(port);
                self.epoch = self.epoch.wrapping_add(1);
            }
            Err(e) => tracing::debug!(card = self.label, %e, "a card that came back cannot be used"),
        }
    }

    fn found(&self) -> Option<(Card, Gid)> {
        let card = device::cards().ok()?.into_iter().find(|c| c.label == self.label)?;
        let mut gids = card.gids.iter();
        let gid = if self.named { gids.next() } else { gids.find(|g| g.ip() == self.at.ip()) };
        gid.cloned().map(|gid| (card, gid))
    }

    fn gone(&self, what: &'static str) -> Error {
        Error::new(Kind::Unavailable, what, format!("{} was taken out", self.label))
    }
}

impl Port for Rail {
    fn caps(&self) -> &Caps {
        &self.plan.caps
    }

    fn ways(&self) -> Vec<Way> {
        vec![Way::new(crate::SCHEME, self.at.to_string())]
    }

    fn reaches(&self, way: &Way) -> bool {
        self.plan.networks.reach(&way.rest)
    }

    fn epoch(&self) -> u8 {
        self.epoch
    }

    fn connect(&mut self, way: &Way) -> Result<Conn> {
        match &mut self.here {
            Some(p) => p.dial(way),
            None => Err(self.gone("connect")),
        }
    }

    fn close(&mut self, conn: Conn) {
        if let Some(p) = &mut self.here {
            p.begin_close(conn);
        }
    }

    #[inline]
    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        self.here.as_mut().map_or(frames.len(), |p| p.post_frames(conn, frames))
    }

    #[inline]
    fn post_small(&mut self, conn: Conn, header: u128, bytes: &[u8]) -> bool {
        self.here.as_mut().is_none_or(|p| p.post_short(conn, header, bytes))
    }

    fn flush(&mut self) {
        if let Some(p) = &mut self.here {
            p.ring_dirty();
        }
    }

    #[inline]
    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        let Some(p) = &mut self.here else {
            self.look();
            return false;
        };
        let busy = p.poll(now_ns, events);
        if p.is_over() {
            self.let_go();
        }
        busy
    }

    #[inline]
    fn next_small(&mut self, _now_ns: u64, into: &mut Small) -> Next {
        self.here.as_mut().map_or(Next::Poll, |p| p.next_small(into))
    }

    fn take(&mut self, conn: Conn, mut landing: Option<Landing>) -> Option<Option<Landing>> {
        if let Some(p) = &mut self.here {
            p.take_body(conn, landing.as_mut());
        }
        Some(landing)
    }

    #[inline]
    fn take_now(&mut self, conn: Conn, into: &mut Landing) -> bool {
        self.here.as_mut().is_some_and(|p| p.take_body(conn, Some(into)))
    }

    fn expose(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure> {
        match &mut self.here {
            Some(p) => p.expose_memory(memory, rights),
            None => Err(self.gone("expose")),
        }
    }

    fn revoke(&mut self, exposure: Exposure) {
        // Else it has gone with the card.
        if let Some(p) = &mut self.here {
            p.revoke_memory(exposure);
        }
    }

    fn rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        match &mut self.here {
            Some(p) => p.start_rma(conn, rma, token),
            None => RmaStarted::Failed(crate::rma::landing_of(rma), self.gone("rma")),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn arm(&mut self) -> bool {
        let Some(p) = &mut self.here else {
            let pause = self.away.look.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            crate::port::set(&self.away.timer, pause);
            return true;
        };
        p.arm()
    }
}
