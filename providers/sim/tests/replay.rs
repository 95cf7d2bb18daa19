//! The same seed gives the same run; another seed another.

mod common;
use common::*;
use kfab_core::spi::Delivery;
use kfab_sim::{Faults, Path, World, WorldConfig};

/// A busy run with every kind of fault: its fingerprint, log and what was delivered.
fn run(seed: u64, delivery: Delivery) -> (u64, Vec<String>, Vec<u32>) {
    let config = WorldConfig { trace: 10_000, queue_frames: 16, ..WorldConfig::new(delivery).with_rma() };
    let world = World::new(seed, config);
    let (mut a, mut b) = (Node::new(world.port(1, 0)), Node::new(world.port(2, 0)));
    let (ca, cb) = connect(&world, &mut a, &mut b);
    let faults = Faults { loss: 0.1, duplicate: 0.1, reorder: 0.2, ..Faults::default() };
    world.set_faults(Path::ALL, faults);
    for i in 0..200 {
        a.send(ca, i, (i % 70) as usize);
        if b.port.is_some() {
            b.send(cb, i, (i % 50) as usize);
        }
        match i {
            50 => world.cut_pair(1, 2),
            60 => world.heal_all(),
            100 => world.stall_for(2, 300_000),
            150 => world.rail_down(0),
            160 => world.crash(2),
            _ => {}
        }
        if i == 160 {
            b.port = None;
        }
        if i == 170 {
            world.restart(2);
            world.rail_up(0);
            b.port = Some(world.port(2, 0));
            connect(&world, &mut a, &mut b);
        }
        run_for(&world, &mut [&mut a, &mut b], 20_000);
    }
    a.check_bodies();
    b.check_bodies();
    let mut numbers = a.numbers();
    numbers.extend(b.numbers());
    (world.fingerprint(), world.trace(), numbers)
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for delivery in [Delivery::Datagram, Delivery::Connection, Delivery::Process] {
        for seed in 0..20 {
            let (first, second) = (run(seed, delivery), run(seed, delivery));
            assert_eq!(first, second, "seed {seed}, {delivery:?}");
            assert_ne!(first.0, run(seed + 1, delivery).0, "seed {seed} and the next, {delivery:?}");
        }
    }
}
