//! The short way: one frame's bytes to and from a peer with nothing in the way. One rail in good order, credit, nothing waiting: then a
//! message needs no place in a queue and no slot of an operation, only the bookkeeping that all messages have. Where frames are kept until
//! they are acknowledged, those go this way whose bytes fit beside the header: they are kept by value.
//!
//! Each step says "no, and nothing has happened" when anything is unusual, and the caller goes the long way (`transmit`, `receive`).
//! Everything here runs once a message: it is inlined, and large values are written where they stay, not moved.

use crate::machine::{Io, Machine};
use crate::matcher::{Arrived, Unexpected};
use crate::message::*;
use crate::ops::{Lent, Proto};
use crate::peer::{Out, Peer};
use crate::transmit::flags;
use crate::wire::*;
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{Delivery, INLINE_MAX, Inline, Next, RemoteKey, Rights, Small};

/// Who may be given a message past the queues.
#[derive(Clone, Copy, Debug)]
enum Taker<'a> {
    /// The caller waits for this receive.
    Op(OpId),
    /// The caller would post such a receive, and no receive and no message waits.
    Anyone(&'a Want),
}

/// A message in the place where its user has it: what comes past the queues is written there by the port.
#[derive(Debug)]
pub struct Direct {
    /// Who sent it.
    pub from: PeerId,
    /// The tag, of a tagged message.
    pub tag: Option<u64>,
    /// See [`Message::nth`].
    pub nth: u64,
    /// The frame it came in, with its bytes if they are few, and their number in `body_len` if they are many.
    pub small: Small,
    /// The memory of many bytes: as long, or longer where the receive brought it.
    pub body: Option<Buffer>,
}

impl Direct {
    /// Room for one.
    pub const EMPTY: Direct = Direct {
        from: PeerId { index: u32::MAX, generation: 0 },
        tag: None,
        nth: 0,
        small: Small::EMPTY,
        body: None,
    };

    /// Lays a message here that came by the queues.
    pub fn put(&mut self, m: Message) {
        (self.from, self.tag, self.nth) = (m.from, m.tag, m.nth);
        self.put_data(m.data);
    }

    fn put_data(&mut self, data: Data) {
        match data {
            Data::Inline(inline) => (self.small.inline, self.body) = (inline, None),
            Data::Buffer { buffer, len } => (self.small.body_len, self.body) = (len, Some(buffer)),
        }
    }

    /// Takes the message out of here.
    pub fn take(&mut self) -> Message {
        let data = match self.body.take() {
            None => Data::Inline(self.small.inline),
            Some(buffer) => Data::Buffer { buffer, len: self.small.body_len },
        };
        Message { from: self.from, tag: self.tag, data, nth: self.nth }
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        match &self.body {
            None => self.small.inline.as_slice(),
            Some(buffer) => &buffer[..self.small.body_len],
        }
    }
}

/// What a short round found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// Nothing.
    Nothing,
    /// Something, dealt with.
    Busy,
    /// The message that was asked for; it is in the caller's [`Direct`].
    Here,
    /// Something that only [`Machine::poll`] does is due.
    Due,
}

impl Machine {
    // ---- down ----

    /// [`Machine::send`] for one frame's bytes to a peer with nothing in the way: `false`, and nothing has happened, if that is not so.
    /// `in_slab`: they lie where the receiver might fetch them.
    #[inline(always)]
    pub fn send_now(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        bytes: &[u8],
        in_slab: bool,
        opts: &SendOptions,
    ) -> bool {
        if in_slab && bytes.len() > self.limits.fetch_min {
            return false;
        }
        let pi = to.index;
        let Some(p) = self.peers.get(pi as usize).filter(|p| p.name == to) else { return false };
        let units = match bytes.len() {
            0..=INLINE_MAX => 1,
            len => match self.conns.get(p.short as usize) {
                Some(c) if !p.keep && p.is_eager(&self.limits, c.eager_max, len) => {
                    p.units(&self.limits, len)
                }
                _ => return false,
            },
        };
        if opts.delivered || !p.tx.is_drained() || p.tx.credit() < units {
            return false;
        }
        let (flags, tag) = (flags(opts), opts.tag.unwrap_or(0));
        let Some(p) = self.post_short(io, pi, FrameKind::Eager, flags, tag, bytes, units) else {
            return false;
        };
        p.counters.tx_messages += 1;
        p.counters.tx_bytes += bytes.len() as u64;
        true
    }

