//! The socklnd protocol of one interface, without sockets and clocks.
//!
//! Whoever runs it (the I/O thread, or a test in virtual time) tells it what happened and drains [`Machine::poll`] after each
//! call. Every message given to [`Machine::transmit`] gets exactly one [`Upcall::Sent`], unless the machine is thrown away.
//! No queue grows without bound: waiting messages, connections, held bytes have limits in the parameters, acknowledgements owed to
//! a peer have [`MAX_OWED`].

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use super::Time;
use super::conn::{Conn, Queued, State, tx_len};
use super::decode::{Decoder, Item};
use super::params::{Accept, TcpParams};
use super::peer::Peer;
use crate::network::{Command, ConnectionInfo, Failure, Rx, Tx, Upcall};
use crate::nid::{Nid, PID_USERFLAG, ProcessId};
use crate::wire::hello::{ConnType, Version};
use crate::wire::ksock::{COOKIE_KEEPALIVE, KsockHeader};
use crate::wire::lnet::LnetHeader;

/// Acknowledgements that wait on a connection. One is owed for each message that its sender keeps until then: an honest one has far fewer
/// under way.
const MAX_OWED: usize = 16_384;

/// Names a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u64);

/// Why a dial did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialError {
    /// The peer's host refused, reset or cannot be reached.
    Remote,
    /// This host could not (ports, memory, permission).
    Local,
    /// No answer in time.
    TimedOut,
}

impl DialError {
    pub(super) fn failure(self) -> Failure {
        match self {
            Self::Remote => Failure::RemoteDropped,
            Self::Local => Failure::LocalError,
            Self::TimedOut => Failure::NetworkTimeout,
        }
    }
}

/// What the machine wants done.
#[derive(Debug)]
pub enum Action {
    /// Connect to `to`, then call [`Machine::connected`].
    Dial {
        /// The new connection.
        conn: ConnId,
        /// Whither.
        to: SocketAddr,
    },
    /// Close and forget; nothing more may be reported about it.
    Close {
        /// Which.
        conn: ConnId,
    },
    /// Bytes wait: take them from [`Machine::outgoing`] while the socket takes them.
    Flush {
        /// Which.
        conn: ConnId,
    },
    /// [`Machine::wants_read`] may have changed.
    ReadInterest {
        /// Which.
        conn: ConnId,
    },
    /// Tell the node.
    Up(Upcall),
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    pub(super) params: TcpParams,
    pub(super) me: ProcessId,
    pub(super) incarnation: u64,
    pub(super) peers: HashMap<ProcessId, Peer>,
    pub(super) conns: HashMap<ConnId, Conn>,
    pub(super) actions: VecDeque<Action>,
    next_conn: u64,
    next_scan: Time,
    served: u64,
}

