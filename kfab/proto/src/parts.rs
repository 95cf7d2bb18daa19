//! Several buffers as one place: messages and reads that go into vectors. Whoever brings one buffer or none passes through here at the
//! end of the long way; the short way does not know vectors and leaves their messages to it.
//!
//! A vector's buffers lie in its operation's slot (`Proto::RecvAll`), not with the receive that waits to be matched.

use crate::machine::{Io, Machine};
use crate::message::*;
use crate::ops::{Proto, data};
use crate::receive::truncated;
use kfab_core::mem::{Buffer, Landing, Room, scatter};
use kfab_core::spi::{Conn, INLINE_MAX, Inline, RemoteKey, Rma, RmaStarted, RmaToken};
use kfab_core::{Error, Fate, Kind, Result};

/// A received message in the buffers of a vector.
#[derive(Debug)]
pub struct Parts {
    /// Who sent it.
    pub from: PeerId,
    /// The tag, of a tagged message.
    pub tag: Option<u64>,
    /// The buffers, each in its full length: filled one after the other, each to its end.
    pub buffers: Vec<Buffer>,
    /// Bytes of the message.
    pub len: usize,
    /// See [`Message::nth`].
    pub nth: u64,
}

impl Parts {
    /// The message's bytes, buffer by buffer.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = self.len;
        let filled = self.buffers.iter().map(move |b| {
            let n = rest.min(b.len());
            rest -= n;
            &b[..n]
        });
        filled.filter(|b| !b.is_empty())
    }

    /// The same message in one stretch: for a receive that brings no vector.
    pub(crate) fn gathered(&self) -> Message {
        let bytes = self.slices().collect::<Vec<_>>().concat();
        let data = match Inline::new(&bytes).filter(|_| bytes.len() <= INLINE_MAX) {
            Some(few) => Data::Inline(few),
            None => data(Buffer::adopt(bytes), self.len),
        };
        Message { from: self.from, tag: self.tag, data, nth: self.nth }
    }
}

/// A read by a port into several buffers: one for each.
#[derive(Debug)]
pub(crate) struct Reads {
    /// The buffers that are here; the others are with the port.
    here: Vec<Option<Buffer>>,
    /// Parts that have yet to end, and one more until all have been started.
    left: usize,
    failed: Option<Error>,
}

impl Reads {
    fn new(buffers: Vec<Buffer>) -> Reads {
        Reads { here: buffers.into_iter().map(Some).collect(), left: 1, failed: None }
    }

    /// The landing of the next part from buffer `i` on, of at most `len` bytes.
    fn lend(&mut self, mut i: usize, len: usize) -> Option<Landing> {
        if self.failed.is_some() || len == 0 {
            return None;
        }
        while self.here.get(i)?.as_ref()?.is_empty() {
            i += 1;
        }
        let landing = Landing::prefix(self.here[i].take()?, len).ok()?;
        self.left += 1;
        Some(landing.numbered(i))
    }

    /// A part has ended. `true`: it was the last.
    fn back(&mut self, landing: Option<Landing>, result: Result<()>) -> bool {
        if let Some(l) = landing {
            let i = l.number();
            self.here[i] = l.into_buffer();
        }
        self.failed = self.failed.take().or(result.err());
        self.left -= 1;
        self.left == 0
    }
}

/// Where a port reads to, and what remembers the parts if there are several. `None`: a buffer has another owner.
pub(crate) fn landings(mut room: Room, len: usize) -> Option<(Option<Landing>, Option<Box<Reads>>)> {
    if !room.is_only() {
        return None;
    }
    match room {
        Room::One(b) => Some((Some(Landing::prefix(b, len).ok()?), None)),
        Room::Many(v) => Some((None, Some(Box::new(Reads::new(v))))),
    }
}

/// How a read ends well.
pub(crate) fn read_outcome(room: Room) -> Outcome {
    match room {
        Room::One(b) => Outcome::Buffer(b),
        Room::Many(v) => Outcome::Buffers(v),
    }
}

/// A message whose `len` bytes are in their place.
pub(crate) fn received(from: PeerId, tag: Option<u64>, room: Room, len: usize, nth: u64) -> Outcome {
    match room {
        Room::One(b) => Outcome::Message(Message { from, tag, data: data(b, len), nth }),
        Room::Many(buffers) => Outcome::Parts(Parts { from, tag, buffers, len, nth }),
    }
}

/// Copies a message's data to where its receive wants it.
#[inline(always)]
pub(crate) fn fit(m: Message, into: Option<Room>) -> Result<Outcome> {
    let Some(room) = into else { return Ok(Outcome::Message(m)) };
    fit_room(&m, room)
}

