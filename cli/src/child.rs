//! The other side of a measurement in this machine: this program again, as a child. It ends when its parent does, however that
//! ends: it is killed and reaped when the handle is dropped, and it ends by itself when its standard input closes.

use crate::args::{FabricArgs, WaitArg};
use crate::failure::{Failure, Result};
use crate::serve::session::Server;
use clap::Args;
use kfab::Monitor;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// How long a child may take to be ready.
const READY: Duration = Duration::from_secs(20);

/// What the child says when it is ready, or why it is not.
#[derive(Debug, Serialize, Deserialize)]
enum Hello {
    Ready { address: String },
    Failed { code: u8, what: String, hint: Option<String> },
}

/// The hidden command that runs the child.
#[derive(Args, Debug)]
pub(crate) struct PeerArgs {
    #[command(flatten)]
    fabric: FabricArgs,
    #[arg(long, value_enum, default_value = "spin")]
    wait: WaitArg,
    #[arg(long)]
    cpu: Option<u32>,
}

/// A running child.
pub(crate) struct PeerProcess {
    child: Child,
    pub(crate) address: String,
}

impl PeerProcess {
    /// Starts a server over one provider and waits until it is ready.
    pub(crate) fn start(
        scheme: &str,
        fabric: &FabricArgs,
        wait: WaitArg,
        cpu: Option<u32>,
    ) -> Result<PeerProcess> {
        let me =
            std::env::current_exe().map_err(|e| Failure::failed(format!("finding this program: {e}")))?;
        let mut command = Command::new(me);
        command.args(["peer-process", "--provider", scheme, "--wait", wait.name()]);
        if let Some(cpu) = cpu {
            command.args(["--cpu", &cpu.to_string()]);
        }
        if let Some(file) = &fabric.key_file {
            command.arg("--key-file").arg(file);
        }
        if fabric.plain {
            command.arg("--plain");
        }
        let ours = |d: &&String| d.split_once(':').is_some_and(|(of, _)| of == scheme);
        command.args(fabric.device.iter().filter(ours).flat_map(|d| ["--device", d]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child =
            command.spawn().map_err(|e| Failure::failed(format!("starting the peer process: {e}")))?;
        let mut peer = PeerProcess { child, address: String::new() };
        peer.address = peer.hello()?;
        Ok(peer)
    }

    fn hello(&mut self) -> Result<String> {
        let out =
            self.child.stdout.take().ok_or_else(|| Failure::failed("the peer process has no output"))?;
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let r = BufReader::new(out.take(1 << 16)).read_line(&mut line);
            let _ = tx.send(r.map(|_| line));
        });
        let line =
            rx.recv_timeout(READY).map_err(|_| Failure::failed("the peer process did not get ready"))??;
        match serde_json::from_str(&line) {
            Ok(Hello::Ready { address }) => Ok(address),
            Ok(Hello::Failed { code, what, hint }) => Err(Failure { code, what, hint }),
            Err(_) => Err(Failure::failed("the peer process ended before it was ready")),
        }
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's life.
pub(crate) fn run(args: &PeerArgs) -> Result<()> {
    crate::stop::leave_to_parent();
    // Killed with the parent, even if that ends by SIGKILL; the closed pipe below says the same where this is refused.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    std::thread::spawn(|| {
        let _ = std::io::stdin().lock().read(&mut [0]);
        std::process::exit(0);
    });
    crate::place::pin(args.cpu);
    match open(args) {
        Ok(endpoint) => {
            let endpoint = Arc::new(endpoint);
            // `kfab top` may look on; it is no matter if it cannot.
            let _monitor = Monitor::serve(&endpoint).ok();
            say(&Hello::Ready { address: endpoint.address().to_string() })?;
            Server::new(&endpoint).run(|| false)
        }
        Err(f) => say(&Hello::Failed { code: f.code, what: f.what, hint: f.hint }),
    }
}

fn open(args: &PeerArgs) -> Result<kfab::Endpoint> {
    let schemes = args.fabric.schemes()?;
    Ok(args.fabric.fabric()?.open(args.fabric.config(&schemes, args.wait))?)
}

fn say(hello: &Hello) -> Result<()> {
    let text = serde_json::to_string(hello).map_err(|e| Failure::failed(e.to_string()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
