//! One lane: an endpoint, what is under way on it, and the way of messages down. Its thread is in `run`, the way up in `arrive`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;
use std::time::Instant;

use kfab::{Buffer, Endpoint, Fate, Notice, Peer, PeerId, Window, WindowKey};

use super::task::{Ended, Ready, Sending, Task, Tasks};
use super::wire::{Frame, Outcome, TAG, TAG_NEVER};
use super::{Book, KfiParams};
use crate::core::Fetch;
use crate::network::{Failure, Tx, TxId, Upcall};
use crate::nid::Nid;
use crate::wire::lnet::{Body, LnetHeader};

/// A lane. Locks: `state` first, then kfab's own, then `ready` or `speakers`.
pub(super) struct Lane {
    pub(super) nid: Nid,
    /// The lane's number, and so the upper bits of what it calls its offers' `via`.
    pub(super) number: usize,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) book: Book,
    pub(super) params: KfiParams,
    pub(super) ready: Arc<Ready>,
    pub(super) stop: AtomicBool,
    pub(super) thread: OnceLock<ThreadId>,
    /// Shared by all lanes of the interface.
    pub(super) speakers: Arc<Speakers>,
    state: Mutex<State>,
}

/// Who speaks for NIDs, on all lanes. Where the last one has died an answer is for nobody: a successor has not asked, and to wait for one
/// takes as long as the endpoint waits for a peer to appear.
#[derive(Default)]
pub(super) struct Speakers(Mutex<HashMap<Nid, Speaking>>);

struct Speaking {
    /// By lane.
    peers: HashSet<(usize, PeerId)>,
    /// The last death.
    died: Instant,
}

impl Speakers {
    fn lock(&self) -> MutexGuard<'_, HashMap<Nid, Speaking>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn speaks(&self, nid: Nid, lane: usize, peer: PeerId) {
        let new = || Speaking { peers: HashSet::new(), died: Instant::now() };
        self.lock().entry(nid).or_insert_with(new).peers.insert((lane, peer));
    }

    pub(super) fn died(&self, nid: Nid, lane: usize, peer: PeerId) {
        if let Some(s) = self.lock().get_mut(&nid) {
            s.peers.remove(&(lane, peer));
            s.died = Instant::now();
        }
    }

    /// Nobody looks any more whether this one dies.
    pub(super) fn forget(&self, nid: Nid, lane: usize, peer: PeerId) {
        let mut all = self.lock();
        let last = all.get_mut(&nid).is_some_and(|s| s.peers.remove(&(lane, peer)) && s.peers.is_empty());
        if last {
            all.remove(&nid);
        }
    }

    /// Forgets those that died so long ago that nobody can be answering them any more.
    pub(super) fn expire(&self, idle: impl Fn(Instant) -> bool) {
        self.lock().retain(|_, s| !s.peers.is_empty() || !idle(s.died));
    }

    fn are_dead(&self, nid: Nid) -> bool {
        self.lock().get(&nid).is_some_and(|s| s.peers.is_empty())
    }
}

/// Who is at a NID.
pub(super) struct Remote {
    pub(super) peer: Peer,
    pub(super) last: Instant,
}

/// A kfab peer that speaks for a NID.
pub(super) struct Bound {
    pub(super) nid: Nid,
    /// It has said so itself.
    pub(super) spoke: bool,
    /// Payloads of its that wait here.
    pub(super) pulls: usize,
    /// What it is being told of others.
    pub(super) tells: usize,
    /// The receive that ends when it dies.
    pub(super) watch: Option<u64>,
    pub(super) last: Instant,
}

impl Bound {
    pub(super) fn new(nid: Nid, now: Instant) -> Self {
        Self { nid, spoke: false, pulls: 0, tells: 0, watch: None, last: now }
    }
}

/// Fetches under way. Nobody may have all of them: a peer that serves none would keep everybody from theirs.
#[derive(Default)]
pub(super) struct Reads {
    all: usize,
    of_peer: HashMap<PeerId, usize>,
}

impl Reads {
    /// Another of this peer's may begin where there are `most` in all: one has half of them.
    fn may_begin(&self, peer: PeerId, most: usize) -> bool {
        let mine = self.of_peer.get(&peer).copied().unwrap_or(0);
        self.all < most && mine < most.div_ceil(2)
    }

    fn begin(&mut self, peer: PeerId) {
        self.all += 1;
        *self.of_peer.entry(peer).or_default() += 1;
    }

    pub(super) fn end(&mut self, peer: PeerId) {
        self.all = self.all.saturating_sub(1);
        if let Some(n) = self.of_peer.get_mut(&peer) {
            *n -= 1;
            if *n == 0 {
                self.of_peer.remove(&peer);
            }
        }
    }
}

