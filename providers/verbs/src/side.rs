//! Sockets of the side channel: a TCP connection beside every queue pair, over the address that the card's GID is made of. It
//! carries the greeting and then, but for one byte at an end in good order, only silence: its own end tells of the peer's death.
//! Called by `connect` and `port`.
//!
//! Facts: tcp(7), socket(7), ip(7).

use kfab_core::{Error, Result};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

const BACKLOG: i32 = 4096;
/// A silent host is asked after this ...
const KEEPALIVE: Duration = Duration::from_secs(2);
/// ... this often, once a second.
const PROBES: u32 = 3;
/// Said by a port that ends a connection although it lives.
pub(crate) const PARTING: u8 = b'.';

fn tuned(to: SocketAddr) -> std::io::Result<Socket> {
    let s = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    tune(&s)?;
    Ok(s)
}

fn tune(s: &Socket) -> std::io::Result<()> {
    s.set_tcp_nodelay(true)?;
    let often =
        TcpKeepalive::new().with_time(KEEPALIVE).with_interval(Duration::from_secs(1)).with_retries(PROBES);
    s.set_tcp_keepalive(&often)
}

/// The listening socket and where it really listens.
pub(crate) fn listen(at: SocketAddr) -> Result<(OwnedFd, SocketAddr)> {
    let failed = |e| Error::os("open", format!("listen on {at}"), e);
    let s = Socket::new(Domain::for_address(at), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        .map_err(failed)?;
    s.set_reuse_address(true).map_err(failed)?;
    s.bind(&SockAddr::from(at)).map_err(failed)?;
    s.listen(BACKLOG).map_err(failed)?;
    let real = s.local_addr().map_err(failed)?.as_socket().unwrap_or(at);
    Ok((s.into(), real))
}

/// A connection under way, from the card's own address.
pub(crate) fn dial(from: SocketAddr, to: SocketAddr) -> std::io::Result<OwnedFd> {
    let s = tuned(to)?;
    if from.is_ipv4() == to.is_ipv4() {
        let mut from = from;
        from.set_port(0);
        s.bind(&SockAddr::from(from))?;
    }
    match s.connect(&SockAddr::from(to)) {
        Err(e) if Errno::from_io_error(&e) != Some(Errno::INPROGRESS) => Err(e),
        _ => Ok(s.into()),
    }
}

/// The next peer at the listener, if one waits.
pub(crate) fn accept(listener: &OwnedFd) -> std::io::Result<Option<OwnedFd>> {
    use rustix::net::{SocketFlags, accept_with};
    match accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(fd) => {
            let s = Socket::from(fd);
            tune(&s)?;
            Ok(Some(s.into()))
        }
        Err(Errno::AGAIN) => Ok(None),
        // The peer was gone before it was accepted.
        Err(Errno::CONNABORTED | Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The outcome of [`dial`], once the socket is writable.
pub(crate) fn dialed(fd: &OwnedFd) -> std::result::Result<(), Errno> {
    rustix::net::sockopt::socket_error(fd).and_then(|r| r)
}

/// Sends a few bytes whole; they always fit, unless the peer does not read.
pub(crate) fn say(fd: impl AsFd, bytes: &[u8]) -> std::result::Result<(), Errno> {
    let n = rustix::net::send(fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    if n == bytes.len() { Ok(()) } else { Err(Errno::AGAIN) }
}

/// Reads what is there: `Ok(0)` is the end.
pub(crate) fn hear(fd: impl AsFd, into: &mut [u8]) -> std::result::Result<usize, Errno> {
    rustix::net::recv(fd, into, RecvFlags::DONTWAIT).map(|(_, n)| n)
}
