//! What client and server of a measurement tell each other beside the load: requests and replies as JSON in tagged messages.
//! The load itself is untagged. Every request stands alone: the server keeps only each client's window.
//!
//! Both sides are parsers of what the other wrote: anything else than these values is an error, and every number has a bound.

use crate::args::{MAX_SIZE, MAX_WINDOW, MAX_WINDOW_BYTES};
use crate::failure::{Failure, Result};
use kfab::Peer;
use serde::{Deserialize, Serialize};

/// The tag of requests and of replies.
pub(crate) const REQUEST: u64 = 0x6b66_6162_0000_0001;
pub(crate) const REPLY: u64 = 0x6b66_6162_0000_0002;
/// The version of this conversation.
pub(crate) const VERSION: u32 = 1;

/// The most messages of one request.
pub(crate) const MAX_COUNT: u64 = 1 << 30;

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Who are you?
    Hello { version: u32 },
    /// Answer `count` messages of `size` bytes with as many.
    Echo { size: usize, count: u64, check: bool },
    /// Take in `count` messages of `size` bytes, `depth` at a time, and say how long it took.
    Sink { size: usize, count: u64, depth: usize, check: bool },
    /// Open a window of `size` bytes.
    Window { size: usize },
    /// Is the window what the client wrote last?
    Inspect { stamp: u64 },
    /// Close the window.
    Close,
    /// Sleep until a message comes, `count` times, and say how long after its sending you were awake.
    Wake { count: u64 },
    /// Sleep until a message comes, and say how much processor time you used meanwhile.
    Idle,
}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Ready for the load.
    Ready,
    /// The server's version, process and providers.
    Hello { version: u32, pid: u32, address: String },
    /// Messages counted and verified, the time from the first to the last, the sum of their stamps.
    Counted { count: u64, elapsed_ns: u64, stamps: u64, damaged: u64 },
    /// The window's key, as hexadecimal digits.
    Window { key: String },
    /// What an inspection found.
    Inspected { stamp_is_right: bool, intact: bool },
    /// Wake-up times, ns, in order of size.
    Woken { ns: Vec<u64> },
    /// Processor time and time passed, ns.
    Slept { cpu_ns: u64, wall_ns: u64 },
    /// The request cannot be served.
    Refused { why: String },
}

impl Request {
    /// Refuses what would take more memory or time than a server gives.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let (size, count, depth) = match *self {
            Request::Hello { version } if version != VERSION => {
                return Err(format!("the client speaks version {version}, the server {VERSION}"));
            }
            Request::Echo { size, count, .. } => (size, count, 1),
            Request::Sink { size, count, depth, .. } => (size, count, depth),
            Request::Window { size } => (size, 1, 1),
            Request::Wake { count } => (8, count.saturating_mul(1000), 1),
            _ => return Ok(()),
        };
        match () {
            _ if !(1..=MAX_SIZE).contains(&size) => {
                Err(format!("size {size} is out of range: 1..={MAX_SIZE}"))
            }
            _ if !(1..=MAX_COUNT).contains(&count) => {
                Err(format!("count {count} is out of range: 1..={MAX_COUNT}"))
            }
            _ if !(1..=MAX_WINDOW).contains(&depth) => {
                Err(format!("window {depth} is out of range: 1..={MAX_WINDOW}"))
            }
            _ if size.saturating_mul(depth) > MAX_WINDOW_BYTES => Err(format!(
                "{depth} messages of {size} bytes at once are more than {MAX_WINDOW_BYTES} bytes"
            )),
            _ => Ok(()),
        }
    }
}

/// Sends a request or a reply.
pub(crate) fn send<T: Serialize>(peer: &Peer, tag: u64, value: &T) -> Result<()> {
    let text = serde_json::to_vec(value).map_err(|e| Failure::failed(e.to_string()))?;
    Ok(peer.send_tagged(tag, &text[..]).wait()?)
}

/// Reads a request or a reply.
pub(crate) fn parse<T: for<'a> Deserialize<'a>>(m: &[u8]) -> std::result::Result<T, String> {
    serde_json::from_slice(m).map_err(|e| format!("not of this conversation: {e}"))
}

