//! What the kernel permits this process: CPUs (affinity, which a cpuset narrows) and memory nodes.

use crate::idset::{CpuSet, NodeSet};
use std::fs;

const STATUS: &str = "/proc/thread-self/status";

/// The CPUs and memory nodes that may be used. `None` is "unknown", which is treated as "all there are".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Allowed {
    /// CPUs the thread may run on.
    pub cpus: Option<CpuSet>,
    /// Nodes the thread may take memory from.
    pub nodes: Option<NodeSet>,
    /// Why something above is unknown.
    pub notes: Vec<String>,
}

impl Allowed {
    /// Asks the kernel for the calling thread: `sched_getaffinity`, and `Mems_allowed_list` of `/proc` (proc(5)).
    ///
    /// A thread inherits the mask of the one that started it, so ask before binding anything.
    ///
    /// ```
    /// let allowed = kfab_topo::Allowed::of_current_thread();
    /// assert!(allowed.cpus.is_some_and(|cpus| !cpus.is_empty()));
    /// ```
    pub fn of_current_thread() -> Self {
        let mut allowed = match fs::read_to_string(STATUS) {
            Ok(status) => Self::from_proc_status(&status),
            Err(e) => Self { notes: vec![format!("memory nodes allowed: {STATUS}: {e}")], ..Self::default() },
        };
        // The system call is the authority; /proc answers where it cannot (it takes at most 1024 CPUs here).
        match crate::bind::current_affinity() {
            Ok(cpus) => allowed.cpus = Some(cpus),
            Err(e) if allowed.cpus.is_none() => {
                allowed.notes.push(format!("CPUs allowed: sched_getaffinity: {e}"))
            }
            Err(_) => {}
        }
        allowed
    }

    /// Reads the `Cpus_allowed_list` and `Mems_allowed_list` lines of a `/proc/PID/status`.
    pub fn from_proc_status(status: &str) -> Self {
        let mut notes = Vec::new();
        let mut field = |name: &str| {
            let Some(list) = status.lines().find_map(|line| line.strip_prefix(name)) else {
                notes.push(format!("{STATUS} has no {name}"));
                return None;
            };
            list.parse().map_err(|e| notes.push(format!("{name} {e}"))).ok()
        };
        let (cpus, nodes) = (field("Cpus_allowed_list:"), field("Mems_allowed_list:"));
        Self { cpus, nodes, notes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read() {
        let status = "Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t0-1,3\nMems_allowed:\t1\nMems_allowed_list:\t1\n";
        let allowed = Allowed::from_proc_status(status);
        assert_eq!(allowed.cpus.unwrap().to_string(), "0-1,3");
        assert_eq!(allowed.nodes.unwrap().to_string(), "1");
        assert_eq!(allowed.notes, [""; 0]);
    }

    #[test]
    fn missing_and_broken_lines_are_unknown_and_said() {
        let allowed = Allowed::from_proc_status("Cpus_allowed_list:\t0-\n");
        assert_eq!((allowed.cpus, allowed.nodes), (None, None));
        assert!(allowed.notes[0].contains("ends at position"), "{:?}", allowed.notes);
        assert!(allowed.notes[1].contains("has no Mems_allowed_list"), "{:?}", allowed.notes);
    }
}
