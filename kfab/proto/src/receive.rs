//! Up: from `Port::poll` to the end of an operation. Checks, acknowledges, filters duplicates, finds memory for bodies, matches.
//!
//! Everything here comes from a peer: what does not parse, or claims what cannot be, costs that peer its connection.

use crate::dedup::Verdict;
use crate::machine::{Io, Machine};
use crate::matcher::{Arrived, Cost, Receive, Unexpected};
use crate::message::*;
use crate::notice::Told;
use crate::ops::{Proto, data};
use crate::parts::{fit, received};
use crate::peer::Held;
use crate::wire::*;
use kfab_core::mem::{Buffer, Landing, Room};
use kfab_core::spi::{Conn, Delivery, Event, INLINE_MAX, Inline};
use kfab_core::{Error, Fate, Kind, Result};

/// What the body being taken from a connection belongs to.
#[derive(Debug)]
pub(crate) enum Taking {
    /// A message; `op` is the receive it was matched to.
    Message { seq: u32, tag: Option<u64>, flags: u8, len: usize, op: Option<(OpId, Want)>, memory: Memory },
    /// Several messages.
    Batch { seq: u32, len: usize },
    /// A piece for a receive or read.
    Piece { seq: u32, op: OpId },
    /// Bytes stored in a window, for the peer's operation.
    Write { seq: u32, op: u64, status: Status, told: Option<Told> },
    /// A hello's address.
    Hello { hello: Hello, len: usize },
    /// Nothing: the body is discarded; the frame, if it had a number, counts as arrived or was a duplicate.
    Discard { seq: Option<u32> },
}

/// Where the bytes of a message go.
#[derive(Debug)]
pub(crate) enum Memory {
    /// Anywhere.
    Fresh,
    /// Into the buffer that the receive brought.
    Brought,
    /// That one is too short. The receive fails, unless it is over by then: whoever is next gets all of it.
    TooShort(Buffer),
}

fn message(from: PeerId, tag: Option<u64>, data: Data, nth: u64) -> Message {
    Message { from, tag, data, nth }
}

/// How long the acknowledgement of a body waits for something to take it along, ns.
const SOON: u64 = 50_000;

impl Machine {
    pub(crate) fn on_event(&mut self, io: &mut Io<'_>, port: usize, e: Event) {
        match e {
            // Handled where it lies, by `on_frame_event`.
            Event::Frame { .. } => {}
            Event::Taken { conn, landing, ok } => {
                if let Some(ci) = self.conn_at(port, conn)
                    && let Some(t) = self.conns[ci as usize].taking.take()
                {
                    self.taken(io, ci, t, landing, ok);
                }
            }
            Event::RmaDone { token, landing, result } => {
                self.rma_done(io, OpId::from_bits(token.0), landing, result)
            }
            Event::Writable { conn } => {
                if let Some(ci) = self.conn_at(port, conn) {
                    self.conns[ci as usize].blocked = false;
                    if let Some(pi) = self.conns[ci as usize].peer {
                        self.mark_dirty(pi);
                    }
                }
            }
            Event::Up { conn } => self.on_up(io, port, conn),
            Event::Incoming { conn } => self.on_incoming(io, port, conn),
            Event::Down { conn, reason, detail } => self.on_down(io, port, conn, reason, detail),
        }
    }

    #[inline(always)]
    pub(crate) fn on_frame_event(
        &mut self,
        io: &mut Io<'_>,
        port: usize,
        conn: Conn,
        header: &[u8; 16],
        inline: &Inline,
        body_len: usize,
    ) {
        if let Some(ci) = self.conn_at(port, conn) {
            self.count_frame(ci, body_len);
            self.on_frame(io, ci, Header::parse(header), inline, body_len);
        } else if body_len > 0 {
            io.ports[port].take(conn, None);
        }
    }

