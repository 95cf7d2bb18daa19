//! A result that comes once: awaited, waited for with a timeout, or ignored.

use std::future::poll_fn;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

/// Both ends of a result to come; clones are the same result.
pub struct OneShot<T>(Arc<(Mutex<State<T>>, Condvar)>);

impl<T> Clone for OneShot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for OneShot<T> {
    fn default() -> Self {
        Self(Arc::new((Mutex::new(State { value: None, waker: None }), Condvar::new())))
    }
}

impl<T> OneShot<T> {
    /// Sets the value; a second one is ignored.
    pub fn complete(&self, value: T) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.value.get_or_insert(value);
        let waker = state.waker.take();
        drop(state);
        self.0.1.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes the value when it is there.
    pub async fn recv(&self) -> T {
        poll_fn(|cx| {
            let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            match state.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Blocks for the value, at most `timeout`.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<T> {
        let state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .0
            .1
            .wait_timeout_while(state, timeout, |s| s.value.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        state.value.take()
    }
}
