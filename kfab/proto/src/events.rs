//! The typed stream of what happens on a lane. Logs and metrics subscribe to it; the machine itself writes no text.

use crate::message::PeerId;
use std::collections::VecDeque;

/// Something an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FabricEvent {
    /// A peer can be reached: for the first time, or again.
    PeerUp {
        /// Which.
        peer: PeerId,
        /// By which way, as text.
        via: String,
        /// A better way exists but did not work; what was tried.
        fallback: Option<String>,
    },
    /// A peer is lost; every operation with it has ended.
    PeerLost {
        /// Which.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// Another incarnation answers at a peer's address.
    PeerRestarted {
        /// Which.
        peer: PeerId,
    },
    /// A connection to a peer is up.
    RailUp {
        /// To whom.
        peer: PeerId,
        /// The rail's number on this lane.
        rail: u32,
        /// Scheme and place.
        via: String,
    },
    /// A connection to a peer is gone.
    RailDown {
        /// To whom.
        peer: PeerId,
        /// The rail's number on this lane.
        rail: u32,
        /// Why.
        reason: String,
        /// Frames that were sent again over other rails.
        resent: usize,
    },
    /// Somebody broke the protocol or failed the handshake and was cut off.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// The stream: bounded; when nobody reads, the oldest go and are counted.
#[derive(Debug)]
pub(crate) struct Stream {
    queue: VecDeque<FabricEvent>,
    lost: u64,
}

const MAX: usize = 1024;

impl Stream {
    pub(crate) fn new() -> Stream {
        Stream { queue: VecDeque::new(), lost: 0 }
    }

    pub(crate) fn push(&mut self, e: FabricEvent) {
        tracing::event!(target: "kfab", tracing::Level::DEBUG, event = ?e);
        if let FabricEvent::PeerUp { via, fallback: Some(tried), .. } = &e {
            tracing::warn!(target: "kfab", "using {via}: {tried}");
        }
        if self.queue.len() == MAX {
            self.queue.pop_front();
            self.lost += 1;
        }
        self.queue.push_back(e);
    }

    pub(crate) fn drain(&mut self) -> (Vec<FabricEvent>, u64) {
        (self.queue.drain(..).collect(), std::mem::take(&mut self.lost))
    }
}
