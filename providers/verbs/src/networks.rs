//! Which peers a card's port can lead to, by the networks of its address and of the other cards'. Called by `rail`, once a peer.
//!
//! An address in a network of ours is reached; one in a network of another card is that card's. About the rest nothing is known (there are
//! routers): it is tried. Addresses alone in their network (/32, /128) say nothing about neighbours.

use crate::device::Card;
use std::net::{IpAddr, SocketAddr};

/// A network that an interface is in: an address of it, and how many bits of that name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    ip: IpAddr,
    bits: u32,
}

impl Network {
    fn has(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= self.bits,
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= self.bits,
            _ => false,
        }
    }

    fn is_alone(&self) -> bool {
        self.bits == if self.ip.is_ipv4() { 32 } else { 128 }
    }
}

/// What is known when the port is opened.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    ours: Vec<Network>,
    others: Vec<Network>,
    link_local: bool,
}

impl Networks {
    /// For the port at this address, beside all the cards there are.
    pub(crate) fn around(at: IpAddr, cards: &[Card]) -> Networks {
        let interfaces: Vec<(String, Network)> =
            nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|i| network(&i)).collect();
        let cards: Vec<IpAddr> = cards.iter().flat_map(|c| &c.gids).map(|g| g.ip()).collect();
        Networks::of(at, &cards, &interfaces)
    }

    fn of(at: IpAddr, cards: &[IpAddr], interfaces: &[(String, Network)]) -> Networks {
        let link_local = is_link_local(at);
        let Some((mine, _)) = interfaces.iter().find(|(_, n)| n.ip == at) else {
            return Networks { link_local, ..Default::default() };
        };
        let telling = interfaces.iter().filter(|(_, n)| !n.is_alone() && !is_link_local(n.ip));
        let (ours, others): (Vec<_>, Vec<_>) = telling.partition(|(name, _)| name == mine);
        let all = |list: Vec<&(String, Network)>| list.iter().map(|(_, n)| *n).collect::<Vec<_>>();
        let others = all(others).into_iter().filter(|n| cards.contains(&n.ip)).collect();
        Networks { ours: all(ours), others, link_local }
    }

    /// Whether the port may lead to a way (its text, without the scheme).
    pub(crate) fn reach(&self, way: &str) -> bool {
        // What is no address is for `connect` to complain about.
        let Ok(to) = way.parse::<SocketAddr>() else { return true };
        if is_link_local(to.ip()) {
            return self.link_local;
        }
        let nearest = |all: &[Network]| all.iter().filter(|n| n.has(to.ip())).map(|n| n.bits).max();
        nearest(&self.ours) >= nearest(&self.others)
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

fn network(i: &nix::ifaddrs::InterfaceAddress) -> Option<(String, Network)> {
    let ip = |a: &Option<nix::sys::socket::SockaddrStorage>| crate::device::address(a.as_ref()?);
    let bits = match ip(&i.netmask)? {
        IpAddr::V4(m) => m.to_bits().leading_ones(),
        IpAddr::V6(m) => m.to_bits().leading_ones(),
    };
    Some((i.interface_name.clone(), Network { ip: ip(&i.address)?, bits }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(at: &str, cards: &[&str], interfaces: &[(&str, &str, u32)]) -> Networks {
        let interfaces: Vec<_> = interfaces
            .iter()
            .map(|(name, ip, bits)| (name.to_string(), Network { ip: ip.parse().unwrap(), bits: *bits }))
            .collect();
        let cards: Vec<IpAddr> = cards.iter().map(|c| c.parse().unwrap()).collect();
        Networks::of(at.parse().unwrap(), &cards, &interfaces)
    }

    #[test]
    fn a_port_reaches_its_own_networks_and_what_nobody_knows() {
        let n = networks(
            "10.8.0.1",
            &["10.8.0.1", "10.8.1.1"],
            &[("a", "10.8.0.1", 24), ("b", "10.8.1.1", 24), ("c", "192.168.0.1", 16), ("a", "fd00::1", 64)],
        );
        assert!(n.reach("10.8.0.9:7"), "its own");
        assert!(n.reach("[fd00::9]:7"), "its interface's");
        assert!(!n.reach("10.8.1.9:7"), "the other card's");
        assert!(n.reach("10.9.0.1:7"), "behind a router");
        assert!(n.reach("192.168.3.4:7"), "of an interface without a card");
        assert!(n.reach("nonsense"));
        assert!(!n.reach("[fe80::1]:7") && !n.reach("169.254.0.1:7"), "of some link");
    }

    #[test]
    fn the_smaller_network_counts() {
        let all = [("a", "10.0.0.1", 8), ("b", "10.8.1.1", 24)];
        let (wide, narrow) = (
            networks("10.0.0.1", &["10.0.0.1", "10.8.1.1"], &all),
            networks("10.8.1.1", &["10.0.0.1", "10.8.1.1"], &all),
        );
        assert!(!wide.reach("10.8.1.9:7") && narrow.reach("10.8.1.9:7"));
        assert!(wide.reach("10.7.0.1:7") && !narrow.reach("10.7.0.1:7"));
    }

    #[test]
    fn addresses_alone_in_their_network_say_nothing() {
        let all = [("a", "10.8.0.1", 32), ("b", "10.8.1.1", 32)];
        let n = networks("10.8.0.1", &["10.8.0.1", "10.8.1.1"], &all);
        assert!(n.reach("10.8.1.1:7") && n.reach("10.8.0.2:7"));
        let same = [("a", "10.8.0.1", 24), ("b", "10.8.0.2", 24)];
        let n = networks("10.8.0.1", &["10.8.0.1", "10.8.0.2"], &same);
        assert!(n.reach("10.8.0.3:7"), "two cards on one network");
        let n = networks("fe80::1", &[], &[("a", "fe80::1", 64)]);
        assert!(n.reach("[fe80::2]:7"));
    }
}
