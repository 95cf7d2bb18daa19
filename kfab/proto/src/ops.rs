//! The operations under way on a lane: a bounded slab of slots. A slot has two sides that end independently: the user's (a
//! result waits, somebody wants to be woken) and the protocol's (memory is lent, the peer has yet to answer).

use crate::again::Waited;
use crate::message::{Data, OpId, Outcome, PeerId, Source};
use crate::notice::Tell;
use crate::onesided::WindowId;
use crate::parts::Reads;
use kfab_core::mem::{Assembly, Buffer, Room, Slice};
use kfab_core::spi::Exposure;
use kfab_core::{Error, Kind, Result};
use std::task::Waker;

/// Memory of a large send that its receiver may fetch, and the rail it was opened for.
#[derive(Debug)]
pub(crate) struct Lent {
    pub(crate) port: usize,
    pub(crate) exposure: Exposure,
    pub(crate) over: u32,
    pub(crate) len: usize,
}

/// A place in a peer's window, as its owner checks it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) window: u64,
    pub(crate) secret: u64,
    pub(crate) offset: u64,
}

/// A write that a port was asked for: if its rail breaks, it is done again by messages.
#[derive(Debug)]
pub(crate) struct Redo {
    pub(crate) source: Source,
    pub(crate) range: Range,
    pub(crate) over: u32,
    pub(crate) broken: bool,
    pub(crate) tell: Option<Tell>,
}

/// The protocol's side of an operation.
#[derive(Debug)]
pub(crate) enum Proto {
    /// Nothing under way any more.
    Ended,
    /// A send that waits for credit, or for its acknowledgement.
    Send { peer: PeerId },
    /// A large send: the receiver fetches it, or asks for pieces.
    Large { peer: PeerId, source: Source, exposed: Option<Lent>, canceled: bool },
    /// A posted receive.
    Recv { from: Option<PeerId> },
    /// One with several buffers: not for the short way.
    RecvAll { from: Option<PeerId>, into: Vec<Buffer> },
    /// A receive that got a large message and is fetching it in one-sided fashion; the landing is with the port.
    Fetch {
        peer: PeerId,
        tag: Option<u64>,
        len: usize,
        sender: u64,
        over: u32,
        reads: Option<Box<Reads>>,
        waited: Waited,
    },
    /// A receive, or a one-sided read (not `waited`; the peer knows of it if it was `asked`), whose pieces are arriving.
    Pieces {
        peer: PeerId,
        tag: Option<u64>,
        len: usize,
        sender: u64,
        assembly: Option<Assembly>,
        waited: Option<Waited>,
        asked: bool,
        tell: Option<Tell>,
    },
    /// A receive whose message will not come, and some of whose memory is with a port (`reading`: by one-sided reads): then it waits again.
    Back { waited: Waited, assembly: Option<Assembly>, reads: Option<Box<Reads>>, reading: bool },
    /// A one-sided read by the port; the landing is with it.
    RmaRead {
        peer: PeerId,
        range: Range,
        len: usize,
        over: u32,
        tell: Option<Tell>,
        reads: Option<Box<Reads>>,
    },
    /// A one-sided write: this many parts have yet to be confirmed. `redo`: what a port is writing, for another way.
    Write { peer: PeerId, parts: u32, redo: Option<Box<Redo>> },
    /// A one-sided access that has ended, and whose notice waits to leave.
    Tell { peer: PeerId, read: Option<Room> },
    /// Somebody waits for a notice.
    Notice { window: WindowId },
}

impl Proto {
    /// A one-sided read by messages, of which the peer does not know yet.
    pub(crate) fn reading(peer: PeerId, len: usize, assembly: Option<Assembly>, tell: Option<Tell>) -> Proto {
        Proto::Pieces { peer, tag: None, len, sender: 0, assembly, waited: None, asked: false, tell }
    }

