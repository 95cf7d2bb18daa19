//! Records on their way out: many small ones make one packet, a large payload goes with a packet of its own.

use super::body::Body;
use super::wire::{CallHead, HEAD, Head, Kind, ReplyHead};
use kfab::Buffer;

/// Records of a packet before it leaves by itself.
pub(crate) const RECORDS_MAX: u16 = 16;
/// Bytes of a packet before it leaves by itself.
const BYTES_MAX: usize = 3072;
/// Packets are filled up to whole cache lines: a copy that ends within one loads across two that are both still on their way from the
/// other processor (over shm 112 bytes take 460 ns one way, 128 take 410).
const LINE: usize = 64;
/// Payloads from this size on are not copied into a packet.
pub(crate) const COPY_MAX: usize = 2048;

/// A packet, ready to leave.
pub(crate) enum Packet<'a> {
    /// These bytes.
    Whole(&'a [u8]),
    /// These bytes, and behind them the buffer.
    Tailed(&'a [u8], Buffer),
}

/// A packet in the making. `kind` and the ids are the same for all its records.
#[derive(Debug)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    count: u16,
    kind: Kind,
}

impl Outbox {
    pub(crate) fn new(kind: Kind) -> Outbox {
        Outbox { bytes: vec![0; HEAD], count: 0, kind }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// It should leave now.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.count >= RECORDS_MAX || self.bytes.len() >= BYTES_MAX
    }

    /// Adds a call. `false`: its payload is so large that it needs a packet of its own, see [`tailed`].
    #[inline]
    pub(crate) fn call(&mut self, head: &CallHead, extension: &[u8], payload: &[u8]) {
        self.bytes.extend_from_slice(&head.encode());
        self.bytes.extend_from_slice(extension);
        self.bytes.extend_from_slice(payload);
        self.count += 1;
    }

    /// Adds a reply.
    #[inline]
    pub(crate) fn reply(&mut self, head: &ReplyHead, payload: &[u8]) {
        self.bytes.extend_from_slice(&head.encode());
        self.bytes.extend_from_slice(payload);
        self.count += 1;
    }

    /// The packet, and begins the next.
    #[inline]
    pub(crate) fn take<R>(&mut self, client: u64, session: u64, send: impl FnOnce(Packet<'_>) -> R) -> R {
        let head = Head { kind: self.kind, count: self.count, client, session };
        self.bytes[..HEAD].copy_from_slice(&head.encode());
        self.bytes.resize(self.bytes.len().next_multiple_of(LINE), 0);
        let r = send(Packet::Whole(&self.bytes));
        self.bytes.truncate(HEAD);
        self.count = 0;
        r
    }

    /// Drops what is in it.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(HEAD);
        self.count = 0;
    }
}

/// A packet of one record with a payload that is not copied.
pub(crate) fn tailed<R>(
    head: &Head,
    record: &[u8],
    extension: &[u8],
    body: &Body,
    send: impl FnOnce(Packet<'_>) -> R,
) -> R {
    let bytes = [&head.encode()[..], record, extension].concat();
    send(Packet::Tailed(&bytes, body.clone().into_buffer()))
}
