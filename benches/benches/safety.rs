//! What safety costs, by the piece: a frame sealed and opened, a handshake; and, of each small message, its credit, the duplicate
//! filter, the counters. Whole messages with and without acknowledgements and resending are in `machine`.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kfab_core::auth::{FabricKey, Handshake, MAX_PLAIN, Session, TAG_LEN};
use kfab_proto::price::Pieces;
use std::hint::black_box;

fn sessions() -> (Session, Session) {
    let key = FabricKey::from_bytes([7; 32]);
    let (mut a, mut b) = (Handshake::initiator(&key).unwrap(), Handshake::responder(&key).unwrap());
    b.read(&a.write().unwrap()).unwrap();
    a.read(&b.write().unwrap()).unwrap();
    (a.finish().unwrap(), b.finish().unwrap())
}

fn seal(c: &mut Criterion) {
    let mut g = c.benchmark_group("safety/sealed");
    // A small message's record over tcp, one of 4 KiB, and the largest piece.
    for len in [32, 4 << 10, MAX_PLAIN] {
        let (mut a, mut b) = sessions();
        let (plain, mut piece, mut out) = (vec![7; len], vec![0; len + TAG_LEN], vec![0; len]);
        g.throughput(Throughput::Bytes(len as u64));
        g.bench_function(BenchmarkId::new("seal and open", len), |bench| {
            bench.iter(|| {
                let n = a.seal(black_box(&plain), &mut piece).unwrap();
                b.open(black_box(&piece[..n]), &mut out).unwrap()
            })
        });
        assert_eq!(plain, out);
    }
    g.finish();
}

fn handshake(c: &mut Criterion) {
    c.bench_function("safety/handshake, both sides", |b| b.iter(sessions));
}

fn message(c: &mut Criterion) {
    let mut g = c.benchmark_group("safety/of a message");
    let mut p = Pieces::new(64);
    g.bench_function("nothing", |b| b.iter(|| _ = black_box(&mut p)));
    g.bench_function("credit", |b| b.iter(|| black_box(&mut p).credit()));
    g.bench_function("sequence number, duplicate filter, acknowledgement", |b| {
        b.iter(|| black_box(&mut p).sequence())
    });
    g.bench_function("two frames out of order, each twice", |b| b.iter(|| black_box(&mut p).out_of_order()));
    g.bench_function("counters", |b| b.iter(|| black_box(&mut p).count(black_box(8))));
    g.finish();
}

criterion_group!(benches, seal, handshake, message);
criterion_main!(benches);
