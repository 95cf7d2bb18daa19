//! What travels: packets of records, little-endian. A packet is one tagged kfab message.
//!
//! ```text
//! tag     u8 0x52 | u8 lane of traffic | u48 low bits of the client's id
//! packet  u8 version, u8 kind, u16 records, u32 zero, u64 client, u64 session (0: none yet), records, perhaps zeros
//! call    u64 id, u32 bytes, u8 portal, u8 flags, u16 opcode, u32 patience us, u32 limit us (0: none),
//!         [u16 bytes, extension], payload
//! reply   u64 id, u32 bytes, u8 status, u8 zero, u16 zero, u32 estimate us, u32 argument, payload
//! id      u64: slot in the low 16 bits, sequence of the slot above
//! extension  u8 bytes, job; u8 windows; for each u16 bytes, key
//! ```
//!
//! Everything is checked here, at the door; readers never panic and never give more than the packet holds.

use kfab::WindowKey;

/// The version of this protocol.
pub(crate) const VERSION: u8 = 2;
/// Bytes of a packet's head.
pub(crate) const HEAD: usize = 24;
/// Bytes of a call's head, and of a reply's.
pub(crate) const RECORD: usize = 24;
/// The longest job id, bytes.
pub(crate) const JOB_MAX: usize = 32;
/// The most windows of a call.
pub(crate) const WINDOWS_MAX: usize = 16;

/// Bits of a tag that tell clients apart.
pub(crate) const TAG_CLIENT: u64 = (1 << 48) - 1;
/// Tags of this module begin so; other users of the endpoint keep away from it.
const TAG: u64 = 0x52 << 56;
/// To a server.
pub(crate) const TAG_TO_SERVER: u64 = TAG | 1 << 48;
/// To a client.
pub(crate) const TAG_TO_CLIENT: u64 = TAG | 2 << 48;

/// What a packet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A client introduces itself.
    Hello = 1,
    /// The server knows it: one reply record, its sequence = the server's incarnation, argument = slots. Another session
    /// than before means that what was remembered of the client is gone.
    Welcome = 2,
    /// Call records.
    Calls = 3,
    /// Reply records.
    Replies = 4,
    /// Call records without payload: give these up.
    Cancel = 5,
    /// The server does not know the session (any more): a reply record for each call that was not begun for that.
    Stranger = 6,
    /// The client leaves.
    Bye = 7,
    /// The server has no room for another client: one reply record, argument = retry after, us.
    Refused = 8,
    /// Call records without payload: these large replies have arrived and need not be kept.
    Done = 9,
}

impl Kind {
    #[inline]
    fn from_u8(n: u8) -> Option<Kind> {
        use Kind::*;
        const ALL: [Kind; 9] = [Hello, Welcome, Calls, Replies, Cancel, Stranger, Bye, Refused, Done];
        ALL.get(usize::from(n).wrapping_sub(1)).copied()
    }
}

/// A packet's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) count: u16,
    pub(crate) client: u64,
    pub(crate) session: u64,
}

impl Head {
    #[inline]
    pub(crate) fn encode(&self) -> [u8; HEAD] {
        let mut b = [0; HEAD];
        b[0] = VERSION;
        b[1] = self.kind as u8;
        b[2..4].copy_from_slice(&self.count.to_le_bytes());
        b[8..16].copy_from_slice(&self.client.to_le_bytes());
        b[16..24].copy_from_slice(&self.session.to_le_bytes());
        b
    }

    /// The head and what follows it.
    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
        if head[0] != VERSION || head[4..8] != [0; 4] {
            return None;
        }
        let kind = Kind::from_u8(head[1])?;
        let count = u16::from_le_bytes([head[2], head[3]]);
        Some((Head { kind, count, client: u64_at(head, 8), session: u64_at(head, 16) }, rest))
    }
}

#[inline]
fn u64_at<const N: usize>(b: &[u8; N], at: usize) -> u64 {
    u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or_default())
}

#[inline]
fn u32_at<const N: usize>(b: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap_or_default())
}

/// A call's number: a slot, and which of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CallId {
    pub(crate) slot: u16,
    pub(crate) seq: u64,
}

impl CallId {
    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        self.seq << 16 | u64::from(self.slot)
    }

    #[inline]
    pub(crate) fn from_bits(b: u64) -> CallId {
        CallId { slot: b as u16, seq: b >> 16 }
    }
}

