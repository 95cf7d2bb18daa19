//! How fast a rail delivers. Where there are several, each end tells the other, by rail, how many bytes have come over it; from
//! that and the time the sender learns what each delivers, and shares the traffic so that all would be done at once.
//!
//! Acknowledgements cannot teach it: they count frames in the order in which they were sent, over all rails, so the slowest speaks for
//! all.
//!
//! Where the processors are the limit and not the rails, what a rail delivers is what it is given: any share would stay as it is. So a
//! rail that seems slow is given twice as much from time to time (`Trial`), and more and more as long as it delivers that.

/// Rails count as equally fast up to this ratio.
const ALIKE: u64 = 3;
/// Bytes that came after which the other end is told at once; fewer are told with the next acknowledgement.
const REPORT: u64 = 64 << 10;
/// A measurement takes at least this long, ns, and this many bytes: else the rail had mostly nothing to do.
const SAMPLE: u64 = 500_000;
const SAMPLE_BYTES: u64 = 64 << 10;
/// Bytes under way over a rail that has not been measured yet, beside others.
const LEARN: u64 = 512 << 10;
/// A trial takes at least so many ns and so many bytes: several measurements.
const TRIAL: u64 = 32_000_000;
const TRIAL_BYTES: u64 = 4 * SAMPLE_BYTES;
/// The pause before the first trial, in trials: a quarter of a second where the rail is not very slow. It doubles with each that ends, so
/// often at most, and is short again after one that helped. So a rail that is slow for good is given too much for 1/129 of the time it is
/// at work, at first for 1/9.
const PAUSE: u64 = 8;
const DOUBLED: u32 = 4;
/// Where no rail delivers so much (bytes per ms), they are the limit and nothing is tried: what a trial gives too much takes as long as
/// all that is under way over the fastest, some MiB, which is no longer than the trial from here on.
const FAST: u64 = (4 << 20) * 1_000_000 / TRIAL;

/// Whether a rail that seems slow delivers more if it is given more. Time and bytes are those of a rail at work: it is not tried more often
/// where traffic comes in bursts.
#[derive(Debug, Default)]
struct Trial {
    /// Now; else there is a pause.
    on: bool,
    /// What came in this trial or pause, and in how many ns.
    ns: u64,
    bytes: u64,
    /// Bytes per ms in the pause before, or in the part of the trial that is over: at least what was believed, for a rail that was
    /// seldom asked delivers more when it is.
    before: u64,
    /// How long the last part of the last trial took, ns, and how many have ended since one helped.
    took: u64,
    failed: u32,
}

impl Trial {
    /// So much came meanwhile; `rate`: what the rail is believed to deliver by now.
    fn went(&mut self, ns: u64, bytes: u64, rate: u64) {
        self.ns = self.ns.saturating_add(ns);
        self.bytes += bytes;
        let came = per_ms(self.bytes, self.ns);
        if !self.on {
            if self.ns < self.took.max(TRIAL).saturating_mul(PAUSE << self.failed) {
                return;
            }
            self.on = true;
        } else if self.ns < TRIAL || self.bytes < TRIAL_BYTES {
            return;
        } else if came >= self.before + self.before / 4 {
            // It goes on: what was won would be lost in a pause.
            self.failed = 0;
        } else {
            self.on = false;
            (self.took, self.failed) = (self.ns, (self.failed + 1).min(DOUBLED));
        }
        (self.before, self.ns, self.bytes) = (came.max(rate), 0, 0);
    }
}

