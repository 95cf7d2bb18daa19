//! LNet semantics on kfab: what Lustre's services get from LNet, without a kernel module.
//!
//! Layers, bottom up; each knows only those above it in this list:
//! * [`nid`]: names of nodes and networks, and their text forms;
//! * [`wire`]: byte-exact encodings of everything that crosses a socket;
//! * [`core`]: portals, match entries, descriptors, put and get, as a machine without sockets;
//! * [`network`]: the contract between a node and the networks below it;
//! * [`kfi`]: LNet messages over kfab;
//! * [`tcp`]: the socklnd protocol, so that real Lustre nodes can talk to us;
//! * [`node`]: several interfaces, multi-rail peers, discovery, health, faults; start here;
//! * [`rpc`]: calls with bulk data, exactly once, on kfab alone;
//! * [`selftest`]: lnet_selftest's service, console and load;
//! * [`command`]: what a command line shows of all that.
#![forbid(unsafe_code)]

pub mod command;
pub mod core;
pub mod error;
#[doc(hidden)]
pub mod fuzz;
pub mod kfi;
pub mod network;
pub mod nid;
pub mod node;
pub mod rpc;
pub mod selftest;
pub mod tcp;
pub mod wire;

pub use error::{Error, ErrorKind, Fate, Result};
