//! Prints this machine as kfab sees it, and how it would be split.
//!
//! `topology` (one partition a node), `topology 4` (four), `topology 0-3 4-7` (these).

use kfab_topo::{CpuSet, PartitionPolicy, Partitions, Topology};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let policy = match policy(&arguments) {
        Ok(policy) => policy,
        Err(e) => {
            eprintln!("topology: {e}\nusage: topology [COUNT | LIST...], a list being like 0-3,8");
            return ExitCode::from(2);
        }
    };
    let topology = Topology::discover();
    let (text, code) = match Partitions::plan(&topology, &policy) {
        Ok(partitions) => (format!("{topology}{partitions}{}", bind(&partitions)), ExitCode::SUCCESS),
        Err(e) => {
            eprintln!("topology: {e}");
            (topology.to_string(), ExitCode::FAILURE)
        }
    };
    // Whoever reads may have read enough (`| head`).
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

/// Binds a thread to each partition, and says how that went.
fn bind(partitions: &Partitions) -> String {
    let mut text = String::new();
    for partition in partitions {
        // On a thread of its own, since a binding stays with the thread.
        let bind = || partition.bind_current_thread(format!("thread of partition {}", partition.index));
        let placement = std::thread::scope(|scope| scope.spawn(bind).join());
        text.extend(placement.iter().map(|placement| format!("bound       {placement}\n")));
    }
    text
}

/// One bare number is a count; anything else is lists.
fn policy(arguments: &[String]) -> Result<PartitionPolicy, kfab_topo::ListError> {
    match arguments {
        [] => Ok(PartitionPolicy::PerNode),
        [one] if one.parse::<usize>().is_ok() => Ok(PartitionPolicy::Count(one.parse().unwrap_or(0))),
        lists => {
            let lists: Result<Vec<CpuSet>, _> = lists.iter().map(|list| list.parse()).collect();
            Ok(PartitionPolicy::Explicit(lists?))
        }
    }
}
