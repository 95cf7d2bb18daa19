//! What is known about peers: which NIDs are one node, how well each does, what may be in flight to it.

use std::collections::VecDeque;

use super::NiConfig;
use super::engine::Engine;
use super::health::{Credits, Health};
use super::oneshot::OneShot;
use super::routes::Said;
use super::stats::{Counts, NiInfo};
use crate::core::{MdHandle, SharedBytes};
use crate::error::Result;
use crate::network::TxId;
use crate::nid::{Nid, NidList, ProcessId};
use crate::wire::ping::{DISCOVERY_SINK, PingInfo};

pub(super) type PeerId = u64;

/// How far we are in finding out about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discovery {
    /// Not begun, or failed.
    Unknown,
    /// Asked.
    Pinging(MdHandle),
    /// Told about us.
    Pushing(MdHandle),
    /// Done.
    Done,
}

/// A node we know.
pub(super) struct Peer {
    pub(super) primary: Nid,
    pub(super) nids: Vec<Nid>,
    pub(super) multi_rail: bool,
    /// Its NIDs were given by a person: its name does not change.
    pub(super) configured: bool,
    pub(super) discovery: Discovery,
    pub(super) force_push: bool,
    pub(super) attempts: u32,
    pub(super) ping_memory: Option<SharedBytes>,
    pub(super) sink_len: usize,
    pub(super) pushed: Option<u32>,
    pub(super) pushing: u32,
    pub(super) parked: VecDeque<TxId>,
    pub(super) waiters: Vec<OneShot<Result<PeerInfo>>>,
    /// The local NI a peer that is not multi-rail always sees.
    pub(super) preferred: Option<Nid>,
    /// What it said last, as far as it matters for a gateway.
    pub(super) said: Option<Said>,
}

/// One interface of a peer.
pub(super) struct PeerNi {
    pub(super) peer: PeerId,
    pub(super) credits: Credits,
    pub(super) max_credits: i32,
    /// Smaller is taken first.
    pub(super) priority: u32,
    pub(super) health: Health,
    pub(super) used: u64,
    pub(super) sent: Counts,
    pub(super) received: Counts,
    pub(super) dropped: Counts,
}

/// A peer, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct PeerInfo {
    /// The NID that names it.
    pub primary: Nid,
    /// Whether it can be reached by any of its NIDs.
    pub multi_rail: bool,
    /// Whether we have found out about it.
    pub discovered: bool,
    /// Its interfaces.
    pub interfaces: Vec<NiInfo>,
}

impl Peer {
    fn new(nid: Nid) -> Self {
        Self {
            primary: nid,
            nids: vec![nid],
            multi_rail: false,
            configured: false,
            discovery: Discovery::Unknown,
            force_push: false,
            attempts: 0,
            ping_memory: None,
            sink_len: DISCOVERY_SINK,
            pushed: None,
            pushing: 0,
            parked: VecDeque::new(),
            waiters: Vec::new(),
            preferred: None,
            said: None,
        }
    }
}

impl Engine {
    /// The peer a NID belongs to, made if new. `None` if too many are known.
    pub(super) fn peer_for(&mut self, nid: Nid) -> Option<PeerId> {
        if let Some(ni) = self.peer_nis.get(&nid) {
            return Some(ni.peer);
        }
        if self.peers.len() >= self.params.max_peers {
            self.forget_strangers();
        }
        if self.peers.len() >= self.params.max_peers {
            return None;
        }
        let id = self.id();
        self.peers.insert(id, Peer::new(nid));
        self.add_peer_ni(id, nid);
        Some(id)
    }

    /// Makes room: of peers that only ever sent something, and with which nothing is under way, a part is forgotten.
    fn forget_strangers(&mut self) {
        let busy: std::collections::HashSet<Nid> = self.messages.values().filter_map(|m| m.peer).collect();
        let idle = |p: &Peer| {
            p.discovery == Discovery::Unknown
                && !p.configured
                && p.parked.is_empty()
                && p.waiters.is_empty()
                && p.nids.iter().all(|n| !busy.contains(n))
        };
        let some = self.params.max_peers / 16 + 1;
        let strangers: Vec<PeerId> =
            self.peers.iter().filter(|(_, p)| idle(p)).map(|(id, _)| *id).take(some).collect();
        for id in strangers {
            let nids = self.peers.remove(&id).map(|p| p.nids).unwrap_or_default();
            nids.iter().for_each(|n| drop(self.peer_nis.remove(n)));
        }
    }

    fn add_peer_ni(&mut self, peer: PeerId, nid: Nid) {
        let same_net = self.nis.iter().find(|n| n.config.nid.net() == nid.net());
        let credits = same_net.map_or(NiConfig::new(nid).peer_credits, |n| n.config.peer_credits);
        let ni = PeerNi {
            peer,
            credits: Credits::new(credits),
            max_credits: credits,
            priority: self.priority_of(nid),
            health: Health::default(),
            used: 0,
            sent: Counts::default(),
            received: Counts::default(),
            dropped: Counts::default(),
        };
        self.peer_nis.insert(nid, ni);
    }

    /// What the rules say of a peer's NID; the first that holds it counts.
    fn priority_of(&self, nid: Nid) -> u32 {
        self.priorities
            .iter()
            .find(|(list, _)| list.contains(nid))
            .map_or(u32::MAX, |(_, priority)| *priority)
    }

