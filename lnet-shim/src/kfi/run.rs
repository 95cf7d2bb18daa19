//! The thread of a lane: makes progress, looks at operations with news, tells the node, and sleeps when there is nothing to do.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::lane::{Lane, State};
use super::task::Task;
use super::wire::TAG;
use crate::network::{Failure, Upcall, Upper};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Sleeps after the last news, one after the other: kfab's acknowledgements, its other timers, nothing.
const SLEEPS: [Duration; 3] =
    [Duration::from_millis(1), Duration::from_millis(10), Duration::from_millis(250)];

impl Lane {
    pub(super) fn run(self: &Arc<Self>, upper: &Weak<dyn Upper>) {
        let _ = self.thread.set(std::thread::current().id());
        let mut up = Vec::new();
        {
            let mut s = self.lock();
            let op = self.endpoint.recv_tagged(TAG, 0);
            self.follow(&mut s, Task::Recv(op), &mut up);
        }
        let (mut busy_at, mut tick_at, mut naps) = (Instant::now(), Instant::now() + TICK, 0);
        while !self.stop.load(Ordering::Acquire) {
            let moved = self.endpoint.progress();
            let worked = self.round(&mut up);
            let Some(upper) = upper.upgrade() else { break };
            if !up.is_empty() {
                upper.upcalls(self.nid, std::mem::take(&mut up));
            }
            drop(upper);
            let mut s = self.lock();
            let now = Instant::now();
            if now >= tick_at {
                tick_at = now + TICK;
                self.expire(&mut s, now, &mut up);
            }
            let busy = s.tasks.busy();
            drop(s);
            if moved || worked || !up.is_empty() {
                (busy_at, naps) = (now, 0);
            } else if now.duration_since(busy_at) >= self.params.spin {
                let most = if busy { 1 } else { SLEEPS.len() - 1 };
                self.sleep(SLEEPS[naps.min(most)]);
                naps += 1;
            }
        }
        self.lock().clear();
    }

    /// Looks at what has news; `false` if nothing had.
    fn round(&self, up: &mut Vec<Upcall>) -> bool {
        let ids = self.ready.take();
        if ids.is_empty() {
            return false;
        }
        let mut s = self.lock();
        for id in ids {
            if let Some(ended) = s.tasks.look(id) {
                self.ended(&mut s, ended, up);
            }
        }
        self.read_queued(&mut s, up);
        true
    }

    fn sleep(&self, most: Duration) {
        if !self.ready.lie_down() {
            return;
        }
        if self.endpoint.arm() {
            let mut fds =
                [PollFd::new(&*self.endpoint, PollFlags::IN), PollFd::new(&*self.ready, PollFlags::IN)];
            let timeout = Timespec { tv_sec: most.as_secs() as i64, tv_nsec: most.subsec_nanos().into() };
            // Interrupted, timed out or ready: the next round looks at everything.
            let _ = poll(&mut fds, Some(&timeout));
        }
        self.ready.rise();
    }

    /// Ends offers that nobody has taken in time; watches no longer who has been silent for long.
    fn expire(&self, s: &mut State, now: Instant, up: &mut Vec<Upcall>) {
        let late: Vec<u64> = s.offers.iter().filter(|(_, o)| o.deadline <= now).map(|(n, _)| *n).collect();
        for number in late {
            if let Some(offer) = s.offers.remove(&number) {
                up.push(Upcall::Sent(offer.tx, Err(Failure::NetworkTimeout)));
            }
        }
        let idle = |last: Instant| now.duration_since(last) >= self.params.watch_idle;
        let in_use: Vec<_> = s.offers.values().map(|o| o.peer).collect();
        for (peer, bound) in &mut s.bound {
            if idle(bound.last) && bound.pulls == 0 && !in_use.contains(peer) {
                bound.watch.take().into_iter().for_each(|id| s.tasks.drop_task(id));
            }
        }
        s.bound.retain(|peer, b| {
            let stays = b.watch.is_some() || b.pulls > 0 || !idle(b.last);
            if !stays && b.spoke {
                self.speakers.forget(b.nid, self.number, *peer);
            }
            stays
        });
        s.remotes.retain(|_, r| !idle(r.last));
        self.speakers.expire(idle);
    }
}

impl State {
    /// Withdraws operations, closes windows.
    fn clear(&mut self) {
        self.tasks.clear();
        self.offers.clear();
        self.pulls.clear();
        self.queue.clear();
        self.remotes.clear();
        self.bound.clear();
    }
}
