//! Health of interfaces, ours and peers', and the pings that bring it back; credits.

use std::collections::VecDeque;

use super::engine::{Engine, Purpose, SendFlags, Sink};
use super::{NodeParams, Time};
use crate::core::{Event, EventKind, SharedBytes, SourceOptions, Status};
use crate::network::{Failure, TxId};
use crate::nid::{Nid, ProcessId};
use crate::wire::ping;

/// The health of an interface that has not failed.
pub(super) const MAX_HEALTH: u32 = 1000;
/// Doublings of the pause between recovery pings.
const MAX_DOUBLINGS: u32 = 9;

/// How well an interface does.
#[derive(Debug, Clone)]
pub(super) struct Health {
    pub(super) value: u32,
    /// Went to 0 and has not been back at 1000 since.
    pub(super) down: bool,
    pub(super) next_ping: Option<Time>,
    pings: u32,
    sick_since: Time,
}

impl Default for Health {
    fn default() -> Self {
        Self { value: MAX_HEALTH, down: false, next_ping: None, pings: 0, sick_since: Time::ZERO }
    }
}

impl Health {
    fn fail(&mut self, now: Time, params: &NodeParams) {
        if self.value == MAX_HEALTH {
            self.sick_since = now;
        }
        self.value = self.value.saturating_sub(params.health_sensitivity);
        self.down |= self.value == 0;
        if params.health_sensitivity > 0 && !self.is_given_up(now, params) {
            self.next_ping.get_or_insert(now + params.recovery_interval);
        }
    }

    fn succeed(&mut self, params: &NodeParams) {
        self.value = (self.value + params.health_sensitivity).min(MAX_HEALTH);
        if self.value == MAX_HEALTH {
            self.down = false;
            self.next_ping = None;
            self.pings = 0;
        }
    }

    /// Sets the time of the next ping after the one that begins now.
    fn back_off(&mut self, now: Time, params: &NodeParams) {
        let pause = params.recovery_interval * 2u32.pow(self.pings.min(MAX_DOUBLINGS));
        self.pings += 1;
        let next = now + pause.min(params.max_recovery_ping_interval);
        self.next_ping = (!self.is_given_up(now, params)).then_some(next);
    }

    /// Sick for so long that nobody asks any more.
    fn is_given_up(&self, now: Time, params: &NodeParams) -> bool {
        !params.recovery_limit.is_zero() && now >= self.sick_since + params.recovery_limit
    }
}

/// How many messages may be in flight, and those that wait for their turn.
#[derive(Debug, Clone)]
pub(super) struct Credits {
    /// Below zero: how many wait.
    pub(super) left: i32,
    pub(super) min: i32,
    queue: VecDeque<TxId>,
}

impl Credits {
    pub(super) fn new(credits: i32) -> Self {
        Self { left: credits, min: credits, queue: VecDeque::new() }
    }

    /// Takes a credit, or a place in the queue.
    pub(super) fn take(&mut self, id: TxId) -> bool {
        self.left -= 1;
        self.min = self.min.min(self.left);
        if self.left < 0 {
            self.queue.push_back(id);
        }
        self.left >= 0
    }

    /// Gives a credit back; the next in the queue has it then.
    pub(super) fn put(&mut self) -> Option<TxId> {
        self.left += 1;
        self.queue.pop_front()
    }

    /// A message that waited gives up: it leaves the queue, or gives back the credit it was just granted.
    pub(super) fn quit(&mut self, id: TxId) -> Option<TxId> {
        match self.queue.iter().position(|x| *x == id) {
            Some(at) => {
                self.queue.remove(at);
                self.left += 1;
                None
            }
            None => self.put(),
        }
    }
}

/// Whose health a failure touches, and whether to try again.
struct Class {
    local: bool,
    remote: bool,
    resend: bool,
}

fn class(failure: Failure) -> Class {
    use Failure::*;
    let (local, remote, resend) = match failure {
        LocalInterrupt | LocalDropped | LocalAborted | LocalNoRoute | LocalTimeout => (true, false, true),
        LocalError => (true, false, false),
        RemoteDropped => (false, true, true),
        RemoteError | RemoteTimeout => (false, true, false),
        NetworkTimeout => (true, true, false),
    };
    Class { local, remote, resend }
}

