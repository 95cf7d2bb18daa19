//! Endpoints, peers and messages: the verbs.

use crate::config::EndpointConfig;
use crate::doors::Doors;
use crate::lane::{Begun, Lane};
use crate::letter::Letter;
use crate::observe::Ends;
use crate::op::sealed::Finish as _;
use crate::op::{Finish, Op};
use crate::share::Share;
use crate::window::{Notice, Window};
use kfab_core::mem::{Buffer, Room};
use kfab_core::spi::{Address, Rights};
use kfab_core::{Error, Result};
use kfab_proto::{
    FaultId, FaultRule, Limits, OpId, Outcome, Payload, Peeked, PeerId, SendOptions, Started, Want, WindowKey,
};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A place in the fabric: sends to peers, receives from anyone who knows its address. Dropping it says goodbye to all peers and ends
/// every operation with [`kfab_core::Kind::Closed`]; in a forked child it does nothing (see [the crate](crate)).
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// let peer = there.peer(&here.address().to_string())?;
/// peer.send_tagged(0x107, "for whoever wants 7s").wait()?;
/// peer.send("for anyone").wait()?;
/// assert_eq!(&here.recv().wait()?[..], b"for anyone");
/// // The upper bits may be anything.
/// assert_eq!(here.recv_tagged(7, !0xff).wait()?.tag(), Some(0x107));
/// assert_eq!(here.stats().lane.ops, 0);
/// # Ok(()) }
/// ```
pub struct Endpoint {
    pub(crate) lane: Arc<Lane>,
    /// The lane's: an event loop of the user's sleeps on them.
    doors: Arc<Doors>,
    missing: Vec<String>,
    pub(crate) config: EndpointConfig,
    #[cfg_attr(
        not(any(feature = "serde", feature = "prometheus")),
        expect(dead_code, reason = "nobody else ends with it")
    )]
    pub(crate) ends: Ends,
}

#[inline(always)]
pub(crate) fn op<T: Finish>(lane: &Arc<Lane>, r: Result<Started>) -> Op<T> {
    match r {
        Ok(Started::Done(o)) => Op::ready(T::finish(o, || T::Hold::from(lane))),
        Ok(Started::Pending(id)) => Op::pending(T::Hold::from(lane), id),
        Err(e) => Op::ready(Err(e)),
    }
}

/// An operation that hands nothing over.
#[inline(always)]
fn unit(lane: &Arc<Lane>, r: Result<Option<OpId>>) -> Op<()> {
    match r {
        Ok(None) => Op::ready(Ok(())),
        Ok(Some(id)) => Op::pending(Share::from(lane), id),
        Err(e) => Op::ready(Err(e)),
    }
}

/// A receive: small messages may be there already.
#[inline(always)]
fn recv(lane: &Arc<Lane>, want: Want, into: Option<Buffer>) -> Op<Message> {
    let mut letter = Letter::from(lane);
    let (lane, place) = letter.split();
    place.body = into;
    match lane.recv(want, place) {
        Begun::Here => Op::ready(Ok(Message(letter))),
        Begun::Pending(id) => Op::pending(letter, id),
        Begun::Ended(r) => Op::ready(r.and_then(|o| Message::finish(*o, || letter))),
    }
}

impl Endpoint {
    pub(crate) fn new(lane: Arc<Lane>, missing: Vec<String>, config: EndpointConfig) -> Endpoint {
        let doors = lane.doors().expect("it was just opened");
        Endpoint { lane, doors, missing, config, ends: Ends::default() }
    }

    /// The ways to this endpoint, best first, as one string to give to peers.
    pub fn address(&self) -> &Address {
        &self.lane.address
    }

    /// Providers, and devices that would be rails, which could not be opened, and why: `verbs: there is no libibverbs`.
    pub fn unavailable(&self) -> &[String] {
        &self.missing
    }

    /// The peer at an address (its text, whole or any part of the ways). No connection is made before it is needed, and the ways are not
    /// looked at before: that no provider here has such a scheme, or cannot read what follows, is the error of the first operation. Host
    /// names are not resolved: `tcp:10.0.0.5:7000`, not `tcp:localhost:7000`. `InvalidArgument` for what is no list of `SCHEME:WHERE`,
    /// `Closed` in a forked child.
    pub fn peer(&self, address: &str) -> Result<Peer> {
        self.lane.check_home("peer")?;
        let address: Address = address.parse()?;
        let id = self.lane.with(|m, io| m.peer(io, &address))?;
        Ok(Peer { lane: Share::from(&self.lane), id })
    }

