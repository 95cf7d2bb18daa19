//! lnet_selftest: the service a real `lst` console can drive, a console of our own, and a load generator with latencies.
//!
//! * [`Agent`] makes a node a self-test node: it serves ping and bulk, and runs tests that a console orders;
//! * [`Console`] makes sessions and tests on nodes, ours or Lustre's;
//! * [`load`] runs from here and counts RPCs (a console's figures count messages) and percentiles.

mod agent;
mod console;
mod jobs;
mod keeper;
pub mod load;
mod pattern;
mod rpc;

pub use agent::{Agent, AgentParams};
pub use console::{BatchStat, Console, Distribute, NodeStat, TestSpec};
pub use pattern::{Check, check, fill};
pub use rpc::{Bulk, Rpc};

/// Error numbers that travel in replies.
pub(crate) mod errno {
    pub(crate) const NO_ENTRY: u32 = 2;
    pub(crate) const NO_SESSION: u32 = 3;
    pub(crate) const IO: u32 = 5;
    pub(crate) const BUSY: u32 = 16;
    pub(crate) const INVALID: u32 = 22;
    pub(crate) const BAD_DATA: u32 = 74;
}

#[cfg(test)]
mod tests;
