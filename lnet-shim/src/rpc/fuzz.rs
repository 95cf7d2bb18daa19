//! Entry point for fuzzing: whatever a hostile peer sends, to the server's machine and to the client's. Not for users.

use super::body::Body;
use super::client::{ClientLimits, Core, Replay, Send, Start};
use super::outbox::Packet;
use super::server::{Arrival, Clients, Desk, Post, Run, ServerLimits};
use super::session::Answer;
use super::wire::{CallId, HEAD, Head, Kind, Status};
use std::collections::HashSet;
use std::sync::Arc;

const CLIENT: u64 = 0x0102_0304_0506_0708;

/// Keeps the last packet, to learn the session from.
#[derive(Default)]
struct Sink(Vec<u8>);

impl Sink {
    fn keep(&mut self, packet: &Packet<'_>) {
        let (Packet::Whole(bytes) | Packet::Tailed(bytes, _)) = packet;
        self.0 = bytes.to_vec();
    }
}

impl Post for Sink {
    type To = ();

    fn post(&mut self, (): &(), _: u64, packet: Packet<'_>) {
        self.keep(&packet);
    }
}

impl Send for Sink {
    fn send(&mut self, _: u64, packet: Packet<'_>) {
        self.keep(&packet);
    }
}

/// Runs calls, of every other packet at once.
#[derive(Default)]
struct Hands {
    packet: usize,
    ran: HashSet<CallId>,
}

impl Run<()> for Hands {
    fn is_free(&self, _: bool) -> bool {
        !self.packet.is_multiple_of(2)
    }

    fn run(&mut self, a: Arrival, (): &()) -> Option<(Answer, u32)> {
        assert!(a.ticket.client != CLIENT || self.ran.insert(a.ticket.id), "{:?} began twice", a.ticket.id);
        let answer = Answer { status: Status::Ok, arg: 0, body: a.body };
        (!self.packet.is_multiple_of(3)).then_some((answer, 7))
    }
}

/// Packets of `data`: each begins with its length in two bytes. Where the first bit is set, the head is made good, so that the
/// records behind it are looked at.
fn packets(data: &[u8], client: u64, session: u64, kinds: &[Kind]) -> Vec<Vec<u8>> {
    let mut rest = data;
    let mut all = Vec::new();
    while let Some((&[a, b], after)) = rest.split_first_chunk::<2>() {
        let len = (usize::from(a & 0x7f) << 8 | usize::from(b)).min(after.len());
        let (packet, after) = after.split_at(len);
        let mut packet = packet.to_vec();
        if a & 0x80 != 0 && packet.len() >= HEAD {
            let kind = kinds[usize::from(packet[1]) % kinds.len()];
            let count = u16::from_le_bytes([packet[2], packet[3]]);
            packet[..HEAD].copy_from_slice(&Head { kind, count, client, session }.encode());
        }
        all.push(packet);
        rest = after;
    }
    all
}

/// The session number of the last packet that was sent.
fn session_of(sink: &Sink) -> u64 {
    Head::decode(&sink.0).map_or(0, |(head, _)| head.session)
}

/// A hostile client.
pub fn fuzz_server(data: &[u8]) {
    let limits = ServerLimits { queue: 8, slots: 16, ..Default::default() };
    let mut desk = Desk::new(Arc::new(Clients::new(1 << 20, limits)));
    let mut sink = Sink::default();
    let hello = Head { kind: Kind::Hello, count: 0, client: CLIENT, session: 0 }.encode();
    let mut hands = Hands::default();
    desk.receive(1, |_| (), hello.to_vec(), &mut hands, &mut sink);
    let session = session_of(&sink);
    let kinds = [Kind::Calls, Kind::Calls, Kind::Cancel, Kind::Done, Kind::Hello];
    for (at, packet) in packets(data, CLIENT, session, &kinds).into_iter().enumerate() {
        hands.packet = at;
        desk.receive(at as u64 * 1000, |_| (), packet, &mut hands, &mut sink);
        assert!(desk.queued() <= 8 + 256);
        while let Some(a) = desk.next_call() {
            let ticket = a.ticket;
            if let Some((answer, estimate_us)) = hands.run(a, &()) {
                desk.answer(ticket, answer, estimate_us, &mut sink);
            }
        }
        desk.abandoned();
        desk.flush(&mut sink);
    }
}

/// A hostile server.
pub fn fuzz_client(data: &[u8]) {
    let mut core = Core::new(CLIENT, ClientLimits { slots: 16, ..Default::default() });
    let mut sink = Sink::default();
    let mut under_way = Vec::new();
    for n in 0..40u8 {
        let start = Start {
            portal: n,
            opcode: 1,
            high: n % 4 == 0,
            replay: if n % 2 == 0 { Replay::Always } else { Replay::Never },
            deadline: 1_000_000_000 + u64::from(n),
            extend_to: 2_000_000_000,
            extra: None,
            body: Body::copy(&[n]),
        };
        under_way.extend(core.start(0, start, &mut sink));
    }
    core.connect(1, &mut sink);
    let kinds = [Kind::Welcome, Kind::Replies, Kind::Replies, Kind::Stranger, Kind::Refused];
    let mut ended = 0;
    for (at, packet) in packets(data, CLIENT, 77, &kinds).into_iter().enumerate() {
        let now = at as u64 * 1_000_000;
        core.receive(|| now, &packet, |from| packet.get(from..).map(Body::copy), &mut sink);
        if core.tick(now, &mut sink) || core.is_down() {
            core.connect(now, &mut sink);
        }
        core.flush(&mut sink);
        under_way.retain(|key| {
            core.take(*key).is_none() || {
                ended += 1;
                false
            }
        });
    }
    // Everything ends at its deadline at the latest, extended or not.
    core.tick(3_000_000_000, &mut sink);
    under_way.retain(|key| {
        core.take(*key).is_none() || {
            ended += 1;
            false
        }
    });
    assert!(
        under_way.is_empty() && ended == 40 && core.under_way() == 0,
        "{} calls did not end",
        under_way.len()
    );
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::{calls, replies};
    use super::*;
    use proptest::prelude::*;

    fn framed(packet: &[u8], good: bool) -> Vec<u8> {
        let len = packet.len() as u16 | if good { 0x8000 } else { 0 };
        [&len.to_be_bytes()[..], packet].concat()
    }

    #[test]
    fn good_packets_cut_at_every_length() {
        for whole in [calls(), replies()] {
            for cut in 0..=whole.len() {
                for good in [true, false] {
                    let data =
                        [framed(&whole, good), framed(&whole[..cut], good), framed(&whole, good)].concat();
                    fuzz_server(&data);
                    fuzz_client(&data);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]
        #[test]
        fn damaged_packets(hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12), n in 1usize..5) {
            for whole in [calls(), replies()] {
                let mut data = framed(&whole, true).repeat(n);
                for (at, value) in &hits {
                    let at = at.index(data.len());
                    data[at] = *value;
                }
                fuzz_server(&data);
                fuzz_client(&data);
            }
        }

        #[test]
        fn noise(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_server(&data);
            fuzz_client(&data);
        }
    }
}
