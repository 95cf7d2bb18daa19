//! Kernels in the cache: fetched with apt, unpacked with dpkg-deb, never installed.
//!
//! One folder for each line: `lib/modules/RELEASE`, `vmlinux` (the ELF file out of the compressed image, which
//! QEMU starts directly; unpacking it in the guest would take seconds each time), `initramfs` (busybox and the
//! modules it takes to see the host's files), and `release`, written last. A folder is made under another name, which ends
//! with the number of the process, and then renamed, so that it is whole or absent, whoever else makes one at the same time;
//! [`sweep`] removes those of processes that were ended before.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::cpio::Archive;
use super::options::KernelLine;
use super::packages;

/// Modules loaded before the host's files can be seen; what these need comes along.
const EARLY_MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// Part of the folders' name: raise it when what they hold changes.
const FORMAT: u32 = 1;

/// A kernel ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// Folder with `lib/modules`.
    pub(crate) root: PathBuf,
}

impl Kernel {
    /// What QEMU boots.
    pub(crate) fn image(&self) -> PathBuf {
        self.root.join("vmlinux")
    }

    /// The first part of the initial file system.
    pub(crate) fn initramfs(&self) -> PathBuf {
        self.root.join("initramfs")
    }

    /// As `uname -r` says it.
    pub(crate) fn release(&self) -> Result<String> {
        Ok(fs::read_to_string(self.root.join("release"))?.trim().to_owned())
    }
}

/// The kernel of `line` in `cache`, fetched first if it is not there or `renew` asks for the newest.
///
/// # Errors
/// When apt cannot fetch it, or the package is not as expected.
pub(crate) fn prepare(cache: &Path, line: KernelLine, renew: bool) -> Result<Kernel> {
    let kernel = fetch(cache, line, renew)?;
    // The guest mounts from a place where the host's absolute links lead nowhere.
    Ok(Kernel { root: kernel.root.canonicalize()? })
}

fn fetch(cache: &Path, line: KernelLine, renew: bool) -> Result<Kernel> {
    let kernel = Kernel { root: cache.join(format!("{}-v{FORMAT}", line.version())) };
    let ready = kernel.root.join("release").exists();
    if ready && !renew {
        return Ok(kernel);
    }
    let package = packages::newest_kernel(line)?;
    let release = package.trim_start_matches("linux-image-");
    if ready && kernel.release()? == release {
        return Ok(kernel);
    }
    eprintln!("lab: fetching {package}");
    fs::create_dir_all(cache)?;
    sweep(cache)?;
    let work = cache.join(format!("new-{}-{}", line.version(), std::process::id()));
    let done = build(&work, &package, release).and_then(|()| put_in_place(&work, &kernel.root));
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    done.with_context(|| format!("preparing {package}"))?;
    Ok(kernel)
}

fn put_in_place(work: &Path, root: &Path) -> Result<()> {
    if root.exists() {
        // A guest that still runs on the old one keeps its open files; a new one starts on the new.
        let old = work.with_file_name(format!("new-old-{}", std::process::id()));
        fs::rename(root, &old)?;
        fs::rename(work, root)?;
        return Ok(fs::remove_dir_all(&old)?);
    }
    match fs::rename(work, root) {
        // Somebody else was faster: theirs is as good.
        Err(_) if root.join("release").exists() => Ok(()),
        done => Ok(done?),
    }
}

