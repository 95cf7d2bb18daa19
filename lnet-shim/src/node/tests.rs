//! Engines joined by a simulated network, in virtual time; and real nodes over loopback.

use super::*;
use crate::core::*;
use crate::network::{Command, Failure, Rx, Tx, TxId, Upcall};
use crate::nid::{Nid, ProcessId};
use crate::wire::lnet::{Body, LnetHeader, MsgType};
use crate::wire::ping::{
    FEAT_DISCOVERY, FEAT_MULTI_RAIL, FEAT_NI_STATUS, NiEntry, PingInfo, STATUS_DOWN, STATUS_UP,
};
use std::collections::HashMap;
use std::time::Duration;

const A1: &str = "10.0.0.1@tcp";
const A2: &str = "10.1.0.1@tcp";
const B1: &str = "10.0.0.2@tcp";
const B2: &str = "10.1.0.2@tcp";

fn nid(text: &str) -> Nid {
    text.parse().unwrap()
}

fn sec(n: u64) -> Time {
    Duration::from_secs(n)
}

struct World {
    now: Time,
    engines: Vec<Engine>,
    /// Messages on the wire, all of them, for looking at.
    log: Vec<(Nid, Nid, MsgType)>,
    /// NIDs that do not answer to connects.
    dead: Vec<Nid>,
    /// Sends are kept here without outcome while this is set.
    stuck: Option<Vec<(usize, TxId)>>,
    commands: Vec<Command>,
    /// Gateways: a NID on one network, a NID on another.
    gateways: Vec<(Nid, Nid)>,
    /// Who answers to a ping under another's name.
    liar: Option<(Nid, Nid)>,
    /// Payloads stay with their senders until they are fetched or refused, as on kfi.
    pull: bool,
    offers: HashMap<u64, Offer>,
}

/// A payload that stays with its sender: who sends it, by which NID, as which message, and the bytes.
type Offer = (usize, Nid, TxId, Vec<u8>);

impl World {
    fn new(nodes: &[&[&str]], params: NodeParams) -> Self {
        let mut w = Self {
            now: sec(1),
            engines: vec![],
            log: vec![],
            dead: vec![],
            stuck: None,
            commands: vec![],
            gateways: vec![],
            liar: None,
            pull: false,
            offers: HashMap::new(),
        };
        for (i, nids) in nodes.iter().enumerate() {
            let mut engine = Engine::new(params.clone(), 1000 + i as u64);
            for n in *nids {
                engine.add_ni(w.now, NiConfig::new(nid(n))).unwrap();
            }
            w.engines.push(engine);
        }
        w
    }

    fn transmit(&mut self, from: usize, local: Nid, tx: Tx) {
        let to = tx.peer.nid;
        self.log.push((tx.header.src.nid, to, tx.header.body.msg_type()));
        if let Some(stuck) = &mut self.stuck {
            return stuck.push((from, tx.id));
        }
        // A gateway hands a message on as it is.
        let gateway = self.gateways.iter().find(|g| g.0 == to || g.1 == to);
        if let Some(reply) = gateway
            .filter(|_| !self.dead.contains(&to))
            .and_then(|g| pong(FEAT_NI_STATUS, &[g.0, g.1], &tx))
            .or_else(|| self.liar.filter(|l| l.0 == to).and_then(|l| pong(ALL_FEATURES, &[l.1], &tx)))
        {
            self.engines[from].upcall(self.now, local, Upcall::Sent(tx.id, Ok(())));
            return self.engines[from].upcall(self.now, local, Upcall::Received(reply));
        }
        let (to, hop) = match gateway {
            Some(_) if self.dead.contains(&to) => (to, local),
            Some((a, b)) => (tx.header.dest.nid, if *a == to { *b } else { *a }),
            None => (to, local),
        };
        let target = self.engines.iter().position(|e| e.is_local(to)).filter(|_| !self.dead.contains(&to));
        let Some(target) = target.filter(|_| !self.dead.contains(&local)) else {
            return self.engines[from].upcall(
                self.now,
                local,
                Upcall::Sent(tx.id, Err(Failure::RemoteDropped)),
            );
        };
        let peer = ProcessId::lnet(hop);
        if self.pull && !tx.payload.is_empty() {
            let payload = Content::Remote(tx.payload.len());
            self.offers.insert(tx.id.0 << 8 | from as u64, (from, local, tx.id, tx.payload.to_vec()));
            let rx = Rx { via: tx.id.0 << 8 | from as u64, peer, header: tx.header, payload };
            return self.engines[target].upcall(self.now, to, Upcall::Received(rx));
        }
        let rx = Rx { via: 3, peer, header: tx.header, payload: tx.payload.to_vec().into() };
        self.engines[target].upcall(self.now, to, Upcall::Received(rx));
        self.engines[from].upcall(self.now, local, Upcall::Sent(tx.id, Ok(())));
    }

