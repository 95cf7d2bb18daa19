//! The protocol on the simulated fabric: random traffic under random faults, thousands of seeds.
//!
//! Properties, checked in every run: every operation ends exactly once; a message is delivered at most once, and exactly once if its
//! sender was told it was delivered; contents are intact; a notice comes once, after its bytes; credits come back; what peers make us hold is bounded; when the faults
//! end, everything that can end does; nothing is left over (operations, memory).
//!
//! `KFAB_SEEDS=N` runs N seeds per scenario (default 20; `cargo xtask test` goes on with 200); `KFAB_SEED=S` replays one, with the world's trace.

mod node;
mod run;

use kfab_core::spi::Delivery;
use run::{Plan, Trouble};

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    let var = |n: &str| std::env::var(n).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(one) = var("KFAB_SEED") {
        return Box::new(std::iter::once(one));
    }
    Box::new(0..var("KFAB_SEEDS").unwrap_or(20))
}

fn all_seeds(plan: &Plan) {
    for seed in seeds() {
        let one = plan.clone();
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run::run(seed, &one, false)));
        let failed = match r {
            Ok(Ok(())) => continue,
            Ok(Err(e)) => e,
            Err(p) => p.downcast_ref::<String>().cloned().unwrap_or_else(|| "panic".into()),
        };
        eprintln!("replay with KFAB_SEED={seed}; the end of the trace:");
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run::run(seed, &one, true)));
        panic!("seed {seed} of {:?}: {failed}", plan.name);
    }
}

fn plan(name: &'static str, delivery: Delivery, trouble: Trouble) -> Plan {
    Plan { name, delivery, rails: 2, hosts: 3, rma: false, trouble, messages: 200 }
}

#[test]
fn calm_datagrams() {
    all_seeds(&plan("calm datagrams", Delivery::Datagram, Trouble::None));
}

#[test]
fn lossy_reordered_doubled_datagrams() {
    all_seeds(&plan("lossy datagrams", Delivery::Datagram, Trouble::Lossy));
}

#[test]
fn datagrams_with_partitions_and_dying_rails() {
    all_seeds(&plan("datagrams, cuts", Delivery::Datagram, Trouble::Cuts));
}

#[test]
fn calm_connections() {
    all_seeds(&plan("calm connections", Delivery::Connection, Trouble::None));
}

#[test]
fn connections_with_partitions_and_dying_rails() {
    all_seeds(&plan("connections, cuts", Delivery::Connection, Trouble::Cuts));
}

#[test]
fn connections_with_crashes_and_restarts() {
    all_seeds(&plan("connections, crashes", Delivery::Connection, Trouble::Crashes));
}

/// The short way is for one rail: where frames are kept, too.
#[test]
fn one_rail_of_connections_with_cuts() {
    all_seeds(&Plan { rails: 1, ..plan("one rail, cuts", Delivery::Connection, Trouble::Cuts) });
}

#[test]
fn one_rail_of_connections_with_crashes() {
    all_seeds(&Plan { rails: 1, ..plan("one rail, crashes", Delivery::Connection, Trouble::Crashes) });
}

#[test]
fn datagrams_with_everything() {
    all_seeds(&plan("datagrams, everything", Delivery::Datagram, Trouble::Everything));
}

#[test]
fn connections_with_everything() {
    all_seeds(&plan("connections, everything", Delivery::Connection, Trouble::Everything));
}

#[test]
fn connections_with_fault_rules() {
    all_seeds(&plan("connections, rules", Delivery::Connection, Trouble::Rules));
}

#[test]
fn one_sided_connections_with_fault_rules() {
    all_seeds(&Plan { rma: true, ..plan("rma connections, rules", Delivery::Connection, Trouble::Rules) });
}

#[test]
fn memory_like_calm() {
    all_seeds(&Plan { rails: 1, rma: true, ..plan("process, calm", Delivery::Process, Trouble::None) });
}

#[test]
fn memory_like_with_crashes() {
    all_seeds(&Plan { rails: 1, rma: true, ..plan("process, crashes", Delivery::Process, Trouble::Crashes) });
}

#[test]
fn one_sided_connections_with_cuts() {
    all_seeds(&Plan { rma: true, ..plan("rma connections, cuts", Delivery::Connection, Trouble::Cuts) });
}

#[test]
fn one_sided_connections_with_everything() {
    let everything = plan("rma connections, everything", Delivery::Connection, Trouble::Everything);
    all_seeds(&Plan { rma: true, ..everything });
}

/// The twin that proves the checks can fail: a world that lets duplicates through must be noticed.
#[test]
fn a_broken_promise_is_noticed() {
    let broken = Plan { messages: 60, ..plan("broken", Delivery::Datagram, Trouble::None) };
    assert!(run::run_with_a_lost_message(1, &broken).is_err());
}
