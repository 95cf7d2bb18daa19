//! Sockets and the one thread that runs a [`Machine`].
//!
//! The thread sleeps in epoll; callers of [`Network::submit`] write to sockets inline under the same lock and leave to the
//! thread what the kernel does not take at once. Upcalls are made with the lock released.

use std::collections::HashMap;
use std::io::{ErrorKind as IoKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::Time;
use super::link::Link;
use super::machine::{Action, ConnId, DialError, Machine};
use super::params::{SourcePorts, TcpParams};
use crate::error::{Error, ErrorKind, Result};
use crate::network::{Command, ConnectionInfo, Network, Upcall, Upper};
use crate::nid::{Nid, ProcessId};

const TOKEN_WAKE: u64 = u64::MAX;
/// Of the first listener; the second has the one below.
const TOKEN_LISTEN: u64 = u64::MAX - 1;
/// Listeners of one interface at most: for the two ports that peers dial.
const MAX_LISTENERS: usize = 2;
/// Bytes read from one connection before others get a turn.
const READ_TURN: usize = 1 << 20;
const READ_CHUNK: usize = 256 << 10;
/// How long no connections are accepted after the system could not give one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How often the interface is looked at.
const LINK_CHECK: Duration = Duration::from_secs(1);
/// The longest sleep of the thread.
const MAX_SLEEP: Duration = Duration::from_millis(250);

/// A tcp network: one interface with its acceptor, connections and thread.
pub struct TcpNetwork {
    shared: Arc<Shared>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    local: SocketAddr,
}

struct Shared {
    nid: Nid,
    inner: Mutex<Inner>,
    epoll: OwnedFd,
    wake: OwnedFd,
    stop: AtomicBool,
    start: Instant,
}

struct Inner {
    machine: Machine,
    sockets: HashMap<ConnId, Connection>,
    listeners: Vec<TcpListener>,
    source_ports: SourcePorts,
    source_ip: IpAddr,
    /// The system could not give us a connection (descriptors, memory): not before then again.
    accept_pause: Option<Time>,
}

struct Connection {
    stream: TcpStream,
    connecting: bool,
    writing: bool,
    interest: epoll::EventFlags,
}

impl TcpNetwork {
    /// Listens on the address of `me`, at both ports if they are two, and starts the thread. `upper` gets the upcalls.
    ///
    /// # Errors
    /// `Denied` if the port is privileged and the process is not, with words on what to do; `Io` if it is taken.
    pub fn start(params: TcpParams, me: ProcessId, incarnation: u64, upper: Weak<dyn Upper>) -> Result<Self> {
        let ip = me.nid.ip().ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "tcp", format!("{} has no IP address to listen on", me.nid))
        })?;
        if params.source_ports == SourcePorts::Privileged {
            check_privileged(ip)?;
        }
        let mut listeners = vec![listen(SocketAddr::new(ip, params.port))?];
        if params.bulk_port != params.port {
            listeners.push(listen(SocketAddr::new(ip, params.bulk_port))?);
        }
        let failed = |e: std::io::Error| Error::io("tcp", "setting up epoll", e);
        let local = listeners[0].local_addr().map_err(failed)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|e| failed(e.into()))?;
        let readable = epoll::EventFlags::IN;
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(TOKEN_WAKE), readable)
            .map_err(|e| failed(e.into()))?;
        for (i, listener) in listeners.iter().enumerate() {
            epoll::add(&epoll, listener, listen_token(i), readable).map_err(|e| failed(e.into()))?;
        }
        let source_ports = params.source_ports;
        let machine = Machine::new(params, me, incarnation);
        let inner = Inner {
            machine,
            sockets: HashMap::new(),
            listeners,
            source_ports,
            source_ip: ip,
            accept_pause: None,
        };
        let shared = Arc::new(Shared {
            nid: me.nid,
            inner: Mutex::new(inner),
            epoll,
            wake,
            stop: AtomicBool::new(false),
            start: Instant::now(),
        });
        let runner = shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("lnet-{}", me.nid))
            .spawn(move || runner.run(&upper))
            .map_err(|e| Error::io("tcp", "starting the thread", e))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)), local })
    }

    /// Where the acceptor listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Network for TcpNetwork {
    fn nid(&self) -> Nid {
        self.shared.nid
    }

    fn submit(&self, commands: Vec<Command>, upcalls: &mut Vec<Upcall>) {
        let now = self.shared.now();
        let mut inner = self.shared.lock();
        for command in commands {
            inner.machine.command(now, command);
        }
        self.shared.pump(&mut inner, now, upcalls);
    }

    fn shutdown(&self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last owner may be the thread itself, inside an upcall.
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }

    fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared.lock().machine.connections()
    }
}

