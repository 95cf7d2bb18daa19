//! What is compared with what: one [`Line`] for each line of the table of targets.
//!
//! Left out are peers that were never the best of a line where they were tried: MPICH, iceoryx2, Cap'n Proto, libfabric's newer wheel
//! and Open MPI over UCX, which is UCX and more.

use super::programs::{Call, Job, Mpi, Program, Ucx};

/// The provider of kfab that a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Provider {
    /// Shared memory.
    Shm,
    /// TCP.
    Sockets,
}

/// What a figure counts. Figures are kept in the unit that stands here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Nanoseconds, one way, or there and back for calls; lower is better.
    Nanoseconds,
    /// Messages a second; higher is better.
    Messages,
    /// Bytes a second; higher is better.
    Bytes,
}

impl Unit {
    pub(super) fn lower_is_better(self) -> bool {
        self == Self::Nanoseconds
    }
}

/// A physical limit, measured by kfab itself in the same round: its name, size, and the target for
/// kfab's figure divided by it.
pub(super) struct Limit {
    pub(super) name: &'static str,
    pub(super) size: Option<u64>,
    pub(super) target: f64,
}

/// One comparison.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) provider: Provider,
    pub(super) unit: Unit,
    /// How kfab measures it: `kfab perf TEST`, with this size and window (a line about calls has no such test).
    pub(super) test: &'static str,
    pub(super) size: u64,
    pub(super) window: u64,
    pub(super) limit: Option<Limit>,
    /// The target for kfab's figure divided by the best peer's; nothing where peers are only shown.
    pub(super) target: Option<f64>,
    pub(super) peers: Vec<Call>,
    /// The line is about calls: our RPC does this job, instead of `kfab perf`.
    pub(super) rpc: Option<Job>,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Every line, in the order of the table.
pub(super) fn lines() -> Vec<Line> {
    let mut all = vec![
        shm_latency(8, Some(Limit { name: "cache_line", size: None, target: 1.6 })),
        shm_latency(4 * KIB, None),
        shm_latency(64 * KIB, None),
        shm_rate(),
        put_rate(),
    ];
    for size in [64 * KIB, MIB, 4 * MIB] {
        all.push(one_sided("write", size));
        all.push(one_sided("read", size));
    }
    all.extend([shm_bandwidth(MIB), shm_bandwidth(4 * MIB)]);
    all.extend([tcp_latency(8), tcp_rate(), tcp_latency(64 * KIB), tcp_bandwidth()]);
    all.extend(rpc_lines());
    all
}

/// The names of all lines.
pub(super) fn names() -> Vec<String> {
    lines().into_iter().map(|line| line.name).collect()
}

fn line(provider: Provider, test: &'static str, size: u64, window: u64, unit: Unit) -> Line {
    let from = match provider {
        Provider::Shm => "shm",
        Provider::Sockets => "sockets",
    };
    let name = format!("{from} {test} {}", shown(size));
    Line { name, provider, unit, test, size, window, limit: None, target: None, peers: Vec::new(), rpc: None }
}

/// A size as the table shows it.
pub(super) fn shown(size: u64) -> String {
    match size {
        size if size >= MIB => format!("{} MiB", size / MIB),
        size if size >= KIB => format!("{} KiB", size / KIB),
        size => format!("{size} B"),
    }
}

fn call(program: Program, job: Job, size: u64, iterations: u64) -> Call {
    Call { program, job, size, iterations }
}

