//! Machines joined by simulated wires, in virtual time.

use super::*;
use crate::core::{Content, Memory, Payload, SharedBytes};
use crate::network::{Failure, Tx, TxId, Upcall};
use crate::nid::{Nid, PID_LNET, ProcessId};
use crate::wire::ByteOrder;
use crate::wire::hello::{ConnType, Hello, Version};
use crate::wire::ksock::{Kind, KsockHeader};
use crate::wire::lnet::{Body, HeaderForm, LnetHeader, WireHandle};
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

const A: &str = "10.77.0.11@tcp";
const B: &str = "10.77.0.12@tcp";
const INCARNATION: u64 = 0x18ea_05f6_f95d_405e;

fn pid(text: &str) -> ProcessId {
    ProcessId::lnet(text.parse().unwrap())
}

fn sec(n: u64) -> Time {
    Duration::from_secs(n)
}

fn message(id: u64, from: &str, to: &str, len: usize) -> Tx {
    let body = Body::Put { handle: WireHandle::NONE, match_bits: id, hdr_data: 0, portal: 3, offset: 0 };
    let header = LnetHeader { dest: pid(to), src: pid(from), payload_len: len as u32, body };
    let bytes: Vec<u8> = (0..len).map(|i| (i as u64 * 7 + id) as u8).collect();
    let memory = SharedBytes::new(bytes);
    let payload = Payload::new(memory.memory(), 0, memory.len() as u32);
    Tx { id: TxId(id), peer: pid(to), header, payload }
}

struct Node {
    machine: Machine,
    me: ProcessId,
    wires: HashMap<ConnId, (usize, ConnId)>,
    got: Vec<(u64, Vec<u8>)>,
    sent: HashMap<u64, Vec<Result<(), Failure>>>,
    lost: Vec<Nid>,
    next_port: u16,
    down: bool,
}

struct World {
    now: Time,
    nodes: Vec<Node>,
    chunk: usize,
    /// Bytes are lost, nothing breaks.
    cut: bool,
}

impl World {
    fn new(nids: &[&str], params: TcpParams) -> Self {
        let node = |(i, n): (usize, &&str)| Node {
            machine: Machine::new(params.clone(), pid(n), INCARNATION + i as u64),
            me: pid(n),
            wires: HashMap::new(),
            got: vec![],
            sent: HashMap::new(),
            lost: vec![],
            next_port: 1023,
            down: false,
        };
        Self {
            now: sec(1),
            nodes: nids.iter().enumerate().map(node).collect(),
            chunk: usize::MAX,
            cut: false,
        }
    }

    fn dial(&mut self, from: usize, conn: ConnId, to: SocketAddr) {
        let target = self.nodes.iter().position(|n| n.me.nid.ip() == Some(to.ip()) && !n.down);
        let port = self.nodes[from].next_port;
        self.nodes[from].next_port -= 1;
        let source = SocketAddr::new(self.nodes[from].me.nid.ip().unwrap(), port);
        let accepted = target.and_then(|t| Some((t, self.nodes[t].machine.accepted(self.now, source)?)));
        let Some((t, theirs)) = accepted else {
            return self.nodes[from].machine.connected(self.now, conn, Err(DialError::Remote));
        };
        self.nodes[from].wires.insert(conn, (t, theirs));
        self.nodes[t].wires.insert(theirs, (from, conn));
        self.nodes[from].machine.connected(self.now, conn, Ok(()));
    }

    fn flush(&mut self, i: usize, conn: ConnId) {
        loop {
            let bytes = self.nodes[i].machine.outgoing(conn).to_vec();
            let Some((t, theirs)) = self.nodes[i].wires.get(&conn).copied() else { return };
            if bytes.is_empty() {
                return;
            }
            let n = bytes.len().min(self.chunk);
            self.nodes[i].machine.wrote(self.now, conn, n);
            if !self.cut {
                self.nodes[t].machine.received(self.now, theirs, &bytes[..n]);
            }
        }
    }

