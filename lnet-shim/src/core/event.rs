//! What happened to a memory descriptor, and the promises about the order of such reports.
//!
//! * per descriptor, a handler never runs twice at once and sees events in order of `sequence`;
//! * SEND may come before or after REPLY or ACK of the same operation;
//! * an event with `unlinked` is the descriptor's last;
//! * nothing is promised about the order of different messages.

use super::MdHandle;
use crate::nid::{Nid, ProcessId};
use crate::wire::lnet::MsgType;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Target: a GET took bytes from this descriptor, and the REPLY has been sent.
    Get,
    /// Target: a PUT left bytes in this descriptor.
    Put,
    /// Initiator: the bytes of a GET have arrived.
    Reply,
    /// Initiator: the target has the bytes of a PUT.
    Ack,
    /// Initiator: the message has left; the memory may be reused. It says nothing about delivery.
    Send,
    /// The descriptor is gone.
    Unlink,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Well.
    Ok,
    /// No answer in time, or the descriptor was unlinked meanwhile.
    TimedOut,
    /// No way to the peer, or the peer refused the connection.
    Unreachable,
    /// A failure on this node.
    Local,
    /// The node was shut down.
    Shutdown,
}

impl Status {
    /// Whether it is [`Status::Ok`].
    pub fn is_ok(self) -> bool {
        self == Self::Ok
    }

    /// The negative errno an LNet kernel would show.
    pub fn errno(self) -> i32 {
        match self {
            Self::Ok => 0,
            Self::TimedOut => -110,
            Self::Unreachable => -113,
            Self::Local => -5,
            Self::Shutdown => -108,
        }
    }
}

/// A report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The target process of the operation.
    pub target: ProcessId,
    /// The initiator, by its primary NID.
    pub initiator: ProcessId,
    /// The NID the message really came from, or was sent from.
    pub source: Nid,
    /// The last hop.
    pub sender: Nid,
    /// The portal.
    pub portal: u32,
    /// The match bits of the message.
    pub match_bits: u64,
    /// Bytes asked for.
    pub rlength: u32,
    /// Bytes moved.
    pub mlength: u32,
    /// Where in the descriptor, bytes.
    pub offset: u64,
    /// The descriptor.
    pub md: MdHandle,
    /// What the owner attached to the descriptor.
    pub user: u64,
    /// What the initiator of a PUT attached to it.
    pub hdr_data: u64,
    /// The message this is about.
    pub msg_type: Option<MsgType>,
    /// How it ended.
    pub status: Status,
    /// Whether this is the descriptor's last event.
    pub unlinked: bool,
    /// Counts the events of a node.
    pub sequence: u64,
}
