//! What a case works on: a fresh rig, helpers to open, connect and drive ports, and a watchdog.

use crate::node::Node;
use crate::rig::Rig;
use kfab_core::mem::Pool;
use kfab_core::spi::{Caps, Conn, Delivery, HEADER_LEN, PortConfig};
use std::time::Instant;

/// The surroundings of one case.
pub struct Bench {
    /// The provider under test.
    pub rig: Box<dyn Rig>,
    /// Memory for the case.
    pub pool: Pool,
    until: Instant,
}

impl Bench {
    /// Around a fresh rig; the watchdog starts.
    pub fn new(rig: Box<dyn Rig>) -> Bench {
        let until = Instant::now() + rig.patience();
        Bench { rig, pool: Pool::new(Default::default()), until }
    }

    /// Opens a port that must open.
    pub fn open(&self, config: &PortConfig) -> Node {
        Node::new(self.rig.open(config).unwrap_or_else(|e| panic!("{e}")))
    }

    /// Two ports.
    pub fn pair(&self) -> (Node, Node) {
        (self.open(&PortConfig::default()), self.open(&PortConfig::default()))
    }

    /// Connects two ports; the names at both.
    pub fn connect(&self, a: &mut Node, b: &mut Node) -> (Conn, Conn) {
        let before = b.incoming.len();
        let conn = a.connect(b);
        self.until("a connection comes up at both ends", &mut [a, b], |n| {
            assert_eq!(n[0].ended(conn), None, "the connection was refused");
            n[0].up.contains(&conn) && n[1].incoming.len() > before
        });
        (conn, *b.incoming.last().expect("waited for"))
    }

    /// Two connected ports.
    pub fn connected(&self) -> (Node, Node, Conn, Conn) {
        let (mut a, mut b) = self.pair();
        let (ca, cb) = self.connect(&mut a, &mut b);
        (a, b, ca, cb)
    }

    /// Drives the ports until `done`; panics with `what` if the watchdog bites.
    pub fn until(&self, what: &str, nodes: &mut [&mut Node], mut done: impl FnMut(&mut [&mut Node]) -> bool) {
        loop {
            let mut busy = false;
            for n in nodes.iter_mut() {
                busy |= n.poll(self.rig.now());
            }
            if done(nodes) {
                return;
            }
            if Instant::now() > self.until {
                let state: Vec<String> = nodes.iter().map(|n| n.summary()).collect();
                panic!("watchdog: {what} did not happen; {}", state.join(" | "));
            }
            if !busy {
                self.rig.idle();
            }
        }
    }

    /// Drives the ports until `n` frames have arrived at the last one.
    pub fn frames(&self, nodes: &mut [&mut Node], n: usize) {
        self.until(&format!("{n} frames arrive"), nodes, |nodes| nodes[nodes.len() - 1].frames.len() >= n);
    }

    /// Drives the ports for a while in which nothing should happen that the case does not see afterwards.
    pub fn quiet(&self, nodes: &mut [&mut Node]) {
        for _ in 0..150 {
            for n in nodes.iter_mut() {
                n.poll(self.rig.now());
            }
            self.rig.idle();
        }
    }
}

/// A header that shows a swapped or lost byte: the number, then bytes made from it.
pub(crate) fn header(n: u32) -> [u8; HEADER_LEN] {
    let mut h = [0; HEADER_LEN];
    h[..4].copy_from_slice(&n.to_le_bytes());
    for (i, b) in h.iter_mut().enumerate().skip(4) {
        *b = (n as u8).wrapping_mul(29).wrapping_add(i as u8 * 3 + 1);
    }
    h
}

/// The number in a header, after a look at the rest of it.
pub(crate) fn number(h: &[u8; HEADER_LEN]) -> u32 {
    let n = u32::from_le_bytes([h[0], h[1], h[2], h[3]]);
    assert_eq!(*h, header(n), "the header arrived changed");
    n
}

/// The body of frame `n`: bytes that depend on it and on their place.
pub(crate) fn body(n: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((n as usize).wrapping_mul(131) ^ i.wrapping_mul(7) ^ (i >> 8)) as u8).collect()
}

/// The numbers of frames, each checked against its body.
pub(crate) fn numbers(node: &Node) -> Vec<u32> {
    let one = |g: &crate::node::Got| {
        let n = number(&g.header);
        assert!(
            g.body == body(n, g.body.len()),
            "the body of frame {n} ({} bytes) arrived changed",
            g.body.len()
        );
        n
    };
    node.frames.iter().map(one).collect()
}

/// Checks that frames `0..n` arrived: all, each once, and in order where the port promises order.
pub(crate) fn all_arrived(node: &Node, caps: &Caps, n: u32) {
    let mut got = numbers(node);
    if caps.delivery == Delivery::Datagram {
        got.sort_unstable();
    }
    assert_eq!(got, (0..n).collect::<Vec<_>>());
}
