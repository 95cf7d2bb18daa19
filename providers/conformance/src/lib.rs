//! One behaviour suite for all providers, at the level of [`kfab_core::spi`], chosen by capability.
//!
//! A provider describes in a [`Rig`] how its ports are opened; the suite does the rest. A provider's whole test is
//! `tests/conformance.rs`, with `harness = false` under `[[test]]` in its `Cargo.toml`, this crate among its
//! dev-dependencies, and:
//!
//! ```no_run
//! use kfab_conformance::{Maker, Rig, Victim};
//! use kfab_core::spi::{Port, PortConfig, Provider, Way};
//!
//! # struct Tcp;
//! # impl Tcp { fn open(&self, _: &PortConfig) -> kfab_core::Result<Box<dyn Port>> { unimplemented!() } }
//! struct TcpRig;
//!
//! impl Rig for TcpRig {
//!     fn open(&self, config: &PortConfig) -> kfab_core::Result<Box<dyn Port>> {
//!         let mut config = config.clone();
//!         config.listen.get_or_insert("127.0.0.1:0".to_owned());
//!         Tcp.open(&config)
//!     }
//!     fn malformed(&self) -> Vec<String> {
//!         vec!["nonsense".into(), "1.2.3.4".into(), "1.2.3.4:99999".into()]
//!     }
//!     fn nobody(&self) -> Option<Way> {
//!         Some(Way::new("tcp", "127.0.0.1:1"))
//!     }
//!     fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
//!         Some(Victim::child("tcp"))
//!     }
//! }
//!
//! fn main() {
//!     // In the child that `Victim::child("tcp")` starts (this same program): be a peer until killed.
//!     kfab_conformance::serve_if_child("tcp", || TcpRig.open(&PortConfig::default()));
//!     let tcp: Maker = Box::new(|| Box::new(TcpRig));
//!     kfab_conformance::main(vec![("tcp", tcp)]);
//! }
//! ```
//!
//! Each case gets a fresh rig from the maker, so a rig may hold state. Several rigs in one `main` are several configurations
//! (with a key, small queues, another delivery promise). `cargo test -p PROVIDER --test conformance -- NAME` runs the cases
//! whose name contains NAME; `--list` lists them. A case that does not apply is shown as ignored, with the reason on standard
//! error. A rig whose ports are `Kind::Unavailable` here is ignored as a whole, with the reason, unless it is demanded.
//!
//! # Readings of the contract that the suite holds providers to
//! 1. `connect` with a way that parses never fails at once for want of a listener: `Down` with `Refused` follows. A text that
//!    does not parse, or a foreign scheme, is an error whose text names the way.
//! 2. `Down` comes after the body of the last `Frame` was taken and after its `Taken`: it waits for the caller's `take`.
//! 3. Until a body has been delivered (`take` returned it, or `Taken`), no further frame of that connection is reported; other
//!    connections go on.
//! 4. A landing longer than the body keeps its other bytes; it comes back with its own length.
//! 5. After `close`, everything accepted before arrives, although the closing side may hold frames it has not yet polled. Both sides
//!    report `Closed`, once. The closing side may go on reporting the peer's frames until then. `close` again, or on
//!    a name that is gone, does nothing.
//! 6. `post` after `close` and after `Down` returns the number offered; nothing arrives.
//! 7. `post` refuses at some bound while the peer does not poll, and `Writable` follows once the peer has caught up. A connection
//!    whose peer does not poll does not keep others of the same port back.
//! 8. A frame whose body is larger than `max_body` is not accepted: `post` returns the number of frames before it (it is the
//!    caller's mistake: no `Writable` is owed), or the port ends the connection. It never arrives in part.
//! 9. A borrowed body may change as soon as `post` has returned. An owned one is let go, at the latest, when its frame was taken
//!    and the sender has been polled.
//! 10. Frames posted with `more` leave with the next `flush`, `poll`, `close`, or frame without it.
//! 11. `Body::Owned` may name window memory, adopted memory, empty slices, and several regions.
//! 12. `arm` returns `false` if a poll would bring something; else the descriptor becomes readable when one would. Waking for
//!     nothing is allowed, spinning is not.
//! 13. A refused one-sided operation ends with an error, hands the landing of a read back, and changes nothing at the peer. It may break
//!     the connection (as on verbs). Exposing memory that is not a window with `WRITE` is an error.
//! 14. A dropped port ends its connections; peers that are told report one `Down` with any reason; nothing lent to it stays lent.
//! 15. With `PortConfig::max_conns` reached, further peers are `Refused`; those there are not disturbed.
//! 16. Names of connections are not used again.

#![forbid(unsafe_code)]

mod bench;
mod cases;
mod child;
mod node;
mod rig;
mod run;

pub use bench::Bench;
pub use child::{Victim, serve_if_child};
pub use node::{Got, Node};
pub use rig::{Maker, Rig};
pub use run::{CaseResult, Report, main, run, run_only};