impl Machine {
    /// A machine for the interface `me`. `incarnation` must differ at each start.
    pub fn new(params: TcpParams, me: ProcessId, incarnation: u64) -> Self {
        let (peers, conns) = (HashMap::new(), HashMap::new());
        let next_scan = Time::ZERO;
        Self {
            params,
            me,
            incarnation,
            peers,
            conns,
            actions: VecDeque::new(),
            next_conn: 0,
            next_scan,
            served: 0,
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(super) fn up(&mut self, upcall: Upcall) {
        self.actions.push_back(Action::Up(upcall));
    }

    pub(super) fn add_conn(&mut self, conn: Conn) -> ConnId {
        self.next_conn += 1;
        let id = ConnId(self.next_conn);
        self.conns.insert(id, conn);
        id
    }

    /// The version we speak first with a peer.
    pub(super) fn first_version(&self, peer: Nid) -> Version {
        if peer.is_large() || self.me.nid.is_large() { Version::V4 } else { Version::V3 }
    }

    /// Takes a command of the node.
    pub fn command(&mut self, now: Time, command: Command) {
        match command {
            Command::Transmit(tx) => self.transmit(now, tx),
            // Payloads come with their messages here.
            Command::Fetch(fetch) => self.up(Upcall::Fetched(fetch.op, Err(Failure::LocalError))),
            Command::Refuse { .. } => {}
            Command::Hold { via, bytes } => self.hold(via, bytes as i64),
            Command::Release { via, bytes } => self.hold(via, -(bytes as i64)),
        }
    }

    /// Two threads may bring a hold and its release in either order, so the count may be negative for a moment.
    fn hold(&mut self, via: u64, change: i64) {
        let conn = ConnId(via);
        if let Some(c) = self.conns.get_mut(&conn) {
            c.held += change;
            self.actions.push_back(Action::ReadInterest { conn });
        }
    }

    /// Whether bytes should be read from the connection.
    pub fn wants_read(&self, conn: ConnId) -> bool {
        self.conns
            .get(&conn)
            .is_some_and(|c| c.held <= self.params.max_held as i64 && c.state != State::Closing)
    }

    /// Sends a message, over connections that are there or will be made.
    pub fn transmit(&mut self, now: Time, tx: Tx) {
        let id = tx.peer;
        if !self.peers.contains_key(&id) {
            if id.pid & PID_USERFLAG != 0 || super::handshake::address(id.nid, self.params.port).is_none() {
                return self.up(Upcall::Sent(tx.id, Err(Failure::RemoteDropped)));
            }
            self.peers.insert(id, Peer::new(self.first_version(id.nid), now));
        }
        if let Some(conn) = self.choose(id, &tx) {
            return self.enqueue(now, conn, tx);
        }
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let in_backoff = peer.backoff.is_some() && now < peer.next_dial && peer.dialing.is_none();
        if in_backoff || peer.queue.len() >= self.params.max_queue {
            let why = if in_backoff { Failure::RemoteDropped } else { Failure::LocalError };
            return self.up(Upcall::Sent(tx.id, Err(why)));
        }
        peer.queue.push_back(tx);
        peer.campaign = id.pid & PID_USERFLAG == 0;
        self.dial_if_due(now, id);
    }

    /// Large messages go by BULK_OUT, small ones by CONTROL; each makes do with the other. The emptiest of several.
    fn choose(&mut self, id: ProcessId, tx: &Tx) -> Option<ConnId> {
        let peer = self.peers.get(&id)?;
        let bulk = tx_len(tx, peer.version) >= self.params.min_bulk;
        let rank = |kind: ConnType| match (kind, bulk) {
            (ConnType::Any, _) | (ConnType::BulkOut, true) | (ConnType::Control, false) => 0,
            (ConnType::BulkOut, false) | (ConnType::Control, true) => 1,
            _ => 2,
        };
        let load = |id: &ConnId| self.conns.get(id).map_or((usize::MAX, 0), |c| (c.queued_bytes, c.served));
        let best = peer.conns.iter().min_by_key(|(id, kind)| (rank(*kind), load(id)))?;
        Some(best.0)
    }

    fn enqueue(&mut self, now: Time, conn: ConnId, tx: Tx) {
        let zero_copy = self.params.zero_copy_min.is_some_and(|min| tx.payload.len() >= min);
        let cookie = match self.peers.get_mut(&tx.peer) {
            Some(peer) if zero_copy => {
                let cookie = peer.cookie();
                peer.zero_copy.insert(cookie, (tx.id, now + self.params.sock_timeout));
                cookie
            }
            _ => 0,
        };
        self.enqueue_item(now, conn, Queued::Message { tx, cookie });
    }

    fn enqueue_item(&mut self, now: Time, conn: ConnId, item: Queued) {
        self.served += 1;
        let (served, timeout) = (self.served, self.params.sock_timeout);
        let Some(c) = self.conns.get_mut(&conn) else { return };
        c.served = served;
        c.enqueue(item);
        c.tx_deadline.get_or_insert(now + timeout);
        self.actions.push_back(Action::Flush { conn });
    }

    /// Hands waiting messages to connections, now that there is one.
    pub(super) fn drain_queue(&mut self, now: Time, id: ProcessId) {
        while let Some(tx) = self.peers.get_mut(&id).and_then(|p| p.queue.pop_front()) {
            match self.choose(id, &tx) {
                Some(conn) => self.enqueue(now, conn, tx),
                None => return self.up(Upcall::Sent(tx.id, Err(Failure::LocalError))),
            }
        }
    }

    /// A stranger has connected. `None`: refuse it (reset).
    pub fn accepted(&mut self, now: Time, remote: SocketAddr) -> Option<ConnId> {
        let insecure = self.params.accept == Accept::Secure && remote.port() > 1023;
        if insecure || self.params.accept == Accept::None || self.conns.len() >= self.params.max_connections {
            tracing::warn!(%remote, insecure, "connection refused");
            return None;
        }
        let deadline = now + self.params.accept_timeout;
        let conn = Conn::new(State::AwaitRequest, ConnType::None, remote, Decoder::passive(), deadline);
        Some(self.add_conn(conn))
    }

    /// Bytes have arrived.
    pub fn received(&mut self, now: Time, id: ConnId, mut bytes: &[u8]) {
        if let Some(peer) = self.conns.get(&id).and_then(|c| c.peer)
            && let Some(peer) = self.peers.get_mut(&peer)
        {
            peer.last_heard = now;
        }
        loop {
            let Some(conn) = self.conns.get_mut(&id) else { return };
            if conn.state == State::Closing {
                return;
            }
            match conn.decoder.feed(&mut bytes) {
                Ok(Some(item)) => self.item(now, id, item),
                Ok(None) => break,
                Err(error) => return self.undecodable(now, id, error),
            }
        }
        let timeout = self.params.sock_timeout;
        if let Some(conn) = self.conns.get_mut(&id).filter(|c| c.state == State::Open) {
            conn.rx_deadline = conn.decoder.is_mid_item().then_some(now + timeout);
        }
    }

    fn item(&mut self, now: Time, id: ConnId, item: Item) {
        match item {
            Item::Request(request) => self.on_request(id, request),
            Item::Hello(hello) => self.on_hello(now, id, hello),
            Item::Noop(ksock) => self.on_acks(now, id, &ksock),
            Item::Message(ksock, header, payload) => self.on_message(now, id, ksock, header, payload),
        }
    }

    fn on_acks(&mut self, now: Time, id: ConnId, ksock: &KsockHeader) {
        let Some(peer_id) = self.conns.get(&id).and_then(|c| c.peer) else { return };
        for range in ksock.acked() {
            let acked = self.peers.get_mut(&peer_id).and_then(|p| p.acknowledge(range));
            match acked {
                Some(ids) => ids.into_iter().for_each(|tx| self.up(Upcall::Sent(tx, Ok(())))),
                None => {
                    return self.broken(now, id, "acknowledges a cookie never sent", Failure::RemoteDropped);
                }
            }
        }
    }

    fn on_message(
        &mut self,
        now: Time,
        id: ConnId,
        ksock: KsockHeader,
        mut header: LnetHeader,
        payload: Vec<u8>,
    ) {
        if header.dest.nid != self.me.nid && header.dest.nid.net() == self.me.nid.net() {
            let why = "message for another NID of this network";
            return self.broken(now, id, why, Failure::RemoteDropped);
        }
        // What is for another network goes up like the rest: the node drops and counts it, the sender has its acknowledgements.
        self.on_acks(now, id, &ksock);
        let Some(peer) = self.conns.get(&id).and_then(|c| c.peer) else { return };
        if peer.is_userspace() {
            header.src = peer;
        }
        if ksock.cookie0 != 0 {
            if self.conns.get(&id).is_some_and(|c| c.owed >= MAX_OWED) {
                let why = "wants acknowledgements and reads none";
                return self.broken(now, id, why, Failure::RemoteDropped);
            }
            self.enqueue_item(now, id, Queued::Noop { cookie: ksock.cookie0 });
        }
        self.up(Upcall::Received(Rx { via: id.0, peer, header, payload: payload.into() }));
    }

    /// The next bytes to write on a connection; empty if none.
    pub fn outgoing(&mut self, id: ConnId) -> &[u8] {
        let checksum = self.params.checksum;
        self.conns.get_mut(&id).map_or(&[], |c| c.outgoing(checksum))
    }

    /// `n` of those bytes have been written.
    pub fn wrote(&mut self, now: Time, id: ConnId, n: usize) {
        let timeout = self.params.sock_timeout;
        let Some(c) = self.conns.get_mut(&id) else { return };
        let gone = c.wrote(n);
        c.tx_deadline = c.owes().then_some(now + timeout);
        let close = c.state == State::Closing && !c.owes();
        gone.into_iter().for_each(|tx| self.up(Upcall::Sent(tx, Ok(()))));
        if close {
            self.drop_conn(id, Failure::RemoteDropped);
        }
    }

    /// The other end has closed, or the socket has failed.
    pub fn closed(&mut self, now: Time, id: ConnId) {
        self.broken(now, id, "closed by the peer", Failure::RemoteDropped);
    }

    /// Ends a connection for a fault, and with it all of the same peer.
    pub(super) fn broken(&mut self, now: Time, id: ConnId, why: &str, failure: Failure) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (state, peer) = (conn.state, conn.peer);
        tracing::debug!(?peer, remote = %conn.remote, ?state, why, "connection ended");
        match (state, peer) {
            (State::Open, Some(peer)) => self.break_peer(now, peer, failure),
            (State::Connecting | State::AwaitAnswer, Some(peer)) => {
                self.drop_conn(id, failure);
                self.dial_failed(now, peer, failure);
            }
            _ => self.drop_conn(id, failure),
        }
    }

    /// Ends all connections of a peer; what has not left fails.
    pub(super) fn break_peer(&mut self, now: Time, id: ProcessId, failure: Failure) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let conns = std::mem::take(&mut peer.conns);
        peer.incarnation = None;
        let unacked = std::mem::take(&mut peer.zero_copy);
        if peer.dialing.is_none() {
            peer.campaign = false;
            peer.next_dial = now;
        }
        for (conn, _) in &conns {
            self.drop_conn(*conn, failure);
        }
        for (tx, _) in unacked.into_values() {
            self.up(Upcall::Sent(tx, Err(failure)));
        }
        if !conns.is_empty() {
            self.up(Upcall::PeerLost(id.nid));
        }
        if id.is_userspace() {
            self.peers.remove(&id);
        }
    }

