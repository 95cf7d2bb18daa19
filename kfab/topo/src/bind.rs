//! Binding threads to CPUs, and the report of what was asked and what was got.
//!
//! `sched_setaffinity` by rustix and not the crate core_affinity: that one sets a single core and answers yes or no,
//! while the kernel silently drops CPUs outside the cpuset and so what it granted has to be read back.

use crate::idset::CpuSet;
use rustix::io::Errno;
use rustix::thread::{CpuSet as Mask, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::fmt;

/// What [`bind_current_thread`] achieved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Bound {
    /// The CPUs asked for.
    pub asked: CpuSet,
    /// The CPUs the thread may run on now, as the kernel reports them.
    pub got: CpuSet,
    /// The CPUs it could run on before; bind to these to undo. `None` where they could not be read.
    pub before: Option<CpuSet>,
}

impl Bound {
    /// Whether all was granted that was asked for.
    pub fn is_whole(&self) -> bool {
        self.got == self.asked
    }
}

/// Why a thread could not be bound. It runs where it ran before, except for [`BindError::ReadBack`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// No CPU was asked for.
    #[error("no CPU to bind to")]
    Empty,
    /// A CPU number beyond what the system call is given here.
    #[error("CPU {cpu} is beyond the {limit} CPUs that binding can name")]
    OutOfRange {
        /// The CPU.
        cpu: u32,
        /// The first number that is too large.
        limit: u32,
    },
    /// None of the CPUs is online and in the cpuset of the process (`EINVAL`).
    #[error("none of the CPUs {asked} is online and in the cpuset of this process")]
    NotAllowed {
        /// The CPUs asked for.
        asked: CpuSet,
    },
    /// The kernel refused otherwise, for example by a seccomp filter (`EPERM`).
    #[error("sched_setaffinity to the CPUs {asked}: {errno}")]
    Refused {
        /// The CPUs asked for.
        asked: CpuSet,
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel took the request, but what it granted cannot be read.
    #[error("bound to the CPUs {asked} or some of them: sched_getaffinity: {errno}")]
    ReadBack {
        /// The CPUs asked for.
        asked: CpuSet,
        /// What the kernel said.
        errno: Errno,
    },
}

/// Binds the calling thread, and the threads it starts later, to `cpus`.
///
/// The kernel grants the part of `cpus` that is online and in the cpuset of the process; [`Bound::got`] is what it was.
///
/// # Errors
/// See [`BindError`]. Binding to more CPUs than are allowed is no error while one of them is.
///
/// ```
/// use kfab_topo::{BindError, CpuSet, bind_current_thread};
///
/// let allowed = kfab_topo::Allowed::of_current_thread().cpus.unwrap_or_default();
/// let one: CpuSet = allowed.iter().take(1).collect();
/// std::thread::spawn(move || {
///     assert_eq!(bind_current_thread(&one)?.got, one);
///     Ok::<(), BindError>(())
/// }).join().unwrap()?;
/// assert_eq!(bind_current_thread(&CpuSet::new()), Err(BindError::Empty));
/// # Ok::<(), BindError>(())
/// ```
pub fn bind_current_thread(cpus: &CpuSet) -> Result<Bound, BindError> {
    if cpus.is_empty() {
        return Err(BindError::Empty);
    }
    let mut mask = Mask::new();
    for cpu in cpus.iter() {
        if cpu as usize >= Mask::MAX_CPU {
            return Err(BindError::OutOfRange { cpu, limit: Mask::MAX_CPU as u32 });
        }
        mask.set(cpu as usize);
    }
    let asked = cpus.clone();
    let before = current_affinity().ok();
    match sched_setaffinity(None, &mask) {
        Ok(()) => {}
        Err(Errno::INVAL) => return Err(BindError::NotAllowed { asked }),
        Err(errno) => return Err(BindError::Refused { asked, errno }),
    }
    match current_affinity() {
        Ok(got) => Ok(Bound { asked, got, before }),
        Err(errno) => Err(BindError::ReadBack { asked, errno }),
    }
}

/// The CPUs the calling thread may run on.
pub(crate) fn current_affinity() -> Result<CpuSet, Errno> {
    let mask = sched_getaffinity(None)?;
    Ok((0..Mask::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).map(|cpu| cpu as u32).collect())
}

/// The CPU the calling thread runs on at this moment. It may move right after, unless bound to this CPU alone.
///
/// ```
/// println!("on CPU {}", kfab_topo::current_cpu());
/// ```
pub fn current_cpu() -> u32 {
    sched_getcpu() as u32
}

