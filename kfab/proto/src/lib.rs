//! The kfab protocol as a state machine: no socket, no clock, no thread. It is given ports and the time, and it decides what
//! leaves, what is delivered, and how every operation ends.
//!
//! Called by `kfab` (one [`Machine`] per lane, under the lane's lock) and by simulations. The way of a message:
//! [`Machine::send`] -> credit, rail, sequence number (`transmit`) -> `Port::post`; at the peer `Port::poll` ->
//! [`Machine::poll`] -> duplicate filter, matching (`receive`) -> the operation ends. Large messages: `large`. One-sided access:
//! `onesided`. Connections, restarts, rail loss: `connect`. Timers, resend, probes: `clock`.
//!
//! Invariants: every operation ends exactly once; a message is delivered at most once, and exactly once if the sender is told it
//! was; what a peer can make us hold is bounded by [`Limits`]; nothing a peer sends makes us panic.

#![forbid(unsafe_code)]

mod again;
mod clock;
mod connect;
mod dedup;
mod events;
mod faults;
mod known;
mod large;
mod limits;
mod machine;
mod matcher;
mod message;
mod notice;
mod onesided;
mod ops;
mod orphans;
mod pace;
mod pairs;
mod parked;
mod parts;
mod peer;
mod posting;
#[doc(hidden)]
pub mod price;
mod receive;
mod short;
mod stats;
mod tab;
mod transmit;
mod wire;

pub use events::{EventCursor, FabricEvent, MAX_EVENTS};
pub use faults::{FaultAction, FaultId, FaultRule, MAX_RULES};
pub use limits::{FOR_EVER, Limits};
pub use machine::{Io, Machine};
pub use message::{Data, Message, OpId, Outcome, Payload, Peeked, PeerId, SendOptions, Started, Want};
pub use notice::Notice;
pub use onesided::{WindowId, WindowKey, WindowMemory};
pub use orphans::ORPHAN_PATIENCE;
pub use parts::Parts;
pub use peer::{MAX_CONTROL, PeerCounters};
pub use short::{Direct, Polled};
pub use stats::{LaneStats, PeerInfo, RailHealth, RailInfo};
pub use wire::VERSION;
