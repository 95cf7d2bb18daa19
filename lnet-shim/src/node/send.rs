//! The way of a message out: discovery first, choice of rails, faults, credits, the network, and again if need be.

use std::cmp::Reverse;

use super::Time;
use super::engine::{Awaited, Delayed, Effect, Engine, SendFlags};
use super::fault::FaultAction;
use super::health::status_of;
use super::peers::Discovery;
use crate::core::{Incoming, Outgoing, Status};
use crate::network::{Command, Failure, Tx, TxId};
use crate::nid::{Net, Nid, PID_LNET, ProcessId};
use crate::wire::lnet::{Body, LnetHeader, MsgType};

/// What a message holds or waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing.
    Start,
    /// A place in the peer's queue.
    WaitPeer,
    /// A credit of the peer, and a place in the NI's queue.
    WaitNi,
    /// Both credits.
    Sent,
}

/// A message on its way out.
pub(super) struct Message {
    pub(super) out: Outgoing,
    flags: SendFlags,
    deadline: Time,
    retries: u32,
    pub(super) local: Option<Nid>,
    pub(super) peer: Option<Nid>,
    /// Who it is for in the end, where `peer` is a gateway.
    beyond: Option<Nid>,
    stage: Stage,
    delayed: bool,
}

impl Engine {
    /// Takes a message the core wants sent.
    pub(super) fn begin_message(&mut self, now: Time, out: Outgoing) {
        let mut flags = out.op.and_then(|op| self.flags.remove(&op)).unwrap_or_default();
        if out.src.is_some() {
            flags = SendFlags { local: out.src, exact: true, ..flags };
        }
        if self.messages.len() >= self.params.max_messages {
            self.stats.send_failures += 1;
            if let Some(op) = out.op {
                let from = ProcessId { nid: self.primary(), pid: self.params.pid };
                self.core.finish(op, Status::Local, from);
            }
            return;
        }
        let id = TxId(self.id());
        let deadline = now + self.params.message_lifetime();
        let message = Message {
            out,
            flags,
            deadline,
            retries: 0,
            local: None,
            peer: None,
            beyond: None,
            stage: Stage::Start,
            delayed: false,
        };
        self.messages.insert(id, message);
        self.stats.messages_max = self.stats.messages_max.max(self.messages.len());
        self.ready.push_back(id);
    }

    /// Ends a message for good.
    fn finish_message(&mut self, id: TxId, status: Status) {
        let Some(message) = self.messages.remove(&id) else { return };
        if !status.is_ok() {
            self.stats.send_failures += 1;
        }
        if let Some(op) = message.out.op {
            let nid = message.local.unwrap_or(self.primary());
            self.core.finish(op, status, ProcessId { nid, pid: self.params.pid });
        }
    }

    pub(super) fn fail_message(&mut self, id: TxId, status: Status) {
        self.finish_message(id, status);
    }

    /// Finds a way for a message that holds nothing.
    pub(super) fn dispatch(&mut self, now: Time, id: TxId) {
        let Some(m) = self.messages.get(&id) else { return };
        let (dest, flags) = (m.out.dest, m.flags);
        if now > m.deadline {
            return self.finish_message(id, Status::TimedOut);
        }
        if self.is_local(dest.nid) {
            return if flags.recovery { self.ask_self(now, id) } else { self.loop_back(id) };
        }
        let Some(peer) = self.peer_for(dest.nid) else { return self.finish_message(id, Status::Local) };
        if self.wants_discovery(id) {
            return self.park_message(now, id, peer);
        }
        let direct = self.select(id, peer);
        let memory = self.messages.get(&id).and_then(|m| m.out.op).and_then(|op| self.core.memory_node(op));
        let routed = || self.select_route(dest.nid, flags.local, memory);
        let Some((local, nid)) = direct.or_else(routed) else {
            return self.finish_message(id, Status::Unreachable);
        };
        if let Some(m) = self.messages.get_mut(&id) {
            (m.local, m.peer, m.beyond) = (Some(local), Some(nid), direct.is_none().then_some(dest.nid));
        }
        if !self.meets_fault(now, id, local, nid) {
            self.launch(now, id);
        }
    }

