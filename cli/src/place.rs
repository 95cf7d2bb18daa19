//! Where the two sides of a measurement run: one core each, if there are two.

use crate::failure::{Failure, Result};
use kfab::topo::{CpuSet, Topology, bind_current_thread};
use std::str::FromStr;
use std::sync::OnceLock;

/// The machine as it was when the program started: once a thread is pinned, it is allowed no more than its own CPU.
fn machine() -> &'static Topology {
    static MACHINE: OnceLock<Topology> = OnceLock::new();
    MACHINE.get_or_init(Topology::discover)
}

/// Pinning as asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pin {
    /// Two cores that the machine's layout suggests.
    #[default]
    Auto,
    /// No pinning.
    None,
    /// Client and server.
    Cpus(u32, u32),
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Pin, String> {
        match s {
            "auto" => return Ok(Pin::Auto),
            "none" => return Ok(Pin::None),
            _ => {}
        }
        let (a, b) = s.split_once(',').ok_or("expected two CPU numbers (0,1), `auto` or `none`")?;
        let cpu = |t: &str| t.trim().parse().map_err(|_| format!("{t:?} is not a CPU number"));
        Ok(Pin::Cpus(cpu(a)?, cpu(b)?))
    }
}

impl Pin {
    /// The CPUs of client and server; `None` where nothing is pinned.
    pub(crate) fn cpus(&self) -> Result<Option<(u32, u32)>> {
        match *self {
            Pin::None => Ok(None),
            Pin::Auto => Ok(two_cores()),
            Pin::Cpus(a, b) => {
                let allowed = &machine().usable;
                for cpu in [a, b] {
                    if !allowed.contains(cpu) {
                        return Err(Failure::usage(format!(
                            "--pin: CPU {cpu} is not among the allowed ones ({allowed})"
                        )));
                    }
                }
                Ok(Some((a, b)))
            }
        }
    }
}

/// Whether two threads on these CPUs (`None`: wherever they may) have to take turns.
pub(crate) fn share_a_cpu(cpus: Option<(u32, u32)>) -> bool {
    cpus.map_or(machine().usable.len() < 2, |(a, b)| a == b)
}

/// Two CPUs on different cores, where there are two cores; else any two; else none.
fn two_cores() -> Option<(u32, u32)> {
    let topology = machine();
    let firsts: Vec<u32> =
        topology.cores.iter().filter_map(|c| c.cpus.intersection(&topology.usable).first()).collect();
    match firsts[..] {
        [a, b, ..] => Some((a, b)),
        _ => {
            let mut all = topology.usable.iter();
            Some((all.next()?, all.next()?))
        }
    }
}

/// Binds the calling thread (and those it starts later) to one CPU. A refusal is said, not fatal.
pub(crate) fn pin(cpu: Option<u32>) {
    let Some(cpu) = cpu else { return };
    machine();
    let mut set = CpuSet::new();
    set.insert(cpu);
    if let Err(e) = bind_current_thread(&set) {
        eprintln!("kfab: not pinned to CPU {cpu}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cpus_are_found_again_after_pinning() {
        let before = Pin::Auto.cpus().unwrap();
        let again = std::thread::spawn(move || {
            pin(before.map(|c| c.0));
            Pin::Auto.cpus().unwrap()
        });
        assert_eq!(again.join().unwrap(), before);
    }

    #[test]
    fn whoever_is_not_pinned_shares_a_cpu_only_where_there_is_one() {
        assert!(share_a_cpu(Some((1, 1))) && !share_a_cpu(Some((0, 1))));
        assert_eq!(share_a_cpu(None), machine().usable.len() == 1);
    }

    #[test]
    fn pins_are_parsed_by_name() {
        assert_eq!("2,5".parse(), Ok(Pin::Cpus(2, 5)));
        assert_eq!("none".parse(), Ok(Pin::None));
        assert!("2".parse::<Pin>().unwrap_err().contains("two CPU"));
        assert!("2,x".parse::<Pin>().unwrap_err().contains("\"x\""));
        assert!(Pin::Cpus(0, 4_000).cpus().unwrap_err().what.contains("4000"));
    }
}
