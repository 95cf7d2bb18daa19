//! Messages of the LNet self-test: 160 bytes each, in the sender's order.
//!
//! The parameters at the end of a test request are kept as they came: what they mean depends on the service.

use super::{ByteOrder, Reader, WireError, Writer};

/// First word.
pub const MAGIC: u32 = 0xeeb0_f00d;
/// Bytes of every message.
pub const LEN: usize = 160;
/// The ping body's magic.
pub const PING_MAGIC: u32 = 0xbabe_face;
/// Feature: bulk lengths in bytes, not pages.
pub const FEAT_BULK_LEN: u32 = 1;
/// Portal of BRW and PING requests.
pub const PORTAL_REQUEST: u32 = 50;
/// Portal of framework requests.
pub const PORTAL_FRAMEWORK: u32 = 51;
/// Portal of replies and bulk.
pub const PORTAL_REPLY: u32 = 52;

/// `is_client` of a test whose destination list has 20-byte NIDs.
const LARGE_LIST: u8 = 2;

/// Service ids, which are the match bits of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Service {
    /// State of a node.
    Debug = 0,
    /// Begin a session.
    MakeSession = 1,
    /// End a session.
    RemoveSession = 2,
    /// Run, stop, query a batch.
    Batch = 3,
    /// Add a test to a batch.
    Test = 4,
    /// Counters.
    Stat = 5,
    /// Join a session.
    Join = 6,
    /// Bulk read and write.
    Brw = 11,
    /// Ping.
    Ping = 12,
}

impl Service {
    /// The service of an id.
    pub fn from_id(id: u64) -> Option<Self> {
        use Service::*;
        [Debug, MakeSession, RemoveSession, Batch, Test, Stat, Join, Brw, Ping]
            .into_iter()
            .find(|s| *s as u64 == id)
    }

    /// The portal its requests go to.
    pub fn portal(self) -> u32 {
        if matches!(self, Self::Brw | Self::Ping) { PORTAL_REQUEST } else { PORTAL_FRAMEWORK }
    }
}

/// Names a session: who made it and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The console's NID, 8-byte form.
    pub nid4: u64,
    /// Its clock, ms.
    pub stamp: i64,
}

impl SessionId {
    /// "No session".
    pub const NONE: SessionId = SessionId { nid4: u64::MAX, stamp: -1 };
}

/// Framework counters in a stat reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct FrameworkStats {
    pub running_ms: u32,
    pub active_batches: u32,
    pub zombie_sessions: u32,
    pub brw_errors: u32,
    pub ping_errors: u32,
}

/// RPC counters in a stat reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct RpcStats {
    pub errors: u32,
    pub sent: u32,
    pub received: u32,
    pub dropped: u32,
    pub expired: u32,
    pub bulk_get: u64,
    pub bulk_put: u64,
}

/// LNet counters in a stat reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[allow(missing_docs)]
pub struct LnetStats {
    pub msgs_alloc: u32,
    pub msgs_max: u32,
    pub errors: u32,
    pub send_count: u32,
    pub recv_count: u32,
    pub route_count: u32,
    pub drop_count: u32,
    pub send_len: u64,
    pub recv_len: u64,
    pub route_len: u64,
    pub drop_len: u64,
}

/// Adds a test to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TestRequest {
    /// Match bits of the reply.
    pub reply_id: u64,
    /// Match bits of the destination list (client side).
    pub bulk_id: u64,
    /// The session.
    pub session: SessionId,
    /// The batch.
    pub batch: u64,
    /// Which service is tested.
    pub service: u32,
    /// How many times; 0 for ever.
    pub loops: u32,
    /// RPCs in flight.
    pub concurrency: u32,
    /// Whether the receiver is to send (else it is to serve).
    pub is_client: bool,
    /// The destination list has 20-byte NIDs. Only nodes of ours understand that; it makes `is_client` 2 on the wire.
    pub large_list: bool,
    /// End at the first error.
    pub stop_on_error: bool,
    /// Length of the destination list.
    pub destinations: u32,
    /// The service's parameters.
    pub params: TestParams,
}

/// Parameters of a test: twelve bytes whose meaning the service gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestParams {
    /// Bulk: opcode (1 read, 2 write), check (1 none, 2 simple, 3 full), length and offset in bytes.
    Bulk {
        /// 1 read, 2 write.
        op: u16,
        /// 1 none, 2 simple, 3 full.
        check: u16,
        /// Bytes.
        len: u32,
        /// Bytes into the first page.
        offset: u32,
    },
    /// Ping: size and flags, unused.
    Ping {
        /// Unused.
        size: u32,
        /// Unused.
        flags: u32,
    },
}

