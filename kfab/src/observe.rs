//! What can be seen of a running endpoint: counters, queue depths, rails, events.

use crate::config::EndpointConfig;
use crate::endpoint::Endpoint;
use crate::lane::Lane;
use kfab_core::mem::PoolStats;
use kfab_core::spi::Caps;
use kfab_proto::{EventCursor, FabricEvent, LaneStats, PeerInfo};
use kfab_topo::Target;
#[cfg(any(feature = "serde", feature = "prometheus"))]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(any(feature = "serde", feature = "prometheus"))]
use std::io;
use std::os::fd::OwnedFd;
#[cfg(any(feature = "serde", feature = "prometheus"))]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, Weak};
#[cfg(any(feature = "serde", feature = "prometheus"))]
use std::time::Instant;

/// A port of an endpoint.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PortStats {
    /// The ways that lead to it.
    pub ways: Vec<String>,
    /// What it can do.
    pub caps: Caps,
}

/// A peer of an endpoint.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PeerStats {
    /// Its name on this endpoint, as text.
    pub name: String,
    /// What is known.
    #[cfg_attr(feature = "serde", serde(flatten))]
    pub info: PeerInfo,
}

/// Everything countable about an endpoint, at one moment.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct EndpointStats {
    /// Its address.
    pub address: String,
    /// Queue depths and sums.
    pub lane: LaneStats,
    /// Memory.
    pub pool: PoolCounts,
    /// Its ports, best first.
    pub ports: Vec<PortStats>,
    /// Its peers.
    pub peers: Vec<PeerStats>,
}

/// What the endpoint's memory pool holds.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PoolCounts {
    /// Regions that live, those of its receive pools and those that are kept for large messages too.
    pub regions: usize,
    /// Bytes of all regions, which [`PoolConfig::max_bytes`](crate::PoolConfig::max_bytes) bounds.
    pub bytes: usize,
    /// Bytes in blocks handed out, but for the buffers of receive pools.
    pub in_use: usize,
}

impl From<PoolStats> for PoolCounts {
    fn from(s: PoolStats) -> Self {
        PoolCounts { regions: s.regions, bytes: s.bytes, in_use: s.in_use }
    }
}

/// Who is to end with the endpoint: descriptors that are written to when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Ends(Mutex<Vec<Weak<OwnedFd>>>);

#[cfg(any(feature = "serde", feature = "prometheus"))]
impl Ends {
    /// Writes to this eventfd at the end, if it is still there.
    pub(crate) fn tell(&self, fd: &Arc<OwnedFd>) {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        all.retain(|fd| fd.strong_count() > 0);
        all.push(Arc::downgrade(fd));
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        for fd in self.0.get_mut().unwrap_or_else(|e| e.into_inner()).drain(..) {
            // The counter is full only where it has been written to before.
            let _ = fd.upgrade().map(|fd| rustix::io::write(&*fd, &1u64.to_ne_bytes()));
        }
    }
}

/// What a service's thread wakes for.
#[cfg(any(feature = "serde", feature = "prometheus"))]
pub(crate) enum Woken {
    /// The endpoint, or the service, is to end.
    End,
    /// These of its descriptors have news, the listener's first.
    News(Vec<bool>),
}

/// How long a service whose `accept` fails, for want of descriptors most likely, leaves its listener alone.
#[cfg(any(feature = "serde", feature = "prometheus"))]
pub(crate) const ACCEPT_REST: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long a service's client may take with what it is to say or to read, all of it, and what ends that sooner.
#[cfg(any(feature = "serde", feature = "prometheus"))]
#[derive(Clone, Copy)]
pub(crate) struct Patience<'a> {
    pub(crate) stop: &'a OwnedFd,
    pub(crate) until: Instant,
}