impl Drop for TcpNetwork {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn now(&self) -> Time {
        self.start.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn run(&self, upper: &Weak<dyn Upper>) {
        let mut events = Vec::with_capacity(256);
        let mut scratch = vec![0; READ_CHUNK];
        let mut watch = Watch { link: Link::of(self.lock().source_ip), up: true, next: Time::ZERO };
        while !self.stop.load(Ordering::Acquire) {
            events.clear();
            let sleep = self.sleep();
            let timeout = Timespec { tv_sec: 0, tv_nsec: sleep.subsec_nanos().into() };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return tracing::error!(%error, "epoll"),
            }
            let mut upcalls = Vec::new();
            let mut inner = self.lock();
            let now = self.now();
            for event in &events {
                match event.data.u64() {
                    TOKEN_WAKE => drop(rustix::io::read(&self.wake, &mut [0; 8])),
                    token if token > TOKEN_LISTEN - MAX_LISTENERS as u64 => {
                        self.accept(&mut inner, (TOKEN_LISTEN - token) as usize, now);
                    }
                    id => self.ready(&mut inner, now, ConnId(id), event.flags, &mut scratch),
                }
            }
            inner.machine.handle_timeout(now);
            if inner.accept_pause.is_some_and(|t| t <= now) {
                inner.accept_pause = None;
                self.listen(&inner, true);
            }
            self.pump(&mut inner, now, &mut upcalls);
            drop(inner);
            upcalls.extend(watch.look(now));
            let Some(upper) = upper.upgrade() else { return };
            if !upcalls.is_empty() {
                upper.upcalls(self.nid, upcalls);
            }
        }
        self.lock().sockets.clear();
    }

    fn sleep(&self) -> Duration {
        let next = self.lock().machine.next_timeout();
        next.map_or(MAX_SLEEP, |t| t.saturating_sub(self.now()).clamp(Duration::from_millis(1), MAX_SLEEP))
    }

