//! The error of a call: what went wrong, and whether the handler may have run.

use std::fmt;

/// Shorthand for results of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An argument breaks a documented limit; nothing was sent.
    Invalid,
    /// The deadline passed first.
    TimedOut,
    /// No address of the server answered in time.
    Unreachable,
    /// The server that had the call is gone, another incarnation answers, and the call may not be replayed.
    Restarted,
    /// Too much is under way, here or (until the deadline) at the server.
    Busy,
    /// The caller cancelled it.
    Canceled,
    /// The server has no such portal or opcode.
    NoService,
    /// The handler said no; the code is the service's own.
    Failed(u32),
    /// The peer sent what cannot be understood.
    Protocol,
    /// The client or server has been closed.
    Closed,
    /// Moving bulk data failed.
    Bulk,
}

/// Whether the handler ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It did not and will not: the call can be made again.
    NotExecuted,
    /// Nobody can tell.
    Unknown,
    /// It ran, and this error is its answer.
    Executed,
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: Kind,
    fate: Fate,
    context: String,
    source: Option<kfab::Error>,
}

impl Error {
    /// An error of `kind`; the handler did not run, unless [`Error::with_fate`] says so.
    pub fn new(kind: Kind, context: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, fate: Fate::NotExecuted, context: context.into(), source: None }))
    }

    /// A handler's own error, with a code that client and service agreed on.
    pub fn failed(code: u32, context: impl Into<String>) -> Error {
        Error::new(Kind::Failed(code), context).with_fate(Fate::Executed)
    }

    /// An error of the fabric met while doing `kind` of thing.
    pub(crate) fn fabric(kind: Kind, context: impl Into<String>, source: kfab::Error) -> Error {
        let mut e = Error::new(kind, context);
        e.0.source = Some(source);
        e
    }

    /// The same error with another fate.
    pub fn with_fate(mut self, fate: Fate) -> Error {
        self.0.fate = fate;
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the handler ran.
    pub fn fate(&self) -> Fate {
        self.0.fate
    }

    /// Words for a person.
    pub fn context(&self) -> &str {
        &self.0.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.context)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|s| s as _)
    }
}
