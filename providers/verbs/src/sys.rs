//! All `unsafe` of this provider: libibverbs (and librdmacm, in `manager`), loaded when first asked for, behind types that keep memory
//! alive for as long as the card may touch it. Called by every other module.
//!
//! Invariants:
//! - Memory named in a posted work request is owned by the [`Qp`] (as [`Keep`]) or the [`Srq`] (as [`Slot`]) until its completion
//!   was polled or the queue destroyed. Only then is it handed back, so nobody reads or writes it beside the card.
//! - Remote write access is registered on window memory only ([`Access::PeersWrite`]), to which no Rust reference exists.
//! - libibverbs is thread-safe (`ibv_*` man pages), so its objects may move between and be shared by threads.
//! - Objects hold what they were made from, so destruction runs children first.

use crate::ffi;
use crate::room::Room;
use kfab_core::mem::{Access, Region};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// Declares a handle with its `Send` and `Sync`.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* }) => {
        $(#[$doc])*
        pub(crate) struct $name { $($field: $ty),* }
        // SAFETY: objects of libibverbs have no thread affinity, and its calls are thread-safe.
        unsafe impl Send for $name {}
        // SAFETY: as above.
        unsafe impl Sync for $name {}
    };
}

/// The most pieces of memory in one work request.
pub(crate) const SGE_MAX: usize = 6;
/// The most bytes that are copied into a work request.
pub(crate) const INLINE_MAX: usize = 256;
/// Marks the work-request number of a receive.
const RECV: u64 = 1 << 63;

/// Declares `Lib`: the functions of a library that is loaded at run time.
macro_rules! library {
    ($soname:literal, $packages:literal; $($name:ident: fn($($arg:ty),*) -> $ret:ty;)*) => {
        struct Lib {
            $($name: unsafe extern "C" fn($($arg),*) -> $ret,)*
            _library: libloading::Library,
        }

        impl Lib {
            fn load() -> Result<Lib, String> {
                // SAFETY: loading runs the initialisers of rdma-core's library, which have no preconditions.
                let library = unsafe { libloading::Library::new($soname) }.map_err(|e| {
                    let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                    format!(concat!("no ", $soname, " (", $packages, "): {}"), why)
                })?;
                $(
                    // SAFETY: the symbol's type is the one of the library's header; the pointer lives no longer than `_library`.
                    let $name = *unsafe { library.get::<unsafe extern "C" fn($($arg),*) -> $ret>(stringify!($name)) }
                        .map_err(|e| format!(concat!($soname, " is too old: {}"), e))?;
                )*
                Ok(Lib { $($name,)* _library: library })
            }
        }
    };
}

pub(crate) mod manager;
mod qp;

pub(crate) use qp::{Keep, Qp, QpLimits, Route};

library! {
    "libibverbs.so.1", "Debian: libibverbs1, ibverbs-providers";
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut ffi::Opaque;
    ibv_free_device_list: fn(*mut *mut ffi::Opaque) -> ();
    ibv_get_device_name: fn(*mut ffi::Opaque) -> *const c_char;
    ibv_open_device: fn(*mut ffi::Opaque) -> *mut ffi::Context;
    ibv_close_device: fn(*mut ffi::Context) -> c_int;
    ibv_query_device: fn(*mut ffi::Context, *mut ffi::DeviceAttr) -> c_int;
    ibv_query_port: fn(*mut ffi::Context, u8, *mut ffi::PortAttr) -> c_int;
    ibv_get_async_event: fn(*mut ffi::Context, *mut ffi::AsyncEvent) -> c_int;
    ibv_ack_async_event: fn(*mut ffi::AsyncEvent) -> ();
    ibv_alloc_pd: fn(*mut ffi::Context) -> *mut ffi::Opaque;
    ibv_dealloc_pd: fn(*mut ffi::Opaque) -> c_int;
    ibv_reg_mr: fn(*mut ffi::Opaque, *mut c_void, usize, c_int) -> *mut ffi::Mr;
    ibv_dereg_mr: fn(*mut ffi::Mr) -> c_int;
    ibv_create_comp_channel: fn(*mut ffi::Context) -> *mut ffi::CompChannel;
    ibv_destroy_comp_channel: fn(*mut ffi::CompChannel) -> c_int;
    ibv_create_cq: fn(*mut ffi::Context, c_int, *mut c_void, *mut ffi::CompChannel, c_int) -> *mut ffi::Cq;
    ibv_resize_cq: fn(*mut ffi::Cq, c_int) -> c_int;
    ibv_destroy_cq: fn(*mut ffi::Cq) -> c_int;
    ibv_get_cq_event: fn(*mut ffi::CompChannel, *mut *mut ffi::Cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut ffi::Cq, c_uint) -> ();
    ibv_create_srq: fn(*mut ffi::Opaque, *mut ffi::SrqInitAttr) -> *mut ffi::Srq;
    ibv_destroy_srq: fn(*mut ffi::Srq) -> c_int;
    ibv_create_qp: fn(*mut ffi::Opaque, *mut ffi::QpInitAttr) -> *mut ffi::Qp;
    ibv_modify_qp: fn(*mut ffi::Qp, *mut ffi::QpAttr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut ffi::Qp) -> c_int;
    ibv_wc_status_str: fn(c_int) -> *const c_char;
}

