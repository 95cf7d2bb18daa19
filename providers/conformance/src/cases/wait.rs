//! Sleeping: `fd`, `arm`, and no wake-up lost.

use crate::bench::{Bench, body, header, number};
use crate::node::Node;
use crate::rig::Rig;
use kfab_core::spi::{Body, Frame, Inline};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Nobody sleeps longer than this without something being wrong.
const TOO_LONG: Duration = Duration::from_secs(5);

/// How a sleep ended.
#[derive(Debug, PartialEq, Eq)]
enum Woke {
    /// There was work already.
    NotAsleep,
    /// The descriptor became readable.
    Readable,
    /// The port's own deadline passed.
    Deadline,
    /// Nothing happened for the time given.
    Silence,
}

/// Sleeps on a port's descriptor for at most `limit`.
fn sleep(rig: &dyn Rig, n: &mut Node, limit: Duration) -> Woke {
    if !n.port().arm() {
        return Woke::NotAsleep;
    }
    let until_deadline = n.port().deadline().map(|d| Duration::from_nanos(d.saturating_sub(rig.now())));
    let timeout = until_deadline.map_or(limit, |d| d.min(limit));
    // Rounded up: a deadline must have passed when the sleep ends.
    let timeout = timeout + Duration::from_micros(1);
    let spec = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos() as _ };
    let mut fds = [PollFd::from_borrowed_fd(n.fd(), PollFlags::IN)];
    match poll(&mut fds, Some(&spec)) {
        Ok(0) if timeout < limit => Woke::Deadline,
        Ok(0) => Woke::Silence,
        _ => Woke::Readable,
    }
}

/// Polls and sleeps, as a waiting caller does, until `done`.
fn sleep_until(rig: &dyn Rig, n: &mut Node, what: &str, mut done: impl FnMut(&Node) -> bool) {
    let start = Instant::now();
    loop {
        let busy = n.poll(rig.now());
        if done(n) {
            return;
        }
        assert!(
            start.elapsed() < 2 * TOO_LONG,
            "{what}: still not after {:?}; {}",
            start.elapsed(),
            n.summary()
        );
        if !busy {
            assert_ne!(
                sleep(rig, n, TOO_LONG),
                Woke::Silence,
                "{what}: asleep and never woken; {}",
                n.summary()
            );
        }
    }
}

pub(super) fn arm_says_no_when_work_is_there(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    b.quiet(&mut [&mut x, &mut y]);
    x.send(cx, header(1), &[], Body::Borrowed(&body(1, 100)));
    // Not polled meanwhile, the port must notice by itself; a descriptor that became readable counts as well.
    let start = Instant::now();
    loop {
        match sleep(b.rig.as_ref(), &mut y, TOO_LONG) {
            Woke::NotAsleep => break,
            Woke::Silence => panic!("a frame arrived, and arm put its receiver to sleep"),
            Woke::Readable | Woke::Deadline => {}
        }
        assert!(
            start.elapsed() < TOO_LONG,
            "the descriptor is readable, and arm still says that there is no work"
        );
        if y.poll(b.rig.now()) {
            break;
        }
    }
    b.frames(&mut [&mut x, &mut y], 1);
    // Two frames without a body, reported by one poll or two: while one waits, arm says no.
    x.send(cx, header(2), &[], Body::Empty);
    x.send(cx, header(3), &[], Body::Empty);
    b.quiet(&mut [&mut x]);
    while y.frames.len() < 3 {
        assert!(
            !y.port().arm() || y.port().deadline().is_some() || {
                let woke = sleep(b.rig.as_ref(), &mut y, TOO_LONG);
                woke != Woke::Silence
            }
        );
        y.poll(b.rig.now());
    }
}

/// One side acts after a moment, the other sleeps until `done`.
fn wakes(
    b: &Bench,
    x: &mut Node,
    y: &mut Node,
    act: impl FnOnce(&mut Node) + Send,
    done: impl FnMut(&Node) -> bool + Send,
) {
    let rig = b.rig.as_ref();
    let awake = AtomicBool::new(false);
    std::thread::scope(|s| {
        let sleeper = s.spawn(|| {
            let slept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                sleep_until(rig, y, "the sleeper", done);
            }));
            awake.store(true, Ordering::Release);
            slept
        });
        std::thread::sleep(Duration::from_millis(20));
        act(x);
        while !awake.load(Ordering::Acquire) {
            x.poll(rig.now());
            std::thread::sleep(Duration::from_millis(1));
        }
        if let Err(e) = sleeper.join().expect("its panics are caught") {
            std::panic::resume_unwind(e);
        }
    });
}

