//! How long calls take: the server's estimate of its service time, and the client's patience before it asks again.

use std::time::Duration;

const BINS: usize = 4;

/// The longest service time of late, kept in four bins that age.
#[derive(Clone, Debug)]
pub(crate) struct Estimate {
    bins_us: [u32; BINS],
    bin_began: u64,
    bin_ns: u64,
}

impl Estimate {
    pub(crate) fn new(history: Duration) -> Estimate {
        Estimate { bins_us: [0; BINS], bin_began: 0, bin_ns: history.as_nanos() as u64 / BINS as u64 }
    }

    /// A call took this long.
    #[inline]
    pub(crate) fn took(&mut self, now: u64, ns: u64) {
        while now >= self.bin_began + self.bin_ns {
            if now >= self.bin_began + self.bin_ns * BINS as u64 {
                self.bins_us = [0; BINS];
                self.bin_began = now;
            } else {
                self.bins_us.rotate_right(1);
                self.bins_us[0] = 0;
                self.bin_began += self.bin_ns;
            }
        }
        self.bins_us[0] = self.bins_us[0].max(us(ns));
    }

    /// Microseconds that a call may take.
    #[inline]
    pub(crate) fn us(&self) -> u32 {
        self.bins_us.into_iter().fold(0, u32::max)
    }
}

/// Nanoseconds as microseconds that fit a header; the longest that fits is over an hour.
#[inline]
pub(crate) fn us(ns: u64) -> u32 {
    u32::try_from(ns / 1000).unwrap_or(u32::MAX)
}

/// A time in nanoseconds; the longest that fits is over 500 years.
pub(crate) fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A client's patience with one portal: what replies took (RFC 6298), and what the server says they may take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience {
    mean_ns: u64,
    deviation_ns: u64,
    service_ns: u64,
}

impl Patience {
    /// A reply to a call sent once came, after `ns` if that was measured. The server's estimate rode in it.
    #[inline]
    pub(crate) fn replied(&mut self, ns: Option<u64>, estimate_us: u32) {
        match ns {
            Some(ns) if self.mean_ns == 0 => (self.mean_ns, self.deviation_ns) = (ns, ns / 2),
            Some(ns) => {
                let off = self.mean_ns.abs_diff(ns);
                self.deviation_ns = self.deviation_ns - self.deviation_ns / 4 + off / 4;
                self.mean_ns = self.mean_ns - self.mean_ns / 8 + ns / 8;
            }
            None => {}
        }
        self.service_ns = u64::from(estimate_us) * 1000;
    }

    /// A reply to a call sent more than once, whichever sending it answers: its estimate counts all the same, if there is one.
    pub(crate) fn estimated(&mut self, estimate_us: u32) {
        self.service_ns = self.service_ns.max(u64::from(estimate_us) * 1000);
    }

    /// How long to wait for a reply before asking again, between the limits.
    #[inline]
    pub(crate) fn wait_ns(&self, least: u64, most: u64) -> u64 {
        let seen = self.mean_ns + 4 * self.deviation_ns;
        let told = self.service_ns + self.service_ns / 4 + self.mean_ns;
        seen.max(told).clamp(least, most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_forgets_what_is_old() {
        let mut e = Estimate::new(Duration::from_nanos(4_000_000));
        e.took(1, 900_000);
        e.took(1_500_000, 20_000);
        assert_eq!(e.us(), 900);
        e.took(4_500_000, 10_000);
        assert_eq!(e.us(), 20);
        e.took(90_000_000, 3_000);
        assert_eq!(e.us(), 3);
    }

    #[test]
    fn patience_follows_what_is_seen_and_what_is_told() {
        let mut p = Patience::default();
        assert_eq!(p.wait_ns(1000, 5_000_000), 1000);
        for _ in 0..100 {
            p.replied(Some(20_000), 0);
        }
        let seen = p.wait_ns(1000, 5_000_000);
        assert!((20_000..25_000).contains(&seen), "{seen}");
        p.replied(None, 1000);
        assert!(p.wait_ns(1000, 5_000_000) > 1_250_000);
        assert_eq!(p.wait_ns(1000, 500_000), 500_000);
        p.estimated(0);
        p.estimated(2000);
        assert!(p.wait_ns(1000, 5_000_000) > 2_500_000);
    }
}
