//! What can be seen of a running endpoint: counters, queue depths, rails, events.

use crate::config::EndpointConfig;
use crate::endpoint::Endpoint;
use crate::lane::Lane;
use kfab_core::mem::PoolStats;
use kfab_core::spi::Caps;
use kfab_proto::{EventCursor, FabricEvent, LaneStats, PeerInfo};
use kfab_topo::Target;
use std::sync::{Arc, Weak};

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
