//! What a lane knows about one peer: the ways to it, the connections up now, what was sent and not yet acknowledged, what has
//! arrived, and the credits of both directions.

use crate::dedup::Dedup;
use crate::limits::{Limits, units};
use crate::matcher::Unexpected;
use crate::message::{OpId, PeerId, Source};
use crate::notice::Notice;
use crate::ops::Range;
use crate::transmit::NOWHERE;
use crate::wire::{FrameKind, SEQ_MOD, seq_ahead};
use kfab_core::spi::{Address, Inline, Way};
use std::collections::VecDeque;

/// A frame on its way out, before it has a sequence number.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) kind: FrameKind,
    pub(crate) flags: u8,
    pub(crate) tag: u64,
    pub(crate) inline: Inline,
    pub(crate) body: Source,
    /// Completed when the frame is acknowledged.
    pub(crate) op: Option<OpId>,
    /// Credit units it costs.
    pub(crate) units: u32,
}

impl Out {
    /// `true` for what belongs to a one-sided access and is no message.
    #[inline]
    pub(crate) fn is_access(&self) -> bool {
        matches!(self.kind, FrameKind::Write | FrameKind::Notice)
    }
}

/// A sequenced frame that may have to be sent again.
#[derive(Debug)]
pub(crate) struct Unacked {
    pub(crate) seq: u32,
    pub(crate) out: Out,
    /// The connection it went over last.
    pub(crate) conn: u32,
    pub(crate) sent_at: u64,
    pub(crate) resent: bool,
}

/// A message that an operation has yet to hand to the wire.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) out: Out,
    /// The operation; completed when the frame has left, unless `out.op` says it waits for the acknowledgement.
    pub(crate) op: OpId,
}

/// A large send in progress: pieces `next..end` have yet to be sent.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The operation at the receiver.
    pub(crate) sink: u64,
    pub(crate) source: Source,
    pub(crate) piece: usize,
    pub(crate) next: u32,
    pub(crate) end: u32,
    /// What it goes on for.
    pub(crate) of: StreamOf,
}

/// A stream ends early with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamOf {
    /// A send of ours.
    Op(OpId),
    /// A read that is served for the peer, from this window.
    Window(u64),
}

/// Answers that may wait for one peer. Each is to one of its frames, of which an honest one has no more than 16,384
/// unacknowledged ([`Limits::max_unacked`](crate::Limits::max_unacked)); one that makes us answer and acknowledges nothing is given up.
pub const MAX_CONTROL: usize = 65_536;

/// The sending half.
#[derive(Debug, Default)]
pub(crate) struct Tx {
    /// The next sequence number.
    pub(crate) next: u32,
    /// All before this one are acknowledged.
    pub(crate) acked: u32,
    /// Units the peer lets us have in use, and the bytes of a message that cost one there; 0: it has not said yet.
    pub(crate) limit: u32,
    pub(crate) credit_bytes: u32,
    /// Units spent, and units given back, since the start (wrapping).
    pub(crate) spent: u32,
    pub(crate) returned: u32,
    pub(crate) unacked: VecDeque<Unacked>,
    pub(crate) unacked_bytes: usize,
    /// Protocol frames that need no credit; they go first.
    pub(crate) control: VecDeque<Out>,
    /// Messages that wait for credit.
    pub(crate) deferred: VecDeque<Deferred>,
    /// Large transfers.
    pub(crate) streams: VecDeque<Stream>,
    /// Reads of the peer's windows by messages that it has been asked for, and those that wait for some of them to end.
    pub(crate) reads: usize,
    pub(crate) asks: VecDeque<Ask>,
    /// The machine's poll count at the last post: a second frame within one round may wait for company.
    pub(crate) round: u64,
    /// Smoothed round trip, ns; 0: not known.
    pub(crate) srtt: u64,
    /// Doublings of the resend timer without progress.
    pub(crate) backoff: u32,
}

/// A read that waits for its turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) op: OpId,
    pub(crate) range: Range,
    pub(crate) len: usize,
    pub(crate) piece: usize,
}

impl Tx {
    /// Units free.
    #[inline]
    pub(crate) fn credit(&self) -> u32 {
        self.limit.saturating_sub(self.spent.wrapping_sub(self.returned))
    }

