//! Large messages whose receive is over while their pieces come. They go on coming, for the next receive, as long as they make headway:
//! a peer that promised one and sends nothing of it does not hold its memory for ever.

use crate::clock::ns;
use crate::machine::{Io, Machine};
use crate::message::OpId;
use crate::ops::Proto;
use crate::wire::Status;

/// A large message whose receive is over, and of which no piece came for so many times
/// [`Limits::peer_timeout`](crate::Limits::peer_timeout), is given up, and its sender told so. A slow link may need long for one.
pub const ORPHAN_PATIENCE: u64 = 12;

/// One of them, and when it had how many pieces yet to come.
#[derive(Debug)]
pub(crate) struct Orphan {
    op: OpId,
    missing: u32,
    since: u64,
}

impl Machine {
    /// The receive of this message is over.
    pub(crate) fn orphan(&mut self, now: u64, op: OpId) {
        if let Some(Proto::Pieces { waited: Some(_), assembly: Some(a), .. }) = self.ops.proto(op) {
            self.orphans.push(Orphan { op, missing: a.missing(), since: now });
            self.next_tick = self.next_tick.min(now + self.orphans_patience());
        }
    }

    fn orphans_patience(&self) -> u64 {
        ns(self.limits.peer_timeout).saturating_mul(ORPHAN_PATIENCE)
    }

    /// Gives up those that make no headway; when to look again.
    pub(crate) fn see_to_orphans(&mut self, io: &mut Io<'_>) -> u64 {
        let (patience, mut next) = (self.orphans_patience(), u64::MAX);
        for mut o in std::mem::take(&mut self.orphans) {
            let Some(Proto::Pieces { peer, sender, assembly: Some(a), .. }) = self.ops.proto(o.op) else {
                continue;
            };
            let (pi, sender, missing) = (peer.index, *sender, a.missing());
            if missing != o.missing {
                (o.missing, o.since) = (missing, io.now);
            } else if io.now >= o.since + patience {
                self.end_op(o.op);
                self.send_done(io, pi, sender, Status::Canceled);
                continue;
            }
            next = next.min(o.since + patience);
            self.orphans.push(o);
        }
        next
    }
}
