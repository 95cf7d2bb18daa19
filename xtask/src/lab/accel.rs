//! What runs the guest's instructions: KVM, where a probe shows that it works, or QEMU's translator (TCG).
//!
//! That `/dev/kvm` is there says little: some hosts have one that starts a machine and then cannot run a
//! stock kernel in it, and QEMU does not fall back once it has begun. So KVM is used only with one of the two
//! modules for real hardware, and only after a guest has come up on it. The answer is kept in the cache for as
//! long as the host is up.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::kernel::Kernel;
use super::options::{AccelChoice, Options};
use super::session;

/// Longest wait for the probing guest.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// An accelerator of QEMU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accel {
    /// The host's virtualization.
    Kvm,
    /// Translation; works everywhere, ten times slower.
    Tcg,
}

/// Picks one.
///
/// # Errors
/// When the probe cannot be set up. A probe that fails is an answer, not an error.
pub(crate) fn choose(choice: AccelChoice, cache: &Path, kernel: &Kernel) -> Result<Accel> {
    match choice {
        AccelChoice::Kvm => Ok(Accel::Kvm),
        AccelChoice::Tcg => Ok(Accel::Tcg),
        AccelChoice::Auto if !promising() => Ok(Accel::Tcg),
        AccelChoice::Auto => remembered(cache, kernel),
    }
}

/// Whether a module for hardware virtualization is loaded and we may use it.
fn promising() -> bool {
    let module = ["kvm_intel", "kvm_amd"].iter().any(|name| Path::new("/sys/module").join(name).exists());
    module && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}

fn remembered(cache: &Path, kernel: &Kernel) -> Result<Accel> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = cache.join("kvm-probe");
    let known = fs::read_to_string(&file).unwrap_or_default();
    if let Some(answer) = known.strip_prefix(&boot) {
        return Ok(if answer == "works" { Accel::Kvm } else { Accel::Tcg });
    }
    let works = probe(kernel)?;
    fs::write(&file, format!("{boot}{}", if works { "works" } else { "fails" }))?;
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}

fn probe(kernel: &Kernel) -> Result<bool> {
    eprintln!("lab: trying KVM");
    let mut plan = Options::read(["--cards", "0", "true"])?.plan(Path::new("/"))?;
    plan.limit = PROBE_LIMIT;
    let ran = session::run(&plan, kernel, Accel::Kvm, &mut |_| session::Sinks::none());
    Ok(ran.is_ok_and(|outcome| outcome.ending == session::Ending::Status(0)))
}
