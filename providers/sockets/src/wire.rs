//! The bytes on the wire: how the greeting that opens a connection begins, and the head of every record. Little-endian, versioned,
//! reserved bytes zero. Called by `link`, `receive` and `send`; knows no socket.
//!
//! A connection carries, each way: one greeting with its proof (`kfab_core::auth::greeting`), then records. A record is a [`Head`], `inline_len` inline
//! bytes, zeros up to [`HEAD_MAX`] where the body has [`ALIGNED_FROM`] bytes or more, and `body_len` body bytes. On an encrypted connection the same stream of records travels cut into sealed pieces: two
//! bytes of length, then that many bytes of Noise transport message. Every length is checked against a bound before it is used.

use kfab_core::auth;
use kfab_core::auth::greeting::{Dialect, Status};
use kfab_core::spi::{HEADER_LEN, INLINE_MAX, Inline};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// How greetings begin, and the version of everything in this file.
pub(crate) static DIALECT: Dialect = Dialect {
    magic: *b"kfab-tcp",
    version: 2,
    seals: true,
    statuses: &[Status::Welcome, Status::OtherVersion, Status::WrongKey, Status::OtherSealing, Status::Full],
};
/// The most body bytes of one record.
pub(crate) const MAX_BODY: usize = 1 << 20;

/// Record kind: a frame.
const KIND_FRAME: u8 = 0;
/// Record kind: the sender closes in good order; nothing follows.
const KIND_GOODBYE: u8 = 1;

/// Bytes of a [`Head`].
pub(crate) const HEAD_LEN: usize = 24;
/// The most bytes of a record before its body.
pub(crate) const HEAD_MAX: usize = HEAD_LEN + INLINE_MAX;
/// From this length on a body starts a multiple of 64 bytes after its record: both processors copy it to and from the kernel's buffers, and that takes
/// 8 % longer where source and target lie differently in their cache lines.
const ALIGNED_FROM: usize = 4096;
/// Bytes of length before a sealed piece.
pub(crate) const SEAL_PREFIX: usize = 2;
/// The most plain bytes in one sealed piece.
pub(crate) const SEAL_PLAIN: usize = auth::MAX_PLAIN;

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Head {
    body_len: U32,
    inline_len: u8,
    kind: u8,
    reserved: U16,
    header: [u8; HEADER_LEN],
}

const _: () = assert!(size_of::<Head>() == HEAD_LEN);
const _: () = assert!(HEAD_LEN + 8 == 32 && HEAD_MAX == 64);

/// The outcome of looking for a record at the start of some bytes.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// The head or the inline part is not all there yet.
    Short,
    /// A frame; its body, if any, follows `used` bytes on.
    Frame { used: usize, header: [u8; HEADER_LEN], inline: Inline, body_len: usize },
    /// The peer closes in good order.
    Goodbye { used: usize },
}

/// Parses the record at the start of `bytes`; an error is the peer's offence.
#[inline]
pub(crate) fn parse_record(bytes: &[u8]) -> Result<Parsed, &'static str> {
    let Ok((head, rest)) = Head::ref_from_prefix(bytes) else { return Ok(Parsed::Short) };
    let (body_len, inline_len) = (head.body_len.get() as usize, usize::from(head.inline_len));
    if head.reserved.get() != 0 {
        return Err("reserved bytes of a record are set");
    }
    if inline_len > INLINE_MAX || body_len > MAX_BODY {
        return Err("a record too long");
    }
    match head.kind {
        KIND_FRAME => {}
        KIND_GOODBYE if inline_len == 0 && body_len == 0 && head.header == [0; HEADER_LEN] => {
            return Ok(Parsed::Goodbye { used: HEAD_LEN });
        }
        KIND_GOODBYE => return Err("a goodbye with contents"),
        _ => return Err("a record of unknown kind"),
    }
    let Some(inline) = rest.get(..inline_len).and_then(Inline::new) else { return Ok(Parsed::Short) };
    let mut used = HEAD_LEN + inline_len;
    if body_len >= ALIGNED_FROM {
        let Some(padding) = bytes.get(used..HEAD_MAX) else { return Ok(Parsed::Short) };
        if padding.iter().any(|b| *b != 0) {
            return Err("reserved bytes of a record are set");
        }
        used = HEAD_MAX;
    }
    Ok(Parsed::Frame { used, header: head.header, inline, body_len })
}

