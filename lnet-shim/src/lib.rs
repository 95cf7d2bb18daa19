//! LNet semantics and an RPC layer on kfab.
//!
//! Layers, bottom up; each knows only those above it in this list:
//! * [`nid`]: names of nodes and networks, and their text forms;
//! * [`wire`]: byte-exact encodings of everything that crosses a socket;
//! * [`core`]: portals, match entries, descriptors, put and get, as a machine without sockets.
#![forbid(unsafe_code)]

pub mod core;
pub mod error;
pub mod network;
pub mod nid;
pub mod node;
pub mod selftest;
pub mod tcp;
pub mod wire;

pub use error::{Error, ErrorKind, Fate, Result};