    /// [`Machine::send`] for memory that the receiver fetches, to a peer with nothing in the way: `None`, and nothing has happened, if that
    /// is not so. Else the buffer is the operation's.
    #[inline(always)]
    pub fn promise_now(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        from: &mut Option<Buffer>,
        opts: &SendOptions,
    ) -> Option<OpId> {
        self.close_tab();
        let (pi, len) = (to.index, from.as_ref()?.len());
        let p = self.peers.get(pi as usize).filter(|p| p.name == to)?;
        let c = self.conns.get_mut(p.short as usize)?;
        let large = len > c.fetch_min && len as u64 <= self.limits.max_message;
        let free = large && c.rma && !c.blocked && p.tx.is_drained() && p.tx.credit() > 0;
        if !free || self.closed || self.ops.is_full() {
            return None;
        }
        let (port, over) = (c.port, p.short);
        let rights = Rights::READ | Rights::TRANSFER;
        let exposure = io.ports[port].expose(from.as_ref()?.source(), rights).ok()?;
        c.rma_bytes += len;
        let key = exposure.key;
        let op = self.ops.insert_promise(to, from.take()?.into_source(), Lent { port, exposure, over, len });
        let op = op.expect("there was room for one more");
        self.expect(io.now, pi);
        self.promise(io, pi, op, len as u64, key, port, opts, true);
        Some(op)
    }

    /// Numbers a frame and posts it, if the peer has one rail and that takes it at once; spends its units. `bytes` of more than
    /// [`INLINE_MAX`] are its body: only where frames need not be kept. The caller has looked after order and credit. `None`, and nothing
    /// has happened, if it must go the long way.
    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    #[inline(always)]
    pub(crate) fn post_short(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        kind: FrameKind,
        flags: u8,
        tag: u64,
        bytes: &[u8],
        units: u32,
    ) -> Option<&mut Peer> {
        let p = &mut self.peers[pi as usize];
        // `NOWHERE` is no connection's number.
        let c = self.conns.get_mut(p.short as usize)?;
        // Where each frame is a system call, the second of a round waits for company.
        let may_keep = !p.keep || (p.tx.unacked.len() < self.limits.max_unacked && p.tx.round != self.round);
        if c.blocked || !may_keep {
            return None;
        }
        let mut h = Header::new(kind, flags, p.tx.next, tag);
        // What is on the tab the peer is told with the rest.
        let unbooked = self.tab.frames_of(pi);
        let next = (p.rx.dedup.next() + unbooked) & (SEQ_MOD - 1);
        let consumed = p.rx.consumed.wrapping_add(unbooked);
        (h.ack, h.credit) = (next as u16, consumed as u16);
        if !io.ports[c.port].post_small(c.conn, h.to_number(), bytes) {
            c.blocked = true;
            return None;
        }
        c.tx_frames += 1;
        c.used_at = io.now;
        let (ci, seq) = (p.short, p.tx.take_seq());
        p.tx.round = self.round;
        p.rx.told(next, consumed);
        p.tx.spent = p.tx.spent.wrapping_add(units);
        p.counters.min_credits = p.counters.min_credits.min(p.tx.credit());
        if p.keep
            && let Some(inline) = Inline::new(bytes)
        {
            let out = Out { kind, flags, tag, inline, body: Source::Empty, op: None, units };
            self.keep(io.now, pi, ci, seq, out);
        }
        // Now, while it travels.
        self.pay();
        Some(&mut self.peers[pi as usize])
    }

