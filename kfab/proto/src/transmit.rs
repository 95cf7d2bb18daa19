//! Down: from a verb to `Port::post`. Takes credit, chooses the rail, numbers the frame, keeps it until it is acknowledged where the
//! rail may lose it. What cannot leave now waits in the peer's queues and leaves in `drain`, small messages together.

use crate::events::FabricEvent;
use crate::faults::{FaultAction, Strike};
use crate::machine::{Io, Machine};
use crate::message::*;
use crate::ops::Proto;
use crate::pace::Pace;
use crate::peer::{Deferred, Out, Unacked};
use crate::wire::*;
use kfab_core::mem::Buffer;
use kfab_core::spi::{Body, Frame, INLINE_MAX, Inline};
use kfab_core::{Error, Kind, Result};
use zerocopy::IntoBytes;

/// A frame that no connection carries at the moment: it must be sent again.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// From this many bytes on a frame waits for the rail that would be done first, though another could take it now.
const BULK: usize = 4096;
/// The largest body of coalesced messages.
const BATCH_BYTES: usize = 16 * 1024;

#[inline(always)]
pub(crate) fn flags(o: &SendOptions) -> u8 {
    let tagged = if o.tag.is_some() { TAGGED } else { 0 };
    let ordered = if o.ordered { ORDERED } else { 0 };
    tagged | ordered | if o.delivered { URGENT_ACK } else { 0 }
}

impl Machine {
    #[inline(always)]
    pub(crate) fn send_message(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        payload: Payload<'_>,
        o: SendOptions,
    ) -> Result<Option<OpId>> {
        let len = payload.len();
        if let Payload::Bytes(b) = payload
            && let Some(inline) = Inline::new(b)
        {
            return self.send_inline(io, pi, inline, o);
        }
        if len as u64 > self.limits.max_message {
            let max = self.limits.max_message;
            return Err(Error::new(
                Kind::InvalidArgument,
                "send",
                format!("{len} bytes; a message has at most {max}"),
            ));
        }
        if len <= INLINE_MAX {
            let (mut bytes, mut at) = ([0; INLINE_MAX], 0);
            for s in into_source(io, payload)?.slices() {
                at += s.copy_to(0, &mut bytes[at..]);
            }
            return self.send_inline(io, pi, Inline::from_array(bytes, len), o);
        }
        let adopted = matches!(payload, Payload::Buffer(_) | Payload::Buffers(_));
        if self.goes_eager(io, pi, len, adopted) {
            self.send_eager(io, pi, payload, o)
        } else {
            let source = into_source(io, payload)?;
            self.send_large(io, pi, source, o)
        }
    }

    /// Eager or by rendezvous? Decided by the rail in use; before there is one, by the first candidate's port.
    fn goes_eager(&self, io: &Io<'_>, pi: u32, len: usize, in_slab: bool) -> bool {
        let p = &self.peers[pi as usize];
        let port = match p.active.first() {
            Some(&ci) => self.conns[ci as usize].port,
            None => p.candidates.first().map_or(0, |c| c.port),
        };
        let caps = io.ports[port].caps();
        let fetch = caps.rma && in_slab && len > self.limits.fetch_min.max(caps.fetch_min);
        !fetch && p.is_eager(&self.limits, caps.eager_max, len)
    }

    #[inline(always)]
    fn send_inline(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        inline: Inline,
        o: SendOptions,
    ) -> Result<Option<OpId>> {
        let mut out = Out {
            kind: FrameKind::Eager,
            flags: flags(&o),
            tag: o.tag.unwrap_or(0),
            inline,
            body: Source::Empty,
            op: None,
            units: 1,
        };
        let p = &self.peers[pi as usize];
        if !o.delivered && p.tx.is_drained() && p.tx.credit() > 0 && self.transmit(io, pi, &out, Body::Empty)
        {
            return Ok(None);
        }
        let op = self.start_send(io, pi, Proto::Send { peer: self.peers[pi as usize].name })?;
        out.op = o.delivered.then_some(op);
        self.send_or_defer(io, pi, out, op);
        self.begun(op)
    }