    /// A frame has come, and is counted: it may be looked at more than once.
    #[inline(always)]
    pub(crate) fn count_frame(&mut self, ci: u32, body_len: usize) {
        let c = &mut self.conns[ci as usize];
        c.rx_frames += 1;
        c.rx_bytes += body_len as u64;
    }

    #[inline(always)]
    pub(crate) fn on_frame(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        header: Option<(FrameKind, Header)>,
        inline: &Inline,
        body_len: usize,
    ) {
        self.assert_no_tab();
        let c = &self.conns[ci as usize];
        let Some((kind, h)) = header else {
            return self.hostile(io, ci, "a frame of unknown kind");
        };
        if kind == FrameKind::Hello {
            return self.on_hello(io, ci, *inline, body_len);
        }
        let Some(pi) = c.peer.filter(|_| c.up) else {
            if c.closing || c.delivery == Delivery::Datagram {
                return self.discard(io, ci, None, body_len);
            }
            return self.hostile(io, ci, "a frame before the hello");
        };
        if !self.faults.is_empty() && self.faults.stalls(self.peers[pi as usize].name) && !c.closing {
            return self.hold_back(io, ci, pi, kind, &h, inline, body_len);
        }
        self.hear(io, ci, pi, kind, &h, inline, body_len);
    }

    /// A frame of a peer over one of its rails.
    #[expect(clippy::too_many_arguments, reason = "the parts of one frame, taken apart once")]
    #[inline(always)]
    pub(crate) fn hear(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        pi: u32,
        kind: FrameKind,
        h: &Header,
        inline: &Inline,
        body_len: usize,
    ) {
        let c = &mut self.conns[ci as usize];
        c.pace.comes(body_len);
        c.used_at = io.now;
        c.heard_at = io.now;
        c.asked_at = 0;
        self.take_header(io, pi, h);
        if !kind.is_sequenced() {
            return self.on_bare(io, ci, pi, kind, h, body_len);
        }
        let seq = h.seq;
        match self.peers[pi as usize].rx.dedup.look(seq) {
            Verdict::New => self.on_new(io, ci, pi, kind, h, seq, inline, body_len),
            Verdict::Duplicate => {
                let p = &mut self.peers[pi as usize];
                p.counters.duplicates += 1;
                p.rx.ack_now = true;
                p.rx.told_next = p.rx.dedup.next().wrapping_sub(1) & (SEQ_MOD - 1);
                self.mark_dirty(pi);
                self.discard(io, ci, None, body_len);
            }
            Verdict::Impossible => self.hostile(io, ci, "a sequence number that cannot be"),
        }
    }

    /// Acknowledgement and credit ride in every header.
    #[inline(always)]
    pub(crate) fn take_header(&mut self, io: &mut Io<'_>, pi: u32, h: &Header) {
        let p = &mut self.peers[pi as usize];
        let (acked, more_credit) = p.hears(io.now, h.ack, h.credit);
        if acked | more_credit {
            self.told_us(io.now, pi, acked);
        }
    }

    /// The peer has taken frames or given back credit.
    #[inline(always)]
    pub(crate) fn told_us(&mut self, now: u64, pi: u32, acked: bool) {
        if acked && !self.peers[pi as usize].tx.unacked.is_empty() {
            self.release_acked(now, pi);
        }
        if !self.peers[pi as usize].tx.is_drained() {
            self.mark_dirty(pi);
        }
    }

    /// Lets go of frames that the peer has.
    fn release_acked(&mut self, now: u64, pi: u32) {
        loop {
            let p = &mut self.peers[pi as usize];
            let acked = p.tx.acked;
            let Some(u) = p.tx.unacked.front().filter(|u| seq_before(u.seq, acked)) else { break };
            let (len, conn, op) = (u.out.body.len(), u.conn, u.out.op);
            if !u.resent {
                let rtt = now.saturating_sub(u.sent_at).max(1);
                p.tx.srtt = if p.tx.srtt == 0 { rtt } else { p.tx.srtt - p.tx.srtt / 8 + rtt / 8 };
            }
            // Looked at where it lies: to move it out would cost more than all the rest.
            p.tx.unacked.pop_front();
            p.tx.unacked_bytes -= len;
            p.tx.backoff = 0;
            if let Some(c) = self.conns.get_mut(conn as usize) {
                c.unacked_bytes = c.unacked_bytes.saturating_sub(len + 64);
            }
            if let Some(op) = op {
                self.finish(op, Ok(Outcome::Unit));
            }
        }
    }

