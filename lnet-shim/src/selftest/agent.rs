//! The service side: one thread that takes requests from portals 50 and 51 and answers them.
//!
//! Nothing blocks: bulk is begun, and its end (an event) brings the reply. Requests wait in memory at the lazy portals when
//! the thread is busy. A console that falls silent loses its session.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::errno;
use super::jobs::{MAX_DESTINATIONS, Session};
use super::pattern::{self, Check};
use super::rpc::Rpc;
use crate::core::*;
use crate::error::{Error, Result};
use crate::nid::{Nid, ProcessId};
use crate::node::Node;
use crate::wire::lst::*;

/// The kind of stat that asks for latencies. Lustre's nodes do not look at the kind.
pub(super) const STAT_LATENCY: u32 = 0x6b66_6162;
/// With the number of a batch added: the same, and errors, of this batch alone.
pub(super) const STAT_BATCH: u32 = 0x6b6c_0000;
/// Requests that fit in one buffer.
const REQUESTS: usize = 256;
/// Bytes of one destination in a list: 8-byte NID and pid, little-endian.
const DESTINATION_LEN: usize = 12;
/// Of one with a 20-byte NID, which is in network order as everywhere.
const LARGE_DESTINATION_LEN: usize = 24;
/// A request buffer's `user` is its portal; of all else, this.
const USER_OTHER: u64 = 0;

/// What can be chosen about a self-test node.
#[derive(Debug, Clone, Copy)]
pub struct AgentParams {
    /// A console silent for this long loses its session. Zero: never.
    pub session_timeout: Duration,
    /// How long bulk may take.
    pub bulk_timeout: Duration,
    /// Requests in work at a time; beyond it they are dropped, and the client's time runs out.
    pub max_pending: usize,
}

impl Default for AgentParams {
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_secs(100),
            bulk_timeout: Duration::from_secs(64),
            max_pending: 1024,
        }
    }
}