/// The digits of a window's key, and back.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |d: u8| char::from(d).to_digit(16);
    let pair = |p: &[u8]| Some((digit(p[0])? << 4 | digit(p[1])?) as u8);
    if text.len().is_multiple_of(2) { text.as_bytes().chunks(2).map(pair).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a peer may send: bytes, or a request with a few of its bytes changed, cut off at some place.
    fn from_a_peer() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![Just(0u64), Just(1), Just(u64::MAX), any::<u64>(), 1u64..5_000_000_000];
        let one =
            (0..6, number.clone(), number, any::<bool>()).prop_map(|(which, a, b, check)| match which {
                0 => Request::Echo { size: a as usize, count: b, check },
                1 => Request::Sink { size: a as usize, count: b, depth: (a ^ b) as usize % 5_000, check },
                2 => Request::Window { size: a as usize },
                3 => Request::Inspect { stamp: a },
                4 => Request::Wake { count: b },
                _ => Request::Hello { version: a as u32 },
            });
        let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
        let changed = (one, changes, any::<prop::sample::Index>(), any::<bool>());
        let changed = changed.prop_map(|(request, changes, cut, is_cut)| {
            let mut text = serde_json::to_vec(&request).unwrap();
            for (at, byte) in changes {
                let at = at.index(text.len());
                text[at] = byte;
            }
            text.truncate(if is_cut { cut.index(text.len()) } else { usize::MAX });
            text
        });
        prop_oneof![1 => proptest::collection::vec(any::<u8>(), 0..100), 4 => changed]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        /// Whatever comes is refused, or is a request that a server gives time and memory for, and means the same when it is written anew.
        #[test]
        fn no_request_is_taken_out_of_bounds(bytes in from_a_peer()) {
            let Ok(request) = parse::<Request>(&bytes) else { return Ok(()) };
            let again = serde_json::to_vec(&request).unwrap();
            prop_assert_eq!(parse::<Request>(&again), Ok(request));
            if request.check().is_ok() {
                let (size, count, depth) = match request {
                    Request::Echo { size, count, .. } => (size, count, 1),
                    Request::Sink { size, count, depth, .. } => (size, count, depth),
                    Request::Window { size } => (size, 1, 1),
                    Request::Wake { count } => (1, count, 1),
                    Request::Hello { version } => {
                        prop_assert_eq!(version, VERSION);
                        return Ok(());
                    }
                    Request::Inspect { .. } | Request::Close | Request::Idle => return Ok(()),
                };
                let sized = (1..=MAX_SIZE).contains(&size) && size * depth <= MAX_WINDOW_BYTES;
                prop_assert!(sized && (1..=MAX_COUNT).contains(&count) && (1..=MAX_WINDOW).contains(&depth));
            }
        }

        /// Replies, and the digits in them, come from a peer too.
        #[test]
        fn no_reply_and_no_digits_are_a_panic(bytes in from_a_peer(), text in "[0-9a-fA-F+g€]{0,12}") {
            let _ = parse::<Reply>(&bytes);
            if let Some(key) = from_hex(&text) {
                prop_assert_eq!(to_hex(&key), text.to_lowercase());
                let _ = kfab::WindowKey::from_bytes(&key);
            }
        }
    }

    #[test]
    fn requests_have_bounds() {
        assert!(Request::Echo { size: 8, count: 1, check: true }.check().is_ok());
        for bad in [
            Request::Echo { size: 0, count: 1, check: true },
            Request::Echo { size: usize::MAX, count: 1, check: true },
            Request::Sink { size: 8, count: u64::MAX, depth: 1, check: true },
            Request::Sink { size: 8, count: 1, depth: 0, check: true },
            Request::Sink { size: MAX_SIZE, count: 1, depth: 100, check: true },
            Request::Window { size: MAX_SIZE + 1 },
            Request::Wake { count: u64::MAX },
            Request::Hello { version: 99 },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn digits_and_back() {
        assert_eq!(from_hex(&to_hex(&[0, 127, 255])), Some(vec![0, 127, 255]));
        assert_eq!(from_hex("fFAa"), Some(vec![0xff, 0xaa]));
        assert_eq!(from_hex("0g"), None);
        assert_eq!(from_hex("+f"), None);
        assert_eq!(from_hex("123"), None);
    }
}
