//! What the tests share: watchdog, clock, frames.
#![allow(dead_code)]

use kfab_core::Result;
use kfab_core::spi::{Body, Event, Frame, HEADER_LEN, Inline, Port, PortConfig, Provider};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Ends the process if a test hangs. Instrumented programs (`KFAB_SLOW`) have five times as long.
pub(crate) struct Watchdog(#[allow(dead_code)] mpsc::Sender<()>);

impl Watchdog {
    pub(crate) fn start(seconds: u64) -> Watchdog {
        let seconds = seconds * if std::env::var_os("KFAB_SLOW").is_some() { 5 } else { 1 };
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            if rx.recv_timeout(Duration::from_secs(seconds)) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("watchdog: {name} took more than {seconds} s");
                std::process::exit(101);
            }
        });
        Watchdog(tx)
    }
}

/// Nanoseconds of a monotonic clock.
pub(crate) fn now() -> u64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

pub(crate) fn try_open(config: &PortConfig) -> Result<Box<dyn Port>> {
    kfab_shm::Shm.open(config)
}

pub(crate) fn open(config: &PortConfig) -> Box<dyn Port> {
    try_open(config).unwrap()
}

/// One poll.
pub(crate) fn pump(port: &mut dyn Port) -> Vec<Event> {
    let mut events = Vec::new();
    port.poll(now(), &mut events);
    events
}

/// Calls `f` until it is true, for 20 s.
pub(crate) fn until(what: &str, mut f: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !f() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::hint::spin_loop();
    }
}

/// A frame that carries `n` in header and inline part.
pub(crate) fn frame(n: u64, body: Body<'_>) -> Frame<'_> {
    Frame { header: [n as u8; HEADER_LEN], inline: Inline::new(&n.to_le_bytes()).unwrap(), body, more: false }
}

/// Waits for the port's descriptor to become readable; `false` after the time.
pub(crate) fn sleep_on(port: &dyn Port, limit: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = port.fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let t = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos() as _ };
    poll(&mut fds, Some(&t)).is_ok_and(|n| n > 0)
}