    /// `true` if nothing waits to leave.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        self.deferred.is_empty() && self.control.is_empty() && self.streams.is_empty()
    }

    /// More than [`MAX_CONTROL`] answers wait. What we ask for ourselves, parts of writes above all, waits there too and does not count.
    pub(crate) fn owes_too_many_answers(&self) -> bool {
        let answers = || self.control.iter().filter(|o| matches!(o.kind, FrameKind::Done | FrameKind::Cts));
        self.control.len() > MAX_CONTROL && answers().count() > MAX_CONTROL
    }

    #[inline]
    pub(crate) fn take_seq(&mut self) -> u32 {
        let s = self.next;
        self.next = (s + 1) & (SEQ_MOD - 1);
        s
    }

    /// Takes the low 16 bits of an acknowledgement; `true` if it tells something new. An old or impossible one does not.
    #[inline]
    pub(crate) fn take_ack(&mut self, low: u16) -> bool {
        let d = u32::from(low.wrapping_sub(self.acked as u16));
        if d == 0 || d > seq_ahead(self.acked, self.next) {
            return false;
        }
        self.acked = (self.acked + d) & (SEQ_MOD - 1);
        true
    }

    /// Takes the low 16 bits of the units returned; the same rule.
    #[inline]
    pub(crate) fn take_credit(&mut self, low: u16) -> bool {
        let d = u32::from(low.wrapping_sub(self.returned as u16));
        if d == 0 || d > self.spent.wrapping_sub(self.returned) {
            return false;
        }
        self.returned = self.returned.wrapping_add(d);
        true
    }
}

/// The receiving half.
#[derive(Debug, Default)]
pub(crate) struct Rx {
    pub(crate) dedup: Dedup,
    /// Units consumed since the start (wrapping), and what of it the peer was told.
    pub(crate) consumed: u32,
    pub(crate) told_consumed: u32,
    /// Credit units of messages and notices that nobody has taken yet. An honest peer never has more than it was given.
    pub(crate) waiting: u32,
    /// The sequence number that the peer was told has not arrived yet.
    pub(crate) told_next: u32,
    /// An acknowledgement must leave in this round.
    pub(crate) ack_now: bool,
    /// An acknowledgement must leave at this time; 0: none waits.
    pub(crate) ack_at: u64,
    /// In the machine's list of peers that are told soon.
    pub(crate) soon: bool,
    /// Ordered messages, and notices, that came before their turn.
    pub(crate) held: Vec<(u32, Held)>,
}

/// What waits for earlier frames.
#[derive(Debug)]
pub(crate) enum Held {
    Message(Unexpected),
    Notice(Notice),
}

impl Rx {
    /// A header has left that says so: what arrived, and what was consumed.
    #[inline(always)]
    pub(crate) fn told(&mut self, next: u32, consumed: u32) {
        (self.told_next, self.told_consumed) = (next, consumed);
        (self.ack_now, self.ack_at) = (false, 0);
    }

    /// A frame has arrived; `true` if it has to be acknowledged now: it says so, or `many` are not yet.
    #[inline(always)]
    pub(crate) fn arrives(&mut self, seq: u32, urgent: bool, many: usize) -> bool {
        self.dedup.record(seq);
        self.ack_now |= urgent || seq_ahead(self.told_next, self.dedup.next()) as usize >= many;
        self.ack_now
    }

    /// So many units are the user's now; `true` if the sender has to be told, as `many` wait for that.
    #[inline(always)]
    pub(crate) fn consumes(&mut self, units: u32, many: u32) -> bool {
        self.consumed = self.consumed.wrapping_add(units);
        self.ack_now |= self.consumed.wrapping_sub(self.told_consumed) >= many;
        self.ack_now
    }

    #[inline]
    pub(crate) fn untold(&self) -> (u32, u32) {
        (seq_ahead(self.told_next, self.dedup.next()), self.consumed.wrapping_sub(self.told_consumed))
    }
}

/// Where a way stands.
#[derive(Debug)]
pub(crate) enum Dial {
    Down { next_try: u64 },
    Dialing { conn: u32 },
    Up { conn: u32 },
}

/// A way to the peer and the port that could take it.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) port: usize,
    pub(crate) way: Way,
    pub(crate) rank: u8,
    pub(crate) dial: Dial,
    pub(crate) fails: u32,
    /// The last failure was a refusal: nobody listens there.
    pub(crate) refused: bool,
    pub(crate) why: String,
}

