//! Endpoints that one thread uses and another drops: nothing of them stays.

mod common;

use common::level::Level;
use common::*;

/// Slabs and segments that are mapped.
fn maps() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|l| l.contains("memfd:")).count()
}

#[test]
fn an_endpoint_that_another_thread_drops_is_gone() {
    for scheme in SCHEMES {
        watched(&format!("gone over {scheme}"), move || {
            let once = || {
                let (a, b, to_b) = pair(scheme);
                for i in 0..5 {
                    let sent = to_b.send(&pattern(100_000, i)[..]);
                    assert!(b.recv().wait().unwrap()[..] == pattern(100_000, i)[..]);
                    sent.wait().unwrap();
                    to_b.send(b"small").wait().unwrap();
                    b.recv().wait().unwrap();
                }
                drop(to_b);
                std::thread::spawn(move || drop((a, b))).join().unwrap();
            };
            once();
            let (before, mapped) = (Level::now(), maps());
            (0..40).for_each(|_| once());
            before.regained(scheme, 4096);
            assert!(maps() <= mapped, "{} regions are mapped, there were {mapped}", maps());
        });
    }
}