    fn on_bare(&mut self, io: &mut Io<'_>, ci: u32, pi: u32, kind: FrameKind, h: &Header, body_len: usize) {
        if body_len > 0 {
            return self.hostile(io, ci, "a body where none belongs");
        }
        match kind {
            FrameKind::Probe if h.tag == 0 => {
                // Over the connection that was asked: the answer speaks for it alone.
                self.send_over(io, pi, ci, FrameKind::Probe, 1);
            }
            FrameKind::Ack if h.tag > 0 => {
                let rails = self.peers[pi as usize].active.iter();
                let best = rails.map(|ci| self.conns[*ci as usize].pace.measured()).max().unwrap_or(0);
                self.conns[ci as usize].pace.confirm(h.tag, best, io.now);
                self.mark_dirty(pi);
            }
            FrameKind::Bye => {
                self.reset_peer(io, pi, None, Kind::PeerLost, "the peer closed its endpoint");
            }
            _ => {}
        }
    }

    /// A sequenced frame seen for the first time.
    #[expect(clippy::too_many_arguments, reason = "the parts of one frame, taken apart once")]
    #[inline(always)]
    fn on_new(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        pi: u32,
        kind: FrameKind,
        h: &Header,
        seq: u32,
        inline: &Inline,
        body_len: usize,
    ) {
        if body_len > 0 {
            if self.is_taking(pi, seq) {
                return self.park(io, ci, h, *inline, body_len);
            }
            return self.start_take(io, ci, pi, kind, h, seq, *inline, body_len);
        }
        self.arrived(io.now, ci, pi, seq, h.has(URGENT_ACK));
        match kind {
            FrameKind::Eager => {
                let tag = h.user_tag();
                self.message_here(io, pi, seq, tag, h.kind_flags, Arrived::Whole(Data::Inline(*inline)), 1);
                self.frame_here(io, pi);
            }
            FrameKind::Rts => match Rts::parse(inline.as_slice()) {
                Some(rts) if (1..=self.limits.max_message).contains(&rts.len()) => {
                    let tag = h.user_tag();
                    self.message_here(io, pi, seq, tag, h.kind_flags, Arrived::Promise { rts }, 1);
                    self.frame_here(io, pi);
                }
                _ => self.hostile(io, ci, "a bad request to send"),
            },
            FrameKind::Cts => match Cts::parse(inline.as_slice()) {
                Some(cts) => self.on_cts(io, ci, pi, &cts),
                None => self.hostile(io, ci, "a bad clear to send"),
            },
            FrameKind::Done => match Done::parse(inline.as_slice())
                .and_then(|d| Some((d, Status::from_bits(d.status.get())?)))
            {
                Some((d, status)) => self.on_done(io, pi, OpId::from_bits(d.op.get()), status),
                None => self.hostile(io, ci, "a bad end of operation"),
            },
            FrameKind::Read => match Access::parse(inline.as_slice()) {
                Some(a) => self.serve_read(io, pi, &a, h.tag),
                None => self.hostile(io, ci, "a bad read"),
            },
            FrameKind::Write => match self.place_write(pi, h, inline, seq, 0) {
                Some((Taking::Write { op, status, told, .. }, _)) => {
                    self.written(io, pi, seq, op, status, told);
                }
                _ => self.hostile(io, ci, "a bad write"),
            },
            FrameKind::Notice => self.on_notice(io, ci, pi, h.tag, inline),
            _ => self.hostile(io, ci, "a frame without its body"),
        }
    }