    /// What its errors call it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Proto::Send { .. } | Proto::Large { .. } => "send",
            Proto::Recv { .. }
            | Proto::RecvAll { .. }
            | Proto::Fetch { .. }
            | Proto::Back { .. }
            | Proto::Pieces { waited: Some(_), .. } => "recv",
            Proto::RmaRead { .. }
            | Proto::Pieces { waited: None, .. }
            | Proto::Tell { read: Some(_), .. } => "read",
            Proto::Write { .. } | Proto::Tell { read: None, .. } => "write",
            Proto::Notice { .. } => "notice",
            Proto::Ended => "operation",
        }
    }

    pub(crate) fn peer(&self) -> Option<PeerId> {
        match self {
            Proto::Ended | Proto::Notice { .. } => None,
            Proto::Back { waited, .. } => waited.want.from,
            Proto::Recv { from } | Proto::RecvAll { from, .. } => *from,
            Proto::Send { peer }
            | Proto::Large { peer, .. }
            | Proto::Fetch { peer, .. }
            | Proto::Pieces { peer, .. }
            | Proto::RmaRead { peer, .. }
            | Proto::Write { peer, .. }
            | Proto::Tell { peer, .. } => Some(*peer),
        }
    }
}

/// The user's side.
#[derive(Debug)]
enum User {
    Waiting(Option<Waker>),
    Ready(Result<Outcome>),
    /// Taken, dropped or detached.
    Gone,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    user: User,
    proto: Proto,
    next_free: u32,
    /// The number of the message that a receive has met, if that is still coming.
    nth: u64,
}

const NONE: u32 = u32::MAX;

/// The slab.
#[derive(Debug)]
pub(crate) struct Ops {
    slots: Vec<Slot>,
    free: u32,
    live: usize,
    max: usize,
}

impl Ops {
    pub(crate) fn new(max: usize) -> Ops {
        Ops { slots: Vec::new(), free: NONE, live: 0, max }
    }

