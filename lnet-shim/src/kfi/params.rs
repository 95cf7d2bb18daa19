//! Everything about the kfi network that can be chosen.

use std::time::Duration;

use kfab::topo::Partition;

/// Parameters of the kfi network.
#[derive(Debug, Clone)]
pub struct KfiParams {
    /// Payloads up to this many bytes travel with their message (kfilnd: a message has 4096 bytes).
    pub immediate_max: u32,
    /// How long a peer may take to fetch a payload we offered, or to let us fetch one of its own (kfilnd: 125 s).
    pub bulk_timeout: Duration,
    /// Payloads fetched at a time, at most half of them from one peer; more wait their turn.
    pub max_reads: usize,
    /// Offers of one peer that may wait here; more are sent back to be tried again.
    pub max_offers: usize,
    /// A peer without a message for this long is not watched any more: its death is then noticed by the next message.
    pub watch_idle: Duration,
    /// How long the thread looks for news before it sleeps.
    pub spin: Duration,
    /// For each endpoint, in their order, the partition its thread is bound to. Threads beyond them run anywhere.
    pub partitions: Vec<Partition>,
}

impl Default for KfiParams {
    fn default() -> Self {
        Self {
            immediate_max: 4096,
            bulk_timeout: Duration::from_secs(125),
            max_reads: 64,
            max_offers: 1024,
            watch_idle: Duration::from_secs(150),
            spin: Duration::from_micros(50),
            partitions: Vec::new(),
        }
    }
}
