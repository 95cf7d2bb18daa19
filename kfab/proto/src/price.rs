//! What safety costs of each message, by the piece: for the benchmark `safety` in `benches/`, which is not to price a copy of it.
//! Nobody else calls this.

use crate::peer::{PeerCounters, Rx, Tx};
use crate::wire::SEQ_MOD;

/// The two halves of a conversation with nothing in them.
#[derive(Debug)]
pub struct Pieces {
    tx: Tx,
    rx: Rx,
    counters: PeerCounters,
}

impl Pieces {
    /// With so much credit.
    pub fn new(credits: u32) -> Pieces {
        let tx = Tx { limit: credits, ..Default::default() };
        Pieces { tx, rx: Rx::default(), counters: PeerCounters::default() }
    }

    /// A message's credit through both ends: looked at, spent, used up at the peer, told, given back. `false` if there is none.
    #[inline]
    pub fn credit(&mut self) -> bool {
        if self.tx.credit() < 1 {
            return false;
        }
        self.tx.spent = self.tx.spent.wrapping_add(1);
        self.rx.consumed = self.rx.consumed.wrapping_add(1);
        self.rx.told_consumed = self.rx.consumed;
        self.tx.take_credit(self.rx.told_consumed as u16)
    }

    /// A frame's sequence number through both ends: taken, filtered, acknowledged. `false` if it was a double.
    #[inline]
    pub fn sequence(&mut self) -> bool {
        let seq = self.tx.take_seq();
        let is_new = self.rx.dedup.look(seq) == crate::dedup::Verdict::New;
        self.rx.dedup.record(seq);
        is_new && self.tx.take_ack(self.rx.dedup.next() as u16)
    }

    /// Two frames that changed places on the way, as over two rails; each also comes twice. How many were new.
    #[inline]
    pub fn out_of_order(&mut self) -> u32 {
        let first = self.rx.dedup.next();
        let second = (first + 1) & (SEQ_MOD - 1);
        let mut new = 0;
        for seq in [second, second, first, first] {
            if self.rx.dedup.look(seq) == crate::dedup::Verdict::New {
                self.rx.dedup.record(seq);
                new += 1;
            }
        }
        new
    }

    /// A message's counters at both ends.
    #[inline]
    pub fn count(&mut self, len: usize) -> u64 {
        let c = &mut self.counters;
        c.min_credits = c.min_credits.min(self.tx.credit());
        c.tx_messages += 1;
        c.tx_bytes += len as u64;
        c.rx_messages += 1;
        c.rx_bytes += len as u64;
        c.rx_bytes
    }
}