    /// Operations under way.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// `true` if there are as many as there may be.
    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.live >= self.max
    }

    /// A new operation; `Kind::Limit` if there are too many.
    #[inline(always)]
    pub(crate) fn insert(&mut self, proto: Proto, op: &'static str) -> Result<OpId> {
        let (id, place) = self.open(op)?;
        replace_empty(place, proto);
        Ok(id)
    }

    /// A new receive, as often as there are messages.
    #[inline(always)]
    pub(crate) fn insert_recv(&mut self, from: Option<PeerId>) -> Result<OpId> {
        let (id, place) = self.open("recv")?;
        replace_empty(place, Proto::Recv { from });
        Ok(id)
    }

    /// A new send of one piece of memory that its receiver may fetch.
    #[inline(always)]
    pub(crate) fn insert_promise(&mut self, peer: PeerId, from: Slice, lent: Lent) -> Result<OpId> {
        let (id, place) = self.open("send")?;
        let source = Source::One(from);
        replace_empty(place, Proto::Large { peer, source, exposed: Some(lent), canceled: false });
        Ok(id)
    }

    /// Ends both sides of a large send to `peer`, well, and gives back what was opened for it; `None`, and nothing has happened, if it is none.
    #[inline(always)]
    pub(crate) fn end_large(&mut self, id: OpId, peer: PeerId) -> Option<Option<Lent>> {
        let s = self.slot(id)?;
        let Proto::Large { peer: to, source, exposed, .. } = &mut s.proto else { return None };
        if *to != peer {
            return None;
        }
        let (lent, source) = (exposed.take(), std::mem::replace(source, Source::Empty));
        replace_empty(&mut s.proto, Proto::Ended);
        if let User::Waiting(w) = &mut s.user {
            let w = w.take();
            replace_empty(&mut s.user, User::Ready(Ok(Outcome::Unit)));
            if let Some(w) = w {
                w.wake();
            }
        }
        self.collect(id);
        drop(source);
        Some(lent)
    }

    /// Why there can be no more.
    #[cold]
    pub(crate) fn full(&self, op: &'static str) -> Error {
        Error::new(Kind::Limit, op, format!("{} operations are under way (Limits::max_ops)", self.max))
    }

    /// A slot whose protocol's side is still to be written.
    #[inline(always)]
    fn open(&mut self, op: &'static str) -> Result<(OpId, &mut Proto)> {
        if self.free == NONE {
            if self.slots.len() >= self.max {
                return Err(self.full(op));
            }
            self.slots.push(Slot {
                generation: 1,
                user: User::Gone,
                proto: Proto::Ended,
                next_free: NONE,
                nth: 0,
            });
            self.free = (self.slots.len() - 1) as u32;
        }
        let index = self.free;
        let s = &mut self.slots[index as usize];
        self.free = s.next_free;
        replace_empty(&mut s.user, User::Waiting(None));
        self.live += 1;
        Ok((OpId::new(index, s.generation), &mut s.proto))
    }

    #[inline(always)]
    fn slot(&mut self, id: OpId) -> Option<&mut Slot> {
        self.slots.get_mut(id.index()).filter(|s| s.generation == id.generation())
    }

    /// The protocol's side; `None` for a name nobody gave out, or an ended one.
    #[inline(always)]
    pub(crate) fn proto(&mut self, id: OpId) -> Option<&mut Proto> {
        self.slot(id).map(|s| &mut s.proto).filter(|p| !matches!(p, Proto::Ended))
    }

    /// What the operation is called.
    pub(crate) fn name(&mut self, id: OpId) -> &'static str {
        self.proto(id).map_or("operation", |p| p.name())
    }

    /// Ends the protocol's side and gives what it held.
    #[inline(always)]
    pub(crate) fn end_proto(&mut self, id: OpId) -> Proto {
        let Some(s) = self.slot(id) else { return Proto::Ended };
        let p = std::mem::replace(&mut s.proto, Proto::Ended);
        self.collect(id);
        p
    }

    /// Gives the user the result, once; wakes whoever waits.
    #[inline(always)]
    pub(crate) fn complete(&mut self, id: OpId, result: Result<Outcome>) {
        let Some(s) = self.slot(id) else { return };
        if let User::Waiting(w) = &mut s.user {
            let w = w.take();
            s.user = User::Ready(result);
            if let Some(w) = w {
                w.wake();
            }
        }
    }

    /// Ends both sides.
    #[inline]
    pub(crate) fn finish(&mut self, id: OpId, result: Result<Outcome>) {
        self.complete(id, result);
        self.end_proto(id);
    }

    /// `true` for a receive that waits and has nobody to wake: its user is just asking for it.
    #[inline(always)]
    pub(crate) fn is_bare_recv(&mut self, id: OpId) -> bool {
        matches!(self.slot(id), Some(Slot { user: User::Waiting(None), proto: Proto::Recv { .. }, .. }))
    }

    /// Ends both sides of such a receive: the result goes past the slot.
    #[inline(always)]
    pub(crate) fn end_bare_recv(&mut self, id: OpId) {
        let Some(s) = self.slot(id) else { return };
        replace_empty(&mut s.user, User::Gone);
        replace_empty(&mut s.proto, Proto::Ended);
        self.collect(id);
    }

    /// The receive has met a message, which is still coming.
    pub(crate) fn set_nth(&mut self, id: OpId, nth: u64) {
        if let Some(s) = self.slot(id) {
            s.nth = nth;
        }
    }

    /// What [`Ops::set_nth`] said.
    pub(crate) fn nth(&mut self, id: OpId) -> u64 {
        self.slot(id).map_or(0, |s| s.nth)
    }

    /// `true` while the user has neither a result nor let go.
    pub(crate) fn is_waiting(&self, id: OpId) -> bool {
        let s = self.slots.get(id.index()).filter(|s| s.generation == id.generation());
        s.is_some_and(|s| matches!(s.user, User::Waiting(_)))
    }

    /// The result, if there is one; afterwards the name is dead.
    #[inline(always)]
    pub(crate) fn take(&mut self, id: OpId) -> Option<Result<Outcome>> {
        let s = self.slot(id)?;
        if !matches!(s.user, User::Ready(_)) {
            return None;
        }
        let User::Ready(r) = std::mem::replace(&mut s.user, User::Gone) else { return None };
        self.collect(id);
        Some(r)
    }

    /// [`Ops::take`] of a result that is but an end: `false`, and nothing has happened, if there is none or another.
    #[inline(always)]
    pub(crate) fn take_unit(&mut self, id: OpId) -> bool {
        let Some(s) = self.slot(id) else { return false };
        let over = matches!(s.user, User::Ready(Ok(Outcome::Unit)));
        if over {
            replace_empty(&mut s.user, User::Gone);
            self.collect(id);
        }
        over
    }

    /// Whom to wake at the end. Replaces an earlier one.
    pub(crate) fn set_waker(&mut self, id: OpId, waker: &Waker) {
        if let Some(Slot { user: User::Waiting(w), .. }) = self.slot(id)
            && !w.as_ref().is_some_and(|old| old.will_wake(waker))
        {
            *w = Some(waker.clone());
        }
    }

    /// The user lets go. A result that waited is handed back, so that a received message need not be lost.
    pub(crate) fn detach(&mut self, id: OpId) -> Option<Result<Outcome>> {
        let s = self.slot(id)?;
        let old = std::mem::replace(&mut s.user, User::Gone);
        self.collect(id);
        match old {
            User::Ready(r) => Some(r),
            _ => None,
        }
    }

    #[inline(always)]
    fn collect(&mut self, id: OpId) {
        let s = &mut self.slots[id.index()];
        if matches!(s.user, User::Gone) && matches!(s.proto, Proto::Ended) && s.generation == id.generation()
        {
            // 0 is no generation: a name is never 0.
            s.generation = s.generation.wrapping_add(1).max(1);
            s.next_free = self.free;
            self.free = id.index() as u32;
            self.live -= 1;
        }
    }

    /// A peer has got another name.
    pub(crate) fn rename_peer(&mut self, old: PeerId, new: PeerId) {
        for s in &mut self.slots {
            match &mut s.proto {
                Proto::Send { peer }
                | Proto::Large { peer, .. }
                | Proto::Fetch { peer, .. }
                | Proto::Pieces { peer, .. }
                | Proto::RmaRead { peer, .. }
                | Proto::Write { peer, .. }
                | Proto::Tell { peer, .. }
                    if *peer == old =>
                {
                    *peer = new;
                }
                Proto::Recv { from } | Proto::RecvAll { from, .. } if *from == Some(old) => *from = Some(new),
                _ => {}
            }
            if let Proto::Fetch { waited, .. }
            | Proto::Pieces { waited: Some(waited), .. }
            | Proto::Back { waited, .. } = &mut s.proto
                && waited.want.from == Some(old)
            {
                waited.want.from = Some(new);
            }
        }
    }

    /// All operations whose protocol side concerns `peer`.
    pub(crate) fn of_peer(&self, peer: PeerId) -> Vec<OpId> {
        self.names(|p| p.peer() == Some(peer))
    }

    /// All operations whose protocol side has not ended.
    pub(crate) fn all(&self) -> Vec<OpId> {
        self.names(|p| !matches!(p, Proto::Ended))
    }

    fn names(&self, f: impl Fn(&Proto) -> bool) -> Vec<OpId> {
        let named = self.slots.iter().enumerate().filter(|(_, s)| f(&s.proto));
        named.map(|(i, s)| OpId::new(i as u32, s.generation)).collect()
    }
}

