//! The commands, one per file.

pub(crate) mod perf;
pub(crate) mod pingpong;
