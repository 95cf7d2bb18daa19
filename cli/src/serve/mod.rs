//! `kfab serve`.

pub(crate) mod session;