    fn run(&mut self) {
        for _ in 0..1_000_000 {
            let Some((i, effect)) = (0..self.engines.len()).find_map(|i| Some((i, self.engines[i].poll()?)))
            else {
                return;
            };
            match effect {
                Effect::Command(local, Command::Transmit(tx)) => self.transmit(i, local, tx),
                Effect::Command(local, Command::Fetch(fetch)) if self.pull => self.fetch(i, local, &fetch),
                Effect::Command(_, Command::Refuse { via }) if self.pull => self.taken(via),
                Effect::Command(_, other) => self.commands.push(other),
                Effect::Event(sink, event) => sink.push(event),
                Effect::Discovered(waiter, result) => waiter.complete(result),
                Effect::Alarm(waiter) => waiter.complete(()),
            }
        }
        panic!("does not come to rest");
    }

    /// Brings a payload from its sender; both are told.
    fn fetch(&mut self, to: usize, local: Nid, fetch: &Fetch) {
        let offer = self.offers.get(&fetch.via).map(|o| o.3[..fetch.len as usize].to_vec());
        let result = match offer {
            Some(bytes) => {
                fetch.memory.write_at(fetch.offset, &bytes);
                Ok(())
            }
            None => Err(Failure::RemoteError),
        };
        self.engines[to].upcall(self.now, local, Upcall::Fetched(fetch.op, result));
        self.taken(fetch.via);
    }

    fn taken(&mut self, via: u64) {
        if let Some((from, local, tx, _)) = self.offers.remove(&via) {
            self.engines[from].upcall(self.now, local, Upcall::Sent(tx, Ok(())));
        }
    }

    /// Lets time pass, timer by timer.
    fn pass(&mut self, time: Time) {
        let end = self.now + time;
        self.run();
        while let Some(next) =
            self.engines.iter().filter_map(Engine::next_timeout).min().filter(|t| *t <= end)
        {
            self.now = self.now.max(next);
            for e in &mut self.engines {
                e.handle_timeout(self.now);
            }
            self.run();
            self.now += Duration::from_millis(1);
        }
        self.now = end;
    }

    fn serve(&mut self, i: usize, portal: u32, len: usize) -> (SharedBytes, EventQueue) {
        let (memory, queue) = (SharedBytes::zeroed(len), EventQueue::new(10_000));
        let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(portal, 7) };
        let options =
            TargetOptions { manage_remote: true, truncate: true, ..TargetOptions::new(Access::PutGet) };
        let sink = Sink::User(queue.sink());
        self.engines[i].attach(self.now, entry, memory.memory(), options, sink).unwrap();
        (memory, queue)
    }

    fn bind(&mut self, i: usize, bytes: &[u8]) -> (SourceMd, SharedBytes, EventQueue) {
        let (memory, queue) = (SharedBytes::new(bytes.to_vec()), EventQueue::new(8));
        let sink = Sink::User(queue.sink());
        let md = self.engines[i].core().md_bind(memory.memory(), SourceOptions::once(2), sink).unwrap();
        (md, memory, queue)
    }

    fn put(&mut self, i: usize, to: &str, bytes: &[u8]) -> EventQueue {
        let (md, _, queue) = self.bind(i, bytes);
        let target = ProcessId::lnet(nid(to));
        let put = PutParams { target, portal: 9, match_bits: 7, offset: 0, hdr_data: 1, ack: true };
        self.engines[i].put(self.now, md, put, None).unwrap();
        queue
    }

    fn get(&mut self, i: usize, to: &str, len: usize) -> (SharedBytes, EventQueue) {
        let (md, memory, queue) = self.bind(i, &vec![0; len]);
        self.engines[i].get(self.now, md, ProcessId::lnet(nid(to)), 9, 7, 0, None).unwrap();
        (memory, queue)
    }

    fn discover(&mut self, i: usize, to: &str, force: bool) -> OneShot<crate::Result<PeerInfo>> {
        let waiter = OneShot::default();
        self.engines[i].discover(self.now, nid(to), force, waiter.clone());
        self.run();
        waiter
    }
}

/// What somebody with these interfaces says to a ping.
fn pong(features: u32, nids: &[Nid], tx: &Tx) -> Option<Rx> {
    let Body::Get { handle, portal: 0, .. } = tx.header.body else { return None };
    let entry = |nid: &Nid| NiEntry { nid: *nid, status: STATUS_UP };
    let info = PingInfo {
        features,
        pid: 12345,
        sequence: 1,
        small: nids.iter().map(entry).collect(),
        large: vec![],
        metadata: vec![],
    };
    let bytes = info.encode(crate::wire::ByteOrder::Little);
    let (dest, src, body) = (tx.header.src, tx.header.dest, Body::Reply { handle });
    let header = LnetHeader { dest, src, payload_len: bytes.len() as u32, body };
    (src.nid == tx.peer.nid).then_some(Rx { via: 3, peer: src, header, payload: bytes.into() })
}