    /// Counts a frame as arrived and sees to its acknowledgement.
    #[inline(always)]
    pub(crate) fn arrived(&mut self, now: u64, ci: u32, pi: u32, seq: u32, urgent: bool) {
        let many = self.limits.max_unacked / 4;
        let p = &mut self.peers[pi as usize];
        if !p.rx.held.is_empty() {
            self.mark_dirty(pi);
        }
        let p = &mut self.peers[pi as usize];
        if p.rx.arrives(seq, urgent, many) {
            self.mark_dirty(pi);
        } else if p.rx.ack_at == 0 && self.conns[ci as usize].delivery != Delivery::Process {
            self.owe_ack(now, pi);
        }
    }

    /// An acknowledgement leaves after a while, if it has not left with something else.
    #[inline(always)]
    pub(crate) fn owe_ack(&mut self, now: u64, pi: u32) {
        self.peers[pi as usize].rx.ack_at = now + self.limits.ack_delay.as_nanos() as u64;
        self.set_timer(pi, now);
    }

    /// The same for a body, whose memory the sender may not touch before: it waits no longer than an answer to it would take, as far as one comes at once.
    fn owe_ack_soon(&mut self, now: u64, pi: u32) {
        let rx = &mut self.peers[pi as usize].rx;
        if rx.ack_at != 0 && !std::mem::replace(&mut rx.soon, true) {
            if self.soon.is_empty() {
                self.soon_at = now + SOON;
            }
            self.soon.push(pi);
        }
    }

    /// Acknowledges what nothing has taken along meanwhile.
    pub(crate) fn acknowledge_soon(&mut self, now: u64) {
        let due = now >= self.soon_at;
        let mut soon = std::mem::take(&mut self.soon);
        soon.retain(|pi| {
            let rx = &mut self.peers[*pi as usize].rx;
            rx.soon = rx.ack_at != 0 && !due;
            if rx.ack_at != 0 && due {
                (rx.ack_at, rx.ack_now) = (0, true);
                self.mark_dirty(*pi);
            }
            self.peers[*pi as usize].rx.soon
        });
        if soon.is_empty() {
            self.soon_at = u64::MAX;
        }
        self.soon = soon;
    }

    /// A message, whole or promised: to the receive that waits for it, or into the queue. Ordered ones wait for their turn.
    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    #[inline(always)]
    fn message_here(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        seq: u32,
        tag: Option<u64>,
        flags: u8,
        what: Arrived,
        units: u32,
    ) {
        self.assert_no_tab();
        let p = &self.peers[pi as usize];
        let from = p.name;
        // What is held may be due, and its turn is before this one's.
        if !p.rx.held.is_empty() || flags & ORDERED != 0 {
            let early = !seq_before(seq, p.rx.dedup.next());
            if early && flags & ORDERED != 0 || !early && !p.rx.held.is_empty() {
                if self.may_wait(io, pi, units) {
                    let held = Held::Message(Unexpected { from, tag, what, cost: Cost::owed(units), nth: 0 });
                    self.peers[pi as usize].rx.held.push((seq, held));
                }
                return;
            }
        }
        self.offer(io, pi, Unexpected { from, tag, what, cost: Cost::owed(units), nth: 0 });
    }

    /// After all messages of a frame: those that were held back for it, in their order.
    #[inline(always)]
    fn frame_here(&mut self, io: &mut Io<'_>, pi: u32) {
        if !self.peers[pi as usize].rx.held.is_empty() {
            self.release_held(io, pi);
        }
    }