/// The bytes of a frame before its body: an array and how much of it counts.
#[inline]
pub(crate) fn frame_head(
    header: &[u8; HEADER_LEN],
    inline: &Inline,
    body_len: usize,
) -> ([u8; HEAD_MAX], usize) {
    let n = inline.as_slice().len();
    let head = Head {
        body_len: (body_len as u32).into(),
        inline_len: n as u8,
        kind: KIND_FRAME,
        reserved: 0.into(),
        header: *header,
    };
    let mut out = [0; HEAD_MAX];
    out[..HEAD_LEN].copy_from_slice(head.as_bytes());
    out[HEAD_LEN..].copy_from_slice(inline.array());
    if body_len < ALIGNED_FROM {
        return (out, HEAD_LEN + n);
    }
    out[HEAD_LEN + n..].fill(0);
    (out, HEAD_MAX)
}

/// The bytes of a goodbye.
pub(crate) fn goodbye() -> [u8; HEAD_LEN] {
    let mut out = [0; HEAD_LEN];
    let head = Head {
        body_len: 0.into(),
        inline_len: 0,
        kind: KIND_GOODBYE,
        reserved: 0.into(),
        header: [0; HEADER_LEN],
    };
    out.copy_from_slice(head.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfab_core::auth::greeting::{Greeter, Terms};

    #[test]
    fn golden_bytes() {
        let inline = Inline::new(b"12345678").unwrap();
        let (head, n) = frame_head(b"HEADERHEADERHEAD", &inline, 0x0203);
        assert_eq!(n, 32);
        assert_eq!(&head[..n], b"\x03\x02\x00\x00\x08\x00\x00\x00HEADERHEADERHEAD12345678");
        let longer = Inline::from_array([b'x'; INLINE_MAX], 8);
        let (head, n) = frame_head(b"HEADERHEADERHEAD", &longer, 0x0001_0203);
        assert_eq!(n, 64);
        assert_eq!(&head[..32], b"\x03\x02\x01\x00\x08\x00\x00\x00HEADERHEADERHEADxxxxxxxx");
        assert_eq!(head[32..], [0; 32], "nothing else leaves with it");
        assert_eq!(goodbye(), *b"\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        let mut g = Vec::new();
        let terms = Terms { dialect: &DIALECT, key: None, seal: false };
        Greeter::connector(&terms, &mut g).unwrap();
        assert_eq!(g, b"kfab-tcp\x02\0\0\0\0\0\0\0");
    }

    #[test]
    fn long_bodies_start_aligned_and_what_fills_up_is_zero() {
        let inline = Inline::new(&[7; 16]).unwrap();
        for (body, want) in [(ALIGNED_FROM - 1, 40), (ALIGNED_FROM, 64), (MAX_BODY, 64)] {
            let (mut head, n) = frame_head(&[9; HEADER_LEN], &inline, body);
            assert_eq!(n, want);
            for cut in 0..n {
                assert!(matches!(parse_record(&head[..cut]), Ok(Parsed::Short)), "{cut}");
            }
            let Ok(Parsed::Frame { used, inline, body_len, .. }) = parse_record(&head[..n]) else { panic!() };
            assert_eq!((used, inline.as_slice(), body_len), (n, &[7; 16][..], body));
            head[63] = 1;
            assert_eq!(parse_record(&head).is_err(), want == 64);
        }
    }

    #[test]
    fn truncation_at_every_length_is_short_and_never_wrong() {
        let inline = Inline::new(&[7; INLINE_MAX]).unwrap();
        let (head, n) = frame_head(&[9; HEADER_LEN], &inline, 5);
        for cut in 0..n {
            assert!(matches!(parse_record(&head[..cut]), Ok(Parsed::Short)), "{cut}");
        }
        let Ok(Parsed::Frame { used, header, inline, body_len }) = parse_record(&head[..n]) else { panic!() };
        assert_eq!((used, header, body_len), (64, [9; 16], 5));
        assert_eq!(inline.as_slice(), [7; INLINE_MAX]);
    }

    #[test]
    fn lengths_kinds_and_reserved_bytes_are_checked() {
        let (good, n) = frame_head(&[0; HEADER_LEN], &Inline::EMPTY, 0);
        let bad = |at: usize, value: u8| {
            let mut b = good;
            b[at] = value;
            parse_record(&b[..n]).is_err()
        };
        assert!(bad(3, 1) && bad(2, 0x11) && bad(4, 41) && bad(5, 2) && bad(6, 1) && bad(7, 1));
        let mut loaded = goodbye();
        loaded[8] = 1;
        assert!(parse_record(&loaded).is_err());
    }
}
