//! Frames: down through credits, slots and chains of requests; up from completions. Part of `port`.
//!
//! A frame costs one credit (a receive that the peer keeps posted for us). It is accepted only if there is a credit, room in the
//! send queue, room for its completion, and, unless it fits into the request, a slot. So neither "receiver not ready" nor an
//! overflow of a queue can happen; what is refused waits with the caller. Credits come back in the heads of the peer's messages.

use crate::link::{Link, Phase};
use crate::port::{EVENTS_MAX, VerbsPort};
use crate::sys::{For, INLINE_MAX, Keep, Mr, Qp, SGE_MAX, Slot, Wc, status_text};
use crate::wire::{self, HEAD_MAX, Kind as What, MAX_BODY, RETURN_AT};
use crate::{ffi, memory};
use kfab_core::mem::{Access, Landing, Slice};
use kfab_core::spi::{Body, Conn, DownReason, Event, Frame, HEADER_LEN, Inline, Next, Small};
use kfab_core::{Error, Fate, Kind};
use std::sync::Arc;

/// Places in the send queue kept for messages that return credits and the goodbye.
pub(crate) const SEND_RESERVE: usize = 4;
/// Owned bodies up to this size are copied: cheaper than a look-up and another piece in the request.
const COPY_MAX: usize = 2048;

/// What a look at a link found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Done,
    /// Look again: the batch of events is full.
    More,
}

/// A frame in its receive: all `len` bytes of the message, of which the last from `body_at` are the body.
struct Arrived {
    conn: Conn,
    slot: Slot,
    len: usize,
    body_at: usize,
}

impl VerbsPort {
    pub(crate) fn post_frames(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize {
        let Some(l) = self.links.get(conn) else { return frames.len() };
        match l.phase {
            Phase::Up if !l.closing => {}
            Phase::Up | Phase::Ending => return frames.len(),
            _ => {
                l.refused = true;
                return 0;
            }
        }
        // Credits are told to the peer with these frames: their receives must be there before.
        if let Err(e) = self.memory.post_many() {
            self.end(conn, DownReason::Broken, e.to_string());
            return frames.len();
        }
        let mut n = 0usize;
        for f in frames {
            if f.body.len() > MAX_BODY || !self.accept_frame(conn, f) {
                break;
            }
            n += 1;
        }
        match frames.get(n.wrapping_sub(1)) {
            Some(f) if f.more && n == frames.len() => self.dirty(conn),
            Some(_) => self.ring(conn),
            None => {}
        }
        n
    }

    /// The short way down: what fits into a request is written straight into it. Where anything stands in the way the long one decides.
    #[inline]
    pub(crate) fn post_short(&mut self, conn: Conn, header: u128, bytes: &[u8]) -> bool {
        let free = self.requests + SEND_RESERVE < self.requests_max && self.memory.post_many().is_ok();
        if let Some(l) =
            self.links.get(conn).filter(|l| free && l.phase == Phase::Up && !l.closing && l.credits > 0)
            && let Some(qp) = &l.qp
            && qp.room() > SEND_RESERVE
            && wire::HEAD_LEN + bytes.len() <= qp.inline()
        {
            let owed = l.grant();
            let Some(qp) = &mut l.qp else { return true };
            l.credits -= 1;
            l.dirty = false;
            self.requests += 1;
            if let Err(e) = qp.send_now(|to| wire::small(to, owed, header, bytes)) {
                self.not_posted(conn, &e);
            }
            return true;
        }
        self.post_frames(conn, &[Frame::of_bytes(header, bytes)]) == 1
    }

    fn dirty(&mut self, conn: Conn) {
        if let Some(l) = self.links.get(conn).filter(|l| !l.dirty) {
            l.dirty = true;
            self.dirty.push(conn);
        }
    }

    pub(crate) fn ring(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn) else { return };
        l.dirty = false;
        if let Some(qp) = l.qp.as_mut().filter(|_| l.end.is_none())
            && let Err(e) = qp.ring()
        {
            self.not_posted(conn, &e);
        }
    }

