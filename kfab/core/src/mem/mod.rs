//! Memory the fabric may touch: slabs of pages made once ([`Pool`]), the blocks cut from them ([`Buffer`]), and the two ways
//! a block is lent to a transport: a [`Slice`] to read from, a [`Landing`] to write into.
//!
//! **Ownership is the registration cache.** A region is registered or mapped once and lives as long as any block of it;
//! an operation owns its blocks until it has ended. So no hook into malloc and no stale registration can exist.
//!
//! **Who may form references.** Pages of an ordinary pool can be mapped by peers read-only (the memfd is sealed against
//! later writable mappings), so a uniquely owned [`Buffer`] gives out `&mut [u8]`. Pages that peers may write live in their
//! own regions, are reached only through [`WindowMem`], and only by copies through raw pointers.

mod block;
mod bound;
mod buffer;
mod landing;
mod pool;
mod region;
mod room;

pub use buffer::{Buffer, Slice, WindowMem};
pub use landing::{Assembly, Landing};
pub use pool::{Pool, PoolConfig, PoolStats};
pub use region::{Access, Region};
pub use room::{Room, scatter};