fn lib() -> Result<&'static Lib, String> {
    static LIB: OnceLock<Result<Lib, String>> = OnceLock::new();
    LIB.get_or_init(Lib::load).as_ref().map_err(Clone::clone)
}

/// The library, once an object made by it exists.
fn loaded() -> &'static Lib {
    lib().expect("an object of the library exists, so it is loaded")
}

fn made<T>(p: *mut T) -> io::Result<NonNull<T>> {
    NonNull::new(p).ok_or_else(io::Error::last_os_error)
}

/// rdma-core returns an error number, some drivers its negative.
fn done(rc: c_int) -> io::Result<()> {
    match rc {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        n => Err(io::Error::from_raw_os_error(n.abs())),
    }
}

/// As [`done`], for the end of an object. A card that was taken out (EIO) has let go of everything: the kernel ended all that was
/// made on it (uverbs calls that "disassociate").
fn ended(rc: c_int) -> io::Result<()> {
    done(rc).or_else(|e| if e.raw_os_error() == Some(libc::EIO) { Ok(()) } else { Err(e) })
}

fn nonblocking(fd: c_int) -> io::Result<()> {
    // SAFETY: the descriptor belongs to an object of libibverbs that the caller holds.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// What the library calls a completion status.
pub(crate) fn status_text(status: c_int) -> String {
    // SAFETY: takes an integer, returns a static string for every value.
    unsafe { CStr::from_ptr((loaded().ibv_wc_status_str)(status)) }.to_string_lossy().into_owned()
}

/// The names of the cards that libibverbs knows; an error is a reason for people.
pub(crate) fn card_names() -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    with_cards(|name, _| names.push(name.to_owned()))?;
    Ok(names)
}

fn with_cards(mut each: impl FnMut(&str, *mut ffi::Opaque)) -> Result<(), String> {
    let lib = lib()?;
    let mut n = 0;
    // SAFETY: `n` is a valid place for the count.
    let list = unsafe { (lib.ibv_get_device_list)(&mut n) };
    if list.is_null() {
        let e = io::Error::last_os_error();
        return Err(format!("no RDMA in this kernel (modules ib_uverbs and the card's driver): {e}"));
    }
    for i in 0..usize::try_from(n).unwrap_or(0) {
        // SAFETY: the list has `n` entries; names are C strings that live as long as the list.
        let (card, name) = unsafe {
            let card = *list.add(i);
            (card, CStr::from_ptr((lib.ibv_get_device_name)(card)))
        };
        each(&name.to_string_lossy(), card);
    }
    // SAFETY: the list came from ibv_get_device_list and is freed once.
    unsafe { (lib.ibv_free_device_list)(list) };
    Ok(())
}

