//! The client: calls to one server, by one or several of its names.

mod call;
mod core;
mod link;

pub use self::call::{Call, Prepared};
pub(crate) use self::core::Core;
pub use self::core::Replay;
pub(crate) use self::core::{Send, Start};

use super::body::Body;
use super::book::Book;
use super::error::{Error, Kind, Result};
use super::estimate::ns;
use super::faults::{Dice, Faults};
use super::method::{Method, decode, encode};
use kfab::{Buffer, Endpoint, EndpointConfig, Fabric, Rights, Window};
use link::State;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// What a client may have under way, and how patient it is.
#[derive(Clone, Debug)]
pub struct ClientLimits {
    /// Calls begun and not taken (default 65536); more are `Busy`.
    pub calls: usize,
    /// Calls at the server at a time (default 256, and what the server allows); more wait here.
    pub slots: u16,
    /// Bytes of a request (default 1 MiB); more goes by windows.
    pub payload: usize,
    /// How long a call may take that does not say (default 30 s).
    pub limit: Duration,
    /// How far early replies may move that (default 600 s, as Lustre's at_max).
    pub limit_max: Duration,
    /// The shortest and longest time without an answer after which a call is sent again (default 500 ms and 30 s).
    pub patience_min: Duration,
    /// See `patience_min`.
    pub patience_max: Duration,
    /// How long an address may take to welcome the client before the next is tried (default 3 s).
    pub connect: Duration,
    /// Sendings of one call without an answer before the next address is tried (default 4).
    pub tries: u32,
}

impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits {
            calls: 65_536,
            slots: 256,
            payload: 1 << 20,
            limit: Duration::from_secs(30),
            limit_max: Duration::from_secs(600),
            patience_min: Duration::from_millis(500),
            patience_max: Duration::from_secs(30),
            connect: Duration::from_secs(3),
            tries: 4,
        }
    }
}

/// How a client is set up.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// Its endpoint: providers, and how waiting callers wait.
    pub endpoint: EndpointConfig,
    /// Bounds.
    pub limits: ClientLimits,
    /// The job its calls belong to, at most 32 bytes.
    pub job: Option<String>,
    /// What befalls packets on their way out (default nothing).
    pub faults: Faults,
}

/// What a client has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCounts {
    /// Calls begun.
    pub calls: u64,
    /// Sendings beyond the first, for want of an answer.
    pub resent: u64,
    /// Early replies: the server was still at it.
    pub early: u64,
    /// Calls that the server sent back for a while.
    pub retry_after: u64,
    /// Calls that ended by their deadline.
    pub timed_out: u64,
    /// Replies to calls that were over.
    pub stale: u64,
    /// Packets that broke the protocol.
    pub damaged: u64,
    /// Times that the way to the server was lost.
    pub links_lost: u64,
    /// Times that another incarnation of a server answered.
    pub restarts: u64,
}

/// What handles and clients share.
pub(crate) struct Shared {
    endpoint: Arc<Endpoint>,
    state: Mutex<State>,
    limits: ClientLimits,
    /// How long a call may take that does not say, and how far that may move.
    limits_ns: (u64, u64),
    job: Option<Box<str>>,
}

/// A client of one server, or of servers that stand in for each other. Cheap to clone; threads that share it take turns.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

impl Client {
    /// A client with an endpoint of its own. `servers` are NIDs of `book` or kfab addresses, the preferred one first; nothing is
    /// connected before the first call.
    pub fn open(fabric: &Fabric, config: ClientConfig, book: &Book, servers: &[&str]) -> Result<Client> {
        let addresses = servers.iter().map(|name| book.resolve(name)).collect::<Result<Vec<_>>>()?;
        if addresses.is_empty() {
            return Err(Error::new(Kind::Invalid, "no server is named"));
        }
        let failed = |e| Error::fabric(Kind::Unreachable, "opening the client's endpoint", e);
        let endpoint = Arc::new(fabric.open(config.endpoint).map_err(failed)?);
        let client = super::server::random().map_err(failed)?;
        let dice = Dice::new(config.faults, client);
        let core = Core::new(client, config.limits.clone());
        let state = Mutex::new(State::new(core, client, addresses, dice));
        let job = config.job.map(String::into_boxed_str);
        let usual = ns(config.limits.limit);
        let limits_ns = (usual, usual.max(ns(config.limits.limit_max)));
        Ok(Client { shared: Arc::new(Shared { endpoint, state, limits: config.limits, limits_ns, job }) })
    }