/// A payload of ours that a peer is to fetch.
pub(super) struct Offer {
    pub(super) peer: PeerId,
    pub(super) tx: TxId,
    pub(super) deadline: Instant,
    /// Closed when this is dropped.
    window: Window,
}

/// A payload of a peer that waits to be fetched or refused.
#[derive(Clone)]
pub(super) struct Pull {
    pub(super) peer: Peer,
    pub(super) key: WindowKey,
}

/// A fetch under way, and whether it fills the memory itself.
pub(super) struct Reading {
    pub(super) fetch: Fetch,
    pub(super) direct: bool,
}

/// What the lane's lock protects.
pub(super) struct State {
    pub(super) tasks: Tasks,
    pub(super) remotes: HashMap<Nid, Remote>,
    pub(super) bound: HashMap<PeerId, Bound>,
    pub(super) offers: HashMap<u64, Offer>,
    pub(super) pulls: HashMap<u64, Pull>,
    pub(super) queue: VecDeque<(Fetch, Pull)>,
    pub(super) reads: Reads,
    next_offer: u64,
    next_via: u64,
}

/// What a failure of kfab means to LNet. Only what cannot have been taken is tried again.
pub(super) fn failure_of(error: &kfab::Error) -> Failure {
    use kfab::Kind;
    match error.kind() {
        // Nobody there, or no address that means anything here.
        Kind::Unreachable | Kind::InvalidArgument => Failure::RemoteDropped,
        Kind::PeerLost if error.fate() == Fate::NotSent => Failure::RemoteDropped,
        Kind::PeerLost | Kind::AccessDenied | Kind::AuthFailed | Kind::Protocol => Failure::RemoteError,
        Kind::TimedOut => Failure::NetworkTimeout,
        Kind::Limit => Failure::LocalDropped,
        _ => Failure::LocalError,
    }
}

