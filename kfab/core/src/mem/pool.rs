//! Slabs: regions cut into blocks of power-of-two sizes, with a bound on the whole. One pool per lane, on the lane's node.

use super::block::{Block, BlockRef};
use super::bound::Bound;
use super::buffer::{Buffer, WindowMem};
use super::landing::Landing;
use super::region::{Access, Region};
use crate::ring::LaneLock;
use crate::{Error, Kind, Result};
use std::sync::Arc;

/// The smallest block, bytes.
const MIN_SHIFT: u32 = 8;
/// The largest block that shares a region; larger ones get a region of their own, which is kept for the next when they are free.
const MAX_SHIFT: u32 = 26;
const CLASSES: usize = (MAX_SHIFT - MIN_SHIFT + 1) as usize;

/// Limits of a pool.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Bytes of one slab region (default 64 MiB; pages are taken from the system when first touched).
    pub region_bytes: usize,
    /// Bytes of all regions together, those of an endpoint's receive pools too (default 16 GiB of address space). More is `Kind::Limit`.
    pub max_bytes: usize,
    /// Bytes, of `max_bytes`, of free regions that are kept for the next buffers above 64 MiB (default 512 MiB), the oldest of which go
    /// first; 0: each goes with its buffer, as a window's always does. Pages that are new cost three to ten times the transfer. What is kept is
    /// given up when others need the room.
    pub keep_bytes: usize,
    /// NUMA node to prefer.
    pub node: Option<u32>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        PoolConfig { region_bytes: 64 << 20, max_bytes: 16 << 30, keep_bytes: 512 << 20, node: None }
    }
}

/// What a pool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Regions that live: its own, those of its siblings (receive pools), and those that are kept for large blocks.
    pub regions: usize,
    /// Bytes of all regions, which [`PoolConfig::max_bytes`] bounds.
    pub bytes: usize,
    /// Bytes in blocks that it has handed out, not its siblings.
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
pub struct Pool(Arc<Handle>);

/// All handles of a pool. When the last is gone nobody can ask for the blocks that lie in the pool, which keep it: they go.
#[derive(Debug)]
struct Handle(Arc<Shared>);

/// What handles and blocks share. Under the lock of a lane: nearly always it is one thread that takes blocks and gives them back.
#[derive(Debug)]
pub(super) struct Shared {
    config: PoolConfig,
    /// Shared with its siblings.
    bound: Arc<Bound>,
    state: LaneLock<State>,
}

#[derive(Debug, Default)]
struct State {
    read: Space,
    write: Space,
    in_use: usize,
    placed: Option<std::result::Result<u32, String>>,
    closed: bool,
}

/// The blocks of one kind of access.
#[derive(Debug, Default)]
struct Space {
    current: Option<(Arc<Region>, usize)>,
    free: [Vec<Arc<Block>>; CLASSES],
}

impl State {
    fn space(&mut self, access: Access) -> &mut Space {
        if access == Access::PeersWrite { &mut self.write } else { &mut self.read }
    }

    /// One more region, within the bound of the whole.
    fn region(&mut self, bytes: usize, access: Access, shared: &Shared) -> Result<Arc<Region>> {
        let (counted, node) = (shared.bound.count(bytes)?, shared.config.node);
        let region = Arc::new(Region::mapped(bytes, access, node)?.counted(counted));
        if let Some(node) = node.filter(|_| !matches!(self.placed, Some(Err(_)))) {
            self.placed = Some(region.refusal().map_or(Ok(node), |why| Err(why.to_owned())));
        }
        Ok(region)
    }

    /// A place for a block of a size that no free one has: the next in the current region, or the first in a new one.
    fn cut(&mut self, size: usize, access: Access, shared: &Shared) -> Result<(Arc<Region>, usize)> {
        let skew = if access == Access::PeersWrite { window_skew(size) } else { 0 };
        if let Some((region, used)) = &mut self.space(access).current {
            // Blocks start at a multiple of their size up to a page, of a page above: whole cache lines, whole pages.
            let at = used.next_multiple_of(size.min(4096)) + skew;
            if at + size <= region.len() {
                *used = at + size;
                return Ok((region.clone(), at));
            }
        }
        // A region larger than the bound would not be had, and its size may be any number.
        let config = &shared.config;
        let bytes = config.region_bytes.min(config.max_bytes & !4095).max(size + skew).next_multiple_of(4096);
        let region = self.region(bytes, access, shared)?;
        self.space(access).current = Some((region.clone(), size + skew));
        Ok((region, skew))
    }
}

