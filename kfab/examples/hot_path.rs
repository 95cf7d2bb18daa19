//! The price of software alone: two endpoints in one thread send a few bytes to and fro over shared memory. No other core takes part,
//! so what is left is the path through the library, both directions. For `perf` and `callgrind`. Then the same with a thread, on
//! another core, for each end. Arguments: messages (2000000), bytes of each (8, at most 8192), and `one` to leave the second part out.

use kfab::{EndpointConfig, Fabric, Progress, Wait};
use std::time::Instant;

/// Messages sent before they are received, in the middle part: what the rings hold of the largest messages.
const BURST: u32 = 20;
/// The largest: with more, a send waits for the other end, which is the same thread.
const MOST: usize = 8192;

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

fn main() -> kfab::Result<()> {
    let fabric = Fabric::new((kfab_shm::Shm,));
    let config = EndpointConfig { progress: Progress::Inline, wait: Wait::Spin, ..Default::default() };
    let (a, b) = (fabric.open(config.clone())?, fabric.open(config)?);
    let (to_a, to_b) = (b.peer(&a.address().to_string())?, a.peer(&b.address().to_string())?);
    let number = |i| std::env::args().nth(i).and_then(|n| n.parse().ok());
    let (n, size) = (number(1).unwrap_or(2_000_000), number(2).unwrap_or(8));
    let payload = vec![7; (size as usize).min(MOST)];
    let mut first = to_b.send(b"hello");
    let mut there = b.recv();
    while !(first.is_done() & there.is_done()) {}
    drop(to_a.send(b"hello"));
    let mut here = a.recv();
    while !here.is_done() {
        b.progress();
    }
    let start = Instant::now();
    for _ in 0..n {
        let m = b.recv();
        to_b.send(&payload[..]).wait()?;
        let m = m.wait()?;
        assert_eq!(m.len(), payload.len());
        let r = a.recv();
        to_a.send(&m).wait()?;
        r.wait()?;
    }
    println!(
        "{:.1} ns a message, both ends in one thread",
        start.elapsed().as_nanos() as f64 / f64::from(n) / 2.0
    );
    let (mut sending, mut receiving) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    for _ in 0..n / BURST {
        let t = Instant::now();
        for _ in 0..BURST {
            to_b.send(&payload[..]).wait()?;
        }
        sending += t.elapsed();
        let t = Instant::now();
        for _ in 0..BURST {
            assert_eq!(b.recv().wait()?.len(), payload.len());
        }
        receiving += t.elapsed();
        while a.progress() | b.progress() {}
    }
    let each = |d: std::time::Duration| d.as_nanos() as f64 / f64::from(n);
    println!("{:.1} ns a send, {:.1} ns a receive, {BURST} at a time", each(sending), each(receiving));
    if std::env::args().nth(3).as_deref() == Some("one") {
        return Ok(());
    }
    std::thread::scope(|s| {
        s.spawn(|| -> kfab::Result<()> {
            pin(1);
            for _ in 0..n {
                let m = b.recv().wait()?;
                to_a.send(&m).wait()?;
            }
            Ok(())
        });
        pin(0);
        let start = Instant::now();
        for _ in 0..n {
            to_b.send(&payload[..]).wait()?;
            assert_eq!(a.recv().wait()?[..], payload);
        }
        let took = start.elapsed().as_nanos() as f64;
        println!("{:.1} ns one way between two threads", took / f64::from(n) / 2.0);
        Ok(())
    })
}
