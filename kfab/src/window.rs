//! Windows: memory that peers who hold the key may read or write without our doing; and the notices of what they did.

use crate::endpoint::Peer;
use crate::lane::Lane;
use crate::op::Op;
use crate::op::sealed::{Finish, GiveBack};
use crate::share::Share;
use kfab_core::Result;
use kfab_core::mem::{Buffer, WindowMem};
use kfab_core::spi::Rights;
use kfab_proto::{Outcome, Started, WindowId, WindowKey, WindowMemory};
use std::sync::Arc;

/// Memory opened to peers. Send [`Window::key`] to those who may use it. Dropping it closes it: when the drop returns, no peer
/// can reach the memory any more and none is in the middle of it. A read that goes by messages (tcp) ends there, with what has left
/// by then. The one thing that goes on is a frame of a write by messages whose bytes are just being received: they end in memory that you
/// hold on to with [`Window::memory`].
///
/// Reads and writes by the owner are copies; one that races with a peer's may be torn. Agree on an order with messages or notices.
///
/// ```
/// # fn main() -> kfab::Result<()> {
/// # let fabric = kfab::Fabric::new((kfab_shm::Shm,));
/// # let (here, there) = (fabric.endpoint()?, fabric.endpoint()?);
/// let window = here.window(1 << 20, kfab::Rights::READ | kfab::Rights::WRITE)?;
/// // The key travels in a message, as bytes.
/// let key = kfab::WindowKey::from_bytes(&window.key().to_bytes())?;
/// let peer = there.peer(&here.address().to_string())?;
/// peer.write(&key, 1000, "to and fro").wait()?;
/// let mut bytes = [0; 10];
/// window.read_at(1000, &mut bytes);
/// assert_eq!(&bytes, b"to and fro");
/// drop(window);
/// assert_eq!(peer.write(&key, 0, "late").wait().unwrap_err().kind(), kfab::Kind::AccessDenied);
/// # Ok(()) }
/// ```
pub struct Window {
    lane: Arc<Lane>,
    id: WindowId,
    key: WindowKey,
    memory: WindowMemory,
}

impl Window {
    pub(crate) fn open(lane: &Arc<Lane>, memory: WindowMemory, rights: Rights) -> Result<Window> {
        lane.check_home("window")?;
        let (id, key) = lane.with(|m, io| m.open_window(io, memory.clone(), rights))?;
        Ok(Window { lane: lane.clone(), id, key, memory })
    }

    pub(crate) fn shared(lane: &Arc<Lane>, len: usize, rights: Rights) -> Result<Window> {
        lane.check_home("window")?;
        let memory = lane.lock().pool.alloc_window(len)?;
        Window::open(lane, WindowMemory::Shared(memory), rights)
    }

    pub(crate) fn of_buffer(lane: &Arc<Lane>, buffer: Buffer) -> Result<Window> {
        Window::open(lane, WindowMemory::ReadOnly(buffer), Rights::READ)
    }

    /// What a peer needs to use the window; unguessable.
    pub fn key(&self) -> &WindowKey {
        &self.key
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.key.len() as usize
    }

    /// `true` for a window of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the window's bytes from `at` on into `dst`; the number copied.
    pub fn read_at(&self, at: usize, dst: &mut [u8]) -> usize {
        match &self.memory {
            WindowMemory::Shared(m) => m.read(at, dst),
            WindowMemory::ReadOnly(b) => {
                let part = b.get(at..).unwrap_or(&[]);
                let n = part.len().min(dst.len());
                dst[..n].copy_from_slice(&part[..n]);
                n
            }
        }
    }

    /// Copies `src` into the window from `at` on; the number copied, 0 for a window over a [`Buffer`], which is read-only.
    pub fn write_at(&self, at: usize, src: &[u8]) -> usize {
        match &self.memory {
            WindowMemory::Shared(m) => m.write(at, src),
            WindowMemory::ReadOnly(_) => 0,
        }
    }

    /// Waits for the next notice: a peer has ended a [`Peer::write_notify`] or [`Peer::read_notify`] on this window, and its bytes are in
    /// their place (or have been read). Each is told once, in no promised order; those that nobody waits for stay, and their senders'
    /// credits with them. To drop the operation loses no notice.
    ///
    /// # Errors
    /// `Closed` when the window or the endpoint is closed. The death of a peer ends no wait, for another may be about to write: a
    /// receive from it ([`Recv::from`](crate::Recv::from)) does, and so does [`FabricEvent::PeerLost`](crate::FabricEvent) in the stream.
    ///
    /// ```
    /// # fn main() -> kfab::Result<()> {
    /// # let fabric = kfab::Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets));
    /// # let (owner, client) = (fabric.endpoint()?, fabric.endpoint()?);
    /// let window = owner.window(1 << 16, kfab::Rights::WRITE)?;
    /// let peer = client.peer(&owner.address().to_string())?;
    /// // In the client, which has got the key in a message:
    /// let written = peer.write_notify(window.key(), 100, b"block 7", 7);
    /// // In the owner:
    /// let notice = window.notice().wait()?;
    /// let mut block = vec![0; notice.bytes() as usize];
    /// window.read_at(100, &mut block);
    /// assert_eq!((notice.value(), &block[..]), (7, &b"block 7"[..]));
    /// notice.from().send("thank you").wait()?;
    /// written.wait()
    /// # }
    /// ```
    pub fn notice(&self) -> Op<Notice> {
        match self.lane.with(|m, _| m.recv_notice(self.id)) {
            Ok(Started::Pending(id)) => Op::pending(Share::from(&self.lane), id),
            Ok(Started::Done(o)) => Op::ready(Notice::finish(o, || Share::from(&self.lane))),
            Err(e) => Op::ready(Err(e)),
        }
    }

    /// The window's shared memory, if peers may write it. It may outlive the window.
    pub fn memory(&self) -> Option<&WindowMem> {
        match &self.memory {
            WindowMemory::Shared(m) => Some(m),
            WindowMemory::ReadOnly(_) => None,
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if self.lane.is_at_home() {
            self.lane.with(|m, io| m.close_window(io, self.id));
        }
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Window({} bytes, {:?})", self.len(), self.key.rights())
    }
}

/// A peer's word that its access to a window has ended. See [`Window::notice`].
pub struct Notice {
    lane: Share,
    inner: kfab_proto::Notice,
}

impl Notice {
    pub(crate) fn new(lane: Share, inner: kfab_proto::Notice) -> Notice {
        Notice { lane, inner }
    }

    /// Whose access it was: to answer.
    pub fn from(&self) -> Peer {
        Peer::new(self.lane.clone(), self.inner.from)
    }

    /// What the peer says about it: the number it gave.
    pub fn value(&self) -> u64 {
        self.inner.value
    }

    /// Bytes that the peer read or wrote, by its own account.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes
    }

    /// Which of the two: [`Rights::READ`] or [`Rights::WRITE`].
    pub fn access(&self) -> Rights {
        self.inner.access
    }
}

impl GiveBack for Notice {
    fn give_back(self) {
        self.lane.give_back(Outcome::Notice(self.inner));
    }
}

impl std::fmt::Debug for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Notice({} of {} bytes, {:?})", self.value(), self.bytes(), self.access())
    }
}
