//! Client and server machines in virtual time over a network that loses, doubles and delays packets: every call ends once, none
//! runs twice. A failing seed is printed; `KFAB_SEEDS` says how many seeds to run.

use super::body::Body;
use super::client::{ClientLimits, Core, Replay, Send, Start};
use super::error::{Kind, Result};
use super::faults::{Blow, Dice, Faults, split_mix};
use super::outbox::Packet;
use super::server::{Arrival, Clients, Desk, Post, Run, ServerLimits, Ticket};
use super::session::Answer;
use super::wire::Status;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

const MS: u64 = 1_000_000;

/// Who gets a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Server,
    Client(usize),
}

/// Packets under way.
struct Net {
    now: u64,
    dice: Option<Dice>,
    seed: u64,
    under_way: Vec<(u64, To, Vec<u8>)>,
    /// Where each client is, by the bytes of its id.
    from: HashMap<Vec<u8>, usize>,
}

impl Net {
    fn push(&mut self, to: To, packet: Packet<'_>) {
        let bytes = match packet {
            Packet::Whole(b) => b.to_vec(),
            Packet::Tailed(b, tail) => [b, &tail[..]].concat(),
        };
        let (copies, late) = match self.dice.as_mut().map_or(Blow::None, Dice::throw) {
            Blow::Drop => (0, 0),
            Blow::Duplicate => (2, 0),
            Blow::Delay => (1, self.dice.as_ref().map_or(0, Dice::late_ns)),
            Blow::None => (1, 0),
        };
        for _ in 0..copies {
            let jitter = split_mix(&mut self.seed) % MS;
            self.under_way.push((self.now + 50_000 + jitter + late, to, bytes.clone()));
        }
    }
}

impl Post for Net {
    type To = usize;

    fn post(&mut self, to: &usize, _: u64, packet: Packet<'_>) {
        self.push(To::Client(*to), packet);
    }
}

impl Send for Net {
    fn send(&mut self, _: u64, packet: Packet<'_>) {
        self.push(To::Server, packet);
    }
}

/// Who runs the calls.
struct Hands {
    now: u64,
    seed: u64,
    /// Handlers at work: when they end, and what they answer.
    work: Vec<(u64, Ticket, u64)>,
    /// How often each call ran, by number.
    ran: HashMap<u64, u32>,
    /// Some handlers take longer than the clients' patience.
    slow: bool,
    /// How long all take, if not a random time.
    takes: Option<u64>,
}

impl Run<usize> for Hands {
    fn is_free(&self, _: bool) -> bool {
        !split_mix(&mut (self.seed ^ self.now)).is_multiple_of(4)
    }

    fn run(&mut self, a: Arrival, _: &usize) -> Option<(Answer, u32)> {
        let number = u64::from_le_bytes(a.body[..8].try_into().unwrap());
        *self.ran.entry(number).or_default() += 1;
        if number % 3 == 1 && self.takes.is_none() {
            return Some((answer_to(number), 100));
        }
        let slow = self.slow && number.is_multiple_of(97);
        let some = split_mix(&mut self.seed) % if slow { 80 * MS } else { MS };
        let takes = self.takes.unwrap_or(some);
        self.work.push((self.now + takes, a.ticket, number));
        None
    }
}

fn answer_to(number: u64) -> Answer {
    Answer { status: Status::Ok, arg: 0, body: Body::copy(&(number * 3).to_le_bytes()) }
}

struct Play {
    net: Net,
    clients: Vec<Core>,
    desk: Desk<Net>,
    limits: ServerLimits,
    hands: Hands,
}

impl Play {
    fn new(seed: u64, clients: usize, faults: Faults, limits: ServerLimits) -> Play {
        let dice = Dice::new(Faults { seed, ..faults }, 0);
        let from = (0..clients).map(|c| ((c as u64 + 1).to_le_bytes().to_vec(), c)).collect();
        let net = Net { now: 0, dice, seed, under_way: Vec::new(), from };
        let desk = Desk::new(Arc::new(Clients::new(seed << 20 | 1 << 16, limits.clone())));
        let patience = ClientLimits {
            patience_min: Duration::from_millis(20),
            patience_max: Duration::from_millis(500),
            slots: 32,
            ..Default::default()
        };
        let clients = (0..clients).map(|c| Core::new(c as u64 + 1, patience.clone())).collect();
        let hands = Hands { now: 0, seed, work: Vec::new(), ran: HashMap::new(), slow: true, takes: None };
        Play { net, clients, desk, limits, hands }
    }

