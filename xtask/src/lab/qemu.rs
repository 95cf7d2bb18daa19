//! QEMU's command line for a guest. Nothing but text: it starts nothing and reads nothing.
//!
//! Called by [`super::machine`]. The device names `wire<RAIL><a|b>` are also what the monitor's `set_link`
//! is told.

use std::path::{Path, PathBuf};

use super::accel::Accel;
use super::job::Side;
use super::options::{Plan, Shape, Wire};

/// QEMU's program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// CPU under TCG: what Debian's programs and today's checksum code expect (SSE4.2), with nothing that costs
/// time to translate.
const TCG_CPU: &str = "Nehalem";

/// The host's files that a guest is made of.
pub(crate) struct Files<'a> {
    /// Kernel image.
    pub(crate) kernel: &'a Path,
    /// Initial file system.
    pub(crate) initramfs: &'a Path,
    /// Folder of this guest's sockets; each is named after its [`Channel`].
    pub(crate) sockets: &'a Path,
    /// Folder of the sockets that join two guests.
    pub(crate) wires: &'a Path,
}

/// A stream between QEMU and us; we listen, QEMU connects when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Kernel messages.
    Console,
    /// QEMU's monitor.
    Monitor,
    /// Lines to and from the guest's setup.
    Control,
    /// The command's standard output.
    Out,
    /// The command's standard error.
    Err,
}

impl Channel {
    /// All of them.
    pub(crate) const ALL: [Self; 5] = [Self::Console, Self::Monitor, Self::Control, Self::Out, Self::Err];

    /// Its name; the guest sees the last three as ports `lab.NAME`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Console => "console",
            Self::Monitor => "monitor",
            Self::Control => "ctl",
            Self::Out => "out",
            Self::Err => "err",
        }
    }

    /// Its socket in a guest's folder.
    pub(crate) fn socket(self, sockets: &Path) -> PathBuf {
        sockets.join(self.name())
    }
}

/// The socket that joins two guests on a rail.
pub(crate) fn wire_socket(wires: &Path, rail: u32) -> PathBuf {
    wires.join(format!("rail{rail}"))
}

/// Name of the network back end at one end of a rail, for the monitor.
pub(crate) fn netdev(rail: u32, end: char) -> String {
    format!("wire{rail}{end}")
}

/// All arguments, without the program.
pub(crate) fn arguments(plan: &Plan, side: Side, accel: Accel, files: &Files<'_>) -> Vec<String> {
    let mut args = Args::default();
    args.machine(plan, accel);
    args.shape(&plan.shape);
    args.boot(plan, accel, files);
    args.channels(files.sockets);
    args.folders(&plan.shares);
    if plan.wiring.wire == Wire::Pci {
        args.cards(plan, side, files.wires);
    }
    args.0
}