handle! {
    /// An open card.
    Context { raw: NonNull<ffi::Context> }
}
handle! {
    /// A protection domain.
    Pd { raw: NonNull<ffi::Opaque>, room: Room, _context: Arc<Context> }
}
handle! {
    /// A registered range of a region. Holds no share of the region: the kernel keeps the pages.
    Mr { raw: NonNull<ffi::Mr>, pd: Arc<Pd> }
}
handle! {
    /// A completion queue with its channel.
    Cq { raw: NonNull<ffi::Cq>, channel: NonNull<ffi::CompChannel>, _context: Arc<Context> }
}

/// What an asynchronous event said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Async {
    PortUp(u64),
    PortDown(u64),
    /// Its addresses are others, or elsewhere in its table.
    PortChanged(u64),
    /// The card, or a queue that all connections share, is beyond use.
    Fatal,
    Other,
}

impl Async {
    /// What an event says. The element of a port's is its number, an `int` at the start of a union.
    fn of(e: &ffi::AsyncEvent) -> Async {
        let port = e.element & u64::from(u32::MAX);
        match e.event_type {
            ffi::EVENT_PORT_ERR => Async::PortDown(port),
            ffi::EVENT_PORT_ACTIVE => Async::PortUp(port),
            ffi::EVENT_GID_CHANGE | ffi::EVENT_LID_CHANGE => Async::PortChanged(port),
            ffi::EVENT_DEVICE_FATAL | ffi::EVENT_CQ_ERR | ffi::EVENT_SRQ_ERR => Async::Fatal,
            _ => Async::Other,
        }
    }
}

impl Context {
    pub(crate) fn open(name: &str) -> Result<Arc<Context>, String> {
        let mut found = None;
        with_cards(|n, card| {
            if n == name {
                // SAFETY: `card` is an entry of the list, which is not freed before this closure returns.
                found = Some(made(unsafe { (loaded().ibv_open_device)(card) }));
            }
        })?;
        let raw =
            found.ok_or_else(|| format!("no RDMA card {name:?}"))?.map_err(|e| match e.raw_os_error() {
                Some(libc::EACCES | libc::EPERM) => {
                    format!("no permission to open {name} (/dev/infiniband/uverbs*): {e}")
                }
                _ => format!("{name} cannot be opened: {e}"),
            })?;
        let context = Context { raw };
        // SAFETY: the context is open.
        nonblocking(unsafe { (*raw.as_ptr()).async_fd }).map_err(|e| format!("{name}: {e}"))?;
        Ok(Arc::new(context))
    }

    /// The name of the card that a context of libibverbs belongs to.
    fn name_of(raw: NonNull<ffi::Context>) -> String {
        // SAFETY: the context is open; its card has a name that lives as long.
        unsafe { CStr::from_ptr((loaded().ibv_get_device_name)((*raw.as_ptr()).device)) }
            .to_string_lossy()
            .into_owned()
    }

    pub(crate) fn attr(&self) -> io::Result<ffi::DeviceAttr> {
        // SAFETY: all bit patterns of zeros are valid for this structure of integers.
        let mut a: ffi::DeviceAttr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open; `a` has the layout that the call fills.
        done(unsafe { (loaded().ibv_query_device)(self.raw.as_ptr(), &mut a) })?;
        Ok(a)
    }

    pub(crate) fn port(&self, number: u8) -> io::Result<ffi::PortAttr> {
        // SAFETY: all bit patterns of zeros are valid for this structure of integers.
        let mut a: ffi::PortAttr = unsafe { std::mem::zeroed() };
        // SAFETY: as in `attr`; older libraries fill the front of the structure only.
        done(unsafe { (loaded().ibv_query_port)(self.raw.as_ptr(), number, &mut a) })?;
        Ok(a)
    }