    fn accept(&self, inner: &mut Inner, at: usize, now: Time) {
        for _ in 0..64 {
            let Some(listener) = inner.listeners.get(at) else { return };
            let (stream, remote) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(e) if matches!(e.kind(), IoKind::WouldBlock | IoKind::ConnectionAborted) => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept; pausing");
                    inner.accept_pause = Some(now + ACCEPT_PAUSE);
                    return self.listen(inner, false);
                }
            };
            let socket = Socket::from(stream);
            let Some(id) = inner.machine.accepted(now, remote) else {
                // A reset, not an orderly end: as LNet does to insecure ports.
                let _ = socket.set_linger(Some(Duration::ZERO));
                continue;
            };
            if configure(&socket).is_err() || self.add(inner, id, socket.into(), false).is_err() {
                inner.machine.closed(now, id);
            }
        }
    }

    fn listen(&self, inner: &Inner, on: bool) {
        let interest = if on { epoll::EventFlags::IN } else { epoll::EventFlags::empty() };
        for (i, listener) in inner.listeners.iter().enumerate() {
            let _ = epoll::modify(&self.epoll, listener, listen_token(i), interest);
        }
    }

    fn add(&self, inner: &mut Inner, id: ConnId, stream: TcpStream, connecting: bool) -> std::io::Result<()> {
        let interest = if connecting { epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
        epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(id.0), interest)?;
        inner.sockets.insert(id, Connection { stream, connecting, writing: false, interest });
        Ok(())
    }

    fn ready(&self, inner: &mut Inner, now: Time, id: ConnId, flags: epoll::EventFlags, scratch: &mut [u8]) {
        let Some(c) = inner.sockets.get_mut(&id) else { return };
        if c.connecting {
            let result = match c.stream.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(e)) | Err(e) => Err(dial_error(&e)),
            };
            c.connecting = false;
            inner.machine.connected(now, id, result);
            return self.update_interest(inner, id);
        }
        let hung = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if hung && !inner.machine.wants_read(id) {
            // Epoll would report this for ever; what has not been read is lost with the peer.
            return inner.machine.closed(now, id);
        }
        if flags.intersects(epoll::EventFlags::OUT) {
            self.write(inner, now, id);
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            self.read(inner, now, id, scratch);
        }
    }

    fn read(&self, inner: &mut Inner, now: Time, id: ConnId, scratch: &mut [u8]) {
        let mut total = 0;
        while total < READ_TURN && inner.machine.wants_read(id) {
            let Some(c) = inner.sockets.get_mut(&id) else { return };
            match c.stream.read(scratch) {
                Ok(0) => return inner.machine.closed(now, id),
                Ok(n) => {
                    inner.machine.received(now, id, &scratch[..n]);
                    total += n;
                    if n < scratch.len() {
                        return;
                    }
                }
                Err(e) if e.kind() == IoKind::WouldBlock => return,
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(_) => return inner.machine.closed(now, id),
            }
        }
    }

    fn write(&self, inner: &mut Inner, now: Time, id: ConnId) {
        loop {
            let Some(c) = inner.sockets.get_mut(&id).filter(|c| !c.connecting) else { return };
            let bytes = inner.machine.outgoing(id);
            if bytes.is_empty() {
                c.writing = false;
                break;
            }
            match c.stream.write(bytes) {
                Ok(n) => inner.machine.wrote(now, id, n),
                Err(e) if e.kind() == IoKind::Interrupted => {}
                Err(e) if e.kind() == IoKind::WouldBlock => {
                    c.writing = true;
                    break;
                }
                Err(_) => return inner.machine.closed(now, id),
            }
        }
        self.update_interest(inner, id);
    }

    fn update_interest(&self, inner: &mut Inner, id: ConnId) {
        let reading = inner.machine.wants_read(id);
        let Some(c) = inner.sockets.get_mut(&id).filter(|c| !c.connecting) else { return };
        let mut interest = epoll::EventFlags::empty();
        interest.set(epoll::EventFlags::IN, reading);
        interest.set(epoll::EventFlags::OUT, c.writing);
        if interest != c.interest {
            c.interest = interest;
            let _ = epoll::modify(&self.epoll, &c.stream, epoll::EventData::new_u64(id.0), interest);
        }
    }

    /// Does what the machine wants, until it wants nothing more.
    fn pump(&self, inner: &mut Inner, now: Time, upcalls: &mut Vec<Upcall>) {
        while let Some(action) = inner.machine.poll() {
            match action {
                Action::Dial { conn, to } => self.dial(inner, now, conn, to),
                Action::Close { conn } => drop(inner.sockets.remove(&conn)),
                Action::Flush { conn } => self.write(inner, now, conn),
                Action::ReadInterest { conn } => self.update_interest(inner, conn),
                Action::Up(upcall) => upcalls.push(upcall),
            }
        }
    }

    fn dial(&self, inner: &mut Inner, now: Time, id: ConnId, to: SocketAddr) {
        let result = match inner.source_ports {
            SourcePorts::Any => connect_from(SocketAddr::new(inner.source_ip, 0), to),
            SourcePorts::Privileged => connect_privileged(inner.source_ip, to),
        };
        let added = result.and_then(|stream| self.add(inner, id, stream, true));
        if let Err(error) = added {
            tracing::debug!(%to, %error, "cannot dial");
            inner.machine.connected(now, id, Err(dial_error(&error)));
        }
        self.wake();
    }
}

