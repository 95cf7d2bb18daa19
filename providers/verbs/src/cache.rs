//! Registrations of the program's memory, made when first needed and kept: by extents of a region, bounded in number, gone with
//! their region. Called by `flow`, `rma` and `memory`.
//!
//! An extent is an aligned piece of [`EXTENT`] bytes (or the range asked for, rounded to that), so that a slab is registered
//! once, bit by bit, and not pinned as a whole. An extent of which something was promised to a peer ([`Cache::open`]) is readable by
//! peers until it goes, all of it: a transfer's exposure then costs a look-up. What was only sent from, written from or read into is not.
//! What is kept for nobody's use now makes way where something else cannot be registered.

use crate::room::ran_out;
use crate::sys::{Mr, Pd, Reach};
use kfab_core::mem::Region;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

/// Bytes of a piece of memory that is registered at once.
pub(crate) const EXTENT: usize = 4 << 20;
/// Registrations kept ...
pub(crate) const ENTRIES_MAX: usize = 512;
/// ... and at most one in so many of all that the card has.
pub(crate) const SHARE: usize = 4;
const PAGE: usize = 4096;

struct Entry {
    region: Weak<Region>,
    mr: Arc<Mr>,
    used: u64,
}

/// The registrations of one protection domain.
pub(crate) struct Cache {
    pd: Arc<Pd>,
    /// By region, range, and whether peers may read it.
    entries: HashMap<(u64, usize, usize, bool), Entry>,
    entries_max: usize,
    clock: u64,
}

impl Cache {
    pub(crate) fn new(pd: &Arc<Pd>) -> Cache {
        let entries_max = ENTRIES_MAX.min(pd.room().max() / SHARE);
        Cache { pd: pd.clone(), entries: HashMap::new(), entries_max, clock: 0 }
    }

    /// A registration for our own work that covers `len` bytes at `offset` of the region.
    pub(crate) fn get(&mut self, region: &Arc<Region>, offset: usize, len: usize) -> io::Result<Arc<Mr>> {
        self.find(region, offset, len, Reach::Nobody)
    }

    /// One that peers may read, too.
    pub(crate) fn open(&mut self, region: &Arc<Region>, offset: usize, len: usize) -> io::Result<Arc<Mr>> {
        self.find(region, offset, len, Reach::Read)
    }

    fn find(&mut self, region: &Arc<Region>, offset: usize, len: usize, reach: Reach) -> io::Result<Arc<Mr>> {
        let Range { start, end } = extent(offset, len, region.len(), self.pd.room().max_bytes());
        self.clock += 1;
        let key = (region.id(), start, end, reach != Reach::Nobody);
        if let Some(e) = self.entries.get_mut(&key) {
            e.used = self.clock;
            return Ok(e.mr.clone());
        }
        self.sweep();
        while self.entries.len() >= self.entries_max && self.drop_oldest(|_| true) {}
        let pd = self.pd.clone();
        let mr = Arc::new(self.spared_for(|| Mr::new(&pd, region, start, end - start, reach))?);
        self.entries.insert(key, Entry { region: Arc::downgrade(region), mr: mr.clone(), used: self.clock });
        Ok(mr)
    }

    /// Registers something; where the card or the system has no more, registrations that are kept and not in use make way, the
    /// longest unused first.
    pub(crate) fn spared_for<T>(&mut self, mut register: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match register() {
                Err(e) if ran_out(&e) && self.drop_oldest(|e| Arc::strong_count(&e.mr) == 1) => {}
                done => return done,
            }
        }
    }

    /// Ends the registrations of regions that are gone.
    pub(crate) fn sweep(&mut self) {
        self.entries.retain(|_, e| e.region.strong_count() > 0 || Arc::strong_count(&e.mr) > 1);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Of those that may go the one not used for longest does, if there is one; work under way keeps its own share.
    fn drop_oldest(&mut self, may: impl Fn(&Entry) -> bool) -> bool {
        let all = self.entries.iter().filter(|(_, e)| may(e));
        let oldest = all.min_by_key(|(_, e)| e.used).map(|(key, _)| *key);
        oldest.is_some_and(|key| self.entries.remove(&key).is_some())
    }
}

/// What to register for `len` bytes at `offset` of a region: whole extents, or where the card takes less at once no more than the pages.
fn extent(offset: usize, len: usize, region_len: usize, max_bytes: usize) -> Range<usize> {
    let end = offset + len.max(1);
    let to = |size: usize| offset / size * size..end.next_multiple_of(size).min(region_len);
    let whole = to(EXTENT);
    if whole.len() <= max_bytes { whole } else { to(PAGE) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_whole_where_the_card_takes_them() {
        const MIB: usize = 1 << 20;
        assert_eq!(extent(5 * MIB, 100, 64 * MIB, usize::MAX), 4 * MIB..8 * MIB);
        assert_eq!(extent(7 * MIB, 2 * MIB, 64 * MIB, usize::MAX), 4 * MIB..12 * MIB);
        assert_eq!(extent(60 * MIB, 1, 61 * MIB, usize::MAX), 60 * MIB..61 * MIB);
        assert_eq!(extent(4 * MIB, 0, 64 * MIB, 4 * MIB), 4 * MIB..8 * MIB);
        assert_eq!(extent(7 * MIB, 2 * MIB, 64 * MIB, 4 * MIB), 7 * MIB..9 * MIB);
        assert_eq!(extent(5 * MIB + 1, 5000, 64 * MIB, 2 * MIB), 5 * MIB..5 * MIB + 2 * PAGE);
    }
}