    // ---- up ----

    /// Posts a receive, with the buffer that lies in `into`. `None`, and nothing has happened, unless that is all there is to do.
    #[inline(always)]
    pub fn post_recv(&mut self, io: &mut Io<'_>, want: &Want, into: &mut Option<Buffer>) -> Option<OpId> {
        if self.closed || !self.matcher.none_waits(want) {
            return None;
        }
        if let Some(from) = want.from {
            let p = self.peers.get(from.index as usize).filter(|p| p.name == from && p.alias.is_none())?;
            if p.rails.is_empty() {
                return None;
            }
            self.expect(io.now, from.index);
        }
        if self.ops.is_full() {
            self.unexpect(&Proto::Recv { from: want.from });
            return None;
        }
        let op = self.ops.insert_recv(want.from).ok()?;
        self.matcher.post(op, want, into);
        Some(op)
    }

    /// A short round for the caller who waits for receive `op`: much less than [`Machine::poll`] does, and it must be called in
    /// between ([`Polled::Due`] says when at the latest). Ports other than the one of the last frame are not looked at.
    #[inline]
    pub fn poll_for(&mut self, io: &mut Io<'_>, op: OpId, out: &mut Direct) -> Polled {
        self.end_served();
        match self.prepare(io) {
            Polled::Nothing => self.next_small(io, Taker::Op(op), out),
            other => other,
        }
    }

    /// A receive that looks for its message on the short way before it is posted: `true` if it is in `out`, where the receive's
    /// buffer lay, if it has one, and lies again if not.
    #[inline]
    pub fn recv_now(&mut self, io: &mut Io<'_>, want: &Want, out: &mut Direct) -> bool {
        self.end_served();
        if !self.matcher.none_waits(want) {
            return out.body.is_none() && self.take_waiting(want, out);
        }
        let free = match self.prepare(io) {
            Polled::Busy => self.is_calm(io.now),
            prepared => prepared == Polled::Nothing,
        };
        free && self.matcher.is_idle(want) && self.next_small(io, Taker::Anyone(want), out) == Polled::Here
    }

    /// Sees to what comes before the next frame: `Nothing` if there was none of it.
    #[inline(always)]
    fn prepare(&mut self, io: &mut Io<'_>) -> Polled {
        if self.tab.is_open() {
            let due = io.now >= self.next_tick || !self.soon.is_empty();
            return if due { Polled::Due } else { Polled::Nothing };
        }
        self.close_tab();
        if !self.dirty.is_empty() && self.drain_memory(io) {
            return Polled::Busy;
        }
        if self.is_calm(io.now) { Polled::Nothing } else { Polled::Due }
    }

    /// Nothing waits to be done but what ports may bring, and they have all been asked not long ago.
    #[inline(always)]
    pub(crate) fn is_calm(&self, now: u64) -> bool {
        !self.unflushed
            && !self.closed
            && self.dirty.is_empty()
            && self.parked.is_empty()
            && self.soon.is_empty()
            && now < self.next_tick
            && self.round < self.short_until
    }

    /// Sends what is to be sent, if it all goes over memory, where no frame waits for company: credit above all. (A whole round would take
    /// all frames that have come the long way.) `false`: a whole round is needed.
    #[inline(never)]
    fn drain_memory(&mut self, io: &mut Io<'_>) -> bool {
        let needs_round = |p: &Peer| p.keep || !p.rx.held.is_empty();
        if self.closed || self.dirty.iter().any(|pi| needs_round(&self.peers[*pi as usize])) {
            return false;
        }
        self.drain_dirty(io);
        self.dirty.is_empty()
    }

