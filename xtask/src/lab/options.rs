//! The lab's command line, and the [`Plan`] it is turned into.
//!
//! [`Options`] is what clap reads; [`Options::plan`] checks that the parts fit together, so that everything
//! behind it works on a [`Plan`] that can be built. Called by [`super::run`] and by the self-test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use super::cut::{self, Cut};

/// Most rails a guest can have: a bound on addresses (10.8.RAIL.x) and PCI slots.
const MAX_RAILS: u32 = 16;
/// Most NUMA nodes.
const MAX_NODES: u32 = 8;

/// A line of Debian kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KernelLine {
    /// Debian 12's own.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's, in Debian 12's backports and security archive too.
    #[value(name = "6.12")]
    V6_12,
}

impl KernelLine {
    /// The version as the packages' names spell it.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// How the two ends of a rail are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Wire {
    /// One veth pair: the fastest.
    Veth,
    /// Two veth pairs and a bridge: a cable that can be pulled out in the middle.
    Switch,
    /// PCI network cards joined by QEMU: they have a NUMA node, and can be in two guests.
    Pci,
}

impl Wire {
    /// The name the guest's scripts know it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Switch => "switch",
            Self::Pci => "pci",
        }
    }
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AccelChoice {
    /// KVM where a probe shows that it works, otherwise TCG.
    Auto,
    /// KVM, unprobed.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// Runs a command in a virtual machine that has RDMA cards.
///
/// The guest sees this machine's files as they are; what it writes is lost when it ends (but see --share).
/// The command runs in the current folder, its output is shown as it comes, and its exit status becomes
/// this program's. Status 125 means that the guest gave none: it did not start, died or ran past its limit.
#[derive(Clone, Debug, Parser)]
#[command(name = "cargo xtask lab", bin_name = "cargo xtask lab", disable_version_flag = true)]
pub(crate) struct Options {
    /// Debian kernel to boot
    #[arg(long, value_enum, default_value = "6.1", value_name = "LINE")]
    pub(crate) kernel: KernelLine,
    /// Soft-RoCE cards: two to a rail (rxe_a0 and rxe_b0 on rail 0, ...); with --two one to a rail and guest
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub(crate) cards: u32,
    /// Soft-iWARP cards (siw_a0, ...) instead: their driver is built at the first use
    #[arg(long)]
    pub(crate) iwarp: bool,
    /// How a rail's two ends are joined [default: veth; switch with --cut; pci with --two or --card-nodes]
    #[arg(long, value_enum)]
    pub(crate) wire: Option<Wire>,
    /// Size of the largest packet, bytes (4500 gives cards an MTU of 4096, 1500 one of 1024)
    #[arg(long, default_value_t = 4500, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(576..=9000))]
    pub(crate) mtu: u32,
    /// NUMA nodes
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) numa: u32,
    /// The last NUMA node has memory and no CPU
    #[arg(long)]
    pub(crate) numa_cpuless: bool,
    /// NUMA node of each card in turn (a0, b0, a1, ... or rail by rail with --two); the list repeats
    #[arg(long, value_delimiter = ',', value_name = "NODE,...")]
    pub(crate) card_nodes: Vec<u32>,
    /// CPU cores [default: 2 for each NUMA node that has any]
    #[arg(long, value_name = "N")]
    pub(crate) smp: Option<u32>,
    /// Memory of a guest, MiB
    #[arg(long, default_value_t = 1024, value_name = "MIB", value_parser = clap::value_parser!(u32).range(128..))]
    pub(crate) memory: u32,
    /// A second guest at the other end of the rails, which runs this shell command; its output goes to stderr
    #[arg(long, value_name = "SHELL-COMMAND")]
    pub(crate) two: Option<String>,
    /// Cuts and heals rails, in seconds after the command's start: CUT:HEAL:RAIL[:down|:drop|:drop/N],...
    #[arg(long, value_name = "SCRIPT")]
    pub(crate) cut: Vec<String>,
    /// Seconds after which the run is ended, boot included
    #[arg(long, default_value_t = 300, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
    /// Limit on locked memory, KiB (root is exempt on soft-RoCE: see --user) [default: none]
    #[arg(long, value_name = "KIB")]
    pub(crate) memlock: Option<u64>,
    /// Runs the command as this user
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Sets a variable for the command, or hands on one of ours; KFAB_*, RUST_*, FI_* and UCX_* always are
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// A folder that the command may write to for good
    #[arg(long, value_name = "DIR")]
    pub(crate) share: Vec<PathBuf>,
    /// CPU model, as QEMU names it
    #[arg(long, value_name = "MODEL")]
    pub(crate) cpu: Option<String>,
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) accel: AccelChoice,
    /// Keeps the guest's console, with all kernel messages, in a file (FILE.b for the second guest)
    #[arg(long, value_name = "FILE")]
    pub(crate) keep_console: Option<PathBuf>,
    /// Says how long each part took; with --list-packages, what each is for
    #[arg(long, short)]
    pub(crate) verbose: bool,
    /// Only fetches and unpacks what a start needs
    #[arg(long)]
    pub(crate) prepare: bool,
    /// Fetches the newest kernel of the line, even when one is there
    #[arg(long)]
    pub(crate) renew: bool,
    /// Lists the Debian packages that the lab uses
    #[arg(long)]
    pub(crate) list_packages: bool,
    /// Boots guests that check the lab itself; words after it pick checks by name
    #[arg(long)]
    pub(crate) selftest: bool,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

