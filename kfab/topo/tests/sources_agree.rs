//! hwloc and sysfs describe the same machine the same way.
#![cfg(feature = "hwloc")]

use kfab_topo::{Allowed, Source, Topology};

#[test]
fn this_machine_is_the_same_from_both() {
    let allowed = Allowed::of_current_thread();
    let sysfs = Topology::from_sysfs("/".as_ref(), &allowed);
    let hwloc = Topology::from_hwloc(&allowed).unwrap();
    assert_eq!((sysfs.source, hwloc.source), (Source::Sysfs, Source::Hwloc));
    assert_eq!(Topology { source: Source::Sysfs, ..hwloc }, sysfs);
    assert_eq!(Topology::discover().source, Source::Hwloc);
}