pub(super) fn a_sleeper_wakes_for_a_frame(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    for i in 0..5 {
        let len = [0, 1, 3000, 0, 60][i as usize].min(x.port().caps().max_body);
        let act = |x: &mut Node| x.send(cx, header(i), &[], Body::Borrowed(&body(i, len)));
        wakes(b, &mut x, &mut y, act, |y| y.frames.len() > i as usize);
        assert_eq!((number(&y.frames[i as usize].header), &y.frames[i as usize].body), (i, &body(i, len)));
    }
}

pub(super) fn a_sleeper_wakes_for_connections(b: &Bench) {
    let (mut x, mut y) = b.pair();
    let way = y.port().ways()[0].clone();
    let act = |x: &mut Node| {
        x.port().connect(&way).expect("a good way");
    };
    wakes(b, &mut x, &mut y, act, |y| y.incoming.len() == 1);
    // And the side that asked: it sleeps on the answer.
    let (mut x, mut y) = b.pair();
    let conn = x.connect(&mut y);
    wakes(b, &mut y, &mut x, |_| {}, |x| x.up.contains(&conn));
}

pub(super) fn a_sleeper_wakes_for_room(b: &Bench) {
    let (mut x, mut y, cx, _) = b.connected();
    let data = body(0, x.port().caps().max_body.min(4096));
    let f = Frame { header: header(0), inline: Inline::EMPTY, body: Body::Borrowed(&data), more: false };
    let mut n = 0;
    while x.post(cx, &[f]) == 1 {
        n += 1;
        assert!(n < 1 << 20, "no bound");
    }
    wakes(b, &mut y, &mut x, |_| {}, |x| !x.writable.is_empty());
    b.frames(&mut [&mut x, &mut y], n);
}

pub(super) fn a_sleeper_wakes_for_down(b: &Bench) {
    let (mut x, mut y, cx, cy) = b.connected();
    wakes(b, &mut x, &mut y, |x| x.port().close(cx), |y| y.ended(cy).is_some());
    let (x, mut y, _, cy) = b.connected();
    let mut x = Some(x);
    let mut other = b.open(&Default::default());
    wakes(b, &mut other, &mut y, |_| drop(x.take()), |y| y.ended(cy).is_some());
}

pub(super) fn no_wake_up_is_lost(b: &Bench) {
    const ROUNDS: u32 = 1000;
    let (mut x, mut y, cx, cy) = b.connected();
    let rig = b.rig.as_ref();
    let side = |n: &mut Node, conn, first: bool| {
        for i in 0..ROUNDS {
            // Every so often one side is late or early, so that the other is caught at every point of falling asleep.
            if i % 7 == u32::from(first) * 3 {
                std::thread::sleep(Duration::from_micros(u64::from(i % 11) * 20));
            }
            if first {
                n.send(conn, header(i), &[], Body::Borrowed(&body(i, i as usize % 90)));
            }
            sleep_until(rig, n, &format!("round {i}"), |n| n.frames.len() > i as usize);
            if !first {
                n.send(conn, header(i), &[], Body::Borrowed(&body(i, i as usize % 90)));
            }
        }
    };
    std::thread::scope(|s| {
        let second = s.spawn(|| side(&mut y, cy, false));
        side(&mut x, cx, true);
        second.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
    for n in [&x, &y] {
        assert_eq!(crate::bench::numbers(n), (0..ROUNDS).collect::<Vec<_>>());
    }
}

pub(super) fn an_idle_port_does_not_spin(b: &Bench) {
    let (mut x, mut y, _, _) = b.connected();
    b.quiet(&mut [&mut x, &mut y]);
    let (start, mut wakes) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_millis(300) {
        sleep(b.rig.as_ref(), &mut y, Duration::from_millis(100));
        y.poll(b.rig.now());
        wakes += 1;
        assert!(wakes < 150, "woken {wakes} times within {:?} for nothing", start.elapsed());
    }
    assert!(y.down.is_empty() && y.frames.is_empty());
}