fn events(queue: &EventQueue) -> Vec<(EventKind, Status, bool)> {
    std::iter::from_fn(|| queue.try_recv()).map(|e| (e.kind, e.status, e.unlinked)).collect()
}

fn nids(info: &PeerInfo) -> Vec<Nid> {
    info.interfaces.iter().map(|i| i.nid).collect()
}

const DONE: Duration = Duration::ZERO;
const ALL_FEATURES: u32 = FEAT_NI_STATUS | FEAT_MULTI_RAIL | FEAT_DISCOVERY;

#[test]
fn discovery_makes_both_sides_know_all_rails() {
    let mut w = World::new(&[&[A1, A2], &[B1, B2]], NodeParams::default());
    let waiter = w.discover(0, B2, false);
    let info = waiter.wait_timeout(DONE).unwrap().unwrap();
    assert_eq!((info.primary, info.multi_rail, info.discovered), (nid(B1), true, true));
    let mut all = nids(&info);
    all.sort();
    assert_eq!(all, [nid(B1), nid(B2)]);
    let seen = w.engines[1].peer(nid(A2)).unwrap();
    assert_eq!((seen.primary, seen.multi_rail, seen.interfaces.len()), (nid(A1), true, 2));
    // GET, REPLY, push, push back, and an ACK for each push: as between kernels.
    let mut types: Vec<u32> = w.log.iter().map(|l| l.2 as u32).collect();
    types.sort_unstable();
    assert_eq!(types, [0, 0, 1, 1, 2, 3]);
    // Nothing more to say.
    w.log.clear();
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    assert!(w.log.is_empty());
    // By force, again.
    assert!(w.discover(0, B1, true).wait_timeout(DONE).unwrap().is_ok());
    assert!(w.log.iter().any(|l| l.2 == MsgType::Put));
}

#[test]
fn puts_and_gets_are_preceded_by_discovery_and_spread_over_rails() {
    let mut w = World::new(&[&[A1, A2], &[B1, B2]], NodeParams::default());
    let (memory, served) = w.serve(1, 9, 16);
    for i in 0..8u8 {
        let queue = w.put(0, B1, &[i; 16]);
        w.run();
        let mut got = events(&queue);
        got.sort_by_key(|e| e.0 as u32);
        assert_eq!(got.iter().map(|e| e.0).collect::<Vec<_>>(), [EventKind::Ack, EventKind::Send]);
        assert!(got.iter().all(|e| e.1.is_ok()));
        assert_eq!(memory.to_vec(), [i; 16]);
    }
    let (got, queue) = w.get(0, B2, 16);
    w.run();
    assert_eq!(got.to_vec(), [7; 16]);
    assert_eq!(events(&queue).len(), 2);
    let first = served.try_recv().unwrap();
    assert_eq!(first.initiator, ProcessId::lnet(nid(A1)), "events name the primary NID");
    for rail in [(nid(A1), nid(B1)), (nid(A1), nid(B2)), (nid(A2), nid(B1)), (nid(A2), nid(B2))] {
        let n = w.log.iter().filter(|l| l.2 == MsgType::Put && (l.0 == rail.0 || l.1 == rail.1)).count();
        assert!(n >= 2, "rail {rail:?} carried {n}");
    }
    let core = w.engines[0].core().objects();
    assert_eq!(core, (2, 2), "only the ping and push targets are left");
}

#[test]
fn a_dead_rail_is_left_and_comes_back() {
    let mut w = World::new(&[&[A1], &[B1, B2]], NodeParams::default());
    let (_, _served) = w.serve(1, 9, 16);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.dead.push(nid(B2));
    for _ in 0..10 {
        let queue = w.put(0, B1, b"x");
        w.run();
        assert!(events(&queue).iter().all(|e| e.1.is_ok()));
    }
    let health = |w: &World| {
        w.engines[0]
            .peer(nid(B1))
            .unwrap()
            .interfaces
            .iter()
            .map(|i| (i.nid, i.health))
            .collect::<HashMap<_, _>>()
    };
    assert!(health(&w)[&nid(B2)] < 1000);
    assert_eq!(health(&w)[&nid(B1)], 1000);
    assert!(w.engines[0].stats().resends >= 1);
    // Recovery pings: after 1, 2, 4 ... seconds, in vain as long as it is dead.
    w.log.clear();
    w.pass(sec(64));
    let pings: Vec<_> = w.log.iter().filter(|l| l.1 == nid(B2)).collect();
    assert!((5..=8).contains(&pings.len()), "{pings:?}");
    w.dead.clear();
    w.pass(sec(900));
    assert_eq!(health(&w)[&nid(B2)], 1000);
    w.log.clear();
    w.pass(sec(3000));
    assert!(w.log.is_empty(), "healthy again: no more pings");
}

