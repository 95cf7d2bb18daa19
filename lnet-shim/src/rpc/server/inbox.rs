//! What other threads tell a lane: that a handler can go on, that it is time to stop. Wakes the lane if it sleeps.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Wake, Waker};
use std::time::Duration;

#[derive(Debug, Default)]
struct Content {
    ready: Vec<usize>,
    sleeping: bool,
    stop: bool,
}

/// One lane's inbox.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Something is in it: looked at without the lock.
    news: AtomicBool,
    content: Mutex<Content>,
    kick: OwnedFd,
}

impl Inbox {
    pub(crate) fn new() -> std::io::Result<Inbox> {
        let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Inbox { news: AtomicBool::new(false), content: Mutex::default(), kick })
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A task can go on.
    fn wake(&self, task: usize) {
        let mut content = self.lock();
        content.ready.push(task);
        self.tell(content);
    }

    /// The lane is to end.
    pub(crate) fn stop(&self) {
        let mut content = self.lock();
        content.stop = true;
        self.tell(content);
    }

    fn tell(&self, content: MutexGuard<'_, Content>) {
        self.news.store(true, Ordering::Release);
        if content.sleeping {
            // The counter can only be full if nobody has read it 2^64 times: the lane is awake then.
            let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
        }
    }

    /// Moves the tasks that can go on to `ready`; `true` to stop.
    #[inline]
    pub(crate) fn take(&self, ready: &mut Vec<usize>) -> bool {
        if !self.news.load(Ordering::Acquire) {
            return false;
        }
        let mut content = self.lock();
        self.news.store(false, Ordering::Relaxed);
        ready.append(&mut content.ready);
        content.stop
    }

    /// Sleeps until there is news, `fd` is readable, or `limit` has passed. `arm` is asked last, and `false` keeps awake.
    pub(crate) fn sleep(&self, fd: impl AsFd, limit: Duration, arm: impl FnOnce() -> bool) {
        {
            let mut content = self.lock();
            if self.news.load(Ordering::Relaxed) {
                return;
            }
            content.sleeping = true;
        }
        if arm() {
            let mut fds = [PollFd::new(&fd, PollFlags::IN), PollFd::new(&self.kick, PollFlags::IN)];
            let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
            // Interrupted, timed out or ready: the lane looks in any case.
            let _ = poll(&mut fds, Some(&limit));
            let mut buf = [0; 8];
            let _ = rustix::io::read(&self.kick, &mut buf);
        }
        self.lock().sleeping = false;
    }
}

struct TaskWaker {
    inbox: Arc<Inbox>,
    task: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.inbox.wake(self.task);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.inbox.wake(self.task);
    }
}

/// The waker of a lane's task.
pub(crate) fn waker(inbox: &Arc<Inbox>, task: usize) -> Waker {
    Waker::from(Arc::new(TaskWaker { inbox: inbox.clone(), task }))
}
