//! The table of peers: it is bounded, those that nobody needs make room, and what they counted stays counted.

mod end;

use end::End;
use kfab_core::Kind;
use kfab_core::spi::Delivery;
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

const MS: u64 = 1_000_000;

fn end(world: &World, host: u32, max_peers: usize) -> End {
    End::new(world, host, &[0], Limits { max_peers, ..Limits::default() })
}

impl End {
    fn peer(&mut self, world: &World, host: u32) -> kfab_core::Result<PeerId> {
        self.with(world.now(), |m, io| m.peer(io, &format!("sim:{host}.0").parse().unwrap()))
    }

    fn send(&mut self, world: &World, to: PeerId) -> kfab_core::Result<Option<OpId>> {
        self.with(world.now(), |m, io| m.send(io, to, Payload::Bytes(b"hello"), SendOptions::default()))
    }
}

fn pass(world: &World, ends: &mut [&mut End], ms: u64) {
    for _ in 0..ms * 2 {
        let now = world.now();
        ends.iter_mut().for_each(|e| {
            e.with(now, |m, io| m.poll(io));
        });
        world.advance(MS / 2);
    }
}

#[test]
fn peers_that_nobody_needs_make_room() {
    let world = World::new(1, WorldConfig::new(Delivery::Connection));
    let (mut a, mut b) = (end(&world, 0, 4), end(&world, 1, 4));
    let names: Vec<PeerId> = (1..5).map(|h| a.peer(&world, h).unwrap()).collect();
    let full = a.peer(&world, 9).unwrap_err();
    assert_eq!(full.kind(), Kind::Limit, "all were asked for just now");
    assert!(full.to_string().contains("Limits::max_peers"), "{full}");
    // The first has been reached; somebody waits for the second; the third is the oldest of those of no use, as the fourth is asked for again.
    a.send(&world, names[0]).unwrap();
    a.with(world.now(), |m, io| m.recv(io, Want { tag: None, from: Some(names[1]) }, None)).unwrap();
    pass(&world, &mut [&mut a, &mut b], 4_000);
    assert!(a.machine.peer_info(names[0]).unwrap().up);
    assert_eq!(a.peer(&world, 4).unwrap(), names[3]);
    pass(&world, &mut [&mut a, &mut b], 900);
    a.send(&world, names[0]).unwrap();
    assert_eq!(a.peer(&world, 9).unwrap_err().kind(), Kind::Limit);
    pass(&world, &mut [&mut a, &mut b], 2_000);
    // The second was waited for until it did not answer; then the wait began anew.
    a.with(world.now(), |m, io| m.recv(io, Want { tag: None, from: Some(names[1]) }, None)).unwrap();
    let new = a.peer(&world, 9).unwrap();
    assert!(new != names[2] && a.machine.peers().contains(&new));
    assert_eq!(a.send(&world, names[2]).unwrap_err().kind(), Kind::PeerLost, "its name leads nowhere");
    for (i, name) in names.iter().enumerate().filter(|(i, _)| *i != 2) {
        assert!(a.machine.peer_info(*name).is_some(), "{i} was needed");
    }
    assert_eq!(a.machine.stats().peers, 4);
}

#[test]
fn any_number_of_addresses_can_be_named_in_turn_and_totals_never_go_down() {
    let world = World::new(1, WorldConfig::new(Delivery::Connection));
    let (mut a, mut b) = (end(&world, 0, 100), end(&world, 1, 100));
    let mut names = std::collections::HashSet::new();
    let to_b = a.peer(&world, 1).unwrap();
    a.send(&world, to_b).unwrap();
    pass(&world, &mut [&mut a, &mut b], 10);
    let before = a.machine.stats().totals;
    assert_eq!((before.tx_messages, before.tx_bytes), (1, 5));
    for host in 2..2_000 {
        let name = a.peer(&world, host).unwrap_or_else(|e| panic!("host {host}: {e}"));
        assert!(names.insert(name), "{name:?} names two");
        if host % 5 == 0 {
            pass(&world, &mut [&mut a, &mut b], 400);
        }
    }
    let after = a.machine.stats();
    assert!(after.peers <= 100 && a.machine.peers().len() == after.peers);
    assert!(a.machine.peer_info(to_b).is_none());
    assert_eq!((after.totals.tx_messages, after.totals.tx_bytes), (1, 5), "what a forgotten peer counted");
    assert!(after.totals.min_credits <= before.min_credits);
    // The other end was told.
    let said: Vec<_> = b.machine.drain_events().0;
    assert!(said.iter().any(|e| matches!(e, FabricEvent::PeerLost { .. })), "{said:?}");
    // And the same address is another peer now, which works.
    let again = a.peer(&world, 1).unwrap();
    assert_ne!(again, to_b);
    a.send(&world, again).unwrap();
    pass(&world, &mut [&mut a, &mut b], 10);
    assert_eq!(b.machine.stats().unexpected, 2);
}