#[test]
fn priorities_choose_among_healthy_rails_and_networks() {
    let (a3, b3) = ("10.2.0.1@tcp1", "10.2.0.2@tcp1");
    let mut w = World::new(&[&[A1, a3], &[B1, B2, b3]], NodeParams::default());
    let (_, _served) = w.serve(1, 9, 16);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let used = |w: &mut World| {
        w.log.clear();
        let queues: Vec<EventQueue> = (0..6).map(|_| w.put(0, B1, b"x")).collect();
        w.run();
        assert!(queues.iter().all(|q| events(q).iter().all(|e| e.1.is_ok())));
        let mut to: Vec<Nid> = w.log.iter().filter(|l| l.2 == MsgType::Put).map(|l| l.1).collect();
        to.sort();
        to.dedup();
        to
    };
    assert_eq!(used(&mut w).len(), 3);
    w.engines[0]
        .set_peer_priorities(vec![("10.1.0.*@tcp".parse().unwrap(), 0), ("*@tcp1".parse().unwrap(), 1)]);
    assert_eq!(used(&mut w), [nid(B2)]);
    w.dead.push(nid(B2));
    assert_eq!(used(&mut w), [nid(B2), nid(b3)], "health comes before priority");
    w.engines[0].set_peer_priorities(vec![(crate::nid::NidList::one(nid(B1)), 0)]);
    assert_eq!(used(&mut w), [nid(B1)]);
}

#[test]
fn other_networks_are_reached_by_gateways() {
    let far = "10.9.0.2@tcp9";
    let mut w = World::new(&[&[A1], &[far]], NodeParams::default());
    w.gateways =
        vec![(nid("10.0.0.7@tcp"), nid("10.9.0.7@tcp9")), (nid("10.0.0.8@tcp"), nid("10.9.0.8@tcp9"))];
    let (net, back) = (nid(far).net(), nid(A1).net());
    let route = |net, gateway: &str, priority| Route { net, gateway: nid(gateway), hops: 1, priority };
    let (memory, _queue) = w.serve(1, 9, 64);
    // No way there without a route; one to a network of our own, or by a gateway that is not, is none.
    let e = &mut w.engines[0];
    assert!(e.add_route(route(back, "10.0.0.7@tcp", 0)).is_err());
    assert!(e.add_route(route(net, "10.9.0.7@tcp9", 0)).is_err());
    e.add_route(route(net, "10.0.0.7@tcp", 1)).unwrap();
    e.add_route(route(net, "10.0.0.8@tcp", 0)).unwrap();
    w.engines[1].add_route(route(back, "10.9.0.7@tcp9", 0)).unwrap();
    let queue = EventQueue::new(64);
    let now = w.now;
    let put = |w: &mut World| {
        let e = &mut w.engines[0];
        let source = SharedBytes::new(b"beyond".to_vec());
        let md = e.core().md_bind(source.memory(), SourceOptions::once(2), Sink::User(queue.sink())).unwrap();
        let target = ProcessId::lnet(nid(far));
        let put = PutParams { target, portal: 9, match_bits: 7, offset: 0, hdr_data: 0, ack: true };
        e.put(now, md, put, None).unwrap();
        w.run();
    };
    put(&mut w);
    assert_eq!(memory.to_vec()[..6], *b"beyond");
    let kinds: Vec<EventKind> = events(&queue).iter().map(|e| e.0).collect();
    assert!(kinds.contains(&EventKind::Ack), "{kinds:?}");
    // The source is ours, the next hop the gateway with the smaller number; answers come back by theirs.
    assert!(w.log.contains(&(nid(A1), nid("10.0.0.8@tcp"), MsgType::Put)));
    assert!(w.log.contains(&(nid(far), nid("10.9.0.7@tcp9"), MsgType::Ack)));
    assert!(!w.log.iter().any(|l| l.1 == nid("10.0.0.7@tcp")));
    assert!(w.engines[0].remove_route(net, nid("10.0.0.8@tcp")));
    assert!(!w.engines[0].remove_route(net, nid("10.0.0.8@tcp")));
    put(&mut w);
    assert!(w.log.contains(&(nid(A1), nid("10.0.0.7@tcp"), MsgType::Put)));
}

