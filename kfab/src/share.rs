//! A share in a lane: what operations, messages and peers hold of it.
//!
//! An `Arc` counts with an atomic exchange, and that must wait until the processor has handed over everything it wrote before: just
//! after a send, a journey of a cache line. A message begins with a share and ends with one. So each thread keeps a few shares of
//! the lane it uses for the next message instead of giving them up. An endpoint that is dropped takes back those of its thread; those
//! of other threads go when they use another lane or end, and hold nothing but an empty lane. A thread that uses several lanes in
//! turn keeps those of one.

use crate::lane::Lane;
use std::cell::RefCell;
use std::ops::Deref;
use std::sync::Arc;

/// Shares that a thread keeps at most.
const SPARE: usize = 64;

thread_local! {
    static SPARES: RefCell<Vec<Arc<Lane>>> = const { RefCell::new(Vec::new()) };
}

/// A share; as good as an `Arc`, cheaper where one thread begins and ends many. Named in a sealed trait's signature, hence `pub`.
pub struct Share(Option<Arc<Lane>>);

impl Share {
    /// A share in `lane`.
    #[inline(always)]
    pub(crate) fn of(lane: &Arc<Lane>) -> Share {
        let spare = SPARES.try_with(|spares| {
            let mut spares = spares.try_borrow_mut().ok()?;
            if spares.last().is_some_and(|s| Arc::ptr_eq(s, lane)) { spares.pop() } else { None }
        });
        Share(Some(spare.ok().flatten().unwrap_or_else(|| lane.clone())))
    }

    /// Gives up what this thread keeps of a lane that is closed.
    pub(crate) fn forget(lane: &Arc<Lane>) {
        let kept = SPARES.try_with(|spares| match spares.try_borrow_mut() {
            Ok(mut spares) => std::mem::take(&mut *spares),
            Err(_) => Vec::new(),
        });
        // Dropped with the cell free: the last share drops the lane, and with it what users hung on its operations.
        kept.unwrap_or_default().retain(|s| !Arc::ptr_eq(s, lane));
    }

    #[inline(always)]
    fn arc(&self) -> &Arc<Lane> {
        self.0.as_ref().expect("a share is whole until it is dropped")
    }

    /// `true` if both are shares in one lane.
    pub(crate) fn same(&self, other: &Share) -> bool {
        Arc::ptr_eq(self.arc(), other.arc())
    }
}

impl Clone for Share {
    fn clone(&self) -> Share {
        Share::of(self.arc())
    }
}

impl Deref for Share {
    type Target = Arc<Lane>;

    #[inline(always)]
    fn deref(&self) -> &Arc<Lane> {
        self.arc()
    }
}

impl Drop for Share {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(lane) = self.0.take() {
            Share::keep(lane);
        }
    }
}

impl Share {
    #[inline(never)]
    fn keep(lane: Arc<Lane>) {
        if lane.is_closed() {
            return;
        }
        // A thread that is ending has no place for it: then it just goes.
        let others = SPARES.try_with(|spares| {
            let Ok(mut spares) = spares.try_borrow_mut() else { return Vec::new() };
            match spares.last() {
                Some(s) if !Arc::ptr_eq(s, &lane) => {
                    // Another lane's: it keeps its place while it is in use.
                    return if s.is_closed() {
                        std::mem::replace(&mut *spares, vec![lane])
                    } else {
                        Vec::new()
                    };
                }
                _ if spares.len() < SPARE => spares.push(lane),
                _ => {}
            }
            Vec::new()
        });
        drop(others);
    }
}