    /// Receives an untagged message from anyone. The oldest that waits is taken first. A sender that gives a message up, or dies with it on its way, does
    /// not end the receive, which waits for the next; one of a certain peer ([`Recv::from`]) ends as `PeerLost` when that dies. A server may
    /// thus treat its errors as its own.
    #[inline(always)]
    pub fn recv(&self) -> Op<Message> {
        recv(&self.lane, Want::default(), None)
    }

    /// Receives a message whose tag equals `tag` in every bit that is 0 in `ignore`. A tag that nobody asks for any more (an answer after
    /// its deadline) must be taken all the same: see [`Op::within`].
    #[inline]
    pub fn recv_tagged(&self, tag: u64, ignore: u64) -> Op<Message> {
        recv(&self.lane, Want { tag: Some((tag, ignore)), from: None }, None)
    }

    /// A receive with more to say: from one peer only, into a buffer of yours.
    pub fn recv_with(&self) -> Recv<'_> {
        Recv { endpoint: self, want: Want::default(), into: None }
    }

    /// The first message that waits for a receive like this, from anyone, left where it is ([`Recv::peek`] asks for one peer's). Makes
    /// progress.
    pub fn peek(&self, tag: Option<(u64, u64)>) -> Option<Peeked> {
        Recv { want: Want { tag, from: None }, ..self.recv_with() }.peek()
    }

    /// A buffer of `len` bytes from the endpoint's slab: sent and received without a copy where the provider can.
    pub fn buffer(&self, len: usize) -> Result<Buffer> {
        let pool = self.lane.lock().pool.clone();
        pool.alloc(len)
    }

    /// A window of `len` zeroed bytes that peers with its key may use as `rights` say.
    pub fn window(&self, len: usize, rights: Rights) -> Result<Window> {
        Window::shared(&self.lane, len, rights)
    }

    /// A window over a buffer, for reading only. A part of a buffer is [`Buffer::slice`].
    pub fn window_of(&self, buffer: Buffer) -> Result<Window> {
        Window::of_buffer(&self.lane, buffer)
    }

    /// One round of progress; `true` if there was something to do. Never blocks.
    pub fn progress(&self) -> bool {
        let mut s = self.lane.lock();
        s.turns += 1;
        let busy = s.poll();
        self.lane.leave(&mut s);
        busy
    }

    /// Prepares to sleep on the endpoint's descriptor ([`AsFd`]) in an event loop of yours: `true`, sleep now, it becomes readable
    /// when [`Endpoint::progress`] has work or another thread, the helper too, has done it; `false`, there is or was work: look at your
    /// operations again, then call this again. Timers need a call every [`Limits::probe_after`] all the same, unless the helper
    /// thread runs. One event loop for an endpoint.
    pub fn arm(&self) -> bool {
        self.lane.arm_for_user()
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.lane.lock().machine.limits().clone()
    }

    /// Adds a fault on purpose; see [`FaultRule`].
    ///
    /// ```
    /// # fn main() -> kfab::Result<()> {
    /// # let fabric = kfab::Fabric::new((kfab_sockets::Sockets,));
    /// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
    /// # let peer = there.peer(&here.address().to_string())?;
    /// # peer.send("the first").wait()?;
    /// # here.recv().wait()?;
    /// use kfab::{FaultAction, FaultRule};
    /// let rule = FaultRule { peer: None, port: None, action: FaultAction::Duplicate, chance: 1.0, seed: 1 };
    /// let id = there.add_fault(rule)?;
    /// peer.send("once").wait()?;
    /// peer.send("and no more").wait()?;
    /// assert_eq!(&here.recv().wait()?[..], b"once");
    /// assert_eq!(&here.recv().wait()?[..], b"and no more");
    /// assert!(there.remove_fault(id) > Some(0), "it has struck");
    /// # Ok(()) }
    /// ```
    pub fn add_fault(&self, rule: FaultRule) -> Result<FaultId> {
        self.lane.with(|m, io| m.add_fault(io, rule))
    }

    /// Removes a fault; how often it struck.
    pub fn remove_fault(&self, id: FaultId) -> Option<u64> {
        self.lane.with(|m, _| m.remove_fault(id))
    }

    /// How threads and memory were placed, and what could not be.
    pub fn placement(&self) -> Vec<kfab_topo::Placement> {
        let threads = self.lane.placement.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let slabs = self.lane.lock().pool.bound();
        let slabs = slabs.map(|(node, outcome)| kfab_topo::Placement::of_memory("slabs", node, outcome));
        threads.into_iter().chain(slabs).collect()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.lane.close();
        Share::forget(&self.lane);
        Letter::forget(&self.lane);
    }
}

