//! Reading made-up sysfs trees: what each kind of machine comes out as.

use crate::machine::{Machine, allowed, one_node, two_sockets};
use kfab_topo::{Allowed, Cache, Core, CpuSet, Device, DeviceKind, Locality, Source, Topology};

fn set(list: &str) -> CpuSet {
    list.parse().unwrap()
}

fn locality<'a>(topology: &'a Topology, name: &str) -> &'a Locality {
    &topology.devices.iter().find(|device| device.name == name).unwrap().locality
}

#[test]
fn two_sockets_are_read_whole() {
    let topology = two_sockets().read();
    assert_eq!(topology.notes, [""; 0]);
    assert_eq!(topology.source, Source::Sysfs);
    assert_eq!((topology.online.to_string(), topology.usable.to_string()), ("0-7".into(), "0-7".into()));
    let core = |cpus, package| Core { cpus: set(cpus), package: Some(package) };
    assert_eq!(topology.cores, [core("0,4", 0), core("1,5", 0), core("2,6", 1), core("3,7", 1)]);

    let cache = |level, size_bytes, cpus| Cache { level, size_bytes: Some(size_bytes), cpus: set(cpus) };
    let l3: Vec<_> = topology.caches.iter().filter(|cache| cache.level == 3).cloned().collect();
    assert_eq!(l3, [cache(3, 32 << 20, "0-1,4-5"), cache(3, 32 << 20, "2-3,6-7")]);
    assert_eq!(topology.caches.len(), 4 + 4 + 2, "no instruction cache, each shared one once");
    assert_eq!(topology.shared_cache(0, 4), Some(&cache(1, 48 << 10, "0,4")));
    assert_eq!(topology.shared_cache(0, 5), Some(&l3[0]));
    assert_eq!(topology.shared_cache(0, 2), None);

    let nodes: Vec<_> =
        topology.nodes.iter().map(|n| (n.id, n.cpus.to_string(), n.memory_bytes, n.allowed)).collect();
    assert_eq!(nodes[0], (0, "0-1,4-5".into(), Some(4 << 20), true));
    assert_eq!(nodes[1], (1, "2-3,6-7".into(), Some(8 << 20), true));
    assert_eq!(nodes[2], (2, "".into(), Some(1 << 20), true));
    assert_eq!((topology.node_of_cpu(6), topology.node_of_cpu(8)), (Some(1), None));
    assert_eq!(
        [(0, 1), (1, 2), (2, 2)].map(|(a, b)| topology.distance(a, b)),
        [Some(21), Some(14), Some(10)]
    );
    assert_eq!((topology.distance(0, 3), topology.distance(3, 0)), (None, None));
}

#[test]
fn devices_are_placed_by_themselves_or_by_their_parents() {
    let topology = two_sockets().read();
    let names: Vec<_> = topology.devices.iter().map(|device| (device.kind, device.name.as_str())).collect();
    let nets = ["eth0", "eth1", "lo", "usb0"].map(|name| (DeviceKind::Net, name));
    assert_eq!(names, [&nets[..], &[(DeviceKind::Infiniband, "mlx5_1")]].concat());
    assert_eq!(locality(&topology, "eth0"), &Locality::Node(0));
    assert_eq!(locality(&topology, "mlx5_1"), &Locality::Node(1));
    assert_eq!(locality(&topology, "eth1"), &Locality::Node(1), "by the bridge above the virtio device");
    assert_eq!(locality(&topology, "lo"), &Locality::Virtual);
    assert_eq!(locality(&topology, "usb0"), &Locality::Unknown("the firmware names no node for it".into()));

    let near = |node| -> Vec<(String, Option<u32>)> {
        topology.nearest_devices(node).iter().map(|near| (near.device.name.clone(), near.distance)).collect()
    };
    let of = |name: &str, distance| (name.to_owned(), distance);
    let far = [of("lo", None), of("usb0", None)];
    assert_eq!(near(0)[..3], [of("eth0", Some(10)), of("eth1", Some(21)), of("mlx5_1", Some(21))]);
    assert_eq!(near(2)[..3], [of("eth1", Some(14)), of("mlx5_1", Some(14)), of("eth0", Some(24))]);
    assert_eq!(near(0)[3..], far);
    assert!(near(9).iter().all(|(_, distance)| distance.is_none()));
}