/// Where something was to be, or is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Target {
    /// Running on these CPUs.
    Cpus(CpuSet),
    /// Memory on this NUMA node.
    Node(u32),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Cpus(cpus) if cpus.len() == 1 => write!(f, "CPU {cpus}"),
            Target::Cpus(cpus) => write!(f, "CPUs {cpus}"),
            Target::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// The report on one placement: what was asked, what was got, why not.
///
/// ```
/// use kfab_topo::{Placement, Target};
/// let slab = Placement::of_memory("slab 0", 1, Err("mbind: Operation not permitted"));
/// assert!(!slab.is_met());
/// assert_eq!(slab.to_string(), "slab 0: node 1 asked, not bound: mbind: Operation not permitted");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Placement {
    /// What was placed: "progress thread 0", "slab 3".
    pub subject: String,
    /// Where it was to be.
    pub asked: Target,
    /// Where it is; `None` is "wherever the kernel puts it".
    pub got: Option<Target>,
    /// Why that is not what was asked; `None` exactly when it is.
    pub why_not: Option<String>,
}

impl Placement {
    /// The report on a thread that was to run on `asked`.
    pub fn of_thread(subject: impl Into<String>, asked: &CpuSet, outcome: &Result<Bound, BindError>) -> Self {
        let (got, why_not) = match outcome {
            Ok(bound) if bound.got == *asked => (Some(&bound.got), None),
            Ok(bound) => {
                let left_out = Target::Cpus(asked.difference(&bound.got));
                (
                    Some(&bound.got),
                    Some(format!("{left_out} not online or not in the cpuset of this process")),
                )
            }
            Err(e) => (None, Some(e.to_string())),
        };
        let got = got.cloned().map(Target::Cpus);
        Self { subject: subject.into(), asked: Target::Cpus(asked.clone()), got, why_not }
    }

    /// The report on memory that was to lie on node `asked`, by whoever called `mbind`: the node it lies on, or why it
    /// could not be bound.
    pub fn of_memory(
        subject: impl Into<String>,
        asked: u32,
        outcome: Result<u32, impl fmt::Display>,
    ) -> Self {
        let (got, why_not) = match outcome {
            Ok(node) if node == asked => (Some(Target::Node(node)), None),
            Ok(node) => (Some(Target::Node(node)), Some("the kernel gave another node".to_owned())),
            Err(e) => (None, Some(e.to_string())),
        };
        Self { subject: subject.into(), asked: Target::Node(asked), got, why_not }
    }

    /// Whether it is where it was asked to be.
    pub fn is_met(&self) -> bool {
        self.why_not.is_none()
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subject, asked, got, why_not } = self;
        match (got, why_not) {
            (Some(got), None) => write!(f, "{subject}: {got}"),
            (Some(got), Some(why)) => write!(f, "{subject}: {asked} asked, {got} got: {why}"),
            (None, why) => {
                write!(f, "{subject}: {asked} asked, not bound: {}", why.as_deref().unwrap_or("unknown"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &str) -> CpuSet {
        list.parse().unwrap()
    }

    #[test]
    fn reports_say_what_is_missing() {
        let outcome = Ok(Bound { asked: set("0-3"), got: set("0-1"), before: None });
        let part = Placement::of_thread("progress 0", &set("0-3"), &outcome);
        assert!(!part.is_met());
        let text = "progress 0: CPUs 0-3 asked, CPUs 0-1 got: CPUs 2-3 not online or not in the cpuset of this process";
        assert_eq!(part.to_string(), text);

        let whole = Ok(Bound { asked: set("2"), got: set("2"), before: None });
        let whole = Placement::of_thread("progress 1", &set("2"), &whole);
        assert!(whole.is_met());
        assert_eq!(whole.to_string(), "progress 1: CPU 2");

        let refused =
            Placement::of_thread("lane 2", &set("9"), &Err(BindError::NotAllowed { asked: set("9") }));
        assert_eq!(
            refused.to_string(),
            "lane 2: CPU 9 asked, not bound: none of the CPUs 9 is online and in the cpuset of this process"
        );
        let moved = Placement::of_memory("slab 0", 0, Ok::<_, BindError>(1));
        assert_eq!(moved.to_string(), "slab 0: node 0 asked, node 1 got: the kernel gave another node");
        assert!(Placement::of_memory("slab 0", 1, Ok::<_, BindError>(1)).is_met());
    }
}