/// A gateway with one interface that does not answer is left for another, and one that says it does not route is not taken.
#[test]
fn routes_avoid_gateways_that_are_dead_or_say_no() {
    let (far, near) = ("10.9.0.2@tcp9", ["10.0.0.7@tcp", "10.0.0.8@tcp", "10.0.0.9@tcp"]);
    let beyond = ["10.9.0.7@tcp9", "10.9.0.8@tcp9"];
    let mut w = World::new(&[&[A1], &[far], &[near[2]]], NodeParams::default());
    w.gateways = near.iter().zip(beyond).map(|(a, b)| (nid(a), nid(b))).collect();
    let _served = w.serve(1, 9, 64);
    for gateway in near {
        let priority = u32::from(gateway != near[2]);
        w.engines[0]
            .add_route(Route { net: nid(far).net(), gateway: nid(gateway), hops: 1, priority })
            .unwrap();
    }
    for gateway in beyond {
        let route = Route { net: nid(A1).net(), gateway: nid(gateway), hops: 1, priority: 0 };
        w.engines[1].add_route(route).unwrap();
    }
    // The third is a node of ours: it says that it does not route.
    w.pass(sec(1));
    let up: Vec<bool> = w.engines[0].routes().iter().map(|r| r.up).collect();
    assert_eq!(up, [true, true, false]);
    let hops = |w: &World| -> Vec<Nid> {
        let puts = w.log.iter().filter(|l| l.0 == nid(A1) && l.2 == MsgType::Put);
        puts.map(|l| l.1).collect()
    };
    let put = |w: &mut World| {
        w.log.clear();
        let queue = w.put(0, far, b"beyond");
        w.run();
        events(&queue).iter().any(|e| e.0 == EventKind::Ack && e.1.is_ok())
    };
    let last = |w: &World| *hops(w).last().unwrap();
    let several = |w: &mut World| -> Vec<Nid> {
        let mut ways: Vec<Nid> = (0..4).map(|_| if put(w) { last(w) } else { Nid::LO }).collect();
        ways.sort();
        ways.dedup();
        ways
    };
    // Both are as good as each other, and take turns.
    let (one, other) = (nid(near[0]), nid(near[1]));
    assert_eq!(several(&mut w), [one, other]);
    w.dead.extend([one, nid(beyond[0])]);
    for n in 0..4 {
        assert!(put(&mut w), "{n}");
        assert_eq!(last(&w), other, "{n}");
    }
    let down = w.engines[0].routes().into_iter().find(|r| r.route.gateway == one).unwrap();
    assert!(down.health < 1000, "{down:?}");
    // It comes back by the pings that go on meanwhile.
    w.dead.clear();
    w.pass(sec(200));
    assert_eq!(several(&mut w), [one, other]);
    let rule = (far.parse().unwrap(), near[0].parse().unwrap());
    w.engines[0].set_preferred_gateways(vec![rule]);
    for _ in 0..2 {
        assert!(put(&mut w));
        assert_eq!(hops(&w), [nid(near[0])]);
    }
}

#[test]
fn interfaces_that_go_together_are_taken_together() {
    let (b3, b4) = ("10.0.0.3@tcp", "10.0.0.4@tcp");
    let mut w = World::new(&[&[A1], &[B1, b3, b4]], NodeParams::default());
    let _served = w.serve(1, 9, 64);
    w.engines[0].set_pairs(vec![("10.0.0.1@tcp".parse().unwrap(), "10.0.0.[4-5]@tcp".parse().unwrap())]);
    for _ in 0..10 {
        let e = &mut w.engines[0];
        let sink = Sink::User(EventQueue::new(64).sink());
        let md = e.core().md_bind(SharedBytes::zeroed(8).memory(), SourceOptions::once(2), sink).unwrap();
        let target = ProcessId::lnet(nid(B1));
        let put = PutParams { target, portal: 9, match_bits: 7, offset: 0, hdr_data: 0, ack: true };
        e.put(w.now, md, put, None).unwrap();
        w.run();
    }
    let puts = |to: &str| w.log.iter().filter(|l| l.1 == nid(to) && l.2 == MsgType::Put).count();
    // One push and ten PUTs.
    assert_eq!((puts(B1), puts(b3), puts(b4)), (1, 0, 10));
}

#[test]
fn one_rail_has_no_second_chance() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    let (_, _served) = w.serve(1, 9, 16);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.dead.push(nid(B1));
    let queue = w.put(0, B1, b"x");
    w.run();
    assert_eq!(events(&queue), [(EventKind::Send, Status::Unreachable, false)]);
    w.pass(sec(160));
    assert_eq!(events(&queue), [(EventKind::Unlink, Status::TimedOut, true)]);
    assert_eq!(w.engines[0].stats().resends, 0);
    assert_eq!(w.engines[0].peer(nid(B1)).unwrap().interfaces[0].health, 1000);
}

