//! One-sided access: what a key means, who maps what, how access is taken back.
//!
//! | key.region | memory | key.base | key.secret | served by |
//! |---|---|---|---|---|
//! | slot | a window | 0 | of the slot | memcpy, guarded by the slot ([`crate::mem::Far`]) |
//! | `SLAB` + region id | lent for one transfer, in a slab | offset in the region | of the region | memcpy |
//! | `FOREIGN` | lent for one transfer, adopted | address | 1 | process_vm_readv |
//!
//! Memory that is not mapped yet is asked for once by the control socket; operations wait for it ([`MAX_WAITING`]).

use crate::conns::State;
use crate::ctl;
use crate::greet::End;
use crate::link::{Link, MAX_WAITING, Waiting, landing_of};
use crate::mem::{self, Access};
use crate::port::ShmPort;
use crate::regions::secret;
use crate::sleep::is_gone;
use crate::wire::Msg;
use kfab_core::mem::{Access as RegionAccess, Landing, Region, Slice};
use kfab_core::spi::{Conn, DownReason, Event, Exposure, RemoteKey, Rights, Rma, RmaStarted, RmaToken};
use kfab_core::sys::{heavy_barrier, map_foreign};
use kfab_core::{Error, Kind, Result};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SLAB: u64 = 1 << 62;
const FOREIGN: u64 = 1 << 63;
/// The largest region of a peer that is mapped.
pub(crate) const MAX_REGION: usize = 1 << 44;
/// How long taking a window back waits for a peer in the middle of it. (A copy takes microseconds; a peer that takes longer was
/// stopped, or lies. The memory is then kept from reuse until that peer is gone.)
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

fn error(op: &'static str, access: Access, key: RemoteKey) -> Error {
    let (kind, what) = match access {
        Access::Denied => (Kind::AccessDenied, "no such window, or not with these rights"),
        Access::Range => (Kind::InvalidArgument, "outside the window"),
        Access::Unmapped | Access::Done => (Kind::Protocol, "the peer's memory is not what its key says"),
    };
    Error::new(kind, op, format!("{what} (region {:#x})", key.region))
}

/// Fetches with what is mapped.
#[inline]
pub(crate) fn read(link: &mut Link, key: RemoteKey, offset: u64, into: &mut Landing) -> Access {
    if key.region & SLAB == 0 {
        return link.far.read(&link.channel, key, offset, into);
    }
    match key.base.checked_add(offset) {
        Some(at) => link.far.read_region(key.region & !SLAB, at, into),
        None => Access::Range,
    }
}

/// Tries an operation with what is mapped.
fn attempt(link: &mut Link, rma: &mut Rma) -> Access {
    match rma {
        Rma::Read { landing, key, offset } => read(link, *key, *offset, landing),
        Rma::Write { source, key, offset } => link.far.write_slice(&link.channel, *key, *offset, source),
    }
}

fn key_of(rma: &Rma) -> RemoteKey {
    match rma {
        Rma::Read { key, .. } | Rma::Write { key, .. } => *key,
    }
}

