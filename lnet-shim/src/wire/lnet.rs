//! The LNet header: 72 bytes with small NIDs, 96 with large ones, always little-endian.

use super::{ByteOrder, MAX_PAYLOAD, Reader, WireError, Writer};
use crate::nid::{Nid, ProcessId};

/// Bytes of the header with 8-byte NIDs.
pub const LEN_SMALL: usize = 72;
/// Bytes of the header with 20-byte NIDs.
pub const LEN_LARGE: usize = 96;

/// Which form a header has; a connection uses one throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderForm {
    /// 8-byte NIDs.
    Small,
    /// 20-byte NIDs.
    Large,
}

impl HeaderForm {
    /// Bytes of the header.
    pub fn header_len(self) -> usize {
        match self {
            Self::Small => LEN_SMALL,
            Self::Large => LEN_LARGE,
        }
    }
}

/// The creator's name for the memory that a REPLY or ACK belongs to; opaque to everyone else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WireHandle(pub [u8; 16]);

impl WireHandle {
    /// "No acknowledgement wanted".
    pub const NONE: WireHandle = WireHandle([0xff; 16]);

    /// Of the creator's two cookies.
    pub fn new(interface: u64, object: u64) -> Self {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&interface.to_le_bytes());
        raw[8..].copy_from_slice(&object.to_le_bytes());
        Self(raw)
    }

    /// The creator's two cookies.
    pub fn cookies(self) -> (u64, u64) {
        let half = |i: usize| self.0[i..i + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        (half(0), half(8))
    }
}

/// The four messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// Says that a PUT has arrived.
    Ack {
        /// From the PUT.
        handle: WireHandle,
        /// From the PUT.
        match_bits: u64,
        /// Bytes accepted.
        mlength: u32,
    },
    /// Payload for a portal.
    Put {
        /// For the ACK, or [`WireHandle::NONE`].
        handle: WireHandle,
        /// Which match entry.
        match_bits: u64,
        /// For the target's event.
        hdr_data: u64,
        /// Which portal.
        portal: u32,
        /// Where in the target's memory, if that is managed by the initiator.
        offset: u32,
    },
    /// A wish for payload from a portal.
    Get {
        /// For the REPLY.
        handle: WireHandle,
        /// Which match entry.
        match_bits: u64,
        /// Which portal.
        portal: u32,
        /// Where in the target's memory, if that is managed by the initiator.
        offset: u32,
        /// The most bytes wanted.
        sink_len: u32,
    },
    /// The payload a GET asked for.
    Reply {
        /// From the GET.
        handle: WireHandle,
    },
}

/// The kind of a message, without its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum MsgType {
    /// 0
    Ack,
    /// 1
    Put,
    /// 2
    Get,
    /// 3
    Reply,
}

impl Body {
    /// The kind.
    pub fn msg_type(&self) -> MsgType {
        match self {
            Self::Ack { .. } => MsgType::Ack,
            Self::Put { .. } => MsgType::Put,
            Self::Get { .. } => MsgType::Get,
            Self::Reply { .. } => MsgType::Reply,
        }
    }

    /// The portal, of messages that name one.
    pub fn portal(&self) -> Option<u32> {
        match self {
            Self::Put { portal, .. } | Self::Get { portal, .. } => Some(*portal),
            _ => None,
        }
    }
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LnetHeader {
    /// Receiver.
    pub dest: ProcessId,
    /// Sender.
    pub src: ProcessId,
    /// Bytes that follow.
    pub payload_len: u32,
    /// The message.
    pub body: Body,
}

impl LnetHeader {
    /// 72 or 96 bytes.
    pub fn encode(&self, form: HeaderForm) -> Vec<u8> {
        let mut w = Writer::new(ByteOrder::Little, LEN_LARGE);
        match form {
            HeaderForm::Small => w.nid4(self.dest.nid).nid4(self.src.nid),
            HeaderForm::Large => w.nid20(self.dest.nid).nid20(self.src.nid),
        };
        w.u32(self.dest.pid).u32(self.src.pid).u32(self.body.msg_type() as u32).u32(self.payload_len);
        match self.body {
            Body::Ack { handle, match_bits, mlength } => w.bytes(&handle.0).u64(match_bits).u32(mlength),
            Body::Put { handle, match_bits, hdr_data, portal, offset } => {
                w.bytes(&handle.0).u64(match_bits).u64(hdr_data).u32(portal).u32(offset)
            }
            Body::Get { handle, match_bits, portal, offset, sink_len } => {
                w.bytes(&handle.0).u64(match_bits).u32(portal).u32(offset).u32(sink_len)
            }
            Body::Reply { handle } => w.bytes(&handle.0),
        };
        w.pad_to(form.header_len());
        w.finish()
    }

    /// Decodes the first 72 or 96 bytes and checks the rules on type and payload, whose violation ends the connection.
    pub fn decode(bytes: &[u8], form: HeaderForm) -> Result<Self, WireError> {
        if bytes.len() < form.header_len() {
            return Err(WireError::Truncated { need: form.header_len() });
        }
        let mut r = Reader::new(bytes, ByteOrder::Little);
        let (dest_nid, src_nid): (Nid, Nid) = match form {
            HeaderForm::Small => (r.nid4()?, r.nid4()?),
            HeaderForm::Large => (r.nid20()?, r.nid20()?),
        };
        let (dest_pid, src_pid, kind, payload_len) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let handle = WireHandle(r.array()?);
        let body = match kind {
            0 => Body::Ack { handle, match_bits: r.u64()?, mlength: r.u32()? },
            1 => {
                let (match_bits, hdr_data) = (r.u64()?, r.u64()?);
                Body::Put { handle, match_bits, hdr_data, portal: r.u32()?, offset: r.u32()? }
            }
            2 => {
                let match_bits = r.u64()?;
                Body::Get { handle, match_bits, portal: r.u32()?, offset: r.u32()?, sink_len: r.u32()? }
            }
            3 => Body::Reply { handle },
            _ => return Err(WireError::Invalid("unknown LNet message type")),
        };
        if matches!(body, Body::Ack { .. } | Body::Get { .. }) && payload_len != 0 {
            return Err(WireError::Invalid("ACK or GET with a payload"));
        }
        if payload_len as usize > MAX_PAYLOAD {
            return Err(WireError::Invalid("payload above 1 MiB"));
        }
        let dest = ProcessId { nid: dest_nid, pid: dest_pid };
        Ok(Self { dest, src: ProcessId { nid: src_nid, pid: src_pid }, payload_len, body })
    }
}
