//! The socket options that no crate wraps: who is at the other end of a Unix socket (unix(7): SO_PEERCRED, SO_PEERPIDFD).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The process at the other end, as of connect or listen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerCred {
    /// 0 if that process is in a pid namespace that we cannot see into.
    pub(crate) pid: i32,
    pub(crate) uid: u32,
}

fn option<T: Copy>(fd: impl AsFd, name: libc::c_int, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `len` writable bytes, and `T` is plain integers (ucred, c_int), of which any bytes are a value.
    let rc = unsafe {
        let (fd, at) = (fd.as_fd().as_raw_fd(), (&raw mut value).cast());
        libc::getsockopt(fd, libc::SOL_SOCKET, name, at, &mut len)
    };
    match rc {
        0 if len as usize == size_of::<T>() => Ok(value),
        0 => Err(io::Error::other("a socket option of another size")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Who is at the other end of `fd`.
pub(crate) fn peer_cred(fd: impl AsFd) -> io::Result<PeerCred> {
    let c = option(fd, libc::SO_PEERCRED, libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX })?;
    Ok(PeerCred { pid: c.pid, uid: c.uid })
}

/// A descriptor of the process at the other end, readable once it is dead. From the socket where the kernel can (6.5), for
/// that cannot name another process; else by number.
pub(crate) fn peer_pidfd(fd: impl AsFd, pid: i32) -> io::Result<OwnedFd> {
    if let Ok(n) = option(&fd, libc::SO_PEERPIDFD, -1 as libc::c_int)
        && n >= 0
    {
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        return Ok(unsafe { OwnedFd::from_raw_fd(n) });
    }
    let pid =
        rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("a process we cannot see"))?;
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}
