//! Random traffic and random faults, over many seeds, against a naive model of what each promise allows.

mod common;
use common::*;
use kfab_core::mem::{Buffer, Landing, Pool};
use kfab_core::spi::{
    Body, Delivery, DownReason, Frame, Inline, RemoteKey, Rights, Rma, RmaStarted, RmaToken,
};
use kfab_sim::{Faults, Path, World, WorldConfig};

const US: u64 = 1_000;

/// A small source of chance for the test itself.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// One connection under faults; at the end what arrived is what the promise allows.
fn one(seed: u64, delivery: Delivery) {
    let mut dice = Dice(seed);
    let config = WorldConfig {
        trace: 300,
        queue_frames: 1 + dice.below(40) as usize,
        inbox_frames: 64,
        break_after_ns: 2_000 * US,
        ..WorldConfig::new(delivery)
    };
    let world = World::new(seed, config);
    let (mut a, mut b) = (Node::new(world.port(1, 0)), Node::new(world.port(2, 0)));
    let (ca, cb) = connect(&world, &mut a, &mut b);
    let faults = Faults { loss: 0.1, duplicate: 0.1, reorder: 0.2, ..Faults::default() };
    world.set_faults(Path::ALL, faults);
    let mut sent = 0u32;
    for _ in 0..150 {
        match dice.below(20) {
            0 => world.cut(Path::one_way(1, 2)),
            1..=3 => world.heal_all(),
            4 => world.stall_for(2, dice.below(400) * US),
            5 if dice.below(20) == 0 => world.rail_down(0),
            6 if dice.below(40) == 0 => world.crash(2),
            _ => {
                for _ in 0..dice.below(8) {
                    if a.down.is_empty() && a.send(ca, sent, dice.below(200) as usize) {
                        sent += 1;
                    }
                }
            }
        }
        run_for(&world, &mut [&mut a, &mut b], dice.below(60) * US);
    }
    world.heal_all();
    world.resume(2);
    run_for(&world, &mut [&mut a, &mut b], 5_000 * US);
    a.port().close(ca);
    run_for(&world, &mut [&mut a, &mut b], 100_000 * US);
    judge(&world, seed, delivery, &a, &b, sent);
    assert!(b.down.iter().all(|d| d.0 == cb));
}

fn judge(world: &World, seed: u64, delivery: Delivery, a: &Node, b: &Node, sent: u32) {
    let log = || format!("seed {seed} {delivery:?}\n{}", world.trace().join("\n"));
    a.check_bodies();
    b.check_bodies();
    let got = b.numbers();
    assert!(got.iter().all(|n| *n < sent), "{}", log());
    let closed = a.down.first().is_some_and(|d| d.1 == DownReason::Closed);
    match delivery {
        Delivery::Datagram => {
            let mut sorted = got.clone();
            sorted.sort_unstable();
            assert!(sorted.windows(3).all(|w| w[0] != w[2]), "more than two copies: {}", log());
        }
        _ => {
            assert_eq!(got, (0..got.len() as u32).collect::<Vec<_>>(), "not a prefix in order: {}", log());
            if closed && b.down.first().is_some_and(|d| d.1 == DownReason::Closed) {
                assert_eq!(
                    got.len(),
                    sent as usize,
                    "closed in good order, but frames are missing: {}",
                    log()
                );
            }
        }
    }
    let s = world.stats();
    let known = s.arrived + s.lost + s.overflowed;
    assert!(known <= s.posted + s.duplicated, "{s:?} {}", log());
    assert_eq!(a.down.len(), 1, "{}", log());
    assert_eq!(world.violations(), Vec::<String>::new(), "{}", log());
}

#[test]
fn what_arrives_is_what_the_promise_allows() {
    for seed in 0..400 {
        one(seed, Delivery::Datagram);
        one(seed, Delivery::Connection);
        one(seed, Delivery::Process);
    }
}

