//! Matching: the price of one more tagged message while others wait, with the wanted one first or last.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kfab_benches::Two;
use kfab_core::spi::Delivery;

/// `waiting` messages with tags 1.. lie at the receiver; one with tag 0 is sent and received.
fn unexpected(c: &mut Criterion) {
    let mut g = c.benchmark_group("matcher/unexpected");
    for waiting in [0u64, 10, 100, 500] {
        let mut two = Two::new(Delivery::Process);
        (1..=waiting).for_each(|tag| two.send(b"waits", Some(tag)));
        while (two.waiting() as u64) < waiting {
            two.poll();
        }
        g.bench_function(BenchmarkId::from_parameter(waiting), |b| {
            b.iter(|| {
                two.send(b"wanted", Some(0));
                two.poll();
                let r = two.recv(Some(0));
                two.ended(r)
            })
        });
    }
    g.finish();
}

/// `posted` receives with tags 1.. wait; one with tag 0 is posted after them and served.
fn posted(c: &mut Criterion) {
    let mut g = c.benchmark_group("matcher/posted");
    for posted in [0u64, 10, 100, 1000] {
        let mut two = Two::new(Delivery::Process);
        let _waiting: Vec<_> = (1..=posted).map(|tag| two.recv(Some(tag))).collect();
        g.bench_function(BenchmarkId::from_parameter(posted), |b| {
            b.iter(|| {
                let r = two.recv(Some(0));
                two.send(b"wanted", Some(0));
                two.ended(r)
            })
        });
    }
    g.finish();
}

criterion_group!(benches, unexpected, posted);
criterion_main!(benches);
