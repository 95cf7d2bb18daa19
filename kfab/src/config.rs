//! How fabrics and endpoints are set up. Every field has a default that suits a process talking to others on its node.

use kfab_core::auth::FabricKey;
use kfab_core::mem::PoolConfig;
use kfab_proto::Limits;
use std::time::Duration;

/// How a waiting caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Spin for this long, then sleep until there is news.
    Adaptive(Duration),
    /// Spin until the end: lowest latency, a whole core.
    Spin,
    /// Sleep at once: no processor time, the latency of a wake-up.
    Sleep,
}

impl Default for Wait {
    /// Spins for 50 us: about the price of the wake-up it may save.
    fn default() -> Self {
        Wait::Adaptive(Duration::from_micros(50))
    }
}

/// Who polls when no caller waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// A helper thread, asleep while callers poll; it takes over when they have not for a few milliseconds, and serves async code.
    #[default]
    Helper,
    /// A thread of the endpoint's partition that spins all the time.
    Spinning,
    /// Nobody: the program calls [`Endpoint::progress`](crate::Endpoint::progress) or waits, often enough to answer probes.
    Inline,
}

/// What all endpoints of a fabric share.
#[derive(Clone, Debug, Default)]
pub struct FabricConfig {
    /// The key every member must have; without one, shm admits the same user only and sockets bind to loopback.
    pub key: Option<FabricKey>,
    /// With a key: authenticate only, and leave sockets traffic readable (default `false`: it is encrypted).
    pub plain: bool,
}

/// One endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointConfig {
    /// Where to listen, as ways: `tcp:0.0.0.0:7000`, `shm:my-service`. Providers not named choose a place of their own.
    pub listen: Vec<String>,
    /// Use only these providers, by scheme; empty: all that are available.
    pub providers: Vec<String>,
    /// Rails: devices to open a port on, as `SCHEME:DEVICE` (`tcp:eth0`), one each; empty: one port per provider.
    pub devices: Vec<String>,
    /// Protocol limits.
    pub limits: Limits,
    /// Memory limits.
    pub pool: PoolConfig,
    /// How waiting callers wait.
    pub wait: Wait,
    /// Who polls otherwise.
    pub progress: Progress,
    /// Bind the helper thread and the slabs to this partition of the machine (see [`crate::topo`]).
    pub partition: Option<kfab_topo::Partition>,
}
