//! The registry: which providers there are, and endpoints opened over them.

use crate::config::{EndpointConfig, FabricConfig};
use crate::endpoint::Endpoint;
use crate::lane::Lane;
use kfab_core::spi::{Device, Port, PortConfig, Provider, ProviderLimit, Unavailable, Way};
use kfab_core::{Error, Kind, Result};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// The providers a program chose, and what its endpoints have in common. Several fabrics can live in one process; nothing is global.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// use kfab::{EndpointConfig, Fabric};
/// let fabric = Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets));
/// assert_eq!(fabric.info().iter().map(|p| p.scheme).collect::<Vec<_>>(), ["shm", "tcp"]);
/// let only_tcp = EndpointConfig { providers: vec!["tcp".into()], ..Default::default() };
/// assert!(fabric.open(only_tcp)?.address().to_string().starts_with("tcp:127.0.0.1:"));
/// let both = fabric.endpoint()?;
/// assert!(both.address().to_string().starts_with("shm:"), "the best way comes first");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Fabric {
    providers: Vec<Arc<dyn Provider>>,
    config: FabricConfig,
}

/// What can be said about a provider here.
#[derive(Clone, Debug)]
pub struct ProviderInfo {
    /// Its scheme.
    pub scheme: &'static str,
    /// Its devices, or why there are none.
    pub devices: std::result::Result<Vec<Device>, Unavailable>,
    /// The limits that its ports keep.
    pub limits: Vec<ProviderLimit>,
}

/// The providers of a fabric: a tuple of them, as `(Shm, Sockets)`, or a `Vec` made at run time.
pub trait Providers {
    /// As a list.
    fn list(self) -> Vec<Arc<dyn Provider>>;
}

impl Providers for Vec<Arc<dyn Provider>> {
    fn list(self) -> Vec<Arc<dyn Provider>> {
        self
    }
}

macro_rules! tuples {
    ($($name:ident)+) => {
        impl<$($name: Provider + 'static),+> Providers for ($($name,)+) {
            #[expect(non_snake_case, reason = "a value named as its type")]
            fn list(self) -> Vec<Arc<dyn Provider>> {
                let ($($name,)+) = self;
                vec![$(Arc::new($name)),+]
            }
        }
    };
}

tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);

impl Fabric {
    /// A fabric of these providers, without a key.
    pub fn new(providers: impl Providers) -> Fabric {
        Fabric::with_config(providers, FabricConfig::default())
    }

    /// A fabric of these providers.
    pub fn with_config(providers: impl Providers, config: FabricConfig) -> Fabric {
        Fabric { providers: providers.list(), config }
    }

    /// The providers and what they have here.
    pub fn info(&self) -> Vec<ProviderInfo> {
        let info = |p: &Arc<dyn Provider>| ProviderInfo {
            scheme: p.scheme(),
            devices: p.probe(),
            limits: p.limits(),
        };
        self.providers.iter().map(info).collect()
    }

    /// An endpoint over all available providers, at places they choose.
    pub fn endpoint(&self) -> Result<Endpoint> {
        self.open(EndpointConfig::default())
    }

    /// An endpoint. Without a key, one at a named place that other hosts reach is warned of in the log. `InvalidArgument` names a provider or place that makes no sense, `AddressInUse` a place that is taken,
    /// `Unavailable` says why no provider could be opened.
    pub fn open(&self, config: EndpointConfig) -> Result<Endpoint> {
        self.check_names(&config)?;
        config.limits.check()?;
        config.ports.check()?;
        let mut ports = Vec::new();
        let (mut missing, mut without) = (Vec::new(), Vec::new());
        let mut exposed = Vec::new();
        for p in &self.providers {
            let scheme = p.scheme();
            if !config.providers.is_empty() && !config.providers.iter().any(|n| n == scheme) {
                continue;
            }
            let places = config.listen.iter().chain(&config.devices);
            let places = ways_of(places, scheme);
            let asked = config.providers.iter().any(|n| n == scheme) || !places.is_empty();
            match self.open_ports(p.as_ref(), &config, &mut missing) {
                Ok(mut opened) => {
                    if self.config.key.is_none() && !places.is_empty() {
                        exposed.extend(reached_from_elsewhere(scheme, places, &opened));
                    }
                    ports.append(&mut opened);
                }
                Err(e) if asked || e.kind() == Kind::InvalidArgument => return Err(e),
                Err(e) => without.push((scheme.to_owned(), e.reason())),
            }
        }
        for (scheme, why) in &without {
            tracing::warn!(target: "kfab", provider = scheme, why, "a provider is left out");
            missing.push(format!("{scheme}: {why}"));
        }
        if ports.is_empty() {
            let why =
                if missing.is_empty() { "the fabric has no provider".to_owned() } else { missing.join("; ") };
            return Err(Error::new(Kind::Unavailable, "endpoint", why));
        }
        if !exposed.is_empty() {
            let places = exposed.join(", ");
            tracing::warn!(target: "kfab", places, "whoever reaches these places is let in: there is no key");
        }
        ports.sort_by_key(|p| p.caps().rank);
        let lane = Lane::open(ports, &config, self.config.key.is_some())?;
        lane.with(|m, _| m.set_missing(without));
        let endpoint = Endpoint::new(lane, missing, config);
        endpoint.place_first_slab();
        Ok(endpoint)
    }

