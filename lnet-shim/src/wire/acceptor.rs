//! The acceptor request: the first bytes on every connection, in the sender's order.

use super::{ByteOrder, Reader, WireError, Writer};
use crate::nid::Nid;

/// First word of a request.
pub const MAGIC: u32 = 0xacce_7100;
/// First word of a request of the "unified" protocol that was announced and never came; also HELLO's.
pub const MAGIC_UNIFIED: u32 = 0x4572_6963;
/// Target NID in 8 bytes.
pub const V1: u32 = 1;
/// Target NID in 20 bytes.
pub const V2: u32 = 2;

/// A wish to be connected to one of the receiver's NIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The sender's order.
    pub order: ByteOrder,
    /// Which of the receiver's NIDs is wanted.
    pub target: Nid,
}

impl Request {
    /// 16 bytes for a small target, 28 for a large one.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new(self.order, 28);
        w.u32(MAGIC);
        if self.target.is_large() {
            w.u32(V2).nid20(self.target);
        } else {
            w.u32(V1).nid4(self.target);
        }
        w.finish()
    }

    /// Decodes from the front of `bytes`; also gives the length used. [`WireError::Version`], and [`WireError::Magic`] with
    /// [`MAGIC_UNIFIED`], are to be answered with [`version_answer`]; other errors with silence.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), WireError> {
        let mut r = match Reader::with_magic(bytes, MAGIC) {
            Err(WireError::Magic(m)) if m.swap_bytes() == MAGIC_UNIFIED => {
                Err(WireError::Magic(MAGIC_UNIFIED))
            }
            other => other,
        }?;
        let target = match r.u32()? {
            V1 => r.nid4()?,
            V2 => r.nid20()?,
            other => return Err(WireError::Version(other)),
        };
        Ok((Self { order: r.order(), target }, r.position()))
    }
}

/// What a receiver says to a version it does not know, before it closes.
pub fn version_answer(order: ByteOrder) -> Vec<u8> {
    let mut w = Writer::new(order, 16);
    w.u32(MAGIC).u32(V1).u64(0);
    w.finish()
}