    /// The server is replaced by another incarnation: it knows nobody, and its handlers are gone.
    fn restart(&mut self, incarnation: u64) {
        self.desk = Desk::new(Arc::new(Clients::new(incarnation << 16, self.limits.clone())));
        self.hands.work.clear();
        self.net.under_way.clear();
        for c in &mut self.clients {
            c.link_lost();
        }
    }

    fn start(&mut self, client: usize, number: u64, replay: Replay) -> Result<usize> {
        let start = Start {
            portal: 1,
            opcode: 0,
            high: number.is_multiple_of(50),
            replay,
            deadline: self.net.now + 60_000 * MS,
            extend_to: self.net.now + 60_000 * MS,
            extra: None,
            // Some are large enough for a packet of their own.
            body: Body::from(
                [&number.to_le_bytes()[..], &vec![1; if number.is_multiple_of(40) { 3000 } else { 8 }]]
                    .concat(),
            ),
        };
        self.clients[client].start(self.net.now, start, &mut self.net)
    }

    /// Time goes on to the next thing that happens.
    fn step(&mut self) {
        let at = |i: &(u64, To, Vec<u8>)| i.0;
        let packet = self.net.under_way.iter().map(at).min();
        let work = self.hands.work.iter().map(|w| w.0).min();
        let timers = self.clients.iter().map(Core::due).min();
        let next = [packet, work, timers].into_iter().flatten().min().unwrap_or(self.net.now);
        self.net.now = self.net.now.max(next.min(self.net.now + 5 * MS));
        let now = self.net.now;
        self.hands.now = now;
        for (_, to, bytes) in self.net.under_way.extract_if(.., |i| i.0 <= now).collect::<Vec<_>>() {
            match to {
                To::Client(c) => {
                    let share = |at: usize| Some(Body::copy(&bytes[at..]));
                    self.clients[c].receive(|| now, &bytes, share, &mut self.net);
                }
                To::Server => {
                    let from = self.net.from[&bytes[8..16]];
                    self.desk.receive(now, |_| from, bytes, &mut self.hands, &mut self.net);
                }
            }
        }
        self.serve(now);
        for client in &mut self.clients {
            if client.is_down() && client.under_way() > 0 {
                client.connect(now, &mut self.net);
            }
            client.tick(now, &mut self.net);
            client.flush(&mut self.net);
        }
    }

    fn serve(&mut self, now: u64) {
        while let Some(call) = self.desk.next_call() {
            let (ticket, to) = (call.ticket, call.ticket.client as usize - 1);
            if let Some((answer, estimate_us)) = self.hands.run(call, &to) {
                self.desk.answer(ticket, answer, estimate_us, &mut self.net);
            }
        }
        for t in self.desk.abandoned().into_iter().map(|a| a.ticket) {
            self.hands.work.retain(|w| w.1 != t);
        }
        for (_, t, number) in self.hands.work.extract_if(.., |w| w.0 <= now).collect::<Vec<_>>() {
            self.desk.answer(t, answer_to(number), 100, &mut self.net);
        }
        self.desk.flush(&mut self.net);
    }
}

/// `total` calls of two clients, at most 64 under way each; what they ended with, by number.
fn run(
    play: &mut Play,
    total: u64,
    replay: Replay,
    mut each: impl FnMut(&mut Play, u64),
) -> HashMap<u64, Result<Body>> {
    let mut under_way: Vec<(usize, usize, u64)> = Vec::new();
    let (mut next, mut ended) = (0, HashMap::new());
    let mut steps = 0;
    while ended.len() < total as usize {
        steps += 1;
        assert!(steps < 100 * total + 100_000, "no end: {} of {total}", ended.len());
        while next < total && under_way.len() < 128 {
            let client = (next % play.clients.len() as u64) as usize;
            let key = play.start(client, next, replay).unwrap();
            under_way.push((client, key, next));
            next += 1;
            each(play, next);
        }
        play.step();
        under_way.retain(|&(client, key, number)| match play.clients[client].take(key) {
            Some(result) => {
                assert!(ended.insert(number, result).is_none(), "call {number} ended twice");
                false
            }
            None => true,
        });
    }
    ended
}

