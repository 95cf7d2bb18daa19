//! RPC with bulk data on kfab: what ptlrpc is to LNet, without LNet in between.
//!
//! ```no_run
//! use lnet_shim::rpc::{Book, Client, ClientConfig, Method, Server, ServerConfig, Service};
//!
//! const ADD: Method<(u32, u32), u32> = Method::new(6, 1);
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let fabric = kfab::Fabric::new(Vec::new());
//! let service = Service::new("sums", 6).on(ADD, |_request, (a, b)| async move { Ok(a + b) });
//! let server = Server::start(&fabric, ServerConfig::default(), vec![service])?;
//!
//! let client = Client::open(&fabric, ClientConfig::default(), &Book::new(), &[&server.addresses()[0]])?;
//! assert_eq!(client.call(ADD, &(2, 3)).wait()?, 5);
//! # Ok(()) }
//! ```
//!
//! **Services** ([`Service`]) are async handlers by opcode on a portal. A [`Server`] runs them on lanes: one endpoint and one
//! thread each, no runtime needed. **Clients** ([`Client`]) call by [`Method`], blocking, polled or awaited in any runtime; a
//! [`Book`] of names turns NIDs into addresses, and several names are tried in turn.
//!
//! **Exactly once.** A client has slots at its server, a slot has one call at a time, and the server keeps the slot's last answer
//! until the next call uses it. So a call that is sent again, over another rail or another lane's address as well, is
//! answered from there and never run twice, and the cache is bounded without ever forgetting too early. If the server that had the
//! call is gone, the call fails as [`Kind::Restarted`] or is replayed, as it was told ([`Replay`]).
//!
//! **Time.** A call has a deadline. Within it the client asks again when an answer is late by what it has seen and by the
//! server's own estimate, which rides in every reply; a server that needs longer says so in an early reply.
//!
//! **Back-pressure.** Every queue is bounded. A server without room answers "retry after", and the client does.
//!
//! **Bulk.** The client opens windows for a call ([`Prepared::window`]), the handler gets or puts ([`Bulk`]), in pieces, several
//! under way. When the call's end is taken the data is where it belongs; no message says so besides the reply.
//!
//! Bits 56-63 of the tags used are 0x52: an endpoint may be shared with other traffic that keeps away from those.

mod body;
mod book;
mod client;
mod error;
mod estimate;
mod faults;
#[doc(hidden)]
pub mod fuzz;
mod method;
mod outbox;
mod server;
mod session;
#[cfg(test)]
mod tests;
mod wire;

pub use body::{Body, SMALL};
pub use book::Book;
pub use client::{Call, Client, ClientConfig, ClientCounts, ClientLimits, Prepared, Replay};
pub use error::{Error, Fate, Kind, Result};
pub use faults::Faults;
pub use method::{Method, OPCODES, PORTALS};
pub use server::{
    Bulk, DEPTH, DeskCounts, JobStats, PIECE, Request, Server, ServerConfig, ServerCounts, ServerLimits,
    Service, ServiceStats,
};
