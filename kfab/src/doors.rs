//! The descriptors of a lane: what its own threads sleep on, what an event loop of the user's does, and the helper's alarm.

use kfab_core::spi::Port;
use kfab_core::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// See the module.
pub(crate) struct Doors {
    /// All ports and `kick`: for the lane's own sleepers. The ports' descriptors live as long as the lane is open.
    ports: OwnedFd,
    /// Wakes whoever sleeps on `ports`.
    kick: OwnedFd,
    /// `ports` and `told`: for an event loop. It has a door of its own, or a sleeper that is quicker would take what came, and the loop
    /// find nothing when it looks.
    user: OwnedFd,
    /// Readable from the moment when another thread dealt with what came until the loop prepares to sleep again.
    told: OwnedFd,
    /// Wakes the helper, at once or in a while. A timer, because to set one disturbs no other processor, as waking a thread does.
    alarm: OwnedFd,
}

fn no(e: rustix::io::Errno) -> Error {
    Error::os("endpoint", "a descriptor (is the fd limit reached? ulimit -n)", e)
}

fn bell() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(no)
}

/// One descriptor that is readable when any of these is.
fn any<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> Result<OwnedFd> {
    let all = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(no)?;
    for (i, fd) in fds.into_iter().enumerate() {
        epoll::add(&all, fd, epoll::EventData::new_u64(i as u64), epoll::EventFlags::IN).map_err(no)?;
    }
    Ok(all)
}

impl Doors {
    pub(crate) fn open(lane: &[Box<dyn Port>]) -> Result<Doors> {
        let (kick, told) = (bell()?, bell()?);
        let ports = any(lane.iter().map(|p| p.fd()).chain([kick.as_fd()]))?;
        let user = any([ports.as_fd(), told.as_fd()])?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let alarm = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(no)?;
        Ok(Doors { ports, kick, user, told, alarm })
    }

    /// Wakes whoever sleeps on the ports.
    pub(crate) fn kick(&self) {
        ring(&self.kick);
    }

    /// Everybody who was kicked has risen.
    pub(crate) fn forget_kicks(&self) {
        hush(&self.kick);
    }

    /// Wakes the user's event loop.
    pub(crate) fn tell(&self) {
        ring(&self.told);
    }

    /// The event loop has heard.
    pub(crate) fn forget_told(&self) {
        hush(&self.told);
    }

    /// What an event loop sleeps on.
    pub(crate) fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// Sleeps until a port or a kick wakes, at most so long. Interrupted, timed out or ready: the caller looks in any case.
    pub(crate) fn sleep(&self, most: Duration) {
        sleep(&self.ports, Some(most));
    }

    /// Wakes the helper after so long.
    pub(crate) fn alarm(&self, after: Duration) {
        let once = Itimerspec {
            it_interval: timespec(Duration::ZERO),
            it_value: timespec(after.max(Duration::from_nanos(1))),
        };
        // It cannot fail: a timer of ours, and a time that is one.
        let _ = timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &once);
    }

    /// The helper: sleeps until the alarm, at most so long.
    pub(crate) fn await_alarm(&self, most: Option<Duration>) {
        sleep(&self.alarm, most);
        hush(&self.alarm);
    }
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(d.subsec_nanos()) }
}

fn sleep(fd: &OwnedFd, most: Option<Duration>) {
    let limit = most.map(timespec);
    let _ = rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], limit.as_ref());
}

fn ring(bell: &OwnedFd) {
    // The counter can only be full if nobody has read it 2^64 times: whoever sleeps there is awake then.
    let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
}

fn hush(bell: &OwnedFd) {
    let _ = rustix::io::read(bell, &mut [0; 8]);
}