fn seeds() -> u64 {
    std::env::var("KFAB_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(4)
}

fn lossy() -> Faults {
    Faults { drop: 0.1, duplicate: 0.05, delay: 0.1, late: Duration::from_millis(40), seed: 0 }
}

#[test]
fn ten_thousand_calls_over_a_lossy_network_end_once_and_run_once() {
    for seed in 1..=seeds() {
        let total = if seed == 1 { 10_000 } else { 1500 };
        let mut play = Play::new(seed, 2, lossy(), ServerLimits { slots: 64, ..Default::default() });
        let ended = run(&mut play, total, Replay::Never, |_, _| {});
        for (number, result) in ended {
            let body = result.unwrap_or_else(|e| panic!("seed {seed}, call {number}: {e}"));
            assert_eq!(*body, (number * 3).to_le_bytes(), "seed {seed}");
            assert_eq!(
                play.hands.ran[&number], 1,
                "seed {seed}: call {number} ran {} times",
                play.hands.ran[&number]
            );
        }
        let counts = play.desk.counts();
        assert!(counts.answered_again > 0 && counts.still_running > 0, "seed {seed}: {counts:?}");
        assert_eq!(counts.damaged, 0);
    }
}

/// The twin: without faults nothing is sent again.
#[test]
fn a_sound_network_needs_no_resends() {
    let mut play = Play::new(9, 2, Faults::default(), ServerLimits { slots: 64, ..Default::default() });
    play.hands.slow = false;
    let ended = run(&mut play, 2000, Replay::Never, |_, _| {});
    assert!(ended.values().all(Result::is_ok));
    assert_eq!((play.desk.counts().answered_again, play.desk.counts().stale), (0, 0));
    assert!(play.hands.ran.values().all(|n| *n == 1));
}

#[test]
fn overload_delays_calls_and_loses_none() {
    for seed in 1..=seeds() {
        let limits = ServerLimits { slots: 64, queue: 4, queue_high: 2, ..Default::default() };
        let mut play = Play::new(seed, 2, lossy(), limits);
        let ended = run(&mut play, 600, Replay::Never, |_, _| {});
        assert!(ended.values().all(Result::is_ok), "seed {seed}");
        assert!(play.hands.ran.values().all(|n| *n == 1), "seed {seed}");
        assert!(play.desk.counts().retry_after > 0, "seed {seed}");
    }
}

#[test]
fn a_call_that_a_restart_makes_uncertain_fails_and_never_runs_twice() {
    // Enough room, and so little that calls are refused, some of whose other tries run.
    let little = ServerLimits { slots: 64, queue: 4, queue_high: 2, ..Default::default() };
    for (limits, every) in [(ServerLimits { slots: 64, ..Default::default() }, 400), (little, 100)] {
        for seed in 1..=seeds() {
            let mut play = Play::new(seed, 2, lossy(), limits.clone());
            let ended = run(&mut play, 1500, Replay::Never, |play, n| {
                if n % every == 0 {
                    play.restart(n);
                }
            });
            let mut restarted = 0;
            for (number, result) in ended {
                let ran = play.hands.ran.get(&number).copied().unwrap_or(0);
                assert!(ran <= 1, "seed {seed}: call {number} ran {ran} times");
                match result {
                    Ok(_) => assert_eq!(ran, 1),
                    Err(e) if e.kind() == Kind::Restarted => restarted += 1,
                    Err(e) => panic!("seed {seed}, call {number}: {e}"),
                }
            }
            assert!(restarted > 0, "seed {seed}");
        }
    }
}

#[test]
fn calls_that_may_be_replayed_survive_restarts() {
    for seed in 1..=seeds() {
        let mut play = Play::new(seed, 2, lossy(), ServerLimits { slots: 64, ..Default::default() });
        let ended = run(&mut play, 1500, Replay::Always, |play, n| {
            if n % 400 == 0 {
                play.restart(n);
            }
        });
        for (number, result) in ended {
            assert_eq!(*result.unwrap(), (number * 3).to_le_bytes(), "seed {seed}");
        }
    }
}

#[test]
fn a_client_that_was_forgotten_is_welcomed_again_and_its_calls_run() {
    let limits = ServerLimits { slots: 64, linger: Duration::from_millis(100), ..Default::default() };
    let mut play = Play::new(5, 2, Faults::default(), limits);
    assert!(run(&mut play, 10, Replay::Never, |_, _| {}).values().all(Result::is_ok));
    play.net.now += 1000 * MS;
    let now = play.net.now;
    play.desk.sweep(now);
    play.hands.ran.clear();
    assert!(run(&mut play, 100, Replay::Never, |_, _| {}).values().all(Result::is_ok));
    assert!(play.hands.ran.values().all(|n| *n == 1));
    assert!(play.desk.counts().strangers > 0);
}

/// A call counts from the first look at the clock after it began, and a place that is used again does not count twice.
#[test]
fn a_call_that_began_before_the_clock_was_looked_at_counts_from_then() {
    let mut play = Play::new(5, 1, Faults::default(), ServerLimits::default());
    let Play { net, clients, .. } = &mut play;
    let start = || Start {
        portal: 1,
        opcode: 0,
        high: false,
        replay: Replay::Never,
        deadline: 10 * MS,
        extend_to: 10 * MS,
        extra: None,
        body: Body::EMPTY,
    };
    let key = clients[0].start(0, start(), net).unwrap();
    clients[0].began_later(key, 5 * MS);
    clients[0].began_later(key, 5 * MS);
    clients[0].tick(14 * MS, net);
    assert!(!clients[0].has_ended(key));
    clients[0].tick(15 * MS, net);
    assert!(clients[0].take(key).unwrap().is_err());
}

/// One call that may take 100 ms, or with early replies up to 1000 ms, of a handler that takes this long. With `early` the server says
/// every 50 ms that it is still at it, for 80 ms more. What comes of the call, and how often it was sent again.
fn call_of(takes: u64, early: bool, faults: Faults) -> (Result<Body>, u64, u64) {
    let mut play = Play::new(7, 1, faults, ServerLimits::default());
    play.hands.takes = Some(takes);
    // Until the greeting is over nothing counts.
    let warm = play.start(0, 3, Replay::Never).unwrap();
    while play.clients[0].take(warm).is_none() {
        play.step();
    }
    let now = play.net.now;
    let start = Start {
        portal: 1,
        opcode: 0,
        high: false,
        replay: Replay::Never,
        deadline: now + 100 * MS,
        extend_to: now + 1000 * MS,
        extra: None,
        body: Body::copy(&6u64.to_le_bytes()),
    };
    let key = play.clients[0].start(now, start, &mut play.net).unwrap();
    let (mut next, end) = (now + 50 * MS, now + 10_000 * MS);
    loop {
        play.step();
        if let Some(result) = play.clients[0].take(key) {
            return (result, play.net.now - now, play.clients[0].counts.early);
        }
        assert!(play.net.now < end, "the call does not end");
        if early && play.net.now >= next {
            next += 50 * MS;
            for (_, ticket, _) in play.hands.work.clone() {
                play.desk.early(ticket, 80_000, 100, &mut play.net);
            }
            play.desk.flush(&mut play.net);
        }
    }
}

#[test]
fn early_replies_extend_a_calls_time_as_far_as_it_says() {
    // Without them its own time counts.
    let (result, took, _) = call_of(600 * MS, false, Faults::default());
    assert_eq!(result.unwrap_err().kind(), Kind::TimedOut);
    assert!((100 * MS..120 * MS).contains(&took), "{took}");
    let (result, took, early) = call_of(600 * MS, true, Faults::default());
    assert_eq!(*result.unwrap(), 18u64.to_le_bytes());
    assert!((600 * MS..620 * MS).contains(&took) && early >= 10, "{took}, {early}");
    // Nor does a server that is at it for ever keep a client for ever.
    let (result, took, _) = call_of(5000 * MS, true, Faults::default());
    assert_eq!(result.unwrap_err().kind(), Kind::TimedOut);
    assert!((1000 * MS..1020 * MS).contains(&took), "{took}");
}

/// What they say is doubled, delayed and partly lost: the call ends once all the same.
#[test]
fn early_replies_over_a_lossy_network() {
    let faults = Faults { drop: 0.05, late: Duration::from_millis(10), ..lossy() };
    let (result, took, early) = call_of(600 * MS, true, faults);
    assert_eq!(*result.unwrap(), 18u64.to_le_bytes());
    assert!(took >= 600 * MS && early > 0, "{took}, {early}");
}
