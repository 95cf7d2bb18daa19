//! A row of small messages on the short way: they are handed over one after the other, and the books are right whenever somebody looks.

mod end;

use end::End;
use kfab_core::spi::Delivery;
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

const STEP: u64 = 20_000;

impl End {
    /// The next untagged message, if it comes by the short way before it is posted.
    fn next(&mut self, now: u64) -> Option<u8> {
        let mut out = Direct::EMPTY;
        let here = self.with(now, |m, io| m.recv_now(io, &Want::default(), &mut out));
        here.then(|| out.bytes()[0])
    }

    fn send(&mut self, now: u64, to: PeerId, byte: u8, tag: Option<u64>) {
        let options = SendOptions { tag, ..SendOptions::default() };
        let gone = self.with(now, |m, io| m.send_now(io, to, &[byte; 8], false, &options));
        assert!(gone, "message {byte} went the long way");
    }

    /// Posts a receive without looking.
    fn post(&mut self, now: u64, tag: Option<(u64, u64)>) -> OpId {
        let want = Want { tag, from: None };
        self.with(now, |m, io| m.post_recv(io, &want, &mut None)).unwrap()
    }

    /// Waits for it on the short way.
    fn wait(&mut self, now: u64, op: OpId) -> u8 {
        let mut out = Direct::EMPTY;
        for _ in 0..4 {
            if self.with(now, |m, io| m.poll_for(io, op, &mut out)) == Polled::Here {
                return out.bytes()[0];
            }
        }
        panic!("nothing came for {op:?}: {:?}", self.machine.stats());
    }
}

/// Two hosts that have spoken to each other, and the name of the second at the first.
struct Two {
    world: World,
    a: End,
    b: End,
    to_b: PeerId,
}

impl Two {
    fn new(delivery: Delivery) -> Two {
        Two::with_limits(delivery, Limits::default())
    }

    fn with_limits(delivery: Delivery, limits: Limits) -> Two {
        let world = World::new(1, WorldConfig::new(delivery));
        let (mut a, b) = (End::new(&world, 0, &[0], limits.clone()), End::new(&world, 1, &[0], limits));
        let to_b = a.with(0, |m, io| m.peer(io, &"sim:1.0".parse().unwrap())).unwrap();
        let sent =
            a.with(0, |m, io| m.send(io, to_b, Payload::Bytes(b"hello"), SendOptions::default())).unwrap();
        let mut two = Two { world, a, b, to_b };
        for _ in 0..1000 {
            two.step();
        }
        assert!(sent.is_none_or(|op| two.a.machine.take(op).is_some_and(|r| r.is_ok())));
        let mut out = Direct::EMPTY;
        let now = two.world.now();
        assert!(
            two.b.with(now, |m, io| m.recv_now(io, &Want::default(), &mut out)) && out.bytes() == b"hello"
        );
        (0..200).for_each(|_| two.step());
        two
    }

    fn step(&mut self) {
        let now = self.world.now();
        self.a.with(now, |m, io| m.poll(io));
        self.b.with(now, |m, io| m.poll(io));
        self.world.advance(STEP);
    }

    /// `a` sends a row, which arrives and lies in `b`'s port.
    fn row(&mut self, n: u8) {
        for i in 0..n {
            let now = self.world.now();
            self.a.send(now, self.to_b, i, None);
            self.a.with(now, |m, io| m.poll(io));
        }
        // Less than it takes until a timer is due.
        for _ in 0..4 {
            let now = self.world.now();
            self.a.with(now, |m, io| m.poll(io));
            self.world.advance(STEP);
        }
    }

    /// `b` takes the row, past its poll.
    fn receive(&mut self, n: u8) {
        let now = self.world.now();
        for i in 0..n {
            assert_eq!(self.b.next(now), Some(i));
        }
    }

    /// `b` sends one back.
    fn answer(&mut self) {
        let (now, to_a) = (self.world.now(), *self.b.machine.peers().first().unwrap());
        self.b.send(now, to_a, 0xaa, None);
        self.b.with(now, |_, io| io.ports[0].flush());
    }
}

