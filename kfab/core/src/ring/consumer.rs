//! The receiving side of a ring.

use super::primitive::{Ordering, copy_out, light_barrier, release};
use super::shape::{FEW, HALF, Hostile, Line, Parts, SKIPPED};
use crate::mem::Landing;
use crate::spi::{HEADER_LEN, INLINE_MAX, Inline, Next, Small};

/// A frame at the head of a ring, its line copied.
#[derive(Clone, Copy, Debug)]
pub struct Rx {
    /// The header, as posted.
    pub header: [u8; HEADER_LEN],
    /// The inline part, as posted.
    pub inline: Inline,
    /// Bytes of body, checked against the shape. The caller hands it to [`Consumer::take`].
    pub body_len: usize,
}

/// Reads frames from a ring. One thread at a time.
#[derive(Debug)]
pub struct Consumer {
    parts: Parts,
    /// The position of the next half of a line and of the next byte of data.
    at: u32,
    data: u64,
    /// Halves up to and with the frame that was shown.
    shown: u32,
    /// The position last told to the producer.
    published: u32,
}

// SAFETY: the parts are memory that `Parts::new` promises for the life of this value, whichever thread holds it.
unsafe impl Send for Consumer {}

impl Consumer {
    /// The consumer of a fresh (zeroed) ring.
    ///
    /// # Safety
    /// It is the only consumer of this ring. See [`Parts::new`].
    pub unsafe fn new(parts: Parts) -> Consumer {
        Consumer { parts, at: 0, data: 0, shown: 0, published: 0 }
    }

    /// How far it has come, in halves of lines (wrapping).
    #[inline(always)]
    pub fn consumed(&self) -> u32 {
        self.at
    }

