//! One connection: its state, from the first look at the side channel to the last event. Called by the parts of `port`.

use crate::sys::manager::Pass;
use crate::sys::{Qp, Slot};
use crate::wire::{CREDITS, Params};
use kfab_core::auth::greeting::Greeter;
use kfab_core::spi::{Conn, DownReason, Rma, RmaToken};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// One-sided operations that may wait for room in the send queue.
pub(crate) const RMA_WAITING_MAX: usize = 16_384;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Ours, waiting for its turn.
    Queued,
    /// Ours, the side channel is not connected yet.
    Dialing,
    /// The side channel talks.
    Greeting,
    Up,
    /// [`Link::end`] says why; the queue pair is drained.
    Ending,
}

/// A connection.
pub(crate) struct Link {
    pub(crate) id: Conn,
    pub(crate) phase: Phase,
    /// We asked for it.
    pub(crate) ours: bool,
    /// The caller knows of it, so it gets its `Down`.
    pub(crate) known: bool,
    pub(crate) to: Option<SocketAddr>,
    pub(crate) socket: Option<OwnedFd>,
    pub(crate) greeter: Option<Box<Greeter>>,
    pub(crate) own: Option<Params>,
    /// What our request to the peer's connection manager is to carry.
    pub(crate) pass: Pass,
    pub(crate) qp: Option<Qp>,
    /// Its queue pair is connected ...
    pub(crate) ready: bool,
    /// ... and the greeting has ended well.
    pub(crate) confirmed: bool,
    /// The connection manager said that the peer's queue pair is gone.
    pub(crate) disconnected: Option<Instant>,
    /// Its queue pair is with the reaper, and memory with it.
    pub(crate) dying: bool,
    /// Messages that the peer has room for.
    pub(crate) credits: u16,
    /// The most of them there can be.
    pub(crate) credits_max: u16,
    /// Receives posted anew, of which the peer has not been told.
    pub(crate) owed: u16,
    /// Frames that the peer may have on their way to us.
    pub(crate) granted: u16,
    /// Messages that arrived and were not reported, with their lengths.
    pub(crate) backlog: VecDeque<(Slot, usize)>,
    /// The body that waits to be taken: where it is in the slot.
    pub(crate) waiting: Option<(Slot, usize, usize)>,
    /// `post` accepted fewer than offered.
    pub(crate) refused: bool,
    /// Requests are staged.
    pub(crate) dirty: bool,
    /// In the port's list of links to look at.
    pub(crate) listed: bool,
    pub(crate) closing: bool,
    pub(crate) goodbye_sent: bool,
    /// The peer's card has ours, and all frames before it.
    pub(crate) goodbye_acked: bool,
    pub(crate) peer_goodbye: bool,
    /// The peer's port ended the connection, and said that it lives.
    pub(crate) parted: bool,
    /// The side channel ended.
    pub(crate) eof: Option<Instant>,
    pub(crate) rma_waiting: VecDeque<(Rma, RmaToken)>,
    pub(crate) end: Option<(DownReason, String)>,
    /// The port's count of polls when it ended.
    pub(crate) ended_at: u32,
    /// When patience ends: with the greeting, or with the drain.
    pub(crate) deadline: Option<Instant>,
    /// Completions seen, and how many at the last look, and since when none came.
    pub(crate) progress: u64,
    pub(crate) seen: (u64, Option<Instant>),
}

impl Link {
    pub(crate) fn new(id: Conn, phase: Phase, ours: bool) -> Link {
        Link {
            id,
            phase,
            ours,
            known: ours,
            to: None,
            socket: None,
            greeter: None,
            own: None,
            pass: Pass::default(),
            qp: None,
            ready: false,
            confirmed: false,
            disconnected: None,
            dying: false,
            credits: 0,
            credits_max: CREDITS,
            owed: 0,
            granted: CREDITS,
            backlog: VecDeque::new(),
            waiting: None,
            refused: false,
            dirty: false,
            listed: false,
            closing: false,
            goodbye_sent: false,
            goodbye_acked: false,
            peer_goodbye: false,
            parted: false,
            eof: None,
            rma_waiting: VecDeque::new(),
            end: None,
            ended_at: 0,
            deadline: None,
            progress: 0,
            seen: (0, None),
        }
    }

    /// The credits that the peer is owed leave with the next message.
    #[inline(always)]
    pub(crate) fn grant(&mut self) -> u16 {
        let owed = std::mem::take(&mut self.owed);
        self.granted += owed;
        owed
    }

