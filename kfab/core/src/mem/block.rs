//! Blocks: stretches of regions. A [`BlockRef`] is a share in one; the last share gives the block back to its pool, together with the
//! memory that counts its owners, so that the next user of it allocates nothing.

use super::pool::Shared;
use super::region::Region;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// A stretch of a region.
#[derive(Debug)]
pub(super) struct Block {
    region: Arc<Region>,
    offset: usize,
    size: usize,
    /// Where it goes when the last owner is gone; `None` for adopted memory.
    pool: Option<Arc<Shared>>,
}

impl Block {
    /// Bytes `offset..offset + size` of a region.
    pub(super) fn new(region: Arc<Region>, offset: usize, size: usize, pool: Option<Arc<Shared>>) -> Block {
        let inside = offset.checked_add(size).is_some_and(|end| end <= region.len());
        assert!(inside, "a block outside its region");
        Block { region, offset, size, pool }
    }

    #[inline]
    pub(super) fn pool(&self) -> Option<&Arc<Shared>> {
        self.pool.as_ref()
    }

    #[inline]
    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Its first byte's offset in the region.
    #[inline]
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes.
    #[inline]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The address of byte `at` of the block.
    #[inline]
    pub(super) fn at(&self, at: usize) -> *mut u8 {
        debug_assert!(at <= self.size);
        // SAFETY: offset + size <= region.len() (checked in `new`) and at <= size, so the result is in or one past the region.
        unsafe { self.region.base().add(self.offset + at) }
    }
}

/// A share in a block.
#[derive(Clone, Debug)]
pub(super) struct BlockRef(
    /// `None` only while being dropped.
    Option<Arc<Block>>,
);

impl BlockRef {
    /// The first share in a block.
    #[inline]
    pub(super) fn new(block: Arc<Block>) -> BlockRef {
        BlockRef(Some(block))
    }

    #[inline]
    fn arc(&self) -> &Arc<Block> {
        self.0.as_ref().expect("set until drop")
    }

    /// `true` if there is no other share.
    #[inline]
    pub(super) fn is_only(&mut self) -> bool {
        // There are no weak shares, so nobody can make another: no need for what `Arc::get_mut` costs, an atomic exchange.
        let only = Arc::strong_count(self.arc()) == 1;
        // Acquire: what the others did with the bytes comes before what we do.
        fence(Ordering::Acquire);
        only
    }

    /// `true` if both are shares in one block.
    pub(super) fn same(&self, other: &BlockRef) -> bool {
        Arc::ptr_eq(self.arc(), other.arc())
    }

    /// The region, if this is the only share in a block without a pool and the block the only user of the region; else the share back.
    pub(super) fn into_region(mut self) -> Result<Region, BlockRef> {
        let Some(arc) = self.0.take() else { return Err(self) };
        if arc.pool.is_some() {
            return Err(BlockRef(Some(arc)));
        }
        let block = Arc::try_unwrap(arc).map_err(|arc| BlockRef(Some(arc)))?;
        let (offset, size) = (block.offset, block.size);
        let again = |region| BlockRef::new(Arc::new(Block::new(region, offset, size, None)));
        Arc::try_unwrap(block.region).map_err(again)
    }
}

impl Deref for BlockRef {
    type Target = Block;

    #[inline]
    fn deref(&self) -> &Block {
        self.arc()
    }
}

impl Drop for BlockRef {
    #[inline]
    fn drop(&mut self) {
        let Some(arc) = self.0.take() else { return };
        if Arc::strong_count(&arc) == 1 {
            // We are the last, and there are no weak shares: nobody can make another. Acquire: what the others did with the bytes
            // comes before what their next user does.
            fence(Ordering::Acquire);
            Shared::give_back(arc);
        } else if let Some(block) = Arc::into_inner(arc) {
            // The last two went at the same moment: exactly one of them gets the block.
            Shared::give_back(Arc::new(block));
        }
    }
}