    /// `true` if no frame waits.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        !self.has_come(self.at)
    }

    /// Acquire: pairs with the release of the stamp, so the half, or the line and its body, is whole.
    #[inline(always)]
    fn has_come(&self, at: u32) -> bool {
        self.parts.half(at).stamp.load(Ordering::Acquire) == at.wrapping_add(1)
    }

    /// The line of the frame that comes next, if that has a whole one: then it begins here, or this half is passed over and it has come
    /// behind it. The position after it is in `shown`.
    #[inline(always)]
    fn whole(&mut self, lens: u32) -> Result<&Line, Hostile> {
        let skipped = self.at & 1;
        if (lens == SKIPPED) != (skipped == 1) {
            return Err(Hostile("a line that begins in its middle"));
        }
        if skipped == 1 && !self.has_come(self.at.wrapping_add(1)) {
            return Err(Hostile("half a line passed over for nothing"));
        }
        self.shown = 2 + skipped;
        Ok(self.parts.line(self.at.wrapping_add(skipped)))
    }

    /// The next frame, without consuming it; it is copied once and checked.
    #[inline(always)]
    pub fn peek(&mut self) -> Result<Option<Rx>, Hostile> {
        let mut small = Small::EMPTY;
        Ok(match self.look(&mut small)? {
            true => Some(Rx { header: small.header_bytes(), inline: small.inline, body_len: small.body_len }),
            false => None,
        })
    }

    /// The next frame, if there is one: what peek does and, for a frame without a body, advance, in one pass.
    #[inline(always)]
    pub fn next_small(&mut self, into: &mut Small) -> Result<Next, Hostile> {
        if !self.look(into)? {
            return Ok(Next::Nothing);
        }
        if into.body_len == 0 {
            self.advance();
        }
        Ok(Next::Frame)
    }

    /// Copies the next frame, if there is one, and checks it.
    #[inline(always)]
    fn look(&mut self, into: &mut Small) -> Result<bool, Hostile> {
        if !self.has_come(self.at) {
            return Ok(false);
        }
        // SAFETY: live by `Parts::new`; an honest producer does not write this half before we have published its consumption.
        let (lens, header, word) = unsafe { self.parts.half(self.at).read() };
        if lens & HALF != 0 && lens != SKIPPED {
            let len = (lens & !HALF) as usize;
            if len > FEW {
                return Err(Hostile("half a line with more bytes than it has"));
            }
            self.shown = 1;
            into.header = header;
            into.inline = Inline::from_words([word, 0, 0, 0, 0], len);
            into.body_len = 0;
            return Ok(true);
        }
        self.look_at_whole(lens, into)?;
        Ok(true)
    }

    #[inline(always)]
    fn look_at_whole(&mut self, lens: u32, into: &mut Small) -> Result<(), Hostile> {
        let max_body = self.parts.shape.max_body();
        let line = self.whole(lens)?;
        // SAFETY: as in `look`: the stamp of its first half was seen.
        let (lens, header, words) = unsafe { line.read() };
        let (len, body_len) = ((lens & 0xff) as usize, (lens >> 8) as usize);
        if len > INLINE_MAX {
            return Err(Hostile("an inline length above its limit"));
        }
        if body_len > max_body {
            return Err(Hostile("a body length above its limit"));
        }
        into.header = header;
        into.inline = Inline::from_words(words, len);
        into.body_len = body_len;
        Ok(())
    }

    /// Consumes the frame that [`Consumer::peek`] showed, one without a body.
    #[inline(always)]
    pub fn advance(&mut self) {
        self.at = self.at.wrapping_add(self.shown);
    }

    /// Consumes the frame that [`Consumer::peek`] or [`Consumer::next_small`] showed with a body of `body_len` bytes: copies it into `landing`, as much as
    /// fits there, or drops it. Call it with that `body_len`: longer than the shape's `max_body` panics.
    #[inline]
    pub fn take(&mut self, body_len: usize, landing: Option<&mut Landing>) {
        let shape = self.parts.shape;
        assert!(body_len <= shape.max_body(), "a body that peek never showed");
        let (start, end) = shape.place(self.data, body_len);
        if let Some(l) = landing {
            let n = body_len.min(l.len());
            // SAFETY: `place` keeps start..end inside the data ring, n <= end - start; the landing is the exclusive right to
            // its `len` bytes, which are not this ring's (those are reached by rings only).
            unsafe { copy_out(self.parts.data.as_ptr(), shape.byte(start), l.as_mut_ptr(), n) };
        }
        self.data = end;
        self.advance();
    }

    /// Tells the producer what has been consumed, if anything was since the last time: `true` if it waits for room and this
    /// caller must ring its bell. Call it once for a batch.
    #[inline(always)]
    pub fn publish(&mut self, asymmetric: bool) -> bool {
        if self.published == self.at {
            return false;
        }
        self.published = self.at;
        let words = self.parts.words();
        // Release: our reads of lines and bodies come before the producer's next writes there.
        words.consumed.0.halves.store(self.at, release());
        words.consumed.0.data.store(self.data, release());
        // The producer asks for room, passes its heavy barrier and looks at the counters; we store them, pass the light one
        // and look whether it asked.
        light_barrier(asymmetric);
        let wants = &words.wants_room.0;
        wants.load(Ordering::Relaxed) != 0 && wants.swap(0, Ordering::AcqRel) != 0
    }

    /// Asks to be rung for the next frame. Pass a heavy barrier, then look at [`Consumer::is_empty`] before sleeping.
    pub fn arm(&self) {
        self.parts.words().armed.0.store(1, Ordering::Relaxed);
    }

    /// The opposite of [`Consumer::arm`]: this side looks by itself again. A bell already on its way still comes.
    pub fn disarm(&self) {
        self.parts.words().armed.0.store(0, Ordering::Relaxed);
    }

    /// `true` if the bell was not rung since [`Consumer::arm`].
    pub fn is_armed(&self) -> bool {
        self.parts.words().armed.0.load(Ordering::Relaxed) != 0
    }

    /// As if so many halves had passed already.
    #[cfg(all(test, not(loom)))]
    pub(super) fn start_at(&mut self, at: u32) {
        (self.at, self.published) = (at, at);
    }

    /// [`Consumer::publish`] with too weak an order: what loom must find out.
    #[cfg(all(test, loom))]
    pub(super) fn publish_weakly(&mut self) {
        let consumed = &self.parts.words().consumed.0;
        consumed.halves.store(self.at, Ordering::Relaxed);
        consumed.data.store(self.data, Ordering::Relaxed);
    }
}
