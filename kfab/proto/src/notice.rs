//! Notices: a value that goes with a one-sided access and tells the window's owner that the access has ended.
//!
//! A write by messages carries it in its last frame; after every other access a small frame of its own follows, sent when the access
//! has ended here. Both have a place in the peer's sequence like a message: nothing is told twice, and what has to wait for earlier
//! frames does. A notice costs its sender one credit until the owner takes it, so what waits at a window is bounded by
//! [`Limits::credits`](crate::Limits) of each peer.

use crate::machine::{Io, Machine};
use crate::matcher::Cost;
use crate::message::*;
use crate::ops::{Proto, Range};
use crate::parts::read_outcome;
use crate::peer::Out;
use crate::wire::*;
use kfab_core::mem::Room;
use kfab_core::spi::{Inline, Rights};
use kfab_core::{Error, Kind, Result};
use std::collections::VecDeque;
use zerocopy::IntoBytes;

use crate::onesided::WindowId;

/// What the owner of a window is told: an access has ended, all its bytes are where they belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whose access it was.
    pub from: PeerId,
    /// To which window.
    pub window: WindowId,
    /// What the initiator says about it.
    pub value: u64,
    /// Bytes read or written, as the initiator says.
    pub bytes: u64,
    /// Which of the two it was: `READ` or `WRITE`.
    pub access: Rights,
}

/// The notices of a window: those that wait to be taken with the credit each gives back, and the operations that wait for one.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    pub(crate) here: VecDeque<(Notice, Cost)>,
    pub(crate) wanted: VecDeque<OpId>,
}

/// A notice that came with the last frame of a write; `ordered`: the others may still be on their way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) notice: Notice,
    pub(crate) ordered: bool,
}

/// A notice that its initiator has yet to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tell {
    pub(crate) value: u64,
    range: Range,
    bytes: usize,
    access: Rights,
}

impl Tell {
    pub(crate) fn new(value: u64, range: Range, bytes: usize, access: Rights) -> Tell {
        Tell { value, range, bytes, access }
    }

    /// The frame that says it, alone.
    fn out(&self) -> Out {
        let n = NoticeHead {
            window: self.range.window.into(),
            secret: self.range.secret.into(),
            bytes: (self.bytes as u64).into(),
            access: u32::from(self.access.bits()).into(),
            reserved: 0.into(),
        };
        let inline = Inline::new(n.as_bytes()).expect("a notice fits");
        Out {
            kind: FrameKind::Notice,
            flags: 0,
            tag: self.value,
            inline,
            body: Source::Empty,
            op: None,
            units: 1,
        }
    }
}

impl Machine {
    // ---- the initiator ----

    /// An access has ended here: the operation ends, after its notice has left if it has one.
    pub(crate) fn access_ended(
        &mut self,
        io: &mut Io<'_>,
        peer: PeerId,
        op: OpId,
        read: Option<Room>,
        tell: Option<&Tell>,
    ) {
        let Some(tell) = tell else { return self.finish(op, Ok(outcome(read))) };
        let out = tell.out();
        self.set_proto(io.now, op, Proto::Tell { peer, read });
        self.send_or_defer(io, peer.index, out, op);
    }

    /// The notice of an access has left: its operation ends.
    pub(crate) fn told(&mut self, op: OpId) {
        if let Some(Proto::Tell { read, .. }) = self.ops.proto(op) {
            let read = read.take();
            self.finish(op, Ok(outcome(read)));
        }
    }

    /// The notice of an access that needed no operation; `false`, and nothing has happened: it needs one to wait in.
    pub(crate) fn tell_now(&mut self, io: &mut Io<'_>, pi: u32, tell: &Tell) -> bool {
        let tx = &self.peers[pi as usize].tx;
        tx.is_drained() && tx.credit() > 0 && self.transmit_owned(io, pi, &tell.out())
    }

    // ---- the owner ----

