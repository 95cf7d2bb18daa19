//! Splitting the usable CPUs into partitions, each with its node and its near devices.
//!
//! Invariants of a plan: partitions are disjoint, none is empty, and all their CPUs are usable.

use crate::bind::{Placement, Target, bind_current_thread, current_cpu};
use crate::idset::CpuSet;
use crate::topology::{Device, Topology};

/// How to split the usable CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum PartitionPolicy {
    /// One for each NUMA node that has usable CPUs (and one for the usable CPUs that are on no known node, if any).
    #[default]
    PerNode,
    /// This many, as even as can be. Nodes, then L3 and L2 domains, then cores stay in one piece while there are
    /// enough of them.
    Count(usize),
    /// These.
    Explicit(Vec<CpuSet>),
}

/// CPUs that belong together, with the memory and the devices near them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Partition {
    /// Its place in the plan, from 0.
    pub index: usize,
    /// Its CPUs; never empty.
    pub cpus: CpuSet,
    /// The node that most of the CPUs are on; `None` if unknown.
    pub node: Option<u32>,
    /// The node to bind memory to: `node`, or the nearest one that has memory and is allowed. `None`: do not bind.
    pub memory_node: Option<u32>,
    /// Devices that are nearer to no other partition's node. Virtual ones, and those of unknown locality, are in none.
    pub devices: Vec<Device>,
}

impl Partition {
    /// Binds the calling thread to the CPUs of this partition and reports on it. Log the report unless it is met.
    ///
    /// ```
    /// # use kfab_topo::{PartitionPolicy, Partitions, Topology};
    /// let plan = Partitions::plan(&Topology::discover(), &PartitionPolicy::PerNode)?;
    /// std::thread::spawn(move || {
    ///     let placement = plan[0].bind_current_thread("progress thread 0");
    ///     assert!(placement.is_met(), "{placement}");
    ///     assert_eq!(plan.of_current_thread().map(|partition| partition.index), Some(0));
    /// }).join().unwrap();
    /// # Ok::<(), kfab_topo::PlanError>(())
    /// ```
    pub fn bind_current_thread(&self, subject: impl Into<String>) -> Placement {
        Placement::of_thread(subject, &self.cpus, &bind_current_thread(&self.cpus))
    }
}

/// Why the CPUs cannot be split as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No CPU is known to be usable.
    #[error("no CPU is known to be usable by this process")]
    NoCpus,
    /// No partition was asked for.
    #[error("at least one partition is needed")]
    NoPartitions,
    /// More partitions than CPUs.
    #[error("{asked} partitions asked for, but this process may use {usable} CPUs only")]
    TooMany {
        /// Partitions asked for.
        asked: usize,
        /// CPUs there are.
        usable: usize,
    },
    /// A list with no usable CPU.
    #[error("partition {index}: none of the CPUs {asked:?} may be used by this process, only {usable:?}")]
    NotUsable {
        /// Which list, from 0.
        index: usize,
        /// The list.
        asked: CpuSet,
        /// What could be used.
        usable: CpuSet,
    },
    /// CPUs that two lists name.
    #[error("partition {index}: the CPUs {cpus} are in partition {other} too")]
    Overlap {
        /// The later list, from 0.
        index: usize,
        /// The earlier list.
        other: usize,
        /// The CPUs in both.
        cpus: CpuSet,
    },
}

/// A plan: the partitions, and what they could not have. Borrows as a slice of [`Partition`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Partitions {
    partitions: Vec<Partition>,
    placements: Vec<Placement>,
    #[cfg_attr(feature = "serde", serde(skip))]
    by_cpu: Vec<Option<usize>>,
}

