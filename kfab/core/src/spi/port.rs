//! The two traits a transport implements, and the values that cross them.

use super::{Caps, Conn, Device, Event, ProviderLimit, RmaToken, Unavailable, Way};
use crate::Result;
use crate::auth::FabricKey;
use crate::mem::{Landing, Slice};
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Bytes of protocol header in every frame.
pub const HEADER_LEN: usize = 16;

/// The most bytes that travel beside the header, in the same cache line (64 - 8 for the ring - 16 for the header).
pub const INLINE_MAX: usize = 40;

/// Up to [`INLINE_MAX`] bytes by value: a small payload, or what describes the body that follows.
///
/// Aligned, bytes first: it is moved in whole words, and a move that follows a store of other widths stalls.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Inline {
    bytes: [u8; INLINE_MAX],
    len: u8,
}

impl Inline {
    /// No bytes.
    pub const EMPTY: Inline = Inline { bytes: [0; INLINE_MAX], len: 0 };

    /// A copy of `b`; `None` if it is longer than [`INLINE_MAX`].
    #[inline]
    pub fn new(b: &[u8]) -> Option<Inline> {
        if b.len() > INLINE_MAX {
            return None;
        }
        let mut bytes = [0; INLINE_MAX];
        if let Ok(eight) = <[u8; 8]>::try_from(b) {
            bytes[..8].copy_from_slice(&eight);
        } else {
            bytes[..b.len()].copy_from_slice(b);
        }
        Some(Inline { bytes, len: b.len() as u8 })
    }

    /// From a whole array of which the first `len` bytes count (`len` is cut to [`INLINE_MAX`]).
    #[inline]
    pub fn from_array(bytes: [u8; INLINE_MAX], len: usize) -> Inline {
        Inline { bytes, len: len.min(INLINE_MAX) as u8 }
    }

    /// From whole words as they lie in memory, of whose bytes the first `len` count (cut to [`INLINE_MAX`]).
    #[inline(always)]
    pub fn from_words(words: [u64; INLINE_MAX / 8], len: usize) -> Inline {
        let mut bytes = [0; INLINE_MAX];
        for (to, from) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&from.to_ne_bytes());
        }
        Inline { bytes, len: len.min(INLINE_MAX) as u8 }
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len).min(INLINE_MAX)]
    }

    /// Bytes that count.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "as_slice has it")]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// The whole array, for a copy of fixed size.
    #[inline]
    pub fn array(&self) -> &[u8; INLINE_MAX] {
        &self.bytes
    }
}

impl std::fmt::Debug for Inline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inline({:02x?})", self.as_slice())
    }
}

/// The body of a frame on its way down.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// No body.
    Empty,
    /// Bytes that are gone after the call: the port copies what it cannot send at once.
    Borrowed(&'a [u8]),
    /// Memory that the port may hold on to (by cloning the slices) until it is sent.
    Owned(&'a [Slice]),
}

impl Body<'_> {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        match self {
            Body::Empty => 0,
            Body::Borrowed(b) => b.len(),
            Body::Owned(s) => s.iter().map(Slice::len).sum(),
        }
    }

    /// `true` if there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One frame on its way down: header, inline part, body.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The protocol's header.
    pub header: [u8; HEADER_LEN],
    /// Up to [`INLINE_MAX`] bytes.
    pub inline: Inline,
    /// Up to `caps().max_body` bytes.
    pub body: Body<'a>,
    /// `true` if the frame may wait in the port until the next [`Port::flush`] or poll, so that several leave together.
    pub more: bool,
}

impl<'a> Frame<'a> {
    /// A frame that needs not wait for company: its bytes are the inline part if they are few, else the body.
    pub fn of_bytes(header: u128, bytes: &'a [u8]) -> Frame<'a> {
        let (inline, body) = match Inline::new(bytes) {
            Some(inline) => (inline, Body::Empty),
            None => (Inline::EMPTY, Body::Borrowed(bytes)),
        };
        Frame { header: header.to_le_bytes(), inline, body, more: false }
    }
}

/// A frame on its way up, as [`Port::next_small`] hands it over.
#[derive(Clone, Copy, Debug)]
pub struct Small {
    /// From where.
    pub conn: Conn,
    /// The protocol's header: [`HEADER_LEN`] bytes as two words, as they lie in memory.
    pub header: [u64; 2],
    /// The inline part.
    pub inline: Inline,
    /// Bytes of a body that waits to be taken.
    pub body_len: usize,
}

impl Small {
    /// Room for one.
    pub const EMPTY: Small =
        Small { conn: Conn(u64::MAX), header: [0; 2], inline: Inline::EMPTY, body_len: 0 };

    /// The header as bytes.
    #[inline]
    pub fn header_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&self.header[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&self.header[1].to_ne_bytes());
        bytes
    }
}

/// What [`Port::next_small`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A frame. It is consumed, unless it has a body: then [`Port::take_now`] or [`Port::take`] must follow.
    Frame,
    /// No frame.
    Nothing,
    /// Ask [`Port::poll`]: something else is due, or this port has no such short way.
    Poll,
}

