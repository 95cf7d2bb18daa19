//! Windows and one-sided access. A port that can do it serves the access alone; else the owner's machine does, by messages. Either
//! way rights and range are checked by whoever serves, and a dropped window is closed before the drop returns.

use crate::machine::{Io, Machine};
use crate::message::*;
use crate::ops::Proto;
use crate::peer::{Out, Stream};
use crate::receive::Taking;
use crate::wire::*;
use kfab_core::mem::{Assembly, Buffer, Landing, Slice, WindowMem};
use kfab_core::spi::{Exposure, Inline, RemoteKey, Rights, Rma, RmaStarted, RmaToken};
use kfab_core::{Error, Fate, Kind, Result};
use std::collections::HashMap;
use zerocopy::IntoBytes;

/// An open window, as its owner names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WindowId(pub(crate) u64);

/// The memory of a window.
#[derive(Clone, Debug)]
pub enum WindowMemory {
    /// Peers may only read it.
    ReadOnly(Buffer),
    /// Peers may write it.
    Shared(WindowMem),
}

impl WindowMemory {
    fn source(&self) -> Slice {
        match self {
            WindowMemory::ReadOnly(b) => b.as_source(),
            WindowMemory::Shared(w) => w.as_source(),
        }
    }
}

/// What a peer needs to reach a window: unguessable, sent to it in a message.
///
/// As bytes: owner u64, window u64, secret u64, length u64, rights u8, number of ports u8 (at most [`WindowKey::MAX_PORTS`]), then
/// for each a port number u16 and three u64. Little-endian.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WindowKey {
    owner: u64,
    window: u64,
    secret: u64,
    len: u64,
    rights: Rights,
    ports: Vec<(u16, RemoteKey)>,
}

impl WindowKey {
    /// The most ports a key tells about.
    pub const MAX_PORTS: usize = 8;
    /// The longest form in bytes.
    pub const MAX_LEN: usize = 34 + Self::MAX_PORTS * 26;

    /// Bytes of the window.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// `true` for a window of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What may be done with it.
    pub fn rights(&self) -> Rights {
        self.rights
    }

    /// The form that travels in a message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut b = Vec::with_capacity(Self::MAX_LEN);
        for n in [self.owner, self.window, self.secret, self.len] {
            b.extend_from_slice(&n.to_le_bytes());
        }
        b.extend_from_slice(&[self.rights.bits(), self.ports.len() as u8]);
        for (port, k) in &self.ports {
            b.extend_from_slice(&port.to_le_bytes());
            for n in [k.region, k.base, k.secret] {
                b.extend_from_slice(&n.to_le_bytes());
            }
        }
        b
    }

    /// Reads a key from exactly its bytes; `Kind::InvalidArgument` for anything else.
    pub fn from_bytes(b: &[u8]) -> Result<WindowKey> {
        Self::parse(b).ok_or_else(|| {
            Error::new(Kind::InvalidArgument, "window key", format!("{} bytes that are no key", b.len()))
        })
    }

    fn parse(b: &[u8]) -> Option<WindowKey> {
        let word = |at: usize| Some(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?));
        let n = usize::from(*b.get(33)?);
        if n > Self::MAX_PORTS || b.len() != 34 + n * 26 {
            return None;
        }
        let port = |i: usize| {
            let at = 34 + i * 26;
            let number = u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?);
            Some((number, RemoteKey { region: word(at + 2)?, base: word(at + 10)?, secret: word(at + 18)? }))
        };
        Some(WindowKey {
            owner: word(0)?,
            window: word(8)?,
            secret: word(16)?,
            len: word(24)?,
            rights: Rights::from_bits(*b.get(32)?)?,
            ports: (0..n).map(port).collect::<Option<_>>()?,
        })
    }
}

#[derive(Debug)]
struct Window {
    memory: WindowMemory,
    rights: Rights,
    secret: u64,
    exposed: Vec<(usize, Exposure)>,
}

/// The windows of a lane.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    open: HashMap<u64, Window>,
    next: u64,
}

