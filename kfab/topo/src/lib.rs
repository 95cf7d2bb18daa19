//! Placement: what the machine looks like, how it is split, and what was bound to what.
//!
//! [`Topology::discover`] reads cores, caches, NUMA nodes and where the network devices sit, [`Partitions::plan`] splits
//! the CPUs the process may use, and `Fabric::open_partitioned` opens an endpoint for each [`Partition`]: its progress
//! thread and its slabs are bound there, the threads that call it are the program's to place. Binding a region of memory
//! needs `mbind` and with it unsafe code, so it is done by whoever owns the region; this crate names the node
//! ([`Partition::memory_node`]).
//!
//! What always holds:
//! - Nothing here panics or fails because a fact is missing: it is `None` or `Unknown` and [`Topology::notes`] says
//!   why. A machine without `/sys`, a container with a cpuset and a machine with one node all give a usable plan.
//! - A plan only ever names CPUs that the calling thread was allowed to use when the topology was read.
//! - What was asked and not granted is said: see [`Placement`].
//! - The CPUs and nodes are the kernel's logical numbers, the ones `taskset` and `numactl` speak.
//!
//! The ledger that shares out a node's cores and memory between *processes* comes later; it plugs in between
//! [`Allowed`] (what the kernel permits) and [`Partitions::plan`] (what this process takes), as one more reason to
//! narrow [`Allowed::cpus`] before the topology is read.
//!
//! ```
//! use kfab_topo::{PartitionPolicy, Partitions, Topology};
//!
//! let topology = Topology::discover();
//! let partitions = Partitions::plan(&topology, &PartitionPolicy::PerNode)?;
//! for partition in &partitions {
//!     let placement = std::thread::scope(|s| s.spawn(|| partition.bind_current_thread("progress")).join().unwrap());
//!     println!("{placement}");
//! }
//! # Ok::<(), kfab_topo::PlanError>(())
//! ```
#![forbid(unsafe_code)]

mod allowed;
mod bind;
#[cfg(feature = "hwloc")]
mod hwloc;
mod idset;
mod partition;
mod show;
mod sysfs;
mod topology;

pub use allowed::Allowed;
pub use bind::{BindError, Bound, Placement, Target, bind_current_thread, current_cpu};
#[cfg(feature = "hwloc")]
pub use hwloc::HwlocError;
pub use idset::{CpuSet, IdSet, ListError, NodeSet};
pub use partition::{Partition, PartitionPolicy, Partitions, PlanError};
pub use topology::{Cache, Core, Device, DeviceKind, Locality, NearDevice, Node, Source, Topology};
