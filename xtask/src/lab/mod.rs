//! The machine lab: `cargo xtask lab -- COMMAND` runs a command in a virtual machine with RDMA cards.
//!
//! The guest is a stock Debian kernel under QEMU on top of this machine's own files, with soft-RoCE
//! (`rdma_rxe`) or soft-iWARP ([`siw`]) cards on cables of its own. `docs/LAB.md` is the manual. What happens where:
//! [`options`] reads the command line; [`packages`] and [`kernel`] fill the cache; [`accel`] picks KVM or TCG;
//! [`session`] runs guests, each a [`machine`] with the arguments of [`qemu`] and the files of [`job`]. The
//! guest's part is in the repository's `lab/` folder.
//!
//! `main.rs` hands every word after `lab` to [`run`].

mod accel;
mod cpio;
mod cut;
mod job;
mod kernel;
mod machine;
mod options;
mod packages;
mod qemu;
mod scratch;
mod selftest;
mod session;
mod siw;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;

use job::Side;
use options::{Options, Plan};
use session::{Ending, Outcome, Sinks};

/// Status when the guest gave none, as `timeout` and `git bisect run` know it.
const NO_STATUS: u8 = 125;

/// Runs the lab with the words that followed `lab` on the command line, for somebody who is in the folder `here`.
///
/// The status is the command's, or 125 when there is none.
///
/// # Errors
/// When standard output or error cannot be written. All else that goes wrong is told there and gives 125.
pub(crate) fn run(args: Vec<String>, here: &Path) -> Result<ExitCode> {
    let options = match Options::read(args) {
        Ok(options) => options,
        Err(error) => {
            error.print()?;
            return Ok(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)));
        }
    };
    if options.list_packages {
        list_packages(options.verbose)?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(carry_out(&options, here).unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        ExitCode::from(NO_STATUS)
    }))
}

/// Does what the options ask for.
///
/// # Errors
/// When they do not fit together, packages or kernels cannot be had, or QEMU does not start.
fn carry_out(options: &Options, here: &Path) -> Result<ExitCode> {
    packages::ensure_installed()?;
    let kernel = kernel::prepare(&cache(), options.kernel, options.renew)?;
    if options.iwarp {
        siw::add(&kernel)?;
    }
    if options.prepare {
        println!("{} is ready in {}", kernel.release()?, kernel.root.display());
        return Ok(ExitCode::SUCCESS);
    }
    if options.selftest {
        return selftest::run(options, &kernel);
    }
    let plan = options.plan(here)?;
    let accel = accel::choose(plan.accel, &cache(), &kernel)?;
    let outcome = session::run(&plan, &kernel, accel, &mut streams)?;
    if plan.verbose {
        tell_times(&plan, &kernel, accel, &outcome)?;
    }
    Ok(ExitCode::from(match outcome.ending {
        Ending::Status(status) => status,
        Ending::Lost(why) | Ending::Unborn(why) => {
            eprint!("lab: {why}\n{}", outcome.remains);
            NO_STATUS
        }
    }))
}

/// Makes sure that guests with this kernel can be started.
///
/// # Errors
/// With [`Unobtainable`](crate::apt::Unobtainable) where Debian, its packages or the kernel cannot be had; without, something is wrong.
pub(crate) fn prepare(line: &str, iwarp: bool) -> Result<()> {
    let options = Options::read(["--kernel", line, "--prepare"])?;
    packages::ensure_installed()?;
    let kernel = kernel::prepare(&cache(), options.kernel, false)?;
    if iwarp { siw::add(&kernel) } else { Ok(()) }
}

/// Where kernels are kept: `$KFAB_LAB_DIR`, or `target/lab` in the repository.
fn cache() -> PathBuf {
    match std::env::var_os("KFAB_LAB_DIR") {
        Some(dir) => std::path::absolute(&dir).unwrap_or(dir.into()),
        None => repository().join("target/lab"),
    }
}

/// The checkout this was started from, or else built from.
fn repository() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    package.parent().unwrap_or(Path::new(".")).to_owned()
}

/// One name a line, for `apt-get install`; with `why`, what each is for.
fn list_packages(why: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for package in &packages::PACKAGES {
        if why {
            writeln!(out, "{:20} {}", package.name, package.why)?;
        } else {
            writeln!(out, "{}", package.name)?;
        }
    }
    Ok(())
}

fn tell_times(plan: &Plan, kernel: &kernel::Kernel, accel: accel::Accel, outcome: &Outcome) -> Result<()> {
    let seconds = |time: Option<std::time::Duration>| match time {
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
        None => "-".to_owned(),
    };
    let commands = outcome.boot.map(|boot| outcome.total.saturating_sub(boot));
    eprintln!(
        "lab: {} on {accel:?}, {} cores, {} MiB: up in {}, command {}, all {}",
        kernel.release()?,
        plan.shape.smp,
        plan.shape.memory_mib,
        seconds(outcome.boot),
        seconds(commands),
        seconds(Some(outcome.total)),
    );
    Ok(())
}

/// The caller's streams; the second guest's output goes to standard error, marked as its.
fn streams(side: Side) -> Sinks {
    match side {
        Side::One | Side::A => Sinks { out: Box::new(io::stdout()), err: Box::new(io::stderr()) },
        Side::B => Sinks { out: Box::new(Marked::default()), err: Box::new(Marked::default()) },
    }
}

/// Writes whole lines to standard error, each after `[b] `.
#[derive(Default)]
struct Marked {
    line: Vec<u8>,
}

impl Marked {
    fn put(&mut self) -> io::Result<()> {
        let mut text = b"[b] ".to_vec();
        text.append(&mut self.line);
        io::stderr().lock().write_all(&text)
    }
}

impl Write for Marked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.put()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.line.push(b'\n');
            let _ = self.put();
        }
    }
}
