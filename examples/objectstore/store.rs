//! Objects in files of one directory. An object appears whole or not at all: it is written beside its place and then renamed. Two
//! servers may serve one directory, and one may be slow: each change has a version, which stands before the data, and under a lock
//! that both take a change is left out if there has been a later one. A deleted object leaves its version, its grave, until it is put
//! again; an object whose grave is later is gone, though a server that died may have left its file.

use crate::protocol::{EIO, ENOENT, LIST_MAX, List, Version, check_name};
use lnet_shim::rpc::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the version before the data.
const HEAD: u64 = 16;
/// Begins the names of files by which a server that lives is known, and of graves.
const LIFE: &str = ".lock.";
const GRAVE: &str = ".gone.";

pub struct Store {
    dir: PathBuf,
    /// Differs from that of the other server.
    id: String,
    temporary: AtomicU64,
    /// Locked for as long as this server lives, so that nobody takes what it is writing for left behind.
    _life: File,
}

impl Store {
    /// Removes what servers that were killed had in the making.
    pub fn open(dir: PathBuf) -> std::io::Result<Store> {
        fs::create_dir_all(&dir)?;
        let id = format!("{:016x}", RandomState::new().build_hasher().finish());
        let lock = lock(&dir)?;
        remove_left(&dir)?;
        let life = File::create(dir.join(format!("{LIFE}{id}")))?;
        flock(&life, FlockOperation::NonBlockingLockExclusive)?;
        drop(lock);
        Ok(Store { dir, id, temporary: AtomicU64::new(0), _life: life })
    }

    /// Writes an object, unless it has been changed since `version` was taken: then that was the later change, and this is done too.
    pub fn put(&self, name: &str, version: Version, parts: &[impl AsRef<[u8]>], sync: bool) -> Result<()> {
        check_name(name)?;
        let beside = self.beside();
        let write = || {
            self.write(&beside, version, parts, sync)?;
            let lock = lock(&self.dir)?;
            if self.last(name)? < version {
                fs::rename(&beside, self.dir.join(name))?;
                let _ = fs::remove_file(self.grave(name));
            }
            drop(lock);
            if sync { self.sync() } else { Ok(()) }
        };
        let written = write().map_err(|e| failed(name, &e));
        // There still if it was not renamed.
        let _ = fs::remove_file(&beside);
        written
    }

