//! The bytes on the wire: the head of every message over the queue pair, and what travels over the side channel while a
//! connection is made. Little-endian, versioned, reserved bytes zero. Called by `connect`, `flow` and `port`.
//!
//! A message is a head, its inline bytes and the body, which is the rest. The head is one word (kind, length of the inline part: a
//! byte each; credits returned: two; four reserved) and the frame's header. Every message costs the sender a credit,
//! a receive that the peer posted for it, except those that only return credits and the goodbye, for which [`RESERVE`] more are posted.

use kfab_core::auth::greeting::{Dialect, MAX_WORD, Status};
use kfab_core::spi::{HEADER_LEN, INLINE_MAX, Inline};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How greetings begin, and the version of everything in this file.
pub(crate) static DIALECT: Dialect = Dialect {
    magic: *b"kfab-rc1",
    version: 2,
    seals: false,
    statuses: &[Status::Welcome, Status::OtherVersion, Status::WrongKey, Status::Full],
};
/// The most body bytes of one frame.
pub(crate) const MAX_BODY: usize = 16 << 10;
/// Frames that a peer may have on their way to us, unasked.
pub(crate) const CREDITS: u16 = 32;
/// Credits are returned by a message of their own when so many are owed and no frame took them along.
pub(crate) const RETURN_AT: u16 = CREDITS / 2;
/// Receives beyond the credits. At most CREDITS / RETURN_AT messages that return credits are unseen at a time (each returns at
/// least RETURN_AT of them, and more than CREDITS are never out), then one goodbye.
pub(crate) const RESERVE: u16 = CREDITS / RETURN_AT + 2;

/// Bytes of a head.
pub(crate) const HEAD_LEN: usize = 24;
/// The most bytes before a body.
pub(crate) const HEAD_MAX: usize = HEAD_LEN + INLINE_MAX;
/// Bytes of one receive.
pub(crate) const SLOT_LEN: usize = HEAD_MAX + MAX_BODY;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Frame = 0,
    /// Returns credits, no more.
    Credit = 1,
    /// The sender closes in good order; nothing follows.
    Goodbye = 2,
}

const _: () = assert!(HEAD_LEN == size_of::<u64>() + HEADER_LEN && HEAD_MAX == 64);

/// The first word of a message.
#[inline(always)]
fn word(kind: Kind, inline: usize, credits: u16) -> u64 {
    kind as u64 | (inline as u64) << 8 | u64::from(credits) << 16
}

/// What a message says of itself; its body begins at `body_at`. [`header_of`] and [`inline_of`] have the rest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) credits: u16,
    pub(crate) body_at: usize,
}

/// Parses a received message; an error is the peer's offence.
#[inline(always)]
pub(crate) fn parse(bytes: &[u8]) -> Result<Message, &'static str> {
    let Some(head) = bytes.first_chunk::<HEAD_LEN>() else { return Err("a message too short") };
    let first = u64::from_le_bytes(*head.first_chunk().expect("a head is longer than a word"));
    let (n, credits) = (usize::from((first >> 8) as u8), (first >> 16) as u16);
    if first >> 32 != 0 {
        return Err("reserved bytes of a message are set");
    }
    if n > INLINE_MAX.min(bytes.len() - HEAD_LEN) {
        return Err("an inline part too long");
    }
    let kind = match first as u8 {
        0 => return Ok(Message { kind: Kind::Frame, credits, body_at: HEAD_LEN + n }),
        1 => Kind::Credit,
        2 => Kind::Goodbye,
        _ => return Err("a message of unknown kind"),
    };
    if bytes.len() > HEAD_LEN || head[size_of::<u64>()..] != [0; HEADER_LEN] {
        return Err("a control message with contents");
    }
    Ok(Message { kind, credits, body_at: HEAD_LEN })
}

/// The frame header of a message that [`parse`] found good.
#[inline]
pub(crate) fn header_of(bytes: &[u8]) -> &[u8; HEADER_LEN] {
    bytes[..HEAD_LEN].last_chunk().expect("a head is longer than the header in it")
}

/// The inline part of such a message, which ends at its `body_at`, from the receive it lies in: copied whole, which needs no call. What is
/// behind the part does not count.
#[inline(always)]
pub(crate) fn inline_of(slot: &[u8], body_at: usize) -> Inline {
    slot[HEAD_LEN..]
        .first_chunk()
        .map_or(Inline::EMPTY, |whole| Inline::from_array(*whole, body_at - HEAD_LEN))
}

/// The bytes of a message before its body: an array and how much of it counts.
#[inline]
pub(crate) fn head(
    kind: Kind,
    credits: u16,
    header: &[u8; HEADER_LEN],
    inline: &Inline,
) -> ([u8; HEAD_MAX], usize) {
    let mut out = [0; HEAD_MAX];
    out[..size_of::<u64>()].copy_from_slice(&word(kind, inline.len(), credits).to_le_bytes());
    out[size_of::<u64>()..HEAD_LEN].copy_from_slice(header);
    out[HEAD_LEN..].copy_from_slice(inline.array());
    (out, HEAD_LEN + inline.len())
}