impl AsFd for Endpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.doors.user()
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({})", self.lane.address)
    }
}

/// A receive being described; [`Recv::post`] starts it, [`Recv::post_all`] if it has several buffers, [`Recv::pool`] many like it.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// # let peer = there.peer(&here.address().to_string())?;
/// peer.send_tagged(5, &[1; 3000]).wait()?;
/// peer.send_tagged(5, "done").wait()?;
/// let message = here.recv_with().tag(5, 0).into(here.buffer(4096)?).post().wait()?;
/// let sender = message.from();
/// // The buffer is its own again, in its full length.
/// assert_eq!((message.len(), message.into_buffer()?.len()), (3000, 4096));
/// let next = here.recv_with().tag(5, 0).from(&sender);
/// while next.peek().is_none() {}
/// assert_eq!(&next.post().wait()?[..], b"done");
/// # Ok(()) }
/// ```
#[must_use = "a receive starts with `post`"]
pub struct Recv<'a> {
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) want: Want,
    pub(crate) into: Option<Buffer>,
}

impl Recv<'_> {
    /// Only tagged messages whose tag equals `tag` in every bit that is 0 in `ignore`.
    pub fn tag(mut self, tag: u64, ignore: u64) -> Self {
        self.want.tag = Some((tag, ignore));
        self
    }

    /// Only from this peer. If it dies, the receive ends with `PeerLost`.
    pub fn from(mut self, peer: &Peer) -> Self {
        self.want.from = Some(peer.id);
        self
    }

    /// Into this buffer, which must have no other owner. A larger message ends the receive with `Truncated` and is gone with the buffer,
    /// and its sender is told nothing: [`Recv::peek`] tells the length first.
    pub fn into(mut self, buffer: Buffer) -> Self {
        self.into = Some(buffer);
        self
    }

    /// The first message that waits for a receive like this, left where it is: its sender, tag and length, to choose a buffer by, say.
    /// A large one is still with its sender; if that dies first, it is gone. Makes progress.
    pub fn peek(&self) -> Option<Peeked> {
        let lane = &self.endpoint.lane;
        let mut s = lane.lock();
        s.poll();
        let p = s.machine.peek(self.want);
        lane.leave(&mut s);
        p
    }

    /// Starts it.
    #[inline(always)]
    pub fn post(self) -> Op<Message> {
        recv(&self.endpoint.lane, self.want, self.into)
    }
}

/// A peer of an endpoint. Cheap to clone; an error after the peer is gone, or was forgotten because others needed its place
/// ([`Limits::max_peers`]): [`Endpoint::peer`] then gives a new one.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// let peer = there.peer(&here.address().to_string())?;
/// let mut buffer = there.buffer(8)?;
/// buffer.get_mut().expect("a new buffer has one owner").copy_from_slice(b"no copy!");
/// peer.send(vec![buffer.clone(), buffer]).wait()?;
/// assert_eq!(&here.recv().wait()?[..], b"no copy!no copy!");
///
/// let window = here.window_of(vec![7; 100].into())?;
/// let read = peer.read(window.key(), 90, there.buffer(10)?).wait()?;
/// assert_eq!(read[..], [7; 10]);
/// drop(here);
/// let delivered = kfab::SendOptions { delivered: true, ..Default::default() };
/// assert_eq!(peer.send_with("anybody?", delivered).wait().unwrap_err().kind(), kfab::Kind::PeerLost);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Peer {
    lane: Share,
    id: PeerId,
}

