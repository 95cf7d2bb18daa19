//! How a ring lies in memory, and the arithmetic that both sides share.

#[cfg(not(loom))]
use super::primitive::copy_small;
use super::primitive::{AtomicU32, AtomicU64, BLOCK, Block, Cell};
use crate::spi::{HEADER_LEN, INLINE_MAX};
use std::ptr::NonNull;

/// The other side wrote what cannot be true: the connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hostile(
    /// What was found.
    pub &'static str,
);

/// Bytes of a frame that has half a line.
pub(super) const FEW: usize = 8;

/// What a half holds beside its stamp. A frame that has the whole line goes on with its bytes over the other half.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Rest {
    /// Length of the bytes in the low 7 bits, [`HALF`] or not, the body's length above.
    pub(super) lens: u32,
    pub(super) header: [u8; HEADER_LEN],
    pub(super) bytes: [u8; FEW],
    /// What the real one writes over the stamp and everything.
    #[cfg(loom)]
    pub(super) over: [u8; INLINE_MAX - FEW],
}

impl Rest {
    #[cfg(loom)]
    pub(super) const ZERO: Rest =
        Rest { lens: 0, header: [0; HEADER_LEN], bytes: [0; FEW], over: [0; INLINE_MAX - FEW] };
}

/// In [`Rest::lens`]: the frame has half a line, and at most [`FEW`] bytes.
pub(super) const HALF: u32 = 0x80;
/// The lens of a second half that holds nothing, because the frame after it takes a whole line.
pub(super) const SKIPPED: u32 = 0xff;

/// Half a line: the stamp of its position, and a frame of few bytes.
#[derive(Debug)]
#[repr(C, align(32))]
pub(super) struct Half {
    pub(super) stamp: AtomicU32,
    pub(super) rest: Cell<Rest>,
}

impl Half {
    /// Writes everything but the stamp. What lies behind the bytes stays as it was.
    ///
    /// # Safety
    /// The half is live, and it is this side's turn to write it; at most [`FEW`] bytes.
    #[inline(always)]
    pub(super) unsafe fn fill(&self, header: u128, bytes: &[u8], lens: u32) {
        debug_assert!(bytes.len() <= FEW);
        #[cfg(not(loom))]
        // SAFETY: live and this side's turn by the caller's word; the fields lie inside the cell, the bytes fit by that word too.
        unsafe {
            let p = self.rest.as_ptr();
            (&raw mut (*p).lens).write(lens);
            (&raw mut (*p).header).cast::<u128>().write_unaligned(header.to_le());
            copy_small(bytes, (&raw mut (*p).bytes).cast());
        }
        #[cfg(loom)]
        // SAFETY: by the caller's word.
        unsafe {
            let mut rest = Rest { lens, header: header.to_le_bytes(), ..Rest::ZERO };
            rest.bytes[..bytes.len()].copy_from_slice(bytes);
            self.rest.set(rest);
        }
    }

    /// Reads what [`Half::fill`] wrote, each word once: lens (unchecked), header, bytes.
    ///
    /// # Safety
    /// The half lies in live, initialised memory.
    #[inline(always)]
    pub(super) unsafe fn read(&self) -> (u32, [u64; 2], u64) {
        #[cfg(not(loom))]
        // SAFETY: live and initialised by the caller's word. A half is 32-aligned and `rest` lies 4 bytes in, so header and bytes are
        // aligned to 8 (asserted below). Volatile: each word is read once, whatever the other process does meanwhile.
        unsafe {
            let p = self.rest.as_ptr().cast_const();
            let header = (&raw const (*p).header).cast::<u64>();
            let lens = (&raw const (*p).lens).read_volatile();
            let bytes = (&raw const (*p).bytes).cast::<u64>().read_volatile();
            (lens, [header.read_volatile(), header.add(1).read_volatile()], bytes)
        }
        #[cfg(loom)]
        {
            // SAFETY: by the caller's word.
            let rest = unsafe { self.rest.get() };
            (rest.lens, [word(&rest.header, 0), word(&rest.header, 1)], word(&rest.bytes, 0))
        }
    }
}

#[cfg(loom)]
fn word(b: &[u8], i: usize) -> u64 {
    u64::from_ne_bytes(std::array::from_fn(|n| b[i * 8 + n]))
}

/// A cache line: two frames of few bytes, or one of more. All zeros is an empty line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Line {
    pub(super) halves: [Half; 2],
}

