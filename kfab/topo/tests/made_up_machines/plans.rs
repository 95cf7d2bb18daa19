//! Splitting made-up machines, and binding on this one.

use crate::machine::{Machine, allowed, one_node, two_sockets};
use kfab_topo::{
    Allowed, BindError, CpuSet, IdSet, PartitionPolicy, Partitions, PlanError, Topology, bind_current_thread,
};
use proptest::test_runner::TestRunner;
use proptest::{prop_assert, prop_assert_eq};

fn set(list: &str) -> CpuSet {
    list.parse().unwrap()
}

fn sets(plan: &Partitions) -> Vec<String> {
    plan.iter().map(|partition| partition.cpus.to_string()).collect()
}

fn plan(topology: &Topology, policy: PartitionPolicy) -> Partitions {
    Partitions::plan(topology, &policy).unwrap()
}

#[test]
fn one_partition_a_node_with_what_is_near() {
    let plan = plan(&two_sockets().read(), PartitionPolicy::default());
    assert_eq!(sets(&plan), ["0-1,4-5", "2-3,6-7"]);
    assert_eq!(
        plan.iter().map(|p| (p.index, p.node, p.memory_node)).collect::<Vec<_>>(),
        [(0, Some(0), Some(0)), (1, Some(1), Some(1))]
    );
    let devices =
        |index: usize| plan[index].devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>();
    assert_eq!((devices(0), devices(1)), (vec!["eth0"], vec!["eth1", "mlx5_1"]));
    assert!(plan.placements().len() == 2 && plan.placements().iter().all(|placement| placement.is_met()));
    assert_eq!(plan.of_cpu(6).map(|partition| partition.index), Some(1));
    assert_eq!((plan.of_cpu(8), plan.of_cpu(u32::MAX)), (None, None));
}

#[test]
fn a_cpuset_on_one_socket_gives_one_partition_with_every_device() {
    let plan = plan(&two_sockets().read_as(&allowed("3,7", "0")), PartitionPolicy::PerNode);
    assert_eq!(sets(&plan), ["3,7"]);
    assert_eq!((plan[0].node, plan[0].memory_node), (Some(1), Some(0)));
    assert_eq!(plan[0].devices.len(), 3, "each is nearest to the only partition there is");
    let text =
        "memory of partition 0: node 1 asked, node 0 got: memory of node 1 is not allowed to this process";
    assert_eq!(plan.placements().iter().map(|p| p.to_string()).collect::<Vec<_>>(), [text]);
    let shown =
        "partition 0 CPUs 3,7, node 1, memory from node 0, near devices: eth0 eth1 mlx5_1\nnot met     ";
    assert_eq!(plan.to_string(), format!("{shown}{text}\n"));
}

#[test]
fn counts_keep_nodes_then_caches_then_cores_in_one_piece() {
    let topology = two_sockets().read();
    let count = |n| sets(&plan(&topology, PartitionPolicy::Count(n)));
    assert_eq!(count(1), ["0-7"]);
    assert_eq!(count(2), ["0-1,4-5", "2-3,6-7"]);
    assert_eq!(count(3), ["0,4", "1,5", "2-3,6-7"]);
    assert_eq!(count(4), ["0,4", "1,5", "2,6", "3,7"]);
    assert_eq!(count(8), ["0", "4", "1", "5", "2", "6", "3", "7"]);

    // Four cores on one node whose L3s are interleaved: two partitions are the two L3 domains.
    let machine = Machine::new();
    machine.file("devices/system/cpu/online", "0-3").file("devices/system/node/online", "0");
    machine.cpu(0, "0", 0, "0,2").cpu(1, "1", 0, "1,3").cpu(2, "2", 0, "0,2").cpu(3, "3", 0, "1,3");
    machine.node(0, "0-3", 4096, "10");
    assert_eq!(sets(&plan(&machine.read(), PartitionPolicy::Count(2))), ["0,2", "1,3"]);
}

#[test]
fn lists_are_taken_as_given_where_they_can_be() {
    let topology = two_sockets().read_as(&allowed("0-6", "0-2"));
    let plan = plan(&topology, PartitionPolicy::Explicit(vec![set("6-7"), set("0,2")]));
    assert_eq!(sets(&plan), ["6", "0,2"]);
    assert_eq!((plan[0].node, plan[1].node), (Some(1), Some(0)), "of equals the lowest");
    let text =
        "partition 0: CPUs 6-7 asked, CPU 6 got: the others are offline or not allowed to this process";
    assert_eq!(plan.placements()[0].to_string(), text);
    assert_eq!(plan.of_cpu(7), None);
}

#[test]
fn what_cannot_be_planned_is_named() {
    let topology = one_node().read();
    let error = |policy| Partitions::plan(&topology, &policy).unwrap_err();
    assert_eq!(error(PartitionPolicy::Count(0)), PlanError::NoPartitions);
    assert_eq!(error(PartitionPolicy::Explicit(vec![])), PlanError::NoPartitions);
    assert_eq!(error(PartitionPolicy::Count(3)), PlanError::TooMany { asked: 3, usable: 2 });
    let lists = |lists: &[&str]| PartitionPolicy::Explicit(lists.iter().map(|list| set(list)).collect());
    let other = PlanError::NotUsable { index: 1, asked: set("7"), usable: set("0-1") };
    assert_eq!(error(lists(&["0", "7"])), other);
    assert_eq!(error(lists(&["0-1", "1"])), PlanError::Overlap { index: 1, other: 0, cpus: set("1") });
    assert_eq!(Partitions::plan(&Topology::default(), &PartitionPolicy::PerNode), Err(PlanError::NoCpus));
}

