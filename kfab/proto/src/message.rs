//! What users hand down and get up: payloads, messages, completions.

use crate::parts::Parts;
use kfab_core::mem::{Buffer, Slice};
use kfab_core::spi::Inline;
use std::fmt;
use std::num::NonZeroU64;

/// A peer, as one lane names it. Stale names (the peer is gone and its place taken) are recognised and refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}.{}", self.index, self.generation)
    }
}

/// An operation under way. Given back to the machine to ask for its end. One word that is never 0, so that a handle on an operation
/// fits two registers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(NonZeroU64);

impl OpId {
    /// Names no operation.
    pub const NOBODY: OpId = OpId(NonZeroU64::MAX);

    /// The slot's number and its generation, from 1 on.
    #[inline(always)]
    pub(crate) fn new(index: u32, generation: u32) -> OpId {
        OpId::from_bits(u64::from(index) | u64::from(generation) << 32)
    }

    #[inline(always)]
    pub(crate) fn index(self) -> usize {
        self.0.get() as u32 as usize
    }

    #[inline(always)]
    pub(crate) fn generation(self) -> u32 {
        (self.0.get() >> 32) as u32
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0.get()
    }

    /// A name that a peer gives back. 0 names nobody, as the last slot does, which is never used.
    #[inline(always)]
    pub(crate) fn from_bits(b: u64) -> OpId {
        OpId(NonZeroU64::new(b).unwrap_or(OpId::NOBODY.0))
    }
}

impl fmt::Debug for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "op {}.{}", self.index(), self.generation())
    }
}

/// Bytes on their way down.
#[derive(Debug)]
pub enum Payload<'a> {
    /// Copied before the call returns.
    Bytes(&'a [u8]),
    /// Sent from where it lies; owned by the operation until it ends.
    Buffer(Buffer),
    /// Several, sent one after the other as one message.
    Buffers(Vec<Buffer>),
}

impl Payload<'_> {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        match self {
            Payload::Bytes(b) => b.len(),
            Payload::Buffer(b) => b.len(),
            Payload::Buffers(v) => v.iter().map(Buffer::len).sum(),
        }
    }

    /// `true` for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(b: &'a [u8]) -> Self {
        Payload::Bytes(b)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Payload<'a> {
    fn from(b: &'a [u8; N]) -> Self {
        Payload::Bytes(b)
    }
}

impl<'a> From<&'a str> for Payload<'a> {
    fn from(s: &'a str) -> Self {
        Payload::Bytes(s.as_bytes())
    }
}

impl From<Buffer> for Payload<'_> {
    fn from(b: Buffer) -> Self {
        Payload::Buffer(b)
    }
}

impl From<Vec<Buffer>> for Payload<'_> {
    fn from(v: Vec<Buffer>) -> Self {
        Payload::Buffers(v)
    }
}

/// Bytes owned by an operation or a waiting frame.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Empty,
    One(Slice),
    Many(Box<[Slice]>),
}

impl Source {
    pub(crate) fn slices(&self) -> &[Slice] {
        match self {
            Source::Empty => &[],
            Source::One(s) => std::slice::from_ref(s),
            Source::Many(v) => v,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slices().iter().map(Slice::len).sum()
    }

    /// Bytes `at..at + len`; shorter at the end.
    pub(crate) fn range(&self, mut at: usize, mut len: usize) -> Source {
        let mut parts = Vec::new();
        for s in self.slices() {
            if at >= s.len() {
                at -= s.len();
                continue;
            }
            let n = len.min(s.len() - at);
            parts.extend(s.part(at, n));
            (at, len) = (0, len - n);
            if len == 0 {
                break;
            }
        }
        match parts.len() {
            0 => Source::Empty,
            1 => Source::One(parts.remove(0)),
            _ => Source::Many(parts.into_boxed_slice()),
        }
    }
}

/// The bytes of a received message: in the message itself if they are few, else in a buffer.
#[derive(Clone, Debug)]
pub enum Data {
    /// At most [`kfab_core::spi::INLINE_MAX`] bytes.
    Inline(Inline),
    /// The first `len` bytes of a buffer: the one given to the receive, or a fresh one.
    Buffer {
        /// The buffer, in its full length.
        buffer: Buffer,
        /// Bytes of the message.
        len: usize,
    },
}

/// A received message.
#[derive(Clone, Debug)]
pub struct Message {
    /// Who sent it.
    pub from: PeerId,
    /// The tag, of a tagged message.
    pub tag: Option<u64>,
    /// The bytes.
    pub data: Data,
    /// Which message of its lane it was when it came: what is given back finds its place by it.
    pub nth: u64,
}

impl Message {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Inline(i) => i.as_slice(),
            Data::Buffer { buffer, len } => &buffer[..*len],
        }
    }
}

/// A message that has arrived and waits for a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Who sent it.
    pub from: PeerId,
    /// The tag, of a tagged message.
    pub tag: Option<u64>,
    /// Its length in bytes.
    pub len: u64,
}

/// Which messages a receive accepts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Want {
    /// `Some((tag, ignore))`: tagged messages whose tag equals `tag` in every bit that is 0 in `ignore`. `None`: untagged ones.
    pub tag: Option<(u64, u64)>,
    /// Only from this peer.
    pub from: Option<PeerId>,
}

impl Want {
    /// Any untagged message.
    pub(crate) const ANY: Want = Want { tag: None, from: None };

    #[inline]
    pub(crate) fn accepts(&self, from: PeerId, tag: Option<u64>) -> bool {
        let tag_fits = match (self.tag, tag) {
            (None, None) => true,
            (Some((want, ignore)), Some(t)) => (want ^ t) & !ignore == 0,
            _ => false,
        };
        tag_fits && self.from.is_none_or(|f| f == from)
    }
}

/// How a send behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    /// Send with this tag.
    pub tag: Option<u64>,
    /// Deliver after everything sent to this peer before. Costs the receiver waiting when rails reorder.
    pub ordered: bool,
    /// End when the peer's fabric has it, not when the memory is free again. Costs a round trip, and the time until the peer polls or its
    /// helper does.
    pub delivered: bool,
}

/// How an operation ended well.
#[derive(Debug)]
pub enum Outcome {
    /// Nothing to hand over: a send or write.
    Unit,
    /// A received message.
    Message(Message),
    /// A received message in several buffers.
    Parts(Parts),
    /// The buffer of a read, filled.
    Buffer(Buffer),
    /// The buffers of a read, filled.
    Buffers(Vec<Buffer>),
    /// A window's owner is told of an access.
    Notice(crate::Notice),
}

/// What starting an operation gives.
#[derive(Debug)]
pub enum Started {
    /// It has ended already.
    Done(Outcome),
    /// It will end; ask for it by this name.
    Pending(OpId),
}