    /// What the completions of its queue pair carry; see [`Table`].
    pub(crate) fn tag(&self) -> u32 {
        tag(self.id)
    }
}

/// The tag of a connection: its slot and a part of its tenant's number.
pub(crate) fn tag(id: Conn) -> u32 {
    (id.0 & 0x7fff_ffff) as u32
}

const SLOT_BITS: u32 = 16;
/// The most connections of a port.
pub(crate) const LINKS_MAX: usize = 1 << SLOT_BITS;

/// Links by [`Conn`]. Names are never used again: a slot's name changes with each tenant.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Option<Box<Link>>>,
    free: Vec<u32>,
    tenant: u64,
    live: usize,
}

impl Table {
    /// None; the names used so far are not used again.
    pub(crate) fn after(tenant: u64) -> Table {
        Table { tenant, ..Default::default() }
    }

    /// What [`Table::after`] wants to know.
    pub(crate) fn last(&self) -> u64 {
        self.tenant
    }

    /// Adds a link under a new name; `None` if there are [`LINKS_MAX`].
    pub(crate) fn insert(&mut self, make: impl FnOnce(Conn) -> Link) -> Option<Conn> {
        let slot = match self.free.pop() {
            Some(s) => s,
            None if self.slots.len() < LINKS_MAX => {
                self.slots.push(None);
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.tenant += 1;
        let id = Conn((self.tenant << SLOT_BITS) | u64::from(slot));
        self.slots[slot as usize] = Some(Box::new(make(id)));
        self.live += 1;
        Some(id)
    }

    fn slot(id: Conn) -> usize {
        (id.0 & ((1 << SLOT_BITS) - 1)) as usize
    }

    #[inline]
    pub(crate) fn get(&mut self, id: Conn) -> Option<&mut Link> {
        self.slots.get_mut(Self::slot(id))?.as_deref_mut().filter(|l| l.id == id)
    }

    /// The link whose completions carry this tag.
    #[inline]
    pub(crate) fn tagged(&mut self, t: u32) -> Option<&mut Link> {
        self.slots.get_mut(Self::slot(Conn(u64::from(t))))?.as_deref_mut().filter(|l| l.tag() == t)
    }

    pub(crate) fn remove(&mut self, id: Conn) -> Option<Box<Link>> {
        self.get(id)?;
        let slot = Self::slot(id);
        self.free.push(slot as u32);
        self.live -= 1;
        self.slots[slot].take()
    }

    pub(crate) fn len(&self) -> usize {
        self.live
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.slots.iter_mut().flatten().map(|b| &mut **b)
    }

    pub(crate) fn names(&self) -> Vec<Conn> {
        self.slots.iter().flatten().map(|l| l.id).collect()
    }
}

/// Spreads queue pair numbers, which cards hand out in order.
#[derive(Default)]
pub(crate) struct QpnHasher(u64);

impl Hasher for QpnHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = self.0.rotate_left(8) ^ u64::from(*b));
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Links by queue pair number.
#[derive(Default)]
pub(crate) struct ByQpn {
    all: HashMap<u32, Conn, BuildHasherDefault<QpnHasher>>,
    /// The one that was asked for last: often it is asked for again.
    last: Option<(u32, Conn)>,
}

impl ByQpn {
    pub(crate) fn insert(&mut self, qpn: u32, conn: Conn) {
        self.last = None;
        self.all.insert(qpn, conn);
    }

    pub(crate) fn remove(&mut self, qpn: u32) {
        self.last = None;
        self.all.remove(&qpn);
    }

    #[inline]
    pub(crate) fn get(&mut self, qpn: u32) -> Option<Conn> {
        match self.last {
            Some((n, conn)) if n == qpn => Some(conn),
            _ => {
                self.last = self.all.get(&qpn).map(|c| (qpn, *c));
                self.last.map(|l| l.1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_tags_change_with_the_tenant() {
        let mut t = Table::default();
        let make = |id| Link::new(id, Phase::Queued, true);
        let a = t.insert(make).unwrap();
        let b = t.insert(make).unwrap();
        t.remove(a).unwrap();
        let c = t.insert(make).unwrap();
        assert!(a != c && tag(a) != tag(c) && tag(b) != tag(c));
        assert!(t.get(a).is_none() && t.tagged(tag(a)).is_none() && t.remove(a).is_none());
        assert_eq!(t.tagged(tag(c)).unwrap().id, c);
        assert_eq!((t.len(), t.names().len()), (2, 2));
    }
}