    /// Fills `into` from byte `offset` on; how many bytes there were, and how many the object has.
    pub fn get(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<(usize, u64)> {
        let file = self.find(name)?;
        let mut read = || {
            // The file is one change's: an object that is put meanwhile is another file.
            let len = file.metadata()?.len().saturating_sub(HEAD);
            let (from, mut have) = (HEAD.saturating_add(offset), 0);
            while have < into.len() {
                match file.read_at(&mut into[have..], from.saturating_add(have as u64))? {
                    0 => break,
                    n => have += n,
                }
            }
            Ok((have, len))
        };
        read().map_err(|e| failed(name, &e))
    }

    pub fn list(&self, list: &List) -> Result<Vec<String>> {
        let names = names(&self.dir).map_err(|e| failed("the directory", &e))?;
        let wanted = |n: &String| check_name(n).is_ok() && n.starts_with(&list.prefix) && *n > list.after;
        let mut names: Vec<String> = names.into_iter().filter(wanted).collect();
        names.sort();
        let there = |name: String| match self.find(&name) {
            Ok(_) => Some(Ok(name)),
            Err(e) if e.kind() == Kind::Failed(ENOENT) => None,
            Err(e) => Some(Err(e)),
        };
        names.into_iter().filter_map(there).take(LIST_MAX).collect()
    }

    /// Deletes an object, unless it has been changed since; `false` if there was none. What says so is on disk when this returns.
    pub fn delete(&self, name: &str, version: Version) -> Result<bool> {
        check_name(name)?;
        let (at, beside) = (self.dir.join(name), self.beside());
        let delete = || {
            let lock = lock(&self.dir)?;
            let (object, grave) = (version_at(&at)?, version_at(&self.grave(name))?);
            let done = object.max(grave) >= version;
            let there = object > grave;
            if there && !done {
                self.write(&beside, version, &[[]], true)?;
                fs::rename(&beside, self.grave(name))?;
            }
            // Or a server died before it came to this.
            if !there || !done {
                remove(&at)?;
            }
            drop(lock);
            self.sync()?;
            Ok(there || done)
        };
        let deleted = delete().map_err(|e| failed(name, &e));
        let _ = fs::remove_file(&beside);
        deleted
    }

    pub fn stat(&self, name: &str) -> Result<u64> {
        let len = self.find(name)?.metadata().map(|m| m.len().saturating_sub(HEAD));
        len.map_err(|e| failed(name, &e))
    }

    /// The version of the last change; the smallest if there was none.
    pub fn version(&self, name: &str) -> Result<Version> {
        check_name(name)?;
        self.last(name).map_err(|e| failed(name, &e))
    }

    /// A place for what is being written.
    fn beside(&self) -> PathBuf {
        self.dir.join(format!(".{}.{}", self.id, self.temporary.fetch_add(1, Ordering::Relaxed)))
    }

    /// Where the version of a deleted object is.
    fn grave(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{GRAVE}{name}"))
    }

    /// An object that is there.
    fn find(&self, name: &str) -> Result<File> {
        check_name(name)?;
        let find = || {
            let file = File::open(self.dir.join(name))?;
            let there = version_of(&file)? > version_at(&self.grave(name))?;
            if there { Ok(file) } else { Err(ErrorKind::NotFound.into()) }
        };
        find().map_err(|e| failed(name, &e))
    }

    /// Puts on disk which files there are.
    fn sync(&self) -> std::io::Result<()> {
        File::open(&self.dir)?.sync_all()
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

    fn last(&self, name: &str) -> std::io::Result<Version> {
        Ok(version_at(&self.dir.join(name))?.max(version_at(&self.grave(name))?))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.dir.join(format!("{LIFE}{}", self.id)));
    }
}

/// Keeps all others from changing anything, also of the other server, until it is dropped. Ours ends with us; a server that is
/// stopped while it has it stops the changes of the other, which is the price of not knowing whether it is dead.
fn lock(dir: &Path) -> std::io::Result<File> {
    let file = File::create(dir.join(".lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

fn names(dir: &Path) -> std::io::Result<Vec<String>> {
    Ok(fs::read_dir(dir)?.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
}

/// Removes what is in the making by nobody that lives; with the lock.
fn remove_left(dir: &Path) -> std::io::Result<()> {
    let names = names(dir)?;
    let lives = |id: &&str| {
        let life = File::open(dir.join(format!("{LIFE}{id}")));
        life.is_ok_and(|f| flock(&f, FlockOperation::NonBlockingLockExclusive).is_err())
    };
    let living: Vec<&str> = names.iter().filter_map(|n| n.strip_prefix(LIFE)).filter(lives).collect();
    let is_left = |name: &&String| match name.strip_prefix(LIFE) {
        Some(id) => !living.contains(&id),
        None => maker(name).is_some_and(|id| !living.contains(&id)),
    };
    names.iter().filter(is_left).try_for_each(|name| remove(&dir.join(name)))
}

/// Removes a file that may have gone by itself.
fn remove(at: &Path) -> std::io::Result<()> {
    fs::remove_file(at).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// The server that is writing a file of this name.
fn maker(name: &str) -> Option<&str> {
    let (id, number) = name.strip_prefix('.')?.split_once('.')?;
    let is_one = id.len() == 16 && u64::from_str_radix(id, 16).is_ok() && number.parse::<u64>().is_ok();
    is_one.then_some(id)
}

/// The version that a file begins with; the smallest for one that is not there or was never written whole.
fn version_at(at: &Path) -> std::io::Result<Version> {
    match File::open(at) {
        Ok(file) => version_of(&file),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Version::default()),
        Err(e) => Err(e),
    }
}

fn version_of(mut file: &File) -> std::io::Result<Version> {
    let mut head = [0; HEAD as usize];
    match file.read_exact(&mut head) {
        Ok(()) => {
            let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| head[at + i]));
            Ok(Version { count: number(0), writer: number(8) })
        }
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(Version::default()),
        Err(e) => Err(e),
    }
}

fn failed(what: &str, e: &std::io::Error) -> Error {
    let code = if e.kind() == ErrorKind::NotFound { ENOENT } else { EIO };
    Error::failed(code, format!("{what}: {e}"))
}
