//! The lane's lock: cheap for the one thread that uses a lane nearly always, correct for all.
//!
//! On the path of a message of a hundred nanoseconds an atomic exchange is dear, and a mutex makes two. Most lanes are driven by one
//! thread. So the lock has two ways:
//!
//! - *The ordinary way*: one atomic exchange on `taken`, one plain store to give it back. Lanes are held for a batch of polls at
//!   most (microseconds), so those who wait spin, then yield, then nap.
//! - *The owner's way*: a thread that took the ordinary way [`ADOPT`] times in a row becomes the owner. It says that it is inside with
//!   a plain store and looks whether it is barred: no atomic exchange at all. Whoever else wants the lock takes `taken`, bars
//!   the owner, passes a heavy barrier (membarrier: the owner's processor has done what it was doing) and waits until the owner
//!   is outside. An owner that is disturbed too often is one no more, for good.
//!
//! It is Dekker's algorithm with its store-load barrier on the visitor's side alone. Loom checks it with fences in both places.

use super::primitive::{AtomicU32, Ordering, heavy_barrier, light_barrier, thread_token};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};

/// The ordinary way so many times in a row, and a thread becomes the owner.
#[cfg(not(loom))]
const ADOPT: u32 = 64;
#[cfg(loom)]
const ADOPT: u32 = 1;
/// A visit after fewer uses than this by the owner counts against it; so many of those in a row, and it is owner no more.
const FEW: u32 = 256;
const STRIKES: u32 = 8;
/// In place of an owner: there was one, and there will be none again.
const RETIRED: u32 = u32::MAX;

/// A value that one thread at a time may use.
#[derive(Debug)]
pub struct LaneLock<T> {
    /// The ordinary way is taken.
    taken: AtomicU32,
    /// Threads that wait for it.
    wanted: AtomicU32,
    /// The thread that may go the owner's way; 0: nobody yet. Written by the holder of `taken`.
    owner: AtomicU32,
    /// Odd while the owner is inside by its way. Written by the owner only.
    inside: AtomicU32,
    /// Not 0: the owner must go the ordinary way. Written by the holder of `taken`.
    barred: AtomicU32,
    /// The rest is for the holder of `taken`: who held it last, how many times in a row, the owner's uses as last seen, strikes.
    last: AtomicU32,
    row: AtomicU32,
    seen: AtomicU32,
    strikes: AtomicU32,
    /// Both barriers work here.
    asymmetric: bool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the guard only. Guards of the ordinary way exclude each other by `taken`; a guard of the
// owner's way and one of the ordinary way by `inside` and `barred` (see the module).
unsafe impl<T: Send> Send for LaneLock<T> {}
// SAFETY: as above; a shared lock hands the value from thread to thread, hence `T: Send`.
unsafe impl<T: Send> Sync for LaneLock<T> {}

/// How a guard came in, and so how it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Owner,
    Ordinary,
    /// The ordinary way, with the owner barred meanwhile.
    Visitor,
}

/// The right to use the value; gives it back when dropped, also by a panic (the value has no invariant across the lock that a
/// panic in the middle of a round could break unsafely).
#[derive(Debug)]
pub struct LaneGuard<'a, T> {
    lock: &'a LaneLock<T>,
    way: Way,
    /// A guard stays with its thread: only the owner may write `inside`.
    _here: std::marker::PhantomData<*const ()>,
}

