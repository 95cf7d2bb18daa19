//! A region: pages with one owner process, known to providers by number. The unit of registration and of mapping.

use super::bound::Counted;
use crate::sys::{Mapping, sealed_memfd};
use crate::{Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// Who may reach the pages of a region from outside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody by mapping: memory adopted from the caller. Transports copy, register it, or use CMA.
    Private,
    /// Peers may map it read-only.
    PeersRead,
    /// Peers may map it writable: only windows live here, and no reference to the bytes is ever formed.
    PeersWrite,
}

enum Pages {
    Mapped { map: Mapping, fd: OwnedFd },
    Adopted(std::cell::UnsafeCell<Vec<u8>>),
}

/// Pages with one owner.
pub struct Region {
    id: u64,
    access: Access,
    node: Option<u32>,
    refusal: Option<String>,
    base: *mut u8,
    len: usize,
    pages: Pages,
    /// Against the bound of its pool; last, because the pages go first.
    #[expect(dead_code, reason = "it ends with the region, which is all it does")]
    counted: Option<Counted>,
}

// SAFETY: the bytes are only reached through blocks, whose types (`Buffer`, `Landing`, `WindowMem`) say who may touch them;
// the region itself hands out nothing but a raw address.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl Region {
    /// A memfd region of `len` bytes (a multiple of the page size), on NUMA node `node` where asked.
    pub fn mapped(len: usize, access: Access, node: Option<u32>) -> Result<Region> {
        let (fd, map) = sealed_memfd("kfab-slab", len, access != Access::PeersWrite)
            .map_err(|e| Error::os("memory", format!("a slab of {len} bytes"), e))?;
        // A node that cannot be honoured is not fatal: the pages come from elsewhere, and whoever asks is told why.
        let refusal = node.and_then(|n| map.bind_to_node(n).err()).map(|e| format!("mbind: {e}"));
        let node = node.filter(|_| refusal.is_none());
        let base = map.ptr().as_ptr();
        Ok(Region {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            access,
            node,
            refusal,
            base,
            len,
            pages: Pages::Mapped { map, fd },
            counted: None,
        })
    }

    /// A region over memory of the caller, freed when the region is.
    pub fn adopted(mut v: Vec<u8>) -> Region {
        let (base, len) = (v.as_mut_ptr(), v.len());
        let pages = Pages::Adopted(v.into());
        Region {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            access: Access::Private,
            node: None,
            refusal: None,
            base,
            len,
            pages,
            counted: None,
        }
    }

    /// The same, counted as long as it lives.
    pub(super) fn counted(self, counted: Counted) -> Region {
        Region { counted: Some(counted), ..self }
    }

    /// A number that no other region of this process has or had.
    #[inline]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Who may reach the pages.
    #[inline]
    pub fn access(&self) -> Access {
        self.access
    }

    /// The NUMA node the pages were bound to, if they were.
    pub fn node(&self) -> Option<u32> {
        self.node
    }

    /// Why the pages could not be bound to the node that was asked for.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `true` for no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte. For transports (registration, CMA) and for the types of this module.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// The memfd, for handing to a peer; `None` for adopted memory.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.pages {
            Pages::Mapped { fd, .. } => Some(fd.as_fd()),
            Pages::Adopted(_) => None,
        }
    }

    /// Gives adopted memory back as the `Vec` it was; `None` for slabs.
    pub(super) fn into_vec(self) -> Option<Vec<u8>> {
        match self.pages {
            Pages::Adopted(v) => Some(v.into_inner()),
            Pages::Mapped { .. } => None,
        }
    }
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mapped = matches!(&self.pages, Pages::Mapped { map, .. } if !map.is_empty());
        write!(f, "Region({} {:?} {} B mapped={mapped})", self.id, self.access, self.len)
    }
}