#[test]
fn what_was_handed_over_is_counted_when_somebody_looks() {
    for delivery in [Delivery::Process, Delivery::Connection] {
        let mut two = Two::new(delivery);
        let before = two.b.machine.stats().totals;
        two.row(10);
        let now = two.world.now();
        for i in 0..7 {
            assert_eq!(two.b.next(now), Some(i), "{delivery:?}");
        }
        let after = two.b.machine.stats().totals;
        assert_eq!(after.rx_messages - before.rx_messages, 7, "{delivery:?}");
        assert_eq!(after.rx_bytes - before.rx_bytes, 7 * 8, "{delivery:?}");
        for i in 7..10 {
            assert_eq!(two.b.next(now), Some(i), "{delivery:?}");
        }
        assert_eq!(two.b.next(now), None);
    }
}

#[test]
fn a_row_that_nobody_answers_is_acknowledged_in_time() {
    for answer_before in [false, true] {
        let mut two = Two::new(Delivery::Connection);
        two.row(6);
        two.receive(6);
        if answer_before {
            two.answer();
            two.row(6);
            two.receive(6);
        }
        assert_eq!(two.a.machine.stats().unacked, 6);
        // Long before anybody would ask.
        let by = two.world.now() + Limits::default().probe_after.as_nanos() as u64 / 10;
        while two.a.machine.stats().unacked > 0 {
            assert!(two.world.now() < by, "{answer_before} {:?}", two.a.machine.stats());
            two.step();
        }
        let info = two.a.machine.peer_info(two.to_b).unwrap();
        assert_eq!(info.credits, info.credit_limit, "the credit came back with it");
    }
}

#[test]
fn an_answer_tells_what_was_handed_over_before_it() {
    let mut two = Two::new(Delivery::Connection);
    two.row(6);
    two.receive(6);
    two.answer();
    // `b` is not looked at again: nothing but the answer can have told.
    for _ in 0..20 {
        two.world.advance(STEP);
        let now = two.world.now();
        two.a.with(now, |m, io| m.poll(io));
    }
    let info = two.a.machine.peer_info(two.to_b).unwrap();
    assert_eq!((two.a.machine.stats().unacked, info.credits), (0, info.credit_limit));
}

#[test]
fn receives_of_both_kinds_are_over_when_they_are_served() {
    for delivery in [Delivery::Process, Delivery::Connection] {
        let mut two = Two::new(delivery);
        let now = two.world.now();
        let [first, second] = [None, None].map(|tag| two.b.post(now, tag));
        let tagged = two.b.post(now, Some((7, 0)));
        for (byte, tag) in [(0, None), (1, None), (2, Some(7)), (3, None)] {
            two.a.send(now, two.to_b, byte, tag);
            two.a.with(now, |m, io| m.poll(io));
        }
        two.row(0);
        let now = two.world.now();
        // No call comes between the second and the tagged one.
        assert_eq!([first, second, tagged].map(|op| two.b.wait(now, op)), [0, 1, 2]);
        let s = two.b.machine.stats();
        assert_eq!((s.ops, s.posted), (0, 0), "{delivery:?}");
        assert_eq!(two.b.next(now), Some(3));
    }
}

#[test]
fn who_always_finds_a_message_is_sent_to_look_at_everything_now_and_then() {
    // With so few unacknowledged almost every message makes its receiver send something.
    for max_unacked in [4, 16, 4096] {
        let mut two = Two::with_limits(Delivery::Process, Limits { max_unacked, ..Limits::default() });
        let (mut in_a_row, mut refused) = (0, 0);
        while refused < 2 {
            two.row(1);
            let now = two.world.now();
            match two.b.next(now) {
                Some(_) => in_a_row += 1,
                None => {
                    (in_a_row, refused) = (0, refused + 1);
                    two.b.with(now, |m, io| m.poll(io));
                    assert_eq!(two.b.next(now), Some(0));
                }
            }
            assert!(in_a_row < 5000, "{max_unacked} unacknowledged: the way is never closed");
            two.a.with(now, |m, io| m.poll(io));
        }
    }
}
