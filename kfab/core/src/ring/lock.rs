//! The lane's lock: one atomic exchange to take, one plain store to give back.
//!
//! A mutex that can put waiters to sleep needs an atomic exchange at unlock as well, to learn of them; on the path of every message
//! that is dear. Lanes are held for a batch of polls at most (microseconds), so those who wait spin, then yield, then nap.

use super::primitive::{AtomicU32, Ordering};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

/// A value that one thread at a time may use.
#[derive(Debug)]
pub struct LaneLock<T> {
    taken: AtomicU32,
    /// Threads that wait.
    wanted: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the guard only, and `taken` lets one guard exist at a time.
unsafe impl<T: Send> Send for LaneLock<T> {}
// SAFETY: as above; a shared lock hands the value from thread to thread, hence `T: Send`.
unsafe impl<T: Send> Sync for LaneLock<T> {}

/// The right to use the value; gives it back when dropped, also by a panic (the value has no invariant across the lock that a
/// panic in the middle of a round could break unsafely).
#[derive(Debug)]
pub struct LaneGuard<'a, T> {
    lock: &'a LaneLock<T>,
}

impl<T> LaneLock<T> {
    /// A free lock.
    pub fn new(value: T) -> LaneLock<T> {
        LaneLock { taken: AtomicU32::new(0), wanted: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Waits for the value.
    #[inline]
    pub fn lock(&self) -> LaneGuard<'_, T> {
        // Acquire: pairs with the release of the last guard.
        if self.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slow();
        }
        LaneGuard { lock: self }
    }

    /// For a thread that takes the lock again and again: lets those who wait have it in between.
    #[inline]
    pub fn make_way(&self) {
        if self.wanted.load(Ordering::Relaxed) != 0 {
            let mut tries = 0;
            while tries < 110 && self.taken.load(Ordering::Relaxed) == 0 {
                tries += 1;
                wait_a_little(tries);
            }
        }
    }

    #[cold]
    fn lock_slow(&self) {
        let mut tries = 0u32;
        self.wanted.fetch_add(1, Ordering::Relaxed);
        loop {
            // Look before trying: waiters share the line instead of tearing at it.
            if self.taken.load(Ordering::Relaxed) == 0
                && self.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                self.wanted.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            tries += 1;
            wait_a_little(tries);
        }
    }
}

#[cfg(not(loom))]
fn wait_a_little(tries: u32) {
    match tries {
        0..=100 => std::hint::spin_loop(),
        101..=120 => std::thread::yield_now(),
        // The holder has lost its processor: give it the time to come back, whatever our priority.
        _ => std::thread::sleep(std::time::Duration::from_micros(20)),
    }
}

#[cfg(loom)]
fn wait_a_little(_: u32) {
    loom::thread::yield_now();
}

impl<T> Deref for LaneGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this guard is the only one (`taken`), and lives as long as the reference.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for LaneGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and `&mut self` makes this the only reference.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for LaneGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: what was done under the lock is seen by the next holder.
        self.lock.taken.store(0, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let lock = std::sync::Arc::new(LaneLock::new((0u64, 0u64)));
        let work = |lock: std::sync::Arc<LaneLock<(u64, u64)>>| {
            for _ in 0..20_000 {
                let mut g = lock.lock();
                g.0 += 1;
                g.1 = g.0 * 2;
            }
        };
        let threads: Vec<_> =
            (0..4).map(|_| lock.clone()).map(|l| std::thread::spawn(move || work(l))).collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*lock.lock(), (80_000, 160_000));
    }

    #[test]
    fn a_panic_gives_it_back() {
        let lock = LaneLock::new(7);
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _g = lock.lock();
            panic!("on purpose");
        }));
        assert_eq!(*lock.lock(), 7);
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::Arc;

    #[test]
    fn loom_two_threads_see_each_others_work() {
        loom::model(|| {
            let lock = Arc::new(LaneLock::new(0));
            let other = lock.clone();
            let t = loom::thread::spawn(move || *other.lock() += 1);
            *lock.lock() += 1;
            t.join().unwrap();
            assert_eq!(*lock.lock(), 2);
        });
    }
}
