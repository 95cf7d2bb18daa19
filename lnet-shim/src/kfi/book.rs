//! Which NID is at which kfab address. Given at the start or by command; any layer that names peers by NID can use one.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::nid::Nid;

/// The most NIDs a book holds.
const MAX_NIDS: usize = 65_536;
/// The most addresses (lanes) of one NID.
const MAX_LANES: usize = 64;

/// NIDs and the kfab addresses they are at, one for each lane of the peer. Clones are the same book.
#[derive(Debug, Clone, Default)]
pub struct Book(Arc<RwLock<BTreeMap<Nid, Vec<String>>>>);

impl Book {
    /// An empty book.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets where a NID is; what was there before goes. `Invalid` for no address or one that is none, `Busy` if the book is full.
    pub fn set(&self, nid: Nid, addresses: &[String]) -> Result<()> {
        let bad = |words: String| Err(Error::new(ErrorKind::Invalid, "book", words));
        if addresses.is_empty() || addresses.len() > MAX_LANES {
            return bad(format!("{nid} needs 1 to {MAX_LANES} addresses"));
        }
        if let Some(error) = addresses.iter().find_map(|a| a.parse::<kfab::Address>().err()) {
            return bad(format!("{nid}: {}", error.context()));
        }
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if map.len() >= MAX_NIDS && !map.contains_key(&nid) {
            return Err(Error::new(ErrorKind::Busy, "book", format!("{MAX_NIDS} NIDs are known already")));
        }
        map.insert(nid, addresses.to_vec());
        Ok(())
    }

    /// Forgets a NID; whether it was known. Connections that exist stay.
    pub fn remove(&self, nid: Nid) -> bool {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&nid).is_some()
    }

    /// Where a NID is: one address for each of its lanes.
    pub fn get(&self, nid: Nid) -> Option<Vec<String>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&nid).cloned()
    }

    /// The address for messages of one of `lane` lanes: lanes of both sides meet one to one where there are as many.
    pub(super) fn lane(&self, nid: Nid, lane: usize) -> Option<String> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let all = map.get(&nid)?;
        all.get(lane % all.len().max(1)).cloned()
    }

    /// All of it, by NID.
    pub fn all(&self) -> Vec<(Nid, Vec<String>)> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        map.iter().map(|(nid, all)| (*nid, all.clone())).collect()
    }
}
