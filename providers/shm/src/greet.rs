//! From a socket to a connection: who is it, does it have the key, here is the memory. Non-blocking: [`Greeting::advance`] is
//! called when the socket has something (or, for a dial that found the backlog full, every few milliseconds).
//!
//! ```text
//! client                                  server
//!   user id of the listener                 user id of the client (before anything is read)
//!   Auth  ->                                                      with a key only
//!                                      <- Auth
//!   Hello + segment, doorbell, slots ->
//!                                      <- Welcome + doorbell, slots
//! ```

use crate::ctl::{self, Got};
use crate::mem::{Channel, FarSlots, SEGMENT_BYTES, Side};
use crate::sys::{PeerCred, peer_cred, peer_pidfd};
use crate::wire::{Denial, Msg, VERSION};
use kfab_core::auth::{FabricKey, Handshake};
use kfab_core::spi::DownReason;
use kfab_core::sys::{Mapping, has_heavy_barrier, map_foreign, sealed_memfd};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Why a connection ends.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) reason: DownReason,
    pub(crate) detail: String,
}

impl End {
    pub(crate) fn new(reason: DownReason, detail: impl Into<String>) -> End {
        End { reason, detail: detail.into() }
    }

    fn os(what: &str, e: impl std::fmt::Display) -> End {
        End::new(DownReason::Broken, format!("{what}: {e}"))
    }
}

/// What a greeting needs of its port.
pub(crate) struct Host<'a> {
    pub(crate) key: Option<&'a FabricKey>,
    pub(crate) doorbell: BorrowedFd<'a>,
    pub(crate) slots: BorrowedFd<'a>,
}

/// All that makes a connection.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) channel: Channel,
    pub(crate) doorbell: OwnedFd,
    pub(crate) slots: FarSlots,
    pub(crate) socket: OwnedFd,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pid: i32,
}

/// How far a greeting came.
pub(crate) enum Progress {
    /// Wait for the socket.
    Wait,
    /// The backlog is full: try again soon.
    Again,
    /// There is a socket now: watch it.
    Dialled,
    /// Done.
    Up(Box<Parts>),
}

enum Step {
    Dial(String),
    /// Client, with a key: the server's Auth is awaited.
    Prove(Box<Handshake>),
    /// Client: Welcome is awaited; our mapping of the segment.
    Offered(Mapping),
    /// Server: Auth is awaited, or Hello where there is no key.
    First,
    /// Server: proven; Hello is awaited.
    Proven,
}

/// A connection being made.
pub(crate) struct Greeting {
    step: Step,
    socket: Option<OwnedFd>,
}

fn garbage() -> End {
    End::new(DownReason::Hostile, "the peer's greeting makes no sense")
}

/// Same user, or out.
fn check_uid(fd: &OwnedFd) -> Result<PeerCred, End> {
    let cred = peer_cred(fd).map_err(|e| End::os("who is the peer", e))?;
    let ours = rustix::process::geteuid().as_raw();
    if cred.uid != ours {
        let why = format!("the peer has user id {}, this process has {ours}", cred.uid);
        return Err(End::new(DownReason::Denied, why));
    }
    Ok(cred)
}

/// A doorbell must be a non-blocking eventfd: writing to anything else might block us or have effects.
fn check_doorbell(fd: OwnedFd) -> Result<OwnedFd, End> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let is_eventfd = link.is_ok_and(|l| l.as_os_str() == "anon_inode:[eventfd]");
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| End::os("the peer's doorbell", e))?;
    if is_eventfd && flags.contains(rustix::fs::OFlags::NONBLOCK) {
        return Ok(fd);
    }
    Err(End::new(DownReason::Hostile, "the peer's doorbell is no non-blocking eventfd"))
}

impl Greeting {
    /// The side that connects; nothing is sent before [`Greeting::advance`].
    pub(crate) fn client(name: String) -> Greeting {
        Greeting { step: Step::Dial(name), socket: None }
    }

