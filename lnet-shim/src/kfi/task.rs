//! Operations of kfab under way, and the list of those that have news. Wakers may run under kfab's lane lock: they only note a
//! number and, if the lane's thread sleeps, write to its eventfd.

use std::collections::HashMap;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use kfab::{Buffer, Finish, Message, Op, PeerId};
use rustix::event::{EventfdFlags, eventfd};

use super::lane::{Pull, Reading};
use crate::network::TxId;
use crate::nid::Nid;

/// What a send was for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sending {
    /// A message with its payload.
    Message(TxId),
    /// A message whose payload the peer is to fetch.
    Offer(u64),
}

/// An operation under way.
pub(super) enum Task {
    /// The next message.
    Recv(Op<Message>),
    Send(Op<()>, Sending),
    Read(Op<Buffer>, Reading, Pull),
    /// What becomes of an offer of ours.
    Offer(Op<kfab::Notice>, u64),
    /// Tells a peer that its payload is not read.
    Tell(Op<Buffer>, PeerId),
    /// Never gets a message: ends when the peer dies.
    Watch(Op<Message>, PeerId, Nid),
}

/// How one ended.
pub(super) enum Ended {
    Recv(kfab::Result<Message>),
    Send(kfab::Result<()>, Sending),
    Read(kfab::Result<Buffer>, Reading, Pull),
    Offer(kfab::Result<kfab::Notice>, u64),
    Tell(PeerId),
    Watch(PeerId, Nid),
}

struct News {
    ids: Vec<u64>,
    asleep: bool,
}

/// The operations with news.
pub(super) struct Ready {
    news: Mutex<News>,
    wake: OwnedFd,
}

impl Ready {
    pub(super) fn new() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { news: Mutex::new(News { ids: Vec::new(), asleep: false }), wake })
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an operation; 0 names none and just wakes the thread.
    pub(super) fn note(&self, id: u64) {
        let mut news = self.lock();
        news.ids.push(id);
        if std::mem::take(&mut news.asleep) {
            // The counter can only be full if nobody has read it 2^64 times: the thread is awake then.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Takes all news; the thread is awake.
    pub(super) fn take(&self) -> Vec<u64> {
        let mut news = self.lock();
        news.asleep = false;
        std::mem::take(&mut news.ids)
    }

    /// Says that the thread is about to sleep; `false` if there is news.
    pub(super) fn lie_down(&self) -> bool {
        let mut news = self.lock();
        news.asleep = news.ids.is_empty();
        news.asleep
    }

    /// Takes back what woke the thread.
    pub(super) fn rise(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}

impl AsFd for Ready {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

struct Note {
    id: u64,
    ready: Arc<Ready>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.ready.note(self.id);
    }
}

/// All operations under way.
pub(super) struct Tasks {
    ready: Arc<Ready>,
    all: HashMap<u64, (Task, Waker)>,
    next: u64,
}

impl Tasks {
    pub(super) fn new(ready: Arc<Ready>) -> Self {
        Self { ready, all: HashMap::new(), next: 0 }
    }

    /// Follows an operation: its end if it has come already, else its number.
    pub(super) fn follow(&mut self, task: Task) -> Result<Ended, u64> {
        self.next += 1;
        let id = self.next;
        let waker = Waker::from(Arc::new(Note { id, ready: self.ready.clone() }));
        self.step(id, task, waker).ok_or(id)
    }

    /// Follows an operation, and leaves it for the next round even if it has ended.
    pub(super) fn follow_later(&mut self, task: Task) {
        self.next += 1;
        let id = self.next;
        let waker = Waker::from(Arc::new(Note { id, ready: self.ready.clone() }));
        self.all.insert(id, (task, waker));
        self.ready.note(id);
    }

    /// Looks at an operation that has news; `None` if it is still under way, or has ended before.
    pub(super) fn look(&mut self, id: u64) -> Option<Ended> {
        let (task, waker) = self.all.remove(&id)?;
        self.step(id, task, waker)
    }

    fn step(&mut self, id: u64, mut task: Task, waker: Waker) -> Option<Ended> {
        let mut cx = Context::from_waker(&waker);
        let ended = match &mut task {
            Task::Recv(op) => poll(op, &mut cx).map(Ended::Recv),
            Task::Watch(op, peer, nid) => poll(op, &mut cx).map(|_| Ended::Watch(*peer, *nid)),
            Task::Send(op, what) => poll(op, &mut cx).map(|r| Ended::Send(r, *what)),
            Task::Offer(op, offer) => poll(op, &mut cx).map(|r| Ended::Offer(r, *offer)),
            Task::Tell(op, peer) => poll(op, &mut cx).map(|_| Ended::Tell(*peer)),
            Task::Read(op, ..) => match poll(op, &mut cx) {
                Some(result) => {
                    let Task::Read(_, reading, pull) = task else { return None };
                    return Some(Ended::Read(result, reading, pull));
                }
                None => None,
            },
        };
        if ended.is_none() {
            self.all.insert(id, (task, waker));
        }
        ended
    }

    /// Withdraws an operation.
    pub(super) fn drop_task(&mut self, id: u64) {
        self.all.remove(&id);
    }

    /// Operations that will end by themselves before long, given a living peer.
    pub(super) fn busy(&self) -> bool {
        self.all.values().any(|(t, _)| matches!(t, Task::Send(..) | Task::Read(..) | Task::Tell(..)))
    }

    /// Withdraws all; sends go on unwatched.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }
}

fn poll<T: Finish + Unpin>(op: &mut Op<T>, cx: &mut Context<'_>) -> Option<kfab::Result<T>> {
    match Pin::new(op).poll(cx) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}
