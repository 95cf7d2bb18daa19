//! What a command asks of a node and what comes back, as lines of JSON. Everything a user wrote travels as text and is parsed by the
//! node, whose error names what is wrong.

use crate::failure::Failure;
use clap::Args;
use serde::{Deserialize, Serialize};

/// The longest line of a request.
pub(crate) const MAX_LINE: u64 = 1 << 20;

/// A question to a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    NetAdd(NetWords),
    NetDel { nid: String },
    NetShow,
    PeerShow { nid: Option<String> },
    PeerAdd { nids: Vec<String> },
    PeerDel { nid: String },
    PeerPriority { rules: Vec<String> },
    PeerPair { rules: Vec<String> },
    RouteAdd { net: String, gateway: String, hops: u32, priority: u32 },
    RouteDel { net: String, gateway: String },
    RouteShow,
    RoutePrefer { rules: Vec<String> },
    BookSet { entry: String },
    BookShow,
    Ping { nid: String, timeout_s: f64 },
    Discover { nid: String, force: bool },
    Stats,
    FaultAdd { words: FaultWords, delay: bool },
    FaultList { delay: bool },
    FaultDel { id: Option<u64>, delay: bool },
    Lst(LstRequest),
}

impl Request {
    /// Whether the node tells how far it is, and ends early when it is told to.
    pub(crate) fn takes_its_time(&self) -> bool {
        use LstRequest::{Load, Run, Stat};
        matches!(self, Request::Lst(Run { seconds: Some(_), .. } | Stat { .. } | Load(_)))
    }
}

/// A question to a node's self-test console.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum LstRequest {
    SessionNew { name: String, timeout_s: f64, force: bool },
    SessionShow,
    SessionEnd,
    GroupAdd { name: String, nids: Vec<String> },
    GroupList,
    BatchAdd { name: String },
    BatchList,
    TestAdd { batch: String, from: String, to: String, test: TestWords },
    Run { batch: String, seconds: Option<f64> },
    Stop { batch: String },
    Stat { group: String, seconds: f64 },
    Load(LoadWords),
}

/// A line of an answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    Progress { part: f64, text: String },
    Done(serde_json::Value),
    Failed { code: u8, what: String, hint: Option<String> },
}

impl From<Failure> for Line {
    fn from(f: Failure) -> Line {
        Line::Failed { code: f.code, what: f.what, hint: f.hint }
    }
}

/// An interface to add.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NetWords {
    /// Its NID: 10.0.0.1@tcp listens at that address; 57@kfi is over kfab
    pub(crate) nid: String,
    /// tcp: the port to listen on and to dial
    #[arg(long, default_value_t = 988)]
    pub(crate) port: u16,
    /// tcp: another port for connections that carry bulk (default: the same)
    #[arg(long, value_name = "PORT")]
    pub(crate) bulk_port: Option<u16>,
    /// tcp: whom to let in: secure (source ports below 1024), all, trusted (claimed NIDs are believed), none
    #[arg(long, default_value = "secure")]
    pub(crate) accept: String,
    /// tcp: where to dial from: privileged, any
    #[arg(long, value_name = "PORTS", default_value = "privileged")]
    pub(crate) source_ports: String,
    /// kfi: where to listen (tcp:0.0.0.0:7000, shm:NAME); several times for several ways
    #[arg(long, value_name = "WAY")]
    pub(crate) listen: Vec<String>,
    /// kfi: one endpoint and thread for each partition of the machine
    #[arg(long)]
    pub(crate) partitioned: bool,
    /// Messages in flight to each peer interface
    #[arg(long, value_name = "N")]
    pub(crate) peer_credits: Option<i32>,
    /// Messages in flight in all
    #[arg(long, value_name = "N")]
    pub(crate) credits: Option<i32>,
    /// Networks with smaller numbers are taken first; without one, kfi comes before the others
    #[arg(long, value_name = "N")]
    pub(crate) priority: Option<u32>,
}

/// A fault rule.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FaultWords {
    /// Only from these (10.0.0.[1-9]@tcp, *@kfi)
    #[arg(long, value_name = "NIDS")]
    pub(crate) src: Option<String>,
    /// Only to these
    #[arg(long, value_name = "NIDS")]
    pub(crate) dst: Option<String>,
    /// Only at this interface of ours
    #[arg(long, value_name = "NID")]
    pub(crate) local: Option<String>,
    /// Only for this portal
    #[arg(long)]
    pub(crate) portal: Option<u32>,
    /// Only PUT, ACK, GET or REPLY
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<String>,
    /// One in so many (default: all)
    #[arg(long, value_name = "N", conflicts_with = "interval")]
    pub(crate) rate: Option<u32>,
    /// One per so many seconds
    #[arg(long, value_name = "S")]
    pub(crate) interval: Option<f64>,
    /// drop: fail sends as local_error, remote_dropped, network_timeout, ..., or random
    #[arg(long, value_name = "CLASS")]
    pub(crate) error: Option<String>,
    /// delay: by so many seconds
    #[arg(long, value_name = "S")]
    pub(crate) by: Option<f64>,
}

/// A self-test.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TestWords {
    /// ping, read (their data comes here) or write
    #[arg(long, default_value = "ping")]
    pub(crate) test: String,
    /// Bytes of bulk: 1 to 1 MiB
    #[arg(long, default_value = "4KiB")]
    pub(crate) size: String,
    /// How bulk is checked: none, simple, full
    #[arg(long, default_value = "none")]
    pub(crate) check: String,
    /// Calls in flight from each client to each server
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) concurrency: u32,
    /// Calls of each of these (default: until stopped)
    #[arg(long = "loop", value_name = "N", default_value_t = 0)]
    pub(crate) loops: u32,
    /// Who calls whom: all, or C:S (so many clients share so many servers)
    #[arg(long, default_value = "all")]
    pub(crate) distribute: String,
}

/// A self-test from one node.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LoadWords {
    /// The nodes to call
    #[arg(required = true)]
    pub(crate) nids: Vec<String>,
    #[command(flatten)]
    pub(crate) test: TestWords,
    /// How long
    #[arg(long, value_name = "S", default_value_t = 5.0)]
    pub(crate) duration: f64,
    /// How long one call may take
    #[arg(long, value_name = "S", default_value_t = 64.0)]
    pub(crate) timeout: f64,
    /// End other sessions the nodes are in
    #[arg(long)]
    pub(crate) force: bool,
}