    /// Ordered messages whose turn has come, in their order.
    pub(crate) fn release_held(&mut self, io: &mut Io<'_>, pi: u32) {
        let rx = &mut self.peers[pi as usize].rx;
        let next = rx.dedup.next();
        let (mut due, early): (Vec<_>, Vec<_>) = rx.held.drain(..).partition(|(s, _)| seq_before(*s, next));
        rx.held = early;
        // Stable: messages of one batch share a number and keep their order.
        due.sort_by_key(|(s, _)| seq_ahead(next, *s));
        for (_, held) in due {
            let rx = &mut self.peers[pi as usize].rx;
            let units = if let Held::Message(u) = &held { u.cost.units } else { 1 };
            rx.waiting = rx.waiting.saturating_sub(units);
            match held {
                Held::Message(u) => self.offer(io, pi, u),
                Held::Notice(n) => self.notice_here(io, pi, Some(n)),
            }
        }
    }

    #[inline(always)]
    fn offer(&mut self, io: &mut Io<'_>, pi: u32, mut u: Unexpected) {
        if u.nth == 0 {
            u.nth = self.next_nth();
        }
        let p = &mut self.peers[pi as usize];
        p.counters.rx_messages += 1;
        p.counters.rx_bytes += u.len();
        let Some(Receive { op, want, into }) = self.matcher.take_posted(u.from, u.tag) else {
            if self.may_wait(io, pi, u.cost.units) {
                self.matcher.push(u);
            }
            return;
        };
        match u.what {
            Arrived::Whole(d) => {
                self.consume(pi, u.cost.units);
                self.hand_down(op, message(u.from, u.tag, d, u.nth), into);
            }
            Arrived::Promise { .. } => {
                let room = self.room(op, into);
                self.fetch(io, op, want, u, room);
            }
        }
    }

    /// Something of a peer begins to wait for its user. `false`: an honest peer would have no credit for it, so this one is given up,
    /// with all of it that waits.
    #[inline]
    pub(crate) fn may_wait(&mut self, io: &mut Io<'_>, pi: u32, units: u32) -> bool {
        let waiting = &mut self.peers[pi as usize].rx.waiting;
        *waiting = waiting.saturating_add(units);
        if *waiting <= self.limits.credits {
            return true;
        }
        let why = "the peer broke the protocol: more waits here than it has credit";
        self.reset_peer(io, pi, None, Kind::Protocol, why);
        false
    }

    /// The number of a message that comes now.
    #[inline(always)]
    pub(crate) fn next_nth(&mut self) -> u64 {
        self.last_nth += 1;
        self.last_nth
    }

    /// A receive meets a message whose bytes are still to come.
    fn meets(&mut self, op: OpId) {
        let nth = self.next_nth();
        self.ops.set_nth(op, nth);
    }

    /// A whole message whose receive was withdrawn goes to the next that waits for it, or to its place in the queue.
    pub(crate) fn give_again(&mut self, m: Message) {
        if let Some(Receive { op, into, .. }) = self.matcher.take_posted(m.from, m.tag) {
            return self.hand_down(op, m, into);
        }
        if let Some(op) = self.matcher.take_dry(m.from, m.tag) {
            return self.hand_down(op, m, None);
        }
        let what = Arrived::Whole(m.data);
        self.matcher.push(Unexpected { from: m.from, tag: m.tag, what, cost: Cost::NONE, nth: m.nth });
    }

    /// A receive that finds its message waiting.
    pub(crate) fn deliver_waiting(
        &mut self,
        io: &mut Io<'_>,
        want: Want,
        u: Unexpected,
        into: Option<Room>,
    ) -> Result<Started> {
        match u.what {
            Arrived::Whole(d) => {
                self.give_units(u.from, u.cost);
                fit(message(u.from, u.tag, d, u.nth), into).map(Started::Done)
            }
            Arrived::Promise { .. } => {
                let op = match self.ops.insert_recv(None) {
                    Ok(op) => op,
                    Err(e) => {
                        self.matcher.push(u);
                        return Err(e);
                    }
                };
                self.deliver(io, op, want, u, into);
                self.started(op)
            }
        }
    }

