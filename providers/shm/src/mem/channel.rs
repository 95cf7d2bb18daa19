//! The segment of a connection: two rings and a page of words, in one memfd made by the side that connects.
//!
//! ```text
//!       0  words of ring 0 (client to server)     384 B
//!     512  words of ring 1 (server to client)     384 B
//!    1024  busy[0]  the slot the client is in     (own cache lines)
//!    1152  busy[1]  the slot the server is in
//!    1280  bye[0]   how the client ended
//!    1408  bye[1]   how the server ended
//!    1536  the shuttle, for both directions      64 B
//!    4096  lines of ring 0, lines of ring 1       512 x 64 B each
//!   69632  data of ring 0, data of ring 1         256 KiB each
//!  593920  end
//! ```

use kfab_core::mem::Landing;
use kfab_core::ring::{Consumer, Hostile, Parts, Producer, Rx, Shape, Shuttle};
use kfab_core::spi::{Body, HEADER_LEN, INLINE_MAX, Inline, Next, Small};
use kfab_core::sys::Mapping;
use std::sync::atomic::{AtomicU32, Ordering};

/// Lines and data of each ring: 32 KiB and 256 KiB. Chosen to fit common L1 and L2 sizes, not yet tuned by measurement.
pub(crate) const SHAPE: Shape = match Shape::new(512, 256 << 10, crate::MAX_BODY) {
    Some(s) => s,
    None => panic!("a ring shape within its limits"),
};
const PAGE: usize = 4096;
/// Bytes of a segment. Pages are taken from the system when first touched: an idle connection holds one or two.
pub(crate) const SEGMENT_BYTES: usize = PAGE + 2 * SHAPE.lines_bytes() + 2 * SHAPE.data_bytes();

const fn words_at(ring: usize) -> usize {
    ring * 512
}
const fn lines_at(ring: usize) -> usize {
    PAGE + ring * SHAPE.lines_bytes()
}
const fn data_at(ring: usize) -> usize {
    PAGE + 2 * SHAPE.lines_bytes() + ring * SHAPE.data_bytes()
}
const fn busy_at(side: usize) -> usize {
    1024 + side * 128
}
const fn bye_at(side: usize) -> usize {
    1280 + side * 128
}

const SHUTTLE_AT: usize = 1536;

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client = 0,
    Server = 1,
}

/// How a side ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// In good order.
    Goodbye = 1,
    /// It found a fault.
    BrokenOff = 2,
}

const OUT_OF_ORDER: Hostile = Hostile("a frame that comes after lines that were never sent");

/// Both rings of a connection, the shuttle and the words beside them.
#[derive(Debug)]
pub(crate) struct Channel {
    tx: Producer,
    rx: Consumer,
    shuttle: Shuttle,
    /// The frame that came by the shuttle and was shown by `peek`.
    shown: Option<Rx>,
    asymmetric: bool,
    side: usize,
    /// Keeps what `tx` and `rx` point to; neither leaves this struct.
    map: Mapping,
}

impl Channel {
    /// Our side of a fresh segment; `None` if the mapping has another size. `asymmetric`: both processes take part in the
    /// heavy barrier.
    pub(crate) fn new(map: Mapping, side: Side, asymmetric: bool) -> Option<Channel> {
        if map.len() != SEGMENT_BYTES {
            return None;
        }
        let side = side as usize;
        // SAFETY: the mapping is SEGMENT_BYTES, page-aligned, readable and writable, and lives as long as `map`, which lives as
        // long as the rings (private, never moved out). The offsets are aligned to 128 and 64, inside, and do not overlap;
        // memfd pages are initialised. Each side makes exactly one producer (ring `side`), one consumer (the other) and its
        // side of the shuttle.
        let (tx, rx, shuttle) = unsafe {
            let at = |n| map.ptr().add(n);
            let parts = |r| Parts::new(at(words_at(r)), at(lines_at(r)), at(data_at(r)), SHAPE);
            let shuttle = Shuttle::new(at(SHUTTLE_AT), side as u32);
            (Producer::new(parts(side)), Consumer::new(parts(1 - side)), shuttle)
        };
        Some(Channel { tx, rx, shuttle, shown: None, asymmetric, side, map })
    }

    #[inline(always)]
    fn word(&self, at: usize) -> &AtomicU32 {
        debug_assert!(at + 4 <= PAGE && at.is_multiple_of(4));
        // SAFETY: `at` is one of the constants above: inside the first page, aligned, initialised, mapped while `self` lives.
        // An atomic may be changed by the other process at any time.
        unsafe { &*self.map.ptr().as_ptr().add(at).cast::<AtomicU32>() }
    }

    /// `true` if both processes take part in the heavy barrier.
    #[inline(always)]
    pub(crate) fn is_asymmetric(&self) -> bool {
        self.asymmetric
    }

    /// See [`Producer::push`].
    #[inline(always)]
    pub(crate) fn push(&mut self, h: &[u8; HEADER_LEN], i: &Inline, b: &Body<'_>) -> Result<bool, Hostile> {
        self.tx.push(h, i, b)
    }

    /// Sends a frame: by the shuttle if it is here and the bytes are few, else by the ring. See [`Producer::push_bytes`].
    #[inline(always)]
    pub(crate) fn push_bytes(&mut self, header: u128, bytes: &[u8]) -> Result<bool, Hostile> {
        if bytes.len() <= INLINE_MAX && self.shuttle.is_here() {
            self.shuttle.send(header, bytes, self.tx.pushed());
            return Ok(true);
        }
        self.tx.push_bytes(header, bytes)
    }

