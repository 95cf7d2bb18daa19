//! The links of a world: who can reach whom, how long it takes, what gets lost. Called by `flow`.

use crate::config::{Faults, Path};
use std::collections::{BTreeMap, BTreeSet};

/// Where a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) host: u32,
    pub(crate) rail: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Net {
    default: Faults,
    /// Later rules win; one rule for each path.
    rules: Vec<(Path, Faults)>,
    cuts: Vec<Path>,
    dead_rails: BTreeSet<u32>,
    /// When each link with a bandwidth has sent what it was given.
    busy: BTreeMap<(u32, u32, u32), u64>,
}

impl Net {
    pub(crate) fn new(default: Faults) -> Net {
        Net { default, ..Net::default() }
    }

    pub(crate) fn set_faults(&mut self, path: Path, faults: Faults) {
        self.rules.retain(|(p, _)| *p != path);
        self.rules.push((path, faults));
    }

    pub(crate) fn clear_faults(&mut self) {
        self.rules.clear();
    }

    pub(crate) fn faults(&self, from: Place, to: Place) -> &Faults {
        let hit = self.rules.iter().rev().find(|(p, _)| p.matches(from.host, to.host, from.rail));
        hit.map_or(&self.default, |(_, f)| f)
    }

    pub(crate) fn cut(&mut self, path: Path) {
        if !self.cuts.contains(&path) {
            self.cuts.push(path);
        }
    }

    pub(crate) fn heal(&mut self, path: Path) {
        self.cuts.retain(|p| *p != path);
    }

    pub(crate) fn heal_all(&mut self) {
        self.cuts.clear();
    }

    pub(crate) fn set_rail(&mut self, rail: u32, up: bool) {
        if up {
            self.dead_rails.remove(&rail);
        } else {
            self.dead_rails.insert(rail);
        }
    }

    pub(crate) fn rail_is_dead(&self, rail: u32) -> bool {
        self.dead_rails.contains(&rail)
    }

    /// `true` if nothing gets from one place to the other.
    pub(crate) fn is_cut(&self, from: Place, to: Place) -> bool {
        self.rail_is_dead(from.rail)
            || self.rail_is_dead(to.rail)
            || self.cuts.iter().any(|p| p.matches(from.host, to.host, from.rail))
    }

    /// When `bytes` given to the link at `now` have left.
    pub(crate) fn departure(&mut self, from: Place, to: Place, bytes: usize, now: u64) -> u64 {
        let bps = self.faults(from, to).bandwidth_bps;
        if bps == 0 {
            return now;
        }
        let busy = self.busy.entry((from.host, to.host, from.rail)).or_insert(0);
        let takes = (bytes as u128 * 8_000_000_000) / u128::from(bps);
        *busy = (*busy).max(now).saturating_add(takes as u64);
        *busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: u32, rail: u32) -> Place {
        Place { host, rail }
    }

    #[test]
    fn the_latest_rule_that_matches_wins() {
        let mut n = Net::new(Faults::default());
        n.set_faults(Path::ALL, Faults { loss: 0.1, ..Faults::default() });
        n.set_faults(Path::one_way(1, 2).on_rail(3), Faults { loss: 0.2, ..Faults::default() });
        assert_eq!(n.faults(at(1, 3), at(2, 0)).loss, 0.2);
        assert_eq!(n.faults(at(1, 0), at(2, 3)).loss, 0.1);
        assert_eq!(n.faults(at(2, 3), at(1, 3)).loss, 0.1);
        n.clear_faults();
        assert_eq!(n.faults(at(1, 3), at(2, 0)).loss, 0.0);
    }

    #[test]
    fn cuts_have_a_direction_and_dead_rails_have_none() {
        let mut n = Net::new(Faults::default());
        n.cut(Path::one_way(1, 2));
        assert!(n.is_cut(at(1, 0), at(2, 0)) && !n.is_cut(at(2, 0), at(1, 0)));
        n.heal(Path::one_way(1, 2));
        assert!(!n.is_cut(at(1, 0), at(2, 0)));
        n.set_rail(4, false);
        assert!(n.is_cut(at(1, 4), at(2, 0)) && n.is_cut(at(1, 0), at(2, 4)));
        n.set_rail(4, true);
        assert!(!n.is_cut(at(1, 4), at(2, 0)));
    }

    #[test]
    fn a_slow_link_is_a_queue() {
        let mut n = Net::new(Faults { bandwidth_bps: 8_000_000, ..Faults::default() });
        assert_eq!(n.departure(at(1, 0), at(2, 0), 1000, 5), 1_000_005);
        assert_eq!(n.departure(at(1, 0), at(2, 0), 1000, 5), 2_000_005);
        assert_eq!(n.departure(at(2, 0), at(1, 0), 1000, 5), 1_000_005);
        assert_eq!(n.departure(at(1, 0), at(2, 0), 0, 9_000_000), 9_000_000);
    }
}
