//! Byte-exact encodings of what crosses a socket: acceptor request, HELLO, ksock header, LNet header, ping info, self-test.
//!
//! Called by the tcp network, the node and the self-test. Everything here is a pure function of bytes: no allocation
//! that a peer's length field could size beyond its own message, no panic on any input (tested by truncation at every length).
//! Three byte orders live in one stream; each type says whose it is.

pub mod acceptor;
pub mod hello;
pub mod ksock;
pub mod lnet;
pub mod lst;
pub mod ping;

use std::fmt;

use crate::error::{Error, ErrorKind};
use crate::nid::Nid;

/// The largest payload of one LNet message, bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The order of the bytes of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant first.
    Little,
    /// Most significant first.
    Big,
}

impl ByteOrder {
    /// The order in which `bytes` spell `magic`.
    pub fn of_magic(bytes: [u8; 4], magic: u32) -> Option<Self> {
        if u32::from_le_bytes(bytes) == magic {
            Some(Self::Little)
        } else if u32::from_be_bytes(bytes) == magic {
            Some(Self::Big)
        } else {
            None
        }
    }
}

/// Why bytes are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    /// More bytes are needed: at least this many in all.
    Truncated {
        /// Bytes needed in all, as far as known.
        need: usize,
    },
    /// The magic number is none we know.
    Magic(u32),
    /// The version is none we know.
    Version(u32),
    /// A rule of the protocol is broken.
    Invalid(&'static str),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need } => write!(f, "truncated: {need} bytes needed"),
            Self::Magic(m) => write!(f, "unknown magic {m:#010x}"),
            Self::Version(v) => write!(f, "unknown version {v}"),
            Self::Invalid(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for WireError {}

impl From<WireError> for Error {
    fn from(e: WireError) -> Self {
        Error::new(ErrorKind::Protocol, "decode", e.to_string())
    }
}

/// Takes numbers off the front of a byte slice; never reads past its end.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    all: &'a [u8],
    at: usize,
    order: ByteOrder,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(all: &'a [u8], order: ByteOrder) -> Self {
        Self { all, at: 0, order }
    }

    /// Reads a magic number and takes the order it was written in.
    pub(crate) fn with_magic(all: &'a [u8], magic: u32) -> Result<Self, WireError> {
        let mut reader = Self::new(all, ByteOrder::Little);
        let bytes = reader.array::<4>()?;
        reader.order =
            ByteOrder::of_magic(bytes, magic).ok_or(WireError::Magic(u32::from_le_bytes(bytes)))?;
        Ok(reader)
    }

    pub(crate) fn order(&self) -> ByteOrder {
        self.order
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let end = self.at.saturating_add(len);
        let bytes = self.all.get(self.at..end).ok_or(WireError::Truncated { need: end })?;
        self.at = end;
        Ok(bytes)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let bytes = self.all.get(self.at..).unwrap_or_default();
        self.at = self.all.len();
        bytes
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| WireError::Truncated { need: self.at })
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u32::from_le_bytes(bytes),
            ByteOrder::Big => u32::from_be_bytes(bytes),
        })
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Little => u64::from_le_bytes(bytes),
            ByteOrder::Big => u64::from_be_bytes(bytes),
        })
    }

    pub(crate) fn nid4(&mut self) -> Result<Nid, WireError> {
        Nid::from_nid4(self.u64()?).ok_or(WireError::Invalid("a NID with a non-zero top byte"))
    }

    pub(crate) fn nid20(&mut self) -> Result<Nid, WireError> {
        Nid::from_bytes(self.array()?).ok_or(WireError::Invalid("a NID of an unknown size"))
    }
}

/// Appends numbers to a byte vector.
#[derive(Debug)]
pub(crate) struct Writer {
    out: Vec<u8>,
    order: ByteOrder,
}

impl Writer {
    pub(crate) fn new(order: ByteOrder, capacity: usize) -> Self {
        Self { out: Vec::with_capacity(capacity), order }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, v: u8) -> &mut Self {
        self.bytes(&[v])
    }

    pub(crate) fn u32(&mut self, v: u32) -> &mut Self {
        match self.order {
            ByteOrder::Little => self.bytes(&v.to_le_bytes()),
            ByteOrder::Big => self.bytes(&v.to_be_bytes()),
        }
    }

    pub(crate) fn u64(&mut self, v: u64) -> &mut Self {
        match self.order {
            ByteOrder::Little => self.bytes(&v.to_le_bytes()),
            ByteOrder::Big => self.bytes(&v.to_be_bytes()),
        }
    }

    /// A NID as 8 bytes; one that does not fit is written as ANY (callers choose the form by the NID).
    pub(crate) fn nid4(&mut self, nid: Nid) -> &mut Self {
        self.u64(nid.to_nid4().unwrap_or(u64::MAX))
    }

    pub(crate) fn nid20(&mut self, nid: Nid) -> &mut Self {
        self.bytes(&nid.to_bytes())
    }

    /// Fills with zeroes up to `len` bytes in all.
    pub(crate) fn pad_to(&mut self, len: usize) -> &mut Self {
        if self.out.len() < len {
            self.out.resize(len, 0);
        }
        self
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }
}

#[cfg(test)]
mod tests;