    /// The short way up: one frame, if the port has one and nothing else is due. A message that `taker` wants goes into `out` and
    /// past all queues.
    #[inline(always)]
    fn next_small(&mut self, io: &mut Io<'_>, taker: Taker<'_>, out: &mut Direct) -> Polled {
        let port = self.last_conn.0;
        match io.ports[port].next_small(io.now, &mut out.small) {
            Next::Nothing => return Polled::Nothing,
            Next::Poll => return Polled::Due,
            Next::Frame => {}
        }
        self.round += 1;
        if let Some((from, tag)) = self.tab.admits(out)
            && let Some(None) = self.wanted_of(from, tag, taker, &mut out.body)
        {
            (out.from, out.tag, out.nth) = (from, tag, self.next_nth());
            let served = if let Taker::Op(op) = taker { op } else { OpId::NOBODY };
            self.tab.add(io.now, served, out);
            return Polled::Here;
        }
        self.close_tab();
        let Some(ci) = self.conn_at(port, out.small.conn) else {
            discard(io, port, &out.small);
            return Polled::Busy;
        };
        let here = match Header::from_words(out.small.header) {
            Some((FrameKind::Eager, h)) => self.hand_over(io, ci, &h, taker, out),
            Some((FrameKind::Rts, h)) => self.fetch_now(io, ci, &h, taker, out),
            Some((FrameKind::Done, h)) if self.done_now(io, ci, &h, &out.small) => return Polled::Busy,
            _ => false,
        };
        if here {
            return Polled::Here;
        }
        self.go_long(io, ci, &out.small);
        Polled::Busy
    }

    /// The peer has fetched a large message. `false`, and nothing has happened: it must go the long way.
    #[inline(always)]
    fn done_now(&mut self, io: &mut Io<'_>, ci: u32, h: &Header, frame: &Small) -> bool {
        let done = Done::parse(frame.inline.as_slice());
        let Some(d) = done.filter(|d| d.status.get() == Status::Ok as u32 && frame.body_len == 0) else {
            return false;
        };
        let Some(pi) = self.in_turn(ci, h) else { return false };
        if !self.large_done(io, pi, OpId::from_bits(d.op.get())) {
            return false;
        }
        self.heard(io, ci, pi, h, 0);
        true
    }

    /// The long way up for a frame that came by the short one.
    #[inline(never)]
    fn go_long(&mut self, io: &mut Io<'_>, ci: u32, frame: &Small) {
        self.count_frame(ci, frame.body_len);
        self.on_frame(io, ci, Header::from_words(frame.header), &frame.inline, frame.body_len);
    }

    /// Gives the message that waits for a receive like this, if it is whole.
    fn take_waiting(&mut self, want: &Want, out: &mut Direct) -> bool {
        self.close_tab();
        let whole = |u: &Unexpected| matches!(u.what, Arrived::Whole(_));
        let Some(u) = self.matcher.take_unexpected_if(want, whole) else { return false };
        let Arrived::Whole(data) = u.what else { return false };
        (out.from, out.tag, out.nth) = (u.from, u.tag, u.nth);
        out.put_data(data);
        self.give_units(u.from, u.cost);
        true
    }

    /// Gives a message straight to whoever waits for it. `false`, and nothing has happened: it must go the long way, because
    /// something is unusual or it is not what the taker wants.
    #[inline(always)]
    fn hand_over(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        h: &Header,
        taker: Taker<'_>,
        out: &mut Direct,
    ) -> bool {
        let Some(pi) = self.in_turn(ci, h) else { return false };
        let Some(into) = self.wanted(pi, h, taker, &mut out.body) else { return false };
        if out.small.body_len > 0 || into.is_some() {
            return self.hand_over_body(io, ci, pi, h, taker, out);
        }
        let few = out.small.inline.len();
        self.handed(io, ci, pi, h, taker, out, few, 1);
        self.open_tab(io, ci, pi);
        true
    }

