//! How connections begin: dialling, acceptor requests, HELLO from both sides, races, duplicates, reboots.

use std::net::SocketAddr;

use super::Time;
use super::conn::{Conn, State};
use super::decode::Decoder;
use super::machine::{Action, ConnId, DialError, Machine};
use super::params::Accept;
use super::peer::{self, Peer};
use crate::network::{Failure, Upcall};
use crate::nid::{Nid, PID_USERFLAG, ProcessId};
use crate::wire::acceptor::{self, Request};
use crate::wire::hello::{ConnType, Hello, Version};
use crate::wire::{ByteOrder, WireError};

/// After this many refusals in a row with one connection of each type, more are not asked for.
const MAX_REFUSALS: u32 = 3;

/// The socket address of a NID.
pub(super) fn address(nid: Nid, port: u16) -> Option<SocketAddr> {
    nid.ip().map(|ip| SocketAddr::new(ip, port))
}

impl Machine {
    /// Dials the next connection a peer lacks, if we want it, none is under way, and the pause is over.
    pub(super) fn dial_if_due(&mut self, now: Time, id: ProcessId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.campaign || peer.dialing.is_some() || now < peer.next_dial {
            return;
        }
        let Some(kind) = peer.missing(&self.params) else {
            peer.campaign = false;
            return;
        };
        let bulk = matches!(kind, ConnType::BulkIn | ConnType::BulkOut);
        let port = if bulk { self.params.bulk_port } else { self.params.port };
        let Some(to) = address(id.nid, port) else { return };
        let deadline = now + self.params.sock_timeout;
        let mut conn = Conn::new(State::Connecting, kind, to, Decoder::active(), deadline);
        conn.peer = Some(id);
        conn.version = peer.version;
        let conn = self.add_conn(conn);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.dialing = Some(conn);
        }
        self.actions.push_back(Action::Dial { conn, to });
    }

    /// A dial has ended.
    pub fn connected(&mut self, now: Time, id: ConnId, result: Result<(), DialError>) {
        let (me, incarnation) = (self.me, self.incarnation);
        let Some(conn) = self.conns.get_mut(&id).filter(|c| c.state == State::Connecting) else { return };
        let Some(peer) = conn.peer else { return };
        if let Err(error) = result {
            return self.broken(now, id, "dial failed", error.failure());
        }
        conn.state = State::AwaitAnswer;
        conn.rx_deadline = Some(now + self.params.sock_timeout);
        let request = Request { order: ByteOrder::Little, target: peer.nid };
        let hello = introduction(me, incarnation, peer.nid, conn.version, conn.kind);
        conn.write_raw(&request.encode());
        conn.write_raw(&hello.encode());
        self.actions.push_back(Action::Flush { conn: id });
    }

    /// A dial has failed for good: pause before the next; what waits fails unless other connections exist.
    pub(super) fn dial_failed(&mut self, now: Time, id: ProcessId, failure: Failure) {
        let params = self.params.clone();
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.next_dial = now + peer.next_backoff(&params);
        if peer.conns.is_empty() {
            peer.campaign = false;
            let waiting = std::mem::take(&mut peer.queue);
            for tx in waiting {
                self.up(Upcall::Sent(tx.id, Err(failure)));
            }
        }
    }

    pub(super) fn on_request(&mut self, id: ConnId, request: Request) {
        let known = request.target == self.me.nid;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !known {
            tracing::warn!(remote = %conn.remote, target = %request.target, "no matching NI");
            return self.drop_conn(id, Failure::RemoteDropped);
        }
        conn.state = State::AwaitHello;
    }

    /// Bytes that make no sense: some are answered, all end the connection.
    pub(super) fn undecodable(&mut self, now: Time, id: ConnId, error: WireError) {
        let Some(state) = self.conns.get(&id).map(|c| c.state) else { return };
        let versionless = matches!(error, WireError::Version(_) | WireError::Magic(acceptor::MAGIC_UNIFIED));
        match (state, error) {
            (State::AwaitRequest, _) if versionless => {
                self.farewell(id, &acceptor::version_answer(ByteOrder::Little));
            }
            (State::AwaitHello, WireError::Version(_)) => {
                let version = self.first_version(self.me.nid);
                let refusal = introduction(self.me, self.incarnation, Nid::ANY, version, ConnType::None);
                self.farewell(id, &refusal.encode());
            }
            _ => self.broken(now, id, &error.to_string(), Failure::RemoteDropped),
        }
    }

    /// Says `bytes` and closes.
    fn farewell(&mut self, id: ConnId, bytes: &[u8]) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Closing;
            conn.peer = None;
            conn.write_raw(bytes);
            self.actions.push_back(Action::Flush { conn: id });
        }
    }

    fn refuse(&mut self, id: ConnId, hello: &Hello) {
        let version = if self.me.nid.is_large() { Version::V4 } else { hello.version };
        let refusal = introduction(self.me, self.incarnation, hello.src_nid, version, ConnType::None);
        self.farewell(id, &refusal.encode());
    }

    pub(super) fn on_hello(&mut self, now: Time, id: ConnId, hello: Hello) {
        match self.conns.get(&id).map(|c| c.state) {
            Some(State::AwaitHello) => self.on_hello_passive(now, id, hello),
            Some(State::AwaitAnswer) => self.on_hello_active(now, id, hello),
            _ => self.broken(now, id, "HELLO out of place", Failure::RemoteDropped),
        }
    }

    /// Who the other end is: what it claims, unless its port gives it no right to.
    fn identity(&self, remote: SocketAddr, hello: &Hello) -> ProcessId {
        if remote.port() > 1023 && self.params.accept != Accept::Trusted {
            let nid = Nid::from_ip(self.me.nid.net(), remote.ip().to_canonical());
            return ProcessId { nid, pid: PID_USERFLAG | u32::from(remote.port()) };
        }
        ProcessId { nid: hello.src_nid, pid: hello.src_pid }
    }

    fn on_hello_passive(&mut self, now: Time, id: ConnId, hello: Hello) {
        let Some(conn) = self.conns.get(&id) else { return };
        let peer_id = self.identity(conn.remote, &hello);
        let kind = hello.conn_type.inverted();
        if hello.conn_type == ConnType::None || hello.src_nid.is_any() {
            return self.broken(now, id, "nonsense in HELLO", Failure::RemoteDropped);
        }
        if self.me.nid.is_large() && hello.version != Version::V4 {
            return self.refuse(id, &hello);
        }
        let first = self.first_version(peer_id.nid);
        let looped = peer_id == self.me;
        let peer = self.peers.entry(peer_id).or_insert_with(|| Peer::new(first, now));
        let rebooted = !peer.conns.is_empty() && peer.incarnation != Some(hello.src_incarnation) && !looped;
        let race_lost = peer.dialing.is_some() && peer_id.nid < self.me.nid;
        let room = if looped { 2 } else { 1 } * peer::limit(&self.params, kind);
        let full = peer.count(kind) >= room;
        if rebooted {
            self.break_peer(now, peer_id, Failure::RemoteDropped);
        }
        if rebooted || race_lost || full {
            tracing::debug!(peer = %peer_id, rebooted, race_lost, full, "connection refused");
            return self.refuse(id, &hello);
        }
        let answer = introduction(self.me, self.incarnation, hello.src_nid, hello.version, kind);
        self.open(now, id, peer_id, kind, &hello);
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.write_raw(&answer.encode());
            self.actions.push_back(Action::Flush { conn: id });
        }
        self.drain_queue(now, peer_id);
    }

    fn on_hello_active(&mut self, now: Time, id: ConnId, hello: Hello) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (kind, version) = (conn.kind, conn.version);
        let Some(peer_id) = conn.peer else { return };
        if hello.conn_type == ConnType::None {
            return self.refused(now, id, peer_id, version, hello.version);
        }
        let claimed = ProcessId { nid: hello.src_nid, pid: hello.src_pid };
        if claimed != peer_id {
            tracing::warn!(dialled = %peer_id, %claimed, "the peer is not whom we dialled");
            return self.broken(now, id, "claims to be somebody else", Failure::RemoteDropped);
        }
        if hello.conn_type != kind.inverted() || hello.version != version {
            return self.broken(now, id, "answers with another type or version", Failure::RemoteDropped);
        }
        let known = self.peers.get(&peer_id).map(|p| (p.incarnation, p.conns.is_empty()));
        if matches!(known, Some((incarnation, false)) if incarnation != Some(hello.src_incarnation)) {
            self.break_peer(now, peer_id, Failure::RemoteDropped);
        }
        self.open(now, id, peer_id, kind, &hello);
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.dialing = None;
            peer.campaign = true;
            peer.next_dial = now;
        }
        self.drain_queue(now, peer_id);
        self.dial_if_due(now, peer_id);
    }

    fn open(&mut self, now: Time, id: ConnId, peer_id: ProcessId, kind: ConnType, hello: &Hello) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.state = State::Open;
            conn.kind = kind;
            conn.peer = Some(peer_id);
            conn.version = hello.version;
            conn.rx_deadline = None;
            conn.decoder.start_session(hello.version, hello.order);
        }
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.conns.push((id, kind));
            peer.incarnation = Some(hello.src_incarnation);
            peer.version = hello.version;
            peer.refusals = 0;
            peer.backoff = None;
            peer.last_heard = now;
        }
    }

    /// The other end does not want this connection: another version, a lost race, or one too many.
    fn refused(&mut self, now: Time, id: ConnId, peer_id: ProcessId, mine: Version, theirs: Version) {
        self.drop_conn(id, Failure::RemoteDropped);
        let params = self.params.clone();
        let Some(peer) = self.peers.get_mut(&peer_id) else { return };
        peer.refusals += 1;
        if mine != theirs
            && peer.refusals <= MAX_REFUSALS
            && !(theirs != Version::V4 && peer_id.nid.is_large())
        {
            peer.version = theirs;
            peer.next_dial = now;
        } else {
            peer.next_dial = now + params.min_reconnect;
            if peer.refusals >= MAX_REFUSALS && (peer.has_each(&params) || peer.conns.is_empty()) {
                peer.campaign = false;
                peer.refusals = 0;
            }
        }
        let hopeless = !peer.campaign && peer.conns.is_empty();
        if hopeless {
            return self.dial_failed(now, peer_id, Failure::RemoteDropped);
        }
        self.dial_if_due(now, peer_id);
    }
}

/// Our HELLO.
fn introduction(me: ProcessId, incarnation: u64, to: Nid, version: Version, conn_type: ConnType) -> Hello {
    Hello {
        order: ByteOrder::Little,
        version,
        src_nid: me.nid,
        dst_nid: to,
        src_pid: me.pid,
        dst_pid: 0,
        src_incarnation: incarnation,
        dst_incarnation: 0,
        conn_type,
    }
}
