//! Ping target, discovery, push: how nodes learn each other's interfaces.
//!
//! All of it is PUTs and GETs on portal 0. We ask (GET), take over what the answer says, and, where both sides are
//! multi-rail, tell the peer about us (PUT with ACK). A peer that pushes at us is taken at its word and pushed back to.

use super::Time;
use super::engine::{Effect, Engine, Purpose, SendFlags, Sink};
use super::oneshot::OneShot;
use super::peers::{Discovery, PeerId, PeerInfo};
use super::routes::Said;
use crate::core::*;
use crate::error::{Error, ErrorKind, Result};
use crate::nid::{Nid, ProcessId};
use crate::wire::ping::{self, NiEntry, PingInfo};
use crate::wire::{ByteOrder, WireError};

/// The most bytes a ping may bring.
const MAX_SINK: usize = 64 << 10;
/// Pings with growing sinks per discovery.
const MAX_ATTEMPTS: u32 = 3;

/// The targets others ping and push to.
#[derive(Default)]
pub(super) struct PingState {
    sequence: u32,
    ping_me: Option<MeHandle>,
    ping_md: Option<MdHandle>,
    push_me: Option<MeHandle>,
    push_memory: Option<SharedBytes>,
    push_len: usize,
}

impl Engine {
    /// What we say about ourselves.
    pub fn ping_info(&self) -> PingInfo {
        let mut features = ping::FEAT_NI_STATUS | ping::FEAT_ROUTING_DISABLED | ping::FEAT_MULTI_RAIL;
        if self.params.discovery {
            features |= ping::FEAT_DISCOVERY;
        }
        if self.primary().is_large() {
            features |= ping::FEAT_PRIMARY_LARGE;
        }
        let entry = |n: &super::engine::Ni| NiEntry {
            nid: n.config.nid,
            status: if n.is_up() { ping::STATUS_UP } else { ping::STATUS_DOWN },
        };
        let (large, small) = self.nis.iter().map(entry).partition(|e| e.nid.is_large());
        let sequence = self.ping.sequence;
        PingInfo { features, pid: self.params.pid, sequence, small, large, metadata: Vec::new() }
    }

