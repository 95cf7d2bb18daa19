//! The kfi network: LNet messages over kfab, any provider. Called by the node, stands on kfab's public API alone.
//!
//! A message whose payload is small travels in one send. For a larger one the sender opens a window over the bytes where they
//! lie and sends the LNet header with the window's key; the receiver matches first, and then reads the window straight into the
//! memory that matched: *one small send and one one-sided read*, whose completion is the receiver's "done". That holds for a PUT
//! and for the REPLY to a GET alike. What matches nothing is never moved.
//!
//! The window's owner hears of the read's end by its notice ([`kfab::Window::notice`]), and by the notice of a read of no bytes what
//! became of a payload that is not read. There is no other "done".
//!
//! Invariants:
//! * every message given to [`KfiNetwork`] ends exactly once; a window lives no longer than its message, and a message no
//!   longer than its peer or `bulk_timeout`;
//! * what we send to our own NID arrives without kfab (recovery pings of a node do it);
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
pub use wire::{Frame, Outcome};
