//! Receives as their users begin them: with one buffer, several or none, or with one that comes later.

use crate::machine::{Io, Machine};
use crate::message::*;
use crate::ops::Proto;
use kfab_core::mem::{Buffer, Room};
use kfab_core::{Error, Kind, Result};

impl Machine {
    /// [`Machine::recv`] into several buffers, which are filled one after the other, each to its end; ends with [`Outcome::Parts`]. None
    /// of them may have another owner (`InvalidArgument`).
    pub fn recv_all(&mut self, io: &mut Io<'_>, want: Want, into: Vec<Buffer>) -> Result<Started> {
        let mut room = Room::Many(into);
        if !room.is_only() {
            return Err(Error::new(Kind::InvalidArgument, "recv", "a receive buffer has another owner"));
        }
        self.receive(io, want, Some(room))
    }

    pub(crate) fn receive(&mut self, io: &mut Io<'_>, mut want: Want, into: Option<Room>) -> Result<Started> {
        self.close_tab();
        if self.is_closed() {
            return Err(Error::new(Kind::Closed, "recv", "the endpoint is closed"));
        }
        want.from = want.from.map(|from| self.real_name(from));
        if let Some(u) = self.matcher.take_unexpected(&want) {
            return self.deliver_waiting(io, want, u, into);
        }
        let from = want.from;
        if let Some(from) = from {
            self.peer_index(from, "recv")?;
        }
        let (op, mut into) = match into {
            Some(Room::Many(into)) => (self.ops.insert(Proto::RecvAll { from, into }, "recv")?, None),
            Some(Room::One(b)) => (self.ops.insert_recv(from)?, Some(b)),
            None => (self.ops.insert_recv(from)?, None),
        };
        if let Some(from) = from {
            self.expect(io.now, from.index);
        }
        self.matcher.post(op, &want, &mut into);
        Ok(Started::Pending(op))
    }

    /// A receive whose buffer comes later, with [`Machine::supply`]: until then it gets only what another receive gave back, which brings
    /// its memory. Ends early as others do.
    pub fn reserve_recv(&mut self, io: &mut Io<'_>, want: Want) -> Result<OpId> {
        self.close_tab();
        if self.is_closed() {
            return Err(Error::new(Kind::Closed, "recv", "the endpoint is closed"));
        }
        let from = want.from.map(|from| self.real_name(from));
        if let Some(from) = from {
            self.peer_index(from, "recv")?;
        }
        let op = self.ops.insert_recv(from)?;
        if let Some(from) = from {
            self.expect(io.now, from.index);
        }
        let want = Want { from, ..want };
        if let Some(u) = self.matcher.post_dry(op, want) {
            self.deliver(io, op, want, u, None);
        }
        Ok(op)
    }

    /// The buffer of a reserved receive, once; `want` is what it was reserved with. The buffer back if the receive has ended meanwhile.
    pub fn supply(&mut self, io: &mut Io<'_>, op: OpId, want: Want, into: Buffer) -> Option<Buffer> {
        self.close_tab();
        let Some(Proto::Recv { from }) = self.ops.proto(op) else { return Some(into) };
        // The peer may have got another name.
        let want = Want { from: *from, ..want };
        self.matcher.end_dry(op);
        match self.matcher.take_unexpected(&want) {
            Some(u) => self.deliver(io, op, want, u, Some(Room::One(into))),
            None => self.matcher.post(op, &want, &mut Some(into)),
        }
        None
    }
}
