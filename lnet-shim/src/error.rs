//! The one error type of the crate.
//!
//! Every fallible public function returns [`Result`]. Back-pressure is not an error of the peer: it is
//! [`ErrorKind::Busy`], and the caller may try again.

use std::fmt;
use std::sync::Arc;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, coarse enough to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument breaks a documented rule; nothing was done.
    Invalid,
    /// A text could not be parsed; the context names the character.
    Parse,
    /// The named object does not exist (any more).
    NotFound,
    /// The object exists already.
    Exists,
    /// Not allowed: a portal of the other kind, a privileged port, a foreign session.
    Denied,
    /// A bounded queue is full; try again after events have been taken.
    Busy,
    /// The peer broke the wire protocol.
    Protocol,
    /// The deadline passed; the peer may have seen the operation.
    TimedOut,
    /// No network or no live peer to carry the operation.
    Unreachable,
    /// The node has been shut down.
    Closed,
    /// The operating system refused.
    Io,
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fate {
    /// The same call will fail again.
    Permanent,
    /// The same call may succeed later.
    Temporary,
}

/// An error: its kind, the operation that met it, and words for a person.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    op: &'static str,
    context: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind` met in `op`.
    pub fn new(kind: ErrorKind, op: &'static str, context: impl Into<String>) -> Self {
        Self { kind, op, context: context.into(), source: None }
    }

    /// An operating system error met in `op`.
    pub fn io(op: &'static str, context: impl Into<String>, source: std::io::Error) -> Self {
        let kind = match source.kind() {
            std::io::ErrorKind::TimedOut => ErrorKind::TimedOut,
            std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ => ErrorKind::Io,
        };
        Self { kind, op, context: context.into(), source: Some(Arc::new(source)) }
    }

    /// The kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The operation that failed.
    pub fn op(&self) -> &'static str {
        self.op
    }

    /// Words for a person, without the source.
    pub fn context(&self) -> &str {
        &self.context
    }

    /// Whether trying again may help.
    pub fn fate(&self) -> Fate {
        match self.kind {
            ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::Unreachable | ErrorKind::Io => Fate::Temporary,
            _ => Fate::Permanent,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.op, self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| s.as_ref() as &(dyn std::error::Error + 'static))
    }
}
