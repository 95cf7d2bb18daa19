//! What a port can do and how far it can be trusted to deliver: the protocol adapts to this, tests are chosen by it.

use std::fmt;

/// What a port promises about the frames it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Delivery {
    /// Frames may be lost, doubled or reordered at any time (simulator).
    Datagram,
    /// In order and exactly once while the connection is up; what was in flight when it breaks may be lost (TCP, RC).
    Connection,
    /// A connection breaks only when the peer process does (shared memory): nothing needs to be kept for resending.
    Process,
}

/// The capabilities and limits of an open port.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Caps {
    /// The delivery promise.
    pub delivery: Delivery,
    /// The largest body of one frame, in bytes.
    pub max_body: usize,
    /// Messages up to this many bytes go eagerly; larger ones by rendezvous.
    pub eager_max: usize,
    /// A message that the receiver could fetch is sent all the same up to this many bytes: where a fetch is a round trip of its own, that
    /// costs less. The protocol has a limit of its own for all ports.
    pub fetch_min: usize,
    /// The body size that the port likes best for the pieces of a large transfer, in bytes.
    pub fragment: usize,
    /// `true` if [`Port::rma`](super::Port::rma) serves one-sided access without the peer's processor.
    pub rma: bool,
    /// `true` if owned bodies are sent without a copy into staging memory.
    pub zero_copy: bool,
    /// `true` if the death of the peer process is reported by the port itself, within 100 ms.
    pub sees_death: bool,
    /// Relative share of a striped transfer: link speed in Mbit/s where it is known.
    pub weight: u32,
    /// Rank for path choice: the port with the lowest rank that reaches a peer is used first; equal ranks are rails.
    pub rank: u8,
    /// NUMA node of the device, where known.
    pub node: Option<u32>,
}

/// A device of a provider.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Device {
    /// The provider's scheme.
    pub scheme: &'static str,
    /// The device's name: `lo`, `eth0`, `rxe0`, `memfd`.
    pub name: String,
    /// One line for people: addresses, speed, state.
    pub detail: String,
    /// Capabilities, where they can be told without opening it.
    pub caps: Caps,
    /// Why it cannot be opened now, if so: it is left out.
    pub left_out: Option<String>,
}

/// Why a provider or device cannot be used here. A value, never a panic.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Unavailable {
    /// What is missing and, where there is one, the remedy.
    pub reason: String,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}
