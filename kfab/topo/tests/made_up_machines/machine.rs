//! A made-up machine: a sysfs tree in a temporary folder.

use kfab_topo::{Allowed, CpuSet, Topology};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

pub(crate) struct Machine(tempfile::TempDir);

impl Machine {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// Writes `sys/PATH`, and beside a list of CPUs the mask that the kernel gives too.
    pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
        let masks = [
            ("core_cpus_list", "core_cpus"),
            ("package_cpus_list", "package_cpus"),
            ("shared_cpu_list", "shared_cpu_map"),
            ("cpulist", "cpumap"),
        ];
        for (list, mask) in masks {
            if let (Some(dir), Ok(cpus)) = (path.strip_suffix(list), text.parse::<CpuSet>()) {
                let bits = cpus.iter().filter(|cpu| *cpu < 32).fold(0u32, |bits, cpu| bits | 1 << cpu);
                self.file(&format!("{dir}{mask}"), &format!("{bits:08x}"));
            }
        }
        let file = self.root().join("sys").join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{text}\n")).unwrap();
        self
    }

    pub(crate) fn without(&self, path: &str) -> &Self {
        let path = self.root().join("sys").join(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        self
    }

    /// A CPU with its core, its package, the L1 and L2 of its core, and the L3 that its package shares.
    pub(crate) fn cpu(&self, cpu: u32, core: &str, package: u32, l3: &str) -> &Self {
        let dir = format!("devices/system/cpu/cpu{cpu}");
        self.file(&format!("{dir}/topology/core_cpus_list"), core);
        self.file(&format!("{dir}/topology/package_cpus_list"), l3);
        self.file(&format!("{dir}/topology/physical_package_id"), &package.to_string());
        let caches =
            [("1", "Data", "48K", core), ("1", "Instruction", "32K", core), ("2", "Unified", "2048K", core)];
        for (index, (level, kind, size, cpus)) in
            caches.into_iter().chain([("3", "Unified", "32768K", l3)]).enumerate()
        {
            let dir = format!("{dir}/cache/index{index}");
            self.file(&format!("{dir}/level"), level).file(&format!("{dir}/type"), kind);
            self.file(&format!("{dir}/size"), size).file(&format!("{dir}/shared_cpu_list"), cpus);
        }
        self
    }

    pub(crate) fn node(&self, node: u32, cpus: &str, memory_kib: u64, distances: &str) -> &Self {
        let dir = format!("devices/system/node/node{node}");
        self.file(&format!("{dir}/cpulist"), cpus).file(&format!("{dir}/distance"), distances);
        self.file(
            &format!("{dir}/meminfo"),
            &format!("Node {node} MemTotal:  {memory_kib} kB\nNode {node} MemFree: 1 kB"),
        )
    }

    /// A device at `devices/PATH`, reachable by its class as in the real tree.
    pub(crate) fn device(&self, class: &str, name: &str, path: &str) -> &Self {
        let dir = self.root().join("sys/class").join(class);
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir_all(self.root().join("sys/devices").join(path)).unwrap();
        symlink(format!("../../devices/{path}"), dir.join(name)).unwrap();
        self
    }

    pub(crate) fn read(&self) -> Topology {
        self.read_as(&Allowed::default())
    }

    pub(crate) fn read_as(&self, allowed: &Allowed) -> Topology {
        Topology::from_sysfs(self.root(), allowed)
    }
}

pub(crate) fn allowed(cpus: &str, nodes: &str) -> Allowed {
    Allowed { cpus: Some(cpus.parse().unwrap()), nodes: Some(nodes.parse().unwrap()), notes: Vec::new() }
}

/// Two sockets of two cores with two threads each, siblings numbered apart; a node of memory alone (node 2) near
/// socket 1; a card on each socket, a virtio one that asks its parent, one that nobody places, loopback.
pub(crate) fn two_sockets() -> Machine {
    let machine = Machine::new();
    machine.file("devices/system/cpu/online", "0-7").file("devices/system/node/online", "0-2");
    for cpu in 0..8 {
        let (core, package) = (cpu % 4, (cpu % 4) / 2);
        let l3 = ["0-1,4-5", "2-3,6-7"][package as usize];
        machine.cpu(cpu, &format!("{core},{}", core + 4), package, l3);
    }
    machine
        .node(0, "0-1,4-5", 4096, "10 21 24")
        .node(1, "2-3,6-7", 8192, "21 10 14")
        .node(2, "", 1024, "24 14 10");
    machine.device("net", "eth0", "pci0000:00/0000:00:01.0/net/eth0");
    machine.file("devices/pci0000:00/0000:00:01.0/numa_node", "0");
    machine.device("infiniband", "mlx5_1", "pci0000:80/0000:80:00.0/0000:81:00.0/infiniband/mlx5_1");
    machine.file("devices/pci0000:80/0000:80:00.0/0000:81:00.0/numa_node", "1");
    machine.device("net", "eth1", "pci0000:80/0000:80:00.0/0000:82:00.0/virtio2/net/eth1");
    machine.file("devices/pci0000:80/0000:80:00.0/0000:82:00.0/numa_node", "-1");
    machine.file("devices/pci0000:80/0000:80:00.0/numa_node", "1");
    machine.device("net", "usb0", "pci0000:00/0000:00:02.0/usb1/net/usb0");
    machine.file("devices/pci0000:00/0000:00:02.0/numa_node", "-1");
    machine.device("net", "lo", "virtual/net/lo");
    machine.file("class/net/bonding_masters", "");
    machine
}

/// Two CPUs and one node, as in a small virtual machine whose firmware places nothing.
pub(crate) fn one_node() -> Machine {
    let machine = Machine::new();
    machine.file("devices/system/cpu/online", "0-1").file("devices/system/node/online", "0");
    machine.cpu(0, "0", 0, "0-1").cpu(1, "1", 0, "0-1").node(0, "0-1", 4096, "10");
    machine.device("net", "eth0", "pci0000:00/0000:00:03.0/virtio2/net/eth0");
    machine.file("devices/pci0000:00/0000:00:03.0/numa_node", "-1");
    machine
}
