//! A receive whose large message will not come: its sender gave it up, or is lost and was not the only one that the receive was for. It
//! waits again, with the memory that it brought, as soon as the ports have given all of that back.

use crate::machine::{Io, Machine};
use crate::matcher::Receive;
use crate::message::{OpId, Want};
use crate::ops::Proto;
use kfab_core::mem::{Assembly, Landing, Room};
use kfab_core::{Error, Kind, Result};

/// What a receive waited for before it met a large message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited {
    pub(crate) want: Want,
    /// It brought the memory.
    pub(crate) named: bool,
}

impl Machine {
    /// The large message that this receive has met will not come. [`Machine::wait_again`] follows when the peer's affairs are settled.
    pub(crate) fn give_message_up(&mut self, now: u64, op: OpId) {
        let back = match self.ops.proto(op) {
            Some(Proto::Fetch { waited, reads, .. }) => {
                Proto::Back { waited: *waited, assembly: None, reads: reads.take(), reading: true }
            }
            Some(Proto::Pieces { waited: Some(waited), assembly, .. }) => {
                Proto::Back { waited: *waited, assembly: assembly.take(), reads: None, reading: false }
            }
            _ => return,
        };
        self.set_proto(now, op, back);
    }

    /// Posts the receive anew, unless a port has memory of it still.
    pub(crate) fn wait_again(&mut self, io: &mut Io<'_>, op: OpId) {
        let Some(Proto::Back { assembly, reading: false, .. }) = self.ops.proto(op) else { return };
        if assembly.as_ref().is_some_and(Assembly::is_lent) {
            return;
        }
        let room = assembly.take().and_then(|a| a.into_room().ok());
        self.post_anew(io, op, room);
    }

    /// A piece of it that a port was filling.
    pub(crate) fn piece_back(&mut self, io: &mut Io<'_>, op: OpId, landing: Option<Landing>) {
        if let (Some(Proto::Back { assembly: Some(a), .. }), Some(l)) = (self.ops.proto(op), landing) {
            a.give_back(l, false);
            self.wait_again(io, op);
        }
    }

    /// Memory that a port was reading to.
    pub(crate) fn read_is_back(
        &mut self,
        io: &mut Io<'_>,
        op: OpId,
        landing: Option<Landing>,
        result: Result<()>,
    ) {
        if let Some((room, _)) = self.read_back(op, landing, result) {
            self.post_anew(io, op, room);
        }
    }

    fn post_anew(&mut self, io: &mut Io<'_>, op: OpId, room: Option<Room>) {
        let Some(Proto::Back { waited: Waited { want, named }, .. }) = self.ops.proto(op) else { return };
        let (want, named) = (*want, *named);
        if !self.ops.is_waiting(op) {
            self.end_op(op);
            return;
        }
        if named && room.is_none() {
            return self.finish(op, Err(Error::new(Kind::Protocol, "recv", "the port kept the buffer")));
        }
        let (proto, into) = match room.filter(|_| named) {
            Some(Room::Many(into)) => (Proto::RecvAll { from: want.from, into }, None),
            Some(Room::One(b)) => (Proto::Recv { from: want.from }, Some(b)),
            None => (Proto::Recv { from: want.from }, None),
        };
        self.set_proto(io.now, op, proto);
        self.post_again(io, Receive { op, want, into });
    }
}
