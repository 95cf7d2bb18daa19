//! Objects in files of one directory. An object appears whole or not at all: it is written beside its place and then renamed. So
//! writing it twice does no harm, and two servers may serve one directory.

use crate::protocol::{EIO, ENOENT, LIST_MAX, List, check_name};
use lnet_shim::rpc::{Error, Result};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

pub struct Store {
    dir: PathBuf,
    temporary: AtomicU64,
}

impl Store {
    pub fn open(dir: PathBuf) -> std::io::Result<Store> {
        fs::create_dir_all(&dir)?;
        Ok(Store { dir, temporary: AtomicU64::new(0) })
    }

    pub fn put(&self, name: &str, parts: &[impl AsRef<[u8]>], sync: bool) -> Result<()> {
        check_name(name)?;
        let n = self.temporary.fetch_add(1, Ordering::Relaxed);
        let beside = self.dir.join(format!(".{}.{n}", std::process::id()));
        let write = || {
            let mut file = File::create(&beside)?;
            parts.iter().try_for_each(|p| file.write_all(p.as_ref()))?;
            if sync {
                file.sync_all()?;
            }
            fs::rename(&beside, self.dir.join(name))?;
            if sync { File::open(&self.dir)?.sync_all() } else { Ok(()) }
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&beside);
            failed(name, &e)
        })
    }

    /// Fills `into` from byte `offset` on; how many bytes there were.
    pub fn get(&self, name: &str, offset: u64, into: &mut [u8]) -> Result<usize> {
        check_name(name)?;
        let mut read = || {
            let file = File::open(self.dir.join(name))?;
            let mut have = 0;
            while have < into.len() {
                match file.read_at(&mut into[have..], offset + have as u64)? {
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

    pub fn delete(&self, name: &str) -> Result<bool> {
        check_name(name)?;
        match fs::remove_file(self.dir.join(name)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed(name, &e)),
        }
    }

    pub fn stat(&self, name: &str) -> Result<u64> {
        check_name(name)?;
        fs::metadata(self.dir.join(name)).map(|m| m.len()).map_err(|e| failed(name, &e))
    }
}

fn failed(what: &str, e: &std::io::Error) -> Error {
    let code = if e.kind() == std::io::ErrorKind::NotFound { ENOENT } else { EIO };
    Error::failed(code, format!("{what}: {e}"))
}
