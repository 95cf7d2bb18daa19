//! A node: several networks and interfaces, multi-rail peers, discovery, health, faults.
//!
//! [`Engine`] is all of it without threads and clocks; [`Node`] runs one over real networks and gives blocking and
//! asynchronous calls. Rules of the engine:
//! * every message begun ends exactly once (left, failed, or its time over), and its credits come back;
//! * a message is sent again only when its failure says the peer has not taken it, at most `retry_count` times;
//! * nothing waits for ever: messages have deadlines, answers are tracked, discovery times out.
//!
//! ```no_run
//! use lnet_shim::node::{NiConfig, Node, NodeParams};
//! use lnet_shim::tcp::TcpParams;
//! use std::time::Duration;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::new(NodeParams::default())?;
//! // Port 988 and privileged source ports, as Lustre wants them.
//! node.add_tcp(NiConfig::new("10.0.0.1@tcp".parse()?), TcpParams::default())?;
//! let peer = node.discover("10.0.0.2@tcp".parse()?, false).await?;
//! let pong = node.ping(peer.primary, Duration::from_secs(5)).await?;
//! println!("{} answers in {:?}", peer.primary, pong.time);
//! # Ok(())
//! # }
//! ```

mod discovery;
mod engine;
mod fault;
mod health;
mod oneshot;
mod params;
mod peers;
mod receive;
mod routes;
mod runtime;
mod send;
mod stats;

pub use engine::{Effect, Engine, Sink};
pub use fault::{FaultAction, FaultRule, Frequency};
pub use oneshot::OneShot;
pub use params::{NiConfig, NodeParams};
pub use peers::PeerInfo;
pub use routes::{Route, RouteInfo};
pub(crate) use runtime::wall_ns;
pub use runtime::{Node, PingReport};
pub use stats::{Counts, NiInfo, NodeStats};

/// Time since some fixed start.
pub type Time = std::time::Duration;

#[cfg(test)]
mod tests;
