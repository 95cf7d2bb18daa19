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
        if !WEAK.get() {
            loom::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

/// The dear half.
pub(super) fn heavy_barrier() {
    #[cfg(not(loom))]
    crate::sys::heavy_barrier();
    #[cfg(loom)]
    if !WEAK.get() {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// The next token. Not loom's: it orders nothing.
static TOKENS: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(1);

#[cfg(not(loom))]
std::thread_local! {
    static TOKEN: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}
#[cfg(loom)]
loom::thread_local! {
    static TOKEN: std::cell::Cell<u32> = std::cell::Cell::new(0);
}

/// A number of this thread that no other has: not 0, not `u32::MAX`. After four thousand million threads there are no more.
#[inline(always)]
pub(super) fn thread_token() -> u32 {
    match TOKEN.with(std::cell::Cell::get) {
        0 => new_token(),
        t => t,
    }
}

#[cold]
fn new_token() -> u32 {
    let t = TOKENS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    assert!(t < u32::MAX - 1, "threads without number");
    TOKEN.with(|token| token.set(t));
    t
}

/// Plain bytes that one side writes and the other reads, handed over by an atomic.
#[cfg(not(loom))]
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Cell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T: Copy> Cell<T> {
    /// Where the contents lie.
    #[inline(always)]
    pub(super) fn as_ptr(&self) -> *mut T {
        self.0.get()
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
    /// The cell lies in live, initialised memory.
    pub(super) unsafe fn get(&self) -> T {
        // SAFETY: loom checks that nobody writes meanwhile; the memory is live by the caller's word.
        self.0.with(|p| unsafe { p.read() })
    }

    /// # Safety
    /// As for `get`; only the side whose turn it is may call this.
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

/// Copies few bytes (at most 40), each size in two or three moves that may overlap: a call of memcpy takes longer than that.
///
/// # Safety
/// `dst` is writable for `src.len()` bytes, which are at most 40, and no part of `src`.
#[cfg(not(loom))]
#[inline(always)]
pub(super) unsafe fn copy_small(src: &[u8], dst: *mut u8) {
    /// Moves a `T` from byte `at` of the one to byte `at` of the other.
    #[inline(always)]
    unsafe fn move_at<T: Copy>(src: *const u8, dst: *mut u8, at: usize) {
        // SAFETY: `at + size_of::<T>()` is at most the length at each call below; plain bytes, unaligned.
        unsafe { dst.add(at).cast::<T>().write_unaligned(src.add(at).cast::<T>().read_unaligned()) }
    }
    let (n, src) = (src.len(), src.as_ptr());
    // SAFETY: every move lies inside the first `n` bytes of both, by the bounds of its arm.
    unsafe {
        match n {
            8 => move_at::<u64>(src, dst, 0),
            0 => {}
            1..=3 => {
                move_at::<u8>(src, dst, 0);
                move_at::<u8>(src, dst, n / 2);
                move_at::<u8>(src, dst, n - 1);
            }
            4..=7 => {
                move_at::<u32>(src, dst, 0);
                move_at::<u32>(src, dst, n - 4);
            }
            9..=16 => {
                move_at::<u64>(src, dst, 0);
                move_at::<u64>(src, dst, n - 8);
            }
            17..=32 => {
                move_at::<[u64; 2]>(src, dst, 0);
                move_at::<[u64; 2]>(src, dst, n - 16);
            }
            _ => {
                move_at::<[u64; 4]>(src, dst, 0);
                move_at::<u64>(src, dst, n - 8);
            }
        }
    }
}

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
