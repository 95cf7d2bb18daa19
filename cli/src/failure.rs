//! How a command ends badly: what to say, what to do about it, and the exit code. Called by every command.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 unavailable or unreachable, 130 interrupted.

use kfab::Kind;
use std::fmt;

/// Done, but not as it should.
pub(crate) const FAILED: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;
/// Something that is needed is not there or does not answer.
pub(crate) const UNAVAILABLE: u8 = 3;
/// Ended by Ctrl-C, SIGTERM or SIGHUP.
pub(crate) const INTERRUPTED: u8 = 130;

/// The result of a command or a step of one.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Why a command ends, for people.
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What went wrong, by name.
    pub(crate) what: String,
    /// What to do about it, where something can be done.
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(code: u8, what: impl Into<String>) -> Failure {
        Failure { code, what: what.into(), hint: None }
    }

    pub(crate) fn failed(what: impl Into<String>) -> Failure {
        Failure::new(FAILED, what)
    }

    pub(crate) fn usage(what: impl Into<String>) -> Failure {
        Failure::new(USAGE, what)
    }

    pub(crate) fn unavailable(what: impl Into<String>) -> Failure {
        Failure::new(UNAVAILABLE, what)
    }

    /// Ctrl-C was pressed: nothing to say.
    pub(crate) fn interrupted() -> Failure {
        Failure::new(INTERRUPTED, "interrupted")
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// Says in which step it happened.
    pub(crate) fn during(mut self, step: &str) -> Failure {
        self.what = format!("{step}: {}", self.what);
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match &self.hint {
            Some(h) => write!(f, "\n  hint: {h}"),
            None => Ok(()),
        }
    }
}

impl From<kfab::Error> for Failure {
    fn from(e: kfab::Error) -> Failure {
        let code = match e.kind() {
            Kind::InvalidArgument => USAGE,
            Kind::Unavailable | Kind::Unreachable | Kind::AddressInUse | Kind::Limit => UNAVAILABLE,
            _ => FAILED,
        };
        let text = e.to_string();
        let hint = match e.kind() {
            Kind::Unreachable => {
                Some("is `kfab serve` running there, and is the address the one it printed?")
            }
            Kind::AddressInUse => {
                Some("another server has this address: stop it or choose another with --listen")
            }
            Kind::AuthFailed if text.contains("encryption") => {
                Some("with a key both sides encrypt, or both are told not to: --plain on both, or on neither")
            }
            Kind::AuthFailed => Some("both sides need the same key: --key-file, made by `kfab keygen FILE`"),
            _ if text.contains("Too many open files") || text.contains("os error 24") => {
                Some("the limit on open files is too small: raise it with `ulimit -n 4096`")
            }
            _ if text.contains("Cannot allocate memory") => Some(
                "too little memory, or RLIMIT_AS or RLIMIT_MEMLOCK is too small: `ulimit -v unlimited`, `ulimit -l unlimited`",
            ),
            _ => None,
        };
        Failure { code, what: text, hint: hint.map(str::to_owned) }
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::failed(e.to_string())
    }
}