    /// Readable when [`Context::next_async`] has something.
    pub(crate) fn async_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the context.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).async_fd) }
    }

    pub(crate) fn next_async(&self) -> Option<Async> {
        let mut e = ffi::AsyncEvent { element: 0, event_type: 0 };
        // SAFETY: the context is open, its descriptor does not block; an event got is acknowledged once, at once.
        unsafe {
            if (loaded().ibv_get_async_event)(self.raw.as_ptr(), &mut e) != 0 {
                return None;
            }
            (loaded().ibv_ack_async_event)(&mut e);
        }
        Some(Async::of(&e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; everything made from it holds an Arc of it and is gone.
        let _ = unsafe { (loaded().ibv_close_device)(self.raw.as_ptr()) };
    }
}

impl Pd {
    pub(crate) fn new(context: &Arc<Context>) -> io::Result<Arc<Pd>> {
        let room = Room::of(&context.attr()?);
        // SAFETY: the context is open.
        let raw = made(unsafe { (loaded().ibv_alloc_pd)(context.raw.as_ptr()) })?;
        Ok(Arc::new(Pd { raw, room, _context: context.clone() }))
    }

    /// What may be registered in it.
    pub(crate) fn room(&self) -> &Room {
        &self.room
    }
}

impl Drop for Pd {
    fn drop(&mut self) {
        // SAFETY: allocated once; what was made in it holds an Arc of it.
        let _ = unsafe { (loaded().ibv_dealloc_pd)(self.raw.as_ptr()) };
    }
}

/// What a registration lets peers do; the own card may always read, and write where a work request says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reach {
    Nobody,
    Read,
    Write,
    ReadWrite,
}

impl Mr {
    /// Registers `len` bytes at `offset` of a region.
    pub(crate) fn new(
        pd: &Arc<Pd>,
        region: &Region,
        offset: usize,
        len: usize,
        reach: Reach,
    ) -> io::Result<Mr> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= region.len()) && len > 0;
        let writable = matches!(reach, Reach::Write | Reach::ReadWrite);
        if !inside || (writable && region.access() != Access::PeersWrite) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        pd.room.check(len)?;
        let flags = ffi::ACCESS_LOCAL_WRITE
            | match reach {
                Reach::Nobody => 0,
                Reach::Read => ffi::ACCESS_REMOTE_READ,
                Reach::Write => ffi::ACCESS_REMOTE_WRITE,
                Reach::ReadWrite => ffi::ACCESS_REMOTE_READ | ffi::ACCESS_REMOTE_WRITE,
            };
        // SAFETY: the range lies in the region. The kernel pins its pages until deregistration, so the card never reaches
        // freed pages; it writes them only for work requests (which own the memory) or, in window memory, for peers.
        let raw = made(unsafe {
            (loaded().ibv_reg_mr)(pd.raw.as_ptr(), region.base().add(offset).cast(), len, flags)
        })?;
        pd.room.taken();
        Ok(Mr { raw, pd: pd.clone() })
    }

    pub(crate) fn rkey(&self) -> u32 {
        // SAFETY: a live registration.
        unsafe { self.raw.as_ref().rkey }
    }

    fn sge(&self, addr: *const u8, len: usize) -> ffi::Sge {
        // SAFETY: a live registration.
        let lkey = unsafe { self.raw.as_ref().lkey };
        // The card itself refuses what is outside the registration, so a wrong pair of memory and key is an error, no harm.
        ffi::Sge { addr: addr as u64, length: len as u32, lkey }
    }

    /// Ends the registration; the value comes back with an error if the card refuses.
    pub(crate) fn end(self) -> Result<(), (Mr, io::Error)> {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: registered once; deregistered here, or, if that failed, by the next attempt or `drop`.
        match ended(unsafe { (loaded().ibv_dereg_mr)(this.raw.as_ptr()) }) {
            Ok(()) => {
                // SAFETY: `this` is not dropped, so its Arc is moved out exactly once.
                let pd = unsafe { std::ptr::read(&this.pd) };
                pd.room.given_back();
                Ok(())
            }
            Err(e) => Err((std::mem::ManuallyDrop::into_inner(this), e)),
        }
    }
}

impl Drop for Mr {
    fn drop(&mut self) {
        // SAFETY: registered once, deregistered once (`end` forgets the value when it succeeded).
        match ended(unsafe { (loaded().ibv_dereg_mr)(self.raw.as_ptr()) }) {
            Ok(()) => self.pd.room.given_back(),
            Err(e) => tracing::warn!(%e, "a memory registration could not be ended"),
        }
    }
}