impl Partitions {
    /// Splits the usable CPUs of `topology`.
    ///
    /// # Errors
    /// See [`PlanError`]. A list that names some unusable CPUs is no error while it names a usable one: the partition
    /// has the usable ones and [`Partitions::placements`] says which it lacks.
    ///
    /// ```
    /// # use kfab_topo::{PartitionPolicy, Partitions, Topology};
    /// let topology = Topology::discover();
    /// let one = Partitions::plan(&topology, &PartitionPolicy::Count(1))?;
    /// assert_eq!(one[0].cpus, topology.usable);
    /// # Ok::<(), kfab_topo::PlanError>(())
    /// ```
    pub fn plan(topology: &Topology, policy: &PartitionPolicy) -> Result<Self, PlanError> {
        let usable = &topology.usable;
        if usable.is_empty() {
            return Err(PlanError::NoCpus);
        }
        let mut placements = Vec::new();
        let sets = match policy {
            PartitionPolicy::PerNode => by_node(topology),
            PartitionPolicy::Count(count) => by_count(topology, *count)?,
            PartitionPolicy::Explicit(lists) => by_lists(lists, usable, &mut placements)?,
        };
        let mut by_cpu = vec![None; usable.iter().next_back().map_or(0, |last| last as usize + 1)];
        let mut partitions = Vec::with_capacity(sets.len());
        for (index, cpus) in sets.into_iter().enumerate() {
            cpus.iter().for_each(|cpu| by_cpu[cpu as usize] = Some(index));
            let node = main_node(topology, &cpus);
            let memory_node = node.and_then(|node| topology.memory_node(node));
            partitions.push(Partition { index, cpus, node, memory_node, devices: Vec::new() });
        }
        placements.extend(partitions.iter().filter_map(|partition| memory_placement(topology, partition)));
        share_devices(topology, &mut partitions);
        Ok(Self { partitions, placements, by_cpu })
    }

    /// The partition that `cpu` is in.
    pub fn of_cpu(&self, cpu: u32) -> Option<&Partition> {
        self.by_cpu.get(cpu as usize).copied().flatten().and_then(|index| self.partitions.get(index))
    }

    /// The partition of the CPU that the calling thread is on right now: for good if the thread is bound within it, a
    /// hint otherwise. Costs tens of nanoseconds; no lock, no allocation.
    pub fn of_current_thread(&self) -> Option<&Partition> {
        self.of_cpu(current_cpu())
    }

    /// What the partitions were to have and got: memory on their node, and the CPUs of explicit lists where some
    /// cannot be used.
    pub fn placements(&self) -> &[Placement] {
        &self.placements
    }
}

impl std::ops::Deref for Partitions {
    type Target = [Partition];

    fn deref(&self) -> &[Partition] {
        &self.partitions
    }
}

