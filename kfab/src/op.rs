//! Operations: one handle to wait on, await, poll, bound in time, cancel or drop.

use crate::endpoint::Message;
use crate::lane::Lane;
use crate::letter::Letter;
use crate::op::sealed::{Ended as _, Hold as _};
use crate::share::Share;
use crate::window::Notice;
use kfab_core::mem::Buffer;
use kfab_core::{Error, Kind, Result};
use kfab_proto::{Direct, OpId, Outcome};
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Waits of at least this long begin on the short way, which reads no clock: over tcp its rounds are system calls, about 2 ms in all.
const SHORT_LIMIT: Duration = Duration::from_millis(20);

/// What an operation hands over at its end: `()`, a [`Message`] (in several buffers: [`Parts`](crate::Parts)), a [`Buffer`] or several, or
/// a [`Notice`].
pub trait Finish: sealed::Finish {}

impl Finish for () {}
impl Finish for Message {}
impl Finish for Buffer {}
impl Finish for Notice {}

pub(crate) mod sealed {
    use super::*;

    /// What an operation holds of its lane: a share.
    pub trait Hold: Deref<Target = Arc<Lane>> + for<'a> From<&'a Arc<Lane>> + Unpin {
        /// Of no lane.
        #[doc(hidden)]
        const EMPTY: Self;

        /// The lane; `None` of the empty one.
        #[doc(hidden)]
        fn lane(&self) -> Option<&Arc<Lane>>;
    }

    /// How the value is made from what the machine gives. Not for others to implement.
    pub trait Finish: Sized {
        /// What the operation holds of its lane; for a message its place too.
        #[doc(hidden)]
        type Hold: Hold;

        /// The value while nobody has taken it from its operation: [`Untaken`] where dropping it must lose nothing.
        #[doc(hidden)]
        type Ended: Ended<Self> + Unpin;

        /// The value. Only those that keep a hold ask for it.
        #[doc(hidden)]
        fn finish(outcome: Outcome, hold: impl FnOnce() -> Self::Hold) -> Result<Self>;

        /// Waits on the short way. `Err`: it has ended, or wait as for everything.
        #[doc(hidden)]
        #[inline]
        fn wait_shortly(hold: Self::Hold, op: OpId) -> std::result::Result<Self, Self::Hold> {
            let mut nothing = Direct::EMPTY;
            hold.wait_shortly(op, &mut nothing);
            Err(hold)
        }
    }

    /// A value in an operation that has ended, until somebody takes it. Not for others to implement.
    pub trait Ended<T> {
        /// In the operation.
        #[doc(hidden)]
        fn hold(value: T) -> Self;

        /// Out of it.
        #[doc(hidden)]
        fn take(self) -> T;
    }

    /// One with which nothing is lost.
    macro_rules! held_as_it_is {
        ($($value:ty),*) => {$(
            impl Ended<$value> for $value {
                #[inline(always)]
                fn hold(value: $value) -> $value {
                    value
                }

                #[inline(always)]
                fn take(self) -> $value {
                    self
                }
            }
        )*};
    }

    held_as_it_is!((), Buffer, Vec<Buffer>);

    /// What came from a peer. Not for others to implement.
    pub trait GiveBack {
        /// Puts it in front of the queue that it came from.
        #[doc(hidden)]
        fn give_back(self);
    }

    /// Such a value: dropped before it is taken it goes back. Named in a sealed trait's signature, hence `pub`.
    pub struct Untaken<T: GiveBack>(
        /// `None` once it has been taken.
        Option<T>,
    );

    impl<T: GiveBack> Ended<T> for Untaken<T> {
        #[inline(always)]
        fn hold(value: T) -> Untaken<T> {
            Untaken(Some(value))
        }

        #[inline(always)]
        fn take(mut self) -> T {
            self.0.take().expect("whole until it is taken")
        }
    }

    impl<T: GiveBack> Drop for Untaken<T> {
        #[inline(always)]
        fn drop(&mut self) {
            if let Some(value) = self.0.take() {
                value.give_back();
            }
        }
    }

    pub(crate) fn unexpected() -> Error {
        Error::new(Kind::Protocol, "operation", "ended with a value of another operation")
    }

    impl Finish for () {
        type Hold = Share;
        type Ended = ();