#[cfg(any(feature = "serde", feature = "prometheus"))]
impl Patience<'_> {
    /// Sleeps until the socket is ready. An error when the time is up, or the service is to end.
    pub(crate) fn wait(&self, socket: BorrowedFd<'_>, ready: PollFlags) -> io::Result<()> {
        let mut fds = [PollFd::new(self.stop, PollFlags::IN), PollFd::from_borrowed_fd(socket, ready)];
        loop {
            let left = self.until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            match poll(&mut fds, Some(&left)) {
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
                Ok(n) if n == 0 || !fds[0].revents().is_empty() => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Writes everything to a socket that does not block.
    pub(crate) fn write(&self, mut to: impl io::Write + AsFd, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.wait(to.as_fd(), PollFlags::OUT)?;
            match to.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Sleeps until there is news for a service. One whose `accept` has just failed (`rests`) does not look at its listener, which is ready
/// still, for [`ACCEPT_REST`]: it would never sleep.
#[cfg(any(feature = "serde", feature = "prometheus"))]
pub(crate) fn wait_for_news<'a>(
    stop: &'a OwnedFd,
    listener: BorrowedFd<'a>,
    others: impl Iterator<Item = BorrowedFd<'a>>,
    rests: bool,
) -> Woken {
    let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
    let listens = if rests { PollFlags::empty() } else { PollFlags::IN };
    fds.push(PollFd::from_borrowed_fd(listener, listens));
    fds.extend(others.map(|o| PollFd::from_borrowed_fd(o, PollFlags::IN)));
    loop {
        match poll(&mut fds, rests.then_some(&ACCEPT_REST)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Woken::End,
            Ok(_) if !fds[0].revents().is_empty() => return Woken::End,
            Ok(_) => return Woken::News(fds[1..].iter().map(|f| !f.revents().is_empty()).collect()),
        }
    }
}

impl Endpoint {
    /// Counters, queue depths, peers and rails now.
    pub fn stats(&self) -> EndpointStats {
        let mut s = self.lane.lock();
        let lane = s.machine.stats();
        let ports = s.ports.iter().map(|p| PortStats {
            ways: p.ways().iter().map(|w| w.to_string()).collect(),
            caps: p.caps().clone(),
        });
        let (ports, pool) = (ports.collect(), s.pool.stats().into());
        let peers = s.machine.peers().into_iter().filter_map(|id| {
            let info = s.machine.peer_info(id)?;
            Some(PeerStats { name: format!("{id:?}"), info })
        });
        EndpointStats { address: self.address().to_string(), lane, pool, ports, peers: peers.collect() }
    }

    /// How it was opened: the limits of its ports and of its memory, how callers wait, and all else that was left to the defaults.
    pub fn config(&self) -> &EndpointConfig {
        &self.config
    }

    /// Where memory was to lie on a node, the first slab is made at once: whether it can is said now, and not at the first message.
    pub(crate) fn place_first_slab(&self) {
        let pool = self.lane.lock().pool.clone();
        if pool.is_to_be_bound() && pool.alloc(1).is_ok() {
            for p in self.placement().iter().filter(|p| !p.is_met() && matches!(p.asked, Target::Node(_))) {
                tracing::warn!(target: "kfab", "{p}");
            }
        }
    }

    /// What happened since the last call, oldest first, and how many events were lost because nobody asked in time (1024 are
    /// kept). Logs get the same stream through `tracing`, target `kfab`; further readers [subscribe](Endpoint::subscribe).
    pub fn events(&self) -> (Vec<FabricEvent>, u64) {
        self.lane.lock().machine.drain_events()
    }

    /// The same stream for a reader of its own, from now on: several readers each see every event. Read it now and then; it holds no
    /// share of the endpoint.
    pub fn subscribe(&self) -> Events {
        let cursor = self.lane.lock().machine.subscribe();
        Events { lane: Arc::downgrade(&self.lane), cursor }
    }
}

/// A reader of an endpoint's events; see [`Endpoint::subscribe`].
pub struct Events {
    lane: Weak<Lane>,
    cursor: EventCursor,
}

impl Events {
    /// What happened since the last call, oldest first, and how many events were lost because this reader came too late for them (1024
    /// are kept). Nothing once the endpoint is gone.
    pub fn read(&mut self) -> (Vec<FabricEvent>, u64) {
        match self.lane.upgrade() {
            Some(lane) => lane.lock().machine.events_since(&mut self.cursor),
            None => (Vec::new(), 0),
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

#[cfg(all(test, any(feature = "serde", feature = "prometheus")))]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn who_reads_a_little_now_and_then_has_no_more_time_than_others() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let stop = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let begun = Instant::now();
        let reader = std::thread::spawn(move || {
            while theirs.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let all = vec![7; 16 << 20];
        let patience = Patience { stop: &stop, until: begun + Duration::from_millis(300) };
        assert_eq!(patience.write(&ours, &all).unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(5));

        // And none at all once the service is to end.
        rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        let patience = Patience { stop: &stop, until: Instant::now() + Duration::from_secs(3600) };
        assert!(patience.write(&ours, &all).is_err());
        drop(ours);
        reader.join().unwrap();
    }
}