impl Peer {
    pub(crate) fn new(lane: Share, id: PeerId) -> Peer {
        Peer { lane, id }
    }

    /// Its name on this endpoint.
    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Sends a message: bytes (copied before this returns), a [`Buffer`] or several (sent from where they lie). Ends when the memory is
    /// free again: few bytes that are copied at once; a buffer when the peer has fetched it, over tcp when the peer has acknowledged
    /// it, which waits for company, 50 us at most. Waits, in its `Op`, while the peer has no credit
    /// left; `PeerLost` if the peer dies. One that waits for a restarted peer finds it at the next attempt to connect, up to the longest
    /// pause of [`Limits::reconnect`] (1 s) later.
    #[inline(always)]
    pub fn send<'a>(&self, payload: impl Into<Payload<'a>>) -> Op<()> {
        self.send_with(payload, SendOptions::default())
    }

    /// Sends a message with a tag.
    #[inline]
    pub fn send_tagged<'a>(&self, tag: u64, payload: impl Into<Payload<'a>>) -> Op<()> {
        self.send_with(payload, SendOptions { tag: Some(tag), ..Default::default() })
    }

    /// Sends a message: tagged or not, in order or not, ended by the peer's having it or by the memory's being free
    /// ([`SendOptions::delivered`]).
    #[inline(always)]
    pub fn send_with<'a>(&self, payload: impl Into<Payload<'a>>, options: SendOptions) -> Op<()> {
        self.send_as(payload.into(), &options)
    }

    /// The options by reference: a copy of what has just been written waits until the line of the message before has left.
    #[inline(always)]
    fn send_as(&self, payload: Payload<'_>, options: &SendOptions) -> Op<()> {
        match payload {
            Payload::Bytes(b) if self.lane.send_now(self.id, b, false, options) => Op::ready(Ok(())),
            Payload::Bytes(b) => self.send_long(Payload::Bytes(b), options),
            Payload::Buffer(b) if self.lane.send_now(self.id, &b, true, options) => Op::ready(Ok(())),
            Payload::Buffer(b) => self.send_buffer(b, options),
            Payload::Buffers(v) => self.send_long(Payload::Buffers(v), options),
        }
    }

    #[inline(never)]
    fn send_buffer(&self, from: Buffer, options: &SendOptions) -> Op<()> {
        let mut from = Some(from);
        match (self.lane.promise_now(self.id, &mut from, options), from) {
            (Some(op), _) => Op::pending(Share::from(&*self.lane), op),
            (None, Some(b)) => self.send_long(Payload::Buffer(b), options),
            (None, None) => unreachable!("a promise that is not made leaves the buffer"),
        }
    }

    #[inline(never)]
    fn send_long(&self, payload: Payload<'_>, options: &SendOptions) -> Op<()> {
        self.lane.look_for_credit(self.id);
        unit(&self.lane, self.lane.with(|m, io| m.send(io, self.id, payload, *options)))
    }

    /// Reads from the peer's window, starting at byte `offset`, as many bytes as the buffer has. The peer takes no part where the provider
    /// allows it. `AccessDenied` if the window is closed or not for reading, `InvalidArgument` if the range is outside of it.
    pub fn read(&self, key: &WindowKey, offset: u64, into: Buffer) -> Op<Buffer> {
        match self.lane.read_now(self.id, key, offset, into) {
            Ok(buffer) => Op::ready(Ok(buffer)),
            Err(into) => self.read_long(key, offset, into, None),
        }
    }

    /// [`Peer::read`] into several buffers, one after the other, as many bytes as they have together: one operation, which ends when all
    /// of them are filled. Where the peer takes no part each buffer is a read of its own; if they are more than the provider has under way
    /// at once, the peer is asked for all of it instead.
    pub fn read_all(&self, key: &WindowKey, offset: u64, into: Vec<Buffer>) -> Op<Vec<Buffer>> {
        self.read_long(key, offset, into, None)
    }

    #[inline(never)]
    fn read_long<T: Finish + Into<Room>>(
        &self,
        key: &WindowKey,
        offset: u64,
        into: T,
        notice: Option<u64>,
    ) -> Op<T> {
        op(&self.lane, self.lane.with(|m, io| m.read(io, self.id, key, offset, into, notice)))
    }

    /// Writes into the peer's window, starting at byte `offset`. Ends when the bytes are there.
    #[inline(always)]
    pub fn write<'a>(&self, key: &WindowKey, offset: u64, payload: impl Into<Payload<'a>>) -> Op<()> {
        match payload.into() {
            Payload::Bytes(b) if self.lane.write_now(self.id, key, offset, b) => Op::ready(Ok(())),
            Payload::Buffer(b) if self.lane.write_now(self.id, key, offset, &b) => Op::ready(Ok(())),
            payload => self.write_long(key, offset, payload, None),
        }
    }

    #[inline(never)]
    fn write_long(&self, key: &WindowKey, offset: u64, payload: Payload<'_>, notice: Option<u64>) -> Op<()> {
        unit(&self.lane, self.lane.with(|m, io| m.write(io, self.id, key, offset, payload, notice)))
    }

    /// [`Peer::read`], and tells the window's owner at the end: `value` comes out of its [`Window::notice`]. Costs a credit, as a
    /// message does, until the owner takes the notice; without credit the operation waits with its end.
    pub fn read_notify(&self, key: &WindowKey, offset: u64, into: Buffer, value: u64) -> Op<Buffer> {
        self.read_long(key, offset, into, Some(value))
    }

    /// [`Peer::write`], and tells the window's owner, exactly once and after the bytes are there: `value` comes out of its
    /// [`Window::notice`]. Costs a credit as [`Peer::read_notify`] does. Of no bytes it is a mere signal.
    pub fn write_notify<'a>(
        &self,
        key: &WindowKey,
        offset: u64,
        payload: impl Into<Payload<'a>>,
        value: u64,
    ) -> Op<()> {
        self.write_long(key, offset, payload.into(), Some(value))
    }

    /// What is known about the peer; `None` if it is gone.
    pub fn info(&self) -> Option<kfab_proto::PeerInfo> {
        self.lane.lock().machine.peer_info(self.id)
    }
}

