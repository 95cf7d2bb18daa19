//! The kernel's connection manager: librdmacm, loaded when first asked for, behind a [`Channel`] of events and [`Id`]s.
//!
//! Queue pairs are not made by librdmacm: they belong to [`super::Qp`], in the port's own context, and are moved through their states
//! with the attributes that the manager says (`rdma_init_qp_attr(3)`). Cards that connect by themselves (iWARP) leave nothing to move.

use super::{Context, done, made, nonblocking};
use crate::ffi;
use socket2::SockAddr;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, OnceLock};

library! {
    "librdmacm.so.1", "Debian: librdmacm1";
    rdma_create_event_channel: fn() -> *mut ffi::EventChannel;
    rdma_destroy_event_channel: fn(*mut ffi::EventChannel) -> ();
    rdma_create_id: fn(*mut ffi::EventChannel, *mut *mut ffi::CmId, *mut c_void, c_int) -> c_int;
    rdma_destroy_id: fn(*mut ffi::CmId) -> c_int;
    rdma_bind_addr: fn(*mut ffi::CmId, *const c_void) -> c_int;
    rdma_resolve_addr: fn(*mut ffi::CmId, *const c_void, *const c_void, c_int) -> c_int;
    rdma_resolve_route: fn(*mut ffi::CmId, c_int) -> c_int;
    rdma_listen: fn(*mut ffi::CmId, c_int) -> c_int;
    rdma_connect: fn(*mut ffi::CmId, *mut ffi::ConnParam) -> c_int;
    rdma_accept: fn(*mut ffi::CmId, *mut ffi::ConnParam) -> c_int;
    rdma_establish: fn(*mut ffi::CmId) -> c_int;
    rdma_init_qp_attr: fn(*mut ffi::CmId, *mut ffi::QpAttr, *mut c_int) -> c_int;
    rdma_get_src_port: fn(*mut ffi::CmId) -> u16;
    rdma_get_cm_event: fn(*mut ffi::EventChannel, *mut *mut ffi::CmEvent) -> c_int;
    rdma_ack_cm_event: fn(*mut ffi::CmEvent) -> c_int;
    rdma_get_devices: fn(*mut c_int) -> *mut *mut ffi::Context;
    rdma_free_devices: fn(*mut *mut ffi::Context) -> ();
    rdma_event_str: fn(c_int) -> *const c_char;
}

fn lib() -> Result<&'static Lib, String> {
    static LIB: OnceLock<Result<Lib, String>> = OnceLock::new();
    LIB.get_or_init(Lib::load).as_ref().map_err(Clone::clone)
}

fn loaded() -> &'static Lib {
    lib().expect("an object of the library exists, so it is loaded")
}

/// Bytes that a request carries, by which the acceptor knows whose it is.
pub(crate) type Pass = [u8; 16];

handle! {
    /// What the manager says comes out here.
    Channel { raw: NonNull<ffi::EventChannel> }
}
handle! {
    /// One connection, or the place where requests come in, as the manager knows it.
    Id { raw: NonNull<ffi::CmId>, _channel: Arc<Channel> }
}

/// What the manager says.
pub(crate) enum Said {
    AddressFound,
    RouteFound,
    /// A stranger's request, with what it carries.
    Request(Id, Pass),
    /// The acceptor has accepted: the queue pair is to be made ready.
    Accepted,
    /// The queue pair can be used, on cards that connect by themselves.
    Established,
    /// The other queue pair is gone.
    Disconnected,
    /// The card is being taken out, and the kernel waits until nobody holds it.
    Removed,
    /// It will not become a connection.
    Failed(String),
    Other,
}

impl Channel {
    pub(crate) fn open() -> Result<Arc<Channel>, String> {
        // SAFETY: no preconditions.
        let raw = made(unsafe { (lib()?.rdma_create_event_channel)() })
            .map_err(|e| format!("no connection manager (/dev/infiniband/rdma_cm, module rdma_ucm): {e}"))?;
        let channel = Channel { raw };
        // SAFETY: the channel was just made.
        nonblocking(unsafe { raw.as_ref() }.fd).map_err(|e| e.to_string())?;
        Ok(Arc::new(channel))
    }

