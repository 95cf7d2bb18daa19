//! The contract between a node and the networks below it.
//!
//! A network carries whole LNet messages between one local NID and its peers. The node calls [`Network::submit`] from any
//! thread; the network's own threads call [`Upper::upcalls`]. Neither side calls the other while it holds a lock, and
//! upcalls that arise inside `submit` are returned, not made: there is no recursion.

use crate::core::{Content, Fetch, OpId, Payload};
use crate::nid::{Nid, ProcessId};
use crate::wire::lnet::LnetHeader;
use kfab::topo::Placement;

/// Names a message on its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TxId(pub u64);

/// A message on its way down.
#[derive(Debug, Clone)]
pub struct Tx {
    /// Given back with the outcome.
    pub id: TxId,
    /// The next hop.
    pub peer: ProcessId,
    /// The header, NIDs filled in.
    pub header: LnetHeader,
    /// The payload.
    pub payload: Payload,
}

/// A message on its way up.
#[derive(Debug, Clone)]
pub struct Rx {
    /// The connection it came by; for a payload that is still with the sender, what to fetch it by. Below 2^48.
    pub via: u64,
    /// The last hop.
    pub peer: ProcessId,
    /// The header, with rules on types and lengths already checked. What is not for our NID the node drops.
    pub header: LnetHeader,
    /// The payload.
    pub payload: Content,
}

/// How a send failed; decides which health goes down and whether it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Failure {
    /// Our interface was interrupted: our health, again.
    LocalInterrupt,
    /// Our interface dropped it: our health, again.
    LocalDropped,
    /// Our interface aborted it: our health, again.
    LocalAborted,
    /// No route from our interface: our health, again.
    LocalNoRoute,
    /// Our interface took too long: our health, again.
    LocalTimeout,
    /// Our interface failed: our health, not again.
    LocalError,
    /// The peer dropped it: its health, again.
    RemoteDropped,
    /// The peer failed: its health, not again.
    RemoteError,
    /// The peer took too long: its health, not again.
    RemoteTimeout,
    /// Somebody took too long: both healths, not again.
    NetworkTimeout,
}

/// What the node wants of a network.
#[derive(Debug)]
pub enum Command {
    /// Send; exactly one [`Upcall::Sent`] follows.
    Transmit(Tx),
    /// Fetch a payload that is still with the sender; exactly one [`Upcall::Fetched`] follows.
    Fetch(Fetch),
    /// A payload that is still with the sender is not wanted.
    Refuse {
        /// As given with the message.
        via: u64,
    },
    /// This many bytes that came by `via` are kept: count them against the connection.
    Hold {
        /// As given with the message.
        via: u64,
        /// Bytes.
        bytes: usize,
    },
    /// Bytes kept earlier are free.
    Release {
        /// As given with the message.
        via: u64,
        /// Bytes.
        bytes: usize,
    },
}

/// What a network has to say.
#[derive(Debug)]
pub enum Upcall {
    /// A message has arrived.
    Received(Rx),
    /// A message has left, or failed to.
    Sent(TxId, Result<(), Failure>),
    /// A payload has been fetched, or could not be.
    Fetched(OpId, Result<(), Failure>),
    /// The last connection to a peer has broken.
    PeerLost(Nid),
    /// The interface below has lost its link (carrier, or address), or has it again. It has one to begin with.
    Link(bool),
}

/// A network as the node sees it.
pub trait Network: Send + Sync {
    /// The local NID.
    fn nid(&self) -> Nid;
    /// Takes commands; what comes of them at once is appended to `upcalls`. Never blocks.
    fn submit(&self, commands: Vec<Command>, upcalls: &mut Vec<Upcall>);
    /// Ends all connections and threads. Messages and fetches in flight may get no outcome.
    fn shutdown(&self);
    /// What was bound to a part of the machine, and what could not be.
    fn placement(&self) -> Vec<Placement> {
        Vec::new()
    }
    /// The connections, for people.
    fn connections(&self) -> Vec<ConnectionInfo> {
        Vec::new()
    }
}

/// The node as a network sees it.
pub trait Upper: Send + Sync {
    /// Takes what network `local` has to say.
    fn upcalls(&self, local: Nid, upcalls: Vec<Upcall>);
}

/// A connection, for people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ConnectionInfo {
    /// With whom.
    pub peer: ProcessId,
    /// What for (our view).
    pub kind: String,
    /// Protocol version.
    pub version: u32,
    /// The other end's socket address.
    pub remote: String,
    /// Bytes that wait to be sent.
    pub queued_bytes: usize,
}