/// A completion, as polled. Made by [`Cq::poll`] only.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Wc(ffi::Wc);

/// Completions polled and not handled yet, oldest first.
#[derive(Default)]
pub(crate) struct Polled {
    wcs: Vec<Wc>,
    handled: usize,
}

impl Polled {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.handled == self.wcs.len()
    }

    /// The oldest, which stays.
    #[inline]
    pub(crate) fn first(&self) -> Option<&Wc> {
        self.wcs.get(self.handled)
    }

    /// Takes the oldest.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Wc> {
        let first = self.first().copied();
        self.handled += usize::from(first.is_some());
        first
    }
}

/// Whom a completion is for.
pub(crate) enum For {
    /// A receive: the number of the queue pair it came over.
    Recv { qpn: u32 },
    /// Work of the queue pair with this tag.
    Send { tag: u32 },
}

impl Wc {
    pub(crate) fn owner(&self) -> For {
        if self.0.wr_id & RECV != 0 {
            For::Recv { qpn: self.0.qp_num }
        } else {
            For::Send { tag: (self.0.wr_id >> 32) as u32 }
        }
    }

    /// 0 for success, else a code of [`ffi`].
    pub(crate) fn status(&self) -> c_int {
        self.0.status
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.byte_len as usize
    }

    /// Of a receive that went well: a message lies in it. A peer's write with immediate data uses a receive up as well, and leaves in it what was there.
    #[inline]
    pub(crate) fn is_message(&self) -> bool {
        self.0.opcode == ffi::WC_RECV
    }
}

/// Completions polled at once.
pub(crate) const POLL_BATCH: usize = 32;

impl Cq {
    pub(crate) fn new(context: &Arc<Context>, entries: usize) -> io::Result<Arc<Cq>> {
        // SAFETY: the context is open.
        let channel = made(unsafe { (loaded().ibv_create_comp_channel)(context.raw.as_ptr()) })?;
        let made_cq = || {
            // SAFETY: the channel was just made.
            nonblocking(unsafe { channel.as_ref() }.fd)?;
            let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
            // SAFETY: context and channel are live; no context pointer, vector 0 exists always.
            made(unsafe {
                (loaded().ibv_create_cq)(context.raw.as_ptr(), entries, null_mut(), channel.as_ptr(), 0)
            })
        };
        match made_cq() {
            Ok(raw) => Ok(Arc::new(Cq { raw, channel, _context: context.clone() })),
            Err(e) => {
                // SAFETY: made above, and nothing uses it.
                let _ = unsafe { (loaded().ibv_destroy_comp_channel)(channel.as_ptr()) };
                Err(e)
            }
        }
    }

    /// Makes room for so many entries, if the driver can. What waits in the queue stays there.
    pub(crate) fn resize(&self, entries: usize) -> io::Result<()> {
        let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
        // SAFETY: a live queue, which nobody polls meanwhile: it is shared with queue pairs, which do not, and the port's one thread is here.
        done(unsafe { (loaded().ibv_resize_cq)(self.raw.as_ptr(), entries) })
    }

    /// Fills an empty `into` with up to [`POLL_BATCH`] completions; their number, or an error that makes the queue useless.
    #[inline]
    pub(crate) fn poll(&self, into: &mut Polled) -> io::Result<usize> {
        debug_assert!(into.is_empty());
        into.handled = 0;
        into.wcs.clear();
        into.wcs.reserve(POLL_BATCH);
        let room = into.wcs.spare_capacity_mut().as_mut_ptr().cast();
        // SAFETY: a live queue; there is room for as many entries as are asked for, and `Wc` is laid out as the call writes it.
        let n = unsafe {
            let poll = (*self.raw.as_ref().context).ops.poll_cq;
            poll(self.raw.as_ptr(), POLL_BATCH as c_int, room)
        };
        let n = usize::try_from(n).ok().filter(|n| *n <= POLL_BATCH);
        let n = n.ok_or_else(|| io::Error::other("the completion queue cannot be polled"))?;
        // SAFETY: the call has written so many entries, and there was room for them.
        unsafe { into.wcs.set_len(n) };
        Ok(n)
    }

