//! Faults on purpose at the level of packets: kfab's own rules cannot lose a message, because kfab sends it again. These can.

use std::time::Duration;

/// What befalls packets on their way out: chances from 0 to 1, drawn from a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The packet is lost.
    pub drop: f64,
    /// The packet is sent twice.
    pub duplicate: f64,
    /// The packet is late by [`Faults::late`].
    pub delay: f64,
    /// How late.
    pub late: Duration,
    /// The same seed and traffic give the same faults.
    pub seed: u64,
}

/// What happens to one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    None,
    Drop,
    Duplicate,
    Delay,
}

/// The dice of a [`Faults`].
#[derive(Clone, Debug)]
pub(crate) struct Dice {
    faults: Faults,
    state: u64,
}

impl Dice {
    /// `None` where nothing is to happen.
    pub(crate) fn new(faults: Faults, lane: u64) -> Option<Dice> {
        let any = faults.drop > 0.0 || faults.duplicate > 0.0 || faults.delay > 0.0;
        any.then_some(Dice { faults, state: faults.seed ^ lane.wrapping_mul(0x9e37_79b9_7f4a_7c15) })
    }

    pub(crate) fn throw(&mut self) -> Blow {
        let draw = (split_mix(&mut self.state) >> 11) as f64 / (1u64 << 53) as f64;
        let Faults { drop, duplicate, delay, .. } = self.faults;
        match draw {
            d if d < drop => Blow::Drop,
            d if d < drop + duplicate => Blow::Duplicate,
            d if d < drop + duplicate + delay => Blow::Delay,
            _ => Blow::None,
        }
    }

    pub(crate) fn late_ns(&self) -> u64 {
        self.faults.late.as_nanos() as u64
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_fall_as_often_as_told_and_the_same_way_again() {
        assert!(Dice::new(Faults::default(), 0).is_none());
        let faults = Faults { drop: 0.1, duplicate: 0.1, delay: 0.2, seed: 3, ..Faults::default() };
        let throws = || {
            let mut dice = Dice::new(faults, 1).unwrap();
            (0..10_000).map(|_| dice.throw()).collect::<Vec<_>>()
        };
        let count = |b| throws().into_iter().filter(|t| *t == b).count();
        assert!((800..1200).contains(&count(Blow::Drop)) && (1800..2200).contains(&count(Blow::Delay)));
        assert_eq!(throws(), throws());
    }
}
