//! The typed stream of what happens on a lane. Logs (`tracing`), metrics and programs subscribe to it.

use crate::faults::FaultId;
use crate::machine::Machine;
use crate::message::PeerId;
use std::collections::VecDeque;
use std::sync::Arc;

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
    /// Sends to a peer wait for its credit. Said once a second at most for each peer.
    CreditStall {
        /// For whose.
        peer: PeerId,
        /// How often that was so, all in all.
        stalls: u64,
    },
    /// Frames to a peer are sent again, because they were not acknowledged in time or their rail broke. Said once a second at most for
    /// each peer.
    Resent {
        /// To whom.
        peer: PeerId,
        /// How many were, all in all.
        frames: u64,
    },
    /// A fault rule has struck a frame, or cut a connection: said the first time, and whenever the number of frames has doubled.
    FaultStruck {
        /// Which.
        rule: FaultId,
        /// The frame's receiver, or who the connection led to.
        peer: PeerId,
        /// How often it has struck.
        hits: u64,
    },
    /// Somebody broke the protocol or failed the handshake and was cut off.
    Rejected {
        /// Why.
        reason: String,
    },
}

impl FabricEvent {
    /// Its name, for labels of metrics and fields of logs.
    pub fn name(&self) -> &'static str {
        match self {
            FabricEvent::PeerUp { .. } => "peer_up",
            FabricEvent::PeerLost { .. } => "peer_lost",
            FabricEvent::PeerRestarted { .. } => "peer_restarted",
            FabricEvent::RailUp { .. } => "rail_up",
            FabricEvent::RailDown { .. } => "rail_down",
            FabricEvent::CreditStall { .. } => "credit_stall",
            FabricEvent::Resent { .. } => "resent",
            FabricEvent::FaultStruck { .. } => "fault_struck",
            FabricEvent::Rejected { .. } => "rejected",
        }
    }

    /// All names.
    pub const NAMES: [&str; 9] = [
        "peer_up",
        "peer_lost",
        "peer_restarted",
        "rail_up",
        "rail_down",
        "credit_stall",
        "resent",
        "fault_struck",
        "rejected",
    ];

    /// To whatever `tracing` subscriber the program has, target `kfab`.
    fn trace(&self) {
        let event = self.name();
        match self {
            FabricEvent::PeerUp { peer, via, fallback: None } => {
                tracing::info!(target: "kfab", event, ?peer, via);
            }
            FabricEvent::PeerUp { peer, via, fallback: Some(tried) } => {
                tracing::warn!(target: "kfab", event, ?peer, via, tried, "a worse way than the address has");
            }
            FabricEvent::PeerLost { peer, reason } => {
                tracing::info!(target: "kfab", event, ?peer, reason);
            }
            FabricEvent::PeerRestarted { peer } => tracing::info!(target: "kfab", event, ?peer),
            FabricEvent::RailUp { peer, rail, via } => {
                tracing::debug!(target: "kfab", event, ?peer, rail, via);
            }
            FabricEvent::RailDown { peer, rail, reason, resent } => {
                tracing::info!(target: "kfab", event, ?peer, rail, reason, resent);
            }
            FabricEvent::CreditStall { peer, stalls } => {
                tracing::debug!(target: "kfab", event, ?peer, stalls);
            }
            FabricEvent::Resent { peer, frames } => tracing::debug!(target: "kfab", event, ?peer, frames),
            FabricEvent::FaultStruck { rule, peer, hits } => {
                tracing::info!(target: "kfab", event, ?rule, ?peer, hits);
            }
            FabricEvent::Rejected { reason } => tracing::info!(target: "kfab", event, reason),
        }
    }
}

/// One reader's place in the stream of a lane. While there is one, events are kept for it (up to the stream's bound).
#[derive(Debug)]
pub struct EventCursor {
    /// The number of the first event not read yet.
    at: u64,
    _reads: Arc<()>,
}

/// The stream: bounded; when nobody reads, the oldest go, and each reader is told how many it missed.
#[derive(Debug)]
pub(crate) struct Stream {
    queue: VecDeque<FabricEvent>,
    /// The number of the first in the queue.
    first: u64,
    /// The first that was not drained.
    undrained: u64,
    readers: Arc<()>,
}

