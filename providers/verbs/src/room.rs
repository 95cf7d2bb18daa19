//! How much a card lets register (`max_mr`, `max_mr_size` of its attributes): looked at when a card is opened, asked before each
//! registration, named where it is the reason for a refusal. Called by `sys`, `memory` and `device`.

use crate::ffi;
use crate::memory::LARGEST_BYTES;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Registrations that a port needs at the very least: its slots, some memory of the program, some windows.
const LEAST: usize = 16;

/// What may be registered in a protection domain. The card's other users have their part of the number, too; they do not show here.
pub(crate) struct Room {
    max: usize,
    max_bytes: usize,
    used: AtomicUsize,
}

impl Room {
    pub(crate) fn of(attr: &ffi::DeviceAttr) -> Room {
        Room::new(u64::try_from(attr.max_mr).unwrap_or(0), attr.max_mr_size)
    }

    /// So many registrations of so many bytes; 0 where the driver does not say.
    fn new(max: u64, max_bytes: u64) -> Room {
        let told = |n: u64| usize::try_from(n).ok().filter(|n| *n > 0).unwrap_or(usize::MAX);
        Room { max: told(max), max_bytes: told(max_bytes), used: AtomicUsize::new(0) }
    }

    /// The most registrations.
    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// The most bytes of one.
    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Why the card is no good for a port, if it is not.
    pub(crate) fn lacks(&self) -> Option<String> {
        if self.max < LEAST {
            return Some(format!(
                "the card has {} memory registrations (max_mr), a port needs {LEAST}",
                self.max
            ));
        }
        (self.max_bytes < LARGEST_BYTES).then(|| {
            format!(
                "the card registers {} bytes at once (max_mr_size), a port needs {LARGEST_BYTES}",
                self.max_bytes
            )
        })
    }

    /// Before a registration: a refusal that says which limit of the card is in the way.
    pub(crate) fn check(&self, bytes: usize) -> io::Result<()> {
        if bytes > self.max_bytes {
            let why = format!("the card registers {} bytes at once (max_mr_size)", self.max_bytes);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if self.used() >= self.max {
            let why = format!("all {} memory registrations of the card (max_mr) are in use", self.max);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, why));
        }
        Ok(())
    }

    pub(crate) fn taken(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn given_back(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Registrations there are.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Whether a registration failed for want of something that ending another one may give back.
pub(crate) fn ran_out(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::QuotaExceeded
        || matches!(e.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::ENOSPC))
}

/// Explains a refused registration; `locked` is the limit on locked memory, bytes, if there is one.
pub(crate) fn refusal(room: &Room, card: &str, bytes: usize, e: &io::Error, locked: Option<u64>) -> String {
    let what = format!("{card}: {bytes} bytes cannot be registered: {e}");
    match (e.raw_os_error(), locked) {
        (Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN), Some(n)) => {
            format!(
                "{what}; the limit on locked memory is {} KiB, raise it (`ulimit -l unlimited`)",
                n / 1024
            )
        }
        (Some(libc::ENOMEM | libc::EAGAIN | libc::ENOSPC), None) => format!(
            "{what}; locked memory has no limit here: the card's registrations (max_mr: {}, {} of them are this port's) or the machine's memory \
             have run out",
            room.max,
            room.used()
        ),
        _ => what,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn room(max: u64, max_bytes: u64) -> Room {
        Room::new(max, max_bytes)
    }

    #[test]
    fn the_limit_that_refuses_is_named() {
        let r = room(2, 1 << 20);
        r.taken();
        assert!(r.check(1 << 20).is_ok());
        let large = r.check((1 << 20) + 1).unwrap_err();
        assert!(large.to_string().contains("1048576 bytes at once (max_mr_size)") && !ran_out(&large));
        r.taken();
        let many = r.check(1).unwrap_err();
        assert!(many.to_string().contains("all 2 memory registrations") && ran_out(&many), "{many}");
        assert!(refusal(&r, "card", 1, &many, Some(64 << 10)).ends_with("(max_mr) are in use"));
        r.given_back();
        assert!(r.check(1).is_ok());

        let full = io::Error::from_raw_os_error(libc::ENOMEM);
        assert!(ran_out(&full));
        let locked = refusal(&r, "card", 4096, &full, Some(64 << 10));
        assert!(locked.contains("locked memory is 64 KiB") && !locked.contains("max_mr"), "{locked}");
        let other = refusal(&r, "card", 4096, &full, None);
        assert!(other.contains("max_mr: 2, 1 of them") && !other.contains("ulimit"), "{other}");
        let bad = io::Error::from_raw_os_error(libc::EFAULT);
        assert!(!refusal(&r, "card", 1, &bad, Some(1)).contains("ulimit") && !ran_out(&bad));
    }

    #[test]
    fn a_card_with_too_little_room_is_refused_at_the_door() {
        assert_eq!(room(1000, u64::MAX).lacks(), None);
        assert_eq!(room(0, 0).lacks(), None, "not told");
        assert!(room(15, u64::MAX).lacks().unwrap().contains("15 memory registrations (max_mr)"));
        assert!(room(1000, 65_536).lacks().unwrap().contains("65536 bytes at once (max_mr_size)"));
    }
}
