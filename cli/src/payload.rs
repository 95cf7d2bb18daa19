//! The bytes of a measurement: a stamp that changes with every message and a pattern behind it, so that a transport that
//! delivers the wrong bytes, the wrong number of them or the wrong message is caught.
//!
//! Up to [`SMALL`] bytes go as a slice, which the fabric copies; more go from and into buffers of the endpoint's slab.

use kfab::{Buffer, Endpoint, Message, Op, Peer, Result};

/// The most bytes that are sent as a slice.
pub(crate) const SMALL: usize = 40;

const STAMP: usize = 8;

/// After so many bytes the pattern begins again.
const PERIOD: usize = 2048;

/// The pattern: compared by the piece, or the comparison would be what is measured.
static PATTERN: [u8; PERIOD] = {
    let (mut all, mut i) = ([0; PERIOD], 0);
    while i < PERIOD {
        all[i] = ((i * 31) >> 3) as u8 ^ i as u8;
        i += 1;
    }
    all
};

/// How much of the `n`th piece is stamp.
fn stamped(n: usize, piece: &[u8]) -> usize {
    if n == 0 { STAMP.min(piece.len()) } else { 0 }
}

/// Fills everything behind the stamp.
pub(crate) fn fill(bytes: &mut [u8]) {
    for (n, piece) in bytes.chunks_mut(PERIOD).enumerate() {
        let (from, to) = (stamped(n, piece), piece.len());
        piece[from..].copy_from_slice(&PATTERN[from..to]);
    }
}

/// Writes as much of the stamp as there is room for.
#[inline]
pub(crate) fn stamp(bytes: &mut [u8], n: u64) {
    match bytes.first_chunk_mut::<STAMP>() {
        Some(head) => *head = n.to_le_bytes(),
        None => {
            let len = bytes.len();
            bytes.copy_from_slice(&n.to_le_bytes()[..len]);
        }
    }
}

/// The stamp, as far as it is there.
#[inline]
pub(crate) fn stamp_of(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<STAMP>() {
        Some(head) => u64::from_le_bytes(*head),
        None => {
            let mut head = [0; STAMP];
            head[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(head)
        }
    }
}

/// What of stamp `n` survives in a message of `size` bytes.
#[inline]
pub(crate) fn cut(n: u64, size: usize) -> u64 {
    if size >= STAMP { n } else { n & ((1 << (8 * size)) - 1) }
}

/// `true` if everything behind the stamp is as [`fill`] made it.
pub(crate) fn is_intact(bytes: &[u8]) -> bool {
    bytes.chunks(PERIOD).enumerate().all(|(n, piece)| {
        let (from, to) = (stamped(n, piece), piece.len());
        piece[from..] == PATTERN[from..to]
    })
}

/// A message to send again and again.
pub(crate) enum Outgoing {
    Small([u8; SMALL], usize),
    Large(Buffer),
}

impl Outgoing {
    pub(crate) fn new(endpoint: &Endpoint, size: usize) -> Result<Outgoing> {
        if size <= SMALL {
            let mut bytes = [0; SMALL];
            fill(&mut bytes);
            return Ok(Outgoing::Small(bytes, size));
        }
        let mut buffer = endpoint.buffer(size)?;
        if let Some(bytes) = buffer.get_mut() {
            stamp(bytes, 0);
            fill(bytes);
        }
        Ok(Outgoing::Large(buffer))
    }

    /// Sets the stamp; `false` if an operation still owns the bytes, which then keep the old one.
    #[inline]
    pub(crate) fn stamp(&mut self, n: u64) -> bool {
        match self {
            Outgoing::Small(b, len) => {
                stamp(&mut b[..*len], n);
                true
            }
            Outgoing::Large(b) => match b.get_mut() {
                Some(bytes) => {
                    stamp(bytes, n);
                    true
                }
                None => false,
            },
        }
    }

    #[inline]
    pub(crate) fn send(&self, peer: &Peer) -> Op<()> {
        match self {
            Outgoing::Small(b, len) => peer.send(&b[..*len]),
            Outgoing::Large(b) => peer.send(b.clone()),
        }
    }
}

/// The places where messages of one size arrive, used over and over.
pub(crate) struct Incoming {
    size: usize,
    free: Vec<Buffer>,
}

impl Incoming {
    /// Places for `count` receives at a time.
    pub(crate) fn new(endpoint: &Endpoint, size: usize, count: usize) -> Result<Incoming> {
        let n = if size <= SMALL { 0 } else { count };
        let free = (0..n).map(|_| endpoint.buffer(size)).collect::<Result<_>>()?;
        Ok(Incoming { size, free })
    }

    #[inline]
    pub(crate) fn post(&mut self, endpoint: &Endpoint, from: &Peer) -> Op<Message> {
        let r = endpoint.recv_with().from(from);
        match self.free.pop() {
            Some(b) => r.into(b).post(),
            None => r.post(),
        }
    }

    /// Takes the place of a message back.
    #[inline]
    pub(crate) fn reuse(&mut self, m: Message) -> Result<()> {
        if self.size > SMALL {
            self.free.push(m.into_buffer()?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_byte_is_seen_at_every_place() {
        for size in [1, 7, 8, 9, 40, 100] {
            let mut b = vec![0; size];
            stamp(&mut b, 0x0102_0304_0506_0708);
            fill(&mut b);
            assert_eq!(stamp_of(&b), cut(0x0102_0304_0506_0708, size));
            assert!(is_intact(&b));
            for i in 0..size {
                b[i] ^= 1;
                assert!(
                    !is_intact(&b) || stamp_of(&b) != cut(0x0102_0304_0506_0708, size),
                    "byte {i} of {size}"
                );
                b[i] ^= 1;
            }
        }
    }
}
