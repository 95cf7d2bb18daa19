//! From frames to bytes: a [`Sender`] queues what could not be written yet, coalescing small frames in one buffer and keeping
//! shares of large bodies, and writes it with as few system calls as it can. Called by `link`.
//!
//! Bound: the port stops accepting at [`QUEUE_MAX`] queued bytes, so a queue holds at most that plus one frame.

use crate::stage::{Stage, StagePool};
use crate::wire::{self, HEAD_MAX, SEAL_PLAIN, SEAL_PREFIX};
use kfab_core::auth::Session;
use kfab_core::mem::Slice;
use kfab_core::spi::{Body, Frame};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

/// Bytes queued at which a connection accepts no more frames.
pub(crate) const QUEUE_MAX: usize = 1 << 20;
/// Bytes queued at which coalescing stops and the batch leaves.
pub(crate) const BATCH: usize = 64 << 10;
/// Bodies up to this size are copied beside their head: cheaper than a vector entry and a share.
const COPY_MAX: usize = 4 << 10;
/// Borrowed bodies of this size are offered to the socket before what it leaves is copied.
const DIRECT_MIN: usize = 8 << 10;
/// Vector entries per system call.
const VECTOR: usize = 16;

enum Segment {
    Bytes(Stage),
    /// A head alone, before a share.
    Head {
        bytes: [u8; HEAD_MAX],
        len: usize,
        at: usize,
    },
    Share {
        slice: Slice,
        at: usize,
    },
}

impl Segment {
    /// The bytes not yet sent.
    #[inline]
    fn rest(&self) -> &[u8] {
        match self {
            Segment::Bytes(s) => s.filled(),
            Segment::Head { bytes, len, at } => &bytes[*at..*len],
            Segment::Share { slice, at } => slice.bytes().and_then(|b| b.get(*at..)).unwrap_or(&[]),
        }
    }

    /// Drops the first `n` bytes.
    fn consume(&mut self, n: usize, pool: &mut StagePool) {
        match self {
            Segment::Bytes(s) => {
                s.consume(n);
                s.release(pool);
            }
            Segment::Head { at, .. } | Segment::Share { at, .. } => *at += n,
        }
    }
}

/// The sending half of a connection.
#[derive(Default)]
pub(crate) struct Sender {
    queue: VecDeque<Segment>,
    /// Bytes in `queue`.
    ready: usize,
    /// Plain bytes that wait for a seal.
    plain: Stage,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// Nothing is queued any more.
    All,
    /// The socket takes no more for now.
    Blocked,
}