/// Bytes of the block that `len` bytes get: the next power of two, above the largest that shares a region the next multiple of 2 MiB.
/// `Kind::Limit` where an address space has no such block.
#[inline]
fn block_size(len: usize, max_bytes: usize) -> Result<usize> {
    if len <= 1 << MAX_SHIFT {
        return Ok(len.next_power_of_two().max(1 << MIN_SHIFT));
    }
    let size = len.checked_next_multiple_of(2 << 20).filter(|size| *size <= isize::MAX as usize);
    size.ok_or_else(|| too_large(len, max_bytes))
}

#[cold]
fn too_large(len: usize, max_bytes: usize) -> Error {
    let max = max_bytes.min(isize::MAX as usize);
    Error::new(
        Kind::Limit,
        "memory",
        format!("{len} bytes: at most {max} may be had (PoolConfig::max_bytes)"),
    )
}

/// How far window memory lies beside where buffers of its size do: regions are pieces of physical memory, and copies between two that fill the same
/// sets of a cache at once take 4 to 8 % longer. Half a way of the first cache for what fits the second, half a way of the second for
/// what does not (measured on a Zen 4: 64 KiB 1.29 to 1.19 us, 1 MiB 23.2 to 22.2, 4 MiB 91.8 to 88.0).
fn window_skew(size: usize) -> usize {
    match size {
        0..4096 => 0,
        4096..=0x4_0000 => 2048,
        _ => 68 << 10,
    }
}

impl Pool {
    /// An empty pool; regions come when they are needed.
    pub fn new(config: PoolConfig) -> Pool {
        let bound = Arc::new(Bound::new(&config));
        Pool::bounded(config, bound)
    }

    /// Bytes of the block that a buffer of `len` bytes lies in, and counts as. `Kind::Limit` if there is no such block.
    pub fn block_size(&self, len: usize) -> Result<usize> {
        block_size(len, self.0.0.config.max_bytes)
    }

    /// An empty pool on the same node, with regions of another size. Both together are bound as this one is, and keep large regions for each
    /// other.
    pub fn sibling(&self, region_bytes: usize) -> Pool {
        let shared = &self.0.0;
        Pool::bounded(PoolConfig { region_bytes, ..shared.config.clone() }, shared.bound.clone())
    }

    fn bounded(config: PoolConfig, bound: Arc<Bound>) -> Pool {
        Pool(Arc::new(Handle(Arc::new(Shared { config, bound, state: LaneLock::new(State::default()) }))))
    }

    /// `Kind::Limit` if the pool could not hold `bytes` if it held nothing else.
    pub fn check(&self, bytes: usize) -> Result<()> {
        let max = self.0.0.config.max_bytes;
        if bytes > max { Err(too_large(bytes, max)) } else { Ok(()) }
    }

    /// A buffer of `len` bytes with unspecified contents (its own process's old bytes or zeros).
    /// `Kind::Limit` when the pool's bound is reached.
    pub fn alloc(&self, len: usize) -> Result<Buffer> {
        Ok(Buffer::whole(self.0.0.block(len, Access::PeersRead)?, len))
    }

