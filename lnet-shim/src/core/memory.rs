//! Memory that a descriptor owns.
//!
//! A descriptor holds its memory by reference count, so no operation in flight can outlive it. Whoever implements
//! [`Memory`] decides what the bytes are: a shared vector, fragments of others, a registered buffer.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kfab::Buffer;

use crate::wire::MAX_PAYLOAD;

/// Bytes that can be read and written at an offset, from any thread.
///
/// Callers stay within `len()`; implementations may panic otherwise. Concurrent access to the same bytes may mix old and
/// new bytes but is never undefined.
pub trait Memory: Send + Sync {
    /// Length, bytes; never changes.
    fn len(&self) -> u64;
    /// Copies `out.len()` bytes out, from `offset`.
    fn read_at(&self, offset: u64, out: &mut [u8]);
    /// Copies `data` in, at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]);
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The NUMA node it is on, for the choice of an interface near it. `None`: unknown, and no interface is nearer than another.
    fn node(&self) -> Option<u32> {
        None
    }
    /// A share of `len` bytes at `offset`, for a network that sends from where they lie. `None`: they have to be copied.
    fn share(&self, offset: u64, len: usize) -> Option<Buffer> {
        let _ = (offset, len);
        None
    }
    /// Gives `len` bytes at `offset` away to be filled in place, until [`Memory::restore`]. `None`: what comes has to be copied
    /// in. What is read meanwhile is zeros.
    fn lend(&self, offset: u64, len: usize) -> Option<Buffer> {
        let _ = (offset, len);
        None
    }
    /// Takes back what [`Memory::lend`] gave. Never called if the filling failed: the bytes are zeros then.
    fn restore(&self, filled: Buffer) {
        let _ = filled;
    }
}

/// A buffer of bytes shared by reference count. Over kfab it is sent from where it lies, and filled where it lies by a message
/// of its whole length. Written while a message with it is on its way, it is copied first.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    /// `None` while lent.
    bytes: Arc<RwLock<Option<Buffer>>>,
    len: u64,
    node: Option<u32>,
}