impl Sender {
    /// Bytes not yet given to the socket.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.ready + self.plain.len()
    }

    /// `true` for none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Queues a frame.
    pub(crate) fn frame(&mut self, f: &Frame<'_>, session: Option<&mut Session>, pool: &mut StagePool) {
        let (head, n) = wire::frame_head(&f.header, &f.inline, f.body.len());
        let mut to = Queue { tx: self, session, pool };
        match f.body {
            Body::Owned([first, ..]) if first.len() > COPY_MAX => to.head(head, n),
            _ => to.copy(&head[..n]),
        }
        match f.body {
            Body::Empty => {}
            Body::Borrowed(b) => to.copy(b),
            Body::Owned(slices) => slices.iter().for_each(|s| to.share(s)),
        }
    }

    /// `true` if the body of `f` is worth offering to the socket before copying it: see [`Sender::frame_direct`].
    #[inline]
    pub(crate) fn is_direct(f: &Frame<'_>, sealed: bool) -> bool {
        !sealed && !f.more && matches!(f.body, Body::Borrowed(b) if b.len() >= DIRECT_MIN)
    }

    /// Queues the head of a frame, writes the queue and the borrowed body, and copies what the socket left.
    pub(crate) fn frame_direct(
        &mut self,
        f: &Frame<'_>,
        fd: BorrowedFd<'_>,
        pool: &mut StagePool,
    ) -> Result<Wrote, Errno> {
        let Body::Borrowed(body) = f.body else { return Ok(Wrote::All) };
        let (head, n) = wire::frame_head(&f.header, &f.inline, body.len());
        Queue { tx: self, session: None, pool }.copy(&head[..n]);
        let sent = self.write_with(fd, body, pool);
        let at = *sent.as_ref().unwrap_or(&0);
        Queue { tx: self, session: None, pool }.copy(&body[at..]);
        sent.map(|_| if self.is_empty() { Wrote::All } else { Wrote::Blocked })
    }

    /// `true` if `f` can leave as it is, past the queue: see [`Sender::frame_now`].
    #[inline]
    pub(crate) fn is_quick(&self, f: &Frame<'_>) -> bool {
        self.is_empty() && !f.more && matches!(f.body, Body::Empty)
    }

    /// Sends a frame without a body while nothing is queued, and queues what the socket left. Not for sealed connections.
    #[inline]
    pub(crate) fn frame_now(
        &mut self,
        f: &Frame<'_>,
        fd: BorrowedFd<'_>,
        pool: &mut StagePool,
    ) -> Result<Wrote, Errno> {
        let (head, n) = wire::frame_head(&f.header, &f.inline, 0);
        let sent = loop {
            match send(fd, &head[..n], SendFlags::NOSIGNAL) {
                Ok(sent) if sent == n => return Ok(Wrote::All),
                Ok(sent) => break sent,
                Err(Errno::AGAIN) => break 0,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        };
        Queue { tx: self, session: None, pool }.copy(&head[sent..n]);
        Ok(Wrote::Blocked)
    }

    /// Queues bytes as they are, before any record: the greeting.
    pub(crate) fn raw(&mut self, bytes: &[u8], pool: &mut StagePool) {
        Queue { tx: self, session: None, pool }.copy(bytes);
    }

    /// Queues the goodbye.
    pub(crate) fn goodbye(&mut self, session: Option<&mut Session>, pool: &mut StagePool) {
        Queue { tx: self, session, pool }.copy(&wire::goodbye());
    }

    /// Writes what is queued.
    #[inline]
    pub(crate) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        session: Option<&mut Session>,
        pool: &mut StagePool,
    ) -> Result<Wrote, Errno> {
        if let Some(session) = session {
            seal(self, session, pool);
        }
        self.write_with(fd, &[], pool)?;
        Ok(if self.is_empty() { Wrote::All } else { Wrote::Blocked })
    }

    /// Drops everything queued.
    pub(crate) fn clear(&mut self, pool: &mut StagePool) {
        self.plain.consume(usize::MAX / 2);
        self.plain.release(pool);
        self.taken(self.ready, pool);
    }

    /// Writes the queue, then `extra`; how much of `extra` was written. Ends early when the socket takes no more.
    fn write_with(&mut self, fd: BorrowedFd<'_>, extra: &[u8], pool: &mut StagePool) -> Result<usize, Errno> {
        let mut extra_sent = 0;
        while self.ready > 0 || extra_sent < extra.len() {
            let (asked, sent) = match self.write_once(fd, &extra[extra_sent..]) {
                Ok(x) => x,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e),
            };
            let from_queue = sent.min(self.ready);
            self.taken(from_queue, pool);
            extra_sent += sent - from_queue;
            if sent < asked {
                break;
            }
        }
        Ok(extra_sent)
    }

    /// One system call; the bytes offered and the bytes taken.
    #[inline]
    fn write_once(&self, fd: BorrowedFd<'_>, extra: &[u8]) -> Result<(usize, usize), Errno> {
        if let (1, true, Some(Segment::Bytes(s))) = (self.queue.len(), extra.is_empty(), self.queue.front()) {
            return Ok((s.len(), send(fd, s.filled(), SendFlags::NOSIGNAL)?));
        }
        let mut iov: [IoSlice<'_>; VECTOR] = std::array::from_fn(|_| IoSlice::new(&[]));
        let (mut n, mut asked) = (0, 0);
        for seg in self.queue.iter().take(VECTOR) {
            let bytes = seg.rest();
            iov[n] = IoSlice::new(bytes);
            (n, asked) = (n + 1, asked + bytes.len());
        }
        if n < VECTOR && n == self.queue.len() && !extra.is_empty() {
            iov[n] = IoSlice::new(extra);
            (n, asked) = (n + 1, asked + extra.len());
        }
        let sent = sendmsg(fd, &iov[..n], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)?;
        Ok((asked, sent))
    }

    /// The socket took the first `n` bytes of the queue.
    fn taken(&mut self, mut n: usize, pool: &mut StagePool) {
        self.ready -= n;
        while let Some(seg) = self.queue.front_mut() {
            let k = seg.rest().len();
            if k > n {
                return seg.consume(n, pool);
            }
            seg.consume(k, pool);
            n -= k;
            self.queue.pop_front();
        }
    }

    /// The last buffer of the queue, with room.
    fn tail(&mut self) -> &mut Stage {
        if !matches!(self.queue.back(), Some(Segment::Bytes(s)) if s.room() > 0) {
            self.queue.push_back(Segment::Bytes(Stage::default()));
        }
        match self.queue.back_mut() {
            Some(Segment::Bytes(s)) => s,
            _ => unreachable!("just pushed"),
        }
    }
}