#[test]
fn an_answer_that_does_not_come_ends_with_the_transaction() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    let (_, _served) = w.serve(1, 9, 16);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.engines[1]
        .add_fault(FaultRule { kind: Some(MsgType::Get), ..FaultRule::all(FaultAction::Drop) })
        .unwrap();
    let (_, queue) = w.get(0, B1, 4);
    w.run();
    assert_eq!(events(&queue), [(EventKind::Send, Status::Ok, false)]);
    w.pass(sec(149));
    assert!(events(&queue).is_empty());
    w.pass(sec(3));
    assert_eq!(events(&queue), [(EventKind::Unlink, Status::TimedOut, true)]);
    assert_eq!((w.engines[0].stats().response_timeouts, w.engines[1].stats().fault_drops), (1, 1));
}

#[test]
fn lost_peers_fail_what_is_outstanding_if_so_wished() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams { fail_on_peer_lost: true, ..NodeParams::default() });
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let (_, queue) = w.get(0, B1, 4);
    w.run();
    assert_eq!(events(&queue), [(EventKind::Send, Status::Ok, false)]);
    w.engines[0].upcall(w.now, nid(A1), Upcall::PeerLost(nid(B1)));
    w.run();
    assert_eq!(events(&queue), [(EventKind::Unlink, Status::Unreachable, true)]);
}

#[test]
fn the_rail_that_was_used_is_to_blame_for_a_missing_answer() {
    let mut w =
        World::new(&[&[A1], &[B1, B2]], NodeParams { fail_on_peer_lost: true, ..NodeParams::default() });
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.log.clear();
    // No portal matches there: no answer comes.
    let queues: Vec<EventQueue> = (0..2).map(|_| w.get(0, B1, 4).1).collect();
    w.run();
    let rails: Vec<Nid> = w.log.iter().map(|l| l.1).collect();
    assert_eq!(rails.len(), 2);
    assert_ne!(rails[0], rails[1]);
    w.engines[0].upcall(w.now, nid(A1), Upcall::PeerLost(rails[1]));
    w.run();
    assert_eq!((events(&queues[0]).len(), events(&queues[1]).len()), (1, 2));
    w.pass(sec(149));
    let mut last = Vec::new();
    for _ in 0..30 {
        w.pass(Duration::from_millis(100));
        last.extend(events(&queues[0]));
        if !last.is_empty() {
            break;
        }
    }
    assert_eq!(last, [(EventKind::Unlink, Status::TimedOut, true)]);
    let peer = w.engines[0].peer(nid(B1)).unwrap();
    let sick: Vec<Nid> = peer.interfaces.iter().filter(|i| i.health < 1000).map(|i| i.nid).collect();
    assert_eq!(sick, [rails[0]]);
}

#[test]
fn credits_queue_and_come_back() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    let (_, _served) = w.serve(1, 9, 16);
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.stuck = Some(vec![]);
    let queues: Vec<EventQueue> = (0..20).map(|_| w.put(0, B1, b"x")).collect();
    w.run();
    let info = w.engines[0].peer(nid(B1)).unwrap().interfaces[0].clone();
    assert_eq!((info.credits, info.min_credits, info.max_credits), (-12, -12, 8));
    assert_eq!(w.engines[0].nis()[0].credits, 256 - 8);
    let stuck = w.stuck.take().unwrap();
    assert_eq!(stuck.len(), 8);
    for (i, id) in stuck {
        w.engines[i].upcall(w.now, nid(A1), Upcall::Sent(id, Err(Failure::LocalError)));
    }
    w.run();
    let ends: Vec<Vec<_>> = queues.iter().map(events).collect();
    assert_eq!(ends.iter().filter(|e| e.iter().any(|e| e.0 == EventKind::Ack)).count(), 12);
    let info = w.engines[0].peer(nid(B1)).unwrap().interfaces[0].clone();
    assert_eq!((info.credits, w.engines[0].nis()[0].credits, w.engines[0].stats().messages), (8, 256, 0));
}

#[test]
fn messages_too_old_are_not_sent_and_deep_queues_do_not_recurse() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.stuck = Some(vec![]);
    let queues: Vec<EventQueue> = (0..20_000).map(|_| w.put(0, B1, b"x")).collect();
    w.run();
    w.now += sec(1000);
    let stuck = w.stuck.take().unwrap();
    for (i, id) in stuck {
        w.engines[i].upcall(w.now, nid(A1), Upcall::Sent(id, Err(Failure::NetworkTimeout)));
    }
    w.run();
    assert!(queues.iter().all(|q| events(q)[0].1 == Status::TimedOut));
    assert_eq!(w.engines[0].peer(nid(B1)).unwrap().interfaces[0].credits, 8);
}