/// One message body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum LstBody {
    MakeSession { reply_id: u64, session: SessionId, force: u32, name: [u8; 32] },
    MakeSessionReply { status: u32, session: SessionId, timeout: u32, name: [u8; 32] },
    RemoveSession { reply_id: u64, session: SessionId },
    RemoveSessionReply { status: u32, session: SessionId },
    Batch { reply_id: u64, session: SessionId, batch: u64, op: u32, test: u32, arg: u32 },
    BatchReply { status: u32, session: SessionId, active: u32, time: u32 },
    Stat { reply_id: u64, session: SessionId, kind: u32 },
    StatReply { status: u32, session: SessionId, framework: FrameworkStats, rpc: RpcStats, lnet: LnetStats },
    Test(TestRequest),
    TestReply { status: u32, session: SessionId },
    Debug { reply_id: u64, session: SessionId, flags: u32 },
    DebugReply { status: u32, session: SessionId, timeout: u32, batches: u32, name: [u8; 32] },
    Brw { reply_id: u64, bulk_id: u64, op: u32, len: u32, check: u32 },
    BrwReply { status: u32 },
    Ping { reply_id: u64, seq: u32, sec: u64, nsec: u64 },
    PingReply { status: u32, seq: u32 },
    Join { reply_id: u64, session: SessionId, group: [u8; 32] },
    JoinReply { status: u32, session: SessionId, timeout: u32, name: [u8; 32] },
}

/// A whole message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LstMessage {
    /// The sender's order.
    pub order: ByteOrder,
    /// Feature bits of the session.
    pub features: u32,
    /// The body.
    pub body: LstBody,
}

fn write_session(w: &mut Writer, s: SessionId) -> &mut Writer {
    w.u64(s.nid4).u64(s.stamp as u64)
}

fn read_session(r: &mut Reader<'_>) -> Result<SessionId, WireError> {
    Ok(SessionId { nid4: r.u64()?, stamp: r.u64()? as i64 })
}

impl LstMessage {
    /// A little-endian message of a session with byte-length bulk.
    pub fn new(body: LstBody) -> Self {
        Self { order: ByteOrder::Little, features: FEAT_BULK_LEN, body }
    }

    /// Exactly 160 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new(self.order, LEN);
        w.u32(MAGIC).u32(1).u32(self.body.type_id()).u32(0).u32(0).u32(self.features);
        self.body.encode(&mut w);
        w.pad_to(LEN);
        w.finish()
    }

    /// Decodes 160 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() < LEN {
            return Err(WireError::Truncated { need: LEN });
        }
        let mut r = Reader::with_magic(bytes, MAGIC)?;
        let version = r.u32()?;
        if version != 1 {
            return Err(WireError::Version(version));
        }
        let (kind, _, _, features) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let body = LstBody::decode(kind, &mut r)?;
        Ok(Self { order: r.order(), features, body })
    }
}

impl LstBody {
    fn type_id(&self) -> u32 {
        match self {
            Self::MakeSession { .. } => 0,
            Self::MakeSessionReply { .. } => 1,
            Self::RemoveSession { .. } => 2,
            Self::RemoveSessionReply { .. } => 3,
            Self::Batch { .. } => 4,
            Self::BatchReply { .. } => 5,
            Self::Stat { .. } => 6,
            Self::StatReply { .. } => 7,
            Self::Test(_) => 8,
            Self::TestReply { .. } => 9,
            Self::Debug { .. } => 10,
            Self::DebugReply { .. } => 11,
            Self::Brw { .. } => 12,
            Self::BrwReply { .. } => 13,
            Self::Ping { .. } => 14,
            Self::PingReply { .. } => 15,
            Self::Join { .. } => 16,
            Self::JoinReply { .. } => 17,
        }
    }

    /// The match bits the reply will carry; `None` for replies.
    pub fn reply_id(&self) -> Option<u64> {
        match self {
            Self::MakeSession { reply_id, .. }
            | Self::RemoveSession { reply_id, .. }
            | Self::Batch { reply_id, .. }
            | Self::Stat { reply_id, .. }
            | Self::Debug { reply_id, .. }
            | Self::Brw { reply_id, .. }
            | Self::Ping { reply_id, .. }
            | Self::Join { reply_id, .. } => Some(*reply_id),
            Self::Test(t) => Some(t.reply_id),
            _ => None,
        }
    }