    /// What was said next, and about whom: the number given to [`Id::new`], or to the listener where a request comes in.
    pub(crate) fn next(self: &Arc<Self>) -> Option<(u64, Said)> {
        let mut event = null_mut();
        // SAFETY: a live channel that does not block.
        if unsafe { (loaded().rdma_get_cm_event)(self.raw.as_ptr(), &mut event) } != 0 {
            return None;
        }
        // SAFETY: the call succeeded: `event` and the identifier it names are valid until it is acknowledged.
        let (kind, status, id, about) = unsafe {
            let e = &*event;
            (e.event, e.status, e.id, (*e.id).context as u64)
        };
        let said = match kind {
            ffi::CM_ADDR_RESOLVED => Said::AddressFound,
            ffi::CM_ROUTE_RESOLVED => Said::RouteFound,
            ffi::CM_CONNECT_REQUEST => {
                // SAFETY: as above; a request has the `conn` member, its data as many bytes as it says.
                let pass = unsafe {
                    let c = &(*event).conn;
                    let n = usize::from(c.private_data_len);
                    if c.private_data.is_null() {
                        &[]
                    } else {
                        std::slice::from_raw_parts(c.private_data.cast(), n)
                    }
                };
                // Managers pad it with zeros.
                let pass = pass.first_chunk().copied().unwrap_or_default();
                // The new identifier is ours from here on.
                NonNull::new(id)
                    .map_or(Said::Other, |raw| Said::Request(Id { raw, _channel: self.clone() }, pass))
            }
            ffi::CM_CONNECT_RESPONSE => Said::Accepted,
            ffi::CM_ESTABLISHED => Said::Established,
            ffi::CM_DISCONNECTED => Said::Disconnected,
            ffi::CM_DEVICE_REMOVAL => Said::Removed,
            ffi::CM_ADDR_ERROR
            | ffi::CM_ROUTE_ERROR
            | ffi::CM_CONNECT_ERROR
            | ffi::CM_UNREACHABLE
            | ffi::CM_REJECTED => {
                // SAFETY: takes an integer, returns a static string for every value.
                let text = unsafe { CStr::from_ptr((loaded().rdma_event_str)(kind)) }.to_string_lossy();
                Said::Failed(format!("the connection manager says {text} ({status})"))
            }
            _ => Said::Other,
        };
        // SAFETY: acknowledged once; nothing points into it any more.
        unsafe { (loaded().rdma_ack_cm_event)(event) };
        Some((about, said))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.raw.as_ref().fd) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made once; identifiers hold an Arc of it and are gone.
        unsafe { (loaded().rdma_destroy_event_channel)(self.raw.as_ptr()) };
    }
}

impl Id {
    /// An identifier; what is said about it comes with the number `about`.
    pub(crate) fn new(channel: &Arc<Channel>, about: u64) -> io::Result<Id> {
        let mut raw = null_mut();
        // SAFETY: a live channel; the context is a number, which the library hands back and never follows.
        done(unsafe {
            (loaded().rdma_create_id)(channel.raw.as_ptr(), &mut raw, about as *mut c_void, ffi::PS_TCP)
        })?;
        Ok(Id { raw: made(raw)?, _channel: channel.clone() })
    }

    /// From now on what is said about it comes with this number.
    pub(crate) fn is_about(&mut self, about: u64) {
        // SAFETY: a live identifier; only this thread and the library, which copies the field for requests at a listener, look at it.
        unsafe { (*self.raw.as_ptr()).context = about as *mut c_void };
    }

    pub(crate) fn bind(&self, at: SocketAddr) -> io::Result<()> {
        // SAFETY: a live identifier and a socket address of the family it says.
        done(unsafe { (loaded().rdma_bind_addr)(self.raw.as_ptr(), SockAddr::from(at).as_ptr().cast()) })
    }

