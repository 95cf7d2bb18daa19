//! `kfab lnet node`: the process that is a node. Threads: one accepts commands, one for each command under way.

use super::client::PREFIX;
use super::request::NetWords;
use super::serve::Server;
use crate::args::{FabricArgs, WaitArg};
use crate::failure::{Failure, Result};
use crate::stop;
use clap::Args;
use kfab::{EndpointConfig, Progress};
use lnet_shim::node::NodeParams;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Commands under way at once; more are hung up on.
const MAX_COMMANDS: usize = 32;

#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    /// The name commands find it by (default: the process id)
    #[arg(long)]
    name: Option<String>,
    /// Interfaces to begin with; `kfab lnet net add` has more to say about one
    #[arg(long, value_name = "NID")]
    net: Vec<String>,
    /// The port of tcp interfaces
    #[arg(long, default_value_t = 988)]
    port: u16,
    /// Whom tcp interfaces let in: secure, all, trusted, none
    #[arg(long, default_value = "secure")]
    accept: String,
    /// Where tcp interfaces dial from: privileged, any
    #[arg(long, value_name = "PORTS", default_value = "privileged")]
    source_ports: String,
    /// Where kfi interfaces listen (tcp:0.0.0.0:7000, shm:NAME)
    #[arg(long, value_name = "WAY")]
    listen: Vec<String>,
    /// Where a NID of kfi is: NID=ADDRESS
    #[arg(long, value_name = "NID=ADDRESS")]
    book: Vec<String>,
    #[command(flatten)]
    fabric: FabricArgs,
    /// Do not serve self-tests
    #[arg(long)]
    no_selftest: bool,
    /// Seconds after which an answer that has not come never will
    #[arg(long, value_name = "S", default_value_t = 150.0)]
    transaction_timeout: f64,
    /// How often a message is sent again
    #[arg(long, value_name = "N", default_value_t = 2)]
    retry_count: u32,
}

impl NodeArgs {
    fn nets(&self) -> impl Iterator<Item = NetWords> {
        let one = |nid: &String| NetWords {
            nid: nid.clone(),
            port: self.port,
            bulk_port: None,
            accept: self.accept.clone(),
            source_ports: self.source_ports.clone(),
            listen: self.listen.clone(),
            partitioned: false,
            peer_credits: None,
            credits: None,
            priority: None,
        };
        self.net.iter().map(one)
    }
}

pub(crate) fn run(args: &NodeArgs) -> Result<()> {
    let name = args.name.clone().unwrap_or_else(|| std::process::id().to_string());
    let listener = listen(&name)?;
    let timeout = super::serve::seconds("--transaction-timeout", args.transaction_timeout)?;
    let params =
        NodeParams { transaction_timeout: timeout, retry_count: args.retry_count, ..NodeParams::default() };
    let mut schemes = args.fabric.schemes()?;
    if args.fabric.provider.is_empty() {
        schemes.clear();
    }
    let endpoint =
        EndpointConfig { progress: Progress::Inline, ..args.fabric.config(&schemes, WaitArg::Adaptive) };
    let server = Arc::new(Server::new(params, args.fabric.fabric()?, endpoint)?);
    for entry in &args.book {
        server.book_set(entry)?;
    }
    for net in args.nets() {
        server.net_add(&net)?;
    }
    let agent = (!args.no_selftest).then(|| server.serve_selftests()).transpose()?;
    let mut first = format!("{name}\n");
    for (nid, addresses) in server.addresses() {
        first += &format!("{nid}={}\n", addresses.join(";"));
    }
    crate::show::print(&first)?;
    eprintln!("kfab: node {name}; ask it with `kfab lnet --help`, end it with Ctrl-C");
    accept(&listener, &server)?;
    server.end_session();
    drop(agent);
    stop::check()
}

fn listen(name: &str) -> Result<UnixListener> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
        return Err(Failure::usage(format!("{name:?}: a name has 1 to 64 letters, digits, '-', '_' or '.'")));
    }
    let bind = || {
        let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(format!("{PREFIX}{name}"))?)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bind().map_err(|e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            Failure::unavailable(format!("there is a node {name:?} already")).hint("choose another --name")
        }
        _ => Failure::unavailable(format!("node {name:?}: {e}")),
    })
}

fn accept(listener: &UnixListener, server: &Arc<Server>) -> Result<()> {
    let under_way = Arc::new(AtomicUsize::new(0));
    while !stop::pressed() {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                wait_for(listener);
                continue;
            }
            Err(_) => {
                // Descriptors have run out, for a moment.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if !may_command(&stream) || under_way.load(Ordering::Relaxed) >= MAX_COMMANDS {
            continue;
        }
        under_way.fetch_add(1, Ordering::Relaxed);
        let (server, count) = (server.clone(), under_way.clone());
        let thread = std::thread::Builder::new().name("lnet-command".into()).spawn(move || {
            server.command(&stream);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Sleeps until somebody connects, or for as long as Ctrl-C may wait.
fn wait_for(listener: &UnixListener) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // Interrupted, timed out or ready: accept tells.
    let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&timeout));
}

/// The same user, or root.
fn may_command(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|c| c.uid == rustix::process::geteuid() || c.uid.is_root())
}
