//! Where arriving bytes go: a [`Landing`] is the exclusive right to fill one stretch of memory; an [`Assembly`] cuts a
//! [`Room`] into pieces that arrive in any order, over any rail, at most once each.

use super::block::BlockRef;
use super::buffer::{Buffer, Slice, WindowMem};
use super::pool::Shared;
use super::region::{Access, Region};
use super::room::Room;
use crate::sys;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

/// The right to write a stretch of memory, lent to a transport and handed back by it. Not cloneable.
#[derive(Debug)]
pub struct Landing {
    block: BlockRef,
    start: usize,
    len: usize,
    /// Of a landing made from a buffer: that buffer's length, to give it back whole.
    whole: usize,
    /// Which piece of an [`Assembly`], or what its maker calls it; else 0.
    piece: usize,
    /// Memory of a pool that nobody has asked for by name: any other of the pool would do.
    any: bool,
}

impl Landing {
    /// The whole of a buffer; the buffer itself if it has another owner.
    pub fn whole(b: Buffer) -> Result<Landing, Buffer> {
        let len = b.len();
        Landing::prefix(b, len)
    }

    /// The first `len` bytes of a buffer (all, if it is shorter); the buffer itself if it has another owner.
    #[inline(always)]
    pub fn prefix(mut b: Buffer, len: usize) -> Result<Landing, Buffer> {
        if b.get_mut().is_none() {
            return Err(b);
        }
        let Slice { block, start, len: whole } = b.into_source();
        Ok(Landing { block, start, len: len.min(whole), whole, piece: 0, any: false })
    }

    /// The whole of a block that nobody else has a share in.
    #[inline]
    pub(super) fn fresh(block: BlockRef, len: usize) -> Landing {
        Landing { block, start: 0, len, whole: len, piece: 0, any: true }
    }

    /// A part of a window, for bytes that a peer stores there; `None` outside the window. Two such landings may overlap: the
    /// memory is written through raw pointers only, and torn data is the peers' own race.
    pub fn window(w: &WindowMem, start: usize, len: usize) -> Option<Landing> {
        let s = w.0.part(start, len)?;
        Some(Landing { block: s.block, start: s.start, len, whole: len, piece: 0, any: false })
    }

    /// The buffer back, in its whole length; `None` for a landing that was not made from a buffer.
    #[inline(always)]
    pub fn into_buffer(self) -> Option<Buffer> {
        let ours = self.block.region().access() != Access::PeersWrite && self.whole > 0;
        ours.then(|| Buffer::from_slice(Slice { block: self.block, start: self.start, len: self.whole }))
    }

    /// The same with a number, to know it by among several when it comes back.
    pub fn numbered(self, number: usize) -> Landing {
        Landing { piece: number, ..self }
    }

    /// Its number, 0 if it was given none.
    pub fn number(&self) -> usize {
        self.piece
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `true` for no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte. For transports with `unsafe` of their own (memcpy from a mapping, a work request).
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.block.at(self.start)
    }

    /// The region it lies in, for a transport that registers memory.
    pub fn region(&self) -> &Arc<Region> {
        self.block.region()
    }

    /// Copies `src` to byte `at` on; the number copied (less at the end of the landing).
    #[inline]
    pub fn copy_from(&mut self, at: usize, src: &[u8]) -> usize {
        let n = src.len().min(self.len.saturating_sub(at));
        // SAFETY: at + n <= len, inside the block. The landing is the exclusive right to these bytes (or window memory, to
        // which no reference exists), so `src` cannot overlap and nobody reads them.
        unsafe {
            std::ptr::copy_nonoverlapping(src.as_ptr(), self.block.at(self.start + at.min(self.len)), n)
        };
        n
    }

    /// Reads from a descriptor straight to bytes `at..end`; the number read, 0 at end of stream.
    pub fn read_from(&mut self, fd: impl AsFd, at: usize, end: usize) -> io::Result<usize> {
        let (at, end) = (at.min(self.len), end.min(self.len));
        // SAFETY: at <= end <= len, inside the block, exclusive as above.
        unsafe { sys::read_raw(fd, self.block.at(self.start + at), end.saturating_sub(at)) }
    }

    /// Reads from a descriptor, in one call, first to `head` and then to the first `len` bytes; the number read in all.
    pub fn read_behind(&mut self, fd: impl AsFd, head: &mut [u8], len: usize) -> io::Result<usize> {
        // SAFETY: at most `self.len` bytes from the start, inside the block, exclusive as above.
        unsafe { sys::read_raw_behind(fd, head, self.block.at(self.start), len.min(self.len)) }
    }

