//! The client: objects as a program wants them. Every call may be replayed: changes carry a version, and a server does not change an
//! object that has been changed since; the rest only looks. So when a server dies, or is only slow, its calls go on at the other,
//! and what the slow one still does with them does no harm.

use crate::protocol::*;
use kfab::{Fabric, Rights};
use lnet_shim::rpc::{Book, Client, ClientConfig, ClientCounts, ClientLimits, Error, Kind, Replay, Result};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// How often an object is read that others put anew, larger, meanwhile.
const TRIES: u32 = 16;

#[derive(Clone)]
pub struct Objects {
    client: Client,
}

/// A number that no other change has.
fn writer() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Objects {
    /// The store behind these names, the first preferred.
    pub fn open(fabric: &Fabric, book: &Book, nids: &[&str], job: &str) -> Result<Objects> {
        let limits = ClientLimits { connect: Duration::from_secs(1), ..Default::default() };
        let config = ClientConfig { limits, job: Some(job.to_owned()), ..Default::default() };
        Ok(Objects { client: Client::open(fabric, config, book, nids)? })
    }

    /// Writes an object; with `sync` it is on disk when this returns.
    pub fn put(&self, name: &str, data: &[u8], sync: bool) -> Result<()> {
        let mut buffer = self.client.buffer(data.len())?;
        if let Some(room) = buffer.get_mut() {
            room.copy_from_slice(data);
        }
        let window = self.client.window_of(buffer)?;
        let put = Put { name: name.to_owned(), version: self.next_version(name)?, sync };
        self.client.call(PUT, &put).window(&window).replay(Replay::Always).wait()
    }

    /// Of a change that begins now.
    fn next_version(&self, name: &str) -> Result<Version> {
        let last = self.client.call(VERSION, &name.to_owned()).replay(Replay::Always).wait()?;
        Ok(Version { count: last.count + 1, writer: writer() })
    }

    /// At most `len` bytes from `offset` on.
    pub fn get(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.read(name, offset, len).map(|(data, _)| data)
    }

    /// All of an object, as one put left it.
    pub fn get_whole(&self, name: &str) -> Result<Vec<u8>> {
        let mut room = self.stat(name)?;
        for _ in 0..TRIES {
            // A window has at least one byte.
            let (data, len) = self.read(name, 0, room.max(1) as usize)?;
            if data.len() as u64 == len {
                return Ok(data);
            }
            room = len;
        }
        Err(Error::new(Kind::Busy, format!("{name} grew each of the {TRIES} times that it was read")))
    }

    /// The same as [`Objects::get`], and how long the whole object was.
    fn read(&self, name: &str, offset: u64, len: usize) -> Result<(Vec<u8>, u64)> {
        let window = self.client.window(len, Rights::WRITE)?;
        let get = Get { name: name.to_owned(), offset };
        let got = self.client.call(GET, &get).window(&window).replay(Replay::Always).wait()?;
        let mut data = vec![0; len.min(got.have as usize)];
        window.read_at(0, &mut data);
        Ok((data, got.len))
    }

    /// All names that begin so.
    pub fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut all: Vec<String> = Vec::new();
        loop {
            let after = all.last().cloned().unwrap_or_default();
            let list = List { prefix: prefix.to_owned(), after };
            let more = self.client.call(LIST, &list).replay(Replay::Always).wait()?;
            let full = more.len() == LIST_MAX;
            all.extend(more);
            if !full {
                return Ok(all);
            }
        }
    }

    pub fn delete(&self, name: &str) -> Result<bool> {
        let delete = Delete { name: name.to_owned(), version: self.next_version(name)? };
        self.client.call(DELETE, &delete).replay(Replay::Always).wait()
    }

    pub fn stat(&self, name: &str) -> Result<u64> {
        self.client.call(STAT, &name.to_owned()).replay(Replay::Always).wait()
    }

    pub fn ping(&self) -> Result<()> {
        self.client.call(PING, &()).high().replay(Replay::Always).wait()
    }

    pub fn counts(&self) -> ClientCounts {
        self.client.counts()
    }
}
