//! What travels between ports of a world.

use crate::net::Place;
use kfab_core::auth::FabricKey;
use kfab_core::spi::{Body, DownReason, Frame, HEADER_LEN, Inline};
use kfab_core::{Error, mem::Slice};
use std::sync::Arc;

/// The body of a frame under way.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    Bytes(Arc<[u8]>),
    /// The sender's memory, shared until the frame arrives.
    Slices(Arc<[Slice]>),
}

impl Load {
    fn new(body: &Body<'_>) -> Load {
        match body {
            Body::Empty => Load::Bytes(Arc::from([])),
            Body::Borrowed(b) => Load::Bytes(Arc::from(*b)),
            Body::Owned(s) => Load::Slices(Arc::from(*s)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Load::Bytes(b) => b.len(),
            Load::Slices(s) => s.iter().map(Slice::len).sum(),
        }
    }

    /// A copy of its own; the sender's memory is let go.
    pub(crate) fn settle(&mut self) {
        if let Load::Slices(s) = self {
            let mut out = vec![0; s.iter().map(Slice::len).sum()];
            let mut at = 0;
            for slice in s.iter() {
                at += slice.copy_to(0, &mut out[at..]);
            }
            *self = Load::Bytes(out.into());
        }
    }

    /// The bytes of a settled load.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Load::Bytes(b) => b,
            Load::Slices(_) => &[],
        }
    }
}

/// A frame under way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) header: [u8; HEADER_LEN],
    pub(crate) inline: Inline,
    pub(crate) load: Load,
}

impl Packet {
    pub(crate) fn new(f: &Frame<'_>) -> Packet {
        Packet { header: f.header, inline: f.inline, load: Load::new(&f.body) }
    }

    /// Bytes that count for bandwidth.
    pub(crate) fn wire_len(&self) -> usize {
        HEADER_LEN + self.inline.as_slice().len() + self.load.len()
    }
}

/// A message between two ports.
#[derive(Clone, Debug)]
pub(crate) enum Msg {
    /// May I connect?
    Syn { key: Option<FabricKey> },
    /// You may; the sender's name is the flight's `from_conn`.
    Accept,
    /// You may not.
    Deny { reason: DownReason, why: &'static str },
    /// A frame.
    Data(Packet),
    /// Nothing more will come.
    Fin,
    /// The sender does not know this connection (any more).
    Reset { reason: DownReason },
    /// Are you still there? From a sender that waits for room at an end that may be gone.
    Probe,
    /// A one-sided operation arrives; its description stays with the initiator.
    RmaAsk { op: u64 },
    /// Its answer; the bytes of a read.
    RmaAnswer { op: u64, result: Result<Vec<u8>, Error> },
}

impl Msg {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Msg::Syn { .. } => "syn",
            Msg::Accept => "accept",
            Msg::Deny { .. } => "deny",
            Msg::Data(_) => "data",
            Msg::Fin => "fin",
            Msg::Reset { .. } => "reset",
            Msg::Probe => "probe",
            Msg::RmaAsk { .. } => "rma-ask",
            Msg::RmaAnswer { .. } => "rma-answer",
        }
    }

    /// Bytes that count for bandwidth.
    pub(crate) fn wire_len(&self) -> usize {
        match self {
            Msg::Data(p) => p.wire_len(),
            Msg::RmaAnswer { result: Ok(b), .. } => HEADER_LEN + b.len(),
            _ => HEADER_LEN,
        }
    }

    /// `true` for what keeps its order among its like (where the world promises order).
    pub(crate) fn is_stream(&self) -> bool {
        matches!(self, Msg::Accept | Msg::Data(_) | Msg::Fin | Msg::Probe | Msg::Reset { .. })
    }

    /// `true` for what is sent again below the port until it gets through or its connection ends.
    pub(crate) fn is_rma(&self) -> bool {
        matches!(self, Msg::RmaAsk { .. } | Msg::RmaAnswer { .. })
    }
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) from: Place,
    pub(crate) to: Place,
    /// The sender's connection.
    pub(crate) from_conn: u64,
    /// The receiver's; 0 where it is not known yet.
    pub(crate) to_conn: u64,
    /// When it first left.
    pub(crate) born: u64,
    /// `true` for the second copy of a frame: it frees no room at the sender.
    pub(crate) copy: bool,
    pub(crate) msg: Msg,
}
