//! Names: network identifiers (NIDs) of 8 and 20 bytes, networks, process ids.
//!
//! Used by every other module. A [`Nid`] is always held in its canonical 20-byte form, so equality, hashing and
//! order (which decides connection races) are those of the bytes; the 8-byte form is a conversion.

mod range;
mod text;

pub use range::NidList;
pub use text::ParseError;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The process id every LNet kernel uses.
pub const PID_LNET: u32 = 12345;
/// Matches any process id.
pub const PID_ANY: u32 = u32::MAX;
/// Set in the process id of a peer that came from an unprivileged port.
pub const PID_USERFLAG: u32 = 0x8000_0000;

/// A network type (which driver carries it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lnd(pub u8);

impl Lnd {
    /// TCP sockets.
    pub const TCP: Lnd = Lnd(2);
    /// InfiniBand verbs.
    pub const O2IB: Lnd = Lnd(5);
    /// Loopback inside a node.
    pub const LO: Lnd = Lnd(9);
    /// kfabric, and here: kfab.
    pub const KFI: Lnd = Lnd(16);
    /// AWS EFA.
    pub const EFA: Lnd = Lnd(18);
}

/// A network: a type and a number, `tcp1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Net {
    /// The type.
    pub lnd: Lnd,
    /// The number; 0 is not printed.
    pub number: u16,
}

impl Net {
    /// `tcp`, number 0.
    pub const TCP: Net = Net { lnd: Lnd::TCP, number: 0 };
    /// The loopback network.
    pub const LO: Net = Net { lnd: Lnd::LO, number: 0 };

    /// The network of `lnd` with `number`.
    pub const fn new(lnd: Lnd, number: u16) -> Self {
        Self { lnd, number }
    }

    /// The 32-bit form, type in the upper half.
    pub const fn to_u32(self) -> u32 {
        ((self.lnd.0 as u32) << 16) | self.number as u32
    }
}

/// A network identifier: the name of one interface of one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid([u8; 20]);

impl Nid {
    /// Matches every NID.
    pub const ANY: Nid = Nid([0xff; 20]);
    /// `0@lo`, the node itself.
    pub const LO: Nid = Nid([0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    /// A NID with a four-byte address.
    pub const fn small(net: Net, address: u32) -> Self {
        let n = net.number.to_be_bytes();
        let a = address.to_be_bytes();
        let mut raw = [0; 20];
        raw[1] = net.lnd.0;
        raw[2] = n[0];
        raw[3] = n[1];
        raw[4] = a[0];
        raw[5] = a[1];
        raw[6] = a[2];
        raw[7] = a[3];
        Self(raw)
    }

    /// A NID with a sixteen-byte address.
    pub fn large(net: Net, address: [u8; 16]) -> Self {
        let mut raw = Self::small(net, 0).0;
        raw[0] = 12;
        raw[4..].copy_from_slice(&address);
        Self(raw)
    }

    /// The NID of an IP address on `net`.
    pub fn from_ip(net: Net, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::small(net, v4.to_bits()),
            IpAddr::V6(v6) => Self::large(net, v6.octets()),
        }
    }

    /// From the 64-bit form; all ones is [`Nid::ANY`]. `None` if the top byte is set otherwise.
    pub fn from_nid4(nid4: u64) -> Option<Self> {
        if nid4 == u64::MAX {
            return Some(Self::ANY);
        }
        let mut raw = [0; 20];
        raw[..8].copy_from_slice(&nid4.to_be_bytes());
        (raw[0] == 0).then_some(Self(raw))
    }

    /// The 64-bit form, where the address has four bytes.
    pub fn to_nid4(self) -> Option<u64> {
        if self.is_any() {
            return Some(u64::MAX);
        }
        let head: [u8; 8] = self.0[..8].try_into().ok()?;
        (!self.is_large()).then(|| u64::from_be_bytes(head))
    }

    /// From the 20 bytes that travel. `None` if the size byte is neither 0 nor 12. The unused tail of a small NID is
    /// taken as zero and every spelling of ANY becomes [`Nid::ANY`].
    pub fn from_bytes(mut raw: [u8; 20]) -> Option<Self> {
        if raw[1] == 0xff {
            return Some(Self::ANY);
        }
        match raw[0] {
            0 => raw[8..].fill(0),
            12 => {}
            _ => return None,
        }
        Some(Self(raw))
    }

    /// The 20 bytes that travel.
    pub fn to_bytes(self) -> [u8; 20] {
        self.0
    }

    /// Whether this is [`Nid::ANY`].
    pub fn is_any(self) -> bool {
        self == Self::ANY
    }

    /// Whether this is a loopback NID.
    pub fn is_lo(self) -> bool {
        self.0[1] == Lnd::LO.0
    }

    /// Whether the address has sixteen bytes.
    pub fn is_large(self) -> bool {
        self.0[0] == 12
    }

    /// The network.
    pub fn net(self) -> Net {
        Net { lnd: Lnd(self.0[1]), number: u16::from_be_bytes([self.0[2], self.0[3]]) }
    }

    /// The four-byte address, where there is one.
    pub fn small_address(self) -> Option<u32> {
        (!self.is_large() && !self.is_any())
            .then(|| u32::from_be_bytes([self.0[4], self.0[5], self.0[6], self.0[7]]))
    }

    /// The IP address, on networks whose addresses are IP addresses.
    pub fn ip(self) -> Option<IpAddr> {
        match (text::form_of(self.net())?, self.small_address()) {
            (text::Form::Number, _) => None,
            (_, Some(v4)) => Some(IpAddr::V4(Ipv4Addr::from_bits(v4))),
            (text::Form::Ip { v6: true }, None) => {
                let octets: [u8; 16] = self.0[4..].try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(octets)))
            }
            _ => None,
        }
    }
}

/// One process on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId {
    /// The node's interface.
    pub nid: Nid,
    /// The process, [`PID_LNET`] for a kernel.
    pub pid: u32,
}

impl ProcessId {
    /// Matches every process.
    pub const ANY: ProcessId = ProcessId { nid: Nid::ANY, pid: PID_ANY };

    /// The LNet process at `nid`.
    pub const fn lnet(nid: Nid) -> Self {
        Self { nid, pid: PID_LNET }
    }

    /// Whether the peer came from an unprivileged port and cannot be dialled.
    pub fn is_userspace(self) -> bool {
        self.pid != PID_ANY && self.pid & PID_USERFLAG != 0
    }
}

#[cfg(test)]
mod tests;
