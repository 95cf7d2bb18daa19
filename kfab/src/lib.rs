//! kfab: messages and bulk data over whatever the node has, through about eight verbs.
//!
//! ```
//! # fn main() -> kfab::Result<()> {
//! let fabric = kfab::Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets));
//! // Two endpoints, in two processes as a rule; an address is all that one must know of the other.
//! let (server, client) = (fabric.endpoint()?, fabric.endpoint()?);
//! client.peer(&server.address().to_string())?.send("hello").wait()?;
//! let message = server.recv().wait()?;
//! message.from().send(&message).wait()?;
//! assert_eq!(&client.recv().wait()?[..], b"hello");
//! # Ok(()) }
//! ```
//!
//! **Verbs**: [`Peer::send`], [`Endpoint::recv`], their tagged forms, [`Peer::read`] and [`Peer::write`] on a peer's
//! [`Window`] (with a [`Notice`] to its owner if wanted), cancel ([`Op::cancel`]), and [`Endpoint::progress`]. Each returns an [`Op`]
//! that ends exactly once; wait for it, await it, poll it, or drop it.
//!
//! **Buffers.** Messages are sent from several ([`Payload`]) or received into several ([`Recv::post_all`]) as well as into one
//! ([`Recv::into`]), or into a bounded number that all peers share ([`Recv::pool`]).
//!
//! **Threads.** Everything is `Send + Sync`. One [`Endpoint`] is one *lane*: its own ports, memory, credits and lock. Threads
//! that share an endpoint take turns; threads that should not get an endpoint each ([`Fabric::open_partitioned`]).
//!
//! **Forks.** An endpoint belongs to the process that opened it. A forked child may exec, exit, or open endpoints of its own. Of what it
//! inherited it may drop endpoints, windows, peers, receive pools and operations, which touches nothing that it shares with its parent and
//! frees nothing; [`Endpoint::peer`] and windows are [`Kind::Closed`] there. It must not send, receive, wait, or use a
//! buffer, and that is not checked. Its copies of the descriptors are closed by exec or by its end: until then a place that
//! the parent listened at stays taken, and peers of a parent that has died may have to wait for their liveness limit.
//!
//! **Progress.** Somebody must poll, and it is always known who: the caller that waits, or else the endpoint's helper thread, which
//! sleeps while a caller is active ([`Progress`]).
//!
//! **Watching.** [`Endpoint::stats`] and [`Endpoint::subscribe`]; with the feature `serde` a `Monitor`, which `kfab top` finds; with the
//! feature `prometheus` an exporter.
//!
//! **Back-pressure** is never an error: a send without credit waits in its `Op`. **A dead peer** is an error
//! ([`Kind::PeerLost`]) within a bounded time: at once over shared memory, elsewhere [`Limits::peer_timeout`]
//! after its last word, or after the last way to it broke.

#![forbid(unsafe_code)]

mod config;
mod doors;
mod endpoint;
mod fabric;
mod lane;
mod letter;
#[cfg(feature = "serde")]
mod monitor;
mod observe;
mod op;
mod progress;
#[cfg(feature = "prometheus")]
pub mod prometheus;
mod receive_pool;
mod scatter;
mod share;
mod spares;
mod window;

pub use config::{EndpointConfig, FabricConfig, PortLimits, Progress, Wait, fixed_limits};
pub use endpoint::{Endpoint, Message, Peer, Recv};
pub use fabric::{Fabric, ProviderInfo, Providers};
pub use kfab_core::auth::FabricKey;
pub use kfab_core::mem::{Buffer, PoolConfig, PoolStats, WindowMem};
pub use kfab_core::spi::{Address, Caps, Device, Provider, ProviderLimit, Rights, Unavailable, Way};
pub use kfab_core::{Error, Fate, Kind, Result};
pub use kfab_proto::{
    FabricEvent, FaultAction, FaultId, FaultRule, LaneStats, Limits, MAX_EVENTS, MAX_RULES, Payload, Peeked,
    PeerCounters, PeerId, PeerInfo, RailHealth, RailInfo, SendOptions, WindowKey,
};
pub use kfab_topo as topo;
#[cfg(feature = "serde")]
pub use monitor::{Monitor, PREFIX as MONITOR_PREFIX};
pub use observe::{EndpointStats, Events, PeerStats, PoolCounts, PortStats};
pub use op::{Finish, Op};
pub use receive_pool::{Pooled, ReceivePool};
pub use scatter::Parts;
pub use window::{Notice, Window};
