//! The slot table: what of a port's memory is a window now. One memfd for each port, written by its owner, mapped read-only
//! by its peers. A slot is a window as long as its secret stands there.

use kfab_core::mem::Slice;
use kfab_core::spi::Rights;
use kfab_core::sys::{self, Mapping};
use kfab_core::{Error, Kind, Result};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Windows of one port at a time.
pub(crate) const MAX_SLOTS: u32 = 4096;
/// Bytes of a table.
pub(crate) const TABLE_BYTES: usize = MAX_SLOTS as usize * size_of::<Slot>();

/// A slot: one cache line. A secret of 0 is no window.
#[repr(C, align(64))]
struct Slot {
    secret: AtomicU64,
    region: AtomicU64,
    offset: AtomicU64,
    len: AtomicU64,
    rights: AtomicU32,
}

const _: () = assert!(size_of::<Slot>() == 64);

/// A mapping of [`TABLE_BYTES`].
#[derive(Debug)]
struct Table(Mapping);

impl Table {
    /// `None` if it has another size.
    fn new(map: Mapping) -> Option<Table> {
        (map.len() == TABLE_BYTES).then_some(Table(map))
    }

    #[inline(always)]
    fn slot(&self, i: u32) -> Option<&Slot> {
        if i >= MAX_SLOTS {
            return None;
        }
        // SAFETY: the index is inside the mapping (checked here and by `new`), which is page-aligned and initialised (memfd) and lives as
        // long as the reference; a Slot is atomics only, so changes from outside are allowed. Where it is mapped read-only nobody stores.
        Some(unsafe { &*self.0.ptr().as_ptr().cast::<Slot>().add(i as usize) })
    }
}

/// A window as its owner keeps it.
#[derive(Debug)]
struct Own {
    memory: Slice,
    secret: u64,
    writable: bool,
}

/// The table of our own windows.
#[derive(Debug)]
pub(crate) struct Slots {
    fd: OwnedFd,
    table: Table,
    own: Vec<Option<Own>>,
    free: VecDeque<u32>,
}

impl Slots {
    /// An empty table.
    pub(crate) fn new() -> Result<Slots> {
        let (fd, map) = sys::sealed_memfd("kfab-slots", TABLE_BYTES, true)
            .map_err(|e| Error::os("open", "a slot table", e))?;
        let table = Table::new(map).ok_or_else(|| {
            Error::new(Kind::Unavailable, "open", "a slot table has not the size that was asked for")
        })?;
        Ok(Slots { fd, table, own: Vec::new(), free: VecDeque::new() })
    }

    /// For peers to map.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Makes `memory` a window; its slot.
    pub(crate) fn insert(&mut self, memory: &Slice, rights: Rights, secret: u64) -> Result<u32> {
        let i = match self.free.pop_front() {
            Some(i) => i,
            None if self.own.len() < MAX_SLOTS as usize => {
                self.own.push(None);
                self.own.len() as u32 - 1
            }
            None => {
                let why = format!("{MAX_SLOTS} windows are open on this port");
                return Err(Error::new(Kind::Limit, "expose", why));
            }
        };
        let writable = rights.contains(Rights::WRITE);
        self.own[i as usize] = Some(Own { memory: memory.clone(), secret, writable });
        if let Some(s) = self.table.slot(i) {
            s.region.store(memory.region().id(), Ordering::Relaxed);
            s.offset.store(memory.offset() as u64, Ordering::Relaxed);
            s.len.store(memory.len() as u64, Ordering::Relaxed);
            s.rights.store(u32::from(rights.bits()), Ordering::Relaxed);
            // Release: whoever sees this secret sees the rest. (The slot was without a secret before, see `close`.)
            s.secret.store(secret, Ordering::Release);
        }
        Ok(i)
    }

    /// The memory of a window, and whether peers may write it; `None` if that secret does not stand there.
    pub(crate) fn get(&self, i: u32, secret: u64) -> Option<(&Slice, bool)> {
        let own = self.own.get(i as usize)?.as_ref()?;
        (secret != 0 && own.secret == secret).then_some((&own.memory, own.writable))
    }

    /// The memory of a slot in use.
    pub(crate) fn memory(&self, i: u32) -> Option<&Slice> {
        self.own.get(i as usize)?.as_ref().map(|o| &o.memory)
    }

    /// Takes the secret away. Peers that look from now on (after a heavy barrier) find no window; wait for those in the middle
    /// before [`Slots::free`].
    pub(crate) fn close(&self, i: u32) {
        if let Some(s) = self.table.slot(i) {
            s.secret.store(0, Ordering::Relaxed);
            // The next tenant's fields come after this.
            fence(Ordering::Release);
        }
    }

    /// Gives the slot back for use by others; the memory it held.
    pub(crate) fn free(&mut self, i: u32) -> Option<Slice> {
        let own = self.own.get_mut(i as usize)?.take()?;
        self.free.push_back(i);
        Some(own.memory)
    }

    /// The slots that are windows now.
    pub(crate) fn open(&self) -> Vec<u32> {
        (0..self.own.len() as u32).filter(|i| self.own[*i as usize].is_some()).collect()
    }
}

/// What a peer's slot says. Nothing of it is checked yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) region: u64,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) writable: bool,
    pub(crate) readable: bool,
}

/// A peer's table, read-only.
#[derive(Debug)]
pub(crate) struct FarSlots(Table);

impl FarSlots {
    /// Maps a table from a descriptor that a peer sent.
    pub(crate) fn new(fd: &OwnedFd) -> std::io::Result<FarSlots> {
        let table = Table::new(sys::map_foreign(fd, false, TABLE_BYTES)?);
        table.map(FarSlots).ok_or_else(|| std::io::Error::other("a slot table of another size"))
    }

    /// `true` if `secret`, which is not 0, stands in slot `i`.
    #[inline(always)]
    pub(crate) fn stands(&self, i: u32, secret: u64) -> bool {
        self.0.slot(i).is_some_and(|s| s.secret.load(Ordering::Acquire) == secret)
    }

    /// What slot `i` says, if `secret` stands there before and after.
    pub(crate) fn read(&self, i: u32, secret: u64) -> Option<Claim> {
        if secret == 0 || !self.stands(i, secret) {
            return None;
        }
        let s = self.0.slot(i)?;
        let rights = Rights::from_bits_truncate(s.rights.load(Ordering::Relaxed) as u8);
        let claim = Claim {
            region: s.region.load(Ordering::Relaxed),
            offset: s.offset.load(Ordering::Relaxed),
            len: s.len.load(Ordering::Relaxed),
            writable: rights.contains(Rights::WRITE),
            readable: rights.contains(Rights::READ),
        };
        fence(Ordering::Acquire);
        self.stands(i, secret).then_some(claim)
    }
}
