//! Timers: late acknowledgements, resends on lossy rails, probes, the loss of silent peers, reconnects, idle connections. Only
//! peers that need one are looked at, and the lane may sleep until the earliest is due.

use crate::machine::{Io, Machine};
use crate::parked::LOOK_AGAIN_NS;
use crate::peer::Dial;
use crate::transmit::NOWHERE;
use crate::wire::FrameKind;
use kfab_core::Kind;
use kfab_core::spi::Delivery;
use std::cmp::Reverse;
use std::time::Duration;

/// Timers are looked at no more often than this, ns.
const GRAIN: u64 = 200_000;
/// Frames sent again in one go on a lossy rail.
const RESEND_BURST: usize = 64;
/// The longest resend timer, ns.
const RESEND_MAX: u64 = 1_000_000_000;

pub(crate) fn ns(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl Machine {
    /// Asks for a look at this peer soon.
    #[inline]
    pub(crate) fn set_timer(&mut self, pi: u32, now: u64) {
        let p = &mut self.peers[pi as usize];
        if !p.timed {
            p.timed = true;
            self.timed.push(pi);
        }
        self.next_tick = self.next_tick.min(now + GRAIN);
    }

    /// A fault rule is gone: what it kept from being done is due now. Frames were kept for its sake whose receiver does not know that, and
    /// acknowledges them when they come again.
    pub(crate) fn heal(&mut self, pi: u32) {
        self.mark_dirty(pi);
        let p = &mut self.peers[pi as usize];
        p.struck |= !p.tx.unacked.is_empty();
        for c in &mut p.candidates {
            if let Dial::Down { next_try } = &mut c.dial {
                *next_try = 0;
            }
        }
        p.cut_since = p.cut_since.filter(|_| p.rails.is_empty());
        if !p.timed {
            p.timed = true;
            self.timed.push(pi);
        }
        self.next_tick = 0;
    }

    pub(crate) fn tick(&mut self, io: &mut Io<'_>) {
        self.assert_no_tab();
        self.next_tick = u64::MAX;
        let mut due = self.send_late(io);
        for pi in std::mem::take(&mut self.timed) {
            self.peers[pi as usize].timed = false;
            if let Some(at) = self.check_peer(io, pi) {
                due = due.min(at);
                let p = &mut self.peers[pi as usize];
                if !p.timed {
                    p.timed = true;
                    self.timed.push(pi);
                }
            }
        }
        self.free_idle_peers();
        due = due.min(self.see_to_greetings(io)).min(self.see_to_orphans(io));
        if !self.parked.is_empty() {
            due = due.min(io.now + LOOK_AGAIN_NS);
        }
        self.next_tick = self.next_tick.min(due.max(io.now + GRAIN)).min(self.expire(io));
    }

    /// Ends operations whose time is up; when the next one's is.
    fn expire(&mut self, io: &mut Io<'_>) -> u64 {
        while let Some(Reverse((at, op))) = self.deadlines.peek().copied() {
            if at > io.now && self.ops.is_waiting(op) {
                return at;
            }
            self.deadlines.pop();
            self.cancel(io, op, Kind::TimedOut);
        }
        u64::MAX
    }

    /// A connection that sends no hello costs its place only for so long; on lossy rails ours is repeated until it is answered.
    fn see_to_greetings(&mut self, io: &mut Io<'_>) -> u64 {
        let mut next = u64::MAX;
        for ci in std::mem::take(&mut self.greeting) {
            let c = &self.conns[ci as usize];
            if !c.live || !c.ready || c.up || c.closing {
                continue;
            }
            let give_up = self.greeting_ends(ci);
            if give_up <= io.now {
                self.close_conn(io, ci);
                continue;
            }
            next = next.min(give_up);
            if c.peer.is_some() && c.delivery == Delivery::Datagram {
                self.send_hello(io, ci);
                next = next.min(io.now + ns(self.limits.resend_after));
            }
            self.greeting.push(ci);
        }
        next
    }

    /// Peers that were forgotten while a list still named them.
    fn free_idle_peers(&mut self) {
        let (peers, free) = (&self.peers, &mut self.free_peers);
        self.free_later.retain(|pi| {
            let busy = peers[*pi as usize].dirty || peers[*pi as usize].timed;
            if !busy {
                free.push(*pi);
            }
            busy
        });
    }

    /// Posts frames that a fault rule made late; when the next one is due.
    fn send_late(&mut self, io: &mut Io<'_>) -> u64 {
        let mut next = u64::MAX;
        for (due, pi, seq) in std::mem::take(&mut self.late) {
            if due > io.now {
                next = next.min(due);
                self.late.push((due, pi, seq));
            } else if let Some(at) = self.peers[pi as usize].tx.unacked.iter().position(|u| u.seq == seq) {
                let rules = std::mem::take(&mut self.faults);
                self.resend(io, pi, at);
                self.faults = rules;
            }
        }
        next
    }

    /// Sees to one peer; when it wants to be seen again, if at all.
    fn check_peer(&mut self, io: &mut Io<'_>, pi: u32) -> Option<u64> {
        let mut due = u64::MAX;
        let p = &mut self.peers[pi as usize];
        if p.rx.ack_at != 0 {
            if p.rx.ack_at <= io.now {
                p.rx.ack_at = 0;
                p.rx.ack_now = true;
                self.mark_dirty(pi);
            } else {
                due = p.rx.ack_at;
            }
        }
        if self.peers[pi as usize].is_busy() {
            let at = if self.peers[pi as usize].rails.is_empty() {
                self.check_cut(io, pi)
            } else {
                self.check_rails(io, pi)
            };
            due = due.min(at);
        } else {
            let p = &mut self.peers[pi as usize];
            p.cut_since = None;
            if !p.rails.is_empty() {
                due = due.min(self.check_idle(io, pi));
            } else if p.recall_until > io.now {
                let give_up = p.recall_until;
                self.dial(io, pi);
                due = due.min(self.next_dial(pi)).min(give_up);
            }
        }
        (due != u64::MAX).then_some(due)
    }

    /// Work and no connection: try again, give up in the end.
    fn check_cut(&mut self, io: &mut Io<'_>, pi: u32) -> u64 {
        let p = &mut self.peers[pi as usize];
        // A receive from a peer that has never been reached is no reason to give it up: it may be about to call.
        let since = *p.cut_since.get_or_insert(io.now);
        let give_up = since + ns(self.limits.peer_timeout);
        if io.now >= give_up {
            let (kind, tried) = (if p.ever_up { Kind::PeerLost } else { Kind::Unreachable }, self.tried(pi));
            self.reset_peer(io, pi, None, kind, &format!("the peer does not answer: {tried}"));
            return u64::MAX;
        }
        if self.peers[pi as usize].candidates.is_empty() {
            self.list_candidates(io, pi);
        }
        self.dial(io, pi);
        let p = &self.peers[pi as usize];
        if !p.candidates.is_empty()
            && p.candidates.iter().all(|c| matches!(c.dial, Dial::Down { next_try: u64::MAX }))
        {
            let why = format!("the address makes no sense: {}", self.tried(pi));
            self.reset_peer(io, pi, None, Kind::InvalidArgument, &why);
            return u64::MAX;
        }
        self.next_dial(pi).min(give_up)
    }

    fn next_dial(&self, pi: u32) -> u64 {
        let next = |c: &crate::peer::Candidate| match c.dial {
            Dial::Down { next_try } => Some(next_try),
            _ => None,
        };
        self.peers[pi as usize].candidates.iter().filter_map(next).min().unwrap_or(u64::MAX)
    }

    /// A busy peer with connections: resend, probe, heal.
    fn check_rails(&mut self, io: &mut Io<'_>, pi: u32) -> u64 {
        let mut due = u64::MAX;
        let p = &self.peers[pi as usize];
        let best = p.active.first().map(|ci| self.conns[*ci as usize].rank);
        if p.candidates
            .iter()
            .any(|c| matches!(c.dial, Dial::Down { .. }) && best.is_none_or(|b| c.rank <= b))
        {
            self.dial(io, pi);
            due = self.next_dial(pi);
        }
        // Whom a fault rule stalls is silent on all, and what was held back has yet to be taken from them.
        let p = &self.peers[pi as usize];
        if p.active.len() > 1 && !self.faults.stalls(p.name) {
            due = due.min(self.check_silent_rails(io, pi));
        }
        let p = &self.peers[pi as usize];
        if p.tx.unacked.iter().any(|u| u.conn == NOWHERE) {
            self.mark_dirty(pi);
        }
        let p = &mut self.peers[pi as usize];
        p.struck &= !p.tx.unacked.is_empty();
        let lossy = |ci: &u32| self.conns[*ci as usize].delivery == Delivery::Datagram;
        if !p.tx.unacked.is_empty() && (p.struck || p.active.iter().any(lossy)) {
            due = due.min(self.resend_overdue(io, pi));
        }
        let p = &self.peers[pi as usize];
        if p.keep || p.active.is_empty() {
            due = due.min(self.probe(io, pi));
        }
        due
    }

    /// A link can die without a word. Of several rails, one that has frames under way and is silent is asked; one that does not
    /// answer while another is heard is given up.
    fn check_silent_rails(&mut self, io: &mut Io<'_>, pi: u32) -> u64 {
        let patience = ns(self.limits.rail_timeout);
        let heard = self.peers[pi as usize]
            .active
            .iter()
            .map(|ci| self.conns[*ci as usize].heard_at)
            .max()
            .unwrap_or(0);
        let works = heard + patience > io.now;
        for ci in self.peers[pi as usize].active.clone() {
            let c = &self.conns[ci as usize];
            // Memory does not fail by itself: what is silent there is the peer, or a fault rule. And what the peer has posted there is not kept.
            let memory = c.delivery == Delivery::Process;
            if memory || c.unacked_bytes == 0 || c.heard_at + patience / 4 > io.now {
                continue;
            }
            if c.asked_at == 0 {
                self.conns[ci as usize].asked_at = io.now;
                self.send_over(io, pi, ci, FrameKind::Probe, 0);
            } else if works && c.asked_at + patience <= io.now && self.peers[pi as usize].active.len() > 1 {
                self.abandon_rail(io, ci, "silent although probed");
            }
        }
        io.now + patience / 4
    }

    /// Sends again what has been unacknowledged for too long; when to look again.
    fn resend_overdue(&mut self, io: &mut Io<'_>, pi: u32) -> u64 {
        let tx = &self.peers[pi as usize].tx;
        let base = if tx.srtt == 0 {
            ns(self.limits.resend_after)
        } else {
            (tx.srtt * 4).max(2 * ns(self.limits.ack_delay))
        };
        let wait = (base << tx.backoff.min(10)).min(RESEND_MAX);
        let Some(oldest) = tx.unacked.front().map(|u| u.sent_at) else { return u64::MAX };
        if oldest + wait > io.now {
            return oldest + wait;
        }
        let n = tx.unacked.len().min(RESEND_BURST);
        for at in 0..n {
            let u = &self.peers[pi as usize].tx.unacked[at];
            if u.sent_at + wait <= io.now && u.conn != NOWHERE && !self.resend(io, pi, at) {
                break;
            }
        }
        let tx = &mut self.peers[pi as usize].tx;
        tx.backoff = (tx.backoff + 1).min(10);
        io.now + wait
    }

    /// Asks a silent peer whether it lives; gives it up when it stays silent.
    fn probe(&mut self, io: &mut Io<'_>, pi: u32) -> u64 {
        let (after, limit) = (ns(self.limits.probe_after), ns(self.limits.peer_timeout));
        let p = &self.peers[pi as usize];
        // The older of the two: a receive that was begun just now is no word from the peer.
        let unacked = p.tx.unacked.front().map_or(io.now, |u| u.sent_at);
        let owed_since = if p.expects > 0 { p.expect_since.min(unacked) } else { unacked };
        let since = p.last_heard.max(owed_since);
        if io.now < since + after {
            return since + after;
        }
        // However late we come to ask: an answer has as long as it has when we are in time.
        let asked = if p.asked_at < since { io.now } else { p.asked_at };
        let give_up = asked + limit.saturating_sub(after);
        if asked < io.now && give_up <= io.now {
            let why = format!("silent for {} ms although probed", (io.now - since) / 1_000_000);
            self.reset_peer(io, pi, None, Kind::PeerLost, &why);
            return u64::MAX;
        }
        let p = &mut self.peers[pi as usize];
        p.asked_at = asked;
        if io.now >= p.last_probe + after {
            p.last_probe = io.now;
            self.send_bare(io, pi, FrameKind::Probe, 0);
        }
        (self.peers[pi as usize].last_probe + after).min(give_up)
    }

    /// Nothing to do: close connections that nobody has used for long. But not one that cannot be made again by who has something to
    /// say: by us, or, while anybody here waits for messages or has windows open, by the peer.
    fn check_idle(&mut self, io: &mut Io<'_>, pi: u32) -> u64 {
        let after = ns(self.limits.idle_close);
        if after == 0 {
            return u64::MAX;
        }
        let p = &self.peers[pi as usize];
        let listens = self.matcher.depths().0 > 0 || self.windows.len() > 0;
        if !p.is_callable() || (listens && !p.calls_us) {
            return io.now + after;
        }
        let mut due = u64::MAX;
        for ci in self.peers[pi as usize].rails.clone() {
            let c = &self.conns[ci as usize];
            if c.delivery == Delivery::Process || c.closing {
                continue;
            }
            if c.used_at + after <= io.now {
                self.close_conn(io, ci);
            } else {
                due = due.min(c.used_at + after);
            }
        }
        due
    }
}
