//! apt, and the native packages that the test command needs: one table, and how each is found and installed.
//!
//! The default build needs none of them. [`install`] is the first step of `cargo xtask test`; the lab gets its packages and kernels
//! through [`get`] and [`add`].

use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow};

use crate::sh::{Sh, on_path};

/// The context of an error that says: this cannot be had here, for want of rights, of a network, or of an archive that has it. All
/// other errors are defects.
#[derive(Debug)]
pub(crate) struct Unobtainable;

impl fmt::Display for Unobtainable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot be had here")
    }
}

/// What apt says (`LC_ALL=C`) when it knows no such package, and when it reaches no archive.
const UNOBTAINABLE: [&str; 18] = [
    "Unable to locate package",
    "has no installation candidate",
    "' was not found",
    "find a source to download",
    "Temporary failure resolving",
    "Could not resolve",
    "Could not connect",
    "Cannot initiate the connection",
    "Unable to connect",
    "onnection timed out",
    "etwork is unreachable",
    "Connection failed",
    "Connection reset",
    "Error reading from server",
    "Not Found [IP",
    "Service Unavailable",
    "Bad Gateway",
    "Gateway Time",
];

/// How to tell that a package is already there, whoever installed it.
enum Probe {
    /// A command on the path.
    Command(&'static str),
    /// A library that pkg-config knows.
    Library(&'static str),
}

/// One native package.
pub(crate) struct Package {
    /// Its name for apt.
    pub(crate) name: &'static str,
    /// What cannot be checked without it.
    pub(crate) why: &'static str,
    probe: Probe,
}

const fn package(name: &'static str, probe: Probe, why: &'static str) -> Package {
    Package { name, why, probe }
}

/// Every native package the test command wants.
pub(crate) const PACKAGES: &[Package] = &[
    package("pkg-config", Probe::Command("pkg-config"), "finding hwloc"),
    package("libhwloc-dev", Probe::Library("hwloc"), "the hwloc feature of kfab-topo"),
    package("libudev-dev", Probe::Library("libudev"), "the hwloc feature of kfab-topo"),
    package("g++", Probe::Command("g++"), "the fuzz targets (libFuzzer is C++)"),
    package("iproute2", Probe::Command("ip"), "rail tests in network namespaces"),
    package("nftables", Probe::Command("nft"), "rail tests with lost packets"),
    package("libibverbs-dev", Probe::Library("libibverbs"), "comparison with the headers of verbs"),
    package("librdmacm-dev", Probe::Library("librdmacm"), "comparison with the headers of verbs"),
];

/// The packages that the peers of `cargo xtask peers` come in.
pub(crate) const PEERS: &[Package] = &[
    package("ucx-utils", Probe::Command("ucx_perftest"), "UCX 1.13"),
    package("libfabric-bin", Probe::Command("fi_pingpong"), "libfabric 1.17"),
    package("openmpi-bin", Probe::Command("mpirun.openmpi"), "Open MPI 4.1"),
    package("libopenmpi-dev", Probe::Command("mpicc.openmpi"), "Open MPI 4.1 (its compiler wrapper)"),
    package("python3-venv", Probe::Command("python3"), "UCX 1.22 and Open MPI 5.0 from PyPI"),
];

impl Package {
    fn is_there(&self) -> bool {
        match self.probe {
            Probe::Command(name) => on_path(name),
            Probe::Library(name) => Sh::new(["pkg-config", "--exists", name]).works(),
        }
    }
}

/// The packages of `table` that are missing.
pub(crate) fn missing(table: &'static [Package]) -> Vec<&'static Package> {
    table.iter().filter(|package| !package.is_there()).collect()
}

/// True when the named package of [`PACKAGES`] is there.
pub(crate) fn has(name: &str) -> bool {
    PACKAGES.iter().any(|package| package.name == name && package.is_there())
}

/// Installs what is missing of `table` where that is possible, and says what stays missing and what that costs.
/// Returns the packages that are missing afterwards.
///
/// # Errors
/// When apt fails for another reason than that they cannot be had.
pub(crate) fn install(table: &'static [Package]) -> Result<Vec<&'static Package>> {
    let wanted = missing(table);
    if wanted.is_empty() {
        println!("  {} native packages, all there", table.len());
        return Ok(wanted);
    }
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    match add(&names) {
        Err(why) if why.is::<Unobtainable>() => println!("  {why:#}"),
        added => added?,
    }
    let still = missing(table);
    for package in &still {
        println!("  missing: {:<16} without it: no {}", package.name, package.why);
    }
    Ok(still)
}

/// Installs packages.
///
/// # Errors
/// [`Unobtainable`] when we may not, with the command that would, or when they do not come, also after the lists are renewed: those
/// of a fresh machine are empty.
pub(crate) fn add(names: &[&str]) -> Result<()> {
    let words = [&["install", "--no-install-recommends"], names].concat();
    if !is_root() {
        let why = anyhow!("packages are missing; install them with\n  sudo apt-get {}", words.join(" "));
        return Err(why.context(Unobtainable));
    }
    eprintln!("  installing {}", names.join(" "));
    let install = || get(&[&["-y"], &words[..]].concat(), Path::new("/"));
    install().or_else(|why| renew_lists(why).and_then(|()| install()))
}

/// `apt-get update`, where we may.
///
/// # Errors
/// `why` it is wanted, as [`Unobtainable`], where we may not; and as [`get`].
pub(crate) fn renew_lists(why: anyhow::Error) -> Result<()> {
    if is_root() { get(&["update"], Path::new("/")) } else { Err(why.context(Unobtainable)) }
}

/// Runs `apt-get` in a folder, as soon as others have let go of dpkg's lock.
///
/// # Errors
/// [`Unobtainable`] when what it is asked for cannot be had; another when it fails.
pub(crate) fn get(words: &[&str], folder: &Path) -> Result<()> {
    if !on_path("apt-get") {
        return Err(anyhow!("there is no apt-get").context(Unobtainable));
    }
    let apt = Sh::line("apt-get -qq -o DPkg::Lock::Timeout=600").args(words).within(folder);
    let apt = apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").quiet().limit_s(1800);
    apt.read().map(drop).map_err(judged)
}

/// The error, marked if it says that something cannot be had.
fn judged(error: anyhow::Error) -> anyhow::Error {
    let said = format!("{error:#}");
    if UNOBTAINABLE.iter().any(|words| said.contains(words)) { error.context(Unobtainable) } else { error }
}

/// True when this process may install packages.
pub(crate) fn is_root() -> bool {
    Sh::line("id -u").quiet().read().is_ok_and(|uid| uid.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_says_why_and_stands_once() {
        for (at, package) in PACKAGES.iter().enumerate() {
            assert!(!package.why.is_empty());
            assert!(PACKAGES[..at].iter().all(|other| other.name != package.name), "{}", package.name);
        }
    }

    #[test]
    fn a_probe_tells_what_is_not_there() {
        let absent = package("nothing", Probe::Command("no-such-command-here"), "anything");
        assert!(!absent.is_there());
        assert!(package("shell", Probe::Command("sh"), "anything").is_there());
    }

    #[test]
    fn only_what_cannot_be_had_is_unobtainable() {
        let unobtainable =
            |said: &str| judged(anyhow!("exit code 100: apt-get\n    {said}")).is::<Unobtainable>();
        for said in [
            "E: Unable to locate package no-such-package",
            "E: Package 'x' has no installation candidate",
            "E: Version '1' for 'x' was not found",
            "E: Failed to fetch http://deb.debian.org/x.deb  Temporary failure resolving 'deb.debian.org'",
            "E: Failed to fetch http://x/y.deb  Could not connect to x:80 (10.0.0.1), connection timed out",
            "E: Failed to fetch http://x/y.deb  404  Not Found [IP: 10.0.0.1 80]",
            "E: Failed to fetch http://x/y.deb  503  Service Unavailable [IP: 10.0.0.1 80]",
        ] {
            assert!(unobtainable(said), "{said}");
        }
        for said in [
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (apt-get)",
            "E: Sub-process /usr/bin/dpkg returned an error code (1)",
            "E: You don't have enough free space in /var/cache/apt/archives/.",
            "E: Failed to fetch http://x/y.deb  Hash Sum mismatch",
        ] {
            assert!(!unobtainable(said), "{said}");
        }
    }

    #[test]
    fn apt_says_that_it_knows_no_such_package() {
        let folder = std::env::temp_dir();
        let why = get(&["download", "no-such-package-anywhere"], &folder).unwrap_err();
        assert!(why.is::<Unobtainable>(), "{why:#}");
    }
}