    #[cold]
    fn not_posted(&mut self, conn: Conn, e: &std::io::Error) {
        self.end(conn, DownReason::Broken, format!("post requests: {e}"));
    }

    /// Stages one frame; `false` (and the link is marked) if it has to wait.
    fn accept_frame(&mut self, conn: Conn, f: &Frame<'_>) -> bool {
        let crowded = self.is_crowded(SEND_RESERVE);
        let Some(l) = self.links.get(conn) else { return true };
        let Some(qp) = &mut l.qp else { return true };
        if l.credits == 0 || qp.room() <= SEND_RESERVE {
            l.refused = true;
            return false;
        }
        if crowded {
            return self.starve(conn);
        }
        let (head, n) = wire::head(What::Frame, l.owed, &f.header, &f.inline);
        let body = f.body.len();
        if n + body <= qp.inline() {
            qp.send_inline(|to| {
                to[..HEAD_MAX].copy_from_slice(&head);
                copy_body(&f.body, &mut to[n..n + body]);
                n + body
            });
        } else {
            let bodies = in_place(&f.body, &mut self.memory, self.limits.sges);
            let copied = if bodies.is_empty() { body } else { 0 };
            let Some(mut slot) = self.memory.send_slot(n + copied) else { return self.starve(conn) };
            slot.bytes_mut()[..n].copy_from_slice(&head[..n]);
            copy_body(&f.body, &mut slot.bytes_mut()[n..n + copied]);
            qp.send(slot, n + copied, bodies);
        }
        l.credits -= 1;
        l.grant();
        self.requests += 1;
        true
    }

    /// What all links share has run out.
    fn starve(&mut self, conn: Conn) -> bool {
        if let Some(l) = self.links.get(conn) {
            l.refused = true;
        }
        self.starves(conn);
        false
    }

    /// Remembers a link for when there is again what all share; once.
    pub(crate) fn starves(&mut self, conn: Conn) {
        if !self.starved.contains(&conn) {
            self.starved.push(conn);
        }
    }

    pub(crate) fn wake_starved(&mut self) {
        for conn in std::mem::take(&mut self.starved) {
            self.list(conn);
        }
    }

    /// A completion.
    pub(crate) fn completed(&mut self, wc: &Wc, events: &mut Vec<Event>) {
        match wc.owner() {
            For::Recv { qpn } => self.received(wc, qpn, events),
            For::Send { tag } => self.request_ended(wc, tag, events),
        }
    }

    fn received(&mut self, wc: &Wc, qpn: u32, events: &mut Vec<Event>) {
        let Some(Arrived { conn, slot, len, body_at }) = self.arrived(wc, qpn) else { return };
        let room = events.len() < EVENTS_MAX && self.pending.is_empty();
        let Some(l) = self.links.get(conn) else { return self.memory.recycle(slot) };
        if room && l.reports() {
            self.report(conn, slot, len, body_at, events);
        } else {
            l.backlog.push_back((slot, len));
            self.list(conn);
        }
    }