/// A path inside one of QEMU's comma-separated options.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn add(&mut self, option: &str, value: impl Into<String>) {
        self.0.extend([option.to_owned(), value.into()]);
    }

    fn machine(&mut self, plan: &Plan, accel: Accel) {
        let (accel, cpu) = match accel {
            Accel::Kvm => ("kvm", "host"),
            Accel::Tcg => ("tcg,thread=multi", TCG_CPU),
        };
        self.add("-accel", accel);
        self.add("-cpu", plan.cpu.as_deref().unwrap_or(cpu));
        self.add("-machine", "q35");
        self.add("-display", "none");
        self.0.extend(["-nodefaults".to_owned(), "-no-reboot".to_owned()]);
    }

    fn shape(&mut self, shape: &Shape) {
        let cpu_nodes = shape.cpu_nodes();
        let cores = shape.smp / cpu_nodes;
        self.add("-smp", format!("{},sockets={cpu_nodes},cores={cores},threads=1", shape.smp));
        self.add("-m", shape.memory_mib.to_string());
        if shape.nodes == 1 {
            return;
        }
        let size = shape.memory_mib / shape.nodes;
        for node in 0..shape.nodes {
            self.add("-object", format!("memory-backend-ram,id=node{node},size={size}M"));
            let mut numa = format!("node,nodeid={node},memdev=node{node}");
            if node < cpu_nodes {
                numa += &format!(",cpus={}-{}", node * cores, (node + 1) * cores - 1);
            }
            self.add("-numa", numa);
        }
        for from in 0..shape.nodes {
            for to in (0..shape.nodes).filter(|to| *to != from) {
                // As two-socket machines report it for neighbours, and a hop more for each further node.
                let distance = 11 + 10 * from.abs_diff(to);
                self.add("-numa", format!("dist,src={from},dst={to},val={distance}"));
            }
        }
    }

    fn boot(&mut self, plan: &Plan, accel: Accel, files: &Files<'_>) {
        let talk = if plan.console.is_some() { "loglevel=7" } else { "quiet" };
        let clock = match accel {
            Accel::Kvm => "",
            // One counter for all cores, whatever a watchdog makes of a guest that stood still: the next best clock takes microseconds. And the
            // timer works, also if the host let a guest that looks for it miss its ticks: it would panic.
            Accel::Tcg => " tsc=reliable no_timer_check",
        };
        self.add("-kernel", files.kernel.display().to_string());
        self.add("-initrd", files.initramfs.display().to_string());
        self.add("-append", format!("console=ttyS0 {talk} panic=-1 oops=panic mitigations=off{clock}"));
    }

    fn channels(&mut self, sockets: &Path) {
        self.add("-device", "virtio-serial-pci");
        for channel in Channel::ALL {
            let name = channel.name();
            let path = value(&channel.socket(sockets));
            self.add("-chardev", format!("socket,id={name},path={path}"));
            match channel {
                Channel::Console => self.add("-serial", "chardev:console"),
                Channel::Monitor => self.add("-mon", "chardev=monitor,mode=readline"),
                _ => self.add("-device", format!("virtserialport,chardev={name},name=lab.{name}")),
            }
        }
    }

    fn folders(&mut self, shares: &[PathBuf]) {
        self.add("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap");
        for (index, share) in shares.iter().enumerate() {
            let path = value(share);
            self.add(
                "-virtfs",
                format!("local,path={path},mount_tag=share{index},security_model=none,multidevs=remap"),
            );
        }
    }

    /// Network cards on PCI, each on its own root port below the bridge of its NUMA node.
    fn cards(&mut self, plan: &Plan, side: Side, wires: &Path) {
        let wiring = &plan.wiring;
        let bridges = if wiring.card_nodes.is_empty() { 0 } else { plan.shape.nodes };
        for node in 0..bridges {
            let bus = 32 + 28 * node;
            self.add(
                "-device",
                format!("pxb-pcie,id=node{node}pci,bus_nr={bus},numa_node={node},bus=pcie.0"),
            );
        }
        let ends = (0..wiring.rails).flat_map(|rail| side.ends().iter().map(move |end| (rail, *end)));
        for (index, (rail, (end, number))) in ends.enumerate() {
            let netdev = netdev(rail, end);
            self.add("-netdev", join(side, &netdev, rail, wires));
            let bus = if wiring.card_nodes.is_empty() {
                "pcie.0".to_owned()
            } else {
                let node = wiring.card_nodes[index % wiring.card_nodes.len()];
                let chassis = index + 1;
                let bridge =
                    format!("pcie-root-port,id=slot{index},bus=node{node}pci,chassis={chassis},slot={index}");
                self.add("-device", bridge);
                format!("slot{index}")
            };
            let mtu = wiring.mtu;
            let mac = format!("52:54:00:8a:{rail:02x}:{number:02x}");
            self.add(
                "-device",
                format!("virtio-net-pci,netdev={netdev},mac={mac},host_mtu={mtu},bus={bus},romfile="),
            );
        }
    }
}

