//! The console side: sessions, tests and batches on self-test nodes, ours or Lustre's.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::agent::{STAT_BATCH, STAT_LATENCY, destinations, is_ours, latency_of};
use super::keeper::Keeper;
use super::load::{Kind, Latency, check_in_flight};
use super::pattern::Check;
use super::rpc::{Bulk, Ids, Rpc, all, status_of};
use crate::core::SharedBytes;
use crate::error::{Error, ErrorKind, Result};
use crate::nid::ProcessId;
use crate::node::Node;
use crate::wire::lst::*;

/// A test: what the clients do to the servers.
#[derive(Debug, Clone, Copy)]
pub struct TestSpec {
    /// What each call does.
    pub kind: Kind,
    /// Bytes of bulk.
    pub size: u32,
    /// How bulk is checked.
    pub check: Check,
    /// Calls in flight from each client to each server.
    pub concurrency: u32,
    /// Calls of each of these; 0: until stopped.
    pub loops: u32,
    /// Who calls whom.
    pub distribute: Distribute,
}

/// Who calls whom in a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum Distribute {
    /// Every client calls every server.
    #[default]
    All,
    /// So many clients share so many servers: `2:1` lets the first two clients call the first server, the next two the
    /// second, and so on, around.
    Ratio {
        /// Clients in a group.
        clients: u16,
        /// Servers of a group.
        servers: u16,
    },
}

impl Distribute {
    /// The servers of the client at `index`.
    pub(super) fn servers_of(self, index: usize, servers: &[ProcessId]) -> &[ProcessId] {
        let Self::Ratio { clients, servers: per_group } = self else { return servers };
        let groups: Vec<&[ProcessId]> = servers.chunks(usize::from(per_group.max(1))).collect();
        let group = index / usize::from(clients.max(1));
        groups.get(group % groups.len().max(1)).copied().unwrap_or(servers)
    }
}

impl std::str::FromStr for Distribute {
    type Err = Error;

    /// `all`, or `C:S` with numbers above zero.
    fn from_str(text: &str) -> Result<Self> {
        if text == "all" {
            return Ok(Self::All);
        }
        let number = |t: &str| t.parse::<u16>().ok().filter(|n| *n > 0);
        let ratio = text.split_once(':').and_then(|(c, s)| Some((number(c)?, number(s)?)));
        let (clients, servers) = ratio.ok_or_else(|| {
            Error::new(
                ErrorKind::Parse,
                "distribute",
                format!("{text:?} is neither \"all\" nor like \"2:1\""),
            )
        })?;
        Ok(Self::Ratio { clients, servers })
    }
}

/// Counters of a self-test node.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct NodeStat {
    /// Of the framework.
    pub framework: FrameworkStats,
    /// Of RPCs: those of tests; nodes of Lustre's count the console's own calls too.
    pub rpc: RpcStats,
    /// Of LNet: messages, not RPCs.
    pub lnet: LnetStats,
}

/// What a node's client tests of one batch have done since they were started last.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BatchStat {
    /// Calls that failed.
    pub errors: u64,
    /// Of those tests that have ended; `None` if none has.
    pub latency: Option<Latency>,
}

/// A session on several nodes. [`Console::end`] ends it. While this exists a thread tells the nodes that it does; those that hear
/// nothing of it for the time they have named end the session themselves.
pub struct Console {
    rpc: Arc<Rpc>,
    session: SessionId,
    name: [u8; 32],
    nodes: Vec<ProcessId>,
    timeout: Duration,
    /// From the first node on.
    keeper: Option<Keeper>,
}

