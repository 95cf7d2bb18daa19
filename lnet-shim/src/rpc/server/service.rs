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

/// A handler at work. Runs on its lane's thread alone, so it need not be `Send`.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<Body>>>>;

/// Begins the work on a call; `Err` if the request cannot be decoded.
pub(crate) type Begin = Arc<dyn Fn(Request, Body) -> Result<Work> + Send + Sync>;

/// What is served on one portal: async handlers, typed or by bytes. The same handlers run on every lane.
#[derive(Clone)]
pub struct Service {
    pub(crate) name: String,
    pub(crate) portal: u8,
    pub(crate) handlers: Vec<Option<Begin>>,
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
        self.begin(
            method.opcode(),
            Arc::new(move |request, body: Body| {
                let work = handler(request, decode(&body)?);
                Ok(Box::pin(async move { encode(&work.await?) }))
            }),
        )
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
        self.begin(opcode, Arc::new(move |request, body| Ok(Box::pin(handler(request, body)))))
    }

    fn begin(mut self, opcode: u16, begin: Begin) -> Service {
        assert!(opcode < OPCODES, "opcodes are below {OPCODES}");
        let at = usize::from(opcode);
        if self.handlers.len() <= at {
            self.handlers.resize_with(at + 1, || None);
        }
        self.handlers[at] = Some(begin);
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