impl ShmPort {
    pub(crate) fn expose_memory(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure> {
        let access = memory.region().access();
        if rights.contains(Rights::WRITE) && access != RegionAccess::PeersWrite {
            let why = "peers can be given the right to write window memory only";
            return Err(Error::new(Kind::InvalidArgument, "expose", why));
        }
        if rights.contains(Rights::TRANSFER) && !rights.contains(Rights::WRITE) {
            let key = match access {
                RegionAccess::Private => {
                    RemoteKey { region: FOREIGN, base: memory.as_ptr() as u64, secret: 1 }
                }
                _ => RemoteKey {
                    region: SLAB | memory.region().id(),
                    base: memory.offset() as u64,
                    secret: self.regions.secret_of(memory.region())?,
                },
            };
            return Ok(Exposure { key, id: u64::MAX });
        }
        if access == RegionAccess::Private {
            let why = "adopted memory cannot be mapped by peers: put it into a pool's buffer";
            return Err(Error::new(Kind::Unavailable, "expose", why));
        }
        let secret = secret()?;
        let slot = self.slots.insert(memory, rights, secret)?;
        let key = RemoteKey { region: u64::from(slot), base: 0, secret };
        Ok(Exposure { key, id: u64::from(slot) })
    }

    /// Takes a window back: no peer enters it any more, and those inside are waited for.
    pub(crate) fn revoke_memory(&mut self, exposure: Exposure) {
        let Ok(slot) = u32::try_from(exposure.id) else { return };
        if self.slots.get(slot, exposure.key.secret).is_none() {
            return;
        }
        self.slots.close(slot);
        // See `mem::far`: a peer that enters after this finds no secret; one that entered before says so.
        heavy_barrier();
        self.wait_for_peers(slot);
        self.slots.free(slot);
    }

    pub(crate) fn revoke_all(&mut self) {
        let open = self.slots.open();
        open.iter().for_each(|i| self.slots.close(*i));
        if !open.is_empty() {
            heavy_barrier();
        }
        for slot in open {
            self.wait_for_peers(slot);
            self.slots.free(slot);
        }
    }

    fn wait_for_peers(&mut self, slot: u32) {
        let mut late = Vec::new();
        for (conn, link) in self.conns.links() {
            if !wait_for(link, slot) {
                late.push(conn);
            }
        }
        let memory = |slots: &mem::Slots| slots.memory(slot).cloned();
        for link in &mut self.lingering {
            if !wait_for(link, slot) {
                link.quarantine.extend(memory(&self.slots));
            }
        }
        for conn in late {
            let kept = memory(&self.slots);
            if let Some(link) = self.conns.link(conn) {
                link.quarantine.extend(kept);
            }
            self.end(
                conn,
                End::new(DownReason::Broken, "the peer did not leave a window that was taken back"),
            );
        }
    }

    pub(crate) fn start_rma(&mut self, conn: Conn, mut rma: Rma, token: RmaToken) -> RmaStarted {
        let Some(link) = self.conns.link(conn).filter(|l| l.is_open()) else {
            return RmaStarted::Failed(
                landing_of(rma),
                Error::new(Kind::PeerLost, "rma", "the connection is not up"),
            );
        };
        if key_of(&rma).region & FOREIGN != 0 {
            return read_foreign(link, rma);
        }
        match attempt(link, &mut rma) {
            Access::Done => RmaStarted::Done(landing_of(rma)),
            Access::Unmapped => ask(link, rma, token),
            e => {
                let why = error("rma", e, key_of(&rma));
                RmaStarted::Failed(landing_of(rma), why)
            }
        }
    }

    /// A packet on the control socket of a connection that is up.
    pub(crate) fn request(
        &mut self,
        conn: Conn,
        msg: Option<Msg>,
        fds: Vec<OwnedFd>,
        events: &mut Vec<Event>,
    ) -> std::result::Result<(), End> {
        let hostile = |why: &str| End::new(DownReason::Hostile, why);
        match msg {
            Some(Msg::Ask { region, secret }) => {
                let found = self.asked_for(region, secret);
                let Some(link) = self.conns.link(conn) else { return Ok(()) };
                answer(link, region, secret, found)
            }
            Some(Msg::Grant { region, secret, id, writable }) => {
                let Some(link) = self.conns.link(conn) else { return Ok(()) };
                if !link.waiting.iter().any(|w| (w.region, w.secret) == (region, secret)) {
                    return Err(hostile("the peer sent memory that was not asked for"));
                }
                let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| hostile("a grant without memory"))?;
                let map = map_foreign(&fd, writable, MAX_REGION)
                    .map_err(|e| End::new(DownReason::Hostile, format!("the peer's memory: {e}")))?;
                link.far.add(id, writable, map);
                retry(link, region, secret, events);
                Ok(())
            }
            Some(Msg::Refuse { region, secret }) => {
                let Some(link) = self.conns.link(conn) else { return Ok(()) };
                retry(link, region, secret, events);
                Ok(())
            }
            Some(Msg::Forget { id }) => {
                if let Some(State::Up(link)) = self.conns.state(conn) {
                    link.far.forget(id);
                }
                Ok(())
            }
            _ => Err(hostile("a control message that makes no sense now")),
        }
    }

    /// The region that a key of ours stands for, and whether its holder may map it writable.
    fn asked_for(&mut self, region: u64, secret: u64) -> Option<(Arc<Region>, bool)> {
        if region & SLAB != 0 {
            return self.regions.get(region & !SLAB, secret).map(|r| (r, false));
        }
        let (memory, writable) = self.slots.get(u32::try_from(region).ok()?, secret)?;
        let region = memory.region().clone();
        // Listed, so that its holder is told when it is gone. That this key would open it as a slab too is known to nobody.
        self.regions.secret_of(&region).ok()?;
        Some((region, writable))
    }
}

