//! Staging memory: a [`Stage`] holds bytes between the socket and the records, and owns memory only while it holds some.
//!
//! Called by `send` and `receive`. The buffers come from the port's [`StagePool`], so an idle connection costs none.

/// Bytes of one staging buffer: a whole sealed piece with its prefix and the rest of a record before it.
pub(crate) const STAGE_BYTES: usize = 68 << 10;

/// Free buffers that a port keeps.
const KEEP: usize = 16;

/// The free staging buffers of a port. Taking one never blocks and never fails short of the allocator.
#[derive(Default)]
pub(crate) struct StagePool {
    free: Vec<Vec<u8>>,
}

impl StagePool {
    fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| vec![0; STAGE_BYTES])
    }

    fn give(&mut self, buf: Vec<u8>) {
        if self.free.len() < KEEP && buf.len() == STAGE_BYTES {
            self.free.push(buf);
        }
    }
}

/// Bytes on their way, first in first out, in at most one buffer. `start..end` of the buffer is filled.
#[derive(Default)]
pub(crate) struct Stage {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Stage {
    /// Bytes held.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    /// `true` for none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The bytes held.
    #[inline]
    pub(crate) fn filled(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Bytes that fit behind those held.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        if self.buf.is_empty() { STAGE_BYTES } else { self.buf.len() - self.end }
    }

    /// The room itself, for a socket or a cipher to write into; then [`Stage::advance`].
    #[inline]
    pub(crate) fn space(&mut self, pool: &mut StagePool) -> &mut [u8] {
        if self.buf.is_empty() {
            self.buf = pool.take();
        }
        &mut self.buf[self.end..]
    }

    /// `n` bytes of the space were written.
    #[inline]
    pub(crate) fn advance(&mut self, n: usize) {
        self.end = (self.end + n).min(self.buf.len());
    }

    /// Adds what `write` puts into a stretch of the room, of at most `most` bytes; how much that was.
    #[inline]
    pub(crate) fn put(
        &mut self,
        most: usize,
        pool: &mut StagePool,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> usize {
        let space = self.space(pool);
        let most = most.min(space.len());
        let n = write(&mut space[..most]).min(most);
        self.end += n;
        n
    }

    /// Drops the first `n` bytes; the buffer stays until [`Stage::release`].
    #[inline]
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Moves the bytes to the front of the buffer.
    pub(crate) fn compact(&mut self) {
        if self.start > 0 {
            self.buf.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
    }

    /// Gives an empty buffer back.
    #[inline]
    pub(crate) fn release(&mut self, pool: &mut StagePool) {
        if self.is_empty() && !self.buf.is_empty() {
            pool.give(std::mem::take(&mut self.buf));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_memory_goes_back() {
        let (mut pool, mut s) = (StagePool::default(), Stage::default());
        let mut push = |s: &mut Stage, bytes: &[u8]| {
            s.put(bytes.len(), &mut pool, |room| {
                room.copy_from_slice(&bytes[..room.len()]);
                room.len()
            })
        };
        assert_eq!(push(&mut s, b"abcdef"), 6);
        s.consume(2);
        s.compact();
        assert_eq!((s.filled(), s.room()), (&b"cdef"[..], STAGE_BYTES - 4));
        let big = vec![1; STAGE_BYTES];
        assert_eq!(push(&mut s, &big), STAGE_BYTES - 4);
        assert_eq!(push(&mut s, b"x"), 0);
        s.release(&mut pool);
        assert!(pool.free.is_empty());
        s.consume(usize::MAX / 2);
        s.release(&mut pool);
        assert_eq!(pool.free.len(), 1);
    }
}