#[test]
fn delay_rules_work_both_ways() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let (_, _served) = w.serve(1, 9, 16);
    let id = w.engines[0].add_fault(FaultRule::all(FaultAction::Delay(sec(2)))).unwrap();
    let (_, queue) = w.get(0, B1, 16);
    w.pass(Duration::from_millis(3900));
    assert_eq!(events(&queue).len(), 1);
    w.pass(Duration::from_millis(200));
    assert_eq!(events(&queue), [(EventKind::Reply, Status::Ok, true)]);
    assert_eq!((w.engines[0].faults()[0].3, w.engines[0].remove_faults(Some(id))), (2, 1));
}

#[test]
fn failing_sends_take_the_local_interface_down_and_pings_bring_it_back() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.engines[0].add_fault(FaultRule::all(FaultAction::Fail(Failure::LocalError))).unwrap();
    for _ in 0..10 {
        let queue = w.put(0, B1, b"x");
        w.run();
        assert_eq!(events(&queue)[0], (EventKind::Send, Status::Local, false));
    }
    assert_eq!(w.engines[0].nis()[0].health, 0);
    assert_eq!(w.engines[0].ping_info().small[0].status, STATUS_DOWN);
    w.engines[0].remove_faults(None);
    w.pass(sec(1500));
    assert_eq!((w.engines[0].nis()[0].health, w.engines[0].nis()[0].up), (1000, true));
    assert!(w.log.iter().any(|l| l.0 == nid(A1) && l.1 == nid(A1)), "over the network, not within the node");
    assert_eq!(w.engines[0].peers().iter().map(|p| p.primary).collect::<Vec<_>>(), [nid(B1)]);
    assert_eq!(w.engines[0].ping_info().small[0].status, STATUS_UP);
}

#[test]
fn new_interfaces_are_pushed_to_those_who_know_us() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    assert_eq!(w.engines[1].peer(nid(A1)).unwrap().interfaces.len(), 1);
    w.engines[0].add_ni(w.now, NiConfig::new(nid(A2))).unwrap();
    w.run();
    assert_eq!(nids(&w.engines[1].peer(nid(A1)).unwrap()), [nid(A1), nid(A2)]);
    w.engines[0].remove_ni(w.now, nid(A2)).unwrap();
    w.run();
    assert_eq!(nids(&w.engines[1].peer(nid(A1)).unwrap()), [nid(A1)]);
}

#[test]
fn many_interfaces_need_a_larger_sink() {
    let many: Vec<String> = (1..=40).map(|i| format!("10.9.0.{i}@tcp")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut w = World::new(&[&[A1], &many], NodeParams::default());
    let info = w.discover(0, many[3], false).wait_timeout(DONE).unwrap().unwrap();
    assert_eq!(info.interfaces.len(), 40);
    // And the push of so many is cut at first, then asked for.
    let mut w = World::new(&[&many, &[B1]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.run();
    assert_eq!(w.engines[1].peer(nid(many[0])).unwrap().interfaces.len(), 40);
}

/// A node that answers a ping with the NID of another, and not with its own: who waits for it is told, and what waits for it goes.
#[test]
fn a_node_that_takes_anothers_name_leaves_nobody_waiting() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    w.liar = Some((nid(B2), nid(B1)));
    let queue = w.put(0, B2, b"x");
    w.run();
    assert_eq!(events(&queue).len(), 1, "the message that waits for the discovery ends");
    let info = w.discover(0, B2, true).wait_timeout(DONE).expect("an answer").unwrap();
    assert_eq!(info.primary, nid(B2));
    assert_eq!(w.engines[0].peer(nid(B1)).unwrap().primary, nid(B1));
}

#[test]
fn messages_for_nobody_fail_with_the_discovery() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    w.dead.push(nid(B1));
    let queue = w.put(0, B1, b"x");
    w.run();
    assert_eq!(events(&queue), [(EventKind::Send, Status::Unreachable, false)]);
    let nowhere = w.put(0, "5@kfi", b"x");
    w.run();
    assert_eq!(events(&nowhere)[0].1, Status::Unreachable);
    let error = w.discover(0, B1, false).wait_timeout(DONE).unwrap().unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Unreachable);
    assert!(w.discover(0, A1, false).wait_timeout(DONE).unwrap().is_err());
}

#[test]
fn peers_without_discovery_keep_one_rail() {
    let mut w = World::new(&[&[A1, A2], &[B1, B2]], NodeParams::default());
    w.engines[1] = Engine::new(NodeParams { discovery: false, ..NodeParams::default() }, 5);
    for n in [B1, B2] {
        w.engines[1].add_ni(w.now, NiConfig::new(nid(n))).unwrap();
    }
    let (_, _served) = w.serve(1, 9, 16);
    for _ in 0..6 {
        let queue = w.put(0, B1, b"x");
        w.run();
        assert!(events(&queue).iter().all(|e| e.1.is_ok()));
    }
    assert!(!w.engines[0].peer(nid(B1)).unwrap().multi_rail);
    let sources: std::collections::HashSet<Nid> =
        w.log.iter().filter(|l| l.2 == MsgType::Put).map(|l| l.0).collect();
    assert_eq!(sources.len(), 1);
}

