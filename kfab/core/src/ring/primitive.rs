//! What the ring is made of: real atomics and cells, or loom's under `--cfg loom`.

#[cfg(not(loom))]
pub(super) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The order of every store that hands bytes over.
#[cfg(not(loom))]
#[inline(always)]
pub(super) const fn release() -> Ordering {
    Ordering::Release
}

#[cfg(loom)]
std::thread_local! {
    /// Breaks the ring for the tests that show that loom would see it (loom runs its threads on the test's own).
    pub(super) static WEAK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

#[cfg(loom)]
pub(super) fn release() -> Ordering {
    if WEAK.get() { Ordering::Relaxed } else { Ordering::Release }
}

/// The cheap half of the barrier between "written" and "is the other asleep?".
#[inline(always)]
pub(super) fn light_barrier(asymmetric: bool) {
    #[cfg(not(loom))]
    crate::sys::light_barrier(asymmetric);
    #[cfg(loom)]
    {
        let _ = asymmetric;
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Plain bytes that one side writes and the other reads, handed over by an atomic.
#[cfg(not(loom))]
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Cell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T: Copy> Cell<T> {
    /// A copy of the contents. The fence keeps the compiler from reading the source again later instead of the copy: bytes that
    /// the other process may change are read once and then checked. (A volatile read of a struct would do the same, byte by byte.)
    ///
    /// # Safety
    /// The cell lies in live, initialised memory.
    #[inline(always)]
    pub(super) unsafe fn get(&self) -> T {
        // SAFETY: live and initialised by the caller's word, aligned as a field of a placed struct. `T` is plain bytes, any
        // pattern is a value.
        let copy = unsafe { self.0.get().read() };
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
        copy
    }

    /// # Safety
    /// As for `get`; only the side whose turn it is may call this.
    #[inline(always)]
    pub(super) unsafe fn set(&self, v: T) {
        // SAFETY: as above; the turn makes this the only writer of this side.
        unsafe { self.0.get().write(v) }
    }
}

#[cfg(loom)]
#[derive(Debug)]
pub(super) struct Cell<T>(loom::cell::UnsafeCell<T>);

#[cfg(loom)]
impl<T: Copy> Cell<T> {
    pub(super) fn new(v: T) -> Cell<T> {
        Cell(loom::cell::UnsafeCell::new(v))
    }

    /// # Safety
    /// As for the real one.
    pub(super) unsafe fn get(&self) -> T {
        // SAFETY: loom checks that nobody writes meanwhile; the memory is live by the caller's word.
        self.0.with(|p| unsafe { p.read() })
    }

    /// # Safety
    /// As for the real one.
    pub(super) unsafe fn set(&self, v: T) {
        // SAFETY: as above.
        self.0.with_mut(|p| unsafe { p.write(v) })
    }
}

/// The unit of the data ring: what loom watches, and what a body is aligned to.
pub(super) const BLOCK: usize = 64;

/// A block of the data ring.
#[cfg(not(loom))]
pub(super) type Block = [u8; BLOCK];
#[cfg(loom)]
pub(super) type Block = Cell<[u8; BLOCK]>;

/// Copies `len` bytes into the data ring at byte `at`.
///
/// # Safety
/// `at + len` lies in the ring whose first block is `base`; `src..src+len` is readable and outside of it.
#[cfg(not(loom))]
#[inline(always)]
pub(super) unsafe fn copy_in(base: *mut Block, at: usize, src: *const u8, len: usize) {
    // SAFETY: both ranges are vouched for by the caller, and do not overlap. The other process may scribble meanwhile: torn
    // bytes, which are its own.
    unsafe { core::ptr::copy_nonoverlapping(src, base.cast::<u8>().add(at), len) }
}

/// Copies `len` bytes out of the data ring from byte `at`.
///
/// # Safety
/// As for [`copy_in`], `dst` writable.
#[cfg(not(loom))]
#[inline(always)]
pub(super) unsafe fn copy_out(base: *mut Block, at: usize, dst: *mut u8, len: usize) {
    // SAFETY: as above.
    unsafe { core::ptr::copy_nonoverlapping(base.cast::<u8>().add(at), dst, len) }
}

/// # Safety
/// As for the real one.
#[cfg(loom)]
pub(super) unsafe fn copy_in(base: *mut Block, at: usize, src: *const u8, len: usize) {
    for i in 0..len {
        // SAFETY: inside the ring and the source by the caller's word.
        unsafe {
            let cell = &*base.add((at + i) / BLOCK);
            let mut block = cell.get();
            block[(at + i) % BLOCK] = src.add(i).read();
            cell.set(block);
        }
    }
}

/// # Safety
/// As for the real one.
#[cfg(loom)]
pub(super) unsafe fn copy_out(base: *mut Block, at: usize, dst: *mut u8, len: usize) {
    for i in 0..len {
        // SAFETY: inside the ring and the destination by the caller's word.
        unsafe { dst.add(i).write((*base.add((at + i) / BLOCK)).get()[(at + i) % BLOCK]) };
    }
}
