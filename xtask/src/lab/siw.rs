//! Soft-iWARP for guests: Debian's kernels come without it (`CONFIG_RDMA_SIW`), so the module is built here, out of the kernel's own
//! source package against its headers, once for each kernel in the cache. Nothing is installed but a compiler.
//!
//! Called by [`super`] for runs with `--iwarp`; `lab/wire.sh` loads the module.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernel::{Kernel, call, sweep};
use super::packages;

/// The driver's folder in the kernel's source.
const FOLDER: &str = "drivers/infiniband/sw/siw";

/// Makes sure that the kernel in the cache has the module.
///
/// # Errors
/// [`Unobtainable`](crate::apt::Unobtainable) where the packages cannot be had; another when it does not build.
pub(crate) fn add(kernel: &Kernel) -> Result<()> {
    let release = kernel.release()?;
    let modules = kernel.root.join("lib/modules").join(&release);
    let module = modules.join("extra/siw.ko");
    let listed = || Ok::<_, std::io::Error>(lists(&fs::read_to_string(modules.join("modules.dep"))?));
    if listed()? {
        return Ok(());
    }
    sweep(&kernel.root)?;
    // Whoever put it there may have been ended before it was listed.
    if !module.exists() {
        packages::ensure_compiler()?;
        eprintln!("lab: building siw for {release}");
        let work = kernel.root.join(format!("siw-{}", std::process::id()));
        fs::create_dir_all(&work)?;
        let built = build(&work, &release).and_then(|()| {
            fs::create_dir_all(modules.join("extra"))?;
            Ok(fs::rename(work.join("siw.ko"), &module)?)
        });
        fs::remove_dir_all(&work)?;
        built.with_context(|| format!("building siw for {release}"))?;
    }
    call(Command::new("depmod").arg("-b").arg(&kernel.root).arg(&release))?;
    ensure!(listed()?, "depmod does not list siw for {release}");
    Ok(())
}

/// Whether a `modules.dep` has the module, so that `modprobe` finds it.
fn lists(modules_dep: &str) -> bool {
    modules_dep.lines().any(|line| line.starts_with("extra/siw.ko:"))
}

/// Leaves `siw.ko` in `work`.
fn build(work: &Path, release: &str) -> Result<()> {
    let headers = format!("linux-headers-{release}");
    let line: Vec<_> = release.split('.').take(2).collect();
    let source = format!("linux-source-{}", line.join("."));
    packages::download(&format!("{source}={}", packages::version(&headers)?), work)?;
    unpack(work)?;
    let archive = work.join(format!("usr/src/{source}.tar.xz"));
    let driver = format!("{source}/{FOLDER}");
    call(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(work).arg(&driver))?;
    for package in
        packages::needed_by(&headers, &["linux-headers-", "linux-kbuild-"])?.iter().chain([&headers])
    {
        packages::download(package, work)?;
        unpack(work)?;
    }
    let headers = work.join("usr/src").join(headers);
    // It includes the common headers' from where they would be installed.
    let makefile = headers.join("Makefile");
    let text = fs::read_to_string(&makefile)?;
    fs::write(&makefile, text.replace("/usr/src", &work.join("usr/src").to_string_lossy()))?;
    let driver = work.join(driver);
    let from = format!("M={}", driver.display());
    // Without BTF, which takes another program.
    let config = ["CONFIG_RDMA_SIW=m", "CONFIG_DEBUG_INFO_BTF_MODULES="];
    call(Command::new("make").arg("-C").arg(&headers).arg(from).args(config).arg("modules"))?;
    call(Command::new("strip").arg("-g").arg("-o").arg(work.join("siw.ko")).arg(driver.join("siw.ko")))?;
    Ok(())
}

/// Unpacks the package that lies in `work`, and removes it.
fn unpack(work: &Path) -> Result<()> {
    for entry in fs::read_dir(work)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            call(Command::new("dpkg-deb").arg("-x").arg(&path).arg(work))?;
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_depmod_has_not_seen_is_not_there() {
        assert!(lists("kernel/a.ko.xz:\nextra/siw.ko: kernel/drivers/infiniband/core/ib_core.ko.xz\n"));
        assert!(!lists("kernel/a.ko.xz: extra/siw.ko\n"));
        assert!(!lists(""));
    }
}
