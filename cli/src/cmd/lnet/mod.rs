//! `kfab lnet`: an LNet node as a process (`kfab lnet node`), and the commands that look at it and change it.
//!
//! A node listens on the abstract unix socket `kfab-lnet.NAME`, for its own user only. Every other command connects there, sends one
//! request as a line of JSON and gets lines of JSON back: progress, then the outcome. Whoever closes its side for writing meanwhile gets the
//! outcome early.

pub(crate) mod client;
mod node;
mod request;
mod serve;
mod show;

use crate::failure::{Failure, Result};
use clap::{Args, Subcommand};
use request::{FaultWords, NetWords};
pub(crate) use request::{LoadWords, LstRequest, Request, TestWords};
use serde_json::Value;
pub(crate) use serve::{failure, seconds};

#[derive(Args, Debug)]
pub(crate) struct LnetArgs {
    #[command(flatten)]
    out: Out,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Be a node until Ctrl-C
    Node(node::NodeArgs),
    /// Networks of a node
    #[command(subcommand)]
    Net(Net),
    /// Peers of a node: which, by what, how well
    #[command(subcommand)]
    Peer(Peer),
    /// Ways to networks that no interface of the node is on
    #[command(subcommand)]
    Route(Route),
    /// Where NIDs of kfi are
    #[command(subcommand)]
    Book(Book),
    /// Ask a node about itself
    Ping {
        #[arg(value_parser = nid_text)]
        nid: String,
        /// Seconds
        #[arg(long, value_name = "S", default_value_t = 5.0)]
        timeout: f64,
    },
    /// Find out about a peer, and tell it about us
    Discover {
        #[arg(value_parser = nid_text)]
        nid: String,
        /// Even if we know
        #[arg(long)]
        force: bool,
    },
    /// Counters of a node
    Stats,
    /// Faults on purpose
    #[command(subcommand)]
    Fault(Fault),
}