        #[inline(always)]
        fn wait_shortly(hold: Share, op: OpId) -> std::result::Result<(), Share> {
            if hold.wait_for_unit(op) { Ok(()) } else { Err(hold) }
        }

        #[inline(always)]
        fn finish(outcome: Outcome, _: impl FnOnce() -> Share) -> Result<()> {
            match outcome {
                Outcome::Unit => Ok(()),
                _ => Err(unexpected()),
            }
        }
    }

    impl Finish for Message {
        type Hold = Letter;
        type Ended = Untaken<Message>;

        fn finish(outcome: Outcome, hold: impl FnOnce() -> Letter) -> Result<Message> {
            match outcome {
                Outcome::Message(m) => {
                    let mut letter = hold();
                    letter.split().1.put(m);
                    Ok(Message(letter))
                }
                _ => Err(unexpected()),
            }
        }

        #[inline(always)]
        fn wait_shortly(mut hold: Letter, op: OpId) -> std::result::Result<Message, Letter> {
            let (lane, place) = hold.split();
            if lane.wait_shortly(op, place) { Ok(Message(hold)) } else { Err(hold) }
        }
    }

    impl GiveBack for Message {
        #[inline(never)]
        fn give_back(mut self) {
            let (lane, place) = self.0.split();
            lane.give_back(Outcome::Message(place.take()));
        }
    }

    impl Finish for Buffer {
        type Hold = Share;
        type Ended = Buffer;

        #[inline(always)]
        fn finish(outcome: Outcome, _: impl FnOnce() -> Share) -> Result<Buffer> {
            match outcome {
                Outcome::Buffer(b) => Ok(b),
                _ => Err(unexpected()),
            }
        }
    }

    impl Finish for Notice {
        type Hold = Share;
        type Ended = Untaken<Notice>;

        #[inline(always)]
        fn finish(outcome: Outcome, lane: impl FnOnce() -> Share) -> Result<Notice> {
            match outcome {
                Outcome::Notice(n) => Ok(Notice::new(lane(), n)),
                _ => Err(unexpected()),
            }
        }
    }
}

/// Two words for an operation that hands nothing over: it goes up in registers. Handed up in memory, its narrow stores would be read
/// back by one wide load, which waits until the processor has written all that came before: the message's line too.
enum State<T: Finish> {
    Ready(Result<T::Ended>),
    Pending(Watch<T>),
}

const _: () = assert!(size_of::<Op<()>>() == 16);

/// An operation under way that somebody watches; dropped, it goes on unwatched. It is apart from [`Op`] so that one which has
/// ended, as most have when they are looked at first, has nothing to do when it goes. With nothing in its hold it is one that has
/// ended, and whose result was taken.
struct Watch<T: Finish> {
    hold: T::Hold,
    id: OpId,
}

impl<T: Finish> Watch<T> {
    const OVER: Watch<T> = Watch { hold: T::Hold::EMPTY, id: OpId::NOBODY };

    /// The end of the watch, not of the operation.
    #[inline(always)]
    fn end(mut self) -> Option<(T::Hold, OpId)> {
        self.hold.lane()?;
        Some((std::mem::replace(&mut self.hold, T::Hold::EMPTY), self.id))
    }
}

impl<T: Finish> Drop for Watch<T> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(lane) = self.hold.lane() {
            lane.let_go(self.id);
        }
    }
}

/// An operation under way or ended. It has begun already; nothing is lost by not looking at it.
///
/// * [`Op::wait`]: block until it ends. * `.await`: in any async runtime. * [`Op::try_take`]: poll.
/// * [`Op::within`]: give it a deadline. * [`Op::cancel`]: end it early.
/// * Dropping it: a receive is withdrawn. A message that it had got goes back to the head of the queue, one that is still being
///   fetched when it has come: a branch that `select!` does not take loses nothing. Everything else goes on to its end unwatched, and
///   keeps its memory until then.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// # let peer = there.peer(&here.address().to_string())?;
/// use std::time::Duration;
/// let late = here.recv().within(Duration::from_millis(5)).wait();
/// assert_eq!(late.unwrap_err().kind(), kfab::Kind::TimedOut);
/// assert_eq!(here.recv().cancel().unwrap_err().kind(), kfab::Kind::Canceled);
/// let mut message = here.recv();
/// peer.send("at last").wait()?;
/// while !message.is_done() {}
/// assert_eq!(&message.wait()?[..], b"at last");
/// # Ok(()) }
/// ```
#[must_use = "the operation may fail: wait for it, await it, or drop it on purpose"]
pub struct Op<T: Finish> {
    state: State<T>,
}