    /// Forgets one connection.
    pub(super) fn drop_conn(&mut self, id: ConnId, failure: Failure) {
        let Some(mut conn) = self.conns.remove(&id) else { return };
        if let Some(peer) = conn.peer.and_then(|p| self.peers.get_mut(&p)) {
            peer.conns.retain(|c| c.0 != id);
            if peer.dialing == Some(id) {
                peer.dialing = None;
            }
        }
        for tx in conn.unsent() {
            self.up(Upcall::Sent(tx, Err(failure)));
        }
        self.actions.push_back(Action::Close { conn: id });
    }

    /// When [`Machine::handle_timeout`] wants to be called.
    pub fn next_timeout(&self) -> Option<Time> {
        (!self.conns.is_empty() || !self.peers.is_empty()).then_some(self.next_scan)
    }

    /// Looks at all deadlines that have passed.
    pub fn handle_timeout(&mut self, now: Time) {
        if now < self.next_scan {
            return;
        }
        self.next_scan = now + self.params.scan_interval();
        let late = |t: Option<Time>| t.is_some_and(|t| t <= now);
        let dead = self.conns.iter().filter(|(_, c)| late(c.rx_deadline) || late(c.tx_deadline));
        let dead: Vec<ConnId> = dead.map(|(id, _)| *id).collect();
        for id in dead {
            self.broken(now, id, "timed out", Failure::NetworkTimeout);
        }
        let ids: Vec<ProcessId> = self.peers.keys().copied().collect();
        for id in ids {
            self.check_peer(now, id);
        }
    }

