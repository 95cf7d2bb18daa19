//! `kfab lst`: the LNet self-test. The console is a running node (`kfab lnet node`); the nodes under test are ours, on any
//! network, or Lustre's lnet_selftest over tcp. Figures are RPCs, not messages.

pub(crate) mod console;
mod show;

use crate::cmd::lnet::client::ask_with;
use crate::cmd::lnet::{LoadWords, LstRequest, Out, Request, TestWords};
use crate::failure::{Failure, Result};
use crate::show::bar::Bar;
use clap::{Args, Subcommand};
use serde_json::Value;

#[derive(Args, Debug)]
pub(crate) struct LstArgs {
    #[command(flatten)]
    out: Out,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Test nodes from this one: a session, one test, latencies, done
    Load {
        #[command(flatten)]
        words: LoadWords,
    },
    /// The session: the nodes under test answer to one console at a time
    #[command(subcommand)]
    Session(Session),
    /// Nodes under a name
    #[command(subcommand)]
    Group(Group),
    /// Tests under a name
    #[command(subcommand)]
    Batch(Batch),
    /// What clients do to servers
    #[command(subcommand)]
    Test(Test),
    /// Run a batch: for a time, with figures at the end, or until `stop`
    Run {
        batch: String,
        /// Seconds
        #[arg(long = "for", value_name = "S")]
        seconds: Option<f64>,
    },
    /// Stop a batch
    Stop { batch: String },
    /// What the nodes of a group do just now
    Stat {
        group: String,
        /// Seconds between two looks
        #[arg(long, value_name = "S", default_value_t = 1.0)]
        interval: f64,
    },
}

#[derive(Subcommand, Debug)]
enum Session {
    /// Begin one
    New {
        name: String,
        /// Seconds that one call to a node may take
        #[arg(long, value_name = "S", default_value_t = 10.0)]
        timeout: f64,
        /// End other sessions the nodes are in
        #[arg(long)]
        force: bool,
    },
    /// What there is
    Show,
    /// End it on all nodes
    End,
}

#[derive(Subcommand, Debug)]
enum Group {
    /// Take nodes into the session and under a name
    Add {
        name: String,
        #[arg(required = true)]
        nids: Vec<String>,
    },
    /// All groups
    List,
}

#[derive(Subcommand, Debug)]
enum Batch {
    /// An empty one
    Add { name: String },
    /// All batches, their tests, and which run
    List,
}

#[derive(Subcommand, Debug)]
enum Test {
    /// Add a test to a batch
    Add {
        #[arg(long)]
        batch: String,
        /// The group of clients
        #[arg(long, value_name = "GROUP")]
        from: String,
        /// The group of servers
        #[arg(long, value_name = "GROUP")]
        to: String,
        #[command(flatten)]
        test: TestWords,
    },
}

pub(crate) fn run(args: &LstArgs) -> Result<()> {
    let out = &args.out;
    match &args.command {
        Command::Load { words } => ask(out, LstRequest::Load(words.clone()), show::load),
        Command::Session(session) => run_session(out, session),
        Command::Group(Group::Add { name, nids }) => {
            ask(out, LstRequest::GroupAdd { name: name.clone(), nids: nids.clone() }, show::done)
        }
        Command::Group(Group::List) => ask(out, LstRequest::GroupList, show::groups),
        Command::Batch(Batch::Add { name }) => {
            ask(out, LstRequest::BatchAdd { name: name.clone() }, show::done)
        }
        Command::Batch(Batch::List) => ask(out, LstRequest::BatchList, show::batches),
        Command::Test(Test::Add { batch, from, to, test }) => {
            let (batch, from, to, test) = (batch.clone(), from.clone(), to.clone(), test.clone());
            ask(out, LstRequest::TestAdd { batch, from, to, test }, show::done)
        }
        Command::Run { batch, seconds } => {
            ask(out, LstRequest::Run { batch: batch.clone(), seconds: *seconds }, show::nodes)
        }
        Command::Stop { batch } => ask(out, LstRequest::Stop { batch: batch.clone() }, show::done),
        Command::Stat { group, interval } => {
            ask(out, LstRequest::Stat { group: group.clone(), seconds: *interval }, show::nodes)
        }
    }
}

fn run_session(out: &Out, session: &Session) -> Result<()> {
    match session {
        Session::New { name, timeout, force } => {
            let request = LstRequest::SessionNew { name: name.clone(), timeout_s: *timeout, force: *force };
            ask(out, request, show::done)
        }
        Session::Show => ask(out, LstRequest::SessionShow, show::session),
        Session::End => ask(out, LstRequest::SessionEnd, show::done),
    }
}

/// Asks and shows; calls that failed under load, and nodes that fell silent, are a failure of the command, as its figures have been
/// shown.
fn ask(out: &Out, request: LstRequest, table: impl FnOnce(&Value) -> String) -> Result<()> {
    let bar = Bar::new(1);
    let progress = |part: f64, text: &str| {
        bar.begin(text.to_owned());
        bar.tick(part);
    };
    let answer = ask_with(out, &Request::Lst(request), progress, table)?;
    drop(bar);
    let silent = answer["silent"].as_array().map_or(0, Vec::len);
    match answer["report"]["errors"].as_u64().or(answer["client_errors"].as_u64()) {
        None | Some(0) if silent == 0 => Ok(()),
        None | Some(0) => Err(Failure::failed(format!("{silent} nodes fell silent"))),
        Some(errors) => Err(Failure::failed(format!("{errors} calls failed"))),
    }
}
