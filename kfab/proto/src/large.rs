//! Large messages: the sender promises (RTS), and the receiver, once a receive matches, either fetches the bytes from the sender's
//! memory in one copy (one-sided ports) or asks for pieces (CTS), which stripe over all active rails. Either way the
//! receiver says when it is done, and only then does the sender's operation end.

use crate::again::Waited;
use crate::machine::{ConnState, Io, Machine};
use crate::matcher::{Arrived, Unexpected};
use crate::message::*;
use crate::ops::{Lent, Proto};
use crate::parts::{landings, received};
use crate::peer::{Out, Stream, StreamOf};
use crate::receive::{Taking, truncated};
use crate::wire::*;
use kfab_core::mem::{Assembly, Landing, Room};
use kfab_core::spi::{Inline, RemoteKey, Rights};
use kfab_core::{Error, Fate, Kind, Result};
use zerocopy::IntoBytes;

impl Machine {
    pub(crate) fn send_large(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        source: Source,
        o: SendOptions,
    ) -> Result<Option<OpId>> {
        let peer = self.peers[pi as usize].name;
        let len = source.len() as u64;
        // Before anything is opened that would have to be closed again.
        if self.ops.is_full() {
            return Err(self.ops.full("send"));
        }
        let exposed = self.expose_source(io, pi, &source);
        let (key, port) = exposed.as_ref().map_or_else(Default::default, |e| (e.exposure.key, e.port));
        let op = self.start_send(io, pi, Proto::Large { peer, source, exposed, canceled: false })?;
        let p = &self.peers[pi as usize];
        let free = p.tx.is_drained() && p.tx.credit() > 0;
        if self.promise(io, pi, op, len, key, port, &o, free) { Ok(Some(op)) } else { self.begun(op) }
    }

    /// Tells the receiver of a large message; `true` if that has left, by the short way.
    #[expect(clippy::too_many_arguments, reason = "the parts of one promise")]
    #[inline(always)]
    pub(crate) fn promise(
        &mut self,
        io: &mut Io<'_>,
        pi: u32,
        op: OpId,
        len: u64,
        key: RemoteKey,
        port: usize,
        o: &SendOptions,
        free: bool,
    ) -> bool {
        let rts = Rts {
            bytes: Rts::bytes_of(len),
            port: io.port_name(port).into(),
            op: op.to_bits().into(),
            region: key.region.into(),
            base: key.base.into(),
            secret: key.secret.into(),
        };
        let flags = if o.tag.is_some() { TAGGED } else { 0 } | if o.ordered { ORDERED } else { 0 };
        let tag = o.tag.unwrap_or(0);
        if free && let Some(p) = self.post_short(io, pi, FrameKind::Rts, flags, tag, rts.as_bytes(), 1) {
            p.counters.tx_messages += 1;
            p.counters.tx_bytes += len;
            return true;
        }
        self.promise_later(io, pi, op, flags, tag, &rts);
        false
    }

    #[inline(never)]
    fn promise_later(&mut self, io: &mut Io<'_>, pi: u32, op: OpId, flags: u8, tag: u64, rts: &Rts) {
        let inline = Inline::new(rts.as_bytes()).expect("an RTS fits");
        let out = Out { kind: FrameKind::Rts, flags, tag, inline, body: Source::Empty, op: None, units: 1 };
        self.send_or_defer(io, pi, out, op);
    }

    /// Opens the memory of a send to the receiver, where the rail can that has least to do and the memory is one piece.
    fn expose_source(&mut self, io: &mut Io<'_>, pi: u32, s: &Source) -> Option<Lent> {
        let Source::One(slice) = s else { return None };
        let over = self.rma_rail(pi, slice.len(), |c| io.ports[c.port].caps().rma)?;
        let port = self.conns[over as usize].port;
        let exposure = io.ports[port].expose(slice, Rights::READ | Rights::TRANSFER).ok()?;
        let len = slice.len();
        self.conns[over as usize].rma_bytes += len;
        Some(Lent { port, exposure, over, len })
    }