fn fit_room(m: &Message, mut room: Room) -> Result<Outcome> {
    let bytes = m.bytes();
    match &mut room {
        Room::One(b) => {
            let shared = || Error::new(Kind::InvalidArgument, "recv", "the receive buffer has another owner");
            let place = b.get_mut().ok_or_else(shared)?;
            place.get_mut(..bytes.len()).ok_or_else(truncated)?.copy_from_slice(bytes);
        }
        Room::Many(v) => scatter(bytes, v, "recv").map_err(|e| e.with_fate(Fate::Refused))?,
    }
    Ok(received(m.from, m.tag, room, bytes.len(), m.nth))
}

impl Machine {
    /// The room of a receive that has met its message: the buffer it brought, or its vector.
    #[inline(always)]
    pub(crate) fn room(&mut self, op: OpId, into: Option<Buffer>) -> Option<Room> {
        match self.ops.proto(op) {
            Some(Proto::RecvAll { into, .. }) => Some(Room::Many(std::mem::take(into))),
            _ => into.map(Room::One),
        }
    }

    /// The first buffer of a receive's vector, if a message of `len` bytes goes into it alone: so it needs no copy.
    pub(crate) fn first_alone(&mut self, op: OpId, len: usize) -> Option<Buffer> {
        match self.ops.proto(op) {
            Some(Proto::RecvAll { into, .. }) if into.first()?.len() >= len => Some(into.remove(0)),
            _ => None,
        }
    }

    /// It comes back, as does the buffer of a receive that brought one: there it is what the receive waits with.
    pub(crate) fn first_back(&mut self, op: OpId, buffer: Option<Buffer>) -> Option<Buffer> {
        match self.ops.proto(op) {
            Some(Proto::RecvAll { into, .. }) => {
                into.splice(0..0, buffer);
                None
            }
            _ => buffer,
        }
    }

    /// A whole message for a receive.
    #[inline(always)]
    pub(crate) fn hand_down(&mut self, op: OpId, m: Message, into: Option<Buffer>) {
        let room = self.room(op, into);
        self.finish(op, fit(m, room));
    }

    /// Has a port read into `landing`, or into the parts that the operation remembers, as many bytes as it says.
    #[expect(clippy::too_many_arguments, reason = "one read's terms")]
    pub(crate) fn start_reads(
        &mut self,
        io: &mut Io<'_>,
        (port, conn): (usize, Conn),
        op: OpId,
        landing: Option<Landing>,
        key: RemoteKey,
        offset: u64,
        len: usize,
    ) {
        if let Some(landing) = landing {
            return self.start_read(io, (port, conn), op, landing, key, offset);
        }
        let (mut next, mut at) = (0, 0);
        while let Some(landing) = self.reads(op).and_then(|r| r.lend(next, len - at)) {
            let offset = offset + at as u64;
            (next, at) = (landing.number() + 1, at + landing.len());
            self.start_read(io, (port, conn), op, landing, key, offset);
        }
        self.rma_done(io, op, None, Ok(()));
    }

    fn start_read(
        &mut self,
        io: &mut Io<'_>,
        (port, conn): (usize, Conn),
        op: OpId,
        landing: Landing,
        key: RemoteKey,
        offset: u64,
    ) {
        match io.ports[port].rma(conn, Rma::Read { landing, key, offset }, RmaToken(op.to_bits())) {
            RmaStarted::Done(l) => self.rma_done(io, op, l, Ok(())),
            RmaStarted::Pending => {}
            RmaStarted::Failed(l, e) => self.rma_done(io, op, l, Err(e)),
        }
    }

    fn reads(&mut self, op: OpId) -> Option<&mut Reads> {
        match self.ops.proto(op) {
            Some(Proto::Fetch { reads, .. } | Proto::RmaRead { reads, .. } | Proto::Back { reads, .. }) => {
                reads.as_deref_mut()
            }
            _ => None,
        }
    }

    /// What a port has read, once all of it has ended: the room, unless the port kept a part, and whether it went well.
    pub(crate) fn read_back(
        &mut self,
        op: OpId,
        landing: Option<Landing>,
        result: Result<()>,
    ) -> Option<(Option<Room>, Result<()>)> {
        let Some(reads) = self.reads(op) else {
            return Some((landing.and_then(Landing::into_buffer).map(Room::One), result));
        };
        reads.back(landing, result).then(|| {
            let room =
                std::mem::take(&mut reads.here).into_iter().collect::<Option<Vec<_>>>().map(Room::Many);
            (room, reads.failed.take().map_or(Ok(()), Err))
        })
    }
}
