//! What lanes share: the clients and their sessions, so that a client may come back over another lane.

use super::super::faults::split_mix;
use super::super::session::Session;
use super::ServerLimits;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// All clients of a server.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) incarnation: u64,
    pub(crate) limits: ServerLimits,
    known: Mutex<HashMap<u64, Arc<Known>>>,
    sessions: Mutex<u64>,
}

/// A client's session.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) number: u64,
    session: Mutex<Session>,
}

impl Known {
    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Clients {
    pub(crate) fn new(incarnation: u64, limits: ServerLimits) -> Clients {
        Clients { incarnation, limits, known: Mutex::default(), sessions: Mutex::new(incarnation) }
    }

    /// Clients known now, and bytes kept of replies to them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        (known.len(), known.values().map(|k| k.lock().cached()).sum())
    }

    /// The client's session, or a new one; `None` without room.
    pub(super) fn enter(&self, client: u64, now: u64) -> Option<Arc<Known>> {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(k) = known.get(&client) {
            return Some(k.clone());
        }
        if known.len() >= self.limits.clients {
            return None;
        }
        let number = split_mix(&mut self.sessions.lock().unwrap_or_else(|e| e.into_inner()));
        let session = Session::new(self.limits.slots, self.limits.cache_bytes, now);
        let k = Arc::new(Known { number: number.max(1), session: Mutex::new(session) });
        known.insert(client, k.clone());
        Some(k)
    }

    pub(super) fn leave(&self, client: u64, number: u64) {
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        if known.get(&client).is_some_and(|k| k.number == number) {
            known.remove(&client);
        }
    }
}
