//! From bytes to records, sans-io: a [`Receiver`] is fed what a socket gave and yields frames and stretches of bodies, opening
//! sealed pieces on the way. Called by `link`; memory is held only while bytes wait.

use crate::stage::{Stage, StagePool};
use crate::wire::{HEAD_MAX, Parsed, SEAL_PREFIX, parse_record};
use kfab_core::auth::{MAX_PLAIN, Session, TAG_LEN};
use kfab_core::mem::Landing;
use kfab_core::spi::{HEADER_LEN, Inline};

/// After a body of this size or more another is expected, of the same size: the next read takes a head, and the body behind it straight to spare memory.
/// Two reads for one message cost a sixth of its time at 64 KiB.
const BULK: usize = 8 << 10;
/// The largest body that is read ahead: if something else came, all of it has room in the stage.
const AHEAD_MAX: usize = 64 << 10;
/// What a read takes where bulk is expected and there is no memory to read ahead into: little, so that the body goes straight to its landing.
const PEEK: usize = 256;

const _: () = assert!(PEEK >= HEAD_MAX && crate::stage::STAGE_BYTES >= HEAD_MAX + AHEAD_MAX);
const _: () = assert!(
    crate::stage::STAGE_BYTES >= MAX_PLAIN + HEAD_MAX && crate::stage::STAGE_BYTES >= SEAL_PREFIX + 65_535
);

/// What the next record is.
#[derive(Debug)]
pub(crate) enum Item {
    /// More bytes are needed.
    Nothing,
    /// A frame. Its `body_len` bytes must be drawn with [`Receiver::body`] and [`Receiver::consume`] (or read from the socket
    /// directly once nothing is staged) before the next call of [`Receiver::next`].
    Frame { header: [u8; HEADER_LEN], inline: Inline, body_len: usize },
    /// The peer closes in good order.
    Goodbye,
}

/// The receiving half of a connection.
#[derive(Default)]
pub(crate) struct Receiver {
    plain: Stage,
    cipher: Stage,
    session: bool,
    /// The length of the last body, if it was bulk.
    bulk: usize,
    /// It went to memory that another could have stood for.
    any: bool,
    /// The beginning of the next frame's body, and how long it is.
    ahead: Option<(Landing, usize)>,
}

impl Receiver {
    /// A receiver of sealed pieces, or of plain records.
    pub(crate) fn new(sealed: bool) -> Receiver {
        Receiver { session: sealed, ..Receiver::default() }
    }

    /// Where the next bytes from the socket go; then [`Receiver::received`]. Never empty while [`Receiver::next`] says
    /// `Nothing` or [`Receiver::body`] gives nothing. Within a body it is as large as it can be.
    #[inline]
    pub(crate) fn space(&mut self, in_body: bool, pool: &mut StagePool) -> &mut [u8] {
        if self.session {
            if self.cipher.room() < SEAL_PREFIX + MAX_PLAIN + TAG_LEN - self.cipher.len().min(MAX_PLAIN) {
                self.cipher.compact();
            }
            return self.cipher.space(pool);
        }
        self.plain.compact();
        let limit = if self.bulk > 0 && !in_body { PEEK } else { usize::MAX };
        let space = self.plain.space(pool);
        let n = space.len().min(limit);
        &mut space[..n]
    }

    /// `n` bytes of the space were written.
    #[inline]
    pub(crate) fn received(&mut self, n: usize) {
        if self.session { self.cipher.advance(n) } else { self.plain.advance(n) }
    }

    /// How much of a body the next read may put into spare memory, behind a head; 0: none. See [`Receiver::head`].
    #[inline]
    pub(crate) fn expected(&self) -> usize {
        if self.any && self.plain.is_empty() { self.bulk } else { 0 }
    }

    /// The body of the frame that [`Receiver::next`] gave goes to `landing`. How much spare memory the next one may ask for.
    #[inline]
    pub(crate) fn lands(&mut self, landing: Option<&Landing>) -> usize {
        self.any = !self.session && self.bulk <= AHEAD_MAX && landing.is_some_and(Landing::is_any);
        if self.any { self.bulk } else { 0 }
    }

    /// Where the head of the expected frame goes; then [`Receiver::received_ahead`].
    #[inline]
    pub(crate) fn head(&mut self, pool: &mut StagePool) -> &mut [u8] {
        &mut self.plain.space(pool)[..HEAD_MAX]
    }

