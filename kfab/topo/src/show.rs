//! The topology and a plan as text for people (`kfab info`, the example): one line a thing, stable order.

use crate::partition::Partitions;
use crate::topology::{DeviceKind, Locality, Source, Topology};
use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

impl Display for Source {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Sysfs => "sysfs",
            Source::Hwloc => "hwloc",
        })
    }
}

impl Display for DeviceKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            DeviceKind::Net => "net",
            DeviceKind::Infiniband => "infiniband",
        })
    }
}

impl Display for Locality {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Locality::Node(node) => write!(f, "node {node}"),
            Locality::Virtual => f.write_str("virtual"),
            Locality::Unknown(why) => write!(f, "unknown: {why}"),
        }
    }
}

/// Several lines, the last one ended.
impl Display for Topology {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { source, usable, online, .. } = self;
        writeln!(f, "machine     CPUs {online} online, {} usable (from {source})", list(usable))?;
        for (package, cpus) in &self.packages() {
            let package = package.map_or("?".into(), |package| package.to_string());
            writeln!(f, "package {package:<3} {} cores: {}", cpus.len(), cpus.join(" "))?;
        }
        for ((level, size), shared) in self.cache_rows() {
            let size = size.map_or("unknown size".into(), bytes);
            writeln!(f, "cache L{level}    {} of {size}: {}", shared.len(), shared.join(" "))?;
        }
        for node in &self.nodes {
            let memory = node.memory_bytes.map_or("unknown".into(), bytes);
            let allowed = if node.allowed { "" } else { ", memory not allowed" };
            let distances: Vec<_> =
                node.distances.iter().map(|(to, distance)| format!("{to}:{distance}")).collect();
            let (id, cpus, distances) = (node.id, list(&node.cpus), distances.join(" "));
            writeln!(f, "node {id:<6} CPUs {cpus}, memory {memory}{allowed}, distances {distances}")?;
        }
        for device in &self.devices {
            writeln!(f, "{:<11} {:<12} {}", device.kind, device.name, device.locality)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note        {note}"))
    }
}

impl Topology {
    /// The cores of each package, each as its list of CPUs.
    fn packages(&self) -> BTreeMap<Option<u32>, Vec<String>> {
        let mut packages = BTreeMap::<_, Vec<String>>::new();
        for core in &self.cores {
            packages.entry(core.package).or_default().push(core.cpus.to_string());
        }
        packages
    }

    /// Caches of the same level and size together, each as its list of CPUs.
    fn cache_rows(&self) -> BTreeMap<(u32, Option<u64>), Vec<String>> {
        let mut rows = BTreeMap::<_, Vec<String>>::new();
        for cache in &self.caches {
            rows.entry((cache.level, cache.size_bytes)).or_default().push(cache.cpus.to_string());
        }
        rows
    }
}

/// Several lines, the last one ended.
impl Display for Partitions {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let number = |node: Option<u32>| node.map_or("unknown".into(), |node| node.to_string());
        for partition in self {
            let devices: Vec<_> = partition.devices.iter().map(|device| device.name.as_str()).collect();
            let (node, memory) = (number(partition.node), number(partition.memory_node));
            let near = if devices.is_empty() { "none".into() } else { devices.join(" ") };
            write!(f, "partition {:<2}CPUs {}, node {node}, ", partition.index, partition.cpus)?;
            writeln!(f, "memory from node {memory}, near devices: {near}")?;
        }
        let unmet = self.placements().iter().filter(|placement| !placement.is_met());
        unmet.into_iter().try_for_each(|placement| writeln!(f, "not met     {placement}"))
    }
}

fn list(ids: &crate::IdSet) -> String {
    if ids.is_empty() { "none".into() } else { ids.to_string() }
}

fn bytes(count: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) if count.is_multiple_of(unit) => format!("{} {name}", count / unit),
        Some((unit, name)) => format!("{:.1} {name}", count as f64 / unit as f64),
        None => format!("{count} B"),
    }
}
