//! Receive pools: so many buffers wait for whoever sends, and go back when their messages are dropped.
//!
//! Nothing new below: each buffer waits in a posted receive. What the pool adds is that a receive may wait for a buffer (it is reserved
//! first and posted when one comes back) and that its memory is its own, within the endpoint's bound, so that what is in use of it can be
//! counted there.

use crate::endpoint::{Message, Recv};
use crate::lane::Lane;
use crate::letter::Letter;
use crate::op::{Finish, Op, sealed};
use kfab_core::mem::{Buffer, Pool};
use kfab_core::{Error, Kind, Result};
use kfab_proto::{Io, Machine, OpId, Outcome, Want};
use std::collections::VecDeque;
use std::mem::{replace, take};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

/// The largest region that a pool's buffers share, bytes.
const REGION: usize = 64 << 20;

impl Recv<'_> {
    /// Posts `count` such receives, each with a buffer of `size` bytes; their messages come out of [`ReceivePool::next`]. Messages larger
    /// than that end a receive as `Truncated`.
    ///
    /// # Errors
    /// `InvalidArgument` for no buffers, empty ones, or if the receive has one already; `Limit` if so many operations are not to be had
    /// ([`Limits::max_ops`](crate::Limits::max_ops)) or so much memory: the buffers count against
    /// [`PoolConfig::max_bytes`](crate::PoolConfig::max_bytes) until pool and messages are gone; else what a receive may end with.
    pub fn pool(self, count: usize, size: usize) -> Result<ReceivePool> {
        if count == 0 || size == 0 || self.into.is_some() {
            let why = "a pool has at least one buffer of at least one byte, and brings them itself";
            return Err(Error::new(Kind::InvalidArgument, "receive pool", why));
        }
        let lane = self.endpoint.lane.clone();
        let memory = lane.lock().pool.clone();
        let block = memory.block_size(size)?;
        let bytes = count.checked_mul(block).ok_or_else(|| {
            Error::new(Kind::Limit, "receive pool", format!("{count} buffers of {size} bytes are too many"))
        })?;
        memory.check(bytes)?;
        let memory = memory.sibling(bytes.min(REGION).max(block));
        let shared = Shared { lane, want: self.want, memory, count, size, bytes, state: Mutex::default() };
        let pool = ReceivePool { shared: Arc::new(shared) };
        pool.shared.refill()?;
        Ok(pool)
    }
}

/// A bounded number of receive buffers that all peers of an endpoint share (one peer, or one tag, if its [`Recv`] said so). Made by
/// [`Recv::pool`].
///
/// **Back-pressure.** A buffer is free until a message is in it, and again when that [`Pooled`] is dropped. While none is free messages wait
/// as they do without a posted receive: each peer may have so much waiting as its credit allows (`Limits::credits` times
/// `Limits::credit_bytes`), and after that its sends wait, with the peer. No send fails and no message is dropped, and memory is bounded: that
/// credit for each peer, and the pool.
///
/// **A peer that dies** ends with `PeerLost` the receive that its bytes were coming for, and no other: what has come whole stays, and the
/// buffer is free for the next. A pool for one peer ends with its peer: every [`ReceivePool::next`] is `PeerLost` then. Closing the endpoint
/// ends them with `Closed`.
///
/// Dropped, it gives back what has come and was not asked for: those messages wait, in their order, for other receives of the endpoint.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// # let peer = there.peer(&here.address().to_string())?;
/// let pool = here.recv_with().pool(64, 4096)?;
/// peer.send("one of many").wait()?;
/// let message = pool.next().wait()?;
/// assert_eq!((&message[..], pool.free()), (&b"one of many"[..], 63));
/// drop(message);
/// assert_eq!(pool.free(), 64);
/// # Ok(()) }
/// ```
pub struct ReceivePool {
    shared: Arc<Shared>,
}

struct Shared {
    lane: Arc<Lane>,
    want: Want,
    /// The buffers' own: what is in use there is in use here.
    memory: Pool,
    count: usize,
    size: usize,
    /// All of them together, as the memory counts.
    bytes: usize,
    /// Taken before the lane's lock, never under it.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Receives with a buffer, in the order in which they were posted.
    ready: VecDeque<OpId>,
    /// Those of them that were asked for, as far as they have not ended.
    asked: Vec<OpId>,
    /// Asked for, and without a buffer.
    dry: VecDeque<OpId>,
    closed: bool,
}

impl ReceivePool {
    /// The next message; await it, bound it in time or cancel it as any other operation. While no buffer is free it waits for one too: a
    /// program that waits so on its only thread, and holds all messages, waits for itself.
    pub fn next(&self) -> Op<Pooled> {
        let shared = &self.shared;
        let refilled = shared.refill();
        let mut s = shared.lock();
        let op = match s.ready.pop_front() {
            Some(op) => {
                s.asked.push(op);
                op
            }
            None => match refilled.and_then(|()| shared.lane.with(|m, io| m.reserve_recv(io, shared.want))) {
                Ok(op) => {
                    s.dry.push_back(op);
                    op
                }
                Err(e) => return Op::ready(Err(e)),
            },
        };
        drop(s);
        Op::pending(Place { letter: Letter::from(&shared.lane), pool: Some(shared.clone()) }, op)
    }

