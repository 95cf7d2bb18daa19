//! A lane's lock: taken by the one thread that always takes it, by one that comes as a visitor now and then, and by two that want it
//! all the time. A time is that of one hold by the thread that measures, with a few words changed in it.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use kfab_core::ring::LaneLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What is done under the lock: less than a message takes.
fn hold(lock: &LaneLock<[u64; 4]>) {
    let mut words = lock.lock();
    words.iter_mut().for_each(|w| *w = w.wrapping_mul(3) + 1);
}

/// Another thread takes the lock again and again, with these pauses, while `measure` runs.
fn beside(lock: &LaneLock<[u64; 4]>, pause: Option<Duration>, measure: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                hold(lock);
                match pause {
                    Some(p) => std::thread::sleep(p),
                    // As a caller that waits does between two batches of polls.
                    None => lock.make_way(),
                }
            }
        });
        measure();
        stop.store(true, Ordering::Relaxed);
    });
}

fn lock(c: &mut Criterion) {
    let mut g = c.benchmark_group("lock/hold");
    let alone = LaneLock::new([1; 4]);
    g.bench_function("one thread", |b| b.iter(|| hold(&alone)));
    let visited = LaneLock::new([1; 4]);
    beside(&visited, Some(Duration::from_millis(1)), || {
        g.bench_function("beside a visitor each millisecond", |b| b.iter(|| hold(&visited)));
    });
    let contended = LaneLock::new([1; 4]);
    beside(&contended, None, || {
        g.bench_function("two threads", |b| b.iter(|| hold(&contended)));
    });
    g.finish();
}

criterion_group!(benches, lock);
criterion_main!(benches);
