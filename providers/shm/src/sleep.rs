//! Who is looked at in each poll, and who rings: hot and cold links, arming before a sleep, timers.
//!
//! With few links all are hot. With many, those that were idle for a while are cold: their rings stay armed, so the sender
//! rings the doorbell, and whoever rang is hot again.

use crate::greet::End;
use crate::port::ShmPort;
use kfab_core::spi::{DownReason, Event};
use kfab_core::sys::heavy_barrier;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// With this many links or fewer all stay hot.
const HOT_ALWAYS: usize = 16;
/// Idle links are looked for this often (caller's clock).
const SWEEP_NS: u64 = 2_000_000;

impl ShmPort {
    /// Arms all rings; `false`, and nothing armed, if there is work already.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        if !self.ending.is_empty() || self.looks_soon() {
            return false;
        }
        self.armed = true;
        self.poll_first();
        for i in 0..self.hot.len() {
            if let Some(l) = self.conns.link(self.hot[i]) {
                l.channel.arm();
            }
        }
        for i in 0..self.blocked.len() {
            if let Some(l) = self.conns.link(self.blocked[i]) {
                l.channel.want_room();
            }
        }
        // Armed, barrier, look: see `kfab_core::ring`.
        heavy_barrier();
        let conns = &mut self.conns;
        let news = self.hot.iter().any(|c| conns.link(*c).is_some_and(|l| l.has_news()));
        // A ring with impossible counters is found out by the next poll.
        let room =
            self.blocked.iter().any(|c| conns.link(*c).is_some_and(|l| l.channel.has_room() != Ok(false)));
        if news || room {
            self.disarm();
            return false;
        }
        true
    }

    /// After a sleep: the hot rings are looked at again. The descriptors too, at the next chance.
    #[cold]
    pub(crate) fn disarm(&mut self) {
        self.armed = false;
        self.look_soon();
        for i in 0..self.hot.len() {
            if let Some(l) = self.conns.link(self.hot[i]) {
                l.channel.disarm();
            }
        }
    }

    /// Cold links that rang are hot again.
    pub(crate) fn wake_cold(&mut self) {
        if self.hot.len() == self.conns.len() {
            return;
        }
        for (conn, link) in self.conns.links() {
            if !link.hot && (!link.channel.is_armed() || !link.channel.is_empty()) {
                link.channel.disarm();
                (link.hot, link.active) = (true, true);
                self.hot.push(conn);
            }
        }
    }

    /// What is done now and then: idle links become cold, links that are long closed are given up, memory that is gone is
    /// forgotten.
    pub(crate) fn sweep(&mut self, events: &mut Vec<Event>) {
        self.sweep_at_ns = self.now_ns + SWEEP_NS;
        self.regions_sweep();
        if self.hot.len() > HOT_ALWAYS {
            self.cool();
        }
        if !self.lingering.is_empty() {
            self.lingering.retain(|l| !is_gone(&l.socket, &l.pidfd));
        }
        let now = self.now_ns;
        for conn in self.closing.clone() {
            if self.conns.link(conn).is_some_and(|l| l.close_by_ns.is_some_and(|t| now >= t)) {
                self.end(conn, End::new(DownReason::Closed, "closed; the peer did not answer"));
            }
        }
        self.bury(events);
    }

    fn cool(&mut self) {
        let mut cold = Vec::new();
        for i in 0..self.hot.len() {
            let conn = self.hot[i];
            let Some(l) = self.conns.link(conn) else { continue };
            if !std::mem::take(&mut l.active) && l.untaken == 0 && l.ending.is_none() {
                l.channel.arm();
                l.hot = false;
                cold.push(conn);
            }
        }
        if cold.is_empty() {
            return;
        }
        heavy_barrier();
        for conn in cold {
            let Some(l) = self.conns.link(conn) else { continue };
            if !l.channel.is_empty() {
                l.channel.disarm();
                l.hot = true;
            }
        }
        let conns = &mut self.conns;
        self.hot.retain(|c| conns.link(*c).is_some_and(|l| l.hot));
    }
}

/// `true` if the process at the other end is dead or has closed its end.
pub(crate) fn is_gone(socket: &std::os::fd::OwnedFd, pidfd: &std::os::fd::OwnedFd) -> bool {
    const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP), PollFd::new(pidfd, PollFlags::IN)];
    poll(&mut fds, Some(&NOW)).is_ok_and(|n| n > 0)
}
