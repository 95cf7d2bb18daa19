//! Each fault of a world is seen where it should be, and not where it should not.

mod common;
use common::*;
use kfab_core::spi::{Delivery, DownReason, PortConfig};
use kfab_core::{Kind, auth::FabricKey};
use kfab_sim::{Faults, Path, World, WorldConfig};

const MS: u64 = 1_000_000;

fn pair(config: WorldConfig) -> (World, Node, Node) {
    let world = World::new(42, WorldConfig { trace: 200, ..config });
    let (a, b) = (Node::new(world.port(1, 0)), Node::new(world.port(2, 0)));
    (world, a, b)
}

/// Sends `n` frames from `a` to `b`, one each 10 us, and lets the world rest.
fn stream(world: &World, a: &mut Node, b: &mut Node, conn: kfab_core::spi::Conn, n: u32) {
    for i in 0..n {
        assert!(a.send(conn, i, (i % 90) as usize));
        run_for(world, &mut [a, b], 10_000);
    }
    run_for(world, &mut [a, b], 5 * MS);
}

#[test]
fn a_clean_link_delivers_everything() {
    for delivery in [Delivery::Datagram, Delivery::Connection, Delivery::Process] {
        let (world, mut a, mut b) = pair(WorldConfig::new(delivery));
        let (conn, _) = connect(&world, &mut a, &mut b);
        stream(&world, &mut a, &mut b, conn, 300);
        assert_eq!(b.numbers(), (0..300).collect::<Vec<_>>(), "{delivery:?}");
        b.check_bodies();
        assert_eq!(world.violations(), Vec::<String>::new());
    }
}

#[test]
fn datagrams_are_lost_doubled_and_reordered_as_often_as_asked() {
    let (world, mut a, mut b) = pair(WorldConfig::default());
    let (conn, _) = connect(&world, &mut a, &mut b);
    let faults = Faults { loss: 0.2, duplicate: 0.1, reorder: 0.3, reorder_ns: 50_000, ..Faults::default() };
    world.set_faults(Path::one_way(1, 2), faults);
    stream(&world, &mut a, &mut b, conn, 2000);
    let got = b.numbers();
    b.check_bodies();
    let (mut once, s) = (got.clone(), world.stats());
    once.sort_unstable();
    once.dedup();
    assert!((1500..1700).contains(&once.len()), "{} of 2000", once.len());
    assert!((120..240).contains(&(got.len() - once.len())), "{} doubled", got.len() - once.len());
    assert_eq!(s.lost + once.len() as u64, 2000);
    assert_eq!(s.arrived, got.len() as u64);
    assert!(got.windows(2).filter(|w| w[0] > w[1]).count() > 100);
}

#[test]
fn an_ordered_connection_only_gets_slower_by_the_same_faults() {
    let (world, mut a, mut b) = pair(WorldConfig::new(Delivery::Connection));
    let (conn, _) = connect(&world, &mut a, &mut b);
    world.set_faults(Path::ALL, Faults { loss: 0.2, duplicate: 0.5, reorder: 0.5, ..Faults::default() });
    let mut i = 0;
    run_until(&world, &mut [&mut a, &mut b], 10_000 * MS, |n| {
        while i < 1000 && n[0].send(conn, i, 10) {
            i += 1;
        }
        n[1].frames.len() == 1000
    });
    assert_eq!(b.numbers(), (0..1000).collect::<Vec<_>>());
    assert!(world.now() > 5 * MS, "{}", world.now());
    assert!(world.stats().refused > 0 && a.writable > 0, "the queue was never full");
}

#[test]
fn a_cut_loses_datagrams_in_its_direction_only() {
    let (world, mut a, mut b) = pair(WorldConfig::default());
    let (ca, cb) = connect(&world, &mut a, &mut b);
    world.cut(Path::one_way(1, 2));
    assert!(a.send(ca, 1, 5) && b.send(cb, 2, 5));
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!((a.numbers(), b.numbers()), (vec![2], vec![]));
    world.heal_all();
    assert!(a.send(ca, 3, 5));
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!(b.numbers(), [3]);
}

#[test]
fn a_cut_holds_an_ordered_connection_and_then_breaks_it() {
    let (world, mut a, mut b) = pair(WorldConfig::new(Delivery::Connection));
    let (ca, cb) = connect(&world, &mut a, &mut b);
    world.cut_pair(1, 2);
    (0..10).for_each(|i| assert!(a.send(ca, i, 20)));
    run_for(&world, &mut [&mut a, &mut b], 100 * MS);
    assert!(b.frames.is_empty());
    world.heal_pair(1, 2);
    assert!(a.send(ca, 10, 20));
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!(b.numbers(), (0..=10).collect::<Vec<_>>());
    assert!(a.down.is_empty());

    world.cut_pair(1, 2);
    assert!(a.send(ca, 11, 20));
    run_for(&world, &mut [&mut a, &mut b], 600 * MS);
    assert_eq!(
        (&a.down[..], b.down.len()),
        (&[(ca, DownReason::Broken)][..], 0),
        "the other end is half open"
    );
    world.heal_all();
    assert!(b.send(cb, 1, 1));
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!(b.down, [(cb, DownReason::Broken)]);
    assert_eq!(b.frames.len(), 11);
    assert_eq!(world.open_ends(), 0);
}

