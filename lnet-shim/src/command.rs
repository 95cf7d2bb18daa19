//! What `kfab lnet` and `kfab lst` do, as functions that give serialisable values.
//!
//! A command line parses its words with the `FromStr` forms here and prints what comes back, as text or JSON. Nothing here
//! prints, and nothing blocks longer than the timeouts it is given.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::core::PORTALS;
use crate::error::{Error, ErrorKind, Result};
use crate::network::{ConnectionInfo, Failure};
use crate::nid::{Net, Nid, NidList, ProcessId};
use crate::node::{FaultAction, FaultRule, Frequency, NiConfig, NiInfo, Node, NodeStats, PeerInfo};
use crate::selftest::load::{self, Kind, LoadReport, LoadSpec, Progress};
use crate::selftest::{Check, Console, Distribute, TestSpec};
use crate::tcp::{Accept, SourcePorts, TcpParams};
use crate::wire::lnet::MsgType;
use crate::wire::ping;

fn unknown(what: &'static str, text: &str, choices: &str) -> Error {
    Error::new(ErrorKind::Parse, what, format!("{text:?} is none of {choices}"))
}

/// Finds `text` in a table of words.
fn word<T: Copy>(what: &'static str, text: &str, table: &[(&str, T)]) -> Result<T> {
    table.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        unknown(what, text, &names.join(", "))
    })
}

impl FromStr for Accept {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let table =
            [("secure", Self::Secure), ("all", Self::All), ("trusted", Self::Trusted), ("none", Self::None)];
        word("accept", text, &table)
    }
}

impl FromStr for SourcePorts {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        word("source ports", text, &[("privileged", Self::Privileged), ("any", Self::Any)])
    }
}

impl FromStr for MsgType {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let table = [("PUT", Self::Put), ("ACK", Self::Ack), ("GET", Self::Get), ("REPLY", Self::Reply)];
        word("message type", &text.to_ascii_uppercase(), &table)
    }
}

impl FromStr for Failure {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let table = [
            ("local_interrupt", Self::LocalInterrupt),
            ("local_dropped", Self::LocalDropped),
            ("local_aborted", Self::LocalAborted),
            ("local_no_route", Self::LocalNoRoute),
            ("local_error", Self::LocalError),
            ("local_timeout", Self::LocalTimeout),
            ("remote_error", Self::RemoteError),
            ("remote_dropped", Self::RemoteDropped),
            ("remote_timeout", Self::RemoteTimeout),
            ("network_timeout", Self::NetworkTimeout),
        ];
        word("error class", text, &table)
    }
}

impl FromStr for Kind {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        word("test", text, &[("ping", Self::Ping), ("read", Self::Read), ("write", Self::Write)])
    }
}

impl FromStr for Check {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        word("check", text, &[("none", Self::None), ("simple", Self::Simple), ("full", Self::Full)])
    }
}

/// Words of `net add`.
#[derive(Debug, Clone)]
pub struct NetAdd {
    /// The NID; its address is where we listen.
    pub nid: Nid,
    /// The port; 988 among Lustre nodes.
    pub port: u16,
    /// Whom we let in.
    pub accept: Accept,
    /// Where we dial from.
    pub source_ports: SourcePorts,
    /// Messages in flight to each peer interface; `None`: the default.
    pub peer_credits: Option<i32>,
}

/// Adds a tcp interface.
pub fn net_add(node: &Node, add: &NetAdd) -> Result<()> {
    let mut config = NiConfig::new(add.nid);
    config.peer_credits = add.peer_credits.unwrap_or(config.peer_credits).max(1);
    let (port, bulk_port) = (add.port, add.port);
    let (accept, source_ports) = (add.accept, add.source_ports);
    node.add_tcp(config, TcpParams { port, bulk_port, accept, source_ports, ..TcpParams::default() })
}

/// Removes an interface.
pub fn net_del(node: &Node, nid: Nid) -> Result<()> {
    node.remove_network(nid)
}

/// One network of `net show`.
#[derive(Debug, Clone, Serialize)]
pub struct NetShow {
    /// The network.
    pub net: Net,
    /// Its interfaces.
    pub interfaces: Vec<NiInfo>,
}

/// Our networks and interfaces.
pub fn net_show(node: &Node) -> Vec<NetShow> {
    let mut nets: Vec<NetShow> = Vec::new();
    for ni in node.with_engine(|engine, _| engine.nis()) {
        match nets.iter_mut().find(|n| n.net == ni.nid.net()) {
            Some(net) => net.interfaces.push(ni),
            None => nets.push(NetShow { net: ni.nid.net(), interfaces: vec![ni] }),
        }
    }
    nets
}

