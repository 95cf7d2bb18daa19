//! The Debian packages that the lab uses: the one place that names them.
//!
//! Nothing here needs rights except installing, which root does at once and everyone else is told how to.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use super::options::KernelLine;
use crate::apt::{self, Unobtainable};
use crate::sh::on_path;

/// A package and what the lab wants of it.
pub(crate) struct Package {
    /// Debian's name for it.
    pub(crate) name: &'static str,
    /// What it is here for.
    pub(crate) why: &'static str,
}

const fn package(name: &'static str, why: &'static str) -> Package {
    Package { name, why }
}

/// What a start needs, and the RDMA tools that a guest sees because the host has them.
pub(crate) const PACKAGES: [Package; 14] = [
    package("qemu-system-x86", "the machine"),
    package("busybox-static", "the guest's first programs"),
    package("kmod", "which kernel modules need which others"),
    package("xz-utils", "unpacks the 6.1 kernel and its modules"),
    package("zstd", "unpacks the 6.12 kernel"),
    package("iproute2", "ip, rdma, tc, ss: cards and cables"),
    package("rdma-core", "configuration of the verbs libraries"),
    package("ibverbs-providers", "libibverbs' drivers for soft-RoCE and cards"),
    package("ibverbs-utils", "ibv_devinfo, ibv_rc_pingpong"),
    package("rdmacm-utils", "rping, ucmatose; librdmacm"),
    package("perftest", "ib_send_lat, ib_write_bw"),
    package("libfabric-bin", "fi_info, fi_pingpong"),
    package("numactl", "shows and binds NUMA nodes"),
    package("hwloc-nox", "lstopo"),
];

/// What it takes to build a module for a guest.
const COMPILER: [Package; 2] =
    [package("make", "builds a kernel module"), package("gcc-12", "as Debian built its kernels")];

/// Makes sure that all [`PACKAGES`] are installed, as root by installing what is missing.
///
/// # Errors
/// [`Unobtainable`] when something is missing and cannot be had; another when apt fails otherwise.
pub(crate) fn ensure_installed() -> Result<()> {
    install_missing(&PACKAGES)
}

/// Makes sure that modules can be built, in the same way.
///
/// # Errors
/// As [`ensure_installed`].
pub(crate) fn ensure_compiler() -> Result<()> {
    install_missing(&COMPILER)
}

fn install_missing(packages: &[Package]) -> Result<()> {
    let missing = missing(packages)?;
    if missing.is_empty() { Ok(()) } else { apt::add(&missing) }
}

fn missing(packages: &[Package]) -> Result<Vec<&'static str>> {
    if !on_path("dpkg-query") {
        let why = anyhow!("the lab is made of Debian packages and needs Debian, or a relative of it");
        return Err(why.context(Unobtainable));
    }
    let query = Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status} ${Package}\n"])
        .args(packages.iter().map(|package| package.name))
        .output()
        .context("dpkg-query")?;
    let known = String::from_utf8_lossy(&query.stdout);
    let installed: Vec<_> = known.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(packages.iter().map(|package| package.name).filter(|name| !installed.contains(name)).collect())
}

/// Name of the package with the newest kernel of a line, such as `linux-image-6.1.0-56-amd64`.
///
/// # Errors
/// [`Unobtainable`] when apt knows none. Root's lists are renewed before it is given up: those of a fresh machine are empty.
pub(crate) fn newest_kernel(line: KernelLine) -> Result<String> {
    known_kernel(line).or_else(|why| apt::renew_lists(why).and_then(|()| known_kernel(line)))
}

/// Downloads a package into `folder`.
///
/// # Errors
/// [`Unobtainable`] when it cannot be had, also after root's lists are renewed: old packages vanish from the archive.
pub(crate) fn download(package: &str, folder: &Path) -> Result<()> {
    let fetch = || apt::get(&["download", package], folder);
    fetch().or_else(|why| apt::renew_lists(why).and_then(|()| fetch()))
}

/// The version of a package that apt would fetch.
///
/// # Errors
/// [`Unobtainable`] when apt knows none: old packages vanish from the archive.
pub(crate) fn version(package: &str) -> Result<String> {
    let said = cache("show", package)?;
    let first = said.lines().find_map(|line| line.strip_prefix("Version: "));
    first.map(str::to_owned).with_context(|| format!("apt knows no {package}")).context(Unobtainable)
}

/// The packages that another needs, of those whose names begin so.
///
/// # Errors
/// When apt cannot be asked.
pub(crate) fn needed_by(package: &str, prefixes: &[&str]) -> Result<Vec<String>> {
    let said = cache("depends", package)?;
    let names = said.lines().filter_map(|text| text.trim().strip_prefix("Depends: "));
    Ok(names.filter(|name| prefixes.iter().any(|p| name.starts_with(p))).map(str::to_owned).collect())
}

fn cache(question: &str, package: &str) -> Result<String> {
    let out = Command::new("apt-cache").args([question, package]).output().context("apt-cache")?;
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

fn known_kernel(line: KernelLine) -> Result<String> {
    for meta in ["linux-image-amd64".to_owned(), format!("linux-image-{}-amd64", line.version())] {
        if let Some(name) = kernel_in(&cache("depends", &meta)?, line) {
            return Ok(name);
        }
    }
    let why = "run apt-get update (as root), or add an archive that has it";
    Err(anyhow!("apt knows no kernel {}: {why}", line.version()).context(Unobtainable))
}

/// The kernel of `line` among the lines that `apt-cache depends META` prints.
///
/// The cloud flavour is passed over: it has neither soft-RoCE nor 9p.
fn kernel_in(depends: &str, line: KernelLine) -> Option<String> {
    let prefix = format!("linux-image-{}.", line.version());
    let names = depends.lines().filter_map(|text| text.trim().strip_prefix("Depends: "));
    names
        .map(str::trim)
        .find(|name| name.starts_with(&prefix) && name.ends_with("-amd64") && !name.contains("-cloud-"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_is_found_in_what_apt_says() {
        let v6_1 = "linux-image-amd64\n  Depends: linux-image-6.1.0-56-amd64\n";
        let found = kernel_in(v6_1, KernelLine::V6_1);
        assert_eq!(found.as_deref(), Some("linux-image-6.1.0-56-amd64"));
        let v6_12 = "linux-image-6.12-amd64\n  Depends: linux-image-6.12.117+deb12-amd64\n  Suggests: x\n";
        assert_eq!(kernel_in(v6_12, KernelLine::V6_12).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
    }

    #[test]
    fn other_lines_and_flavours_are_passed_over() {
        let v6_12 = "  Depends: linux-image-6.12.117+deb12-amd64";
        assert_eq!(kernel_in(v6_12, KernelLine::V6_1), None);
        assert_eq!(kernel_in("  Depends: linux-image-6.1.0-56-cloud-amd64", KernelLine::V6_1), None);
        assert_eq!(kernel_in("  Depends: linux-image-6.1.0-56-arm64", KernelLine::V6_1), None);
        assert_eq!(kernel_in("  Recommends: linux-image-6.1.0-56-amd64", KernelLine::V6_1), None);
        assert_eq!(kernel_in("", KernelLine::V6_1), None);
    }

    #[test]
    fn no_package_is_named_twice() {
        let mut names: Vec<_> = PACKAGES.iter().map(|package| package.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
    }
}