    /// `true` if any memory of the pool would do as well: see [`Pool::landing`](super::Pool::landing).
    #[inline]
    pub fn is_any(&self) -> bool {
        self.any
    }

    /// As much memory again as this lies in, if any memory of the pool would do for this and the pool has more: to read ahead into, before it is known
    /// what comes. [`Landing::take_over`] brings it to its place.
    pub fn spare(&self) -> Option<Landing> {
        let pool = self.block.pool().filter(|_| self.any)?;
        let len = self.block.size();
        Some(Landing::fresh(Shared::block(pool, len, Access::PeersRead).ok()?, len))
    }

    /// Makes the first `n` bytes of `spare` the first of this (as many as fit): the two exchange their memory where one is as good as the other,
    /// else the bytes are copied. What `spare` holds then is unspecified.
    pub fn take_over(&mut self, spare: &mut Landing, n: usize) {
        let n = n.min(self.len).min(spare.len);
        let one_pool = self.block.pool().zip(spare.block.pool()).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        if self.any && spare.any && one_pool && spare.block.size() >= self.whole {
            std::mem::swap(&mut self.block, &mut spare.block);
            spare.whole = spare.block.size();
            spare.len = spare.whole;
            return;
        }
        // SAFETY: n bytes lie inside both; each landing is the exclusive right to its own, so they do not overlap (window memory is
        // never lent twice as `spare`, which is a pool's).
        unsafe {
            std::ptr::copy_nonoverlapping(spare.block.at(spare.start), self.block.at(self.start), n);
        }
    }

    /// Copies the bytes from `at` on to `into`; the number copied (less at the end of the landing).
    pub fn copy_to(&self, at: usize, into: &mut [u8]) -> usize {
        let at = at.min(self.len);
        let n = into.len().min(self.len - at);
        // SAFETY: at + n <= len, inside the block; nobody else writes there, and `into` is somebody else's.
        unsafe { std::ptr::copy_nonoverlapping(self.block.at(self.start + at), into.as_mut_ptr(), n) };
        n
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Missing,
    Lent,
    Done,
}

/// A [`Room`] being put together from pieces of `piece_len` bytes (the last may be shorter). Each piece can be lent out once
/// at a time and arrives once: the duplicate filter of large transfers. A piece that lies in one buffer is filled in its place; one
/// that lies across the end of a buffer comes into memory of its own and is copied when it is given back.
#[derive(Debug)]
pub struct Assembly {
    /// The buffers, each in its own length, to give them back whole.
    room: Vec<Slice>,
    /// They were several, and be it several of one.
    many: bool,
    len: usize,
    piece_len: usize,
    pieces: Vec<Piece>,
    missing: u32,
    lent: u32,
}

impl Assembly {
    /// Cuts the first `len` bytes of `room`; the room itself if a part of it has another owner or it is too small.
    pub fn new(room: impl Into<Room>, len: usize, piece_len: usize) -> Result<Assembly, Room> {
        let mut room = room.into();
        let n = len.checked_div(piece_len).and_then(|_| u32::try_from(len.div_ceil(piece_len)).ok());
        let Some(n) = n.filter(|_| len <= room.len() && room.is_only()) else { return Err(room) };
        let many = matches!(room, Room::Many(_));
        let room = match room {
            Room::One(b) => vec![b.into_source()],
            Room::Many(v) => v.into_iter().map(Buffer::into_source).collect(),
        };
        let pieces = vec![Piece::Missing; n as usize];
        Ok(Assembly { room, many, len, piece_len, pieces, missing: n, lent: 0 })
    }

    /// The right to fill piece `i`; `None` if there is no such piece, it is lent, or it has arrived.
    pub fn lend(&mut self, i: usize) -> Option<Landing> {
        let p = self.pieces.get_mut(i)?;
        if *p != Piece::Missing {
            return None;
        }
        *p = Piece::Lent;
        self.lent += 1;
        let len = self.piece_len.min(self.len - i * self.piece_len);
        let first = self.parts(i, len).next()?;
        if first.len == len {
            return Some(first);
        }
        let apart = Landing::whole(Buffer::adopt(vec![0; len])).expect("a new buffer has one owner");
        Some(apart.numbered(i))
    }

