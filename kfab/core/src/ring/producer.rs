//! The sending side of a ring.

use super::primitive::{Ordering, copy_in, light_barrier, release};
use super::shape::{FEW, HALF, Hostile, Parts, SKIPPED};
use crate::spi::{Body, HEADER_LEN, INLINE_MAX, Inline};

/// Writes frames into a ring. One thread at a time.
#[derive(Debug)]
pub struct Producer {
    parts: Parts,
    /// The position of the next half of a line and of the next byte of data.
    at: u32,
    data: u64,
    /// The consumer's counters as last read.
    freed: u32,
    freed_data: u64,
}

// SAFETY: the parts are memory that `Parts::new` promises for the life of this value, whichever thread holds it.
unsafe impl Send for Producer {}

impl Producer {
    /// The producer of a fresh (zeroed) ring.
    ///
    /// # Safety
    /// It is the only producer of this ring. See [`Parts::new`].
    pub unsafe fn new(parts: Parts) -> Producer {
        Producer { parts, at: 0, data: 0, freed: 0, freed_data: 0 }
    }

    /// Copies a frame into the ring: `false` if there is no room now. A body longer than the shape's `max_body` never fits.
    #[inline(always)]
    pub fn push(
        &mut self,
        header: &[u8; HEADER_LEN],
        inline: &Inline,
        body: &Body<'_>,
    ) -> Result<bool, Hostile> {
        let header = u128::from_le_bytes(*header);
        match body {
            Body::Empty => self.push_bytes(header, inline.as_slice()),
            body => self.push_body(header, inline.as_slice(), body),
        }
    }

    /// Copies a frame into the ring, straight from where it lies: a header (as a little-endian number) and bytes, in the line if they
    /// are at most [`INLINE_MAX`], else as the body. `false` if there is no room now.
    #[inline(always)]
    pub fn push_bytes(&mut self, header: u128, bytes: &[u8]) -> Result<bool, Hostile> {
        if bytes.len() <= FEW {
            // The first half's frame writes the other's stamp too.
            let room = self.has_halves(2 - (self.at & 1))?;
            if room {
                self.commit_half(header, bytes, bytes.len() as u32 | HALF);
            }
            return Ok(room);
        }
        if bytes.len() > INLINE_MAX {
            return self.push_body(header, &[], &Body::Borrowed(bytes));
        }
        let room = self.has_line()?;
        if room {
            self.commit(header, bytes, 0);
        }
        Ok(room)
    }

    fn push_body(&mut self, header: u128, inline: &[u8], body: &Body<'_>) -> Result<bool, Hostile> {
        let len = body.len();
        let shape = self.parts.shape;
        if len > shape.max_body() || !self.has_line()? {
            return Ok(false);
        }
        let (start, end) = shape.place(self.data, len);
        if end - self.freed_data > shape.data {
            self.reread()?;
            if end - self.freed_data > shape.data {
                return Ok(false);
            }
        }
        let mut at = shape.byte(start);
        let mut put = |src: *const u8, len: usize| {
            // SAFETY: `place` keeps start..end inside the data ring, and the parts' lengths add up to at most end - start (the
            // body's own length, taken once). The consumer has freed these bytes. A source is another process's or this
            // one's ordinary memory, never this ring (its bytes are reached by rings only).
            unsafe { copy_in(self.parts.data.as_ptr(), at, src, len) };
            at += len;
        };
        match body {
            Body::Empty => {}
            Body::Borrowed(b) => put(b.as_ptr(), b.len()),
            Body::Owned(slices) => slices.iter().for_each(|s| put(s.as_ptr(), s.len())),
        }
        self.data = end;
        self.commit(header, inline, len);
        Ok(true)
    }

    /// Takes a whole line, for which [`Producer::has_line`] found room. The rest of one that was begun is passed over.
    #[inline(always)]
    fn commit(&mut self, header: u128, inline: &[u8], body_len: usize) {
        let begun = self.at & 1;
        let at = self.at.wrapping_add(begun);
        let line = self.parts.line(at);
        // SAFETY: live by `Parts::new`; the consumer has freed this line (`has_line`) and will not read it before the stamp; the
        // bytes are those of an `Inline`, or at most INLINE_MAX (`push_bytes`).
        unsafe { line.fill(header, inline, body_len as u32) };
        // Release: whoever sees this stamp sees the line and the body.
        line.stamp().store(at.wrapping_add(1), release());
        if begun == 1 {
            // Last: whoever sees that this half is passed over finds the line behind it.
            self.commit_half(0, &[], SKIPPED);
        }
        self.at = at.wrapping_add(2);
    }