impl Line {
    /// The stamp of the whole line.
    #[inline(always)]
    pub(super) fn stamp(&self) -> &AtomicU32 {
        &self.halves[0].stamp
    }

    /// Writes everything but the stamp: a header, few bytes, and a number of 24 bits where a body's length would be. What lies
    /// behind the bytes stays as it was.
    ///
    /// # Safety
    /// The line is live, and it is this side's turn to write it; at most `INLINE_MAX` bytes.
    #[inline(always)]
    pub(super) unsafe fn fill(&self, header: u128, bytes: &[u8], number: u32) {
        debug_assert!(bytes.len() <= INLINE_MAX && number < 1 << 24);
        let lens = bytes.len() as u32 | number << 8;
        #[cfg(not(loom))]
        // SAFETY: live and this side's turn by the caller's word. The pointer is that of the whole line, which is atomics and cells:
        // open to change everywhere. The other half's stamp is looked at only after frames of half a line, which set it anew. The
        // bytes end with the line at the latest, by the caller's word.
        unsafe {
            let p = (&raw const *self).cast_mut().cast::<u8>().add(std::mem::offset_of!(Half, rest));
            p.cast::<u32>().write(lens);
            p.add(std::mem::offset_of!(Rest, header)).cast::<u128>().write_unaligned(header.to_le());
            copy_small(bytes, p.add(std::mem::offset_of!(Rest, bytes)));
        }
        #[cfg(loom)]
        // SAFETY: by the caller's word.
        unsafe {
            let mut all = [0; INLINE_MAX];
            all[..bytes.len()].copy_from_slice(bytes);
            let (mut rest, mut other) =
                (Rest { lens, header: header.to_le_bytes(), ..Rest::ZERO }, Rest::ZERO);
            rest.bytes.copy_from_slice(&all[..FEW]);
            other.over.copy_from_slice(&all[FEW..]);
            self.halves[0].rest.set(rest);
            self.halves[1].rest.set(other);
        }
    }

    /// Reads what [`Line::fill`] wrote, each word once: the bytes' length as found (unchecked), header, bytes in whole words.
    ///
    /// # Safety
    /// As for [`Half::read`].
    #[inline(always)]
    pub(super) unsafe fn read(&self) -> (u32, [u64; 2], [u64; INLINE_MAX / 8]) {
        // SAFETY: by the caller's word.
        let (lens, header, first) = unsafe { self.halves[0].read() };
        let mut words = [first; INLINE_MAX / 8];
        #[cfg(not(loom))]
        // SAFETY: the second half is live and initialised by the caller's word, and aligned to 8; the pointer is that of the whole
        // line (see `fill`). Volatile as in `Half::read`.
        unsafe {
            let over = (&raw const *self).cast::<u64>().add(size_of::<Half>() / 8);
            for (i, w) in words[1..].iter_mut().enumerate() {
                *w = over.add(i).read_volatile();
            }
        }
        #[cfg(loom)]
        {
            // SAFETY: by the caller's word.
            let rest = unsafe { self.halves[1].rest.get() };
            for (i, w) in words[1..].iter_mut().enumerate() {
                *w = word(&rest.over, i);
            }
        }
        (lens, header, words)
    }
}

/// A value with two cache lines to itself (the neighbour is fetched along on x86).
#[derive(Debug)]
#[repr(C, align(128))]
pub(super) struct Padded<T>(pub(super) T);

/// The consumer's counters. Written by the consumer only.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Consumed {
    pub(super) halves: AtomicU32,
    pub(super) data: AtomicU64,
}

/// The words that producer and consumer share. All zeros is an empty ring with nobody asleep.
#[derive(Debug)]
#[repr(C)]
pub struct Words {
    pub(super) consumed: Padded<Consumed>,
    /// Not 0: the consumer does not look; ring its bell after a push.
    pub(super) armed: Padded<AtomicU32>,
    /// Not 0: the producer waits for room; ring its bell after consuming.
    pub(super) wants_room: Padded<AtomicU32>,
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Line>() == 64 && size_of::<Half>() == 32 && size_of::<Rest>() == 28);
    assert!(
        (4 + std::mem::offset_of!(Rest, header)) % 8 == 0 && (4 + std::mem::offset_of!(Rest, bytes)) % 8 == 0
    );
    assert!(size_of::<Words>() == Shape::WORDS_BYTES && align_of::<Words>() == 128);
    assert!(size_of::<Block>() == BLOCK);
};