    fn run(&mut self) {
        for _ in 0..100_000 {
            let Some((i, action)) =
                (0..self.nodes.len()).find_map(|i| Some((i, self.nodes[i].machine.poll()?)))
            else {
                return;
            };
            match action {
                Action::Dial { conn, to } => self.dial(i, conn, to),
                Action::Flush { conn } => self.flush(i, conn),
                Action::ReadInterest { .. } => {}
                Action::Close { conn } => {
                    if let Some((t, theirs)) = self.nodes[i].wires.remove(&conn)
                        && self.nodes[t].wires.remove(&theirs).is_some()
                        && !self.cut
                    {
                        self.nodes[t].machine.closed(self.now, theirs);
                    }
                }
                Action::Up(Upcall::Received(rx)) => {
                    let Body::Put { match_bits, .. } = rx.header.body else { panic!() };
                    let Content::Bytes(payload) = rx.payload else {
                        panic!("all bytes come with the message")
                    };
                    self.nodes[i].got.push((match_bits, payload));
                }
                Action::Up(Upcall::Fetched(..)) => panic!("nothing is fetched over tcp"),
                Action::Up(Upcall::Sent(id, r)) => self.nodes[i].sent.entry(id.0).or_default().push(r),
                Action::Up(Upcall::PeerLost(nid)) => self.nodes[i].lost.push(nid),
                Action::Up(Upcall::Link(_)) => panic!("the machine knows of no link"),
            }
        }
        panic!("does not come to rest");
    }

    fn pass(&mut self, time: Time) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(250);
            for i in 0..self.nodes.len() {
                self.nodes[i].machine.handle_timeout(self.now);
                self.run();
            }
        }
    }

    fn send(&mut self, i: usize, tx: Tx) {
        self.nodes[i].machine.transmit(self.now, tx);
    }

    fn kinds(&self, i: usize) -> Vec<String> {
        self.nodes[i].machine.connections().into_iter().map(|c| c.kind).collect()
    }

    fn outcome(&self, i: usize, id: u64) -> Option<Result<(), Failure>> {
        let all = self.nodes[i].sent.get(&id)?;
        assert_eq!(all.len(), 1, "message {id} ended {all:?}");
        Some(all[0])
    }
}

#[test]
fn three_connections_and_messages_of_all_sizes() {
    for (a, b, chunk, version) in [(A, B, usize::MAX, 3), ("fd77::11", "fd77::12", 7, 4)] {
        let mut w = World::new(&[a, b], TcpParams::default());
        w.chunk = chunk;
        for (i, len) in [0, 1, 900, 1024, 100_000].into_iter().enumerate() {
            w.send(0, message(i as u64 + 1, a, b, len));
        }
        w.run();
        w.send(1, message(77, b, a, 1 << 12));
        w.run();
        let lens: Vec<usize> = w.nodes[1].got.iter().map(|g| g.1.len()).collect();
        assert_eq!(lens, [0, 1, 900, 1024, 100_000]);
        assert!(
            w.nodes[1]
                .got
                .iter()
                .all(|(id, p)| p.iter().enumerate().all(|(i, b)| *b == (i as u64 * 7 + id) as u8))
        );
        assert_eq!(w.nodes[0].got.len(), 1);
        assert!((1..=5).all(|id| w.outcome(0, id) == Some(Ok(()))));
        assert_eq!(w.kinds(0), ["BulkIn", "BulkOut", "Control"]);
        assert_eq!(w.kinds(1), ["BulkIn", "BulkOut", "Control"]);
        assert!(w.nodes[0].machine.connections().iter().all(|c| c.version == version));
        assert_eq!(w.nodes[0].next_port, 1020);
    }
}

/// Everything the machine writes to a hand-made peer, until it rests.
fn writes(m: &mut Machine, conn: ConnId) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let bytes = m.outgoing(conn).to_vec();
        if bytes.is_empty() {
            return all;
        }
        m.wrote(sec(1), conn, bytes.len());
        all.extend(bytes);
    }
}

fn actions(m: &mut Machine) -> Vec<Action> {
    std::iter::from_fn(|| m.poll()).collect()
}

#[test]
fn first_bytes_are_the_captured_ones() {
    let mut m = Machine::new(TcpParams::default(), pid(A), INCARNATION);
    m.transmit(sec(1), message(1, A, B, 0));
    let Some(Action::Dial { conn, to }) = m.poll() else { panic!() };
    assert_eq!(to, "10.77.0.12:988".parse().unwrap());
    m.connected(sec(1), conn, Ok(()));
    let want = "0071ceac010000000c004d0a00000200636972450300000\
         00b004d0a000002000c004d0a0000020039300000000000005e405df9f605ea1800000000000000000100000000000000";
    let hex: String = writes(&mut m, conn).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, want);
}

