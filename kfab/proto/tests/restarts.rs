//! One peer that crashes and is restarted more than a thousand times: each life is talked to, and what is known and held of all of
//! them together is what one needs.

mod end;

use end::End;
use kfab_core::Kind;
use kfab_core::spi::Delivery;
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};
use std::time::Duration;

const LIVES: u64 = 1_100;
/// Longer than a frame, and than what is sent at once.
const LARGE: usize = 100_000;

/// One of the two.
type Side = fn(&mut Scene) -> &mut End;

/// The host that stays, and the one that is restarted.
struct Scene {
    world: World,
    a: End,
    b: End,
}

fn limits() -> Limits {
    Limits {
        probe_after: Duration::from_millis(50),
        peer_timeout: Duration::from_secs(1),
        reconnect: (Duration::from_millis(1), Duration::from_millis(10)),
        ..Limits::default()
    }
}

fn contents(life: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (life * 31 + i * 7 + i / 253) as u8).collect()
}

impl End {
    fn to(&mut self, world: &World, host: u32) -> PeerId {
        self.with(world.now(), |m, io| m.peer(io, &format!("sim:{host}.0").parse().unwrap())).unwrap()
    }

    fn send(&mut self, world: &World, to: PeerId, bytes: &[u8]) -> Option<OpId> {
        let options = SendOptions { delivered: true, ..Default::default() };
        self.with(world.now(), |m, io| {
            let bytes = io.pool.copy_from(bytes)?;
            m.send(io, to, Payload::Buffer(bytes), options)
        })
        .unwrap()
    }

    fn recv(&mut self, world: &World, from: Option<PeerId>) -> OpId {
        match self.with(world.now(), |m, io| m.recv(io, Want { tag: None, from }, None)).unwrap() {
            Started::Pending(op) => op,
            Started::Done(o) => panic!("nothing was sent: {o:?}"),
        }
    }
}

impl Scene {
    fn pass(&mut self) {
        for e in [&mut self.a, &mut self.b] {
            e.with(self.world.now(), |m, io| m.poll(io));
        }
        self.world.advance(100_000);
    }

