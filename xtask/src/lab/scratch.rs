//! A run's temporary folder, which goes away however the run ends.
//!
//! Dropping it removes it. For the ends that drop nothing (Ctrl-C, SIGKILL) a guardian stands by: a shell in a
//! process group of its own that reads from a pipe whose other end only we hold. When we are gone it reads the
//! end of file and removes the folder. QEMU itself dies with us through `setpriv --pdeathsig`.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

/// A folder for sockets and the like. In `/tmp`, since a socket's path has room for 107 bytes only.
pub(crate) struct Scratch {
    path: PathBuf,
    guardian: Child,
}

impl Scratch {
    /// Makes one.
    ///
    /// # Errors
    /// When the folder or the guardian cannot be made.
    pub(crate) fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/kfab-lab-{}-{count}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).with_context(|| path.display().to_string())?;
        let guardian = Command::new("sh")
            .args(["-c", "read -r _; rm -rf -- \"$1\"", "lab-guardian"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        match guardian {
            Ok(guardian) => Ok(Self { path, guardian }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error).context("sh")
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The guardian does the work here too, so that it is tried every time.
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_goes_away_with_its_content() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