bitflags::bitflags! {
    /// What peers may do with a window.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Rights: u8 {
        /// Peers may read.
        const READ = 1;
        /// Peers may write.
        const WRITE = 2;
        /// The exposure lasts for one transfer that the peer itself will end: it must be cheap, and of a pool's memory `revoke` need not
        /// stop a peer that goes on after it said it was done. Adopted memory is the program's heap again by then, and must be closed.
        const TRANSFER = 4;
    }
}

/// What a peer must show to reach exposed memory: the port's own bytes, carried by the protocol unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RemoteKey {
    /// Names the region, for the port.
    pub region: u64,
    /// Offset of the exposed memory in the region (shm) or its remote address (verbs).
    pub base: u64,
    /// Unguessable; checked by whoever serves the access.
    pub secret: u64,
}

/// Memory made reachable for one-sided access through a port. Revoke it with [`Port::revoke`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exposure {
    /// What the peer needs.
    pub key: RemoteKey,
    /// The port's own number for it.
    pub id: u64,
}

/// A one-sided operation.
#[derive(Debug)]
pub enum Rma {
    /// Fetch `landing.len()` bytes from the peer's memory.
    Read {
        /// Where they go.
        landing: Landing,
        /// The peer's key.
        key: RemoteKey,
        /// Offset in the exposed memory, bytes.
        offset: u64,
    },
    /// Store bytes into the peer's memory.
    Write {
        /// Where they come from.
        source: Slice,
        /// The peer's key.
        key: RemoteKey,
        /// Offset in the exposed memory, bytes.
        offset: u64,
    },
}

/// How to open a port.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Where to listen: a way's text of this provider (`0.0.0.0:7000`, an shm name); `None`: anywhere local.
    pub listen: Option<String>,
    /// Only this device (interface, card); `None`: whatever the address says.
    pub device: Option<String>,
    /// NUMA distance from where the endpoint runs to each node by number, in ACPI SLIT units (10 is there itself); empty: it runs
    /// anywhere. See [`PortConfig::weight`].
    pub distances: BTreeMap<u32, u32>,
    /// The fabric's key, if it has one.
    pub key: Option<FabricKey>,
    /// Encrypt traffic where the transport can be overheard. Only with a key.
    pub encrypt: bool,
    /// A connection not up after this time is reported down.
    pub connect_timeout: Duration,
    /// The most connections this port may have, both ways.
    pub max_conns: usize,
    /// The most connection attempts that may be under way at once.
    pub max_connecting: usize,
}

impl Default for PortConfig {
    fn default() -> Self {
        PortConfig {
            listen: None,
            device: None,
            distances: BTreeMap::new(),
            key: None,
            encrypt: true,
            connect_timeout: Duration::from_secs(5),
            max_conns: 65_536,
            max_connecting: 128,
        }
    }
}

impl PortConfig {
    /// The weight of a rail over a device: its link speed, less by as much as its node is farther than the nearest one.
    ///
    /// ```
    /// # use kfab_core::spi::PortConfig;
    /// let here = PortConfig { distances: [(0, 10), (1, 20)].into(), ..Default::default() };
    /// assert_eq!((here.weight(100_000, Some(0)), here.weight(100_000, Some(1))), (100_000, 50_000));
    /// assert_eq!(PortConfig::default().weight(100_000, Some(1)), 100_000);
    /// ```
    pub fn weight(&self, speed_mbit: u32, node: Option<u32>) -> u32 {
        let far = node.and_then(|n| self.distances.get(&n)).map_or(10, |d| u64::from(*d).max(10));
        u32::try_from(u64::from(speed_mbit) * 10 / far).unwrap_or(speed_mbit).max(1)
    }
}

/// A transport that can be opened here, or says why not.
pub trait Provider: Send + Sync {
    /// The scheme of its ways: `shm`, `tcp`, `verbs`, `sim`.
    fn scheme(&self) -> &'static str;

    /// The devices, at least one of which could be opened, or why there is none.
    fn probe(&self) -> std::result::Result<Vec<Device>, Unavailable>;

    /// The devices that an endpoint which names none opens a port on each: its rails. `listen` is where it wants to listen, if it says.
    /// Empty: one port serves, and `open` finds the place.
    fn rails(&self, listen: Option<&str>) -> Vec<String> {
        let _ = listen;
        Vec::new()
    }

    /// The limits that its ports keep, beside those of [`PortConfig`].
    fn limits(&self) -> Vec<ProviderLimit> {
        Vec::new()
    }

    /// Opens a port. `Kind::Unavailable` says why it cannot be.
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>>;
}

/// One device, driven by one lane. All calls return at once.
///
/// A transport writes thirteen of these. The others have defaults that are right for all: three say what is peculiar ([`Port::reaches`],
/// [`Port::epoch`], [`Port::deadline`]), five are short ways ([`Port::post_small`], [`Port::next_small`], [`Port::take_now`],
/// [`Port::write_now`], [`Port::read_now`]) that a transport adds where they are worth it: each does nothing that the long way does not.
pub trait Port: Send {
    /// What this port can do.
    fn caps(&self) -> &Caps;