    fn check_peer(&mut self, now: Time, id: ProcessId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if peer.is_forgotten(now, &self.params) {
            self.peers.remove(&id);
            return;
        }
        if peer.zero_copy.values().any(|(_, deadline)| *deadline <= now) {
            return self.break_peer(now, id, Failure::NetworkTimeout);
        }
        let quiet = now.saturating_sub(peer.last_heard.max(peer.last_keepalive)) >= self.params.keepalive;
        if quiet && !peer.conns.is_empty() {
            peer.last_keepalive = now;
            let is_ack = |c: &&(ConnId, ConnType)| matches!(c.1, ConnType::BulkIn | ConnType::Any);
            let conn = peer.conns.iter().find(is_ack).or(peer.conns.first()).map(|c| c.0);
            let speaks = |c: &Conn| c.version != Version::V2;
            if let Some(conn) = conn.filter(|c| self.conns.get(c).is_some_and(speaks)) {
                self.enqueue_item(now, conn, Queued::Noop { cookie: COOKIE_KEEPALIVE });
            }
        }
        self.dial_if_due(now, id);
    }

    /// All open connections, for people.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let info = |c: &Conn| {
            let peer = c.peer.filter(|_| c.state == State::Open)?;
            let (kind, remote) = (format!("{:?}", c.kind), c.remote.to_string());
            Some(ConnectionInfo {
                peer,
                kind,
                version: c.version.number(),
                remote,
                queued_bytes: c.queued_bytes,
            })
        };
        let mut all: Vec<ConnectionInfo> = self.conns.values().filter_map(info).collect();
        all.sort_by(|a, b| (a.peer, &a.kind, &a.remote).cmp(&(b.peer, &b.kind, &b.remote)));
        all
    }
}