impl<T> LaneLock<T> {
    /// A free lock.
    pub fn new(value: T) -> LaneLock<T> {
        let zero = || AtomicU32::new(0);
        LaneLock {
            taken: zero(),
            wanted: zero(),
            owner: zero(),
            inside: zero(),
            barred: zero(),
            last: zero(),
            row: zero(),
            seen: zero(),
            strikes: zero(),
            asymmetric: cfg!(loom) || crate::sys::has_heavy_barrier(),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits for the value.
    ///
    /// # Panics
    /// When the calling thread, as the owner, holds it already.
    #[inline(always)]
    pub fn lock(&self) -> LaneGuard<'_, T> {
        let me = thread_token();
        let way = if self.owner.load(Ordering::Relaxed) == me && self.enter() {
            Way::Owner
        } else {
            self.lock_ordinary(me)
        };
        LaneGuard { lock: self, way, _here: std::marker::PhantomData }
    }

    /// The owner's way in; `false` if it is barred. Called by the owner only.
    #[inline(always)]
    fn enter(&self) -> bool {
        let outside = self.inside.load(Ordering::Relaxed);
        assert!(outside.is_multiple_of(2), "a lane's lock is taken twice by one thread");
        self.inside.store(outside.wrapping_add(1), Ordering::Relaxed);
        // Either we see that we are barred, or the visitor, after its heavy barrier, sees that we are inside.
        light_barrier(true);
        // Acquire: pairs with the release of the last visitor.
        if self.barred.load(Ordering::Acquire) == 0 {
            return true;
        }
        self.inside.store(outside.wrapping_add(2), Ordering::Release);
        false
    }

    #[inline(never)]
    fn lock_ordinary(&self, me: u32) -> Way {
        // Acquire: pairs with the release of the last guard.
        if self.taken.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slow();
        }
        let owner = self.owner.load(Ordering::Relaxed);
        if owner == 0 {
            self.consider(me);
        }
        // An owner that was barred has `taken` now: visitors are outside, and its own way is its alone.
        if owner == 0 || owner == me || owner == RETIRED {
            return Way::Ordinary;
        }
        self.turn_out();
        Way::Visitor
    }

    /// May this thread become the owner? Called with `taken` held, when there is none.
    fn consider(&self, me: u32) {
        if self.last.load(Ordering::Relaxed) != me {
            self.last.store(me, Ordering::Relaxed);
            self.row.store(0, Ordering::Relaxed);
        }
        let row = self.row.load(Ordering::Relaxed) + 1;
        self.row.store(row, Ordering::Relaxed);
        if row >= ADOPT && self.asymmetric {
            self.owner.store(me, Ordering::Relaxed);
        }
    }

    /// Bars the owner and waits until it is outside. Called with `taken` held by another.
    #[cold]
    fn turn_out(&self) {
        self.barred.store(1, Ordering::Relaxed);
        heavy_barrier();
        let mut tries = 0;
        let inside = loop {
            // Acquire: pairs with the release of the owner's going.
            let inside = self.inside.load(Ordering::Acquire);
            if inside.is_multiple_of(2) {
                break inside;
            }
            tries += 1;
            wait_a_little(tries);
        };
        let few = inside.wrapping_sub(self.seen.load(Ordering::Relaxed)) / 2 < FEW;
        self.seen.store(inside, Ordering::Relaxed);
        let strikes = if few { self.strikes.load(Ordering::Relaxed) + 1 } else { 0 };
        self.strikes.store(strikes, Ordering::Relaxed);
        if strikes >= STRIKES {
            // It stays barred, in case it has just looked at its name.
            self.owner.store(RETIRED, Ordering::Relaxed);
        }
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

    /// What a guard that goes by the ordinary way leaves behind.
    #[inline(never)]
    fn leave_ordinary(&self, way: Way) {
        if way == Way::Visitor && self.owner.load(Ordering::Relaxed) != RETIRED {
            // Release: the owner sees what was done here.
            self.barred.store(0, Ordering::Release);
        }
        // Release: what was done under the lock is seen by the next holder.
        self.taken.store(0, Ordering::Release);
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
        // SAFETY: this guard is the only one (see the module), and lives as long as the reference.
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
    #[inline(always)]
    fn drop(&mut self) {
        if self.way != Way::Owner {
            return self.lock.leave_ordinary(self.way);
        }
        let inside = &self.lock.inside;
        // Release: what was done under the lock is seen by the visitor that finds us outside.
        inside.store(inside.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn work(lock: &LaneLock<(u64, u64)>, n: u64) {
        for _ in 0..n {
            let mut g = lock.lock();
            g.0 += 1;
            g.1 = g.0 * 2;
        }
    }

    #[test]
    fn one_at_a_time() {
        let lock = Arc::new(LaneLock::new((0u64, 0u64)));
        let threads: Vec<_> =
            (0..4).map(|_| lock.clone()).map(|l| std::thread::spawn(move || work(&l, 20_000))).collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*lock.lock(), (80_000, 160_000));
    }

    #[test]
    fn an_owner_is_disturbed_now_and_then_and_stays_owner() {
        let lock = Arc::new(LaneLock::new((0u64, 0u64)));
        work(&lock, u64::from(ADOPT) + 1);
        let owner = lock.owner.load(Ordering::Relaxed);
        assert_eq!(owner == thread_token(), lock.asymmetric);
        for _ in 0..20 {
            work(&lock, u64::from(FEW) + 100);
            let visitor = lock.clone();
            std::thread::spawn(move || work(&visitor, 1)).join().unwrap();
        }
        assert_eq!(lock.owner.load(Ordering::Relaxed), owner);
        let all = u64::from(ADOPT) + 1 + 20 * (u64::from(FEW) + 101);
        assert_eq!(*lock.lock(), (all, all * 2));
    }

    #[test]
    fn visitors_while_the_owner_is_busy_and_too_many_of_them_retire_it() {
        let lock = Arc::new(LaneLock::new((0u64, 0u64)));
        work(&lock, u64::from(ADOPT) + 1);
        let visitors: Vec<_> =
            (0..2).map(|_| lock.clone()).map(|l| std::thread::spawn(move || work(&l, 5_000))).collect();
        work(&lock, 200_000);
        visitors.into_iter().for_each(|t| t.join().unwrap());
        let all = u64::from(ADOPT) + 1 + 210_000;
        assert_eq!(*lock.lock(), (all, all * 2));
        let l = lock.clone();
        std::thread::spawn(move || work(&l, u64::from(STRIKES) + 1)).join().unwrap();
        assert!(!lock.asymmetric || lock.owner.load(Ordering::Relaxed) == RETIRED);
        work(&lock, 10);
        assert_eq!(lock.lock().0, all + u64::from(STRIKES) + 11);
    }

    #[test]
    fn a_panic_gives_it_back() {
        let lock = LaneLock::new(7);
        for _ in 0..ADOPT + 2 {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _g = lock.lock();
                std::panic::resume_unwind(Box::new("on purpose"));
            }));
        }
        assert_eq!(*lock.lock(), 7);
    }

