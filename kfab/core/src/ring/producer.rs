//! The sending side of a ring.

use super::primitive::{Ordering, copy_in, light_barrier, release};
use super::shape::{Hostile, Parts};
use crate::spi::{Body, HEADER_LEN, INLINE_MAX, Inline};

/// Writes frames into a ring. One thread at a time.
#[derive(Debug)]
pub struct Producer {
    parts: Parts,
    /// The position of the next line and of the next byte of data.
    line: u32,
    data: u64,
    /// The consumer's counters as last read.
    freed_line: u32,
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
        Producer { parts, line: 0, data: 0, freed_line: 0, freed_data: 0 }
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

    #[inline(always)]
    fn commit(&mut self, header: u128, inline: &[u8], body_len: usize) {
        let line = self.parts.line(self.line);
        // SAFETY: live by `Parts::new`; the consumer has freed this line (`has_line`) and will not read it before the stamp; the
        // bytes are those of an `Inline`, or at most INLINE_MAX (`push_bytes`).
        unsafe { line.fill(header, inline, body_len as u32) };
        self.line = self.line.wrapping_add(1);
        // Release: whoever sees this stamp sees the line and the body.
        line.stamp.store(self.line, release());
    }

    /// `true` if a line is free.
    #[inline(always)]
    fn has_line(&mut self) -> Result<bool, Hostile> {
        if self.line.wrapping_sub(self.freed_line) < self.parts.shape.lines() {
            return Ok(true);
        }
        self.reread()?;
        Ok(self.line.wrapping_sub(self.freed_line) < self.parts.shape.lines())
    }

    /// Reads the consumer's counters again. They may not be ahead of what was produced, nor more than a ring behind.
    #[cold]
    #[inline(never)]
    fn reread(&mut self) -> Result<(), Hostile> {
        let consumed = &self.parts.words().consumed.0;
        // Acquire: the consumer's reads of what it freed come before our next writes there.
        let (line, data) = (consumed.lines.load(Ordering::Acquire), consumed.data.load(Ordering::Acquire));
        if self.line.wrapping_sub(line) > self.parts.shape.lines() {
            return Err(Hostile("the peer consumed lines that were not sent"));
        }
        if data > self.data || self.data - data > self.parts.shape.data {
            return Err(Hostile("the peer consumed data that was not sent"));
        }
        (self.freed_line, self.freed_data) = (line, data);
        Ok(())
    }

    /// Lines pushed so far (wrapping).
    #[inline(always)]
    pub fn lines_pushed(&self) -> u32 {
        self.line
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
        let lines = self.line.wrapping_sub(self.freed_line) <= shape.lines() / 2;
        Ok(lines && end - self.freed_data <= shape.data)
    }

    /// Asks to be rung when there is room again. Pass a heavy barrier, then look at [`Producer::has_room`] before sleeping.
    pub fn want_room(&self) {
        self.parts.words().wants_room.0.store(1, Ordering::Relaxed);
    }

    /// As if so many lines had passed already.
    #[cfg(all(test, not(loom)))]
    pub(super) fn start_at(&mut self, line: u32) {
        (self.line, self.freed_line) = (line, line);
    }

    /// [`Producer::take_bell`] without its barrier: what loom must find out.
    #[cfg(all(test, loom))]
    pub(super) fn take_bell_weakly(&self) -> bool {
        self.parts.words().armed.0.swap(0, Ordering::Relaxed) != 0
    }
}
