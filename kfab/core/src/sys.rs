//! The system calls that want `unsafe`, each wrapped once: mappings, the asymmetric barrier, cross-process copies.
//!
//! Facts: membarrier(2), process_vm_readv(2), memfd_create(2), fcntl(2) F_ADD_SEALS.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{Ordering, compiler_fence, fence};

/// A shared or private mapping, unmapped on drop. Plain memory: whoever reads or writes it through [`Mapping::ptr`] answers for it.
#[derive(Debug)]
pub struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is an address range owned by this value; it has no thread affinity.
unsafe impl Send for Mapping {}
// SAFETY: as above; the value itself gives out only a raw pointer.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd`; `writable` asks for write access too.
    pub fn shared(fd: impl AsFd, len: usize, writable: bool) -> io::Result<Mapping> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a null hint lets the kernel choose a free range, so no existing mapping is replaced.
        let p = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, fd, 0) }?;
        let ptr = NonNull::new(p.cast()).ok_or_else(|| io::Error::other("mmap gave a null pointer"))?;
        Ok(Mapping { ptr, len })
    }

    /// The first byte.
    pub fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// `true` for an empty mapping.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks the kernel to place the pages on a NUMA node (mbind, preferred). Refusal is returned, not hidden.
    pub fn bind_to_node(&self, node: u32) -> io::Result<()> {
        const MPOL_PREFERRED: libc::c_long = 1;
        let mut mask = [0u64; 16];
        let word =
            mask.get_mut(node as usize / 64).ok_or_else(|| io::Error::other("node number above 1023"))?;
        *word |= 1 << (node % 64);
        // SAFETY: the range is this mapping; the mask outlives the call and its bit length is given.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.ptr.as_ptr(),
                self.len,
                MPOL_PREFERRED,
                mask.as_ptr(),
                1024usize,
                0u32,
            )
        };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `shared` and is unmapped once, here; users of the pointer keep the value alive.
        let _ = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// A sealed memfd of `len` bytes: it can neither shrink nor grow, so a mapping of it never faults. With `read_only_peers`
/// later mappings (a peer's) cannot be writable, whereas `Mapping`s made before sealing stay so; hence it returns both.
pub fn sealed_memfd(name: &str, len: usize, read_only_peers: bool) -> io::Result<(OwnedFd, Mapping)> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&fd, len as u64)?;
    let map = Mapping::shared(&fd, len, true)?;
    let mut seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    if read_only_peers {
        seals |= SealFlags::FUTURE_WRITE;
    }
    fcntl_add_seals(&fd, seals)?;
    Ok((fd, map))
}

/// Maps a memfd received from a peer, after checking that the peer cannot shrink it under us. The length is the file's own, at most `max`.
pub fn map_foreign(fd: &OwnedFd, writable: bool, max: usize) -> io::Result<Mapping> {
    use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
    if !fcntl_get_seals(fd)?.contains(SealFlags::SHRINK) {
        return Err(io::Error::other("the peer's memory is not sealed against shrinking"));
    }
    let len = usize::try_from(fstat(fd)?.st_size).map_err(|_| io::Error::other("negative size"))?;
    if len == 0 || len > max {
        return Err(io::Error::other(format!(
            "the peer's memory is {len} bytes; between 1 and {max} are accepted"
        )));
    }
    Mapping::shared(fd, len, writable)
}

const MEMBARRIER_GLOBAL_EXPEDITED: libc::c_int = 1 << 1;
const MEMBARRIER_REGISTER_GLOBAL_EXPEDITED: libc::c_int = 1 << 2;

fn membarrier(cmd: libc::c_int) -> bool {
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    unsafe { libc::syscall(libc::SYS_membarrier, cmd, 0, 0) == 0 }
}

/// `true` if this process takes part in the asymmetric barrier. Both sides of a shared ring exchange this at the handshake.
pub fn has_heavy_barrier() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        membarrier(MEMBARRIER_REGISTER_GLOBAL_EXPEDITED) && membarrier(MEMBARRIER_GLOBAL_EXPEDITED)
    })
}

/// The cheap half of a store-load barrier, paired with [`heavy_barrier`] in another process: free where `asymmetric`
/// (both processes registered with membarrier), a full fence where not.
#[inline(always)]
pub fn light_barrier(asymmetric: bool) {
    if asymmetric { compiler_fence(Ordering::SeqCst) } else { fence(Ordering::SeqCst) }
}

/// The dear half: every running thread of every registered process has passed a full fence when this returns.
pub fn heavy_barrier() {
    fence(Ordering::SeqCst);
    if has_heavy_barrier() {
        membarrier(MEMBARRIER_GLOBAL_EXPEDITED);
    }
}

/// Copies `dst.len()` bytes from address `src` of process `pid` (CMA). Needs ptrace rights over it; refusal is an error.
///
/// # Safety
/// `dst..dst+len` must be writable memory that nothing else accesses during the call.
pub unsafe fn process_read(pid: i32, src: u64, dst: *mut u8, len: usize) -> io::Result<usize> {
    let local = libc::iovec { iov_base: dst.cast(), iov_len: len };
    let remote = libc::iovec { iov_base: src as *mut libc::c_void, iov_len: len };
    // SAFETY: `local` names memory the caller vouches for; `remote` is only interpreted in the other process, by the kernel.
    let n = unsafe { libc::process_vm_readv(pid, &local, 1, &remote, 1, 0) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Receives from a socket or pipe straight into raw memory.
///
/// # Safety
/// `dst..dst+len` must be writable memory that nothing else in this process accesses during the call.
pub unsafe fn read_raw(fd: impl AsFd, dst: *mut u8, len: usize) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    // SAFETY: the caller vouches for the range; the kernel writes at most `len` bytes.
    let n = unsafe { libc::read(fd.as_fd().as_raw_fd(), dst.cast(), len) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// The same behind `head`, which is filled first, in one call.
///
/// # Safety
/// As for [`read_raw`].
pub unsafe fn read_raw_behind(fd: impl AsFd, head: &mut [u8], dst: *mut u8, len: usize) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let parts = [
        libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() },
        libc::iovec { iov_base: dst.cast(), iov_len: len },
    ];
    // SAFETY: `head` is ours for the call and the caller vouches for the range; the kernel writes within the two parts.
    let n = unsafe { libc::readv(fd.as_fd().as_raw_fd(), parts.as_ptr(), 2) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_memfd_cannot_be_shrunk_nor_mapped_writable_by_a_peer() {
        let (fd, map) = sealed_memfd("t", 8192, true).unwrap();
        assert_eq!(map.len(), 8192);
        assert!(rustix::fs::ftruncate(&fd, 4096).is_err());
        assert!(map_foreign(&fd, true, 1 << 20).is_err());
        let peer = map_foreign(&fd, false, 1 << 20).unwrap();
        // SAFETY: both mappings are live; this test is the only user of the page.
        unsafe {
            map.ptr().as_ptr().write_volatile(42);
            assert_eq!(peer.ptr().as_ptr().read_volatile(), 42);
        }
    }

    #[test]
    fn an_unsealed_or_huge_memfd_of_a_peer_is_refused() {
        let fd = rustix::fs::memfd_create("t", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(map_foreign(&fd, false, 1 << 20).unwrap_err().to_string().contains("sealed"));
        let (fd, _m) = sealed_memfd("t", 8192, true).unwrap();
        assert!(map_foreign(&fd, false, 4096).unwrap_err().to_string().contains("8192"));
    }

    #[test]
    fn barriers_can_be_called() {
        heavy_barrier();
        light_barrier(has_heavy_barrier());
    }
}