/// Peers with credits, least credits and health; all, or the one with `nid`.
pub fn peer_show(node: &Node, nid: Option<Nid>) -> Vec<PeerInfo> {
    node.with_engine(|engine, _| match nid {
        Some(nid) => engine.peer(nid).into_iter().collect(),
        None => engine.peers(),
    })
}

/// Sets which peers' interfaces are taken first, as (NID list, priority); 0 is first. The rules replace those before.
pub fn peer_priority(node: &Node, rules: &[(String, u32)]) -> Result<()> {
    let parse = |(list, priority): &(String, u32)| Ok((list.parse::<NidList>()?, *priority));
    let rules: Vec<(NidList, u32)> = rules.iter().map(parse).collect::<Result<_>>()?;
    node.with_engine(|engine, _| engine.set_peer_priorities(rules));
    Ok(())
}

/// Reads rules of two NID lists.
fn pairs(rules: &[(String, String)]) -> Result<Vec<(NidList, NidList)>> {
    let pair = |(one, two): &(String, String)| Ok((one.parse::<NidList>()?, two.parse::<NidList>()?));
    rules.iter().map(pair).collect()
}

/// Sets which interfaces of peers go first with which of ours, as (our NIDs, theirs). The rules replace those before.
pub fn peer_pairs(node: &Node, rules: &[(String, String)]) -> Result<()> {
    let rules = pairs(rules)?;
    node.with_engine(|engine, _| engine.set_pairs(rules));
    Ok(())
}

/// Sets which gateways are taken first to which destinations, as (destinations, gateways). The rules replace those before.
pub fn route_preference(node: &Node, rules: &[(String, String)]) -> Result<()> {
    let rules = pairs(rules)?;
    node.with_engine(|engine, _| engine.set_preferred_gateways(rules));
    Ok(())
}

/// Connections of tcp networks.
pub fn conn_list(node: &Node) -> Vec<ConnectionInfo> {
    node.connections()
}

/// What `ping` prints.
#[derive(Debug, Clone, Serialize)]
pub struct PingShow {
    /// Whom we asked.
    pub nid: Nid,
    /// Round trip, microseconds.
    pub time_us: f64,
    /// The node's name.
    pub primary: Option<Nid>,
    /// Its interfaces, and whether each works.
    pub interfaces: Vec<(Nid, bool)>,
    /// What it can do.
    pub features: Vec<&'static str>,
    /// Its process.
    pub pid: u32,
}

/// Asks a node about itself.
pub async fn ping(node: &Node, nid: Nid, timeout: Duration) -> Result<PingShow> {
    let report = node.ping(nid, timeout).await?;
    let names = [
        (ping::FEAT_ROUTING_DISABLED, "routing disabled"),
        (ping::FEAT_MULTI_RAIL, "multi-rail"),
        (ping::FEAT_DISCOVERY, "discovery"),
        (ping::FEAT_LARGE_ADDR, "large addresses"),
        (ping::FEAT_METADATA, "metadata"),
    ];
    let features = names.into_iter().filter(|(bit, _)| report.info.features & bit != 0).map(|(_, name)| name);
    let up = |e: &ping::NiEntry| (e.nid, e.status == ping::STATUS_UP);
    Ok(PingShow {
        nid,
        time_us: report.time.as_secs_f64() * 1e6,
        primary: report.info.primary(),
        interfaces: report.info.entries().iter().map(up).collect(),
        features: features.collect(),
        pid: report.info.pid,
    })
}

/// Finds out about a peer.
pub async fn discover(node: &Node, nid: Nid, force: bool) -> Result<PeerInfo> {
    node.discover(nid, force).await
}

/// Counters.
pub fn stats(node: &Node) -> NodeStats {
    node.with_engine(|engine, _| engine.stats())
}

/// Words of `fault drop` and `fault delay`.
#[derive(Debug, Clone, Default)]
pub struct FaultAdd {
    /// Sources, as a NID list.
    pub src: Option<String>,
    /// Destinations, as a NID list.
    pub dst: Option<String>,
    /// Only at this interface.
    pub local: Option<Nid>,
    /// Only for this portal.
    pub portal: Option<u32>,
    /// Only of this type.
    pub kind: Option<MsgType>,
    /// One in this many.
    pub rate: Option<u32>,
    /// One per this time.
    pub interval: Option<Duration>,
    /// Fail sends in this way, rather than drop what arrives.
    pub error: Option<Failure>,
    /// Fail sends, each in another way.
    pub random_error: bool,
    /// Delay, rather than drop.
    pub delay: Option<Duration>,
}