    /// The stretches of the buffers that piece `i`, of `len` bytes, lies in.
    fn parts(&self, i: usize, mut len: usize) -> impl Iterator<Item = Landing> {
        let mut at = i * self.piece_len;
        self.room.iter().filter_map(move |s| {
            let n = len.min(s.len.saturating_sub(at));
            let start = s.start + at;
            at = at.saturating_sub(s.len);
            len -= n;
            (n > 0).then(|| Landing { block: s.block.clone(), start, len: n, whole: 0, piece: i, any: false })
        })
    }

    /// Takes a lent piece back: filled, or not (then it can be lent again).
    pub fn give_back(&mut self, l: Landing, filled: bool) {
        debug_assert!(l.whole > 0 || self.room.iter().any(|s| l.block.same(&s.block)));
        let i = l.piece;
        let Some(p) = self.pieces.get_mut(i).filter(|p| **p == Piece::Lent) else { return };
        *p = if filled { Piece::Done } else { Piece::Missing };
        self.lent -= 1;
        self.missing -= u32::from(filled);
        if filled && let Some(apart) = l.into_buffer() {
            let mut at = 0;
            for mut part in self.parts(i, apart.len()) {
                at += part.copy_from(0, &apart[at..]);
            }
        }
    }

    /// Pieces in all.
    pub fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Pieces that have yet to arrive.
    pub fn missing(&self) -> u32 {
        self.missing
    }

    /// `true` when every piece has arrived.
    pub fn is_whole(&self) -> bool {
        self.missing == 0
    }

    /// `true` while a piece is lent out: the memory is not ours alone.
    pub fn is_lent(&self) -> bool {
        self.lent > 0
    }