    /// The same for a receive that has its operation.
    pub(crate) fn deliver(
        &mut self,
        io: &mut Io<'_>,
        op: OpId,
        want: Want,
        u: Unexpected,
        into: Option<Room>,
    ) {
        match u.what {
            Arrived::Whole(d) => {
                self.give_units(u.from, u.cost);
                self.finish(op, fit(message(u.from, u.tag, d, u.nth), into));
            }
            Arrived::Promise { .. } => {
                if let Some(p) = self.peers.get_mut(u.from.index as usize).filter(|p| p.name == u.from) {
                    p.rx.waiting = p.rx.waiting.saturating_sub(u.cost.units);
                }
                self.fetch(io, op, want, u, into);
            }
        }
    }

    /// The memory of a message is the user's now: its units go back to the sender.
    #[inline(always)]
    pub(crate) fn consume(&mut self, pi: u32, units: u32) {
        let quarter = self.limits.credits / 4;
        if self.peers[pi as usize].rx.consumes(units, quarter) {
            self.mark_dirty(pi);
        }
    }

    // ---- bodies ----

    fn is_taking(&self, pi: u32, seq: u32) -> bool {
        let p = &self.peers[pi as usize];
        if p.rails.len() <= 1 && self.leaving.is_empty() {
            return false;
        }
        let left = self.leaving.iter().filter(|ci| self.conns[**ci as usize].peer == Some(pi));
        p.rails.iter().chain(left).any(|ci| match &self.conns[*ci as usize].taking {
            Some(
                Taking::Message { seq: s, .. } | Taking::Batch { seq: s, .. } | Taking::Piece { seq: s, .. },
            ) => *s == seq,
            Some(Taking::Write { seq: s, .. } | Taking::Discard { seq: Some(s) }) => *s == seq,
            _ => false,
        })
    }

    /// Finds memory for a body and takes it.
    #[expect(clippy::too_many_arguments, reason = "the parts of one frame, taken apart once")]
    fn start_take(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        pi: u32,
        kind: FrameKind,
        h: &Header,
        seq: u32,
        inline: Inline,
        body_len: usize,
    ) {
        let port = self.conns[ci as usize].port;
        if body_len > io.ports[port].caps().max_body {
            return self.hostile(io, ci, "a body larger than the limit");
        }
        let found = match kind {
            FrameKind::Eager => self.place_message(io, pi, h, seq, body_len),
            FrameKind::Batch => {
                let buffer = io.pool.alloc(body_len).ok();
                buffer
                    .and_then(|b| Landing::prefix(b, body_len).ok())
                    .map(|l| (Taking::Batch { seq, len: body_len }, Some(l)))
            }
            FrameKind::Piece => match Piece::parse(inline.as_slice()) {
                Some(piece) => Some(self.place_piece(pi, &piece, seq, body_len)),
                None => return self.hostile(io, ci, "a bad piece"),
            },
            FrameKind::Write => match self.place_write(pi, h, &inline, seq, body_len) {
                Some(found) => Some(found),
                None => return self.hostile(io, ci, "a bad write"),
            },
            _ => return self.hostile(io, ci, "a body where none belongs"),
        };
        let Some((taking, landing)) = found else { return self.wait_for_memory(io, ci, h, inline, body_len) };
        self.take_body(io, ci, taking, landing);
    }

    fn take_body(&mut self, io: &mut Io<'_>, ci: u32, taking: Taking, landing: Option<Landing>) {
        let c = &self.conns[ci as usize];
        match io.ports[c.port].take(c.conn, landing) {
            Some(landing) => self.taken(io, ci, taking, landing, true),
            None => self.conns[ci as usize].taking = Some(taking),
        }
    }

    pub(crate) fn discard(&mut self, io: &mut Io<'_>, ci: u32, seq: Option<u32>, body_len: usize) {
        if body_len > 0 {
            self.take_body(io, ci, Taking::Discard { seq }, None);
        }
    }

    pub(crate) fn take_hello(&mut self, io: &mut Io<'_>, ci: u32, hello: Hello, body_len: usize) {
        let landing = io.pool.alloc(body_len).ok().and_then(|b| Landing::prefix(b, body_len).ok());
        self.take_body(io, ci, Taking::Hello { hello, len: body_len }, landing);
    }

