//! How connections begin and end, and how hosts and rails die and come back.

use crate::half::{Half, Item, Phase, Waiting};
use crate::net::Place;
use crate::state::{Inner, What};
use crate::wire::{Flight, Msg};
use kfab_core::mem::Landing;
use kfab_core::spi::{Conn, Delivery, DownReason, Event};
use kfab_core::{Error, Fate, Kind};

/// Goodbyes without an answer before a datagram connection is given up.
const FIN_TRIES: u32 = 8;

impl Inner {
    // ---- connecting ----

    pub(crate) fn connect(&mut self, port: u64, to: Place) -> u64 {
        let conn = self.fresh_id();
        let Some(p) = self.ports.get_mut(&port) else { return conn };
        p.conns += 1;
        let (place, full) = (p.place, p.conns > p.max_conns);
        self.halves.insert(conn, Half::new(port, place, to, 0, true, self.now));
        if full {
            self.end(conn, DownReason::Broken, "this port has as many connections as it may have", false);
        } else if place.rail != to.rail && !self.config.routed {
            self.end(conn, DownReason::Refused, "no route between rails", false);
        } else {
            self.dial(conn);
        }
        conn
    }

    fn dial(&mut self, conn: u64) {
        let Some(h) = self.halves.get(&conn) else { return };
        let Some(p) = self.ports.get(&h.port) else { return };
        let (key, deadline) = (p.key.clone(), h.born.saturating_add(p.connect_timeout_ns));
        self.launch(conn, Msg::Syn { key });
        let next = (self.now + self.config.retry_ns.max(1)).min(deadline.max(self.now + 1));
        self.schedule(next, What::Redial(conn));
    }

    pub(crate) fn redial(&mut self, conn: u64) {
        let Some(h) = self.halves.get(&conn).filter(|h| h.phase == Phase::Connecting) else { return };
        let Some(p) = self.ports.get(&h.port) else { return };
        if self.now >= h.born.saturating_add(p.connect_timeout_ns) {
            self.end(conn, DownReason::Refused, "no answer", false);
        } else {
            self.dial(conn);
        }
    }

    pub(crate) fn on_syn(&mut self, f: Flight) {
        let Msg::Syn { key } = &f.msg else { return };
        let deny = |reason, why| Msg::Deny { reason, why };
        let Some((&id, p)) = self.places.get(&f.to).and_then(|id| Some((id, self.ports.get(id)?))) else {
            return self.answer(&f, deny(DownReason::Refused, "nobody listens there"));
        };
        if p.key != *key {
            return self.answer(&f, deny(DownReason::Denied, "the fabric keys differ"));
        }
        if let Some(&known) = self.accepted.get(&f.from_conn) {
            return self.launch(known, Msg::Accept);
        }
        if p.conns >= p.max_conns {
            return self
                .answer(&f, deny(DownReason::Broken, "the peer has as many connections as it may have"));
        }
        let conn = self.fresh_id();
        let mut h = Half::new(id, f.to, f.from, f.from_conn, false, self.now);
        h.inbox.push_back(Item::Incoming);
        self.halves.insert(conn, h);
        self.accepted.insert(f.from_conn, conn);
        if let Some(p) = self.ports.get_mut(&id) {
            p.conns += 1;
        }
        self.make_ready(conn);
        self.launch(conn, Msg::Accept);
    }

    pub(crate) fn on_accept(&mut self, f: Flight) {
        let Some(h) = self.halves.get_mut(&f.to_conn) else {
            return self.answer(&f, Msg::Reset { reason: DownReason::Broken });
        };
        match h.phase {
            Phase::Connecting => {
                h.phase = Phase::Up;
                h.peer = f.from_conn;
                h.inbox.push_back(Item::Up);
                self.make_ready(f.to_conn);
            }
            _ if h.peer == f.from_conn => {}
            _ => self.answer(&f, Msg::Reset { reason: DownReason::Broken }),
        }
    }

    pub(crate) fn on_deny(&mut self, conn: u64, reason: DownReason, why: &'static str) {
        if self.halves.get(&conn).is_some_and(|h| h.phase == Phase::Connecting) {
            self.end(conn, reason, why, false);
        }
    }

    // ---- closing ----

    pub(crate) fn close(&mut self, conn: u64) {
        let Some(h) = self.halves.get_mut(&conn) else { return };
        match h.phase {
            Phase::Connecting => self.end(conn, DownReason::Closed, "closed before it was up", false),
            Phase::Up => {
                self.send_staged(conn);
                if let Some(h) = self.halves.get_mut(&conn) {
                    h.phase = Phase::Closing;
                    h.wants_writable = false;
                }
                self.say_fin(conn);
            }
            Phase::Closing | Phase::Ended => {}
        }
    }

