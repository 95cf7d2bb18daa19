//! `kfab serve`: an endpoint that answers measurements until Ctrl-C, and can be watched meanwhile.

pub(crate) mod session;

use crate::args::{FabricArgs, WaitArg};
use crate::failure::{Failure, INTERRUPTED, Result};
use crate::stop;
use clap::Args;
use kfab::prometheus::Exporter;
use kfab::{Endpoint, Monitor};
use session::{Counts, Server};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Where to listen (tcp:0.0.0.0:7000, shm:NAME); may be given several times
    #[arg(long, value_name = "WAY")]
    listen: Vec<String>,
    #[command(flatten)]
    fabric: FabricArgs,
    /// How to wait for messages
    #[arg(long, value_enum, default_value = "adaptive")]
    wait: WaitArg,
    /// Serve counters as text for Prometheus at http://ADDR/metrics
    #[arg(long, value_name = "ADDR")]
    prometheus: Option<SocketAddr>,
}

pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    let schemes = args.fabric.schemes()?;
    let mut config = args.fabric.config(&schemes, args.wait);
    config.listen = args.listen.iter().map(|w| way(w)).collect();
    if args.fabric.provider.is_empty() {
        // All that work; those not asked for by name may be missing.
        config.providers.clear();
    }
    let endpoint = Arc::new(args.fabric.fabric()?.open(config)?);
    let monitor = Monitor::serve(&endpoint);
    let monitor = monitor.map_err(|e| eprintln!("kfab: `kfab top` will not find this server: {e}")).ok();
    let exporter = args.prometheus.map(|at| Exporter::serve(&endpoint, at)).transpose();
    let exporter = exporter.map_err(|e| Failure::unavailable(format!("--prometheus: {e}")))?;
    crate::show::print(&format!("{}\n", endpoint.address()))?;
    if let Some(e) = &exporter {
        eprintln!("kfab: counters at http://{}/metrics", e.address());
    }
    eprintln!(
        "kfab: serving; measure with `kfab pingpong ADDRESS`, watch with `kfab top {}`, end with Ctrl-C",
        std::process::id()
    );
    let mut server = Server::new(&endpoint);
    let last = Arc::new(LastWords { counts: server.counts.clone(), said: Once::new() });
    last.clone().in_any_case(&endpoint);
    let outcome = server.run(stop::pressed);
    last.say(&endpoint);
    drop((monitor, exporter));
    outcome?;
    stop::check()
}

/// How long a request that is being served may take when the server is to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the server says in the end, once.
struct LastWords {
    counts: Arc<Counts>,
    said: Once,
}

impl LastWords {
    fn say(&self, endpoint: &Endpoint) {
        self.said.call_once(|| {
            let totals = endpoint.stats().lane.totals;
            let [served, failed] =
                [&self.counts.served, &self.counts.failed].map(|n| n.load(Ordering::Relaxed));
            eprintln!(
                "kfab: served {served} requests, refused {failed}; {} messages in, {} out",
                totals.rx_messages, totals.tx_messages
            );
        });
    }

    /// Says it, and ends the process, when the request that is being served does not end by itself.
    fn in_any_case(self: Arc<Self>, endpoint: &Arc<Endpoint>) {
        let endpoint = Arc::downgrade(endpoint);
        std::thread::spawn(move || {
            while !stop::pressed() {
                std::thread::sleep(PATIENCE / 10);
            }
            std::thread::sleep(PATIENCE);
            // Without an endpoint the server has ended, and with it soon the process.
            if let Some(endpoint) = endpoint.upgrade() {
                self.say(&endpoint);
                std::process::exit(INTERRUPTED.into());
            }
        });
    }
}

/// A way with the provider's other name put right.
fn way(text: &str) -> String {
    text.strip_prefix("sockets:").map_or_else(|| text.to_owned(), |rest| format!("tcp:{rest}"))
}
