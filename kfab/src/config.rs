//! How fabrics and endpoints are set up. Every field has a default that suits a process talking to others on its node.

use kfab_core::auth::FabricKey;
use kfab_core::mem::PoolConfig;
use kfab_core::spi::{Address, PortConfig, ProviderLimit};
use kfab_core::{Error, Kind, Result};
use kfab_proto::{Limits, MAX_EVENTS, MAX_RULES};
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

/// Limits of each port of an endpoint. What a provider bounds beside them is in [`crate::ProviderInfo::limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PortLimits {
    /// A connection that is not up after this time has failed; the next way is tried, or the same one again later.
    pub connect_timeout: Duration,
    /// The most connections of one port, made and accepted; beyond, dials fail with `Limit` and strangers are sent away.
    pub max_conns: usize,
    /// The most connections of one port that may be under way at once; more wait their turn.
    pub max_connecting: usize,
}

impl Default for PortLimits {
    /// 5 s; 65,536; 128.
    fn default() -> Self {
        let PortConfig { connect_timeout, max_conns, max_connecting, .. } = PortConfig::default();
        PortLimits { connect_timeout, max_conns, max_connecting }
    }
}

impl PortLimits {
    pub(crate) fn check(&self) -> Result<()> {
        let zero = |name: &str| {
            Err(Error::new(Kind::InvalidArgument, "endpoint", format!("ports.{name} must not be 0")))
        };
        match self {
            PortLimits { connect_timeout: Duration::ZERO, .. } => zero("connect_timeout"),
            PortLimits { max_conns: 0, .. } => zero("max_conns"),
            PortLimits { max_connecting: 0, .. } => zero("max_connecting"),
            _ => Ok(()),
        }
    }
}

/// What all endpoints of a fabric share.
#[derive(Clone, Debug, Default)]
pub struct FabricConfig {
    /// The key every member must have. Without one shm admits the same user only, and sockets listen at loopback where no place is named.
    /// **Who names another ([`EndpointConfig::listen`], [`EndpointConfig::devices`]) without a key opens the endpoint to all who reach
    /// it**, which is warned of in the log. RDMA cards listen at their networks' addresses in any case.
    pub key: Option<FabricKey>,
    /// With a key: authenticate only, and leave sockets traffic as it is (default `false`: it is encrypted).
    ///
    /// What is protected then: who connects. Both sides still prove, freshly for each connection, that they have the key, before anything is
    /// allocated for them; a stranger, or a recording played again, gets no connection. What is not: the bytes that follow. Whoever sits on
    /// the path can read them, and alter or add some without being noticed (TCP's checksum stops accidents only). Use it on a network that is
    /// trusted to carry traffic, not to decide who may talk. Both sides must agree; one that wants encryption refuses one that does not.
    /// Shared memory never leaves the host and is never encrypted.
    pub plain: bool,
}

/// One endpoint.
#[derive(Clone, Debug, Default)]
pub struct EndpointConfig {
    /// Where to listen, as ways: `tcp:0.0.0.0:7000`, `shm:my-service`. Providers not named choose a place of their own. Host names are
    /// not resolved. What peers are given is [`Endpoint::address`](crate::Endpoint::address), not this: `shm:my-service` is called as
    /// `shm:my-service@BOOT`, where `BOOT` stands for this boot and network namespace.
    pub listen: Vec<String>,
    /// Use only these providers, by scheme; empty: all that are available.
    pub providers: Vec<String>,
    /// Rails: devices to open a port on, as `SCHEME:DEVICE` (`tcp:eth0`, `verbs:mlx5_0`), one each. None of a provider: every device
    /// that is a rail of its own (RDMA cards and their ports; [`Endpoint::unavailable`](crate::Endpoint::unavailable) has those that
    /// cannot be used), or one port for all its devices.
    pub devices: Vec<String>,
    /// Protocol limits.
    pub limits: Limits,
    /// Limits of each port.
    pub ports: PortLimits,
    /// Memory limits.
    pub pool: PoolConfig,
    /// How waiting callers wait.
    pub wait: Wait,
    /// Who polls otherwise.
    pub progress: Progress,
    /// Bind the helper thread and the slabs to this partition of the machine (see [`crate::topo`]).
    pub partition: Option<kfab_topo::Partition>,
}

/// The limits that are no setting: what an endpoint, its address, its watchers and its exporter are bounded by in any case.
pub fn fixed_limits() -> Vec<ProviderLimit> {
    let n = |name, value: usize, unit, meaning| ProviderLimit::new(name, value as u64, unit, meaning);
    let all = vec![
        n(
            "max_events",
            MAX_EVENTS,
            "events",
            "kept for readers; the oldest go, and each reader is told how many",
        ),
        n("max_rules", MAX_RULES, "rules", "for faults at once on an endpoint; more are refused"),
        n(
            "max_control",
            kfab_proto::MAX_CONTROL,
            "frames",
            "that answer one peer and wait; above that it is given up",
        ),
        n(
            "orphan_patience",
            kfab_proto::ORPHAN_PATIENCE as usize,
            "peer_timeout",
            "without a piece of a large message whose receive is over, then it is given up",
        ),
        n("max_ways", Address::MAX_WAYS, "ways", "of an address; the worst beyond are left out"),
        n("max_address", Address::MAX_LEN, "bytes", "of an address as text"),
    ];
    #[cfg(feature = "serde")]
    let all = [all, crate::monitor::limits().to_vec()].concat();
    #[cfg(feature = "prometheus")]
    let all = [all, crate::prometheus::limits().to_vec()].concat();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_no_setting_have_names_of_their_own() {
        let all = fixed_limits();
        for l in &all {
            assert!(l.value > 0 && !l.unit.is_empty() && !l.meaning.is_empty(), "{l:?}");
            assert_eq!(all.iter().filter(|o| o.name == l.name).count(), 1, "{}", l.name);
        }
        let value = |name: &str| all.iter().find(|l| l.name == name).map(|l| l.value);
        assert_eq!(
            (value("max_events"), value("max_rules"), value("max_ways")),
            (Some(1024), Some(64), Some(32))
        );
        assert_eq!(value("watchers").is_some(), cfg!(feature = "serde"));
        assert_eq!(value("scrape_us").is_some(), cfg!(feature = "prometheus"));
    }
}