    fn say_fin(&mut self, conn: u64) {
        self.launch(conn, Msg::Fin);
        // Not before the frames before it could have arrived. What an ordered connection holds back has its own timeout,
        // so there only the answer can be missing.
        let last = self.halves.get(&conn).map_or(0, |h| h.last_due).max(self.now);
        let wait = match self.config.delivery {
            Delivery::Datagram => self.config.retry_ns.max(1),
            _ => self.config.break_after_ns.saturating_mul(2).max(1),
        };
        self.schedule(last.saturating_add(wait), What::Refin(conn));
    }

    pub(crate) fn refin(&mut self, conn: u64) {
        let ordered = self.config.delivery != Delivery::Datagram;
        let Some(h) = self.halves.get_mut(&conn).filter(|h| h.phase == Phase::Closing) else { return };
        h.fin_tries += 1;
        if ordered || h.fin_tries >= FIN_TRIES {
            self.end(conn, DownReason::Broken, "no answer to the goodbye", true);
        } else {
            self.say_fin(conn);
        }
    }

    pub(crate) fn on_fin(&mut self, f: Flight) {
        let phase = self.halves.get(&f.to_conn).filter(|h| h.peer == f.from_conn).map(|h| h.phase);
        match phase {
            Some(Phase::Up) => {
                self.send_staged(f.to_conn);
                self.launch(f.to_conn, Msg::Fin);
                if self.halves.get(&f.to_conn).is_some_and(|h| h.held.is_empty()) {
                    self.end(f.to_conn, DownReason::Closed, "closed by the peer", false);
                } else {
                    self.end(
                        f.to_conn,
                        DownReason::Broken,
                        "closed by the peer before all got through",
                        true,
                    );
                }
            }
            Some(Phase::Closing) => self.end(f.to_conn, DownReason::Closed, "closed", false),
            // Our goodbye was lost, or we never knew the connection; an answer to an answer would never stop.
            _ if self.halves.get(&f.from_conn).is_some_and(|h| h.phase == Phase::Closing) => {
                self.answer(&f, Msg::Fin);
            }
            _ => {}
        }
    }

    pub(crate) fn on_reset(&mut self, conn: u64, from: u64, reason: DownReason) {
        let Some(h) = self.halves.get(&conn).filter(|h| h.is_open() && h.peer == from) else { return };
        if h.phase == Phase::Closing && self.config.delivery == Delivery::Datagram {
            self.end(conn, DownReason::Closed, "closed", false);
        } else {
            self.end(conn, reason, "the peer does not know this connection any more", true);
        }
    }

    // ---- ending ----

    /// Ends one end of a connection: what it still has to report, then `Down`. With `lossy` the tail may be lost.
    pub(crate) fn end(&mut self, conn: u64, reason: DownReason, why: &str, lossy: bool) {
        let Some(h) = self.halves.get_mut(&conn).filter(|h| h.phase != Phase::Ended) else { return };
        h.phase = Phase::Ended;
        h.broke = lossy;
        h.staged.clear();
        h.held.clear();
        h.wants_writable = false;
        let (port, peer, rma) = (h.port, h.peer, std::mem::take(&mut h.rma));
        if self.halves.get(&peer).is_some_and(|p| p.wants_writable && p.is_open()) {
            self.launch(peer, Msg::Probe);
        }
        let Some(h) = self.halves.get_mut(&conn) else { return };
        if lossy {
            let told = h.inbox.iter().take_while(|i| !matches!(i, Item::Frame(_))).count();
            let keep = told + self.rng.below((h.inbox.len() - told) as u64 + 1) as usize;
            h.inbox.truncate(keep);
        }
        h.inbox.push_back(Item::Down(reason, why.to_owned()));
        if lossy && matches!(h.waiting, Waiting::Taking(..)) {
            self.abort_take(conn);
        }
        for p in rma.into_values() {
            let e = Error::new(Kind::PeerLost, "rma", format!("the connection ended: {why}"));
            self.rma_ended(port, p, Err(e.with_fate(Fate::Unknown)));
        }
        self.make_ready(conn);
    }

    /// Removes an end after its `Down` was reported, or with its port.
    pub(crate) fn forget(&mut self, conn: u64) {
        let Some(h) = self.halves.remove(&conn) else { return };
        if !h.dialed {
            self.accepted.remove(&h.peer);
        }
        if let Some(p) = self.ports.get_mut(&h.port) {
            p.conns -= 1;
            p.unflushed.retain(|c| *c != conn);
        }
    }

    // ---- taking ----

    /// Starts to deliver a waiting body.
    pub(crate) fn take(&mut self, conn: u64, mut landing: Option<Landing>) -> Option<Option<Landing>> {
        let Some(h) = self.halves.get_mut(&conn) else {
            self.violation(format!("take on connection {conn}, which is gone"));
            return Some(landing);
        };
        match std::mem::take(&mut h.waiting) {
            Waiting::Body(p) => {
                if !self.rng.chance(self.config.late_take) {
                    land(&p, &mut landing);
                    self.consumed(conn, p.load.len());
                    return Some(landing);
                }
                let broke = h.broke;
                h.waiting = Waiting::Taking(p, landing);
                if broke && self.rng.chance(0.5) {
                    self.abort_take(conn);
                } else {
                    let at = self.now + self.rng.between(1, self.config.late_ns.max(1));
                    self.schedule(at, What::Taken(conn));
                }
                None
            }
            other => {
                h.waiting = other;
                self.violation(format!("take on connection {conn} without a waiting body"));
                Some(landing)
            }
        }
    }