    fn send_eager(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        payload: Payload<'_>,
        o: SendOptions,
    ) -> Result<Option<OpId>> {
        let units = self.peers[pi as usize].units(&self.limits, payload.len());
        let (kind, tag) = (FrameKind::Eager, o.tag.unwrap_or(0));
        let mut out =
            Out { kind, flags: flags(&o), tag, inline: Inline::EMPTY, body: Source::Empty, op: None, units };
        let p = &self.peers[pi as usize];
        // Bytes that nobody has to keep go down as they are: one copy, into the transport.
        if let Payload::Bytes(b) = payload
            && !p.keep
            && !o.delivered
            && p.tx.is_drained()
            && p.tx.credit() >= units
            && self.transmit(io, pi, &out, Body::Borrowed(b))
        {
            return Ok(None);
        }
        let theirs = !matches!(payload, Payload::Bytes(_));
        out.body = into_source(io, payload)?;
        let op = self.start_send(io, pi, Proto::Send { peer: self.peers[pi as usize].name })?;
        // The user's own memory is free again when the frame need not be kept any more.
        out.op = (o.delivered || (theirs && self.peers[pi as usize].keep)).then_some(op);
        self.send_or_defer(io, pi, out, op);
        self.begun(op)
    }

    pub(crate) fn start_send(&mut self, io: &mut Io<'_>, pi: u32, proto: Proto) -> Result<OpId> {
        let op = self.ops.insert(proto, "send")?;
        self.expect(io.now, pi);
        Ok(op)
    }

    /// The operation as its starter sees it: it may have ended meanwhile.
    pub(crate) fn begun(&mut self, op: OpId) -> Result<Option<OpId>> {
        match self.ops.take(op) {
            Some(ended) => ended.map(|_| None),
            None => Ok(Some(op)),
        }
    }

    /// The same for an operation that hands something over.
    pub(crate) fn started(&mut self, op: OpId) -> Result<Started> {
        match self.ops.take(op) {
            Some(ended) => ended.map(Started::Done),
            None => Ok(Started::Pending(op)),
        }
    }

    pub(crate) fn send_or_defer(&mut self, io: &mut Io<'_>, pi: u32, out: Out, op: OpId) {
        let p = &mut self.peers[pi as usize];
        let waits = out.op.is_some();
        if p.tx.is_drained() && p.tx.credit() >= out.units && self.transmit_owned(io, pi, &out) {
            if !waits {
                self.left(op);
            }
            return;
        }
        let p = &mut self.peers[pi as usize];
        let stalls = !p.active.is_empty() && p.tx.credit() < out.units;
        p.counters.credit_stalls += u64::from(stalls);
        p.tx.deferred.push_back(Deferred { out, op });
        if stalls {
            self.tell_stall(io.now, pi);
        }
        if self.peers[pi as usize].rails.is_empty() {
            self.want_connection(io, pi);
        }
    }

    /// A frame has left whose operation does not wait for more, unless it is a promise.
    fn left(&mut self, op: OpId) {
        match self.ops.proto(op) {
            Some(Proto::Send { .. }) => self.finish(op, Ok(Outcome::Unit)),
            Some(Proto::Tell { .. }) => self.told(op),
            _ => {}
        }
    }

    /// Posts a protocol frame, or queues it before all messages.
    pub(crate) fn send_control(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        kind: FrameKind,
        tag: u64,
        inline: &[u8],
    ) {
        if self.peers[pi as usize].tx.control.is_empty()
            && self.post_short(io, pi, kind, 0, tag, inline, 0).is_some()
        {
            return;
        }
        let inline = Inline::new(inline).expect("inline structs fit");
        let out = Out { kind, flags: 0, tag, inline, body: Source::Empty, op: None, units: 0 };
        self.send_control_out(io, pi, out);
    }

    pub(crate) fn send_control_out(&mut self, io: &mut Io<'_>, pi: u32, out: Out) {
        let p = &self.peers[pi as usize];
        if !p.tx.control.is_empty() || !self.transmit_owned(io, pi, &out) {
            self.peers[pi as usize].tx.control.push_back(out);
            self.mark_dirty(pi);
        }
    }