fn build(work: &Path, package: &str, release: &str) -> Result<()> {
    fs::create_dir_all(work)?;
    packages::download(package, work)?;
    let deb = fs::read_dir(work)?.filter_map(Result::ok).map(|entry| entry.path());
    let deb =
        deb.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb")).context("no .deb came")?;
    call(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(work))?;
    fs::remove_file(deb)?;
    // The package has no list of dependences; its installation would make it.
    call(Command::new("depmod").arg("-b").arg(work).arg(release))?;
    let image = fs::read(work.join(format!("boot/vmlinuz-{release}")))?;
    fs::write(work.join("vmlinux"), elf_of(&image)?)?;
    fs::write(work.join("initramfs"), initramfs(work, release)?)?;
    for folder in ["boot", "usr"] {
        let folder = work.join(folder);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    fs::write(work.join("release"), format!("{release}\n"))?;
    Ok(())
}

/// Removes folders for work (`new-...-PID`, `siw-PID`) of processes that are no more.
///
/// # Errors
/// When the folder cannot be read, or one in it not be removed.
pub(super) fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let pid = name.rsplit_once('-').and_then(|(_, pid)| pid.parse::<u32>().ok());
        let work = ["new-", "siw-"].iter().any(|kind| name.starts_with(kind));
        if work && pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Runs a command to its end.
///
/// # Errors
/// With what it said, if it fails.
pub(super) fn call(command: &mut Command) -> Result<Vec<u8>> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("{:?}", command.get_program()))?;
    if !out.status.success() {
        bail!("{:?}: {}", command, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

/// The ELF file inside a bzImage (Documentation/arch/x86/boot.rst: `payload_offset`, `payload_length`).
fn elf_of(image: &[u8]) -> Result<Vec<u8>> {
    let u32_at = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel image is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    ensure!(image.get(0x202..0x206) == Some(b"HdrS"), "not a bzImage");
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * 512 + u32_at(0x248)?;
    let payload = start.checked_add(u32_at(0x24c)?).and_then(|end| image.get(start..end));
    let payload = payload.context("the kernel image's payload lies outside of it")?;
    // The last four bytes are the size of what was packed.
    let (packed, size) = payload.split_last_chunk::<4>().context("the kernel image has no payload")?;
    let elf = unpacked(packed)?;
    ensure!(
        elf.len() == u32::from_le_bytes(*size) as usize,
        "the kernel unpacks to another size than it says"
    );
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel does not unpack to an ELF file");
    Ok(elf)
}

/// Unpacks XZ or Zstandard, whichever the first bytes say; anything else comes back as it is.
fn unpacked(bytes: &[u8]) -> Result<Vec<u8>> {
    let program = match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        _ => return Ok(bytes.to_vec()),
    };
    let mut child = Command::new(program)
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin was asked for")?;
    let out = std::thread::scope(|scope| {
        // When the program gives up early, its status tells more than the broken pipe.
        scope.spawn(move || drop(input.write_all(bytes)));
        child.wait_with_output()
    })?;
    ensure!(out.status.success(), "{program} cannot unpack it");
    Ok(out.stdout)
}

/// Busybox, the early modules and the order to load them in.
fn initramfs(root: &Path, release: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.folder("bin");
    archive.folder("dev");
    archive.folder("modules");
    archive.file("bin/busybox", 0o755, &fs::read("/bin/busybox")?);
    let mut order = Vec::new();
    for name in EARLY_MODULES {
        let mut depends = Command::new("modprobe");
        depends.arg("-d").arg(root).args(["-S", release, "--show-depends", name]);
        for path in module_paths(&String::from_utf8_lossy(&call(&mut depends)?)) {
            let name = plain_name(&path)?;
            if order.contains(&name) {
                continue;
            }
            let module = unpacked(&fs::read(&path)?).with_context(|| path.display().to_string())?;
            archive.file(&format!("modules/{name}"), 0o644, &module);
            order.push(name);
        }
    }
    ensure!(!order.is_empty(), "no module was found");
    archive.file("modules/order", 0o644, format!("{}\n", order.join("\n")).as_bytes());
    Ok(archive.finish())
}

/// The files in what `modprobe --show-depends` prints: `insmod PATH OPTIONS` or `builtin NAME`.
fn module_paths(depends: &str) -> Vec<PathBuf> {
    let paths = depends.lines().filter_map(|line| line.strip_prefix("insmod "));
    paths.filter_map(|rest| rest.split_whitespace().next()).map(PathBuf::from).collect()
}

/// A module's file name, without the compression's ending.
fn plain_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
    Ok(name.trim_end_matches(".xz").trim_end_matches(".zst").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_read_from_what_modprobe_says() {
        let said =
            "builtin fscache\ninsmod /r/lib/modules/6/kernel/net/9p/9pnet.ko.xz \ninsmod /r/9p.ko debug=1\n";
        let paths = module_paths(said);
        assert_eq!(paths, [Path::new("/r/lib/modules/6/kernel/net/9p/9pnet.ko.xz"), Path::new("/r/9p.ko")]);
        assert_eq!(plain_name(&paths[0]).unwrap(), "9pnet.ko");
        assert_eq!(plain_name(&paths[1]).unwrap(), "9p.ko");
    }

    #[test]
    fn folders_of_processes_that_are_no_more_are_swept_away() {
        let cache = std::env::temp_dir().join(format!("kfab-lab-sweep-{}", std::process::id()));
        let mut gone = Command::new("true").spawn().unwrap();
        let (gone, me) = (gone.wait().map(|_| gone.id()).unwrap(), std::process::id());
        let left =
            [format!("new-6.1-{me}"), format!("siw-{me}"), "6.1-v1".to_owned(), format!("other-{gone}")];
        for name in left.iter().chain(&[format!("new-6.1-{gone}"), format!("siw-{gone}")]) {
            fs::create_dir_all(cache.join(name).join("lib")).unwrap();
        }
        sweep(&cache).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let mut left = left.map(std::ffi::OsString::from);
        names.sort();
        left.sort();
        assert_eq!(names, left);
        fs::remove_dir_all(cache).unwrap();
    }

    /// A bzImage with one setup sector and `payload` right behind it.
    fn image(payload: &[u8], size: u32) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let length = u32::try_from(payload.len() + 4).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&size.to_le_bytes());
        image
    }

    #[test]
    fn elf_file_is_found_in_a_kernel_image() {
        let elf = b"\x7fELF and the rest";
        let size = u32::try_from(elf.len()).unwrap();
        assert_eq!(elf_of(&image(elf, size)).unwrap(), elf);
        assert!(elf_of(&image(elf, size + 1)).is_err());
        assert!(elf_of(&image(b"no such file", 12)).is_err());
    }

    #[test]
    fn truncated_images_are_refused() {
        let elf = b"\x7fELF and the rest";
        let whole = image(elf, u32::try_from(elf.len()).unwrap());
        for length in 0..whole.len() {
            assert!(elf_of(&whole[..length]).is_err(), "{length} bytes were taken");
        }
    }
}