fn hello(order: ByteOrder, conn_type: ConnType, incarnation: u64) -> Hello {
    let (src_nid, dst_nid) = (pid(A).nid, pid(B).nid);
    let (version, src_pid) = (Version::V3, PID_LNET);
    let (src_incarnation, dst_incarnation) = (incarnation, 0);
    Hello {
        order,
        version,
        src_nid,
        dst_nid,
        src_pid,
        dst_pid: 0,
        src_incarnation,
        dst_incarnation,
        conn_type,
    }
}

fn request(order: ByteOrder) -> Vec<u8> {
    crate::wire::acceptor::Request { order, target: pid(B).nid }.encode()
}

fn passive() -> Machine {
    Machine::new(TcpParams::default(), pid(B), 7)
}

fn greet(m: &mut Machine, port: u16, hello: &Hello) -> (ConnId, Vec<u8>) {
    let conn = m.accepted(sec(1), SocketAddr::new(pid(A).nid.ip().unwrap(), port)).unwrap();
    m.received(sec(1), conn, &[request(hello.order), hello.encode()].concat());
    let answer = writes(m, conn);
    (conn, answer)
}

#[test]
fn big_endian_peers_are_understood() {
    let mut m = passive();
    let (conn, answer) = greet(&mut m, 1023, &hello(ByteOrder::Big, ConnType::BulkIn, 5));
    assert_eq!(Hello::decode(&answer).unwrap().0.conn_type, ConnType::BulkOut);
    let tx = message(9, A, B, 3);
    let ksock = KsockHeader::new(Kind::Lnet, 0x55, 0).encode(ByteOrder::Big);
    m.received(sec(1), conn, &[ksock, tx.header.encode(HeaderForm::Small), tx.payload.to_vec()].concat());
    let received = actions(&mut m).into_iter().find_map(|a| match a {
        Action::Up(Upcall::Received(rx)) => Some(rx),
        _ => None,
    });
    assert_eq!(received.unwrap().header, tx.header);
    let ack = writes(&mut m, conn);
    let ack = KsockHeader::decode(&ack, ByteOrder::Little).unwrap();
    assert_eq!((ack.kind, ack.cookie0, ack.cookie1), (Kind::Noop, 0, 0x55));
}