/// Adds a fault rule; gives its number. Neither rate nor interval: always.
pub fn fault_add(node: &Node, add: &FaultAdd) -> Result<u64> {
    let list = |text: &Option<String>| text.as_ref().map(|t| t.parse::<NidList>()).transpose();
    let action = match (add.delay, add.random_error, add.error) {
        (Some(by), false, None) => FaultAction::Delay(by),
        (None, true, None) => FaultAction::FailRandom,
        (None, false, Some(failure)) => FaultAction::Fail(failure),
        (None, false, None) => FaultAction::Drop,
        _ => {
            return Err(Error::new(
                ErrorKind::Invalid,
                "fault",
                "a rule delays, or fails in one way, or in any",
            ));
        }
    };
    let frequency = match (add.rate, add.interval) {
        (None, None) => Frequency::Always,
        (Some(n), None) if n > 0 => Frequency::OneIn(n),
        (None, Some(span)) if !span.is_zero() => Frequency::Every(span),
        _ => {
            return Err(Error::new(
                ErrorKind::Invalid,
                "fault",
                "a rate or an interval above zero, not both",
            ));
        }
    };
    if add.portal.is_some_and(|p| p >= PORTALS) {
        let words = format!("portals are below {PORTALS}");
        return Err(Error::new(ErrorKind::Invalid, "fault", words));
    }
    let rule = FaultRule {
        src: list(&add.src)?,
        dst: list(&add.dst)?,
        local: add.local,
        portal: add.portal,
        kind: add.kind,
        frequency,
        action,
    };
    node.with_engine(|engine, _| engine.add_fault(rule))
}

/// A fault rule, for people.
#[derive(Debug, Clone, Serialize)]
pub struct FaultShow {
    /// Its number.
    pub id: u64,
    /// From whom.
    pub src: Option<String>,
    /// To whom.
    pub dst: Option<String>,
    /// At which interface of ours.
    pub local: Option<Nid>,
    /// Which portal.
    pub portal: Option<u32>,
    /// Which type.
    pub kind: Option<MsgType>,
    /// How often.
    pub frequency: Frequency,
    /// What.
    pub action: FaultAction,
    /// Messages it has looked at.
    pub seen: u64,
    /// Messages it has struck.
    pub struck: u64,
}

/// All fault rules.
pub fn fault_list(node: &Node) -> Vec<FaultShow> {
    let show = |(id, rule, seen, struck): (u64, FaultRule, u64, u64)| FaultShow {
        id,
        src: rule.src.as_ref().map(NidList::to_string),
        dst: rule.dst.as_ref().map(NidList::to_string),
        local: rule.local,
        portal: rule.portal,
        kind: rule.kind,
        frequency: rule.frequency,
        action: rule.action,
        seen,
        struck,
    };
    node.with_engine(|engine, _| engine.faults()).into_iter().map(show).collect()
}

/// Removes one rule, or all; gives how many went.
pub fn fault_del(node: &Node, id: Option<u64>) -> usize {
    node.with_engine(|engine, _| engine.remove_faults(id))
}

/// What `lst` prints.
#[derive(Debug, Clone, Serialize)]
pub struct LstShow {
    /// The nodes under load.
    pub targets: Vec<ProcessId>,
    /// What came of it.
    pub report: LoadReport,
    /// Why the session could not be ended on all of them: some are gone, or will end it by themselves.
    pub session_left: Option<String>,
}