    pub(crate) fn listen(&self, backlog: c_int) -> io::Result<()> {
        // SAFETY: a live identifier.
        done(unsafe { (loaded().rdma_listen)(self.raw.as_ptr(), backlog) })
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: a live identifier.
        u16::from_be(unsafe { (loaded().rdma_get_src_port)(self.raw.as_ptr()) })
    }

    /// The card and its port that an identifier with an address belongs to.
    pub(crate) fn card(&self) -> Option<(String, u8)> {
        // SAFETY: a live identifier, whose fields the library wrote when the address was found.
        let (verbs, port) = unsafe { (self.raw.as_ref().verbs, self.raw.as_ref().port_num) };
        Some((Context::name_of(NonNull::new(verbs)?), port))
    }

    pub(crate) fn find_address(&self, from: SocketAddr, to: SocketAddr, ms: c_int) -> io::Result<()> {
        let (from, to) = (SockAddr::from(from), SockAddr::from(to));
        // SAFETY: a live identifier and two socket addresses of the families they say.
        done(unsafe {
            (loaded().rdma_resolve_addr)(self.raw.as_ptr(), from.as_ptr().cast(), to.as_ptr().cast(), ms)
        })
    }

    pub(crate) fn find_route(&self, ms: c_int) -> io::Result<()> {
        // SAFETY: a live identifier.
        done(unsafe { (loaded().rdma_resolve_route)(self.raw.as_ptr(), ms) })
    }

    /// What a queue pair needs to be moved into a state, and which of it counts; nothing where the card does it.
    pub(super) fn attributes(&self, state: c_int) -> io::Result<(ffi::QpAttr, c_int)> {
        let mut attr = ffi::QpAttr { qp_state: state, ..Default::default() };
        let mut mask = 0;
        // SAFETY: a live identifier; `attr` has the layout that the call fills.
        done(unsafe { (loaded().rdma_init_qp_attr)(self.raw.as_ptr(), &mut attr, &mut mask) })?;
        Ok((attr, mask))
    }

    /// Asks the peer for a connection of this queue pair.
    pub(super) fn connect(&self, mut param: ffi::ConnParam, pass: &Pass) -> io::Result<()> {
        param.private_data = pass.as_ptr().cast();
        param.private_data_len = pass.len() as u8;
        // SAFETY: a live identifier; the call copies the data.
        done(unsafe { (loaded().rdma_connect)(self.raw.as_ptr(), &mut param) })
    }

    /// Grants a request.
    pub(super) fn accept(&self, mut param: ffi::ConnParam) -> io::Result<()> {
        // SAFETY: a live identifier that came with a request.
        done(unsafe { (loaded().rdma_accept)(self.raw.as_ptr(), &mut param) })
    }

    /// Tells the acceptor that the queue pair here is ready.
    pub(super) fn establish(&self) -> io::Result<()> {
        // SAFETY: a live identifier.
        done(unsafe { (loaded().rdma_establish)(self.raw.as_ptr()) })
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: made once. The call waits for what was fetched to be acknowledged, which `next` does at once.
        let _ = unsafe { (loaded().rdma_destroy_id)(self.raw.as_ptr()) };
    }
}

/// Makes librdmacm let go of cards that are not there any more. It opens each card that an identifier belongs to, for itself, and keeps
/// it open; only where it lists the cards it looks which ones still are.
pub(crate) fn forget_lost_cards() {
    if let Ok(lib) = lib() {
        // SAFETY: a list of contexts that is freed at once; they belong to the library.
        unsafe {
            let list = (lib.rdma_get_devices)(null_mut());
            if !list.is_null() {
                (lib.rdma_free_devices)(list);
            }
        }
    }
}

/// Which port of which card has these addresses, as far as any has.
pub(crate) fn cards_with(addresses: &[IpAddr]) -> Result<Vec<(IpAddr, String, u8)>, String> {
    let channel = Channel::open()?;
    let one = |ip: &IpAddr| -> Option<(IpAddr, String, u8)> {
        let id = Id::new(&channel, 0).ok()?;
        id.bind(SocketAddr::new(*ip, 0)).ok()?;
        let (name, port) = id.card()?;
        Some((*ip, name, port))
    };
    Ok(addresses.iter().filter_map(one).collect())
}
