//! Which cards there are and what state their ports are in. Called by the provider's probe and when a port is opened.
//!
//! Facts: names from libibverbs; the rest from sysfs (Documentation/ABI/stable/sysfs-class-infiniband): `ports/N/state`
//! (`4: ACTIVE`), `ports/N/rate` (`100 Gb/sec (4X EDR)`), `ports/N/gids/I`, `ports/N/gid_attrs/types/I`. A soft-RoCE card has no
//! device of its own: `parent` names its network interface.

use crate::{room, sys};
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Entries of the GID table that are looked at.
const GIDS_MAX: u8 = 64;
/// Weight of a card whose speed is not known, Mbit/s.
const DEFAULT_SPEED: u32 = 10_000;

/// An entry of a port's GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gid {
    pub(crate) index: u8,
    pub(crate) bytes: [u8; 16],
    /// RoCE version 2: routed, by UDP.
    pub(crate) v2: bool,
}

impl Gid {
    /// The IP address that a RoCE GID is made of.
    pub(crate) fn ip(&self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.bytes);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    fn is_routable(&self) -> bool {
        !matches!(self.ip(), IpAddr::V6(a) if a.is_unicast_link_local())
    }

    /// Lower is better: routable IPv4, then routable IPv6, then the rest; version 2 before version 1.
    fn rank(&self) -> u8 {
        let place = match self.ip() {
            IpAddr::V4(_) => 0,
            IpAddr::V6(_) if self.is_routable() => 2,
            IpAddr::V6(_) => 4,
        };
        place + u8::from(!self.v2)
    }
}

/// One port of one card.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) name: String,
    pub(crate) port: u8,
    /// What people call this port: the card's name, with `/PORT` (as `rdma link` has it) where it has several.
    pub(crate) label: String,
    /// It speaks iWARP: only the connection manager connects it.
    pub(crate) iwarp: bool,
    /// Network interface below a RoCE port.
    pub(crate) netdev: Option<String>,
    /// `ACTIVE`, `DOWN`, ...
    pub(crate) state: String,
    /// Best first. An iWARP card's are made of its IP addresses, too, which the manager knows: what sysfs has are hardware addresses.
    pub(crate) gids: Vec<Gid>,
    /// Mbit/s.
    pub(crate) speed: u32,
    pub(crate) node: Option<u32>,
}

impl Card {
    pub(crate) fn active(&self) -> bool {
        self.state == "ACTIVE"
    }

    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.label == name || self.name == name || self.netdev.as_deref() == Some(name)
    }

    /// One line for people.
    pub(crate) fn detail(&self) -> String {
        let ips: Vec<String> = self.gids.iter().map(|g| g.ip().to_string()).collect();
        let netdev = self.netdev.as_deref().map_or(String::new(), |n| format!(" on {n}"));
        format!("port {}{netdev}, {}, {} Mbit/s, GIDs {}", self.port, self.state, self.speed, ips.join(" "))
    }
}

fn line(path: impl AsRef<Path>) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

/// All ports of all cards, fast ones first; an error is the reason why there is none. Equals are in the order of their addresses,
/// whether they are up or not: the first rail here and the first rail of a peer are then likely to be on one network.
pub(crate) fn cards() -> Result<Vec<Card>, String> {
    let mut all: Vec<Card> = sys::card_names()?.iter().flat_map(|n| ports_of(n)).collect();
    if all.iter().any(|c| c.iwarp) {
        find_addresses(&mut all);
    }
    if all.is_empty() {
        return Err("no RDMA card (`rdma link` lists them)".to_owned());
    }
    let address = |c: &Card| c.gids.first().filter(|g| g.is_routable()).map(Gid::ip);
    all.sort_by_key(|c| (std::cmp::Reverse(c.speed), address(c)));
    Ok(all)
}

