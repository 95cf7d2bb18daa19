//! The answering side: a node, what it was told, and the commands.

use super::request::{FaultWords, Line, LstRequest, MAX_LINE, NetWords, Request};
use crate::cmd::lst::console::Consoles;
use crate::failure::{FAILED, Failure, Result, UNAVAILABLE, USAGE};
use futures_lite::future::block_on;
use kfab::topo::{PartitionPolicy, Partitions, Topology};
use kfab::{EndpointConfig, Fabric};
use lnet_shim::command::{self, FaultAdd};
use lnet_shim::kfi::{Book, KfiParams};
use lnet_shim::nid::{Lnd, Net, Nid};
use lnet_shim::node::{FaultAction, NiConfig, Node, NodeParams, Route};
use lnet_shim::selftest::{Agent, AgentParams};
use lnet_shim::tcp::TcpParams;
use lnet_shim::{Error, ErrorKind};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long somebody may take to ask, and to read an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long pings of ours may take in all cases.
const MAX_SECONDS: f64 = 86_400.0;

/// A running node.
pub(crate) struct Server {
    pub(crate) node: Node,
    fabric: Fabric,
    /// Of kfi interfaces: all but where they listen.
    endpoint: EndpointConfig,
    book: Book,
    /// Where our kfi interfaces are.
    own: Mutex<BTreeMap<Nid, Vec<String>>>,
    pub(crate) consoles: Consoles,
}

/// The way back to who asked.
pub(crate) struct Asker<'a>(&'a UnixStream);

impl Asker<'_> {
    /// Says how far we are; `false` if nobody listens any more, or for the end only.
    pub(crate) fn progress(&mut self, part: f64, text: &str) -> bool {
        self.say(&Line::Progress { part, text: text.to_owned() }) && !self.has_ended()
    }

    /// Whether whoever asked has closed its side: nothing else comes from there.
    fn has_ended(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        recv(self.0, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT).is_ok_and(|(n, _)| n == 0)
    }

    fn say(&mut self, line: &Line) -> bool {
        let Ok(text) = serde_json::to_string(line) else { return false };
        self.0.write_all(format!("{text}\n").as_bytes()).is_ok()
    }
}