    /// Sets which interfaces of peers are taken first among the healthy: 0 before 1, and any number before none. The rules
    /// replace those before.
    pub fn set_peer_priorities(&mut self, rules: Vec<(NidList, u32)>) {
        self.priorities = rules;
        let all: Vec<(Nid, u32)> = self.peer_nis.keys().map(|nid| (*nid, self.priority_of(*nid))).collect();
        for (nid, priority) in all {
            if let Some(ni) = self.peer_nis.get_mut(&nid) {
                ni.priority = priority;
            }
        }
    }

    /// How many interfaces the peer of `nid` has.
    pub(super) fn peer_size(&self, nid: Nid) -> usize {
        self.peer_nis.get(&nid).and_then(|p| self.peers.get(&p.peer)).map_or(0, |p| p.nids.len())
    }

    /// The sender of a message by its primary NID.
    pub(super) fn primary_of(&self, id: ProcessId) -> ProcessId {
        if id.is_userspace() {
            return id;
        }
        let peer = self.peer_nis.get(&id.nid).and_then(|p| self.peers.get(&p.peer));
        ProcessId { nid: peer.map_or(id.nid, |p| p.primary), pid: id.pid }
    }

    /// Makes a multi-rail peer known, as a person says. Its name will be the first NID.
    pub fn add_peer(&mut self, nids: &[Nid]) -> bool {
        let Some(id) = nids.first().and_then(|n| self.peer_for(*n)) else { return false };
        for nid in nids {
            self.adopt(id, *nid);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.primary = nids[0];
            peer.configured = true;
            peer.multi_rail = nids.len() > 1;
        }
        true
    }

    /// Forgets a peer. Messages that wait for it fail.
    pub fn remove_peer(&mut self, now: super::Time, nid: Nid) -> bool {
        let Some(id) = self.peer_nis.get(&nid).map(|p| p.peer) else { return false };
        let nids = self.peers.get(&id).map(|p| p.nids.clone()).unwrap_or_default();
        self.discovery_failed(now, id, crate::core::Status::Unreachable);
        let of_peer: Vec<TxId> = self
            .messages
            .iter()
            .filter(|(_, m)| m.peer.is_some_and(|n| nids.contains(&n)))
            .map(|(id, _)| *id)
            .collect();
        for id in of_peer {
            self.sent(now, id, Err(crate::network::Failure::RemoteError));
        }
        self.peers.remove(&id);
        nids.iter().for_each(|n| drop(self.peer_nis.remove(n)));
        self.settle(now);
        true
    }

    /// Moves a NID to a peer; a peer left without NIDs is absorbed with all that waits for it.
    fn adopt(&mut self, id: PeerId, nid: Nid) {
        let old = self.peer_nis.get(&nid).map(|p| p.peer);
        if old == Some(id) || self.is_local(nid) {
            return;
        }
        match self.peer_nis.get_mut(&nid) {
            Some(ni) => ni.peer = id,
            None => self.add_peer_ni(id, nid),
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.nids.push(nid);
        }
        let Some(old) = old else { return };
        let Some(left) = self.peers.get_mut(&old) else { return };
        left.nids.retain(|n| *n != nid);
        if let Some(first) = left.nids.first() {
            if left.primary == nid {
                left.primary = *first;
            }
            return;
        }
        if let (Some(gone), Some(peer)) = (self.peers.remove(&old), self.peers.get_mut(&id)) {
            peer.parked.extend(gone.parked);
            peer.waiters.extend(gone.waiters);
        }
    }

    /// Takes over what a peer says about itself. `asked` is the NID it was reached by.
    pub(super) fn merge(&mut self, id: PeerId, asked: Nid, info: &PingInfo, multi_rail: bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.multi_rail = multi_rail;
        if !multi_rail {
            return;
        }
        let entries: Vec<Nid> = info.entries().iter().map(|e| e.nid).collect();
        let keep = |n: &Nid| *n == asked || entries.contains(n);
        let (stay, go): (Vec<Nid>, Vec<Nid>) = peer.nids.iter().partition(|n| keep(n));
        peer.nids = stay;
        if !peer.configured {
            peer.primary = info.primary().unwrap_or(asked);
        }
        // An interface with messages on their way stays until they have ended; it is not chosen any more.
        for nid in go {
            if self.messages.values().all(|m| m.peer != Some(nid)) {
                self.peer_nis.remove(&nid);
            }
        }
        for nid in entries {
            self.adopt(id, nid);
        }
    }

    pub(super) fn peer_info(&self, id: PeerId) -> Option<PeerInfo> {
        let peer = self.peers.get(&id)?;
        let interface = |nid: &Nid| {
            let ni = self.peer_nis.get(nid)?;
            Some(NiInfo {
                nid: *nid,
                up: !ni.health.down,
                health: ni.health.value,
                credits: ni.credits.left,
                min_credits: ni.credits.min,
                max_credits: ni.max_credits,
                sent: ni.sent,
                received: ni.received,
                dropped: ni.dropped,
            })
        };
        Some(PeerInfo {
            primary: peer.primary,
            multi_rail: peer.multi_rail,
            discovered: peer.discovery == Discovery::Done,
            interfaces: peer.nids.iter().filter_map(interface).collect(),
        })
    }

    /// One peer, by any of its NIDs.
    pub fn peer(&self, nid: Nid) -> Option<PeerInfo> {
        self.peer_info(self.peer_nis.get(&nid)?.peer)
    }

    /// All peers, by name.
    pub fn peers(&self) -> Vec<PeerInfo> {
        let mut all: Vec<PeerInfo> = self.peers.keys().filter_map(|id| self.peer_info(*id)).collect();
        all.sort_by_key(|p| p.primary);
        all
    }
}
