//! One RPC system, one figure: `rpc-peers SYSTEM JOB [--size N] [--flight N] [--seconds S] [--cores A,B]` starts a server as a
//! process of its own, measures, and prints the figure alone: nanoseconds for `lat` (the median round trip), calls a second for
//! `rate`, bytes a second for `read` and `write` of bulk data.
//!
//! Systems: `shm` and `sockets` (ours, over that provider), and with the features `tonic` and `tarpc` those, over loopback TCP.

#![forbid(unsafe_code)]

mod load;
mod ours;
#[cfg(feature = "tarpc")]
mod over_tarpc;
#[cfg(any(feature = "tarpc", feature = "tonic"))]
mod over_tokio;
#[cfg(feature = "tonic")]
mod over_tonic;

use anyhow::{Context, bail};
use load::{Job, Load};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The server, ended with this value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| words.iter().position(|w| w == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str, default: f64| option(name).map_or(Ok(default), |w| w.parse());
    let cores = option("--cores").unwrap_or("0,1".into());
    let (server_core, client_core) = cores.split_once(',').context("--cores A,B")?;
    let (Some(system), Some(job)) = (words.first(), words.get(1)) else {
        bail!(
            "rpc-peers shm|sockets|tonic|tarpc lat|rate|read|write [--size N] [--flight N] [--seconds S] [--cores A,B]"
        );
    };
    if job == "serve" {
        return serve(system);
    }
    let size = number("--size", 64.0)? as usize;
    let flight = number("--flight", if job == "lat" { 1.0 } else { 64.0 })? as usize;
    let length = Duration::from_secs_f64(number("--seconds", 1.0)?);
    let load = Load { job: Job::parse(job)?, size, flight, length };
    let me = std::env::current_exe()?;
    let mut child = Command::new("taskset");
    child.args(["-c", server_core]).arg(me).args([system, "serve"]);
    let mut server = Server(child.stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().context("taskset")?);
    pin(client_core.parse()?)?;
    let mut address = String::new();
    BufReader::new(server.0.stdout.take().context("no output")?).read_line(&mut address)?;
    println!("{:.1}", measure(system, address.trim(), &load)?);
    Ok(())
}

fn pin(core: u32) -> anyhow::Result<()> {
    kfab::topo::bind_current_thread(&[core].into_iter().collect())?;
    Ok(())
}

/// Serves until standard input ends. Prints the address first.
fn serve(system: &str) -> anyhow::Result<()> {
    match system {
        "shm" | "sockets" => ours::serve(system),
        #[cfg(feature = "tonic")]
        "tonic" => over_tonic::serve(),
        #[cfg(feature = "tarpc")]
        "tarpc" => over_tarpc::serve(),
        other => bail!("no system {other} here"),
    }
}

fn measure(system: &str, address: &str, load: &Load) -> anyhow::Result<f64> {
    match system {
        "shm" | "sockets" => ours::measure(system, address, load),
        #[cfg(feature = "tonic")]
        "tonic" => over_tonic::measure(address, load),
        #[cfg(feature = "tarpc")]
        "tarpc" => over_tarpc::measure(address, load),
        other => bail!("no system {other} here"),
    }
}