    /// Waits for the next notice of a window: `Done` if one is there. `Closed` if the window is.
    pub fn recv_notice(&mut self, window: WindowId) -> Result<Started> {
        self.close_tab();
        let closed = || Error::new(Kind::Closed, "notice", "the window is closed");
        let notices = self.windows.notices(window).ok_or_else(closed)?;
        if let Some((notice, cost)) = notices.here.pop_front() {
            self.give_units(notice.from, cost);
            return Ok(Started::Done(Outcome::Notice(notice)));
        }
        let op = self.ops.insert(Proto::Notice { window }, "notice")?;
        if let Some(n) = self.windows.notices(window) {
            n.wanted.push_back(op);
        }
        Ok(Started::Pending(op))
    }

    /// A frame with nothing but a notice.
    pub(crate) fn on_notice(&mut self, io: &mut Io<'_>, ci: u32, pi: u32, value: u64, inline: &Inline) {
        let parsed = NoticeHead::parse(inline.as_slice()).and_then(|n| {
            let access = Rights::from_bits(u8::try_from(n.access.get()).ok()?)?;
            [Rights::READ, Rights::WRITE].contains(&access).then_some((n, access))
        });
        let Some((n, access)) = parsed else { return self.hostile(io, ci, "a bad notice") };
        let (from, bytes) = (self.peers[pi as usize].name, n.bytes.get());
        let a = Access { window: n.window, secret: n.secret, offset: 0.into(), op: 0.into() };
        let known = self.windows.check(&a, bytes, access).is_some();
        let window = WindowId(n.window.get());
        self.notice_here(io, pi, known.then_some(Notice { from, window, value, bytes, access }));
    }

    /// A notice whose turn has come: to the operation that waits for it, or into the window's queue. `None`: it was refused and
    /// gives its credit back.
    pub(crate) fn notice_here(&mut self, io: &mut Io<'_>, pi: u32, notice: Option<Notice>) {
        let queue = notice.and_then(|n| Some((n, self.windows.notices(n.window)?)));
        let Some((notice, queue)) = queue else { return self.consume(pi, 1) };
        if let Some(op) = queue.wanted.pop_front() {
            self.finish(op, Ok(Outcome::Notice(notice)));
            return self.consume(pi, 1);
        }
        if self.may_wait(io, pi, 1)
            && let Some(queue) = self.windows.notices(notice.window)
        {
            queue.here.push_back((notice, Cost::owed(1)));
        }
    }

    /// A notice that was handed over to nobody goes to the next that waits for one, or waits before all others.
    pub(crate) fn notice_again(&mut self, n: Notice) {
        let Some(queue) = self.windows.notices(n.window) else { return };
        match queue.wanted.pop_front() {
            Some(op) => self.finish(op, Ok(Outcome::Notice(n))),
            None => queue.here.push_front((n, Cost::NONE)),
        }
    }

    /// Nobody waits for a notice any more by this operation.
    pub(crate) fn withdraw_notice(&mut self, op: OpId) {
        if let Proto::Notice { window } = self.end_op(op)
            && let Some(queue) = self.windows.notices(window)
        {
            queue.wanted.retain(|o| *o != op);
        }
    }

    /// The window is closed: who waits is told, and the credit of what waited goes back.
    pub(crate) fn end_notices(&mut self, notices: Notices) {
        for op in notices.wanted {
            self.finish(op, Err(Error::new(Kind::Closed, "notice", "the window was closed")));
        }
        for (notice, cost) in notices.here {
            self.give_units(notice.from, cost);
        }
    }

    /// What waited of a peer is the user's now, or gone: its units go back.
    pub(crate) fn give_units(&mut self, to: PeerId, cost: Cost) {
        if !cost.is_owed() {
            self.left_behind = self.left_behind.saturating_sub(u64::from(cost.units));
        } else if let Some(p) = self.peers.get_mut(to.index as usize).filter(|p| p.name == to) {
            p.rx.waiting = p.rx.waiting.saturating_sub(cost.units);
            self.consume(to.index, cost.units);
        }
    }
}

/// How an access ends well: a read with its room.
fn outcome(read: Option<Room>) -> Outcome {
    read.map_or(Outcome::Unit, read_outcome)
}