#[test]
fn strangers_do_not_crowd_out_peers() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams { max_peers: 32, ..NodeParams::default() });
    assert!(w.discover(0, B1, false).wait_timeout(DONE).unwrap().is_ok());
    let (_, _served) = w.serve(0, 9, 64);
    for i in 0..1000u32 {
        let src = ProcessId::lnet(Nid::small(crate::nid::Net::TCP, 0x0c00_0000 + i));
        let body = crate::wire::lnet::Body::Put {
            handle: crate::wire::lnet::WireHandle::NONE,
            match_bits: 7,
            hdr_data: 0,
            portal: 9,
            offset: 0,
        };
        let header =
            crate::wire::lnet::LnetHeader { dest: ProcessId::lnet(nid(A1)), src, payload_len: 1, body };
        let rx = Rx { via: 1, peer: src, header, payload: vec![i as u8].into() };
        w.engines[0].upcall(w.now, nid(A1), Upcall::Received(rx));
        w.run();
    }
    assert_eq!(w.engines[0].stats().received.put, 1001, "the push, and all the rest");
    assert_eq!(w.engines[0].stats().core.drop_count, 0);
    assert!(w.engines[0].peers().len() <= 32);
    assert!(w.engines[0].peer(nid(B1)).unwrap().discovered);
}

#[test]
fn messages_to_ourselves_need_no_network() {
    let mut w = World::new(&[&[A1]], NodeParams::default());
    let (memory, _served) = w.serve(0, 9, 4);
    for to in [A1, "0@lo"] {
        let queue = w.put(0, to, b"self");
        w.run();
        assert_eq!(events(&queue).len(), 2);
        assert_eq!(memory.to_vec(), b"self");
    }
    assert!(w.log.is_empty());
}

#[test]
fn waiting_messages_count_against_their_connection() {
    let mut w = World::new(&[&[A1], &[B1]], NodeParams::default());
    w.engines[1].core().set_lazy(9, true).unwrap();
    let queue = w.put(0, B1, b"wait");
    w.run();
    assert!(matches!(w.commands[0], Command::Hold { via: 3, bytes: 4 }));
    let (memory, _served) = w.serve(1, 9, 4);
    w.run();
    assert!(matches!(w.commands[1], Command::Release { via: 3, bytes: 4 }));
    assert_eq!(memory.to_vec(), b"wait");
    assert!(events(&queue).iter().any(|e| e.0 == EventKind::Ack));
}

#[test]
fn under_faults_every_operation_ends_once() {
    for seed in 1..60 {
        let params = NodeParams { seed, ..NodeParams::default() };
        let mut w = World::new(&[&[A1, A2], &[B1, B2]], params);
        // A third of the runs as over kfi.
        w.pull = seed % 3 == 0;
        let (_, _served) = w.serve(1, 9, 16);
        for engine in &mut w.engines {
            let rule = |action, n| FaultRule { frequency: Frequency::OneIn(n), ..FaultRule::all(action) };
            engine.add_fault(rule(FaultAction::FailRandom, 7)).unwrap();
            engine.add_fault(rule(FaultAction::Drop, 5)).unwrap();
            engine.add_fault(rule(FaultAction::Delay(Duration::from_millis(700)), 3)).unwrap();
        }
        let mut queues = Vec::new();
        for i in 0..100 {
            queues.push(if i % 2 == 0 { w.put(0, B1, b"x") } else { w.get(0, B2, 8).1 });
            w.pass(Duration::from_millis(300));
        }
        w.pass(sec(400));
        for (i, queue) in queues.iter().enumerate() {
            let all = events(queue);
            assert!(all.last().is_some_and(|e| e.2), "seed {seed} operation {i}: {all:?}");
            assert_eq!(all.iter().filter(|e| e.2).count(), 1);
            assert_eq!(all.iter().filter(|e| e.0 == EventKind::Send).count(), 1);
        }
        w.engines.iter_mut().for_each(|e| assert_eq!(e.remove_faults(None), 3));
        w.pass(sec(3000));
        assert!(w.offers.is_empty(), "seed {seed}");
        for (i, engine) in w.engines.iter_mut().enumerate() {
            // The ping and push targets, and what node 1 serves.
            assert_eq!((engine.core().objects().1, engine.stats().messages), (2 + i, 0), "seed {seed}");
            assert!(engine.nis().iter().all(|n| n.health == 1000 && n.credits == n.max_credits));
            assert!(
                engine.peers().iter().flat_map(|p| &p.interfaces).all(|i| i.health == 1000 && i.credits == 8)
            );
        }
    }
}

mod answers;
mod drops;
mod faults;
mod health;
mod real;
mod selection;
