//! The protocol on the simulated fabric: random traffic under random faults, thousands of seeds.
//!
//! Properties, checked in every run: every operation ends exactly once, with a fate that is true; a message is delivered at most once, and exactly once if its
//! sender was told it was delivered; ordered ones after all that was sent before; contents are intact; a notice comes once, after its
//! bytes; credits come back; what peers make us hold is bounded; when the faults end, everything that can end does; nothing is left over
//! (operations, memory).
//!
//! `KFAB_SEEDS=N` runs N seeds per scenario (default 20; `cargo xtask test` goes on with 200); `KFAB_SEED=S` replays one, with the last
//! `KFAB_TRACE=N` lines (default 300) of the world's trace.

mod node;
mod run;

use kfab_core::spi::Delivery;
use run::{Plan, Trouble};

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn seeds() -> Box<dyn Iterator<Item = u64>> {
    if let Some(one) = number("KFAB_SEED") {
        return Box::new(std::iter::once(one));
    }
    Box::new(0..number("KFAB_SEEDS").unwrap_or(20))
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
    Plan {
        name,
        delivery,
        rails: 2,
        hosts: 3,
        rma: false,
        trouble,
        messages: 200,
        disturbance: 0.0,
        talk: false,
    }
}

/// One test each: what ports promise, what befalls them, and what differs from [`plan`].
macro_rules! scenarios {
    ($($name:ident: $delivery:ident, $trouble:ident $(, $field:ident = $value:expr)*;)*) => {$(
        #[test]
        fn $name() {
            #[allow(clippy::needless_update, reason = "some scenarios differ in nothing")]
            all_seeds(&Plan {
                $($field: $value,)*
                ..plan(stringify!($name), Delivery::$delivery, Trouble::$trouble)
            });
        }
    )*};
}

scenarios! {
    calm_datagrams: Datagram, None;
    lossy_reordered_doubled_datagrams: Datagram, Lossy;
    datagrams_with_partitions_and_dying_rails: Datagram, Cuts;
    datagrams_with_fault_rules: Datagram, Rules;
    datagrams_with_everything: Datagram, Everything;

    calm_connections: Connection, None;
    connections_with_partitions_and_dying_rails: Connection, Cuts;
    connections_with_crashes_and_restarts: Connection, Crashes;
    connections_with_fault_rules: Connection, Rules;
    connections_with_everything: Connection, Everything;

    // The short way is for one rail: where frames are kept, too.
    one_rail_of_connections_with_cuts: Connection, Cuts, rails = 1;
    one_rail_of_connections_with_crashes: Connection, Crashes, rails = 1;

    one_sided_connections_with_cuts: Connection, Cuts, rma = true;
    one_sided_connections_with_fault_rules: Connection, Rules, rma = true;
    one_sided_connections_with_everything: Connection, Everything, rma = true;

    // Every operation ends once, as it says, when its user ends it early.
    disturbed_datagrams: Datagram, Lossy, disturbance = 0.004;
    disturbed_connections: Connection, None, disturbance = 0.004;
    disturbed_connections_with_cuts: Connection, Cuts, disturbance = 0.004;
    disturbed_one_sided_connections: Connection, Cuts, rma = true, disturbance = 0.004;
    disturbed_memory: Process, Rules, rails = 1, rma = true, disturbance = 0.004;

    memory_like_calm: Process, None, rails = 1, rma = true;
    memory_like_with_fault_rules: Process, Rules, rails = 1, rma = true;
    memory_like_with_crashes: Process, Crashes, rails = 1, rma = true;

    // Rows of small messages are handed over first and booked later.
    talk_over_memory: Process, None, rails = 1, hosts = 2, talk = true, messages = 150;
    disturbed_talk_over_memory: Process, Rules, rails = 1, talk = true, disturbance = 0.004, messages = 150;
    talk_over_memory_with_crashes: Process, Crashes, rails = 1, talk = true, messages = 150;
    talk_over_connections_with_cuts: Connection, Cuts, rails = 1, talk = true, messages = 150;
    talk_over_connections_with_everything: Connection, Everything, rails = 1, talk = true, messages = 150;
}

/// Where rails reorder, messages keep an order only because it is asked for.
#[test]
fn order_is_noticed_where_it_is_missing() {
    let lossy = plan("without order", Delivery::Datagram, Trouble::Lossy);
    let two_rails = plan("two rails", Delivery::Connection, Trouble::None);
    for plan in [lossy, two_rails] {
        let e = (0..5).find_map(|seed| run::run_without_order(seed, &plan).err());
        assert!(
            e.as_ref().is_some_and(|e| e.contains("which is ordered, came before")),
            "{:?}: {e:?}",
            plan.name
        );
    }
}

/// The twin that proves the checks can fail: a world that lets duplicates through must be noticed.
#[test]
fn a_broken_promise_is_noticed() {
    let broken = Plan { messages: 60, ..plan("broken", Delivery::Datagram, Trouble::None) };
    assert!(run::run_with_a_lost_message(1, &broken).is_err());
}
