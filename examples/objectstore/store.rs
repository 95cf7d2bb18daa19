//! Objects in files of one directory. An object appears whole or not at all: it is written beside its place and then renamed. Two
//! servers may serve one directory, and one may be slow: each change has a version, which stands before the data, and under a lock
//! that both take a change is left out if there has been a later one. A deleted object leaves its version until it is put again.

use crate::protocol::{EIO, ENOENT, LIST_MAX, List, Version, check_name};
use lnet_shim::rpc::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the version before the data.
const HEAD: u64 = 16;

pub struct Store {
    dir: PathBuf,
    /// Differs from that of the other server.
    id: u64,
    temporary: AtomicU64,
}

impl Store {
    pub fn open(dir: PathBuf) -> std::io::Result<Store> {
        fs::create_dir_all(&dir)?;
        Ok(Store { dir, id: RandomState::new().build_hasher().finish(), temporary: AtomicU64::new(0) })
    }

    /// Writes an object, unless it has been changed since `version` was taken: then that was the later change, and this is done too.
    pub fn put(&self, name: &str, version: Version, parts: &[impl AsRef<[u8]>], sync: bool) -> Result<()> {
        check_name(name)?;
        let beside = self.beside();
        let write = || {
            self.write(&beside, version, parts, sync)?;
            let lock = self.lock()?;
            if self.last(name)? < version {
                fs::rename(&beside, self.dir.join(name))?;
                let _ = fs::remove_file(self.grave(name));
            }
            drop(lock);
            if sync { File::open(&self.dir)?.sync_all() } else { Ok(()) }
        };
        let written = write().map_err(|e| failed(name, &e));
        // There still if it was not renamed.
        let _ = fs::remove_file(&beside);
        written
    }

    /// Fills `into` from byte `offset` on; how many bytes there were.
    pub fn get(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize> {
        check_name(name)?;
        let mut read = || {
            let file = File::open(self.dir.join(name))?;
            let (from, mut have) = (HEAD.saturating_add(offset), 0);
            while have < into.len() {
                match file.read_at(&mut into[have..], from.saturating_add(have as u64))? {
                    0 => break,
                    n => have += n,
                }
            }
            Ok(have)
        };
        read().map_err(|e| failed(name, &e))
    }

    pub fn list(&self, list: &List) -> Result<Vec<String>> {
        let entries = fs::read_dir(&self.dir).map_err(|e| failed("the directory", &e))?;
        let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
        let wanted = |n: &String| check_name(n).is_ok() && n.starts_with(&list.prefix) && *n > list.after;
        let mut names: Vec<String> = names.filter(wanted).collect();
        names.sort();
        names.truncate(LIST_MAX);
        Ok(names)
    }

    /// Deletes an object, unless it has been changed since; `false` if there was none.
    pub fn delete(&self, name: &str, version: Version) -> Result<bool> {
        check_name(name)?;
        let beside = self.beside();
        let delete = || {
            let _lock = self.lock()?;
            if self.last(name)? >= version {
                return Ok(true);
            }
            if !self.dir.join(name).try_exists()? {
                return Ok(false);
            }
            self.write(&beside, version, &[[]], false)?;
            fs::rename(&beside, self.grave(name))?;
            fs::remove_file(self.dir.join(name))?;
            Ok(true)
        };
        delete().map_err(|e| failed(name, &e))
    }

    pub fn stat(&self, name: &str) -> Result<u64> {
        check_name(name)?;
        fs::metadata(self.dir.join(name)).map(|m| m.len().saturating_sub(HEAD)).map_err(|e| failed(name, &e))
    }

    /// The version of the last change; the smallest if there was none.
    pub fn version(&self, name: &str) -> Result<Version> {
        check_name(name)?;
        self.last(name).map_err(|e| failed(name, &e))
    }

    /// A place for what is being written.
    fn beside(&self) -> PathBuf {
        self.dir.join(format!(".{:016x}.{}", self.id, self.temporary.fetch_add(1, Ordering::Relaxed)))
    }

    /// Where the version of a deleted object is.
    fn grave(&self, name: &str) -> PathBuf {
        self.dir.join(format!(".gone.{name}"))
    }

    fn write(
        &self,
        at: &PathBuf,
        version: Version,
        parts: &[impl AsRef<[u8]>],
        sync: bool,
    ) -> std::io::Result<()> {
        let mut file = File::create(at)?;
        file.write_all(&version.count.to_le_bytes())?;
        file.write_all(&version.writer.to_le_bytes())?;
        parts.iter().try_for_each(|p| file.write_all(p.as_ref()))?;
        if sync { file.sync_all() } else { Ok(()) }
    }

    /// Keeps all others from changing anything, also of the other server, until it is dropped. Ours ends with us; a server that is
    /// stopped while it has it stops the changes of the other, which is the price of not knowing whether it is dead.
    fn lock(&self) -> std::io::Result<File> {
        let file = File::create(self.dir.join(".lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn last(&self, name: &str) -> std::io::Result<Version> {
        let of = |at: PathBuf| {
            let mut head = [0; HEAD as usize];
            match File::open(at).and_then(|mut file| file.read_exact(&mut head)) {
                Ok(()) => {
                    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
                    Ok(Version { count: number(0), writer: number(8) })
                }
                Err(e) if e.kind() == ErrorKind::NotFound => Ok(Version::default()),
                Err(e) => Err(e),
            }
        };
        Ok(of(self.dir.join(name))?.max(of(self.grave(name))?))
    }
}

fn failed(what: &str, e: &std::io::Error) -> Error {
    let code = if e.kind() == ErrorKind::NotFound { ENOENT } else { EIO };
    Error::failed(code, format!("{what}: {e}"))
}