    pub(crate) fn transmit_owned(&mut self, io: &mut Io<'_>, pi: u32, out: &Out) -> bool {
        match out.body.slices() {
            [] => self.transmit(io, pi, out, Body::Empty),
            s => self.transmit(io, pi, out, Body::Owned(s)),
        }
    }

    /// Numbers a frame and posts it; `false` if no rail takes it now. Spends its units.
    #[inline(always)]
    fn transmit(&mut self, io: &mut Io<'_>, pi: u32, out: &Out, body: Body<'_>) -> bool {
        let p = &mut self.peers[pi as usize];
        if p.tx.unacked.len() >= self.limits.max_unacked {
            return false;
        }
        let len = body.len();
        let Some(ci) = self.pick_rail(io.now, pi, len) else { return false };
        let seq = self.peers[pi as usize].tx.next;
        if !self.post(io, pi, ci, seq, out, body) {
            // Another rail may have room.
            let Some(other) = self.pick_rail(io.now, pi, len) else { return false };
            if !self.post(io, pi, other, seq, out, body) {
                return false;
            }
            return self.sent(io.now, pi, other, out, len);
        }
        self.sent(io.now, pi, ci, out, len)
    }

    #[inline(always)]
    fn sent(&mut self, now: u64, pi: u32, ci: u32, out: &Out, len: usize) -> bool {
        let p = &mut self.peers[pi as usize];
        let seq = p.tx.take_seq();
        if out.units > 0 {
            p.tx.spent = p.tx.spent.wrapping_add(out.units);
            p.counters.min_credits = p.counters.min_credits.min(p.tx.credit());
            if !out.is_access() {
                p.counters.tx_messages += 1;
                p.counters.tx_bytes += match out.kind {
                    FrameKind::Eager => (len + out.inline.len()) as u64,
                    FrameKind::Rts => Rts::parse(out.inline.as_slice()).map_or(0, |r| r.len()),
                    // Of several messages: counted by whoever put them together.
                    _ => 0,
                };
            }
        }
        if p.keep || out.op.is_some() {
            self.keep(now, pi, ci, seq, out.clone());
        }
        true
    }

    /// Remembers a frame until it is acknowledged. Inlined, so that the frame is written where it stays.
    #[inline(always)]
    pub(crate) fn keep(&mut self, now: u64, pi: u32, ci: u32, seq: u32, out: Out) {
        let (p, len) = (&mut self.peers[pi as usize], out.body.len());
        p.tx.unacked_bytes += len;
        self.conns[ci as usize].unacked_bytes += len + 64;
        p.tx.unacked.push_back(Unacked { seq, out, conn: ci, sent_at: now, resent: false });
        self.set_timer(pi, now);
    }

    /// The rail for a frame of `len` bytes: of the active ones the one that would be done first, judged by what it has under way and how
    /// fast it delivers (before that is known: its weight). So a slow rail gets less, and small frames spray.
    #[inline(always)]
    fn pick_rail(&self, now: u64, pi: u32, len: usize) -> Option<u32> {
        let p = &self.peers[pi as usize];
        if let [one] = p.active[..]
            && len <= self.conns[one as usize].max_body
        {
            return (!self.conns[one as usize].blocked).then_some(one);
        }
        self.least_loaded(now, &p.active, len).or_else(|| {
            // A frame made for another provider's rail may be too large for the best one.
            let fits = |ci: &u32| len <= self.conns[*ci as usize].max_body;
            if p.active.iter().any(fits) { None } else { self.least_loaded(now, &p.rails, len) }
        })
    }

    fn least_loaded(&self, now: u64, rails: &[u32], len: usize) -> Option<u32> {
        let conn = |ci: u32| &self.conns[ci as usize];
        let rates = || rails.iter().map(|ci| conn(*ci).pace.rate(now));
        let (bulk, best) = (len >= BULK, rates().max()?);
        let measured = rates().all(|r| r > 0);
        let open = |ci: &u32| {
            let c = conn(*ci);
            let waits =
                if !bulk { c.blocked } else { !measured && (c.blocked || c.pace.is_trying(c.unacked_bytes)) };
            len <= c.max_body && !waits
        };
        let done = |ci: &u32| {
            let c = conn(*ci);
            let (under_way, speed) = if measured {
                (c.pace.under_way(c.unacked_bytes), c.pace.speed(best, now))
            } else {
                (c.unacked_bytes as u64, c.weight)
            };
            ((under_way + len as u64 + 64) * 1024 / speed, c.tx_bytes / c.weight)
        };
        let first = rails.iter().copied().filter(open).min_by_key(done)?;
        (!conn(first).blocked).then_some(first)
    }

