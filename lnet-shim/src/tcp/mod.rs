//! The tcp network: the socklnd protocol, byte-compatible with Lustre 2.15 to 2.17.
//!
//! [`Machine`] is the protocol without sockets and clocks; [`TcpNetwork`] runs one with non-blocking sockets and one thread.
//! Facts that shape it: one peer is three connections (CONTROL, BULK_IN, BULK_OUT), opened one after another by whoever
//! has something to send; the passive end answers with the inverted type; any message may come on any connection; an
//! error on one connection ends all of that peer's.

mod conn;
mod decode;
mod handshake;
mod io;
mod link;
mod machine;
mod params;
mod peer;

pub use decode::{Decoder, Item};
pub use io::TcpNetwork;
pub(crate) use link::numa_node;
pub use machine::{Action, ConnId, DialError, Machine};
pub use params::{Accept, SourcePorts, TcpParams};

/// Time since some fixed start.
pub type Time = std::time::Duration;

#[cfg(test)]
mod tests;