/// The processors and memory of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// CPU cores; a multiple of the nodes that have any.
    pub(crate) smp: u32,
    /// MiB, over all nodes; a multiple of `nodes`.
    pub(crate) memory_mib: u32,
    /// NUMA nodes, at least 1.
    pub(crate) nodes: u32,
    /// Whether the last node has no core.
    pub(crate) cpuless: bool,
}

impl Shape {
    /// Nodes that have cores.
    pub(crate) fn cpu_nodes(&self) -> u32 {
        self.nodes - u32::from(self.cpuless)
    }
}

/// The cards and what joins them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wiring {
    /// Kind of joint.
    pub(crate) wire: Wire,
    /// Cards in a guest; 0 for a guest without RDMA.
    pub(crate) cards: u32,
    /// They speak iWARP, not RoCE.
    pub(crate) iwarp: bool,
    /// Rails; 0 when there is no card.
    pub(crate) rails: u32,
    /// Bytes.
    pub(crate) mtu: u32,
    /// Node of each card in turn, repeated; empty: none in particular.
    pub(crate) card_nodes: Vec<u32>,
}

/// One run, checked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Processors and memory, of each guest.
    pub(crate) shape: Shape,
    /// Cards.
    pub(crate) wiring: Wiring,
    /// Shell command of the guest with the caller's command.
    pub(crate) command: String,
    /// Shell command of the second guest, if there is one.
    pub(crate) companion: Option<String>,
    /// Folder both run in.
    pub(crate) folder: PathBuf,
    /// Rails to cut, and when.
    pub(crate) cuts: Vec<Cut>,
    /// For boot and command together.
    pub(crate) limit: Duration,
    /// KiB; `None` for no limit.
    pub(crate) memlock_kib: Option<u64>,
    /// User to run as; `None` for root.
    pub(crate) user: Option<String>,
    /// Variables set for the command.
    pub(crate) env: Vec<(String, String)>,
    /// Folders that may be written, absolute.
    pub(crate) shares: Vec<PathBuf>,
    /// QEMU's CPU model; `None` for the lab's choice.
    pub(crate) cpu: Option<String>,
    /// Accelerator.
    pub(crate) accel: AccelChoice,
    /// File for the console.
    pub(crate) console: Option<PathBuf>,
    /// Whether to tell of times.
    pub(crate) verbose: bool,
}

impl Options {
    /// Reads the words after `lab`.
    ///
    /// # Errors
    /// Clap's, which also stands for `--help`.
    pub(crate) fn read<S: Into<String>>(words: impl IntoIterator<Item = S>) -> Result<Self, clap::Error> {
        let name = std::iter::once("lab".to_owned());
        Self::try_parse_from(name.chain(words.into_iter().map(Into::into)))
    }

