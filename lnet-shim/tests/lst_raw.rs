//! A self-test console, client and server of its own over one raw socket, written from the specification of the wire (sections 1 to 5
//! and 11) and sharing no code with ours: what our encoder and decoder both misread shows here.

mod common;

use common::watchdog;
use futures_lite::future::block_on;
use lnet_shim::nid::ProcessId;
use lnet_shim::node::{NiConfig, Node, NodeParams};
use lnet_shim::selftest::load::Kind;
use lnet_shim::selftest::{Agent, AgentParams, Check, Console, Distribute, TestSpec};
use lnet_shim::tcp::TcpParams;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(20);
const MIB: usize = 1 << 20;
/// Address, net number, type: `127.0.12.9@tcp` is us, `127.0.12.2@tcp` the node.
const ME: u64 = 0x0002_0000_7f00_0c09;
const NODE: u64 = 0x0002_0000_7f00_0c02;
const PID: u32 = 12345;
const NO_HANDLE: [u8; 16] = [0xff; 16];
const PATTERN: u64 = 0xeeb0_eeb1_eeb2_eeb3;

/// Little-endian fields one after another.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn u16(mut self, v: u16) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u32(mut self, v: u32) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn u64(mut self, v: u64) -> Self {
        self.0.extend(v.to_le_bytes());
        self
    }

    fn raw(mut self, v: &[u8]) -> Self {
        self.0.extend(v);
        self
    }

    fn padded(mut self, len: usize) -> Vec<u8> {
        assert!(self.0.len() <= len);
        self.0.resize(len, 0);
        self.0
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn data(len: usize) -> Vec<u8> {
    PATTERN.to_le_bytes().into_iter().cycle().take(len).collect()
}

/// An LNet message: its type, its forty bytes, its payload.
struct Message {
    kind: u32,
    union: Vec<u8>,
    payload: Vec<u8>,
}

/// One connection with the node, and what there is for it to fetch and has yet to bring.
struct Raw {
    stream: TcpStream,
    next: u64,
    /// Bulk that the node may GET at portal 52, by match bits.
    offered: HashMap<u64, Vec<u8>>,
    /// What has been PUT at portal 52, by match bits.
    put: HashMap<u64, Vec<u8>>,
    /// Our GETs of a writer's bulk, by handle: where the reply goes.
    fetching: HashMap<u64, u64>,
    /// As a server, write wrong bytes.
    damaged: bool,
    /// BRW requests served.
    served: usize,
}

impl Raw {
    fn connect(port: u16) -> Raw {
        let mut stream = TcpStream::connect(("127.0.12.2", port)).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.set_write_timeout(Some(WAIT)).unwrap();
        let request = Bytes::default().u32(0xacce_7100).u32(1).u64(NODE);
        // HELLO, version 3: NIDs, pids, incarnations, type CONTROL, no addresses.
        let hello = Bytes::default().u32(0x4572_6963).u32(3).u64(ME).u64(NODE).u32(PID).u32(0);
        let hello = hello.u64(0x1234_5678).u64(0).u32(1).u32(0);
        stream.write_all(&[request.0, hello.0].concat()).unwrap();
        let mut answer = [0; 56];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!((u32_at(&answer, 4), u64_at(&answer, 8), u32_at(&answer, 48)), (3, NODE, 1));
        let (offered, put, fetching) = Default::default();
        Raw { stream, next: 100, offered, put, fetching, damaged: false, served: 0 }
    }

    fn unique(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn send(&mut self, kind: u32, union: Bytes, payload: &[u8]) {
        let ksock = Bytes::default().u32(0xc1).u32(0).u64(0).u64(0);
        let header = Bytes::default().u64(NODE).u64(ME).u32(PID).u32(PID).u32(kind).u32(payload.len() as u32);
        let header = header.raw(&union.padded(40));
        self.stream.write_all(&[ksock.0, header.0].concat()).unwrap();
        self.stream.write_all(payload).unwrap();
    }

    fn send_put(&mut self, portal: u32, match_bits: u64, payload: &[u8]) {
        let union = Bytes::default().raw(&NO_HANDLE).u64(match_bits).u64(0).u32(portal).u32(0);
        self.send(1, union, payload);
    }

    /// The next message; zero-copy ones are acknowledged, NOOPs passed over.
    fn receive(&mut self) -> Message {
        loop {
            let mut ksock = [0; 24];
            self.stream.read_exact(&mut ksock).unwrap();
            if u32_at(&ksock, 0) == 0xc0 {
                continue;
            }
            assert_eq!(u32_at(&ksock, 0), 0xc1);
            let mut header = [0; 72];
            self.stream.read_exact(&mut header).unwrap();
            assert_eq!((u64_at(&header, 0), u64_at(&header, 8)), (ME, NODE));
            let mut payload = vec![0; u32_at(&header, 28) as usize];
            self.stream.read_exact(&mut payload).unwrap();
            let cookie = u64_at(&ksock, 8);
            if cookie != 0 {
                let noop = Bytes::default().u32(0xc0).u32(0).u64(0).u64(cookie);
                self.stream.write_all(&noop.0).unwrap();
            }
            return Message { kind: u32_at(&header, 24), union: header[32..].to_vec(), payload };
        }
    }

    /// Takes one message and does what it asks for.
    fn turn(&mut self) {
        let m = self.receive();
        match m.kind {
            1 => {
                let (bits, portal) = (u64_at(&m.union, 16), u32_at(&m.union, 32));
                match (portal, bits) {
                    (50, 11) => self.serve(&m.payload),
                    (51, 1 | 5) => self.answer_console(bits, &m.payload),
                    (52, _) => assert!(self.put.insert(bits, m.payload).is_none(), "twice: {bits}"),
                    other => panic!("a PUT to {other:?}"),
                }
            }
            2 => {
                let (bits, portal) = (u64_at(&m.union, 16), u32_at(&m.union, 24));
                let reply = match (portal, bits) {
                    (0, 0x8000_0000_0000_0000) => ping_info(),
                    (52, _) => self.offered.remove(&bits).expect("nothing is offered there"),
                    other => panic!("a GET from {other:?}"),
                };
                assert!(reply.len() <= u32_at(&m.union, 32) as usize);
                self.send(3, Bytes::default().raw(&m.union[..16]), &reply);
            }
            3 => {
                let reply_to = self.fetching.remove(&u64_at(&m.union, 8)).unwrap();
                let status = if m.payload == data(MIB) { 0 } else { 74 };
                self.answer_brw(reply_to, status);
            }
            other => panic!("a message of type {other}"),
        }
    }

    /// A BRW request of the node's: the bulk, then the reply.
    fn serve(&mut self, request: &[u8]) {
        let (reply_to, bulk) = (u64_at(request, 24), u64_at(request, 32));
        assert_eq!((request.len(), u32_at(request, 0), u32_at(request, 8)), (160, 0xeeb0_f00d, 12));
        assert_eq!((u32_at(request, 44), u32_at(request, 48)), (MIB as u32, 3), "length and check");
        self.served += 1;
        if u32_at(request, 40) == 1 {
            let mut bytes = data(MIB);
            bytes[77_777] ^= u8::from(self.damaged);
            self.send_put(52, bulk, &bytes);
            return self.answer_brw(reply_to, 0);
        }
        let handle = self.unique();
        self.fetching.insert(handle, reply_to);
        let union = Bytes::default().u64(7).u64(handle).u64(bulk).u32(52).u32(0).u32(MIB as u32);
        self.send(2, union, &[]);
    }

    /// As a node of Lustre's would: a session is made; counters of zero, whatever kind of stat is asked for.
    fn answer_console(&mut self, service: u64, request: &[u8]) {
        let reply_to = u64_at(request, 24);
        let body = Bytes::default().u32(0).raw(&request[32..48]);
        let (kind, body) = if service == 1 { (1, body.u32(0).raw(&request[52..84])) } else { (7, body) };
        self.send_put(52, reply_to, &message(kind, body));
    }

    fn answer_brw(&mut self, reply_to: u64, status: u32) {
        self.send_put(52, reply_to, &message(13, Bytes::default().u32(status)));
    }

    /// What comes at portal 52 with these match bits.
    fn wait(&mut self, bits: u64) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.put.remove(&bits) {
                return found;
            }
            assert!(start.elapsed() < 3 * WAIT, "nothing comes");
            self.turn();
        }
    }

    /// A call of the framework; its reply after the 24 bytes that all have.
    fn call(&mut self, service: u64, kind: u32, body: impl FnOnce(u64) -> Bytes) -> Vec<u8> {
        let reply_id = self.unique();
        self.send_put(51, service, &message(kind, body(reply_id)));
        let reply = self.wait(reply_id);
        assert_eq!((reply.len(), u32_at(&reply, 0), u32_at(&reply, 4)), (160, 0xeeb0_f00d, 1));
        assert_eq!((u32_at(&reply, 8), u32_at(&reply, 20)), (kind + 1, 1));
        reply[24..].to_vec()
    }

    /// Adds a BRW test to a batch; with `client` the node is to call us.
    fn add_test(&mut self, batch: u64, op: u16, concurrency: u32, client: bool) {
        let bulk = self.unique();
        // One destination: a process id.
        self.offered.insert(bulk, Bytes::default().u64(ME).u32(PID).0);
        let reply = self.call(4, 8, |id| {
            let test = Bytes::default().u64(id).u64(bulk).raw(&session_id()).u64(batch).u32(11).u32(4);
            let test = test.u32(concurrency).raw(&[u8::from(client), 0]).u32(u32::from(client));
            // With lengths in bytes: what, how it is checked, how much, from where.
            test.u16(op).u16(3).u32(MIB as u32).u32(0)
        });
        assert_eq!(u32_at(&reply, 0), 0, "the test is refused");
        assert_eq!(self.offered.remove(&bulk).is_none(), client, "clients fetch the list");
    }

    fn batch(&mut self, batch: u64, op: u32) -> u32 {
        let reply = self
            .call(3, 4, |id| Bytes::default().u64(id).raw(&session_id()).u64(batch).u32(op).u32(0).u32(0));
        assert_eq!((u32_at(&reply, 0), &reply[4..20]), (0, &session_id()[..]));
        u32_at(&reply, 20)
    }

    /// Errors of BRW, errors of RPCs, bytes got and bytes put.
    fn stat(&mut self) -> (u32, u32, u64, u64) {
        let reply = self.call(5, 6, |id| Bytes::default().u64(id).raw(&session_id()).u32(0));
        assert_eq!(u32_at(&reply, 0), 0);
        (u32_at(&reply, 32), u32_at(&reply, 40), u64_at(&reply, 60), u64_at(&reply, 68))
    }

    /// So many BRW calls at a time, of ours; their status.
    fn brw(&mut self, op: u32, n: usize, bytes: &[u8]) -> Vec<u32> {
        let mut calls = Vec::new();
        for _ in 0..n {
            let (id, bulk) = (self.unique(), self.unique());
            if op == 2 {
                self.offered.insert(bulk, bytes.to_vec());
            }
            let body = Bytes::default().u64(id).u64(bulk).u32(op).u32(bytes.len() as u32).u32(3);
            self.send_put(50, 11, &message(12, body));
            calls.push((id, bulk));
        }
        let mut all = Vec::new();
        for (id, bulk) in calls {
            let reply = self.wait(id);
            assert_eq!(u32_at(&reply, 8), 13);
            if op == 1 {
                assert!(self.wait(bulk) == bytes, "what was read is not the pattern");
            }
            all.push(u32_at(&reply, 24));
        }
        all
    }
}

