//! The machine as one value, whichever way it was read, and the questions asked of it.

use crate::allowed::Allowed;
use crate::idset::{CpuSet, NodeSet};
use std::collections::BTreeMap;
use std::path::Path;

/// The distance of a node from itself, ACPI SLIT units.
const LOCAL: u32 = 10;

/// Cores, caches, memory nodes and devices of this machine, as far as this process can see them.
///
/// A snapshot: CPUs or devices plugged later are not in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Topology {
    /// How it was read.
    pub source: Source,
    /// Every CPU that is online.
    pub online: CpuSet,
    /// The CPUs this process may use: online, and in its affinity mask and cpuset.
    pub usable: CpuSet,
    /// Physical cores with an online CPU, by their first CPU.
    pub cores: Vec<Core>,
    /// Data and unified caches, by level and first CPU.
    pub caches: Vec<Cache>,
    /// NUMA nodes, by number. Empty where the kernel does not say (no NUMA support, no sysfs).
    pub nodes: Vec<Node>,
    /// Network and RDMA devices, by kind and name.
    pub devices: Vec<Device>,
    /// What could not be found out, and why.
    pub notes: Vec<String>,
}

/// Where a [`Topology`] comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Source {
    /// Read from `/sys`.
    #[default]
    Sysfs,
    /// Asked of the library hwloc.
    Hwloc,
}

/// A physical core.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Core {
    /// Its CPUs: one, or the SMT siblings.
    pub cpus: CpuSet,
    /// The socket; `None` where the firmware does not say.
    pub package: Option<u32>,
}

/// A data or unified cache.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Cache {
    /// 1 for L1d, 2 for L2, ...
    pub level: u32,
    /// `None` where the machine does not say.
    pub size_bytes: Option<u64>,
    /// The CPUs that share it.
    pub cpus: CpuSet,
}

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Node {
    /// The kernel's number.
    pub id: u32,
    /// Its online CPUs; none for a node of memory alone (CXL, HBM).
    pub cpus: CpuSet,
    /// All its memory, free or not; 0 for a node of CPUs alone, `None` if unknown.
    pub memory_bytes: Option<u64>,
    /// Whether this process may take memory from it (unknown counts as yes).
    pub allowed: bool,
    /// Distance from here to each node by number, in ACPI SLIT units: 10 is local, 20 is twice as far.
    pub distances: BTreeMap<u32, u32>,
}

/// A network or RDMA device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Device {
    /// The kernel's name: `eth0`, `mlx5_0`.
    pub name: String,
    /// Which class it is of.
    pub kind: DeviceKind,
    /// The node it is attached to.
    pub locality: Locality,
}

/// The class of a [`Device`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum DeviceKind {
    /// A network interface (`/sys/class/net`).
    Net,
    /// An RDMA device (`/sys/class/infiniband`), whatever its link layer.
    Infiniband,
}

/// Where a [`Device`] sits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Locality {
    /// Attached to this node.
    Node(u32),
    /// No hardware of its own (loopback, veth, bond, bridge): near no node and far from none.
    Virtual,
    /// Hardware, but the machine does not say where; the reason.
    Unknown(String),
}

/// One answer of [`Topology::nearest_devices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NearDevice<'a> {
    /// The device.
    pub device: &'a Device,
    /// From the node asked about to the device's; `None` if either is unknown.
    pub distance: Option<u32>,
}

impl Topology {
    /// Reads this machine: by hwloc where the feature `hwloc` is on and hwloc answers (else a note says why not), from
    /// `/sys` otherwise. Never fails; see [`Topology::notes`].
    ///
    /// It asks what the *calling thread* may use, so call it before binding threads. Takes milliseconds.
    ///
    /// ```
    /// let topology = kfab_topo::Topology::discover();
    /// assert!(!topology.usable.is_empty());
    /// println!("{topology}");
    /// ```
    pub fn discover() -> Self {
        let allowed = Allowed::of_current_thread();
        #[cfg(feature = "hwloc")]
        let note = match Self::from_hwloc(&allowed) {
            Ok(topology) => return topology,
            Err(e) => format!("{e}; read from /sys instead"),
        };
        #[cfg_attr(not(feature = "hwloc"), expect(unused_mut))]
        let mut topology = Self::from_sysfs(Path::new("/"), &allowed);
        #[cfg(feature = "hwloc")]
        topology.notes.push(note);
        topology
    }