    /// The short way up: the next frame, if nothing else is due. A body waits as for [`VerbsPort::deliver`].
    #[inline(always)]
    pub(crate) fn next_frame(&mut self, into: &mut Small) -> Next {
        let Some(wc) = self.polled.first() else { return Next::Nothing };
        let For::Recv { qpn } = wc.owner() else { return Next::Poll };
        let wc = *wc;
        self.polled.next();
        let Some(Arrived { conn, slot, len, body_at }) = self.arrived(&wc, qpn) else { return Next::Poll };
        let Some(l) = self.links.get(conn) else { return Next::Poll };
        if !l.reports() {
            l.backlog.push_back((slot, len));
            self.list(conn);
            return Next::Poll;
        }
        let (words, _) = wire::header_of(slot.bytes()).as_chunks::<8>();
        into.header = [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])];
        (into.conn, into.inline, into.body_len) =
            (conn, wire::inline_of(slot.bytes(), body_at), len - body_at);
        if into.body_len > 0 {
            l.waiting = Some((slot, body_at, into.body_len));
            return Next::Frame;
        }
        self.memory.recycle(slot);
        if l.owes_one_more() {
            self.list(conn);
        }
        Next::Frame
    }

    /// A receive has ended: the frame in it, if it is one that the caller is to have.
    #[inline(always)]
    fn arrived(&mut self, wc: &Wc, qpn: u32) -> Option<Arrived> {
        let slot = self.memory.complete(wc)?;
        if wc.status() != ffi::WC_SUCCESS {
            // Flushed with its queue pair, for which another was posted or will be.
            self.memory.returned(slot);
            return None;
        }
        let conn = self.by_qpn.get(qpn);
        let Some(l) = conn.and_then(|c| self.links.get(c)).filter(|l| l.phase != Phase::Ending) else {
            self.memory.recycle(slot);
            return None;
        };
        let (conn, len) = (l.id, wc.bytes().min(slot.len()));
        l.progress += 1;
        let said = if wc.is_message() { wire::parse(&slot.bytes()[..len]) } else { Err("no message") };
        let m = match said.and_then(|m| l.hears(&m).map(|()| m)) {
            Ok(m) => m,
            Err(why) => {
                self.memory.recycle(slot);
                self.end(conn, DownReason::Hostile, why);
                return None;
            }
        };
        let wake = m.credits > 0 && (l.refused || l.closing);
        if wake {
            self.list(conn);
        }
        match m.kind {
            What::Frame => return Some(Arrived { conn, slot, len, body_at: m.body_at }),
            What::Credit => {}
            What::Goodbye => self.said_goodbye(conn),
        }
        self.memory.recycle(slot);
        None
    }

    /// Reports the frames that may be reported.
    pub(crate) fn deliver(&mut self, conn: Conn, events: &mut Vec<Event>) {
        loop {
            let Some(l) = self.links.get(conn).filter(|l| l.known && l.waiting.is_none()) else { return };
            let Some((slot, len)) = l.backlog.pop_front() else { return };
            let Ok(m) = wire::parse(&slot.bytes()[..len]) else { return self.emptied(conn, slot) };
            self.report(conn, slot, len, m.body_at, events);
        }
    }

    fn report(&mut self, conn: Conn, slot: Slot, len: usize, body_at: usize, events: &mut Vec<Event>) {
        let (bytes, body_len) = (slot.bytes(), len - body_at);
        let (header, inline) = (*wire::header_of(bytes), wire::inline_of(bytes, body_at));
        events.push(Event::Frame { conn, header, inline, body_len });
        match self.links.get(conn) {
            Some(l) if body_len > 0 => l.waiting = Some((slot, body_at, body_len)),
            _ => self.emptied(conn, slot),
        }
    }

    /// A frame was used up: its receive is posted again, and the peer owed a credit. Without the peer it is for nobody.
    fn emptied(&mut self, conn: Conn, slot: Slot) {
        let Some(l) = self.links.get(conn).filter(|l| l.qp.is_some()) else {
            return self.memory.buried(slot);
        };
        if l.phase == Phase::Up && l.owes_one_more() {
            self.list(conn);
        }
        self.memory.recycle(slot);
    }

    /// Delivers the body that waits; `false`, and nothing has happened, if none does.
    pub(crate) fn take_body(&mut self, conn: Conn, landing: Option<&mut Landing>) -> bool {
        let Some(l) = self.links.get(conn) else { return false };
        let Some((slot, at, len)) = l.waiting.take() else { return false };
        if let Some(to) = landing {
            to.copy_from(0, &slot.bytes()[at..at + len]);
        }
        let more = !l.backlog.is_empty();
        let ends = l.phase == Phase::Ending;
        self.emptied(conn, slot);
        if more || ends {
            self.list(conn);
        }
        true
    }

    fn request_ended(&mut self, wc: &Wc, tag: u32, events: &mut Vec<Event>) {
        let Some(l) = self.links.tagged(tag) else { return };
        let conn = l.id;
        l.progress += 1;
        let n = l.qp.as_mut().map_or(0, |q| q.ended(wc));
        self.requests = self.requests.saturating_sub(n);
        let (mut goodbye, refused) = (false, l.refused || !l.rma_waiting.is_empty() || l.closing);
        while let Some((keep, last)) = self.links.get(conn).and_then(|l| l.qp.as_mut()).and_then(Qp::pop) {
            let ok = !last || wc.status() == ffi::WC_SUCCESS;
            goodbye |= ok && matches!(keep, Keep::Goodbye);
            let result = if ok { Ok(()) } else { Err(rma_error(wc.status())) };
            self.dispose(keep, result, events);
        }
        if goodbye {
            if let Some(l) = self.links.get(conn) {
                l.goodbye_acked = true;
            }
            self.said_goodbye(conn);
        }
        if wc.status() != ffi::WC_SUCCESS {
            self.request_failed(conn, wc);
        } else if refused {
            self.list(conn);
        }
        self.wake_starved();
    }

    fn request_failed(&mut self, conn: Conn, wc: &Wc) {
        let Some(l) = self.links.get(conn) else { return };
        let reason = if l.peer_goodbye || l.goodbye_acked { DownReason::Closed } else { DownReason::Broken };
        self.end(conn, reason, format!("a request failed: {}", status_text(wc.status())));
    }

    /// One of the two goodbyes is known to be done.
    fn said_goodbye(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn) else { return };
        if l.goodbye_acked && l.peer_goodbye {
            self.end(conn, DownReason::Closed, "");
        } else if l.peer_goodbye && l.phase == Phase::Up {
            self.part(conn);
        } else {
            self.list(conn);
        }
    }

    /// Sends the goodbye as soon as nothing is before it.
    pub(crate) fn look_for_goodbye(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn) else { return };
        let due = l.closing && !l.goodbye_sent && l.rma_waiting.is_empty() && l.phase == Phase::Up;
        let Some(qp) = l.qp.as_mut().filter(|q| due && q.room() > 0) else { return };
        l.goodbye_sent = true;
        let (head, n) = wire::head(What::Goodbye, 0, &[0; HEADER_LEN], &Inline::EMPTY);
        qp.send_goodbye(&head[..n]);
        self.requests += 1;
        self.ring(conn);
    }

    /// Does what a link may have waited for.
    pub(crate) fn look(&mut self, conn: Conn, events: &mut Vec<Event>) -> Look {
        if events.len() >= EVENTS_MAX {
            return Look::More;
        }
        let Some(l) = self.links.get(conn) else { return Look::Done };
        if l.phase == Phase::Ending {
            self.deliver(conn, events);
            return Look::Done;
        }
        if l.phase != Phase::Up {
            return Look::Done;
        }
        if l.peer_goodbye && !l.closing {
            self.part(conn);
        }
        self.deliver(conn, events);
        self.go_on_with_rma(conn, events);
        self.look_for_goodbye(conn);
        self.return_credits(conn);
        self.look_for_room(conn, events);
        Look::Done
    }

    fn return_credits(&mut self, conn: Conn) {
        let Some(l) = self.links.get(conn).filter(|l| l.owed >= RETURN_AT && !l.goodbye_sent) else { return };
        if l.phase != Phase::Up || l.qp.as_ref().is_none_or(|q| q.room() == 0) {
            return;
        }
        if let Err(e) = self.memory.post_many() {
            return self.end(conn, DownReason::Broken, e.to_string());
        }
        let Some(l) = self.links.get(conn) else { return };
        let (head, n) = wire::head(What::Credit, l.grant(), &[0; HEADER_LEN], &Inline::EMPTY);
        let Some(qp) = &mut l.qp else { return };
        qp.send_inline(|to| {
            to[..HEAD_MAX].copy_from_slice(&head);
            n
        });
        self.requests += 1;
        self.ring(conn);
    }

    fn look_for_room(&mut self, conn: Conn, events: &mut Vec<Event>) {
        let starving = self.is_crowded(SEND_RESERVE);
        let Some(l) = self.links.get(conn).filter(|l| l.refused && l.phase == Phase::Up) else { return };
        if l.credits == 0 || l.qp.as_ref().is_none_or(|q| q.room() <= SEND_RESERVE) {
            return;
        }
        if starving {
            return self.starves(conn);
        }
        l.refused = false;
        events.push(Event::Writable { conn });
    }
}

