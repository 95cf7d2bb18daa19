//! Which peers are known: new ones, room for them, and those that are forgotten.

use crate::faults::split_mix;
use crate::machine::{Io, Machine};
use crate::message::PeerId;
use crate::peer::{Peer, PeerCounters};
use kfab_core::spi::Address;
use kfab_core::{Error, Kind, Result};

/// Peers that make room at once when the table is full, at most, and of how many peers one: a look at all of them pays for so many.
const FORGET_BATCH: usize = 64;
const FORGET_ONE_OF: usize = 16;

impl Machine {
    /// A place for one more peer.
    pub(crate) fn new_peer(
        &mut self,
        io: &mut Io<'_>,
        address: Option<Address>,
        wanted: bool,
    ) -> Result<u32> {
        let max = self.limits.max_peers;
        let session = split_mix(&mut self.sessions);
        if self.free_peers.is_empty() && self.peers.len() >= max {
            self.make_room(io);
        }
        if let Some(pi) = self.free_peers.pop() {
            let name = self.peers[pi as usize].name;
            self.peers[pi as usize] = Peer::new(name, address, wanted, session, io.now);
            return Ok(pi);
        }
        if self.peers.len() >= max {
            let why = format!("{max} peers are known (Limits::max_peers), and all were in use lately");
            return Err(Error::new(Kind::Limit, "peer", why));
        }
        let pi = self.peers.len() as u32;
        self.peers.push(Peer::new(PeerId { index: pi, generation: 0 }, address, wanted, session, io.now));
        Ok(pi)
    }

    /// Forgets the peers that have been unused for longest, whoever asked for them.
    fn make_room(&mut self, io: &mut Io<'_>) {
        if !self.parked.is_empty() {
            // One of them may be the peer's whose frames these are.
            return;
        }
        let patience = self.limits.peer_timeout.as_nanos() as u64;
        let idle = (0..self.peers.len() as u32).filter_map(|pi| Some((self.unused_since(pi)?, pi)));
        let mut idle: Vec<_> = idle.filter(|(since, _)| since + patience <= io.now).collect();
        let batch = (self.peers.len() / FORGET_ONE_OF).clamp(1, FORGET_BATCH);
        if idle.len() > batch {
            idle.select_nth_unstable(batch);
            idle.truncate(batch);
        }
        let mut going: Vec<u32> = idle.into_iter().map(|(_, pi)| pi).collect();
        // Other names of theirs lead nowhere any more.
        let leads = |p: &Peer| p.alias.is_some_and(|a| going.contains(&a.index));
        let others: Vec<u32> =
            (0..self.peers.len() as u32).filter(|pi| leads(&self.peers[*pi as usize])).collect();
        going.extend(others.iter().filter(|pi| !self.peers[**pi as usize].gone));
        going.sort_unstable();
        going.dedup();
        self.timed.retain(|pi| going.binary_search(pi).is_err());
        self.by_address.retain(|_, pi| going.binary_search(pi).is_err());
        for pi in going {
            self.say_bye(io, pi);
            let p = &mut self.peers[pi as usize];
            (p.wanted, p.timed) = (false, false);
            self.reset_peer(
                io,
                pi,
                None,
                Kind::PeerLost,
                "forgotten: it was not used, and another needed its place",
            );
        }
    }

    /// Since when a peer is of no use; `None` if it is.
    fn unused_since(&self, pi: u32) -> Option<u64> {
        let p = &self.peers[pi as usize];
        if let Some(real) = p.alias {
            return self.unused_since(real.index);
        }
        let used = p.gone || p.dirty || p.is_busy() || p.rx.waiting > 0 || !p.rx.held.is_empty();
        let greets = |ci: &u32| self.conns[*ci as usize].peer == Some(pi);
        if used || self.greeting.iter().any(greets) {
            return None;
        }
        let sent = p.rails.iter().map(|ci| self.conns[*ci as usize].used_at).max();
        Some(p.known_at.max(p.last_heard).max(sent.unwrap_or(0)))
    }

    /// A place is free again, under another name.
    pub(crate) fn forget_peer(&mut self, pi: u32) {
        let old = &mut self.peers[pi as usize];
        old.name.generation = old.name.generation.wrapping_add(1);
        old.gone = true;
        self.past_totals.add(&std::mem::replace(&mut old.counters, PeerCounters::NONE));
        if let Some(a) = old.address.take() {
            let text = a.to_string();
            if self.by_address.get(&text) == Some(&pi) {
                self.by_address.remove(&text);
            }
        }
        let dirty = old.dirty;
        old.candidates.clear();
        if !dirty && !old.timed {
            self.free_peers.push(pi);
        } else {
            // Lists still name it: it is freed when they have been worked off.
            old.wanted = false;
            self.free_later.push(pi);
        }
    }
}
