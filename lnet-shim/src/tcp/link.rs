//! The network interface that an address is on: whether it has a carrier, and the NUMA node of its card.
//!
//! Facts: getifaddrs(3), netdevice(7) (`IFF_RUNNING`: resources allocated, so a carrier), /sys/class/net/NAME/device/numa_node.

use std::net::IpAddr;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

/// What is asked about the interface of an address.
pub(super) struct Link(IpAddr);

impl Link {
    /// `None` if the address is not an interface's own (most of 127.0.0.0/8): then there is nothing to look at.
    pub(super) fn of(ip: IpAddr) -> Option<Self> {
        entry(ip).flatten().map(|_| Self(ip))
    }

    /// Whether the address is there, and its interface has a carrier. What cannot be asked is taken for good.
    pub(super) fn is_up(&self) -> bool {
        let up = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        entry(self.0).is_none_or(|e| e.is_some_and(|i| i.flags.contains(up)))
    }
}

/// The NUMA node of the card that has this address; `None` for what is no card, or does not say.
pub(crate) fn numa_node(ip: IpAddr) -> Option<u32> {
    let name = entry(ip)??.interface_name;
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/device/numa_node")).ok()?;
    text.trim().parse().ok()
}

/// The entry of an address, if there is one; `None` if the system cannot say.
fn entry(ip: IpAddr) -> Option<Option<InterfaceAddress>> {
    let is = |i: &InterfaceAddress| {
        let address = i.address.as_ref();
        let v4 = address.and_then(|a| a.as_sockaddr_in()).map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.and_then(|a| a.as_sockaddr_in6()).map(|a| IpAddr::V6(a.ip()))) == Some(ip)
    };
    Some(getifaddrs().ok()?.find(is))
}