pub(super) fn status_of(failure: Failure) -> Status {
    use Failure::*;
    match failure {
        LocalTimeout | RemoteTimeout | NetworkTimeout => Status::TimedOut,
        RemoteDropped | RemoteError | LocalNoRoute => Status::Unreachable,
        _ => Status::Local,
    }
}

impl Engine {
    /// Notes a failed send; whether it may be sent again by another way. `others`: the far end has several.
    pub(super) fn note_failure(
        &mut self,
        now: Time,
        local: Nid,
        peer: Nid,
        failure: Failure,
        others: bool,
    ) -> bool {
        let class = class(failure);
        if class.local {
            self.local_failed(now, local);
        }
        if class.remote {
            self.peer_failed(now, peer);
        }
        let several_local = self.nis.len() > 1;
        class.resend && if class.local { several_local } else { others }
    }

    fn local_failed(&mut self, now: Time, nid: Nid) {
        let params = self.params.clone();
        let Some(ni) = self.ni_mut(nid) else { return };
        let was_up = ni.is_up();
        ni.health.fail(now, &params);
        if was_up && !ni.is_up() {
            self.post_ping_targets();
        }
    }

    /// A peer with one interface keeps its health, unless it is a gateway: there is nothing to choose.
    pub(super) fn peer_failed(&mut self, now: Time, nid: Nid) {
        let params = self.params.clone();
        if (self.peer_size(nid) > 1 || self.is_gateway(nid))
            && let Some(p) = self.peer_nis.get_mut(&nid)
        {
            p.health.fail(now, &params);
        }
    }

    pub(super) fn local_succeeded(&mut self, nid: Nid) {
        let params = self.params.clone();
        let Some(ni) = self.ni_mut(nid) else { return };
        if ni.health.value < MAX_HEALTH {
            let was_up = ni.is_up();
            ni.health.succeed(&params);
            if !was_up && ni.is_up() {
                self.post_ping_targets();
            }
        }
    }

    pub(super) fn peer_succeeded(&mut self, nid: Nid) {
        let params = self.params.clone();
        if let Some(p) = self.peer_nis.get_mut(&nid).filter(|p| p.health.value < MAX_HEALTH) {
            p.health.succeed(&params);
        }
    }

    /// Sends the recovery pings that are due.
    pub(super) fn recover(&mut self, now: Time) {
        let params = self.params.clone();
        let due = |h: &Health| h.next_ping.is_some_and(|t| t <= now);
        let local: Vec<Nid> = self.nis.iter().filter(|n| due(&n.health)).map(|n| n.config.nid).collect();
        let remote: Vec<Nid> =
            self.peer_nis.iter().filter(|(_, p)| due(&p.health)).map(|(nid, _)| *nid).collect();
        for nid in local {
            if let Some(ni) = self.ni_mut(nid) {
                ni.health.back_off(now, &params);
            }
            self.recovery_ping(now, nid, Some(nid));
        }
        for nid in remote {
            if let Some(p) = self.peer_nis.get_mut(&nid) {
                p.health.back_off(now, &params);
            }
            self.recovery_ping(now, nid, None);
        }
    }

    fn recovery_ping(&mut self, now: Time, nid: Nid, local: Option<Nid>) {
        let memory = SharedBytes::zeroed(ping::DISCOVERY_SINK);
        let sink = Sink::Internal(Purpose::Recovery(nid));
        let options = SourceOptions { truncate: true, ..SourceOptions::once(2) };
        let Ok(md) = self.core.md_bind(memory.memory(), options, sink) else { return };
        let target = ProcessId::lnet(nid);
        if let Ok(op) = self.core.get(md, target, 0, ping::MATCH_BITS, 0) {
            self.flags.insert(op, SendFlags { local, exact: true, recovery: true });
            let timeout = Some(self.params.lnd_timeout);
            self.track(now, op, md, target, timeout);
        }
    }

    pub(super) fn on_recovery(&mut self, nid: Nid, event: &Event) {
        if event.kind == EventKind::Send && !event.status.is_ok() {
            let _ = self.core.md_unlink(event.md, Status::Ok);
        }
        if event.kind == EventKind::Reply && event.status.is_ok() {
            // The health itself rose when the ping left, or the reply came in.
            let peer = self.peer_nis.get_mut(&nid).map(|p| &mut p.health);
            let local = self.nis.iter_mut().find(|n| n.config.nid == nid).map(|n| &mut n.health);
            if let Some(health) = local.or(peer) {
                health.pings = 0;
            }
        }
    }
}
