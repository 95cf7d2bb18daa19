//! Reading the topology from sysfs (Documentation/ABI: sysfs-devices-system-cpu, sysfs-devices-node, sysfs-bus-pci).
//!
//! Every path is below a given root, so that tests can build a machine in a folder. Nothing fails: what is not there
//! is left unknown, with a note.

use crate::allowed::Allowed;
use crate::idset::{CpuSet, IdSet};
use crate::topology::{Cache, Core, Device, DeviceKind, Locality, Node, Topology};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const MAX_NOTES: usize = 32;
/// Devices of one class that are looked at; a container host may have thousands of veths.
const MAX_DEVICES: usize = 1024;
/// Cache index folders of one CPU; no machine has more than five.
const MAX_CACHES: usize = 16;

pub(crate) fn read(root: &Path, allowed: &Allowed) -> Topology {
    let mut reader = Reader { sys: root.join("sys"), notes: Vec::new(), notes_left_out: 0 };
    let mut topology = Topology { online: reader.online_cpus(allowed), ..Topology::default() };
    for cpu in topology.online.iter() {
        topology.cores.push(reader.core(cpu, &topology.online));
        reader.caches(cpu, &topology.online, &mut topology.caches);
    }
    topology.nodes = reader.nodes(&topology.online);
    topology.devices = reader.devices();
    topology.notes = reader.into_notes();
    topology.finish(allowed)
}

/// The devices alone, for a reader that knows the rest from elsewhere.
#[cfg(feature = "hwloc")]
pub(crate) fn read_devices(root: &Path) -> (Vec<Device>, Vec<String>) {
    let mut reader = Reader { sys: root.join("sys"), notes: Vec::new(), notes_left_out: 0 };
    (reader.devices(), reader.into_notes())
}

struct Reader {
    sys: PathBuf,
    notes: Vec<String>,
    notes_left_out: usize,
}

impl Reader {
    fn note(&mut self, note: String) {
        match self.notes.len() < MAX_NOTES {
            true => self.notes.push(note),
            false => self.notes_left_out += 1,
        }
    }

    fn into_notes(mut self) -> Vec<String> {
        if self.notes_left_out > 0 {
            self.notes.push(format!("{} more things could not be read", self.notes_left_out));
        }
        self.notes
    }

