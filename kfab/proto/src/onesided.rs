//! Windows and one-sided access (what its owner is told of it: `notice`). A port that can do it serves the access alone; else the owner's
//! machine does, by messages. Either way rights and range are checked by whoever serves, and a dropped window is closed before the
//! drop returns.

use crate::machine::{ConnState, Io, Machine};
use crate::matcher::Cost;
use crate::message::*;
use crate::notice::{Notice, Notices, Tell, Told};
use crate::ops::{Proto, Range, Redo};
use crate::parts::{landings, read_outcome};
use crate::peer::{Ask, Held, Out, Stream, StreamOf};
use crate::receive::Taking;
use crate::transmit::into_source;
use crate::wire::*;
use kfab_core::mem::{Assembly, Buffer, Landing, Room, Slice, WindowMem};
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
/// for each a port (its number, the upper half changed by its epoch) u16 and three u64. Little-endian.
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

    #[inline]
    fn at(&self, offset: u64) -> Range {
        Range { window: self.window, secret: self.secret, offset }
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
pub(crate) struct Window {
    memory: WindowMemory,
    rights: Rights,
    secret: u64,
    exposed: Vec<(usize, Exposure)>,
    notices: Notices,
}

/// The windows of a lane.
#[derive(Debug, Default)]
pub(crate) struct Windows {
    pub(crate) open: HashMap<u64, Window>,
    next: u64,
}

impl Windows {
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Notices that wait, all windows.
    pub(crate) fn notices_here(&self) -> usize {
        self.open.values().map(|w| w.notices.here.len()).sum()
    }

    pub(crate) fn notices(&mut self, id: WindowId) -> Option<&mut Notices> {
        self.open.get_mut(&id.0).map(|w| &mut w.notices)
    }

    /// A peer has got another name.
    pub(crate) fn rename_peer(&mut self, old: PeerId, new: PeerId) {
        self.waiting().filter(|(n, _)| n.from == old).for_each(|(n, _)| n.from = new);
    }

    /// A peer is lost: its notices stay, they have arrived; their credit is nobody's any more. How many units.
    pub(crate) fn forget_peer(&mut self, peer: PeerId) -> u64 {
        self.waiting().filter(|(n, _)| n.from == peer).map(|(_, cost)| u64::from(cost.is_left())).sum()
    }

    fn waiting(&mut self) -> impl Iterator<Item = &mut (Notice, Cost)> {
        self.open.values_mut().flat_map(|w| w.notices.here.iter_mut())
    }

    /// The window, if the secret, the right and the range are good.
    pub(crate) fn check(&self, a: &Access, len: u64, right: Rights) -> Option<&Window> {
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

/// Reads by messages that one peer is asked for at a time; others wait here ...
const READS: usize = 256;
/// ... and so many it serves, of each of its own.
const READS_MAX: usize = 16 * READS;

impl Machine {
    /// Opens memory to peers that are given the key. Memory that peers may write must be [`WindowMemory::Shared`].
    pub fn open_window(
        &mut self,
        io: &mut Io<'_>,
        memory: WindowMemory,
        rights: Rights,
    ) -> Result<(WindowId, WindowKey)> {
        self.close_tab();
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
        for i in 0..io.ports.len().min(WindowKey::MAX_PORTS) {
            if io.ports[i].caps().rma
                && let Ok(e) = io.ports[i].expose(&source, rights)
            {
                ports.push((io.port_name(i), e.key));
                exposed.push((i, e));
            }
        }
        let key =
            WindowKey { owner: self.identity, window: id, secret, len: source.len() as u64, rights, ports };
        self.windows.open.insert(id, Window { memory, rights, secret, exposed, notices: Notices::default() });
        Ok((WindowId(id), key))
    }

    /// Closes a window: when this returns no peer can reach the memory any more.
    pub fn close_window(&mut self, io: &mut Io<'_>, id: WindowId) {
        self.close_tab();
        if let Some(w) = self.windows.open.remove(&id.0) {
            w.exposed.into_iter().for_each(|(port, e)| io.ports[port].revoke(e));
            self.end_notices(w.notices);
        }
    }

    pub(crate) fn close_windows(&mut self, io: &mut Io<'_>) {
        let ids: Vec<_> = self.windows.open.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close_window(io, WindowId(id)));
    }

    /// Reads `into.len()` bytes at `offset` of a peer's window, into one buffer or several. With a `notice` the window's owner is told
    /// so at the end.
    pub fn read(
        &mut self,
        io: &mut Io<'_>,
        from: PeerId,
        key: &WindowKey,
        offset: u64,
        into: impl Into<Room>,
        notice: Option<u64>,
    ) -> Result<Started> {
        self.close_tab();
        self.read_room(io, from, key, offset, into.into(), notice)
    }

    fn read_room(
        &mut self,
        io: &mut Io<'_>,
        from: PeerId,
        key: &WindowKey,
        offset: u64,
        into: Room,
        notice: Option<u64>,
    ) -> Result<Started> {
        let pi = self.peer_index(from, "read")?;
        self.check_access(key, offset, into.len(), Rights::READ, "read")?;
        if into.is_empty() && notice.is_none() {
            return Ok(Started::Done(read_outcome(into)));
        }
        let shared = || Error::new(Kind::InvalidArgument, "read", "the buffer has another owner");
        let (range, len) = (key.at(offset), into.len());
        let tell = notice.map(|value| Tell::new(value, range, len, Rights::READ));
        if into.is_empty() {
            let op = self.start_send(io, pi, Proto::Tell { peer: from, read: None })?;
            self.access_ended(io, from, op, Some(into), tell.as_ref());
            return self.started(op);
        }
        if let Some((over, remote)) = self.direct(io, pi, key, len) {
            let (landing, reads) = landings(into, len).ok_or_else(shared)?;
            let op = self.ops.insert(Proto::RmaRead { peer: from, range, len, over, tell, reads }, "read")?;
            self.expect(io.now, pi);
            let c = &mut self.conns[over as usize];
            c.rma_bytes += len;
            let over = (c.port, c.conn);
            self.start_reads(io, over, op, landing, remote, offset, len);
            return self.started(op);
        }
        let piece = self.piece_len(io, pi, len);
        let assembly = Some(Assembly::new(into, len, piece).map_err(|_| shared())?);
        let pieces = Proto::reading(from, len, assembly, tell);
        let op = self.ops.insert(pieces, "read")?;
        self.expect(io.now, pi);
        self.ask_to_read(io, pi, op, range, len, piece);
        Ok(Started::Pending(op))
    }

    fn ask_to_read(&mut self, io: &mut Io<'_>, pi: u32, op: OpId, range: Range, len: usize, piece: usize) {
        self.peers[pi as usize].tx.asks.push_back(Ask { op, range, len, piece });
        self.ask_to_read_more(io, pi);
    }

    /// Asks for the reads whose turn it is.
    pub(crate) fn ask_to_read_more(&mut self, io: &mut Io<'_>, pi: u32) {
        while self.peers[pi as usize].tx.reads < READS
            && let Some(Ask { op, range, len, piece }) = self.peers[pi as usize].tx.asks.pop_front()
        {
            // Some have ended before their turn.
            let Some(Proto::Pieces { asked, waited: None, .. }) = self.ops.proto(op) else { continue };
            *asked = true;
            self.peers[pi as usize].tx.reads += 1;
            // The piece size travels in the upper half of the length's word.
            let tag = len as u64 | (piece as u64) << 40;
            self.send_control(io, pi, FrameKind::Read, tag, access(range, 0, op).as_bytes());
        }
    }

    /// A read by a port has ended. If its rail broke, it is done again by messages, which go over whatever is left.
    pub(crate) fn direct_read_done(
        &mut self,
        io: &mut Io<'_>,
        op: OpId,
        landing: Option<Landing>,
        result: Result<()>,
    ) {
        let Some(Proto::RmaRead { peer, range, len, over, tell, .. }) = self.ops.proto(op) else { return };
        let (peer, range, len, over, tell) = (*peer, *range, *len, *over, *tell);
        let Some((room, result)) = self.read_back(op, landing, result) else { return };
        let c = self.rma_left(over, len);
        c.rx_bytes += if result.is_ok() { len as u64 } else { 0 };
        let Some(room) = room else {
            let kept = Error::new(Kind::Protocol, "read", "the port kept the buffer");
            return self.finish(op, Err(result.err().unwrap_or(kept)));
        };
        match result {
            Ok(()) => self.access_ended(io, peer, op, Some(room), tell.as_ref()),
            Err(e) if is_final(&e) => self.finish(op, Err(e)),
            Err(e) => {
                let piece = self.piece_len(io, peer.index, len);
                let Ok(assembly) = Assembly::new(room, len, piece) else {
                    return self.finish(op, Err(e));
                };
                let assembly = Some(assembly);
                let proto = Proto::reading(peer, len, assembly, tell);
                self.set_proto(io.now, op, proto);
                self.ask_to_read(io, peer.index, op, range, len, piece);
            }
        }
    }

    /// Writes bytes at `offset` of a peer's window. Ends when they are there. With a `notice` the window's owner is told so.
    pub fn write(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        key: &WindowKey,
        offset: u64,
        payload: Payload<'_>,
        notice: Option<u64>,
    ) -> Result<Option<OpId>> {
        self.close_tab();
        let pi = self.peer_index(to, "write")?;
        let len = payload.len();
        self.check_access(key, offset, len, Rights::WRITE, "write")?;
        let range = key.at(offset);
        let tell = notice.map(|value| Tell::new(value, range, len, Rights::WRITE));
        // Of no bytes there is nothing to store, but the owner is asked whether it would be allowed.
        if len > 0
            && let Some((ci, remote)) = self.direct(io, pi, key, len)
        {
            return self.write_direct(io, pi, ci, remote, range, payload, tell);
        }
        let source = into_source(io, payload)?;
        let op = self.ops.insert(Proto::Write { peer: to, parts: 1, redo: None }, "write")?;
        self.expect(io.now, pi);
        self.write_by_messages(io, pi, op, range, &source, tell);
        self.begun(op)
    }

    /// [`Machine::write`] for memory that the port copies within the call, over the one rail there is: `false`, and nothing has
    /// happened, if that is not so.
    #[inline(always)]
    pub fn write_now(
        &mut self,
        io: &mut Io<'_>,
        to: PeerId,
        key: &WindowKey,
        offset: u64,
        bytes: &[u8],
    ) -> bool {
        let Some((c, remote)) = self.near(to, key) else { return false };
        if !io.ports[c.port].write_now(c.conn, remote, offset, bytes) {
            return false;
        }
        c.tx_bytes += bytes.len() as u64;
        true
    }

    /// The same for a read. `Err`: the buffer as it was.
    #[inline(always)]
    pub fn read_now(
        &mut self,
        io: &mut Io<'_>,
        from: PeerId,
        key: &WindowKey,
        offset: u64,
        into: Buffer,
    ) -> std::result::Result<Buffer, Buffer> {
        let len = into.len();
        let Some((c, remote)) = self.near(from, key).filter(|_| len > 0) else { return Err(into) };
        let mut landing = Landing::whole(into)?;
        let done = io.ports[c.port].read_now(c.conn, remote, offset, &mut landing);
        c.rx_bytes += if done { len as u64 } else { 0 };
        let buffer = landing.into_buffer().expect("made from a buffer of some bytes");
        if done { Ok(buffer) } else { Err(buffer) }
    }

    /// The one rail to a peer, and what that port must show there. It looks by itself whether that opens what is asked for: what it refuses
    /// goes the long way, which says why.
    #[inline(always)]
    fn near<'k>(&mut self, owner: PeerId, key: &'k WindowKey) -> Option<(&mut ConnState, &'k RemoteKey)> {
        let p = self.peers.get(owner.index as usize).filter(|p| p.name == owner)?;
        // `NOWHERE` is no connection's number.
        let c = self.conns.get_mut(p.short as usize)?;
        let remote = match &key.ports[..] {
            [(port, remote), ..] if *port == c.far_port => remote,
            all => &all.iter().find(|(port, _)| *port == c.far_port)?.1,
        };
        Some((c, remote))
    }

    /// Stores `source` in pieces that the owner's machine puts into place and confirms. A notice goes with the last one, and waits there
    /// for the others.
    fn write_by_messages(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        op: OpId,
        range: Range,
        source: &Source,
        tell: Option<Tell>,
    ) {
        let piece = self.piece_len(io, pi, source.len());
        let n = source.len().div_ceil(piece).max(1);
        if let Some(Proto::Write { parts, redo, .. }) = self.ops.proto(op) {
            (*parts, *redo) = (n as u32, None);
        }
        for i in 0..n {
            let access = access(range, i * piece, op);
            let body = source.range(i * piece, piece);
            let inline = Inline::new(access.as_bytes()).expect("an access fits");
            let mut out = Out { kind: FrameKind::Write, flags: 0, tag: 0, inline, body, op: None, units: 0 };
            let Some(tell) = tell.filter(|_| i + 1 == n) else {
                self.send_control_out(io, pi, out);
                continue;
            };
            let with = AccessNotice { access, bytes: (source.len() as u64).into() };
            out.inline = Inline::new(with.as_bytes()).expect("an access with a notice fits");
            out.flags = TAGGED | if n > 1 { ORDERED } else { 0 };
            (out.tag, out.units) = (tell.value, 1);
            self.send_or_defer(io, pi, out, op);
        }
    }

    /// Nobody waits for a write any more: if nothing is left of it but what has not left, that goes, and its memory is free.
    pub(crate) fn withdraw_write(&mut self, op: OpId) {
        let Some(Proto::Write { peer, parts, redo: None }) = self.ops.proto(op) else { return };
        let (pi, parts, name) = (peer.index, *parts as usize, op.to_bits());
        let is_its = |out: &Out| {
            let access = out.inline.as_slice().get(..size_of::<Access>()).and_then(Access::parse);
            out.kind == FrameKind::Write && access.is_some_and(|a| a.op.get() == name)
        };
        let tx = &mut self.peers[pi as usize].tx;
        let waits = tx.control.iter().chain(tx.deferred.iter().map(|d| &d.out)).filter(|o| is_its(o)).count();
        if waits < parts {
            return;
        }
        tx.control.retain(|o| !is_its(o));
        tx.deferred.retain(|d| !is_its(&d.out));
        self.mark_dirty(pi);
        self.end_op(op);
    }

    /// A part of a write by a port has ended. If its rail broke, the whole is written again by messages as soon as no part is under
    /// way any more: the same bytes to the same place.
    pub(crate) fn direct_write_done(&mut self, io: &mut Io<'_>, op: OpId, result: Result<()>) {
        let Some(Proto::Write { peer, parts, redo: Some(r) }) = self.ops.proto(op) else { return };
        *parts -= 1;
        let ended = *parts == 0;
        match result {
            Err(e) if is_final(&e) => {
                let (over, len) = (r.over, r.source.len());
                self.rma_left(over, len);
                return self.finish(op, Err(e));
            }
            Err(_) => r.broken = true,
            Ok(()) => {}
        }
        if !ended {
            return;
        }
        let (peer, over, broken, range, tell) = (*peer, r.over, r.broken, r.range, r.tell);
        let source = std::mem::replace(&mut r.source, Source::Empty);
        let len = source.len();
        let c = self.rma_left(over, len);
        if broken {
            return self.write_by_messages(io, peer.index, op, range, &source, tell);
        }
        c.tx_bytes += len as u64;
        self.access_ended(io, peer, op, None, tell.as_ref());
    }

    #[expect(clippy::too_many_arguments, reason = "one access's terms")]
    fn write_direct(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        ci: u32,
        key: RemoteKey,
        range: Range,
        payload: Payload<'_>,
        tell: Option<Tell>,
    ) -> Result<Option<OpId>> {
        let (port, conn, offset) = (self.conns[ci as usize].port, self.conns[ci as usize].conn, range.offset);
        if let Payload::Bytes(b) = payload {
            // Few bytes: a port that can finish within the call needs no operation and no memory.
            if io.ports[port].write_now(conn, &key, offset, b) {
                return self.written_now(io, pi, tell.as_ref());
            }
        }
        let source = into_source(io, payload)?;
        let peer = self.peers[pi as usize].name;
        let (len, n) = (source.len(), source.slices().len());
        // One part more than there are, until all have been started.
        let proto = Proto::Write { peer, parts: n as u32 + 1, redo: None };
        let op = self.ops.insert(proto, "write")?;
        self.expect(io.now, pi);
        self.conns[ci as usize].rma_bytes += len;
        let (mut at, mut ended, mut failed) = (offset, 1, None);
        for part in source.slices() {
            let write = Rma::Write { source: part.clone(), key, offset: at };
            match io.ports[port].rma(conn, write, RmaToken(op.to_bits())) {
                RmaStarted::Done(_) => ended += 1,
                RmaStarted::Pending => {}
                RmaStarted::Failed(_, e) => (failed, ended) = (Some(e), ended + 1),
            }
            at += part.len() as u64;
        }
        if failed.is_none() && ended == n + 1 {
            let c = self.rma_left(ci, len);
            c.tx_bytes += len as u64;
            self.access_ended(io, peer, op, None, tell.as_ref());
            return self.begun(op);
        }
        if let Some(Proto::Write { parts, redo, .. }) = self.ops.proto(op) {
            *parts -= ended as u32 - 1;
            *redo = Some(Box::new(Redo { source, range, over: ci, broken: false, tell }));
        }
        self.direct_write_done(io, op, failed.map_or(Ok(()), Err));
        self.begun(op)
    }

    /// A write has ended within the call; its notice may have to wait.
    fn written_now(&mut self, io: &mut Io<'_>, pi: u32, tell: Option<&Tell>) -> Result<Option<OpId>> {
        if tell.is_none_or(|t| self.tell_now(io, pi, t)) {
            return Ok(None);
        }
        let peer = self.peers[pi as usize].name;
        // The bytes are there already.
        let op = self
            .start_send(io, pi, Proto::Tell { peer, read: None })
            .map_err(|e| e.with_fate(Fate::Unknown))?;
        self.access_ended(io, peer, op, None, tell);
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
    #[inline]
    fn direct(&self, io: &Io<'_>, pi: u32, key: &WindowKey, len: usize) -> Option<(u32, RemoteKey)> {
        if self.peers[pi as usize].identity != Some(key.owner) {
            return None;
        }
        let there = |n: u16| key.ports.iter().find(|(port, _)| *port == n).map(|(_, k)| *k);
        let over = self.rma_rail(pi, len, |c| io.ports[c.port].caps().rma && there(c.far_port).is_some())?;
        Some((over, there(self.conns[over as usize].far_port)?))
    }

    /// A part of a write is confirmed.
    pub(crate) fn write_part_done(&mut self, op: OpId, status: Status) {
        if status != Status::Ok {
            return self.finish(op, Err(denied("write")));
        }
        let Some(Proto::Write { parts, redo: None, .. }) = self.ops.proto(op) else { return };
        *parts -= 1;
        if *parts == 0 {
            self.finish(op, Ok(Outcome::Unit));
        }
    }

    // ---- the owner's side, by messages ----

    /// Memory for bytes that a peer stores; what is refused is discarded and said. `None`: the frame makes no sense.
    pub(crate) fn place_write(
        &mut self,
        pi: u32,
        h: &Header,
        inline: &Inline,
        seq: u32,
        len: usize,
    ) -> Option<(Taking, Option<Landing>)> {
        let (a, total) = match h.user_tag() {
            Some(_) => AccessNotice::parse(inline.as_slice()).map(|n| (n.access, n.bytes.get()))?,
            None => (Access::parse(inline.as_slice())?, 0),
        };
        let landing = match self.windows.check(&a, len as u64, Rights::WRITE).map(|w| &w.memory) {
            Some(WindowMemory::Shared(m)) => Landing::window(m, a.offset.get() as usize, len),
            _ => None,
        };
        let status = if landing.is_some() { Status::Ok } else { Status::Denied };
        let (from, window) = (self.peers[pi as usize].name, WindowId(a.window.get()));
        let told = h.user_tag().map(|value| Told {
            notice: Notice { from, window, value, bytes: total, access: Rights::WRITE },
            ordered: h.has(ORDERED),
        });
        Some((Taking::Write { seq, op: a.op.get(), status, told }, landing))
    }

    /// Bytes that a peer stores are in their place, or were refused.
    pub(crate) fn written(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        seq: u32,
        op: u64,
        status: Status,
        told: Option<Told>,
    ) {
        self.send_done(io, pi, op, status);
        let Some(Told { mut notice, ordered }) = told else { return };
        // It may have got another name while the bytes came.
        notice.from = self.peers[pi as usize].name;
        let ok = status == Status::Ok;
        let rx = &mut self.peers[pi as usize].rx;
        if ok && ordered && !seq_before(seq, rx.dedup.next()) {
            if self.may_wait(io, pi, 1) {
                self.peers[pi as usize].rx.held.push((seq, Held::Notice(notice)));
            }
            return;
        }
        self.notice_here(io, pi, ok.then_some(notice));
    }

    /// Sends what a peer wants to read, as pieces.
    pub(crate) fn serve_read(&mut self, io: &mut Io<'_>, pi: u32, a: &Access, tag: u64) {
        let (len, piece) = (tag & ((1 << 40) - 1), (tag >> 40) as usize);
        let max_body = |ci: &u32| io.ports[self.conns[*ci as usize].port].caps().max_body;
        let fits = self.peers[pi as usize].rails.iter().all(|ci| piece <= max_body(ci));
        let window = self.windows.check(a, len, Rights::READ);
        // An honest peer has few open, and some that it has given up.
        let reads =
            || self.peers[pi as usize].tx.streams.iter().filter(|s| matches!(s.of, StreamOf::Window(_)));
        let room = self.peers[pi as usize].tx.streams.len() < READS_MAX || reads().count() < READS_MAX;
        let (Some(w), true) = (window, piece >= 1024 && fits && room) else {
            return self.send_done(io, pi, a.op.get(), Status::Denied);
        };
        let source = Source::One(w.memory.source()).range(a.offset.get() as usize, len as usize);
        let end = (len as usize).div_ceil(piece) as u32;
        self.add_stream(
            io,
            pi,
            Stream { sink: a.op.get(), source, piece, next: 0, end, of: StreamOf::Window(a.window.get()) },
        );
    }
}

/// An error that another way would not mend: the owner refused, or the operation makes no sense.
fn is_final(e: &Error) -> bool {
    e.fate() == Fate::Refused || matches!(e.kind(), Kind::AccessDenied | Kind::InvalidArgument)
}

fn access(range: Range, more: usize, op: OpId) -> Access {
    Access {
        window: range.window.into(),
        secret: range.secret.into(),
        offset: (range.offset + more as u64).into(),
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
        let words = |all: &[u8]| all.iter().flat_map(|n| u64::from(*n).to_le_bytes()).collect::<Vec<_>>();
        let golden = [&words(&[1, 2, 3, 4])[..], &[1, 1, 7, 0], &words(&[8, 9, 10])].concat();
        assert_eq!(b, golden);
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
