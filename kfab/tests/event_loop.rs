//! An event loop of the user's over an endpoint's descriptor, beside the helper thread and beside another thread that waits: whoever takes what
//! comes, the loop hears of it.

mod common;

use common::watched_for;
use kfab::{Endpoint, EndpointConfig, Fabric, Message, Op, Progress, Result, SendOptions};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Far above what a wake-up takes, far below what would hide a lost one.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the loop until the operation has ended. It looks at nothing unless it is told to.
fn run(endpoint: &Endpoint, mut op: Op<Message>) -> Result<Message> {
    loop {
        op = match op.try_take() {
            Ok(ended) => return ended,
            Err(under_way) => under_way,
        };
        if endpoint.arm() {
            let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
            let begun = Instant::now();
            poll(&mut [PollFd::new(&endpoint.as_fd(), PollFlags::IN)], Some(&limit)).expect("poll");
            assert!(begun.elapsed() < PATIENCE, "the loop slept on, and nobody told it");
        }
    }
}

/// Makes this thread the last to get a processor: whoever else is woken by the same event is there first.
fn come_last() {
    let me = rustix::thread::gettid();
    rustix::process::setpriority_process(Some(me), 19).expect("a lower priority");
}

/// Keeps the processors busy while it lives.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn new() -> Busy {
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get().min(8)) {
            let over = over.clone();
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {});
        }
        Busy(over)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Messages at odd times, some in pairs; the loop gets each.
fn each_is_heard_of(fabric: &Fabric, progress: Progress, beside: bool) {
    let endpoint = fabric.open(EndpointConfig { progress, ..Default::default() }).unwrap();
    let other = fabric.endpoint().unwrap();
    let (peer, done) = (other.peer(&endpoint.address().to_string()).unwrap(), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            for n in 0..120u32 {
                // Shorter and longer than the helper's look-in.
                std::thread::sleep(Duration::from_micros(u64::from(n * 7919 % 6000)));
                peer.send_tagged(1, &n.to_le_bytes()).wait().unwrap();
            }
            while !done.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            peer.send_tagged(2, "enough").wait().unwrap();
        });
        if beside {
            // It polls for all while it waits, asleep and awake.
            s.spawn(|| assert_eq!(&*endpoint.recv_tagged(2, 0).wait().unwrap(), b"enough"));
        }
        for n in 0..120u32 {
            let m = run(&endpoint, endpoint.recv_tagged(1, 0)).unwrap();
            assert_eq!(&*m, n.to_le_bytes());
        }
        done.store(true, Ordering::Release);
    });
}

fn all(fabric: &Fabric) {
    come_last();
    let _busy = Busy::new();
    for progress in [Progress::Inline, Progress::Helper] {
        for beside in [false, true] {
            each_is_heard_of(fabric, progress, beside);
        }
    }
}

#[test]
fn a_loop_hears_of_each_message_over_shm() {
    watched_for("the loop over shm", 180, || all(&Fabric::new((kfab_shm::Shm,))));
}

#[test]
fn a_loop_hears_of_each_message_over_tcp() {
    watched_for("the loop over tcp", 180, || all(&Fabric::new((kfab_sockets::Sockets,))));
}

#[test]
fn limits_that_no_clock_reaches_are_none() {
    watched_for("far limits", 60, || {
        let fabric = Fabric::new((kfab_shm::Shm,));
        let config = EndpointConfig { wait: kfab::Wait::Adaptive(Duration::MAX), ..Default::default() };
        let (a, b) = (fabric.open(config).unwrap(), fabric.endpoint().unwrap());
        let (to_a, to_b) =
            (b.peer(&a.address().to_string()).unwrap(), a.peer(&b.address().to_string()).unwrap());
        let there = b.recv().within(Duration::MAX);
        to_b.send("there").wait_timeout(Duration::MAX).unwrap();
        assert_eq!(&*there.wait().unwrap(), b"there");
        let here = a.recv();
        to_a.send("and back").wait().unwrap();
        assert_eq!(&*here.wait_timeout(Duration::MAX).unwrap(), b"and back");
    });
}

#[test]
fn what_the_helper_did_before_keeps_the_loop_awake() {
    watched_for("news", 60, || {
        let fabric = Fabric::new((kfab_shm::Shm,));
        let (a, b) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
        let mut here = a.recv();
        let peer = b.peer(&a.address().to_string()).unwrap();
        while a.progress() | !a.arm() {}
        let sent =
            peer.send_with("taken by the helper", SendOptions { delivered: true, ..Default::default() });
        // The helper has answered for it: it has taken it.
        sent.wait().unwrap();
        assert!(!a.arm(), "the loop would sleep for a message that is here");
        assert!(here.is_done());
        assert_eq!(&*here.wait().unwrap(), b"taken by the helper");
    });
}