    /// Of the active rails that will do, the one that has the least one-sided work under way over its weight; of equals, the one that has
    /// moved the least.
    #[inline]
    pub(crate) fn rma_rail(
        &self,
        pi: u32,
        len: usize,
        mut fits: impl FnMut(&ConnState) -> bool,
    ) -> Option<u32> {
        let active = &self.peers[pi as usize].active;
        if let [one] = active[..] {
            return fits(&self.conns[one as usize]).then_some(one);
        }
        let fitting = active.iter().copied().filter(|ci| fits(&self.conns[*ci as usize]));
        fitting.min_by_key(|ci| {
            let c = &self.conns[*ci as usize];
            ((c.rma_bytes + len) as u64 * 1024 / c.weight, (c.tx_bytes + c.rx_bytes) / c.weight)
        })
    }

    /// A one-sided transfer of `len` bytes over this connection has ended.
    #[inline]
    pub(crate) fn rma_left(&mut self, over: u32, len: usize) -> &mut ConnState {
        let c = &mut self.conns[over as usize];
        c.rma_bytes = c.rma_bytes.saturating_sub(len);
        c
    }

    /// Takes back what a large send had opened.
    pub(crate) fn drop_exposure(&mut self, io: &mut Io<'_>, op: OpId) {
        if let Some(Proto::Large { exposed, .. }) = self.ops.proto(op)
            && let Some(e) = exposed.take()
        {
            io.ports[e.port].revoke(e.exposure);
            self.rma_left(e.over, e.len);
        }
    }

    /// A receive has met a promise: get the bytes.
    pub(crate) fn fetch(&mut self, io: &mut Io<'_>, op: OpId, want: Want, u: Unexpected, into: Option<Room>) {
        let Arrived::Promise { rts } = u.what else { return };
        let waited = Waited { want, named: into.is_some() };
        let pi = u.from.index;
        let (len, sender) = (rts.len() as usize, rts.op.get());
        self.consume(pi, u.cost.units);
        self.ops.set_nth(op, u.nth);
        let room = match into {
            Some(r) if r.len() < len => Err((Status::Ok, truncated())),
            Some(r) => Ok(r),
            None => io.pool.alloc(len).map(Room::One).map_err(|e| (Status::NoMemory, e)),
        };
        let room = match room {
            Ok(r) => r,
            Err((status, e)) => {
                self.send_done(io, pi, sender, status);
                return self.finish(op, Err(e));
            }
        };
        // The memory was opened for one port of the sender's: only a rail that ends there leads to it.
        let leads = |ci: &u32| {
            let c = &self.conns[*ci as usize];
            c.far_port == rts.port.get() && io.ports[c.port].caps().rma
        };
        let over = self.peers[pi as usize].active.iter().copied().find(leads);
        let Some(over) = over.filter(|_| rts.secret.get() != 0) else {
            return self.ask_for_pieces(io, op, waited, u.from, u.tag, len, sender, room);
        };
        let Some((landing, reads)) = landings(room, len) else {
            self.send_done(io, pi, sender, Status::Canceled);
            return self
                .finish(op, Err(Error::new(Kind::InvalidArgument, "recv", "the buffer has another owner")));
        };
        let c = &mut self.conns[over as usize];
        c.rma_bytes += len;
        let (port, conn) = (c.port, c.conn);
        self.set_proto(
            io.now,
            op,
            Proto::Fetch { peer: u.from, tag: u.tag, len, sender, over, reads, waited },
        );
        let key = RemoteKey { region: rts.region.get(), base: rts.base.get(), secret: rts.secret.get() };
        self.start_reads(io, (port, conn), op, landing, key, 0, len);
    }

    /// Replaces the protocol's side of an operation.
    pub(crate) fn set_proto(&mut self, now: u64, op: OpId, new: Proto) {
        let Some(p) = self.ops.proto(op) else { return };
        let peer = new.peer();
        let old = std::mem::replace(p, new);
        self.unexpect(&old);
        if let Some(peer) = peer {
            self.expect(now, peer.index);
        }
    }

