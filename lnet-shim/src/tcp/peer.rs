//! One peer: its connections, the effort to make them, and zero-copy cookies.

use std::collections::{BTreeMap, VecDeque};

use super::machine::ConnId;
use super::{TcpParams, Time};
use crate::network::{Tx, TxId};
use crate::wire::hello::{ConnType, Version};
use crate::wire::ksock::COOKIE_KEEPALIVE;

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) conns: Vec<(ConnId, ConnType)>,
    /// Messages that wait for the first connection.
    pub(super) queue: VecDeque<Tx>,
    /// The connection being made, if any.
    pub(super) dialing: Option<ConnId>,
    /// Whether we want all types of connections and do not have them.
    pub(super) campaign: bool,
    pub(super) next_dial: Time,
    pub(super) backoff: Option<Time>,
    /// Refusals in a row.
    pub(super) refusals: u32,
    /// With which version we dial.
    pub(super) version: Version,
    pub(super) incarnation: Option<u64>,
    next_cookie: u64,
    /// Messages sent whose payload the peer has not acknowledged, with the deadline.
    pub(super) zero_copy: BTreeMap<u64, (TxId, Time)>,
    pub(super) last_heard: Time,
    pub(super) last_keepalive: Time,
}

impl Peer {
    pub(super) fn new(version: Version, now: Time) -> Self {
        Self {
            conns: Vec::new(),
            queue: VecDeque::new(),
            dialing: None,
            campaign: false,
            next_dial: now,
            backoff: None,
            refusals: 0,
            version,
            incarnation: None,
            next_cookie: COOKIE_KEEPALIVE + 1,
            zero_copy: BTreeMap::new(),
            last_heard: now,
            last_keepalive: now,
        }
    }

    pub(super) fn count(&self, kind: ConnType) -> usize {
        self.conns.iter().filter(|c| c.1 == kind).count()
    }

    /// The next type to dial, in the order of the protocol.
    pub(super) fn missing(&self, params: &TcpParams) -> Option<ConnType> {
        wanted(params).into_iter().find(|(kind, n)| self.count(*kind) < *n).map(|(kind, _)| kind)
    }

    /// Whether there is one of each type.
    pub(super) fn has_each(&self, params: &TcpParams) -> bool {
        wanted(params).iter().all(|(kind, _)| self.count(*kind) > 0)
    }

    pub(super) fn cookie(&mut self) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie = cookie.checked_add(1).unwrap_or(COOKIE_KEEPALIVE + 1);
        cookie
    }

    /// Takes the messages a range of cookies acknowledges; `None` if one of them is unknown.
    pub(super) fn acknowledge(&mut self, (low, high): (u64, u64)) -> Option<Vec<TxId>> {
        let known: Vec<u64> = self.zero_copy.range(low..=high).map(|(c, _)| *c).collect();
        if known.len() as u64 != (high - low).checked_add(1)? {
            return None;
        }
        Some(known.iter().filter_map(|c| self.zero_copy.remove(c)).map(|(id, _)| id).collect())
    }

    /// Whether nothing is left of it: no connection, no message, no pause that matters. A stranger's claim to a name is
    /// not kept.
    pub(super) fn is_forgotten(&self, now: Time, params: &TcpParams) -> bool {
        let idle = self.conns.is_empty() && self.queue.is_empty() && self.dialing.is_none();
        let paused = self.backoff.is_some() && now < self.next_dial + params.max_reconnect;
        idle && self.zero_copy.is_empty() && !paused && !self.campaign
    }

    /// How long to wait after a failure.
    pub(super) fn next_backoff(&mut self, params: &TcpParams) -> Time {
        let next = self.backoff.map_or(params.min_reconnect, |b| (b * 2).min(params.max_reconnect));
        self.backoff = Some(next);
        next
    }
}

/// The types of connections with a peer and how many of each, in the order they are opened.
pub(super) fn wanted(params: &TcpParams) -> Vec<(ConnType, usize)> {
    let n = params.conns_per_peer.max(1);
    if params.typed {
        vec![(ConnType::Control, 1), (ConnType::BulkIn, n), (ConnType::BulkOut, n)]
    } else {
        vec![(ConnType::Any, n)]
    }
}

/// The most connections of one type that a peer may open.
pub(super) fn limit(params: &TcpParams, kind: ConnType) -> usize {
    match kind {
        ConnType::Control => 1,
        _ => params.conns_per_peer.max(1),
    }
}
