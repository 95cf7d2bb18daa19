//! The messages of the control socket: one packet each, little-endian. Parsed once, here, into [`Msg`].

use kfab_core::auth::MAX_HANDSHAKE;

/// Raised when the segment's layout or these messages change.
pub(crate) const VERSION: u16 = 2;
/// The longest packet.
pub(crate) const MAX_MSG: usize = MAX_HANDSHAKE + 1;
const MAGIC: [u8; 4] = *b"kfsh";

/// Why a server sent a client away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Denial {
    /// Key, user id.
    Auth = 1,
    /// Another version.
    Version = 2,
    /// `PortConfig::max_conns`.
    Full = 3,
    /// What the client sent makes no sense.
    Garbage = 4,
}

/// A message. Descriptors travel beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Msg {
    /// A handshake message of `kfab_core::auth`.
    Auth(Vec<u8>),
    /// Client: version and flags; with it segment, doorbell and slot table.
    Hello { version: u16, asymmetric: bool },
    /// Server: flags; with it doorbell and slot table.
    Welcome { asymmetric: bool },
    /// Server: go away.
    Deny(Denial),
    /// Please send the memory of this key.
    Ask { region: u64, secret: u64 },
    /// Here it is (one descriptor): region `id`.
    Grant { region: u64, secret: u64, id: u64, writable: bool },
    /// No such memory.
    Refuse { region: u64, secret: u64 },
    /// Region `id` is gone: unmap it.
    Forget { id: u64 },
}

impl Msg {
    /// The packet.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        let mut put = |kind: u8, words: &[u64], flag: Option<bool>| {
            out.push(kind);
            words.iter().for_each(|w| out.extend(w.to_le_bytes()));
            out.extend(flag.map(u8::from));
        };
        match self {
            Msg::Auth(b) => {
                out.push(1);
                out.extend(b);
            }
            Msg::Hello { version, asymmetric } => {
                out.push(2);
                out.extend(MAGIC);
                out.extend(version.to_le_bytes());
                out.push(u8::from(*asymmetric));
            }
            Msg::Welcome { asymmetric } => put(3, &[], Some(*asymmetric)),
            Msg::Deny(d) => out.extend([4, *d as u8]),
            Msg::Ask { region, secret } => put(5, &[*region, *secret], None),
            Msg::Grant { region, secret, id, writable } => put(6, &[*region, *secret, *id], Some(*writable)),
            Msg::Refuse { region, secret } => put(7, &[*region, *secret], None),
            Msg::Forget { id } => put(8, &[*id], None),
        }
        out
    }

    /// From a packet; `None` if it is none of ours.
    pub(crate) fn parse(b: &[u8]) -> Option<Msg> {
        let (kind, rest) = b.split_first()?;
        let word = |i: usize| Some(u64::from_le_bytes(rest.get(8 * i..8 * i + 8)?.try_into().ok()?));
        let flag = |i: usize| match rest.get(i)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        };
        let len = |n: usize| (rest.len() == n).then_some(());
        Some(match kind {
            1 if rest.len() <= MAX_HANDSHAKE => Msg::Auth(rest.to_vec()),
            2 => {
                let magic = rest.get(..4)?;
                let version = u16::from_le_bytes(rest.get(4..6)?.try_into().ok()?);
                // Of another version nothing but the number is known.
                let asymmetric = if version == VERSION { len(7).and(flag(6))? } else { false };
                (magic == MAGIC).then_some(Msg::Hello { version, asymmetric })?
            }
            3 => len(1).and(Some(Msg::Welcome { asymmetric: flag(0)? }))?,
            4 => Msg::Deny(match rest {
                [1] => Denial::Auth,
                [2] => Denial::Version,
                [3] => Denial::Full,
                [4] => Denial::Garbage,
                _ => return None,
            }),
            5 => len(16).and(Some(Msg::Ask { region: word(0)?, secret: word(1)? }))?,
            6 => {
                let (region, secret, id) = (word(0)?, word(1)?, word(2)?);
                len(25).and(Some(Msg::Grant { region, secret, id, writable: flag(24)? }))?
            }
            7 => len(16).and(Some(Msg::Refuse { region: word(0)?, secret: word(1)? }))?,
            8 => len(8).and(Some(Msg::Forget { id: word(0)? }))?,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Msg> {
        vec![
            Msg::Auth(vec![7; 48]),
            Msg::Hello { version: VERSION, asymmetric: true },
            Msg::Welcome { asymmetric: false },
            Msg::Deny(Denial::Version),
            Msg::Ask { region: 1, secret: u64::MAX },
            Msg::Grant { region: 1, secret: 2, id: 3, writable: true },
            Msg::Refuse { region: 9, secret: 8 },
            Msg::Forget { id: 77 },
        ]
    }

    #[test]
    fn messages_survive_and_their_parts_do_not() {
        for m in all() {
            let b = m.encode();
            assert_eq!(Msg::parse(&b).as_ref(), Some(&m));
            if !matches!(m, Msg::Auth(_)) {
                (0..b.len()).for_each(|n| assert_eq!(Msg::parse(&b[..n]), None, "{m:?} cut at {n}"));
                assert_eq!(Msg::parse(&[&b[..], &[0]].concat()), None, "{m:?} and more");
            }
        }
    }

    #[test]
    fn golden_bytes() {
        let golden: [(Msg, &[u8]); 11] = [
            (Msg::Auth(vec![7, 8]), b"\x01\x07\x08"),
            (Msg::Hello { version: VERSION, asymmetric: true }, b"\x02kfsh\x02\0\x01"),
            (Msg::Welcome { asymmetric: false }, b"\x03\0"),
            (Msg::Deny(Denial::Auth), b"\x04\x01"),
            (Msg::Deny(Denial::Version), b"\x04\x02"),
            (Msg::Deny(Denial::Full), b"\x04\x03"),
            (Msg::Deny(Denial::Garbage), b"\x04\x04"),
            (Msg::Ask { region: 0x0102, secret: 3 }, b"\x05\x02\x01\0\0\0\0\0\0\x03\0\0\0\0\0\0\0"),
            (
                Msg::Grant { region: 1, secret: 2, id: 3, writable: true },
                b"\x06\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x01",
            ),
            (Msg::Refuse { region: 1, secret: 2 }, b"\x07\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"),
            (Msg::Forget { id: 0x0102 }, b"\x08\x02\x01\0\0\0\0\0\0"),
        ];
        for (m, want) in golden {
            assert_eq!(m.encode(), want, "{m:?}");
        }
    }

    proptest! {
        #[test]
        fn any_packet_parses_or_not_and_comes_back(b in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(m) = Msg::parse(&b) && !matches!(m, Msg::Hello { version, .. } if version != VERSION) {
                prop_assert_eq!(m.encode(), b);
            }
        }
    }
}