    /// The same within the call, as memory would have it.
    pub(crate) fn take_now(&mut self, conn: u64, into: &mut Landing) -> bool {
        let Some(h) = self.halves.get_mut(&conn) else { return false };
        let Waiting::Body(p) = std::mem::take(&mut h.waiting) else { return false };
        into.copy_from(0, p.load.bytes());
        self.consumed(conn, p.load.len());
        true
    }

    pub(crate) fn finish_take(&mut self, conn: u64) {
        let Some(h) = self.halves.get_mut(&conn) else { return };
        match std::mem::take(&mut h.waiting) {
            Waiting::Taking(p, mut landing) => {
                let port = h.port;
                land(&p, &mut landing);
                self.report(port, Event::Taken { conn: Conn(conn), landing, ok: true });
                self.consumed(conn, p.load.len());
            }
            other => h.waiting = other,
        }
    }

    /// The connection broke in the middle of a body.
    fn abort_take(&mut self, conn: u64) {
        let Some(h) = self.halves.get_mut(&conn) else { return };
        if let Waiting::Taking(_, landing) = std::mem::take(&mut h.waiting) {
            let port = h.port;
            // What came after it cannot have arrived.
            h.inbox.retain(|i| !matches!(i, Item::Frame(_)));
            self.report(port, Event::Taken { conn: Conn(conn), landing, ok: false });
            self.make_ready(conn);
        }
    }

    // ---- death ----

    /// A port is gone. `silent`: its host crashed; else its process ended and the system tells the peers.
    pub(crate) fn remove_port(&mut self, port: u64, silent: bool) {
        let Some(p) = self.ports.get(&port) else { return };
        let place = p.place;
        let conns: Vec<u64> = self.halves.iter().filter(|(_, h)| h.port == port).map(|(c, _)| *c).collect();
        for conn in conns {
            self.orphan_peer(conn, silent);
            self.forget(conn);
        }
        self.settle_flights_of(place);
        self.ports.remove(&port);
        if self.places.get(&place) == Some(&port) {
            self.places.remove(&place);
        }
    }

    /// Tells the other end, if anybody does.
    fn orphan_peer(&mut self, conn: u64, silent: bool) {
        let Some(h) = self.halves.get(&conn).filter(|h| h.is_open()) else { return };
        let (peer, memory) = (h.peer, self.config.delivery == Delivery::Process);
        if self.config.sees_death && (silent || memory) {
            let at = self.now + self.rng.between(1, self.config.death_notice_ns.max(1));
            self.schedule(at, What::Death(peer));
        } else if !silent && !memory {
            self.launch(conn, Msg::Reset { reason: DownReason::Broken });
        }
    }

    pub(crate) fn told_of_death(&mut self, conn: u64) {
        if self.halves.get(&conn).is_some_and(Half::is_open) {
            self.end(conn, DownReason::PeerDead, "the peer is dead", true);
        }
    }

    pub(crate) fn crash(&mut self, host: u32) {
        self.note("crash", Place { host, rail: 0 }, Place { host, rail: 0 }, 0, 0);
        let h = self.host(host);
        h.crashed = true;
        h.stalled = false;
        let ports: Vec<u64> =
            self.ports.iter().filter(|(_, p)| p.place.host == host).map(|(i, _)| *i).collect();
        ports.into_iter().for_each(|p| self.remove_port(p, true));
    }

    pub(crate) fn restart(&mut self, host: u32) {
        self.note("restart", Place { host, rail: 0 }, Place { host, rail: 0 }, 0, 0);
        self.host(host).crashed = false;
        self.release_held();
    }

    pub(crate) fn rail_down(&mut self, rail: u32) {
        let here = Place { host: 0, rail };
        self.note("rail-down", here, here, 0, u64::from(rail));
        self.net.set_rail(rail, false);
        if !self.config.sees_rail_death || self.config.delivery == Delivery::Process {
            return;
        }
        let over = |h: &Half| h.is_open() && (h.place.rail == rail || h.peer_place.rail == rail);
        let conns: Vec<u64> = self.halves.iter().filter(|(_, h)| over(h)).map(|(c, _)| *c).collect();
        conns.into_iter().for_each(|c| self.end(c, DownReason::Broken, "the rail is down", true));
    }
}

/// Copies a body to where it was asked for.
fn land(p: &crate::wire::Packet, landing: &mut Option<Landing>) {
    if let Some(l) = landing {
        l.copy_from(0, p.load.bytes());
    }
}
