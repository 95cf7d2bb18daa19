//! The 24-byte header before every message of a session, in the sender's order.

use super::{ByteOrder, Reader, WireError, Writer};

/// Bytes of the header.
pub const LEN: usize = 24;
/// The cookie of a keepalive; data cookies start above it.
pub const COOKIE_KEEPALIVE: u64 = 1;

const TYPE_NOOP: u32 = 0xc0;
const TYPE_LNET: u32 = 0xc1;

/// What follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Noop,
    /// An LNet header and its payload.
    Lnet,
}

/// The header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KsockHeader {
    /// What follows.
    pub kind: Kind,
    /// 0 for none.
    pub checksum: u32,
    /// In LNET: acknowledge me. In NOOP: see [`KsockHeader::acked`].
    pub cookie0: u64,
    /// A zero-copy acknowledgement.
    pub cookie1: u64,
}

impl KsockHeader {
    /// A header without checksum.
    pub fn new(kind: Kind, cookie0: u64, cookie1: u64) -> Self {
        Self { kind, checksum: 0, cookie0, cookie1 }
    }

    /// Exactly 24 bytes.
    pub fn encode(&self, order: ByteOrder) -> Vec<u8> {
        let mut w = Writer::new(order, LEN);
        let kind = if self.kind == Kind::Noop { TYPE_NOOP } else { TYPE_LNET };
        w.u32(kind).u32(self.checksum).u64(self.cookie0).u64(self.cookie1);
        w.finish()
    }

    /// Decodes the first 24 bytes.
    pub fn decode(bytes: &[u8], order: ByteOrder) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes, order);
        let kind = match r.u32()? {
            TYPE_NOOP => Kind::Noop,
            TYPE_LNET => Kind::Lnet,
            _ => return Err(WireError::Invalid("unknown message type")),
        };
        Ok(Self { kind, checksum: r.u32()?, cookie0: r.u64()?, cookie1: r.u64()? })
    }

    /// The cookies this header acknowledges, as a list of inclusive ranges (at most two).
    pub fn acked(&self) -> Vec<(u64, u64)> {
        match (self.kind, self.cookie0, self.cookie1) {
            (_, _, 0) | (Kind::Noop, 0, COOKIE_KEEPALIVE) => Vec::new(),
            (Kind::Lnet, _, c1) | (Kind::Noop, 0, c1) => vec![(c1, c1)],
            (Kind::Noop, c0, c1) if c0 > c1 => vec![(c0, c0), (c1, c1)],
            (Kind::Noop, c0, c1) => vec![(c0, c1)],
        }
    }
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut c = i as u32;
        let mut k = 0;
        while k < 8 {
            c = if c & 1 != 0 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            k += 1;
        }
        table[i] = c;
        i += 1;
    }
    table
}

static CRC: [u32; 256] = crc_table();

/// Start value of the checksum.
pub const CRC_INIT: u32 = u32::MAX;

/// Adds `bytes` to the checksum: CRC-32 (IEEE, reflected) without final inversion.
pub fn crc32(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |c, b| CRC[usize::from((c as u8) ^ b)] ^ (c >> 8))
}