#[test]
fn without_nodes_there_is_one_partition_on_no_node() {
    let topology = Machine::new().read_as(&allowed("0-2", "0"));
    let plan = plan(&topology, PartitionPolicy::PerNode);
    assert_eq!(sets(&plan), ["0-2"]);
    assert_eq!((plan[0].node, plan[0].memory_node, plan.placements().len()), (None, None, 0));

    // CPUs that no node claims are not lost beside those that one does.
    let machine = one_node();
    machine.file("devices/system/node/node0/cpulist", "1");
    assert_eq!(sets(&Partitions::plan(&machine.read(), &PartitionPolicy::PerNode).unwrap()), ["1", "0"]);
}

#[test]
fn every_usable_cpu_is_in_exactly_one_partition() {
    let machine = two_sockets();
    let usable_and_count = (1u32..256, 1usize..9);
    let check = |(mask, count): (u32, usize)| {
        let usable: IdSet = (0..8).filter(|cpu| mask & (1 << cpu) != 0).collect();
        let allowed = Allowed { cpus: Some(usable.clone()), ..Allowed::default() };
        match Partitions::plan(&machine.read_as(&allowed), &PartitionPolicy::Count(count)) {
            Err(e) => prop_assert_eq!(e, PlanError::TooMany { asked: count, usable: usable.len() }),
            Ok(plan) => {
                prop_assert_eq!(plan.len(), count);
                let cpus: Vec<u32> = plan.iter().flat_map(|partition| partition.cpus.iter()).collect();
                prop_assert_eq!(cpus.len(), usable.len());
                prop_assert_eq!(cpus.into_iter().collect::<IdSet>(), usable);
                prop_assert!(plan.iter().all(|partition| !partition.cpus.is_empty()));
                for partition in &plan {
                    prop_assert!(partition.cpus.iter().all(|cpu| plan.of_cpu(cpu) == Some(partition)));
                }
            }
        }
        Ok(())
    };
    TestRunner::default().run(&usable_and_count, check).unwrap();
}

/// A thread of its own, since a binding stays with the thread.
fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

#[test]
fn binding_is_read_back_and_can_be_undone() {
    let usable = Allowed::of_current_thread().cpus.unwrap();
    let last: CpuSet = usable.iter().next_back().into_iter().collect();
    on_a_thread(|| {
        let bound = bind_current_thread(&last).unwrap();
        assert!(bound.is_whole());
        assert_eq!((&bound.got, bound.before.as_ref()), (&last, Some(&usable)));
        assert_eq!(kfab_topo::current_cpu(), last.first().unwrap());
        assert_eq!(Allowed::of_current_thread().cpus.as_ref(), Some(&last));
        assert_eq!(Topology::discover().usable, last, "a bound thread may use no more than it is bound to");
        assert_eq!(bind_current_thread(&usable).unwrap().got, usable);
    });
    assert_eq!(Allowed::of_current_thread().cpus, Some(usable), "other threads are left alone");
}

#[test]
fn what_cannot_be_bound_is_said() {
    let usable = Allowed::of_current_thread().cpus.unwrap();
    let absent: CpuSet = [1023].into_iter().collect();
    assert!(usable.intersection(&absent).is_empty(), "this test needs a machine with fewer than 1024 CPUs");
    on_a_thread(|| {
        assert_eq!(bind_current_thread(&absent), Err(BindError::NotAllowed { asked: absent.clone() }));
        let bound = bind_current_thread(&usable.union(&absent)).unwrap();
        assert!(!bound.is_whole() && bound.got == usable);
        let beyond: CpuSet = [4096].into_iter().collect();
        assert_eq!(bind_current_thread(&beyond), Err(BindError::OutOfRange { cpu: 4096, limit: 1024 }));
        assert_eq!(Allowed::of_current_thread().cpus, Some(usable.clone()), "left as it was");
    });
}

#[test]
fn this_machine_is_planned_and_bound() {
    let topology = Topology::discover();
    let count = topology.usable.len();
    let plan = plan(&topology, PartitionPolicy::Count(count));
    for partition in &plan {
        let (placement, found) = on_a_thread(|| {
            let placement = partition.bind_current_thread("thread");
            (placement, plan.of_current_thread().map(|partition| partition.index))
        });
        assert!(placement.is_met(), "{placement}");
        assert_eq!(found, Some(partition.index));
    }
}

#[cfg(feature = "serde")]
#[test]
fn values_serialize() {
    let plan = plan(&two_sockets().read_as(&allowed("2,6", "1")), PartitionPolicy::PerNode);
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["partitions"][0]["cpus"], "2,6");
    assert_eq!(json["partitions"][0]["devices"][1]["locality"]["node"], 1);
    assert_eq!(json["placements"][0]["asked"]["node"], 1);
    let json = serde_json::to_value(two_sockets().read()).unwrap();
    assert_eq!((&json["source"], &json["nodes"][0]["distances"]["1"]), (&"sysfs".into(), &21.into()));
    assert_eq!(
        (&json["devices"][2]["locality"], &json["devices"][2]["kind"]),
        (&"virtual".into(), &"net".into())
    );
}
