//! Ping info: what a node says about its interfaces, in the sender's order.

use super::{ByteOrder, Reader, WireError, Writer};
use crate::nid::{Lnd, Nid};

/// First word.
pub const MAGIC: u32 = 0x7069_6e67;
/// The match bits of pings and pushes on portal 0.
pub const MATCH_BITS: u64 = 0x8000_0000_0000_0000;
/// The most interfaces a ping info may list.
pub const MAX_INTERFACES: usize = 200;
/// Bytes of the header, and of one small entry.
pub const ENTRY_LEN: usize = 16;
/// Bytes of the smallest discovery sink: the header and sixteen entries, less one.
pub const DISCOVERY_SINK: usize = 272;

/// Interface status words are filled in. Mandatory.
pub const FEAT_NI_STATUS: u32 = 2;
/// The node does not route.
pub const FEAT_ROUTING_DISABLED: u32 = 4;
/// The node can be reached by any of its NIDs.
pub const FEAT_MULTI_RAIL: u32 = 8;
/// The node takes pushes.
pub const FEAT_DISCOVERY: u32 = 0x10;
/// Large entries follow the small ones.
pub const FEAT_LARGE_ADDR: u32 = 0x20;
/// The first large entry is the primary NID.
pub const FEAT_PRIMARY_LARGE: u32 = 0x40;
/// A metadata block follows the entries.
pub const FEAT_METADATA: u32 = 0x80;

/// An interface that works.
pub const STATUS_UP: u32 = 0x15aa_c0de;
/// An interface that does not.
pub const STATUS_DOWN: u32 = 0xdead_face;

/// One interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NiEntry {
    /// Its NID.
    pub nid: Nid,
    /// [`STATUS_UP`], [`STATUS_DOWN`] or 0.
    pub status: u32,
}

/// Extra data some networks give about one NID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// The 8-byte NID.
    pub nid4: u64,
    /// Its network's own data.
    pub data: [u8; 32],
}

/// What a node says about itself. The loopback entry is implied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PingInfo {
    /// FEAT bits.
    pub features: u32,
    /// The process.
    pub pid: u32,
    /// Counts changes of the list of interfaces.
    pub sequence: u32,
    /// Interfaces with four-byte addresses.
    pub small: Vec<NiEntry>,
    /// Interfaces with sixteen-byte addresses.
    pub large: Vec<NiEntry>,
    /// Extra data.
    pub metadata: Vec<Metadata>,
}

impl PingInfo {
    /// Encodes in `order`. The flags for large entries and metadata are set as the contents need them.
    pub fn encode(&self, order: ByteOrder) -> Vec<u8> {
        let mut features = self.features & !(FEAT_LARGE_ADDR | FEAT_METADATA);
        if !self.large.is_empty() {
            features |= FEAT_LARGE_ADDR;
        }
        if !self.metadata.is_empty() {
            features |= FEAT_METADATA;
        }
        let body = (self.small.len() + 2) * ENTRY_LEN + self.large.len() * 24;
        let mut w = Writer::new(order, body);
        w.u32(MAGIC).u32(features).u32(self.pid).u32(self.small.len() as u32 + 1);
        let size = if self.large.is_empty() { 0 } else { body as u32 };
        w.nid4(Nid::LO).u32(self.sequence).u32(size);
        for e in &self.small {
            w.nid4(e.nid).u32(e.status).u32(0);
        }
        for e in &self.large {
            w.u32(e.status).nid20(e.nid);
        }
        if !self.metadata.is_empty() || self.has_efa() {
            w.u32(self.metadata.len() as u32);
            for m in &self.metadata {
                w.u64(m.nid4).bytes(&m.data);
            }
        }
        w.finish()
    }

    /// Decodes a whole ping info. [`WireError::Truncated`] tells how large a buffer would have held it, as far as known.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::with_magic(bytes, MAGIC)?;
        let (features, pid, count) = (r.u32()?, r.u32()?, r.u32()? as usize);
        if features & FEAT_NI_STATUS == 0 {
            return Err(WireError::Invalid("ping info without NI_STATUS"));
        }
        if count == 0 || count > MAX_INTERFACES {
            return Err(WireError::Invalid("number of interfaces out of range"));
        }
        let small_end = (count + 1) * ENTRY_LEN;
        if bytes.len() < small_end {
            return Err(WireError::Truncated { need: small_end });
        }
        if r.nid4()? != Nid::LO {
            return Err(WireError::Invalid("first interface is not 0@lo"));
        }
        let (sequence, size) = (r.u32()?, r.u32()? as usize);
        let mut info =
            Self { features, pid, sequence, small: Vec::new(), large: Vec::new(), metadata: Vec::new() };
        for _ in 1..count {
            let (nid, status, _) = (r.nid4()?, r.u32()?, r.u32()?);
            info.small.push(NiEntry { nid, status });
        }
        if features & FEAT_LARGE_ADDR != 0 {
            info.decode_large(&mut r, size)?;
        }
        if features & FEAT_METADATA != 0 || info.has_efa() {
            info.decode_metadata(&mut r)?;
        }
        Ok(info)
    }

    fn decode_large(&mut self, r: &mut Reader<'_>, size: usize) -> Result<(), WireError> {
        while r.position() < size {
            if self.small.len() + self.large.len() >= MAX_INTERFACES {
                return Err(WireError::Invalid("too many interfaces"));
            }
            let truncated = |_| WireError::Truncated { need: size };
            let status = r.u32().map_err(truncated)?;
            let extra = r.u8().map_err(truncated)?;
            let rest = r.take(if extra == 12 { 19 } else { 7 }).map_err(truncated)?;
            let mut raw = [0; 20];
            raw[0] = extra;
            raw[1..1 + rest.len()].copy_from_slice(rest);
            let nid = Nid::from_bytes(raw).ok_or(WireError::Invalid("a NID of an unknown size"))?;
            self.large.push(NiEntry { nid, status });
        }
        Ok(())
    }

    fn decode_metadata(&mut self, r: &mut Reader<'_>) -> Result<(), WireError> {
        let count = r.u32()? as usize;
        if count > MAX_INTERFACES {
            return Err(WireError::Invalid("too much metadata"));
        }
        for _ in 0..count {
            self.metadata.push(Metadata { nid4: r.u64()?, data: r.array()? });
        }
        Ok(())
    }

    fn has_efa(&self) -> bool {
        self.small.iter().chain(&self.large).any(|e| e.nid.net().lnd == Lnd::EFA)
    }

    /// The NID that names the node.
    pub fn primary(&self) -> Option<Nid> {
        let large = self.large.first();
        let first = if self.features & FEAT_PRIMARY_LARGE != 0 { large } else { None };
        first.or(self.small.first()).or(large).map(|e| e.nid)
    }

    /// All interfaces, the primary first.
    pub fn entries(&self) -> Vec<NiEntry> {
        let primary = self.primary();
        let mut all: Vec<NiEntry> = self.small.iter().chain(&self.large).copied().collect();
        all.sort_by_key(|e| Some(e.nid) != primary);
        all
    }
}
