//! The end of queue pairs that broke, on a thread of its own: a driver may hold on to one for seconds (soft-RoCE does while its packets wait
//! for an address that does not answer), and a lane that waited with it would move nobody's frames. Called by `connect` and `port`.

use crate::sys::{Keep, Qp};
use kfab_core::spi::Conn;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Whose queue pair is gone, how many requests never ended on it, and their memory.
pub(crate) type Reaped = (Conn, usize, Vec<Keep>);

/// The thread and the ways to and from it. As many queue pairs are with it as connections have broken: bounded by the port's.
pub(crate) struct Reaper {
    to: Option<Sender<(Conn, Qp)>>,
    from: Receiver<Reaped>,
    done: Arc<OwnedFd>,
    /// Queue pairs that are there.
    has: usize,
    thread: Option<JoinHandle<()>>,
}

impl Reaper {
    pub(crate) fn start() -> std::io::Result<Reaper> {
        let (to, work) = channel::<(Conn, Qp)>();
        let (tell, from) = channel();
        let done = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let say = done.clone();
        let run = move || {
            for (conn, qp) in work {
                // A port that is gone hears neither.
                let _ = tell.send((conn, qp.flying(), qp.destroy()));
                let _ = rustix::io::write(&say, &1u64.to_ne_bytes());
            }
        };
        let thread = std::thread::Builder::new().name("kfab-verbs-reaper".into()).stack_size(128 << 10);
        Ok(Reaper { to: Some(to), from, done, has: 0, thread: Some(thread.spawn(run)?) })
    }

    /// Gives a queue pair away.
    pub(crate) fn take(&mut self, conn: Conn, qp: Qp) {
        if let Some(to) = &self.to {
            self.has += usize::from(to.send((conn, qp)).is_ok());
        }
    }

    /// `true` if no queue pair is there.
    pub(crate) fn is_idle(&self) -> bool {
        self.has == 0
    }

    /// One that is gone since the last call, if there is one; else the descriptor is quiet again.
    pub(crate) fn next(&mut self) -> Option<Reaped> {
        let _ = rustix::io::read(&self.done, &mut [0; 8]);
        let reaped = self.from.try_recv().ok()?;
        self.has -= 1;
        Some(reaped)
    }

    /// Readable when [`Reaper::next`] has something.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.to = None;
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}
