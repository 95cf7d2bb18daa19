//! Addresses: one string that lists all the ways to a peer, best first, for example
//! `shm:kfab.7f21@3b0c55d2,tcp:10.0.0.5:7000,tcp:[fd00::5]:7000`.

use crate::{Error, Kind, Result};
use std::fmt;
use std::str::FromStr;

/// One way to a peer: the scheme of a provider and what that provider wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Way {
    /// The provider's scheme: `shm`, `tcp`, `verbs`, `sim`.
    pub scheme: String,
    /// The provider's own text, without a comma: `10.0.0.5:7000`.
    pub rest: String,
}

impl Way {
    /// A way from its two parts.
    pub fn new(scheme: &str, rest: impl Into<String>) -> Self {
        Way { scheme: scheme.to_owned(), rest: rest.into() }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme, self.rest)
    }
}

/// All the ways to one endpoint, best first. Parses from and prints as one string; at most [`Address::MAX_WAYS`] ways.
///
/// ```
/// let a: kfab_core::spi::Address = "shm:kfab.1@2,tcp:127.0.0.1:7000".parse().unwrap();
/// assert_eq!(a.ways().len(), 2);
/// assert_eq!(a.to_string(), "shm:kfab.1@2,tcp:127.0.0.1:7000");
/// let e = "shm:x,7000".parse::<kfab_core::spi::Address>().unwrap_err();
/// assert!(e.to_string().contains("character 7"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    ways: Vec<Way>,
}

impl Address {
    /// The most ways one address may list.
    pub const MAX_WAYS: usize = 32;
    /// The longest text of an address, in bytes.
    pub const MAX_LEN: usize = 2048;

    /// An address of these ways, best first. Those beyond [`Address::MAX_WAYS`] are left out: no peer would read them.
    ///
    /// ```
    /// use kfab_core::spi::{Address, Way};
    /// let all = (0..40).map(|port| Way::new("tcp", format!("127.0.0.1:{port}"))).collect();
    /// let address = Address::new(all);
    /// assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
    /// ```
    pub fn new(mut ways: Vec<Way>) -> Self {
        ways.truncate(Self::MAX_WAYS);
        Address { ways }
    }

    /// The ways, best first.
    pub fn ways(&self) -> &[Way] {
        &self.ways
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, w) in self.ways.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{w}")?;
        }
        Ok(())
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |at: usize, what: &str| {
            Error::new(Kind::InvalidArgument, "address", format!("{s:?}: {what} at character {}", at + 1))
        };
        if s.len() > Self::MAX_LEN {
            return Err(bad(Self::MAX_LEN, "longer than 2048 bytes"));
        }
        let mut ways = Vec::new();
        let mut at = 0;
        for part in s.split(',') {
            let (scheme, rest) = part.split_once(':').ok_or_else(|| bad(at, "expected SCHEME:WHERE"))?;
            if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
                return Err(bad(at, "a scheme is lower-case letters and digits"));
            }
            if rest.is_empty() {
                return Err(bad(at + scheme.len() + 1, "nothing after the scheme"));
            }
            if let Some(i) = rest.find(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(bad(at + scheme.len() + 1 + i, "white space"));
            }
            ways.push(Way::new(scheme, rest));
            if ways.len() > Self::MAX_WAYS {
                return Err(bad(at, "more than 32 ways"));
            }
            at += part.len() + 1;
        }
        Ok(Address { ways })
    }
}
