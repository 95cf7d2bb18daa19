//! A fork: the child goes on with all that the parent has, but for its threads.

use rustix::process::Pid;

/// `None` in the child, which ends by [`leave`].
pub(crate) fn fork() -> Option<Pid> {
    // SAFETY: the C library's fork, which makes its own locks whole in the child. A child of several threads may find a lock of others
    // taken for ever: the parent has a limit of time.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    Pid::from_raw(pid)
}

/// Ends the child, with nothing that an end does otherwise.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: it takes a number and does not return.
    unsafe { libc::_exit(code) }
}