    /// Time passes until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Scene) -> bool) {
        for _ in 0..100_000 {
            if so(self) {
                return;
            }
            self.pass();
        }
        panic!("{what}: {:?}; {:?}", self.a.machine, self.b.machine);
    }

    /// A message is received, whole; whose it was.
    fn arrives(&mut self, op: OpId, here: Side, what: &[u8]) -> PeerId {
        let mut got = None;
        self.until("a message", |s| {
            got = here(s).machine.take(op);
            got.is_some()
        });
        match got {
            Some(Ok(Outcome::Message(m))) => {
                assert!(m.bytes() == what, "{} bytes, not {}", m.bytes().len(), what.len());
                m.from
            }
            other => panic!("{other:?}"),
        }
    }

    /// They learn who they are: what is sent to one that has died meanwhile may end with it, once.
    fn greet(&mut self, here: Side, there: Side, at: u32) {
        let world = self.world.clone();
        let greeted = (0..2).any(|_| {
            let to = here(self).to(&world, at);
            let op = here(self).send(&world, to, b"who is there?");
            let mut end = None;
            self.until("a greeting's end", |s| {
                end = op.map_or(Some(Ok(Outcome::Unit)), |op| here(s).machine.take(op));
                end.is_some()
            });
            end.is_some_and(|r| r.map_err(|e| assert_eq!(e.kind(), Kind::PeerLost, "{e:?}")).is_ok())
        });
        assert!(greeted, "lost twice");
        self.until("the greeting", |s| {
            let waits = there(s).machine.stats().unexpected > 0;
            if waits {
                let r = there(s).with(world.now(), |m, io| m.recv(io, Want::default(), None));
                assert!(matches!(r, Ok(Started::Done(_))), "{r:?}");
            }
            !waits
        });
    }

    /// A question of one side and the answer of the other, which knows the first by its message.
    fn talk(&mut self, life: u64) {
        let len = if life.is_multiple_of(10) { LARGE } else { 8 + (life % 3_000) as usize };
        let (question, answer) = (contents(life, len), contents(life + 1, 40));
        let (here, there, at): (Side, Side, _) = if life.is_multiple_of(2) {
            (|s| &mut s.a, |s| &mut s.b, 1)
        } else {
            (|s| &mut s.b, |s| &mut s.a, 0)
        };
        let world = self.world.clone();
        self.greet(here, there, at);
        let asked = there(self).recv(&world, None);
        let to = here(self).to(&world, at);
        let waits = here(self).recv(&world, Some(to));
        let sent = here(self).send(&world, to, &question);
        let from = self.arrives(asked, there, &question);
        let answered = there(self).send(&world, from, &answer);
        assert_eq!(self.arrives(waits, here, &answer), to);
        for (op, of) in [(sent, here), (answered, there)] {
            self.until("a send's end", |s| op.is_none_or(|op| of(s).machine.take(op).is_some()));
        }
    }

    /// It dies with this and that under way, which ends at the other with its loss.
    fn crash(&mut self, life: u64) {
        let world = self.world.clone();
        let to = self.a.to(&world, 1);
        let mut lost = vec![self.a.recv(&world, Some(to))];
        lost.extend(self.a.send(
            &world,
            to,
            &contents(life, if life.is_multiple_of(3) { LARGE } else { 2_500 }),
        ));
        let me = self.b.to(&world, 0);
        self.b.send(&world, me, &contents(life, LARGE));
        if life.is_multiple_of(4) {
            self.pass();
        }
        self.world.crash(1);
        self.b = {
            self.world.restart(1);
            End::known_as(1_000 + life, &self.world, 1, &[0], limits())
        };
        for op in lost {
            let mut end = None;
            self.until("a loss", |s| {
                end = s.a.machine.take(op);
                end.is_some()
            });
            match end {
                Some(Err(e)) => assert_eq!(e.kind(), Kind::PeerLost, "{e:?}"),
                // What came in the last moment.
                Some(Ok(_)) => {}
                None => unreachable!(),
            }
        }
    }

    /// What the host that stays holds: peers, connections, operations, and bytes in use.
    fn held(&mut self) -> (usize, usize, usize, usize) {
        let s = self.a.machine.stats();
        assert_eq!((s.unacked, s.deferred, s.unexpected), (0, 0, 0), "{s:?}");
        (s.peers, s.conns, s.ops, self.a.pool.stats().in_use)
    }
}

fn many_lives(delivery: Delivery, rma: bool) {
    let world = World::new(1, WorldConfig { rma, ..WorldConfig::new(delivery) });
    let (a, b) = (End::new(&world, 0, &[0], limits()), End::known_as(1_000, &world, 1, &[0], limits()));
    let mut s = Scene { world, a, b };
    let mut level = None;
    for life in 1..=LIVES {
        s.talk(life);
        if life == 20 || life == LIVES {
            (0..30_000).for_each(|_| s.pass());
            let held = (s.held(), s.a.pool.stats().regions);
            assert_eq!(*level.get_or_insert(held), held, "after {life} lives");
            assert_eq!((held.0.0, held.0.2, held.0.3), (1, 0, 0), "{held:?}");
        }
        s.crash(life);
        s.a.machine.drain_events();
    }
    let totals = s.a.machine.stats().totals;
    assert!(totals.lost >= LIVES, "{totals:?}");
    assert_eq!(s.world.violations(), Vec::<String>::new());
}

#[test]
fn a_thousand_lives_of_a_peer_over_connections() {
    many_lives(Delivery::Connection, false);
}

#[test]
fn a_thousand_lives_of_a_peer_over_one_sided_connections() {
    many_lives(Delivery::Connection, true);
}

#[test]
fn a_thousand_lives_of_a_peer_over_datagrams() {
    many_lives(Delivery::Datagram, false);
}

#[test]
fn a_thousand_lives_of_a_peer_over_memory() {
    many_lives(Delivery::Process, true);
}
