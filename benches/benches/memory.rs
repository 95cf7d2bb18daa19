//! Memory: taking and returning slab buffers, beside the system's allocator and copies.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kfab_core::mem::{Buffer, Pool};
use std::hint::black_box;

const SIZES: [usize; 5] = [64, 1024, 16 << 10, 256 << 10, 1 << 20];

fn buffers(c: &mut Criterion) {
    let pool = Pool::new(Default::default());
    let mut g = c.benchmark_group("memory/alloc and free");
    for len in SIZES {
        g.bench_function(BenchmarkId::new("slab", len), |b| b.iter(|| pool.alloc(black_box(len)).unwrap()));
        g.bench_function(BenchmarkId::new("vec", len), |b| {
            b.iter(|| Vec::<u8>::with_capacity(black_box(len)))
        });
    }
    g.finish();
    let whole = pool.alloc(64 << 10).unwrap();
    c.bench_function("memory/slice of a buffer", |b| b.iter(|| whole.slice(black_box(100)..black_box(5000))));
    c.bench_function("memory/adopt a vec", |b| {
        b.iter_batched(|| vec![0; 64], Buffer::adopt, criterion::BatchSize::SmallInput)
    });
}

fn copies(c: &mut Criterion) {
    let pool = Pool::new(Default::default());
    let mut g = c.benchmark_group("memory/copy");
    for len in SIZES {
        let (from, mut to) = (vec![3u8; len], vec![0u8; len]);
        let window = pool.alloc_window(len).unwrap();
        g.throughput(Throughput::Bytes(len as u64));
        g.bench_function(BenchmarkId::new("memcpy", len), |b| {
            b.iter(|| to.copy_from_slice(black_box(&from)))
        });
        g.bench_function(BenchmarkId::new("into a window", len), |b| {
            b.iter(|| window.write(0, black_box(&from)))
        });
        g.bench_function(BenchmarkId::new("into a slab buffer", len), |b| {
            b.iter(|| pool.copy_from(black_box(&from)).unwrap())
        });
    }
    g.finish();
}

criterion_group!(benches, buffers, copies);
criterion_main!(benches);
