//! A ring whose index is published without an order: ThreadSanitizer must report it.
//!
//! The TSan step compiles and runs this before it trusts a silent sanitizer. It is not part of any crate.

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Ring {
    slots: UnsafeCell<[u64; 64]>,
    written: AtomicUsize,
}

// SAFETY: none; being wrong about this is what the program is for.
unsafe impl Sync for Ring {}

static RING: Ring = Ring { slots: UnsafeCell::new([0; 64]), written: AtomicUsize::new(0) };

fn main() {
    let writer = std::thread::spawn(|| {
        for at in 0..64 {
            // SAFETY: the slot is in bounds; the missing order is the fault to be found.
            unsafe { (*RING.slots.get())[at] = at as u64 };
            RING.written.store(at + 1, Ordering::Relaxed);
        }
    });
    let mut sum = 0;
    for at in 0..64 {
        while RING.written.load(Ordering::Relaxed) <= at {
            std::hint::spin_loop();
        }
        // SAFETY: the slot is in bounds; the missing order is the fault to be found.
        sum += unsafe { (*RING.slots.get())[at] };
    }
    writer.join().expect("the writer does not panic");
    println!("{sum}");
}