impl Windows {
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// The window, if the secret, the right and the range are good.
    fn check(&self, a: &Access, len: u64, right: Rights) -> Option<&Window> {
        let w = self.open.get(&a.window.get())?;
        let end = a.offset.get().checked_add(len)?;
        (w.secret == a.secret.get() && w.rights.contains(right) && end <= w.memory.source().len() as u64)
            .then_some(w)
    }
}

fn denied(op: &'static str) -> Error {
    Error::new(Kind::AccessDenied, op, "the window's owner refused: key, right or range")
        .with_fate(Fate::Refused)
}

impl Machine {
    /// Opens memory to peers that are given the key. Memory that peers may write must be [`WindowMemory::Shared`].
    pub fn open_window(
        &mut self,
        io: &mut Io<'_>,
        memory: WindowMemory,
        rights: Rights,
    ) -> Result<(WindowId, WindowKey)> {
        if rights.contains(Rights::WRITE) && matches!(memory, WindowMemory::ReadOnly(_)) {
            return Err(Error::new(
                Kind::InvalidArgument,
                "window",
                "peers cannot be given write access to a Buffer",
            ));
        }
        let secret = kfab_core::auth::random_u64()?;
        self.windows.next += 1;
        let id = self.windows.next;
        let source = memory.source();
        let (mut exposed, mut ports) = (Vec::new(), Vec::new());
        for (i, port) in io.ports.iter_mut().enumerate().take(WindowKey::MAX_PORTS) {
            if port.caps().rma
                && let Ok(e) = port.expose(&source, rights)
            {
                ports.push((i as u16, e.key));
                exposed.push((i, e));
            }
        }
        let key =
            WindowKey { owner: self.identity, window: id, secret, len: source.len() as u64, rights, ports };
        self.windows.open.insert(id, Window { memory, rights, secret, exposed });
        Ok((WindowId(id), key))
    }

    /// Closes a window: when this returns no peer can reach the memory any more.
    pub fn close_window(&mut self, io: &mut Io<'_>, id: WindowId) {
        if let Some(w) = self.windows.open.remove(&id.0) {
            w.exposed.into_iter().for_each(|(port, e)| io.ports[port].revoke(e));
        }
    }

