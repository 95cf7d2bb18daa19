//! The price of software alone: two endpoints in one thread send 8 bytes to and fro over shared memory. No other core takes part, so
//! what is left is the path through the library, both directions. For `perf` and `callgrind`. Then the same with a thread, on another
//! core, for each end. Arguments: messages (2000000), and `one` to leave the second part out.

use kfab::{EndpointConfig, Fabric, Progress, Wait};
use std::time::Instant;

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
    let n: u32 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(2_000_000);
    let mut first = to_b.send(b"hello");
    let mut there = b.recv();
    while !(first.is_done() & there.is_done()) {}
    drop(to_a.send(b"hello"));
    let mut here = a.recv();
    while !here.is_done() {
        b.progress();
    }
    let start = Instant::now();
    for i in 0..n {
        let m = b.recv();
        to_b.send(&u64::from(i).to_le_bytes()).wait()?;
        let m = m.wait()?;
        assert_eq!(m.len(), 8);
        let r = a.recv();
        to_a.send(&m).wait()?;
        r.wait()?;
    }
    println!(
        "{:.1} ns a message, both ends in one thread",
        start.elapsed().as_nanos() as f64 / f64::from(n) / 2.0
    );
    let (mut sending, mut receiving) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    for _ in 0..n / 100 {
        let t = Instant::now();
        for i in 0..100u64 {
            to_b.send(&i.to_le_bytes()).wait()?;
        }
        sending += t.elapsed();
        let t = Instant::now();
        for i in 0..100u64 {
            assert_eq!(b.recv().wait()?[..], i.to_le_bytes());
        }
        receiving += t.elapsed();
        while a.progress() | b.progress() {}
    }
    let each = |d: std::time::Duration| d.as_nanos() as f64 / f64::from(n);
    println!("{:.1} ns a send, {:.1} ns a receive, a hundred at a time", each(sending), each(receiving));
    if std::env::args().nth(2).as_deref() == Some("one") {
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
        for i in 0..n {
            to_b.send(&u64::from(i).to_le_bytes()).wait()?;
            assert_eq!(a.recv().wait()?[..], u64::from(i).to_le_bytes());
        }
        let took = start.elapsed().as_nanos() as f64;
        println!("{:.1} ns one way between two threads", took / f64::from(n) / 2.0);
        Ok(())
    })
}
