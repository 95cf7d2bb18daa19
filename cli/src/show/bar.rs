//! A progress bar on standard error, if that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

/// Steps per piece of work.
const STEPS: u64 = 1000;

/// The bar of a number of equal pieces of work. Gone when dropped.
pub(crate) struct Bar {
    inner: ProgressBar,
    done: u64,
}

impl Bar {
    pub(crate) fn new(pieces: usize) -> Bar {
        let target = if std::io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let inner = ProgressBar::with_draw_target(Some(pieces as u64 * STEPS), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
            inner.set_style(style);
        }
        Bar { inner, done: 0 }
    }

    /// Names the piece that begins.
    pub(crate) fn begin(&self, what: String) {
        self.inner.set_message(what);
    }

    /// Part `part` of the piece is done.
    pub(crate) fn tick(&self, part: f64) {
        self.inner.set_position(self.done + (part.clamp(0.0, 1.0) * STEPS as f64) as u64);
    }

    /// The piece is done.
    pub(crate) fn end(&mut self) {
        self.done += STEPS;
        self.inner.set_position(self.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.inner.finish_and_clear();
    }
}
