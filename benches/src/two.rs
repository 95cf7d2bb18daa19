//! Two protocol machines over looped ports, polled in turn by one thread.

use crate::pair;
use kfab_core::mem::Pool;
use kfab_core::spi::{Delivery, Port};
use kfab_proto::{Io, Limits, Machine, Message, OpId, Outcome, Payload, PeerId, SendOptions, Started, Want};

/// One machine and what it works with.
struct Side {
    machine: Machine,
    ports: Vec<Box<dyn Port>>,
    pool: Pool,
}

impl Side {
    fn new(port: Box<dyn Port>, identity: u64) -> Side {
        let machine = Machine::new(Limits::default(), identity, false);
        Side { machine, ports: vec![port], pool: Pool::new(Default::default()) }
    }
}

macro_rules! call {
    ($two:ident.$side:ident, $verb:ident $(, $arg:expr)*) => {{
        let s = &mut $two.$side;
        s.machine.$verb(&mut Io { ports: &mut s.ports, now: $two.now, pool: &s.pool } $(, $arg)*)
    }};
}

/// Machines `a` and `b`; `a` knows `b`.
pub struct Two {
    a: Side,
    b: Side,
    to_b: PeerId,
    now: u64,
}

impl Two {
    /// Connected, with one message exchanged.
    ///
    /// # Panics
    /// If they do not find each other.
    pub fn new(delivery: Delivery) -> Two {
        let (a, b) = pair(delivery);
        let (mut a, b) = (Side::new(a, 1), Side::new(b, 2));
        let address = "loop:b".parse().expect("an address");
        let mut io = Io { ports: &mut a.ports, now: 1, pool: &a.pool };
        let to_b = a.machine.peer(&mut io, &address).expect("a peer");
        let mut two = Two { a, b, to_b, now: 1 };
        two.message(b"hello");
        two
    }

    /// A round of both; time goes on by a microsecond.
    pub fn poll(&mut self) {
        self.now += 1000;
        call!(self.a, poll);
        call!(self.b, poll);
    }

    /// Sends from `a` to `b`, unwatched.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn send(&mut self, bytes: &[u8], tag: Option<u64>) {
        let options = SendOptions { tag, ..SendOptions::default() };
        let to = self.to_b;
        if let Some(op) = call!(self.a, send, to, Payload::Bytes(bytes), options).expect("a send") {
            call!(self.a, detach, op);
        }
    }

    /// Posts a receive at `b`.
    ///
    /// # Panics
    /// If the machine refuses.
    pub fn recv(&mut self, tag: Option<u64>) -> Started {
        let want = Want { tag: tag.map(|t| (t, 0)), from: None };
        call!(self.b, recv, want, None).expect("a receive")
    }

    /// The message of a receive.
    ///
    /// # Panics
    /// If it ends badly, or not within a million rounds.
    pub fn ended(&mut self, started: Started) -> Message {
        let op: OpId = match started {
            Started::Done(Outcome::Message(m)) => return m,
            Started::Done(other) => panic!("{other:?}"),
            Started::Pending(op) => op,
        };
        for _ in 0..1_000_000 {
            self.poll();
            match self.b.machine.take(op) {
                Some(Ok(Outcome::Message(m))) => return m,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        panic!("no message")
    }

    /// One message from `a` to `b`, with a receive posted before.
    pub fn message(&mut self, bytes: &[u8]) -> Message {
        let r = self.recv(None);
        self.send(bytes, None);
        self.ended(r)
    }

    /// Messages that wait at `b` for a receive.
    pub fn waiting(&mut self) -> usize {
        self.b.machine.stats().unexpected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_whatever_the_promise() {
        for delivery in [Delivery::Datagram, Delivery::Connection, Delivery::Process] {
            let mut two = Two::new(delivery);
            for len in [0, 8, 1000, 10_000, 300_000] {
                let want: Vec<u8> = (0..len).map(|i| i as u8).collect();
                assert_eq!(two.message(&want).bytes(), &want[..], "{len} bytes, {delivery:?}");
            }
            two.send(b"x", Some(3));
            two.poll();
            two.poll();
            assert_eq!(two.waiting(), 1);
            let r = two.recv(Some(3));
            assert_eq!(two.ended(r).tag, Some(3));
        }
    }
}