/// The console's NID, and its clock in ms.
fn session_id() -> Vec<u8> {
    Bytes::default().u64(ME).u64(0xcceb).0
}

fn message(kind: u32, body: Bytes) -> Vec<u8> {
    let head = Bytes::default().u32(0xeeb0_f00d).u32(1).u32(kind).u32(0).u32(0).u32(1);
    head.raw(&body.0).padded(160)
}

/// One interface, which does not want to be told of others.
fn ping_info() -> Vec<u8> {
    let info = Bytes::default().u32(0x7069_6e67).u32(0x06).u32(PID).u32(2);
    info.u64(0x0009_0000_0000_0000).u32(1).u32(0).u64(ME).u32(0x15aa_c0de).u32(0).0
}

fn node(port: u16) -> Node {
    let node = Node::new(NodeParams::default()).unwrap();
    let params = TcpParams { zero_copy_min: Some(16 << 10), ..TcpParams::unprivileged(port) };
    node.add_tcp(NiConfig::new("127.0.12.2@tcp".parse().unwrap()), params).unwrap();
    node
}

fn session(port: u16) -> (Agent, Raw) {
    let agent = Agent::start(node(port), AgentParams::default()).unwrap();
    let mut raw = Raw::connect(port);
    let name = Bytes::default().raw(b"raw").padded(32);
    let reply = raw.call(1, 0, |id| Bytes::default().u64(id).raw(&session_id()).u32(0).raw(&name));
    // Status, session, timeout of 100 s, name.
    assert_eq!((u32_at(&reply, 0), &reply[4..20], u32_at(&reply, 20)), (0, &session_id()[..], 100));
    assert_eq!(reply[24..56], name);
    (agent, raw)
}