    /// A recovery ping to an interface of ours goes by its network, which has a way from it to itself. We are no peer of ours.
    fn ask_self(&mut self, now: Time, id: TxId) {
        let Some(m) = self.messages.get_mut(&id) else { return };
        let own = m.out.dest.nid;
        (m.local, m.peer, m.beyond) = (Some(own), Some(own), None);
        if !self.meets_fault(now, id, own, own) {
            self.launch(now, id);
        }
    }

    /// A message to ourselves takes no credits and cannot fail.
    fn loop_back(&mut self, id: TxId) {
        let Some(m) = self.messages.get_mut(&id) else { return };
        let own = m.out.dest.nid;
        m.local = Some(own);
        let header = header_of(&m.out, self.params.pid, own, own);
        let payload = m.out.payload.to_vec().into();
        let initiator = header.src;
        self.loopback.push_back(Incoming { header, initiator, sender: own, via: u64::MAX, payload });
        self.finish_message(id, Status::Ok);
    }

    /// PUTs and GETs to ordinary portals wait until we know the peer's rails.
    fn wants_discovery(&self, id: TxId) -> bool {
        let Some(m) = self.messages.get(&id) else { return false };
        let ordinary = m.out.body.portal().is_some_and(|p| p > 0);
        let dest = m.out.dest;
        let peer = self.peer_nis.get(&dest.nid).and_then(|p| self.peers.get(&p.peer));
        let known = peer.is_none_or(|p| matches!(p.discovery, Discovery::Done | Discovery::Pushing(_)));
        ordinary && self.params.discovery && !dest.is_userspace() && !known
    }

    fn park_message(&mut self, now: Time, id: TxId, peer: u64) {
        let max = self.params.max_parked;
        let Some(p) = self.peers.get_mut(&peer) else { return };
        if p.parked.len() >= max {
            return self.finish_message(id, Status::Local);
        }
        p.parked.push_back(id);
        self.start_discovery(now, peer, false);
    }

    /// The rails of a message: our NID and the peer's.
    fn select(&mut self, id: TxId, peer: u64) -> Option<(Nid, Nid)> {
        let m = self.messages.get(&id)?;
        let (dest, flags, kind) = (m.out.dest.nid, m.flags, m.out.body.msg_type());
        let memory = m.out.op.and_then(|op| self.core.memory_node(op));
        let p = self.peers.get(&peer)?;
        // What is spread: requests to ordinary portals, to peers known as multi-rail.
        let request = matches!(kind, MsgType::Put | MsgType::Get) && m.out.body.portal() != Some(0);
        let spread = request && p.multi_rail && !flags.exact;
        let candidates: Vec<Nid> = if spread { p.nids.clone() } else { vec![dest] };
        let pinned = flags.local.or(if p.multi_rail { None } else { p.preferred });
        let pinned =
            pinned.filter(|n| self.nis.iter().any(|ni| ni.config.nid == *n) || flags.local.is_some());
        let net = self.best_net(&candidates, pinned)?;
        let local = self.best_local(net, pinned, memory)?;
        let remote = self.best_remote(net, local, &candidates)?;
        self.note_use(local, remote, peer);
        Some((local, remote))
    }

    /// The net by the health of the peer's best rail there, its priority, the health of ours (without a link: the worst), its priority,
    /// then the least used.
    fn best_net(&self, candidates: &[Nid], pinned: Option<Nid>) -> Option<Net> {
        let locals = self.nis.iter().filter(|n| pinned.is_none_or(|p| p == n.config.nid));
        let rank = |ni: &super::engine::Ni| {
            let net = ni.config.nid.net();
            let on_net = candidates.iter().filter(|c| c.net() == net);
            let rails = on_net.filter_map(|c| self.peer_nis.get(c));
            let peer = rails.map(|p| (Reverse(p.health.value), p.priority)).min()?;
            Some(((peer, ni.fatal, Reverse(ni.health.value), ni.config.priority, ni.used), net))
        };
        locals.filter_map(rank).min_by_key(|(key, _)| *key).map(|(_, net)| net)
    }

