//! The way up: messages, outcomes, fetched payloads, the death of peers.

use std::collections::VecDeque;
use std::time::Instant;

use kfab::{Buffer, Message, Peer, PeerId, WindowKey};

use super::lane::{Bound, Lane, Pull, Reading, Remote, State, failure_of};
use super::task::{Ended, Task};
use super::wire::{Frame, Outcome, TAG};
use crate::core::Content;
use crate::network::{Failure, Rx, Upcall};
use crate::nid::{Nid, ProcessId};
use crate::wire::lnet::{Body, LnetHeader};

/// Messages taken in before others get a turn.
const TURN: usize = 64;

impl Lane {
    /// Takes in the message that has come, and those behind it; posts the next receive.
    pub(super) fn arrived(&self, s: &mut State, first: kfab::Result<Message>, up: &mut Vec<Upcall>) {
        let mut next = first;
        for _ in 0..TURN {
            if !self.take_in(s, next, up) {
                return;
            }
            match s.tasks.follow(Task::Recv(self.endpoint.recv_tagged(TAG, 0))) {
                Ok(Ended::Recv(result)) => next = result,
                _ => return,
            }
        }
        if self.take_in(s, next, up) {
            s.tasks.follow_later(Task::Recv(self.endpoint.recv_tagged(TAG, 0)));
        }
    }

    /// Takes in what a receive gave; `false` if there will be nothing more.
    fn take_in(&self, s: &mut State, result: kfab::Result<Message>, up: &mut Vec<Upcall>) -> bool {
        match result {
            Ok(message) => self.message(s, &message, up),
            Err(error) if error.kind() == kfab::Kind::Closed => return false,
            // This one message could not be had (memory); the next may.
            Err(error) => tracing::warn!(%error, "a message was lost"),
        }
        true
    }

    fn message(&self, s: &mut State, message: &Message, up: &mut Vec<Upcall>) {
        let from = message.from();
        let frame = match Frame::decode(message) {
            Ok(frame) => frame,
            Err(error) => return tracing::debug!(%error, peer = ?from.id(), "not a kfi message"),
        };
        let (Frame::Immediate(header, _) | Frame::Offer(header, _)) = frame;
        let src = header.src;
        if header.dest.nid != self.nid || !self.bind(s, &from, src.nid) {
            return tracing::debug!(src = %src, dest = %header.dest, "not for us, or under a second name");
        }
        let (via, payload) = match frame {
            Frame::Immediate(_, payload) => (0, payload.to_vec().into()),
            Frame::Offer(_, key) => {
                let Ok(key) = WindowKey::from_bytes(key) else {
                    return tracing::debug!(src = %src, "an offer with a key that is none");
                };
                match self.offered(s, &from, &header, &key) {
                    Ok(via) => (via, Content::Remote(header.payload_len)),
                    Err(outcome) => return self.tell(s, &from, &key, outcome, up),
                }
            }
        };
        let peer = ProcessId { nid: src.nid, pid: src.pid };
        up.push(Upcall::Received(Rx { via, peer, header, payload }));
    }

    /// Takes a peer's word for its NID; `false` if it had another one before, or ours.
    fn bind(&self, s: &mut State, from: &Peer, nid: Nid) -> bool {
        if nid == self.nid || nid.is_any() || nid.is_lo() {
            return false;
        }
        let now = Instant::now();
        let bound = s.bound.entry(from.id()).or_insert(Bound::new(nid, now));
        if bound.nid != nid {
            return false;
        }
        if !std::mem::replace(&mut bound.spoke, true) {
            self.speakers.speaks(nid, self.number, from.id());
        }
        // Who spoke last is who is there: a restarted peer calls before the death of its predecessor is known.
        s.remotes.insert(nid, Remote { peer: from.clone(), last: now });
        self.watch(s, from, nid);
        true
    }

    /// A payload that waits at its sender.
    fn offered(
        &self,
        s: &mut State,
        from: &Peer,
        header: &LnetHeader,
        key: &WindowKey,
    ) -> Result<u64, Outcome> {
        let carries = matches!(header.body, Body::Put { .. } | Body::Reply { .. });
        if !carries || key.len() != u64::from(header.payload_len) {
            return Err(Outcome::Failed);
        }
        if s.bound.get(&from.id()).is_none_or(|b| b.pulls >= self.params.max_offers) {
            return Err(Outcome::Busy);
        }
        Ok(self.keep(s, Pull { peer: from.clone(), key: key.clone() }))
    }

    /// A payload has been fetched, or could not be.
    pub(super) fn has_read(
        &self,
        s: &mut State,
        result: kfab::Result<Buffer>,
        reading: Reading,
        pull: &Pull,
        up: &mut Vec<Upcall>,
    ) {
        let Reading { fetch, direct } = reading;
        s.reads.end(pull.peer.id());
        let fetched = match result {
            Ok(buffer) if direct => {
                fetch.memory.restore(buffer);
                Ok(())
            }
            Ok(buffer) => {
                fetch.memory.write_at(fetch.offset, &buffer);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%error, peer = ?pull.peer.id(), "fetch");
                self.tell(s, &pull.peer, &pull.key, Outcome::Failed, up);
                Err(failure_of(&error))
            }
        };
        up.push(Upcall::Fetched(fetch.op, fetched));
    }

    /// A kfab peer is gone: what waits for it ends.
    pub(super) fn lost(&self, s: &mut State, peer: PeerId, nid: Nid, up: &mut Vec<Upcall>) {
        let bound = s.bound.remove(&peer);
        if bound.as_ref().is_some_and(|b| b.spoke) {
            self.speakers.died(nid, self.number, peer);
        }
        s.pulls.retain(|_, pull| pull.peer.id() != peer);
        let queue = std::mem::take(&mut s.queue);
        let (gone, stay): (VecDeque<_>, VecDeque<_>) =
            queue.into_iter().partition(|(_, p)| p.peer.id() == peer);
        s.queue = stay;
        up.extend(gone.into_iter().map(|(f, _)| Upcall::Fetched(f.op, Err(Failure::RemoteError))));
        let dead: Vec<u64> = s.offers.iter().filter(|(_, o)| o.peer == peer).map(|(n, _)| *n).collect();
        let dead = dead.into_iter().filter_map(|n| s.offers.remove(&n));
        up.extend(dead.map(|o| Upcall::Sent(o.tx, Err(Failure::RemoteError))));
        if s.remotes.get(&nid).is_some_and(|r| r.peer.id() == peer) {
            s.remotes.remove(&nid);
        }
        if bound.is_some() {
            up.push(Upcall::PeerLost(nid));
        }
    }
}