    fn place_message(
        &mut self,
        io: &Io<'_>,
        pi: u32,
        h: &Header,
        seq: u32,
        len: usize,
    ) -> Option<(Taking, Option<Landing>)> {
        let p = &self.peers[pi as usize];
        let tag = h.user_tag();
        let early = h.has(ORDERED) && (seq != p.rx.dedup.next() || !p.rx.held.is_empty());
        let posted = if early { None } else { self.matcher.take_posted(p.name, tag) };
        if let Some(r) = &posted {
            self.meets(r.op);
        }
        let (op, into) = posted.map_or((None, None), |r| (Some((r.op, r.want)), r.into));
        let flags = h.kind_flags;
        let into = into.or_else(|| self.first_alone(op?.0, len));
        let (memory, landing) = match into {
            Some(b) if b.len() >= len => (Memory::Brought, Landing::prefix(b, len).ok()),
            into => match io.pool.landing(len) {
                Ok(l) => (into.map_or(Memory::Fresh, Memory::TooShort), Some(l)),
                Err(_) => {
                    if let Some((op, want)) = op {
                        self.matcher.repost(Receive { op, want, into });
                    }
                    return None;
                }
            },
        };
        // Without a landing (a buffer that is not the receive's alone) the bytes are dropped and the receive fails when they are.
        Some((Taking::Message { seq, tag, flags, len, op, memory }, landing))
    }

    /// A body has been taken (`ok`) or its connection broke before it was whole.
    pub(crate) fn taken(&mut self, io: &mut Io<'_>, ci: u32, t: Taking, landing: Option<Landing>, ok: bool) {
        let Some(pi) = self.conns[ci as usize].peer else {
            // A stranger's hello, or what a peer had begun to say that is lost by now.
            return match t {
                Taking::Hello { hello, len } if ok => self.finish_hello(io, ci, &hello, landing, len),
                t => self.take_failed(io, t, landing),
            };
        };
        if !ok {
            return self.take_failed(io, t, landing);
        }
        let pace = &mut self.conns[ci as usize].pace;
        pace.came();
        if pace.is_due() && self.peers[pi as usize].rails.len() > 1 {
            self.mark_dirty(pi);
        }
        match t {
            Taking::Hello { hello, len } => self.finish_hello(io, ci, &hello, landing, len),
            Taking::Discard { seq } => {
                if let Some(seq) = seq {
                    self.arrived(io.now, ci, pi, seq, false);
                }
            }
            Taking::Message { seq, tag, flags, len, op, memory } => {
                self.arrived(io.now, ci, pi, seq, flags & URGENT_ACK != 0);
                if self.conns[ci as usize].delivery != Delivery::Process {
                    self.owe_ack_soon(io.now, pi);
                }
                self.message_taken(io, pi, seq, tag, flags, len, op, memory, landing);
                self.frame_here(io, pi);
            }
            Taking::Batch { seq, len } => {
                self.arrived(io.now, ci, pi, seq, false);
                let Some(buffer) = landing.and_then(Landing::into_buffer) else { return };
                if self.unpack(io, pi, seq, &buffer.slice(0..len)).is_none() {
                    return self.hostile(io, ci, "a bad batch");
                }
                self.frame_here(io, pi);
            }
            Taking::Piece { seq, op } => {
                self.arrived(io.now, ci, pi, seq, false);
                self.piece_taken(io, op, landing, true);
            }
            Taking::Write { seq, op, status, told } => {
                self.arrived(io.now, ci, pi, seq, false);
                self.written(io, pi, seq, op, status, told);
            }
        }
    }