/// Puts a value in the place of one that holds nothing: so there is nothing to drop, and no look at what it might have been.
#[inline(always)]
fn replace_empty<T>(place: &mut T, value: T) {
    std::mem::forget(std::mem::replace(place, value));
}

/// A received message's data, cut into a buffer of the caller or a fresh one.
pub(crate) fn data(buffer: Buffer, len: usize) -> Data {
    Data::Buffer { len: len.min(buffer.len()), buffer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_lives_until_both_sides_have_ended() {
        let mut ops = Ops::new(1);
        let peer = PeerId { index: 0, generation: 0 };
        let id = ops.insert(Proto::Send { peer }, "send").unwrap();
        assert_eq!(ops.insert(Proto::Send { peer }, "send").unwrap_err().kind(), Kind::Limit);
        ops.complete(id, Ok(Outcome::Unit));
        ops.complete(id, Err(Error::new(Kind::PeerLost, "send", "late")));
        assert!(matches!(ops.take(id), Some(Ok(Outcome::Unit))));
        assert!(ops.take(id).is_none());
        assert_eq!(ops.live(), 1);
        ops.end_proto(id);
        assert_eq!(ops.live(), 0);
        let again = ops.insert(Proto::Send { peer }, "send").unwrap();
        assert_ne!(again, id);
        assert!(ops.proto(id).is_none() && ops.proto(again).is_some());
    }
}
