//! Reading the topology with hwloc (feature `hwloc`), into the same value as from sysfs.
//!
//! hwloc knows more quirks of machines than sysfs tells, and needs its library at build and at run time. Two of its
//! habits are undone here so that both sources agree: it gives a node of memory alone the CPUs near it, and it leaves
//! out virtual devices.

use crate::allowed::Allowed;
use crate::idset::{CpuSet, IdSet};
use crate::topology::{Cache, Core, Device, DeviceKind, Locality, Node, Source, Topology};
use hwlocality::Topology as Hwloc;
use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::distance::DistancesKind;
use hwlocality::object::types::{OSDeviceType, ObjectType};
use hwlocality::topology::builder::{BuildFlags, TypeFilter};
use std::path::Path;

/// Why hwloc gave no topology.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("hwloc: {0}")]
pub struct HwlocError(String);

impl HwlocError {
    fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

pub(crate) fn read(allowed: &Allowed) -> Result<Topology, HwlocError> {
    let hwloc = Hwloc::builder()
        .with_flags(BuildFlags::INCLUDE_DISALLOWED)
        .map_err(HwlocError::new)?
        .with_io_type_filter(TypeFilter::KeepImportant)
        .map_err(HwlocError::new)?
        .build()
        .map_err(HwlocError::new)?;
    let (devices, notes) = match hwloc.is_this_system() {
        true => crate::sysfs::read_devices(Path::new("/")),
        false => Default::default(),
    };
    let mut topology = convert(&hwloc, devices);
    topology.notes.extend(notes);
    Ok(topology.finish(allowed))
}

/// `devices` are the ones known from sysfs; hwloc adds to them and corrects where they sit.
fn convert(hwloc: &Hwloc, devices: Vec<Device>) -> Topology {
    let mut topology = Topology { source: Source::Hwloc, devices, ..Topology::default() };
    topology.online = hwloc.cpuset().iter_set().map(|cpu| usize::from(cpu) as u32).collect();
    topology.cores = cores(hwloc, &topology.online);
    topology.caches = caches(hwloc);
    topology.nodes = nodes(hwloc);
    for object in hwloc.os_devices() {
        let Some((name, kind, locality)) = device(object, &topology.nodes) else { continue };
        match topology.devices.iter_mut().find(|known| (&known.name, known.kind) == (&name, kind)) {
            Some(known) if matches!(locality, Locality::Node(_)) => known.locality = locality,
            Some(_) => {}
            None => topology.devices.push(Device { name, kind, locality }),
        }
    }
    topology
}

fn cpus_of(object: &TopologyObject) -> CpuSet {
    object.cpuset().map(|set| set.iter_set().map(|cpu| usize::from(cpu) as u32).collect()).unwrap_or_default()
}

fn id_of(object: &TopologyObject) -> Option<u32> {
    object.os_index().and_then(|index| u32::try_from(index).ok())
}

fn cores(hwloc: &Hwloc, online: &CpuSet) -> Vec<Core> {
    let package =
        |object: &TopologyObject| object.first_ancestor_with_type(ObjectType::Package).and_then(id_of);
    let core = |object| Core { cpus: cpus_of(object), package: package(object) };
    let mut cores: Vec<Core> = hwloc.objects_with_type(ObjectType::Core).map(core).collect();
    let seen = cores.iter().fold(IdSet::new(), |seen, core| seen.union(&core.cpus));
    let rest = online.difference(&seen);
    cores.extend(hwloc.objects_with_type(ObjectType::PU).map(core).filter(|core| core.cpus.is_subset(&rest)));
    cores.retain(|core| !core.cpus.is_empty());
    cores
}

fn caches(hwloc: &Hwloc) -> Vec<Cache> {
    use ObjectType::{L1Cache, L2Cache, L3Cache, L4Cache, L5Cache};
    let objects = (1..).zip([L1Cache, L2Cache, L3Cache, L4Cache, L5Cache]);
    let caches =
        objects.flat_map(|(level, kind)| hwloc.objects_with_type(kind).map(move |object| (level, object)));
    let cache = |(level, object): (u32, &TopologyObject)| {
        let size_bytes = match object.attributes() {
            Some(ObjectAttributes::Cache(attributes)) => attributes.size().map(|size| size.get()),
            _ => None,
        };
        Cache { level, size_bytes, cpus: cpus_of(object) }
    };
    caches.map(cache).filter(|cache| !cache.cpus.is_empty()).collect()
}

fn nodes(hwloc: &Hwloc) -> Vec<Node> {
    let objects = hwloc.objects_with_type(ObjectType::NUMANode);
    let mut nodes: Vec<Node> = objects.filter_map(|object| Some(node(id_of(object)?, object))).collect();
    // hwloc says 0 for unknown too: if no node has memory, it does not know.
    if nodes.iter().all(|node| node.memory_bytes == Some(0)) {
        nodes.iter_mut().for_each(|node| node.memory_bytes = None);
    }
    // A node of memory alone comes with the CPUs of the nodes near it. Whoever has the fewest CPUs owns them; Linux
    // numbers nodes with CPUs first.
    nodes.sort_by_key(|node| (node.cpus.len(), node.id));
    let mut taken = IdSet::new();
    for node in &mut nodes {
        node.cpus = node.cpus.difference(&taken);
        taken = taken.union(&node.cpus);
    }
    let kind = DistancesKind::FROM_OS | DistancesKind::MEANS_LATENCY;
    for matrix in hwloc.distances(Some(kind)).unwrap_or_default() {
        let numa = |object: &Option<&TopologyObject>| {
            object.is_some_and(|o| o.object_type() == ObjectType::NUMANode)
        };
        if !matrix.objects().all(|object| numa(&object)) {
            continue;
        }
        for ((from, to), distance) in matrix.object_distances() {
            let (Some(from), Some(to)) = (from.and_then(id_of), to.and_then(id_of)) else { continue };
            let (Ok(distance), Some(node)) =
                (u32::try_from(distance), nodes.iter_mut().find(|n| n.id == from))
            else {
                continue;
            };
            node.distances.entry(to).or_insert(distance);
        }
    }
    nodes
}

fn node(id: u32, object: &TopologyObject) -> Node {
    let memory = match object.attributes() {
        Some(ObjectAttributes::NUMANode(attributes)) => attributes.local_memory(),
        _ => None,
    };
    let memory_bytes = Some(memory.map_or(0, |bytes| bytes.get()));
    Node { id, cpus: cpus_of(object), memory_bytes, allowed: true, distances: Default::default() }
}

fn device(object: &TopologyObject, nodes: &[Node]) -> Option<(String, DeviceKind, Locality)> {
    let kind = match object.attributes()? {
        ObjectAttributes::OSDevice(attributes) if attributes.device_type() == OSDeviceType::Network => {
            DeviceKind::Net
        }
        ObjectAttributes::OSDevice(attributes) if attributes.device_type() == OSDeviceType::OpenFabrics => {
            DeviceKind::Infiniband
        }
        _ => return None,
    };
    let cpus = object.first_non_io_ancestor().map(cpus_of).unwrap_or_default();
    let mut near = nodes.iter().filter(|node| !node.cpus.is_empty() && node.cpus.intersects(&cpus));
    let locality = match (near.next(), near.next()) {
        (Some(node), None) => Locality::Node(node.id),
        _ => Locality::Unknown("hwloc names no single node for it".into()),
    };
    Some((object.name()?.to_string_lossy().into_owned(), kind, locality))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synthetic(description: &str) -> Topology {
        let hwloc = Hwloc::builder().from_synthetic(description).unwrap().build().unwrap();
        convert(&hwloc, Vec::new()).finish(&Allowed::default())
    }

    fn set(list: &str) -> IdSet {
        list.parse().unwrap()
    }

    #[test]
    fn two_packages_with_smt() {
        let topology = synthetic("pack:2 [numa(memory=1GB)] l3:1 l2:2 core:1 pu:2");
        assert_eq!((topology.source, topology.usable.to_string()), (Source::Hwloc, "0-7".into()));
        let cores: Vec<_> = topology.cores.iter().map(|core| (core.cpus.to_string(), core.package)).collect();
        let expected = [("0-1", 0), ("2-3", 0), ("4-5", 1), ("6-7", 1)];
        assert_eq!(cores, expected.map(|(cpus, package)| (cpus.to_owned(), Some(package))));
        assert_eq!(topology.shared_cache(4, 5).unwrap().level, 2);
        assert_eq!(topology.shared_cache(4, 6).unwrap().level, 3);
        assert_eq!(topology.shared_cache(0, 6), None);
        let nodes: Vec<_> = topology.nodes.iter().map(|node| (node.id, node.cpus.clone())).collect();
        assert_eq!(nodes, [(0, set("0-3")), (1, set("4-7"))]);
        assert_eq!(topology.nodes[0].memory_bytes, Some(1_000_000_000));
    }

    #[test]
    fn a_node_of_memory_alone_owns_no_cpus() {
        let topology = synthetic("[numa(memory=4GB)] pack:2 [numa(memory=1GB)] core:2 pu:1");
        let owners: Vec<_> = topology.nodes.iter().map(|node| node.cpus.to_string()).collect();
        let mut sorted = owners.clone();
        sorted.sort();
        assert_eq!(sorted, ["", "0-1", "2-3"], "{owners:?}");
    }
}