    /// Ours by its link, health, priority, NUMA distance from the message's `memory`, credits, then the least used.
    pub(super) fn best_local(&self, net: Net, pinned: Option<Nid>, memory: Option<u32>) -> Option<Nid> {
        let usable = self.nis.iter().filter(|n| n.config.nid.net() == net);
        let usable = usable.filter(|n| pinned.is_none_or(|p| p == n.config.nid));
        let rank = |n: &&super::engine::Ni| {
            let (health, credits) = (Reverse(n.health.value), Reverse(n.credits.left));
            (n.fatal, health, n.config.priority, self.distance(memory, n), credits, n.used)
        };
        Some(usable.min_by_key(rank)?.config.nid)
    }

    /// The peer's by its health, priority, whether it goes with ours, credits, then the least used.
    fn best_remote(&self, net: Net, local: Nid, candidates: &[Nid]) -> Option<Nid> {
        let on_net = candidates.iter().filter(|c| c.net() == net);
        let known = on_net.filter_map(|c| Some((c, self.peer_nis.get(c)?)));
        let rank = |(nid, p): &(&Nid, &super::peers::PeerNi)| {
            let apart = !self.is_paired(local, **nid);
            (Reverse(p.health.value), p.priority, apart, Reverse(p.credits.left), p.used)
        };
        known.min_by_key(rank).map(|(nid, _)| *nid)
    }

    pub(super) fn note_use(&mut self, local: Nid, remote: Nid, peer: u64) {
        let stamp = self.id();
        if let Some(ni) = self.ni_mut(local) {
            ni.used = stamp;
        }
        if let Some(p) = self.peer_nis.get_mut(&remote) {
            p.used = stamp;
        }
        if let Some(p) = self.peers.get_mut(&peer).filter(|p| !p.multi_rail) {
            p.preferred.get_or_insert(local);
        }
    }

    /// Applies fault rules to a send; `true` if one has taken the message.
    fn meets_fault(&mut self, now: Time, id: TxId, local: Nid, nid: Nid) -> bool {
        let Some(m) = self.messages.get(&id) else { return true };
        let header = header_of(&m.out, self.params.pid, local, m.beyond.unwrap_or(nid));
        let delayed = m.delayed;
        let fails = |a: &FaultAction| matches!(a, FaultAction::Fail(_) | FaultAction::FailRandom);
        let failure = match self.faults.strike(now, local, &header, fails) {
            Some(FaultAction::Fail(f)) => Some(f),
            Some(_) => Some(self.faults.random_failure()),
            None => None,
        };
        if let Some(failure) = failure {
            self.failed(now, id, failure);
            return true;
        }
        if delayed || self.delayed.len() >= self.params.max_delayed {
            return false;
        }
        let delays = |a: &FaultAction| matches!(a, FaultAction::Delay(_));
        let Some(FaultAction::Delay(by)) = self.faults.strike(now, local, &header, delays) else {
            return false;
        };
        if let Some(m) = self.messages.get_mut(&id) {
            m.delayed = true;
        }
        let key = (now + by, self.id());
        self.delayed.insert(key, Delayed::Send(id));
        true
    }

    /// Takes the credits one after the other, then hands the message to the network.
    fn launch(&mut self, now: Time, id: TxId) {
        let Some(m) = self.messages.get_mut(&id) else { return };
        let (Some(local), Some(nid)) = (m.local, m.peer) else { return };
        if m.stage == Stage::Start {
            m.stage = Stage::WaitPeer;
            let taken = self.peer_nis.get_mut(&nid).is_none_or(|p| p.credits.take(id));
            if !taken {
                return;
            }
        }
        self.with_peer_credit(now, id, local);
    }

    fn with_peer_credit(&mut self, now: Time, id: TxId, local: Nid) {
        if let Some(m) = self.messages.get_mut(&id) {
            m.stage = Stage::WaitNi;
        }
        if self.ni_mut(local).is_none_or(|ni| ni.credits.take(id)) {
            self.with_both_credits(now, id);
        }
    }