/// Counters of a peer. Monotonic since the peer became known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PeerCounters {
    /// Messages sent, and their bytes.
    pub tx_messages: u64,
    /// Bytes of messages sent.
    pub tx_bytes: u64,
    /// Messages received.
    pub rx_messages: u64,
    /// Bytes of messages received.
    pub rx_bytes: u64,
    /// Messages that left together with others in one frame.
    pub coalesced: u64,
    /// Times a send had to wait for credit.
    pub credit_stalls: u64,
    /// The fewest credits ever free.
    pub min_credits: u32,
    /// Frames sent again.
    pub resent: u64,
    /// Frames that came twice and were dropped.
    pub duplicates: u64,
    /// Times traffic moved to another rail.
    pub failovers: u64,
    /// Times the peer was lost.
    pub lost: u64,
}

impl PeerCounters {
    /// Nothing has happened.
    pub(crate) const NONE: PeerCounters = PeerCounters {
        tx_messages: 0,
        tx_bytes: 0,
        rx_messages: 0,
        rx_bytes: 0,
        coalesced: 0,
        credit_stalls: 0,
        min_credits: u32::MAX,
        resent: 0,
        duplicates: 0,
        failovers: 0,
        lost: 0,
    };

    pub(crate) fn add(&mut self, o: &PeerCounters) {
        self.tx_messages += o.tx_messages;
        self.tx_bytes += o.tx_bytes;
        self.rx_messages += o.rx_messages;
        self.rx_bytes += o.rx_bytes;
        self.coalesced += o.coalesced;
        self.credit_stalls += o.credit_stalls;
        self.min_credits = self.min_credits.min(o.min_credits);
        self.resent += o.resent;
        self.duplicates += o.duplicates;
        self.failovers += o.failovers;
        self.lost += o.lost;
    }
}

/// Everything about one peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: PeerId,
    /// Another name for a peer that connected to us while we connected to it by an address it does not call its own.
    pub(crate) alias: Option<PeerId>,
    pub(crate) address: Option<Address>,
    /// Numbers this state: new when we gave the peer up, so that both sides start anew together.
    pub(crate) session: u64,
    pub(crate) far_session: Option<u64>,
    /// What that was before, under the same number of ours. Two numbers together name one state, once.
    pub(crate) past: Vec<u64>,
    /// The endpoint's own number, new at every start; `None` before the first hello.
    pub(crate) identity: Option<u64>,
    /// When it became known, or was asked for last.
    pub(crate) known_at: u64,
    /// Asked for by the user: the entry stays when the peer is lost, and goes only when another needs its place.
    pub(crate) wanted: bool,
    pub(crate) candidates: Vec<Candidate>,
    /// Connections that are up, and of those the ones of the best rank.
    pub(crate) rails: Vec<u32>,
    pub(crate) active: Vec<u32>,
    /// The one of the short way: the only active one, where no fault rule is in force; [`NOWHERE`] if there is none.
    pub(crate) short: u32,
    /// Frames are kept until acknowledged.
    pub(crate) keep: bool,
    /// A fault rule has taken frames: what is not acknowledged is sent again as over a lossy rail, even when the rule is gone.
    pub(crate) struck: bool,
    pub(crate) tx: Tx,
    pub(crate) rx: Rx,
    /// Operations that wait for this peer.
    pub(crate) expects: u32,
    pub(crate) expect_since: u64,
    pub(crate) last_heard: u64,
    pub(crate) last_probe: u64,
    /// When it was first asked whether it lives, in its last silence.
    pub(crate) asked_at: u64,
    /// Since when there is work and no connection.
    pub(crate) cut_since: Option<u64>,
    /// We have called it with success.
    pub(crate) called: bool,
    /// It can call us: it has, or says so. Else only we can make the connection by which it answers.
    pub(crate) calls_us: bool,
    /// Until when we call it for no other reason; 0: we do not.
    pub(crate) recall_until: u64,
    /// Until when nobody is told again of stalls, of frames sent again.
    pub(crate) stall_told_until: u64,
    pub(crate) resend_told_until: u64,
    /// In the machine's list of peers with timers, of peers with work to send.
    pub(crate) timed: bool,
    pub(crate) dirty: bool,
    pub(crate) ever_up: bool,
    /// It was lost while nobody waited for it, so nobody was told: who asks for it next hears of that at once, if it is not there again.
    pub(crate) untold: bool,
    /// The largest body that every rail that there may be can carry: frames may have to move from one to another. 0: not known.
    pub(crate) frame_max: usize,
    /// Forgotten: the place is free, or will be when no list names it any more.
    pub(crate) gone: bool,
    pub(crate) counters: PeerCounters,
}