#[test]
fn a_device_that_cannot_be_followed_is_unknown() {
    let machine = two_sockets();
    machine
        .device("net", "gone", "pci0000:00/0000:00:09.0/net/gone")
        .without("devices/pci0000:00/0000:00:09.0");
    machine.device("net", "mute", "platform/soc/net/mute");
    let topology = machine.read();
    assert!(topology.devices.iter().all(|device| device.name != "gone"), "a dangling link is no device");
    let Locality::Unknown(why) = locality(&topology, "mute") else { panic!("mute has no node") };
    assert!(why.starts_with("no numa_node on the way up from ") && why.ends_with("/soc/net/mute"), "{why}");
}

#[test]
fn one_node_holds_everything() {
    let topology = one_node().read();
    let eth0 = Device { name: "eth0".into(), kind: DeviceKind::Net, locality: Locality::Node(0) };
    assert_eq!(topology.devices, [eth0]);
    assert_eq!((topology.nodes.len(), topology.distance(0, 0)), (1, Some(10)));
    assert_eq!(topology.notes, [""; 0]);
}

#[test]
fn a_container_sees_all_and_uses_its_cpuset() {
    let topology = two_sockets().read_as(&allowed("2,6,40", "1"));
    assert_eq!((topology.online.to_string(), topology.usable.to_string()), ("0-7".into(), "2,6".into()));
    assert_eq!(topology.nodes.iter().map(|node| node.allowed).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(topology.allowed_nodes().to_string(), "1");
    assert_eq!(topology.memory_node(0), Some(1));
}

#[test]
fn offline_cpus_are_in_nothing() {
    let machine = two_sockets();
    machine.file("devices/system/cpu/online", "0-5,7").without("devices/system/cpu/cpu6");
    let topology = machine.read();
    assert_eq!(topology.cores[2].cpus.to_string(), "2");
    assert_eq!(topology.node(1).unwrap().cpus.to_string(), "2-3,7");
    assert!(topology.caches.iter().all(|cache| !cache.cpus.contains(6)));
}

#[test]
fn instruction_caches_do_not_count_as_shared() {
    let machine = two_sockets();
    // Index 1 is the L1i: here one for the whole package.
    for cpu in [0, 1, 4, 5] {
        machine.file(&format!("devices/system/cpu/cpu{cpu}/cache/index1/shared_cpu_list"), "0-1,4-5");
    }
    assert_eq!(machine.read().shared_cache(0, 1).map(|cache| cache.level), Some(3));
}

#[test]
fn node_numbers_with_gaps_keep_their_distances() {
    let machine = Machine::new();
    machine.file("devices/system/cpu/online", "0-1").file("devices/system/node/online", "0,8");
    machine.node(0, "0", 4096, "10 40").node(8, "1", 4096, "41 10");
    let topology = machine.read();
    let pairs = [(0, 8), (8, 0), (8, 8), (0, 1)];
    assert_eq!(pairs.map(|(a, b)| topology.distance(a, b)), [Some(40), Some(41), Some(10), None]);
}

#[test]
fn memory_comes_from_the_nearest_node_that_has_some() {
    let machine = two_sockets();
    machine.node(1, "2-3,6-7", 0, "21 10 14");
    assert_eq!([0, 1, 2, 7].map(|node| machine.read().memory_node(node)), [Some(0), Some(2), Some(2), None]);
    let without_two = machine.read_as(&allowed("0-7", "0-1"));
    assert_eq!(without_two.memory_node(1), Some(0));
}

#[test]
fn missing_files_are_unknown_and_said() {
    let machine = two_sockets();
    machine.without("devices/system/cpu/cpu1/topology").without("devices/system/cpu/cpu3/cache");
    machine.without("devices/system/node/node1/distance").without("devices/system/node/node0/meminfo");
    machine.file("devices/system/cpu/cpu2/topology/physical_package_id", "-1");
    machine.file("devices/system/cpu/cpu0/cache/index0/size", "much");
    let topology = machine.read();
    assert!(topology.cores.contains(&Core { cpus: set("1"), package: None }), "{:?}", topology.cores);
    assert_eq!(topology.shared_cache(0, 4).map(|cache| (cache.level, cache.size_bytes)), Some((1, None)));
    assert_eq!((topology.distance(1, 0), topology.distance(0, 1)), (None, Some(21)));
    assert_eq!((topology.distance(1, 1), topology.distance(7, 7)), (Some(10), None));
    assert_eq!(topology.node(0).unwrap().memory_bytes, None);
    for about in
        ["cpu1/topology/physical_package_id", "CPU 3 tells nothing", "node1/distance", "node0/meminfo"]
    {
        assert!(topology.notes.iter().any(|note| note.contains(about)), "{about}: {:#?}", topology.notes);
    }
}

#[test]
fn garbage_is_unknown_and_said() {
    let machine = two_sockets();
    machine.file("devices/system/cpu/online", "0-7").file("devices/system/node/online", "0-zwei");
    machine.file("devices/system/cpu/cpu0/topology/core_cpus_list", "0-99999999999");
    machine.file("devices/pci0000:00/0000:00:01.0/numa_node", "first");
    let topology = machine.read();
    assert_eq!(topology.nodes, []);
    assert!(matches!(locality(&topology, "eth0"), Locality::Unknown(_)));
    assert!(topology.notes.iter().any(|note| note.contains("unexpected character 'z' at position 3")));
    assert!(topology.notes.iter().any(|note| note.contains("not below 65536")));
}

#[test]
fn an_empty_tree_leaves_the_allowed_cpus() {
    let machine = Machine::new();
    let topology = machine.read_as(&allowed("3,5", "0"));
    assert_eq!((topology.usable.to_string(), topology.online.to_string()), ("3,5".into(), "3,5".into()));
    assert_eq!((topology.cores.len(), topology.nodes.len(), topology.devices.len()), (2, 0, 0));
    assert!(!topology.notes.is_empty());

    let nothing_known = machine.read_as(&Allowed { notes: vec!["no answer".into()], ..Allowed::default() });
    assert!(nothing_known.usable.is_empty() && nothing_known.notes.contains(&"no answer".into()));
}

#[test]
fn notes_are_bounded() {
    let machine = Machine::new();
    machine.file("devices/system/cpu/online", "0-999");
    let topology = machine.read();
    assert_eq!(topology.cores.len(), 1000);
    assert_eq!(topology.notes.len(), 33);
    assert!(topology.notes[32].ends_with("more things could not be read"), "{}", topology.notes[32]);
}

#[test]
fn the_text_names_every_part() {
    let text = two_sockets().read_as(&allowed("2,6", "1")).to_string();
    let lines = [
        "machine     CPUs 0-7 online, 2,6 usable (from sysfs)",
        "package 0   2 cores: 0,4 1,5",
        "package 1   2 cores: 2,6 3,7",
        "cache L1    4 of 48 KiB: 0,4 1,5 2,6 3,7",
        "cache L2    4 of 2 MiB: 0,4 1,5 2,6 3,7",
        "cache L3    2 of 32 MiB: 0-1,4-5 2-3,6-7",
        "node 0      CPUs 0-1,4-5, memory 4 MiB, memory not allowed, distances 0:10 1:21 2:24",
        "node 1      CPUs 2-3,6-7, memory 8 MiB, distances 0:21 1:10 2:14",
        "node 2      CPUs none, memory 1 MiB, memory not allowed, distances 0:24 1:14 2:10",
        "net         eth0         node 0",
        "net         eth1         node 1",
        "net         lo           virtual",
        "net         usb0         unknown: the firmware names no node for it",
        "infiniband  mlx5_1       node 1",
        "",
    ];
    assert_eq!(text, lines.join("\n"));
}
