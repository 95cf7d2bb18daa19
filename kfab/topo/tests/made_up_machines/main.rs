//! The public API on made-up machines (sysfs trees in temporary folders), and binding on the real one.

mod machine;
mod plans;
#[cfg(feature = "hwloc")]
mod sources;
mod trees;
