//! Where events go: a stream that a task or thread takes them from, or a callback.
//!
//! Both are bounded. Room is *reserved* when an operation begins, so an event never finds its queue full; a descriptor
//! whose queue has no room takes no more operations until events have been taken (then the node tries again).
//! Callbacks run on the thread that finished the operation, outside all locks of the node: they may call the node, but a
//! callback that blocks holds up that thread.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_lite::Stream;

use super::{Event, Handler};

type Callback = Box<dyn FnMut(Event) + Send>;
type Hook = Arc<dyn Fn() + Send + Sync>;

/// The sending side of an event queue, given to descriptors. Clones share one queue, so several descriptors may.
#[derive(Clone)]
pub struct EventSink(Arc<Shared>);

/// The receiving side of an event queue. Dropping it discards what comes later.
pub struct EventQueue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    ready: Condvar,
}

struct State {
    queue: VecDeque<Event>,
    reserved: usize,
    capacity: usize,
    closed: bool,
    starved: bool,
    waker: Option<Waker>,
    callback: Option<Callback>,
    has_callback: bool,
    hook: Option<Hook>,
}

impl Shared {
    fn new(capacity: usize, callback: Option<Callback>) -> Arc<Self> {
        let state = State {
            queue: VecDeque::new(),
            reserved: 0,
            capacity: capacity.max(4),
            closed: false,
            starved: false,
            waker: None,
            has_callback: callback.is_some(),
            callback,
            hook: None,
        };
        Arc::new(Self { state: Mutex::new(state), ready: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the next event; also the hook to call, if somebody waits for room.
    fn pop(&mut self) -> (Option<Event>, Option<Hook>) {
        let event = self.queue.pop_front();
        let hook =
            if event.is_some() && std::mem::take(&mut self.starved) { self.hook.clone() } else { None };
        (event, hook)
    }
}

impl EventSink {
    /// A sink whose events go to `callback`; never runs twice at once. At most `capacity` events wait or are promised.
    pub fn callback(capacity: usize, callback: impl FnMut(Event) + Send + 'static) -> Self {
        Self(Shared::new(capacity, Some(Box::new(callback))))
    }

    /// Sets what to call when room appears after it had run out.
    pub(crate) fn set_hook(&self, hook: Hook) {
        self.0.lock().hook = Some(hook);
    }

    /// Adds an event for which room was reserved. Whoever takes it is told by [`EventSink::run`].
    pub(crate) fn push(&self, event: Event) {
        let mut state = self.0.lock();
        state.reserved = state.reserved.saturating_sub(1);
        if state.closed {
            return;
        }
        state.queue.push_back(event);
    }

    /// Wakes who waits for events, or runs the callback for all of them, unless another thread is doing so. To be called
    /// with no lock of the node held.
    pub(crate) fn run(&self) {
        let mut state = self.0.lock();
        if !state.has_callback {
            let waker = state.waker.take();
            drop(state);
            self.0.ready.notify_one();
            return waker.into_iter().for_each(Waker::wake);
        }
        while let Some(mut callback) = state.callback.take() {
            let (event, hook) = state.pop();
            let Some(event) = event else {
                state.callback = Some(callback);
                return;
            };
            drop(state);
            callback(event);
            if let Some(hook) = hook {
                hook();
            }
            state = self.0.lock();
            state.callback = Some(callback);
        }
    }
}

impl Handler for EventSink {
    fn reserve(&self, n: usize) -> bool {
        let mut state = self.0.lock();
        if state.closed {
            state.reserved += n;
            return true;
        }
        if state.queue.len() + state.reserved + n > state.capacity {
            state.starved = true;
            return false;
        }
        state.reserved += n;
        true
    }

    fn release(&self, n: usize) {
        let mut state = self.0.lock();
        state.reserved = state.reserved.saturating_sub(n);
    }
}

impl EventQueue {
    /// A queue for at most `capacity` events waiting or promised (at least 4).
    pub fn new(capacity: usize) -> Self {
        Self(Shared::new(capacity, None))
    }

    /// The side to give to descriptors.
    pub fn sink(&self) -> EventSink {
        EventSink(self.0.clone())
    }

    /// The next event, if one waits.
    pub fn try_recv(&self) -> Option<Event> {
        let (event, hook) = self.0.lock().pop();
        if let Some(hook) = hook {
            hook();
        }
        event
    }

    /// Blocks for the next event, at most `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.try_recv() {
                return Some(event);
            }
            let state = self.0.lock();
            if !state.queue.is_empty() {
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            drop(self.0.ready.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The next event, asynchronously. Dropping the future loses nothing.
    pub async fn recv(&self) -> Event {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// The next event, or the task is woken when there is one. One task at a time.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut state = self.0.lock();
        let (event, hook) = state.pop();
        let Some(event) = event else {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(state);
        if let Some(hook) = hook {
            hook();
        }
        Poll::Ready(event)
    }
}

impl Stream for EventQueue {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_recv(cx).map(Some)
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        state.queue.clear();
    }
}