    /// Reads the tree `root/sys`, for a thread to which `allowed` is permitted.
    ///
    /// ```
    /// use kfab_topo::{Allowed, Topology};
    /// let nothing_there = Topology::from_sysfs("/nonexistent".as_ref(), &Allowed::of_current_thread());
    /// assert!(!nothing_there.usable.is_empty() && !nothing_there.notes.is_empty());
    /// ```
    pub fn from_sysfs(root: &Path, allowed: &Allowed) -> Self {
        crate::sysfs::read(root, allowed)
    }

    /// Asks hwloc (version 2.0 or later), for a thread to which `allowed` is permitted.
    ///
    /// # Errors
    /// hwloc could not load a topology of this machine.
    #[cfg(feature = "hwloc")]
    pub fn from_hwloc(allowed: &Allowed) -> Result<Self, crate::hwloc::HwlocError> {
        crate::hwloc::read(allowed)
    }

    /// The node with this number.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The node that `cpu` belongs to.
    pub fn node_of_cpu(&self, cpu: u32) -> Option<u32> {
        self.nodes.iter().find(|node| node.cpus.contains(cpu)).map(|node| node.id)
    }

    /// How far node `to` is from node `from`, in ACPI SLIT units (10 is local, also where the system does not say).
    /// `None` if unknown. Not always symmetric.
    pub fn distance(&self, from: u32, to: u32) -> Option<u32> {
        let known = self.node(from)?.distances.get(&to).copied();
        known.or((from == to).then_some(LOCAL))
    }

    /// The fastest cache that both CPUs share.
    pub fn shared_cache(&self, a: u32, b: u32) -> Option<&Cache> {
        self.caches.iter().find(|cache| cache.cpus.contains(a) && cache.cpus.contains(b))
    }

    /// All devices, the nearest to `node` first; those of which no distance is known come last.
    ///
    /// ```
    /// let topology = kfab_topo::Topology::discover();
    /// for near in topology.nearest_devices(0) {
    ///     println!("{} {:?} {:?}", near.device.name, near.device.locality, near.distance);
    /// }
    /// ```
    pub fn nearest_devices(&self, node: u32) -> Vec<NearDevice<'_>> {
        let near = |device| NearDevice { device, distance: self.device_distance(node, device) };
        let mut devices: Vec<_> = self.devices.iter().map(near).collect();
        devices.sort_by_key(|near| near.distance.unwrap_or(u32::MAX));
        devices
    }

    pub(crate) fn device_distance(&self, node: u32, device: &Device) -> Option<u32> {
        match device.locality {
            Locality::Node(to) => self.distance(node, to),
            Locality::Virtual | Locality::Unknown(_) => None,
        }
    }

    /// The node to take memory from for work on `node`: itself, or the nearest that has memory and is allowed.
    /// `None` if there is none, or none of which the distance is known.
    pub fn memory_node(&self, node: u32) -> Option<u32> {
        let fit = |n: &&Node| n.allowed && n.memory_bytes != Some(0);
        let distance = |n: &Node| if n.id == node { Some(0) } else { self.distance(node, n.id) };
        self.nodes.iter().filter(fit).filter_map(|n| Some((distance(n)?, n.id))).min().map(|(_, id)| id)
    }

    /// The nodes this process may take memory from.
    pub fn allowed_nodes(&self) -> NodeSet {
        self.nodes.iter().filter(|node| node.allowed).map(|node| node.id).collect()
    }

    /// Brings the parts into the documented order and derives what follows from the rest. Every reader ends with it.
    pub(crate) fn finish(mut self, allowed: &Allowed) -> Self {
        if self.online.is_empty() {
            self.online = allowed.cpus.clone().unwrap_or_default();
        }
        self.usable = match &allowed.cpus {
            Some(cpus) => self.online.intersection(cpus),
            None => self.online.clone(),
        };
        self.cores.sort_by(|a, b| a.cpus.cmp(&b.cpus));
        self.cores.dedup_by(|a, b| a.cpus == b.cpus);
        self.caches.sort_by(|a, b| (a.level, &a.cpus).cmp(&(b.level, &b.cpus)));
        self.caches.dedup_by(|a, b| (a.level, &a.cpus) == (b.level, &b.cpus));
        self.nodes.sort_by_key(|node| node.id);
        self.devices.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        for node in &mut self.nodes {
            node.allowed = allowed.nodes.as_ref().is_none_or(|nodes| nodes.contains(node.id));
        }
        if let [only] = &mut self.nodes[..] {
            // On a machine with one node everything is on it, and firmware often says nothing at all.
            only.distances.entry(only.id).or_insert(10);
            let unknown = |d: &&mut Device| matches!(d.locality, Locality::Unknown(_));
            self.devices.iter_mut().filter(unknown).for_each(|d| d.locality = Locality::Node(only.id));
        }
        self.notes.extend(allowed.notes.iter().cloned());
        self
    }
}
