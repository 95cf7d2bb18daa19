//! What kfab and its providers share: the provider contract ([`spi`]), registered memory ([`mem`]), the lock-free ring
//! ([`ring`]), the one error type ([`Error`]), the fabric key ([`auth`]) and the few system calls that want `unsafe` ([`sys`]).
//!
//! Called by `kfab-proto`, `kfab` and every provider; knows none of them. Users see these types re-exported by `kfab`.

pub mod auth;
mod error;
pub mod mem;
pub mod ring;
pub mod spi;
pub mod sys;

pub use error::{Error, Fate, Kind, Result};
