//! `kfab lnet`: an LNet node as a process (`kfab lnet node`), and the commands that look at it and change it.
//!
//! A node listens on the abstract unix socket `kfab-lnet.NAME`, for its own user only. Every other command connects there, sends one
//! request as a line of JSON and gets lines of JSON back: progress, then the outcome.

pub(crate) mod client;
mod node;
mod request;
mod serve;
mod show;

use crate::failure::Result;
use clap::{Args, Subcommand};
use client::Which;
use request::{FaultWords, NetWords};
pub(crate) use request::{LoadWords, LstRequest, Request, TestWords};
pub(crate) use serve::{failure, seconds};

#[derive(Args, Debug)]
pub(crate) struct LnetArgs {
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
        nid: String,
        /// Seconds
        #[arg(long, value_name = "S", default_value_t = 5.0)]
        timeout: f64,
        #[command(flatten)]
        out: Out,
    },
    /// Find out about a peer, and tell it about us
    Discover {
        nid: String,
        /// Even if we know
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        out: Out,
    },
    /// Counters of a node
    Stats {
        #[command(flatten)]
        out: Out,
    },
    /// Faults on purpose
    #[command(subcommand)]
    Fault(Fault),
}

/// What every question has: which node, and for whom the answer is.
#[derive(Args, Clone, Debug)]
pub(crate) struct Out {
    #[command(flatten)]
    pub(crate) which: Which,
    /// The answer as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
enum Net {
    /// Add an interface
    Add {
        #[command(flatten)]
        net: NetWords,
        #[command(flatten)]
        out: Out,
    },
    /// Remove an interface
    Del {
        nid: String,
        #[command(flatten)]
        out: Out,
    },
    /// All interfaces
    Show {
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Subcommand, Debug)]
enum Peer {
    /// All peers, or one
    Show {
        nid: Option<String>,
        /// Credits, health and counters of each interface, and connections
        #[arg(short, long)]
        verbose: bool,
        #[command(flatten)]
        out: Out,
    },
    /// Make a peer known by all its NIDs; the first is its name
    Add {
        #[arg(required = true)]
        nids: Vec<String>,
        #[command(flatten)]
        out: Out,
    },
    /// Forget a peer
    Del {
        nid: String,
        #[command(flatten)]
        out: Out,
    },
    /// Which interfaces of peers are taken first: LIST=NUMBER, 0 is first; replaces all rules
    Priority {
        rules: Vec<String>,
        #[command(flatten)]
        out: Out,
    },
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
        #[command(flatten)]
        out: Out,
    },
    /// Remove a route
    Del {
        net: String,
        gateway: String,
        #[command(flatten)]
        out: Out,
    },
    /// All routes
    Show {
        #[command(flatten)]
        out: Out,
    },
}

#[derive(Subcommand, Debug)]
enum Book {
    /// NID=ADDRESS, one address for each lane, separated by ';'
    Set {
        entry: String,
        #[command(flatten)]
        out: Out,
    },
    /// All of it
    Show {
        #[command(flatten)]
        out: Out,
    },
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
        #[command(flatten)]
        out: Out,
    },
    /// The rules, and how often they struck
    List {
        #[command(flatten)]
        out: Out,
    },
    /// Remove a rule by its number, or all of this kind
    Del {
        id: Option<u64>,
        #[command(flatten)]
        out: Out,
    },
}

pub(crate) fn run(args: &LnetArgs) -> Result<()> {
    match &args.command {
        Command::Node(a) => node::run(a),
        Command::Net(net) => match net {
            Net::Add { net, out } => client::ask(out, &Request::NetAdd(net.clone()), show::done),
            Net::Del { nid, out } => client::ask(out, &Request::NetDel { nid: nid.clone() }, show::done),
            Net::Show { out } => client::ask(out, &Request::NetShow, show::nets),
        },
        Command::Peer(peer) => run_peer(peer),
        Command::Route(route) => run_route(route),
        Command::Book(Book::Set { entry, out }) => {
            client::ask(out, &Request::BookSet { entry: entry.clone() }, show::done)
        }
        Command::Book(Book::Show { out }) => client::ask(out, &Request::BookShow, show::book),
        Command::Ping { nid, timeout, out } => {
            client::ask(out, &Request::Ping { nid: nid.clone(), timeout_s: *timeout }, show::ping)
        }
        Command::Discover { nid, force, out } => {
            let request = Request::Discover { nid: nid.clone(), force: *force };
            client::ask(out, &request, |v| show::peers(std::slice::from_ref(v), true))
        }
        Command::Stats { out } => client::ask(out, &Request::Stats, show::stats),
        Command::Fault(Fault::Drop(c)) => run_fault(c, false),
        Command::Fault(Fault::Delay(c)) => run_fault(c, true),
    }
}

fn run_peer(peer: &Peer) -> Result<()> {
    match peer {
        Peer::Show { nid, verbose, out } => {
            client::ask(out, &Request::PeerShow { nid: nid.clone() }, |v| show::all_peers(v, *verbose))
        }
        Peer::Add { nids, out } => client::ask(out, &Request::PeerAdd { nids: nids.clone() }, show::done),
        Peer::Del { nid, out } => client::ask(out, &Request::PeerDel { nid: nid.clone() }, show::done),
        Peer::Priority { rules, out } => {
            client::ask(out, &Request::PeerPriority { rules: rules.clone() }, show::done)
        }
    }
}

fn run_route(route: &Route) -> Result<()> {
    match route {
        Route::Add { net, gateway, hops, priority, out } => {
            let (net, gateway, hops, priority) = (net.clone(), gateway.clone(), *hops, *priority);
            client::ask(out, &Request::RouteAdd { net, gateway, hops, priority }, show::done)
        }
        Route::Del { net, gateway, out } => {
            let (net, gateway) = (net.clone(), gateway.clone());
            client::ask(out, &Request::RouteDel { net, gateway }, show::done)
        }
        Route::Show { out } => client::ask(out, &Request::RouteShow, show::routes),
    }
}

fn run_fault(command: &FaultCommand, delay: bool) -> Result<()> {
    match command {
        FaultCommand::Add { words, out } => {
            client::ask(out, &Request::FaultAdd { words: words.clone(), delay }, show::fault_added)
        }
        FaultCommand::List { out } => client::ask(out, &Request::FaultList { delay }, show::faults),
        FaultCommand::Del { id, out } => {
            client::ask(out, &Request::FaultDel { id: *id, delay }, show::faults_removed)
        }
    }
}