    /// Asks for an event at the next completion.
    pub(crate) fn request_event(&self) -> io::Result<()> {
        // SAFETY: a live queue.
        done(unsafe { ((*self.raw.as_ref().context).ops.req_notify_cq)(self.raw.as_ptr(), 0) })
    }

    /// Takes the events that are there.
    pub(crate) fn take_events(&self) {
        let (mut cq, mut ctx) = (null_mut(), null_mut());
        // SAFETY: a live channel that does not block and serves this queue only; each event got is acknowledged once.
        unsafe {
            while (loaded().ibv_get_cq_event)(self.channel.as_ptr(), &mut cq, &mut ctx) == 0 {
                (loaded().ibv_ack_cq_events)(cq, 1);
            }
        }
    }
}

impl AsFd for Cq {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel's descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        // SAFETY: both made once; queue pairs that use the queue hold an Arc of it and are gone.
        unsafe {
            let _ = (loaded().ibv_destroy_cq)(self.raw.as_ptr());
            let _ = (loaded().ibv_destroy_comp_channel)(self.channel.as_ptr());
        }
    }
}

/// Registered memory cut into slots.
struct Chunk {
    region: Region,
    mr: Mr,
}

/// A stretch of registered memory with one owner: the program, a send queue or a receive queue.
pub(crate) struct Slot {
    chunk: Arc<Chunk>,
    offset: usize,
    len: usize,
}

