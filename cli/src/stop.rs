//! Ctrl-C: a flag that loops look at. The second one, or the first when nobody looks for a while, ends the process.

use crate::failure::{Failure, INTERRUPTED, Result};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static PRESSED: AtomicU32 = AtomicU32::new(0);

/// How long a command has to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Catches Ctrl-C (and SIGTERM, SIGHUP) from now on.
pub(crate) fn install() {
    // Without a handler the signal ends the process, which is not wrong either.
    let _ = ctrlc::set_handler(|| {
        if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(INTERRUPTED.into());
        }
        std::thread::spawn(|| {
            std::thread::sleep(GRACE);
            std::process::exit(INTERRUPTED.into());
        });
    });
}

/// A child leaves Ctrl-C to its parent, whose end it notices.
pub(crate) fn leave_to_parent() {
    let _ = ctrlc::set_handler(|| {});
}

/// `true` once Ctrl-C was pressed.
pub(crate) fn pressed() -> bool {
    PRESSED.load(Ordering::Relaxed) > 0
}

/// An error once Ctrl-C was pressed.
pub(crate) fn check() -> Result<()> {
    if pressed() { Err(Failure::interrupted()) } else { Ok(()) }
}
