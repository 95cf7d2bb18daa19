//! The provider contract: what a transport must do, and all it needs to know.
//!
//! A [`Provider`] opens [`Port`]s. A port is one device (a rail) as seen by one lane: it makes connections, moves frames over
//! them, serves one-sided access where it can, and says when there is work. It never retries, never orders, never
//! matches: the protocol above does. Work goes down in batches ([`Port::post`]) and comes up in batches ([`Port::poll`]).
//! A port is driven by one thread at a time (its lane's lock sees to that), so implementations need no locks of their own.

mod address;
mod caps;
mod event;
mod limits;
mod port;

pub use address::{Address, Way};
pub use caps::{Caps, Delivery, Device, Unavailable};
pub use event::{Conn, DownReason, Event, RmaToken};
pub use limits::ProviderLimit;
pub use port::{
    Body, Exposure, Frame, HEADER_LEN, INLINE_MAX, Inline, Next, Port, PortConfig, Provider, RemoteKey,
    Rights, Rma, RmaStarted, Small,
};