/// Waits until the peer is not in `slot`, or dead; `false` if it stays too long.
fn wait_for(link: &Link, slot: u32) -> bool {
    if link.gone {
        return true;
    }
    let begun = Instant::now();
    let mut spins = 0u32;
    while link.channel.peer_is_in(slot) {
        spins += 1;
        if !spins.is_multiple_of(256) {
            std::hint::spin_loop();
            continue;
        }
        if is_gone(&link.socket, &link.pidfd) {
            return true;
        }
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

fn answer(
    link: &mut Link,
    region: u64,
    secret: u64,
    found: Option<(Arc<Region>, bool)>,
) -> std::result::Result<(), End> {
    let sent = match found.as_ref().and_then(|(r, w)| Some((r.id(), r.fd()?, *w))) {
        Some((id, fd, writable)) => {
            link.granted.insert(id);
            ctl::send(&link.socket, &Msg::Grant { region, secret, id, writable }, &[fd])
        }
        None => ctl::send(&link.socket, &Msg::Refuse { region, secret }, &[]),
    };
    match sent {
        // A peer that asks and does not read its answers, or is going: it will be seen to hang up.
        Ok(()) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
        Err(e) => Err(End::new(DownReason::Broken, format!("hand memory over: {e}"))),
    }
}

fn ask(link: &mut Link, rma: Rma, token: RmaToken) -> RmaStarted {
    let RemoteKey { region, secret, .. } = key_of(&rma);
    let fail = |rma, kind, why: String| RmaStarted::Failed(landing_of(rma), Error::new(kind, "rma", why));
    if link.waiting.len() >= MAX_WAITING {
        return fail(rma, Kind::Limit, format!("{MAX_WAITING} operations wait for the peer's memory"));
    }
    let asked = link.waiting.iter().any(|w| (w.region, w.secret) == (region, secret));
    if !asked && let Err(e) = ctl::send(&link.socket, &Msg::Ask { region, secret }, &[]) {
        return fail(rma, Kind::PeerLost, format!("ask for the peer's memory: {e}"));
    }
    link.waiting.push(Waiting { region, secret, rma, token });
    RmaStarted::Pending
}

/// Ends the operations that waited for an answer: with the memory there, or not.
fn retry(link: &mut Link, region: u64, secret: u64, events: &mut Vec<Event>) {
    let (now, later): (Vec<_>, Vec<_>) =
        std::mem::take(&mut link.waiting).into_iter().partition(|w| (w.region, w.secret) == (region, secret));
    link.waiting = later;
    for mut w in now {
        let result = match attempt(link, &mut w.rma) {
            Access::Done => Ok(()),
            // Refused, or it came without the rights its slot claims.
            Access::Unmapped => Err(error("rma", Access::Denied, key_of(&w.rma))),
            e => Err(error("rma", e, key_of(&w.rma))),
        };
        events.push(Event::RmaDone { token: w.token, landing: landing_of(w.rma), result });
    }
}

/// Memory that its owner adopted: by the kernel, where it allows that.
fn read_foreign(link: &mut Link, rma: Rma) -> RmaStarted {
    let no = |l, why: String| RmaStarted::Failed(l, Error::new(Kind::Unavailable, "rma", why));
    let (mut landing, key, offset) = match rma {
        Rma::Read { landing, key, offset } => (landing, key, offset),
        Rma::Write { .. } => return no(None, "adopted memory cannot be written".to_owned()),
    };
    if link.cma == Some(false) || link.pid <= 0 {
        return no(Some(landing), "process_vm_readv is not permitted here".to_owned());
    }
    match mem::read_process(link.pid, key.base.wrapping_add(offset), &mut landing) {
        // The number may have a new bearer if the peer died: what was read is its memory only if it still lives.
        Ok(()) if !is_gone(&link.socket, &link.pidfd) => {
            link.cma = Some(true);
            RmaStarted::Done(Some(landing))
        }
        Ok(()) => no(Some(landing), "the peer is gone".to_owned()),
        Err(e) => {
            if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) {
                link.cma = Some(false);
            }
            no(Some(landing), format!("process_vm_readv: {e}"))
        }
    }
}
