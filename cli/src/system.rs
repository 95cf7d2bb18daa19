//! What the operating system grants: limits of the process, and features of the kernel that decide how fast the fabric can be.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

/// Descriptors below which nothing works.
const FD_MIN: u64 = 64;
/// Descriptors that a service with many peers wants.
const FD_WANTED: u64 = 4096;
/// Descriptors that we raise the limit to, where we may.
const FD_RAISED: u64 = 1 << 20;
/// Pinned memory that verbs want.
const MEMLOCK_WANTED: u64 = 64 << 20;

/// One thing that is so, and what to do if it should not be.
#[derive(Debug, Serialize)]
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    pub(crate) value: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

fn fact(name: &'static str, value: impl Into<String>, remedy: Option<&str>) -> Fact {
    Fact { name, value: value.into(), remedy: remedy.map(str::to_owned) }
}

/// Raises the soft limit of open files as far as the system lets us; an error if that is too few to start.
pub(crate) fn raise_fd_limit() -> crate::failure::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let most = now.maximum.unwrap_or(u64::MAX);
    if now.current.is_some_and(|c| c < FD_WANTED && c < most) {
        let wanted = Rlimit { current: Some(most.min(FD_RAISED)), maximum: now.maximum };
        // A refusal leaves the limit as it is, which is checked below.
        let _ = setrlimit(Resource::Nofile, wanted);
    }
    let have = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if have >= FD_MIN {
        return Ok(());
    }
    let what = format!("the limit on open files (RLIMIT_NOFILE) is {have}; kfab needs at least {FD_MIN}");
    Err(crate::failure::Failure::unavailable(what)
        .hint("raise it: `ulimit -n 4096`, or LimitNOFILE= in the service's unit"))
}

/// Everything worth knowing.
pub(crate) fn facts() -> Vec<Fact> {
    let mut all = vec![kernel(), open_files(), memlock(), membarrier(), pidfd(), memfd(), cma()];
    if let Some(f) = shm_size() {
        all.push(f);
    }
    all
}

fn kernel() -> Fact {
    let u = rustix::system::uname();
    fact("kernel", format!("{} {}", u.sysname().to_string_lossy(), u.release().to_string_lossy()), None)
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string())
}

fn open_files() -> Fact {
    let l = getrlimit(Resource::Nofile);
    let few = l.current.is_some_and(|c| c < FD_WANTED);
    let text = format!("{} (at most {})", shown(l.current), shown(l.maximum));
    fact("open files", text, few.then_some("a connection needs one or two: raise it with `ulimit -n 4096`"))
}

fn memlock() -> Fact {
    let l = getrlimit(Resource::Memlock);
    let few = l.current.is_some_and(|c| c < MEMLOCK_WANTED);
    let text = format!("{} B (at most {} B)", shown(l.current), shown(l.maximum));
    fact("locked memory", text, few.then_some("verbs pin their buffers: raise it with `ulimit -l unlimited`"))
}

fn membarrier() -> Fact {
    if kfab_core::sys::has_heavy_barrier() {
        return fact("membarrier", "yes: rings need no fence on the fast path", None);
    }
    fact(
        "membarrier",
        "no: every message over shared memory pays a fence",
        Some("Linux 4.16 or later, not filtered by seccomp"),
    )
}

fn pidfd() -> Fact {
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => fact("pidfd", "yes: a dead peer process is seen at once", None),
        Err(e) => fact("pidfd", format!("no ({e})"), Some("Linux 5.3 or later, not filtered by seccomp")),
    }
}

fn memfd() -> Fact {
    match kfab_core::sys::sealed_memfd("kfab-info", 4096, true) {
        Ok(_) => fact("memfd", "yes, with seals", None),
        Err(e) => fact("memfd", format!("no ({e}): shared memory cannot work"), Some("Linux 5.1 or later")),
    }
}

fn cma() -> Fact {
    use nix::sys::uio::{RemoteIoVec, process_vm_readv};
    let from = [7u8; 8];
    let mut to = [0u8; 8];
    let remote = [RemoteIoVec { base: from.as_ptr() as usize, len: from.len() }];
    let r = process_vm_readv(nix::unistd::Pid::this(), &mut [std::io::IoSliceMut::new(&mut to)], &remote);
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok();
    let scope = scope.as_deref().map(str::trim);
    match (r, scope) {
        (Err(e), _) => fact(
            "CMA",
            format!("no ({e}): adopted memory is copied"),
            Some("process_vm_readv is filtered (seccomp)"),
        ),
        (Ok(_), Some(s @ ("1" | "2" | "3"))) => fact(
            "CMA",
            format!("restricted by yama (ptrace_scope {s}): adopted memory is copied"),
            Some(
                "`sysctl kernel.yama.ptrace_scope=0`, or use the endpoint's own buffers, which need none of it",
            ),
        ),
        (Ok(_), _) => fact("CMA", "yes: adopted memory is read in one copy", None),
    }
}

/// How much memory memfds may take, where something bounds it.
fn shm_size() -> Option<Fact> {
    let text = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    let max = text.trim();
    (max != "max").then(|| fact("memory (cgroup)", format!("{max} B"), None))
}
