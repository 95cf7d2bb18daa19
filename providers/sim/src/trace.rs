//! What happened in a world: counters, a fingerprint of the whole run, and the latest entries for people.

use crate::net::Place;
use crate::rng::mix;
use std::collections::VecDeque;
use std::fmt;

/// Counters of a world since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorldStats {
    /// Frames that ports accepted.
    pub posted: u64,
    /// Frames that reached the receiving port, duplicates included.
    pub arrived: u64,
    /// Frames lost by chance, cut, dead rail, dead host or lifetime.
    pub lost: u64,
    /// Second copies made.
    pub duplicated: u64,
    /// Frames that were given an extra delay.
    pub delayed: u64,
    /// Frames dropped as the receiver did not poll.
    pub overflowed: u64,
    /// Times that `post` accepted fewer frames than offered.
    pub refused: u64,
    /// One-sided operations done at the target.
    pub rma: u64,
    /// One-sided operations refused by the target.
    pub rma_refused: u64,
}

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    at: u64,
    what: &'static str,
    from: Place,
    to: Place,
    conn: u64,
    number: u64,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>12} ns  {:<10} {}.{} -> {}.{}  conn {} ({})",
            self.at,
            self.what,
            self.from.host,
            self.from.rail,
            self.to.host,
            self.to.rail,
            self.conn,
            self.number
        )
    }
}

#[derive(Debug, Default)]
pub(crate) struct Trace {
    keep: usize,
    entries: VecDeque<Entry>,
    fingerprint: u64,
    pub(crate) stats: WorldStats,
    /// What callers did against the contract.
    pub(crate) violations: Vec<String>,
}

/// The most violations that are kept.
const MAX_VIOLATIONS: usize = 64;

impl Trace {
    pub(crate) fn new(keep: usize) -> Trace {
        Trace { keep, ..Trace::default() }
    }

    pub(crate) fn note(
        &mut self,
        at: u64,
        what: &'static str,
        from: Place,
        to: Place,
        conn: u64,
        number: u64,
    ) {
        let name = what.bytes().fold(0u64, |h, b| h.wrapping_mul(257).wrapping_add(u64::from(b)));
        for word in [at, name, conn, number] {
            self.fingerprint = mix(self.fingerprint.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ word);
        }
        if self.keep > 0 {
            if self.entries.len() == self.keep {
                self.entries.pop_front();
            }
            self.entries.push_back(Entry { at, what, from, to, conn, number });
        }
    }

    pub(crate) fn violation(&mut self, at: u64, what: String) {
        if self.violations.len() < MAX_VIOLATIONS {
            self.violations.push(format!("{at} ns: {what}"));
        }
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.entries.iter().map(Entry::to_string).collect()
    }
}
