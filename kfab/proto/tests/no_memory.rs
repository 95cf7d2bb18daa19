//! A message for which there is no memory waits, and its sender with what it says next, until there is some.

mod end;

use end::End;
use kfab_core::mem::{Pool, PoolConfig};
use kfab_core::spi::Delivery;
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

const SECOND: u64 = 1_000_000_000;

struct Scene {
    world: World,
    a: End,
    b: End,
}

impl Scene {
    /// Time passes, as much of it as a machine that sleeps until its deadline lets pass.
    fn pass_for(&mut self, ns: u64) {
        let end = self.world.now() + ns;
        while self.world.now() < end {
            for e in [&mut self.a, &mut self.b] {
                e.with(self.world.now(), |m, io| m.poll(io));
            }
            self.world.advance(100_000);
        }
    }

    fn send(&mut self, bytes: &[u8], delivered: bool) -> Option<OpId> {
        let options = SendOptions { delivered, ..Default::default() };
        self.b.with(self.world.now(), |m, io| {
            let to = m.peer(io, &"sim:0.0".parse().unwrap()).unwrap();
            m.send(io, to, Payload::Bytes(bytes), options).unwrap()
        })
    }

    fn receive(&mut self) -> Option<Vec<u8>> {
        let now = self.world.now();
        match self.a.with(now, |m, io| m.recv(io, Want::default(), None)).unwrap() {
            Started::Done(Outcome::Message(m)) => Some(m.bytes().to_vec()),
            Started::Pending(op) => {
                self.a.with(now, |m, io| m.detach(io, op));
                None
            }
            other => panic!("{other:?}"),
        }
    }
}

fn waits_for_memory(delivery: Delivery, rma: bool) {
    let world = World::new(1, WorldConfig { rma, ..WorldConfig::new(delivery) });
    let [a, b] = [0, 1].map(|host| End::new(&world, host, &[0], Limits::default()));
    let mut s = Scene { world, a, b };
    s.a.pool = Pool::new(PoolConfig { region_bytes: 2 << 20, max_bytes: 2 << 20, ..Default::default() });
    s.send(b"hello", false);
    s.pass_for(SECOND / 10);
    assert_eq!(s.receive().unwrap(), b"hello");

    let all: Vec<_> = std::iter::from_fn(|| s.a.pool.alloc(1000).ok()).collect();
    let first: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    let ops =
        [s.send(&first, true), s.send(b"second", true)].map(|op| op.expect("both wait for their delivery"));
    s.pass_for(SECOND);
    if delivery != Delivery::Datagram {
        assert_eq!(s.receive(), None, "there is no memory for it");
        assert!(ops.iter().all(|op| s.b.machine.take(*op).is_none()));
        // It is looked for soon, however quiet the ports are.
        let deadline = s.a.machine.deadline(&s.a.ports).expect("a frame waits");
        assert!(deadline <= s.world.now() + 10_000_000, "{deadline}");
    }

    drop(all);
    s.pass_for(SECOND / 2);
    for op in ops {
        assert!(matches!(s.b.machine.take(op), Some(Ok(_))), "{:?} {:?}", s.a.machine, s.b.machine);
    }
    let mut got = [s.receive().unwrap(), s.receive().unwrap()];
    got.sort_by_key(Vec::len);
    assert!(got[0] == b"second" && got[1] == first);
    let (events, _) = s.b.machine.drain_events();
    let lost = |e: &FabricEvent| matches!(e, FabricEvent::PeerLost { .. } | FabricEvent::RailDown { .. });
    assert!(!events.iter().any(lost), "{events:?}");
    assert_eq!(s.world.violations(), Vec::<String>::new());
}

#[test]
fn over_memory() {
    waits_for_memory(Delivery::Process, true);
}

#[test]
fn over_connections() {
    waits_for_memory(Delivery::Connection, false);
}

#[test]
fn over_one_sided_connections() {
    waits_for_memory(Delivery::Connection, true);
}

#[test]
fn over_datagrams() {
    waits_for_memory(Delivery::Datagram, false);
}