impl<'a> IntoIterator for &'a Partitions {
    type Item = &'a Partition;
    type IntoIter = std::slice::Iter<'a, Partition>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The usable CPUs of each node that has some, then those on no known node.
fn by_node(topology: &Topology) -> Vec<CpuSet> {
    let mut rest = topology.usable.clone();
    let mut sets = Vec::new();
    for node in &topology.nodes {
        sets.push(rest.intersection(&node.cpus));
        rest = rest.difference(&node.cpus);
    }
    sets.push(rest);
    sets.retain(|cpus| !cpus.is_empty());
    sets
}

fn by_count(topology: &Topology, count: usize) -> Result<Vec<CpuSet>, PlanError> {
    let usable = topology.usable.len();
    match count {
        0 => return Err(PlanError::NoPartitions),
        _ if count > usable => return Err(PlanError::TooMany { asked: count, usable }),
        _ => {}
    }
    let nodes = by_node(topology);
    if count <= nodes.len() {
        return Ok(merge_evenly(&nodes, count));
    }
    let mut sets = Vec::with_capacity(count);
    for (node, share) in nodes.iter().zip(shares(&nodes, count)) {
        let cores = cores_in_order(topology, node);
        match share <= cores.len() {
            true => sets.extend(merge_evenly(&cores, share)),
            false => {
                let cpus: Vec<_> =
                    cores.iter().flat_map(CpuSet::iter).map(|cpu| CpuSet::from_iter([cpu])).collect();
                sets.extend(merge_evenly(&cpus, share));
            }
        }
    }
    Ok(sets)
}

/// How many of `count` partitions each set gets: one, and the rest one by one where CPUs per partition are the most. No
/// set gets more than its CPUs, since a set with room left is always needier than one without. Needs
/// `sets.len() <= count <=` the CPUs of all.
fn shares(sets: &[CpuSet], count: usize) -> Vec<usize> {
    let mut shares = vec![1; sets.len()];
    for _ in sets.len()..count {
        // Compares len/share without fractions; the first of equals, so that the outcome is fixed.
        let needier =
            |a: usize, b: usize| if sets[b].len() * shares[a] > sets[a].len() * shares[b] { b } else { a };
        if let Some(neediest) = (0..sets.len()).reduce(needier) {
            shares[neediest] += 1;
        }
    }
    shares
}

/// The usable CPUs of each core within `cpus`, neighbours in the cache tree side by side.
fn cores_in_order(topology: &Topology, cpus: &CpuSet) -> Vec<CpuSet> {
    let mut rest = cpus.clone();
    let mut cores = Vec::new();
    for core in &topology.cores {
        cores.push(rest.intersection(&core.cpus));
        rest = rest.difference(&core.cpus);
    }
    cores.extend(rest.iter().map(|cpu| CpuSet::from_iter([cpu])));
    cores.retain(|core| !core.is_empty());
    cores.sort_by_cached_key(|core| {
        let holds = |cache: &&crate::Cache| cache.level > 1 && core.is_subset(&cache.cpus);
        // From the outermost cache inwards, each named by its first CPU.
        let path: Vec<_> =
            topology.caches.iter().rev().filter(holds).map(|cache| cache.cpus.first()).collect();
        (path, core.first())
    });
    cores
}

/// Joins neighbouring sets into `count` of nearly equal number. Needs `1 <= count <= sets.len()`.
fn merge_evenly(sets: &[CpuSet], count: usize) -> Vec<CpuSet> {
    let join = |part: &[CpuSet]| part.iter().flat_map(CpuSet::iter).collect();
    (0..count).map(|i| join(&sets[i * sets.len() / count..(i + 1) * sets.len() / count])).collect()
}

fn by_lists(
    lists: &[CpuSet],
    usable: &CpuSet,
    reports: &mut Vec<Placement>,
) -> Result<Vec<CpuSet>, PlanError> {
    if lists.is_empty() {
        return Err(PlanError::NoPartitions);
    }
    let mut sets: Vec<CpuSet> = Vec::with_capacity(lists.len());
    for (index, asked) in lists.iter().enumerate() {
        let cpus = asked.intersection(usable);
        if cpus.is_empty() {
            return Err(PlanError::NotUsable { index, asked: asked.clone(), usable: usable.clone() });
        }
        if let Some(other) = sets.iter().position(|set| set.intersects(&cpus)) {
            return Err(PlanError::Overlap { index, other, cpus: cpus.intersection(&sets[other]) });
        }
        if cpus != *asked {
            reports.push(Placement {
                subject: format!("partition {index}"),
                asked: Target::Cpus(asked.clone()),
                got: Some(Target::Cpus(cpus.clone())),
                why_not: Some("the others are offline or not allowed to this process".into()),
            });
        }
        sets.push(cpus);
    }
    Ok(sets)
}

/// The node with the most of `cpus`, the lowest of equals.
fn main_node(topology: &Topology, cpus: &CpuSet) -> Option<u32> {
    let held = topology.nodes.iter().map(|node| (node.cpus.intersection(cpus).len(), node.id));
    held.filter(|(count, _)| *count > 0)
        .max_by_key(|(count, id)| (*count, std::cmp::Reverse(*id)))
        .map(|(_, id)| id)
}

fn memory_placement(topology: &Topology, partition: &Partition) -> Option<Placement> {
    let asked = partition.node?;
    let why_not = match topology.node(asked) {
        _ if partition.memory_node == Some(asked) => None,
        Some(node) if !node.allowed => Some(format!("memory of node {asked} is not allowed to this process")),
        _ => Some(format!("node {asked} has no memory")),
    };
    let subject = format!("memory of partition {}", partition.index);
    Some(Placement {
        subject,
        asked: Target::Node(asked),
        got: partition.memory_node.map(Target::Node),
        why_not,
    })
}

/// Gives each device to the partitions with the nearest node.
fn share_devices(topology: &Topology, partitions: &mut [Partition]) {
    for device in &topology.devices {
        let distance = |p: &Partition| p.node.and_then(|node| topology.device_distance(node, device));
        let Some(least) = partitions.iter().filter_map(distance).min() else { continue };
        let near = partitions.iter_mut().filter(|p| distance(p) == Some(least));
        near.for_each(|p| p.devices.push(device.clone()));
    }
}
