//! Where threads and memory of an endpoint lie, and what is said when they cannot lie where they should: on a machine of one node, and
//! with a part of its processors only.

mod common;

use common::{config, watched};
use kfab::topo::{Partition, PartitionPolicy, Partitions, Placement, Topology};
use kfab::{Endpoint, EndpointConfig, PoolConfig};
use rustix::thread::{CpuSet, sched_setaffinity};
use std::sync::Mutex;

/// One test at a time: the kernel's view is of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// The report on a subject, once it is there: the helper thread makes its own.
fn report(e: &Endpoint, subject: &str) -> Placement {
    let all = e.placement();
    all.iter().find(|p| p.subject == subject).unwrap_or_else(|| panic!("{subject}: {all:?}")).clone()
}

/// Slabs of this process that the kernel has a node for.
fn bound_slabs() -> usize {
    let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
    maps.lines().filter(|l| l.contains("kfab-slab") && l.contains("prefer")).count()
}

fn talk(a: &Endpoint, b: &Endpoint) {
    let to_b = a.peer(&b.address().to_string()).unwrap();
    to_b.send(b"from there").wait().unwrap();
    assert_eq!(&b.recv().wait().unwrap()[..], b"from there");
}

#[test]
fn an_endpoint_for_each_partition_says_where_it_is() {
    watched("partitions", || {
        let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let plan = Partitions::plan(&Topology::discover(), &PartitionPolicy::PerNode).unwrap();
        let before = bound_slabs();
        let all = common::fabric().open_partitioned(config("shm"), &plan).unwrap();
        assert_eq!(all.len(), plan.len());
        let mut bound = 0;
        for (e, part) in all.iter().zip(&plan) {
            let thread = report(e, "progress thread");
            assert!(thread.is_met(), "{thread}");
            assert_eq!(thread.to_string(), format!("progress thread: {}", thread.asked));
            let slabs = e.placement().into_iter().find(|p| p.subject == "slabs");
            assert_eq!(slabs.is_some(), part.memory_node.is_some(), "{slabs:?} for {part:?}");
            if let Some(s) = slabs {
                println!("{s}");
                assert_eq!(
                    s.to_string().ends_with(&format!("node {}", part.memory_node.unwrap())),
                    s.is_met()
                );
                bound += usize::from(s.is_met());
            }
        }
        if std::path::Path::new("/proc/self/numa_maps").exists() {
            assert_eq!(bound_slabs() - before, bound, "the kernel's own view");
        }
        talk(&all[0], all.last().unwrap());
    });
}

#[test]
fn what_could_not_be_bound_is_said() {
    watched("not bound", || {
        let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        let topology = Topology::discover();
        let cpus = format!("{},900", topology.usable.iter().next().unwrap()).parse().unwrap();
        let part = Partition { index: 0, cpus, node: None, memory_node: None, devices: Vec::new() };
        // A node that no machine of ours has.
        let pool = PoolConfig { node: Some(1000), ..Default::default() };
        let c = EndpointConfig { partition: Some(part), pool, ..config("shm") };
        let e = common::fabric().open(c.clone()).unwrap();
        let slabs = report(&e, "slabs").to_string();
        assert!(slabs.starts_with("slabs: node 1000 asked, not bound: mbind: "), "{slabs}");
        let thread = report(&e, "progress thread").to_string();
        assert!(thread.contains("CPU 900 not online or not in the cpuset"), "{thread}");
        // It works all the same; and without a wish there is nothing to say.
        talk(&e, &common::fabric().open(c).unwrap());
        assert_eq!(common::open("shm").placement(), []);
    });
}

#[test]
fn a_part_of_the_processors_is_a_whole_machine() {
    watched("a cpuset", || {
        let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        // Of this thread, which plans and opens, and of what it starts.
        let first = Topology::discover().usable.iter().next().unwrap();
        let mut one = CpuSet::new();
        one.set(first as usize);
        sched_setaffinity(None, &one).unwrap();
        let topology = Topology::discover();
        assert_eq!(topology.usable.to_string(), first.to_string());
        let lists = vec![format!("{first},900").parse().unwrap()];
        let plan = Partitions::plan(&topology, &PartitionPolicy::Explicit(lists)).unwrap();
        let said: Vec<String> = plan.placements().iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|s| s.contains("900")), "{said:?}");
        assert_eq!((plan.len(), plan[0].cpus.to_string()), (1, first.to_string()));
        let all = common::fabric().open_partitioned(config("shm"), &plan).unwrap();
        let thread = report(&all[0], "progress thread");
        assert_eq!(thread.to_string(), format!("progress thread: CPU {first}"));
        talk(&all[0], &common::open("shm"));
    });
}
