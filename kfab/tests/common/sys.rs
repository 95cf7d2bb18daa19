//! What no safe crate offers to these tests: a network card of our own making (TAP), an allocator that counts, and a fork.

pub(crate) mod counting;
pub(crate) mod fork;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};
use std::fs::{File, OpenOptions};

/// `struct ifreq` as TUNSETIFF takes it: name, flags, padding (netdevice(7)).
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    pad: [u8; 22],
}

/// _IOW('T', 202, int), linux/if_tun.h.
const TUNSETIFF: Opcode = 0x4004_54ca;
/// IFF_TAP | IFF_NO_PI: whole Ethernet frames, nothing before them.
const TAP: u16 = 0x0002 | 0x1000;

/// Makes the card `name` in the network namespace of this process; it goes when the file is closed. Each read is a frame that the
/// kernel sends by it, each write one that it receives.
pub(crate) fn tap(name: &str) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = Request { name: [0; 16], flags: TAP, pad: [0; 22] };
    let n = name.len().min(15);
    request.name[..n].copy_from_slice(&name.as_bytes()[..n]);
    // SAFETY: TUNSETIFF takes a pointer to an ifreq (40 bytes, of which the kernel reads the name and the flags): `Request` is one.
    let done: Result<(), Errno> = unsafe { ioctl(&file, Setter::<TUNSETIFF, Request>::new(request)) };
    done?;
    Ok(file)
}