    /// What had been set aside for a body goes back: the frame will come again, or the peer is lost.
    fn take_failed(&mut self, io: &mut Io<'_>, t: Taking, landing: Option<Landing>) {
        match t {
            Taking::Message { op: Some((op, want)), memory, .. } => {
                if let Some(Proto::Recv { .. } | Proto::RecvAll { .. }) = self.ops.proto(op) {
                    // Memory made for this message may be too short for the next.
                    let into = match memory {
                        Memory::Brought => landing.and_then(Landing::into_buffer),
                        Memory::TooShort(b) => Some(b),
                        Memory::Fresh => None,
                    };
                    let into = self.first_back(op, into);
                    self.post_again(io, Receive { op, want, into });
                }
            }
            Taking::Piece { op, .. } => self.piece_failed(io, op, landing),
            _ => {}
        }
    }

    /// A receive whose message broke on the way waits again. Meanwhile others may have come.
    pub(crate) fn post_again(&mut self, io: &mut Io<'_>, r: Receive) {
        match self.matcher.take_unexpected(&r.want) {
            Some(u) => {
                let room = self.room(r.op, r.into);
                self.deliver(io, r.op, r.want, u, room);
            }
            None => self.matcher.repost(r),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    fn message_taken(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        seq: u32,
        tag: Option<u64>,
        flags: u8,
        len: usize,
        op: Option<(OpId, Want)>,
        memory: Memory,
        landing: Option<Landing>,
    ) {
        let from = self.peers[pi as usize].name;
        let (units, buffer) = (self.limits.units(len), landing.and_then(Landing::into_buffer));
        let Some((op, _)) = op else {
            let Some(buffer) = buffer else { return };
            let what = Arrived::Whole(data(buffer, len));
            return self.message_here(io, pi, seq, tag, flags, what, units);
        };
        self.consume(pi, units);
        let Some(buffer) = buffer else { return self.finish(op, Err(truncated())) };
        let nth = self.ops.nth(op);
        if !self.ops.is_waiting(op) {
            // Its receive was cancelled while the bytes came: the message waits for the next.
            self.end_op(op);
            let what = Arrived::Whole(data(buffer, len));
            return self.offer(io, pi, Unexpected { from, tag, what, cost: Cost::NONE, nth });
        }
        let p = &mut self.peers[pi as usize];
        p.counters.rx_messages += 1;
        p.counters.rx_bytes += len as u64;
        if let Memory::TooShort(_) = memory {
            return self.finish(op, Err(truncated()));
        }
        if let Memory::Fresh = memory {
            return self.hand_down(op, message(from, tag, data(buffer, len), nth), None);
        }
        let back = self.first_back(op, Some(buffer));
        let end = self.room(op, back).map(|room| received(from, tag, room, len, nth));
        self.finish(op, end.ok_or_else(truncated));
    }

    /// Delivers the messages of a batch; `None` if it does not parse.
    fn unpack(&mut self, io: &mut Io<'_>, pi: u32, seq: u32, body: &Buffer) -> Option<()> {
        let from = self.peers[pi as usize].name;
        let mut at = 0;
        while at < body.len() {
            let r = Record::parse(body.get(at..at + size_of::<Record>())?)?;
            at += size_of::<Record>();
            let len = usize::from(r.len.get());
            let bytes = body.get(at..at.checked_add(len)?)?;
            let d = match Inline::new(bytes) {
                Some(i) if len <= INLINE_MAX => Data::Inline(i),
                _ => Data::Buffer { buffer: body.slice(at..at + len), len },
            };
            at += len;
            if self.peers[pi as usize].name != from || self.peers[pi as usize].rails.is_empty() {
                // It was given up for one of these messages.
                return Some(());
            }
            let tag = (r.flags & TAGGED != 0).then(|| r.tag.get());
            self.message_here(io, pi, seq, tag, r.flags, Arrived::Whole(d), self.limits.units(len));
        }
        Some(())
    }
}

pub(crate) fn truncated() -> Error {
    Error::new(Kind::Truncated, "recv", "the message is larger than the buffer it was received into")
        .with_fate(Fate::Refused)
}
