//! Faults on purpose, part of the public API: rules that drop, delay, double, cut or stall, each with a chance and a seed, so
//! that a user's tests can see what a bad network does to them, and see it again.

use crate::message::PeerId;

/// What a rule does to a frame it applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAction {
    /// It never leaves (or never arrives).
    Drop,
    /// It leaves this many nanoseconds late.
    Delay {
        /// How late, ns.
        ns: u64,
    },
    /// It leaves twice.
    Duplicate,
    /// The rail is closed and stays closed while the rule exists.
    Cut,
    /// Nothing of the peer is heard or sent while the rule exists.
    Stall,
}

impl FaultAction {
    /// It lasts, instead of befalling frames one by one.
    fn lasts(self) -> bool {
        matches!(self, FaultAction::Cut | FaultAction::Stall)
    }
}

/// Which frames a rule applies to, and how often.
#[derive(Clone, Copy, Debug)]
pub struct FaultRule {
    /// Only to or from this peer.
    pub peer: Option<PeerId>,
    /// Only over this port (in the order of `Fabric`'s rails).
    pub port: Option<usize>,
    /// What happens.
    pub action: FaultAction,
    /// Chance per frame: 0.0 never, 1.0 always. Of what lasts ([`FaultAction::Cut`], [`FaultAction::Stall`]): whether the rule takes effect
    /// at all, drawn once, when it is added.
    pub chance: f64,
    /// Seed of the rule's own random numbers: the same seed and traffic give the same faults.
    pub seed: u64,
}

/// Names a rule, to remove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultId(pub u64);

/// The most rules at once.
pub const MAX_RULES: usize = 64;

#[derive(Debug)]
struct Active {
    id: FaultId,
    rule: FaultRule,
    state: u64,
    hits: u64,
    /// The draw of a rule that lasts said yes.
    on: bool,
}

impl Active {
    fn is_for(&self, peer: PeerId, port: usize) -> bool {
        self.rule.peer.is_none_or(|p| p == peer) && self.rule.port.is_none_or(|p| p == port)
    }

    fn draw(&mut self) -> bool {
        let draw = (split_mix(&mut self.state) >> 11) as f64 / (1u64 << 53) as f64;
        draw < self.rule.chance
    }

    fn strike(&mut self) -> Strike {
        self.hits += 1;
        Strike { action: self.rule.action, rule: self.id, hits: self.hits }
    }
}

/// A rule has struck a frame: so often by now.
pub(crate) struct Strike {
    pub(crate) action: FaultAction,
    pub(crate) rule: FaultId,
    pub(crate) hits: u64,
}

/// The rules of a lane.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<Active>,
    next: u64,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Faults {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// A peer goes by another name from now on.
    pub(crate) fn rename_peer(&mut self, old: PeerId, new: PeerId) {
        for r in self.rules.iter_mut().filter(|r| r.rule.peer == Some(old)) {
            r.rule.peer = Some(new);
        }
    }

    pub(crate) fn add(&mut self, rule: FaultRule) -> Option<FaultId> {
        if self.rules.len() >= MAX_RULES {
            return None;
        }
        self.next += 1;
        let id = FaultId(self.next);
        let mut new = Active { id, rule, state: rule.seed, hits: 0, on: false };
        new.on = rule.action.lasts() && new.draw();
        self.rules.push(new);
        Some(id)
    }

    /// Removes a rule; how often it struck.
    pub(crate) fn remove(&mut self, id: FaultId) -> Option<u64> {
        let at = self.rules.iter().position(|a| a.id == id)?;
        Some(self.rules.remove(at).hits)
    }

    /// The first rule that strikes this frame.
    pub(crate) fn strike(&mut self, peer: PeerId, port: usize) -> Option<Strike> {
        let mut all = self.rules.iter_mut().filter(|a| a.is_for(peer, port));
        all.find_map(|a| (if a.rule.action.lasts() { a.on } else { a.draw() }).then(|| a.strike()))
    }

    /// `true` if a rule stalls this peer.
    pub(crate) fn stalls(&self, peer: PeerId) -> bool {
        let of = |a: &Active| a.rule.action == FaultAction::Stall && a.rule.peer.is_none_or(|p| p == peer);
        self.rules.iter().any(|a| a.on && of(a))
    }

    /// `true` if a rule cuts this port for this peer.
    pub(crate) fn cuts(&self, peer: PeerId, port: usize) -> bool {
        self.rules.iter().any(|a| a.on && a.rule.action == FaultAction::Cut && a.is_for(peer, port))
    }

    /// A connection to this peer over this port is to be closed: the rule that says so.
    pub(crate) fn cut(&mut self, peer: PeerId, port: usize) -> Option<Strike> {
        let cuts = |a: &&mut Active| a.on && a.rule.action == FaultAction::Cut && a.is_for(peer, port);
        self.rules.iter_mut().find(cuts).map(Active::strike)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_strikes_by_seed_and_only_whom_it_names() {
        let peer = |i| PeerId { index: i, generation: 0 };
        let rule =
            FaultRule { peer: Some(peer(1)), port: None, action: FaultAction::Drop, chance: 0.3, seed: 7 };
        let run = || {
            let mut f = Faults::default();
            f.add(rule).unwrap();
            (0..1000).map(|_| f.strike(peer(1), 0).is_some()).collect::<Vec<_>>()
        };
        let hits = run().iter().filter(|h| **h).count();
        assert!((200..400).contains(&hits), "{hits} of 1000 at chance 0.3");
        assert_eq!(run(), run());
        let mut f = Faults::default();
        let id = f.add(FaultRule { chance: 1.0, ..rule }).unwrap();
        assert!(f.strike(peer(2), 0).is_none());
        let s = f.strike(peer(1), 3).unwrap();
        assert_eq!((s.action, s.rule, s.hits), (FaultAction::Drop, id, 1));
        assert_eq!(f.remove(id), Some(1));
        assert!(f.is_empty());
    }
}
