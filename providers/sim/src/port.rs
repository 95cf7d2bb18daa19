//! A port of a world.

use crate::net::Place;
use crate::world::World;
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::{
    Caps, Conn, Event, Exposure, Frame, Next, Port, RemoteKey, Rights, Rma, RmaStarted, RmaToken, Small, Way,
};
use kfab_core::{Error, Kind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The scheme of the simulator's ways.
pub(crate) const SCHEME: &str = "sim";

pub(crate) struct SimPort {
    pub(crate) world: World,
    pub(crate) id: u64,
    pub(crate) place: Place,
    pub(crate) caps: Caps,
    pub(crate) fd: Arc<OwnedFd>,
}

/// Parses `HOST.RAIL`.
pub(crate) fn parse_place(op: &'static str, text: &str) -> Result<Place> {
    let parsed = text.split_once('.').and_then(|(h, r)| Some(Place { host: number(h)?, rail: number(r)? }));
    parsed.ok_or_else(|| {
        Error::new(Kind::InvalidArgument, op, format!("{text:?}: expected HOST.RAIL, two numbers"))
    })
}

fn number(s: &str) -> Option<u32> {
    s.bytes().all(|b| b.is_ascii_digit()).then(|| s.parse().ok())?
}

impl Port for SimPort {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn ways(&self) -> Vec<Way> {
        vec![Way::new(SCHEME, format!("{}.{}", self.place.host, self.place.rail))]
    }

    fn reaches(&self, way: &Way) -> bool {
        let routed = self.world.lock().config.routed;
        routed || parse_place("reaches", &way.rest).is_ok_and(|to| to.rail == self.place.rail)
    }

    fn connect(&mut self, way: &Way) -> Result<Conn> {
        if way.scheme != SCHEME {
            return Err(Error::new(
                Kind::InvalidArgument,
                "connect",
                format!("{way}: not a way of this port"),
            ));
        }
        let to = parse_place("connect", &way.rest)?;
        Ok(Conn(self.world.lock().connect(self.id, to)))
    }

    fn close(&mut self, conn: Conn) {
        self.world.lock().close(conn.0);
    }

    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        self.world.lock().post(conn.0, frames)
    }

    fn flush(&mut self) {
        self.world.lock().flush_port(self.id);
    }

    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool {
        let mut w = self.world.lock();
        if let Some(p) = w.ports.get_mut(&self.id) {
            p.wake.disarm();
        }
        w.flush_port(self.id);
        w.tick(now_ns);
        w.collect(self.id, events)
    }

    fn next_small(&mut self, _now_ns: u64, into: &mut Small) -> Next {
        self.world.lock().next_small(self.id, into)
    }

    fn take_now(&mut self, conn: Conn, into: &mut Landing) -> bool {
        self.world.lock().take_now(conn.0, into)
    }

    fn take(&mut self, conn: Conn, landing: Option<Landing>) -> Option<Option<Landing>> {
        self.world.lock().take(conn.0, landing)
    }

    fn expose(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure> {
        self.world.lock().expose(self.id, memory, rights)
    }

    fn revoke(&mut self, exposure: Exposure) {
        self.world.lock().revoke(self.id, exposure);
    }

    fn rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted {
        self.world.lock().rma(conn.0, rma, token)
    }

    fn write_now(&mut self, conn: Conn, key: &RemoteKey, offset: u64, bytes: &[u8]) -> bool {
        self.world.lock().write_now(conn.0, *key, offset, bytes)
    }

    fn read_now(&mut self, conn: Conn, key: &RemoteKey, offset: u64, into: &mut Landing) -> bool {
        self.world.lock().read_now(conn.0, *key, offset, into)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn arm(&mut self) -> bool {
        self.world.lock().arm(self.id)
    }
}

impl Drop for SimPort {
    fn drop(&mut self) {
        self.world.lock().remove_port(self.id, false);
    }
}