/// The same trouble with the same peer is told no more often than this, ns.
const TELL_AGAIN: u64 = 1_000_000_000;

/// Events that are kept for readers; the oldest go first.
pub const MAX_EVENTS: usize = 1024;

impl Stream {
    pub(crate) fn new() -> Stream {
        Stream { queue: VecDeque::new(), first: 0, undrained: 0, readers: Arc::new(()) }
    }

    pub(crate) fn push(&mut self, e: FabricEvent) {
        e.trace();
        if self.queue.len() == MAX_EVENTS {
            self.queue.pop_front();
            self.first += 1;
        }
        self.queue.push_back(e);
    }

    /// A new reader, of all that happens from now on.
    pub(crate) fn subscribe(&self) -> EventCursor {
        EventCursor { at: self.first + self.queue.len() as u64, _reads: self.readers.clone() }
    }

    /// What happened since the reader's last look, and how much of it was lost.
    pub(crate) fn read(&self, cursor: &mut EventCursor) -> (Vec<FabricEvent>, u64) {
        self.since(&mut cursor.at)
    }

    fn since(&self, at: &mut u64) -> (Vec<FabricEvent>, u64) {
        let lost = self.first.saturating_sub(*at);
        let seen = at.saturating_sub(self.first) as usize;
        let new: Vec<_> = self.queue.iter().skip(seen).cloned().collect();
        *at = self.first + self.queue.len() as u64;
        (new, lost)
    }

    /// The reading of who has no cursor.
    pub(crate) fn drain(&mut self) -> (Vec<FabricEvent>, u64) {
        let mut at = self.undrained;
        let read = self.since(&mut at);
        self.undrained = at;
        if Arc::strong_count(&self.readers) == 1 {
            self.first += self.queue.len() as u64;
            self.queue.clear();
        }
        read
    }
}

impl Machine {
    /// A send to this peer waits for credit.
    #[cold]
    pub(crate) fn tell_stall(&mut self, now: u64, pi: u32) {
        let p = &mut self.peers[pi as usize];
        if now >= p.stall_told_until {
            p.stall_told_until = now + TELL_AGAIN;
            self.stream.push(FabricEvent::CreditStall { peer: p.name, stalls: p.counters.credit_stalls });
        }
    }

    /// A frame to this peer was sent again.
    #[cold]
    pub(crate) fn tell_resend(&mut self, now: u64, pi: u32) {
        let p = &mut self.peers[pi as usize];
        if now >= p.resend_told_until {
            p.resend_told_until = now + TELL_AGAIN;
            self.stream.push(FabricEvent::Resent { peer: p.name, frames: p.counters.resent });
        }
    }

    /// A reader of its own for what happens from now on.
    pub fn subscribe(&self) -> EventCursor {
        self.stream.subscribe()
    }

    /// What happened since this reader's last look, and how many events it came too late for.
    pub fn events_since(&self, cursor: &mut EventCursor) -> (Vec<FabricEvent>, u64) {
        self.stream.read(cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> FabricEvent {
        FabricEvent::Rejected { reason: n.to_string() }
    }

    #[test]
    fn every_reader_gets_every_event_once_or_is_told() {
        let mut s = Stream::new();
        s.push(event(0));
        let mut late = s.subscribe();
        s.push(event(1));
        assert_eq!(s.drain(), (vec![event(0), event(1)], 0));
        assert_eq!(s.read(&mut late), (vec![event(1)], 0));
        assert_eq!(s.read(&mut late), (vec![], 0));
        for n in 0..MAX_EVENTS as u64 + 3 {
            s.push(event(n));
        }
        let (got, lost) = s.read(&mut late);
        assert_eq!((got.len(), lost), (MAX_EVENTS, 3));
        assert_eq!(got[0], event(3));
        assert_eq!(s.drain().1, 3);
        drop(late);
        s.push(event(7));
        assert_eq!(s.drain(), (vec![event(7)], 0));
        assert!(s.queue.is_empty(), "nobody else reads");
    }

    #[test]
    fn names_are_all_listed() {
        assert!(FabricEvent::NAMES.contains(&event(0).name()));
    }
}
