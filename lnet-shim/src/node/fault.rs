//! Fault rules: drop or delay messages by source, destination, portal, type; one in N or one per interval.
//!
//! As in LNet, a plain drop rule works on messages *arriving* here; one with an error makes *sends* fail with that class.
//! Delay rules work both ways.

use super::Time;
use crate::network::Failure;
use crate::nid::{Nid, NidList};
use crate::wire::lnet::{LnetHeader, MsgType};

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum FaultAction {
    /// Lose it on arrival.
    Drop,
    /// Make the send fail.
    Fail(Failure),
    /// Make the send fail, each time in another way.
    FailRandom,
    /// Hold it back this long.
    Delay(std::time::Duration),
}

/// How often a rule does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum Frequency {
    /// Once, at a random place, in each run of this many.
    OneIn(u32),
    /// Once in each span of this length, the first at a random time within it.
    Every(std::time::Duration),
    /// Always.
    Always,
}

/// A rule.
#[derive(Debug, Clone)]
pub struct FaultRule {
    /// Messages from these; `None`: all.
    pub src: Option<NidList>,
    /// Messages to these; `None`: all.
    pub dst: Option<NidList>,
    /// Only at this interface.
    pub local: Option<Nid>,
    /// Only for this portal.
    pub portal: Option<u32>,
    /// Only of this type.
    pub kind: Option<MsgType>,
    /// How often.
    pub frequency: Frequency,
    /// What.
    pub action: FaultAction,
}

impl FaultRule {
    /// A rule for all messages, always.
    pub fn all(action: FaultAction) -> Self {
        Self {
            src: None,
            dst: None,
            local: None,
            portal: None,
            kind: None,
            frequency: Frequency::Always,
            action,
        }
    }

    fn matches(&self, local: Nid, header: &LnetHeader) -> bool {
        let in_list = |list: &Option<NidList>, nid| list.as_ref().is_none_or(|l| l.contains(nid));
        in_list(&self.src, header.src.nid)
            && in_list(&self.dst, header.dest.nid)
            && self.local.is_none_or(|l| l == local)
            && self.portal.is_none_or(|p| header.body.portal() == Some(p))
            && self.kind.is_none_or(|k| header.body.msg_type() == k)
    }
}

struct Active {
    id: u64,
    rule: FaultRule,
    seen: u64,
    hits: u64,
    pick: u64,
    next: Option<Time>,
}

/// The rules of a node.
pub(super) struct Faults {
    rules: Vec<Active>,
    state: u64,
    next_id: u64,
}

/// The most rules a node takes.
pub(super) const MAX_RULES: usize = 1024;

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self { rules: Vec::new(), state: seed | 1, next_id: 0 }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// Adds a rule; `None` if there are too many.
    pub(super) fn add(&mut self, rule: FaultRule) -> Option<u64> {
        if self.rules.len() >= MAX_RULES {
            return None;
        }
        self.next_id += 1;
        self.rules.push(Active { id: self.next_id, rule, seen: 0, hits: 0, pick: 0, next: None });
        Some(self.next_id)
    }

    /// Removes one rule, or all. Gives how many went.
    pub(super) fn remove(&mut self, id: Option<u64>) -> usize {
        let before = self.rules.len();
        self.rules.retain(|r| id.is_some_and(|id| id != r.id));
        before - self.rules.len()
    }

    /// Rules with their ids, messages seen and messages hit.
    pub(super) fn list(&self) -> Vec<(u64, FaultRule, u64, u64)> {
        self.rules.iter().map(|r| (r.id, r.rule.clone(), r.seen, r.hits)).collect()
    }

    /// The first rule among those `wanted` that strikes this message.
    pub(super) fn strike(
        &mut self,
        now: Time,
        local: Nid,
        header: &LnetHeader,
        wanted: impl Fn(&FaultAction) -> bool,
    ) -> Option<FaultAction> {
        if self.rules.is_empty() {
            return None;
        }
        let mut rules = std::mem::take(&mut self.rules);
        let mut struck = None;
        for active in rules.iter_mut().filter(|a| wanted(&a.rule.action) && a.rule.matches(local, header)) {
            if self.fires(now, active) {
                active.hits += 1;
                struck = Some(active.rule.action);
                break;
            }
        }
        self.rules = rules;
        struck
    }

    fn fires(&mut self, now: Time, a: &mut Active) -> bool {
        let at = a.seen;
        a.seen += 1;
        match a.rule.frequency {
            Frequency::Always => true,
            Frequency::OneIn(n) => {
                let n = u64::from(n.max(1));
                if at.is_multiple_of(n) {
                    a.pick = if n <= 2 { 0 } else { self.random() % n };
                }
                at % n == a.pick
            }
            Frequency::Every(span) => {
                let micros = (span.as_micros() as u64).max(1);
                let jitter = std::time::Duration::from_micros(self.random() % micros);
                let next = *a.next.get_or_insert(now + jitter);
                if now < next {
                    return false;
                }
                a.next = Some(now + span);
                true
            }
        }
    }

    /// One of the failures, at random.
    pub(super) fn random_failure(&mut self) -> Failure {
        use Failure::*;
        let all = [LocalInterrupt, LocalDropped, LocalAborted, LocalNoRoute, LocalError, LocalTimeout];
        let rest = [RemoteError, RemoteDropped, RemoteTimeout, NetworkTimeout];
        let pick = (self.random() % 10) as usize;
        all.get(pick).copied().unwrap_or(rest[pick.saturating_sub(6) % 4])
    }
}