impl SharedBytes {
    /// Takes `bytes` over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self::from_buffer(Buffer::adopt(bytes))
    }

    /// Takes a buffer over: one of a kfab endpoint's own spares its peers a copy.
    pub fn from_buffer(buffer: Buffer) -> Self {
        Self { len: buffer.len() as u64, bytes: Arc::new(RwLock::new(Some(buffer))), node: None }
    }

    /// Says on which NUMA node it is: whoever placed it knows.
    pub fn on_node(self, node: u32) -> Self {
        Self { node: Some(node), ..self }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.guard().as_ref().map_or_else(|| vec![0; self.len as usize], |b| b.to_vec())
    }

    /// All bytes without a copy; `None` while a message is filling them.
    pub fn buffer(&self) -> Option<Buffer> {
        self.guard().clone()
    }

    /// As the memory of a descriptor.
    pub fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(self.clone())
    }

    fn guard(&self) -> RwLockReadGuard<'_, Option<Buffer>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn guard_mut(&self) -> RwLockWriteGuard<'_, Option<Buffer>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for SharedBytes {
    fn len(&self) -> u64 {
        self.len
    }

    fn node(&self) -> Option<u32> {
        self.node
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) {
        let at = offset as usize;
        match &*self.guard() {
            Some(bytes) => out.copy_from_slice(&bytes[at..at + out.len()]),
            None => out.fill(0),
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) {
        let range = offset as usize..offset as usize + data.len();
        let mut slot = self.guard_mut();
        if let Some(bytes) = slot.as_mut().and_then(Buffer::get_mut) {
            return bytes[range].copy_from_slice(data);
        }
        // A message that is on its way has a share: it keeps what was sent.
        let mut copy = slot.as_ref().map_or_else(|| vec![0; self.len as usize], |b| b.to_vec());
        copy[range].copy_from_slice(data);
        *slot = Some(Buffer::adopt(copy));
    }

    fn share(&self, offset: u64, len: usize) -> Option<Buffer> {
        self.guard().as_ref().map(|b| b.slice(offset as usize..offset as usize + len))
    }

    fn lend(&self, offset: u64, len: usize) -> Option<Buffer> {
        let mut slot = self.guard_mut();
        let whole = offset == 0 && len as u64 == self.len;
        let sole = slot.as_mut().is_some_and(|b| b.get_mut().is_some());
        if whole && sole { slot.take() } else { None }
    }

    fn restore(&self, filled: Buffer) {
        if filled.len() as u64 == self.len {
            *self.guard_mut() = Some(filled);
        }
    }
}

/// Several pieces of other memories, one after another.
#[derive(Clone)]
pub struct Fragments {
    pieces: Vec<Piece>,
    len: u64,
}

#[derive(Clone)]
struct Piece {
    memory: Arc<dyn Memory>,
    offset: u64,
    len: u64,
}

impl Fragments {
    /// The most pieces one may have.
    pub const MAX: usize = 256;

    /// Pieces as (memory, offset, length). `None` if there are more than 256 or one reaches beyond its memory.
    pub fn new(pieces: Vec<(Arc<dyn Memory>, u64, u64)>) -> Option<Self> {
        let fits = |(m, at, len): &(Arc<dyn Memory>, u64, u64)| {
            at.checked_add(*len).is_some_and(|end| end <= m.len())
        };
        if pieces.len() > Self::MAX || !pieces.iter().all(fits) {
            return None;
        }
        let len = pieces.iter().map(|p| p.2).sum();
        let pieces = pieces.into_iter().map(|(memory, offset, len)| Piece { memory, offset, len }).collect();
        Some(Self { pieces, len })
    }

    /// Calls `f` with each (memory, offset in it, range of the caller's bytes) that `offset..offset + len` touches.
    fn walk(&self, mut offset: u64, len: usize, mut f: impl FnMut(&dyn Memory, u64, std::ops::Range<usize>)) {
        let mut done = 0;
        for piece in &self.pieces {
            if offset >= piece.len {
                offset -= piece.len;
                continue;
            }
            let take = ((piece.len - offset) as usize).min(len - done);
            f(piece.memory.as_ref(), piece.offset + offset, done..done + take);
            done += take;
            offset = 0;
            if done == len {
                return;
            }
        }
    }
}

impl Memory for Fragments {
    fn len(&self) -> u64 {
        self.len
    }

    /// That of the first piece.
    fn node(&self) -> Option<u32> {
        self.pieces.first().and_then(|p| p.memory.node())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) {
        self.walk(offset, out.len(), |m, at, range| m.read_at(at, &mut out[range]));
    }

    fn write_at(&self, offset: u64, data: &[u8]) {
        self.walk(offset, data.len(), |m, at, range| m.write_at(at, &data[range]));
    }
}

/// Bytes to be sent: part of a descriptor's memory, at most 1 MiB.
#[derive(Clone)]
pub struct Payload {
    memory: Option<Arc<dyn Memory>>,
    offset: u64,
    len: u32,
}

impl Payload {
    /// No bytes.
    pub const EMPTY: Payload = Payload { memory: None, offset: 0, len: 0 };

    pub(crate) fn new(memory: Arc<dyn Memory>, offset: u64, len: u32) -> Self {
        debug_assert!(len as usize <= MAX_PAYLOAD && offset + u64::from(len) <= memory.len());
        Self { memory: Some(memory), offset, len }
    }

    /// Length, bytes.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes where they lie, if their memory can be sent from.
    pub fn share(&self) -> Option<Buffer> {
        self.memory.as_ref()?.share(self.offset, self.len as usize)
    }

    /// Copies all bytes to `out`, which has their length.
    pub fn copy_to(&self, out: &mut [u8]) {
        if let Some(memory) = &self.memory {
            memory.read_at(self.offset, out);
        }
    }

    /// Appends all bytes to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        if let Some(memory) = &self.memory {
            let at = out.len();
            out.resize(at + self.len as usize, 0);
            memory.read_at(self.offset, &mut out[at..]);
        }
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.append_to(&mut out);
        out
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.len)
    }
}