fn listen_token(at: usize) -> epoll::EventData {
    epoll::EventData::new_u64(TOKEN_LISTEN - at as u64)
}

/// The link of our interface, as the node knows it.
struct Watch {
    link: Option<Link>,
    up: bool,
    next: Time,
}

impl Watch {
    /// What the node is to be told, if it is time to look.
    fn look(&mut self, now: Time) -> Option<Upcall> {
        let link = self.link.as_ref().filter(|_| now >= self.next)?;
        self.next = now + LINK_CHECK;
        let up = link.is_up();
        let news = up != std::mem::replace(&mut self.up, up);
        news.then_some(Upcall::Link(up))
    }
}

fn dial_error(error: &std::io::Error) -> DialError {
    match error.kind() {
        IoKind::ConnectionRefused
        | IoKind::ConnectionReset
        | IoKind::HostUnreachable
        | IoKind::NetworkUnreachable
        | IoKind::NetworkDown => DialError::Remote,
        IoKind::TimedOut => DialError::TimedOut,
        _ => DialError::Local,
    }
}

fn socket_for(ip: IpAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(ip, 0)), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Options of every connection, as socklnd sets them.
fn configure(socket: &Socket) -> std::io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30));
    socket.set_tcp_keepalive(&keepalive.with_interval(Duration::from_secs(5)).with_retries(5))
}

fn listen(at: SocketAddr) -> Result<TcpListener> {
    let bind = || -> std::io::Result<TcpListener> {
        let socket = socket_for(at.ip())?;
        socket.set_reuse_address(true)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        socket.listen(127)?;
        Ok(socket.into())
    };
    bind().map_err(|e| {
        let words = match e.kind() {
            IoKind::PermissionDenied => format!(
                "listening on port {} needs CAP_NET_BIND_SERVICE; choose a port above 1023, or grant the capability",
                at.port()
            ),
            _ => format!("listening on {at}"),
        };
        Error::io("tcp", words, e)
    })
}

/// Fails early and clearly where privileged source ports cannot be had.
fn check_privileged(ip: IpAddr) -> Result<()> {
    let mut last = None;
    for port in (512..=1023).rev() {
        let bound = socket_for(ip).and_then(|s| {
            s.set_reuse_port(true)?;
            s.bind(&SocketAddr::new(ip, port).into())
        });
        match bound {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == IoKind::AddrInUse => last = Some(e),
            Err(e) if e.kind() == IoKind::PermissionDenied => {
                let words = "dialling from privileged ports needs CAP_NET_BIND_SERVICE; grant it, or use any source port \
                             (peers then need accept=all, and know this node by IP and port only)";
                return Err(Error::io("tcp", words, e));
            }
            Err(e) => return Err(Error::io("tcp", format!("binding to {ip}"), e)),
        }
    }
    let e = last.unwrap_or_else(|| IoKind::AddrInUse.into());
    Err(Error::io("tcp", "no privileged ports available", e))
}

fn connect_from(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = socket_for(from.ip())?;
    if from.port() != 0 {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&from.into())?;
    configure(&socket)?;
    match socket.connect(&to.into()) {
        Ok(()) => Ok(socket.into()),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Ok(socket.into()),
        Err(e) => Err(e),
    }
}

/// From the first free port counting down from 1023.
fn connect_privileged(ip: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    for port in (512..=1023).rev() {
        match connect_from(SocketAddr::new(ip, port), to) {
            Err(e) if matches!(e.kind(), IoKind::AddrInUse | IoKind::AddrNotAvailable) => {}
            other => return other,
        }
    }
    Err(std::io::Error::new(IoKind::AddrInUse, "no privileged ports available"))
}