#[test]
fn an_independent_client_reads_and_writes() {
    let _watchdog = watchdog("client", 180);
    let (_agent, mut raw) = session(19894);
    for (batch, op) in [(1, 1), (2, 2)] {
        raw.add_test(batch, op, 1, false);
    }
    for concurrency in [1, 8] {
        for (op, times) in [(1, 3), (2, 2)] {
            for _ in 0..times {
                assert_eq!(raw.brw(op, concurrency, &data(MIB)), vec![0; concurrency]);
            }
        }
    }
    assert_eq!(raw.stat(), (0, 0, 18 << 20, 27 << 20));
    let mut damaged = data(MIB);
    damaged[MIB - 1] ^= 1;
    assert_ne!(raw.brw(2, 1, &damaged), [0], "damage is seen");
}

#[test]
fn an_independent_console_and_server_are_called() {
    let _watchdog = watchdog("console and server", 180);
    let (_agent, mut raw) = session(19895);
    let mut batch = 0;
    for (concurrency, op) in [(1, 1), (1, 2), (8, 1), (8, 2)] {
        batch += 1;
        raw.add_test(batch, op, concurrency, true);
        let before = raw.served;
        raw.batch(batch, 1);
        let start = Instant::now();
        while raw.batch(batch, 3) > 0 {
            assert!(start.elapsed() < 3 * WAIT, "the batch does not end");
        }
        assert_eq!(raw.served - before, 4 * concurrency as usize, "four calls of each");
        raw.batch(batch, 2);
    }
    assert_eq!((raw.stat().0, raw.stat().1), (0, 0));
    // Wrong bytes of ours are the client's errors.
    raw.damaged = true;
    raw.add_test(9, 1, 1, true);
    raw.batch(9, 1);
    while raw.batch(9, 3) > 0 {}
    assert_eq!(raw.stat().0, 4);
    let reply = raw.call(2, 2, |id| Bytes::default().u64(id).raw(&session_id()));
    assert_eq!(u32_at(&reply, 0), 0);
    let gone = raw.call(3, 4, |id| Bytes::default().u64(id).raw(&session_id()).u64(1).u32(3).u32(0).u32(0));
    assert_ne!(u32_at(&gone, 0), 0, "the session has ended");
}

/// Lustre's nodes take lists of 8-byte NIDs only, and would misread ours: they are not sent one.
#[test]
fn a_client_of_lustres_is_not_told_of_large_nids() {
    let _watchdog = watchdog("large list", 180);
    let (node, mut raw) = (node(19896), Raw::connect(19896));
    let [client, server] = ["127.0.12.9@tcp", "fd00::1@tcp"].map(|n| ProcessId::lnet(n.parse().unwrap()));
    let console = std::thread::spawn(move || {
        let (size, check, distribute) = (8, Check::None, Distribute::All);
        let spec = TestSpec { kind: Kind::Ping, size, check, concurrency: 1, loops: 1, distribute };
        let mut console = Console::new(node, "large", WAIT);
        block_on(console.add_node(client, false)).unwrap();
        block_on(console.add_test(1, &[client], &[server], spec)).unwrap_err().to_string()
    });
    // The ping of discovery, the session, the stat.
    for _ in 0..3 {
        raw.turn();
    }
    let error = console.join().unwrap();
    assert!(
        error.contains("127.0.12.9@tcp") && error.contains("8-byte NIDs, and fd00::1@tcp has none"),
        "{error}"
    );
}
