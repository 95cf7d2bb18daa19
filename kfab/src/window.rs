//! Windows: memory that peers who hold the key may read or write without our doing.

use crate::lane::Lane;
use kfab_core::Result;
use kfab_core::mem::{Buffer, WindowMem};
use kfab_core::spi::Rights;
use kfab_proto::{WindowId, WindowKey, WindowMemory};
use std::sync::Arc;

/// Memory opened to peers. Send [`Window::key`] to those who may use it. Dropping it closes it: when the drop returns, no peer
/// can reach the memory any more and none is in the middle of it.
///
/// Reads and writes by the owner are copies; one that races with a peer's may be torn. Agree on an order with messages.
pub struct Window {
    lane: Arc<Lane>,
    id: WindowId,
    key: WindowKey,
    memory: WindowMemory,
}

impl Window {
    pub(crate) fn open(lane: &Arc<Lane>, memory: WindowMemory, rights: Rights) -> Result<Window> {
        let (id, key) = lane.with(|m, io| m.open_window(io, memory.clone(), rights))?;
        Ok(Window { lane: lane.clone(), id, key, memory })
    }

    pub(crate) fn shared(lane: &Arc<Lane>, len: usize, rights: Rights) -> Result<Window> {
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

    /// The window's shared memory, if peers may write it.
    pub fn memory(&self) -> Option<&WindowMem> {
        match &self.memory {
            WindowMemory::Shared(m) => Some(m),
            WindowMemory::ReadOnly(_) => None,
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.lane.with(|m, io| m.close_window(io, self.id));
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Window({} bytes, {:?})", self.len(), self.key.rights())
    }
}
