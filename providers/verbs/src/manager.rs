//! Queue pairs that the kernel's connection manager connects (`rdma_cm`): those of iWARP cards, which have no other way, and of
//! ports that were asked to. Part of `port`; see `connect` for what comes before and after.
//!
//! ```text
//! connector                          acceptor
//! Params                   ->        makes its queue pair
//!                          <-        Params: the port of its manager, a random pass
//! request with the pass    ~~>       finds the connection by the pass, grants it   (~~ from manager to manager)
//!                          <~~
//! confirmation             ->        up, when its own queue pair is ready, too
//! ```
//! Time is kept by the connection's own deadline: what a manager never answers ends with it. A port with a manager also hears of its card
//! being taken out, which the kernel says to nobody else if the driver cannot do it under a program's hands.

use crate::device::Card;
use crate::link::Phase;
use crate::port::VerbsPort;
use crate::sys::manager::{Channel, Id, Pass, Said};
use crate::wire::Params;
use kfab_core::auth::random_u64;
use kfab_core::spi::{Conn, DownReason};
use kfab_core::{Error, Kind, Result};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

/// Requests that may wait in the kernel.
const BACKLOG: i32 = 128;
/// An iWARP card listens at a TCP port: the one that the manager picks may be in use.
const PORTS_TRIED: u32 = 16;
/// The manager's own limit for finding an address or a route, ms: longer than any connection waits.
const FIND_MS: i32 = 60_000;
/// What is said about the place where requests come in.
const LISTENER: u64 = 0;

/// A port's side of the manager.
pub(crate) struct Manager {
    channel: Arc<Channel>,
    listener: Id,
}

impl Manager {
    /// Listens at an address of the card, at any port.
    pub(crate) fn open(card: &Card, ip: IpAddr) -> std::result::Result<Manager, String> {
        let channel = Channel::open()?;
        let listen = || {
            let id = Id::new(&channel, LISTENER)?;
            id.bind(SocketAddr::new(ip, 0))?;
            id.listen(BACKLOG)?;
            Ok(id)
        };
        let mut tried = 1;
        let listener = loop {
            match listen() {
                Ok(id) => break id,
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && tried < PORTS_TRIED => tried += 1,
                Err::<_, std::io::Error>(e) => {
                    return Err(format!("the connection manager cannot listen at {ip}: {e}"));
                }
            }
        };
        let found = listener.card();
        if found != Some((card.name.clone(), card.port)) {
            return Err(format!("the connection manager takes {ip} for {found:?}"));
        }
        Ok(Manager { channel, listener })
    }
}

impl AsFd for Manager {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// By which an acceptor knows whose request comes in; told to the connector over the side channel.
pub(crate) fn new_pass() -> Result<Pass> {
    let mut pass = [0; 16];
    pass[..8].copy_from_slice(&random_u64()?.to_ne_bytes());
    pass[8..].copy_from_slice(&random_u64()?.to_ne_bytes());
    Ok(pass)
}

impl VerbsPort {
    fn with_manager(&self) -> Result<&Manager> {
        let none =
            || Error::new(Kind::Unavailable, "connect", "no connection manager here, which is asked for");
        self.manager.as_ref().ok_or_else(none)
    }

    /// Where the manager takes requests.
    pub(crate) fn manager_port(&self) -> Result<u16> {
        self.with_manager().map(|m| m.listener.port())
    }

    /// The connector's first step: the way to the peer's card.
    pub(crate) fn ask_manager(&mut self, conn: Conn, peer: &Params) -> Result<()> {
        let failed = |e: std::io::Error| Error::os("connect", "ask the connection manager", e);
        let id = Id::new(&self.with_manager()?.channel, conn.0).map_err(failed)?;
        let from = SocketAddr::new(self.local.ip(), 0);
        let Some(l) = self.links.get(conn) else { return Ok(()) };
        let Some(to) = l.to.map(|t| SocketAddr::new(t.ip(), peer.manager.get())) else { return Ok(()) };
        id.find_address(from, to, FIND_MS).map_err(failed)?;
        l.pass = peer.place;
        if let Some(qp) = &mut l.qp {
            *qp.id() = Some(id);
        }
        Ok(())
    }

    /// Does what the manager has said.
    pub(crate) fn manager_says(&mut self) {
        while let Some((about, said)) = self.manager.as_ref().and_then(|m| m.channel.next()) {
            let conn = Conn(about);
            match said {
                Said::Request(id, pass) => self.requested(id, &pass),
                Said::Removed => self.lose("the card is taken out"),
                Said::Disconnected => self.disconnected(conn),
                Said::Established => self.queue_pair_ready(conn),
                Said::Failed(why) => self.refused(conn, why),
                Said::AddressFound | Said::RouteFound | Said::Accepted => {
                    if let Err(e) = self.next_step(conn, &said) {
                        let why = format!("connect through the connection manager: {e}");
                        self.end(conn, DownReason::Broken, why);
                    }
                }
                Said::Other => {}
            }
        }
    }

    /// The connector goes on.
    fn next_step(&mut self, conn: Conn, said: &Said) -> std::io::Result<()> {
        let (reads, own) = (self.reads, (self.card.name.clone(), self.card.port));
        let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Greeting) else { return Ok(()) };
        let Some(qp) = &mut l.qp else { return Ok(()) };
        match (said, qp.id()) {
            (Said::AddressFound, Some(id)) if id.card() != Some(own) => {
                Err(std::io::Error::other(format!("it would use another card: {:?}", id.card())))
            }
            (Said::AddressFound, Some(id)) => id.find_route(FIND_MS),
            (Said::RouteFound, _) => qp.request(&l.pass, reads),
            _ => {
                qp.accepted()?;
                self.queue_pair_ready(conn);
                Ok(())
            }
        }
    }

    /// A request has come in. Without the pass of a connection that waits for one it is a stranger's, and goes with its identifier.
    fn requested(&mut self, mut id: Id, pass: &Pass) {
        let reads = self.reads;
        let waits = |l: &&mut crate::link::Link| {
            let managed = l.own.is_some_and(|own| own.manager.get() != 0 && own.place == *pass);
            managed && !l.ours && !l.ready && l.phase == Phase::Greeting
        };
        let Some(l) = self.links.iter_mut().find(waits) else { return };
        let (conn, Some(qp)) = (l.id, &mut l.qp) else { return };
        if qp.id().is_some() {
            return;
        }
        id.is_about(conn.0);
        *qp.id() = Some(id);
        match qp.accept(reads) {
            Ok(true) => self.queue_pair_ready(conn),
            Ok(false) => {}
            Err(e) => {
                self.end(conn, DownReason::Broken, format!("accept through the connection manager: {e}"))
            }
        }
    }

    fn queue_pair_ready(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Greeting && !l.ready) else { return };
        l.ready = true;
        if l.ours { self.confirm(conn) } else { self.is_up(conn) }
    }

    /// The attempt has failed. Of a connection that is up its own queue pair knows better: a last word between managers was lost.
    fn refused(&mut self, conn: Conn, why: String) {
        if self.links.get(conn).is_some_and(|l| l.phase == Phase::Greeting) {
            self.end(conn, DownReason::Broken, why);
        }
    }

    /// The peer's queue pair is gone. Its side channel may say why, soon.
    fn disconnected(&mut self, conn: Conn) {
        if let Some(l) = self.links.get(conn).filter(|l| l.phase == Phase::Up) {
            l.disconnected = Some(Instant::now());
            self.watch.push(conn);
        }
    }
}