    /// A one-sided operation of a port has ended.
    pub(crate) fn rma_done(
        &mut self,
        io: &mut Io<'_>,
        op: OpId,
        landing: Option<Landing>,
        result: Result<()>,
    ) {
        match self.ops.proto(op) {
            Some(Proto::Back { .. }) => self.read_is_back(io, op, landing, result),
            Some(Proto::Fetch { peer, tag, len, sender, over, waited, .. }) => {
                let (peer, tag, len, sender, over, waited) = (*peer, *tag, *len, *sender, *over, *waited);
                let Some((room, result)) = self.read_back(op, landing, result) else { return };
                let c = self.rma_left(over, len);
                c.rx_bytes += if result.is_ok() { len as u64 } else { 0 };
                let Some(room) = room else {
                    return self
                        .finish(op, Err(Error::new(Kind::Protocol, "recv", "the port kept the buffer")));
                };
                if result.is_err() {
                    // The one-sided way is closed (another rail, memory that cannot be mapped): ask for pieces.
                    return self.ask_for_pieces(io, op, waited, peer, tag, len, sender, room);
                }
                self.send_done(io, peer.index, sender, Status::Ok);
                let nth = self.ops.nth(op);
                self.receive_ended(op, received(peer, tag, room, len, nth));
            }
            Some(Proto::RmaRead { .. }) => self.direct_read_done(io, op, landing, result),
            Some(Proto::Write { .. }) => self.direct_write_done(io, op, result),
            _ => {}
        }
    }

