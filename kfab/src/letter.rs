//! A letter: the place where a received message lies, from the port to the user's drop.
//!
//! A message is a hundred bytes of small fields. Handed up by value it would be moved at each step, and a wide load of what narrow
//! stores have just written must wait for them: half of a small receive's time. So the port writes it once, into a letter, and what
//! goes up is a pointer. A receive holds a letter from its start; used ones are kept for the next (see [`crate::spares`]).

use crate::lane::Lane;
use crate::op::sealed::Hold;
use crate::spares::{OfLane, Spares};
use kfab_proto::Direct;
use std::ops::Deref;
use std::sync::Arc;

thread_local! {
    static SPARES: Spares<Box<Inner>> = const { Spares::new() };
}

struct Inner {
    lane: Arc<Lane>,
    message: Direct,
}

impl OfLane for Box<Inner> {
    #[inline(always)]
    fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }
}

/// A message's place, and a share in its lane. Named in a sealed trait's signature, hence `pub`.
pub struct Letter(
    /// `None` once it has been taken.
    Option<Box<Inner>>,
);

impl Hold for Letter {
    const EMPTY: Letter = Letter(None);

    #[inline(always)]
    fn lane(&self) -> Option<&Arc<Lane>> {
        self.0.as_ref().map(|inner| &inner.lane)
    }
}

impl Letter {
    #[inline(always)]
    fn inner(&self) -> &Inner {
        self.0.as_ref().expect("a letter is whole until it is taken")
    }

    /// The message in it.
    #[inline(always)]
    pub(crate) fn message(&self) -> &Direct {
        &self.inner().message
    }

    /// The lane, and the place to write to.
    #[inline(always)]
    pub(crate) fn split(&mut self) -> (&Lane, &mut Direct) {
        let inner = self.0.as_mut().expect("a letter is whole until it is taken");
        (&inner.lane, &mut inner.message)
    }

    /// Gives up what this thread keeps of a lane that is closed.
    pub(crate) fn forget(lane: &Arc<Lane>) {
        let _ = SPARES.try_with(|spares| spares.forget(lane));
    }

    #[inline(never)]
    fn keep(mut inner: Box<Inner>) {
        inner.message.body = None;
        // A thread that is ending has no place for it: then it just goes.
        drop(SPARES.try_with(|spares| spares.keep(inner)));
    }
}

impl From<&Arc<Lane>> for Letter {
    /// An empty one.
    #[inline(always)]
    fn from(lane: &Arc<Lane>) -> Letter {
        let spare = SPARES.try_with(|spares| spares.take(lane)).ok().flatten();
        Letter(Some(spare.unwrap_or_else(|| Box::new(Inner { lane: lane.clone(), message: Direct::EMPTY }))))
    }
}

impl Deref for Letter {
    type Target = Arc<Lane>;

    #[inline(always)]
    fn deref(&self) -> &Arc<Lane> {
        &self.inner().lane
    }
}

impl Drop for Letter {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            Letter::keep(inner);
        }
    }
}