/// Flags of a call.
pub(crate) mod flags {
    /// Before all others.
    pub(crate) const HIGH: u8 = 1;
    /// Sent before, perhaps.
    pub(crate) const RESENT: u8 = 2;
    /// An extension follows the head.
    pub(crate) const EXTENDED: u8 = 4;
    /// All that may be set.
    pub(crate) const ALL: u8 = 7;
}

/// A call's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CallHead {
    pub(crate) id: CallId,
    pub(crate) len: u32,
    pub(crate) portal: u8,
    pub(crate) flags: u8,
    pub(crate) opcode: u16,
    /// Until the client asks again, microseconds.
    pub(crate) patience_us: u32,
    /// Until nobody wants the answer any more, microseconds; 0: no limit.
    pub(crate) limit_us: u32,
}

impl CallHead {
    #[inline]
    pub(crate) fn encode(&self) -> [u8; RECORD] {
        let mut b = [0; RECORD];
        b[..8].copy_from_slice(&self.id.to_bits().to_le_bytes());
        b[8..12].copy_from_slice(&self.len.to_le_bytes());
        b[12] = self.portal;
        b[13] = self.flags;
        b[14..16].copy_from_slice(&self.opcode.to_le_bytes());
        b[16..20].copy_from_slice(&self.patience_us.to_le_bytes());
        b[20..24].copy_from_slice(&self.limit_us.to_le_bytes());
        b
    }

    #[inline]
    fn decode(b: &[u8; RECORD]) -> Option<CallHead> {
        let (portal, flags) = (b[12], b[13]);
        let good = usize::from(portal) < super::method::PORTALS && flags & !flags::ALL == 0;
        good.then(|| CallHead {
            id: CallId::from_bits(u64_at(b, 0)),
            len: u32_at(b, 8),
            portal,
            flags,
            opcode: u16::from_le_bytes([b[14], b[15]]),
            patience_us: u32_at(b, 16),
            limit_us: u32_at(b, 20),
        })
    }
}

/// How a call ended, or did not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Well; the payload is the reply.
    Ok = 0,
    /// The handler said no; argument = its code, payload = its words.
    Failed = 1,
    /// Not begun, and never under this number: try again with the slot's next, after argument us.
    RetryAfter = 2,
    /// Still at it; argument = us more that it may take.
    Early = 3,
    /// Given up on request.
    Canceled = 4,
    /// Not begun: no such portal or opcode.
    NoService = 5,
    /// Not begun: its time was up.
    Expired = 6,
    /// Not begun: the request could not be decoded.
    Malformed = 7,
    /// Begun, and failed while bulk data moved; payload = why.
    Bulk = 8,
}

impl Status {
    #[inline]
    fn from_u8(n: u8) -> Option<Status> {
        use Status::*;
        [Ok, Failed, RetryAfter, Early, Canceled, NoService, Expired, Malformed, Bulk]
            .get(usize::from(n))
            .copied()
    }
}

/// A reply's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyHead {
    pub(crate) id: CallId,
    pub(crate) len: u32,
    pub(crate) status: Status,
    /// How long the service thinks a call takes, microseconds.
    pub(crate) estimate_us: u32,
    pub(crate) arg: u32,
}

impl ReplyHead {
    #[inline]
    pub(crate) fn encode(&self) -> [u8; RECORD] {
        let mut b = [0; RECORD];
        b[..8].copy_from_slice(&self.id.to_bits().to_le_bytes());
        b[8..12].copy_from_slice(&self.len.to_le_bytes());
        b[12] = self.status as u8;
        b[16..20].copy_from_slice(&self.estimate_us.to_le_bytes());
        b[20..24].copy_from_slice(&self.arg.to_le_bytes());
        b
    }

    #[inline]
    fn decode(b: &[u8; RECORD]) -> Option<ReplyHead> {
        if b[13..16] != [0; 3] {
            return None;
        }
        Some(ReplyHead {
            id: CallId::from_bits(u64_at(b, 0)),
            len: u32_at(b, 8),
            status: Status::from_u8(b[12])?,
            estimate_us: u32_at(b, 16),
            arg: u32_at(b, 20),
        })
    }
}

/// Reads the records of a packet one after the other. `Err` once something is wrong: the rest is lost.
pub(crate) struct Records<'a> {
    rest: &'a [u8],
    left: u16,
    len: usize,
}

/// A call: its head, extension and payload.
pub(crate) type CallRecord<'a> = (CallHead, &'a [u8], &'a [u8]);

/// A packet that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