    /// Buffers that no message is in. Makes no progress.
    pub fn free(&self) -> usize {
        // What cannot be posted now is no less free.
        let _ = self.shared.refill();
        let s = self.shared.lock();
        self.shared.lane.with(|m, _| s.ready.iter().chain(&s.asked).filter(|op| !m.has_ended(**op)).count())
    }

    /// Buffers in all.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Bytes of each.
    pub fn size(&self) -> usize {
        self.shared.size
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gives the buffers that are not in use to receives: to those that wait for one, else to new ones.
    fn refill(&self) -> Result<()> {
        let mut state = self.lock();
        let s = &mut *state;
        self.lane.with(|m, io| {
            s.asked.retain(|op| !m.has_ended(*op));
            while !s.closed && s.ready.len() < self.count && self.memory.stats().in_use < self.bytes {
                let buffer = self.memory.alloc(self.size)?;
                let Some(buffer) = s.first_dry(m, io, self.want, buffer) else { continue };
                let op = m.reserve_recv(io, self.want)?;
                s.ready.push_back(op);
                m.supply(io, op, self.want, buffer);
            }
            Ok(())
        })
    }
}

impl State {
    /// Gives a buffer to the first that waits for one; the buffer back if none does.
    fn first_dry(
        &mut self,
        m: &mut Machine,
        io: &mut Io<'_>,
        want: Want,
        mut buffer: Buffer,
    ) -> Option<Buffer> {
        while let Some(op) = self.dry.pop_front() {
            match m.supply(io, op, want, buffer) {
                None => {
                    self.asked.push(op);
                    return None;
                }
                // It has ended meanwhile.
                Some(back) => buffer = back,
            }
        }
        Some(buffer)
    }
}

impl Drop for ReceivePool {
    fn drop(&mut self) {
        if !self.shared.lane.is_at_home() {
            return;
        }
        let mut s = self.shared.lock();
        s.closed = true;
        let (ready, dry) = (take(&mut s.ready), take(&mut s.dry));
        drop(s);
        self.shared.lane.with(|m, io| {
            for op in dry {
                m.cancel(io, op, Kind::Closed);
            }
            // Those that wait first: what the others give back is not for them.
            let (came, waits): (Vec<_>, Vec<_>) = ready.into_iter().partition(|op| m.has_ended(*op));
            waits.into_iter().chain(came.into_iter().rev()).for_each(|op| m.detach(io, op));
        });
    }
}

impl std::fmt::Debug for ReceivePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReceivePool({} of {} bytes, {} free)", self.count(), self.size(), self.free())
    }
}

/// A message in a buffer of a [`ReceivePool`], to which it goes back when this is dropped.
pub struct Pooled {
    /// `None` only while being dropped.
    message: Option<Message>,
    pool: Option<Arc<Shared>>,
}

impl Deref for Pooled {
    type Target = Message;

    #[inline]
    fn deref(&self) -> &Message {
        self.message.as_ref().expect("whole until it is dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.message = None;
        if let Some(pool) = self.pool.take() {
            // If nothing can be posted now, it says so who asks next.
            let _ = pool.refill();
        }
    }
}

impl std::fmt::Debug for Pooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

/// What an operation of a pool holds: the place of its message, and the pool, which is told when there will be none. Named in a sealed
/// trait's signature, hence `pub`.
pub struct Place {
    letter: Letter,
    pool: Option<Arc<Shared>>,
}

impl Place {
    fn with(&mut self, message: Message) -> Pooled {
        Pooled { message: Some(message), pool: self.pool.take() }
    }
}

impl sealed::Hold for Place {
    const EMPTY: Place = Place { letter: Letter::EMPTY, pool: None };

    fn lane(&self) -> Option<&Arc<Lane>> {
        self.letter.lane()
    }
}

impl From<&Arc<Lane>> for Place {
    fn from(lane: &Arc<Lane>) -> Place {
        Place { letter: Letter::from(lane), pool: None }
    }
}

impl Deref for Place {
    type Target = Arc<Lane>;

    fn deref(&self) -> &Arc<Lane> {
        &self.letter
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let _ = pool.refill();
        }
    }
}

impl Finish for Pooled {}

impl sealed::GiveBack for Pooled {
    fn give_back(mut self) {
        if let Some(message) = self.message.take() {
            message.give_back();
        }
    }
}

impl sealed::Finish for Pooled {
    type Hold = Place;
    type Ended = sealed::Untaken<Pooled>;

    fn finish(outcome: Outcome, hold: impl FnOnce() -> Place) -> Result<Pooled> {
        let mut place = hold();
        let letter = replace(&mut place.letter, sealed::Hold::EMPTY);
        Message::finish(outcome, || letter).map(|message| place.with(message))
    }

    fn wait_shortly(mut place: Place, op: OpId) -> std::result::Result<Pooled, Place> {
        match Message::wait_shortly(replace(&mut place.letter, sealed::Hold::EMPTY), op) {
            Ok(message) => Ok(place.with(message)),
            Err(letter) => {
                place.letter = letter;
                Err(place)
            }
        }
    }
}