/// A NID as the node will read it: what is none is said before a node is looked for.
fn nid_text(text: &str) -> std::result::Result<String, String> {
    text.parse::<lnet_shim::nid::Nid>().map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// What every question has: which node, and for whom the answer is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Out {
    /// The node's name or process id (default: the only one there is)
    #[arg(long, value_name = "NAME", global = true)]
    pub(crate) node: Option<String>,
    /// The answer as JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
enum Net {
    /// Add an interface
    Add {
        #[command(flatten)]
        net: NetWords,
    },
    /// Remove an interface
    Del {
        #[arg(value_parser = nid_text)]
        nid: String,
    },
    /// All interfaces
    Show,
}

#[derive(Subcommand, Debug)]
enum Peer {
    /// All peers, or one
    Show {
        #[arg(value_parser = nid_text)]
        nid: Option<String>,
        /// Credits, health and counters of each interface, and connections
        #[arg(short, long)]
        verbose: bool,
    },
    /// Make a peer known by all its NIDs; the first is its name
    Add {
        #[arg(required = true)]
        nids: Vec<String>,
    },
    /// Forget a peer
    Del { nid: String },
    /// Which interfaces of peers are taken first: LIST=NUMBER, 0 is first; replaces all rules
    Priority { rules: Vec<String> },
    /// Which of them go first with which of ours: OURS=THEIRS, lists of NIDs; replaces all rules
    Pair { rules: Vec<String> },
}

#[derive(Subcommand, Debug)]
enum Route {
    /// Add a route, or change one
    Add {
        /// The network (tcp1, kfi)
        net: String,
        /// The gateway's NID, on a network of the node
        gateway: String,
        /// How many gateways lie between
        #[arg(long, value_name = "N", default_value_t = 1)]
        hops: u32,
        /// Smaller is taken first
        #[arg(long, value_name = "N", default_value_t = 0)]
        priority: u32,
    },
    /// Remove a route
    Del { net: String, gateway: String },
    /// All routes, and whether the gateway passes messages on
    Show,
    /// Which gateways are taken first to whom: NIDS=GATEWAYS, lists of NIDs; replaces all rules
    Prefer { rules: Vec<String> },
}

#[derive(Subcommand, Debug)]
enum Book {
    /// NID=ADDRESS, one address for each lane, separated by ';'
    Set { entry: String },
    /// All of it
    Show,
}

#[derive(Subcommand, Debug)]
enum Fault {
    /// Lose messages that arrive, or with --error make sends fail
    #[command(subcommand)]
    Drop(FaultCommand),
    /// Hold messages back
    #[command(subcommand)]
    Delay(FaultCommand),
}

#[derive(Subcommand, Debug)]
enum FaultCommand {
    /// Add a rule
    Add {
        #[command(flatten)]
        words: FaultWords,
    },
    /// The rules, and how often they struck
    List,
    /// Remove a rule by its number, or all of this kind
    Del { id: Option<u64> },
}

pub(crate) fn run(args: &LnetArgs) -> Result<()> {
    let out = &args.out;
    let ask = |request: Request, table: fn(&Value) -> String| client::ask(out, &request, table);
    match &args.command {
        Command::Node(_) if out.json || out.node.is_some() => {
            Err(Failure::usage("--node and --json are for commands that ask a node: this is to be one"))
        }
        Command::Node(a) => node::run(a),
        Command::Net(Net::Add { net }) => ask(Request::NetAdd(net.clone()), show::done),
        Command::Net(Net::Del { nid }) => ask(Request::NetDel { nid: nid.clone() }, show::done),
        Command::Net(Net::Show) => ask(Request::NetShow, show::nets),
        Command::Peer(peer) => run_peer(out, peer),
        Command::Route(route) => run_route(out, route),
        Command::Book(Book::Set { entry }) => ask(Request::BookSet { entry: entry.clone() }, show::done),
        Command::Book(Book::Show) => ask(Request::BookShow, show::book),
        Command::Ping { nid, timeout } => {
            ask(Request::Ping { nid: nid.clone(), timeout_s: *timeout }, show::ping)
        }
        Command::Discover { nid, force } => {
            let request = Request::Discover { nid: nid.clone(), force: *force };
            ask(request, |v| show::peers(std::slice::from_ref(v), true))
        }
        Command::Stats => ask(Request::Stats, show::stats),
        Command::Fault(Fault::Drop(c)) => run_fault(out, c, false),
        Command::Fault(Fault::Delay(c)) => run_fault(out, c, true),
    }
}

fn run_peer(out: &Out, peer: &Peer) -> Result<()> {
    let request = match peer {
        Peer::Show { nid, verbose } => {
            let request = Request::PeerShow { nid: nid.clone() };
            return client::ask(out, &request, |v| show::all_peers(v, *verbose));
        }
        Peer::Add { nids } => Request::PeerAdd { nids: nids.clone() },
        Peer::Del { nid } => Request::PeerDel { nid: nid.clone() },
        Peer::Priority { rules } => Request::PeerPriority { rules: rules.clone() },
        Peer::Pair { rules } => Request::PeerPair { rules: rules.clone() },
    };
    client::ask(out, &request, show::done)
}

fn run_route(out: &Out, route: &Route) -> Result<()> {
    let request = match route {
        Route::Add { net, gateway, hops, priority } => {
            let (net, gateway, hops, priority) = (net.clone(), gateway.clone(), *hops, *priority);
            Request::RouteAdd { net, gateway, hops, priority }
        }
        Route::Del { net, gateway } => Request::RouteDel { net: net.clone(), gateway: gateway.clone() },
        Route::Prefer { rules } => Request::RoutePrefer { rules: rules.clone() },
        Route::Show => return client::ask(out, &Request::RouteShow, show::routes),
    };
    client::ask(out, &request, show::done)
}

fn run_fault(out: &Out, command: &FaultCommand, delay: bool) -> Result<()> {
    match command {
        FaultCommand::Add { words } => {
            client::ask(out, &Request::FaultAdd { words: words.clone(), delay }, show::fault_added)
        }
        FaultCommand::List => client::ask(out, &Request::FaultList { delay }, show::faults),
        FaultCommand::Del { id } => {
            client::ask(out, &Request::FaultDel { id: *id, delay }, show::faults_removed)
        }
    }
}
