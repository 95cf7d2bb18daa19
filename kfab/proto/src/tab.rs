//! A tab: the small messages of one connection are served first and booked later.
//!
//! What a frame must pass before it is handed over is the same for each of a row: the peer is up, no fault rule is in force, nothing came
//! early, nothing else is due. So the first of a row opens a tab, with the one number that the next must begin with, and the next are
//! handed over when they do (TCP calls that header prediction). What the books want to know of them (the duplicate filter, credit,
//! counters, the receive that is over) is added up here, and paid while the user's answer travels, or when somebody looks.
//!
//! What always holds: a tab is open only while nobody has touched what it was opened by. Every call of the machine that is not on the
//! short way closes it first ([`Machine::close_tab`]), and it has an end: before the peer must be told what it may send.

use crate::machine::{Io, Machine};
use crate::message::{OpId, PeerId};
use crate::short::Direct;
use crate::wire::{FrameKind, TAGGED};
use kfab_core::spi::{Conn, Delivery};

/// With more that the peer has not acknowledged no tab is opened.
const FEW: usize = 4;
/// One number further in the low word of a header.
const ONE_ON: u32 = 1 << 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Tab {
    conn: Conn,
    ci: u32,
    pub(crate) pi: u32,
    from: PeerId,
    /// The low word of the next frame's header, if it is an untagged message.
    expected: u32,
    /// Frames that may still come; 0: it is closed.
    left: u32,
    /// Frames that were handed over and not booked, each of a unit, and their bytes.
    pub(crate) frames: u32,
    bytes: u64,
    /// The acknowledgement and credit of the last, and when it came.
    told: u32,
    at: u64,
    /// The receive that got the last, if it had been posted, and its tag.
    served: OpId,
    tag: Option<u64>,
}

impl Tab {
    pub(crate) const CLOSED: Tab = Tab {
        conn: Conn(u64::MAX),
        ci: u32::MAX,
        pi: u32::MAX,
        from: PeerId { index: u32::MAX, generation: 0 },
        expected: 0,
        left: 0,
        frames: 0,
        bytes: 0,
        told: 0,
        at: 0,
        served: OpId::NOBODY,
        tag: None,
    };

    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        self.left > 0
    }

    /// Frames of this peer that are not booked: so much further is it than the books say.
    #[inline(always)]
    pub(crate) fn frames_of(&self, pi: u32) -> u32 {
        if self.pi == pi { self.frames } else { 0 }
    }

    /// The sender and tag of a frame that comes next.
    #[inline(always)]
    pub(crate) fn admits(&self, frame: &Direct) -> Option<(PeerId, Option<u64>)> {
        let [low, tag] = frame.small.header.map(u64::from_le);
        let (low, tagged) = (low as u32, u32::from(TAGGED));
        let next = self.left > 0 && low & !tagged == self.expected && frame.small.conn == self.conn;
        (next && frame.small.body_len == 0).then_some((self.from, (low & tagged != 0).then_some(tag)))
    }

    /// It has been handed over, to this receive.
    #[inline(always)]
    pub(crate) fn add(&mut self, now: u64, served: OpId, frame: &Direct) {
        debug_assert!(self.served == OpId::NOBODY, "the receive before is not booked");
        self.left -= 1;
        self.expected = self.expected.wrapping_add(ONE_ON);
        self.frames += 1;
        self.bytes += frame.small.inline.len() as u64;
        self.told = (u64::from_le(frame.small.header[0]) >> 32) as u32;
        (self.at, self.served, self.tag) = (now, served, frame.tag);
    }
}

impl Machine {
    /// Opens a tab for a connection that has just brought a message by the short way, if nothing is unusual.
    #[inline(always)]
    pub(crate) fn open_tab(&mut self, io: &Io<'_>, ci: u32, pi: u32) {
        let (c, p) = (&self.conns[ci as usize], &self.peers[pi as usize]);
        // Nobody waits for what its headers say.
        let unasked = p.tx.unacked.len() <= FEW && p.tx.unacked.iter().all(|u| u.out.op.is_none());
        let usual = c.delivery != Delivery::Datagram
            && unasked
            && p.tx.is_drained()
            && !p.rx.ack_now
            && self.faults.is_empty()
            && self.is_calm(io.now);
        if !usual {
            return;
        }
        let (frames, units) = p.rx.untold();
        // The one that makes us answer is not for the tab.
        let acks = (self.limits.max_unacked as u32 / 4).saturating_sub(frames + 1);
        let credits = (self.limits.credits / 4).saturating_sub(units + 1);
        let rounds = u32::try_from(self.short_until - self.round).unwrap_or(u32::MAX);
        self.tab = Tab {
            conn: c.conn,
            ci,
            pi,
            from: p.name,
            expected: FrameKind::Eager as u32 | p.rx.dedup.next() << 8,
            left: acks.min(credits).min(rounds),
            ..Tab::CLOSED
        };
    }

    /// Books what is on the tab. It stays open.
    #[inline(always)]
    pub(crate) fn pay(&mut self) {
        if self.tab.frames > 0 {
            self.book();
        }
    }

    #[inline(always)]
    fn book(&mut self) {
        let t = &mut self.tab;
        let (frames, ci, pi, at) = (std::mem::take(&mut t.frames), t.ci, t.pi, t.at);
        let (bytes, told) = (std::mem::take(&mut t.bytes), t.told);
        let (served, tag) = (std::mem::replace(&mut t.served, OpId::NOBODY), t.tag);
        let (c, p) = (&mut self.conns[ci as usize], &mut self.peers[pi as usize]);
        c.rx_frames += u64::from(frames);
        (c.used_at, c.heard_at, c.asked_at) = (at, at, 0);
        p.rx.dedup.skip(frames);
        p.rx.consumed = p.rx.consumed.wrapping_add(frames);
        p.counters.rx_messages += u64::from(frames);
        p.counters.rx_bytes += bytes;
        if served != OpId::NOBODY {
            self.ops.end_bare_recv(served);
            if self.matcher.end_first(tag).is_some() {
                p.expects = p.expects.saturating_sub(1);
            }
        }
        // Unless they were told with a frame of ours meanwhile.
        let owed = c.delivery != Delivery::Process && p.rx.ack_at == 0 && p.rx.untold() != (0, 0);
        let (acked, more_credit) = p.hears(at, told as u16, (told >> 16) as u16);
        if acked | more_credit {
            self.told_us(at, pi, acked);
        }
        if owed {
            self.owe_ack(at, pi);
        }
    }

    /// A receive may be posted, or served: the last is over in the books too.
    #[inline(always)]
    pub(crate) fn end_served(&mut self) {
        if self.tab.served != OpId::NOBODY {
            self.book();
        }
    }

    /// What comes now may touch anything.
    #[inline(always)]
    pub(crate) fn close_tab(&mut self) {
        if self.tab.left > 0 || self.tab.frames > 0 {
            self.shut_tab();
        }
    }

    /// Whoever touches what a tab was opened by says so.
    #[inline(always)]
    pub(crate) fn assert_no_tab(&self) {
        debug_assert!(self.tab.left == 0 && self.tab.frames == 0, "a tab is open: {:?}", self.tab);
    }

    #[inline(never)]
    fn shut_tab(&mut self) {
        self.pay();
        self.tab.left = 0;
    }
}
