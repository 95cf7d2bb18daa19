//! Raw sockets against a node: the captured conversations, byte for byte, with only addresses and cookies changed.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use futures_lite::future::block_on;
use lnet_shim::nid::Nid;
use lnet_shim::node::{NiConfig, Node, NodeParams};
use lnet_shim::tcp::{Accept, TcpParams};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks(2).map(|c| c[0] << 4 | c[1]).collect()
}

fn node(text: &str, port: u16, accept: Accept) -> Node {
    let nid: Nid = text.parse().unwrap();
    let node = Node::new(NodeParams::default()).unwrap();
    let params = TcpParams { accept, ..TcpParams::unprivileged(port) };
    node.add_tcp(NiConfig::new(nid), params).unwrap();
    node
}

fn connect(to: &str) -> TcpStream {
    let to: SocketAddr = to.parse().unwrap();
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// 127.0.10.9 stands for the kernel, 127.0.10.2 is the node.
const REQUEST: &str = "00 71 ce ac 01 00 00 00 02 0a 00 7f 00 00 02 00";
const HELLO: &str = "63 69 72 45 03 00 00 00 09 0a 00 7f 00 00 02 00 02 0a 00 7f 00 00 02 00
    39 30 00 00 00 00 00 00 5e 40 5d f9 f6 05 ea 18 00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00";
const NIDS: &str = "02 0a 00 7f 00 00 02 00 09 0a 00 7f 00 00 02 00 39 30 00 00 39 30 00 00";

fn lnet(rest: &str) -> Vec<u8> {
    let mut head = hex("c1 00 00 00");
    head.resize(24, 0);
    let mut header = hex(NIDS);
    header.extend(hex(rest));
    header.resize(72, 0);
    [head, header].concat()
}

const HANDLE: &str = "6d 6a e1 f8 f6 05 ea 18 09 1c 00 00 00 00 00 00";
const BITS: &str = "00 00 00 00 00 00 00 80";

#[test]
fn a_kernels_ping_and_push_are_answered_as_captured() {
    let _node = node("127.0.10.2@tcp", 19890, Accept::Trusted);
    let mut s = connect("127.0.10.2:19890");
    s.write_all(&[hex(REQUEST), hex(HELLO)].concat()).unwrap();
    let answer = read(&mut s, 56);
    assert_eq!(answer[..24], hex("63 69 72 45 03 00 00 00 02 0a 00 7f 00 00 02 00 09 0a 00 7f 00 00 02 00"));
    assert_eq!(answer[24..32], hex("39 30 00 00 00 00 00 00"));
    assert_eq!(answer[48..], hex("01 00 00 00 00 00 00 00"));
    // Ping: GET, 3960 bytes at most; REPLY with 48.
    s.write_all(&lnet(&format!(
        "02 00 00 00 00 00 00 00 {HANDLE} {BITS} 00 00 00 00 00 00 00 00 78 0f 00 00"
    )))
    .unwrap();
    let reply = read(&mut s, 24 + 72 + 48);
    assert_eq!(reply[..4], hex("c1 00 00 00"));
    assert!(reply[4..24].iter().all(|b| *b == 0));
    let want =
        "09 0a 00 7f 00 00 02 00 02 0a 00 7f 00 00 02 00 39 30 00 00 39 30 00 00 03 00 00 00 30 00 00 00";
    assert_eq!(reply[24..56], hex(want));
    assert_eq!(reply[56..72], hex(HANDLE));
    assert!(reply[72..96].iter().all(|b| *b == 0));
    let info =
        "67 6e 69 70 1e 00 00 00 39 30 00 00 02 00 00 00 00 00 00 00 00 00 09 00 01 00 00 00 00 00 00 00
        02 0a 00 7f 00 00 02 00 de c0 aa 15 00 00 00 00";
    assert_eq!(reply[96..], hex(info));
    // Push: PUT with ACK wanted. An ACK comes, and a push of the node's own, in either order.
    let mine =
        "67 6e 69 70 1e 00 00 00 39 30 00 00 02 00 00 00 00 00 00 00 00 00 09 00 01 00 00 00 00 00 00 00
        09 0a 00 7f 00 00 02 00 de c0 aa 15 00 00 00 00";
    let mut push = lnet(&format!("01 00 00 00 30 00 00 00 {HANDLE} {BITS}"));
    push.extend(hex(mine));
    s.write_all(&push).unwrap();
    let (mut acks, mut pushes) = (0, 0);
    for _ in 0..2 {
        let head = read(&mut s, 96);
        match head[48] {
            0 => {
                assert_eq!(head[56..84], [hex(HANDLE), hex(BITS), hex("30 00 00 00")].concat());
                acks += 1;
            }
            1 => {
                assert_eq!(head[52..56], hex("30 00 00 00"));
                assert_eq!(read(&mut s, 48), hex(info));
                pushes += 1;
            }
            other => panic!("type {other}"),
        }
    }
    assert_eq!((acks, pushes), (1, 1));
}

#[test]
fn zero_copy_messages_are_acknowledged_and_big_endian_is_spoken_to() {
    let _node = node("127.0.10.2@tcp", 19891, Accept::Trusted);
    let mut s = connect("127.0.10.2:19891");
    // The same handshake, big-endian.
    let swap4 = |bytes: Vec<u8>, at: &[(usize, usize)]| {
        let mut out = bytes;
        at.iter().for_each(|(from, len)| out[*from..*from + *len].reverse());
        out
    };
    let request = swap4(hex(REQUEST), &[(0, 4), (4, 4), (8, 8)]);
    let words = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 4), (28, 4), (32, 8), (40, 8), (48, 4), (52, 4)];
    s.write_all(&[request, swap4(hex(HELLO), &words)].concat()).unwrap();
    assert_eq!(read(&mut s, 56)[..4], hex("63 69 72 45"));
    let mut put = lnet(&format!(
        "01 00 00 00 08 00 00 00 {} {BITS} 00 00 00 00 00 00 00 00 09 00 00 00",
        "ff".repeat(16)
    ));
    put[..24]
        .copy_from_slice(&hex("00 00 00 c1 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00 00"));
    put.extend([7; 8]);
    s.write_all(&put).unwrap();
    // Matched or not, the sender's pages are released.
    assert_eq!(
        read(&mut s, 24),
        hex("c0 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 02 00 00 00 00 00 00 00")
    );
}

