//! Memory that two processes share: a connection's segment ([`Channel`]), the slot table of a port's windows ([`Slots`],
//! [`FarSlots`]), and what of a peer's memory is mapped here ([`Far`]). With `sys.rs` the only code here with `unsafe`.
//!
//! No Rust reference is formed to bytes that a peer can write, atomics apart; every number read from there is checked
//! against what is mapped.

mod channel;
mod far;
mod slots;

pub(crate) use channel::{Channel, Farewell, SEGMENT_BYTES, Side};
pub(crate) use far::{Access, Far, MAX_MAPS, read_process};
pub(crate) use slots::{FarSlots, MAX_SLOTS, Slots};
