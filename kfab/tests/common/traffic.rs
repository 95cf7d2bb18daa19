//! Numbered traffic from one child process to another: each message is there once and whole. Between them the test cuts and shapes
//! what they talk over.
//!
//! The sink answers `got` with what it has received, all in all and by port ([`Arrivals::line`]); the source answers `stop` with
//! `sent`, the number of messages, when all have been delivered.

use super::child::Kid;
use kfab::{Endpoint, Message, Op, Peer, SendOptions};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Messages under way at a time.
const UNDER_WAY: usize = 8;

/// What the sink has got so far: messages, and bytes by port.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Got<const PORTS: usize> {
    pub(crate) messages: u64,
    pub(crate) ports: [u64; PORTS],
}

/// The two ends; killed before what they talk over goes.
pub(crate) struct Pair<const PORTS: usize> {
    pub(crate) source: Kid,
    pub(crate) sink: Kid,
    /// How long single steps may take.
    pub(crate) patience: Duration,
}

impl<const PORTS: usize> Pair<PORTS> {
    pub(crate) fn got(&mut self) -> Got<PORTS> {
        let [messages, rest @ ..] = &self.ask("got")[..] else { panic!("an empty answer") };
        Got { messages: *messages, ports: rest.try_into().expect("a number for each port") }
    }

    /// Tells the sink a word and gets numbers.
    pub(crate) fn ask(&mut self, word: &str) -> Vec<u64> {
        self.sink.tell(word);
        self.sink.says(word).split(' ').map(|n| n.parse().unwrap()).collect()
    }

    /// Bytes by port since `before`, as shares of their sum.
    pub(crate) fn shares(&mut self, before: Got<PORTS>) -> [f64; PORTS] {
        let now = self.got();
        let by: [u64; PORTS] = std::array::from_fn(|i| now.ports[i].saturating_sub(before.ports[i]));
        let all = by.iter().sum::<u64>().max(1) as f64;
        by.map(|b| b as f64 / all)
    }

    /// Waits until the sink has `n` more messages.
    pub(crate) fn more(&mut self, n: u64) -> Duration {
        let (begun, from) = (Instant::now(), self.got().messages);
        while self.got().messages < from + n {
            assert!(begun.elapsed() < self.patience, "traffic does not go on: {:?}", self.got());
            std::thread::sleep(Duration::from_millis(5));
        }
        begun.elapsed()
    }

    /// Ends the traffic: all that was sent has arrived, once each. What the source said of it besides the number.
    pub(crate) fn finish(mut self) -> String {
        self.source.tell("stop");
        let said = self.source.says("sent");
        let (sent, rest) = said.split_once(' ').unwrap_or((&said, ""));
        let sent: u64 = sent.parse().unwrap();
        let begun = Instant::now();
        while self.got().messages < sent {
            assert!(begun.elapsed() < self.patience, "{:?} of {sent} arrived", self.got());
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(self.got().messages, sent, "more arrived than was sent");
        assert!(self.source.lives() && self.sink.lives());
        rest.to_owned()
    }
}

/// Sends numbered messages of these lengths (8 bytes at least), a few under way at a time, until told to stop; how many.
pub(crate) fn send_until(
    e: &Endpoint,
    to: &Peer,
    len: fn(u64) -> usize,
    mut stop: impl FnMut(u64) -> bool,
) -> u64 {
    let (mut under_way, mut n) = (VecDeque::new(), 0);
    while !stop(n) {
        under_way.push_back(send_numbered(e, to, n, len(n)));
        n += 1;
        if under_way.len() >= UNDER_WAY
            && let Some(oldest) = under_way.pop_front()
        {
            Op::<()>::wait(oldest).expect("a send");
        }
    }
    under_way.into_iter().for_each(|o| o.wait().expect("a send"));
    n
}

fn send_numbered(e: &Endpoint, to: &Peer, n: u64, len: usize) -> Op<()> {
    let mut b = e.buffer(len).unwrap();
    let bytes = b.get_mut().unwrap();
    bytes.fill(n as u8);
    bytes[..8].copy_from_slice(&n.to_le_bytes());
    to.send_with(b, SendOptions { delivered: true, ..Default::default() })
}

/// The numbers that have arrived.
#[derive(Default)]
pub(crate) struct Numbers(Vec<bool>);

impl Numbers {
    /// Checks a message of [`send_until`]: the first of its number, and whole.
    pub(crate) fn take(&mut self, m: &Message, len: fn(u64) -> usize) {
        let n = u64::from_le_bytes(m[..8].try_into().unwrap());
        let at = n as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, false);
        }
        assert!(!std::mem::replace(&mut self.0[at], true), "message {n} came twice");
        assert_eq!(m.len(), len(n), "message {n} has another length");
        assert!(is_filled(&m[8..], n as u8), "message {n} is damaged");
    }
}

/// Whether all bytes are `b`; in pieces that are compared fast without optimisation.
pub(crate) fn is_filled(bytes: &[u8], b: u8) -> bool {
    bytes.chunks(4096).all(|c| c == &[b; 4096][..c.len()])
}

/// What an endpoint has received by port, connections that are gone included.
pub(crate) struct Arrivals<const PORTS: usize> {
    last: HashMap<(u32, usize), u64>,
    gone: [u64; PORTS],
}

impl<const PORTS: usize> Arrivals<PORTS> {
    pub(crate) fn new() -> Self {
        Arrivals { last: HashMap::new(), gone: [0; PORTS] }
    }

    /// Bytes by port until now. A connection's counter that went back is a new one's.
    fn bytes(&mut self, e: &Endpoint) -> [u64; PORTS] {
        for r in e.stats().peers.into_iter().flat_map(|p| p.info.rails) {
            let before = self.last.insert((r.rail, r.port), r.rx_bytes).unwrap_or(0);
            if r.rx_bytes < before {
                self.gone[r.port] += before;
            }
        }
        let mut by = self.gone;
        self.last.iter().for_each(|((_, port), bytes)| by[*port] += bytes);
        by
    }

    /// The sink's answer to `got`.
    pub(crate) fn line(&mut self, e: &Endpoint, messages: u64) -> String {
        let by: Vec<_> = self.bytes(e).iter().map(u64::to_string).collect();
        format!("got {messages} {}", by.join(" "))
    }
}
