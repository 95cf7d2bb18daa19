//! The short way: one frame's bytes to and from a peer with nothing in the way. One rail in good order, credit, nothing waiting: then a
//! message needs no place in a queue and no slot of an operation, only the bookkeeping that all messages have. Where frames are kept until
//! they are acknowledged, those go this way whose bytes fit beside the header: they are kept by value.
//!
//! Each step says "no, and nothing has happened" when anything is unusual, and the caller goes the long way (`transmit`, `receive`).
//! Everything here runs once a message: it is inlined, and large values are written where they stay, not moved.

use crate::machine::{Io, Machine};
use crate::matcher::{Arrived, Unexpected};
use crate::message::*;
use crate::ops::Proto;
use crate::peer::Out;
use crate::transmit::flags;
use crate::wire::*;
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{Delivery, INLINE_MAX, Inline, Next, RemoteKey, Small};

/// Who may be given a message past the queues.
#[derive(Clone, Copy, Debug)]
enum Taker {
    /// The caller waits for this receive.
    Op(OpId),
    /// The caller would post such a receive, and no receive and no message waits.
    Anyone(Want),
}

/// A message in the place where its user has it: what comes past the queues is written there by the port.
#[derive(Debug)]
pub struct Direct {
    /// Who sent it.
    pub from: PeerId,
    /// The tag, of a tagged message.
    pub tag: Option<u64>,
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
        small: Small::EMPTY,
        body: None,
    };

    /// Lays a message here that came by the queues.
    pub fn put(&mut self, m: Message) {
        (self.from, self.tag) = (m.from, m.tag);
        self.put_data(m.data);
    }

    fn put_data(&mut self, data: Data) {
        match data {
            Data::Inline(inline) => (self.small.inline, self.body) = (inline, None),
            Data::Buffer { buffer, len } => (self.small.body_len, self.body) = (len, Some(buffer)),
        }
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
    #[inline(always)]
    pub fn send_now(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        payload: &Payload<'_>,
        opts: SendOptions,
    ) -> bool {
        let bytes = match payload {
            Payload::Bytes(b) => b,
            // More than this the receiver had better fetch.
            Payload::Buffer(b) if b.len() <= self.limits.fetch_min => &b[..],
            _ => return false,
        };
        let pi = match self.peers.get(to.index as usize) {
            Some(p) if p.name == to && p.alias.is_none() && !self.closed => to.index,
            _ => return false,
        };
        self.send_small(io, pi, bytes, opts).is_some()
    }

    /// The short way down for a message; `None`, and nothing has happened: it must go the long way.
    #[inline(always)]
    fn send_small(&mut self, io: &mut Io<'_>, pi: u32, bytes: &[u8], o: SendOptions) -> Option<()> {
        let p = &self.peers[pi as usize];
        let units = match bytes.len() {
            0..=INLINE_MAX => 1,
            len if !p.keep
                && p.is_eager(
                    &self.limits,
                    self.conns[p.active.first().copied()? as usize].eager_max,
                    len,
                ) =>
            {
                self.limits.units(len)
            }
            _ => return None,
        };
        if o.delivered || !p.tx.is_drained() || p.tx.credit() < units {
            return None;
        }
        if !self.post_short(io, pi, FrameKind::Eager, flags(&o), o.tag.unwrap_or(0), bytes, units) {
            return None;
        }
        let counters = &mut self.peers[pi as usize].counters;
        counters.tx_messages += 1;
        counters.tx_bytes += bytes.len() as u64;
        Some(())
    }

    /// Numbers a frame and posts it, if the peer has one rail and that takes it at once; spends its units. `bytes` of more than
    /// [`INLINE_MAX`] are its body: only where frames need not be kept. The caller has looked after order and credit.
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
    ) -> bool {
        let p = &mut self.peers[pi as usize];
        let [ci] = p.active[..] else { return false };
        let c = &mut self.conns[ci as usize];
        // Where each frame is a system call, the second of a round waits for company.
        let may_keep = !p.keep || (p.tx.unacked.len() < self.limits.max_unacked && p.tx.round != self.round);
        if c.blocked || !may_keep || !self.faults.is_empty() {
            return false;
        }
        let mut h = Header::new(kind, flags, p.tx.next, tag);
        let (next, consumed) = (p.rx.dedup.next(), p.rx.consumed);
        (h.ack, h.credit) = (next as u16, consumed as u16);
        if !io.ports[c.port].post_small(c.conn, h.to_number(), bytes) {
            c.blocked = true;
            return false;
        }
        c.tx_frames += 1;
        c.used_at = io.now;
        let seq = p.tx.take_seq();
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
        true
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
        let Ok((op, proto)) = self.ops.open("recv") else {
            self.unexpect(&Proto::Recv { want: *want, into: None });
            return None;
        };
        *proto = Proto::Recv { want: *want, into: into.take() };
        self.matcher.post(op, *want);
        Some(op)
    }

    /// A short round for the caller who waits for receive `op`: much less than [`Machine::poll`] does, and it must be called in
    /// between ([`Polled::Due`] says when at the latest). Ports other than the one of the last frame are not looked at.
    #[inline]
    pub fn poll_for(&mut self, io: &mut Io<'_>, op: OpId, out: &mut Direct) -> Polled {
        if !self.is_calm(io.now) {
            return Polled::Due;
        }
        self.next_small(io, Taker::Op(op), out)
    }

    /// A receive that looks for its message on the short way before it is posted: `true` if it is in `out`, where the receive's
    /// buffer lay, if it has one, and lies again if not.
    #[inline]
    pub fn recv_now(&mut self, io: &mut Io<'_>, want: &Want, out: &mut Direct) -> bool {
        if !self.matcher.none_waits(want) {
            return out.body.is_none() && self.take_waiting(want, out);
        }
        self.is_calm(io.now)
            && self.matcher.is_idle(want)
            && self.next_small(io, Taker::Anyone(*want), out) == Polled::Here
    }

    /// Nothing waits to be done but what ports may bring.
    #[inline(always)]
    fn is_calm(&self, now: u64) -> bool {
        !self.unflushed
            && !self.closed
            && self.dirty.is_empty()
            && self.parked.is_empty()
            && now < self.next_tick
    }

    /// The short way up: one frame, if the port has one and nothing else is due. A message that `taker` wants goes into `out` and
    /// past all queues.
    #[inline(always)]
    fn next_small(&mut self, io: &mut Io<'_>, taker: Taker, out: &mut Direct) -> Polled {
        let port = self.last_conn.0;
        match io.ports[port].next_small(io.now, &mut out.small) {
            Next::Nothing => return Polled::Nothing,
            Next::Poll => return Polled::Due,
            Next::Frame => {}
        }
        self.round += 1;
        let Some(ci) = self.conn_at(port, out.small.conn) else {
            discard(io, port, &out.small);
            return Polled::Busy;
        };
        let here = match Header::from_words(out.small.header) {
            Some((FrameKind::Eager, h)) => self.hand_over(io, ci, &h, taker, out, None),
            Some((FrameKind::Rts, h)) => self.fetch_now(io, ci, &h, taker, out),
            _ => false,
        };
        if here {
            return Polled::Here;
        }
        self.on_frame(io, ci, Header::from_words(out.small.header), &out.small.inline, out.small.body_len);
        Polled::Busy
    }

    /// Gives the message that waits for a receive like this, if it is whole.
    fn take_waiting(&mut self, want: &Want, out: &mut Direct) -> bool {
        let whole = |u: &Unexpected| matches!(u.what, Arrived::Whole(_));
        let Some(u) = self.matcher.take_unexpected_if(want, whole) else { return false };
        let Arrived::Whole(data) = u.what else { return false };
        (out.from, out.tag) = (u.from, u.tag);
        out.put_data(data);
        self.give_units(u.from, u.units);
        true
    }

    /// The same for a promised message, whose bytes are fetched at once.
    #[inline(never)]
    fn fetch_now(&mut self, io: &mut Io<'_>, ci: u32, h: &Header, taker: Taker, out: &mut Direct) -> bool {
        let rts = Rts::parse(out.small.inline.as_slice());
        match rts.filter(|r| r.secret.get() != 0 && (1..=self.limits.max_message).contains(&r.len())) {
            Some(rts) => self.hand_over(io, ci, h, taker, out, Some(&rts)),
            None => false,
        }
    }

    /// Gives a message straight to whoever waits for it. `false`, and nothing has happened: it must go the long way, because
    /// something is unusual or it is not what the taker wants.
    #[inline(always)]
    fn hand_over(
        &mut self,
        io: &mut Io<'_>,
        ci: u32,
        h: &Header,
        taker: Taker,
        out: &mut Direct,
        promise: Option<&Rts>,
    ) -> bool {
        let c = &mut self.conns[ci as usize];
        let Some(pi) = c.peer.filter(|_| c.up) else { return false };
        let p = &mut self.peers[pi as usize];
        if h.has(ORDERED | URGENT_ACK)
            || !self.faults.is_empty()
            || !p.rx.dedup.is_next(h.seq)
            || !p.rx.held.is_empty()
            || c.delivery == Delivery::Datagram
        {
            return false;
        }
        let (from, tag) = (p.name, h.user_tag());
        let into = match taker {
            Taker::Op(op) if self.matcher.is_first(op, from, tag) => self.ops.bare_recv(op),
            Taker::Anyone(want) if want.accepts(from, tag) => Some(&mut out.body),
            _ => None,
        };
        let (few, many) = match promise {
            None => (out.small.inline.len(), out.small.body_len),
            Some(rts) => (0, rts.len() as usize),
        };
        // The twin of a body may be on its way over another rail, and rails that may have others are measured by their bodies.
        let alone = c.delivery == Delivery::Process && p.rails.len() == 1 && self.leaving.is_empty();
        let Some(into) = into.filter(|_| many == 0 || alone) else { return false };
        let fresh = into.is_none();
        let Some(mut landing) = place(io.pool, into, few, many) else { return false };
        if let (Some(rts), Some(l)) = (promise, &mut landing) {
            let key = RemoteKey { region: rts.region.get(), base: rts.base.get(), secret: rts.secret.get() };
            let port = &mut io.ports[c.port];
            let leads = c.far_port == rts.port.get() && port.caps().rma;
            if !leads || !matches!(port.read_now(c.conn, key, 0, l), Some(Ok(()))) {
                *into = landing.filter(|_| !fresh).and_then(Landing::into_buffer);
                return false;
            }
        }
        if let Taker::Op(op) = taker {
            self.ops.end_bare_recv(op);
            if self.matcher.pop_first(tag).from.is_some() {
                p.expects = p.expects.saturating_sub(1);
            }
        }
        c.rx_frames += 1;
        c.rx_bytes += many as u64;
        c.used_at = io.now;
        c.heard_at = io.now;
        c.asked_at = 0;
        p.counters.rx_messages += 1;
        p.counters.rx_bytes += (few + many) as u64;
        (out.from, out.tag) = (from, tag);
        if let Some(mut landing) = landing {
            if promise.is_some() {
                out.small.body_len = many;
            } else if many > 0 {
                let taken = io.ports[c.port].take_now(c.conn, &mut landing);
                assert!(taken, "a port that announces a body delivers it");
            } else {
                out.small.body_len = landing.copy_from(0, out.small.inline.as_slice());
            }
            out.body = landing.into_buffer();
        }
        let units = if promise.is_some() { 1 } else { self.limits.units(many) };
        self.take_header(io, pi, h);
        self.arrived(io.now, ci, pi, h.seq, false);
        self.consume(pi, units);
        if let Some(rts) = promise {
            self.send_done(io, pi, rts.op.get(), Status::Ok);
        }
        true
    }
}

/// Where a message's bytes go: into the buffer that its receive brought, or a fresh one; few need none. The outer `None`, and nothing
/// has happened: there is no place for them.
#[inline(always)]
fn place(pool: &Pool, into: &mut Option<Buffer>, few: usize, many: usize) -> Option<Option<Landing>> {
    let Some(buffer) = into.take() else {
        return if many == 0 { Some(None) } else { pool.landing(many).ok().map(Some) };
    };
    let len = few.max(many);
    let landing = if buffer.len() < len.max(1) { Err(buffer) } else { Landing::prefix(buffer, len) };
    landing.map_or_else(
        |buffer| {
            *into = Some(buffer);
            None
        },
        |landing| Some(Some(landing)),
    )
}

/// A frame of a connection that is nobody's any more.
fn discard(io: &mut Io<'_>, port: usize, frame: &Small) {
    if frame.body_len > 0 {
        io.ports[port].take(frame.conn, None);
    }
}
