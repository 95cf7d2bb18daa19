//! The network as the node sees it: one interface, one lane for each endpoint.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

use kfab::Endpoint;
use kfab::topo::{Partition, Placement};

use super::lane::{Lane, Speakers, header_of};
use super::{Book, KfiParams};
use crate::error::{Error, ErrorKind, Result};
use crate::network::{Command, ConnectionInfo, Failure, Network, Rx, Tx, Upcall, Upper};
use crate::nid::{Nid, ProcessId};

/// The most lanes of one interface.
const MAX_LANES: usize = 64;

/// A kfi network: one interface over one kfab endpoint, or over several, one for each partition of the machine.
pub struct KfiNetwork {
    nid: Nid,
    lanes: Vec<Arc<Lane>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    placement: Vec<Placement>,
}

impl KfiNetwork {
    /// Takes messages for `nid` from `endpoints` (lanes; a peer always uses the same one) and starts a thread for each. `book` says
    /// where peers are; peers that call first need no entry. `upper` gets the upcalls. The endpoints may be used for other things
    /// beside: kfi's messages have tags of their own. [`kfab::Progress::Inline`] is enough for them. A thread whose endpoint has a
    /// partition in `params` is bound to it; what could not be bound is in [`Network::placement`], and is no error.
    ///
    /// # Errors
    /// `Invalid` for no endpoint or more than 64; `Io` without descriptors or threads.
    pub fn start(
        nid: Nid,
        endpoints: Vec<Arc<Endpoint>>,
        book: &Book,
        params: &KfiParams,
        upper: &Weak<dyn Upper>,
    ) -> Result<Self> {
        if endpoints.is_empty() || endpoints.len() > MAX_LANES {
            return Err(Error::new(ErrorKind::Invalid, "kfi", format!("1 to {MAX_LANES} endpoints")));
        }
        let mut network = Self { nid, lanes: Vec::new(), threads: Mutex::default(), placement: Vec::new() };
        let speakers = Arc::<Speakers>::default();
        for (number, endpoint) in endpoints.into_iter().enumerate() {
            let lane = Lane::new(nid, number, endpoint, book.clone(), params.clone(), speakers.clone());
            let lane = Arc::new(lane.map_err(|e| Error::io("kfi", "an eventfd", e))?);
            let (runner, upper, partition) =
                (lane.clone(), upper.clone(), params.partitions.get(number).cloned());
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            let run = move || {
                let bind = |p: Partition| p.bind_current_thread(format!("lane {}", runner.number));
                let _ = tell.send(partition.map(bind));
                runner.run(&upper);
            };
            let thread = std::thread::Builder::new()
                .name(format!("lnet-{nid}-{number}"))
                .spawn(run)
                .map_err(|e| Error::io("kfi", "starting the thread", e))?;
            let placed = told.recv().ok().flatten();
            if let Some(unmet) = placed.as_ref().filter(|p| !p.is_met()) {
                tracing::warn!(%nid, "{unmet}");
            }
            network.placement.extend(placed.into_iter().chain(lane.endpoint.placement()));
            network.lanes.push(lane);
            network.threads.get_mut().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(network)
    }

    /// The lane of a peer: the same at every message.
    fn lane_of(&self, nid: Nid) -> &Arc<Lane> {
        let hash = nid.to_bytes().iter().fold(0u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        &self.lanes[(hash % self.lanes.len() as u64) as usize]
    }

    /// The lane that gave a `via`.
    fn lane_at(&self, via: u64) -> Option<&Arc<Lane>> {
        self.lanes.get((via >> 40) as usize)
    }
}

/// A message to ourselves arrives at once: kfab has no way from an endpoint to itself, and no book needs to have us in it.
fn looped(tx: &Tx, upcalls: &mut Vec<Upcall>) {
    let (header, payload) = (header_of(tx), tx.payload.to_vec().into());
    upcalls.push(Upcall::Received(Rx { via: 0, peer: header.src, header, payload }));
    upcalls.push(Upcall::Sent(tx.id, Ok(())));
}

impl Network for KfiNetwork {
    fn nid(&self) -> Nid {
        self.nid
    }

    fn submit(&self, commands: Vec<Command>, upcalls: &mut Vec<Upcall>) {
        for command in commands {
            match command {
                Command::Transmit(tx) if tx.peer.nid == self.nid => looped(&tx, upcalls),
                Command::Transmit(tx) => {
                    let lane = self.lane_of(tx.peer.nid);
                    lane.transmit(&mut lane.lock(), tx, upcalls);
                }
                Command::Fetch(fetch) => match self.lane_at(fetch.via) {
                    Some(lane) => lane.fetch(&mut lane.lock(), fetch, upcalls),
                    None => upcalls.push(Upcall::Fetched(fetch.op, Err(Failure::LocalError))),
                },
                Command::Refuse { via } => {
                    if let Some(lane) = self.lane_at(via) {
                        lane.refuse(&mut lane.lock(), via, upcalls);
                    }
                }
                // What waits here waits at its sender, or is small.
                Command::Hold { .. } | Command::Release { .. } => {}
            }
        }
    }

    fn shutdown(&self) {
        for lane in &self.lanes {
            lane.stop.store(true, Ordering::Release);
            lane.ready.note(0);
        }
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The last owner may be the thread itself, inside an upcall.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// Of the lanes' threads, and of their endpoints' memory.
    fn placement(&self) -> Vec<Placement> {
        self.placement.clone()
    }

    fn connections(&self) -> Vec<ConnectionInfo> {
        let of = |lane: &Arc<Lane>| {
            let s = lane.lock();
            let info = |(nid, remote): (&Nid, &super::lane::Remote)| {
                let info = remote.peer.info()?;
                info.up.then(|| ConnectionInfo {
                    peer: ProcessId::lnet(*nid),
                    kind: format!("lane {}", lane.number),
                    version: super::wire::VERSION.into(),
                    remote: info.address.unwrap_or_default(),
                    queued_bytes: info.rails.iter().map(|r| r.unacked_bytes).sum(),
                })
            };
            s.remotes.iter().filter_map(info).collect::<Vec<_>>()
        };
        self.lanes.iter().flat_map(of).collect()
    }
}

impl Drop for KfiNetwork {
    fn drop(&mut self) {
        self.shutdown();
    }
}
