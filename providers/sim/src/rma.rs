//! One-sided access: exposures, and operations that run at the target without its help when they arrive there.
//!
//! Memory that peers may write is window memory, whose pages are a memfd; it is written through that descriptor, which keeps
//! this crate free of unsafe code.

use crate::half::PendingRma;
use crate::state::{Inner, What};
use crate::wire::{Flight, Msg};
use kfab_core::mem::{Access, Landing, Slice};
use kfab_core::spi::{Delivery, DownReason, Event, Exposure, RemoteKey, Rights, Rma, RmaStarted, RmaToken};
use kfab_core::{Error, Fate, Kind, Result};

/// The most operations of one connection under way.
const MAX_PENDING: usize = 4096;

#[derive(Debug)]
pub(crate) struct Exposed {
    memory: Slice,
    rights: Rights,
    secret: u64,
}

/// What the target needs to know.
enum Ask<'a> {
    Read { len: usize },
    Write { source: &'a Slice },
    WriteBytes { bytes: &'a [u8] },
}

impl Inner {
    pub(crate) fn expose(&mut self, port: u64, memory: &Slice, rights: Rights) -> Result<Exposure> {
        if !self.config.rma {
            return Err(Error::new(Kind::InvalidArgument, "expose", "this world has no one-sided access"));
        }
        if rights.contains(Rights::WRITE) && memory.region().access() != Access::PeersWrite {
            let why = "only window memory can be written by peers";
            return Err(Error::new(Kind::InvalidArgument, "expose", why));
        }
        let (id, secret) = (self.fresh_id(), self.rng.next());
        let p = self
            .ports
            .get_mut(&port)
            .ok_or_else(|| Error::new(Kind::Closed, "expose", "the host crashed"))?;
        p.exposed.insert(id, Exposed { memory: memory.clone(), rights, secret });
        Ok(Exposure { key: RemoteKey { region: id, base: 0, secret }, id })
    }

    pub(crate) fn revoke(&mut self, port: u64, exposure: Exposure) {
        if let Some(p) = self.ports.get_mut(&port) {
            p.exposed.remove(&exposure.id);
        }
    }

    pub(crate) fn rma(&mut self, conn: u64, rma: Rma, token: RmaToken) -> RmaStarted {
        let refuse =
            |rma: Rma, kind, why: &str| RmaStarted::Failed(landing_of(rma), Error::new(kind, "rma", why));
        if !self.config.rma {
            return refuse(rma, Kind::InvalidArgument, "this world has no one-sided access");
        }
        let Some(h) = self.halves.get_mut(&conn).filter(|h| h.phase == crate::half::Phase::Up) else {
            return refuse(rma, Kind::PeerLost, "the connection is not up");
        };
        if h.rma.len() >= MAX_PENDING {
            return refuse(rma, Kind::Limit, "4096 one-sided operations are under way on this connection");
        }
        let memory = self.config.delivery == Delivery::Process;
        if memory
            && !self.host_is_dead(self.halves[&conn].peer_place.host)
            && !self.rng.chance(self.config.late_rma)
        {
            return self.rma_at_once(conn, rma);
        }
        let op = self.fresh_id();
        if let Some(h) = self.halves.get_mut(&conn) {
            h.rma.insert(op, PendingRma { token, rma });
        }
        self.launch(conn, Msg::RmaAsk { op });
        RmaStarted::Pending
    }

    fn rma_at_once(&mut self, conn: u64, rma: Rma) -> RmaStarted {
        let result = self.serve_rma(conn, &rma);
        match (rma, result) {
            (Rma::Read { mut landing, .. }, Ok(bytes)) => {
                landing.copy_from(0, &bytes);
                RmaStarted::Done(Some(landing))
            }
            (Rma::Write { .. }, Ok(_)) => RmaStarted::Done(None),
            (rma, Err(e)) => RmaStarted::Failed(landing_of(rma), e),
        }
    }

    /// Stores within the call, where the world is memory.
    pub(crate) fn write_now(&mut self, conn: u64, key: RemoteKey, offset: u64, bytes: &[u8]) -> bool {
        self.is_near(conn) && self.serve(conn, key, offset, &Ask::WriteBytes { bytes }).is_ok()
    }

    /// Fetches within the call, where the world is memory; now and then it is not mapped yet.
    pub(crate) fn read_now(&mut self, conn: u64, key: RemoteKey, offset: u64, into: &mut Landing) -> bool {
        if !self.is_near(conn) || self.rng.chance(self.config.late_rma / 2.0) {
            return false;
        }
        let bytes = self.serve(conn, key, offset, &Ask::Read { len: into.len() });
        bytes.is_ok_and(|b| into.copy_from(0, &b) == b.len())
    }

    fn is_near(&self, conn: u64) -> bool {
        let up = |h: &crate::half::Half| {
            h.phase == crate::half::Phase::Up && !self.host_is_dead(h.peer_place.host)
        };
        self.config.rma && self.config.delivery == Delivery::Process && self.halves.get(&conn).is_some_and(up)
    }

    fn serve_rma(&mut self, conn: u64, rma: &Rma) -> Result<Vec<u8>> {
        match rma {
            Rma::Read { landing, key, offset } => {
                self.serve(conn, *key, *offset, &Ask::Read { len: landing.len() })
            }
            Rma::Write { source, key, offset } => self.serve(conn, *key, *offset, &Ask::Write { source }),
        }
    }

    /// What the target's device does: check, then access. `conn` is the initiator's end.
    fn serve(&mut self, conn: u64, key: RemoteKey, offset: u64, ask: &Ask<'_>) -> Result<Vec<u8>> {
        let target = self.halves.get(&conn).and_then(|h| self.halves.get(&h.peer)).map(|h| h.port);
        let refused = |why: &str| Error::new(Kind::AccessDenied, "rma", why).with_fate(Fate::Refused);
        let result = (|| {
            let p = target.and_then(|t| self.ports.get(&t)).ok_or_else(|| {
                Error::new(Kind::PeerLost, "rma", "the peer's end of the connection is gone")
            })?;
            let e = p.exposed.get(&key.region).filter(|e| e.secret == key.secret);
            let e = e.ok_or_else(|| refused("no such exposure, or the wrong secret"))?;
            let (len, right) = match ask {
                Ask::Read { len } => (*len, Rights::READ),
                Ask::Write { source } => (source.len(), Rights::WRITE),
                Ask::WriteBytes { bytes } => (bytes.len(), Rights::WRITE),
            };
            if !e.rights.contains(right) {
                return Err(refused("the exposure does not give that right"));
            }
            let at = usize::try_from(key.base.saturating_add(offset)).unwrap_or(usize::MAX);
            let part = e.memory.part(at, len).ok_or_else(|| refused("outside the exposed memory"))?;
            match ask {
                Ask::Read { .. } => Ok(copy_out(&part)),
                Ask::Write { source } => store(&part, &copy_out(source)),
                Ask::WriteBytes { bytes } => store(&part, bytes),
            }
        })();
        match &result {
            Ok(_) => self.trace.stats.rma += 1,
            Err(_) => self.trace.stats.rma_refused += 1,
        }
        result
    }

    pub(crate) fn on_rma_ask(&mut self, f: Flight, op: u64) {
        let Some(p) = self.halves.get_mut(&f.from_conn).and_then(|h| h.rma.remove(&op)) else { return };
        let result = self.serve_rma(f.from_conn, &p.rma);
        if let Some(h) = self.halves.get_mut(&f.from_conn) {
            h.rma.insert(op, p);
        }
        self.answer(&f, Msg::RmaAnswer { op, result });
    }

    pub(crate) fn on_rma_answer(&mut self, conn: u64, op: u64, result: Result<Vec<u8>>) {
        let Some(h) = self.halves.get_mut(&conn) else { return };
        let port = h.port;
        let Some(mut p) = h.rma.remove(&op) else { return };
        if let (Rma::Read { landing, .. }, Ok(bytes)) = (&mut p.rma, &result) {
            landing.copy_from(0, bytes);
        }
        self.rma_ended(port, p, result.map(drop));
    }

    pub(crate) fn rma_ended(&mut self, port: u64, p: PendingRma, result: Result<()>) {
        self.report(port, Event::RmaDone { token: p.token, landing: landing_of(p.rma), result });
    }

    /// An operation or its answer met a cut or a dead host: again later, or an error.
    pub(crate) fn rma_obstructed(&mut self, f: Flight) {
        let (op, conn) = match &f.msg {
            Msg::RmaAsk { op } => (*op, f.from_conn),
            Msg::RmaAnswer { op, .. } => (*op, f.to_conn),
            _ => return,
        };
        if self.now < f.born.saturating_add(self.config.break_after_ns) {
            let at = self.now + self.config.retry_ns.max(1);
            return self.schedule(at, What::Arrive(Box::new(f)));
        }
        let Some(h) = self.halves.get_mut(&conn) else { return };
        let (port, Some(p)) = (h.port, h.rma.remove(&op)) else { return };
        let e =
            Error::new(Kind::PeerLost, "rma", "nothing got through for too long").with_fate(Fate::Unknown);
        self.rma_ended(port, p, Err(e));
        if self.config.delivery == Delivery::Connection {
            self.end(conn, DownReason::Broken, "a one-sided operation did not get through", true);
        }
    }
}

fn landing_of(rma: Rma) -> Option<Landing> {
    match rma {
        Rma::Read { landing, .. } => Some(landing),
        Rma::Write { .. } => None,
    }
}

fn copy_out(s: &Slice) -> Vec<u8> {
    let mut out = vec![0; s.len()];
    s.copy_to(0, &mut out);
    out
}

fn store(part: &Slice, bytes: &[u8]) -> Result<Vec<u8>> {
    let fd = part.region().fd().ok_or_else(|| Error::new(Kind::AccessDenied, "rma", "not window memory"))?;
    let mut done = 0;
    while done < bytes.len() {
        let at = (part.offset() + done) as u64;
        done +=
            rustix::io::pwrite(fd, &bytes[done..], at).map_err(|e| Error::os("rma", "window memory", e))?;
    }
    Ok(Vec::new())
}