    /// The same for a promised message, whose bytes are fetched at once.
    #[inline(never)]
    fn fetch_now(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        h: &Header,
        taker: Taker<'_>,
        out: &mut Direct,
    ) -> bool {
        let rts = Rts::parse(out.small.inline.as_slice());
        let max = self.limits.max_message;
        let Some(rts) = rts.filter(|r| r.secret.get() != 0 && (1..=max).contains(&r.len())) else {
            return false;
        };
        let (Some(pi), len) = (self.in_turn(ci, h).filter(|pi| self.is_alone(ci, *pi)), rts.len() as usize)
        else {
            return false;
        };
        let Some(mut place) = self.take_place(io, pi, h, taker, &mut out.body, len) else { return false };
        let c = &self.conns[ci as usize];
        let key = RemoteKey { region: rts.region.get(), base: rts.base.get(), secret: rts.secret.get() };
        let port = &mut io.ports[c.port];
        let leads = c.far_port == rts.port.get() && port.caps().rma;
        if !leads || !port.read_now(c.conn, &key, 0, &mut place.landing) {
            if let (Some(into), false) = (self.wanted(pi, h, taker, &mut out.body), place.fresh) {
                *into = place.landing.into_buffer();
            }
            return false;
        }
        self.conns[ci as usize].rx_bytes += len as u64;
        (out.small.body_len, out.body) = (len, place.landing.into_buffer());
        self.handed(io, ci, pi, h, taker, out, len, 1);
        self.send_done(io, pi, rts.op.get(), Status::Ok);
        true
    }

    /// And for one of many bytes, or into a buffer that its receive brought.
    #[inline(never)]
    fn hand_over_body(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        pi: u32,
        h: &Header,
        taker: Taker<'_>,
        out: &mut Direct,
    ) -> bool {
        let (few, many) = (out.small.inline.len(), out.small.body_len);
        if many > 0 && !self.is_alone(ci, pi) {
            return false;
        }
        let len = few.max(many);
        let Some(place) = self.take_place(io, pi, h, taker, &mut out.body, len) else { return false };
        let (c, mut landing) = (&mut self.conns[ci as usize], place.landing);
        if many > 0 {
            c.rx_bytes += many as u64;
            let taken = io.ports[c.port].take_now(c.conn, &mut landing);
            assert!(taken, "a port that announces a body delivers it");
        } else {
            out.small.body_len = landing.copy_from(0, out.small.inline.as_slice());
        }
        out.body = landing.into_buffer();
        let units = self.limits.units(many);
        self.handed(io, ci, pi, h, taker, out, len, units);
        true
    }

    /// The peer of a connection over which a message came that nothing comes before.
    #[inline(always)]
    fn in_turn(&self, ci: u32, h: &Header) -> Option<u32> {
        let c = &self.conns[ci as usize];
        let pi = c.peer.filter(|_| c.up)?;
        let p = &self.peers[pi as usize];
        let usual = !h.has(ORDERED | URGENT_ACK)
            && self.faults.is_empty()
            && p.rx.dedup.is_next(h.seq)
            && p.rx.held.is_empty()
            && c.delivery != Delivery::Datagram;
        usual.then_some(pi)
    }

