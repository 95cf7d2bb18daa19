//! What the micro-benchmarks of kfab share: a port that costs next to nothing ([`pair`]), and two protocol machines over it
//! ([`Two`]), so that what is measured is the machine.

#![forbid(unsafe_code)]

mod looped;
mod two;

pub use looped::pair;
pub use two::Two;