    pub(crate) fn close_windows(&mut self, io: &mut Io<'_>) {
        let ids: Vec<_> = self.windows.open.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close_window(io, WindowId(id)));
    }

    /// Reads `into.len()` bytes at `offset` of a peer's window.
    pub fn read(
        &mut self,
        io: &mut Io<'_>,
        from: PeerId,
        key: &WindowKey,
        offset: u64,
        into: Buffer,
    ) -> Result<Started> {
        let pi = self.peer_index(from, "read")?;
        self.check_access(key, offset, into.len(), Rights::READ, "read")?;
        if into.is_empty() {
            return Ok(Started::Done(Outcome::Buffer(into)));
        }
        let shared = |_| Error::new(Kind::InvalidArgument, "read", "the buffer has another owner");
        if let Some((ci, remote)) = self.direct(io, pi, key) {
            let landing = Landing::whole(into).map_err(shared)?;
            let op = self.ops.insert(Proto::RmaRead { peer: from }, "read")?;
            self.expect(io.now, pi);
            let (port, conn) = (self.conns[ci as usize].port, self.conns[ci as usize].conn);
            match io.ports[port].rma(conn, Rma::Read { landing, key: remote, offset }, RmaToken(op.to_bits()))
            {
                RmaStarted::Done(l) => self.rma_done(io, op, l, Ok(())),
                RmaStarted::Pending => {}
                RmaStarted::Failed(l, e) => self.rma_done(io, op, l, Err(e)),
            }
            return self.started(op);
        }
        let len = into.len();
        let piece = self.piece_len(io, pi);
        let assembly = Some(Assembly::new(into, len, piece).map_err(shared)?);
        let op = self
            .ops
            .insert(Proto::Pieces { peer: from, tag: None, len, sender: 0, assembly, read: true }, "read")?;
        self.expect(io.now, pi);
        let a = access(key, offset, op);
        // The piece size travels in the upper half of the length's word.
        let tag = len as u64 | (piece as u64) << 40;
        self.send_control(io, pi, FrameKind::Read, tag, a.as_bytes());
        Ok(Started::Pending(op))
    }

    /// Writes bytes at `offset` of a peer's window. Ends when they are there.
    pub fn write(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        key: &WindowKey,
        offset: u64,
        payload: Payload<'_>,
    ) -> Result<Option<OpId>> {
        let pi = self.peer_index(to, "write")?;
        let len = payload.len();
        self.check_access(key, offset, len, Rights::WRITE, "write")?;
        if let Some((ci, remote)) = self.direct(io, pi, key) {
            return self.write_direct(io, pi, ci, remote, offset, payload);
        }
        let source = match payload {
            Payload::Bytes(b) => Source::One(io.pool.copy_from(b)?.as_source()),
            Payload::Buffer(b) => Source::One(b.as_source()),
            Payload::Buffers(v) => Source::Many(v.iter().map(Buffer::as_source).collect()),
        };
        let piece = self.piece_len(io, pi);
        let parts = len.div_ceil(piece).max(1) as u32;
        let op = self.ops.insert(Proto::Write { peer: to, parts }, "write")?;
        self.expect(io.now, pi);
        for i in 0..parts as usize {
            let a = access(key, offset + (i * piece) as u64, op);
            let inline = Inline::new(a.as_bytes()).expect("an access fits");
            let body = source.range(i * piece, piece);
            self.send_control_out(
                io,
                pi,
                Out { kind: FrameKind::Write, flags: 0, tag: 0, inline, body, op: None, units: 0 },
            );
        }
        self.begun(op)
    }

    fn write_direct(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        ci: u32,
        key: RemoteKey,
        offset: u64,
        payload: Payload<'_>,
    ) -> Result<Option<OpId>> {
        let (port, conn) = (self.conns[ci as usize].port, self.conns[ci as usize].conn);
        let buffers = match payload {
            Payload::Bytes(b) => {
                // Few bytes: a port that can finish within the call needs no operation and no memory.
                if let Some(done) = io.ports[port].write_now(conn, key, offset, b) {
                    return done.map(|()| None);
                }
                vec![io.pool.copy_from(b)?]
            }
            Payload::Buffer(b) => vec![b],
            Payload::Buffers(v) => v,
        };
        let peer = self.peers[pi as usize].name;
        let op = self.ops.insert(Proto::Write { peer, parts: buffers.len().max(1) as u32 }, "write")?;
        self.expect(io.now, pi);
        if buffers.is_empty() {
            self.write_part_done(op, Status::Ok);
        }
        let mut at = offset;
        for b in buffers {
            let write = Rma::Write { source: b.as_source(), key, offset: at };
            at += b.len() as u64;
            match io.ports[port].rma(conn, write, RmaToken(op.to_bits())) {
                RmaStarted::Done(_) => self.write_part_done(op, Status::Ok),
                RmaStarted::Pending => {}
                RmaStarted::Failed(_, e) => self.finish(op, Err(e)),
            }
        }
        self.begun(op)
    }

    /// Our own check, before anything leaves. The owner checks again.
    fn check_access(
        &self,
        key: &WindowKey,
        offset: u64,
        len: usize,
        right: Rights,
        op: &'static str,
    ) -> Result<()> {
        let end = offset.checked_add(len as u64);
        if !key.rights.contains(right) {
            return Err(Error::new(Kind::AccessDenied, op, format!("the window allows {:?}", key.rights)));
        }
        if end.is_none_or(|e| e > key.len) {
            let max = key.len;
            return Err(Error::new(
                Kind::InvalidArgument,
                op,
                format!("{len} bytes at {offset} of a window of {max}"),
            ));
        }
        Ok(())
    }

    /// An active rail that reaches the window's memory by itself, and the key for its far end.
    fn direct(&self, io: &Io<'_>, pi: u32, key: &WindowKey) -> Option<(u32, RemoteKey)> {
        let p = &self.peers[pi as usize];
        if p.identity != Some(key.owner) {
            return None;
        }
        p.active.iter().find_map(|&ci| {
            let c = &self.conns[ci as usize];
            let remote = key.ports.iter().find(|(n, _)| *n == c.far_port)?.1;
            io.ports[c.port].caps().rma.then_some((ci, remote))
        })
    }

    /// A part of a write is confirmed.
    pub(crate) fn write_part_done(&mut self, op: OpId, status: Status) {
        if status != Status::Ok {
            return self.finish(op, Err(denied("write")));
        }
        let Some(Proto::Write { parts, .. }) = self.ops.proto(op) else { return };
        *parts -= 1;
        if *parts == 0 {
            self.finish(op, Ok(Outcome::Unit));
        }
    }

    // ---- the owner's side, by messages ----

    /// Memory for bytes that a peer stores; what is refused is discarded and said.
    pub(crate) fn place_write(&mut self, a: &Access, seq: u32, len: usize) -> (Taking, Option<Landing>) {
        let op = a.op.get();
        let landing = match self.windows.check(a, len as u64, Rights::WRITE).map(|w| &w.memory) {
            Some(WindowMemory::Shared(m)) => Landing::window(m, a.offset.get() as usize, len),
            _ => None,
        };
        let status = if landing.is_some() { Status::Ok } else { Status::Denied };
        (Taking::Write { seq, op, status }, landing)
    }

    pub(crate) fn serve_empty_write(&mut self, io: &mut Io<'_>, pi: u32, a: &Access) {
        let ok = self.windows.check(a, 0, Rights::WRITE).is_some();
        self.send_done(io, pi, a.op.get(), if ok { Status::Ok } else { Status::Denied });
    }

    /// Sends what a peer wants to read, as pieces.
    pub(crate) fn serve_read(&mut self, io: &mut Io<'_>, pi: u32, a: &Access, tag: u64) {
        let (len, piece) = (tag & ((1 << 40) - 1), (tag >> 40) as usize);
        let max_body = |ci: &u32| io.ports[self.conns[*ci as usize].port].caps().max_body;
        let fits = self.peers[pi as usize].rails.iter().all(|ci| piece <= max_body(ci));
        let window = self.windows.check(a, len, Rights::READ);
        // A peer may have as many reads open here as it may have frames unacknowledged.
        let room = self.peers[pi as usize].tx.streams.len() < self.limits.max_unacked;
        let (Some(w), true) = (window, piece >= 1024 && fits && room) else {
            return self.send_done(io, pi, a.op.get(), Status::Denied);
        };
        let source = Source::One(w.memory.source()).range(a.offset.get() as usize, len as usize);
        let end = (len as usize).div_ceil(piece) as u32;
        self.add_stream(io, pi, Stream { sink: a.op.get(), source, piece, next: 0, end, op: None });
    }
}

fn access(key: &WindowKey, offset: u64, op: OpId) -> Access {
    Access {
        window: key.window.into(),
        secret: key.secret.into(),
        offset: offset.into(),
        op: op.to_bits().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_the_trip_and_nothing_else_is_one() {
        let k = WindowKey {
            owner: 1,
            window: 2,
            secret: 3,
            len: 4,
            rights: Rights::READ,
            ports: vec![(7, RemoteKey { region: 8, base: 9, secret: 10 })],
        };
        let b = k.to_bytes();
        assert_eq!(WindowKey::from_bytes(&b).unwrap(), k);
        for cut in 0..b.len() {
            assert!(WindowKey::from_bytes(&b[..cut]).is_err());
        }
        let mut bad = b.clone();
        bad[33] = 200;
        assert!(WindowKey::from_bytes(&bad).is_err());
        bad = b;
        bad[32] = 0xff;
        assert!(WindowKey::from_bytes(&bad).is_err());
    }
}