impl<T: Finish> Op<T> {
    #[inline(always)]
    pub(crate) fn ready(r: Result<T>) -> Op<T> {
        Op { state: State::Ready(r.map(T::Ended::hold)) }
    }

    #[inline(always)]
    pub(crate) fn pending(lane: T::Hold, id: OpId) -> Op<T> {
        Op { state: State::Pending(Watch { hold: lane, id }) }
    }

    /// `true` if it is known to have ended: within the call that began it, or when it was last looked at. Makes no progress; who sends or
    /// writes much need not queue what has ended already.
    ///
    /// ```
    /// # fn main() -> kfab::Result<()> {
    /// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
    /// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
    /// # let peer = there.peer(&here.address().to_string())?;
    /// let mut under_way = std::collections::VecDeque::<kfab::Op<()>>::new();
    /// for i in 0..100u32 {
    ///     if under_way.len() == 16 && let Some(oldest) = under_way.pop_front() {
    ///         oldest.wait()?;
    ///     }
    ///     let op = peer.send(&i.to_le_bytes());
    ///     if op.has_ended() { op.wait()? } else { under_way.push_back(op) }
    /// }
    /// # for i in 0..100u32 { assert_eq!(here.recv().wait()?[..], i.to_le_bytes()) }
    /// # Ok(()) }
    /// ```
    #[inline(always)]
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// `true` once it has ended. Makes progress.
    pub fn is_done(&mut self) -> bool {
        if let State::Pending(watch) = &self.state
            && let Some(lane) = watch.hold.lane()
        {
            let mut s = lane.lock();
            s.poll();
            let r = s.machine.take(watch.id);
            lane.leave(&mut s);
            drop(s);
            if let Some(r) = r {
                self.end(r);
            }
        }
        !matches!(&self.state, State::Pending(watch) if watch.hold.lane().is_some())
    }

    /// The result if it has ended, else the operation back. Makes progress.
    pub fn try_take(mut self) -> std::result::Result<Result<T>, Op<T>> {
        if self.is_done() { Ok(self.wait()) } else { Err(self) }
    }

    /// Waits for the end: spins, then sleeps, as the endpoint was told ([`crate::Wait`]). For ever if need be; a dead peer ends it.
    #[inline(always)]
    pub fn wait(self) -> Result<T> {
        match self.state {
            State::Ready(r) => r.map(T::Ended::take),
            State::Pending(watch) => {
                let (lane, id) = watch.end().ok_or_else(Lane::closed)?;
                T::wait_shortly(lane, id).or_else(|lane| wait_long(lane, id))
            }
        }
    }

    /// Waits for at most `limit`; then the operation is ended as `TimedOut`, and the error's fate tells whether the peer may
    /// have seen it. A receive's message is not lost, also when it is large and half of it is here: it waits for the next receive.
    #[inline(always)]
    pub fn wait_timeout(self, limit: Duration) -> Result<T> {
        match self.state {
            State::Ready(r) => r.map(T::Ended::take),
            State::Pending(watch) => {
                let (lane, id) = watch.end().ok_or_else(Lane::closed)?;
                if limit < SHORT_LIMIT {
                    return wait_until(lane, id, limit);
                }
                T::wait_shortly(lane, id).or_else(|lane| wait_until(lane, id, limit))
            }
        }
    }

