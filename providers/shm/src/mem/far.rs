//! A peer's memory as it is mapped here, and the copies into and out of it: the whole of one-sided access.
//!
//! Entering a window: say so (`enter`), light barrier, look whether the secret still stands, copy, `leave`. Its owner takes
//! the secret away, passes a heavy barrier and waits until nobody says he is in. Whichever comes second sees the first.

use super::Channel;
use super::slots::FarSlots;
use kfab_core::mem::{Landing, Slice};
use kfab_core::spi::RemoteKey;
use kfab_core::sys::{Mapping, light_barrier, process_read};

/// Regions of one peer mapped at a time; the one longest unused goes first.
pub(crate) const MAX_MAPS: usize = 256;

/// What is to be done with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Read,
    Write,
}

/// How an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Done,
    /// The memory is not mapped (so): ask the owner.
    Unmapped,
    /// No such window, or not with these rights.
    Denied,
    /// Outside the memory.
    Range,
}

#[derive(Debug)]
struct Region {
    id: u64,
    writable: bool,
    used: u64,
    map: Mapping,
}

/// A slot whose claim has been checked against what is mapped. Holds as long as the secret stands and nothing is unmapped.
#[derive(Clone, Copy, Debug)]
struct Resolved {
    /// 0: nothing known.
    secret: u64,
    base: *mut u8,
    len: u64,
    readable: bool,
    writable: bool,
}

const UNKNOWN: Resolved =
    Resolved { secret: 0, base: std::ptr::null_mut(), len: 0, readable: false, writable: false };

/// What of one peer is mapped.
#[derive(Debug)]
pub(crate) struct Far {
    table: FarSlots,
    regions: Vec<Region>,
    resolved: Vec<Resolved>,
    clock: u64,
}

// SAFETY: the pointers of `resolved` point into `regions`, which move along; mappings have no thread.
unsafe impl Send for Far {}

impl Far {
    pub(crate) fn new(table: FarSlots) -> Far {
        Far { table, regions: Vec::new(), resolved: Vec::new(), clock: 0 }
    }

    /// Takes a region that the peer sent.
    pub(crate) fn add(&mut self, id: u64, writable: bool, map: Mapping) {
        self.resolved.clear();
        self.regions.retain(|r| r.id != id || r.writable != writable);
        if self.regions.len() >= MAX_MAPS
            && let Some(i) = (0..self.regions.len()).min_by_key(|i| self.regions[*i].used)
        {
            self.regions.swap_remove(i);
        }
        self.clock += 1;
        self.regions.push(Region { id, writable, used: self.clock, map });
    }

    /// Unmaps a region that the peer has given up.
    pub(crate) fn forget(&mut self, id: u64) {
        self.resolved.clear();
        self.regions.retain(|r| r.id != id);
    }

    /// The first byte of `offset..offset + len` in region `id`, if that is mapped (writable, where asked).
    fn find(&mut self, id: u64, writable: bool, offset: u64, len: u64) -> Result<*mut u8, Access> {
        let r = self
            .regions
            .iter_mut()
            .find(|r| r.id == id && (r.writable || !writable))
            .ok_or(Access::Unmapped)?;
        let end = offset.checked_add(len).ok_or(Access::Range)?;
        if end > r.map.len() as u64 {
            return Err(Access::Range);
        }
        self.clock += 1;
        r.used = self.clock;
        // SAFETY: offset <= end <= the mapping's length.
        Ok(unsafe { r.map.ptr().as_ptr().add(offset as usize) })
    }

    /// Fills `landing` from byte `at` of region `id`: memory lent for one transfer, without a slot.
    pub(crate) fn read_region(&mut self, id: u64, at: u64, landing: &mut Landing) -> Access {
        let len = landing.len();
        match self.find(id, false, at, len as u64) {
            // SAFETY: `find` gives `len` mapped bytes; the landing is the right to its `len` bytes. Where the process talks to
            // itself both may be the same pages under two names: hence `copy`.
            Ok(src) => unsafe { std::ptr::copy(src, landing.as_mut_ptr(), len) },
            Err(e) => return e,
        }
        Access::Done
    }

    /// Checks the claim of a slot against what is mapped, and remembers it.
    #[cold]
    fn resolve(&mut self, i: u32, secret: u64, need: Need) -> Result<Resolved, Access> {
        let claim = self.table.read(i, secret).ok_or(Access::Denied)?;
        let allowed = if need == Need::Write { claim.writable } else { claim.readable };
        if !allowed {
            return Err(Access::Denied);
        }
        let base = self.find(claim.region, claim.writable, claim.offset, claim.len)?;
        let r = Resolved { secret, base, len: claim.len, readable: claim.readable, writable: claim.writable };
        if self.resolved.len() <= i as usize {
            self.resolved.resize(i as usize + 1, UNKNOWN);
        }
        self.resolved[i as usize] = r;
        Ok(r)
    }