/// Runs one test from this node against `targets`, real or ours, in a session made for it. Blocks until it has ended;
/// `progress` can be watched meanwhile, and stops it. `force`: end other sessions the targets are in. If one target cannot be had the
/// others are let go, and its error given.
pub fn lst(
    node: &Node,
    targets: &[Nid],
    spec: LoadSpec,
    force: bool,
    progress: &Progress,
) -> Result<LstShow> {
    let targets: Vec<ProcessId> = targets.iter().map(|n| ProcessId::lnet(*n)).collect();
    let mut console = Console::new(node.clone(), "kfab", spec.timeout);
    let LoadSpec { kind, size, check, concurrency, loops, .. } = spec;
    let test = TestSpec { kind, size, check, concurrency, loops, distribute: Distribute::All };
    let begun = futures_lite::future::block_on(async {
        for target in &targets {
            console.add_node(*target, force).await?;
        }
        console.add_test(1, &[], &targets, test).await
    });
    if let Err(error) = begun {
        // Those that were taken in are let go.
        let _ = futures_lite::future::block_on(console.end());
        return Err(error);
    }
    let report = load::run(console.rpc(), &targets, spec, progress);
    let ended = futures_lite::future::block_on(console.end());
    Ok(LstShow { targets, report: report?, session_left: ended.err().map(|e| e.to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::NodeParams;
    use crate::selftest::{Agent, AgentParams};
    use futures_lite::future::block_on;

    fn node(nid: &str, port: u16) -> (Node, Nid) {
        let nid = nid.parse().unwrap();
        let node = Node::new(NodeParams::default()).unwrap();
        let (accept, source_ports) = ("trusted".parse().unwrap(), "any".parse().unwrap());
        net_add(&node, &NetAdd { nid, port, accept, source_ports, peer_credits: Some(4) }).unwrap();
        (node, nid)
    }

    #[test]
    fn commands_give_json() {
        let ((a, a_nid), (b, b_nid)) = (node("127.0.9.1@tcp", 19889), node("127.0.9.2@tcp", 19889));
        let _agent = Agent::start(b, AgentParams::default()).unwrap();
        let timeout = Duration::from_secs(20);
        let pong = block_on(ping(&a, b_nid, timeout)).unwrap();
        assert_eq!((pong.primary, pong.interfaces), (Some(b_nid), vec![(b_nid, true)]));
        assert_eq!(pong.features, ["routing disabled", "multi-rail", "discovery"]);
        assert!(block_on(discover(&a, b_nid, false)).unwrap().discovered);
        let loops = LoadSpec {
            kind: Kind::Write,
            size: 8192,
            check: Check::Full,
            loops: 20,
            timeout,
            ..LoadSpec::default()
        };
        let show = lst(&a, &[b_nid], loops, false, &Progress::default()).unwrap();
        assert_eq!((show.report.calls, show.report.errors), (20, 0));
        let json = serde_json::to_value(net_show(&a)).unwrap();
        assert_eq!(json[0]["net"], "tcp");
        assert_eq!(json[0]["interfaces"][0]["nid"], a_nid.to_string());
        let peers = serde_json::to_value(peer_show(&a, None)).unwrap();
        assert_eq!(peers[0]["interfaces"][0]["max_credits"], 4);
        assert_eq!(peer_show(&a, Some(a_nid)).len(), 0);
        assert!(stats(&a).sent.put >= 20);
        assert!(!conn_list(&a).is_empty());
        net_del(&a, a_nid).unwrap();
        assert!(net_show(&a).is_empty());
    }

    #[test]
    fn a_load_that_cannot_begin_leaves_no_session_behind() {
        let [(a, _), (b, b_nid), (_none, c_nid)] =
            ["127.0.9.3@tcp", "127.0.9.4@tcp", "127.0.9.5@tcp"].map(|n| node(n, 19893));
        let _agent = Agent::start(b, AgentParams::default()).unwrap();
        let spec = LoadSpec { loops: 1, timeout: Duration::from_secs(3), ..LoadSpec::default() };
        assert!(lst(&a, &[b_nid, c_nid], spec, false, &Progress::default()).is_err());
        let mut other = Console::new(a, "other", Duration::from_secs(20));
        block_on(other.add_node(ProcessId::lnet(b_nid), false)).unwrap();
    }

    #[test]
    fn fault_rules_from_words() {
        let node = Node::new(NodeParams::default()).unwrap();
        let dst = Some("*@tcp 10.0.[0-3].*@tcp1".to_owned());
        let add = FaultAdd { dst, rate: Some(10), kind: Some("put".parse().unwrap()), ..FaultAdd::default() };
        let id = fault_add(&node, &add).unwrap();
        let delay = Some(Duration::from_secs(2));
        let local = Some("10.0.0.1@tcp".parse().unwrap());
        fault_add(&node, &FaultAdd { delay, local, ..FaultAdd::default() }).unwrap();
        let all = fault_list(&node);
        assert_eq!((all[0].local, all[1].local), (None, local));
        assert_eq!(
            (all.len(), all[0].frequency, all[1].frequency),
            (2, Frequency::OneIn(10), Frequency::Always)
        );
        assert_eq!(all[0].dst.as_deref(), Some("*@tcp 10.0.[0-3].*@tcp1"));
        let both = FaultAdd { delay, random_error: true, ..FaultAdd::default() };
        assert_eq!(fault_add(&node, &both).unwrap_err().kind(), ErrorKind::Invalid);
        let none = FaultAdd { portal: Some(64), ..FaultAdd::default() };
        assert_eq!(fault_add(&node, &none).unwrap_err().kind(), ErrorKind::Invalid);
        let odd = FaultAdd { src: Some("10.0.0.x@tcp".into()), ..FaultAdd::default() };
        assert!(fault_add(&node, &odd).unwrap_err().to_string().contains("character 8"));
        assert_eq!((fault_del(&node, Some(id)), fault_del(&node, None)), (1, 1));
        assert!("local_eror".parse::<Failure>().unwrap_err().to_string().contains("local_error"));
    }
}