/// Random one-sided operations against a plain array.
fn rma(seed: u64, delivery: Delivery) {
    const LEN: usize = 4096;
    let world = World::new(seed, WorldConfig { trace: 100, ..WorldConfig::new(delivery).with_rma() });
    world.set_faults(Path::ALL, Faults { loss: 0.1, duplicate: 0.2, reorder: 0.3, ..Faults::default() });
    let (mut a, mut b) = (Node::new(world.port(1, 0)), Node::new(world.port(2, 0)));
    let (ca, _) = connect(&world, &mut a, &mut b);
    let pool = Pool::new(Default::default());
    let window = pool.alloc_window(LEN).unwrap();
    let exposure = b.port().expose(&window.as_source(), Rights::READ | Rights::WRITE).unwrap();
    let mut dice = Dice(seed);
    let mut model = vec![0u8; LEN];
    for i in 0..60u64 {
        let (at, len) = (dice.below(LEN as u64) as usize, 1 + dice.below(600) as usize);
        let inside = at + len <= LEN;
        let write = dice.below(2) == 0;
        let data: Vec<u8> = (0..len).map(|_| dice.below(256) as u8).collect();
        let (ok, read) =
            do_rma(&world, &mut a, &mut b, ca, exposure.key, i, at as u64, write.then_some(&data), len);
        assert_eq!(ok, inside, "seed {seed}: {at}+{len}");
        if inside && write {
            model[at..at + len].copy_from_slice(&data);
        } else if inside {
            assert_eq!(read.unwrap(), model[at..at + len], "seed {seed}: read {at}+{len}");
        }
    }
    let mut now = vec![0; LEN];
    window.read(0, &mut now);
    assert_eq!(now, model);
    b.port().revoke(exposure);
    let before = world.stats().rma;
    assert!(
        !do_rma(&world, &mut a, &mut b, ca, exposure.key, 99, 0, None, 8).0,
        "revoked, and still readable"
    );
    assert_eq!(world.stats().rma, before);
}

/// One operation to its end: whether it worked, and the bytes read.
#[expect(clippy::too_many_arguments, reason = "a test's helper")]
fn do_rma(
    world: &World,
    a: &mut Node,
    b: &mut Node,
    conn: kfab_core::spi::Conn,
    key: RemoteKey,
    token: u64,
    offset: u64,
    data: Option<&Vec<u8>>,
    len: usize,
) -> (bool, Option<Vec<u8>>) {
    let op = match data {
        Some(d) => Rma::Write { source: Buffer::adopt(d.clone()).as_source(), key, offset },
        None => Rma::Read { landing: Landing::whole(Buffer::adopt(vec![0; len])).unwrap(), key, offset },
    };
    match a.port().rma(conn, op, RmaToken(token)) {
        RmaStarted::Done(l) => (true, l.map(|l| l.into_buffer().unwrap().to_vec())),
        RmaStarted::Failed(..) => (false, None),
        RmaStarted::Pending => {
            let before = a.rma.len();
            run_until(world, &mut [a, b], 1_000_000 * US, |n| n[0].rma.len() > before);
            let (t, bytes, ok) = a.rma.pop().unwrap();
            assert_eq!(t, token);
            (ok, bytes)
        }
    }
}

#[test]
fn one_sided_access_agrees_with_an_array() {
    for seed in 0..60 {
        for delivery in [Delivery::Datagram, Delivery::Connection, Delivery::Process] {
            rma(seed, delivery);
        }
    }
}

#[test]
fn nothing_of_the_senders_memory_stays_behind() {
    for delivery in [Delivery::Datagram, Delivery::Connection, Delivery::Process] {
        for crash in [false, true] {
            let world = World::new(3, WorldConfig::new(delivery));
            let pool = Pool::new(Default::default());
            let (mut a, mut b) = (Node::new(world.port(1, 0)), Node::new(world.port(2, 0)));
            let (ca, _) = connect(&world, &mut a, &mut b);
            let data = pool.copy_from(&[7; 5000]).unwrap();
            let parts = [data.as_source()];
            let f = Frame { header: [1; 16], inline: Inline::EMPTY, body: Body::Owned(&parts), more: false };
            assert_eq!(a.port().post(ca, &[f, f, f]), 3);
            drop((data, parts));
            assert!(pool.stats().in_use > 0);
            if crash {
                world.crash(1);
            }
            a.port = None;
            assert_eq!(pool.stats().in_use, 0, "{delivery:?}");
            run_for(&world, &mut [&mut b], 100_000 * US);
            if !crash || delivery == Delivery::Process {
                assert_eq!(b.down.len(), 1, "{delivery:?}");
            }
        }
    }
}
