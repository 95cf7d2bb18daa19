//! Calls: being described ([`Prepared`]) and under way ([`Call`]).

use super::super::body::Body;
use super::super::error::{Error, Kind, Result};
use super::super::estimate::ns;
use super::super::wire::{Extension, JOB_MAX, WINDOWS_MAX};
use super::Shared;
use super::core::{Extra, Replay, Start};
use super::link::State;
use kfab::Window;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A call being described; it begins with [`Prepared::start`], [`Prepared::wait`] or `.await`.
#[must_use = "a call begins with `start`, `wait` or `.await`"]
pub struct Prepared<'a, R> {
    shared: &'a Arc<Shared>,
    /// Without its times, which are set when it begins.
    start: Start,
    limit: Option<Duration>,
    /// Why it cannot begin.
    wrong: Option<Error>,
    decode: fn(Body) -> Result<R>,
}

impl<'a, R> Prepared<'a, R> {
    #[inline]
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        (portal, opcode): (u8, u16),
        body: Result<Body>,
        decode: fn(Body) -> Result<R>,
    ) -> Self {
        let (body, wrong) = match body {
            Ok(body) => (body, None),
            Err(e) => (Body::EMPTY, Some(e)),
        };
        let extra = shared.job.as_ref().map(|job| {
            let extension = Extension { job: Some(job.clone()), windows: Vec::new() };
            Box::new(Extra { extension, ..Extra::default() })
        });
        let (deadline, extend_to) = (u64::MAX, u64::MAX);
        let start =
            Start { portal, opcode, high: false, replay: Replay::Never, deadline, extend_to, extra, body };
        Prepared { shared, start, limit: None, wrong, decode }
    }

    fn extra(&mut self) -> &mut Extra {
        self.start.extra.get_or_insert_default()
    }

    /// Ends the call as `TimedOut` after so long, whatever the server says: from when it is next waited for, polled or flushed, or before. Without it the client's default holds, and
    /// early replies move it.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// In the high-priority class, for liveness traffic: slots and a queue of its own, before everything else.
    pub fn high(mut self) -> Self {
        self.start.high = true;
        self
    }

    /// What happens if the server that had the call is gone and another answers.
    pub fn replay(mut self, replay: Replay) -> Self {
        self.start.replay = replay;
        self
    }

    /// The job it belongs to (at most 32 bytes), instead of the client's.
    pub fn job(mut self, job: &str) -> Self {
        self.extra().extension.job = Some(job.into());
        self
    }

    /// Opens this memory to the handler: to get from what may be read, to put into what may be written. Several make one run of
    /// bytes, in this order. Kept open until the call ends. After an end that is not certain ([`super::super::Fate::Unknown`])
    /// the server may still write: drop the window rather than use it for something else.
    pub fn window(mut self, window: &Arc<Window>) -> Self {
        let extra = self.extra();
        extra.extension.windows.push(window.key().clone());
        extra.windows.push(window.clone());
        self
    }

    /// Begins the call. It leaves with others: when one of the client's calls is next waited for or polled, with
    /// [`super::Client::flush`], or when a packet is full.
    #[inline]
    pub fn start(self) -> Call<R> {
        let (shared, decode) = (self.shared.clone(), self.decode);
        let mut state = shared.lock();
        let key = self.begin(&mut state);
        drop(state);
        Call { shared, key: key.map_err(Some), decode }
    }

    /// Begins the call and waits for its end.
    #[inline]
    pub fn wait(self) -> Result<R> {
        let (shared, decode) = (self.shared, self.decode);
        let mut state = shared.lock();
        let key = self.begin(&mut state)?;
        state.leave();
        shared.wait(state, key).and_then(decode)
    }

    #[inline]
    fn begin(mut self, state: &mut State) -> Result<usize> {
        if let Some(e) = self.wrong {
            return Err(e);
        }
        let limits = &self.shared.limits;
        if self.start.body.len() > limits.payload {
            return Err(Error::new(
                Kind::Invalid,
                "the request is larger than ClientLimits::payload: use a window",
            ));
        }
        if let Some(extra) = &mut self.start.extra {
            extra.bytes = encode(&extra.extension)?;
        }
        (self.start.deadline, self.start.extend_to) = match self.limit {
            Some(limit) => {
                let deadline = state.now.saturating_add(ns(limit));
                (deadline, deadline)
            }
            None => {
                let (usual, longest) = self.shared.limits_ns;
                (state.now.saturating_add(usual), state.now.saturating_add(longest))
            }
        };
        state.begin(self.start)
    }
}

fn encode(extension: &Extension) -> Result<Vec<u8>> {
    if extension.windows.len() > WINDOWS_MAX {
        return Err(Error::new(Kind::Invalid, format!("more than {WINDOWS_MAX} windows")));
    }
    if extension.job.as_ref().is_some_and(|j| j.len() > JOB_MAX) {
        return Err(Error::new(Kind::Invalid, format!("a job id of more than {JOB_MAX} bytes")));
    }
    Ok(extension.encode())
}

impl<'a, R: 'a> IntoFuture for Prepared<'a, R> {
    type Output = Result<R>;
    type IntoFuture = Call<R>;

    fn into_future(self) -> Call<R> {
        self.start()
    }
}

/// A call under way. It ends exactly once; dropping it cancels it.
#[must_use = "a call that is dropped is cancelled: wait for it or await it"]
pub struct Call<R> {
    shared: Arc<Shared>,
    /// `Err(None)`: its end has been taken.
    key: std::result::Result<usize, Option<Error>>,
    decode: fn(Body) -> Result<R>,
}

impl<R> Call<R> {
    /// Waits for the end: spins, then sleeps, as the client's endpoint was told.
    #[inline]
    pub fn wait(mut self) -> Result<R> {
        match std::mem::replace(&mut self.key, Err(None)) {
            Ok(key) => self.shared.wait(self.shared.lock(), key).and_then(self.decode),
            Err(e) => Err(over(e)),
        }
    }

    /// The end, if it has come; else the call back. Makes progress.
    pub fn try_take(mut self) -> std::result::Result<Result<R>, Call<R>> {
        match std::mem::replace(&mut self.key, Err(None)) {
            Ok(key) => match self.shared.look(key) {
                Some(r) => Ok(r.and_then(self.decode)),
                None => {
                    self.key = Ok(key);
                    Err(self)
                }
            },
            Err(e) => Ok(Err(over(e))),
        }
    }

    /// Ends the call now, as `Canceled` unless it has ended already: the result tells which. The server drops the handler.
    pub fn cancel(mut self) -> Result<R> {
        match std::mem::replace(&mut self.key, Err(None)) {
            Ok(key) => self.shared.cancel(key).and_then(self.decode),
            Err(e) => Err(over(e)),
        }
    }
}

fn over(e: Option<Error>) -> Error {
    e.unwrap_or_else(|| Error::new(Kind::Closed, "the call is over"))
}

impl<R> Future for Call<R> {
    type Output = Result<R>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<R>> {
        let key = match &mut self.key {
            Ok(key) => *key,
            Err(e) => return Poll::Ready(Err(over(e.take()))),
        };
        match self.shared.poll(key, cx) {
            Some(r) => {
                self.key = Err(None);
                Poll::Ready(r.and_then(self.decode))
            }
            None => Poll::Pending,
        }
    }
}

impl<R> Drop for Call<R> {
    fn drop(&mut self) {
        if let Ok(key) = self.key {
            self.shared.abandon(key);
        }
    }
}

impl<R> std::fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.key.is_ok() { "Call(under way)" } else { "Call(over)" })
    }
}