/// What an error of the shim means to a command line.
pub(crate) fn failure(error: Error) -> Failure {
    let (code, hint) = match error.kind() {
        ErrorKind::Invalid | ErrorKind::Parse => (USAGE, None),
        ErrorKind::Unreachable => {
            (UNAVAILABLE, Some("is the node there running, on that network? for kfi: `kfab lnet book show`"))
        }
        ErrorKind::TimedOut | ErrorKind::Closed | ErrorKind::Io => (UNAVAILABLE, None),
        ErrorKind::Denied if error.op() == "tcp" => (
            UNAVAILABLE,
            Some("without privileges: --port above 1023, --source-ports any, --accept trusted on both sides"),
        ),
        _ => (FAILED, None),
    };
    let failure = Failure::new(code, error.to_string());
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Sets rules of two lists of NIDs.
type SetPairs = fn(&Node, &[(String, String)]) -> lnet_shim::Result<()>;

/// A time a user gave.
pub(crate) fn seconds(what: &str, s: f64) -> Result<Duration> {
    match (0.001..=MAX_SECONDS).contains(&s) {
        true => Ok(Duration::from_secs_f64(s)),
        false => Err(Failure::usage(format!("{what}: {s} is out of range: 0.001 to {MAX_SECONDS} seconds"))),
    }
}

fn value(v: &impl Serialize) -> Result<Value> {
    serde_json::to_value(v).map_err(|e| Failure::failed(e.to_string()))
}

pub(crate) fn nid(text: &str) -> Result<Nid> {
    text.parse().map_err(|e: lnet_shim::nid::ParseError| Failure::usage(format!("NID {text:?}: {e}")))
}

fn net(text: &str) -> Result<Net> {
    text.parse().map_err(|e: lnet_shim::nid::ParseError| Failure::usage(format!("network {text:?}: {e}")))
}

impl Server {
    pub(crate) fn new(params: NodeParams, fabric: Fabric, endpoint: EndpointConfig) -> Result<Server> {
        let node = Node::new(params).map_err(failure)?;
        let consoles = Consoles::new(node.clone());
        Ok(Server { node, fabric, endpoint, book: Book::new(), own: Mutex::default(), consoles })
    }

    pub(crate) fn serve_selftests(&self) -> Result<Agent> {
        Agent::start(self.node.clone(), AgentParams::default()).map_err(failure)
    }

    pub(crate) fn end_session(&self) {
        let _ = self.consoles.answer(&LstRequest::SessionEnd, &mut |_, _| true);
    }

    /// Our kfi interfaces and their addresses.
    pub(crate) fn addresses(&self) -> Vec<(Nid, Vec<String>)> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone().into_iter().collect()
    }

    /// Serves one command.
    pub(crate) fn command(&self, stream: &UnixStream) {
        let ready = stream.set_nonblocking(false).and(stream.set_read_timeout(Some(PATIENCE)));
        let mut text = String::new();
        let read = ready
            .and(stream.set_write_timeout(Some(PATIENCE)))
            .and_then(|()| BufReader::new(stream.take(MAX_LINE)).read_line(&mut text));
        if !read.is_ok_and(|n| n > 0) {
            return;
        }
        let mut asker = Asker(stream);
        let outcome = serde_json::from_str(&text)
            .map_err(|e| Failure::usage(format!("not a request: {e}")))
            .and_then(|request| self.answer(&request, &mut asker));
        asker.say(&outcome.map_or_else(Line::from, Line::Done));
    }

    fn answer(&self, request: &Request, asker: &mut Asker<'_>) -> Result<Value> {
        let node = &self.node;
        match request {
            Request::NetAdd(words) => self.net_add(words).map(|()| Value::Null),
            Request::NetDel { nid: text } => self.net_del(nid(text)?),
            Request::NetShow => self.net_show(),
            Request::PeerShow { nid: None } => value(&json!({
                "peers": command::peer_show(node, None), "connections": command::conn_list(node),
            })),
            Request::PeerShow { nid: Some(text) } => self.peer_show(nid(text)?),
            Request::PeerAdd { nids } => self.peer_add(nids),
            Request::PeerDel { nid: text } => self.peer_del(nid(text)?),
            Request::PeerPriority { rules } => self.peer_priority(rules),
            Request::PeerPair { rules } => self.pairs(rules, command::peer_pairs),
            Request::RouteAdd { net, gateway, hops, priority } => {
                let (net, gateway) = (self::net(net)?, nid(gateway)?);
                let route = Route { net, gateway, hops: *hops, priority: *priority };
                node.with_engine(|engine, _| engine.add_route(route)).map_err(failure)?;
                Ok(Value::Null)
            }
            Request::RouteDel { net, gateway } => self.route_del(self::net(net)?, nid(gateway)?),
            Request::RouteShow => value(&node.with_engine(|engine, _| engine.routes())),
            Request::RoutePrefer { rules } => self.pairs(rules, command::route_preference),
            Request::BookSet { entry } => self.book_set(entry).map(|()| Value::Null),
            Request::BookShow => Ok(self.book_show()),
            Request::Ping { nid: text, timeout_s } => {
                let timeout = seconds("--timeout", *timeout_s)?;
                let pong = block_on(command::ping(node, nid(text)?, timeout));
                value(&pong.map_err(|e| failure(e).during(&format!("ping {text}")))?)
            }
            Request::Discover { nid: text, force } => {
                value(&block_on(command::discover(node, nid(text)?, *force)).map_err(failure)?)
            }
            Request::Stats => value(&command::stats(node)),
            Request::FaultAdd { words, delay } => self.fault_add(words, *delay),
            Request::FaultList { delay } => value(&self.faults(*delay)),
            Request::FaultDel { id, delay } => self.fault_del(*id, *delay),
            Request::Lst(request) => {
                self.consoles.answer(request, &mut |part, text| asker.progress(part, text))
            }
        }
    }

    pub(crate) fn net_add(&self, words: &NetWords) -> Result<()> {
        let nid = nid(&words.nid)?;
        let mut config = NiConfig::new(nid);
        let positive = |what: &str, n: Option<i32>| match n {
            Some(n) if n < 1 => Err(Failure::usage(format!("{what}: {n} is less than 1"))),
            n => Ok(n),
        };
        config.peer_credits = positive("--peer-credits", words.peer_credits)?.unwrap_or(config.peer_credits);
        config.credits = positive("--credits", words.credits)?.unwrap_or(config.credits);
        config.priority = words.priority.unwrap_or(config.priority);
        match nid.net().lnd {
            Lnd::TCP => {
                let (port, bulk_port) = (words.port, words.bulk_port.unwrap_or(words.port));
                let accept = words.accept.parse().map_err(failure)?;
                let source_ports = words.source_ports.parse().map_err(failure)?;
                let params = TcpParams { port, bulk_port, accept, source_ports, ..TcpParams::default() };
                self.node.add_tcp(config, params).map_err(failure)
            }
            Lnd::KFI => self.kfi_add(config, words),
            _ => Err(Failure::usage(format!("{nid}: interfaces are of networks tcp and kfi"))),
        }
    }

    fn kfi_add(&self, config: NiConfig, words: &NetWords) -> Result<()> {
        let endpoint = EndpointConfig { listen: words.listen.clone(), ..self.endpoint.clone() };
        let mut params = KfiParams::default();
        let lanes = if words.partitioned {
            let plan = Partitions::plan(&Topology::discover(), &PartitionPolicy::PerNode);
            let plan = plan.map_err(|e| Failure::unavailable(format!("--partitioned: {e}")))?;
            params.partitions = plan.to_vec();
            self.fabric.open_partitioned(endpoint, &plan)?
        } else {
            vec![self.fabric.open(endpoint)?]
        };
        let addresses: Vec<String> = lanes.iter().map(|e| e.address().to_string()).collect();
        let lanes = lanes.into_iter().map(Arc::new).collect();
        self.node.add_kfi(config, lanes, &self.book, &params).map_err(failure)?;
        self.own.lock().unwrap_or_else(PoisonError::into_inner).insert(config.nid, addresses);
        Ok(())
    }

    fn net_del(&self, nid: Nid) -> Result<Value> {
        command::net_del(&self.node, nid).map_err(failure)?;
        self.own.lock().unwrap_or_else(PoisonError::into_inner).remove(&nid);
        Ok(Value::Null)
    }

    fn net_show(&self) -> Result<Value> {
        let mut nets = value(&command::net_show(&self.node))?;
        let own = self.addresses();
        for ni in
            nets.as_array_mut().into_iter().flatten().filter_map(|n| n["interfaces"].as_array_mut()).flatten()
        {
            let address = own.iter().find(|(nid, _)| ni["nid"] == nid.to_string());
            ni["address"] = json!(address.map(|(_, all)| all.join(";")));
            let placed = address.map(|(nid, _)| self.node.placement(*nid)).unwrap_or_default();
            ni["placement"] = placed.iter().map(ToString::to_string).collect();
        }
        Ok(nets)
    }

    fn peer_show(&self, nid: Nid) -> Result<Value> {
        let peers = command::peer_show(&self.node, Some(nid));
        let Some(peer) = peers.first() else { return Err(Failure::failed(format!("{nid}: no such peer"))) };
        let of_peer =
            |c: &lnet_shim::network::ConnectionInfo| peer.interfaces.iter().any(|i| i.nid == c.peer.nid);
        let connections: Vec<_> = command::conn_list(&self.node).into_iter().filter(of_peer).collect();
        value(&json!({ "peers": peers, "connections": connections }))
    }

    fn peer_add(&self, texts: &[String]) -> Result<Value> {
        let nids = texts.iter().map(|t| nid(t)).collect::<Result<Vec<Nid>>>()?;
        match self.node.with_engine(|engine, _| engine.add_peer(&nids)) {
            true => Ok(Value::Null),
            false => Err(Failure::failed("too many peers are known")),
        }
    }

    fn peer_del(&self, nid: Nid) -> Result<Value> {
        match self.node.with_engine(|engine, now| engine.remove_peer(now, nid)) {
            true => Ok(Value::Null),
            false => Err(Failure::failed(format!("{nid}: no such peer"))),
        }
    }

    fn route_del(&self, net: Net, gateway: Nid) -> Result<Value> {
        match self.node.with_engine(|engine, _| engine.remove_route(net, gateway)) {
            true => Ok(Value::Null),
            false => Err(Failure::failed(format!("no route to {net} by {gateway}"))),
        }
    }

    fn peer_priority(&self, rules: &[String]) -> Result<Value> {
        let rule = |text: &String| {
            let split = text.rsplit_once('=').and_then(|(list, n)| Some((list.to_owned(), n.parse().ok()?)));
            split.ok_or_else(|| Failure::usage(format!("{text:?} is not LIST=NUMBER")))
        };
        let rules: Vec<(String, u32)> = rules.iter().map(rule).collect::<Result<_>>()?;
        command::peer_priority(&self.node, &rules).map_err(failure)?;
        Ok(Value::Null)
    }

    /// Rules of two lists of NIDs.
    fn pairs(&self, rules: &[String], set: SetPairs) -> Result<Value> {
        let rule = |text: &String| {
            let split = text.split_once('=').map(|(one, two)| (one.to_owned(), two.to_owned()));
            split.ok_or_else(|| Failure::usage(format!("{text:?} is not NIDS=NIDS")))
        };
        let rules: Vec<(String, String)> = rules.iter().map(rule).collect::<Result<_>>()?;
        set(&self.node, &rules).map_err(failure)?;
        Ok(Value::Null)
    }

    pub(crate) fn book_set(&self, entry: &str) -> Result<()> {
        let (name, addresses) =
            entry.split_once('=').ok_or_else(|| Failure::usage(format!("{entry:?} is not NID=ADDRESS")))?;
        let addresses: Vec<String> = addresses.split(';').map(str::to_owned).collect();
        self.book.set(nid(name)?, &addresses).map_err(failure)
    }

    fn book_show(&self) -> Value {
        let entry =
            |(nid, addresses): (Nid, Vec<String>)| json!({ "nid": nid.to_string(), "addresses": addresses });
        self.book.all().into_iter().map(entry).collect()
    }

    fn fault_add(&self, words: &FaultWords, delay: bool) -> Result<Value> {
        let by = words.by.map(|s| seconds("--by", s)).transpose()?;
        match (delay, by, &words.error) {
            (true, None, _) => return Err(Failure::usage("a delay needs --by SECONDS")),
            (true, _, Some(_)) => return Err(Failure::usage("--error is for drop rules")),
            (false, Some(_), _) => return Err(Failure::usage("--by is for delay rules")),
            _ => {}
        }
        let random = words.error.as_deref() == Some("random");
        let error =
            words.error.as_ref().filter(|_| !random).map(|t| t.parse()).transpose().map_err(failure)?;
        let add = FaultAdd {
            src: words.src.clone(),
            dst: words.dst.clone(),
            local: words.local.as_ref().map(|t| nid(t)).transpose()?,
            portal: words.portal,
            kind: words.kind.as_ref().map(|t| t.parse()).transpose().map_err(failure)?,
            rate: words.rate,
            interval: words.interval.map(|s| seconds("--interval", s)).transpose()?,
            error,
            random_error: random,
            delay: by,
        };
        Ok(json!({ "id": command::fault_add(&self.node, &add).map_err(failure)? }))
    }

    fn faults(&self, delay: bool) -> Vec<command::FaultShow> {
        let mut all = command::fault_list(&self.node);
        all.retain(|f| matches!(f.action, FaultAction::Delay(_)) == delay);
        all
    }

    fn fault_del(&self, id: Option<u64>, delay: bool) -> Result<Value> {
        let ids: Vec<u64> =
            self.faults(delay).iter().map(|f| f.id).filter(|f| id.is_none_or(|i| i == *f)).collect();
        match (id, ids.len()) {
            (Some(id), 0) => Err(Failure::failed(format!("no such rule: {id}"))),
            _ => Ok(
                json!({ "removed": ids.iter().map(|i| command::fault_del(&self.node, Some(*i))).sum::<usize>() }),
            ),
        }
    }
}