/// How many lines and how many bytes of data a ring has. Both sides must agree on it beforehand; it never comes from memory
/// that the other can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    lines: u32,
    pub(super) data: u64,
    max_body: u32,
}

impl Shape {
    /// Bytes of [`Words`].
    pub const WORDS_BYTES: usize = 384;

    /// A shape; `None` unless `lines` and `data` are powers of two, `lines` at least 2 and at most 2^23, `data` from 64 to
    /// 2^30, and `max_body` at most half of `data` (so that a body fits wherever the end of the ring is) and below 2^24.
    pub const fn new(lines: u32, data: usize, max_body: usize) -> Option<Shape> {
        let lines_ok = lines.is_power_of_two() && lines >= 2 && lines <= 1 << 23;
        let data_ok = data.is_power_of_two() && data >= BLOCK && data <= 1 << 30;
        if lines_ok && data_ok && max_body <= data / 2 && max_body < 1 << 24 {
            Some(Shape { lines, data: data as u64, max_body: max_body as u32 })
        } else {
            None
        }
    }

    /// Bytes of the lines.
    pub const fn lines_bytes(&self) -> usize {
        self.lines as usize * 64
    }

    /// Bytes of the data ring.
    pub const fn data_bytes(&self) -> usize {
        self.data as usize
    }

    /// Lines.
    pub const fn lines(&self) -> u32 {
        self.lines
    }

    /// The largest body.
    pub const fn max_body(&self) -> usize {
        self.max_body as usize
    }

    /// Where a body of `len` bytes goes when the ring stands at `at`: its first byte's position, and the position after it.
    #[inline(always)]
    pub(super) fn place(&self, at: u64, len: usize) -> (u64, u64) {
        let size = (len as u64).next_multiple_of(BLOCK as u64);
        let room = self.data - (at & (self.data - 1));
        let start = if size > room { at + room } else { at };
        (start, start + size)
    }

    /// The byte of the data ring at a position.
    #[inline(always)]
    pub(super) fn byte(&self, at: u64) -> usize {
        (at & (self.data - 1)) as usize
    }

    /// Halves of lines: what positions count.
    #[inline(always)]
    pub(super) fn halves(&self) -> u32 {
        2 * self.lines
    }
}

/// Where the parts of a ring lie in this process.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    pub(super) words: NonNull<Words>,
    pub(super) lines: NonNull<Line>,
    pub(super) data: NonNull<Block>,
    pub(super) shape: Shape,
}

impl Parts {
    /// Names the parts of a ring.
    ///
    /// # Safety
    /// While any [`Producer`](super::Producer) or [`Consumer`](super::Consumer) made from this lives: `words` points to
    /// [`Shape::WORDS_BYTES`] bytes aligned to 128, `lines` to `shape.lines_bytes()` bytes aligned to 64, `data` to
    /// `shape.data_bytes()` bytes aligned to 64, all mapped readable and writable, initialised (zeroed pages are), not
    /// overlapping, and accessed in this process by rings only. At most one producer and one consumer, in this process or
    /// another, follow the protocol; whatever else writes there is not of this process.
    pub unsafe fn new(words: NonNull<u8>, lines: NonNull<u8>, data: NonNull<u8>, shape: Shape) -> Parts {
        Parts { words: words.cast(), lines: lines.cast(), data: data.cast(), shape }
    }

    #[inline(always)]
    pub(super) fn words(&self) -> &Words {
        // SAFETY: `new` promises live, aligned, initialised memory; `Words` holds nothing but atomics, so a shared reference
        // to it stands whatever the other process writes.
        unsafe { self.words.as_ref() }
    }

    /// The line that a position is in. It holds atomics and cells, open to change from outside.
    #[inline(always)]
    pub(super) fn line(&self, at: u32) -> &Line {
        let i = (at >> 1 & (self.shape.lines - 1)) as usize;
        // SAFETY: `i` is below the number of lines; live, aligned and initialised by `new`; interior is atomics and
        // UnsafeCells, for which a shared reference claims nothing about the bytes.
        unsafe { &*self.lines.as_ptr().add(i) }
    }

    /// The half at a position.
    #[inline(always)]
    pub(super) fn half(&self, at: u32) -> &Half {
        // SAFETY: as in `line`: the position modulo the number of halves is inside. A line is its two halves and nothing else.
        unsafe { &*self.lines.as_ptr().cast::<Half>().add((at & (self.shape.halves() - 1)) as usize) }
    }
}
