//! The control socket: an abstract `SOCK_SEQPACKET` (unix(7)), non-blocking, whose packets may carry descriptors.

use crate::wire::{MAX_MSG, Msg};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Connections that wait to be accepted.
pub(crate) const BACKLOG: i32 = 256;
/// The most descriptors beside one packet.
pub(crate) const MAX_FDS: usize = 3;

/// What came in.
#[derive(Debug)]
pub(crate) enum Got {
    /// A packet and its descriptors. `None`: not one of ours.
    Packet(Option<Msg>, Vec<OwnedFd>),
    /// Nothing now.
    Nothing,
    /// The other end is closed.
    End,
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Listens on an abstract name. `ADDRINUSE` if somebody does.
pub(crate) fn listener(name: &str) -> rustix::io::Result<OwnedFd> {
    let fd = socket()?;
    bind(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    listen(&fd, BACKLOG)?;
    Ok(fd)
}

/// Connects to an abstract name. `AGAIN` if the listener's backlog is full, `CONNREFUSED` if nobody listens.
pub(crate) fn dial(name: &str) -> rustix::io::Result<OwnedFd> {
    let fd = socket()?;
    connect(&fd, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(fd)
}

/// The next connection.
pub(crate) fn accept(listener: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// Sends a packet, whole or not at all.
pub(crate) fn send(fd: &OwnedFd, msg: &Msg, fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let bytes = msg.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(fd, &[IoSlice::new(&bytes)], &mut control, flags).map(drop)
}

/// Receives a packet. Descriptors beyond [`MAX_FDS`] are closed by the kernel.
pub(crate) fn recv(fd: &OwnedFd) -> Got {
    let mut bytes = [0; MAX_MSG];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let got = recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
    let mut fds = Vec::new();
    for m in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = m {
            fds.extend(more);
        }
    }
    match got {
        Ok(m) if m.bytes == 0 => Got::End,
        Ok(m) => Got::Packet(bytes.get(..m.bytes).and_then(Msg::parse), fds),
        Err(Errno::AGAIN | Errno::INTR) => Got::Nothing,
        Err(_) => Got::End,
    }
}