impl Console {
    /// A session named `name` (cut to 31 bytes), made from `node`. `timeout` is that of each call.
    pub fn new(node: Node, name: &str, timeout: Duration) -> Self {
        let nid4 = node.primary().to_nid4().unwrap_or(0);
        let stamp = (crate::node::wall_ns() / 1_000_000) as i64;
        let mut short = [0; 32];
        let len = name.len().min(31);
        short[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self {
            rpc: Arc::new(Rpc::new(node)),
            session: SessionId { nid4, stamp },
            name: short,
            nodes: Vec::new(),
            timeout,
            keeper: None,
        }
    }

    /// The calls of this console; [`super::load::run`] wants them.
    pub fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    async fn call(
        &self,
        target: ProcessId,
        service: Service,
        body: impl FnOnce(Ids) -> LstBody,
        bulk: Bulk,
    ) -> Result<LstBody> {
        let reply = self.rpc.call(target, service, body, bulk, self.timeout).await?;
        match status_of(&reply) {
            0 => Ok(reply),
            status => {
                let kind = if status == super::errno::BUSY { ErrorKind::Denied } else { ErrorKind::Io };
                Err(Error::new(kind, "lst", format!("{target} refuses {service:?} with error {status}")))
            }
        }
    }

    /// Takes a node into the session and keeps it there; `force` ends another session it is in. `Denied` if it is in one otherwise,
    /// `Unreachable` or `TimedOut` if it does not answer.
    pub async fn add_node(&mut self, target: ProcessId, force: bool) -> Result<()> {
        let (session, name) = (self.session, self.name);
        let force = force.into();
        let body = |ids: Ids| LstBody::MakeSession { reply_id: ids.reply_id, session, force, name };
        let reply = self.call(target, Service::MakeSession, body, Bulk::None).await?;
        if !self.nodes.contains(&target) {
            self.nodes.push(target);
        }
        let keeper = match self.keeper.take() {
            Some(keeper) => keeper,
            None => Keeper::start(self.rpc.clone(), session)?,
        };
        if let LstBody::MakeSessionReply { timeout, .. } = reply {
            keeper.keep(target, Duration::from_secs(timeout.into()));
        }
        self.keeper = Some(keeper);
        Ok(())
    }

    /// Adds a test to a batch: told to the servers first, then to each client with the list of servers. `Invalid` for a server
    /// with a 20-byte NID (IPv6) where a client is Lustre's: its lists hold 8-byte NIDs; and for more calls in flight from a client than
    /// there may be.
    pub async fn add_test(
        &self,
        batch: u64,
        clients: &[ProcessId],
        servers: &[ProcessId],
        spec: TestSpec,
    ) -> Result<()> {
        for i in 0..clients.len() {
            check_in_flight(spec.distribute.servers_of(i, servers).len(), spec.concurrency)?;
        }
        let large = servers.iter().find(|s| s.nid.to_nid4().is_none());
        if let Some(server) = large {
            for client in clients {
                self.takes_large(*client, *server).await?;
            }
        }
        for server in servers {
            let body = |ids: Ids| LstBody::Test(self.test(ids, batch, spec, None, false));
            self.call(*server, Service::Test, body, Bulk::None).await?;
        }
        for (i, client) in clients.iter().enumerate() {
            let own = spec.distribute.servers_of(i, servers);
            let large = own.iter().any(|s| s.nid.to_nid4().is_none());
            let list = destinations(own, large).unwrap_or_default();
            let bulk = Bulk::From(SharedBytes::new(list).memory());
            let body = |ids: Ids| LstBody::Test(self.test(ids, batch, spec, Some(own.len() as u32), large));
            self.call(*client, Service::Test, body, bulk).await?;
        }
        Ok(())
    }

    /// Whether a client can be told of a server without an 8-byte NID.
    async fn takes_large(&self, client: ProcessId, server: ProcessId) -> Result<()> {
        match is_ours(&self.stat_of(client, STAT_LATENCY).await?.lnet) {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Invalid,
                "lst",
                format!(
                    "{client} is no node of ours: it takes lists of 8-byte NIDs, and {} has none",
                    server.nid
                ),
            )),
        }
    }

    fn test(
        &self,
        ids: Ids,
        batch: u64,
        spec: TestSpec,
        servers: Option<u32>,
        large_list: bool,
    ) -> TestRequest {
        let ping = TestParams::Ping { size: 0, flags: 0 };
        let check = spec.check.number() as u16;
        let bulk = |op| TestParams::Bulk { op, check, len: spec.size, offset: 0 };
        let (service, params) = match spec.kind {
            Kind::Ping => (Service::Ping, ping),
            Kind::Read => (Service::Brw, bulk(1)),
            Kind::Write => (Service::Brw, bulk(2)),
        };
        TestRequest {
            reply_id: ids.reply_id,
            bulk_id: ids.bulk_id,
            session: self.session,
            batch,
            service: service as u32,
            // For ever is written as all ones.
            loops: if spec.loops == 0 { u32::MAX } else { spec.loops },
            concurrency: spec.concurrency,
            is_client: servers.is_some(),
            large_list,
            stop_on_error: false,
            destinations: servers.unwrap_or(0),
            params,
        }
    }

    async fn batch(&self, target: ProcessId, batch: u64, op: u32) -> Result<u32> {
        let session = self.session;
        let body = |ids: Ids| LstBody::Batch { reply_id: ids.reply_id, session, batch, op, test: 0, arg: 0 };
        match self.call(target, Service::Batch, body, Bulk::None).await? {
            LstBody::BatchReply { active, .. } => Ok(active),
            _ => Err(Error::new(ErrorKind::Protocol, "lst", "not the reply of a batch")),
        }
    }

    /// Tells all clients at once; one that does not answer keeps nothing from the others.
    async fn batch_all(&self, batch: u64, clients: &[ProcessId], op: u32) -> Vec<Result<u32>> {
        all(clients.iter().map(|client| self.batch(*client, batch, op))).await
    }

    /// Starts a batch on its clients. If one cannot, it is stopped on the others, and the first error given.
    pub async fn run(&self, batch: u64, clients: &[ProcessId]) -> Result<()> {
        let begun = first_error(self.batch_all(batch, clients, 1).await);
        if begun.is_err() {
            let _ = self.stop(batch, clients).await;
        }
        begun
    }

    /// Stops a batch on its clients; what is in flight ends first. The first error is given once all have been told.
    pub async fn stop(&self, batch: u64, clients: &[ProcessId]) -> Result<()> {
        first_error(self.batch_all(batch, clients, 2).await)
    }

    /// How many tests of a batch run on each client, in their order; an error for one that does not answer.
    pub async fn active(&self, batch: u64, clients: &[ProcessId]) -> Vec<Result<u32>> {
        self.batch_all(batch, clients, 3).await
    }

    /// The counters of several nodes, asked at once.
    pub async fn stats(&self, nodes: &[ProcessId]) -> Vec<Result<NodeStat>> {
        all(nodes.iter().map(|node| self.stat(*node))).await
    }

    /// The counters of a node.
    pub async fn stat(&self, target: ProcessId) -> Result<NodeStat> {
        self.stat_of(target, 0).await
    }

    /// What a node's client tests of one batch (below 65536) have done. `None` from a node of Lustre's, which counts all batches of the
    /// session as one, without latencies.
    pub async fn batch_stat(&self, target: ProcessId, batch: u64) -> Result<Option<BatchStat>> {
        let number = u16::try_from(batch).map_err(|_| {
            Error::new(
                ErrorKind::Invalid,
                "lst",
                format!("batch {batch} is not below 65536: it has no figures"),
            )
        })?;
        let stat = self.stat_of(target, STAT_BATCH | u32::from(number)).await?;
        let errors = u64::from(stat.framework.brw_errors) + u64::from(stat.framework.ping_errors);
        let latency = latency_of(&stat.lnet).map(Latency::of_ns);
        Ok(is_ours(&stat.lnet).then_some(BatchStat { errors, latency }))
    }

    async fn stat_of(&self, target: ProcessId, kind: u32) -> Result<NodeStat> {
        let session = self.session;
        let body = |ids: Ids| LstBody::Stat { reply_id: ids.reply_id, session, kind };
        match self.call(target, Service::Stat, body, Bulk::None).await? {
            LstBody::StatReply { framework, rpc, lnet, .. } => Ok(NodeStat { framework, rpc, lnet }),
            _ => Err(Error::new(ErrorKind::Protocol, "lst", "not the reply of a stat")),
        }
    }

    /// Ends the session on all its nodes; the first error is given once all have been told.
    pub async fn end(self) -> Result<()> {
        let session = self.session;
        let body = |ids: Ids| LstBody::RemoveSession { reply_id: ids.reply_id, session };
        let tell = |target: &ProcessId| self.call(*target, Service::RemoveSession, body, Bulk::None);
        first_error(all(self.nodes.iter().map(tell)).await)
    }
}

fn first_error<T>(results: Vec<Result<T>>) -> Result<()> {
    results.into_iter().try_for_each(|r| r.map(drop))
}
