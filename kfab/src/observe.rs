//! What can be seen of a running endpoint: counters, queue depths, rails, events.

use crate::endpoint::Endpoint;
use kfab_core::mem::PoolStats;
use kfab_core::spi::Caps;
use kfab_proto::{FabricEvent, LaneStats, PeerInfo};

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
    /// Regions made.
    pub regions: usize,
    /// Bytes of all regions.
    pub bytes: usize,
    /// Bytes in blocks handed out.
    pub in_use: usize,
}

impl From<PoolStats> for PoolCounts {
    fn from(s: PoolStats) -> Self {
        PoolCounts { regions: s.regions, bytes: s.bytes, in_use: s.in_use }
    }
}

impl Endpoint {
    /// Counters, queue depths, peers and rails now.
    pub fn stats(&self) -> EndpointStats {
        let s = self.lane.lock();
        let ports = s.ports.iter().map(|p| PortStats {
            ways: p.ways().iter().map(|w| w.to_string()).collect(),
            caps: p.caps().clone(),
        });
        let peers = s.machine.peers().into_iter().filter_map(|id| {
            let info = s.machine.peer_info(id)?;
            Some(PeerStats { name: format!("{id:?}"), info })
        });
        EndpointStats {
            address: self.address().to_string(),
            lane: s.machine.stats(),
            pool: s.pool.stats().into(),
            ports: ports.collect(),
            peers: peers.collect(),
        }
    }

    /// What happened since the last call, oldest first, and how many events were lost because nobody asked in time (1024 are
    /// kept). Logs get the same stream through `tracing`, target `kfab`.
    pub fn events(&self) -> (Vec<FabricEvent>, u64) {
        self.lane.lock().machine.drain_events()
    }
}