    /// Hands one frame to a port, with the latest acknowledgement and credit in its header. `false`: the port has no room.
    #[inline(always)]
    pub(crate) fn post(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        ci: u32,
        seq: u32,
        out: &Out,
        body: Body<'_>,
    ) -> bool {
        let p = &mut self.peers[pi as usize];
        let c = &mut self.conns[ci as usize];
        let mut h = Header::new(out.kind, out.flags, seq, out.tag);
        let (next, consumed) = (p.rx.dedup.next(), p.rx.consumed);
        h.ack = next as u16;
        h.credit = consumed as u16;
        let mut twin_left = false;
        if !self.faults.is_empty()
            && let Some(Strike { action, rule, hits }) = self.faults.strike(p.name, c.port)
        {
            if hits.is_power_of_two() {
                self.stream.push(FabricEvent::FaultStruck { rule, peer: p.name, hits });
            }
            match action {
                // Only frames that are kept may be lost or late; the others are answers and probes, lost for good.
                FaultAction::Delay { ns } if out.kind.is_sequenced() => {
                    let due = io.now.saturating_add(ns);
                    self.late.push((due, pi, seq));
                    self.next_tick = self.next_tick.min(due);
                    return true;
                }
                FaultAction::Duplicate => {
                    let f = Frame { header: h.to_bytes(), inline: out.inline, body, more: true };
                    twin_left = io.ports[c.port].post(c.conn, &[f]) == 1;
                }
                _ => {
                    p.struck = true;
                    if p.rx.ack_now {
                        // The acknowledgement it carried is still owed.
                        self.owe_ack(io.now, pi);
                    }
                    return true;
                }
            }
        }
        // The first frame of a round leaves at once; what follows may share its way with others until the next round.
        let len = body.len();
        let more = p.tx.round == self.round && len <= self.limits.coalesce_max;
        let frame = Frame { header: h.to_bytes(), inline: out.inline, body, more };
        if io.ports[c.port].post(c.conn, std::slice::from_ref(&frame)) == 0 {
            c.blocked = true;
            if !twin_left {
                return false;
            }
        }
        p.tx.round = self.round;
        self.unflushed |= more | twin_left;
        p.rx.told(next, consumed);
        c.tx_frames += 1;
        if len > 0 {
            c.tx_bytes += len as u64;
            c.pace.posted(len, c.unacked_bytes == 0, io.now);
        }
        c.used_at = io.now;
        true
    }

    pub(crate) fn mark_dirty(&mut self, pi: u32) {
        let p = &mut self.peers[pi as usize];
        if !p.dirty {
            p.dirty = true;
            self.dirty.push(pi);
        }
    }

    /// Sends what waits for a peer, in order of need: lost frames, protocol, messages, pieces, a bare acknowledgement.
    pub(crate) fn drain(&mut self, io: &mut Io<'_>, pi: u32) {
        self.assert_no_tab();
        if self.peers[pi as usize].tx.owes_too_many_answers() {
            let why = "the peer broke the protocol: it wants to be answered and acknowledges no answer";
            return self.reset_peer(io, pi, None, Kind::Protocol, why);
        }
        if self.peers[pi as usize].rails.is_empty() {
            if !self.peers[pi as usize].tx.is_drained() || !self.peers[pi as usize].tx.unacked.is_empty() {
                self.want_connection(io, pi);
            }
            return;
        }
        self.ask_to_read_more(io, pi);
        self.report(io, pi, Pace::is_due);
        if self.resend_lost(io, pi) && self.drain_control(io, pi) {
            self.drain_deferred(io, pi);
            self.drain_streams(io, pi);
        }
        // Whatever else has to wait: the peer may be waiting for this.
        let p = &self.peers[pi as usize];
        if p.rx.ack_now && p.rx.untold() != (0, 0) {
            self.send_ack(io, pi);
        }
    }