impl Link {
    /// Counts what the peer says: no more than it was given receives for, whether it reports or not. An error is its offence.
    #[inline(always)]
    fn hears(&mut self, m: &wire::Message) -> Result<(), &'static str> {
        if m.credits > self.credits_max - self.credits.min(self.credits_max) {
            return Err("more credits returned than there are");
        }
        self.credits += m.credits;
        match m.kind {
            What::Frame if self.granted == 0 => return Err("more frames than the peer had credits for"),
            What::Frame => self.granted -= 1,
            What::Credit if m.credits < RETURN_AT => return Err("a message that returns too few credits"),
            What::Credit => {}
            What::Goodbye if self.peer_goodbye => return Err("a second goodbye"),
            What::Goodbye => self.peer_goodbye = true,
        }
        Ok(())
    }

    /// The peer is owed one credit more: whether they are so many that it is told by a message of its own.
    #[inline]
    fn owes_one_more(&mut self) -> bool {
        self.owed += 1;
        self.owed >= RETURN_AT
    }

    /// Whether the next frame can be reported as soon as it is here.
    #[inline]
    fn reports(&self) -> bool {
        self.phase == Phase::Up && self.known && self.waiting.is_none() && self.backlog.is_empty()
    }

    /// For the one-sided part: requests that may be staged now.
    pub(crate) fn rma_room(&self) -> usize {
        self.qp.as_ref().map_or(0, |q| q.room().saturating_sub(SEND_RESERVE))
    }
}

