//! What each thread keeps for its next message: shares in the lanes it uses, and letters.
//!
//! A message begins with one and ends with one, and both are dear to make anew. So a thread keeps those it used last instead of giving
//! them up. An endpoint that is dropped takes back those of its thread; those of other threads go when newer ones come or the thread
//! ends, and hold nothing but an empty lane: no port, no memory, no descriptor.

use crate::lane::Lane;
use std::cell::{Cell, RefCell};
use std::sync::Arc;

/// Kept by a thread at most, of each kind.
const SPARE: usize = 64;
/// The newest that are looked through: a thread that uses a few lanes in turn finds one of each there.
const NEAR: usize = 8;

/// Something that belongs to a lane.
pub(crate) trait OfLane {
    fn lane(&self) -> &Arc<Lane>;
}

/// The spares of a thread.
pub(crate) struct Spares<T> {
    /// The newest, at hand.
    newest: Cell<Option<T>>,
    /// The others, the newer later.
    older: RefCell<Vec<T>>,
}

impl<T: OfLane> Spares<T> {
    pub(crate) const fn new() -> Spares<T> {
        Spares { newest: Cell::new(None), older: RefCell::new(Vec::new()) }
    }

    /// One of this lane, if there is one.
    #[inline(always)]
    pub(crate) fn take(&self, lane: &Arc<Lane>) -> Option<T> {
        match self.newest.take() {
            Some(one) if Arc::ptr_eq(one.lane(), lane) => Some(one),
            other => self.take_older(other, lane),
        }
    }

    #[inline(never)]
    fn take_older(&self, newest: Option<T>, lane: &Arc<Lane>) -> Option<T> {
        self.newest.set(newest);
        let mut spares = self.older.try_borrow_mut().ok()?;
        let near = spares.len().saturating_sub(NEAR);
        let at = spares[near..].iter().rposition(|s| Arc::ptr_eq(s.lane(), lane))?;
        Some(spares.swap_remove(near + at))
    }

    /// Keeps one. What comes back is not kept: the caller drops it, with the cells free.
    #[inline(always)]
    pub(crate) fn keep(&self, one: T) -> Option<T> {
        if one.lane().is_closed() {
            return Some(one);
        }
        self.newest.replace(Some(one)).and_then(|older| self.keep_older(older))
    }

    #[inline(never)]
    fn keep_older(&self, one: T) -> Option<T> {
        let Ok(mut spares) = self.older.try_borrow_mut() else { return Some(one) };
        let old = (spares.len() == SPARE).then(|| spares.swap_remove(0));
        spares.push(one);
        old
    }

    /// Gives up those of a lane that is closed.
    pub(crate) fn forget(&self, lane: &Arc<Lane>) {
        let kept = self.older.try_borrow_mut().map(|mut spares| std::mem::take(&mut *spares));
        // Dropped with the cells free: the last share drops the lane, and with it what users hung on its operations.
        let mut kept = kept.unwrap_or_default();
        kept.extend(self.newest.take());
        kept.retain(|s| !Arc::ptr_eq(s.lane(), lane));
    }
}