impl Peer {
    pub(crate) fn new(name: PeerId, address: Option<Address>, wanted: bool, session: u64, now: u64) -> Peer {
        Peer {
            name,
            alias: None,
            session,
            far_session: None,
            past: Vec::new(),
            address,
            identity: None,
            wanted,
            candidates: Vec::new(),
            rails: Vec::new(),
            active: Vec::new(),
            short: NOWHERE,
            keep: false,
            struck: false,
            tx: Tx::default(),
            rx: Rx::default(),
            expects: 0,
            expect_since: 0,
            last_heard: 0,
            last_probe: 0,
            asked_at: 0,
            cut_since: None,
            called: false,
            calls_us: false,
            recall_until: 0,
            stall_told_until: 0,
            resend_told_until: 0,
            timed: false,
            dirty: false,
            ever_up: false,
            untold: false,
            frame_max: 0,
            gone: false,
            known_at: now,
            counters: PeerCounters::NONE,
        }
    }

    /// A header of the peer's has come: the acknowledgement and credit that ride in it. Whether each told something new.
    #[inline(always)]
    pub(crate) fn hears(&mut self, now: u64, ack: u16, credit: u16) -> (bool, bool) {
        self.last_heard = now;
        (self.tx.take_ack(ack), self.tx.take_credit(credit))
    }

    /// Does a message of `len` bytes go to the peer as one frame, over a rail that takes up to `eager_max`?
    #[inline]
    pub(crate) fn is_eager(&self, limits: &Limits, eager_max: usize, len: usize) -> bool {
        let credits = limits.credits.min(if self.tx.limit == 0 { u32::MAX } else { self.tx.limit });
        len <= eager_max.min(self.frame_max) && self.units(limits, len) <= credits / 4
    }

    /// What a message of so many bytes costs at the peer.
    #[inline]
    pub(crate) fn units(&self, limits: &Limits, len: usize) -> u32 {
        units(len, if self.tx.credit_bytes == 0 { limits.credit_bytes } else { self.tx.credit_bytes })
    }

    /// The peer says how it counts: what waits is counted anew, also what waited under another name of the peer's.
    pub(crate) fn is_granted(&mut self, credits: u32, credit_bytes: u32) {
        (self.tx.limit, self.tx.credit_bytes) = (credits, credit_bytes);
        let messages = self.tx.deferred.iter_mut().filter(|d| d.out.kind == FrameKind::Eager);
        messages.for_each(|d| d.out.units = units(d.out.body.len(), credit_bytes));
    }

    /// `true` if we can make a connection ourselves, as far as is known.
    pub(crate) fn is_callable(&self) -> bool {
        self.called || (self.wanted && self.address.is_some())
    }

    /// `true` while something is owed to or by the peer.
    pub(crate) fn is_busy(&self) -> bool {
        self.expects > 0 || !self.tx.unacked.is_empty() || !self.tx.is_drained()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_only_move_forward_and_only_over_what_was_sent() {
        let mut tx = Tx { next: 10, ..Default::default() };
        assert!(!tx.take_ack(11));
        assert!(tx.take_ack(4) && !tx.take_ack(3) && !tx.take_ack(4) && tx.take_ack(10));
        let mut tx = Tx { next: 5, acked: SEQ_MOD - 3, ..Default::default() };
        assert!(tx.take_ack(2));
        assert_eq!(tx.acked, 2);
    }

    #[test]
    fn credit_returns_only_what_was_spent() {
        let mut tx = Tx { limit: 8, spent: u32::MAX, returned: u32::MAX - 8, ..Default::default() };
        assert_eq!(tx.credit(), 0);
        assert!(!tx.take_credit((u32::MAX - 9) as u16) && !tx.take_credit(0));
        assert!(tx.take_credit((u32::MAX - 3) as u16));
        assert_eq!(tx.credit(), 5);
    }
}