    /// The room as it was given; `Err(self)` while a piece is lent out. Whether it is whole, ask before.
    pub fn into_room(mut self) -> Result<Room, Assembly> {
        if self.lent > 0 {
            return Err(self);
        }
        match self.room.pop() {
            Some(one) if !self.many => Ok(Room::One(Buffer::from_slice(one))),
            last => Ok(Room::Many(self.room.into_iter().chain(last).map(Buffer::from_slice).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Pool;

    #[test]
    fn a_shared_buffer_cannot_become_a_landing() {
        let b = Buffer::adopt(vec![0; 8]);
        let c = b.clone();
        assert!(Landing::whole(b).is_err());
        let mut l = Landing::whole(c).unwrap();
        assert_eq!(l.copy_from(6, &[7, 7, 7]), 2);
        assert_eq!(&l.into_buffer().unwrap()[..], [0, 0, 0, 0, 0, 0, 7, 7]);
    }

    #[test]
    fn pieces_arrive_once_in_any_order() {
        let pool = Pool::new(Default::default());
        let mut a = Assembly::new(pool.alloc(10).unwrap(), 10, 4).unwrap();
        let mut last = a.lend(2).unwrap();
        assert_eq!(last.len(), 2);
        assert!(a.lend(2).is_none() && a.lend(3).is_none());
        last.copy_from(0, &[3, 3]);
        a.give_back(last, true);
        assert!(a.lend(2).is_none());
        let l = a.lend(0).unwrap();
        a.give_back(l, false);
        let mut a = a
            .into_room()
            .map(|_| ())
            .map_or_else(|a| a, |()| Assembly::new(pool.alloc(10).unwrap(), 10, 4).unwrap());
        for i in [1, 0, 2] {
            let mut l = a.lend(i).unwrap();
            let fill = vec![i as u8; l.len()];
            l.copy_from(0, &fill);
            assert!(!a.is_whole() && a.is_lent());
            a.give_back(l, true);
        }
        assert!(a.is_whole());
        let Ok(Room::One(b)) = a.into_room() else { panic!("one buffer was given") };
        assert_eq!(&b[..], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn a_lent_piece_keeps_the_buffer_back() {
        let mut a = Assembly::new(Buffer::adopt(vec![0; 4]), 4, 4).unwrap();
        let l = a.lend(0).unwrap();
        let mut a = a.into_room().unwrap_err();
        a.give_back(l, true);
        assert!(a.into_room().is_ok());
    }

    #[test]
    fn pieces_find_their_place_in_buffers_of_any_length() {
        let pool = Pool::new(Default::default());
        let bytes: Vec<u8> = (0..40).collect();
        for lens in [&[40][..], &[1, 1, 1, 40], &[8, 16, 16], &[7, 0, 9, 1, 30], &[0, 39, 1, 0, 5], &[3; 14]]
        {
            for piece_len in [1, 7, 8, 40, 64] {
                let mut room: Vec<Buffer> = lens.iter().map(|n| pool.alloc(*n).unwrap()).collect();
                room.iter_mut().for_each(|b| b.get_mut().unwrap().fill(0xee));
                let mut a = Assembly::new(room, 40, piece_len).unwrap();
                for i in (0..a.pieces()).rev() {
                    // The first time it breaks on the way, half filled.
                    let mut l = a.lend(i).unwrap();
                    l.copy_from(0, &[0xdd; 32][..l.len() / 2]);
                    a.give_back(l, false);
                    let mut l = a.lend(i).unwrap();
                    assert_eq!(l.copy_from(0, &bytes[i * piece_len..]), l.len());
                    a.give_back(l, true);
                }
                let Ok(Room::Many(room)) = a.into_room() else { panic!("several were given") };
                assert_eq!(room.iter().map(Buffer::len).collect::<Vec<_>>(), lens);
                let all: Vec<u8> = room.iter().flat_map(|b| b.iter().copied()).collect();
                assert_eq!(all[..40], bytes, "{lens:?} in pieces of {piece_len}");
                assert!(all[40..].iter().all(|x| *x == 0xee), "beyond the message");
            }
        }
        let few = vec![pool.alloc(20).unwrap(), pool.alloc(19).unwrap()];
        assert!(Assembly::new(few, 40, 8).is_err());
        let shared = pool.alloc(20).unwrap();
        let other = shared.clone();
        assert!(Assembly::new(vec![pool.alloc(20).unwrap(), shared], 40, 8).is_err());
        drop(other);
    }

    #[test]
    fn what_was_read_ahead_comes_to_its_place() {
        let (pool, other) = (Pool::new(Default::default()), Pool::new(Default::default()));
        let ahead = || {
            let mut spare = pool.landing(600).unwrap().spare().unwrap();
            spare.copy_from(0, b"came early");
            spare
        };
        let mut spare = ahead();
        assert_eq!(spare.len(), 1024, "the whole of a block");
        // Any memory of the pool would do: nothing is copied, and what was to be filled is the next to be read ahead into.
        let mut l = pool.landing(600).unwrap();
        let (here, there) = (l.as_mut_ptr(), spare.as_mut_ptr());
        l.take_over(&mut spare, 10);
        assert_eq!((l.as_mut_ptr(), spare.as_mut_ptr(), l.len(), spare.len()), (there, here, 600, 1024));
        assert_eq!(&l.into_buffer().unwrap()[..10], b"came early");
        // Memory that somebody named stays where it is, and so does that of another pool; a longer one does not get a short one.
        let window = pool.alloc_window(600).unwrap();
        let named = Landing::whole(pool.alloc(600).unwrap()).unwrap();
        let (foreign, long) = (other.landing(600).unwrap(), pool.landing(1025).unwrap());
        for mut l in [named, Landing::window(&window, 0, 600).unwrap(), foreign, long] {
            let (mut spare, here) = (ahead(), l.as_mut_ptr());
            l.take_over(&mut spare, 10);
            let mut bytes = [0; 12];
            assert_eq!((l.as_mut_ptr(), l.copy_to(0, &mut bytes)), (here, 12));
            assert_eq!(&bytes[..10], b"came early");
        }
        let mut short = Landing::prefix(pool.alloc(600).unwrap(), 4).unwrap();
        short.take_over(&mut ahead(), 10);
        let mut bytes = [0; 12];
        assert_eq!((short.copy_to(0, &mut bytes), &bytes[..4]), (4, &b"came"[..]));
        assert!(short.spare().is_none() && Landing::window(&window, 0, 600).unwrap().spare().is_none());
        drop((spare, short));
        assert_eq!(pool.stats().in_use, 1024, "the window alone is left");
    }

    #[test]
    fn landings_in_a_window_stay_inside() {
        let w = Pool::new(Default::default()).alloc_window(16).unwrap();
        assert!(Landing::window(&w, 10, 7).is_none() && Landing::window(&w, usize::MAX, 2).is_none());
        let mut l = Landing::window(&w, 10, 6).unwrap();
        assert_eq!(l.copy_from(0, b"abcdefgh"), 6);
        let mut out = [0; 6];
        w.read(10, &mut out);
        assert_eq!(&out, b"abcdef");
    }
}