    /// Puts up what others ping, with what is true now, and what they push to.
    pub(super) fn post_ping_targets(&mut self) {
        let bytes = self.ping_info().encode(ByteOrder::Little);
        let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(0, ping::MATCH_BITS) };
        if self.ping.ping_me.is_none() {
            let _ = self.core.set_lazy(0, true);
            self.ping.ping_me = self.core.me_attach(entry).ok();
            self.ping.push_me = self.core.me_attach(entry).ok();
            self.ping.push_len = ping::DISCOVERY_SINK;
        }
        if let Some(old) = self.ping.ping_md.take() {
            let _ = self.core.md_unlink(old, Status::Ok);
        }
        let options =
            TargetOptions { truncate: true, manage_remote: true, ..TargetOptions::new(Access::Get) };
        let sink = Sink::Internal(Purpose::PingTarget);
        let memory = SharedBytes::new(bytes).memory();
        self.ping.ping_md =
            self.ping.ping_me.and_then(|me| self.core.md_attach(me, memory, options, sink).ok());
        if self.ping.push_memory.is_none() {
            self.post_push_target();
        }
    }

    fn post_push_target(&mut self) {
        let memory = SharedBytes::zeroed(self.ping.push_len);
        let options = TargetOptions { truncate: true, ..TargetOptions::once(Access::Put) };
        self.ping.push_memory = Some(memory.clone());
        if let Some(me) = self.ping.push_me {
            let _ = self.core.md_attach(me, memory.memory(), options, Sink::Internal(Purpose::PushTarget));
        }
    }

    /// The set of our interfaces is another: renew the targets, tell discovered peers.
    pub(super) fn interfaces_changed(&mut self, now: Time) {
        self.ping.sequence += 1;
        self.post_ping_targets();
        let know = |(id, p): (&PeerId, &super::peers::Peer)| {
            (p.multi_rail && p.discovery == Discovery::Done).then_some(*id)
        };
        let peers: Vec<PeerId> = self.peers.iter().filter_map(know).collect();
        for id in peers {
            self.start_push(now, id);
        }
    }

    /// Finds out about the peer at `nid`; `force`: even if we know. The result goes to `waiter`.
    pub fn discover(&mut self, now: Time, nid: Nid, force: bool, waiter: OneShot<Result<PeerInfo>>) {
        let id = if self.is_local(nid) { None } else { self.peer_for(nid) };
        let Some(peer) = id.and_then(|id| self.peers.get_mut(&id)) else {
            let words = format!("{nid} is this node's own, or too many peers are known");
            let error = Error::new(ErrorKind::Invalid, "discover", words);
            return self.effects.push_back(Effect::Discovered(waiter, Err(error)));
        };
        peer.waiters.push(waiter);
        if peer.discovery == Discovery::Done && !force {
            self.discovery_done(id.unwrap_or_default());
        } else {
            self.start_discovery(now, id.unwrap_or_default(), force);
        }
        self.settle(now);
    }

    /// Asks a peer about itself, unless we are at it.
    pub(super) fn start_discovery(&mut self, now: Time, id: PeerId, force: bool) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.force_push |= force;
        if matches!(peer.discovery, Discovery::Pinging(_))
            || !force && matches!(peer.discovery, Discovery::Pushing(_))
        {
            return;
        }
        peer.attempts = 0;
        self.send_ping(now, id);
    }

    fn send_ping(&mut self, now: Time, id: PeerId) {
        let timeout = Some(self.params.discovery_timeout);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.attempts += 1;
        let memory = SharedBytes::zeroed(peer.sink_len);
        peer.ping_memory = Some(memory.clone());
        let target = ProcessId::lnet(self.reachable(id));
        let options = SourceOptions { truncate: true, ..SourceOptions::once(2) };
        let sink = Sink::Internal(Purpose::DiscoveryPing(id));
        let Ok(md) = self.core.md_bind(memory.memory(), options, sink) else { return };
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.discovery = Discovery::Pinging(md.handle());
        }
        match self.core.get(md, target, 0, ping::MATCH_BITS, 0) {
            Ok(op) => {
                self.flags.insert(op, SendFlags { exact: true, ..SendFlags::default() });
                self.track(now, op, md, target, timeout);
            }
            Err(_) => self.discovery_failed(now, id, Status::Local),
        }
    }

    /// A NID of the peer on a network we are on, the healthiest; else its primary.
    fn reachable(&self, id: PeerId) -> Nid {
        let Some(peer) = self.peers.get(&id) else { return Nid::ANY };
        let on_net = |n: &&Nid| self.nis.iter().any(|ni| ni.config.nid.net() == n.net());
        let health = |n: &&Nid| self.peer_nis.get(n).map_or(0, |p| p.health.value);
        let first_best = peer.nids.iter().filter(on_net).rev().max_by_key(health);
        first_best.copied().unwrap_or(peer.primary)
    }

    /// Tells a peer about us.
    pub(super) fn start_push(&mut self, now: Time, id: PeerId) {
        let bytes = self.ping_info().encode(ByteOrder::Little);
        let sequence = self.ping.sequence;
        let target = ProcessId::lnet(self.reachable(id));
        let sink = Sink::Internal(Purpose::DiscoveryPush(id));
        let memory = SharedBytes::new(bytes).memory();
        let Ok(md) = self.core.md_bind(memory, SourceOptions::once(2), sink) else { return };
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.discovery = Discovery::Pushing(md.handle());
        peer.pushing = sequence;
        peer.force_push = false;
        let put =
            PutParams { target, portal: 0, match_bits: ping::MATCH_BITS, offset: 0, hdr_data: 0, ack: true };
        match self.core.put(md, put) {
            Ok(op) => {
                self.flags.insert(op, SendFlags { exact: true, ..SendFlags::default() });
                self.track(now, op, md, target, Some(self.params.discovery_timeout));
            }
            Err(_) => self.discovery_failed(now, id, Status::Local),
        }
    }

    pub(super) fn internal_event(&mut self, now: Time, purpose: Purpose, event: Event) {
        match purpose {
            Purpose::PingTarget => {}
            Purpose::PushTarget => self.on_push(now, &event),
            Purpose::DiscoveryPing(id) => self.on_discovery_ping(now, id, &event),
            Purpose::DiscoveryPush(id) => self.on_discovery_push(now, id, &event),
            Purpose::Recovery(nid) => self.on_recovery(nid, &event),
        }
    }

    /// A peer has told us about itself.
    fn on_push(&mut self, now: Time, event: &Event) {
        let Some(memory) = self.ping.push_memory.take() else { return };
        if event.kind != EventKind::Put {
            return;
        }
        let cut = event.mlength < event.rlength;
        if cut {
            self.ping.push_len = (event.rlength as usize).min(MAX_SINK);
        }
        self.post_push_target();
        let Some(id) = self.peer_nis.get(&event.source).map(|p| p.peer) else { return };
        if cut {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.sink_len = (event.rlength as usize).clamp(peer.sink_len, MAX_SINK);
            }
            return self.start_discovery(now, id, true);
        }
        let bytes = memory.to_vec();
        match PingInfo::decode(&bytes[..event.mlength as usize]) {
            Ok(info) => self.learn(now, id, event.source, &info),
            Err(error) => tracing::debug!(%error, source = %event.source, "push not understood"),
        }
    }

    /// Takes over what a peer says; pushes back if it does not know us as we are.
    fn learn(&mut self, now: Time, id: PeerId, asked: Nid, info: &PingInfo) {
        let wanted = ping::FEAT_MULTI_RAIL | ping::FEAT_DISCOVERY;
        let multi_rail = self.params.discovery && info.features & wanted == wanted;
        // A node known by its primary NID stays the same peer, whichever of its NIDs spoke.
        let named = info.primary().filter(|_| multi_rail).and_then(|n| self.peer_nis.get(&n)).map(|p| p.peer);
        let (spoke, id) = (id, named.unwrap_or(id));
        self.merge(id, asked, info, multi_rail);
        if spoke != id {
            // If it is there still, with other NIDs or because it did not name the one that was asked, nothing more will be heard of it.
            self.discovery_done(spoke);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            let up = info.entries().into_iter().filter(|e| e.status == ping::STATUS_UP);
            let routes = info.features & ping::FEAT_ROUTING_DISABLED == 0;
            peer.said = Some(Said { routes, nets: up.map(|e| e.nid.net()).collect() });
        }
        let sequence = self.ping.sequence;
        let Some(peer) = self.peers.get(&id) else { return };
        let told = peer.pushed == Some(sequence) && !peer.force_push;
        match peer.discovery {
            Discovery::Pushing(_) => {}
            _ if multi_rail && !told => self.start_push(now, id),
            _ => self.discovery_done(id),
        }
    }

    fn on_discovery_ping(&mut self, now: Time, id: PeerId, event: &Event) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.discovery != Discovery::Pinging(event.md) {
            return;
        }
        match event.kind {
            EventKind::Reply => {
                let Some(memory) = peer.ping_memory.take() else { return };
                peer.discovery = Discovery::Unknown;
                self.on_ping_reply(now, id, event, &memory.to_vec()[..event.mlength as usize]);
            }
            _ if !event.status.is_ok() => self.discovery_failed(now, id, event.status),
            _ => {}
        }
    }

    fn on_ping_reply(&mut self, now: Time, id: PeerId, event: &Event, bytes: &[u8]) {
        match PingInfo::decode(bytes) {
            Ok(info) => self.learn(now, id, event.source, &info),
            Err(WireError::Truncated { need }) => {
                let Some(peer) = self.peers.get_mut(&id) else { return };
                let grown = need.max(peer.sink_len * 2).min(MAX_SINK);
                if peer.attempts >= MAX_ATTEMPTS || grown <= peer.sink_len {
                    return self.discovery_failed(now, id, Status::Unreachable);
                }
                peer.sink_len = grown;
                self.send_ping(now, id);
            }
            Err(error) => {
                tracing::debug!(%error, source = %event.source, "ping reply not understood");
                self.discovery_failed(now, id, Status::Unreachable);
            }
        }
    }

    fn on_discovery_push(&mut self, now: Time, id: PeerId, event: &Event) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.discovery != Discovery::Pushing(event.md) {
            return;
        }
        match event.kind {
            EventKind::Ack if event.status.is_ok() => {
                peer.pushed = Some(peer.pushing);
                peer.discovery = Discovery::Done;
                if peer.pushing != self.ping.sequence {
                    return self.start_push(now, id);
                }
                self.discovery_done(id);
            }
            _ if !event.status.is_ok() => self.discovery_failed(now, id, event.status),
            _ => {}
        }
    }

    /// We know the peer: what waited goes on.
    fn discovery_done(&mut self, id: PeerId) {
        let info = self.peer_info(id);
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.discovery = Discovery::Done;
        peer.force_push = false;
        self.ready.extend(std::mem::take(&mut peer.parked));
        for waiter in std::mem::take(&mut peer.waiters) {
            if let Some(info) = info.clone() {
                let info = PeerInfo { discovered: true, ..info };
                self.effects.push_back(Effect::Discovered(waiter, Ok(info)));
            }
        }
    }

    /// We could not find out: what waited fails.
    pub(super) fn discovery_failed(&mut self, _now: Time, id: PeerId, status: Status) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let md = match std::mem::replace(&mut peer.discovery, Discovery::Unknown) {
            Discovery::Pinging(md) | Discovery::Pushing(md) => Some(md),
            _ => None,
        };
        peer.force_push = false;
        let kind = if status == Status::TimedOut { ErrorKind::TimedOut } else { ErrorKind::Unreachable };
        let error = Error::new(kind, "discover", format!("{}: {status:?}", peer.primary));
        for waiter in std::mem::take(&mut peer.waiters) {
            self.effects.push_back(Effect::Discovered(waiter, Err(error.clone())));
        }
        for message in std::mem::take(&mut peer.parked) {
            self.fail_message(message, status);
        }
        if let Some(md) = md {
            let _ = self.core.md_unlink(md, Status::Ok);
        }
    }

    /// Adds a fault rule; gives its number.
    pub fn add_fault(&mut self, rule: super::FaultRule) -> Result<u64> {
        self.faults.add(rule).ok_or_else(|| Error::new(ErrorKind::Busy, "fault", "too many rules"))
    }

    /// Removes one fault rule, or all; gives how many went.
    pub fn remove_faults(&mut self, id: Option<u64>) -> usize {
        self.faults.remove(id)
    }

    /// All fault rules: number, rule, messages seen, messages struck.
    pub fn faults(&self) -> Vec<(u64, super::FaultRule, u64, u64)> {
        self.faults.list()
    }
}
