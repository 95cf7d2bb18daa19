//! The links of a port by name, and the few that are hot. Names are never used again: a slot's name changes with each tenant.

use crate::link::Link;
use kfab_core::spi::Conn;

const SLOT_BITS: u32 = 32;

/// Links by [`Conn`]. A look-up is two array accesses.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Option<Box<Link>>>,
    free: Vec<u32>,
    tenant: u64,
    live: usize,
}

impl Table {
    /// Adds the link that `make` builds under its new name.
    pub(crate) fn insert(&mut self, make: impl FnOnce(Conn) -> Link) -> Conn {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.tenant += 1;
        let id = Conn((self.tenant << SLOT_BITS) | u64::from(slot));
        self.slots[slot as usize] = Some(Box::new(make(id)));
        self.live += 1;
        id
    }

    /// The link of that name, if it still lives.
    #[inline]
    pub(crate) fn get(&mut self, id: Conn) -> Option<&mut Link> {
        let slot = (id.0 & u64::from(u32::MAX)) as usize;
        self.slots.get_mut(slot)?.as_deref_mut().filter(|l| l.id == id)
    }

    /// Takes the link of that name out.
    pub(crate) fn remove(&mut self, id: Conn) -> Option<Box<Link>> {
        self.get(id)?;
        let slot = (id.0 & u64::from(u32::MAX)) as u32;
        self.free.push(slot);
        self.live -= 1;
        self.slots[slot as usize].take()
    }

    /// Links that live.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// All that live.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.slots.iter_mut().flatten().map(|b| &mut **b)
    }
}

/// Links read at every poll without asking epoll first.
pub(crate) const HOT_MAX: usize = 4;
/// Polls without an arrival after which a link is no longer hot.
const HOT_IDLE: u32 = 4096;

/// The recently active links.
#[derive(Default)]
pub(crate) struct Hot {
    links: [Option<(Conn, u32)>; HOT_MAX],
    next: usize,
}

impl Hot {
    /// The link in place `i`.
    #[inline]
    pub(crate) fn at(&self, i: usize) -> Option<Conn> {
        self.links[i].map(|l| l.0)
    }

    /// The hot link, if there is one and no other.
    #[inline]
    pub(crate) fn only(&self) -> Option<Conn> {
        let mut all = self.links.iter().flatten();
        all.next().filter(|_| all.next().is_none()).map(|l| l.0)
    }

    /// `true` if no link is hot.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.links.iter().all(Option::is_none)
    }

    /// `true` if that link is.
    #[inline]
    pub(crate) fn has(&self, id: Conn) -> bool {
        self.links.iter().flatten().any(|l| l.0 == id)
    }

    /// Makes a link hot; the one that had to go.
    pub(crate) fn add(&mut self, id: Conn) -> Option<Conn> {
        if self.has(id) {
            return None;
        }
        let i = self.links.iter().position(Option::is_none).unwrap_or_else(|| {
            self.next = (self.next + 1) % HOT_MAX;
            self.next
        });
        self.links[i].replace((id, 0)).map(|l| l.0)
    }

    /// Notes whether the link in place `i` had something; the link if it has been idle too long.
    #[inline]
    pub(crate) fn note(&mut self, i: usize, moved: bool) -> Option<Conn> {
        let (id, idle) = self.links[i].as_mut()?;
        *idle = if moved { 0 } else { *idle + 1 };
        let (id, idle) = (*id, *idle);
        (idle > HOT_IDLE).then(|| {
            self.links[i] = None;
            id
        })
    }

    /// Something has arrived on the only hot link, past [`Hot::note`].
    #[inline]
    pub(crate) fn stir(&mut self) {
        self.links.iter_mut().flatten().for_each(|l| l.1 = 0);
    }

    /// Forgets a link.
    pub(crate) fn remove(&mut self, id: Conn) {
        for l in self.links.iter_mut().filter(|l| l.is_some_and(|l| l.0 == id)) {
            *l = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_used_again() {
        let mut t = Table::default();
        let make = |id| Link::new(id, None, None);
        let a = t.insert(make);
        assert!(t.remove(a).is_some());
        let b = t.insert(make);
        assert_ne!(a, b);
        assert!(t.get(a).is_none() && t.remove(a).is_none() && t.get(b).is_some());
        assert_eq!(t.len(), 1);
    }

    #[test]
    fn hot_links_are_few_and_cool_down() {
        let mut h = Hot::default();
        for i in 0..HOT_MAX as u64 {
            assert!(h.add(Conn(i)).is_none());
        }
        assert!(h.add(Conn(0)).is_none(), "already hot");
        assert!(h.add(Conn(99)).is_some(), "one has to go");
        let i = (0..HOT_MAX).find(|i| h.at(*i) == Some(Conn(99))).unwrap();
        assert!(h.only().is_none(), "four are hot");
        assert_eq!((0..=HOT_IDLE).find_map(|_| h.note(i, false)), Some(Conn(99)));
        assert!(!h.has(Conn(99)));
        (1..HOT_MAX as u64).for_each(|n| h.remove(Conn(n)));
        assert_eq!(h.only(), (!h.is_empty()).then_some(Conn(0)));
    }

    #[test]
    fn what_arrives_past_the_notes_keeps_a_link_hot() {
        let mut h = Hot::default();
        h.add(Conn(7));
        for _ in 0..3 {
            assert!((0..HOT_IDLE).all(|_| h.note(0, false).is_none()));
            h.stir();
        }
        assert_eq!(h.only(), Some(Conn(7)));
        assert_eq!((0..=HOT_IDLE).find_map(|_| h.note(0, false)), Some(Conn(7)));
        assert_eq!(h.only(), None);
    }
}