#[test]
fn strangers_are_refused_as_captured() {
    let _node = node("127.0.10.2@tcp", 19892, Accept::Secure);
    // An unprivileged port: reset.
    let mut s = connect("127.0.10.2:19892");
    let _ = s.write_all(&hex(REQUEST));
    assert!(matches!(s.read(&mut [0; 8]), Err(_) | Ok(0)));
    let _open = node("127.0.10.3@tcp", 19892, Accept::Trusted);
    // Not a NID of ours: closed without a byte.
    let mut s = connect("127.0.10.3:19892");
    s.write_all(&hex(REQUEST)).unwrap();
    assert!(matches!(s.read(&mut [0; 8]), Err(_) | Ok(0)));
    // Acceptor version 9.
    let mut s = connect("127.0.10.3:19892");
    s.write_all(&hex("00 71 ce ac 09 00 00 00 02 0a 00 7f 00 00 02 00")).unwrap();
    let mut all = Vec::new();
    let _ = s.read_to_end(&mut all);
    assert_eq!(all, hex("00 71 ce ac 01 00 00 00 00 00 00 00 00 00 00 00"));
}

#[test]
fn peers_on_unprivileged_ports_are_answered_by_port() {
    let _node = node("127.0.10.2@tcp", 19893, Accept::All);
    let mut s = connect("127.0.10.2:19893");
    let port = s.local_addr().unwrap().port();
    s.write_all(&[hex(REQUEST), hex(HELLO)].concat()).unwrap();
    read(&mut s, 56);
    s.write_all(&lnet(&format!(
        "02 00 00 00 00 00 00 00 {HANDLE} {BITS} 00 00 00 00 00 00 00 00 78 0f 00 00"
    )))
    .unwrap();
    let reply = read(&mut s, 144);
    let pid = u32::from_le_bytes(reply[40..44].try_into().unwrap());
    assert_eq!(pid, 0x8000_0000 | u32::from(port));
    // Its claimed NID is not believed: it is at the address it came from.
    assert_eq!(reply[24..32], hex("01 00 00 7f 00 00 02 00"));
}

#[test]
fn one_node_without_identity_still_pings_another() {
    let a = node("127.0.10.4@tcp", 19894, Accept::All);
    let _b = node("127.0.10.5@tcp", 19894, Accept::All);
    let report = block_on(a.ping("127.0.10.5@tcp".parse().unwrap(), Duration::from_secs(10))).unwrap();
    assert_eq!(report.info.small.len(), 1);
}
