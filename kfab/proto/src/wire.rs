//! The wire format: a 16-byte header in every frame, and what each kind of frame carries inline.
//!
//! Little-endian, sizes asserted at compile time, golden bytes in the tests. A frame is `header | inline (<= 40 B) | body`; the
//! transport delimits the three. Whatever comes from a peer is read with [`Header::parse`] and the `read_from` of
//! the inline structs, which check and never panic: reserved bytes and bits are zero.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The version both sides must speak.
pub const VERSION: u16 = 3;
/// First bytes of every hello: "kfab".
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"kfab");

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameKind {
    /// Who I am; first on every connection. Inline [`Hello`], body: my address as text.
    Hello = 0,
    /// A whole message: payload inline or as body.
    Eager = 1,
    /// Several small messages in one body: [`Record`] and bytes, repeated.
    Batch = 2,
    /// A large message waits at the sender. Inline [`Rts`].
    Rts = 3,
    /// Send it, in pieces. Inline [`Cts`].
    Cts = 4,
    /// A piece. Inline [`Piece`], body: the bytes.
    Piece = 5,
    /// The operation that the inline [`Done`] names has ended at my side.
    Done = 6,
    /// Nothing but `ack` and `credit`; between several rails, `tag`: bytes of bodies that have come over this one.
    Ack = 7,
    /// Are you there? (`tag` 0) / I am (`tag` 1).
    Probe = 8,
    /// Store the body in a window. Inline [`Access`]; with [`TAGGED`] a notice goes with it: inline [`AccessNotice`], value in `tag`.
    Write = 9,
    /// Send bytes of a window, as pieces. Inline [`Access`], length in `tag`.
    Read = 10,
    /// My endpoint closes.
    Bye = 11,
    /// An access to a window has ended. Inline [`NoticeHead`], the value in `tag`.
    Notice = 12,
}

impl FrameKind {
    #[inline(always)]
    fn from_bits(b: u8) -> Option<FrameKind> {
        use FrameKind::*;
        [Hello, Eager, Batch, Rts, Cts, Piece, Done, Ack, Probe, Write, Read, Bye, Notice]
            .get(usize::from(b))
            .copied()
    }

    /// `true` if the frame has a place in the peer's sequence: it is acknowledged, resent and filtered for duplicates.
    pub(crate) fn is_sequenced(self) -> bool {
        !matches!(self, FrameKind::Hello | FrameKind::Ack | FrameKind::Probe | FrameKind::Bye)
    }
}

/// The message was sent with a tag; the write ends with a notice.
pub(crate) const TAGGED: u8 = 0x10;
/// The message must be delivered after all that its sender sent before it.
pub(crate) const ORDERED: u8 = 0x20;
/// The sender waits for the acknowledgement: send it without delay.
pub(crate) const URGENT_ACK: u8 = 0x40;
/// All flags.
const FLAGS: u8 = TAGGED | ORDERED | URGENT_ACK;

/// The header of every frame. On the wire, little-endian: kind and flags u8, sequence number u24, ack u16, credit u16, tag u64.
/// Packed and unpacked by shifts: headers stay in registers on their way through the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Low 4 bits: [`FrameKind`]; high 4: flags.
    pub(crate) kind_flags: u8,
    /// Sequence number, 24 bits, of sequenced frames.
    pub(crate) seq: u32,
    /// All sequenced frames before this number have arrived here (low 16 bits).
    pub(crate) ack: u16,
    /// Credit units consumed here so far (low 16 bits).
    pub(crate) credit: u16,
    /// The user's tag; for some kinds a number of theirs.
    pub(crate) tag: u64,
}

/// Sequence numbers count modulo this.
pub(crate) const SEQ_MOD: u32 = 1 << 24;

impl Header {
    /// A header without acknowledgement and credit, which the machine fills in when the frame leaves.
    #[inline(always)]
    pub(crate) fn new(kind: FrameKind, flags: u8, seq: u32, tag: u64) -> Header {
        Header { kind_flags: kind as u8 | flags, seq, ack: 0, credit: 0, tag }
    }

    /// Reads a header; `None` if the kind is unknown or a reserved flag is set.
    #[inline(always)]
    pub(crate) fn parse(b: &[u8; 16]) -> Option<(FrameKind, Header)> {
        let n = u128::from_le_bytes(*b);
        Self::from_halves(n as u64, (n >> 64) as u64)
    }

    /// The same from two words as they lie in memory.
    #[inline(always)]
    pub(crate) fn from_words(w: [u64; 2]) -> Option<(FrameKind, Header)> {
        Self::from_halves(u64::from_le(w[0]), u64::from_le(w[1]))
    }