    /// The next frame, if there is one; consumed, if it has no body.
    #[inline(always)]
    pub(crate) fn next_small(&mut self, into: &mut Small) -> Result<Next, Hostile> {
        if self.shown.is_some() {
            return Ok(Next::Poll);
        }
        // The ring first: when its line is seen, so is a shuttle that left before it.
        let ring_empty = self.rx.is_empty();
        if self.shuttle.has_come() {
            if self.shuttle.take(self.rx.consumed(), into)? {
                return Ok(Next::Frame);
            }
            if self.rx.is_empty() {
                return Err(OUT_OF_ORDER);
            }
        } else if ring_empty {
            return Ok(Next::Nothing);
        }
        self.rx.next_small(into)
    }

    /// See [`Producer::take_bell`].
    #[inline(always)]
    pub(crate) fn take_bell(&self) -> bool {
        self.tx.take_bell(self.asymmetric)
    }

    /// See [`Producer::has_room`].
    pub(crate) fn has_room(&mut self) -> Result<bool, Hostile> {
        self.tx.has_room()
    }

    /// See [`Producer::want_room`].
    pub(crate) fn want_room(&self) {
        self.tx.want_room();
    }

    /// The next frame of shuttle and ring, without consuming it. See [`Consumer::peek`].
    #[inline(always)]
    pub(crate) fn peek(&mut self) -> Result<Option<Rx>, Hostile> {
        if self.shown.is_some() {
            return Ok(self.shown);
        }
        // The ring first, as in `next_small`.
        let rx = self.rx.peek()?;
        if self.shuttle.has_come() {
            return self.peek_shuttle();
        }
        Ok(rx)
    }

    fn peek_shuttle(&mut self) -> Result<Option<Rx>, Hostile> {
        let mut small = Small::EMPTY;
        if !self.shuttle.take(self.rx.consumed(), &mut small)? {
            let rx = self.rx.peek()?;
            return if rx.is_some() { Ok(rx) } else { Err(OUT_OF_ORDER) };
        }
        self.shown = Some(Rx { header: small.header_bytes(), inline: small.inline, body_len: 0 });
        Ok(self.shown)
    }

    /// `true` if no frame waits.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.rx.is_empty() && !self.shuttle.has_come() && self.shown.is_none()
    }

    /// Consumes the frame that `peek` showed, one without a body.
    #[inline(always)]
    pub(crate) fn advance(&mut self) {
        if self.shown.take().is_none() {
            self.rx.advance();
        }
    }

    /// See [`Consumer::take`].
    #[inline]
    pub(crate) fn take(&mut self, body_len: usize, landing: Option<&mut Landing>) {
        self.rx.take(body_len, landing);
    }

    /// See [`Consumer::publish`].
    #[inline(always)]
    pub(crate) fn publish(&mut self) -> bool {
        self.rx.publish(self.asymmetric)
    }

    /// See [`Consumer::arm`].
    pub(crate) fn arm(&self) {
        self.rx.arm();
    }

    /// See [`Consumer::disarm`].
    pub(crate) fn disarm(&self) {
        self.rx.disarm();
    }

    /// See [`Consumer::is_armed`].
    pub(crate) fn is_armed(&self) -> bool {
        self.rx.is_armed()
    }

    /// Says that this side works in `slot` of the other side's windows.
    #[inline(always)]
    pub(crate) fn enter(&self, slot: u32) {
        self.word(busy_at(self.side)).store(slot + 1, Ordering::Relaxed);
    }

    /// Says that it does no more. Release: whoever sees this sees what was written there.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.word(busy_at(self.side)).store(0, Ordering::Release);
    }

    /// `true` while the other side says that it works in our `slot`.
    pub(crate) fn peer_is_in(&self, slot: u32) -> bool {
        self.word(busy_at(1 - self.side)).load(Ordering::Acquire) == slot + 1
    }

    /// Says how we end, after all that was pushed. A process that was killed says nothing.
    pub(crate) fn say(&self, farewell: Farewell) {
        self.word(bye_at(self.side)).store(farewell as u32, Ordering::Release);
    }

    /// How the other side said that it ends.
    pub(crate) fn peer_said(&self) -> Option<Farewell> {
        match self.word(bye_at(1 - self.side)).load(Ordering::Acquire) {
            1 => Some(Farewell::Goodbye),
            2 => Some(Farewell::BrokenOff),
            _ => None,
        }
    }

    /// Fills the whole segment with foreign bytes (repeated), as a hostile peer may.
    pub(crate) fn scribble(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        for i in 0..SEGMENT_BYTES {
            // SAFETY: inside the mapping, which is writable; no reference to these bytes exists but atomics, not in use now.
            unsafe { self.map.ptr().as_ptr().add(i).write_volatile(bytes[i % bytes.len()]) };
        }
    }

    /// Changes one byte of the segment.
    pub(crate) fn poke(&mut self, at: usize, xor: u8) {
        // SAFETY: as in `scribble`.
        unsafe {
            let p = self.map.ptr().as_ptr().add(at % SEGMENT_BYTES);
            p.write_volatile(p.read_volatile() ^ xor);
        }
    }
}
