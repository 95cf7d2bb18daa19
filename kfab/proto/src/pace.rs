//! How fast a rail delivers. Where there are several, each end tells the other, by rail, how many bytes have come over it; from
//! that and the time the sender learns what each delivers, and shares the traffic so that all would be done at once.
//!
//! Acknowledgements cannot teach it: they count frames in the order in which they were sent, over all rails, so the slowest speaks for
//! all.

/// Bytes that came after which the other end is told at once; fewer are told with the next acknowledgement.
const REPORT: u64 = 64 << 10;
/// A measurement takes at least this long, ns, and this many bytes: else the rail had mostly nothing to do.
const SAMPLE: u64 = 500_000;
const SAMPLE_BYTES: u64 = 64 << 10;
/// Bytes under way over a rail that has not been measured yet, beside others.
const LEARN: u64 = 512 << 10;

/// Bodies that went over one connection, both ways.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes posted, and of those how many have arrived as far as we were told.
    posted: u64,
    confirmed: u64,
    /// Since when, and from how many bytes on, the rail is being measured.
    since: u64,
    base: u64,
    /// It has been busy since the last word: what comes next has no round trip in it.
    warm: bool,
    /// Bytes per ms, 0: not measured; and when it was last seen.
    rate: u64,
    seen_at: u64,
    /// Bytes of the body that is coming, of those that came, and of those how many the other end was told of.
    coming: u64,
    got: u64,
    told: u64,
}

impl Pace {
    /// A body leaves; `idle`: nothing else is under way.
    #[inline(always)]
    pub(crate) fn posted(&mut self, len: usize, idle: bool, now: u64) {
        if idle || self.posted == self.confirmed {
            self.warm = false;
            self.confirmed = self.posted;
            (self.base, self.since) = (self.posted, now);
        }
        self.posted += len as u64;
    }

    /// The other end has got so many in all. What cannot be is not believed.
    pub(crate) fn confirm(&mut self, total: u64, now: u64) {
        if total <= self.confirmed || total > self.posted {
            return;
        }
        self.confirmed = total;
        let (ns, bytes) = (now.saturating_sub(self.since), total - self.base);
        // The first word after a pause has the round trip in it: better than nothing.
        if std::mem::replace(&mut self.warm, true) || self.rate == 0 {
            if ns < SAMPLE {
                return;
            }
            if bytes >= SAMPLE_BYTES {
                let seen = (u128::from(bytes) * 1_000_000 / u128::from(ns)) as u64;
                // A rail that has nothing left to do was perhaps not asked for all it can.
                if self.rate == 0 || seen > self.rate || self.posted > total {
                    self.rate = if self.rate == 0 { seen } else { (3 * self.rate + seen) / 4 }.max(1);
                    self.seen_at = now;
                }
            }
        }
        (self.base, self.since) = (total, now);
    }

    /// Bytes per ms; 0: not measured. A rail that was slow and is left alone for that gets another chance: what is believed of it doubles
    /// every quarter of a second.
    pub(crate) fn rate(&self, now: u64) -> u64 {
        let quarters = now.saturating_sub(self.seen_at) / 250_000_000;
        self.rate.saturating_mul(1 << quarters.min(32)).min(u64::from(u32::MAX))
    }

    /// Bytes that have not arrived as far as we know: by what we were told, or by the acknowledgement of all but so many.
    pub(crate) fn under_way(&self, unacked: usize) -> u64 {
        (self.posted - self.confirmed).min(unacked as u64)
    }

    /// `true` if an unmeasured rail has enough to be measured by.
    pub(crate) fn is_trying(&self, unacked: usize) -> bool {
        self.rate == 0 && self.under_way(unacked) >= LEARN
    }

    /// A body is coming.
    #[inline(always)]
    pub(crate) fn comes(&mut self, len: usize) {
        self.coming = len as u64;
    }

    /// It has come.
    #[inline(always)]
    pub(crate) fn came(&mut self) {
        self.got += std::mem::take(&mut self.coming);
    }

    /// `true` if the other end should hear of it at once.
    pub(crate) fn is_due(&self) -> bool {
        self.got - self.told >= REPORT
    }

    /// What to tell the other end; `None`: nothing new.
    pub(crate) fn news(&self) -> Option<u64> {
        (self.got > self.told).then_some(self.got)
    }

    /// The other end was told all.
    pub(crate) fn has_told(&mut self) {
        self.told = self.got;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_rate_is_learned_and_a_pause_does_not_lower_it() {
        let mut p = Pace::default();
        let mut now = 0;
        for burst in 0..20 {
            // 1 MiB in pieces of 64 KiB, delivered at 10 MB/s after 30 ms of way; then a second of silence.
            for i in 0..16 {
                p.posted(64 << 10, i == 0, now);
            }
            let came = |i: u64| now + 30 * MS + i * (64 << 10) * MS / 10_000;
            for i in 1..=16 {
                p.confirm(burst * (1 << 20) + i * (64 << 10), came(i));
            }
            assert_eq!(p.under_way(1 << 20), 0);
            let rate = p.rate(now);
            // The first word of all has the way in it.
            let least = if burst < 1 { 6_000 } else { 9_000 };
            assert!((least..11_000).contains(&rate), "{rate} bytes/ms after burst {burst}");
            now = came(16) + 1000 * MS;
        }
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let mut p = Pace::default();
        p.posted(1000, true, 1);
        for (total, now) in [(1001, 1), (u64::MAX, 2), (0, 3)] {
            p.confirm(total, now);
        }
        assert_eq!((p.under_way(2000), p.under_way(100), p.rate(0)), (1000, 100, 0));
        p.confirm(500, MS);
        p.confirm(400, 2 * MS);
        // A clock that does not move measures nothing.
        p.confirm(1000, MS);
        assert_eq!((p.under_way(1000), p.rate(0)), (0, 0));
    }

    #[test]
    fn the_other_end_is_told_once() {
        let mut p = Pace::default();
        assert_eq!(p.news(), None);
        p.comes(1000);
        assert_eq!(p.news(), None);
        p.came();
        p.came();
        assert!(!p.is_due() && p.news() == Some(1000));
        p.comes(64 << 10);
        p.came();
        assert!(p.is_due());
        p.has_told();
        assert!(!p.is_due() && p.news().is_none());
    }
}