    #[inline(always)]
    fn from_halves(n: u64, tag: u64) -> Option<(FrameKind, Header)> {
        let kind_flags = n as u8;
        if kind_flags & 0x80 != 0 {
            return None;
        }
        let kind = FrameKind::from_bits(kind_flags & 0x0f)?;
        let seq = (n >> 8) as u32 & (SEQ_MOD - 1);
        Some((kind, Header { kind_flags, seq, ack: (n >> 32) as u16, credit: (n >> 48) as u16, tag }))
    }

    /// As a little-endian number.
    #[inline(always)]
    pub(crate) fn to_number(self) -> u128 {
        let low = u64::from(self.kind_flags)
            | u64::from(self.seq) << 8
            | u64::from(self.ack) << 32
            | u64::from(self.credit) << 48;
        u128::from(low) | u128::from(self.tag) << 64
    }

    #[inline(always)]
    pub(crate) fn to_bytes(self) -> [u8; 16] {
        self.to_number().to_le_bytes()
    }

    #[inline(always)]
    pub(crate) fn has(&self, flag: u8) -> bool {
        self.kind_flags & flag != 0
    }

    /// The user's tag, of a tagged message.
    #[inline(always)]
    pub(crate) fn user_tag(&self) -> Option<u64> {
        self.has(TAGGED).then_some(self.tag)
    }
}

macro_rules! inline_struct {
    ($(#[$doc:meta])* $name:ident $len:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? } $(if $check:expr)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$fdoc])* pub(crate) $field: $ty),* }
        const _: () = assert!(size_of::<$name>() == $len && $len <= kfab_core::spi::INLINE_MAX);
        impl $name {
            /// Exactly these bytes, with nothing in them that is reserved; or `None`.
            #[inline]
            pub(crate) fn parse(b: &[u8]) -> Option<$name> {
                $name::read_from_bytes(b).ok()$(.filter($check))?
            }
        }
    };
}

/// A hello's flag: the fabric has a key (both must agree).
pub(crate) const KEYED: u32 = 1;
/// The sender does not know yet who will read this, and so not which state it has for them.
pub(crate) const STRANGER: u32 = 2;
/// From who was called: now that you know me, say your hello again. From who calls: I did.
pub(crate) const AGAIN: u32 = 4;
/// The sender can call by itself: its user has named who reads this, or it has called before.
pub(crate) const CALLS: u32 = 8;
/// All of them.
const HELLO_FLAGS: u32 = KEYED | STRANGER | AGAIN | CALLS;

inline_struct!(
    /// Who a connection belongs to.
    Hello 40 {
        magic: U32,
        version: U16,
        /// Which port of the sender this connection ends at.
        port: U16,
        /// The endpoint, new at every start.
        id: U64,
        /// Credit units the receiver of this hello may use.
        credits: U32,
        /// [`KEYED`], [`STRANGER`], [`AGAIN`], [`CALLS`]. The rest is zero.
        flags: U32,
        /// The largest frame body the sender's machine will take.
        max_body: U32,
        /// The sender's state for this receiver; another number than before: it has forgotten everything. Means nothing with `STRANGER`.
        session: U64,
        /// So many bytes of a message to the sender of this hello cost a unit.
        credit_bytes: U32,
    }
    // Of another version nothing but the number is known.
    if |h| h.version.get() != VERSION || h.flags.get() & !HELLO_FLAGS == 0
);

inline_struct!(
    /// Ready to send.
    Rts 40 {
        /// Bytes of the message, 48 bits.
        bytes: [u8; 6],
        /// Which port of the sender's they can be fetched through.
        port: U16,
        /// The sender's operation.
        op: U64,
        /// Where the bytes can be fetched from; `secret` 0: nowhere, ask with a CTS.
        region: U64,
        base: U64,
        secret: U64,
    }
);

impl Rts {
    /// The longest message that can be promised, bytes.
    pub(crate) const MAX_LEN: u64 = (1 << 48) - 1;

    /// The length as it travels.
    pub(crate) fn bytes_of(len: u64) -> [u8; 6] {
        let b = len.min(Self::MAX_LEN).to_le_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// Bytes of the message.
    pub(crate) fn len(&self) -> u64 {
        let b = self.bytes;
        u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0])
    }
}

inline_struct!(
    /// Clear to send.
    Cts 24 {
        /// The sender's operation, from the RTS.
        op: U64,
        /// The receiver's, for the pieces.
        sink: U64,
        /// Bytes of a piece.
        piece: U32,
        /// How many bytes are wanted, in pieces (the sink may be shorter than the message).
        pieces: U32,
    }
);