    /// A typed call.
    #[inline]
    pub fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        method: Method<Q, R>,
        request: &Q,
    ) -> Prepared<'_, R> {
        let decode = |body: Body| decode(&body);
        Prepared::new(&self.shared, (method.portal(), method.opcode()), encode(request), decode)
    }

    /// A call by bytes.
    #[inline]
    pub fn call_bytes(&self, portal: u8, opcode: u16, body: impl Into<Body>) -> Prepared<'_, Body> {
        let body = match usize::from(portal) < super::method::PORTALS {
            true => Ok(body.into()),
            false => Err(Error::new(Kind::Invalid, "portals are below 64")),
        };
        Prepared::new(&self.shared, (portal, opcode), body, Ok)
    }

    /// A window of zeroed memory for handlers to put to or get from, to be used for many calls.
    pub fn window(&self, len: usize, rights: Rights) -> Result<Arc<Window>> {
        let window = self.shared.endpoint.window(len, rights);
        window.map(Arc::new).map_err(|e| Error::fabric(Kind::Invalid, "opening a window", e))
    }

    /// A window over a buffer for handlers to get from.
    pub fn window_of(&self, buffer: Buffer) -> Result<Arc<Window>> {
        let window = self.shared.endpoint.window_of(buffer);
        window.map(Arc::new).map_err(|e| Error::fabric(Kind::Invalid, "opening a window", e))
    }

    /// A buffer of the client's endpoint.
    pub fn buffer(&self, len: usize) -> Result<Buffer> {
        self.shared.endpoint.buffer(len).map_err(|e| Error::fabric(Kind::Busy, "a buffer", e))
    }

    /// Sends calls that were started and have not left yet, and makes progress, without waiting. Calls begun before the server was
    /// reached leave when it has welcomed the client: flush again, or wait.
    pub fn flush(&self) {
        let mut s = self.shared.lock();
        s.clock();
        s.advance(&self.shared.endpoint);
        if !s.leading {
            s.pump(&self.shared.endpoint);
        }
    }

    /// Runs a future on this thread and the client with it: calls that it starts in one turn leave together, and no other thread
    /// is needed. What else it waits for is noticed within a millisecond.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.shared.block_on(future)
    }

    /// What it has done.
    pub fn counts(&self) -> ClientCounts {
        self.shared.lock().core.counts
    }

    /// The incarnation of the server that answered last; 0 before the first.
    pub fn incarnation(&self) -> u64 {
        self.shared.lock().core.incarnation()
    }

    /// The client's endpoint: its memory, peers, rails and fault rules.
    pub fn endpoint(&self) -> &Endpoint {
        &self.shared.endpoint
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({:?})", self.shared.endpoint)
    }
}

/// How long a thread that does not lead sleeps at most.
const FOLLOW: Duration = Duration::from_millis(100);
/// How long [`Client::block_on`] waits for the network alone.
const LOOK: Duration = Duration::from_millis(1);