    /// The protocol's own frames. `false` if some have to wait.
    fn drain_control(&mut self, io: &mut Io<'_>, pi: u32) -> bool {
        while let Some(out) = self.peers[pi as usize].tx.control.pop_front() {
            if !self.transmit_owned(io, pi, &out) {
                self.peers[pi as usize].tx.control.push_front(out);
                return false;
            }
        }
        true
    }

    /// Posts frames whose connection is gone over another. `false` if no rail takes more.
    fn resend_lost(&mut self, io: &mut Io<'_>, pi: u32) -> bool {
        let mut at = 0;
        while at < self.peers[pi as usize].tx.unacked.len() {
            if self.peers[pi as usize].tx.unacked[at].conn == NOWHERE && !self.resend(io, pi, at) {
                return false;
            }
            at += 1;
        }
        true
    }

    /// Posts an unacknowledged frame again.
    pub(crate) fn resend(&mut self, io: &mut Io<'_>, pi: u32, at: usize) -> bool {
        let (seq, out, old) = {
            let u = &self.peers[pi as usize].tx.unacked[at];
            (u.seq, u.out.clone(), u.conn)
        };
        let len = out.body.len();
        let Some(ci) = self.pick_rail(io.now, pi, len) else { return false };
        let body = if len == 0 { Body::Empty } else { Body::Owned(out.body.slices()) };
        if !self.post(io, pi, ci, seq, &out, body) {
            return false;
        }
        if old != NOWHERE {
            let c = &mut self.conns[old as usize];
            c.unacked_bytes = c.unacked_bytes.saturating_sub(len + 64);
        }
        let c = &mut self.conns[ci as usize];
        c.unacked_bytes += len + 64;
        c.resent += 1;
        let p = &mut self.peers[pi as usize];
        p.counters.resent += 1;
        let u = &mut p.tx.unacked[at];
        u.conn = ci;
        u.sent_at = io.now;
        u.resent = true;
        self.tell_resend(io.now, pi);
        true
    }

    fn drain_deferred(&mut self, io: &mut Io<'_>, pi: u32) {
        loop {
            let p = &self.peers[pi as usize];
            let Some(front) = p.tx.deferred.front() else { return };
            if p.tx.credit() < front.out.units {
                return;
            }
            let n = self.batchable(io, pi);
            if n >= 2 {
                if !self.send_batch(io, pi, n) {
                    return;
                }
                continue;
            }
            let d = self.peers[pi as usize].tx.deferred.pop_front().expect("looked at above");
            if !self.transmit_owned(io, pi, &d.out) {
                self.peers[pi as usize].tx.deferred.push_front(d);
                return;
            }
            if d.out.op.is_none() {
                self.left(d.op);
            }
        }
    }

    /// How many messages at the head of the queue can share one frame, by size and credit.
    fn batchable(&self, io: &Io<'_>, pi: u32) -> usize {
        let p = &self.peers[pi as usize];
        let Some(&ci) = p.active.first() else { return 0 };
        let caps = io.ports[self.conns[ci as usize].port].caps();
        let room = BATCH_BYTES.min(caps.eager_max).min(caps.max_body);
        let (mut bytes, mut units, mut n) = (0, 0, 0);
        for d in &p.tx.deferred {
            let len = d.out.inline.as_slice().len() + d.out.body.len();
            bytes += size_of::<Record>() + len;
            units += d.out.units;
            let small =
                d.out.kind == FrameKind::Eager && d.out.op.is_none() && len <= self.limits.coalesce_max;
            if !small || bytes > room || units > p.tx.credit() {
                break;
            }
            n += 1;
        }
        n
    }