    /// Hands a large message over; if its receive was cancelled meanwhile, the message waits for the next.
    fn receive_ended(&mut self, op: OpId, end: Outcome) {
        if self.ops.is_waiting(op) {
            return self.finish(op, Ok(end));
        }
        self.end_op(op);
        match end {
            Outcome::Message(m) => self.give_again(m),
            Outcome::Parts(p) => self.give_again(p.gathered()),
            _ => {}
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one transfer's terms")]
    fn ask_for_pieces(
        &mut self,
        io: &mut Io<'_>,
        op: OpId,
        waited: Waited,
        from: PeerId,
        tag: Option<u64>,
        len: usize,
        sender: u64,
        room: Room,
    ) {
        let piece = self.piece_len(io, from.index, len);
        let Ok(assembly) = Assembly::new(room, len, piece) else {
            self.send_done(io, from.index, sender, Status::Canceled);
            return self
                .finish(op, Err(Error::new(Kind::InvalidArgument, "recv", "the buffer has another owner")));
        };
        let cts = Cts {
            op: sender.into(),
            sink: op.to_bits().into(),
            piece: (piece as u32).into(),
            pieces: (assembly.pieces() as u32).into(),
        };
        let assembly = Some(assembly);
        self.set_proto(
            io.now,
            op,
            Proto::Pieces {
                peer: from,
                tag,
                len,
                sender,
                assembly,
                waited: Some(waited),
                asked: false,
                tell: None,
            },
        );
        self.send_control(io, from.index, FrameKind::Cts, 0, cts.as_bytes());
    }

    /// The size of the pieces of a transfer: what the active rails like and every rail can carry that may take their place. For several
    /// rails it is cut finer, so that each can have its share.
    pub(crate) fn piece_len(&self, io: &Io<'_>, pi: u32, len: usize) -> usize {
        let share =
            if self.peers[pi as usize].active.len() > 1 { (len / 16).max(64 << 10) } else { usize::MAX };
        let p = &self.peers[pi as usize];
        let caps = |ci: &u32| io.ports[self.conns[*ci as usize].port].caps();
        p.active
            .iter()
            .map(|ci| caps(ci).fragment.min(caps(ci).max_body))
            .min()
            .unwrap_or(64 * 1024)
            .min(p.frame_max)
            .min(share)
            .clamp(1024, 16 << 20)
    }

    /// The receiver is ready for pieces.
    pub(crate) fn on_cts(&mut self, io: &mut Io<'_>, ci: u32, pi: u32, cts: &Cts) {
        let name = self.peers[pi as usize].name;
        let op = OpId::from_bits(cts.op.get());
        let source = match self.ops.proto(op) {
            Some(Proto::Large { peer, source, canceled: false, .. }) if *peer == name => source.clone(),
            // Cancelled here: it ends now, and there.
            Some(Proto::Large { peer, canceled: true, .. }) if *peer == name => {
                self.drop_exposure(io, op);
                self.end_op(op);
                return self.send_done(io, pi, cts.sink.get(), Status::Canceled);
            }
            // Ended already, or never a send to this peer: whatever it names stays untouched.
            _ => return self.send_done(io, pi, cts.sink.get(), Status::Canceled),
        };
        let piece = cts.piece.get() as usize;
        let fits = self.peers[pi as usize]
            .rails
            .iter()
            .all(|r| piece <= io.ports[self.conns[*r as usize].port].caps().max_body);
        if piece == 0 || !fits || cts.pieces.get() as usize != source.len().div_ceil(piece) {
            return self.hostile(io, ci, "a clear to send that does not fit the message");
        }
        if self.peers[pi as usize].tx.streams.iter().any(|s| s.of == StreamOf::Op(op)) {
            return self.hostile(io, ci, "a second clear to send for the same message");
        }
        self.drop_exposure(io, op);
        let stream = Stream {
            sink: cts.sink.get(),
            source,
            piece,
            next: 0,
            end: cts.pieces.get(),
            of: StreamOf::Op(op),
        };
        self.add_stream(io, pi, stream);
    }

    pub(crate) fn add_stream(&mut self, io: &mut Io<'_>, pi: u32, s: Stream) {
        self.peers[pi as usize].tx.streams.push_back(s);
        self.drain_streams(io, pi);
    }

    /// Sends pieces, one from each transfer in turn, as far as the bound on unacknowledged bytes allows.
    pub(crate) fn drain_streams(&mut self, io: &mut Io<'_>, pi: u32) {
        while let Some(mut s) = self.peers[pi as usize].tx.streams.pop_front() {
            match s.of {
                StreamOf::Op(op) if self.ops.proto(op).is_none() => continue,
                StreamOf::Window(w) if !self.windows.open.contains_key(&w) => {
                    self.send_done(io, pi, s.sink, Status::Denied);
                    continue;
                }
                _ => {}
            }
            let tx = &self.peers[pi as usize].tx;
            if tx.unacked_bytes >= self.limits.max_unacked_bytes || !tx.control.is_empty() {
                return self.peers[pi as usize].tx.streams.push_front(s);
            }
            let body = s.source.range(s.next as usize * s.piece, s.piece);
            let head = Piece { sink: s.sink.into(), index: s.next.into(), reserved: 0.into() };
            let inline = Inline::new(head.as_bytes()).expect("a piece's head fits");
            let out = Out { kind: FrameKind::Piece, flags: 0, tag: 0, inline, body, op: None, units: 0 };
            if !self.transmit_owned(io, pi, &out) {
                return self.peers[pi as usize].tx.streams.push_front(s);
            }
            s.next += 1;
            if s.next < s.end {
                self.peers[pi as usize].tx.streams.push_back(s);
            }
        }
    }

    /// Memory for a piece; a piece nobody waits for is discarded.
    pub(crate) fn place_piece(
        &mut self,
        pi: u32,
        piece: &Piece,
        seq: u32,
        len: usize,
    ) -> (Taking, Option<Landing>) {
        let name = self.peers[pi as usize].name;
        let op = OpId::from_bits(piece.sink.get());
        if let Some(Proto::Pieces { peer, assembly: Some(a), .. }) = self.ops.proto(op)
            && *peer == name
            && let Some(l) = a.lend(piece.index.get() as usize)
        {
            if l.len() == len {
                return (Taking::Piece { seq, op }, Some(l));
            }
            a.give_back(l, false);
        }
        (Taking::Discard { seq: Some(seq) }, None)
    }

    pub(crate) fn piece_taken(&mut self, io: &mut Io<'_>, op: OpId, landing: Option<Landing>, filled: bool) {
        let Some(Proto::Pieces { peer, tag, len, sender, assembly, waited, tell, .. }) = self.ops.proto(op)
        else {
            return self.piece_back(io, op, landing);
        };
        let (peer, tag, len, sender, read, tell) = (*peer, *tag, *len, *sender, waited.is_none(), *tell);
        if let (Some(a), Some(l)) = (assembly.as_mut(), landing) {
            a.give_back(l, filled);
        }
        if !assembly.as_ref().is_some_and(Assembly::is_whole) {
            return;
        }
        let Some(Ok(room)) = assembly.take().map(Assembly::into_room) else { return };
        if read {
            return self.access_ended(io, peer, op, Some(room), tell.as_ref());
        }
        self.send_done(io, peer.index, sender, Status::Ok);
        let nth = self.ops.nth(op);
        self.receive_ended(op, received(peer, tag, room, len, nth));
    }

    pub(crate) fn piece_failed(&mut self, io: &mut Io<'_>, op: OpId, landing: Option<Landing>) {
        match (self.ops.proto(op), landing) {
            (Some(Proto::Pieces { assembly: Some(a), .. }), Some(l)) => a.give_back(l, false),
            (_, landing) => self.piece_back(io, op, landing),
        }
    }

    pub(crate) fn send_done(&mut self, io: &mut Io<'_>, pi: u32, op: u64, status: Status) {
        let d = Done { op: op.into(), status: (status as u32).into(), reserved: 0.into() };
        self.send_control(io, pi, FrameKind::Done, 0, d.as_bytes());
    }

    /// A peer says that it has all of a large message; `false`, and nothing has happened, if that was none to it.
    #[inline(always)]
    pub(crate) fn large_done(&mut self, io: &mut Io<'_>, pi: u32, op: OpId) -> bool {
        let p = &mut self.peers[pi as usize];
        let Some(lent) = self.ops.end_large(op, p.name) else { return false };
        p.expects = p.expects.saturating_sub(1);
        if let Some(e) = lent {
            io.ports[e.port].revoke(e.exposure);
            // It was fetched, or pieces of it would have been asked for.
            self.rma_left(e.over, e.len).tx_bytes += e.len as u64;
        }
        true
    }

    /// The other side has ended its half.
    pub(crate) fn on_done(&mut self, io: &mut Io<'_>, pi: u32, op: OpId, status: Status) {
        let name = self.peers[pi as usize].name;
        if status == Status::Ok && self.large_done(io, pi, op) {
            return;
        }
        let Some(proto) = self.ops.proto(op).filter(|p| p.peer() == Some(name)) else { return };
        let what = proto.name();
        let refused = |kind, text: &str| Err(Error::new(kind, what, text).with_fate(Fate::Refused));
        match (&*proto, status) {
            (Proto::Write { .. }, s) => self.write_part_done(op, s),
            (Proto::Large { .. }, s) => {
                self.drop_exposure(io, op);
                self.finish(
                    op,
                    match s {
                        Status::NoMemory => {
                            refused(Kind::Limit, "the receiver has no memory for the message")
                        }
                        _ => refused(Kind::Canceled, "the receiver gave the message up"),
                    },
                );
            }
            (Proto::Pieces { waited: None, .. }, Status::Denied) => {
                self.finish(
                    op,
                    refused(Kind::AccessDenied, "the window's owner refused: key, right or range"),
                );
            }
            (Proto::Pieces { waited: Some(_), .. }, s) if s != Status::Ok => {
                self.give_message_up(io.now, op);
                self.wait_again(io, op);
            }
            (Proto::Pieces { .. }, s) if s != Status::Ok => {
                self.finish(op, refused(Kind::Canceled, "the window's owner gave the transfer up"));
            }
            _ => {}
        }
    }
}
