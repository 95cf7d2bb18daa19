//! What client and server agree on: methods, their types, and what an object may be called.

use lnet_shim::rpc::{Error, Method, Result};
use serde::{Deserialize, Serialize};

/// Lustre's portal for requests to an object server.
pub const PORTAL: u8 = 28;
/// Writes an object whole: the data is got from the client's window.
pub const PUT: Method<Put, ()> = Method::new(PORTAL, 1);
/// Reads a range: the data is put into the client's window.
pub const GET: Method<Get, Got> = Method::new(PORTAL, 2);
/// Names that begin with a prefix, after a name, sorted, at most [`LIST_MAX`].
pub const LIST: Method<List, Vec<String>> = Method::new(PORTAL, 3);
/// Deletes an object; `false` if there was none (any more).
pub const DELETE: Method<Delete, bool> = Method::new(PORTAL, 4);
/// An object's length in bytes.
pub const STAT: Method<String, u64> = Method::new(PORTAL, 5);
/// Says that the server lives: high priority, touches no file.
pub const PING: Method<(), ()> = Method::new(PORTAL, 6);
/// The version an object was last written or deleted with; a change of it takes a later one.
pub const VERSION: Method<String, Version> = Method::new(PORTAL, 7);

/// The most names in one answer.
pub const LIST_MAX: usize = 1000;
/// The most bytes of an object, and of one read.
pub const OBJECT_MAX: u64 = 64 << 20;

/// Which change of an object: whoever changes it asks for the last one and takes the next count. So a change is later than all that
/// had been acknowledged when it began, by whichever client and server; `writer` tells those apart that were begun beside each other.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub count: u64,
    pub writer: u64,
}

#[derive(Serialize, Deserialize)]
pub struct Delete {
    pub name: String,
    pub version: Version,
}

#[derive(Serialize, Deserialize)]
pub struct Put {
    pub name: String,
    pub version: Version,
    /// On disk before it is acknowledged.
    pub sync: bool,
}

#[derive(Serialize, Deserialize)]
pub struct Get {
    pub name: String,
    pub offset: u64,
}

#[derive(Serialize, Deserialize)]
pub struct Got {
    /// Bytes that there were.
    pub have: u64,
    /// Bytes of the whole object, which may have been put anew since it was looked at last.
    pub len: u64,
}

#[derive(Serialize, Deserialize)]
pub struct List {
    pub prefix: String,
    pub after: String,
}

/// Error codes are errno's.
pub const ENOENT: u32 = 2;
pub const EIO: u32 = 5;
pub const EINVAL: u32 = 22;
pub const EFBIG: u32 = 27;

/// Names become file names: letters, digits, `-`, `_` and dots that do not lead.
pub fn check_name(name: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=200).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('.') {
        return Ok(());
    }
    Err(Error::failed(
        EINVAL,
        format!("{name:?} is no object name: 1 to 200 of [A-Za-z0-9_.-], not led by a dot"),
    ))
}