    fn encode(&self, w: &mut Writer) {
        match *self {
            Self::MakeSession { reply_id, session, force, name } => {
                write_session(w.u64(reply_id), session).u32(force).bytes(&name);
            }
            Self::RemoveSession { reply_id, session } => {
                write_session(w.u64(reply_id), session);
            }
            Self::MakeSessionReply { status, session, timeout, name }
            | Self::JoinReply { status, session, timeout, name } => {
                write_session(w.u32(status), session).u32(timeout).bytes(&name);
            }
            Self::RemoveSessionReply { status, session } | Self::TestReply { status, session } => {
                write_session(w.u32(status), session);
            }
            Self::Batch { reply_id, session, batch, op, test, arg } => {
                write_session(w.u64(reply_id), session).u64(batch).u32(op).u32(test).u32(arg);
            }
            Self::BatchReply { status, session, active, time } => {
                write_session(w.u32(status), session).u32(active).u32(time);
            }
            Self::Stat { reply_id, session, kind } => {
                write_session(w.u64(reply_id), session).u32(kind);
            }
            Self::StatReply { status, session, framework, rpc, lnet } => {
                write_session(w.u32(status), session);
                write_stats(w, &framework, &rpc, &lnet);
            }
            Self::Test(t) => write_test(w, &t),
            Self::Debug { reply_id, session, flags } => {
                write_session(w.u64(reply_id), session).u32(flags);
            }
            Self::DebugReply { status, session, timeout, batches, name } => {
                write_session(w.u32(status), session).u32(timeout).u32(batches).bytes(&name);
            }
            Self::Brw { reply_id, bulk_id, op, len, check } => {
                w.u64(reply_id).u64(bulk_id).u32(op).u32(len).u32(check);
            }
            Self::BrwReply { status } => {
                w.u32(status);
            }
            Self::Ping { reply_id, seq, sec, nsec } => {
                w.u64(reply_id).u32(PING_MAGIC).u32(seq).u64(sec).u64(nsec);
            }
            Self::PingReply { status, seq } => {
                w.u32(status).u32(PING_MAGIC).u32(seq);
            }
            Self::Join { reply_id, session, group } => {
                write_session(w.u64(reply_id), session).bytes(&group);
            }
        }
    }

    fn decode(kind: u32, r: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(match kind {
            0 => Self::MakeSession {
                reply_id: r.u64()?,
                session: read_session(r)?,
                force: r.u32()?,
                name: r.array()?,
            },
            1 => Self::MakeSessionReply {
                status: r.u32()?,
                session: read_session(r)?,
                timeout: r.u32()?,
                name: r.array()?,
            },
            2 => Self::RemoveSession { reply_id: r.u64()?, session: read_session(r)? },
            3 => Self::RemoveSessionReply { status: r.u32()?, session: read_session(r)? },
            4 => Self::Batch {
                reply_id: r.u64()?,
                session: read_session(r)?,
                batch: r.u64()?,
                op: r.u32()?,
                test: r.u32()?,
                arg: r.u32()?,
            },
            5 => Self::BatchReply {
                status: r.u32()?,
                session: read_session(r)?,
                active: r.u32()?,
                time: r.u32()?,
            },
            6 => Self::Stat { reply_id: r.u64()?, session: read_session(r)?, kind: r.u32()? },
            7 => read_stat_reply(r)?,
            8 => Self::Test(read_test(r)?),
            9 => Self::TestReply { status: r.u32()?, session: read_session(r)? },
            10 => Self::Debug { reply_id: r.u64()?, session: read_session(r)?, flags: r.u32()? },
            11 => Self::DebugReply {
                status: r.u32()?,
                session: read_session(r)?,
                timeout: r.u32()?,
                batches: r.u32()?,
                name: r.array()?,
            },
            12 => Self::Brw {
                reply_id: r.u64()?,
                bulk_id: r.u64()?,
                op: r.u32()?,
                len: r.u32()?,
                check: r.u32()?,
            },
            13 => Self::BrwReply { status: r.u32()? },
            14 => {
                let reply_id = r.u64()?;
                check_ping_magic(r)?;
                Self::Ping { reply_id, seq: r.u32()?, sec: r.u64()?, nsec: r.u64()? }
            }
            15 => {
                let status = r.u32()?;
                check_ping_magic(r)?;
                Self::PingReply { status, seq: r.u32()? }
            }
            16 => Self::Join { reply_id: r.u64()?, session: read_session(r)?, group: r.array()? },
            17 => Self::JoinReply {
                status: r.u32()?,
                session: read_session(r)?,
                timeout: r.u32()?,
                name: r.array()?,
            },
            _ => return Err(WireError::Invalid("unknown self-test message")),
        })
    }
}