    /// Checks the options against each other; paths are seen from the folder `here`, where the command will run.
    ///
    /// # Errors
    /// The first pair that does not fit, in words.
    pub(crate) fn plan(&self, here: &Path) -> Result<Plan> {
        ensure!(!self.command.is_empty(), "no command: cargo xtask lab [OPTIONS] -- COMMAND");
        let wiring = self.wiring()?;
        let cuts = self.cut.iter().map(|script| cut::parse(script)).collect::<Result<Vec<_>>>()?.concat();
        for cut in &cuts {
            ensure!(cut.rail < wiring.rails, "--cut names rail {}; there are {}", cut.rail, wiring.rails);
        }
        let shares = self.share.iter().map(|dir| share(&here.join(dir))).collect::<Result<_>>()?;
        Ok(Plan {
            shape: self.shape()?,
            wiring,
            command: self.shell_command(),
            companion: self.two.clone(),
            folder: here.to_owned(),
            cuts,
            limit: Duration::from_secs(self.limit),
            memlock_kib: self.memlock,
            user: self.user.clone(),
            env: variables(&self.env, std::env::vars())?,
            shares,
            cpu: self.cpu.clone(),
            accel: self.accel,
            console: self.keep_console.as_ref().map(|file| here.join(file)),
            verbose: self.verbose,
        })
    }

    fn shape(&self) -> Result<Shape> {
        ensure!((1..=MAX_NODES).contains(&self.numa), "--numa takes 1 to {MAX_NODES}");
        ensure!(!self.numa_cpuless || self.numa > 1, "--numa-cpuless needs --numa 2 or more");
        let cpu_nodes = self.numa - u32::from(self.numa_cpuless);
        let smp = self.smp.unwrap_or(2 * cpu_nodes);
        ensure!(
            smp > 0 && smp.is_multiple_of(cpu_nodes),
            "--smp must be a multiple of {cpu_nodes}, the nodes with CPUs"
        );
        ensure!(smp <= 64, "--smp takes 64 at most");
        ensure!(self.memory / self.numa >= 64, "--memory leaves less than 64 MiB to a node");
        let memory_mib = self.memory / self.numa * self.numa;
        Ok(Shape { smp, memory_mib, nodes: self.numa, cpuless: self.numa_cpuless })
    }

    fn wiring(&self) -> Result<Wiring> {
        let rails = if self.two.is_some() { self.cards } else { self.cards.div_ceil(2) };
        ensure!(rails <= MAX_RAILS, "--cards asks for {rails} rails; {MAX_RAILS} is the most");
        ensure!(self.two.is_none() || rails > 0, "--two needs a card");
        if let Some(node) = self.card_nodes.iter().find(|node| **node >= self.numa) {
            bail!("--card-nodes names node {node}; there are {}", self.numa);
        }
        let need_pci = self.two.is_some() || !self.card_nodes.is_empty();
        let wire = match self.wire {
            None if need_pci => Wire::Pci,
            None if !self.cut.is_empty() => Wire::Switch,
            None => Wire::Veth,
            Some(wire) if need_pci && wire != Wire::Pci => {
                bail!("--two and --card-nodes need --wire pci");
            }
            Some(wire) => wire,
        };
        let (cards, iwarp, mtu) = (self.cards, self.iwarp, self.mtu);
        Ok(Wiring { wire, cards, iwarp, rails, mtu, card_nodes: self.card_nodes.clone() })
    }

    /// The command as one line for a shell.
    fn shell_command(&self) -> String {
        let words: Vec<_> = self.command.iter().map(|word| super::job::quoted(word)).collect();
        format!("exec {}", words.join(" "))
    }
}

fn share(dir: &Path) -> Result<PathBuf> {
    let dir = dir.canonicalize().with_context(|| format!("--share {}", dir.display()))?;
    ensure!(dir.is_dir(), "--share {}: not a folder", dir.display());
    Ok(dir)
}

