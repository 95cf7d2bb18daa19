//! Memory that a descriptor owns.
//!
//! A descriptor holds its memory by reference count, so no operation in flight can outlive it. Whoever implements
//! [`Memory`] decides what the bytes are: a shared vector, fragments of others, a registered buffer.

use std::fmt;
use std::sync::{Arc, RwLock};

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
}

/// A vector of bytes shared by reference count.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    bytes: Arc<RwLock<Vec<u8>>>,
    len: u64,
}

impl SharedBytes {
    /// Takes `bytes` over.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { len: bytes.len() as u64, bytes: Arc::new(RwLock::new(bytes)) }
    }

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.guard().clone()
    }

    /// As the memory of a descriptor.
    pub fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(self.clone())
    }

    fn guard(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Memory for SharedBytes {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) {
        let at = offset as usize;
        out.copy_from_slice(&self.guard()[at..at + out.len()]);
    }

    fn write_at(&self, offset: u64, data: &[u8]) {
        let at = offset as usize;
        let mut bytes = self.bytes.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        bytes[at..at + data.len()].copy_from_slice(data);
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