inline_struct!(
    /// One piece of a large transfer.
    Piece 16 {
        sink: U64,
        index: U32,
        reserved: U32,
    }
    if |p| p.reserved == U32::ZERO
);

inline_struct!(
    /// The end of an operation.
    Done 16 {
        op: U64,
        /// A [`Status`].
        status: U32,
        reserved: U32,
    }
    if |d| d.reserved == U32::ZERO
);

inline_struct!(
    /// A one-sided access served by messages.
    Access 32 {
        window: U64,
        secret: U64,
        offset: U64,
        op: U64,
    }
);

inline_struct!(
    /// The last access of a write that ends with a notice.
    AccessNotice 40 {
        access: Access,
        /// Bytes of the whole write.
        bytes: U64,
    }
);

inline_struct!(
    /// A notice, alone.
    NoticeHead 32 {
        window: U64,
        secret: U64,
        /// Bytes of the access.
        bytes: U64,
        /// `Rights::READ` or `Rights::WRITE`: which it was.
        access: U32,
        reserved: U32,
    }
    if |n| n.reserved == U32::ZERO
);

inline_struct!(
    /// One message of a batch.
    Record 12 {
        /// Flags as in the header.
        flags: u8,
        reserved: u8,
        len: U16,
        tag: U64,
    }
    if |r| u16::from_le_bytes([r.flags, r.reserved]) & !u16::from(FLAGS) == 0
);

/// How an operation ended at the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    Ok = 0,
    Denied = 1,
    Canceled = 2,
    NoMemory = 3,
}

impl Status {
    pub(crate) fn from_bits(b: u32) -> Option<Status> {
        [Status::Ok, Status::Denied, Status::Canceled, Status::NoMemory].get(b as usize).copied()
    }
}

/// `true` if sequence number `a` comes before `b`, both modulo 2^24 and less than half the circle apart.
#[inline]
pub(crate) fn seq_before(a: u32, b: u32) -> bool {
    a != b && (b.wrapping_sub(a) & (SEQ_MOD - 1)) < SEQ_MOD / 2
}

