//! What a process holds: descriptors, threads, memory; and whether it went back to where it was.

use std::time::{Duration, Instant};

/// One look at this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    /// Open descriptors.
    pub(crate) fds: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Resident memory, KiB.
    pub(crate) rss_kib: usize,
    /// The part of it that is neither of files nor shared: heap and stacks. The rest is programs and slabs, whose pages stay resident
    /// once they were used.
    pub(crate) heap_kib: usize,
}

impl Level {
    /// Now.
    pub(crate) fn now() -> Level {
        let count = |dir: &str| std::fs::read_dir(dir).unwrap().count();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib = |key: &str| -> usize {
            let rest = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        Level {
            fds: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            rss_kib: kib("VmRSS:"),
            heap_kib: kib("RssAnon:"),
        }
    }

    /// Waits until descriptors and threads are back at this level and the heap has grown by at most `kib`; fails after a while.
    pub(crate) fn regained(&self, what: &str, kib: usize) {
        let end = Instant::now() + Duration::from_secs(15);
        loop {
            let now = Level::now();
            if now.fds <= self.fds && now.threads <= self.threads && now.heap_kib <= self.heap_kib + kib {
                return;
            }
            assert!(Instant::now() < end, "{what}: {now:?} is left, it was {self:?}\n{}", descriptors());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// What the open descriptors are.
fn descriptors() -> String {
    let list =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|e| std::fs::read_link(e.ok()?.path()).ok());
    let mut list: Vec<_> = list.map(|p| p.display().to_string()).collect();
    list.sort();
    list.join("\n")
}

/// A small generator of random numbers, for choices that need only be different each time.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// Below `n`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}