    /// One endpoint per partition of this machine, each with its memory and helper thread bound there. What could not be bound is
    /// in [`Endpoint::placement`].
    pub fn open_partitioned(
        &self,
        config: EndpointConfig,
        parts: &kfab_topo::Partitions,
    ) -> Result<Vec<Endpoint>> {
        parts
            .iter()
            .map(|p| self.open(EndpointConfig { partition: Some(p.clone()), ..config.clone() }))
            .collect()
    }

    fn check_names(&self, config: &EndpointConfig) -> Result<()> {
        let have: Vec<_> = self.providers.iter().map(|p| p.scheme()).collect();
        let unknown = |name: &str| {
            let list = have.join(", ");
            Err(Error::new(
                Kind::InvalidArgument,
                "endpoint",
                format!("unknown provider {name:?}; there are: {list}"),
            ))
        };
        for name in &config.providers {
            if !have.contains(&name.as_str()) {
                return unknown(name);
            }
        }
        let bad = |what: String| Err(Error::new(Kind::InvalidArgument, "endpoint", what));
        for way in config.listen.iter().chain(&config.devices) {
            match way.split_once(':') {
                Some((scheme, _)) if have.contains(&scheme) => {}
                Some((scheme, _)) => return unknown(scheme),
                None => return bad(format!("{way:?}: expected SCHEME:WHERE")),
            }
        }
        let chosen = |way: &String| {
            let is_its = |name: &String| way.split_once(':').is_some_and(|(scheme, _)| scheme == name);
            config.providers.is_empty() || config.providers.iter().any(is_its)
        };
        match config.listen.iter().find(|way| !chosen(way)) {
            Some(way) => bad(format!("{way:?}: its provider is not among those chosen")),
            None => Ok(()),
        }
    }

    /// The ports over a provider: where and on what the configuration says, or on every device that is a rail of its own.
    fn open_ports(
        &self,
        p: &dyn Provider,
        config: &EndpointConfig,
        left_out: &mut Vec<String>,
    ) -> Result<Vec<Box<dyn Port>>> {
        let listen = ways_of(&config.listen, p.scheme());
        let devices = ways_of(&config.devices, p.scheme());
        let base = PortConfig {
            key: self.config.key.clone(),
            encrypt: !self.config.plain,
            connect_timeout: config.ports.connect_timeout.min(kfab_proto::FOR_EVER),
            max_conns: config.ports.max_conns,
            max_connecting: config.ports.max_connecting,
            distances: config.partition.as_ref().map(distances).unwrap_or_default(),
            ..Default::default()
        };
        if devices.is_empty() && listen.len() <= 1 {
            let rails = p.rails(listen.first().map(String::as_str));
            if !rails.is_empty() {
                let all = PortConfig { listen: listen.first().cloned(), ..base };
                return open_rails(p, rails, &all, left_out);
            }
        }
        let n = listen.len().max(devices.len()).max(1);
        let one = |i: usize| {
            p.open(&PortConfig {
                listen: listen.get(i).cloned(),
                device: devices.get(i).cloned(),
                ..base.clone()
            })
        };
        (0..n).map(one).collect()
    }
}

/// A port on each of these devices. Those that cannot be used are left out, and that is said; if none can, why the first cannot.
fn open_rails(
    p: &dyn Provider,
    devices: Vec<String>,
    config: &PortConfig,
    left_out: &mut Vec<String>,
) -> Result<Vec<Box<dyn Port>>> {
    let (mut ports, mut failed) = (Vec::new(), Vec::new());
    for device in devices {
        match p.open(&PortConfig { device: Some(device.clone()), ..config.clone() }) {
            Ok(port) => ports.push(port),
            // What the caller has to mend is not something that this machine lacks.
            Err(e) if e.kind() == Kind::InvalidArgument => return Err(e),
            Err(e) if e.kind() == Kind::AddressInUse && config.listen.is_some() => return Err(e),
            Err(e) => failed.push((device, e)),
        }
    }
    if ports.is_empty() && !failed.is_empty() {
        return Err(failed.swap_remove(0).1);
    }
    for (device, e) in failed {
        tracing::warn!(target: "kfab", provider = p.scheme(), device, error = %e, "a rail is left out");
        left_out.push(format!("{}: {}", p.scheme(), e.reason()));
    }
    Ok(ports)
}

/// The places, of those that were named and of the ways that came of them, which other hosts reach.
fn reached_from_elsewhere(scheme: &str, named: Vec<String>, ports: &[Box<dyn Port>]) -> Vec<String> {
    let ip = |text: &str| text.parse::<SocketAddr>().ok().map(|a| a.ip().to_canonical());
    let any = named.into_iter().filter(|text| ip(text).is_some_and(|ip| ip.is_unspecified()));
    let ways = ports.iter().flat_map(|p| p.ways()).map(|w| w.rest);
    let ways = ways.filter(|rest| ip(rest).is_some_and(|ip| !ip.is_loopback()));
    any.chain(ways).map(|rest| format!("{scheme}:{rest}")).collect()
}

/// How far the nodes of this machine are from a partition.
fn distances(partition: &kfab_topo::Partition) -> BTreeMap<u32, u32> {
    let topology = kfab_topo::Topology::discover();
    let node = partition.node.and_then(|n| topology.node(n));
    node.map(|n| n.distances.clone()).unwrap_or_default()
}

/// The texts of those ways that are for `scheme`.
fn ways_of<'a>(list: impl IntoIterator<Item = &'a String>, scheme: &str) -> Vec<String> {
    let split =
        |w: &String| w.split_once(':').filter(|(s, _)| *s == scheme).map(|(s, rest)| Way::new(s, rest).rest);
    list.into_iter().filter_map(split).collect()
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.providers.iter().map(|p| p.scheme())).finish()
    }
}
