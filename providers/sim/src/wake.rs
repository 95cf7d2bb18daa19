//! The descriptor of a port: a timerfd, which can both fire now and fire when the next thing is due.

use kfab_core::{Error, Result};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Wake {
    pub(crate) fd: Arc<OwnedFd>,
    armed: bool,
    /// When the timer will fire, world time; `u64::MAX` if it is not set.
    due: u64,
}

impl Wake {
    pub(crate) fn new() -> Result<Wake> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(|e| Error::os("open", "a timer descriptor", e))?;
        Ok(Wake { fd: Arc::new(fd), armed: false, due: u64::MAX })
    }

    /// The port's thread is awake.
    pub(crate) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.due = u64::MAX;
            self.set(0);
        }
    }

    /// The port's thread goes to sleep.
    pub(crate) fn arm(&mut self) {
        self.armed = true;
        self.due = u64::MAX;
        self.set(0);
    }

    /// Something is due at `due`, `in_ns` from now (0: it is here). Only an armed port cares.
    pub(crate) fn at(&mut self, due: u64, in_ns: u64) {
        if self.armed && due < self.due {
            self.due = due;
            self.set(in_ns.max(1));
        }
    }

    fn set(&self, ns: u64) {
        let value = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Fails only for a bad descriptor or a bad time; this is neither.
        let r = timerfd_settime(
            &self.fd,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: zero, it_value: value },
        );
        debug_assert!(r.is_ok(), "{r:?}");
    }
}