    /// `n` bytes were written, to the head and then to `spare`. What is no part of the next frame's body moves behind the head, as if nothing had been
    /// expected; the spare memory comes back if it holds nothing.
    pub(crate) fn received_ahead(
        &mut self,
        n: usize,
        spare: Landing,
        pool: &mut StagePool,
    ) -> Option<Landing> {
        self.plain.advance(n.min(HEAD_MAX));
        let came = n.saturating_sub(HEAD_MAX);
        let body = match parse_record(self.plain.filled()) {
            Ok(Parsed::Frame { used: HEAD_MAX, body_len, .. }) => came.min(body_len),
            // An offence is found again by `next`.
            _ => 0,
        };
        self.plain.put(came - body, pool, |room| spare.copy_to(body, room));
        if body == 0 {
            return Some(spare);
        }
        self.ahead = Some((spare, body));
        None
    }

    /// What has been read of the body of the frame that [`Receiver::next`] gave.
    #[inline]
    pub(crate) fn take_ahead(&mut self) -> Option<(Landing, usize)> {
        self.ahead.take()
    }

    /// The next record; an error is the peer's offence and ends the connection.
    #[inline]
    pub(crate) fn next(
        &mut self,
        mut session: Option<&mut Session>,
        pool: &mut StagePool,
    ) -> Result<Item, &'static str> {
        loop {
            match self.parse()? {
                Item::Nothing => {}
                item => return Ok(item),
            }
            let Some(session) = &mut session else { return Ok(Item::Nothing) };
            if !self.open(session, pool)? {
                return Ok(Item::Nothing);
            }
        }
    }

    /// `true` if nothing is staged. Not for sealed connections.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// The next record if it is a frame without a body; all else stays where it is, for [`Receiver::next`]. Not for sealed
    /// connections.
    #[inline]
    pub(crate) fn next_bare(&mut self) -> Option<([u8; HEADER_LEN], Inline)> {
        match parse_record(self.plain.filled()) {
            Ok(Parsed::Frame { used, header, inline, body_len: 0 }) => {
                self.plain.consume(used);
                self.bulk = 0;
                Some((header, inline))
            }
            _ => None,
        }
    }

    #[inline]
    fn parse(&mut self) -> Result<Item, &'static str> {
        if self.plain.is_empty() {
            return Ok(Item::Nothing);
        }
        Ok(match parse_record(self.plain.filled())? {
            Parsed::Short => Item::Nothing,
            Parsed::Goodbye { used } => {
                self.plain.consume(used);
                Item::Goodbye
            }
            Parsed::Frame { used, header, inline, body_len } => {
                self.plain.consume(used);
                self.bulk = if body_len >= BULK { body_len } else { 0 };
                Item::Frame { header, inline, body_len }
            }
        })
    }

    /// Opens one sealed piece behind the plain bytes; `false` if none is whole.
    fn open(&mut self, session: &mut Session, pool: &mut StagePool) -> Result<bool, &'static str> {
        let c = self.cipher.filled();
        let Some((prefix, rest)) = c.split_first_chunk::<SEAL_PREFIX>() else { return Ok(false) };
        let len = usize::from(u16::from_le_bytes(*prefix));
        if len <= TAG_LEN {
            return Err("a sealed piece without contents");
        }
        let Some(sealed) = rest.get(..len) else { return Ok(false) };
        self.plain.compact();
        let n = session
            .open(sealed, self.plain.space(pool))
            .map_err(|_| "a sealed piece does not open: tampered with, or not for us")?;
        self.plain.advance(n);
        self.cipher.consume(SEAL_PREFIX + len);
        Ok(true)
    }

    /// Staged bytes of the body; empty if the socket must be read first.
    pub(crate) fn body(
        &mut self,
        session: Option<&mut Session>,
        pool: &mut StagePool,
    ) -> Result<&[u8], &'static str> {
        if let (true, Some(session)) = (self.plain.is_empty(), session) {
            self.open(session, pool)?;
        }
        Ok(self.plain.filled())
    }

    /// `n` bytes of the body were used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.plain.consume(n);
    }

    /// `true` if the socket's bytes are the body's bytes once nothing is staged.
    pub(crate) fn is_direct(&self) -> bool {
        !self.session
    }

    /// Gives empty buffers back.
    #[inline]
    pub(crate) fn release(&mut self, pool: &mut StagePool) {
        self.plain.release(pool);
        if self.session {
            self.cipher.release(pool);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use kfab_core::mem::Pool;
    use proptest::prelude::*;

    type InlineAndBody = (Vec<u8>, Vec<u8>);

    /// Feeds `stream` in pieces and collects inline parts and bodies until the goodbye. Reads ahead if there is a pool.
    fn run(stream: &[u8], steps: &[usize], memory: Option<&Pool>) -> (Vec<InlineAndBody>, bool) {
        let (mut rx, mut pool) = (Receiver::new(false), StagePool::default());
        let (mut at, mut out, mut bye, mut left) = (0, Vec::new(), false, 0);
        let mut spare = memory.map(|p| p.landing(AHEAD_MAX).unwrap());
        let mut steps = steps.iter().cycle();
        loop {
            if left > 0 {
                let b = rx.body(None, &mut pool).unwrap();
                let n = b.len().min(left);
                let last: &mut InlineAndBody = out.last_mut().unwrap();
                last.1.extend_from_slice(&b[..n]);
                rx.consume(n);
                left -= n;
            }
            while left == 0 {
                if at % 2 == 0
                    && let Some((_, inline)) = rx.next_bare()
                {
                    out.push((inline.as_slice().to_vec(), Vec::new()));
                    continue;
                }
                match rx.next(None, &mut pool).unwrap() {
                    Item::Nothing => break,
                    Item::Goodbye => bye = true,
                    Item::Frame { inline, body_len, .. } => {
                        out.push((inline.as_slice().to_vec(), Vec::new()));
                        left = body_len;
                        if left > 0 {
                            if let Some((s, came)) = rx.take_ahead() {
                                out.last_mut().unwrap().1.resize(came, 0);
                                assert_eq!(s.copy_to(0, &mut out.last_mut().unwrap().1), came);
                                left -= came;
                                spare = Some(s);
                            }
                            rx.lands(memory.map(|p| p.landing(body_len).unwrap()).as_ref());
                        }
                    }
                }
            }
            rx.release(&mut pool);
            if left > 0 && !rx.plain.is_empty() {
                continue;
            }
            if at == stream.len() {
                return (out, bye);
            }
            if left > 0 && memory.is_some() {
                // Straight to the landing.
                let n = left.min(stream.len() - at).min(*steps.next().unwrap());
                out.last_mut().unwrap().1.extend_from_slice(&stream[at..at + n]);
                (at, left) = (at + n, left - n);
                continue;
            }
            let expected = if left == 0 { rx.expected() } else { 0 };
            if let Some(mut s) = spare.take_if(|_| expected > 0) {
                let n = (HEAD_MAX + expected).min(stream.len() - at).min(*steps.next().unwrap());
                let (head, body) = stream[at..at + n].split_at(n.min(HEAD_MAX));
                rx.head(&mut pool)[..head.len()].copy_from_slice(head);
                s.copy_from(0, body);
                spare = rx.received_ahead(n, s, &mut pool);
                at += n;
                continue;
            }
            let space = rx.space(left > 0, &mut pool);
            assert!(!space.is_empty());
            let n = space.len().min(stream.len() - at).min(*steps.next().unwrap());
            space[..n].copy_from_slice(&stream[at..at + n]);
            rx.received(n);
            at += n;
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec((0usize..=40, 0usize..30_000), 0..12),
            steps in prop::collection::vec(1usize..70_000, 1..8),
        ) {
            let (mut stream, mut want) = (Vec::new(), Vec::new());
            for (i, (inline, body)) in frames.into_iter().enumerate() {
                let inline = Inline::new(&vec![i as u8; inline]).unwrap();
                let body: Vec<u8> = (0..body).map(|b| (b * 7 + i) as u8).collect();
                let (head, n) = wire::frame_head(&[i as u8; 16], &inline, body.len());
                stream.extend_from_slice(&head[..n]);
                stream.extend_from_slice(&body);
                want.push((inline.as_slice().to_vec(), body));
            }
            stream.extend_from_slice(&wire::goodbye());
            prop_assert_eq!(run(&stream, &steps, None), (want.clone(), true));
            let memory = Pool::new(Default::default());
            prop_assert_eq!(run(&stream, &steps, Some(&memory)), (want, true));
            prop_assert_eq!(memory.stats().in_use, 0);
        }
    }
}
