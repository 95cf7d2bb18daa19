//! What the pools of an endpoint hold together: their regions, counted against one bound as long as they live, and those of large blocks
//! that are kept for the next. Pools call it.

use super::pool::PoolConfig;
use super::region::{Access, Region};
use crate::{Error, Kind, Result};
use std::mem::take;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// The bound, and what was counted against it.
#[derive(Debug)]
pub(super) struct Bound {
    max_bytes: usize,
    keep_bytes: usize,
    /// Apart from the rest, which holds regions: they hold it.
    held: Arc<Held>,
    /// Oldest first. Taken under a pool's lock, and no lock under it.
    kept: Mutex<Vec<Arc<Region>>>,
}

#[derive(Debug, Default)]
struct Held {
    regions: AtomicUsize,
    bytes: AtomicUsize,
}

/// A region's bytes, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    held: Arc<Held>,
    bytes: usize,
}

impl Bound {
    pub(super) fn new(config: &PoolConfig) -> Bound {
        let PoolConfig { max_bytes, keep_bytes, .. } = *config;
        Bound { max_bytes, keep_bytes, held: Arc::default(), kept: Mutex::default() }
    }

    /// Counts a region that is to be made. For want of room those that are kept are given up.
    pub(super) fn count(&self, bytes: usize) -> Result<Counted> {
        let add = || {
            let sum = |have: usize| have.checked_add(bytes).filter(|sum| *sum <= self.max_bytes);
            self.held.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum)
        };
        add().or_else(|_| {
            self.let_go();
            add().map_err(|have| {
                let (max, name) = (self.max_bytes, "PoolConfig::max_bytes");
                let why = format!("{bytes} more bytes: the endpoint holds {have} of at most {max} ({name})");
                Error::new(Kind::Limit, "memory", why)
            })
        })?;
        self.held.regions.fetch_add(1, Ordering::Relaxed);
        Ok(Counted { held: self.held.clone(), bytes })
    }

    /// Keeps the region of a large block that is free again. Those that are too much then, for the caller to drop. That of a window is: what
    /// peers could write is to be mapped by none when the window is closed.
    pub(super) fn keep(&self, region: Arc<Region>) -> Vec<Arc<Region>> {
        if region.len() > self.keep_bytes || region.access() == Access::PeersWrite {
            return vec![region];
        }
        let mut kept = self.kept();
        kept.push(region);
        let mut sum: usize = kept.iter().map(|r| r.len()).sum();
        let oldest = kept.iter().take_while(|r| {
            let goes = sum > self.keep_bytes;
            sum -= r.len();
            goes
        });
        let n = oldest.count();
        kept.drain(..n).collect()
    }

    /// A kept region for a block of `size` bytes, at most twice as large, as a small block is.
    pub(super) fn again(&self, size: usize, access: Access) -> Option<Arc<Region>> {
        let mut kept = self.kept();
        let fits = |r: &Region| r.access() == access && size <= r.len() && r.len() / 2 < size;
        let all = kept.iter().enumerate().filter(|(_, r)| fits(r));
        let (at, _) = all.min_by_key(|(_, r)| r.len())?;
        Some(kept.remove(at))
    }

    /// Keeps nothing any more of what it has.
    pub(super) fn let_go(&self) {
        let kept = take(&mut *self.kept());
        drop(kept);
    }

    /// Regions that live, and their bytes.
    pub(super) fn held(&self) -> (usize, usize) {
        (self.held.regions.load(Ordering::Relaxed), self.held.bytes.load(Ordering::Relaxed))
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Arc<Region>>> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.regions.fetch_sub(1, Ordering::Relaxed);
        self.held.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