    /// The file parsed, or a note of why not.
    fn parse<T: FromStr<Err: std::fmt::Display>>(&mut self, path: &str) -> Option<T> {
        let file = self.sys.join(path);
        let parsed = match fs::read_to_string(&file) {
            Ok(text) => text.trim().parse().map_err(|e: T::Err| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        parsed.map_err(|e| self.note(format!("{}: {e}", file.display()))).ok()
    }

    fn online_cpus(&mut self, allowed: &Allowed) -> CpuSet {
        let online: Option<CpuSet> = self.parse("devices/system/cpu/online");
        online.or_else(|| allowed.cpus.clone()).unwrap_or_default()
    }

    fn core(&mut self, cpu: u32, online: &CpuSet) -> Core {
        let dir = format!("devices/system/cpu/cpu{cpu}/topology");
        // core_cpus_list is the name since Linux 5.3, thread_siblings_list the one before.
        let new_name = format!("{dir}/core_cpus_list");
        let siblings: Option<CpuSet> = match self.sys.join(&new_name).exists() {
            true => self.parse(&new_name),
            false => self.parse(&format!("{dir}/thread_siblings_list")),
        };
        let alone = CpuSet::from_iter([cpu]);
        let cpus = siblings.unwrap_or_default().intersection(online).union(&alone);
        // -1 where the firmware does not say.
        let package = self.parse::<i64>(&format!("{dir}/physical_package_id"));
        Core { cpus, package: package.and_then(|id| u32::try_from(id).ok()) }
    }

    fn caches(&mut self, cpu: u32, online: &CpuSet, caches: &mut Vec<Cache>) {
        for index in 0..MAX_CACHES {
            let dir = format!("devices/system/cpu/cpu{cpu}/cache/index{index}");
            if !self.sys.join(&dir).exists() {
                if index == 0 {
                    self.note(format!(
                        "{}: CPU {cpu} tells nothing about its caches",
                        self.sys.join(&dir).display()
                    ));
                }
                return;
            }
            let kind: Option<String> = self.parse(&format!("{dir}/type"));
            if kind.as_deref() == Some("Instruction") {
                continue;
            }
            let level = self.parse(&format!("{dir}/level"));
            let cpus: Option<CpuSet> = self.parse(&format!("{dir}/shared_cpu_list"));
            let (Some(level), Some(cpus)) = (level, cpus) else { continue };
            let cpus = cpus.intersection(online);
            if cpus.first() != Some(cpu) {
                continue; // Empty, or already seen from its first CPU.
            }
            let size = fs::read_to_string(self.sys.join(format!("{dir}/size")));
            caches.push(Cache { level, size_bytes: size.ok().and_then(|text| size_bytes(&text)), cpus });
        }
    }

    fn nodes(&mut self, online: &CpuSet) -> Vec<Node> {
        let ids: IdSet = self.parse("devices/system/node/online").unwrap_or_default();
        ids.iter().map(|id| self.node(id, &ids, online)).collect()
    }

    fn node(&mut self, id: u32, ids: &IdSet, online: &CpuSet) -> Node {
        let dir = format!("devices/system/node/node{id}");
        let cpus: CpuSet = self.parse(&format!("{dir}/cpulist")).unwrap_or_default();
        let meminfo: String = self.parse(&format!("{dir}/meminfo")).unwrap_or_default();
        let row: String = self.parse(&format!("{dir}/distance")).unwrap_or_default();
        // One number for each online node, ascending: not indexed by the node's number.
        let row: Vec<u32> = row.split_whitespace().map_while(|distance| distance.parse().ok()).collect();
        let mut distances = BTreeMap::new();
        match row.len() == ids.len() {
            true => distances.extend(ids.iter().zip(row)),
            false => {
                self.note(format!("{}/{dir}/distance: not one number for each node", self.sys.display()))
            }
        }
        let memory_bytes = mem_total_bytes(&meminfo);
        Node { id, cpus: cpus.intersection(online), memory_bytes, allowed: true, distances }
    }

    fn devices(&mut self) -> Vec<Device> {
        let mut devices = Vec::new();
        for (kind, class) in [(DeviceKind::Net, "class/net"), (DeviceKind::Infiniband, "class/infiniband")] {
            let dir = self.sys.join(class);
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                // No RDMA stack in the kernel: no device, and nothing unknown.
                Err(e) if kind == DeviceKind::Infiniband && e.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(e) => {
                    self.note(format!("{}: {e}", dir.display()));
                    continue;
                }
            };
            let mut names: Vec<String> =
                entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
            names.retain(|name| dir.join(name).is_dir()); // Not the file bonding_masters.
            names.sort();
            if names.len() > MAX_DEVICES {
                self.note(format!("{}: {} devices, {MAX_DEVICES} looked at", dir.display(), names.len()));
            }
            for name in names.into_iter().take(MAX_DEVICES) {
                let locality = self.locality(&dir.join(&name));
                devices.push(Device { name, kind, locality });
            }
        }
        devices
    }

    /// Walks from the device up the tree to the first that names a node: a virtio or USB device has none itself.
    fn locality(&self, link: &Path) -> Locality {
        let canonical = fs::canonicalize(link).and_then(|path| Ok((path, fs::canonicalize(&self.sys)?)));
        let (device, sys) = match canonical {
            Ok(paths) => paths,
            Err(e) => return Locality::Unknown(format!("{}: {e}", link.display())),
        };
        let top = sys.join("devices");
        if device.starts_with(top.join("virtual")) {
            return Locality::Virtual;
        }
        let mut asked = false;
        for dir in device.ancestors().take_while(|dir| *dir != top && dir.starts_with(&top)) {
            let Ok(text) = fs::read_to_string(dir.join("numa_node")) else { continue };
            asked = true;
            if let Ok(node) = text.trim().parse::<u32>() {
                return Locality::Node(node);
            }
        }
        Locality::Unknown(match asked {
            true => "the firmware names no node for it".into(),
            false => format!("no numa_node on the way up from {}", device.display()),
        })
    }
}

/// A cache size such as "48K" or "2M".
fn size_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The total of a node's meminfo: "Node 0 MemTotal:  4286668 kB".
fn mem_total_bytes(meminfo: &str) -> Option<u64> {
    let (_, total) = meminfo.lines().find_map(|line| line.split_once("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size_bytes("48K\n"), Some(48 << 10));
        assert_eq!(size_bytes("2M"), Some(2 << 20));
        assert_eq!(size_bytes("512"), Some(512));
        assert_eq!(size_bytes("99999999999999999G"), None);
        assert_eq!((size_bytes("4Q"), size_bytes("K"), size_bytes("")), (None, None, None));
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        let meminfo = "Node 1 MemTotal:        4096 kB\nNode 1 MemFree:  1 kB\n";
        assert_eq!(mem_total_bytes(meminfo), Some(4 << 20));
        assert_eq!((mem_total_bytes("Node 1 MemTotal:"), mem_total_bytes("")), (None, None));
    }
}
