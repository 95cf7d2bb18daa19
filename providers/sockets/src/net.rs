//! Interfaces and sockets: which devices there are, how fast they are, where to listen, how to make a socket that leaves by
//! the right one. Called by `port` when it opens and connects, and by the provider's probe.
//!
//! Facts: tcp(7), ip(7), socket(7) SO_BINDTODEVICE, getifaddrs(3), /sys/class/net/NAME/speed (Mbit/s).

use kfab_core::{Error, Kind, Result};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Connections that may wait in the kernel to be accepted (cut to net.core.somaxconn).
pub(crate) const BACKLOG: i32 = 4096;
/// Weight of a rail whose speed is not known, Mbit/s.
pub(crate) const DEFAULT_SPEED: u32 = 1000;
/// Send buffer of a connection within this host, bytes; where `net.core.wmem_max` is less, that. Twice what Linux has always allowed
/// everyone, because memory that the receiver has just read is slow to write again: 1 MiB messages 5.5 to 6.4 GB/s. No more,
/// because it would wait for acknowledgements, and those arrive on the receiver's processor, which then sends: out of order with what the sender's own
/// processor sends meanwhile, and so partly twice. Also it stays in the cache. Between hosts the kernel sizes the buffer, as it
/// alone knows what is under way there. Streams on loopback: 0.4 to 0.9 of a bare one without, 1.2 to 1.9 with.
const LOCAL_SEND_BUFFER: usize = 416 << 10;
/// Congestion control within this host: the one that every kernel has and allows. There is no path to find the speed of, and
/// one that paces (bbr) settled on a third of it in every other run.
const LOCAL_CONGESTION: &[u8] = b"reno";
/// A connection to another host that is silent for this long is asked by the kernel whether it is still one, and again after
/// [`KEEP_AGAIN`]; without an answer to [`KEEP_TRIES`] it is broken. Who only waits for an answer learns no other way that a firewall or
/// a router has forgotten the connection, and must call again before the other side gives it up (`Limits::peer_timeout`, 5 s).
pub(crate) const KEEP_IDLE: Duration = Duration::from_secs(1);
pub(crate) const KEEP_AGAIN: Duration = Duration::from_secs(1);
pub(crate) const KEEP_TRIES: u32 = 2;
/// The most ways a port reports.
pub(crate) const WAYS_MAX: usize = 16;

/// A network interface that is up.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) loopback: bool,
    pub(crate) speed: Option<u32>,
    pub(crate) node: Option<u32>,
}