impl Slot {
    /// `n` slots of `len` bytes.
    pub(crate) fn make(pd: &Arc<Pd>, n: usize, len: usize, node: Option<u32>) -> io::Result<Vec<Slot>> {
        let bytes = (n * len).next_multiple_of(4096);
        let region =
            Region::mapped(bytes, Access::PeersRead, node).map_err(|e| io::Error::other(e.to_string()))?;
        let mr = Mr::new(pd, &region, 0, bytes, Reach::Nobody)?;
        let chunk = Arc::new(Chunk { region, mr });
        Ok((0..n).map(|i| Slot { chunk: chunk.clone(), offset: i * len, len }).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn ptr(&self) -> *mut u8 {
        // SAFETY: offset + len lies in the region (see `make`).
        unsafe { self.chunk.region.base().add(self.offset) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the slot is ours alone (not posted, no other slot overlaps, peers have no access), in a live, zeroed mapping.
        unsafe { std::slice::from_raw_parts(self.ptr(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }

    fn sge(&self, len: usize) -> ffi::Sge {
        self.chunk.mr.sge(self.ptr(), len.min(self.len))
    }
}

handle! {
    /// A shared receive queue. The slots posted to it belong to it until they come back filled. It takes them in the order in which they were posted,
    /// which their numbers tell: of `posts`, and the last that came back.
    Srq {
        raw: NonNull<ffi::Srq>, generation: u64, posted: Vec<Option<(Slot, u64)>>, free: Vec<u32>, posts: u64, reached: u64,
        _pd: Arc<Pd>
    }
}

impl Srq {
    pub(crate) fn new(pd: &Arc<Pd>, depth: usize) -> io::Result<Srq> {
        let max_wr = u32::try_from(depth).unwrap_or(u32::MAX);
        let mut attr = ffi::SrqInitAttr { srq_context: null_mut(), max_wr, max_sge: 1, srq_limit: 0 };
        // SAFETY: the domain is live; `attr` has the layout that the call reads.
        let raw = made(unsafe { (loaded().ibv_create_srq)(pd.raw.as_ptr(), &mut attr) })?;
        let posted = (0..depth).map(|_| None).collect();
        static GENERATIONS: AtomicU32 = AtomicU32::new(0);
        // Completions left over from an earlier queue name no slot of this one.
        let generation = u64::from(GENERATIONS.fetch_add(1, Ordering::Relaxed) & 0x7fff_ffff) << 32;
        let free = (0..max_wr).rev().collect();
        Ok(Srq { raw, generation, posted, free, posts: 0, reached: 0, _pd: pd.clone() })
    }

    /// The number of the last posted of those that came back.
    pub(crate) fn reached(&self) -> u64 {
        self.reached
    }

    /// The number of the last slot that was posted.
    pub(crate) fn posts(&self) -> u64 {
        self.posts
    }

    /// Slots up to the one of this number that have not come back.
    pub(crate) fn missing(&self, until: u64) -> usize {
        self.posted.iter().flatten().filter(|(_, n)| *n <= until).count()
    }

    /// Slots posted.
    pub(crate) fn len(&self) -> usize {
        self.posted.len() - self.free.len()
    }

    /// Posts slots, with one doorbell for as many as possible; those that did not fit stay in `slots`.
    pub(crate) fn post(&mut self, slots: &mut Vec<Slot>) -> io::Result<()> {
        const CHAIN: usize = 16;
        let empty = ffi::RecvWr { wr_id: 0, next: null_mut(), sg_list: null_mut(), num_sge: 1 };
        let (mut sges, mut wrs) = ([ffi::Sge::default(); CHAIN], [empty; CHAIN]);
        let (first_sge, first) = (sges.as_mut_ptr(), wrs.as_mut_ptr());
        while !slots.is_empty() && !self.free.is_empty() {
            let n = CHAIN.min(slots.len()).min(self.free.len());
            for i in 0..n {
                let slot = slots.pop().expect("n slots are there");
                let place = self.free.pop().expect("n places are free");
                // SAFETY: `i` and, where it is used, `i + 1` are below `n`, inside both arrays.
                unsafe {
                    *first_sge.add(i) = slot.sge(slot.len);
                    let wr = &mut *first.add(i);
                    wr.wr_id = RECV | self.generation | u64::from(place);
                    wr.sg_list = first_sge.add(i);
                    wr.next = if i + 1 < n { first.add(i + 1) } else { null_mut() };
                }
                self.posts += 1;
                self.posted[place as usize] = Some((slot, self.posts));
            }
            let mut bad = null_mut();
            // SAFETY: a live queue and a chain of `n` requests in arrays that outlive the call. The memory they name is owned by
            // `posted` until the completion or the queue's end.
            done(unsafe {
                ((*self.raw.as_ref().context).ops.post_srq_recv)(self.raw.as_ptr(), first, &mut bad)
            })?;
        }
        Ok(())
    }

    /// Takes the slot of a completed receive back.
    #[inline(always)]
    pub(crate) fn complete(&mut self, wc: &Wc) -> Option<Slot> {
        let place = wc.0.wr_id as u32;
        if wc.0.wr_id != RECV | self.generation | u64::from(place) {
            return None;
        }
        let (slot, number) = self.posted.get_mut(place as usize)?.take()?;
        self.reached = self.reached.max(number);
        self.free.push(place);
        Some(slot)
    }
}

impl Drop for Srq {
    fn drop(&mut self) {
        // SAFETY: made once. Its queue pairs are gone first: whoever holds them drops them before (see `Qp::_srq`).
        if unsafe { (loaded().ibv_destroy_srq)(self.raw.as_ptr()) } != 0 {
            // The card may still write there.
            std::mem::forget(std::mem::take(&mut self.posted));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_say_which_port_and_whether_anything_is_left() {
        let of = |event_type| Async::of(&ffi::AsyncEvent { element: 0xdead_beef_0000_0002, event_type });
        assert_eq!(of(ffi::EVENT_PORT_ACTIVE), Async::PortUp(2));
        assert_eq!(of(ffi::EVENT_PORT_ERR), Async::PortDown(2));
        assert_eq!([ffi::EVENT_GID_CHANGE, ffi::EVENT_LID_CHANGE].map(of), [Async::PortChanged(2); 2]);
        let fatal = [ffi::EVENT_DEVICE_FATAL, ffi::EVENT_CQ_ERR, ffi::EVENT_SRQ_ERR];
        assert_eq!(fatal.map(of), [Async::Fatal; 3]);
        // The queue pair of a connection: its requests tell.
        assert_eq!(of(1), Async::Other);
    }
}