impl<'a> Records<'a> {
    pub(crate) fn new(count: u16, rest: &'a [u8]) -> Records<'a> {
        Records { rest, left: count, len: rest.len() }
    }

    /// Bytes read so far.
    pub(crate) fn at(&self) -> usize {
        self.len - self.rest.len()
    }

    #[inline]
    fn record(&mut self) -> Option<Result<&'a [u8; RECORD], Damaged>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        match self.rest.split_first_chunk::<RECORD>() {
            Some((head, rest)) => {
                self.rest = rest;
                Some(Ok(head))
            }
            None => self.damaged(),
        }
    }

    fn damaged<T>(&mut self) -> Option<Result<T, Damaged>> {
        self.left = 0;
        Some(Err(Damaged))
    }

    #[inline]
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    /// The next call: its head, extension and payload.
    #[inline]
    pub(crate) fn call(&mut self) -> Option<Result<CallRecord<'a>, Damaged>> {
        let head = match self.record()? {
            Ok(b) => CallHead::decode(b),
            Err(e) => return Some(Err(e)),
        };
        let Some(head) = head else { return self.damaged() };
        let mut extension: &[u8] = &[];
        if head.flags & flags::EXTENDED != 0 {
            let Some(len) = self.bytes(2) else { return self.damaged() };
            let Some(bytes) = self.bytes(usize::from(u16::from_le_bytes([len[0], len[1]]))) else {
                return self.damaged();
            };
            extension = bytes;
        }
        match self.bytes(head.len as usize) {
            Some(payload) => Some(Ok((head, extension, payload))),
            None => self.damaged(),
        }
    }

    /// The next reply and its payload.
    #[inline]
    pub(crate) fn reply(&mut self) -> Option<Result<(ReplyHead, &'a [u8]), Damaged>> {
        let head = match self.record()? {
            Ok(b) => ReplyHead::decode(b),
            Err(e) => return Some(Err(e)),
        };
        let Some(head) = head else { return self.damaged() };
        match self.bytes(head.len as usize) {
            Some(payload) => Some(Ok((head, payload))),
            None => self.damaged(),
        }
    }
}

/// What a call may carry beside its payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) job: Option<Box<str>>,
    pub(crate) windows: Vec<WindowKey>,
}

impl Extension {
    /// With its length before it. The caller has checked [`JOB_MAX`] and [`WINDOWS_MAX`].
    pub(crate) fn encode(&self) -> Vec<u8> {
        let job = self.job.as_deref().unwrap_or("");
        let mut b = vec![0, 0, job.len() as u8];
        b.extend_from_slice(job.as_bytes());
        b.push(self.windows.len() as u8);
        for key in &self.windows {
            let key = key.to_bytes();
            b.extend_from_slice(&(key.len() as u16).to_le_bytes());
            b.extend_from_slice(&key);
        }
        let len = (b.len() - 2) as u16;
        b[..2].copy_from_slice(&len.to_le_bytes());
        b
    }

    /// Without the length before it.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Extension> {
        let (&job_len, rest) = bytes.split_first()?;
        let (job, rest) = rest.split_at_checked(usize::from(job_len))?;
        let (&count, mut rest) = rest.split_first()?;
        if job.len() > JOB_MAX || usize::from(count) > WINDOWS_MAX {
            return None;
        }
        let job = std::str::from_utf8(job).ok()?;
        let mut windows = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let (len, after) = rest.split_first_chunk::<2>()?;
            let (key, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
            windows.push(WindowKey::from_bytes(key).ok()?);
            rest = after;
        }
        let job = (!job.is_empty()).then(|| job.into());
        rest.is_empty().then_some(Extension { job, windows })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A window key's bytes, with one port.
    pub(crate) fn key() -> WindowKey {
        let mut b: Vec<u8> = (0..32).collect();
        b.extend([1, 1]);
        b.extend(0..26);
        WindowKey::from_bytes(&b).unwrap()
    }

    pub(crate) fn calls() -> Vec<u8> {
        let extension = Extension { job: Some("dd.1000".into()), windows: vec![key()] }.encode();
        let id = CallId { slot: 3, seq: 0x0102_0304 };
        let one =
            CallHead { id, len: 5, portal: 6, flags: flags::HIGH, opcode: 9, patience_us: 1000, limit_us: 0 };
        let two = CallHead { flags: flags::EXTENDED | flags::RESENT, len: 2, ..one };
        let head = Head { kind: Kind::Calls, count: 2, client: 0x1122_3344_5566_7788, session: 9 };
        [&head.encode()[..], &one.encode(), b"hello", &two.encode(), &extension, b"ab"].concat()
    }

