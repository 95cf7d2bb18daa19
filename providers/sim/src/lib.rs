//! kfab provider `sim`: a deterministic fabric in one process, with seeded faults.
//!
//! A [`World`] holds ports (addresses `sim:HOST.RAIL`), the links between them, and time. Frames are lost, doubled, reordered
//! and delayed by chance; links are cut, rails die, hosts crash, restart and stall by call. All chance comes from one seed,
//! so a run is a pure function of (seed, configuration, calls) and a failing one replays.
//!
//! Called by simulations of the protocol (virtual time), by the conformance suite, and through [`Sim`] by whoever wants a
//! fabric without hardware (real time).
//!
//! ```
//! use kfab_core::spi::{Body, Event, Frame, Inline};
//! use kfab_sim::{Faults, Path, World, WorldConfig};
//!
//! let world = World::new(7, WorldConfig::default());
//! world.set_faults(Path::rail(0), Faults { loss: 0.2, reorder: 0.1, ..Faults::default() });
//! let (mut a, mut b) = (world.port(1, 0), world.port(2, 0));
//! let conn = a.connect(&b.ways()[0]).unwrap();
//! let (mut at_a, mut at_b) = (Vec::new(), Vec::new());
//! while !at_a.iter().any(|e| matches!(e, Event::Up { .. })) {
//!     assert!(world.step(), "somebody always asks again");
//!     a.poll(0, &mut at_a);
//!     b.poll(0, &mut at_b);
//! }
//! let frame = Frame { header: [1; 16], inline: Inline::EMPTY, body: Body::Borrowed(b"hello"), more: false };
//! assert_eq!(a.post(conn, &[frame]), 1);
//! ```
//!
//! # What a world promises to the protocol under test
//! - [`Delivery::Datagram`](kfab_core::spi::Delivery::Datagram): anything may happen to a frame, but none arrives later than
//!   [`WorldConfig::lifetime_ns`] and none arrives on a connection it was not sent on. Connecting and closing repeat themselves.
//! - [`Delivery::Connection`](kfab_core::spi::Delivery::Connection): in order and exactly once; a cut holds frames back and after
//!   [`WorldConfig::break_after_ns`] breaks the sender's end (the receiver's end stays half open until it sends, as with
//!   TCP). A break loses a tail: what is under way, and a seeded part of what was not yet reported.
//! - [`Delivery::Process`](kfab_core::spi::Delivery::Process): only the death of a host or port ends a connection unasked.
//! - A body waits in the port, so `Down` waits until it is taken. `take` and `rma` end within the call or later, by chance.
//! - Whatever a crashed or dropped port had lent to the network is let go at once.

#![forbid(unsafe_code)]

mod config;
mod flow;
mod half;
mod life;
mod net;
mod port;
mod provider;
mod rma;
mod rng;
mod state;
mod trace;
mod wake;
mod wire;
mod world;

pub use config::{Clock, Faults, Path, WorldConfig};
pub use provider::Sim;
pub use trace::WorldStats;
pub use world::World;