    /// The same, to be filled by a transport first.
    #[inline]
    pub fn landing(&self, len: usize) -> Result<Landing> {
        Ok(Landing::fresh(self.0.0.block(len, Access::PeersRead)?, len))
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_from(&self, bytes: &[u8]) -> Result<Buffer> {
        let mut b = self.alloc(bytes.len())?;
        b.get_mut().expect("a new buffer has one owner").copy_from_slice(bytes);
        Ok(b)
    }

    /// Zeroed memory that peers may be allowed to write: for windows.
    pub fn alloc_window(&self, len: usize) -> Result<WindowMem> {
        let w = WindowMem::new(self.0.0.block(len, Access::PeersWrite)?, len);
        w.fill(0);
        Ok(w)
    }

    /// What the pool holds now.
    pub fn stats(&self) -> PoolStats {
        let shared = &self.0.0;
        let in_use = shared.state.lock().in_use;
        let (regions, bytes) = shared.bound.held();
        PoolStats { regions, bytes, in_use }
    }

    /// `true` if its memory was to lie on a NUMA node.
    pub fn is_to_be_bound(&self) -> bool {
        self.0.0.config.node.is_some()
    }

    /// The NUMA node that was asked for, and what came of it: `Err` says why a region, at least, lies elsewhere. `None` where none was
    /// asked for or there was no region yet.
    pub fn bound(&self) -> Option<(u32, std::result::Result<u32, String>)> {
        let shared = &self.0.0;
        Some((shared.config.node?, shared.state.lock().placed.clone()?))
    }
}

impl Shared {
    #[inline]
    pub(super) fn block(self: &Arc<Shared>, len: usize, access: Access) -> Result<BlockRef> {
        let size = block_size(len, self.config.max_bytes)?;
        if size > 1 << MAX_SHIFT {
            return self.new_block(size, access);
        }
        let mut s = self.state.lock();
        let Some(block) = s.space(access).free[(size.trailing_zeros() - MIN_SHIFT) as usize].pop() else {
            drop(s);
            return self.new_block(size, access);
        };
        s.in_use += size;
        Ok(BlockRef::new(block))
    }

    /// A block that was none before. Above the largest size it has a region of its own, perhaps one that was kept.
    #[cold]
    fn new_block(self: &Arc<Shared>, size: usize, access: Access) -> Result<BlockRef> {
        let mut s = self.state.lock();
        let (region, offset) = if size > 1 << MAX_SHIFT {
            (self.bound.again(size, access).map_or_else(|| s.region(size, access, self), Ok)?, 0)
        } else {
            s.cut(size, access, self)?
        };
        s.in_use += size;
        drop(s);
        Ok(BlockRef::new(Arc::new(Block::new(region, offset, size, Some(self.clone())))))
    }