impl Shared {
    #[inline]
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Waits for a call. One thread leads: it waits for the network, for all; the others sleep until it wakes them.
    #[inline]
    fn wait<'a>(&'a self, mut s: MutexGuard<'a, State>, key: usize) -> Result<Body> {
        loop {
            if let Some(r) = s.core.take(key) {
                pass_on(s);
                return r;
            }
            if s.has_begun() {
                s.clock();
            }
            s = self.wait_once(s, Some(key), FOLLOW);
            if !s.core.has_ended(key) {
                s.clock();
            }
        }
    }

    /// Waits for something to happen, at most `limit`.
    #[inline]
    fn wait_once<'a>(
        &'a self,
        mut s: MutexGuard<'a, State>,
        key: Option<usize>,
        limit: Duration,
    ) -> MutexGuard<'a, State> {
        if s.leading {
            if let Some(key) = key {
                s.core.set_waker(key, &Waker::from(Arc::new(Unpark::new())));
            }
            drop(s);
            std::thread::park_timeout(limit);
            return self.lock();
        }
        s.advance(&self.endpoint);
        if key.is_some_and(|key| s.core.has_ended(key)) {
            return s;
        }
        let patience = s.patience().min(limit);
        let op = s.take_receive(&self.endpoint);
        s.leading = true;
        drop(s);
        let r = op.wait_timeout(patience);
        let mut s = self.lock();
        s.leading = false;
        s.received(r);
        s
    }

    /// A call's end, if it has come; makes progress.
    fn look(&self, key: usize) -> Option<Result<Body>> {
        let mut s = self.lock();
        if let Some(r) = s.core.take(key) {
            return Some(r);
        }
        s.clock();
        s.advance(&self.endpoint);
        if !s.leading {
            s.pump(&self.endpoint);
        }
        s.core.take(key)
    }

    /// Polls a call: whoever polls drives the client, unless a thread does already.
    fn poll(&self, key: usize, cx: &mut Context<'_>) -> Option<Result<Body>> {
        let mut s = self.lock();
        loop {
            if let Some(r) = s.core.take(key) {
                if s.driven == 0 {
                    pass_on(s);
                }
                return Some(r);
            }
            s.core.set_waker(key, cx.waker());
            if s.leading || s.driven > 0 {
                return None;
            }
            s.clock();
            s.advance(&self.endpoint);
            let patience = s.patience();
            let mut op = s.take_receive(&self.endpoint).within(patience);
            match std::pin::Pin::new(&mut op).poll(cx) {
                Poll::Ready(r) => s.received(r),
                Poll::Pending => {
                    s.put_receive(op);
                    // It may have been ended by its own deadline while another call was being polled.
                    return s.core.take(key);
                }
            }
        }
    }

    fn cancel(&self, key: usize) -> Result<Body> {
        let mut s = self.lock();
        s.clock();
        let State { core, wire, .. } = &mut *s;
        core.cancel(key, wire);
        let r = core.take(key);
        pass_on(s);
        r.unwrap_or_else(|| Err(Error::new(Kind::Closed, "the call is over")))
    }

    fn abandon(&self, key: usize) {
        let mut s = self.lock();
        s.clock();
        let State { core, wire, .. } = &mut *s;
        core.abandon(key, wire);
        pass_on(s);
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let flag = Arc::new(Flag { set: AtomicBool::new(true), thread: std::thread::current() });
        let waker = Waker::from(flag.clone());
        let _driving = Driving::begin(self);
        loop {
            if flag.set.swap(false, Ordering::Acquire)
                && let Poll::Ready(r) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                return r;
            }
            let mut s = self.lock();
            s.clock();
            if flag.set.load(Ordering::Acquire) {
                s.advance(&self.endpoint);
                if !s.leading {
                    s.pump(&self.endpoint);
                }
                continue;
            }
            let mut s = self.wait_once(s, None, LOOK);
            if !s.leading && flag.set.load(Ordering::Acquire) {
                s.pump(&self.endpoint);
            }
        }
    }
}

/// Whoever still waits for a call is woken to wait for the network in our place.
#[inline]
fn pass_on(mut s: MutexGuard<'_, State>) {
    if !s.leading && s.driven == 0 && s.core.has_wakers() {
        let waker = s.core.any_waker();
        drop(s);
        if let Some(w) = waker {
            w.wake();
        }
    }
}

/// Somebody drives the client in a loop.
struct Driving<'a>(&'a Shared);

impl<'a> Driving<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.lock().driven += 1;
        Driving(shared)
    }
}

impl Drop for Driving<'_> {
    fn drop(&mut self) {
        let mut s = self.0.lock();
        s.driven -= 1;
        pass_on(s);
    }
}

struct Flag {
    set: AtomicBool,
    thread: std::thread::Thread,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

struct Unpark(std::thread::Thread);

impl Unpark {
    fn new() -> Unpark {
        Unpark(std::thread::current())
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Drop for Shared {
    /// Says goodbye, so that the server can forget the client at once.
    fn drop(&mut self) {
        let s = self.state.get_mut().unwrap_or_else(|e| e.into_inner());
        let State { core, wire, .. } = s;
        core.bye(wire);
    }
}