/// Writes a frame of few bytes, in the form of [`head`]: they are the inline part, or the body if they are more than that takes. Its length.
#[inline(always)]
pub(crate) fn small<const N: usize>(to: &mut [u8; N], credits: u16, header: u128, bytes: &[u8]) -> usize {
    let (n, inline) = (bytes.len(), if bytes.len() <= INLINE_MAX { bytes.len() } else { 0 });
    to[..size_of::<u64>()].copy_from_slice(&word(Kind::Frame, inline, credits).to_le_bytes());
    to[size_of::<u64>()..HEAD_LEN].copy_from_slice(&header.to_le_bytes());
    if let Ok(eight) = <&[u8; 8]>::try_from(bytes) {
        // A length known beforehand needs no call.
        to[HEAD_LEN..HEAD_LEN + 8].copy_from_slice(eight);
    } else {
        to[HEAD_LEN..HEAD_LEN + n].copy_from_slice(bytes);
    }
    HEAD_LEN + n
}

/// Bytes of [`Params`].
pub(crate) const PARAMS_LEN: usize = 36;

/// Where a queue pair is and what it bears: what either side says on the side channel after the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Params {
    pub(crate) qpn: U32,
    pub(crate) psn: U32,
    pub(crate) max_body: U32,
    pub(crate) credits: U16,
    pub(crate) lid: U16,
    /// `enum ibv_mtu`.
    pub(crate) mtu: u8,
    /// Reads that it serves at a time.
    pub(crate) reads: u8,
    /// The connection manager is to connect it: the port at which ours listens. 0: by hand.
    pub(crate) manager: U16,
    /// Its GID; where the acceptor's manager awaits a request, what that has to carry.
    pub(crate) place: [u8; 16],
}

const _: () = assert!(size_of::<Params>() == PARAMS_LEN && PARAMS_LEN <= MAX_WORD);

impl Params {
    /// Checks every field against its bound.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Params, &'static str> {
        let p = Params::read_from_bytes(bytes).map_err(|_| "parameters of another length")?;
        if p.qpn.get() >= 1 << 24 || p.psn.get() >= 1 << 24 || !(1..=5).contains(&p.mtu) {
            return Err("parameters out of bounds");
        }
        if (p.max_body.get() as usize) < MAX_BODY || p.credits.get() == 0 || p.credits.get() > 4096 {
            return Err("parameters that this version does not use");
        }
        Ok(p)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfab_core::auth::greeting::{Greeter, Terms};

    #[test]
    fn golden_bytes() {
        let inline = Inline::new(b"12345678").unwrap();
        let (bytes, n) = head(Kind::Frame, 0x0102, b"HEADERHEADERHEAD", &inline);
        assert_eq!(&bytes[..n], b"\x00\x08\x02\x01\0\0\0\0HEADERHEADERHEAD12345678");
        let (bytes, n) = head(Kind::Goodbye, 3, &[0; 16], &Inline::EMPTY);
        assert_eq!(&bytes[..n], b"\x02\x00\x03\x00\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let mut g = Vec::new();
        let terms = Terms { dialect: &DIALECT, key: None, seal: false };
        Greeter::connector(&terms, &mut g).unwrap();
        assert_eq!(g, b"kfab-rc1\x02\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_small_frame_is_written_as_any_other() {
        for n in [0, 1, 8, 39, 40, 41, 200] {
            let (bytes, header) = (vec![7; n], u128::from_le_bytes(*b"HEADERHEADERHEAD"));
            let f = kfab_core::spi::Frame::of_bytes(header, &bytes);
            let (head, at) = head(Kind::Frame, 0x0102, &f.header, &f.inline);
            let mut to = [0xff; 256];
            let len = small(&mut to, 0x0102, header, &bytes);
            let body = &bytes[f.inline.len()..];
            assert_eq!((&to[..at], &to[at..len]), (&head[..at], body), "{n} bytes");
        }
    }

    #[test]
    fn truncation_and_wrong_fields_are_refused() {
        let inline = Inline::new(&[7; INLINE_MAX]).unwrap();
        let (bytes, n) = head(Kind::Frame, 0, &[9; HEADER_LEN], &inline);
        assert!((0..n).all(|cut| parse(&bytes[..cut]).is_err()));
        let m = parse(&bytes[..n]).unwrap();
        assert_eq!((header_of(&bytes), m.body_at), (&[9; 16], 64));
        assert_eq!(inline_of(&bytes, m.body_at).as_slice(), [7; 40]);
        let bad = |at: usize, value: u8| {
            let mut b = bytes;
            b[at] = value;
            parse(&b).is_err()
        };
        assert!(bad(0, 3) && bad(0, 1) && bad(1, 41) && bad(4, 1) && bad(7, 1));
    }

    #[test]
    fn parameters_are_checked() {
        let good = Params {
            qpn: 17.into(),
            psn: 3.into(),
            max_body: (MAX_BODY as u32).into(),
            credits: CREDITS.into(),
            lid: 0.into(),
            mtu: 5,
            reads: 16,
            manager: 0.into(),
            place: [1; 16],
        };
        assert_eq!(Params::parse(good.as_bytes()), Ok(good));
        assert!((0..PARAMS_LEN).all(|n| Params::parse(&good.as_bytes()[..n]).is_err()));
        for bad in [
            Params { qpn: (1 << 24).into(), ..good },
            Params { mtu: 0, ..good },
            Params { mtu: 6, ..good },
            Params { credits: 0.into(), ..good },
            Params { max_body: 100.into(), ..good },
        ] {
            assert!(Params::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