/// A sender with what it takes to add to it.
struct Queue<'a> {
    tx: &'a mut Sender,
    session: Option<&'a mut Session>,
    pool: &'a mut StagePool,
}

impl Queue<'_> {
    #[inline]
    fn copy(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.put(bytes.len(), |room| {
                room.copy_from_slice(&bytes[..room.len()]);
                room.len()
            });
            bytes = &bytes[n..];
        }
    }

    /// Window memory is reached by copies only.
    fn copy_window(&mut self, s: &Slice) {
        let mut at = 0;
        while at < s.len() {
            at += self.put(s.len() - at, |room| s.copy_to(at, room));
        }
    }

    /// Adds what `write` puts into a stretch of at most `most` bytes; how much that was.
    #[inline]
    fn put(&mut self, most: usize, write: impl FnOnce(&mut [u8]) -> usize) -> usize {
        match &mut self.session {
            None => {
                let n = self.tx.tail().put(most, self.pool, write);
                self.tx.ready += n;
                n
            }
            Some(session) => {
                if self.tx.plain.len() >= SEAL_PLAIN {
                    seal(self.tx, session, self.pool);
                }
                let most = most.min(SEAL_PLAIN - self.tx.plain.len());
                self.tx.plain.put(most, self.pool, write)
            }
        }
    }

    /// The head of a frame whose body is likely to be shared: no buffer for 64 bytes.
    fn head(&mut self, bytes: [u8; HEAD_MAX], len: usize) {
        let roomy = matches!(self.tx.queue.back(), Some(Segment::Bytes(s)) if s.room() >= len);
        if self.session.is_some() || roomy {
            return self.copy(&bytes[..len]);
        }
        self.tx.ready += len;
        self.tx.queue.push_back(Segment::Head { bytes, len, at: 0 });
    }

    fn share(&mut self, s: &Slice) {
        match s.bytes() {
            Some(b) if self.session.is_some() || b.len() <= COPY_MAX => self.copy(b),
            Some(b) => {
                self.tx.ready += b.len();
                self.tx.queue.push_back(Segment::Share { slice: s.clone(), at: 0 });
            }
            None => self.copy_window(s),
        }
    }
}

/// Seals the plain bytes into one piece behind the queue.
fn seal(tx: &mut Sender, session: &mut Session, pool: &mut StagePool) {
    if tx.plain.is_empty() {
        return;
    }
    let mut piece = Stage::default();
    let space = piece.space(pool);
    // Cannot fail: the piece is within the cipher's limit, the space larger. 2^64 pieces would exhaust the nonce.
    let n = session.seal(tx.plain.filled(), &mut space[SEAL_PREFIX..]).unwrap_or(0);
    space[..SEAL_PREFIX].copy_from_slice(&(n as u16).to_le_bytes());
    piece.advance(SEAL_PREFIX + n);
    tx.ready += piece.len();
    tx.queue.push_back(Segment::Bytes(piece));
    tx.plain.consume(usize::MAX / 2);
    tx.plain.release(pool);
}
