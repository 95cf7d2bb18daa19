//! The price of software alone: two endpoints in one thread send 8 bytes to and fro over shared memory. No other core takes part, so
//! what is left is the path through the library, both directions. For `perf` and `callgrind`.

use kfab::{EndpointConfig, Fabric, Progress, Wait};
use std::time::Instant;

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
    Ok(())
}
