//! Self-test RPCs from the client's side: a PUT with the request, a PUT with the reply, bulk in between.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use crate::core::*;
use crate::error::{Error, ErrorKind, Result};
use crate::nid::ProcessId;
use crate::node::Node;
use crate::wire::lst::{self, LstBody, LstMessage, PORTAL_REPLY, Service};

/// Memory the server is to fill or to fetch.
pub enum Bulk {
    /// None.
    None,
    /// The server puts into it.
    Into(Arc<dyn Memory>),
    /// The server gets from it.
    From(Arc<dyn Memory>),
}

/// Match bits of one call: of its reply and of its bulk.
#[derive(Debug, Clone, Copy)]
pub struct Ids {
    /// For the reply.
    pub reply_id: u64,
    /// For the bulk.
    pub bulk_id: u64,
}

const USER_REPLY: u64 = 1;
const USER_BULK: u64 = 2;
const USER_REQUEST: u64 = 3;

/// Makes calls from a node.
pub struct Rpc {
    node: Node,
    next: AtomicU64,
    features: u32,
}

impl Rpc {
    /// Calls from `node`.
    pub fn new(node: Node) -> Self {
        // Two callers of one node must not choose the same numbers, even if made in the same second.
        static CALLERS: AtomicU64 = AtomicU64::new(0);
        let (seconds, caller) =
            (crate::node::wall_ns() / 1_000_000_000, CALLERS.fetch_add(1, Ordering::Relaxed));
        let first = (seconds & 0xffff) << 48 | (caller & 0xff) << 40 | 2;
        Self { node, next: AtomicU64::new(first), features: lst::FEAT_BULK_LEN }
    }

    /// The node.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// A number that no other call of this node has.
    pub fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Calls `service` at `target`. The call ends with the reply and, if the reply says all is well, the bulk; or after
    /// `timeout`. A future that is dropped leaves its memory attached until then.
    pub async fn call(
        &self,
        target: ProcessId,
        service: Service,
        body: impl FnOnce(Ids) -> LstBody,
        bulk: Bulk,
        timeout: Duration,
    ) -> Result<LstBody> {
        let ids = Ids { reply_id: self.unique(), bulk_id: self.unique() };
        let queue = EventQueue::new(16);
        let sink = queue.sink();
        let reply = SharedBytes::zeroed(lst::LEN);
        let options = TargetOptions { user: USER_REPLY, truncate: true, ..TargetOptions::once(Access::Put) };
        let entry = MeParams::new(PORTAL_REPLY, ids.reply_id);
        let reply_md = self.node.attach_for(entry, reply.memory(), options, &sink, timeout)?;
        let bulk_md = self.attach_bulk(ids, bulk, &sink, timeout)?;
        let message = LstMessage { features: self.features, ..LstMessage::new(body(ids)) };
        let result = match self.send(target, service, &message, &sink) {
            Ok(()) => wait(&queue, &reply, bulk_md.is_some()).await,
            Err(error) => Err(error),
        };
        if result.is_err() {
            let _ = self.node.unlink_md(reply_md);
        }
        if let Some(md) = bulk_md {
            // Gone already, unless the call failed.
            let _ = self.node.unlink_md(md);
        }
        result
    }

    fn attach_bulk(
        &self,
        ids: Ids,
        bulk: Bulk,
        sink: &EventSink,
        timeout: Duration,
    ) -> Result<Option<MdHandle>> {
        let (access, memory) = match bulk {
            Bulk::None => return Ok(None),
            Bulk::Into(memory) => (Access::Put, memory),
            Bulk::From(memory) => (Access::Get, memory),
        };
        let options = TargetOptions { user: USER_BULK, truncate: true, ..TargetOptions::once(access) };
        let entry = MeParams::new(PORTAL_REPLY, ids.bulk_id);
        self.node.attach_for(entry, memory, options, sink, timeout).map(Some)
    }

    fn send(
        &self,
        target: ProcessId,
        service: Service,
        message: &LstMessage,
        sink: &EventSink,
    ) -> Result<()> {
        let options = SourceOptions { user: USER_REQUEST, ..SourceOptions::once(1) };
        let md = self.node.bind(SharedBytes::new(message.encode()).memory(), options, sink)?;
        let (portal, match_bits) = (service.portal(), service as u64);
        self.node.put(md, PutParams { target, portal, match_bits, offset: 0, hdr_data: 0, ack: false }, None)
    }
}

/// Waits for all of them at once; what came of them, in their order.
pub(super) async fn all<F: Future>(calls: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = calls.into_iter().map(|c| (Box::pin(c), None)).collect();
    poll_fn(|cx| {
        for (call, slot) in all.iter_mut().filter(|c| c.1.is_none()) {
            if let Poll::Ready(output) = call.as_mut().poll(cx) {
                *slot = Some(output);
            }
        }
        if all.iter().all(|c| c.1.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|c| c.1).collect()
}

/// The status word of a reply.
pub(super) fn status_of(body: &LstBody) -> u32 {
    match body {
        LstBody::MakeSessionReply { status, .. }
        | LstBody::RemoveSessionReply { status, .. }
        | LstBody::BatchReply { status, .. }
        | LstBody::StatReply { status, .. }
        | LstBody::TestReply { status, .. }
        | LstBody::DebugReply { status, .. }
        | LstBody::BrwReply { status }
        | LstBody::PingReply { status, .. }
        | LstBody::JoinReply { status, .. } => *status,
        _ => super::errno::INVALID,
    }
}

async fn wait(queue: &EventQueue, memory: &SharedBytes, has_bulk: bool) -> Result<LstBody> {
    let (mut reply, mut bulk_done) = (None, !has_bulk);
    loop {
        let event = queue.recv().await;
        match (event.user, event.kind) {
            _ if !event.status.is_ok() => {
                let kind = if event.status == Status::Unreachable {
                    ErrorKind::Unreachable
                } else {
                    ErrorKind::TimedOut
                };
                return Err(Error::new(kind, "selftest", format!("no answer: {:?}", event.status)));
            }
            (USER_REPLY, EventKind::Put) => {
                let bytes = memory.to_vec();
                reply = Some(LstMessage::decode(&bytes[..event.mlength as usize])?.body);
            }
            (USER_BULK, _) => bulk_done = true,
            _ => {}
        }
        if let Some(body) = reply.filter(|body| bulk_done || status_of(body) != 0) {
            return Ok(body);
        }
    }
}
