//! A share in a lane: what operations and peers hold of it.
//!
//! An `Arc` counts with an atomic exchange, and that must wait until the processor has handed over everything it wrote before: just
//! after a send, a journey of a cache line. So shares are kept and used again (see [`crate::spares`]).

use crate::lane::Lane;
use crate::op::sealed::Hold;
use crate::spares::{OfLane, Spares};
use std::ops::Deref;
use std::sync::Arc;

thread_local! {
    static SPARES: Spares<Arc<Lane>> = const { Spares::new() };
}

impl OfLane for Arc<Lane> {
    #[inline(always)]
    fn lane(&self) -> &Arc<Lane> {
        self
    }
}

/// A share; as good as an `Arc`, cheaper where one thread begins and ends many. Named in a sealed trait's signature, hence `pub`.
pub struct Share(
    /// `None` once it has been taken.
    Option<Arc<Lane>>,
);

impl Hold for Share {
    const EMPTY: Share = Share(None);

    #[inline(always)]
    fn lane(&self) -> Option<&Arc<Lane>> {
        self.0.as_ref()
    }
}

impl Share {
    /// Gives up what this thread keeps of a lane that is closed.
    pub(crate) fn forget(lane: &Arc<Lane>) {
        let _ = SPARES.try_with(|spares| spares.forget(lane));
    }

    #[inline(always)]
    fn arc(&self) -> &Arc<Lane> {
        self.0.as_ref().expect("a share is whole until it is taken")
    }

    /// `true` if both are shares in one lane.
    pub(crate) fn same(&self, other: &Share) -> bool {
        Arc::ptr_eq(self.arc(), other.arc())
    }

    #[inline(never)]
    fn keep(lane: Arc<Lane>) {
        // A thread that is ending has no place for it: then it just goes.
        drop(SPARES.try_with(|spares| spares.keep(lane)));
    }
}

impl From<&Arc<Lane>> for Share {
    #[inline(always)]
    fn from(lane: &Arc<Lane>) -> Share {
        let spare = SPARES.try_with(|spares| spares.take(lane)).ok().flatten();
        Share(Some(spare.unwrap_or_else(|| lane.clone())))
    }
}

impl Clone for Share {
    fn clone(&self) -> Share {
        Share::from(self.arc())
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