fn shm_latency(size: u64, limit: Option<Limit>) -> Line {
    let iterations = if size >= 64 * KIB { 20_000 } else { 300_000 };
    let lat = |program| call(program, Job::Latency, size, iterations);
    let mut peers = vec![
        lat(Program::Ucx22(Ucx::tag("posix"))),
        lat(Program::Ucx22(Ucx::active("posix"))),
        lat(Program::Ucx13(Ucx::tag("posix"))),
        lat(Program::Fabric("shm")),
        lat(Program::Mpi5(Mpi::Shm)),
        lat(Program::Mpi4(Mpi::Shm)),
    ];
    if size > 8 {
        peers.push(lat(Program::Ucx22(Ucx::tag("posix,cma"))));
        peers.push(lat(Program::Ucx22(Ucx::active("posix,cma"))));
    }
    Line { limit, target: Some(1.0), peers, ..line(Provider::Shm, "lat", size, 1, Unit::Nanoseconds) }
}

fn shm_rate() -> Line {
    let rate = |program| call(program, Job::Rate, 8, 8_000_000);
    let peers = vec![
        rate(Program::Ucx22(Ucx::tag("posix"))),
        rate(Program::Ucx22(Ucx::active("posix"))),
        rate(Program::Ucx13(Ucx::tag("posix"))),
        rate(Program::Mpi5(Mpi::Shm)),
        rate(Program::Mpi4(Mpi::Shm)),
    ];
    Line { target: Some(1.5), peers, ..line(Provider::Shm, "rate", 8, 64, Unit::Messages) }
}

fn put_rate() -> Line {
    let put = |program| call(program, Job::Put, 8, 20_000_000);
    let peers = vec![put(Program::Ucx22(Ucx::tag("posix"))), put(Program::Ucx13(Ucx::tag("posix")))];
    let name = "shm write rate 8 B".to_owned();
    Line { name, target: Some(1.0), peers, ..line(Provider::Shm, "write", 8, 64, Unit::Messages) }
}

fn one_sided(test: &'static str, size: u64) -> Line {
    let job = if test == "read" { Job::Get } else { Job::Put };
    let iterations = 4 * KIB * MIB / size;
    let run = |program| call(program, job, size, iterations);
    let peers = vec![run(Program::Ucx22(Ucx::tag("posix"))), run(Program::Ucx13(Ucx::tag("posix")))];
    let limit = Some(Limit { name: "memcpy", size: Some(size), target: 0.95 });
    Line { limit, peers, ..line(Provider::Shm, test, size, 16, Unit::Bytes) }
}

fn shm_bandwidth(size: u64) -> Line {
    let bandwidth = |program| call(program, Job::Bandwidth, size, 4 * KIB * MIB / size);
    let peers = vec![
        bandwidth(Program::Ucx22(Ucx::tag("posix"))),
        bandwidth(Program::Ucx22(Ucx::tag("posix,cma"))),
        bandwidth(Program::Ucx22(Ucx::active("posix"))),
        bandwidth(Program::Ucx13(Ucx::tag("posix"))),
        bandwidth(Program::Mpi5(Mpi::Shm)),
        bandwidth(Program::Mpi4(Mpi::Shm)),
    ];
    Line { target: Some(1.2), peers, ..line(Provider::Shm, "bw", size, 16, Unit::Bytes) }
}

fn tcp_latency(size: u64) -> Line {
    let lat = |program| call(program, Job::Latency, size, if size > 8 { 10_000 } else { 50_000 });
    let peers = vec![
        lat(Program::Ucx22(Ucx::tag("tcp"))),
        lat(Program::Ucx22(Ucx::active("tcp"))),
        lat(Program::Ucx13(Ucx::tag("tcp"))),
        lat(Program::Fabric("net")),
        lat(Program::Fabric("tcp;ofi_rxm")),
        lat(Program::Mpi5(Mpi::Tcp)),
        lat(Program::Mpi4(Mpi::Tcp)),
    ];
    let limit = Some(Limit { name: "tcp_pingpong", size: Some(size), target: 1.05 });
    Line { limit, target: Some(1.0), peers, ..line(Provider::Sockets, "lat", size, 1, Unit::Nanoseconds) }
}