/// The interfaces that are up and have an address, fastest first, loopback last.
pub(crate) fn interfaces() -> std::io::Result<Vec<Interface>> {
    use nix::net::if_::InterfaceFlags;
    let mut out: Vec<Interface> = Vec::new();
    for i in nix::ifaddrs::getifaddrs()? {
        let addr = i.address.as_ref().and_then(|a| {
            let v4 = a.as_sockaddr_in().map(|a| SocketAddr::new(IpAddr::V4(a.ip()), 0));
            v4.or_else(|| {
                a.as_sockaddr_in6().map(|a| SocketAddr::V6(SocketAddrV6::new(a.ip(), 0, 0, a.scope_id())))
            })
        });
        let Some(addr) = addr.filter(|_| i.flags.contains(InterfaceFlags::IFF_UP)) else { continue };
        if let Some(known) = out.iter_mut().find(|k| k.name == i.interface_name) {
            known.addrs.push(addr);
            continue;
        }
        let number = |what: &str| -> Option<i64> {
            std::fs::read_to_string(format!("/sys/class/net/{}/{what}", i.interface_name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        out.push(Interface {
            speed: number("speed").and_then(|s| u32::try_from(s).ok()).filter(|s| (1..u32::MAX).contains(s)),
            node: number("device/numa_node").and_then(|n| u32::try_from(n).ok()),
            loopback: i.flags.contains(InterfaceFlags::IFF_LOOPBACK),
            name: i.interface_name,
            addrs: vec![addr],
        });
    }
    for i in &mut out {
        i.addrs.sort_by_key(|a| (a.is_ipv6(), is_link_local(a)));
    }
    out.sort_by_key(|i| (i.loopback, std::cmp::Reverse(i.speed)));
    Ok(out)
}

fn is_link_local(a: &SocketAddr) -> bool {
    matches!(a, SocketAddr::V6(a) if a.ip().is_unicast_link_local())
}

/// Where a port lives.
#[derive(Debug)]
pub(crate) struct Rail {
    /// Where it listens.
    pub(crate) local: SocketAddr,
    /// The device asked for by name.
    pub(crate) device: Option<String>,
    /// All addresses of this host when the port was opened.
    host: Vec<Interface>,
    /// Addresses of the device, to connect from.
    sources: Vec<SocketAddr>,
    pub(crate) speed: u32,
    pub(crate) node: Option<u32>,
}

fn bad(context: String) -> Error {
    Error::new(Kind::InvalidArgument, "open", context)
}

impl Rail {
    /// Decides where to listen; see [`PortConfig`](kfab_core::spi::PortConfig).
    pub(crate) fn new(listen: Option<&str>, device: Option<&str>) -> Result<Rail> {
        let host = interfaces().map_err(|e| Error::os("open", "list the interfaces", e))?;
        let mut local = match listen {
            Some(text) => parse(text).ok_or_else(|| bad(format!("{text:?} is not ADDRESS:PORT")))?,
            None => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        };
        let mut sources = Vec::new();
        let mut own = host.iter().find(|i| i.addrs.iter().any(|a| a.ip() == local.ip()));
        if let Some(name) = device {
            let i = host.iter().find(|i| i.name == name).ok_or_else(|| {
                let all: Vec<_> = host.iter().map(|i| i.name.as_str()).collect();
                let context = format!("no interface {name:?} that is up; there are {}", all.join(", "));
                Error::new(Kind::Unavailable, "open", context)
            })?;
            sources.clone_from(&i.addrs);
            if listen.is_none() || local.ip().is_unspecified() {
                let port = local.port();
                local = *i.addrs.first().ok_or_else(|| bad(format!("interface {name:?} has no address")))?;
                local.set_port(port);
            }
            own = Some(i);
        } else if !local.ip().is_unspecified() && !local.ip().is_loopback() {
            sources.push(local);
        }
        let fastest = host.iter().filter(|_| local.ip().is_unspecified()).find_map(|i| i.speed);
        let (speed, node) = (own.and_then(|i| i.speed).or(fastest), own.and_then(|i| i.node));
        let device = device.map(str::to_owned);
        let speed = speed.unwrap_or(DEFAULT_SPEED);
        Ok(Rail { local, device, sources, speed, node, host })
    }

    /// `true` for an address of this host.
    fn is_here(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        ip.is_loopback() || self.host.iter().flat_map(|i| &i.addrs).any(|a| a.ip() == ip)
    }

    /// Sets up a connection to or from `peer`. A refusal is no error: the kernel's own choice works too.
    fn tune(&self, s: SockRef<'_>, peer: IpAddr) {
        let _ = s.set_tcp_nodelay(true);
        if self.is_here(peer) {
            let _ = s.set_send_buffer_size(LOCAL_SEND_BUFFER);
            let _ = s.set_tcp_congestion(LOCAL_CONGESTION);
        } else {
            let keep = TcpKeepalive::new().with_time(KEEP_IDLE).with_interval(KEEP_AGAIN);
            let _ = s.set_tcp_keepalive(&keep.with_retries(KEEP_TRIES));
        }
    }

    /// Takes the next connection that waits at the listening socket.
    pub(crate) fn accept(&self, listener: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
        let (fd, peer) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
        let peer = peer.and_then(|p| SocketAddr::try_from(p).ok());
        self.tune(SockRef::from(&fd), peer.map_or(self.local.ip(), |p| p.ip()));
        Ok(fd)
    }

    /// The listening socket; [`Rail::local`] then has the real port.
    pub(crate) fn listen(&mut self) -> Result<OwnedFd> {
        let failed = |e| Error::os("open", format!("listen on {}", self.local), e);
        let s = Socket::new(Domain::for_address(self.local), Type::STREAM.nonblocking(), Some(Protocol::TCP))
            .map_err(failed)?;
        if self.local.is_ipv6() {
            s.set_only_v6(!self.local.ip().is_unspecified()).map_err(failed)?;
        }
        s.set_reuse_address(true).map_err(failed)?;
        s.bind(&SockAddr::from(self.local)).map_err(|e| match Errno::from_io_error(&e) {
            Some(Errno::ADDRNOTAVAIL) => {
                let why = format!("listen on {}: no interface of this host has that address", self.local);
                Error::new(Kind::Unavailable, "open", why)
            }
            _ => failed(e),
        })?;
        s.listen(BACKLOG).map_err(failed)?;
        let real = s.local_addr().map_err(failed)?.as_socket();
        self.local = real.ok_or_else(|| bad("the socket has no address".to_owned()))?;
        Ok(s.into())
    }

    /// How peers reach the listening socket: the wildcard stands for the addresses of the interfaces.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        if !self.local.ip().is_unspecified() {
            return vec![self.local];
        }
        let of = |loopback: bool| -> Vec<SocketAddr> {
            let some = self.host.iter().filter(|i| i.loopback == loopback).flat_map(|i| &i.addrs);
            some.filter(|a| !is_link_local(a) && (a.is_ipv4() || self.local.is_ipv6()))
                .map(|a| SocketAddr::new(a.ip(), self.local.port()))
                .take(WAYS_MAX)
                .collect()
        };
        let out = of(false);
        if out.is_empty() { of(true) } else { out }
    }

    /// A socket for connecting to `to`, bound to the rail, with the connection under way.
    pub(crate) fn connect(&self, to: SocketAddr) -> std::io::Result<OwnedFd> {
        let s = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        self.tune(SockRef::from(&s), to.ip());
        if let Some(device) = self.device.as_ref().filter(|_| !self.is_here(to.ip())) {
            // Not permitted to everyone: the source address below then chooses the rail where routing follows it.
            if let Err(e) = s.bind_device(Some(device.as_bytes())) {
                tracing::debug!(device, %e, "bind to device refused, binding to its address only");
            }
        }
        let link_local = is_link_local(&to);
        let fits = |a: &&SocketAddr| a.is_ipv4() == to.is_ipv4() && is_link_local(a) == link_local;
        if let Some(source) = self.sources.iter().find(fits).filter(|_| !to.ip().is_loopback()) {
            let mut source = *source;
            source.set_port(0);
            s.bind(&SockAddr::from(source))?;
        }
        match s.connect(&SockAddr::from(to)) {
            Err(e) if Errno::from_io_error(&e) != Some(Errno::INPROGRESS) => Err(e),
            _ => Ok(s.into()),
        }
    }
}

/// An address with a port, as text.
pub(crate) fn parse(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

/// What to do about an error of socket or accept.
pub(crate) fn explain(e: &std::io::Error) -> String {
    match Errno::from_io_error(e) {
        Some(Errno::MFILE) => format!("{e}: every connection needs a descriptor; raise `ulimit -n`"),
        Some(Errno::NFILE) => format!("{e}: raise the system's fs.file-max"),
        Some(Errno::ADDRNOTAVAIL) => format!("{e}: no free local port, or the rail's address is gone"),
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_the_default_and_the_wildcard_expands() {
        let mut r = Rail::new(None, None).unwrap();
        assert!(r.local.ip().is_loopback());
        let _s = r.listen().unwrap();
        assert_ne!(r.local.port(), 0);
        assert_eq!(r.addresses(), vec![r.local]);
        let mut r = Rail::new(Some("0.0.0.0:0"), None).unwrap();
        let _s = r.listen().unwrap();
        let all = r.addresses();
        assert!(
            !all.is_empty() && all.iter().all(|a| !a.ip().is_unspecified() && a.port() == r.local.port())
        );
    }

    #[test]
    fn a_device_gives_its_address_and_an_unknown_one_is_named() {
        let r = Rail::new(None, Some("lo")).unwrap();
        assert!(r.local.ip().is_loopback());
        let e = Rail::new(None, Some("nosuch0")).unwrap_err();
        assert!(
            e.kind() == Kind::Unavailable
                && e.to_string().contains("nosuch0")
                && e.to_string().contains("lo")
        );
        assert!(Rail::new(Some("localhost"), None).unwrap_err().to_string().contains("localhost"));
    }

    #[test]
    fn connections_within_the_host_are_told_from_those_that_leave_it() {
        let mut r = Rail::new(Some("[::]:0"), None).unwrap();
        let listener = r.listen().unwrap();
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(r.is_here(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"] {
            assert!(!r.is_here(ip.parse().unwrap()), "{ip}");
        }
        // The kernel doubles what is set, and may allow less.
        let size = |s: &OwnedFd| SockRef::from(s).send_buffer_size().unwrap();
        let most: usize =
            std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap().trim().parse().unwrap();
        let want = 2 * LOCAL_SEND_BUFFER.min(most);
        let a = r.connect(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), r.local.port())).unwrap();
        assert_eq!(size(&a), want);
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let b = loop {
            match r.accept(&listener) {
                Ok(b) => break b,
                Err(e) => assert!(e == Errno::AGAIN && std::time::Instant::now() < until, "{e}"),
            }
        };
        assert_eq!(size(&b), want);
        assert!(SockRef::from(&a).tcp_congestion().unwrap().starts_with(LOCAL_CONGESTION));
        assert!(SockRef::from(&a).tcp_nodelay().unwrap() && SockRef::from(&b).tcp_nodelay().unwrap());
        let mine = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        let before = mine.send_buffer_size().unwrap();
        r.tune(SockRef::from(&mine), "192.0.2.1".parse().unwrap());
        assert_eq!(mine.send_buffer_size().unwrap(), before);
        // Silence is asked about only where something can stand between the two.
        let there = SockRef::from(&mine);
        assert!(there.keepalive().unwrap() && !SockRef::from(&a).keepalive().unwrap());
        assert_eq!(
            (there.tcp_keepalive_time().unwrap(), there.tcp_keepalive_interval().unwrap()),
            (KEEP_IDLE, KEEP_AGAIN)
        );
        assert_eq!(there.tcp_keepalive_retries().unwrap(), KEEP_TRIES);
    }

    #[test]
    fn an_address_that_is_taken_or_not_ours_is_said_to_be() {
        let mut r = Rail::new(None, None).unwrap();
        let _s = r.listen().unwrap();
        let mut again = Rail::new(Some(&r.local.to_string()), None).unwrap();
        assert_eq!(again.listen().unwrap_err().kind(), Kind::AddressInUse);
        // Of the documentation's network: nobody's.
        let e = Rail::new(Some("192.0.2.1:0"), None).unwrap().listen().unwrap_err();
        assert!(e.kind() == Kind::Unavailable && e.to_string().contains("no interface"), "{e}");
    }
}
