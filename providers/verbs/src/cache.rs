//! Registrations of the program's memory, made when first needed and kept: by extents of a region, bounded in number, gone with
//! their region. Called by `flow` and `rma`.
//!
//! An extent is an aligned piece of [`EXTENT`] bytes (or the range asked for, rounded to that), so that a slab is registered
//! once, bit by bit, and not pinned as a whole. Registrations are readable by peers: a transfer's exposure costs a look-up.

use crate::sys::{Mr, Pd, Reach};
use kfab_core::mem::Region;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

const EXTENT: usize = 4 << 20;
/// Registrations kept.
const ENTRIES_MAX: usize = 512;

struct Entry {
    region: Weak<Region>,
    mr: Arc<Mr>,
    used: u64,
}

/// The registrations of one protection domain.
pub(crate) struct Cache {
    pd: Arc<Pd>,
    entries: HashMap<(u64, usize, usize), Entry>,
    clock: u64,
}

impl Cache {
    pub(crate) fn new(pd: &Arc<Pd>) -> Cache {
        Cache { pd: pd.clone(), entries: HashMap::new(), clock: 0 }
    }

    /// A registration that covers `len` bytes at `offset` of the region.
    pub(crate) fn get(
        &mut self,
        region: &Arc<Region>,
        offset: usize,
        len: usize,
    ) -> std::io::Result<Arc<Mr>> {
        let start = offset & !(EXTENT - 1);
        let end = (offset + len.max(1)).next_multiple_of(EXTENT).min(region.len());
        self.clock += 1;
        let key = (region.id(), start, end);
        if let Some(e) = self.entries.get_mut(&key) {
            e.used = self.clock;
            return Ok(e.mr.clone());
        }
        self.sweep();
        self.make_room();
        let mr = Arc::new(Mr::new(&self.pd, region, start, end - start, Reach::Read)?);
        self.entries.insert(key, Entry { region: Arc::downgrade(region), mr: mr.clone(), used: self.clock });
        Ok(mr)
    }

    /// Ends the registrations of regions that are gone.
    pub(crate) fn sweep(&mut self) {
        self.entries.retain(|_, e| e.region.strong_count() > 0 || Arc::strong_count(&e.mr) > 1);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The one not used for longest goes; work under way keeps its own share.
    fn make_room(&mut self) {
        while self.entries.len() >= ENTRIES_MAX {
            let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.used).map(|(k, _)| *k) else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}
