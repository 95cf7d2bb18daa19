//! Lets others of the same user look at a running endpoint: [`Endpoint::stats`] as JSON lines on an abstract unix socket.
//!
//! The socket is `kfab-stats.PID.N`; it leaves no file, and goes with the process. Who connects and sends a line gets one line with
//! the counters of that moment; the line's own text is ignored. Other users (but root) are hung up on. The thread sleeps while nobody asks, and
//! holds no share of the endpoint, so it does not keep it open, and ends with it.

use crate::observe::{Patience, Woken, wait_for_news};
use crate::{Endpoint, ProviderLimit};
use rustix::event::{EventfdFlags, eventfd};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The first part of the names.
pub const PREFIX: &str = "kfab-stats.";
/// Watchers at once; more are hung up on.
const MAX_WATCHERS: usize = 16;
/// The longest a watcher may take to read a line, all of it.
const PATIENCE: Duration = Duration::from_millis(500);
/// Endpoints of one process that can be watched.
const MAX_NAMES: u32 = 4096;

/// What bounds it, by name.
pub(crate) fn limits() -> [ProviderLimit; 3] {
    let n = |name, value, unit, meaning| ProviderLimit::new(name, value, unit, meaning);
    [
        n("watchers", MAX_WATCHERS as u64, "watchers", "of one endpoint at once; more are hung up on"),
        n("watcher_us", PATIENCE.as_micros() as u64, "us", "that a watcher may take to read a line"),
        n("watched", MAX_NAMES.into(), "endpoints", "of one process that can be watched"),
    ]
}

/// A running service; ends when dropped.
#[derive(Debug)]
pub struct Monitor {
    name: String,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Serves the counters of `endpoint` until the returned value or the endpoint is dropped.
    ///
    /// # Errors
    /// When there are no more names, descriptors or threads.
    pub fn serve(endpoint: &Arc<Endpoint>) -> io::Result<Monitor> {
        let (name, listener) = listen()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        endpoint.ends.tell(&stop);
        let service =
            Service { endpoint: Arc::downgrade(endpoint), name: name.clone(), listener, stop: stop.clone() };
        let thread = std::thread::Builder::new().name("kfab-monitor".into()).stack_size(256 << 10);
        let thread = Some(thread.spawn(move || service.run())?);
        Ok(Monitor { name, stop, thread })
    }

    /// The name of the abstract socket.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // Nothing else writes to it, so there is room.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn listen() -> io::Result<(String, UnixListener)> {
    let pid = std::process::id();
    for n in 0..MAX_NAMES {
        let name = format!("{PREFIX}{pid}.{n}");
        match UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?) {
            Ok(l) => {
                l.set_nonblocking(true)?;
                return Ok((name, l));
            }
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other(format!("{MAX_NAMES} endpoints of this process are watched already")))
}

struct Service {
    endpoint: Weak<Endpoint>,
    name: String,
    listener: UnixListener,
    stop: Arc<OwnedFd>,
}

impl Service {
    fn run(self) {
        let mut watchers: Vec<UnixStream> = Vec::new();
        let mut rests = false;
        loop {
            let others = watchers.iter().map(AsFd::as_fd);
            let Woken::News(ready) = wait_for_news(&self.stop, self.listener.as_fd(), others, rests) else {
                return;
            };
            let mut at = 1;
            watchers.retain_mut(|w| {
                at += 1;
                !ready[at - 1] || self.answer(w)
            });
            rests = ready[0] && !self.admit(&mut watchers);
        }
    }

    /// Takes who waits at the listener; `false` if nobody could be taken.
    fn admit(&self, watchers: &mut Vec<UnixStream>) -> bool {
        let Ok((stream, _)) = self.listener.accept() else { return false };
        let same_user = rustix::net::sockopt::socket_peercred(&stream)
            .is_ok_and(|c| c.uid == rustix::process::geteuid() || c.uid.is_root());
        if same_user && stream.set_nonblocking(true).is_ok() && watchers.len() < MAX_WATCHERS {
            watchers.push(stream);
        }
        true
    }

    /// One line for whatever came; `false` if the watcher is to be hung up on.
    fn answer(&self, w: &mut UnixStream) -> bool {
        match w.read(&mut [0; 256]) {
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        // Held for as long as it takes to look, not for as long as a watcher takes to read.
        let Some((limits, stats)) = self.endpoint.upgrade().map(|e| (e.limits(), e.stats())) else {
            return false;
        };
        let (pid, name) = (std::process::id(), &self.name);
        let line = serde_json::json!({ "pid": pid, "name": name, "limits": limits, "stats": stats });
        let patience = Patience { stop: &self.stop, until: Instant::now() + PATIENCE };
        patience.write(w, format!("{line}\n").as_bytes()).is_ok()
    }
}
