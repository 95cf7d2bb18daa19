//! Slabs: regions cut into blocks of power-of-two sizes, with a bound on the whole. One pool per lane, on the lane's node.

use super::buffer::{Block, Buffer, WindowMem};
use super::region::{Access, Region};
use crate::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// The smallest block, bytes.
const MIN_SHIFT: u32 = 8;
/// The largest block that shares a region; larger ones get a region of their own.
const MAX_SHIFT: u32 = 26;
const CLASSES: usize = (MAX_SHIFT - MIN_SHIFT + 1) as usize;

/// Limits of a pool.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Bytes of one slab region (default 64 MiB; pages are taken from the system when first touched).
    pub region_bytes: usize,
    /// Bytes of all regions together (default 16 GiB of address space). More is `Kind::Limit`.
    pub max_bytes: usize,
    /// NUMA node to prefer.
    pub node: Option<u32>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig { region_bytes: 64 << 20, max_bytes: 16 << 30, node: None }
    }
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Regions made.
    pub regions: usize,
    /// Bytes of all regions.
    pub bytes: usize,
    /// Bytes in blocks handed out.
    pub in_use: usize,
}

/// A source of [`Buffer`]s and [`WindowMem`]. Cheap to clone; safe to share between threads.
///
/// ```
/// let pool = kfab_core::mem::Pool::new(Default::default());
/// let mut b = pool.alloc(5).unwrap();
/// b.get_mut().unwrap().copy_from_slice(b"hello");
/// assert_eq!(&b[..], b"hello");
/// drop(b);
/// assert_eq!(pool.stats().in_use, 0);
/// ```
#[derive(Clone, Debug)]
pub struct Pool(pub(super) Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    config: PoolConfig,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    read: Space,
    write: Space,
    stats: PoolStats,
}

/// The blocks of one kind of access.
#[derive(Debug, Default)]
struct Space {
    current: Option<(Arc<Region>, usize)>,
    free: [Vec<(Arc<Region>, usize)>; CLASSES],
}

impl Pool {
    /// An empty pool; regions come when they are needed.
    pub fn new(config: PoolConfig) -> Pool {
        Pool(Arc::new(Shared { config, state: Mutex::default() }))
    }

    /// A buffer of `len` bytes with unspecified contents (its own process's old bytes or zeros).
    /// `Kind::Limit` when the pool's bound is reached.
    pub fn alloc(&self, len: usize) -> Result<Buffer> {
        Ok(Buffer::whole(self.block(len, Access::PeersRead)?, len))
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_from(&self, bytes: &[u8]) -> Result<Buffer> {
        let mut b = self.alloc(bytes.len())?;
        b.get_mut().expect("a new buffer has one owner").copy_from_slice(bytes);
        Ok(b)
    }

    /// Zeroed memory that peers may be allowed to write: for windows.
    pub fn alloc_window(&self, len: usize) -> Result<WindowMem> {
        let w = WindowMem::new(self.block(len, Access::PeersWrite)?, len);
        w.fill(0);
        Ok(w)
    }

    /// What the pool holds now.
    pub fn stats(&self) -> PoolStats {
        self.0.lock().stats
    }

    fn block(&self, len: usize, access: Access) -> Result<Arc<Block>> {
        let shift = len.max(1).next_power_of_two().trailing_zeros().max(MIN_SHIFT);
        let (region, offset, size) = if shift > MAX_SHIFT {
            let size = len.next_multiple_of(2 << 20);
            self.0.reserve(&mut self.0.lock(), size)?;
            (Arc::new(Region::mapped(size, access, self.0.config.node)?), 0, size)
        } else {
            let (r, o) = self.0.cut(shift, access)?;
            (r, o, 1usize << shift)
        };
        self.0.lock().stats.in_use += size;
        Ok(Arc::new(Block::new(region, offset, size, Some(self.0.clone()))))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between statements: a panic elsewhere cannot leave it half changed.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn reserve(&self, s: &mut State, size: usize) -> Result<()> {
        if s.stats.bytes + size > self.config.max_bytes {
            let (have, max) = (s.stats.bytes, self.config.max_bytes);
            return Err(Error::new(
                Kind::Limit,
                "memory",
                format!("{size} more bytes: the pool holds {have} of at most {max} (PoolConfig::max_bytes)"),
            ));
        }
        s.stats.regions += 1;
        s.stats.bytes += size;
        Ok(())
    }

    fn cut(&self, shift: u32, access: Access) -> Result<(Arc<Region>, usize)> {
        let mut guard = self.lock();
        let s = &mut *guard;
        let space = if access == Access::PeersWrite { &mut s.write } else { &mut s.read };
        if let Some(b) = space.free[(shift - MIN_SHIFT) as usize].pop() {
            return Ok(b);
        }
        let size = 1usize << shift;
        if let Some((region, used)) = &mut space.current {
            // Blocks start at a multiple of their size up to a page, of a page above: whole cache lines, whole pages.
            let at = used.next_multiple_of(size.min(4096));
            if at + size <= region.len() {
                *used = at + size;
                return Ok((region.clone(), at));
            }
        }
        let bytes = self.config.region_bytes.max(size).next_multiple_of(4096);
        self.reserve(s, bytes)?;
        let region = Arc::new(Region::mapped(bytes, access, self.config.node)?);
        let space = if access == Access::PeersWrite { &mut s.write } else { &mut s.read };
        space.current = Some((region.clone(), size));
        Ok((region, 0))
    }

    /// Takes a block back. Called when its last owner is gone.
    pub(super) fn give_back(&self, region: &Arc<Region>, offset: usize, size: usize) {
        let mut s = self.lock();
        s.stats.in_use -= size;
        if size > 1 << MAX_SHIFT {
            s.stats.regions -= 1;
            s.stats.bytes -= size;
            return;
        }
        let class = (size.trailing_zeros() - MIN_SHIFT) as usize;
        let space = if region.access() == Access::PeersWrite { &mut s.write } else { &mut s.read };
        space.free[class].push((region.clone(), offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_reused_and_do_not_overlap() {
        let pool = Pool::new(PoolConfig { region_bytes: 1 << 20, ..Default::default() });
        let mut all: Vec<_> = (0..200).map(|i| (i as u8, pool.alloc(1 + i * 7).unwrap())).collect();
        for (i, b) in &mut all {
            b.get_mut().unwrap().fill(*i);
        }
        for (i, b) in &all {
            assert!(b.iter().all(|x| x == i));
        }
        let before = pool.stats();
        drop(all);
        assert_eq!(pool.stats().in_use, 0);
        let _again: Vec<_> = (0..200).map(|i| pool.alloc(1 + i * 7).unwrap()).collect();
        assert_eq!(pool.stats(), before);
    }

    #[test]
    fn the_bound_is_an_error_that_names_it() {
        let pool = Pool::new(PoolConfig { region_bytes: 1 << 20, max_bytes: 3 << 20, node: None });
        let held: Vec<_> = (0..3).map(|_| pool.alloc(1 << 20).unwrap()).collect();
        let e = pool.alloc(1).unwrap_err();
        assert_eq!(e.kind(), Kind::Limit);
        assert!(e.to_string().contains("max_bytes"), "{e}");
        drop(held);
        pool.alloc(1 << 20).unwrap();
    }

    #[test]
    fn a_huge_block_has_its_own_region_and_gives_it_back() {
        let pool = Pool::new(PoolConfig::default());
        let b = pool.alloc((64 << 20) + 1).unwrap();
        assert!(pool.stats().bytes > 64 << 20);
        drop(b);
        assert_eq!(pool.stats().bytes, 0);
    }
}
