//! Everything about a node that can be chosen. Defaults are those of Lustre 2.17.

use std::time::Duration;

use crate::nid::{Lnd, Nid, PID_LNET};

/// Parameters of a node.
#[derive(Debug, Clone)]
pub struct NodeParams {
    /// Our process id.
    pub pid: u32,
    /// An answer (ACK, REPLY) that has not come after this long never will.
    pub transaction_timeout: Duration,
    /// How often a message is sent again.
    pub retry_count: u32,
    /// How long one attempt may take.
    pub lnd_timeout: Duration,
    /// What a failure takes from a health value of 1000, and a success gives.
    pub health_sensitivity: u32,
    /// The longest pause between recovery pings.
    pub max_recovery_ping_interval: Duration,
    /// The first pause between recovery pings.
    pub recovery_interval: Duration,
    /// Unhealthy for this long: no more recovery pings. Zero: for ever.
    pub recovery_limit: Duration,
    /// Find out about peers before the first message to them, and tell them about us.
    pub discovery: bool,
    /// How long finding out may take.
    pub discovery_timeout: Duration,
    /// How often gateways are asked about themselves.
    pub router_check_interval: Duration,
    /// End operations whose answer is outstanding as soon as the connection to the peer breaks, not when their time is
    /// over. LNet does not; RPC layers that ask again want it.
    pub fail_on_peer_lost: bool,
    /// Messages that wait at one lazy portal.
    pub max_waiting: usize,
    /// Bytes of messages that wait at all lazy portals together.
    pub max_waiting_bytes: usize,
    /// Messages that wait for the discovery of one peer.
    pub max_parked: usize,
    /// Peers known at a time.
    pub max_peers: usize,
    /// Messages on their way or waiting; beyond it, answers are dropped and operations fail.
    pub max_messages: usize,
    /// Messages that delay rules hold back.
    pub max_delayed: usize,
    /// NUMA distances up to this are equal (local is 10): which interface is nearer to a message's memory does not count then.
    pub numa_range: u32,
    /// Seed of what is random (fault rules).
    pub seed: u64,
}

impl Default for NodeParams {
    fn default() -> Self {
        Self {
            pid: PID_LNET,
            transaction_timeout: Duration::from_secs(150),
            retry_count: 2,
            lnd_timeout: Duration::from_secs(49),
            health_sensitivity: 100,
            max_recovery_ping_interval: Duration::from_secs(900),
            recovery_interval: Duration::from_secs(1),
            recovery_limit: Duration::ZERO,
            discovery: true,
            discovery_timeout: Duration::from_secs(50),
            router_check_interval: Duration::from_secs(60),
            fail_on_peer_lost: false,
            max_waiting: 4096,
            max_waiting_bytes: 256 << 20,
            max_parked: 4096,
            max_peers: 65536,
            max_messages: 65536,
            max_delayed: 65536,
            numa_range: 0,
            seed: 1,
        }
    }
}

impl NodeParams {
    /// How long a message may take with all its repetitions.
    pub(crate) fn message_lifetime(&self) -> Duration {
        self.lnd_timeout * (self.retry_count + 1) + Duration::from_secs(1)
    }

    /// How often deadlines are looked at.
    pub(crate) fn tick(&self) -> Duration {
        let shortest = self.transaction_timeout.min(self.recovery_interval).min(self.discovery_timeout);
        (shortest / 8).clamp(Duration::from_millis(5), Duration::from_secs(1))
    }
}

/// One local interface.
#[derive(Debug, Clone, Copy)]
pub struct NiConfig {
    /// Its NID.
    pub nid: Nid,
    /// Messages in flight on it.
    pub credits: i32,
    /// Messages in flight to each peer interface on its network.
    pub peer_credits: i32,
    /// Interfaces and networks with smaller numbers are taken first. kfi comes before the others unless they are given one.
    pub priority: u32,
    /// The NUMA node of its card. A tcp interface finds out by itself where none is given.
    pub node: Option<u32>,
}

impl NiConfig {
    /// The defaults for the network of `nid`.
    pub fn new(nid: Nid) -> Self {
        let (credits, peer_credits, priority) = match nid.net().lnd {
            Lnd::KFI => (512, 16, u32::MAX - 1),
            _ => (256, 8, u32::MAX),
        };
        Self { nid, credits, peer_credits, priority, node: None }
    }
}
