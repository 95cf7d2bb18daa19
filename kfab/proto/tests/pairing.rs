//! Rails that are networks of their own: each is paired with its like, in whatever order the two ends name theirs, and a pair that cannot
//! work is never tried.

mod end;

use end::End;
use kfab_core::spi::{Address, Delivery};
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

/// Two ends with these rails, in this order, in a world where each rail is a network of its own. The ports of the first that have a
/// connection in the end, and whether one was tried that cannot be.
fn meet(ours: &[u32], theirs: &[u32]) -> (Vec<usize>, bool) {
    let mut config = WorldConfig::new(Delivery::Connection);
    (config.routed, config.trace) = (false, 10_000);
    let world = World::new(7, config);
    let (mut a, mut b) =
        (End::new(&world, 0, ours, Limits::default()), End::new(&world, 1, theirs, Limits::default()));
    let address: Address =
        theirs.iter().map(|r| format!("sim:1.{r}")).collect::<Vec<_>>().join(",").parse().unwrap();
    let peer = a.with(0, |m, io| m.peer(io, &address)).unwrap();
    a.with(0, |m, io| m.send(io, peer, Payload::Bytes(b"hello"), SendOptions::default())).unwrap();
    for _ in 0..2000 {
        let now = world.now();
        a.with(now, |m, io| m.poll(io));
        b.with(now, |m, io| m.poll(io));
        world.advance(10_000);
    }
    assert_eq!(world.violations(), Vec::<String>::new());
    let mut up: Vec<usize> =
        a.machine.peer_info(peer).expect("a peer").rails.iter().map(|r| r.port).collect();
    up.sort_unstable();
    (up, world.trace().iter().any(|line| line.contains(" down ")))
}

#[test]
fn like_is_paired_with_like() {
    for (ours, theirs) in [([0, 1], [0, 1]), ([0, 1], [1, 0]), ([1, 0], [0, 1])] {
        assert_eq!(meet(&ours, &theirs), (vec![0, 1], false), "{ours:?} with {theirs:?}");
    }
}

#[test]
fn a_rail_without_its_like_is_left_out() {
    assert_eq!(meet(&[0, 1], &[1]), (vec![1], false));
    assert_eq!(meet(&[2], &[0, 2]), (vec![0], false));
    // The twin: where nothing fits, all is tried, and the trace tells.
    assert_eq!(meet(&[0], &[1]), (vec![], true));
}