    /// Takes a block back from its last owner, if it has a pool.
    #[inline]
    pub(super) fn give_back(block: Arc<Block>) {
        let Some(pool) = block.pool() else { return };
        // SAFETY: `block` keeps its pool. Once it lies in the list below it does so until the pool is closed, for which the last
        // handle takes the lock that we hold; and giving the lock back is the last we do with the pool. (A share of our own
        // would be two atomic exchanges for each message.)
        let pool = unsafe { &*Arc::as_ptr(pool) };
        let mut s = pool.state.lock();
        let size = block.size();
        s.in_use -= size;
        if s.closed {
            return;
        }
        if size > 1 << MAX_SHIFT {
            // Under the lock, or one that closes the pool meanwhile would not see it. What is too much ends without it.
            let too_much = pool.bound.keep(block.region().clone());
            drop(s);
            drop(too_much);
        } else {
            let class = (size.trailing_zeros() - MIN_SHIFT) as usize;
            s.space(block.region().access()).free[class].push(block);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut s = self.0.state.lock();
        s.closed = true;
        let kept = (std::mem::take(&mut s.read), std::mem::take(&mut s.write));
        drop(s);
        self.0.bound.let_go();
        drop(kept);
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
        let pool = Pool::new(PoolConfig { region_bytes: 1 << 20, max_bytes: 3 << 20, ..Default::default() });
        let held: Vec<_> = (0..3).map(|_| pool.alloc(1 << 20).unwrap()).collect();
        let e = pool.alloc(1).unwrap_err();
        assert_eq!(e.kind(), Kind::Limit);
        assert!(e.to_string().contains("max_bytes"), "{e}");
        drop(held);
        pool.alloc(1 << 20).unwrap();
    }

    #[test]
    fn a_size_that_no_memory_has_is_an_error_that_names_it_and_the_bound() {
        let any = PoolConfig { region_bytes: usize::MAX, max_bytes: usize::MAX, ..Default::default() };
        for config in [PoolConfig::default(), any] {
            let pool = Pool::new(config.clone());
            // Just above each size at which the arithmetic turns another way, and the largest there are.
            let powers = [35, 36, 47, 62, 63].map(|n| (1usize << n) + 1);
            let ends = [0, 1, 4095, 4096, (2 << 20) - 1, 2 << 20].map(|n| usize::MAX - n);
            for len in powers.into_iter().chain(ends).filter(|n| config.max_bytes < *n || *n >= 1 << 63) {
                let errors = [pool.alloc(len).err(), pool.alloc_window(len).err(), pool.landing(len).err()];
                for e in errors.map(|e| e.unwrap_or_else(|| panic!("{len} bytes"))) {
                    assert_eq!(e.kind(), Kind::Limit, "{len} bytes: {e}");
                    let size = pool.block_size(len).unwrap_or(len).to_string();
                    let max = config.max_bytes.min(isize::MAX as usize).to_string();
                    assert!(
                        e.to_string().contains(&size) && e.to_string().contains(&max),
                        "{len} bytes: {e}"
                    );
                }
            }
            assert_eq!(pool.stats(), PoolStats::default());
        }
        let pool =
            Pool::new(PoolConfig { region_bytes: usize::MAX, max_bytes: 1 << 20, ..Default::default() });
        assert_eq!(pool.alloc(5).unwrap().len(), 5, "a region as large as may be");
        for (len, size) in [(0, 256), (257, 512), (64 << 20, 64 << 20), ((64 << 20) + 1, 66 << 20)] {
            assert_eq!(pool.block_size(len).unwrap(), size, "{len} bytes");
        }
    }

    #[test]
    fn a_huge_block_has_its_own_region_which_is_kept_for_the_next() {
        let pool = Pool::new(PoolConfig { keep_bytes: 500 << 20, ..Default::default() });
        let mib = |n: usize| pool.alloc(n << 20).unwrap();
        let region = |b: &Buffer| b.as_source().region().id();
        let held = || (pool.stats().regions, pool.stats().bytes >> 20, pool.stats().in_use >> 20);
        let first = mib(128);
        let id = region(&first);
        assert_eq!(held(), (1, 128, 128));
        drop(first);
        assert_eq!(held(), (1, 128, 0));
        // For one that is not much smaller, not for others, nor for windows; and for one at a time.
        assert_ne!(region(&mib(130)), id);
        let window = pool.alloc_window(128 << 20).unwrap();
        assert_ne!(window.as_source().region().id(), id);
        assert_eq!(held().1, 128 + 130 + 128);
        drop(window);
        assert_eq!(held().1, 128 + 130, "a window's memory is not kept");
        let second = mib(66);
        assert_eq!((region(&second), held().2), (id, 66));
        let third = mib(128);
        assert_ne!(region(&third), id);
        drop((second, third));
        // The oldest go when there are too many, and what would be too much by itself at once.
        assert_eq!(held(), (2, 128 + 130, 0));
        drop(mib(300));
        assert_eq!(held(), (2, 130 + 300, 0));
        drop(mib(502));
        assert_eq!(held(), (2, 130 + 300, 0));
        let none = Pool::new(PoolConfig { keep_bytes: 0, ..Default::default() });
        drop(none.alloc(128 << 20).unwrap());
        assert_eq!(none.stats(), PoolStats::default());
    }

    #[test]
    fn what_is_kept_makes_room_and_ends_with_the_pool() {
        let pool = Pool::new(PoolConfig { max_bytes: 256 << 20, ..Default::default() });
        drop((pool.alloc(100 << 20).unwrap(), pool.alloc(100 << 20).unwrap()));
        assert_eq!((pool.stats().regions, pool.stats().bytes), (2, 200 << 20));
        let small = pool.alloc(1).unwrap();
        let large = pool.alloc(190 << 20).unwrap();
        let region = Arc::downgrade(large.as_source().region());
        assert_eq!((pool.stats().regions, pool.stats().bytes), (2, 254 << 20));
        assert_eq!(pool.alloc(66 << 20).unwrap_err().kind(), Kind::Limit);
        drop((small, large));
        assert!(region.upgrade().is_some(), "kept");
        drop(pool);
        assert!(region.upgrade().is_none(), "kept by nobody");
    }

    #[test]
    fn siblings_are_bound_together_and_keep_for_each_other() {
        let pool =
            Pool::new(PoolConfig { region_bytes: 1 << 20, max_bytes: 200 << 20, ..Default::default() });
        let sibling = pool.sibling(2 << 20);
        let held = (pool.alloc(1).unwrap(), sibling.alloc(1).unwrap());
        assert_eq!((pool.stats().bytes, pool.stats().in_use), (3 << 20, 256));
        assert_eq!(sibling.stats(), pool.stats());
        let large = sibling.alloc(100 << 20).unwrap();
        assert_eq!((pool.stats().bytes, pool.stats().in_use), (103 << 20, 256));
        let e = pool.alloc(100 << 20).unwrap_err();
        assert!(e.kind() == Kind::Limit && e.to_string().contains("max_bytes"), "{e}");
        let id = large.as_source().region().id();
        drop(large);
        let large = pool.alloc(100 << 20).unwrap();
        assert_eq!(large.as_source().region().id(), id);
        // What the sibling had is free when it and its blocks are gone.
        drop((sibling, held.1));
        assert_eq!(pool.stats(), PoolStats { regions: 2, bytes: 101 << 20, in_use: 256 + (100 << 20) });
        assert!(pool.check(200 << 20).is_ok() && pool.check((200 << 20) + 1).is_err());
    }

    #[test]
    fn owners_on_many_threads_give_each_block_back_once() {
        let pool = Pool::new(PoolConfig { region_bytes: 1 << 20, ..Default::default() });
        let regions = || pool.stats().regions;
        for round in 0..2_000u32 {
            let mut b = pool.alloc(64).unwrap();
            b.get_mut().unwrap().fill(round as u8);
            let shares = [b.clone(), b.clone()];
            std::thread::scope(|s| {
                for share in shares {
                    s.spawn(move || assert!(share.iter().all(|x| *x == round as u8)));
                }
                drop(b);
            });
            assert_eq!(pool.stats().in_use, 0, "round {round}");
        }
        assert_eq!(regions(), 1, "blocks were lost");
    }

    #[test]
    fn a_pool_that_nobody_can_ask_keeps_nothing() {
        let pool = Pool::new(PoolConfig { region_bytes: 1 << 20, ..Default::default() });
        drop(pool.alloc(64).unwrap());
        let late = pool.copy_from(b"late").unwrap();
        let region = Arc::downgrade(late.as_source().region());
        drop(pool);
        assert_eq!(&late[..], b"late");
        assert!(region.upgrade().is_some());
        drop(late);
        assert!(region.upgrade().is_none(), "the region outlives its pool and its blocks");
    }

    #[test]
    fn windows_lie_beside_where_buffers_do_and_do_not_overlap() {
        let pool = Pool::new(PoolConfig { region_bytes: 4 << 20, ..Default::default() });
        let sizes = [64, 4096, 64 << 10, 64 << 10, 1 << 20, 4 << 20, 8 << 20, 1 << 20];
        let all: Vec<_> = sizes.iter().map(|n| pool.alloc_window(*n).unwrap()).collect();
        for (i, w) in all.iter().enumerate() {
            w.fill(i as u8 + 1);
        }
        for (i, w) in all.iter().enumerate() {
            let mut bytes = vec![0; w.len()];
            assert_eq!(w.read(0, &mut bytes), sizes[i]);
            assert!(bytes.iter().all(|b| *b == i as u8 + 1), "window {i} was written by another");
        }
        let offset = |i: usize| all[i].as_source().offset();
        assert!([1, 2, 3].iter().all(|i| offset(*i) % 4096 == 2048));
        assert!([4, 5, 6].iter().all(|i| offset(*i) % 4096 == 0 && offset(*i) >= 68 << 10));
    }
}
