//! A receive whose message breaks on the way waits again, and gets what has come meanwhile.

mod end;

use end::End;
use kfab_core::mem::Buffer;
use kfab_core::spi::{Address, Delivery};
use kfab_proto::*;
use kfab_sim::{World, WorldConfig};

impl End {
    fn send(&mut self, world: &World, bytes: &[u8]) {
        let address: Address = "sim:0.0".parse().unwrap();
        let sent = self.with(world.now(), |m, io| {
            let to = m.peer(io, &address)?;
            m.send(io, to, bytes.into(), SendOptions::default())
        });
        sent.unwrap();
    }
}

fn buffers(a: usize, b: usize) -> Vec<Buffer> {
    vec![Buffer::adopt(vec![0; a]), Buffer::adopt(vec![0; b])]
}

/// Time passes until something is so.
fn until(world: &World, ends: &mut [End], what: &str, so: impl Fn(&mut [End]) -> bool) {
    for _ in 0..1_000_000 {
        for e in ends.iter_mut() {
            e.with(world.now(), |m, io| m.poll(io));
        }
        if so(ends) {
            return;
        }
        world.advance(100_000);
    }
    panic!("{what}: {:?}", ends[0].machine);
}

/// So many hosts, the first of which the others know: hellos have bodies, which may be late too.
fn acquainted(world: &World, n: u32) -> Vec<End> {
    let mut ends: Vec<End> = (0..n).map(|h| End::new(world, h, &[0], Limits::default())).collect();
    for sender in 1..ends.len() {
        ends[sender].send(world, b"hello");
        until(world, &mut ends, "hello", |e| e[0].machine.stats().unexpected == 1);
        ends[0].with(world.now(), |m, io| m.recv(io, Want::default(), None)).unwrap();
    }
    ends
}

/// How the first sender is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// It dies: its connection ends, and with it the body.
    Dies,
    /// It says nothing any more and is given up; its connection, which ends after that, has the body still.
    IsSilent,
}

