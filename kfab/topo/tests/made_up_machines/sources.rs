//! hwloc and sysfs describe the same machine the same way: this one, and made-up ones that hwloc is led to by its
//! variable `HWLOC_FSROOT`, which has to be set before the process starts.

use crate::machine::{Machine, one_node, two_sockets};
use kfab_topo::{Allowed, Source, Topology};
use std::path::Path;
use std::process::Command;

const ROOT: &str = "HWLOC_FSROOT";

#[test]
fn this_machine_is_the_same_from_both() {
    let allowed = Allowed::of_current_thread();
    // A virtual machine's memory may grow and shrink: compare when it held still.
    for _ in 0..20 {
        let before = Topology::from_sysfs("/".as_ref(), &allowed);
        let hwloc = Topology::from_hwloc(&allowed).unwrap();
        if before == Topology::from_sysfs("/".as_ref(), &allowed) {
            assert_eq!((before.source, hwloc.source), (Source::Sysfs, Source::Hwloc));
            assert_eq!(Topology { source: Source::Sysfs, ..hwloc }, before);
            return;
        }
    }
    panic!("the machine changed twenty times in a row");
}

#[test]
fn discovery_prefers_hwloc() {
    assert_eq!(Topology::discover().source, Source::Hwloc);
}

fn compare_in_child(machine: &Machine) {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sources::child", "--ignored", "--nocapture"])
        .env(ROOT, machine.root())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn made_up_machines_are_the_same_from_both() {
    compare_in_child(&two_sockets());
    compare_in_child(&one_node());
}

#[test]
#[ignore = "started by made_up_machines_are_the_same_from_both"]
fn child() {
    let root = std::env::var_os(ROOT).expect(ROOT);
    let sysfs = Topology::from_sysfs(Path::new(&root), &Allowed::default());
    let hwloc = Topology::from_hwloc(&Allowed::default()).unwrap();
    assert_eq!(hwloc.source, Source::Hwloc);
    assert_eq!(hwloc.online, sysfs.online);
    assert_eq!(hwloc.cores, sysfs.cores);
    assert_eq!(hwloc.caches, sysfs.caches);
    assert_eq!(hwloc.nodes, sysfs.nodes);
}