fn tcp_rate() -> Line {
    // UCX does not wait for the receiver: only a long run shows more than how fast the sockets' buffers fill. Our
    // MPI program ends with an answer from the receiver.
    let ucx = |program| call(program, Job::Rate, 8, 3_000_000);
    let rate = |program| call(program, Job::Rate, 8, 600_000);
    let peers = vec![
        ucx(Program::Ucx22(Ucx::tag("tcp"))),
        ucx(Program::Ucx22(Ucx::active("tcp"))),
        ucx(Program::Ucx13(Ucx::tag("tcp"))),
        rate(Program::Mpi5(Mpi::Tcp)),
        rate(Program::Mpi4(Mpi::Tcp)),
    ];
    Line { target: Some(10.0), peers, ..line(Provider::Sockets, "rate", 8, 64, Unit::Messages) }
}

fn tcp_bandwidth() -> Line {
    let bandwidth = |program| call(program, Job::Bandwidth, MIB, 2000);
    let peers = vec![
        bandwidth(Program::Ucx22(Ucx::tag("tcp"))),
        bandwidth(Program::Ucx22(Ucx::active("tcp"))),
        bandwidth(Program::Ucx13(Ucx::tag("tcp"))),
        bandwidth(Program::Mpi5(Mpi::Tcp)),
        bandwidth(Program::Mpi4(Mpi::Tcp)),
    ];
    let limit = Some(Limit { name: "tcp_stream", size: Some(MIB), target: 0.95 });
    Line { limit, target: Some(1.0), peers, ..line(Provider::Sockets, "bw", MIB, 16, Unit::Bytes) }
}

/// Our RPC beside kfab's own messages, which it stands on, and beside what Rust programs use over TCP.
fn rpc_lines() -> Vec<Line> {
    let own = |provider, job, size| vec![call(Program::Perf(provider), job, size, 100)];
    let others =
        |job| vec![call(Program::Rpc("tonic"), job, 64, 100), call(Program::Rpc("tarpc"), job, 64, 100)];
    let (shm, tcp) = (Provider::Shm, Provider::Sockets);
    let mut all = vec![
        rpc(shm, "round trip", Job::Latency, 1.6, own(shm, Job::Latency, 64)),
        rpc(shm, "rate", Job::Rate, 0.25, own(shm, Job::Rate, 8)),
        rpc(tcp, "round trip", Job::Latency, 1.3, own(tcp, Job::Latency, 64)),
        rpc(tcp, "round trip beside others", Job::Latency, 1.0 / 3.0, others(Job::Latency)),
        rpc(tcp, "rate beside others", Job::Rate, 3.0, others(Job::Rate)),
    ];
    for (provider, target) in [(shm, 0.8), (tcp, 0.9)] {
        all.push(rpc(provider, "bulk read", Job::Get, target, own(provider, Job::Bandwidth, MIB)));
        all.push(rpc(provider, "bulk write", Job::Put, target, own(provider, Job::Bandwidth, MIB)));
    }
    all
}

fn rpc(provider: Provider, what: &str, job: Job, target: f64, peers: Vec<Call>) -> Line {
    let (size, window, unit) = match job {
        Job::Latency => (64, 1, Unit::Nanoseconds),
        Job::Rate => (64, 64, Unit::Messages),
        _ => (MIB, 16, Unit::Bytes),
    };
    let mut line = line(provider, "rpc", size, window, unit);
    line.name = format!("{} {what}", line.name);
    Line { target: Some(target), peers, rpc: Some(job), ..line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_a_name_of_its_own_and_something_to_reach() {
        let lines = lines();
        for (at, line) in lines.iter().enumerate() {
            assert!(lines[..at].iter().all(|other| other.name != line.name), "{}", line.name);
            assert!(line.target.is_some() || line.limit.is_some(), "{}", line.name);
            assert!(!line.peers.is_empty(), "{}", line.name);
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!([8, 4096, 1 << 20].map(shown), ["8 B", "4 KiB", "1 MiB"]);
    }
}