fn ports_of(name: &str) -> Vec<Card> {
    let base = PathBuf::from("/sys/class/infiniband").join(name);
    let ports = std::fs::read_dir(base.join("ports")).into_iter().flatten().flatten();
    let mut numbers: Vec<u8> = ports.filter_map(|p| p.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let label = |n: u8| if numbers.len() > 1 { format!("{name}/{n}") } else { name.to_owned() };
    numbers.iter().map(|n| read_port(name, &base, *n, label(*n))).collect()
}

fn read_port(name: &str, base: &Path, port: u8, label: String) -> Card {
    let dir = base.join("ports").join(port.to_string());
    let gids = gids_of(&dir);
    let first = gids.first().map_or(0, |g| g.index);
    let netdev = line(dir.join(format!("gid_attrs/ndevs/{first}"))).or_else(|| line(base.join("parent")));
    let state = line(dir.join("state")).unwrap_or_default();
    let state = state.split(':').next_back().unwrap_or("").trim().to_owned();
    Card {
        iwarp: line(base.join("node_type")).is_some_and(|t| t.ends_with("RNIC")),
        name: name.to_owned(),
        port,
        label,
        node: node_of(base, netdev.as_deref()),
        netdev,
        state,
        gids,
        speed: line(dir.join("rate")).and_then(|r| speed_of(&r)).unwrap_or(DEFAULT_SPEED),
    }
}

/// Gives iWARP cards the addresses that lead to them.
fn find_addresses(cards: &mut [Card]) {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let all: Vec<(IpAddr, String)> =
        interfaces.filter_map(|i| Some((address(i.address.as_ref()?)?, i.interface_name))).collect();
    let ips: Vec<IpAddr> = all.iter().map(|(ip, _)| *ip).filter(|ip| !ip.is_loopback()).collect();
    let known = sys::manager::cards_with(&ips).unwrap_or_else(|why| {
        tracing::warn!(why, "iWARP cards without addresses");
        Vec::new()
    });
    for card in cards.iter_mut().filter(|c| c.iwarp) {
        let mine = known.iter().filter(|(_, name, port)| *name == card.name && *port == card.port);
        let gid = |ip: &IpAddr| match ip {
            IpAddr::V4(a) => Gid { index: 0, bytes: a.to_ipv6_mapped().octets(), v2: true },
            IpAddr::V6(a) => Gid { index: 0, bytes: a.octets(), v2: true },
        };
        card.gids = mine.map(|(ip, ..)| gid(ip)).collect();
        card.gids.sort_by_key(Gid::rank);
        let first = card.gids.first().map(Gid::ip);
        card.netdev = all.iter().find(|(ip, _)| Some(*ip) == first).map(|(_, name)| name.clone());
    }
}

/// The address of a socket address.
pub(crate) fn address(a: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// Where an address of a card's port is in its table now. One that is none of the host's (InfiniBand: the subnet's manager gives it) may have become
/// another.
pub(crate) fn gid_again(card: &Card, gid: &Gid, at: IpAddr) -> Option<Gid> {
    let dir = Path::new("/sys/class/infiniband").join(&card.name).join("ports").join(card.port.to_string());
    let all = gids_of(&dir);
    let same = all.iter().find(|g| (g.bytes, g.v2) == (gid.bytes, gid.v2));
    same.or_else(|| all.first().filter(|_| gid.ip() != at)).cloned()
}

fn gids_of(dir: &Path) -> Vec<Gid> {
    let one = |index: u8| -> Option<Gid> {
        let bytes = gid_bytes(&line(dir.join(format!("gids/{index}")))?)?;
        let v2 = line(dir.join(format!("gid_attrs/types/{index}"))).is_some_and(|t| t.contains("v2"));
        (bytes != [0; 16]).then_some(Gid { index, bytes, v2 })
    };
    let mut gids: Vec<Gid> = (0..GIDS_MAX).filter_map(one).collect();
    gids.sort_by_key(|g| (g.rank(), g.index));
    gids
}

fn gid_bytes(text: &str) -> Option<[u8; 16]> {
    text.parse::<Ipv6Addr>().ok().map(|a| a.octets())
}

/// `2.5 Gb/sec (1X SDR)` in Mbit/s.
fn speed_of(rate: &str) -> Option<u32> {
    let gbit: f64 = rate.split_whitespace().next()?.parse().ok()?;
    (gbit > 0.0).then_some((gbit * 1000.0) as u32)
}

fn node_of(base: &Path, netdev: Option<&str>) -> Option<u32> {
    let mut places = vec![base.join("device/numa_node")];
    if let Some(n) = netdev {
        // The device of a virtio interface is one folder below the PCI device that knows its node.
        let device = Path::new("/sys/class/net").join(n).join("device");
        places.extend([device.join("numa_node"), device.join("../numa_node")]);
    }
    places.iter().find_map(|p| line(p)?.parse().ok())
}

/// Opens a card. libibverbs calls a device node that may not be opened "not found", so that is looked at before.
pub(crate) fn open(name: &str) -> Result<Arc<sys::Context>, String> {
    use rustix::fs::{Access, access};
    if let Some(node) = device_node(name)
        && let Err(e) = access(&node, Access::READ_OK | Access::WRITE_OK)
    {
        return Err(format!("no permission to open {name} ({}): {e}", node.display()));
    }
    sys::Context::open(name)
}

/// `/dev/infiniband/uverbsN` of a card, where that is its usual place.
fn device_node(name: &str) -> Option<PathBuf> {
    let all = std::fs::read_dir("/sys/class/infiniband_verbs").ok()?.flatten();
    let mut mine = all.filter(|d| line(d.path().join("ibdev")).as_deref() == Some(name));
    let node = Path::new("/dev/infiniband").join(mine.next()?.file_name());
    node.exists().then_some(node)
}

/// What stands in the way of using this port, if anything: tried by opening the card and registering a little memory.
pub(crate) fn obstacle(card: &Card) -> Option<String> {
    if !card.active() {
        return Some(format!("{} port {} is {}: is its link up?", card.name, card.port, card.state));
    }
    if card.gids.is_empty() {
        return Some(format!("{} port {} has no address (GID)", card.name, card.port));
    }
    let context = match open(&card.name) {
        Ok(c) => c,
        Err(why) => return Some(why),
    };
    let pd = match sys::Pd::new(&context) {
        Ok(pd) => pd,
        Err(e) => return Some(format!("{}: no protection domain: {e}", card.name)),
    };
    if let Some(why) = pd.room().lacks() {
        return Some(format!("{}: {why}", card.name));
    }
    sys::Slot::make(&pd, 1, PROBE_BYTES, None).err().map(|e| refusal(&pd, &card.name, PROBE_BYTES, &e))
}

/// Registered by the probe: less than any use of the card needs.
const PROBE_BYTES: usize = 256 << 10;

/// Explains a refused registration.
pub(crate) fn refusal(pd: &sys::Pd, card: &str, bytes: usize, e: &std::io::Error) -> String {
    let locked = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    room::refusal(pd.room(), card, bytes, e, locked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_sysfs() {
        assert_eq!(speed_of("10 Gb/sec (1X FDR10)"), Some(10_000));
        assert_eq!(speed_of("2.5 Gb/sec (1X SDR)"), Some(2_500));
        assert_eq!(speed_of(""), None);
        let g = |text: &str, v2| Gid { index: 0, bytes: gid_bytes(text).unwrap(), v2 };
        let v4 = g("0000:0000:0000:0000:0000:ffff:0a08:0001", true);
        assert_eq!(v4.ip().to_string(), "10.8.0.1");
        let mut all = [g("fe80::1", true), g("fd00::1", false), g("fd00::1", true), v4.clone()];
        all.sort_by_key(Gid::rank);
        assert_eq!(all[0], v4);
        assert!(all[1].v2 && !all[2].v2 && all[3].ip().to_string() == "fe80::1");
    }
}
