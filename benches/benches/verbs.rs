//! The verbs, both endpoints in one thread that makes all progress: what a program sees, less the way between two cores.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kfab::{Endpoint, EndpointConfig, Fabric, Peer, Progress, Rights};

fn pair(scheme: &str) -> (Endpoint, Endpoint, Peer) {
    let config =
        EndpointConfig { providers: vec![scheme.into()], progress: Progress::Inline, ..Default::default() };
    let open = || Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets)).open(config.clone()).unwrap();
    let (a, b) = (open(), open());
    let to_b = a.peer(&b.address().to_string()).unwrap();
    message(&a, &b, &to_b, b"hello");
    (a, b, to_b)
}

fn message(a: &Endpoint, b: &Endpoint, to_b: &Peer, bytes: &[u8]) {
    let mut got = b.recv();
    let sent = to_b.send(bytes);
    while !got.is_done() {
        a.progress();
    }
    got.wait().unwrap();
    finish(b, sent);
}

/// Ends an operation of `a` while `b` is polled as well.
fn finish<T: kfab::Finish>(b: &Endpoint, mut op: kfab::Op<T>) {
    while !op.is_done() {
        b.progress();
    }
    assert!(op.wait().is_ok());
}

fn verbs(c: &mut Criterion) {
    for scheme in ["shm", "tcp"] {
        let (a, b, to_b) = pair(scheme);
        let mut g = c.benchmark_group(format!("verbs/{scheme}"));
        for len in [8usize, 4096, 64 << 10, 1 << 20] {
            let bytes = vec![7; len];
            g.throughput(Throughput::Bytes(len as u64));
            g.bench_function(BenchmarkId::new("message", len), |x| x.iter(|| message(&a, &b, &to_b, &bytes)));
        }
        let window = b.window(1 << 20, Rights::READ | Rights::WRITE).unwrap();
        for len in [8usize, 64 << 10] {
            let bytes = vec![7; len];
            g.throughput(Throughput::Bytes(len as u64));
            g.bench_function(BenchmarkId::new("write", len), |x| {
                x.iter(|| finish(&b, to_b.write(window.key(), 0, &bytes[..])));
            });
            g.bench_function(BenchmarkId::new("read", len), |x| {
                x.iter(|| finish(&b, to_b.read(window.key(), 0, a.buffer(len).unwrap())));
            });
        }
        g.finish();
    }
}

criterion_group!(benches, verbs);
criterion_main!(benches);
