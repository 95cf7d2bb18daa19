//! The kfi network: LNet messages over kfab, any provider. Called by the node, stands on kfab's public API alone.
//!
//! A message whose payload is small travels in one send. For a larger one the sender opens a window over the bytes where they
//! lie and sends the LNet header with the window's key; the receiver matches first, and then reads the window straight into the
//! memory that matched: *one small send and one one-sided read*, whose completion is the receiver's "done". That holds for a PUT
//! and for the REPLY to a GET alike. What matches nothing is never moved.
//!
//! kfab tells the end of a one-sided operation to whoever began it. The window's owner learns of it by a number of eight bytes
//! that rides on the next message to it: on the ACK, where the PUT wants one, on the next request, or, if there is none at the
//! end of the round, on a message of its own that fits in one cache line.
//!
//! Invariants:
//! * every message given to [`KfiNetwork`] ends exactly once; a window lives no longer than its message, and a message no
//!   longer than its peer or `bulk_timeout`;
//! * a NID is bound to one kfab peer at a time, and what a peer says under another name is dropped;
//! * all queues are bounded: sends by LNet's credits, offers of peers by `max_offers`, reads by `max_reads`.

mod arrive;
mod book;
mod lane;
mod network;
mod params;
mod run;
mod task;
mod wire;

pub use book::Book;
pub use network::KfiNetwork;
pub use params::KfiParams;
pub use wire::{Frame, Kind, Outcome};
