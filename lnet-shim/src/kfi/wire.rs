//! What kfi nodes say to each other, in tagged kfab messages. Little-endian, version 1, reserved bytes zero.
//!
//! | bytes | |
//! |---|---|
//! | 0 | kind: 1 message with its payload, 2 message with a window, 3 outcomes only |
//! | 1 | version: 1 |
//! | 2 | number of outcomes, n |
//! | 3 | form of the header: 0 small (72 bytes), 1 large (96 bytes) |
//! | 4..8 | zero |
//! | 8..8+8n | outcomes of the receiver's offers: number of the offer (56 bits), what became of it (8 bits, uppermost) |
//! | then | kinds 1 and 2: the LNet header |
//! | then | kind 1: the payload; kind 2: number of the offer (u64), key of the window (all the rest) |

use crate::nid::Nid;
use crate::wire::lnet::{HeaderForm, LnetHeader};
use crate::wire::{ByteOrder, Reader, WireError};

/// The kfab tag of these messages.
pub(super) const TAG: u64 = 0x6b66_696c_6e65_7401;
/// A tag that nothing is ever sent with.
pub(super) const TAG_NEVER: u64 = 0x6b66_696c_6e65_74ff;
/// The most outcomes of a message.
pub(super) const OUTCOMES_MAX: usize = 255;
const VERSION: u8 = 1;
const PREFIX: usize = 8;
/// The largest number of an offer.
pub(super) const OFFER_MAX: u64 = (1 << 48) - 1;

/// What became of a payload we offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Fetched, or not wanted: LNet does not tell a sender which.
    Taken,
    /// The fetch failed.
    Failed,
    /// Too many offers wait there.
    Busy,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Outcomes of the receiver's offers.
    pub outcomes: Vec<(u64, Outcome)>,
    /// The rest.
    pub kind: Kind<'a>,
}

/// The kinds of message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A message and its payload.
    Immediate(LnetHeader, &'a [u8]),
    /// A message, and a window with its payload.
    Offer {
        /// The message.
        header: LnetHeader,
        /// The sender's number for it.
        offer: u64,
        /// The window's key.
        key: &'a [u8],
    },
    /// Nothing more.
    Outcomes,
}

fn form_of(header: &LnetHeader) -> HeaderForm {
    let large = |nid: Nid| nid.is_large();
    if large(header.dest.nid) || large(header.src.nid) { HeaderForm::Large } else { HeaderForm::Small }
}

impl Frame<'_> {
    /// The bytes. At most 255 outcomes; more are an error of the caller, and left out.
    pub fn encode(&self) -> Vec<u8> {
        let n = self.outcomes.len().min(OUTCOMES_MAX);
        let (kind, header, tail) = match &self.kind {
            Kind::Immediate(header, payload) => (1, Some(header), payload.len()),
            Kind::Offer { header, key, .. } => (2, Some(header), 8 + key.len()),
            Kind::Outcomes => (3, None, 0),
        };
        let form = header.map_or(HeaderForm::Small, form_of);
        let mut out = Vec::with_capacity(PREFIX + 8 * n + form.header_len() + tail);
        out.extend([kind, VERSION, n as u8, u8::from(form == HeaderForm::Large), 0, 0, 0, 0]);
        for (offer, outcome) in &self.outcomes[..n] {
            let code: u64 = match outcome {
                Outcome::Taken => 0,
                Outcome::Failed => 1,
                Outcome::Busy => 2,
            };
            out.extend((offer | code << 56).to_le_bytes());
        }
        if let Some(header) = header {
            out.extend(header.encode(form));
        }
        match &self.kind {
            Kind::Immediate(_, payload) => out.extend_from_slice(payload),
            Kind::Offer { offer, key, .. } => {
                out.extend(offer.to_le_bytes());
                out.extend_from_slice(key);
            }
            Kind::Outcomes => {}
        }
        out
    }
}

