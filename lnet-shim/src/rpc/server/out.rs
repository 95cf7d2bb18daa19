//! How a lane's packets leave: over its endpoint, past the faults it was told to make.

use super::super::faults::{Blow, Dice};
use super::super::outbox::Packet;
use super::desk::Post;
use kfab::{Buffer, Op, Payload, Peer};
use std::collections::{HashMap, VecDeque};

/// Packets that may be on their way to one client, waiting for credit or to be fetched. Beyond them its replies are not sent: they are
/// kept in the cache, and the client asks again.
const WAITING_MAX: u32 = 256;
/// Of all packets on their way so many are looked at in a tick.
const LOOKS: usize = 512;

/// Packets on their way out.
pub(crate) struct Out {
    dice: Option<Dice>,
    late: Vec<(u64, Peer, u64, Vec<u8>)>,
    /// What is on its way, by tag, which names the client. Looked at in turn: a client that takes nothing keeps nobody else's from being
    /// forgotten.
    waiting: VecDeque<(u64, Op<()>)>,
    /// How many of them go to whom.
    each: HashMap<u64, u32>,
    pub(crate) now: u64,
}

impl Out {
    pub(crate) fn new(dice: Option<Dice>) -> Out {
        Out { dice, late: Vec::new(), waiting: VecDeque::new(), each: HashMap::new(), now: 0 }
    }

    /// Forgets sends that have ended, and sends what was delayed.
    pub(crate) fn tick(&mut self, now: u64) {
        self.now = now;
        let due = |l: &mut (u64, Peer, u64, Vec<u8>)| l.0 <= now;
        for (_, to, tag, bytes) in self.late.extract_if(.., due).collect::<Vec<_>>() {
            self.send(&to, tag, Payload::Bytes(&bytes));
        }
        for _ in 0..self.waiting.len().min(LOOKS) {
            let Some((tag, mut op)) = self.waiting.pop_front() else { break };
            if op.is_done() {
                self.left(tag);
            } else {
                self.waiting.push_back((tag, op));
            }
        }
    }

    /// `true` while a tick is needed soon.
    pub(crate) fn is_busy(&self) -> bool {
        !self.late.is_empty()
    }

    #[inline]
    fn send(&mut self, to: &Peer, tag: u64, payload: Payload<'_>) {
        if !self.each.is_empty() && self.each.get(&tag).is_some_and(|n| *n >= WAITING_MAX) {
            return;
        }
        let mut op = to.send_tagged(tag, payload);
        if !op.is_done() {
            self.waiting.push_back((tag, op));
            *self.each.entry(tag).or_default() += 1;
        }
    }

    fn left(&mut self, tag: u64) {
        if let Some(n) = self.each.get_mut(&tag) {
            *n -= 1;
            if *n == 0 {
                self.each.remove(&tag);
            }
        }
    }

    #[cold]
    fn hurt(&mut self, blow: Blow, to: &Peer, tag: u64, packet: &Packet<'_>) -> bool {
        let bytes = || match packet {
            Packet::Whole(b) => b.to_vec(),
            Packet::Tailed(b, tail) => [b, &tail[..]].concat(),
        };
        match blow {
            Blow::None => return true,
            Blow::Drop => {}
            Blow::Duplicate => {
                self.send(to, tag, Payload::Bytes(&bytes()));
                return true;
            }
            Blow::Delay => {
                let at = self.now + self.dice.as_ref().map_or(0, Dice::late_ns);
                self.late.push((at, to.clone(), tag, bytes()));
            }
        }
        false
    }
}

impl Post for Out {
    type To = Peer;

    #[inline]
    fn post(&mut self, to: &Peer, tag: u64, packet: Packet<'_>) {
        if let Some(dice) = &mut self.dice {
            let blow = dice.throw();
            if !self.hurt(blow, to, tag, &packet) {
                return;
            }
        }
        match packet {
            Packet::Whole(bytes) => self.send(to, tag, Payload::Bytes(bytes)),
            Packet::Tailed(head, tail) => {
                self.send(to, tag, Payload::Buffers(vec![Buffer::adopt(head.to_vec()), tail]));
            }
        }
    }
}