    /// Takes half a line, which is free.
    #[inline(always)]
    fn commit_half(&mut self, header: u128, bytes: &[u8], lens: u32) {
        let half = self.parts.half(self.at);
        if self.at & 1 == 0 {
            // The consumer will look at the other half's stamp, where bytes of a whole line may lie: no news. It looks there after it has
            // seen this half's stamp.
            self.parts.half(self.at | 1).stamp.store(self.at, Ordering::Relaxed);
        }
        // SAFETY: live by `Parts::new`; the consumer has freed this half (`has_halves`) and will not read it before the stamp; the
        // bytes are at most FEW (`push_bytes`, `commit`).
        unsafe { half.fill(header, bytes, lens) };
        self.at = self.at.wrapping_add(1);
        // Release: whoever sees this stamp sees the half.
        half.stamp.store(self.at, release());
    }

    /// `true` if a whole line is free, and the half before it if that is to be passed over.
    #[inline(always)]
    fn has_line(&mut self) -> Result<bool, Hostile> {
        self.has_halves(2 + (self.at & 1))
    }

    #[inline(always)]
    fn has_halves(&mut self, n: u32) -> Result<bool, Hostile> {
        let most = self.parts.shape.halves() - n;
        if self.at.wrapping_sub(self.freed) <= most {
            return Ok(true);
        }
        self.reread()?;
        Ok(self.at.wrapping_sub(self.freed) <= most)
    }

    /// Reads the consumer's counters again. They may not be ahead of what was produced, nor more than a ring behind.
    #[cold]
    #[inline(never)]
    fn reread(&mut self) -> Result<(), Hostile> {
        let consumed = &self.parts.words().consumed.0;
        // Acquire: the consumer's reads of what it freed come before our next writes there.
        let (at, data) = (consumed.halves.load(Ordering::Acquire), consumed.data.load(Ordering::Acquire));
        if self.at.wrapping_sub(at) > self.parts.shape.halves() {
            return Err(Hostile("the peer consumed lines that were not sent"));
        }
        if data > self.data || self.data - data > self.parts.shape.data {
            return Err(Hostile("the peer consumed data that was not sent"));
        }
        (self.freed, self.freed_data) = (at, data);
        Ok(())
    }

    /// How far it has come, in halves of lines (wrapping).
    #[inline(always)]
    pub fn pushed(&self) -> u32 {
        self.at
    }

    /// After pushes: `true` if the consumer sleeps and this caller must ring its bell. `asymmetric`: both processes take part
    /// in [`heavy_barrier`](crate::sys::heavy_barrier).
    #[inline(always)]
    pub fn take_bell(&self, asymmetric: bool) -> bool {
        // Our stamp must be visible before we look whether the consumer sleeps; the other half is its heavy barrier between
        // arming and looking at the stamp. Without both, each could miss the other.
        light_barrier(asymmetric);
        let armed = &self.parts.words().armed.0;
        armed.load(Ordering::Relaxed) != 0 && armed.swap(0, Ordering::AcqRel) != 0
    }

    /// `true` if at least half of the lines are free, and room for the largest body.
    pub fn has_room(&mut self) -> Result<bool, Hostile> {
        self.reread()?;
        let shape = self.parts.shape;
        let (_, end) = shape.place(self.data, shape.max_body());
        let lines = self.at.wrapping_sub(self.freed) <= shape.halves() / 2;
        Ok(lines && end - self.freed_data <= shape.data)
    }

    /// Asks to be rung when there is room again. Pass a heavy barrier, then look at [`Producer::has_room`] before sleeping.
    pub fn want_room(&self) {
        self.parts.words().wants_room.0.store(1, Ordering::Relaxed);
    }

    /// As if so many halves had passed already.
    #[cfg(all(test, not(loom)))]
    pub(super) fn start_at(&mut self, at: u32) {
        (self.at, self.freed) = (at, at);
    }

    /// [`Producer::take_bell`] without its barrier: what loom must find out.
    #[cfg(all(test, loom))]
    pub(super) fn take_bell_weakly(&self) -> bool {
        self.parts.words().armed.0.swap(0, Ordering::Relaxed) != 0
    }
}