    /// How peers reach this port; best first.
    fn ways(&self) -> Vec<Way>;

    /// Whether this port may lead to a way of its scheme: `false` where it is on another network. Asked once a peer, to pair rails.
    fn reaches(&self, way: &Way) -> bool {
        let _ = way;
        true
    }

    /// Another number than before when what was exposed before is gone although nobody revoked it (a card was taken out and put back). Peers are told
    /// it with the port's own, so that they use a key only on a connection that leads to what it opens.
    fn epoch(&self) -> u8 {
        0
    }

    /// Starts a connection; `Event::Up` or `Event::Down` follows. An error means the way makes no sense here.
    fn connect(&mut self, way: &Way) -> Result<Conn>;

    /// Closes a connection after what was accepted has been sent; `Event::Down` with `Closed` follows.
    fn close(&mut self, conn: Conn);

    /// Sends frames in order; the number accepted. Fewer than offered is back-pressure: `Event::Writable` will follow.
    /// On a connection that is not up any more everything is accepted and dropped, or, by a port whose delivery is
    /// [`Delivery::Process`](super::Delivery::Process) (nobody keeps what is sent there), nothing accepted; its `Event::Down` is on its way.
    fn post(&mut self, conn: Conn, frames: &[Frame<'_>]) -> usize;

    /// The short way down, for a frame that needs not wait for company: a header (as a little-endian number) and bytes, copied
    /// before this returns. At most [`INLINE_MAX`] travel beside the header, more are the body. `false`: back-pressure, as for
    /// [`Port::post`].
    fn post_small(&mut self, conn: Conn, header: u128, bytes: &[u8]) -> bool {
        self.post(conn, &[Frame::of_bytes(header, bytes)]) == 1
    }

    /// The short way up: the next frame, if nothing else is due. Frames come in the order in which `poll` would report them.
    fn next_small(&mut self, now_ns: u64, into: &mut Small) -> Next {
        let _ = (now_ns, into);
        Next::Poll
    }

    /// Sends what `Frame::more` let wait.
    fn flush(&mut self);

    /// Appends what happened to `events`, at most a bounded batch. `now_ns` is the caller's monotonic clock.
    /// Returns `false` if there was nothing to do (a spinning caller may then relax).
    fn poll(&mut self, now_ns: u64, events: &mut Vec<Event>) -> bool;

    /// Delivers the waiting body of the last frame of `conn`: into `landing` (as long as the body or longer: the first `body_len` bytes are filled;
    /// shorter: the rest is discarded), or nowhere. Returns `Some(landing)` if that happened within the call; else `Event::Taken` follows. Where any memory
    /// would do ([`Landing::is_any`]) another may come back, with the bytes (a port that reads ahead).
    fn take(&mut self, conn: Conn, landing: Option<Landing>) -> Option<Option<Landing>>;

    /// Delivers the body that [`Port::next_small`] announced, within the call: `into` has its length. `false` from ports that
    /// announce none there.
    fn take_now(&mut self, conn: Conn, into: &mut Landing) -> bool {
        let _ = (conn, into);
        false
    }

    /// Makes memory reachable for one-sided access by peers of this port.
    fn expose(&mut self, memory: &Slice, rights: Rights) -> Result<Exposure>;

    /// Ends an exposure. When this returns no peer can reach the memory any more, and none is in the middle of it.
    fn revoke(&mut self, exposure: Exposure);

    /// Starts a one-sided operation. `RmaStarted::Done` with the landing (reads) or `None` (writes) means that it ended within the call;
    /// else `Event::RmaDone` with `token` follows.
    fn rma(&mut self, conn: Conn, rma: Rma, token: RmaToken) -> RmaStarted;

    /// The short way to store bytes in the peer's memory: `true` if they are there. `false`: they are not, and [`Port::rma`] can it, or says why
    /// not.
    fn write_now(&mut self, conn: Conn, key: &RemoteKey, offset: u64, bytes: &[u8]) -> bool {
        let _ = (conn, key, offset, bytes);
        false
    }

    /// The short way to fetch from the peer's memory, as [`Port::write_now`] is to store.
    fn read_now(&mut self, conn: Conn, key: &RemoteKey, offset: u64, into: &mut Landing) -> bool {
        let _ = (conn, key, offset, into);
        false
    }

    /// A descriptor that becomes readable when there is work, after [`Port::arm`] returned `true`.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Prepares to sleep on [`Port::fd`]. `false`: there is work already, poll first.
    fn arm(&mut self) -> bool;

    /// The next time (caller's clock, ns) at which the port wants to be polled although nothing arrived.
    fn deadline(&self) -> Option<u64> {
        None
    }
}

/// How far [`Port::rma`] came within the call.
#[derive(Debug)]
pub enum RmaStarted {
    /// It ended; the landing of a read is handed back.
    Done(Option<Landing>),
    /// `Event::RmaDone` will follow.
    Pending,
    /// It cannot be done; nothing happened at the peer. The landing of a read is handed back.
    Failed(Option<Landing>, crate::Error),
}
