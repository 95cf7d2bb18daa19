//! Counters of a node and its interfaces.

use super::engine::Ni;
use crate::core::CoreCounters;
use crate::nid::Nid;
use crate::wire::lnet::MsgType;

/// Messages and bytes, by type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// PUTs.
    pub put: u64,
    /// GETs.
    pub get: u64,
    /// ACKs.
    pub ack: u64,
    /// REPLYs.
    pub reply: u64,
    /// Payload, bytes.
    pub bytes: u64,
}

impl Counts {
    pub(super) fn add(&mut self, kind: MsgType, bytes: u32) {
        match kind {
            MsgType::Put => self.put += 1,
            MsgType::Get => self.get += 1,
            MsgType::Ack => self.ack += 1,
            MsgType::Reply => self.reply += 1,
        }
        self.bytes += u64::from(bytes);
    }

    /// Messages of all types.
    pub fn total(&self) -> u64 {
        self.put + self.get + self.ack + self.reply
    }
}

/// Counters of a whole node.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct NodeStats {
    /// Sent.
    pub sent: Counts,
    /// Received.
    pub received: Counts,
    /// What matched nothing.
    pub core: CoreCounters,
    /// Dropped by fault rules, on arrival.
    pub fault_drops: u64,
    /// Sends that failed for good.
    pub send_failures: u64,
    /// Sends tried again.
    pub resends: u64,
    /// Answers that never came.
    pub response_timeouts: u64,
    /// Messages on their way or waiting now.
    pub messages: usize,
    /// The most there ever were.
    pub messages_max: usize,
}

/// An interface, ours or a peer's, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct NiInfo {
    /// Its NID.
    pub nid: Nid,
    /// `false` once it has failed so often that its health was 0, until that is 1000 again; of ours also while it has no link.
    pub up: bool,
    /// 0 to 1000.
    pub health: u32,
    /// Messages that may still be sent at once; below zero: how many wait.
    pub credits: i32,
    /// The lowest that ever was.
    pub min_credits: i32,
    /// All of them.
    pub max_credits: i32,
    /// Sent.
    pub sent: Counts,
    /// Received.
    pub received: Counts,
    /// Dropped on their way in: by a fault rule, for want of a match, not for us. Of a peer's interface: those it brought us; of a
    /// stranger, once it is known.
    pub dropped: Counts,
}

impl Ni {
    pub(super) fn info(&self) -> NiInfo {
        NiInfo {
            nid: self.config.nid,
            up: self.is_up(),
            health: self.health.value,
            credits: self.credits.left,
            min_credits: self.credits.min,
            max_credits: self.config.credits,
            sent: self.sent,
            received: self.received,
            dropped: self.dropped,
        }
    }
}