/// A self-test node. Dropping it ends its tests and its service.
pub struct Agent {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A request whose bulk is on its way.
struct Pending {
    client: ProcessId,
    request: LstMessage,
    memory: SharedBytes,
}

struct Worker {
    params: AgentParams,
    rpc: Arc<Rpc>,
    queue: EventQueue,
    sink: EventSink,
    buffers: HashMap<MdHandle, SharedBytes>,
    /// Portals that want another, once for each.
    wanted: Vec<u32>,
    pending: HashMap<MdHandle, Pending>,
    session: Option<Session>,
    stats: RpcStats,
}

impl Agent {
    /// Begins to serve on `node`, which must not serve yet.
    pub fn start(node: Node, params: AgentParams) -> Result<Self> {
        let queue = EventQueue::new(4 * params.max_pending + 4 * REQUESTS);
        let mut worker = Worker {
            params,
            sink: queue.sink(),
            queue,
            rpc: Arc::new(Rpc::new(node)),
            buffers: HashMap::new(),
            wanted: Vec::new(),
            pending: HashMap::new(),
            session: None,
            stats: RpcStats::default(),
        };
        for portal in [PORTAL_REQUEST, PORTAL_FRAMEWORK] {
            worker.rpc.node().set_lazy(portal, true)?;
            worker.post(portal)?;
            worker.post(portal)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("lst-agent".into())
            .spawn(move || worker.run(&stopped))
            .map_err(|e| Error::io("selftest", "starting the thread", e))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Worker {
    /// Puts up a buffer for requests.
    fn post(&mut self, portal: u32) -> Result<()> {
        let memory = SharedBytes::zeroed(LEN * REQUESTS);
        let entry = MeParams { ignore_bits: u64::MAX, ..MeParams::new(portal, 0) };
        let options = TargetOptions {
            max_size: Some(LEN as u32),
            unlink: Unlink::Auto,
            user: portal.into(),
            ..TargetOptions::new(Access::Put)
        };
        let (_, md) = self.rpc.node().attach(entry, memory.memory(), options, &self.sink)?;
        self.buffers.insert(md, memory);
        Ok(())
    }

    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            if self.session.as_ref().is_some_and(Session::is_stale) {
                tracing::info!("the console is silent: session ended");
                self.session = None;
            }
            if let Some(event) = self.queue.recv_timeout(Duration::from_millis(100)) {
                self.on_event(&event);
            }
            self.post_wanted();
        }
        self.session = None;
        let left: Vec<MdHandle> = self.buffers.keys().chain(self.pending.keys()).copied().collect();
        for md in left {
            let _ = self.rpc.node().unlink_md(md);
        }
    }

    fn on_event(&mut self, event: &Event) {
        if event.user == USER_OTHER {
            return self.on_bulk(event);
        }
        if event.kind == EventKind::Put {
            self.on_request(event);
        }
        if event.unlinked {
            self.buffers.remove(&event.md);
            self.wanted.push(event.user as u32);
        }
    }

    /// Puts up the buffers that are wanted, or as many as there is room for now.
    fn post_wanted(&mut self) {
        for portal in std::mem::take(&mut self.wanted) {
            if let Err(error) = self.post(portal) {
                tracing::warn!(%error, portal, "no request buffer for now");
                self.wanted.push(portal);
            }
        }
    }

    fn on_request(&mut self, event: &Event) {
        let Some(memory) = self.buffers.get(&event.md) else { return };
        let mut bytes = vec![0; event.mlength as usize];
        memory.read_at(event.offset, &mut bytes);
        let client = ProcessId { nid: event.source, pid: event.initiator.pid };
        // A console's own calls are no load.
        if event.user == u64::from(PORTAL_REQUEST) {
            self.stats.received = self.stats.received.wrapping_add(1);
        }
        match LstMessage::decode(&bytes) {
            Ok(request) if self.pending.len() < self.params.max_pending => self.serve(client, request),
            _ => self.stats.dropped = self.stats.dropped.wrapping_add(1),
        }
    }

    fn serve(&mut self, client: ProcessId, request: LstMessage) {
        let body = match request.body {
            LstBody::Ping { seq, .. } => LstBody::PingReply { status: 0, seq },
            LstBody::Brw { op, len, check, .. } => match self.begin_bulk(client, request, op, len, check) {
                Ok(()) => return,
                Err(status) => LstBody::BrwReply { status },
            },
            LstBody::Test(test) => match self.begin_test(client, request, test) {
                None => return,
                Some(status) => LstBody::TestReply { status, session: self.session_id() },
            },
            LstBody::MakeSession { session, force, name, .. } => {
                self.make_session(session, force != 0, name, request.features)
            }
            LstBody::RemoveSession { session, .. } => self.remove_session(session),
            LstBody::Batch { session, batch, op, test, .. } => self.batch(session, batch, op, test),
            LstBody::Stat { session, kind, .. } => self.stat(session, kind),
            LstBody::Debug { session, .. } => self.debug(session),
            LstBody::Join { .. } => self.join(),
            _ => return,
        };
        self.reply(client, &request, body);
    }

    fn reply(&mut self, client: ProcessId, request: &LstMessage, body: LstBody) {
        let Some(match_bits) = request.body.reply_id() else { return };
        let message = LstMessage { features: request.features, ..LstMessage::new(body) };
        let memory = SharedBytes::new(message.encode()).memory();
        let put = PutParams {
            target: client,
            portal: PORTAL_REPLY,
            match_bits,
            offset: 0,
            hdr_data: 0,
            ack: false,
        };
        let node = self.rpc.node();
        let sent = node
            .bind(memory, SourceOptions::once(1), &self.sink)
            .and_then(|md| node.begun(md, node.put(md, put, None)));
        match sent {
            Ok(()) if is_load(&request.body) => self.stats.sent = self.stats.sent.wrapping_add(1),
            Ok(()) => {}
            Err(_) => self.stats.errors = self.stats.errors.wrapping_add(1),
        }
    }

    /// Begins to move the data of a read (we put) or write (we get).
    fn begin_bulk(
        &mut self,
        client: ProcessId,
        request: LstMessage,
        op: u32,
        len: u32,
        check: u32,
    ) -> std::result::Result<(), u32> {
        let LstBody::Brw { bulk_id, .. } = request.body else { return Err(errno::INVALID) };
        let check = Check::from_number(check).ok_or(errno::INVALID)?;
        if len == 0 || len > 1 << 20 || !(1..=2).contains(&op) {
            return Err(errno::INVALID);
        }
        let mut data = vec![0; len as usize];
        if op == 1 {
            pattern::fill(&mut data, check);
        }
        self.move_bulk(client, request, SharedBytes::new(data), bulk_id, op == 1)
    }

    fn move_bulk(
        &mut self,
        client: ProcessId,
        request: LstMessage,
        memory: SharedBytes,
        bulk_id: u64,
        put: bool,
    ) -> std::result::Result<(), u32> {
        let node = self.rpc.node();
        let options = SourceOptions { truncate: true, ..SourceOptions::once(if put { 1 } else { 2 }) };
        let md = node.bind(memory.memory(), options, &self.sink).map_err(|_| errno::BUSY)?;
        let params = PutParams {
            target: client,
            portal: PORTAL_REPLY,
            match_bits: bulk_id,
            offset: 0,
            hdr_data: 0,
            ack: false,
        };
        let timeout = Some(self.params.bulk_timeout);
        let begun = match put {
            true => node.put(md, params, timeout),
            false => node.get(md, client, PORTAL_REPLY, bulk_id, 0, timeout),
        };
        node.begun(md, begun).map_err(|_| errno::IO)?;
        self.pending.insert(md.handle(), Pending { client, request, memory });
        Ok(())
    }

    /// Bulk has moved, or has not: the reply.
    fn on_bulk(&mut self, event: &Event) {
        let over = !event.status.is_ok() || event.kind == EventKind::Reply;
        let put = matches!(self.pending.get(&event.md), Some(Pending { request, .. })
            if matches!(request.body, LstBody::Brw { op: 1, .. }));
        if !(over || put && event.kind == EventKind::Send) {
            return;
        }
        let Some(Pending { client, request, memory }) = self.pending.remove(&event.md) else { return };
        let mut status = if event.status.is_ok() { 0 } else { errno::IO };
        if status != 0 && !event.unlinked {
            let _ = self.rpc.node().unlink_md(event.md);
        }
        let body = match request.body {
            LstBody::Test(test) => {
                if status == 0 {
                    status = self.end_test(test, &memory.to_vec()[..event.mlength as usize]);
                }
                LstBody::TestReply { status, session: self.session_id() }
            }
            LstBody::Brw { op, len, check, .. } => {
                let check = Check::from_number(check).unwrap_or(Check::None);
                let whole = event.mlength == len && pattern::check(&memory.to_vec(), check);
                if op == 2 && status == 0 && !whole {
                    status = errno::BAD_DATA;
                }
                if status == 0 {
                    let moved = if op == 1 { &mut self.stats.bulk_put } else { &mut self.stats.bulk_get };
                    *moved += u64::from(len);
                }
                LstBody::BrwReply { status }
            }
            _ => return,
        };
        self.reply(client, &request, body);
    }

    fn session_id(&self) -> SessionId {
        self.session.as_ref().map_or(SessionId::NONE, |s| s.id)
    }

    /// The session, if it is the one named; its console has been heard.
    fn named(&mut self, id: SessionId) -> Option<&mut Session> {
        let session = self.session.as_mut().filter(|s| s.id == id)?;
        session.heard = Instant::now();
        Some(session)
    }

    /// `None`: the list of destinations is being fetched, the reply comes later.
    fn begin_test(&mut self, client: ProcessId, request: LstMessage, test: TestRequest) -> Option<u32> {
        let Some(session) = self.named(test.session) else { return Some(errno::NO_SESSION) };
        if let Err(status) = session.check_test(&test) {
            return Some(status);
        }
        if !test.is_client {
            session.add_test(test, Vec::new());
            return Some(0);
        }
        let len = test.destinations.min(MAX_DESTINATIONS) as usize * destination_len(test.large_list);
        self.move_bulk(client, request, SharedBytes::zeroed(len), test.bulk_id, false).err()
    }

    fn end_test(&mut self, test: TestRequest, list: &[u8]) -> u32 {
        let entries = list.chunks_exact(destination_len(test.large_list));
        let destinations: Option<Vec<ProcessId>> = entries.map(destination).collect();
        let Some(destinations) = destinations.filter(|d| d.len() as u32 == test.destinations) else {
            return errno::INVALID;
        };
        match self.named(test.session) {
            Some(session) => {
                session.add_test(test, destinations);
                0
            }
            None => errno::NO_SESSION,
        }
    }

    fn make_session(&mut self, id: SessionId, force: bool, name: [u8; 32], features: u32) -> LstBody {
        let timeout = self.params.session_timeout;
        let seconds = timeout.as_secs() as u32;
        if id.nid4 == u64::MAX {
            return LstBody::MakeSessionReply {
                status: errno::INVALID,
                session: SessionId::NONE,
                timeout: 0,
                name,
            };
        }
        if let Some(current) = self.session.as_ref().filter(|s| s.id != id && !force) {
            let (session, name) = (current.id, current.name);
            return LstBody::MakeSessionReply { status: errno::BUSY, session, timeout: seconds, name };
        }
        if self.named(id).is_none() {
            self.session = Some(Session::new(id, name, features, timeout));
        }
        LstBody::MakeSessionReply { status: 0, session: id, timeout: seconds, name }
    }

    fn remove_session(&mut self, id: SessionId) -> LstBody {
        let status = match &self.session {
            None => errno::NO_SESSION,
            Some(s) if s.id != id => errno::BUSY,
            Some(_) => 0,
        };
        if status == 0 {
            self.session = None;
        }
        LstBody::RemoveSessionReply { status, session: self.session_id() }
    }

    fn batch(&mut self, id: SessionId, batch: u64, op: u32, test: u32) -> LstBody {
        let rpc = self.rpc.clone();
        let Some(session) = self.named(id) else {
            let session = self.session_id();
            return LstBody::BatchReply { status: errno::NO_SESSION, session, active: 0, time: 0 };
        };
        let result = match op {
            1 => session.run(batch, &rpc),
            2 => session.stop(batch),
            3 => Ok(()),
            _ => Err(errno::INVALID),
        };
        let active = session.active(batch, test);
        let status = result.and(active.map(drop)).err().unwrap_or(0);
        let time = session.elapsed().as_secs() as u32;
        LstBody::BatchReply { status, session: id, active: active.unwrap_or(0), time }
    }

    fn stat(&mut self, id: SessionId, kind: u32) -> LstBody {
        let (rpc, mut lnet) = (self.stats, self.lnet_stats());
        let (status, framework) = match self.named(id) {
            Some(session) => {
                let batch = batch_of(kind);
                if kind == STAT_LATENCY || batch.is_some() {
                    lnet = latency_stats(session.latency_ns(batch));
                }
                (0, session.stats(batch))
            }
            None => (errno::NO_SESSION, FrameworkStats::default()),
        };
        LstBody::StatReply { status, session: self.session_id(), framework, rpc, lnet }
    }

    fn lnet_stats(&self) -> LnetStats {
        let s = self.rpc.node().with_engine(|engine, _| engine.stats());
        LnetStats {
            msgs_alloc: s.messages as u32,
            msgs_max: s.messages_max as u32,
            errors: s.send_failures as u32,
            send_count: s.sent.total() as u32,
            recv_count: s.received.total() as u32,
            route_count: 0,
            drop_count: s.core.drop_count as u32,
            send_len: s.sent.bytes,
            recv_len: s.received.bytes,
            route_len: 0,
            drop_len: s.core.drop_length,
        }
    }

    /// Also how a console says that it is still there.
    fn debug(&mut self, id: SessionId) -> LstBody {
        let _ = self.named(id);
        let session = self.session_id();
        match &self.session {
            None => LstBody::DebugReply {
                status: errno::NO_SESSION,
                session,
                timeout: 0,
                batches: 0,
                name: [0; 32],
            },
            Some(s) => {
                let (timeout, batches) = (s.timeout.as_secs() as u32, s.batches());
                LstBody::DebugReply { status: 0, session, timeout, batches, name: s.name }
            }
        }
    }

    fn join(&self) -> LstBody {
        let session = self.session_id();
        match &self.session {
            None => LstBody::JoinReply { status: errno::NO_SESSION, session, timeout: 0, name: [0; 32] },
            Some(s) => {
                tracing::debug!(features = s.features, "join");
                LstBody::JoinReply { status: 0, session, timeout: s.timeout.as_secs() as u32, name: s.name }
            }
        }
    }
}

/// Whether a request is one of a test.
fn is_load(request: &LstBody) -> bool {
    matches!(request, LstBody::Ping { .. } | LstBody::Brw { .. })
}

/// The batch that a kind of stat asks about.
fn batch_of(kind: u32) -> Option<u64> {
    (kind & !0xffff == STAT_BATCH).then_some(u64::from(kind & 0xffff))
}

/// Latencies where the counters of LNet would be, marked, for consoles of ours that ask for them.
fn latency_stats(ns: Option<[u64; 5]>) -> LnetStats {
    let Some([p50, p90, p99, p999, max]) = ns else {
        return LnetStats { msgs_alloc: STAT_LATENCY, ..LnetStats::default() };
    };
    LnetStats {
        msgs_alloc: STAT_LATENCY,
        msgs_max: 1,
        errors: p999 as u32,
        send_count: (p999 >> 32) as u32,
        send_len: p50,
        recv_len: p90,
        route_len: p99,
        drop_len: max,
        ..LnetStats::default()
    }
}

/// What [`latency_stats`] says; `None` from a node that does not know of it, or has no figures.
pub(super) fn latency_of(s: &LnetStats) -> Option<[u64; 5]> {
    let p999 = u64::from(s.send_count) << 32 | u64::from(s.errors);
    let known = s.msgs_alloc == STAT_LATENCY && s.msgs_max == 1;
    known.then_some([s.send_len, s.recv_len, s.route_len, p999, s.drop_len])
}

/// Whether these counters come from a node that knows of [`STAT_LATENCY`], which Lustre's do not.
pub(super) fn is_ours(s: &LnetStats) -> bool {
    s.msgs_alloc == STAT_LATENCY
}

fn destination_len(large: bool) -> usize {
    if large { LARGE_DESTINATION_LEN } else { DESTINATION_LEN }
}

/// One entry of a list of destinations; its length tells its form.
fn destination(raw: &[u8]) -> Option<ProcessId> {
    let (nid, pid) = raw.split_at_checked(raw.len().checked_sub(4)?)?;
    let nid = match nid.len() {
        8 => Nid::from_nid4(u64::from_le_bytes(nid.try_into().ok()?))?,
        _ => Nid::from_bytes(nid.try_into().ok()?)?,
    };
    Some(ProcessId { nid, pid: u32::from_le_bytes(pid.try_into().ok()?) })
}

/// A list of destinations; `None` if it is not to be `large` and one has no 8-byte NID.
pub(super) fn destinations(ids: &[ProcessId], large: bool) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(ids.len() * destination_len(large));
    for id in ids {
        match large {
            true => out.extend(id.nid.to_bytes()),
            false => out.extend(id.nid.to_nid4()?.to_le_bytes()),
        }
        out.extend(id.pid.to_le_bytes());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_nids_of_both_lengths() {
        let ids = ["10.0.0.1@tcp", "fd00::1@tcp3"].map(|n| ProcessId::lnet(n.parse().unwrap()));
        let large = destinations(&ids, true).unwrap();
        let read: Vec<_> =
            large.chunks_exact(destination_len(true)).map(|e| destination(e).unwrap()).collect();
        assert_eq!(read, ids);
        assert_eq!(destinations(&ids, false), None);
        let small = destinations(&ids[..1], false).unwrap();
        assert_eq!(small, [1, 0, 0, 10, 0, 0, 2, 0, 0x39, 0x30, 0, 0], "as Lustre's nodes have it");
        assert_eq!(destination(&small), Some(ids[0]));
    }
}
