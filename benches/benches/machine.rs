//! One message through two protocol machines over a port that costs next to nothing. `process` keeps nothing for resending and
//! filters no duplicates by need; `connection` and `datagram` show what acknowledgements, resending and the filter add.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kfab_benches::Two;
use kfab_core::spi::Delivery;

fn message(c: &mut Criterion) {
    let mut g = c.benchmark_group("machine/message");
    for (name, delivery) in [
        ("process", Delivery::Process),
        ("connection", Delivery::Connection),
        ("datagram", Delivery::Datagram),
    ] {
        for len in [8usize, 1024, 16 << 10, 256 << 10] {
            let mut two = Two::new(delivery);
            let bytes = vec![7; len];
            g.throughput(Throughput::Bytes(len as u64));
            g.bench_function(BenchmarkId::new(name, len), |b| b.iter(|| two.message(&bytes)));
        }
    }
    g.finish();
}

fn backlog(c: &mut Criterion) {
    let mut g = c.benchmark_group("machine/64 messages of 8 bytes");
    g.throughput(Throughput::Elements(64));
    for (name, delivery) in [("process", Delivery::Process), ("connection", Delivery::Connection)] {
        let mut two = Two::new(delivery);
        g.bench_function(name, |b| {
            b.iter(|| {
                (0..64).for_each(|_| two.send(b"12345678", None));
                for _ in 0..64 {
                    let r = two.recv(None);
                    two.ended(r);
                }
            })
        });
    }
    g.finish();
}

fn idle(c: &mut Criterion) {
    let mut two = Two::new(Delivery::Process);
    c.bench_function("machine/a round of two idle machines", |b| b.iter(|| two.poll()));
}

criterion_group!(benches, message, backlog, idle);
criterion_main!(benches);
