//! HELLO: how two socklnd ends introduce themselves, in the sender's order.

use super::{ByteOrder, Reader, WireError, Writer};
use crate::nid::Nid;

/// First word of HELLO V2 to V4.
pub const MAGIC: u32 = 0x4572_6963;
/// The most obsolete IPs a HELLO may list.
pub const MAX_IPS: u32 = 16;

/// What a connection is for, from its sender's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConnType {
    /// Refused.
    None,
    /// One untyped connection for everything.
    Any,
    /// Small messages.
    Control,
    /// Large messages towards the sender; and acknowledgements from it.
    BulkIn,
    /// Large messages from the sender.
    BulkOut,
}

impl ConnType {
    fn to_u32(self) -> u32 {
        match self {
            Self::None => u32::MAX,
            Self::Any => 0,
            Self::Control => 1,
            Self::BulkIn => 2,
            Self::BulkOut => 3,
        }
    }

    fn from_u32(v: u32) -> Option<Self> {
        [Self::None, Self::Any, Self::Control, Self::BulkIn, Self::BulkOut]
            .into_iter()
            .find(|t| t.to_u32() == v)
    }

    /// The same connection as the other end sees it.
    pub fn inverted(self) -> Self {
        match self {
            Self::BulkIn => Self::BulkOut,
            Self::BulkOut => Self::BulkIn,
            other => other,
        }
    }
}

/// The protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// 8-byte NIDs, checksums.
    V2,
    /// 8-byte NIDs, keepalive, ranges of zero-copy acks.
    V3,
    /// 20-byte NIDs.
    V4,
}

impl Version {
    /// The number that travels.
    pub fn number(self) -> u32 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
            Self::V4 => 4,
        }
    }

    /// The version of a number.
    pub fn from_number(v: u32) -> Option<Self> {
        [Self::V2, Self::V3, Self::V4].into_iter().find(|x| x.number() == v)
    }

    /// Bytes of a HELLO without IPs.
    pub fn hello_len(self) -> usize {
        if self == Self::V4 { 80 } else { 56 }
    }
}

/// An introduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The sender's order.
    pub order: ByteOrder,
    /// Which form.
    pub version: Version,
    /// Who sends.
    pub src_nid: Nid,
    /// Who is meant.
    pub dst_nid: Nid,
    /// The sender's process.
    pub src_pid: u32,
    /// The receiver's process; sent as 0.
    pub dst_pid: u32,
    /// Changes with each start of the sender.
    pub src_incarnation: u64,
    /// Sent as 0.
    pub dst_incarnation: u64,
    /// What for, as the sender sees it.
    pub conn_type: ConnType,
}

impl Hello {
    /// 56 bytes, or 80 in V4; no IPs.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new(self.order, 80);
        w.u32(MAGIC).u32(self.version.number());
        if self.version == Version::V4 {
            w.nid20(self.src_nid).nid20(self.dst_nid);
        } else {
            w.nid4(self.src_nid).nid4(self.dst_nid);
        }
        w.u32(self.src_pid).u32(self.dst_pid).u64(self.src_incarnation).u64(self.dst_incarnation);
        w.u32(self.conn_type.to_u32()).u32(0);
        w.finish()
    }

    /// Decodes from the front of `bytes`; also gives the length used, the obsolete IPs included. An unknown version is
    /// known as soon as eight bytes are there.
    pub fn decode(bytes: &[u8]) -> Result<(Self, usize), WireError> {
        let mut r = Reader::with_magic(bytes, MAGIC)?;
        let number = r.u32()?;
        let version = Version::from_number(number).ok_or(WireError::Version(number))?;
        let (src_nid, dst_nid) = match version {
            Version::V4 => (r.nid20()?, r.nid20()?),
            _ => (r.nid4()?, r.nid4()?),
        };
        let (src_pid, dst_pid) = (r.u32()?, r.u32()?);
        let (src_incarnation, dst_incarnation) = (r.u64()?, r.u64()?);
        let conn_type = r.u32()?;
        let ips = r.u32()?;
        if version != Version::V4 {
            Self::skip_ips(&mut r, ips)?;
        }
        let conn_type = ConnType::from_u32(conn_type).ok_or(WireError::Invalid("unknown connection type"))?;
        let order = r.order();
        let hello = Self {
            order,
            version,
            src_nid,
            dst_nid,
            src_pid,
            dst_pid,
            src_incarnation,
            dst_incarnation,
            conn_type,
        };
        Ok((hello, r.position()))
    }

    fn skip_ips(r: &mut Reader<'_>, ips: u32) -> Result<(), WireError> {
        if ips > MAX_IPS {
            return Err(WireError::Invalid("more than 16 IPs in HELLO"));
        }
        for _ in 0..ips {
            if r.u32()? == 0 {
                return Err(WireError::Invalid("a zero IP in HELLO"));
            }
        }
        Ok(())
    }
}