fn check_ping_magic(r: &mut Reader<'_>) -> Result<(), WireError> {
    match r.u32()? {
        PING_MAGIC => Ok(()),
        other => Err(WireError::Magic(other)),
    }
}

fn write_stats(w: &mut Writer, f: &FrameworkStats, p: &RpcStats, l: &LnetStats) {
    w.u32(f.running_ms).u32(f.active_batches).u32(f.zombie_sessions).u32(f.brw_errors).u32(f.ping_errors);
    w.u32(p.errors).u32(p.sent).u32(p.received).u32(p.dropped).u32(p.expired).u64(p.bulk_get).u64(p.bulk_put);
    w.u32(l.msgs_alloc).u32(l.msgs_max).u32(l.errors);
    w.u32(l.send_count).u32(l.recv_count).u32(l.route_count).u32(l.drop_count);
    w.u64(l.send_len).u64(l.recv_len).u64(l.route_len).u64(l.drop_len);
}

fn read_stat_reply(r: &mut Reader<'_>) -> Result<LstBody, WireError> {
    let (status, session) = (r.u32()?, read_session(r)?);
    let framework = FrameworkStats {
        running_ms: r.u32()?,
        active_batches: r.u32()?,
        zombie_sessions: r.u32()?,
        brw_errors: r.u32()?,
        ping_errors: r.u32()?,
    };
    let rpc = RpcStats {
        errors: r.u32()?,
        sent: r.u32()?,
        received: r.u32()?,
        dropped: r.u32()?,
        expired: r.u32()?,
        bulk_get: r.u64()?,
        bulk_put: r.u64()?,
    };
    let lnet = LnetStats {
        msgs_alloc: r.u32()?,
        msgs_max: r.u32()?,
        errors: r.u32()?,
        send_count: r.u32()?,
        recv_count: r.u32()?,
        route_count: r.u32()?,
        drop_count: r.u32()?,
        send_len: r.u64()?,
        recv_len: r.u64()?,
        route_len: r.u64()?,
        drop_len: r.u64()?,
    };
    Ok(LstBody::StatReply { status, session, framework, rpc, lnet })
}

fn write_test(w: &mut Writer, t: &TestRequest) {
    write_session(w.u64(t.reply_id).u64(t.bulk_id), t.session).u64(t.batch);
    w.u32(t.service).u32(t.loops).u32(t.concurrency);
    w.u8(if t.large_list { LARGE_LIST } else { t.is_client.into() })
        .u8(t.stop_on_error.into())
        .u32(t.destinations);
    match t.params {
        TestParams::Bulk { op, check, len, offset } => {
            let (first, second) = if w.order == ByteOrder::Little { (op, check) } else { (check, op) };
            // Two 16-bit words in the sender's order are one 32-bit word in that order.
            w.u32(u32::from(second) << 16 | u32::from(first)).u32(len).u32(offset)
        }
        TestParams::Ping { size, flags } => w.u32(size).u32(flags).u32(0),
    };
}

fn read_test(r: &mut Reader<'_>) -> Result<TestRequest, WireError> {
    let (reply_id, bulk_id) = (r.u64()?, r.u64()?);
    let (session, batch) = (read_session(r)?, r.u64()?);
    let (service, loops, concurrency) = (r.u32()?, r.u32()?, r.u32()?);
    let (client, stop_on_error) = (r.u8()?, r.u8()? != 0);
    let (is_client, large_list) = (client != 0, client == LARGE_LIST);
    let destinations = r.u32()?;
    let (a, b, c) = (r.u32()?, r.u32()?, r.u32()?);
    let params = if service == Service::Brw as u32 {
        let (low, high) = (a as u16, (a >> 16) as u16);
        let (op, check) = if r.order() == ByteOrder::Little { (low, high) } else { (high, low) };
        TestParams::Bulk { op, check, len: b, offset: c }
    } else {
        TestParams::Ping { size: a, flags: b }
    };
    let parsed = TestRequest {
        reply_id,
        bulk_id,
        session,
        batch,
        service,
        loops,
        concurrency,
        is_client,
        large_list,
        stop_on_error,
        destinations,
        params,
    };
    Ok(parsed)
}
