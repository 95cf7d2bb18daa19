//! What a lane tells about itself: counters, queue depths, peers and their rails. Reads only.

use crate::events::FabricEvent;
use crate::machine::Machine;
use crate::message::*;
use crate::peer::{Peer, PeerCounters};
use kfab_core::spi::Address;

/// Counters and queue depths of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LaneStats {
    /// Peers known.
    pub peers: usize,
    /// Connections open.
    pub conns: usize,
    /// Operations under way.
    pub ops: usize,
    /// Receives that wait for a message.
    pub posted: usize,
    /// Messages that wait for a receive.
    pub unexpected: usize,
    /// Credit units of messages and notices that wait of peers that are gone: see [`Limits::max_left_behind`].
    ///
    /// [`Limits::max_left_behind`]: crate::Limits::max_left_behind
    pub left_behind: u64,
    /// Messages that wait for credit, all peers.
    pub deferred: usize,
    /// Frames that wait for an acknowledgement, all peers.
    pub unacked: usize,
    /// Windows open.
    pub windows: usize,
    /// Notices that wait to be taken, all windows.
    pub notices: usize,
    /// Sums over all peers, also those that are known no more: they never go down.
    pub totals: PeerCounters,
}

/// A rail of a peer.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RailInfo {
    /// Its number on this lane.
    pub rail: u32,
    /// The port, in the order the lane was given them.
    pub port: usize,
    /// Its provider.
    pub scheme: String,
    /// How it does.
    pub health: RailHealth,
    /// `true` if traffic goes over it now (it is of the best rank that is up).
    pub active: bool,
    /// Bytes and frames, both ways.
    pub tx_bytes: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes sent and not acknowledged.
    pub unacked_bytes: usize,
    /// Frames sent and not acknowledged: the rail's queue. 0 over memory, where none are kept.
    pub unacked: usize,
    /// Bytes of one-sided transfers under way.
    pub one_sided_bytes: usize,
    /// Frames sent again over it: those that were late here, and those that another rail left behind.
    pub resent: u64,
}

/// How a rail does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum RailHealth {
    /// It takes what it is given.
    Good,
    /// It has as much under way as it takes: frames wait until there is room.
    Full,
    /// It owes answers and is silent: it has been asked whether it lives.
    Silent,
    /// It is being closed.
    Closing,
}

impl RailHealth {
    /// As a word, for labels.
    pub fn name(self) -> &'static str {
        match self {
            RailHealth::Good => "good",
            RailHealth::Full => "full",
            RailHealth::Silent => "silent",
            RailHealth::Closing => "closing",
        }
    }
}

/// What can be said about a peer.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PeerInfo {
    /// Its address, where known.
    pub address: Option<String>,
    /// `true` if it can be reached now.
    pub up: bool,
    /// Credits free now, of how many.
    pub credits: u32,
    /// All credits the peer gives us.
    pub credit_limit: u32,
    /// Messages that wait for credit.
    pub deferred: usize,
    /// Frames that wait for an acknowledgement.
    pub unacked: usize,
    /// Bytes of large messages that wait for one.
    pub unacked_bytes: usize,
    /// Large transfers to it under way.
    pub transfers: usize,
    /// Smoothed time from a frame to its acknowledgement, ns; 0 where it was never measured. Where nothing goes the other way that is
    /// [`Limits::ack_delay`](crate::Limits::ack_delay) longer than the way there and back.
    pub rtt_ns: u64,
    /// Its rails.
    pub rails: Vec<RailInfo>,
    /// Counters.
    pub counters: PeerCounters,
}

impl Machine {
    /// What happened since the last call, and how many events were lost because nobody asked.
    pub fn drain_events(&mut self) -> (Vec<FabricEvent>, u64) {
        self.stream.drain()
    }

    /// Counters and queue depths.
    pub fn stats(&mut self) -> LaneStats {
        self.close_tab();
        let (posted, unexpected) = self.matcher.depths();
        let mut s = LaneStats {
            peers: self.known().count(),
            conns: self.conns.iter().filter(|c| c.live).count(),
            ops: self.ops.live(),
            posted,
            unexpected,
            left_behind: self.left_behind,
            windows: self.windows.len(),
            notices: self.windows.notices_here(),
            ..Default::default()
        };
        s.totals = self.past_totals;
        for p in &self.peers {
            s.deferred += p.tx.deferred.len();
            s.unacked += p.tx.unacked.len();
            s.totals.add(&p.counters);
        }
        s
    }

    /// All peers that are known now. One with two names is there once, under the name that it was called by here.
    pub fn peers(&self) -> Vec<PeerId> {
        self.known().map(|p| p.name).collect()
    }

    fn known(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|p| !p.gone && p.alias.is_none())
    }

    /// What can be said about a peer, by any of its names; `None` if it is gone.
    pub fn peer_info(&mut self, id: PeerId) -> Option<PeerInfo> {
        self.close_tab();
        let id = self.real_name(id);
        let p = self.peers.get(id.index as usize).filter(|p| p.name == id)?;
        let rail = |ci: &u32| {
            let c = &self.conns[*ci as usize];
            RailInfo {
                rail: *ci,
                port: c.port,
                scheme: self.schemes.get(c.port).cloned().unwrap_or_default(),
                health: match c {
                    _ if c.closing => RailHealth::Closing,
                    _ if c.asked_at != 0 => RailHealth::Silent,
                    _ if c.blocked => RailHealth::Full,
                    _ => RailHealth::Good,
                },
                active: p.active.contains(ci),
                tx_bytes: c.tx_bytes,
                rx_bytes: c.rx_bytes,
                tx_frames: c.tx_frames,
                rx_frames: c.rx_frames,
                unacked_bytes: c.unacked_bytes,
                unacked: p.tx.unacked.iter().filter(|u| u.conn == *ci).count(),
                one_sided_bytes: c.rma_bytes,
                resent: c.resent,
            }
        };
        Some(PeerInfo {
            address: p.address.as_ref().map(Address::to_string),
            up: !p.rails.is_empty(),
            credits: p.tx.credit(),
            credit_limit: p.tx.limit,
            deferred: p.tx.deferred.len(),
            unacked: p.tx.unacked.len(),
            unacked_bytes: p.tx.unacked_bytes,
            transfers: p.tx.streams.len(),
            rtt_ns: p.tx.srtt,
            rails: p.rails.iter().map(rail).collect(),
            counters: p.counters,
        })
    }

    /// The protocol's side of an operation as text, for the reports of simulations.
    #[doc(hidden)]
    pub fn describe(&mut self, op: OpId) -> String {
        format!("{:?}", self.ops.proto(op))
    }
}