    /// Sends the first `n` messages as one frame.
    fn send_batch(&mut self, io: &mut Io<'_>, pi: u32, n: usize) -> bool {
        let mut bytes = Vec::with_capacity(BATCH_BYTES);
        let (mut units, mut ordered) = (0, 0);
        for d in self.peers[pi as usize].tx.deferred.iter().take(n) {
            let len = d.out.inline.as_slice().len() + d.out.body.len();
            let r =
                Record { flags: d.out.flags, reserved: 0, len: (len as u16).into(), tag: d.out.tag.into() };
            bytes.extend_from_slice(r.as_bytes());
            bytes.extend_from_slice(d.out.inline.as_slice());
            for s in d.out.body.slices() {
                let at = bytes.len();
                bytes.resize(at + s.len(), 0);
                s.copy_to(0, &mut bytes[at..]);
            }
            units += d.out.units;
            ordered |= d.out.flags & ORDERED;
        }
        let keep = self.peers[pi as usize].keep;
        let body = match keep.then(|| io.pool.copy_from(&bytes)) {
            Some(Ok(b)) => Source::One(b.into_source()),
            Some(Err(_)) => return false,
            None => Source::Empty,
        };
        let out = Out {
            kind: FrameKind::Batch,
            flags: ordered,
            tag: 0,
            inline: Inline::EMPTY,
            body,
            op: None,
            units,
        };
        let sent = if keep {
            self.transmit_owned(io, pi, &out)
        } else {
            self.transmit(io, pi, &out, Body::Borrowed(&bytes))
        };
        if !sent {
            return false;
        }
        let p = &mut self.peers[pi as usize];
        p.counters.coalesced += n as u64;
        p.counters.tx_messages += n as u64 - 1;
        p.counters.tx_bytes += (bytes.len() - n * size_of::<Record>()) as u64;
        for _ in 0..n {
            let d = self.peers[pi as usize].tx.deferred.pop_front().expect("counted above");
            self.left(d.op);
        }
        true
    }

    /// A frame with nothing but acknowledgement and credit; of several rails one over each that has something to report.
    pub(crate) fn send_ack(&mut self, io: &mut Io<'_>, pi: u32) {
        if !self.report(io, pi, |_| true) {
            self.send_bare(io, pi, FrameKind::Ack, 0);
        }
    }

    /// Tells the other end how much has come over those of several rails that are `due`; `false` if it was told nothing.
    fn report(&mut self, io: &mut Io<'_>, pi: u32, due: impl Fn(&Pace) -> bool) -> bool {
        let (mut at, mut told) = (0, false);
        while let Some(&ci) =
            self.peers[pi as usize].active.get(at).filter(|_| self.peers[pi as usize].active.len() > 1)
        {
            at += 1;
            let c = &self.conns[ci as usize];
            if let Some(got) = c.pace.news().filter(|_| due(&c.pace) && !c.blocked)
                && self.send_over(io, pi, ci, FrameKind::Ack, got)
            {
                self.conns[ci as usize].pace.has_told();
                told = true;
            }
        }
        told
    }

    /// An unsequenced frame over the rail last heard from; lost if it does not take it.
    pub(crate) fn send_bare(&mut self, io: &mut Io<'_>, pi: u32, kind: FrameKind, tag: u64) -> bool {
        let open =
            self.peers[pi as usize].active.iter().copied().filter(|ci| !self.conns[*ci as usize].blocked);
        let Some(ci) = open.max_by_key(|ci| self.conns[*ci as usize].heard_at) else { return false };
        self.send_over(io, pi, ci, kind, tag)
    }

    pub(crate) fn send_over(&mut self, io: &mut Io<'_>, pi: u32, ci: u32, kind: FrameKind, tag: u64) -> bool {
        let out = Out { kind, flags: 0, tag, inline: Inline::EMPTY, body: Source::Empty, op: None, units: 0 };
        self.post(io, pi, ci, 0, &out, Body::Empty)
    }
}

/// The payload as memory the operation owns; bytes are copied into the lane's slab.
pub(crate) fn into_source(io: &mut Io<'_>, payload: Payload<'_>) -> Result<Source> {
    Ok(match payload {
        Payload::Bytes([]) => Source::Empty,
        Payload::Bytes(b) => Source::One(io.pool.copy_from(b)?.into_source()),
        Payload::Buffer(b) => Source::One(b.into_source()),
        Payload::Buffers(v) => Source::Many(v.into_iter().map(Buffer::into_source).collect()),
    })
}