    pub(crate) fn replies() -> Vec<u8> {
        let id = CallId { slot: 1, seq: 7 };
        let one = ReplyHead { id, len: 3, status: Status::Ok, estimate_us: 50, arg: 0 };
        let two = ReplyHead { status: Status::RetryAfter, len: 0, arg: 999, ..one };
        let head = Head { kind: Kind::Replies, count: 2, client: 5, session: 9 };
        [&head.encode()[..], &one.encode(), b"yes", &two.encode()].concat()
    }

    #[test]
    fn golden_bytes() {
        let packet = calls();
        let head =
            [2, 3, 2, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(packet[..HEAD], head);
        let call = [3, 0, 4, 3, 2, 1, 0, 0, 5, 0, 0, 0, 6, 1, 9, 0, 0xe8, 3, 0, 0, 0, 0, 0, 0];
        assert_eq!(packet[HEAD..HEAD + RECORD], call);
        assert_eq!(&packet[HEAD + RECORD..HEAD + RECORD + 5], b"hello");
        assert_eq!(
            packet[HEAD + 2 * RECORD + 5..][..10],
            [71, 0, 7, b'd', b'd', b'.', b'1', b'0', b'0', b'0']
        );
        let packet = replies();
        let reply = [1, 0, 7, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 50, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(packet[HEAD..HEAD + RECORD], reply);
        assert_eq!((TAG_TO_SERVER, TAG_TO_CLIENT), (0x5201 << 48, 0x5202 << 48));
    }

    #[test]
    fn what_was_written_is_read() {
        let packet = calls();
        let (head, rest) = Head::decode(&packet).unwrap();
        assert_eq!((head.kind, head.client, head.session), (Kind::Calls, 0x1122_3344_5566_7788, 9));
        let mut records = Records::new(head.count, rest);
        let (one, extension, payload) = records.call().unwrap().unwrap();
        assert_eq!(
            (one.id, one.portal, one.opcode, extension, payload),
            (CallId { slot: 3, seq: 0x0102_0304 }, 6, 9, &[][..], &b"hello"[..])
        );
        let (two, extension, payload) = records.call().unwrap().unwrap();
        assert_eq!((two.flags, payload), (6, &b"ab"[..]));
        let extension = Extension::decode(extension).unwrap();
        assert_eq!((extension.job.as_deref(), &extension.windows[..]), (Some("dd.1000"), &[key()][..]));
        assert!(records.call().is_none());
        assert_eq!(records.at(), rest.len());
    }

    fn read_all(bytes: &[u8]) -> (usize, bool) {
        let Some((head, rest)) = Head::decode(bytes) else { return (0, true) };
        let mut records = Records::new(head.count, rest);
        let mut good = 0;
        loop {
            let next = match head.kind {
                Kind::Calls => {
                    records.call().map(|r| r.map(|(_, e, _)| e.is_empty() || Extension::decode(e).is_some()))
                }
                _ => records.reply().map(|r| r.map(|_| true)),
            };
            match next {
                None => return (good, false),
                Some(Ok(true)) => good += 1,
                Some(_) => return (good, true),
            }
        }
    }

    #[test]
    fn a_packet_cut_anywhere_is_damaged_after_what_is_whole() {
        for packet in [calls(), replies()] {
            assert_eq!(read_all(&packet), (2, false));
            for cut in 0..packet.len() {
                let (good, damaged) = read_all(&packet[..cut]);
                assert!(damaged && good < 2, "cut at {cut}: {good}");
            }
        }
    }

    #[test]
    fn extensions_cut_or_over_their_limits_are_refused() {
        let whole = Extension { job: Some("j".into()), windows: vec![key(); 2] }.encode();
        for cut in 2..whole.len() {
            assert_eq!(Extension::decode(&whole[2..cut]), None, "{cut}");
        }
        let long = Extension { job: Some("x".repeat(JOB_MAX + 1).into()), windows: vec![] }.encode();
        let many = Extension { job: None, windows: vec![key(); WINDOWS_MAX + 1] }.encode();
        assert_eq!((Extension::decode(&long[2..]), Extension::decode(&many[2..])), (None, None));
    }

    proptest! {
        #[test]
        fn noise_never_gives_more_than_there_is(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            read_all(&bytes);
            let _ = Extension::decode(&bytes);
        }

        #[test]
        fn heads_survive(slot: u16, seq in 0u64..1 << 48, len: u32, portal in 0u8..64, f in 0u8..8, opcode: u16, patience_us: u32, limit_us: u32) {
            let head = CallHead { id: CallId { slot, seq }, len, portal, flags: f, opcode, patience_us, limit_us };
            prop_assert_eq!(CallHead::decode(&head.encode()), Some(head));
        }
    }
}
