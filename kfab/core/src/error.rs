//! The one error of the fabric: what happened, whether the peer may have seen the operation, in which operation, and why.
//!
//! Back-pressure is never an error: an operation that has to wait for a credit simply has not ended yet.

use std::fmt;

/// The result of every fallible call.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An argument is outside its documented limits; the context names it and the limit.
    InvalidArgument,
    /// A provider cannot run here (no library, no device, not permitted).
    Unavailable,
    /// No way to the peer answered; the context lists what was tried.
    Unreachable,
    /// The peer died, restarted, or stayed silent for longer than the liveness limit.
    PeerLost,
    /// The deadline of the operation passed.
    TimedOut,
    /// The operation was cancelled by its owner; a large send, perhaps by its receiver.
    Canceled,
    /// A window key, right, or range was refused by the peer that owns the memory.
    AccessDenied,
    /// The handshake failed: wrong or missing fabric key, or a foreign user id.
    AuthFailed,
    /// A message was larger than the buffer it was received into.
    Truncated,
    /// A configured bound was reached (memory, operations, descriptors); the context says which and how to raise it.
    Limit,
    /// Somebody already listens on that address.
    AddressInUse,
    /// The peer broke the protocol.
    Protocol,
    /// The endpoint was closed.
    Closed,
    /// The operating system refused a call; the source has its error.
    Os,
}

/// Whether the peer may have seen an operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// Nothing reached the peer: it is safe to try again elsewhere.
    NotSent,
    /// It may or may not have taken effect.
    Unknown,
    /// The peer saw it and refused it.
    Refused,
}

struct Inner {
    kind: Kind,
    fate: Fate,
    op: &'static str,
    context: String,
    source: Option<std::io::Error>,
}

/// A failed operation. One pointer wide, so that results stay small on the hot path.
pub struct Error(Box<Inner>);

impl Error {
    /// An error of `kind` in operation `op`; nothing has been sent unless [`Error::with_fate`] says so.
    pub fn new(kind: Kind, op: &'static str, context: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, fate: Fate::NotSent, op, context: context.into(), source: None }))
    }

    /// An operating-system error met in `op`.
    pub fn os(op: &'static str, context: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::AddrInUse => Kind::AddressInUse,
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::NotFound => Kind::Unreachable,
            _ => Kind::Os,
        };
        let mut e = Error::new(kind, op, context);
        e.0.source = Some(source);
        e
    }

    /// The same error with another fate.
    pub fn with_fate(mut self, fate: Fate) -> Self {
        self.0.fate = fate;
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the peer may have seen the operation.
    pub fn fate(&self) -> Fate {
        self.0.fate
    }

    /// The operation that failed: `send`, `connect`, `open`, ...
    pub fn op(&self) -> &'static str {
        self.0.op
    }

    /// What was wrong, by name.
    pub fn context(&self) -> &str {
        &self.0.context
    }

    /// The same with the system's words, if it was the system that refused: what a list of things left out says of each.
    pub fn reason(&self) -> String {
        match &self.0.source {
            Some(s) => format!("{}: {s}", self.0.context),
            None => self.0.context.clone(),
        }
    }
}

/// An error tells every operation that failed with it, so it can be copied; the system error keeps its number.
impl Clone for Error {
    fn clone(&self) -> Self {
        let i = &self.0;
        let source = i.source.as_ref().map(|s| match s.raw_os_error() {
            Some(n) => std::io::Error::from_raw_os_error(n),
            None => std::io::Error::new(s.kind(), s.to_string()),
        });
        Error(Box::new(Inner { kind: i.kind, fate: i.fate, op: i.op, context: i.context.clone(), source }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.op, self.reason())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:?} in {self}", self.0.kind, self.0.fate)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s as _)
    }
}