impl Lane {
    pub(super) fn new(
        nid: Nid,
        number: usize,
        endpoint: Arc<Endpoint>,
        book: Book,
        params: KfiParams,
        speakers: Arc<Speakers>,
    ) -> std::io::Result<Self> {
        let ready = Arc::new(Ready::new()?);
        let state = State {
            tasks: Tasks::new(ready.clone()),
            remotes: HashMap::new(),
            bound: HashMap::new(),
            offers: HashMap::new(),
            pulls: HashMap::new(),
            queue: VecDeque::new(),
            reads: Reads::default(),
            next_offer: 0,
            next_via: 0,
        };
        let (stop, thread) = (AtomicBool::new(false), OnceLock::new());
        Ok(Self {
            nid,
            number,
            endpoint,
            book,
            params,
            ready,
            stop,
            thread,
            speakers,
            state: Mutex::new(state),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows an operation begun with the lock held.
    pub(super) fn follow(&self, s: &mut State, task: Task, up: &mut Vec<Upcall>) {
        match s.tasks.follow(task) {
            Ok(ended) => self.ended(s, ended, up),
            // To look at it made progress, and so disarmed what the thread may be asleep on.
            Err(_) if self.thread.get() != Some(&std::thread::current().id()) => self.ready.note(0),
            Err(_) => {}
        }
    }

    /// Sends a message.
    pub(super) fn transmit(&self, s: &mut State, tx: Tx, up: &mut Vec<Upcall>) {
        let answer = matches!(tx.header.body, Body::Ack { .. } | Body::Reply { .. });
        if answer && self.speakers.are_dead(tx.peer.nid) {
            return up.push(Upcall::Sent(tx.id, Err(Failure::RemoteDropped)));
        }
        let peer = match self.reach(s, tx.peer.nid) {
            Ok(peer) => peer,
            Err(failure) => return up.push(Upcall::Sent(tx.id, Err(failure))),
        };
        let small = tx.payload.len() <= self.params.immediate_max;
        let sent = if small { Ok(immediate(&tx)) } else { self.offer(s, &peer, &tx) };
        match sent {
            Ok((bytes, what)) => {
                let op = peer.send_tagged(TAG, &bytes[..]);
                self.follow(s, Task::Send(op, what), up);
                if let Sending::Offer(number) = what
                    && let Some(offer) = s.offers.get(&number)
                {
                    let op = offer.window.notice();
                    self.follow(s, Task::Offer(op, number), up);
                }
            }
            Err(error) => up.push(Upcall::Sent(tx.id, Err(failure_of(&error)))),
        }
    }

    /// The kfab peer at a NID: the one that spoke last, else the one in the book.
    fn reach(&self, s: &mut State, nid: Nid) -> Result<Peer, Failure> {
        if let Some(remote) = s.remotes.get_mut(&nid) {
            remote.last = Instant::now();
            let peer = remote.peer.clone();
            self.watch(s, &peer, nid);
            return Ok(peer);
        }
        let Some(address) = self.book.lane(nid, self.number) else {
            tracing::debug!(%nid, "no address in the book");
            return Err(Failure::RemoteDropped);
        };
        let peer = self.endpoint.peer(&address).map_err(|error| {
            tracing::debug!(%nid, %error, "no peer");
            failure_of(&error)
        })?;
        s.remotes.insert(nid, Remote { peer: peer.clone(), last: Instant::now() });
        self.watch(s, &peer, nid);
        Ok(peer)
    }

    /// Makes sure that we hear of a peer's death, and notes that it is in use.
    pub(super) fn watch(&self, s: &mut State, peer: &Peer, nid: Nid) {
        let now = Instant::now();
        let bound = s.bound.entry(peer.id()).or_insert(Bound::new(nid, now));
        bound.last = now;
        if bound.watch.is_some() {
            return;
        }
        let op = self.endpoint.recv_with().tag(TAG_NEVER, 0).from(peer).post();
        match s.tasks.follow(Task::Watch(op, peer.id(), nid)) {
            Err(id) => {
                if let Some(bound) = s.bound.get_mut(&peer.id()) {
                    bound.watch = Some(id);
                }
            }
            // Gone already: the send that follows fails, and says so.
            Ok(_) => drop(s.remotes.remove(&nid)),
        }
    }

    /// Opens a window over a payload; the message that tells of it.
    fn offer(&self, s: &mut State, peer: &Peer, tx: &Tx) -> kfab::Result<(Vec<u8>, Sending)> {
        let payload = match tx.payload.share() {
            Some(buffer) => buffer,
            None => {
                let mut buffer = self.endpoint.buffer(tx.payload.len() as usize)?;
                if let Some(bytes) = buffer.get_mut() {
                    tx.payload.copy_to(bytes);
                }
                buffer
            }
        };
        let window = self.endpoint.window_of(payload)?;
        s.next_offer += 1;
        let (offer, key) = (s.next_offer, window.key().to_bytes());
        let deadline = Instant::now() + self.params.bulk_timeout;
        s.offers.insert(offer, Offer { peer: peer.id(), tx: tx.id, deadline, window });
        Ok((Frame::Offer(header_of(tx), &key).encode(), Sending::Offer(offer)))
    }

    /// A notice has come to an offer's window, or the window was closed. Whoever has the key may give it, as it may read.
    fn noticed(&self, s: &mut State, result: kfab::Result<Notice>, number: u64, up: &mut Vec<Upcall>) {
        let Some(offer) = s.offers.remove(&number) else { return };
        let result = match result.map(|notice| Outcome::from_value(notice.value())) {
            Ok(Outcome::Taken) => Ok(()),
            Ok(Outcome::Failed) => Err(Failure::RemoteError),
            Ok(Outcome::Busy) => Err(Failure::RemoteDropped),
            Err(error) => Err(failure_of(&error)),
        };
        up.push(Upcall::Sent(offer.tx, result));
    }

    /// Tells a peer what becomes of its offer, without reading it.
    pub(super) fn tell(
        &self,
        s: &mut State,
        peer: &Peer,
        key: &WindowKey,
        outcome: Outcome,
        up: &mut Vec<Upcall>,
    ) {
        let Some(bound) = s.bound.get_mut(&peer.id()) else { return };
        // Who does not listen is told no more: its offers end by their time.
        if bound.tells < self.params.max_offers {
            bound.tells += 1;
            let op = peer.read_notify(key, 0, Buffer::adopt(Vec::new()), outcome.value());
            self.follow(s, Task::Tell(op, peer.id()), up);
        }
    }

    /// Fetches a payload into the memory that matched, now or when its turn comes.
    pub(super) fn fetch(&self, s: &mut State, fetch: Fetch, up: &mut Vec<Upcall>) {
        match take_pull(s, fetch.via) {
            None => up.push(Upcall::Fetched(fetch.op, Err(Failure::RemoteError))),
            Some(pull) if !s.reads.may_begin(pull.peer.id(), self.params.max_reads) => {
                s.queue.push_back((fetch, pull));
            }
            Some(pull) => self.read(s, fetch, pull, up),
        }
    }

    /// Begins those fetches whose turn it is.
    pub(super) fn read_queued(&self, s: &mut State, up: &mut Vec<Upcall>) {
        let most = self.params.max_reads;
        while let Some(at) = s.queue.iter().position(|(_, pull)| s.reads.may_begin(pull.peer.id(), most)) {
            let Some((fetch, pull)) = s.queue.remove(at) else { return };
            self.read(s, fetch, pull, up);
        }
    }

    fn read(&self, s: &mut State, fetch: Fetch, pull: Pull, up: &mut Vec<Upcall>) {
        let len = fetch.len as usize;
        let lent = fetch.memory.lend(fetch.offset, len);
        let direct = lent.is_some();
        match lent.map_or_else(|| self.endpoint.buffer(len), Ok) {
            Ok(buffer) => {
                s.reads.begin(pull.peer.id());
                let op = pull.peer.read_notify(&pull.key, 0, buffer, Outcome::Taken.value());
                // Its owner waits no longer either.
                let op = op.within(self.params.bulk_timeout);
                self.follow(s, Task::Read(op, Reading { fetch, direct }, pull), up);
            }
            Err(error) => {
                self.tell(s, &pull.peer, &pull.key, Outcome::Busy, up);
                up.push(Upcall::Fetched(fetch.op, Err(failure_of(&error))));
            }
        }
    }

    /// A payload is not wanted: LNet says nothing to its sender, but the window may close.
    pub(super) fn refuse(&self, s: &mut State, via: u64, up: &mut Vec<Upcall>) {
        if let Some(pull) = take_pull(s, via) {
            self.tell(s, &pull.peer, &pull.key, Outcome::Taken, up);
        }
    }

    /// Keeps a payload that waits at its sender; what to fetch it by.
    pub(super) fn keep(&self, s: &mut State, pull: Pull) -> u64 {
        s.next_via = (s.next_via + 1) & ((1 << 40) - 1);
        let via = (self.number as u64) << 40 | s.next_via;
        if let Some(bound) = s.bound.get_mut(&pull.peer.id()) {
            bound.pulls += 1;
        }
        s.pulls.insert(via, pull);
        via
    }

    /// An operation has ended.
    pub(super) fn ended(&self, s: &mut State, ended: Ended, up: &mut Vec<Upcall>) {
        match ended {
            Ended::Recv(result) => self.arrived(s, result, up),
            Ended::Watch(peer, nid) => self.lost(s, peer, nid, up),
            Ended::Send(result, Sending::Message(tx)) => {
                up.push(Upcall::Sent(tx, result.map_err(|e| failure_of(&e))));
            }
            Ended::Send(Err(error), Sending::Offer(offer)) => {
                if let Some(offer) = s.offers.remove(&offer) {
                    up.push(Upcall::Sent(offer.tx, Err(failure_of(&error))));
                }
            }
            // The notice is to come.
            Ended::Send(Ok(()), Sending::Offer(_)) => {}
            Ended::Offer(result, offer) => self.noticed(s, result, offer, up),
            Ended::Tell(peer) => {
                if let Some(bound) = s.bound.get_mut(&peer) {
                    bound.tells = bound.tells.saturating_sub(1);
                }
            }
            Ended::Read(result, reading, pull) => self.has_read(s, result, reading, &pull, up),
        }
    }
}

pub(super) fn header_of(tx: &Tx) -> LnetHeader {
    LnetHeader { payload_len: tx.payload.len(), ..tx.header }
}

fn immediate(tx: &Tx) -> (Vec<u8>, Sending) {
    let (shared, copied);
    let payload: &[u8] = match tx.payload.share() {
        Some(buffer) => {
            shared = buffer;
            &shared
        }
        None => {
            copied = tx.payload.to_vec();
            &copied
        }
    };
    (Frame::Immediate(header_of(tx), payload).encode(), Sending::Message(tx.id))
}

fn take_pull(s: &mut State, via: u64) -> Option<Pull> {
    let pull = s.pulls.remove(&via)?;
    if let Some(bound) = s.bound.get_mut(&pull.peer.id()) {
        bound.pulls = bound.pulls.saturating_sub(1);
    }
    Some(pull)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_all_reads() {
        let fabric = kfab::Fabric::new((kfab_shm::Shm,));
        let ends: Vec<_> = (0..3).map(|_| fabric.endpoint().unwrap()).collect();
        let id = |i: usize| ends[0].peer(&ends[i].address().to_string()).unwrap().id();
        let (greedy, other, most) = (id(1), id(2), 5);
        let mut reads = Reads::default();
        while reads.may_begin(greedy, most) {
            reads.begin(greedy);
        }
        assert_eq!(reads.all, 3);
        while reads.may_begin(other, most) {
            reads.begin(other);
        }
        assert_eq!(reads.all, 5);
        reads.end(greedy);
        assert!(reads.may_begin(other, most) && reads.may_begin(greedy, most) && reads.may_begin(greedy, 6));
        (0..2).for_each(|_| reads.end(greedy));
        assert_eq!((reads.all, reads.of_peer.len()), (2, 1));
    }
}
