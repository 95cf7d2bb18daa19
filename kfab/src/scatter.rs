//! A received message in several buffers: received into them ([`Recv::post_all`]), cut where it lies ([`Message::into_parts`]), or
//! copied into buffers of the receiver's own ([`Message::scatter`]).

use crate::endpoint::{Message, Peer, Recv};
use crate::op::{Finish, Op, sealed};
use crate::share::Share;
use kfab_core::mem::Buffer;
use kfab_core::{Error, Kind, Result};
use kfab_proto::Outcome;
use std::mem::take;

impl Recv<'_> {
    /// Starts it into these buffers, which are filled one after the other, each to its end; one given with [`Recv::into`] comes first.
    /// None of them may have another owner (`InvalidArgument`), and a message larger than all of them ends the receive with `Truncated`.
    ///
    /// Large messages are fetched or come in pieces straight into their place; a piece that lies across the end of a buffer, and a
    /// message of one frame (at most a few KiB to 64 KiB, as the provider has it) that the first buffer does not hold, are copied once more.
    /// Everything else is as with one buffer: dropped it loses no message, and the buffers are freed when no transport fills them any more.
    ///
    /// ```
    /// # fn main() -> kfab::Result<()> {
    /// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
    /// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
    /// # let peer = there.peer(&here.address().to_string())?;
    /// let got = here.recv_with().post_all(vec![here.buffer(4)?, here.buffer(1000)?]);
    /// peer.send("headand the rest").wait()?;
    /// let buffers = got.wait()?.into_buffers();
    /// assert_eq!((&buffers[0][..], &buffers[1][..12]), (&b"head"[..], &b"and the rest"[..]));
    /// # Ok(()) }
    /// ```
    pub fn post_all(mut self, buffers: Vec<Buffer>) -> Op<Parts> {
        let all = take(&mut self.into).into_iter().chain(buffers).collect();
        let lane = &self.endpoint.lane;
        crate::endpoint::op(lane, lane.with(|m, io| m.recv_all(io, self.want, all)))
    }
}

/// A message received into several buffers ([`Recv::post_all`]).
pub struct Parts {
    lane: Share,
    inner: kfab_proto::Parts,
}

impl Parts {
    /// Who sent it: to answer.
    pub fn from(&self) -> Peer {
        Peer::new(self.lane.clone(), self.inner.from)
    }

    /// The tag, of a tagged message.
    pub fn tag(&self) -> Option<u64> {
        self.inner.tag
    }

    /// Bytes of the message.
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// `true` for a message of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The message's bytes, buffer by buffer; none is empty.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.inner.slices()
    }

    /// The buffers as they were given, each in its full length. Beyond [`Parts::len`] bytes, counted through all of them, what they hold
    /// is unspecified.
    pub fn into_buffers(self) -> Vec<Buffer> {
        self.inner.buffers
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (len, n, from) = (self.len(), self.inner.buffers.len(), self.inner.from);
        write!(f, "Parts({len} bytes in {n} buffers from {from:?}, tag {:?})", self.tag())
    }
}

impl Finish for Parts {}
impl Finish for Vec<Buffer> {}

impl sealed::Finish for Parts {
    type Hold = Share;
    type Ended = sealed::Untaken<Parts>;

    fn finish(outcome: Outcome, lane: impl FnOnce() -> Share) -> Result<Parts> {
        match outcome {
            Outcome::Parts(inner) => Ok(Parts { lane: lane(), inner }),
            _ => Err(sealed::unexpected()),
        }
    }
}

impl sealed::GiveBack for Parts {
    fn give_back(self) {
        self.lane.give_back(Outcome::Parts(self.inner));
    }
}

impl sealed::Finish for Vec<Buffer> {
    type Hold = Share;
    type Ended = Vec<Buffer>;

    fn finish(outcome: Outcome, _: impl FnOnce() -> Share) -> Result<Vec<Buffer>> {
        match outcome {
            Outcome::Buffers(buffers) => Ok(buffers),
            _ => Err(sealed::unexpected()),
        }
    }
}

impl Message {
    /// The memory that it came in, cut into parts of these lengths and a last one with the rest (which may be empty): a header and
    /// what follows it, say. Nothing is copied; the parts share the memory, which is free when the last of them is dropped.
    ///
    /// # Errors
    /// `Truncated` if the message is shorter than the lengths together.
    pub fn into_parts(self, lens: &[usize]) -> Result<Vec<Buffer>> {
        let len = self.len();
        let wanted = lens.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)).filter(|sum| *sum <= len);
        if wanted.is_none() {
            let why = format!("{len} bytes cannot be cut into parts of {lens:?}");
            return Err(Error::new(Kind::Truncated, "into_parts", why));
        }
        let whole = self.into_buffer()?;
        let mut at = 0;
        let mut parts = Vec::with_capacity(lens.len() + 1);
        for n in lens {
            parts.push(whole.slice(at..at + n));
            at += n;
        }
        parts.push(whole.slice(at..len));
        Ok(parts)
    }

    /// Copies the message into these buffers, one after the other, each to its end; the number of bytes. What of the buffers is not
    /// needed stays as it is.
    ///
    /// # Errors
    /// `Truncated` if they hold less than the message, `InvalidArgument` if one that is needed has another owner. Nothing is copied
    /// then.
    pub fn scatter(&self, into: &mut [Buffer]) -> Result<usize> {
        kfab_core::mem::scatter(self, into, "scatter")?;
        Ok(self.len())
    }
}