    #[test]
    fn an_owner_that_comes_twice_is_told() {
        let lock = LaneLock::new(());
        if lock.asymmetric {
            (0..=ADOPT).for_each(|_| drop(lock.lock()));
            let first = lock.lock();
            let twice = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(lock.lock())));
            assert!(twice.is_err());
            drop(first);
            drop(lock.lock());
        }
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::super::primitive::WEAK;
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;

    /// Loom watches this cell: two threads in it at once are a failure.
    fn add(lock: &LaneLock<UnsafeCell<u32>>) {
        // SAFETY: loom checks that nobody else is at it.
        lock.lock().with_mut(|n| unsafe { *n += 1 });
    }

    fn sum(lock: &LaneLock<UnsafeCell<u32>>) -> u32 {
        // SAFETY: as above.
        lock.lock().with(|n| unsafe { *n })
    }

    fn owner_and_visitor() {
        let lock = Arc::new(LaneLock::new(UnsafeCell::new(0)));
        add(&lock);
        let other = lock.clone();
        let t = loom::thread::spawn(move || add(&other));
        add(&lock);
        t.join().unwrap();
        assert_eq!(sum(&lock), 3);
    }

    #[test]
    fn loom_two_threads_see_each_others_work() {
        loom::model(|| {
            let lock = Arc::new(LaneLock::new(UnsafeCell::new(0)));
            let other = lock.clone();
            let t = loom::thread::spawn(move || add(&other));
            add(&lock);
            t.join().unwrap();
            assert_eq!(sum(&lock), 2);
        });
    }

    #[test]
    fn loom_the_owner_and_a_visitor_exclude_each_other() {
        loom::model(owner_and_visitor);
    }

    #[test]
    #[should_panic]
    fn loom_sees_it_without_the_barriers() {
        WEAK.set(true);
        let _reset = Reset;
        loom::model(owner_and_visitor);
    }

    struct Reset;

    impl Drop for Reset {
        fn drop(&mut self) {
            WEAK.set(false);
        }
    }
}