#[test]
fn a_full_half_open_connection_is_found_out() {
    let (world, mut a, mut b) =
        pair(WorldConfig { queue_frames: 4, ..WorldConfig::new(Delivery::Connection) });
    let (ca, cb) = connect(&world, &mut a, &mut b);
    world.stall(1);
    let mut i = 0;
    while b.send(cb, i, 8) {
        i += 1;
    }
    run_for(&world, &mut [&mut b], MS);
    world.cut(Path::one_way(1, 2));
    assert!(a.send(ca, 1, 1));
    run_for(&world, &mut [&mut b], 600 * MS);
    world.heal_all();
    run_for(&world, &mut [&mut b], 2 * MS);
    assert_eq!(b.down, [(cb, DownReason::Broken)]);
}

#[test]
fn a_rail_dies_and_comes_back() {
    let (world, mut a, mut b) = pair(WorldConfig::new(Delivery::Connection));
    let mut b1 = Node::new(world.port(2, 1));
    let mut a1 = Node::new(world.port(1, 1));
    let (ca, cb) = connect(&world, &mut a, &mut b);
    let (c1, _) = connect(&world, &mut a1, &mut b1);
    world.rail_down(0);
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!(
        (&a.down[..], &b.down[..]),
        (&[(ca, DownReason::Broken)][..], &[(cb, DownReason::Broken)][..])
    );
    assert!(a1.send(c1, 7, 3));
    run_for(&world, &mut [&mut a1, &mut b1], MS);
    assert_eq!(b1.numbers(), [7], "the other rail lives");
    world.rail_up(0);
    connect(&world, &mut a, &mut b);
}

#[test]
fn a_crash_is_silence_or_news_as_configured() {
    for delivery in [Delivery::Datagram, Delivery::Connection, Delivery::Process] {
        for sees_death in [false, true] {
            let (world, mut a, mut b) = pair(WorldConfig { sees_death, ..WorldConfig::new(delivery) });
            let (ca, _) = connect(&world, &mut a, &mut b);
            world.crash(2);
            run_for(&world, &mut [&mut a], 10 * MS);
            let want: &[_] = if sees_death { &[(ca, DownReason::PeerDead)] } else { &[] };
            assert_eq!(a.down, want, "{delivery:?}");
            assert_eq!(world.open(&at(2, 0)).err().unwrap().kind(), Kind::Unavailable);
            world.restart(2);
            b.port = Some(world.port(2, 0));
            if !sees_death && delivery != Delivery::Process {
                assert!(a.send(ca, 1, 1));
                run_for(&world, &mut [&mut a, &mut b], MS);
                assert_eq!(
                    a.down,
                    [(ca, DownReason::Broken)],
                    "the restarted host does not know the connection"
                );
            }
            connect(&world, &mut a, &mut b);
        }
    }
}

fn at(host: u32, rail: u32) -> PortConfig {
    PortConfig { listen: Some(format!("{host}.{rail}")), ..PortConfig::default() }
}

#[test]
fn a_dead_host_does_not_answer_and_an_empty_place_refuses() {
    let (world, mut a, b) = pair(WorldConfig::default());
    let way = b.port.as_ref().unwrap().ways().remove(0);
    world.crash(2);
    let c = a.port().connect(&way).unwrap();
    run_for(&world, &mut [&mut a], 4_000 * MS);
    assert!(a.down.is_empty());
    run_for(&world, &mut [&mut a], 1_100 * MS);
    assert_eq!(a.down, [(c, DownReason::Refused)]);
    world.restart(2);
    let c = a.port().connect(&way).unwrap();
    run_for(&world, &mut [&mut a], MS);
    assert_eq!(a.down[1], (c, DownReason::Refused));
}

#[test]
fn a_stalled_host_reports_nothing_until_it_goes_on() {
    let (world, mut a, mut b) = pair(WorldConfig::new(Delivery::Connection));
    let (ca, _) = connect(&world, &mut a, &mut b);
    world.stall_for(2, 3 * MS);
    assert!(a.send(ca, 1, 100));
    run_for(&world, &mut [&mut a, &mut b], 2 * MS);
    assert!(b.frames.is_empty());
    run_for(&world, &mut [&mut a, &mut b], 2 * MS);
    assert_eq!(b.numbers(), [1]);
}