    fn with_both_credits(&mut self, now: Time, id: TxId) {
        let Some(m) = self.messages.get_mut(&id) else { return };
        let (Some(local), Some(nid)) = (m.local, m.peer) else { return };
        m.stage = Stage::Sent;
        if now > m.deadline {
            return self.sent(now, id, Err(Failure::NetworkTimeout));
        }
        let header = header_of(&m.out, self.params.pid, local, m.beyond.unwrap_or(nid));
        // If no answer comes, this rail is to blame.
        let answer = self.core.answers_to(&header.body).map(Awaited::Answer);
        if let Some(tracked) = answer.and_then(|a| self.tracked.get_mut(&a)) {
            tracked.peer = Some(nid);
        }
        let pid = if m.out.dest.is_userspace() && m.beyond.is_none() { m.out.dest.pid } else { PID_LNET };
        let tx = Tx { id, peer: ProcessId { nid, pid }, header, payload: m.out.payload.clone() };
        let (kind, len) = (header.body.msg_type(), header.payload_len);
        self.stats.sent.add(kind, len);
        if let Some(p) = self.peer_nis.get_mut(&nid) {
            p.sent.add(kind, len);
        }
        if let Some(ni) = self.ni_mut(local) {
            ni.sent.add(kind, len);
        }
        self.effects.push_back(Effect::Command(local, Command::Transmit(tx)));
    }

    /// The network has sent a message, or has not.
    pub(super) fn sent(&mut self, now: Time, id: TxId, result: Result<(), Failure>) {
        let Some(m) = self.messages.get_mut(&id) else { return };
        let stage = std::mem::replace(&mut m.stage, Stage::Start);
        let (local, peer) = (m.local, m.peer);
        self.give_credits_back(id, stage, local, peer);
        match (result, local) {
            (Ok(()), Some(local)) => {
                self.local_succeeded(local);
                self.finish_message(id, Status::Ok);
            }
            (Ok(()), None) => self.finish_message(id, Status::Ok),
            (Err(failure), _) => self.failed(now, id, failure),
        }
    }

    /// Gives back what `stage` says is held; those next in line go on when the engine settles.
    fn give_credits_back(&mut self, id: TxId, stage: Stage, local: Option<Nid>, peer: Option<Nid>) {
        if let Some(ni) = local.and_then(|l| self.ni_mut(l)) {
            let next = match stage {
                Stage::Sent => ni.credits.put(),
                Stage::WaitNi => ni.credits.quit(id),
                _ => None,
            };
            self.granted.extend(next.map(|n| (n, Stage::Sent)));
        }
        if let Some(p) = peer.and_then(|p| self.peer_nis.get_mut(&p)) {
            let next = match stage {
                Stage::Sent | Stage::WaitNi => p.credits.put(),
                Stage::WaitPeer => p.credits.quit(id),
                Stage::Start => None,
            };
            self.granted.extend(next.map(|n| (n, Stage::WaitNi)));
        }
    }

    /// A message has got the credit it waited for.
    pub(super) fn on_grant(&mut self, now: Time, id: TxId, stage: Stage) {
        match (stage, self.messages.get(&id).and_then(|m| m.local)) {
            (Stage::WaitNi, Some(local)) => self.with_peer_credit(now, id, local),
            _ => self.with_both_credits(now, id),
        }
    }

    /// A send has failed: health, then once more or the end.
    fn failed(&mut self, now: Time, id: TxId, failure: Failure) {
        let Some(m) = self.messages.get(&id) else { return };
        let (local, peer) = (m.local.unwrap_or(Nid::LO), m.peer.unwrap_or(Nid::LO));
        let may = !m.flags.recovery && m.retries < self.params.retry_count && now < m.deadline;
        let others = m.beyond.map_or_else(|| self.peer_size(peer), |dest| self.routes_to(dest));
        let again = self.note_failure(now, local, peer, failure, others > 1);
        if !(may && again) {
            return self.finish_message(id, status_of(failure));
        }
        tracing::debug!(?failure, %peer, "sending again");
        self.stats.resends += 1;
        if let Some(m) = self.messages.get_mut(&id) {
            m.retries += 1;
            m.stage = Stage::Start;
        }
        self.ready.push_back(id);
    }
}

/// The header of a message on given rails.
fn header_of(out: &Outgoing, pid: u32, local: Nid, nid: Nid) -> LnetHeader {
    let payload_len = match out.body {
        Body::Put { .. } | Body::Reply { .. } => out.payload.len(),
        _ => 0,
    };
    let src = ProcessId { nid: out.src.unwrap_or(local), pid };
    LnetHeader { dest: ProcessId { nid, pid: out.dest.pid }, src, payload_len, body: out.body }
}