    /// The side that accepted.
    pub(crate) fn server(socket: OwnedFd) -> Result<Greeting, End> {
        check_uid(&socket)?;
        Ok(Greeting { step: Step::First, socket: Some(socket) })
    }

    /// The socket, once there is one.
    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// `true` while nothing has been dialled.
    pub(crate) fn is_dialling(&self) -> bool {
        matches!(self.step, Step::Dial(_))
    }

    fn is_server(&self) -> bool {
        matches!(self.step, Step::First | Step::Proven)
    }

    /// Goes as far as it can now. After an error the socket is to be closed; the peer has been told why where that helps.
    pub(crate) fn advance(&mut self, host: &Host<'_>) -> Result<Progress, End> {
        if let Step::Dial(name) = &self.step {
            let name = name.clone();
            return self.dial(&name, host);
        }
        let server = self.is_server();
        let went = self.receive(host);
        if let (true, Err(end), Some(s)) = (server, &went, &self.socket) {
            let denial = match end.reason {
                DownReason::Denied if end.detail.contains("version") => Denial::Version,
                DownReason::Denied => Denial::Auth,
                _ => Denial::Garbage,
            };
            let _ = ctl::send(s, &Msg::Deny(denial), &[]);
        }
        went
    }

    fn dial(&mut self, name: &str, host: &Host<'_>) -> Result<Progress, End> {
        let socket = match ctl::dial(name) {
            Ok(s) => s,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Progress::Again),
            Err(Errno::CONNREFUSED | Errno::NOENT) => {
                return Err(End::new(DownReason::Refused, format!("nobody listens on {name:?}")));
            }
            Err(e) => return Err(End::os("connect", e)),
        };
        check_uid(&socket)?;
        match host.key {
            Some(key) => {
                let mut h = Handshake::initiator(key).map_err(|e| End::os("handshake", e))?;
                let m = h.write().map_err(|e| End::os("handshake", e))?;
                ctl::send(&socket, &Msg::Auth(m), &[])
                    .map_err(|e| End::os("send the proof of the key", e))?;
                self.step = Step::Prove(Box::new(h));
            }
            None => self.step = Step::Offered(offer(&socket, host)?),
        }
        self.socket = Some(socket);
        Ok(Progress::Dialled)
    }

    fn receive(&mut self, host: &Host<'_>) -> Result<Progress, End> {
        // Three packets at most make a greeting.
        for _ in 0..4 {
            let Some(socket) = &self.socket else { return Err(garbage()) };
            let (msg, fds) = match ctl::recv(socket) {
                Got::Packet(Some(m), fds) => (m, fds),
                Got::Packet(None, _) => return Err(garbage()),
                Got::Nothing => return Ok(Progress::Wait),
                Got::End => return Err(End::new(DownReason::Broken, "the peer hung up while greeting")),
            };
            if let Some(up) = self.take(msg, fds, host)? {
                return Ok(up);
            }
        }
        Err(garbage())
    }

    fn take(&mut self, msg: Msg, fds: Vec<OwnedFd>, host: &Host<'_>) -> Result<Option<Progress>, End> {
        let Some(socket) = &self.socket else { return Err(garbage()) };
        let no_key = || End::new(DownReason::Denied, "the peer does not have this fabric's key");
        let step = std::mem::replace(&mut self.step, Step::First);
        match (step, msg) {
            (Step::First, Msg::Auth(m)) => {
                let key = host
                    .key
                    .ok_or_else(|| End::new(DownReason::Denied, "the peer has a key, this port has none"))?;
                let mut h = Handshake::responder(key).map_err(|e| End::os("handshake", e))?;
                h.read(&m).map_err(|_| no_key())?;
                let reply = h.write().map_err(|e| End::os("handshake", e))?;
                ctl::send(socket, &Msg::Auth(reply), &[]).map_err(|e| End::os("answer the proof", e))?;
                self.step = Step::Proven;
                Ok(None)
            }
            (Step::First, Msg::Hello { .. }) if host.key.is_some() => Err(no_key()),
            (Step::First | Step::Proven, Msg::Hello { version, asymmetric }) => {
                if version != VERSION {
                    let why = format!("the peer speaks version {version}, this port {VERSION}");
                    return Err(End::new(DownReason::Denied, why));
                }
                let [segment, doorbell, slots] = <[OwnedFd; 3]>::try_from(fds).map_err(|_| garbage())?;
                let map = map_foreign(&segment, true, SEGMENT_BYTES)
                    .map_err(|e| End::new(DownReason::Hostile, format!("the peer's segment: {e}")))?;
                let ours = has_heavy_barrier();
                let fds = [host.doorbell, host.slots];
                ctl::send(socket, &Msg::Welcome { asymmetric: ours }, &fds)
                    .map_err(|e| End::os("welcome", e))?;
                self.up(map, Side::Server, asymmetric && ours, doorbell, slots).map(Some)
            }
            (Step::Prove(mut h), Msg::Auth(m)) => {
                h.read(&m).map_err(|_| no_key())?;
                self.step = Step::Offered(offer(socket, host)?);
                Ok(None)
            }
            (Step::Offered(map), Msg::Welcome { asymmetric }) => {
                let [doorbell, slots] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| garbage())?;
                self.up(map, Side::Client, asymmetric && has_heavy_barrier(), doorbell, slots).map(Some)
            }
            (Step::Prove(_) | Step::Offered(_), Msg::Deny(d)) => Err(denied(d)),
            _ => Err(garbage()),
        }
    }

    fn up(
        &mut self,
        map: Mapping,
        side: Side,
        asymmetric: bool,
        doorbell: OwnedFd,
        slots: OwnedFd,
    ) -> Result<Progress, End> {
        let hostile =
            |e: std::io::Error| End::new(DownReason::Hostile, format!("the peer's slot table: {e}"));
        let doorbell = check_doorbell(doorbell)?;
        let slots = FarSlots::new(&slots).map_err(hostile)?;
        let channel = Channel::new(map, side, asymmetric)
            .ok_or_else(|| End::new(DownReason::Hostile, "the peer's segment has another size"))?;
        let socket = self.socket.take().ok_or_else(garbage)?;
        let cred = check_uid(&socket)?;
        let pidfd = peer_pidfd(&socket, cred.pid).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => End::new(DownReason::PeerDead, "the peer died while greeting"),
            _ => End::os("watch the peer's process", e),
        })?;
        Ok(Progress::Up(Box::new(Parts { channel, doorbell, slots, socket, pidfd, pid: cred.pid })))
    }
}

/// Makes a segment and sends it.
fn offer(socket: &OwnedFd, host: &Host<'_>) -> Result<Mapping, End> {
    let (fd, map) =
        sealed_memfd("kfab-segment", SEGMENT_BYTES, false).map_err(|e| End::os("make a segment", e))?;
    let hello = Msg::Hello { version: VERSION, asymmetric: has_heavy_barrier() };
    ctl::send(socket, &hello, &[fd.as_fd(), host.doorbell, host.slots]).map_err(|e| match e {
        Errno::PIPE | Errno::CONNRESET => End::new(DownReason::Broken, "the peer hung up while greeting"),
        e => End::os("send the segment", e),
    })?;
    Ok(map)
}

fn denied(d: Denial) -> End {
    match d {
        Denial::Auth => End::new(DownReason::Denied, "the peer refused us: fabric key or user id"),
        Denial::Version => End::new(DownReason::Denied, "the peer speaks another version"),
        Denial::Full => End::new(DownReason::Broken, "the peer has as many connections as it may"),
        Denial::Garbage => End::new(DownReason::Denied, "the peer did not understand our greeting"),
    }
}
