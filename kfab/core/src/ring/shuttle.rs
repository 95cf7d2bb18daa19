//! One line that both sides of a connection write in turn: for messages that answer each other.
//!
//! A ring costs two journeys of a cache line a message: the producer must take the next line from the consumer, who spins on it,
//! and the consumer must take it back. Where a question is answered by a message as small, both can travel in one line that goes
//! to and fro, and whoever reads it has it for the answer: one journey. So each connection has a shuttle beside its two rings.
//!
//! - The stamp counts the journeys. From an even stamp the first side may send, from an odd one the other; whoever has sent must
//!   wait for the other's journey and uses its ring meanwhile. So a frame is never overwritten before it was taken.
//! - Each frame says how far its sender had come in its ring before it. The receiver takes it exactly there, so frames keep
//!   their order: the stamp is stored (release) before any later line, hence whoever sees the later line sees the shuttle too.
//! - The other side is not trusted: see [`super`].

use super::primitive::{Ordering, release};
use super::shape::{Hostile, Line};
use crate::spi::{INLINE_MAX, Inline, Small};
use std::ptr::NonNull;

/// The place of a frame in a ring, in halves of lines, travels modulo this: no ring has more.
const PLACES: u32 = 1 << 24;

/// One side of the line. One thread at a time.
#[derive(Debug)]
pub struct Shuttle {
    line: NonNull<Line>,
    /// The stamp as we wrote it or took it.
    stamp: u32,
    /// 0: we send from even stamps; 1: from odd ones.
    side: u32,
}

// SAFETY: the line is memory that `Shuttle::new` promises for the life of this value, whichever thread holds it.
unsafe impl Send for Shuttle {}

impl Shuttle {
    /// Bytes of the line.
    pub const BYTES: usize = size_of::<Line>();

    /// A side of a fresh (zeroed) shuttle: the first (`side` 0) or the second (1).
    ///
    /// # Safety
    /// While this lives `line` points to [`Shuttle::BYTES`] bytes aligned to 64, mapped readable and writable, initialised, and
    /// accessed in this process by shuttles only. At most one value of each side, in this process or another, follows the
    /// protocol; whatever else writes there is not of this process.
    pub unsafe fn new(line: NonNull<u8>, side: u32) -> Shuttle {
        Shuttle { line: line.cast(), stamp: 0, side: side & 1 }
    }

    #[inline(always)]
    fn line(&self) -> &Line {
        // SAFETY: live, aligned and initialised by `new`; the interior is an atomic and an UnsafeCell, for which a shared
        // reference claims nothing about the bytes.
        unsafe { self.line.as_ref() }
    }

    /// `true` if this side may send.
    #[inline(always)]
    pub fn is_here(&self) -> bool {
        self.stamp & 1 == self.side
    }

    /// Sends a frame without a body: our ring has come to `before` ([`Producer::pushed`](super::Producer::pushed)). Only where [`Shuttle::is_here`]; else it panics, and
    /// so it does for more than [`INLINE_MAX`] bytes.
    #[inline(always)]
    pub fn send(&mut self, header: u128, bytes: &[u8], before: u32) {
        assert!(self.is_here() && bytes.len() <= INLINE_MAX, "the shuttle is away, or too small");
        // SAFETY: live by `new`; it is our turn, so the other side writes nothing and reads nothing before the stamp.
        unsafe { self.line().fill(header, bytes, before % PLACES) };
        self.stamp = self.stamp.wrapping_add(1);
        // Release: whoever sees the stamp sees the frame.
        self.line().stamp().store(self.stamp, release());
    }

    /// `true` if a frame of the other side waits.
    #[inline(always)]
    pub fn has_come(&self) -> bool {
        // Acquire: pairs with the release of the stamp.
        !self.is_here() && self.line().stamp().load(Ordering::Acquire) == self.stamp.wrapping_add(1)
    }

    /// The frame that waits ([`Shuttle::has_come`]), if it is its turn when the other side's ring has been taken up to `at`.
    /// `Ok(false)`: frames that come before it have yet to be taken.
    #[inline(always)]
    pub fn take(&mut self, at: u32, into: &mut Small) -> Result<bool, Hostile> {
        // SAFETY: live by `new`; the other side sent it and does not write before our answer, if it is honest.
        let (lens, header, words) = unsafe { self.line().read() };
        let (len, before) = (lens & 0xff, lens >> 8);
        if len as usize > INLINE_MAX {
            return Err(Hostile("an inline length above its limit"));
        }
        if before != at % PLACES {
            return Ok(false);
        }
        into.header = header;
        into.inline = Inline::from_words(words, len as usize);
        into.body_len = 0;
        self.stamp = self.stamp.wrapping_add(1);
        Ok(true)
    }
}
