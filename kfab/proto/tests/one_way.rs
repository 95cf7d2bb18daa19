//! One open port: a client that can call its server, and a server that can never call back. What the server has to say arrives, also
//! when the connection has broken, or was idle, while the client only waits.

mod end;

use end::End;
use kfab_core::spi::{Address, Delivery};
use kfab_proto::*;
use kfab_sim::{Path, World, WorldConfig};
use std::time::Duration;

const MS: u64 = 1_000_000;
const ANYONE: Want = Want { tag: None, from: None };

/// A host whose peers are told this address.
fn end(world: &World, host: u32, says: &str, idle_close: Duration) -> End {
    let mut end = End::new(world, host, &[0], Limits { idle_close, ..Limits::default() });
    end.machine.set_address(&says.parse().unwrap());
    end
}

impl End {
    fn send(&mut self, now: u64, to: PeerId, text: &[u8]) {
        self.with(now, |m, io| m.send(io, to, Payload::Bytes(text), SendOptions::default())).unwrap();
    }

    fn recv(&mut self, now: u64) -> OpId {
        match self.with(now, |m, io| m.recv(io, ANYONE, None)).unwrap() {
            Started::Pending(op) => op,
            Started::Done(o) => panic!("{o:?} is there already"),
        }
    }
}

/// Client 0 has asked server 1 and been heard; the server's firewall, or the client's, lets nobody call the client.
struct Pair {
    world: World,
    client: End,
    server: End,
    to_server: PeerId,
    to_client: PeerId,
}

impl Pair {
    fn new(idle_close: Duration, refused: bool) -> Pair {
        let world = World::new(3, WorldConfig::new(Delivery::Connection));
        // A place where nobody is: a call there is refused, or meets silence.
        let client = end(&world, 0, "sim:77.0", idle_close);
        let server = end(&world, 1, "sim:1.0", idle_close);
        if !refused {
            world.cut(Path::one_way(1, 77));
        }
        Pair::meet(world, client, server)
    }

    fn meet(world: World, mut client: End, mut server: End) -> Pair {
        let question = server.recv(0);
        let address: Address = "sim:1.0".parse().unwrap();
        let to_server = client.with(0, |m, io| m.peer(io, &address)).unwrap();
        client.send(0, to_server, b"question");
        let mut p = Pair { world, client, server, to_server, to_client: to_server };
        p.to_client = p.until_heard(false, question, 100).expect("the question").from;
        p
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms * 20 {
            self.step();
        }
    }

    fn step(&mut self) {
        let now = self.world.now();
        self.client.with(now, |m, io| m.poll(io));
        self.server.with(now, |m, io| m.poll(io));
        self.world.advance(MS / 20);
    }

    /// What a receive at one of the two brings within so many ms.
    fn until_heard(&mut self, at_client: bool, op: OpId, ms: u64) -> Option<Message> {
        for _ in 0..ms * 20 {
            self.step();
            let end = if at_client { &mut self.client } else { &mut self.server };
            match end.machine.take(op) {
                Some(Ok(Outcome::Message(m))) => return Some(m),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        None
    }

    fn is_up(&mut self) -> bool {
        self.client.machine.peer_info(self.to_server).expect("known").up
    }

    fn names(end: &mut End) -> Vec<&'static str> {
        end.machine.drain_events().0.iter().map(FabricEvent::name).collect()
    }
}

#[test]
fn the_answer_comes_after_a_break_that_only_the_server_had_reason_to_mend() {
    for refused in [false, true] {
        let mut p = Pair::new(Duration::from_secs(600), refused);
        let answer = p.client.recv(p.world.now());
        p.pass(20);
        p.world.rail_down(0);
        p.server.send(p.world.now(), p.to_client, b"answer");
        p.pass(100);
        p.world.rail_up(0);
        let m = p.until_heard(true, answer, 4_000).expect("the answer");
        assert_eq!(m.bytes(), b"answer", "refused: {refused}");
        let said = Pair::names(&mut p.server);
        assert!(!said.contains(&"peer_lost"), "{said:?}");
    }
}

/// A server that is gone for good is not called for ever.
#[test]
fn the_client_stops_calling() {
    let mut p = Pair::new(Duration::from_secs(600), false);
    let _answer = p.client.recv(p.world.now());
    p.pass(20);
    p.world.crash(1);
    p.world.rail_down(0);
    p.world.rail_up(0);
    p.pass(7_000);
    assert!(!p.is_up());
    assert_eq!(p.client.machine.deadline(&p.client.ports), None, "a timer of nothing");
}

#[test]
fn a_connection_by_which_something_may_come_is_not_closed_as_idle() {
    let mut p = Pair::new(Duration::from_millis(50), false);
    let answer = p.client.recv(p.world.now());
    p.pass(500);
    assert!(p.is_up());
    p.server.send(p.world.now(), p.to_client, b"answer");
    let m = p.until_heard(true, answer, 1_000).expect("the answer");
    assert_eq!(m.bytes(), b"answer");
    // Nobody waits for anything any more, and the client can call again.
    p.pass(500);
    assert!(!p.is_up(), "an idle connection is closed");
    let question = p.server.recv(p.world.now());
    p.client.send(p.world.now(), p.to_server, b"again");
    assert_eq!(p.until_heard(false, question, 100).expect("the question").bytes(), b"again");
}

/// The twin: who can be called closes what is idle, whatever it waits for.
#[test]
fn an_idle_connection_of_two_that_can_call_each_other_is_closed() {
    let world = World::new(3, WorldConfig::new(Delivery::Connection));
    let idle = Duration::from_millis(50);
    let client = end(&world, 0, "sim:0.0", idle);
    let mut server = end(&world, 1, "sim:1.0", idle);
    server.with(0, |m, io| m.peer(io, &"sim:0.0".parse().unwrap())).unwrap();
    let mut p = Pair::meet(world, client, server);
    let answer = p.client.recv(p.world.now());
    p.pass(500);
    assert!(!p.is_up());
    p.server.send(p.world.now(), p.to_client, b"answer");
    assert_eq!(p.until_heard(true, answer, 100).expect("the answer").bytes(), b"answer");
}