impl PartialEq for Peer {
    fn eq(&self, other: &Peer) -> bool {
        self.lane.same(&other.lane) && self.id == other.id
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

/// A received message. Dereferences to its bytes.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// # there.peer(&here.address().to_string())?.send_tagged(9, "bytes").wait()?;
/// let message = here.recv_tagged(9, 0).wait()?;
/// assert_eq!((&message[..], message.tag()), (&b"bytes"[..], Some(9)));
/// message.from().send(&message).wait()?;
/// let kept: kfab::Buffer = message.into_buffer()?;
/// assert_eq!(kept[..], there.recv().wait()?[..]);
/// # Ok(()) }
/// ```
pub struct Message(pub(crate) Letter);

impl Message {
    /// Who sent it: to answer.
    pub fn from(&self) -> Peer {
        Peer { lane: Share::from(&*self.0), id: self.0.message().from }
    }

    /// The tag, of a tagged message.
    pub fn tag(&self) -> Option<u64> {
        self.0.message().tag
    }

    /// The memory it came in: the buffer given to the receive in its full length, or a fresh one; few bytes are copied into one.
    pub fn into_buffer(mut self) -> Result<Buffer> {
        if let Some(buffer) = self.0.split().1.body.take() {
            return Ok(buffer);
        }
        let pool = self.0.lock().pool.clone();
        pool.copy_from(&self)
    }
}

impl Deref for Message {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.0.message().bytes()
    }
}

impl<'a> From<&'a Message> for Payload<'a> {
    fn from(m: &'a Message) -> Payload<'a> {
        Payload::Bytes(m)
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({} bytes from {:?}, tag {:?})", self.len(), self.0.message().from, self.tag())
    }
}

/// Keeps the compiler honest about what users may do.
const _: () = {
    const fn shareable<T: Send + Sync>() {}
    shareable::<Endpoint>();
    shareable::<Peer>();
    shareable::<Message>();
    shareable::<Window>();
    shareable::<Notice>();
    shareable::<OpId>();
    shareable::<Error>();
    const fn sendable<T: Send>() {}
    sendable::<Op<Message>>();
    sendable::<Outcome>();
};