/// How far `b` is ahead of `a`, modulo 2^24.
#[inline]
pub(crate) fn seq_ahead(a: u32, b: u32) -> u32 {
    b.wrapping_sub(a) & (SEQ_MOD - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_header() {
        let mut h = Header::new(FrameKind::Rts, TAGGED, 0x0004_0302, 0x1122_3344_5566_7788);
        h.ack = 0xbeef;
        h.credit = 0x0102;
        let b = h.to_bytes();
        assert_eq!(b, [0x13, 2, 3, 4, 0xef, 0xbe, 2, 1, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        let (k, back) = Header::parse(&b).unwrap();
        assert_eq!((k, back, back.seq), (FrameKind::Rts, h, 0x0004_0302));
    }

    #[test]
    fn golden_hello() {
        let h = Hello {
            magic: MAGIC.into(),
            version: VERSION.into(),
            port: 2.into(),
            id: 0x0807_0605_0403_0201.into(),
            credits: 1024.into(),
            flags: 1.into(),
            max_body: 65536.into(),
            session: 9.into(),
            credit_bytes: 4096.into(),
        };
        let want = [
            b'k', b'f', b'a', b'b', 3, 0, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 4, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0,
            9, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0,
        ];
        assert_eq!(h.as_bytes(), want);
        for cut in 0..want.len() {
            assert!(Hello::parse(&want[..cut]).is_none());
        }
    }

    /// A structure, its golden bytes, and where bytes are that must be zero; and that it is read back from these bytes alone.
    fn golden<T: IntoBytes + Immutable + PartialEq + std::fmt::Debug>(
        s: &T,
        parse: fn(&[u8]) -> Option<T>,
        want: &str,
        reserved: std::ops::Range<usize>,
    ) {
        let b = s.as_bytes();
        let shown: String = b.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(shown, want.replace(' ', ""), "{s:?}");
        assert_eq!(parse(b).as_ref(), Some(s));
        (0..b.len()).for_each(|cut| assert_eq!(parse(&b[..cut]), None, "{s:?} cut at {cut}"));
        assert_eq!(parse(&[b, &[0]].concat()), None, "{s:?} and more");
        for (at, bit) in reserved.flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bad = b.to_vec();
            bad[at] |= 1 << bit;
            assert_eq!(parse(&bad), None, "{s:?} with bit {bit} of byte {at}");
        }
    }

    #[test]
    fn golden_structures_with_nothing_in_what_is_reserved() {
        const OP: u64 = 0x0807_0605_0403_0201;
        let (op, region, base, secret) = (OP.into(), 0x11.into(), 0x2200.into(), 0x33_0000.into());
        golden(
            &Rts { bytes: Rts::bytes_of(0x0605_0403_0201), port: 7.into(), op, region, base, secret },
            Rts::parse,
            "010203040506 0700 0102030405060708 1100000000000000 0022000000000000 0000330000000000",
            0..0,
        );
        golden(
            &Cts { op, sink: 9.into(), piece: 0x1_0000.into(), pieces: 3.into() },
            Cts::parse,
            "0102030405060708 0900000000000000 00000100 03000000",
            0..0,
        );
        golden(
            &Piece { sink: OP.into(), index: 0x0403_0201.into(), reserved: 0.into() },
            Piece::parse,
            "0102030405060708 01020304 00000000",
            12..16,
        );
        golden(
            &Done { op, status: (Status::NoMemory as u32).into(), reserved: 0.into() },
            Done::parse,
            "0102030405060708 03000000 00000000",
            12..16,
        );
        let access = Access { window: 5.into(), secret, offset: 0x1000.into(), op };
        let golden_access = "0500000000000000 0000330000000000 0010000000000000 0102030405060708";
        golden(&access, Access::parse, golden_access, 0..0);
        golden(
            &AccessNotice { access, bytes: 0x0100.into() },
            AccessNotice::parse,
            &format!("{golden_access} 0001000000000000"),
            0..0,
        );
        golden(
            &NoticeHead { window: 5.into(), secret, bytes: 6.into(), access: 2.into(), reserved: 0.into() },
            NoticeHead::parse,
            "0500000000000000 0000330000000000 0600000000000000 02000000 00000000",
            28..32,
        );
        golden(
            &Record { flags: TAGGED | ORDERED | URGENT_ACK, reserved: 0, len: 0x0201.into(), tag: OP.into() },
            Record::parse,
            "70 00 0102 0102030405060708",
            1..2,
        );
        for flags in 0..=255 {
            let r = Record { flags, reserved: 0, len: 0.into(), tag: 0.into() };
            assert_eq!(Record::parse(r.as_bytes()).is_some(), flags & 0x8f == 0, "{flags:#x}");
        }
    }

    #[test]
    fn golden_numbers() {
        use FrameKind::*;
        let all = [Hello, Eager, Batch, Rts, Cts, Piece, Done, Ack, Probe, Write, Read, Bye, Notice];
        assert_eq!(all.map(|k| k as u8), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        all.iter().for_each(|k| assert_eq!(FrameKind::from_bits(*k as u8), Some(*k)));
        let all = [Status::Ok, Status::Denied, Status::Canceled, Status::NoMemory];
        assert_eq!(all.map(|s| s as u32), [0, 1, 2, 3]);
        all.iter().for_each(|s| assert_eq!(Status::from_bits(*s as u32), Some(*s)));
        assert_eq!((FrameKind::from_bits(13), Status::from_bits(4)), (None, None));
        assert_eq!((TAGGED, ORDERED, URGENT_ACK), (0x10, 0x20, 0x40));
        assert_eq!((KEYED, STRANGER, AGAIN, CALLS), (1, 2, 4, 8));
    }

    #[test]
    fn unknown_flags_of_a_hello_are_refused_and_another_version_is_told() {
        let mut hello = [0; 40];
        hello[4..6].copy_from_slice(&VERSION.to_le_bytes());
        for bit in 0..32 {
            hello[20..24].copy_from_slice(&(1u32 << bit).to_le_bytes());
            assert_eq!(Hello::parse(&hello).is_some(), bit < 4, "bit {bit}");
        }
        hello[4..6].copy_from_slice(&(VERSION + 1).to_le_bytes());
        assert!(Hello::parse(&hello).is_some_and(|h| h.version.get() == VERSION + 1));
    }

    #[test]
    fn unknown_kinds_and_reserved_flags_are_refused() {
        for b in 0..=255u8 {
            let mut raw = [0u8; 16];
            raw[0] = b;
            assert_eq!(Header::parse(&raw).is_some(), b & 0x80 == 0 && b & 0x0f < 13, "{b:#x}");
        }
    }

    #[test]
    fn sequence_numbers_wrap() {
        assert!(seq_before(SEQ_MOD - 1, 0) && !seq_before(0, SEQ_MOD - 1) && !seq_before(5, 5));
        assert_eq!(seq_ahead(SEQ_MOD - 2, 3), 5);
    }
}
