//! What a provider tells the suite about itself.

use crate::child::Victim;
use kfab_core::Result;
use kfab_core::spi::{Port, PortConfig, Way};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Makes a fresh rig for each case.
pub type Maker = Box<dyn Fn() -> Box<dyn Rig> + Send + Sync>;

/// One configuration of one provider.
pub trait Rig: Send + Sync {
    /// Opens a port. Where `config.listen` is `None` the rig chooses a place that is free and that other ports of the rig reach.
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>>;

    /// The clock for `poll`, ns. Monotonic.
    fn now(&self) -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        let ns = START.get_or_init(Instant::now).elapsed().as_nanos();
        // Never 0: some callers keep that for "not yet".
        u64::try_from(ns).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Called when no port had anything to report: lets time pass.
    fn idle(&self) {
        std::thread::sleep(Duration::from_micros(100));
    }

    /// `false` if ports cannot be slept on nor driven from several threads (virtual time).
    fn real_time(&self) -> bool {
        true
    }

    /// Texts that do not parse as a way of this provider.
    fn malformed(&self) -> Vec<String>;

    /// A well-formed way at which nobody answers, soon.
    fn nobody(&self) -> Option<Way>;

    /// What to put into `PortConfig::listen` to be reached by this way of a port that is gone; `None` if places cannot be chosen.
    fn listen_at(&self, way: &Way) -> Option<String> {
        let _ = way;
        None
    }

    /// `true` if ports with different fabric keys deny each other.
    fn keys(&self) -> bool {
        true
    }

    /// A peer that can be killed: see [`Victim`]. `None` skips the cases of peer death; one that does not start fails them.
    fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
        None
    }

    /// `true` if ports must be had here: a rig that has none then fails, whatever the reason.
    fn demanded(&self) -> bool {
        false
    }

    /// A case that has not got where it wants within this time fails.
    fn patience(&self) -> Duration {
        Duration::from_secs(60)
    }

    /// Cases that this provider is known to fail, by name, each with the reason: shown as ignored.
    fn known_gaps(&self) -> Vec<(&'static str, &'static str)> {
        Vec::new()
    }
}
