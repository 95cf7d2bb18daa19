//! Blocks as their users see them: [`Buffer`] (bytes you can read, and write while you are the only owner), [`Slice`]
//! (a share lent to a transport to read from) and [`WindowMem`] (bytes that peers may write).

use super::block::{Block, BlockRef};
use super::region::{Access, Region};
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Owned, reference-counted bytes that the fabric can send from and receive into without a copy.
///
/// A clone shares the bytes; while there is more than one owner (an operation in flight is one) nobody may write them.
///
/// ```
/// use kfab_core::mem::Buffer;
/// let mut a = Buffer::adopt(vec![1, 2, 3, 4]);
/// a.get_mut().unwrap()[0] = 9;
/// let b = a.slice(1..3);
/// assert!(a.get_mut().is_none());
/// assert_eq!(&b[..], [2, 3]);
/// drop(b);
/// assert_eq!(a.into_vec().unwrap(), vec![9, 2, 3, 4]);
/// ```
#[derive(Clone, Debug)]
pub struct Buffer(Slice);

impl Buffer {
    pub(super) fn whole(block: BlockRef, len: usize) -> Buffer {
        Buffer(Slice { block, start: 0, len })
    }

    #[inline(always)]
    pub(super) fn from_slice(s: Slice) -> Buffer {
        debug_assert!(s.block.region().access() != Access::PeersWrite);
        Buffer(s)
    }

    /// Takes over a `Vec`. It is registered when first needed; transports that map slabs will copy it instead.
    pub fn adopt(v: Vec<u8>) -> Buffer {
        let len = v.len();
        let block = Block::new(Arc::new(Region::adopted(v)), 0, len, None);
        Buffer(Slice { block: BlockRef::new(Arc::new(block)), start: 0, len })
    }

    /// The adopted `Vec` back, if this is an adopted buffer with no other owner and never sliced; else the buffer itself.
    pub fn into_vec(self) -> Result<Vec<u8>, Buffer> {
        let whole = self.0.start == 0 && self.0.len == self.0.block.size();
        if !whole || self.0.block.region().fd().is_some() {
            return Err(self);
        }
        let len = self.0.len;
        let region = self.0.block.into_region().map_err(|block| Buffer(Slice { block, start: 0, len }))?;
        Ok(region.into_vec().expect("an adopted region"))
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// `true` for no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Shared access to a part. Panics if the range is outside the buffer, as slices do.
    pub fn slice(&self, range: Range<usize>) -> Buffer {
        assert!(
            range.start <= range.end && range.end <= self.0.len,
            "{range:?} of a buffer of {} bytes",
            self.0.len
        );
        Buffer(Slice {
            block: self.0.block.clone(),
            start: self.0.start + range.start,
            len: range.end - range.start,
        })
    }

    /// Cuts the buffer to its first `len` bytes; no effect if it is shorter.
    pub fn truncate(&mut self, len: usize) {
        self.0.len = self.0.len.min(len);
    }

    /// The bytes for writing; `None` while there is another owner.
    #[inline]
    pub fn get_mut(&mut self) -> Option<&mut [u8]> {
        if !self.0.block.is_only() {
            return None;
        }
        // SAFETY: this is the only owner of the block and `&mut self` its only user, so no other reference to these bytes
        // exists; peers can map the pages at most read-only (`PeersWrite` regions never become a Buffer); the pages are
        // initialised (memfd pages are zero, adopted ones a Vec's) and live as long as the block.
        Some(unsafe { std::slice::from_raw_parts_mut(self.0.block.at(self.0.start), self.0.len) })
    }

    /// A share of the whole for a transport to read from.
    #[inline]
    pub fn as_source(&self) -> Slice {
        self.0.clone()
    }

    /// The share that this buffer is, to look at.
    #[inline(always)]
    pub fn source(&self) -> &Slice {
        &self.0
    }

    /// The buffer itself as such a share.
    #[inline(always)]
    pub fn into_source(self) -> Slice {
        self.0
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: bytes of a Buffer are written only through `get_mut` (sole owner) or a `Landing`, which consumes the Buffer
        // it was made from; while `self` exists neither can. Peers cannot write the pages. Initialised as above.
        unsafe { std::slice::from_raw_parts(self.0.block.at(self.0.start), self.0.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(v: Vec<u8>) -> Buffer {
        Buffer::adopt(v)
    }
}

/// A share of a block that a transport reads from. Keeps the memory alive.
#[derive(Clone, Debug)]
pub struct Slice {
    pub(super) block: BlockRef,
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Slice {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `true` for no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The region it lies in.
    pub fn region(&self) -> &Arc<Region> {
        self.block.region()
    }

    /// Its first byte's offset in the region.
    pub fn offset(&self) -> usize {
        self.block.offset() + self.start
    }

    /// Its first byte. For transports with `unsafe` of their own.
    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.block.at(self.start)
    }

    /// A part of it; `None` if the range is outside.
    pub fn part(&self, start: usize, len: usize) -> Option<Slice> {
        let end = start.checked_add(len)?;
        (end <= self.len).then(|| Slice { block: self.block.clone(), start: self.start + start, len })
    }

    /// The bytes, where no peer can write them; `None` for window memory.
    pub fn bytes(&self) -> Option<&[u8]> {
        if self.block.region().access() == Access::PeersWrite {
            return None;
        }
        // SAFETY: a Slice of such a region is made from a Buffer (or window copy) whose bytes nobody may write while a share exists.
        Some(unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len) })
    }

    /// Copies from byte `at` on into `dst`; the number copied (the rest of the slice or of `dst`).
    pub fn copy_to(&self, at: usize, dst: &mut [u8]) -> usize {
        let n = dst.len().min(self.len.saturating_sub(at));
        // SAFETY: at + n <= len, so the source lies in the block; `dst` is a Rust reference and cannot overlap it unless it
        // is a reference to the same Buffer, which sharing forbids. A peer writing meanwhile tears the copy, no more.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr().add(at.min(self.len)), dst.as_mut_ptr(), n) };
        n
    }
}

/// Zeroed memory that peers may be given the right to write. Read and written by copies only: a copy that races with a peer's
/// write may be torn, as with any one-sided access; agree on an order with messages.
#[derive(Clone, Debug)]
pub struct WindowMem(pub(super) Slice);

impl WindowMem {
    pub(super) fn new(block: BlockRef, len: usize) -> WindowMem {
        WindowMem(Slice { block, start: 0, len })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// `true` for no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Copies bytes from `at` on into `dst`; the number copied.
    pub fn read(&self, at: usize, dst: &mut [u8]) -> usize {
        self.0.copy_to(at, dst)
    }

    /// Copies `src` to byte `at` on; the number copied (less than `src.len()` at the end of the window).
    pub fn write(&self, at: usize, src: &[u8]) -> usize {
        let n = src.len().min(self.0.len.saturating_sub(at));
        // SAFETY: at + n <= len, inside the block; no Rust reference to window memory is ever formed, so none is broken.
        unsafe {
            std::ptr::copy_nonoverlapping(src.as_ptr(), self.0.block.at(self.0.start + at.min(self.0.len)), n)
        };
        n
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        // SAFETY: the range is the block; no Rust reference to window memory is ever formed.
        unsafe { std::ptr::write_bytes(self.0.block.at(self.0.start), byte, self.0.len) };
    }

    /// A share for a transport to read from.
    pub fn as_source(&self) -> Slice {
        self.0.clone()
    }
}
