//! What kfi nodes say to each other, in tagged kfab messages. Little-endian, version 2, reserved bytes zero.
//!
//! | bytes | |
//! |---|---|
//! | 0 | kind: 1 message with its payload, 2 message with a window |
//! | 1 | version: 2 |
//! | 2 | zero |
//! | 3 | form of the header: 0 small (72 bytes), 1 large (96 bytes) |
//! | 4..8 | zero |
//! | then | the LNet header |
//! | then | kind 1: the payload; kind 2: key of the window (all the rest) |
//!
//! What became of an offered payload comes back as the value of a notice of its window ([`Outcome`]).

use crate::nid::Nid;
use crate::wire::lnet::{HeaderForm, LnetHeader};
use crate::wire::{ByteOrder, Reader, WireError};

/// The kfab tag of these messages.
pub(super) const TAG: u64 = 0x6b66_696c_6e65_7401;
/// A tag that nothing is ever sent with.
pub(super) const TAG_NEVER: u64 = 0x6b66_696c_6e65_74ff;
/// The version of this protocol.
pub(super) const VERSION: u8 = 2;
const PREFIX: usize = 8;

/// What became of a payload we offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Read, or not wanted: LNet does not tell a sender which.
    Taken,
    /// Could not be read, or makes no sense.
    Failed,
    /// Too many offers wait there.
    Busy,
}

impl Outcome {
    /// As the value of a notice.
    pub fn value(self) -> u64 {
        self as u64
    }

    /// A notice's value; what means nothing is a failure.
    pub fn from_value(value: u64) -> Self {
        [Self::Taken, Self::Busy].into_iter().find(|o| o.value() == value).unwrap_or(Self::Failed)
    }
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message and its payload.
    Immediate(LnetHeader, &'a [u8]),
    /// A message, and the key of a window with its payload.
    Offer(LnetHeader, &'a [u8]),
}

fn form_of(header: &LnetHeader) -> HeaderForm {
    let large = |nid: Nid| nid.is_large();
    if large(header.dest.nid) || large(header.src.nid) { HeaderForm::Large } else { HeaderForm::Small }
}

impl<'a> Frame<'a> {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, header, tail) = match *self {
            Frame::Immediate(ref header, payload) => (1, header, payload),
            Frame::Offer(ref header, key) => (2, header, key),
        };
        let form = form_of(header);
        let mut out = Vec::with_capacity(PREFIX + form.header_len() + tail.len());
        out.extend([kind, VERSION, 0, u8::from(form == HeaderForm::Large), 0, 0, 0, 0]);
        out.extend(header.encode(form));
        out.extend_from_slice(tail);
        out
    }

    /// Decodes a whole message and checks what can be checked without knowing who sent it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes, ByteOrder::Little);
        let [kind, version, zero, form, zeros @ ..] = r.array::<PREFIX>()?;
        if version != VERSION {
            return Err(WireError::Version(version.into()));
        }
        let form = match (form, zero, zeros) {
            (0, 0, [0, 0, 0, 0]) => HeaderForm::Small,
            (1, 0, [0, 0, 0, 0]) => HeaderForm::Large,
            _ => return Err(WireError::Invalid("reserved bytes of a kfi message")),
        };
        let header = LnetHeader::decode(r.take(form.header_len())?, form)?;
        let tail = r.rest();
        match kind {
            1 if tail.len() == header.payload_len as usize => Ok(Frame::Immediate(header, tail)),
            1 => Err(WireError::Invalid("a payload of another length than the header says")),
            2 if header.payload_len > 0 && !tail.is_empty() => Ok(Frame::Offer(header, tail)),
            2 => Err(WireError::Invalid("an offer of nothing")),
            _ => Err(WireError::Invalid("unknown kind of kfi message")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nid::ProcessId;
    use crate::wire::lnet::{Body, WireHandle};
    use proptest::prelude::*;

    fn header(payload_len: u32) -> LnetHeader {
        let pid = |t: &str| ProcessId::lnet(t.parse().unwrap());
        let body = Body::Put {
            handle: WireHandle::new(0x1122, 0x3344),
            match_bits: 7,
            hdr_data: 8,
            portal: 9,
            offset: 10,
        };
        LnetHeader { dest: pid("58@kfi"), src: pid("57@kfi1"), payload_len, body }
    }

    fn frames() -> Vec<(Frame<'static>, usize)> {
        vec![
            (Frame::Immediate(header(3), b"abc"), 8 + 72 + 3),
            (Frame::Offer(header(1 << 20), &[9; 60]), 8 + 72 + 60),
        ]
    }

    #[test]
    fn bytes_are_golden() {
        let all: Vec<Vec<u8>> = frames().iter().map(|(f, _)| f.encode()).collect();
        assert_eq!(all[0][..8], [1, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(all[0][8..24], [58, 0, 0, 0, 0, 0, 16, 0, 57, 0, 0, 0, 1, 0, 16, 0]);
        assert_eq!(all[0][80..], *b"abc");
        assert_eq!(all[1][..8], [2, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(all[1][80..], [9; 60]);
        let outcomes = [Outcome::Taken, Outcome::Failed, Outcome::Busy];
        assert_eq!(outcomes.map(Outcome::value), [0, 1, 2]);
        assert_eq!([0, 1, 2, 3].map(Outcome::from_value)[..3], outcomes);
        assert_eq!(Outcome::from_value(u64::MAX), Outcome::Failed);
    }

    #[test]
    fn every_truncation_is_an_error() {
        for (frame, len) in frames() {
            let bytes = frame.encode();
            assert_eq!((bytes.len(), Frame::decode(&bytes)), (len, Ok(frame.clone())));
            for cut in 0..len {
                // A key is opaque here: only its absence is seen. The key itself knows its length.
                let key_cut = matches!(frame, Frame::Offer(..)) && cut > 8 + 72;
                assert_eq!(Frame::decode(&bytes[..cut]).is_ok(), key_cut, "{cut} of {frame:?}");
            }
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let good = frames()[1].0.encode();
        for (at, value) in [(0, 0), (0, 3), (0, 1), (1, 1), (1, 3), (2, 1), (3, 2), (4, 1), (7, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Frame::decode(&bad).is_err(), "{at}: {value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..4) {
            let mut bytes = bytes;
            if let Some(head) = bytes.get_mut(..8) {
                head.copy_from_slice(&[kind, VERSION, 0, head[3] & 1, 0, 0, 0, 0]);
            }
            if let Ok(frame) = Frame::decode(&bytes) {
                let again = frame.encode();
                prop_assert_eq!(Frame::decode(&again), Ok(frame));
            }
        }
    }
}