/// The variables to hand on: the ones asked for, and of `ours` the ones that steer what is tested here.
fn variables(
    asked: &[String],
    ours: impl Iterator<Item = (String, String)>,
) -> Result<Vec<(String, String)>> {
    const ALWAYS: [&str; 4] = ["KFAB_", "RUST_", "FI_", "UCX_"];
    let mut set: Vec<_> =
        ours.filter(|(name, _)| ALWAYS.iter().any(|prefix| name.starts_with(prefix))).collect();
    for word in asked {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => (word.clone(), std::env::var(word).with_context(|| format!("--env {word}: not set"))?),
        };
        set.push((name, value));
    }
    for (name, _) in &set {
        let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(
            plain && !name.starts_with(|c: char| c.is_ascii_digit()),
            "--env {name}: not a variable's name"
        );
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &str) -> Result<Plan> {
        Options::read(words.split_whitespace())?.plan(Path::new("/"))
    }

    #[test]
    fn plain_command_gets_one_rail_of_two_cards() {
        let plan = plan("ibv_devices").unwrap();
        assert_eq!(plan.command, "exec 'ibv_devices'");
        assert_eq!((plan.wiring.cards, plan.wiring.rails, plan.wiring.wire), (2, 1, Wire::Veth));
        assert_eq!(plan.shape, Shape { smp: 2, memory_mib: 1024, nodes: 1, cpuless: false });
        assert_eq!(Options::read(["true"]).unwrap().kernel, KernelLine::V6_1);
        assert_eq!(plan.limit, Duration::from_secs(300));
        assert!(plan.memlock_kib.is_none() && plan.companion.is_none() && plan.cuts.is_empty());
    }

    #[test]
    fn words_of_the_command_are_not_read_as_options() {
        for words in ["--cards 4 -- ls --cards 9 -- -l", "--cards 4 ls --cards 9 -- -l"] {
            let plan = plan(words).unwrap();
            assert_eq!(plan.wiring.rails, 2, "{words}");
            assert_eq!(plan.command, "exec 'ls' '--cards' '9' '--' '-l'", "{words}");
        }
    }

    #[test]
    fn wire_follows_from_the_other_options() {
        assert_eq!(plan("--cut 1:2:0 true").unwrap().wiring.wire, Wire::Switch);
        assert_eq!(plan("--cut 1:2:0 --wire veth true").unwrap().wiring.wire, Wire::Veth);
        assert_eq!(plan("--numa 2 --card-nodes 0,1 true").unwrap().wiring.wire, Wire::Pci);
        let two = plan("--cards 2 --two true true").unwrap();
        assert_eq!((two.wiring.wire, two.wiring.rails), (Wire::Pci, 2));
        assert!(plan("--two true --wire veth true").is_err());
    }

    #[test]
    fn nodes_share_cores_and_memory_evenly() {
        let shape = plan("--numa 3 --numa-cpuless true").unwrap().shape;
        assert_eq!((shape.smp, shape.cpu_nodes(), shape.memory_mib), (4, 2, 1023));
        assert!(plan("--numa 2 --smp 3 true").is_err());
        assert!(plan("--numa-cpuless true").is_err());
        assert!(plan("--numa 0 true").is_err());
        assert!(plan("--numa 8 --memory 256 true").is_err());
    }

    #[test]
    fn what_is_not_there_cannot_be_named() {
        assert!(plan("--cut 1:2:1 true").unwrap_err().to_string().contains("rail 1"));
        assert!(plan("--card-nodes 1 true").unwrap_err().to_string().contains("node 1"));
        assert!(plan("--share /nonexistent/folder true").is_err());
        assert!(plan("--cards 40 true").is_err());
        assert!(plan("--kernel 5.10 true").is_err());
        assert!(plan("").unwrap_err().to_string().contains("no command"));
    }

    #[test]
    fn paths_are_seen_from_where_the_lab_was_called() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let words = "--share src --keep-console console.txt true";
        let plan = Options::read(words.split_whitespace()).unwrap().plan(here).unwrap();
        assert_eq!((&*plan.folder, plan.console), (here, Some(here.join("console.txt"))));
        assert_eq!(plan.shares, [here.join("src").canonicalize().unwrap()]);
    }

    #[test]
    fn variables_that_steer_the_tested_are_handed_on() {
        let ours = [("KFAB_X", "1"), ("HOME", "/h"), ("FI_UNIVERSE_SIZE", "16")];
        let ours = ours.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let set = variables(&["A=b=c".to_owned()], ours).unwrap();
        let names: Vec<_> = set.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(names, ["KFAB_X=1", "FI_UNIVERSE_SIZE=16", "A=b=c"]);
        assert!(variables(&["a b=1".to_owned()], std::iter::empty()).is_err());
    }
}
