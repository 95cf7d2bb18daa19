//! The lock-free ring: frames from one producer to one consumer through memory that both map. The only lock-free code of the
//! tree; used by the shm provider, one ring for each direction of a connection. Beside it the
//! [`Shuttle`] for messages that answer each other, and the [`LaneLock`] of `kfab`.
//!
//! A ring has three parts. *Lines*: 64 bytes each, for one frame or two small ones: stamp, lengths, header, inline part. *Data*: a byte
//! ring for bodies, each contiguous and starting on a cache line. *Shared words* ([`Words`]): what the consumer has consumed, and who
//! sleeps. Positions count halves of lines. What always holds:
//!
//! - The stamp of position `p` is `p + 1` (mod 2^32), stored last (release). At the first half of a line nothing but stamps is ever
//!   stored, and they differ from lap to lap, so old bytes are never taken for news. Where the second half has its stamp lie bytes
//!   of frames that had the whole line: whoever writes a frame into the first half stores no news there before.
//! - A frame that takes a whole line begins at an even position; a half before it that is left over says so.
//! - A body that does not fit before the end of the data ring starts at 0; both sides follow this rule, so no offset travels.
//! - The consumer frees lines and data by its counters only ([`Consumer::publish`], release); the producer keeps a copy and
//!   reads them again only when the ring seems full.
//! - The other side is not trusted: each value is read once and checked, and no Rust reference is formed to bytes that it can
//!   write (atomics apart). What cannot be true is [`Hostile`].
//!
//! Sleeping: the consumer arms ([`Consumer::arm`]), passes a heavy barrier and looks once more; the producer pushes, passes a
//! light barrier and looks for the arm ([`Producer::take_bell`]). Whichever comes second sees the first, so a frame is seen
//! before the sleep or the bell is rung. The same the other way round for a producer that waits for room.

mod consumer;
mod lock;
mod primitive;
mod producer;
mod shape;
mod shuttle;
#[cfg(test)]
mod tests;

pub use consumer::{Consumer, Rx};
pub use lock::{LaneGuard, LaneLock};
pub use producer::Producer;
pub use shape::{Hostile, Line, Parts, Shape, Words};
pub use shuttle::Shuttle;
