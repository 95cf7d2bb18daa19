//! The way of a message in: faults, peer lookup, health, the core.

use super::Time;
use super::engine::{Delayed, Effect, Engine};
use super::fault::FaultAction;
use crate::core::{Content, Incoming};
use crate::network::{Command, Rx};
use crate::nid::Nid;
use crate::wire::lnet::MsgType;

impl Engine {
    /// Takes a message from the network of `local`.
    pub(super) fn received(&mut self, now: Time, local: Nid, rx: Rx) {
        if rx.header.dest.nid != local {
            tracing::debug!(dest = %rx.header.dest, "not routed");
            return self.drop_arrival(local, &rx);
        }
        let drops = |a: &FaultAction| matches!(a, FaultAction::Drop);
        if self.faults.strike(now, local, &rx.header, drops).is_some() {
            self.stats.fault_drops += 1;
            return self.drop_arrival(local, &rx);
        }
        let delays = |a: &FaultAction| matches!(a, FaultAction::Delay(_));
        if self.delayed.len() < self.params.max_delayed
            && let Some(FaultAction::Delay(by)) = self.faults.strike(now, local, &rx.header, delays)
        {
            let key = (now + by, self.id());
            self.delayed.insert(key, Delayed::Receive(local, rx));
            return;
        }
        self.accept(now, local, rx);
    }

    /// Takes a message that no rule concerns (any more).
    pub(super) fn accept(&mut self, _now: Time, local: Nid, rx: Rx) {
        let (kind, len) = (rx.header.body.msg_type(), rx.header.payload_len);
        let Some(index) = self.vias.iter().position(|n| *n == local) else { return };
        self.stats.received.add(kind, len);
        if let Some(ni) = self.ni_mut(local) {
            ni.received.add(kind, len);
        }
        if !rx.header.src.is_userspace() && !self.is_local(rx.header.src.nid) {
            if self.peer_for(rx.header.src.nid).is_none() {
                return self.drop_arrival(local, &rx);
            }
            if let Some(p) = self.peer_nis.get_mut(&rx.peer.nid) {
                p.received.add(kind, len);
            }
            self.peer_succeeded(rx.peer.nid);
        }
        let initiator = self.primary_of(rx.header.src);
        let via = (index as u64) << 48 | rx.via & 0xffff_ffff_ffff;
        let sender = rx.peer.nid;
        let incoming =
            Incoming { header: rx.header, initiator, sender: rx.peer.nid, via, payload: rx.payload };
        if let Err(reason) = self.core.receive(incoming) {
            tracing::debug!(?reason, src = %rx.header.src, ?kind, "dropped");
            self.count_drop(local, sender, kind, len);
        }
    }

    fn drop_arrival(&mut self, local: Nid, rx: &Rx) {
        if matches!(rx.payload, Content::Remote(_)) {
            self.effects.push_back(Effect::Command(local, Command::Refuse { via: rx.via }));
        }
        self.count_drop(local, rx.peer.nid, rx.header.body.msg_type(), rx.header.payload_len);
    }
    fn count_drop(&mut self, local: Nid, sender: Nid, kind: MsgType, len: u32) {
        if let Some(ni) = self.ni_mut(local) {
            ni.dropped.add(kind, len);
        }
        if let Some(p) = self.peer_nis.get_mut(&sender) {
            p.dropped.add(kind, len);
        }
    }
}