/// The back end of one end of a rail.
fn join(side: Side, netdev: &str, rail: u32, wires: &Path) -> String {
    let path = value(&wire_socket(wires, rail));
    let stream = format!("stream,id={netdev},addr.type=unix,addr.path={path}");
    match side {
        Side::One => format!("hubport,id={netdev},hubid={rail}"),
        Side::A => stream + ",server=on",
        Side::B => stream + ",server=off",
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Options;
    use super::*;

    fn line(words: &str, side: Side) -> String {
        let plan = Options::read(words.split_whitespace()).unwrap().plan(Path::new("/")).unwrap();
        let files = Files {
            kernel: Path::new("/c/vmlinux"),
            initramfs: Path::new("/s/initramfs"),
            sockets: Path::new("/s/a,b"),
            wires: Path::new("/s"),
        };
        arguments(&plan, side, Accel::Tcg, &files).join(" ")
    }

    #[track_caller]
    fn has(line: &str, part: &str) {
        assert!(line.contains(part), "{part}\nis not in\n{line}");
    }

    #[test]
    fn plain_guest_sees_the_host_read_only_and_has_no_network_card() {
        let line = line("true", Side::One);
        has(&line, "-smp 2,sockets=1,cores=2,threads=1 -m 1024 -kernel /c/vmlinux");
        has(&line, "local,path=/,mount_tag=host,security_model=none,readonly=on");
        has(&line, "-no-reboot");
        has(&line, "virtserialport,chardev=ctl,name=lab.ctl");
        assert!(!line.contains("virtio-net") && !line.contains("-numa") && !line.contains("pxb"));
    }

    #[test]
    fn commas_in_paths_are_doubled() {
        has(&line("true", Side::One), "socket,id=out,path=/s/a,,b/out");
    }

    #[test]
    fn nodes_get_cores_memory_and_distances() {
        let line = line("--numa 3 --numa-cpuless --smp 8 --memory 1536 true", Side::One);
        has(&line, "-smp 8,sockets=2,cores=4,threads=1 -m 1536");
        has(&line, "-numa node,nodeid=1,memdev=node1,cpus=4-7");
        has(&line, "memory-backend-ram,id=node2,size=512M -numa node,nodeid=2,memdev=node2 ");
        has(&line, "dist,src=0,dst=2,val=31");
        has(&line, "dist,src=2,dst=1,val=21");
    }

    #[test]
    fn cards_sit_on_the_nodes_asked_for() {
        let line = line("--numa 2 --cards 4 --card-nodes 1,0 true", Side::One);
        has(&line, "pxb-pcie,id=node1pci,bus_nr=60,numa_node=1,bus=pcie.0");
        has(&line, "-netdev hubport,id=wire0a,hubid=0");
        has(&line, "slot0,bus=node1pci,chassis=1,slot=0");
        has(&line, "netdev=wire0a,mac=52:54:00:8a:00:01,host_mtu=4500,bus=slot0");
        has(&line, "slot3,bus=node0pci");
        has(&line, "netdev=wire1b,mac=52:54:00:8a:01:02");
    }

    #[test]
    fn two_guests_are_joined_by_a_socket_for_each_rail() {
        let words = "--cards 2 --two true true";
        has(&line(words, Side::A), "stream,id=wire1a,addr.type=unix,addr.path=/s/rail1,server=on");
        has(&line(words, Side::B), "stream,id=wire1b,addr.type=unix,addr.path=/s/rail1,server=off");
        assert!(!line(words, Side::A).contains("wire0b"));
        has(&line(words, Side::B), "mac=52:54:00:8a:01:02,host_mtu=4500,bus=pcie.0");
    }

    #[test]
    fn kept_console_has_all_messages() {
        has(&line("true", Side::One), " quiet ");
        has(&line("--keep-console /x true", Side::One), " loglevel=7 ");
    }

    #[test]
    fn translated_guests_bear_to_stand_still() {
        has(&line("true", Side::One), " tsc=reliable no_timer_check");
    }
}