/// What a receive with this room gets, when the first whose message was for it is lost on the way.
fn second_serves(
    loss: Loss,
    post: impl FnOnce(&mut Machine, &mut Io<'_>) -> kfab_core::Result<Started>,
) -> Vec<u8> {
    let delivery = match loss {
        Loss::Dies => Delivery::Process,
        Loss::IsSilent => Delivery::Connection,
    };
    let late_ns = 200_000_000;
    let world = World::new(1, WorldConfig { late_take: 1.0, late_ns, ..WorldConfig::new(delivery) });
    let mut ends = acquainted(&world, 3);
    let Started::Pending(op) = ends[0].with(world.now(), post).unwrap() else { panic!("nobody has sent") };
    if loss == Loss::IsSilent {
        // Longer than the peer is waited for.
        world.set_late_ns(600_000_000_000);
    }
    ends[1].send(&world, &[1; 4000]);
    until(&world, &mut ends, "the body is on its way", |e| e[0].machine.stats().posted == 0);
    ends[2].send(&world, b"second");
    let dying = ends.remove(1);
    // The body is late; the other message is not, and finds no receive.
    until(&world, &mut ends, "the other message waits", |e| e[0].machine.stats().unexpected == 1);
    match loss {
        Loss::Dies => {
            world.crash(1);
            drop(dying);
        }
        Loss::IsSilent => {
            let address: Address = "sim:1.0".parse().unwrap();
            let lost = ends[0].with(world.now(), |m, io| {
                let to = m.peer(io, &address)?;
                m.send(
                    io,
                    to,
                    b"are you there"[..].into(),
                    SendOptions { delivered: true, ..Default::default() },
                )
            });
            let lost = lost.unwrap().expect("nobody has answered");
            until(&world, &mut ends, "it is given up", |e| e[0].machine.has_ended(lost));
            assert_eq!(ends[0].machine.take(lost).unwrap().unwrap_err().kind(), kfab_core::Kind::PeerLost);
        }
    }
    until(&world, &mut ends, "the receive ends", |e| e[0].machine.has_ended(op));
    match ends[0].machine.take(op).unwrap().unwrap() {
        Outcome::Message(m) => m.bytes().to_vec(),
        Outcome::Parts(p) => p.slices().collect::<Vec<_>>().concat(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_receive_whose_sender_is_lost_gets_what_has_come_meanwhile() {
    type Post = fn(&mut Machine, &mut Io<'_>) -> kfab_core::Result<Started>;
    let posts: [Post; 4] = [
        |m, io| m.recv(io, Want::default(), None),
        |m, io| m.recv(io, Want::default(), Some(Buffer::adopt(vec![0; 5000]))),
        |m, io| m.recv_all(io, Want::default(), buffers(2, 9000)),
        |m, io| m.recv_all(io, Want::default(), buffers(5000, 3)),
    ];
    for loss in [Loss::Dies, Loss::IsSilent] {
        for (i, post) in posts.into_iter().enumerate() {
            let got = second_serves(loss, post);
            assert!(got == b"second", "{loss:?}, {i}: {} bytes", got.len());
        }
    }
}

/// How a large message ends early.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    SenderDies,
    SenderGivesUp,
}

/// What a receive with this room gets, when the large message that it has met does not come.
fn after_a_large_one(
    config: WorldConfig,
    fate: Fate,
    post: impl FnOnce(&mut Machine, &mut Io<'_>) -> kfab_core::Result<Started>,
) -> Vec<u8> {
    let world = World::new(1, config);
    let mut ends = acquainted(&world, 3);
    let Started::Pending(op) = ends[0].with(world.now(), post).unwrap() else { panic!("nobody has sent") };
    let address: Address = "sim:0.0".parse().unwrap();
    let sent = ends[1].with(world.now(), |m, io| {
        let to = m.peer(io, &address)?;
        m.send(io, to, vec![1u8; LARGE][..].into(), SendOptions::default())
    });
    let sent = sent.unwrap().expect("a large one takes time");
    if fate == Fate::SenderGivesUp {
        assert!(ends[1].with(world.now(), |m, io| m.cancel(io, sent, kfab_core::Kind::Canceled)));
    }
    until(&world, &mut ends, "the receive has met it", |e| e[0].machine.stats().posted == 0);
    if fate == Fate::SenderDies {
        drop(ends.remove(1));
        world.crash(1);
        until(&world, &mut ends, "it waits again", |e| e[0].machine.stats().posted == 1);
    }
    ends.last_mut().unwrap().send(&world, b"second");
    until(&world, &mut ends, "the receive ends", |e| e[0].machine.has_ended(op));
    match ends[0].machine.take(op).unwrap().unwrap() {
        Outcome::Message(m) => m.bytes().to_vec(),
        Outcome::Parts(p) => p.slices().collect::<Vec<_>>().concat(),
        other => panic!("{other:?}"),
    }
}

const LARGE: usize = 3 << 20;

#[test]
fn a_receive_for_anyone_outlives_a_large_message_that_does_not_come() {
    type Post = fn(&mut Machine, &mut Io<'_>) -> kfab_core::Result<Started>;
    let posts: [Post; 4] = [
        |m, io| m.recv(io, Want::default(), None),
        |m, io| m.recv(io, Want::default(), Some(Buffer::adopt(vec![0; LARGE]))),
        |m, io| m.recv_all(io, Want::default(), buffers(2, LARGE)),
        |m, io| m.recv_all(io, Want::default(), buffers(LARGE, 3)),
    ];
    let slow = |c: WorldConfig| WorldConfig { late_take: 0.5, late_rma: 1.0, late_ns: 3_000_000, ..c };
    let [process, connection, datagram] =
        [Delivery::Process, Delivery::Connection, Delivery::Datagram].map(|d| slow(WorldConfig::new(d)));
    for config in [process.clone().with_rma(), process, connection, datagram] {
        for fate in [Fate::SenderDies, Fate::SenderGivesUp] {
            // A sender whose memory is read by one-sided means cannot give it up.
            if config.rma && fate == Fate::SenderGivesUp {
                continue;
            }
            for (i, post) in posts.into_iter().enumerate() {
                let got = after_a_large_one(config.clone(), fate, post);
                assert!(
                    got == b"second",
                    "{:?}, rma {}, {fate:?}, {i}: {} bytes",
                    config.delivery,
                    config.rma,
                    got.len()
                );
            }
        }
    }
}

#[test]
fn a_message_too_long_for_a_receive_that_ends_meanwhile_is_the_next_ones() {
    let config =
        WorldConfig { late_take: 1.0, late_ns: 200_000_000, ..WorldConfig::new(Delivery::Connection) };
    let world = World::new(1, config);
    let mut ends = acquainted(&world, 2);
    for cancelled in [true, false] {
        let short = Some(Buffer::adopt(vec![0; 10]));
        let started = ends[0].with(world.now(), |m, io| m.recv(io, Want::default(), short));
        let Started::Pending(op) = started.unwrap() else { panic!("nobody has sent") };
        ends[1].send(&world, &[1; 4000]);
        until(&world, &mut ends, "the body is on its way", |e| e[0].machine.stats().posted == 0);
        if !cancelled {
            until(&world, &mut ends, "the receive ends", |e| e[0].machine.has_ended(op));
            let e = ends[0].machine.take(op).unwrap().unwrap_err();
            assert_eq!(e.kind(), kfab_core::Kind::Truncated);
            continue;
        }
        assert!(ends[0].with(world.now(), |m, io| m.cancel(io, op, kfab_core::Kind::Canceled)));
        let started = ends[0].with(world.now(), |m, io| m.recv(io, Want::default(), None));
        let Started::Pending(op) = started.unwrap() else { panic!("it is on its way still") };
        until(&world, &mut ends, "the next receive ends", |e| e[0].machine.has_ended(op));
        let Outcome::Message(m) = ends[0].machine.take(op).unwrap().unwrap() else { panic!("a message") };
        assert!(m.bytes() == [1; 4000], "{} bytes", m.bytes().len());
    }
}