impl<'a> Frame<'a> {
    /// Decodes a whole message and checks what can be checked without knowing who sent it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes, ByteOrder::Little);
        let [kind, version, n, form, zero @ ..] = r.array::<PREFIX>()?;
        if version != VERSION {
            return Err(WireError::Version(version.into()));
        }
        let form = match (form, zero) {
            (0, [0, 0, 0, 0]) => HeaderForm::Small,
            (1, [0, 0, 0, 0]) => HeaderForm::Large,
            _ => return Err(WireError::Invalid("reserved bytes of a kfi message")),
        };
        let outcomes = (0..n).map(|_| outcome(r.u64()?)).collect::<Result<_, _>>()?;
        let kind = match kind {
            1 => {
                let header = header(&mut r, form)?;
                let payload = r.rest();
                if payload.len() != header.payload_len as usize {
                    return Err(WireError::Invalid("a payload of another length than the header says"));
                }
                Kind::Immediate(header, payload)
            }
            2 => {
                let header = header(&mut r, form)?;
                let offer = r.u64()?;
                let key = r.rest();
                if header.payload_len == 0 || offer > OFFER_MAX || key.is_empty() {
                    return Err(WireError::Invalid("an offer of nothing"));
                }
                Kind::Offer { header, offer, key }
            }
            3 if r.rest().is_empty() && form == HeaderForm::Small && n > 0 => Kind::Outcomes,
            3 => return Err(WireError::Invalid("outcomes with a tail")),
            _ => return Err(WireError::Invalid("unknown kind of kfi message")),
        };
        Ok(Self { outcomes, kind })
    }
}

fn outcome(word: u64) -> Result<(u64, Outcome), WireError> {
    let outcome = match word >> 56 {
        0 => Outcome::Taken,
        1 => Outcome::Failed,
        2 => Outcome::Busy,
        _ => return Err(WireError::Invalid("unknown outcome")),
    };
    let offer = word & ((1 << 56) - 1);
    if offer > OFFER_MAX { Err(WireError::Invalid("number of an offer")) } else { Ok((offer, outcome)) }
}

fn header(r: &mut Reader<'_>, form: HeaderForm) -> Result<LnetHeader, WireError> {
    LnetHeader::decode(r.take(form.header_len())?, form)
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
        let outcomes = vec![(5, Outcome::Taken), (OFFER_MAX, Outcome::Failed), (1, Outcome::Busy)];
        let offer = Kind::Offer { header: header(1 << 20), offer: 0x0102, key: &[9; 60] };
        vec![
            (Frame { outcomes: vec![], kind: Kind::Immediate(header(3), b"abc") }, 8 + 72 + 3),
            (Frame { outcomes: outcomes.clone(), kind: offer }, 8 + 24 + 72 + 8 + 60),
            (Frame { outcomes, kind: Kind::Outcomes }, 8 + 24),
        ]
    }

    #[test]
    fn bytes_are_golden() {
        let all: Vec<Vec<u8>> = frames().iter().map(|(f, _)| f.encode()).collect();
        assert_eq!(all[0][..8], [1, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(all[0][8..24], [58, 0, 0, 0, 0, 0, 16, 0, 57, 0, 0, 0, 1, 0, 16, 0]);
        assert_eq!(all[0][80..], *b"abc");
        assert_eq!(all[1][..8], [2, 1, 3, 0, 0, 0, 0, 0]);
        assert_eq!(all[1][8..16], [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(all[1][16..24], [255, 255, 255, 255, 255, 255, 0, 1]);
        assert_eq!(all[1][24..32], [1, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(all[1][104..112], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(all[2][..8], [3, 1, 3, 0, 0, 0, 0, 0]);
        // Four outcomes fit where kfab puts forty bytes beside its header.
        assert_eq!(PREFIX + 8 * 4, 40);
    }

    #[test]
    fn every_truncation_is_an_error() {
        for (frame, len) in frames() {
            let bytes = frame.encode();
            assert_eq!((bytes.len(), Frame::decode(&bytes)), (len, Ok(frame.clone())));
            for cut in 0..len {
                // A key is opaque here: only its absence is seen. The key itself knows its length.
                let key_cut = matches!(frame.kind, Kind::Offer { .. }) && cut > 8 + 24 + 72 + 8;
                assert_eq!(Frame::decode(&bytes[..cut]).is_ok(), key_cut, "{cut} of {frame:?}");
            }
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let good = frames()[1].0.encode();
        for (at, value) in [(0, 0), (0, 4), (0, 3), (1, 2), (3, 2), (4, 1), (23, 3), (22, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Frame::decode(&bad).is_err(), "{at}: {value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..5, n in 0u8..3) {
            let mut bytes = bytes;
            if let Some(head) = bytes.get_mut(..8) {
                head.copy_from_slice(&[kind, 1, n, head[3] & 1, 0, 0, 0, 0]);
            }
            if let Ok(frame) = Frame::decode(&bytes) {
                let again = frame.encode();
                prop_assert_eq!(Frame::decode(&again), Ok(frame));
            }
        }
    }
}
