//! The commands, one per file.

pub(crate) mod info;
pub(crate) mod keygen;
pub(crate) mod lnet;
pub(crate) mod lst;
pub(crate) mod perf;
pub(crate) mod pingpong;
pub(crate) mod top;
pub(crate) mod wake;