    /// The place of the buffer of whoever takes this message; `None` if it is not what they want.
    #[inline(always)]
    fn wanted<'a>(
        &'a mut self,
        pi: u32,
        h: &Header,
        taker: Taker<'_>,
        brought: &'a mut Option<Buffer>,
    ) -> Option<&'a mut Option<Buffer>> {
        self.wanted_of(self.peers[pi as usize].name, h.user_tag(), taker, brought)
    }

    #[inline(always)]
    fn wanted_of<'a>(
        &'a mut self,
        from: PeerId,
        tag: Option<u64>,
        taker: Taker<'_>,
        brought: &'a mut Option<Buffer>,
    ) -> Option<&'a mut Option<Buffer>> {
        match taker {
            Taker::Op(op) if self.ops.is_bare_recv(op) => self.matcher.first(op, from, tag),
            Taker::Anyone(want) if want.accepts(from, tag) => Some(brought),
            _ => None,
        }
    }

    /// Memory for a message's bytes. `None`, and nothing has happened: there is none for it, or it is not wanted.
    #[inline(always)]
    fn take_place(
        &mut self,
        io: &Io<'_>,
        pi: u32,
        h: &Header,
        taker: Taker<'_>,
        brought: &mut Option<Buffer>,
        len: usize,
    ) -> Option<Place> {
        let into = self.wanted(pi, h, taker, brought)?;
        place(io.pool, into, len)
    }

    /// May a body go past the queues? Its twin may be on its way over another rail, and rails that may have others are measured by
    /// their bodies.
    #[inline(always)]
    fn is_alone(&self, ci: u32, pi: u32) -> bool {
        let (c, p) = (&self.conns[ci as usize], &self.peers[pi as usize]);
        c.delivery == Delivery::Process && p.rails.len() == 1 && self.leaving.is_empty()
    }

    /// A message is with whoever wanted it, `len` bytes: what is left is the books.
    #[expect(clippy::too_many_arguments, reason = "the parts of one message")]
    #[inline(always)]
    fn handed(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        pi: u32,
        h: &Header,
        taker: Taker<'_>,
        out: &mut Direct,
        len: usize,
        units: u32,
    ) {
        out.nth = self.next_nth();
        let p = &mut self.peers[pi as usize];
        (out.from, out.tag) = (p.name, h.user_tag());
        if let Taker::Op(op) = taker {
            self.ops.end_bare_recv(op);
            if self.matcher.end_first(out.tag).is_some() {
                p.expects = p.expects.saturating_sub(1);
            }
        }
        p.counters.rx_messages += 1;
        p.counters.rx_bytes += len as u64;
        self.heard(io, ci, pi, h, units);
    }

    /// The books of a frame that nothing came before, with so many units of credit.
    #[inline(always)]
    fn heard(&mut self, io: &Io<'_>, ci: u32, pi: u32, h: &Header, units: u32) {
        let (c, p) = (&mut self.conns[ci as usize], &mut self.peers[pi as usize]);
        c.rx_frames += 1;
        c.used_at = io.now;
        c.heard_at = io.now;
        c.asked_at = 0;
        let (acked, more_credit) = p.hears(io.now, h.ack, h.credit);
        let mut owes = p.rx.arrives(h.seq, false, self.limits.max_unacked / 4);
        owes |= p.rx.consumes(units, self.limits.credits / 4);
        if c.delivery != Delivery::Process && !owes && p.rx.ack_at == 0 {
            self.owe_ack(io.now, pi);
        }
        if acked | more_credit {
            self.told_us(io.now, pi, acked);
        }
        if owes {
            self.mark_dirty(pi);
        }
    }
}

/// Memory for a message's bytes.
struct Place {
    landing: Landing,
    /// It was made for this message: the receive brought none.
    fresh: bool,
}

/// Where a message's bytes go: into the buffer that its receive brought, or a fresh one. `None`, and nothing has happened: there is no
/// place for them.
#[inline(always)]
fn place(pool: &Pool, into: &mut Option<Buffer>, len: usize) -> Option<Place> {
    let Some(buffer) = into.take() else {
        return pool.landing(len).ok().map(|landing| Place { landing, fresh: true });
    };
    let landing = if buffer.len() < len.max(1) { Err(buffer) } else { Landing::prefix(buffer, len) };
    match landing {
        Ok(landing) => Some(Place { landing, fresh: false }),
        Err(buffer) => {
            *into = Some(buffer);
            None
        }
    }
}

/// A frame of a connection that is nobody's any more.
fn discard(io: &mut Io<'_>, port: usize, frame: &Small) {
    if frame.body_len > 0 {
        io.ports[port].take(frame.conn, None);
    }
}