#[test]
fn refusals_are_the_captured_ones() {
    let none = ConnType::None;
    let mut m = passive();
    assert!(m.accepted(sec(1), "10.77.0.11:40001".parse().unwrap()).is_none());
    let conn = m.accepted(sec(1), "10.77.0.11:1023".parse().unwrap()).unwrap();
    let mut odd = request(ByteOrder::Little);
    odd[4] = 9;
    m.received(sec(1), conn, &odd);
    assert_eq!(writes(&mut m, conn), [0x00, 0x71, 0xce, 0xac, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(matches!(actions(&mut m).last(), Some(Action::Close { .. })));

    let conn = m.accepted(sec(1), "10.77.0.11:1023".parse().unwrap()).unwrap();
    let mut odd = hello(ByteOrder::Little, ConnType::Control, 5).encode();
    odd[4] = 9;
    m.received(sec(1), conn, &[request(ByteOrder::Little), odd].concat());
    let answer = Hello::decode(&writes(&mut m, conn)).unwrap().0;
    assert_eq!((answer.version, answer.conn_type), (Version::V3, none));

    let conn = m.accepted(sec(1), "10.77.0.11:1023".parse().unwrap()).unwrap();
    let other = crate::wire::acceptor::Request { order: ByteOrder::Little, target: pid(A).nid };
    m.received(sec(1), conn, &other.encode());
    assert!(writes(&mut m, conn).is_empty());
    assert!(matches!(actions(&mut m).last(), Some(Action::Close { .. })));

    // A second of one type; then one with another incarnation, which also ends the old ones.
    let (first, answer) = greet(&mut m, 1023, &hello(ByteOrder::Little, ConnType::Control, 5));
    assert_eq!(Hello::decode(&answer).unwrap().0.conn_type, ConnType::Control);
    let (_, answer) = greet(&mut m, 1022, &hello(ByteOrder::Little, ConnType::Control, 5));
    assert_eq!(Hello::decode(&answer).unwrap().0.conn_type, none);
    assert!(!actions(&mut m).iter().any(|a| matches!(a, Action::Close { conn } if *conn == first)));
    let (_, answer) = greet(&mut m, 1022, &hello(ByteOrder::Little, ConnType::Control, 6));
    assert_eq!(Hello::decode(&answer).unwrap().0.conn_type, none);
    assert!(actions(&mut m).iter().any(|a| matches!(a, Action::Close { conn } if *conn == first)));
    let (_, answer) = greet(&mut m, 1022, &hello(ByteOrder::Little, ConnType::Control, 6));
    assert_eq!(Hello::decode(&answer).unwrap().0.conn_type, ConnType::Control);
}

#[test]
fn unprivileged_peers_are_known_by_port() {
    let params = TcpParams { accept: Accept::All, ..TcpParams::default() };
    let mut m = Machine::new(params, pid(B), 7);
    let (conn, _) = greet(&mut m, 40001, &hello(ByteOrder::Little, ConnType::Control, 5));
    let mut tx = message(9, "10.77.0.99@tcp", B, 0);
    let ksock = KsockHeader::new(Kind::Lnet, 0, 0).encode(ByteOrder::Little);
    m.received(sec(1), conn, &[ksock, tx.header.encode(HeaderForm::Small)].concat());
    let rx = actions(&mut m).into_iter().find_map(|a| match a {
        Action::Up(Upcall::Received(rx)) => Some(rx),
        _ => None,
    });
    let user = ProcessId { nid: pid(A).nid, pid: 0x8000_9c41 };
    assert_eq!(rx.unwrap().header.src, user);
    // Answers go back the same way; once it is gone there is no way.
    tx.peer = user;
    m.transmit(sec(1), tx.clone());
    assert_eq!(writes(&mut m, conn).len(), 24 + 72);
    m.closed(sec(1), conn);
    actions(&mut m);
    m.transmit(sec(1), tx);
    assert!(matches!(m.poll(), Some(Action::Up(Upcall::Sent(_, Err(Failure::RemoteDropped))))));
}

#[test]
fn a_message_for_another_nid_ends_the_connection() {
    let mut m = passive();
    let (conn, _) = greet(&mut m, 1023, &hello(ByteOrder::Little, ConnType::Control, 5));
    let tx = message(9, A, "10.77.0.13@tcp", 0);
    let ksock = KsockHeader::new(Kind::Lnet, 0, 0).encode(ByteOrder::Little);
    m.received(sec(1), conn, &[ksock, tx.header.encode(HeaderForm::Small)].concat());
    let all = actions(&mut m);
    assert!(all.iter().any(|a| matches!(a, Action::Close { .. })));
    assert!(!all.iter().any(|a| matches!(a, Action::Up(Upcall::Received(_)))));
}

/// The acknowledgements that ride on it count, and it gets its own; else its sender tears everything down.
#[test]
fn a_message_for_another_network_is_acknowledged_and_goes_up() {
    let params = TcpParams { zero_copy_min: Some(100), ..TcpParams::default() };
    let mut m = Machine::new(params, pid(B), 7);
    let (conn, _) = greet(&mut m, 1023, &hello(ByteOrder::Little, ConnType::Control, 5));
    m.transmit(sec(1), message(1, B, A, 200));
    let ours = KsockHeader::decode(&writes(&mut m, conn), ByteOrder::Little).unwrap();
    actions(&mut m);
    let tx = message(9, A, "10.78.0.12@tcp5", 3);
    let ksock = KsockHeader::new(Kind::Lnet, 0x55, ours.cookie0).encode(ByteOrder::Little);
    m.received(sec(1), conn, &[ksock, tx.header.encode(HeaderForm::Small), tx.payload.to_vec()].concat());
    let all = actions(&mut m);
    assert!(all.iter().any(|a| matches!(a, Action::Up(Upcall::Sent(TxId(1), Ok(()))))), "{all:?}");
    assert!(all.iter().any(|a| matches!(a, Action::Up(Upcall::Received(rx)) if rx.header == tx.header)));
    let ack = KsockHeader::decode(&writes(&mut m, conn), ByteOrder::Little).unwrap();
    assert_eq!((ack.kind, ack.cookie0, ack.cookie1), (Kind::Noop, 0, 0x55));
    m.handle_timeout(sec(52));
    assert!(!actions(&mut m).iter().any(|a| matches!(a, Action::Close { .. })));
}

#[test]
fn races_end_with_one_set_of_connections_the_higher_nids() {
    for (first, second, dials) in [(A, B, [1, 3]), (B, A, [3, 1])] {
        let mut w = World::new(&[first, second], TcpParams::default());
        for id in 1..=4 {
            w.send(0, message(id, first, second, 2000));
            w.send(1, message(id + 10, second, first, 2000));
        }
        w.run();
        w.pass(sec(5));
        assert_eq!((w.nodes[0].got.len(), w.nodes[1].got.len()), (4, 4));
        assert!((1..=4).all(|id| w.outcome(0, id) == Some(Ok(())) && w.outcome(1, id + 10) == Some(Ok(()))));
        assert_eq!((w.kinds(0).len(), w.kinds(1).len()), (3, 3));
        assert!(w.nodes.iter().all(|n| n.lost.is_empty()));
        assert_eq!([0, 1].map(|i| 1023 - w.nodes[i].next_port), dials);
    }
}

#[test]
fn a_restarted_peer_is_seen_and_reached() {
    let mut w = World::new(&[A, B], TcpParams::default());
    w.send(0, message(1, A, B, 10));
    w.run();
    // B is restarted without a word: its wires lead nowhere.
    w.nodes[1].machine = Machine::new(TcpParams::default(), pid(B), 99);
    w.nodes[1].wires.clear();
    w.nodes[0].wires.clear();
    w.send(1, message(2, B, A, 10));
    w.run();
    assert_eq!(w.nodes[0].lost, [pid(B).nid]);
    w.pass(sec(3));
    assert_eq!(w.outcome(1, 2), Some(Ok(())));
    assert_eq!(w.nodes[0].got[0].0, 2);
    w.send(0, message(3, A, B, 5000));
    w.run();
    assert_eq!(w.nodes[1].got.last().unwrap().0, 3);
}

#[test]
fn zero_copy_sends_end_with_their_acknowledgement() {
    let params = TcpParams { zero_copy_min: Some(16 << 10), ..TcpParams::default() };
    let mut w = World::new(&[A, B], params);
    w.send(0, message(1, A, B, 100_000));
    w.send(0, message(2, A, B, 100));
    w.run();
    assert_eq!((w.outcome(0, 1), w.outcome(0, 2)), (Some(Ok(())), Some(Ok(()))));
    w.cut = true;
    w.send(0, message(3, A, B, 100_000));
    w.run();
    assert_eq!(w.outcome(0, 3), None);
    w.pass(sec(49));
    assert_eq!(w.outcome(0, 3), None);
    w.pass(sec(3));
    assert_eq!(w.outcome(0, 3), Some(Err(Failure::NetworkTimeout)));
    assert!(w.kinds(0).is_empty());
    assert_eq!(w.nodes[0].lost, [pid(B).nid]);
}

#[test]
fn who_wants_acknowledgements_and_reads_none_is_cut_off() {
    let mut m = passive();
    let (conn, _) = greet(&mut m, 1023, &hello(ByteOrder::Little, ConnType::BulkOut, 5));
    let one = |cookie| {
        let head = KsockHeader::new(Kind::Lnet, cookie, 0).encode(ByteOrder::Little);
        [&head[..], &message(cookie, A, B, 0).header.encode(HeaderForm::Small)].concat()
    };
    let mut n = 0;
    while m.connections().len() == 1 {
        n += 1;
        assert!(n < 100_000, "it goes on");
        m.received(sec(1), conn, &one(n));
        actions(&mut m);
    }
    assert_eq!(n, 16_385);
}

#[test]
fn an_unknown_cookie_ends_all_connections() {
    let mut w = World::new(&[A, B], TcpParams::default());
    w.send(0, message(1, A, B, 10));
    w.run();
    let conn = *w.nodes[0].wires.keys().min().unwrap();
    let noop = KsockHeader::new(Kind::Noop, 0, 1).encode(ByteOrder::Little);
    w.nodes[0].machine.received(w.now, conn, &noop);
    w.run();
    assert_eq!(w.kinds(0).len(), 3);
    let noop = KsockHeader::new(Kind::Noop, 5, 900_000_000_000).encode(ByteOrder::Little);
    w.nodes[0].machine.received(w.now, conn, &noop);
    w.run();
    assert_eq!((w.kinds(0).len(), w.kinds(1).len()), (0, 0));
}

#[test]
fn keepalives_hold_a_quiet_peer_and_silence_from_strangers_is_cut() {
    let mut w = World::new(&[A, B], TcpParams::default());
    w.send(0, message(1, A, B, 10));
    w.run();
    w.pass(sec(300));
    assert_eq!((w.kinds(0).len(), w.kinds(1).len()), (3, 3));
    let stranger = w.nodes[1].machine.accepted(w.now, "10.0.0.9:600".parse().unwrap()).unwrap();
    w.pass(sec(4));
    assert!(w.nodes[1].machine.wants_read(stranger));
    w.pass(sec(2));
    assert!(!w.nodes[1].machine.wants_read(stranger));
}

#[test]
fn half_a_message_times_out_with_all_siblings() {
    let mut w = World::new(&[A, B], TcpParams::default());
    w.send(0, message(1, A, B, 10));
    w.run();
    let conn = *w.nodes[1].wires.keys().min().unwrap();
    w.nodes[1].machine.received(w.now, conn, &[0xc1, 0, 0]);
    w.pass(sec(45));
    assert_eq!(w.kinds(1).len(), 3);
    w.pass(sec(10));
    assert!(w.kinds(1).is_empty());
    assert_eq!(w.nodes[1].lost, [pid(A).nid]);
}

#[test]
fn a_dead_host_fails_at_once_and_pauses_grow() {
    let mut w = World::new(&[A, B], TcpParams::default());
    w.nodes[1].down = true;
    let mut dials = Vec::new();
    for id in 1..400 {
        let before = w.nodes[0].next_port;
        w.send(0, message(id, A, B, 10));
        w.run();
        assert_eq!(w.outcome(0, id), Some(Err(Failure::RemoteDropped)));
        if w.nodes[0].next_port != before {
            dials.push(w.now.as_secs());
        }
        w.now += sec(1);
    }
    assert_eq!(dials[..8], [1, 2, 4, 8, 16, 32, 64, 124]);
    w.nodes[1].down = false;
    w.now += sec(60);
    w.send(0, message(900, A, B, 10));
    w.run();
    assert_eq!(w.outcome(0, 900), Some(Ok(())));
}

#[test]
fn numbers_and_kinds_of_connections_can_be_chosen() {
    for (typed, per_peer, want) in [(true, 3, 7), (false, 2, 2)] {
        let mut w =
            World::new(&[A, B], TcpParams { typed, conns_per_peer: per_peer, ..TcpParams::default() });
        for id in 1..=20 {
            w.send(0, message(id, A, B, 3000));
        }
        w.run();
        assert_eq!((w.kinds(0).len(), w.kinds(1).len()), (want, want));
        assert_eq!(w.nodes[1].got.len(), 20);
        w.send(1, message(99, B, A, 3000));
        w.run();
        assert_eq!(w.outcome(1, 99), Some(Ok(())));
    }
}

#[test]
fn a_node_can_dial_itself() {
    let mut w = World::new(&[A], TcpParams::default());
    w.send(0, message(1, A, A, 10));
    w.send(0, message(2, A, A, 5000));
    w.run();
    w.pass(sec(10));
    assert_eq!(w.nodes[0].got.len(), 2);
    assert_eq!((w.outcome(0, 1), w.outcome(0, 2)), (Some(Ok(())), Some(Ok(()))));
    assert!(w.nodes[0].lost.is_empty());
}

#[test]
fn strangers_claims_are_not_kept() {
    let mut m = passive();
    for i in 0..50u32 {
        let mut h = hello(ByteOrder::Little, ConnType::Control, 5);
        h.src_nid = Nid::small(crate::nid::Net::TCP, i + 1);
        let (conn, _) = greet(&mut m, 1023, &h);
        m.closed(sec(2), conn);
    }
    actions(&mut m);
    assert!(m.next_timeout().is_some());
    m.handle_timeout(sec(10));
    m.handle_timeout(sec(100));
    assert_eq!(m.next_timeout(), None);
}

#[test]
fn held_bytes_stop_reading() {
    let mut m = passive();
    let (conn, _) = greet(&mut m, 1023, &hello(ByteOrder::Little, ConnType::Control, 5));
    m.command(sec(1), crate::network::Command::Hold { via: conn.0, bytes: 5 << 20 });
    assert!(!m.wants_read(conn));
    m.command(sec(1), crate::network::Command::Release { via: conn.0, bytes: 5 << 20 });
    assert!(m.wants_read(conn));
}

#[test]
fn v2_checksums_are_verified() {
    let mut h = hello(ByteOrder::Little, ConnType::Control, 5);
    h.version = Version::V2;
    for (flip, want) in [(0u8, 1), (1, 0)] {
        let mut m = passive();
        let (conn, _) = greet(&mut m, 1023, &h);
        let tx = message(9, A, B, 3);
        let mut raw = KsockHeader::new(Kind::Lnet, 0, 0).encode(ByteOrder::Little);
        raw.extend(tx.header.encode(HeaderForm::Small));
        let sum = crate::wire::ksock::crc32(
            crate::wire::ksock::CRC_INIT,
            &[raw.clone(), tx.payload.to_vec()].concat(),
        );
        raw[4..8].copy_from_slice(&sum.to_le_bytes());
        raw.extend(tx.payload.to_vec());
        *raw.last_mut().unwrap() ^= flip;
        m.received(sec(1), conn, &raw);
        let got = actions(&mut m).iter().filter(|a| matches!(a, Action::Up(Upcall::Received(_)))).count();
        assert_eq!(got, want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Messages both ways, any pieces, cuts of connections at any time: each ends once, none arrives twice or damaged.
    #[test]
    fn every_message_ends_once(steps in proptest::collection::vec((0u8..8, 0usize..3000), 1..40), chunk in 1usize..5000) {
        let mut w = World::new(&[A, B], TcpParams { zero_copy_min: Some(2000), ..TcpParams::default() });
        w.chunk = chunk;
        let (mut id, mut transmitted) = (0, 0);
        for (step, len) in steps {
            id += 1;
            transmitted += usize::from(step <= 5);
            match step {
                0..=2 => w.send(0, message(id, A, B, len)),
                3..=5 => w.send(1, message(id, B, A, len)),
                6 => {
                    let i = len % 2;
                    let conn = w.nodes[i].wires.keys().min().copied();
                    if let Some(conn) = conn {
                        w.nodes[i].machine.closed(w.now, conn);
                    }
                }
                _ => w.pass(Duration::from_millis(len as u64)),
            }
            if len % 3 == 0 {
                w.run();
            }
        }
        w.pass(sec(130));
        for node in &w.nodes {
            prop_assert!(node.sent.values().all(|s| s.len() == 1), "{:?}", node.sent);
            let mut ids: Vec<u64> = node.got.iter().map(|g| g.0).collect();
            ids.sort_unstable();
            let n = ids.len();
            ids.dedup();
            prop_assert_eq!(ids.len(), n);
            prop_assert!(node.got.iter().all(|(id, p)| p.iter().enumerate().all(|(i, b)| *b == (i as u64 * 7 + id) as u8)));
        }
        let ended: usize = w.nodes.iter().map(|n| n.sent.len()).sum();
        prop_assert_eq!(ended, transmitted);
    }

    #[test]
    fn decoder_gives_the_same_items_for_any_pieces(cuts in proptest::collection::vec(1usize..200, 1..50)) {
        let tx = message(9, A, B, 300);
        let ksock = KsockHeader::new(Kind::Lnet, 0, 0).encode(ByteOrder::Little);
        let noop = KsockHeader::new(Kind::Noop, 0, 1).encode(ByteOrder::Little);
        let stream = [request(ByteOrder::Little), hello(ByteOrder::Little, ConnType::Control, 5).encode(), noop,
            ksock, tx.header.encode(HeaderForm::Small), tx.payload.to_vec()].concat();
        let mut decoder = Decoder::passive();
        let mut items = Vec::new();
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            rest = later;
            let mut now = now;
            while let Some(item) = decoder.feed(&mut now).unwrap() {
                if matches!(item, Item::Hello(_)) {
                    decoder.start_session(Version::V3, ByteOrder::Little);
                }
                items.push(item);
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(items.len(), 4);
        prop_assert!(!decoder.is_mid_item());
        let Item::Message(_, header, payload) = &items[3] else { panic!() };
        prop_assert_eq!(header, &tx.header);
        prop_assert_eq!(payload, &tx.payload.to_vec());
    }
}
