//! The duplicate filter: which sequence numbers of a peer have arrived. In order it costs one comparison; out of order (several
//! rails, a lossy one) it keeps a bit for each frame ahead of the first gap, up to [`WINDOW`].

use crate::wire::{SEQ_MOD, seq_ahead};

/// How far ahead of the first gap a frame may be. More than any sender may have unacknowledged.
pub(crate) const WINDOW: u32 = 16_384;

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not seen before.
    New,
    /// Seen before: drop it.
    Duplicate,
    /// No honest sender is that far ahead.
    Impossible,
}

/// The sequence numbers seen from one peer.
#[derive(Debug, Default)]
pub(crate) struct Dedup {
    /// All numbers before this one have arrived.
    next: u32,
    /// Bit `n mod WINDOW`: number n, ahead of `next`, has arrived. Empty until something came out of order.
    ahead: Vec<u64>,
    /// Numbers set in `ahead`.
    count: u32,
}

impl Dedup {
    /// All numbers before this one have arrived.
    #[inline]
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// `true` if `seq` comes right after all that has arrived, and nothing has come early.
    #[inline(always)]
    pub(crate) fn is_next(&self, seq: u32) -> bool {
        seq == self.next && self.count == 0
    }

    /// Whether `seq` is new; does not record it.
    #[inline]
    pub(crate) fn look(&self, seq: u32) -> Verdict {
        if seq == self.next {
            return Verdict::New;
        }
        let d = seq_ahead(self.next, seq);
        if d >= SEQ_MOD / 2 {
            return Verdict::Duplicate;
        }
        if d >= WINDOW {
            return Verdict::Impossible;
        }
        if self.bit(d) { Verdict::Duplicate } else { Verdict::New }
    }

    /// Records `seq`, which [`Dedup::look`] called new.
    #[inline]
    pub(crate) fn record(&mut self, seq: u32) {
        if seq == self.next && self.count == 0 {
            self.next = (self.next + 1) & (SEQ_MOD - 1);
        } else {
            self.record_ahead(seq);
        }
    }

    /// Records the next so many, each of which was [`Dedup::is_next`].
    #[inline(always)]
    pub(crate) fn skip(&mut self, n: u32) {
        debug_assert!(self.count == 0);
        self.next = (self.next + n) & (SEQ_MOD - 1);
    }

    fn bit(&self, d: u32) -> bool {
        self.count > 0 && self.ahead[self.slot(d).0] & self.slot(d).1 != 0
    }

    /// The ring position of `next + d`: numbers keep their place while `next` moves on.
    fn slot(&self, d: u32) -> (usize, u64) {
        let at = (self.next + d) & (WINDOW - 1);
        ((at / 64) as usize, 1 << (at % 64))
    }

    fn record_ahead(&mut self, seq: u32) {
        if self.ahead.is_empty() {
            self.ahead = vec![0; (WINDOW / 64) as usize];
        }
        let (w, b) = self.slot(seq_ahead(self.next, seq));
        self.ahead[w] |= b;
        self.count += 1;
        while self.count > 0 && self.bit(0) {
            let (w, b) = self.slot(0);
            self.ahead[w] &= !b;
            self.count -= 1;
            self.next = (self.next + 1) & (SEQ_MOD - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn agrees_with_a_set(start in 0..SEQ_MOD, steps in proptest::collection::vec(0u32..300, 1..600)) {
            let mut d = Dedup { next: start, ..Default::default() };
            let mut seen = HashSet::new();
            for s in steps {
                // Numbers around the first gap, also behind it.
                let seq = (start + s) & (SEQ_MOD - 1);
                let want = if seen.contains(&seq) { Verdict::Duplicate } else { Verdict::New };
                prop_assert_eq!(d.look(seq), want);
                if want == Verdict::New {
                    d.record(seq);
                    seen.insert(seq);
                }
                let mut next = start;
                while seen.contains(&next) {
                    next = (next + 1) & (SEQ_MOD - 1);
                }
                prop_assert_eq!(d.next(), next);
            }
        }
    }

    #[test]
    fn far_ahead_is_impossible_and_far_behind_a_duplicate() {
        let d = Dedup::default();
        assert_eq!(d.look(WINDOW), Verdict::Impossible);
        assert_eq!(d.look(WINDOW - 1), Verdict::New);
        assert_eq!(d.look(SEQ_MOD - 1), Verdict::Duplicate);
    }
}
