//! The way of a message from port to port: chance decides whether and when it arrives; the receiving end takes it in.

use crate::half::{Half, Item, Phase, Waiting};
use crate::state::{Inner, What};
use crate::wire::{Flight, Msg, Packet};
use kfab_core::spi::{Conn, Delivery, DownReason, Event, Frame, Next, Small};

impl Inner {
    // ---- down ----

    /// Takes as many frames as there is room for.
    pub(crate) fn post(&mut self, conn: u64, frames: &[Frame<'_>]) -> usize {
        let (max_frames, max_bytes) = (self.config.queue_frames.max(1), self.config.queue_bytes.max(1));
        // Nobody keeps what is sent through memory.
        let dropped = if self.config.delivery == Delivery::Process { 0 } else { frames.len() };
        let Some(h) = self.halves.get_mut(&conn) else { return dropped };
        let max_body = self.ports.get(&h.port).map_or(0, |p| p.caps.max_body);
        match h.phase {
            Phase::Up => {}
            Phase::Connecting => {
                h.wants_writable = true;
                self.violation(format!("post on connection {conn}, which is not up yet"));
                return 0;
            }
            Phase::Closing | Phase::Ended => return dropped,
        }
        for (n, f) in frames.iter().enumerate() {
            let Some(h) = self.halves.get_mut(&conn) else { return frames.len() };
            if f.body.len() > max_body {
                let len = f.body.len();
                self.violation(format!("post of a body of {len} bytes, more than max_body"));
                return n;
            }
            if h.out_frames >= max_frames || h.out_bytes >= max_bytes {
                h.wants_writable = true;
                let peer = h.peer;
                self.trace.stats.refused += 1;
                if !self.halves.get(&peer).is_some_and(Half::is_open) {
                    self.launch(conn, Msg::Probe);
                }
                return n;
            }
            h.out_frames += 1;
            h.out_bytes += f.body.len();
            h.staged.push(Packet::new(f));
            let port = h.port;
            self.trace.stats.posted += 1;
            if !f.more {
                self.send_staged(conn);
            } else if let Some(p) = self.ports.get_mut(&port)
                && !p.unflushed.contains(&conn)
            {
                p.unflushed.push(conn);
            }
        }
        frames.len()
    }

    pub(crate) fn send_staged(&mut self, conn: u64) {
        let Some(h) = self.halves.get_mut(&conn) else { return };
        for p in std::mem::take(&mut h.staged) {
            self.launch(conn, Msg::Data(p));
        }
    }

    pub(crate) fn flush_port(&mut self, port: u64) {
        let conns = self.ports.get_mut(&port).map(|p| std::mem::take(&mut p.unflushed)).unwrap_or_default();
        conns.into_iter().for_each(|c| self.send_staged(c));
    }

    /// Sends a message of a connection to its other end.
    pub(crate) fn launch(&mut self, conn: u64, msg: Msg) {
        let Some(h) = self.halves.get(&conn) else { return };
        let f = Flight {
            from: h.place,
            to: h.peer_place,
            from_conn: conn,
            to_conn: h.peer,
            born: self.now,
            copy: false,
            msg,
        };
        self.transmit(f);
    }

    /// Answers a message whose connection we do not have.
    pub(crate) fn answer(&mut self, to: &Flight, msg: Msg) {
        let f = Flight {
            from: to.to,
            to: to.from,
            from_conn: to.to_conn,
            to_conn: to.from_conn,
            born: self.now,
            copy: false,
            msg,
        };
        self.transmit(f);
    }

    /// Lets chance decide what becomes of a message.
    pub(crate) fn transmit(&mut self, f: Flight) {
        let faults = self.net.faults(f.from, f.to).clone();
        let delivery = self.config.delivery;
        self.note(f.msg.name(), f.from, f.to, f.from_conn, f.msg.wire_len() as u64);
        let mut due = self.net.departure(f.from, f.to, f.msg.wire_len(), self.now)
            + self.rng.between(faults.delay_min_ns, faults.delay_max_ns);
        if self.rng.chance(faults.reorder) {
            due += self.rng.below(faults.reorder_ns.saturating_add(1));
            self.trace.stats.delayed += 1;
        }
        let unsafe_way = delivery == Delivery::Datagram && !f.msg.is_rma();
        if unsafe_way {
            if self.rng.chance(faults.loss) || due - self.now > self.config.lifetime_ns {
                return self.lose(&f, "lost");
            }
            if self.rng.chance(faults.duplicate) {
                let span = faults.delay_max_ns.max(faults.reorder_ns).saturating_add(1);
                let again = (due + self.rng.below(span)).min(self.now + self.config.lifetime_ns);
                self.trace.stats.duplicated += 1;
                self.schedule(again, What::Arrive(Box::new(Flight { copy: true, ..f.clone() })));
            }
        } else if delivery == Delivery::Connection && self.rng.chance(faults.loss) {
            due += self.config.retry_ns;
        }
        let ordered = (delivery != Delivery::Datagram && f.msg.is_stream()) || matches!(f.msg, Msg::Fin);
        if let Some(h) = self.halves.get_mut(&f.from_conn) {
            if ordered {
                due = due.max(h.last_due);
            }
            h.last_due = due.max(h.last_due);
        }
        self.schedule(due, What::Arrive(Box::new(f)));
    }

    fn lose(&mut self, f: &Flight, how: &'static str) {
        self.note(how, f.from, f.to, f.from_conn, f.msg.wire_len() as u64);
        if matches!(f.msg, Msg::Data(_)) {
            self.trace.stats.lost += 1;
        }
        self.room_after_flight(f);
    }

    /// Datagrams take room at the sender while they are under way.
    fn room_after_flight(&mut self, f: &Flight) {
        if let Msg::Data(p) = &f.msg
            && self.config.delivery == Delivery::Datagram
            && !f.copy
        {
            self.make_room(f.from_conn, p.load.len());
        }
    }

    /// A frame of this sender was consumed.
    pub(crate) fn make_room(&mut self, conn: u64, bytes: usize) {
        let (frames, max_bytes) = (self.config.queue_frames.max(1), self.config.queue_bytes.max(1));
        let Some(h) = self.halves.get_mut(&conn) else { return };
        h.out_frames = h.out_frames.saturating_sub(1);
        h.out_bytes = h.out_bytes.saturating_sub(bytes);
        if h.wants_writable
            && h.phase == Phase::Up
            && h.out_frames <= frames / 2
            && h.out_bytes <= max_bytes / 2
        {
            h.wants_writable = false;
            let port = h.port;
            self.report(port, Event::Writable { conn: Conn(conn) });
        }
    }

    // ---- up ----

    /// `true` if a message cannot reach its receiver now.
    fn is_blocked(&self, f: &Flight) -> bool {
        let memory = self.config.delivery == Delivery::Process;
        self.host_is_dead(f.to.host) || (!memory && self.net.is_cut(f.from, f.to))
    }

    pub(crate) fn arrive(&mut self, f: Flight) {
        // Behind what waits for the path, even if the path is open again.
        let waits = self.config.delivery == Delivery::Connection
            && f.msg.is_stream()
            && self.halves.get(&f.from_conn).is_some_and(|h| !h.held.is_empty());
        if waits || self.is_blocked(&f) {
            return self.obstructed(f);
        }
        self.dispatch(f);
    }

    fn dispatch(&mut self, f: Flight) {
        match f.msg {
            Msg::Syn { .. } => self.on_syn(f),
            Msg::Accept => self.on_accept(f),
            Msg::Deny { reason, why } => self.on_deny(f.to_conn, reason, why),
            Msg::Data(_) => self.on_data(f),
            Msg::Fin => self.on_fin(f),
            Msg::Probe => {
                if !self.halves.get(&f.to_conn).is_some_and(|h| h.is_open() && h.peer == f.from_conn) {
                    self.answer(&f, Msg::Reset { reason: DownReason::Broken });
                }
            }
            Msg::Reset { reason } => self.on_reset(f.to_conn, f.from_conn, reason),
            Msg::RmaAsk { op } => self.on_rma_ask(f, op),
            Msg::RmaAnswer { op, result } => self.on_rma_answer(f.to_conn, op, result),
        }
    }

    /// A message met a cut, a dead rail or a dead host.
    fn obstructed(&mut self, mut f: Flight) {
        if f.msg.is_rma() {
            return self.rma_obstructed(f);
        }
        let keeps = self.config.delivery == Delivery::Connection && f.msg.is_stream();
        let (now, after) = (self.now, self.config.break_after_ns);
        match self.halves.get_mut(&f.from_conn).filter(|h| keeps && h.phase != Phase::Ended) {
            Some(h) => {
                let first = h.held.is_empty();
                let epoch = h.held_epoch;
                let conn = f.from_conn;
                if let Msg::Data(p) = &mut f.msg {
                    p.load.settle();
                }
                h.held.push_back(f);
                if first {
                    self.schedule(now.saturating_add(after), What::Stuck { conn, epoch });
                }
            }
            None => self.lose(&f, "obstructed"),
        }
    }

    /// Paths changed: what waited and could go now gets through after one more way.
    pub(crate) fn release_held(&mut self) {
        let open = |w: &Inner, h: &Half| h.held.front().is_some_and(|f| !w.is_blocked(f));
        let conns: Vec<u64> = self.halves.iter().filter(|(_, h)| open(self, h)).map(|(c, _)| *c).collect();
        for conn in conns {
            let Some(h) = self.halves.get(&conn) else { continue };
            let delay = self.net.faults(h.place, h.peer_place).delay_max_ns;
            self.schedule(self.now.saturating_add(delay), What::Release(conn));
        }
        let waits = |h: &Half| h.wants_writable && h.phase == Phase::Up;
        let gone = |w: &Inner, h: &Half| !w.halves.get(&h.peer).is_some_and(Half::is_open);
        let full: Vec<u64> =
            self.halves.iter().filter(|(_, h)| waits(h) && gone(self, h)).map(|(c, _)| *c).collect();
        full.into_iter().for_each(|c| self.launch(c, Msg::Probe));
    }

    /// What waited for the path arrives, in order, unless the path closed again.
    pub(crate) fn release(&mut self, conn: u64) {
        let open = self.halves.get(&conn).and_then(|h| h.held.front()).is_some_and(|f| !self.is_blocked(f));
        let Some(h) = self.halves.get_mut(&conn).filter(|_| open) else { return };
        h.held_epoch += 1;
        std::mem::take(&mut h.held).into_iter().for_each(|f| self.dispatch(f));
    }

    pub(crate) fn stuck(&mut self, conn: u64, epoch: u64) {
        if self.halves.get(&conn).is_some_and(|h| h.held_epoch == epoch && !h.held.is_empty()) {
            self.end(conn, DownReason::Broken, "nothing got through for too long", true);
        }
    }

    fn on_data(&mut self, mut f: Flight) {
        let datagram = self.config.delivery == Delivery::Datagram;
        self.room_after_flight(&f);
        let limit = self.config.inbox_frames;
        let Some(h) = self.halves.get_mut(&f.to_conn).filter(|h| h.is_open() && h.peer == f.from_conn) else {
            // While connecting, and after a close in good order, it is merely late or early.
            let calm = |h: &Half| h.phase == Phase::Connecting || (h.phase == Phase::Ended && !h.broke);
            if !self.halves.get(&f.to_conn).is_some_and(calm) {
                self.answer(&f, Msg::Reset { reason: DownReason::Broken });
            }
            return;
        };
        if datagram && h.inbox.len() >= limit {
            self.trace.stats.overflowed += 1;
            return;
        }
        let (from, to, conn) = (f.from, f.to, f.to_conn);
        let Msg::Data(p) = &mut f.msg else { return };
        p.load.settle();
        let len = p.load.len() as u64;
        h.inbox.push_back(Item::Frame(p.clone()));
        self.trace.stats.arrived += 1;
        self.note("arrived", from, to, conn, len);
        self.make_ready(conn);
    }

    /// Moves up to a batch of events of a port out.
    pub(crate) fn collect(&mut self, port: u64, events: &mut Vec<Event>) -> bool {
        let limit = events.len() + self.config.batch.max(1);
        let before = events.len();
        let Some(p) = self.ports.get_mut(&port) else { return false };
        if self.hosts.get(&p.place.host).is_some_and(|h| h.stalled) {
            return false;
        }
        while events.len() < limit
            && let Some(e) = p.urgent.pop_front()
        {
            events.push(e);
        }
        let mut turns = p.ready.len();
        while turns > 0
            && events.len() < limit
            && let Some(conn) = self.ports.get_mut(&port).and_then(|p| p.ready.pop_front())
        {
            turns -= 1;
            if let Some(h) = self.halves.get_mut(&conn) {
                h.in_ready = false;
            }
            // A few at a time, so that connections take turns.
            for _ in 0..8 {
                if events.len() >= limit || !self.collect_one(conn, events) {
                    break;
                }
            }
            self.make_ready(conn);
        }
        events.len() > before
    }

    /// The short way up: the frame that a poll would report first.
    pub(crate) fn next_small(&mut self, port: u64, into: &mut Small) -> Next {
        let Some(p) = self.ports.get_mut(&port) else { return Next::Poll };
        if !p.urgent.is_empty() || !p.unflushed.is_empty() {
            return Next::Poll;
        }
        let Some(&conn) = p.ready.front() else { return Next::Nothing };
        if self.hosts.get(&p.place.host).is_some_and(|h| h.stalled) {
            return Next::Nothing;
        }
        let Some(h) = self.halves.get_mut(&conn).filter(|h| h.has_work()) else { return Next::Poll };
        if !matches!(h.inbox.front(), Some(Item::Frame(_))) {
            return Next::Poll;
        }
        h.in_ready = false;
        p.ready.pop_front();
        let mut events = Vec::with_capacity(1);
        self.collect_one(conn, &mut events);
        self.make_ready(conn);
        let [Event::Frame { conn, header, inline, body_len }] = events[..] else { return Next::Poll };
        let (low, high) = header.split_at(8);
        let word = |b: &[u8]| b.try_into().map_or(0, u64::from_ne_bytes);
        *into = Small { conn, header: [word(low), word(high)], inline, body_len };
        Next::Frame
    }

    /// Reports the next thing of a connection.
    fn collect_one(&mut self, conn: u64, events: &mut Vec<Event>) -> bool {
        let Some(h) = self.halves.get_mut(&conn).filter(|h| h.has_work()) else { return false };
        let Some(item) = h.inbox.pop_front() else { return false };
        let (place, peer_place, peer) = (h.place, h.peer_place, h.peer);
        let c = Conn(conn);
        match item {
            Item::Up => {
                let room = std::mem::take(&mut h.wants_writable);
                events.push(Event::Up { conn: c });
                if room {
                    events.push(Event::Writable { conn: c });
                }
                self.note("up", peer_place, place, conn, 0);
            }
            Item::Incoming => {
                events.push(Event::Incoming { conn: c });
                self.note("incoming", peer_place, place, conn, 0);
            }
            Item::Frame(p) => {
                let body_len = p.load.len();
                events.push(Event::Frame { conn: c, header: p.header, inline: p.inline, body_len });
                if body_len > 0 {
                    h.waiting = Waiting::Body(p);
                } else if self.config.delivery != Delivery::Datagram {
                    self.make_room(peer, 0);
                }
                self.note("frame", peer_place, place, conn, body_len as u64);
            }
            Item::Down(reason, detail) => {
                events.push(Event::Down { conn: c, reason, detail });
                self.note("down", peer_place, place, conn, reason as u64);
                self.forget(conn);
            }
        }
        true
    }

    /// A body was consumed: room for the sender, and the connection's next event may come.
    pub(crate) fn consumed(&mut self, conn: u64, bytes: usize) {
        let Some(peer) = self.halves.get(&conn).map(|h: &Half| h.peer) else { return };
        if self.config.delivery != Delivery::Datagram {
            self.make_room(peer, bytes);
        }
        self.make_ready(conn);
    }
}