    /// Ends the operation as `TimedOut` if it takes longer than `limit` from now, however it is waited for.
    ///
    /// What comes for a receive after that is not thrown away: it waits for another, and keeps its sender's credit
    /// ([`Limits::credits`](crate::Limits::credits), 1024 units a peer) until one takes it. A client that gives each question a tag of its own
    /// must take late answers too, or its server stalls in the end. If it posts each receive before it asks, what waits is late:
    ///
    /// ```
    /// # fn main() -> kfab::Result<()> {
    /// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
    /// # let (client, server) = (fabric.endpoint()?, fabric.endpoint()?);
    /// # let to_client = server.peer(&client.address().to_string())?;
    /// use std::time::Duration;
    /// let answer = client.recv_tagged(7, 0).within(Duration::from_millis(5));
    /// assert_eq!(answer.wait().unwrap_err().kind(), kfab::Kind::TimedOut);
    /// to_client.send_tagged(7, "late").wait()?;
    /// # while client.peek(Some((0, u64::MAX))).is_none() {}
    /// while client.peek(Some((0, u64::MAX))).is_some() {
    ///     drop(client.recv_tagged(0, u64::MAX).wait()?);
    /// }
    /// # assert_eq!(client.stats().lane.unexpected, 0);
    /// # Ok(()) }
    /// ```
    pub fn within(self, limit: Duration) -> Op<T> {
        if let State::Pending(watch) = &self.state
            && let Some(lane) = watch.hold.lane()
        {
            let mut s = lane.lock();
            // A time that the clock cannot reach is none.
            if let Some(at) = Instant::now().checked_add(limit) {
                let at = s.lane_time(at);
                s.machine.set_deadline(watch.id, at);
            }
            lane.leave(&mut s);
        }
        self
    }

    /// Ends the operation now, as `Canceled` unless it has ended already: the result tells which. A receive's message is not lost, as with
    /// [`Op::wait_timeout`]; it waits for another receive, on its sender's credit (see [`Op::within`]).
    pub fn cancel(self) -> Result<T> {
        match self.state {
            State::Ready(r) => r.map(T::Ended::take),
            State::Pending(watch) => {
                let (lane, id) = watch.end().ok_or_else(Lane::closed)?;
                end_early(&lane, id, Kind::Canceled).and_then(|o| T::finish(o, || lane))
            }
        }
    }

    /// What it is; afterwards it is over.
    fn take(&mut self) -> State<T> {
        std::mem::replace(&mut self.state, State::Pending(Watch::OVER))
    }

    fn end(&mut self, r: Result<Outcome>) {
        if let State::Pending(watch) = self.take()
            && let Some((lane, _)) = watch.end()
        {
            self.state = State::Ready(r.and_then(|o| T::finish(o, || lane)).map(T::Ended::hold));
        }
    }
}

#[inline(never)]
fn wait_long<T: Finish>(lane: T::Hold, id: OpId) -> Result<T> {
    match lane.wait_for(id, None) {
        Some(r) => r.and_then(|o| T::finish(o, || lane)),
        None => Err(Lane::closed()),
    }
}

#[inline(never)]
fn wait_until<T: Finish>(lane: T::Hold, id: OpId, limit: Duration) -> Result<T> {
    let r = lane.wait_for(id, Instant::now().checked_add(limit));
    let r = r.unwrap_or_else(|| end_early(&lane, id, Kind::TimedOut));
    r.and_then(|o| T::finish(o, || lane))
}

fn end_early(lane: &Lane, id: OpId, kind: Kind) -> Result<Outcome> {
    lane.with(|m, io| {
        m.cancel(io, id, kind);
        m.take(id).unwrap_or_else(|| Err(Lane::closed()))
    })
}

impl<T: Finish + Unpin> Future for Op<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if let State::Pending(watch) = &self.state
            && let Some(lane) = watch.hold.lane().cloned()
        {
            let id = watch.id;
            let mut s = lane.lock();
            s.poll();
            match s.machine.take(id) {
                Some(r) => {
                    lane.leave(&mut s);
                    drop(s);
                    self.end(r);
                }
                None => {
                    s.machine.set_waker(id, cx.waker());
                    lane.watch(s);
                    return Poll::Pending;
                }
            }
        }
        match self.take() {
            State::Ready(r) => Poll::Ready(r.map(T::Ended::take)),
            State::Pending(_) => Poll::Ready(Err(Lane::closed())),
        }
    }
}

impl<T: Finish> std::fmt::Debug for Op<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.state {
            State::Ready(Ok(_)) => "Op(done)",
            State::Ready(Err(_)) => "Op(failed)",
            State::Pending(watch) if watch.hold.lane().is_none() => "Op(taken)",
            State::Pending(_) => "Op(under way)",
        })
    }
}
