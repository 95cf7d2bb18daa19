//! Ctrl-C, SIGTERM and SIGHUP: a flag that loops look at. The second one, or the first when nobody looks for a while, ends the
//! process.

use crate::failure::{Failure, INTERRUPTED, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static PRESSED: AtomicU32 = AtomicU32::new(0);
/// What has to be put right before the process ends.
static LAST: OnceLock<fn()> = OnceLock::new();

/// How long a command has to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// Catches Ctrl-C, SIGTERM and SIGHUP from now on; a SIGHUP that is ignored, as by nohup(1), stays so.
pub(crate) fn install() {
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| *s != SIGHUP || !is_ignored(SIGHUP));
    on_signals(wanted, || {
        if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
            exit();
        }
        std::thread::spawn(|| {
            std::thread::sleep(GRACE);
            exit();
        });
    });
}

/// A child leaves these signals to its parent, whose end it notices.
pub(crate) fn leave_to_parent() {
    on_signals([SIGINT, SIGTERM, SIGHUP], || {});
}

/// Does this too when a signal ends the process in the middle of something.
pub(crate) fn before_exit(last: fn()) {
    let _ = LAST.set(last);
}

/// `true` once Ctrl-C was pressed, or one of the other signals came.
pub(crate) fn pressed() -> bool {
    PRESSED.load(Ordering::Relaxed) > 0
}

/// An error once Ctrl-C was pressed.
pub(crate) fn check() -> Result<()> {
    if pressed() { Err(Failure::interrupted()) } else { Ok(()) }
}

fn on_signals(wanted: impl IntoIterator<Item = i32>, act: fn()) {
    // Without a handler the signal ends the process, which is not wrong either.
    let Ok(mut signals) = Signals::new(wanted) else { return };
    std::thread::spawn(move || signals.forever().for_each(|_| act()));
}

fn exit() -> ! {
    if let Some(last) = LAST.get() {
        last();
    }
    std::process::exit(INTERRUPTED.into())
}

/// `true` where whoever started this process has it ignore a signal (proc_pid_status(5)).
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).is_some_and(|m| (m >> (signal - 1)) & 1 != 0)
}
