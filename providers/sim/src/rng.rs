//! The one source of chance of a world: SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), written out so that a seed gives the
//! same run on every machine and in every version.

/// A seeded generator.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`; 0 for `n` = 0. The bias of the multiplication is below 2^-32 for the ranges used here.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// A number between `lo` and `hi`, both included.
    pub(crate) fn between(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.below(hi.saturating_sub(lo).saturating_add(1))
    }

    /// `true` with probability `p`. Draws nothing where the outcome is certain, so that an unused fault changes no run.
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        if p <= 0.0 {
            return false;
        }
        p >= 1.0 || ((self.next() >> 11) as f64) < p * (1u64 << 53) as f64
    }
}

/// The finaliser of SplitMix64: one word to one word, each bit of the input felt by each of the output.
pub(crate) fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sequence() {
        // Reference values of SplitMix64 for seed 1234567 (Rosetta Code, task "Pseudo-random numbers/Splitmix64").
        let mut r = Rng::new(1_234_567);
        let got: Vec<u64> = (0..5).map(|_| r.next()).collect();
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn chances_come_about_as_often_as_asked() {
        let mut r = Rng::new(7);
        let hits = (0..100_000).filter(|_| r.chance(0.25)).count();
        assert!((24_000..26_000).contains(&hits), "{hits}");
        assert!(!r.chance(0.0) && r.chance(1.0));
        assert!((0..1000).all(|_| (3..=5).contains(&r.between(3, 5))));
        assert_eq!(r.between(9, 9), 9);
    }
}
