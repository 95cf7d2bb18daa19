//! Services: handlers by opcode on a portal.

use super::super::body::Body;
use super::super::error::{Fate, Kind, Result};
use super::super::method::{Method, OPCODES, PORTALS, decode, encode};
use super::super::session::Answer;
use super::super::wire::Status;
use super::request::Request;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A handler at work. Runs on its lane's thread alone, so it need not be `Send`.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<Body>>>>;

/// Makes a lane's own of a handler.
pub(crate) type Make = Arc<dyn Fn() -> Box<dyn Handler> + Send + Sync>;

/// How the work on a call began.
pub(crate) enum First {
    /// It has ended already.
    Ended(Result<Body>),
    /// It waits for something.
    GoesOn(Work),
}

/// What is done for one opcode, on one lane.
pub(crate) trait Handler {
    /// Begins the work on a call.
    fn begin(&mut self, request: Request, body: Body, cx: &mut Context<'_>) -> First;
}

/// A handler, and the memory of a call that has ended: the next needs no allocation.
struct Kept<F, Fut> {
    start: Arc<F>,
    spare: Pin<Box<Option<Fut>>>,
}

impl<F, Fut> Handler for Kept<F, Fut>
where
    F: Fn(Request, Body) -> Result<Fut>,
    Fut: Future<Output = Result<Body>> + 'static,
{
    #[inline]
    fn begin(&mut self, request: Request, body: Body, cx: &mut Context<'_>) -> First {
        match (self.start)(request, body) {
            Ok(work) => self.spare.set(Some(work)),
            Err(e) => return First::Ended(Err(e)),
        }
        match poll(&mut self.spare, cx) {
            Poll::Ready(result) => {
                self.spare.set(None);
                First::Ended(result)
            }
            Poll::Pending => {
                First::GoesOn(Box::pin(Going(std::mem::replace(&mut self.spare, Box::pin(None)))))
            }
        }
    }
}

/// Work that goes on, in the memory where it began.
struct Going<Fut>(Pin<Box<Option<Fut>>>);

impl<Fut: Future<Output = Result<Body>>> Future for Going<Fut> {
    type Output = Result<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Body>> {
        poll(&mut self.0, cx)
    }
}

#[inline]
fn poll<Fut: Future>(work: &mut Pin<Box<Option<Fut>>>, cx: &mut Context<'_>) -> Poll<Fut::Output> {
    work.as_mut().as_pin_mut().map_or(Poll::Pending, |work| work.poll(cx))
}

/// What is served on one portal: async handlers, typed or by bytes. The same handlers run on every lane.
#[derive(Clone)]
pub struct Service {
    pub(crate) name: String,
    pub(crate) portal: u8,
    pub(crate) handlers: Vec<Option<Make>>,
}

impl Service {
    /// A service without handlers.
    ///
    /// # Panics
    /// If `portal` is not below [`PORTALS`].
    pub fn new(name: &str, portal: u8) -> Service {
        assert!(usize::from(portal) < PORTALS, "portals are below {PORTALS}");
        Service { name: name.to_owned(), portal, handlers: Vec::new() }
    }

    /// Serves a method. The handler runs on a lane's thread: it may await bulk data, other calls, timers and threads, but must not
    /// block, or the lane's other calls wait. If its call is cancelled, it is dropped where it awaits.
    ///
    /// # Panics
    /// If the method belongs to another portal.
    pub fn on<Q, R, F, Fut>(self, method: Method<Q, R>, handler: F) -> Service
    where
        Q: DeserializeOwned + 'static,
        R: Serialize + 'static,
        F: Fn(Request, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R>> + 'static,
    {
        assert_eq!(method.portal(), self.portal, "a method of another portal");
        self.begin(method.opcode(), move |request, body| {
            let work = handler(request, decode(&body)?);
            Ok(async move { encode(&work.await?) })
        })
    }

    /// Serves an opcode by bytes: nothing is decoded, and large bodies are not copied.
    ///
    /// # Panics
    /// If `opcode` is not below [`OPCODES`].
    pub fn on_bytes<F, Fut>(self, opcode: u16, handler: F) -> Service
    where
        F: Fn(Request, Body) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Body>> + 'static,
    {
        self.begin(opcode, move |request, body| Ok(handler(request, body)))
    }

    fn begin<F, Fut>(mut self, opcode: u16, start: F) -> Service
    where
        F: Fn(Request, Body) -> Result<Fut> + Send + Sync + 'static,
        Fut: Future<Output = Result<Body>> + 'static,
    {
        assert!(opcode < OPCODES, "opcodes are below {OPCODES}");
        let at = usize::from(opcode);
        if self.handlers.len() <= at {
            self.handlers.resize_with(at + 1, || None);
        }
        let start = Arc::new(start);
        self.handlers[at] =
            Some(Arc::new(move || Box::new(Kept { start: start.clone(), spare: Box::pin(None) })));
        self
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({} on portal {})", self.name, self.portal)
    }
}

/// What the client is told.
#[inline]
pub(crate) fn answer(result: Result<Body>) -> Answer {
    match result {
        Ok(body) => Answer { status: Status::Ok, arg: 0, body },
        Err(e) => {
            let (status, arg) = match e.kind() {
                Kind::Failed(code) => (Status::Failed, code),
                Kind::Bulk => (Status::Bulk, 0),
                Kind::Protocol if e.fate() == Fate::NotExecuted => (Status::Malformed, 0),
                _ => (Status::Failed, u32::MAX),
            };
            let words = if status == Status::Failed { e.context().to_owned() } else { e.to_string() };
            Answer { status, arg, body: Body::from(words.into_bytes()) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Ends in its second poll if its request says so.
    async fn twice(body: Body) -> Result<Body> {
        let mut polled = body.is_empty();
        std::future::poll_fn(|_| {
            if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        Ok(body)
    }

    #[test]
    fn calls_that_end_at_once_share_memory_and_one_that_goes_on_keeps_its_own() {
        let service = Service::new("twice", 6).on_bytes(1, |_, body| twice(body));
        let mut handler = service.handlers[1].as_ref().unwrap()();
        let mut cx = Context::from_waker(Waker::noop());
        let mut begin = |handler: &mut Box<dyn Handler>, body: &[u8]| {
            let request = Request { client: 1, high: false, deadline: None, job: None, bulk: None };
            handler.begin(request, body.into(), &mut cx)
        };
        let ended = |first| matches!(first, First::Ended(Ok(body)) if body.is_empty());
        assert!(ended(begin(&mut handler, b"")));
        let First::GoesOn(mut one) = begin(&mut handler, b"one") else { panic!("it awaits") };
        assert!(ended(begin(&mut handler, b"")));
        let First::GoesOn(mut two) = begin(&mut handler, b"two") else { panic!("it awaits") };
        for (work, bytes) in [(&mut two, b"two"), (&mut one, b"one")] {
            let end = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(end, Poll::Ready(Ok(body)) if *body == *bytes));
        }
    }
}