fn copy_body(body: &Body<'_>, to: &mut [u8]) {
    let mut at = 0;
    match body {
        Body::Empty => {}
        Body::Borrowed(b) if to.len() == b.len() => to.copy_from_slice(b),
        Body::Borrowed(_) => {}
        Body::Owned(slices) if !to.is_empty() => {
            for s in *slices {
                at += s.copy_to(0, &mut to[at..]);
            }
        }
        Body::Owned(_) => {}
    }
}

/// The pieces of an owned body, registered, if it is worth sending from where it is; else none.
fn in_place(body: &Body<'_>, memory: &mut memory::Memory, sges: usize) -> Vec<(Slice, Arc<Mr>)> {
    let Body::Owned(slices) = body else { return Vec::new() };
    let fits = slices.iter().filter(|s| !s.is_empty()).count() < sges.min(SGE_MAX);
    let adopted = slices.iter().any(|s| s.region().access() == Access::Private);
    if body.len() <= COPY_MAX || !fits || adopted {
        return Vec::new();
    }
    let one = |s: &Slice| Some((s.clone(), memory.cache.get(s.region(), s.offset(), s.len()).ok()?));
    // Memory that cannot be registered is copied.
    let all: Option<Vec<_>> = slices.iter().filter(|s| !s.is_empty()).map(one).collect();
    all.unwrap_or_default()
}

fn rma_error(status: i32) -> Error {
    let text = status_text(status);
    match status {
        ffi::WC_REM_ACCESS_ERR | ffi::WC_REM_INV_REQ_ERR | ffi::WC_REM_OP_ERR => {
            Error::new(Kind::AccessDenied, "rma", format!("the peer's card refused: {text}"))
                .with_fate(Fate::Refused)
        }
        _ => Error::new(Kind::PeerLost, "rma", text).with_fate(Fate::Unknown),
    }
}

const _: () = assert!(INLINE_MAX >= HEAD_MAX);