    /// What is known already.
    #[inline(always)]
    fn resolved_as(&self, key: &RemoteKey) -> Option<&Resolved> {
        self.resolved.get(key.region as usize).filter(|r| r.secret == key.secret && key.secret != 0)
    }

    /// [`Far::enter_known`] for a window that may not be known: its slot is resolved first if need be.
    fn enter(
        &mut self,
        channel: &Channel,
        key: RemoteKey,
        range: (u64, usize),
        need: Need,
        copy: impl FnOnce(*mut u8),
    ) -> Access {
        let resolved = match (self.resolved_as(&key), u32::try_from(key.region)) {
            (Some(r), _) => Ok(*r),
            (None, Ok(slot)) => self.resolve(slot, key.secret, need),
            (None, Err(_)) => Err(Access::Denied),
        };
        match resolved {
            Ok(known) => self.enter_known(channel, &known, key.region as u32, range, need, copy),
            Err(e) => e,
        }
    }

    /// Calls `copy` with the address of byte `offset` of a known window, `len` bytes of which are mapped, while its owner waits
    /// with taking it back.
    #[inline(always)]
    fn enter_known(
        &self,
        channel: &Channel,
        known: &Resolved,
        slot: u32,
        (offset, len): (u64, usize),
        need: Need,
        copy: impl FnOnce(*mut u8),
    ) -> Access {
        let allowed = if need == Need::Write { known.writable } else { known.readable };
        if !allowed {
            return Access::Denied;
        }
        if offset > known.len || len as u64 > known.len - offset {
            return Access::Range;
        }
        channel.enter(slot);
        // Between "I am in" and "does the secret stand?": see the head of this file.
        light_barrier(channel.is_asymmetric());
        let stands = self.table.stands(slot, known.secret);
        if stands {
            // SAFETY: offset <= known.len, and base..base + len was inside a mapping that is still there (`add` and `forget` empty
            // `resolved`).
            copy(unsafe { known.base.add(offset as usize) });
        }
        channel.leave();
        if stands { Access::Done } else { Access::Denied }
    }

    /// Stores `bytes` at `offset` of a window that has been used before; `false` if that is not so, or it cannot be.
    #[inline(always)]
    pub(crate) fn write_now(&self, channel: &Channel, key: &RemoteKey, offset: u64, bytes: &[u8]) -> bool {
        let Some(known) = self.resolved_as(key) else { return false };
        let done =
            self.enter_known(channel, known, key.region as u32, (offset, bytes.len()), Need::Write, |dst| {
                // SAFETY: `enter_known` vouches for `dst`. They may be the same pages where a process talks to itself: hence `copy`. Few
                // bytes go as one store.
                unsafe {
                    match <[u8; 8]>::try_from(bytes) {
                        Ok(eight) => dst.cast::<[u8; 8]>().write_unaligned(eight),
                        Err(_) => std::ptr::copy(bytes.as_ptr(), dst, bytes.len()),
                    }
                }
            });
        done == Access::Done
    }

    /// Stores the bytes of `source` at `offset` of a window.
    pub(crate) fn write_slice(
        &mut self,
        channel: &Channel,
        key: RemoteKey,
        offset: u64,
        source: &Slice,
    ) -> Access {
        self.enter(channel, key, (offset, source.len()), Need::Write, |dst| {
            // SAFETY: `enter` vouches for `dst`, the slice for its own bytes; overlap as above.
            unsafe { std::ptr::copy(source.as_ptr(), dst, source.len()) }
        })
    }

    /// Fills `landing` from `offset` of a window.
    pub(crate) fn read(
        &mut self,
        channel: &Channel,
        key: RemoteKey,
        offset: u64,
        landing: &mut Landing,
    ) -> Access {
        let (dst, len) = (landing.as_mut_ptr(), landing.len());
        self.enter(channel, key, (offset, len), Need::Read, |src| {
            // SAFETY: `enter` vouches for `src`, the landing is the right to its bytes; overlap as above.
            unsafe { std::ptr::copy(src, dst, len) }
        })
    }
}

/// Fills `landing` from address `from` of process `pid` (process_vm_readv): memory that was adopted, so cannot be mapped.
pub(crate) fn read_process(pid: i32, from: u64, landing: &mut Landing) -> std::io::Result<()> {
    let (dst, len) = (landing.as_mut_ptr(), landing.len());
    let mut done = 0;
    while done < len {
        // SAFETY: dst + done..dst + len is inside the landing, which is the right to these bytes. The other address is only looked
        // at by the kernel, in the other process.
        match unsafe { process_read(pid, from.wrapping_add(done as u64), dst.add(done), len - done) }? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}
