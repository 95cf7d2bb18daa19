//! What a handler is given beside the request itself: who asks, for how long, and the client's memory.

use super::super::error::{Error, Fate, Kind, Result};
use kfab::{Buffer, Endpoint, Op, Peer, Rights, WindowKey};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bulk data moves in pieces of this many bytes.
pub const PIECE: usize = 1 << 20;
/// Pieces under way at a time for one call.
pub const DEPTH: usize = 4;

/// A call, as its handler sees it.
#[derive(Debug)]
pub struct Request {
    pub(crate) client: u64,
    pub(crate) high: bool,
    pub(crate) deadline: Option<Instant>,
    pub(crate) job: Option<Box<str>>,
    pub(crate) bulk: Option<Box<Bulk>>,
}

impl Request {
    /// The client's number, the same for all its calls.
    pub fn client(&self) -> u64 {
        self.client
    }

    /// The job that the call belongs to, if the client said so.
    pub fn job(&self) -> Option<&str> {
        self.job.as_deref()
    }

    /// `true` for a call of the high-priority class.
    pub fn is_high(&self) -> bool {
        self.high
    }

    /// How long the client will wait from now; `None`: it did not say.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|d| d.saturating_duration_since(Instant::now()))
    }

    /// The memory that the client has opened for this call; `Bulk` if it has opened none.
    pub fn bulk(&self) -> Result<&Bulk> {
        self.bulk
            .as_deref()
            .ok_or_else(|| Error::new(Kind::Bulk, "the call names no window").with_fate(Fate::Executed))
    }
}

/// What moving bulk data took, for the statistics.
#[derive(Debug, Default)]
pub(crate) struct BulkMeter {
    pub(crate) ns: Cell<u64>,
    pub(crate) bytes: Cell<u64>,
}

/// The client's windows: those that may be read make one run of bytes to get, those that may be written one to put to. The server
/// moves the data, in pieces of [`PIECE`] bytes, [`DEPTH`] at a time.
#[derive(Debug)]
pub struct Bulk {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) peer: Peer,
    pub(crate) windows: Vec<WindowKey>,
    pub(crate) meter: Rc<BulkMeter>,
}

impl Bulk {
    /// Bytes that can be got.
    pub fn readable(&self) -> u64 {
        self.with(Rights::READ).map(WindowKey::len).fold(0, u64::saturating_add)
    }

    /// Bytes that can be put.
    pub fn writable(&self) -> u64 {
        self.with(Rights::WRITE).map(WindowKey::len).fold(0, u64::saturating_add)
    }

    /// Gets `len` bytes of the client from byte `at` on: the data of a write. One buffer for each piece, in order.
    pub async fn get(&self, at: u64, len: usize) -> Result<Vec<Buffer>> {
        let began = Instant::now();
        let mut got = Vec::with_capacity(len.div_ceil(PIECE));
        let mut under_way: VecDeque<Op<Buffer>> = VecDeque::with_capacity(DEPTH);
        for piece in self.pieces(Rights::READ, at, len)? {
            if under_way.len() == DEPTH
                && let Some(op) = under_way.pop_front()
            {
                got.push(op.await.map_err(moved)?);
            }
            let into = self.endpoint.buffer(piece.len).map_err(moved)?;
            under_way.push_back(self.peer.read(piece.key, piece.at, into));
        }
        for op in under_way {
            got.push(op.await.map_err(moved)?);
        }
        self.count(began, len);
        Ok(got)
    }

    /// Puts buffers, one after the other, into the client's memory from byte `at` on: the data of a read. The bytes are there
    /// when this returns.
    pub async fn put(&self, at: u64, buffers: &[Buffer]) -> Result<()> {
        let began = Instant::now();
        let mut under_way: VecDeque<Op<()>> = VecDeque::with_capacity(DEPTH);
        let mut to = at;
        for buffer in buffers {
            let mut from = 0;
            for piece in self.pieces(Rights::WRITE, to, buffer.len())? {
                if under_way.len() == DEPTH
                    && let Some(op) = under_way.pop_front()
                {
                    op.await.map_err(moved)?;
                }
                let bytes = buffer.slice(from..from + piece.len);
                under_way.push_back(self.peer.write(piece.key, piece.at, bytes));
                from += piece.len;
            }
            to += buffer.len() as u64;
        }
        for op in under_way {
            op.await.map_err(moved)?;
        }
        self.count(began, (to - at) as usize);
        Ok(())
    }

    /// A buffer that [`Bulk::put`] sends without a copy.
    pub fn buffer(&self, len: usize) -> Result<Buffer> {
        self.endpoint.buffer(len).map_err(moved)
    }

    fn with(&self, right: Rights) -> impl Iterator<Item = &WindowKey> {
        self.windows.iter().filter(move |k| k.rights().contains(right))
    }

    /// The pieces that bytes `at..at + len` of the windows with this right fall into.
    fn pieces(&self, right: Rights, at: u64, len: usize) -> Result<Vec<Piece<'_>>> {
        pieces(self.with(right), at, len).ok_or_else(|| {
            let what = format!("{len} bytes from {at} on are more than the client's windows have");
            Error::new(Kind::Bulk, what).with_fate(Fate::Executed)
        })
    }

    fn count(&self, began: Instant, len: usize) {
        self.meter.ns.set(self.meter.ns.get() + began.elapsed().as_nanos() as u64);
        self.meter.bytes.set(self.meter.bytes.get() + len as u64);
    }
}

struct Piece<'a> {
    key: &'a WindowKey,
    at: u64,
    len: usize,
}

fn pieces<'a>(keys: impl Iterator<Item = &'a WindowKey>, mut at: u64, len: usize) -> Option<Vec<Piece<'a>>> {
    let mut left = len as u64;
    let mut pieces = Vec::new();
    for key in keys {
        if at >= key.len() {
            at -= key.len();
            continue;
        }
        while left > 0 && at < key.len() {
            let n = left.min(key.len() - at).min(PIECE as u64);
            pieces.push(Piece { key, at, len: n as usize });
            (at, left) = (at + n, left - n);
        }
        at = 0;
    }
    (left == 0).then_some(pieces)
}

fn moved(e: kfab::Error) -> Error {
    Error::fabric(Kind::Bulk, "moving bulk data", e).with_fate(Fate::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key of `len` bytes.
    fn key(len: u64) -> WindowKey {
        let mut b = [0; 34];
        b[24..32].copy_from_slice(&len.to_le_bytes());
        b[32] = Rights::READ.bits();
        WindowKey::from_bytes(&b).unwrap()
    }

    #[test]
    fn pieces_cover_the_range_and_nothing_else() {
        let keys = [key(10), key(3 << 20), key(0), key(5)];
        let total: u64 = keys.iter().map(WindowKey::len).sum();
        for (at, len) in [(0, 10), (9, 2), (0, total as usize), (10 + (3 << 20), 5), (3, 0), (total, 0)] {
            let all = pieces(keys.iter(), at, len).unwrap();
            assert_eq!(all.iter().map(|p| p.len).sum::<usize>(), len);
            assert!(all.iter().all(|p| p.len <= PIECE && p.at + p.len as u64 <= p.key.len()));
            assert!(all.len() <= 6);
        }
        assert!(pieces(keys.iter(), 1, total as usize).is_none());
        assert!(pieces(keys.iter(), u64::MAX, 1).is_none());
    }
}