#[test]
fn a_slow_link_takes_its_time() {
    let (world, mut a, mut b) = pair(WorldConfig::new(Delivery::Connection));
    let (ca, _) = connect(&world, &mut a, &mut b);
    world.set_faults(Path::one_way(1, 2), Faults { bandwidth_bps: 80_000_000, ..Faults::default() });
    let begin = world.now();
    (0..10).for_each(|i| assert!(a.send(ca, i, 9984)));
    run_until(&world, &mut [&mut a, &mut b], 100 * MS, |n| n[1].frames.len() == 10);
    let took = world.now() - begin;
    assert!((10 * MS..11 * MS).contains(&took), "100 kB at 10 MB/s took {took} ns");
}

#[test]
fn keys_that_differ_are_denied() {
    let world = World::new(1, WorldConfig::new(Delivery::Connection));
    let key = |n| Some(FabricKey::from_bytes([n; 32]));
    let mut a = Node::new(world.open(&PortConfig { key: key(1), ..at(1, 0) }).unwrap());
    let mut b = Node::new(world.open(&PortConfig { key: key(2), ..at(2, 0) }).unwrap());
    let way = b.port().ways().remove(0);
    let c = a.port().connect(&way).unwrap();
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!(a.down, [(c, DownReason::Denied)]);
    assert!(b.incoming.is_empty());
    assert_eq!(world.open(&at(1, 0)).err().unwrap().kind(), Kind::AddressInUse);
}

#[test]
fn closing_works_under_heavy_loss() {
    let (world, mut a, mut b) = pair(WorldConfig::default());
    let (ca, cb) = connect(&world, &mut a, &mut b);
    world.set_faults(Path::ALL, Faults { loss: 0.4, duplicate: 0.3, reorder: 0.3, ..Faults::default() });
    a.port().close(ca);
    run_for(&world, &mut [&mut a, &mut b], 20 * MS);
    assert_eq!(
        (&a.down[..], &b.down[..]),
        (&[(ca, DownReason::Closed)][..], &[(cb, DownReason::Closed)][..])
    );
    assert_eq!(world.open_ends(), 0);
}

#[test]
fn no_datagram_outlives_its_lifetime() {
    let (world, mut a, mut b) = pair(WorldConfig { lifetime_ns: MS, ..WorldConfig::default() });
    let (ca, _) = connect(&world, &mut a, &mut b);
    world.set_faults(
        Path::ALL,
        Faults { reorder: 1.0, reorder_ns: 4 * MS, duplicate: 0.5, ..Faults::default() },
    );
    (0..100).for_each(|i| assert!(a.send(ca, i, 3)));
    run_for(&world, &mut [&mut a, &mut b], MS);
    let (early, lost) = (world.stats().arrived, world.stats().lost);
    assert!(early > 5 && lost > 30, "{early} arrived, {lost} lost");
    run_for(&world, &mut [&mut a, &mut b], 10 * MS);
    assert_eq!(
        (world.stats().arrived, world.stats().lost),
        (early, lost),
        "something arrived after its time"
    );
}

#[test]
fn a_rail_that_dies_silently_is_met_with_silence() {
    let config = WorldConfig { sees_rail_death: false, ..WorldConfig::new(Delivery::Connection) };
    let (world, mut a, mut b) = pair(config);
    let (ca, _) = connect(&world, &mut a, &mut b);
    world.rail_down(0);
    assert!(a.send(ca, 1, 3));
    run_for(&world, &mut [&mut a, &mut b], 100 * MS);
    assert!(a.down.is_empty() && b.down.is_empty() && b.frames.is_empty());
    world.rail_up(0);
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!(b.numbers(), [1]);
    world.rail_down(0);
    assert!(a.send(ca, 2, 3));
    run_for(&world, &mut [&mut a, &mut b], 600 * MS);
    assert_eq!(a.down, [(ca, DownReason::Broken)]);
}

#[test]
fn rails_without_routes_do_not_reach_each_other() {
    let (world, mut a, _) = pair(WorldConfig { routed: false, ..WorldConfig::default() });
    let mut b1 = Node::new(world.port(2, 1));
    let way = b1.port().ways().remove(0);
    let c = a.port().connect(&way).unwrap();
    run_for(&world, &mut [&mut a, &mut b1], MS);
    assert_eq!(a.down, [(c, DownReason::Refused)]);
    assert!(b1.incoming.is_empty());
}

#[test]
fn misuse_of_a_port_is_noted() {
    let (world, mut a, mut b) = pair(WorldConfig::default());
    let way = b.port().ways().remove(0);
    let c = a.port().connect(&way).unwrap();
    assert!(!a.send(c, 1, 1), "not up yet");
    run_for(&world, &mut [&mut a, &mut b], MS);
    assert_eq!((a.up.len(), a.writable), (1, 1), "room is told once it is up");
    a.port().take(c, None);
    assert!(!a.send(c, 1, (64 << 10) + 1), "too large");
    let noted = world.violations();
    assert_eq!(noted.len(), 3, "{noted:?}");
    assert!(noted[0].contains("not up") && noted[1].contains("take") && noted[2].contains("max_body"));
}