fn per_ms(bytes: u64, ns: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(ns.max(1))).unwrap_or(u64::MAX)
}

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
    trial: Trial,
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

    /// The other end has got so many in all. What cannot be is not believed. `best`: what was [`Pace::measured`] of
    /// the peer's fastest rail.
    pub(crate) fn confirm(&mut self, total: u64, best: u64, now: u64) {
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
                let seen = per_ms(bytes, ns);
                // A rail that has nothing left to do was perhaps not asked for all it can.
                if self.rate == 0 || seen > self.rate || self.posted > total {
                    self.rate = if self.rate == 0 { seen } else { (3 * self.rate + seen) / 4 }.max(1);
                    self.seen_at = now;
                }
            }
        }
        if self.rate == 0 || self.rate > best / ALIKE || best < FAST {
            self.trial = Trial::default();
        } else {
            self.trial.went(ns, bytes, self.rate);
        }
        (self.base, self.since) = (total, now);
    }

    /// Bytes per ms, as seen last; 0: not measured.
    pub(crate) fn measured(&self) -> u64 {
        self.rate
    }

    /// Bytes per ms; 0: not measured. A rail that was slow and is left alone for that gets another chance: what is believed of it doubles
    /// every quarter of a second.
    pub(crate) fn rate(&self, now: u64) -> u64 {
        let quarters = now.saturating_sub(self.seen_at) / 250_000_000;
        self.rate.saturating_mul(1 << quarters.min(32)).min(u64::from(u32::MAX))
    }

    /// What the traffic is shared by; `best`: the rate of the peer's fastest rail. Not measured: 0.
    pub(crate) fn speed(&self, best: u64, now: u64) -> u64 {
        match self.rate(now) {
            // Nearly alike: what each has under way tells better than the clock.
            rate if rate > best / ALIKE => best,
            // So less than the fastest is believed in a trial, too.
            rate if self.trial.on => 2 * rate,
            rate => rate,
        }
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
                p.confirm(burst * (1 << 20) + i * (64 << 10), 0, came(i));
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
            p.confirm(total, 0, now);
        }
        assert_eq!((p.under_way(2000), p.under_way(100), p.rate(0)), (1000, 100, 0));
        p.confirm(500, 0, MS);
        p.confirm(400, 0, 2 * MS);
        // A clock that does not move measures nothing.
        p.confirm(1000, 0, MS);
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

    /// What limits two rails, in bytes per ms.
    enum Limit {
        /// The processors: what each has under way gets its part of them.
        Common(u64),
        /// The rails.
        Own([u64; 2]),
    }

    const FRAME: u64 = 64 << 10;

    /// Bulk over two rails, in steps of 100 us: shared as `Machine::least_loaded` shares it, and acknowledged in its order.
    struct Bulk {
        limit: Limit,
        paces: [Pace; 2],
        /// Bytes that each rail still has to deliver, and of those delivered what the sender was not told of.
        queued: [u64; 2],
        untold: [u64; 2],
        got: [u64; 2],
        /// Frames not acknowledged: their rails, and what of all the rail's bytes has to be there.
        window: std::collections::VecDeque<(usize, u64)>,
        now: u64,
        /// Steps in which a rail was tried.
        tried: u64,
    }

    impl Bulk {
        fn new(limit: Limit, rates: [u64; 2]) -> Bulk {
            let paces = rates.map(|rate| Pace { rate, ..Default::default() });
            let [queued, untold, got] = [[0; 2]; 3];
            Bulk { limit, paces, queued, untold, got, window: Default::default(), now: 0, tried: 0 }
        }

        fn best(&self) -> u64 {
            self.paces.iter().map(|p| p.rate(self.now)).max().unwrap()
        }

        fn unacked(&self, r: usize) -> usize {
            self.window.iter().filter(|(on, _)| *on == r).count() * FRAME as usize
        }

        fn send(&mut self) {
            // 8 MiB under way, of those 4 MiB in the buffers of one rail.
            while self.window.len() < 128 {
                let best = self.best();
                let done = |r: &usize| {
                    let p = &self.paces[*r];
                    (p.under_way(self.unacked(*r)) + FRAME + 64) * 1024 / p.speed(best, self.now)
                };
                let r = (0..2).min_by_key(done).unwrap();
                if self.queued[r] + FRAME > 4 << 20 {
                    return;
                }
                let idle = self.unacked(r) == 0;
                self.paces[r].posted(FRAME as usize, idle, self.now);
                self.queued[r] += FRAME;
                self.window.push_back((r, self.got[r] + self.queued[r]));
            }
        }

        fn step(&mut self) {
            self.send();
            self.tried += u64::from(self.paces.iter().any(|p| p.trial.on));
            let all = self.queued.iter().sum::<u64>().max(1);
            for r in 0..2 {
                let can = match self.limit {
                    Limit::Common(rate) => rate * self.queued[r] / all / 10,
                    Limit::Own(rates) => rates[r] / 10,
                };
                let came = can.min(self.queued[r]);
                self.queued[r] -= came;
                self.got[r] += came;
                self.untold[r] += came;
            }
            self.now += MS / 10;
            while self.window.pop_front_if(|(r, end)| *end <= self.got[*r]).is_some() {}
            for r in 0..2 {
                if self.untold[r] >= REPORT {
                    self.untold[r] = 0;
                    let best = self.paces.iter().map(Pace::measured).max().unwrap();
                    self.paces[r].confirm(self.got[r], best, self.now);
                }
            }
        }

        /// Bytes per ms that came over each, in so many seconds.
        fn run(&mut self, seconds: u64) -> [u64; 2] {
            let before = self.got;
            (0..seconds * 10_000).for_each(|_| self.step());
            [0, 1].map(|r| (self.got[r] - before[r]) / (seconds * 1000))
        }
    }

    #[test]
    fn a_healed_rail_is_used_again_where_the_processors_are_the_limit() {
        for (all, part) in [(200_000, 20), (200_000, 100), (2_000_000, 50), (2_000_000, 100)] {
            let mut bulk = Bulk::new(Limit::Common(all), [all - all / part, all / part]);
            bulk.run(3);
            let [one, healed] = bulk.run(1);
            assert!(healed * 4 >= one + healed, "{healed} of {} bytes/ms, from 1/{part}", one + healed);
        }
    }

    #[test]
    fn a_slow_rail_is_seldom_given_too_much() {
        for rates in [
            [2_000_000, 200_000],
            [500_000, 50_000],
            [500_000, 150_000],
            [500_000, 5_000],
            [150_000, 15_000],
            [50_000, 5_000],
            [5_000, 500],
        ] {
            let mut bulk = Bulk::new(Limit::Own(rates), rates);
            let sum = rates.iter().sum::<u64>() as f64;
            let first = bulk.run(10).iter().sum::<u64>() as f64 / sum;
            bulk.run(50);
            bulk.tried = 0;
            let later = bulk.run(60).iter().sum::<u64>() as f64 / sum;
            let tried = bulk.tried as f64 / 600_000.0;
            println!(
                "{rates:?} bytes/ms: {first:.3} and {later:.3} of their sum; tried for {tried:.4} of the time"
            );
            assert!(first > 0.95 && later > 0.95, "{first:.3} and {later:.3} of {rates:?} bytes/ms");
            assert!(tried < 0.02, "{rates:?}: tried for {tried} of the time");
            assert_eq!(tried > 0.0, rates[0] >= FAST, "{rates:?}");
        }
    }

    #[test]
    fn rails_that_are_alike_are_not_tried() {
        for limit in [Limit::Common(400_000), Limit::Own([200_000; 2]), Limit::Own([200_000, 100_000])] {
            let mut bulk = Bulk::new(limit, [200_000, 140_000]);
            bulk.run(10);
            assert_eq!(bulk.tried, 0);
        }
    }
}
