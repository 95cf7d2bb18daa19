//! The client's protocol without endpoint, clock or thread: calls go in, packets come out; packets go in, calls end.
//!
//! Used by [`super::Client`] under its lock, and by tests in virtual time. A call ends exactly once: [`Core::take`] gives its end,
//! after which the name is dead. What was begun leaves at [`Core::flush`] or before; [`Core::tick`] must be called at
//! [`Core::due`], and [`Core::link_lost`] when the peer is known to be gone.

use super::super::body::Body;
use super::super::error::{Error, Fate, Kind as Failure, Result};
use super::super::estimate::{Patience, ns, us};
use super::super::outbox::{COPY_MAX, Outbox, Packet, tailed};
use super::super::wire::*;
use super::{ClientCounts, ClientLimits};
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

/// What happens to a call whose server was replaced by another incarnation after it had been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Replay {
    /// It fails as `Restarted`: nobody can tell whether it ran.
    #[default]
    Never,
    /// It is sent again: running it twice does no harm.
    Always,
}

/// A call, as it is given.
pub(crate) struct Start {
    pub(crate) portal: u8,
    pub(crate) opcode: u16,
    pub(crate) high: bool,
    pub(crate) replay: Replay,
    /// Client time, ns; `u64::MAX` for none.
    pub(crate) deadline: u64,
    /// The deadline moves with early replies, as far as this.
    pub(crate) extend_to: u64,
    pub(crate) extra: Option<Box<Extra>>,
    pub(crate) body: Body,
}

/// What few calls have.
#[derive(Default)]
pub(crate) struct Extra {
    pub(crate) extension: Extension,
    /// The extension as it travels.
    pub(crate) bytes: Vec<u8>,
    /// Kept open until the call ends.
    pub(crate) windows: Vec<Arc<kfab::Window>>,
}

enum Phase {
    /// For a slot, or for the server to be there.
    Waiting,
    Sent,
    /// The server sent it back: not begun.
    Held,
    /// What came back lies where the request lay.
    Ended(Result<()>),
}

struct Call {
    start: Start,
    phase: Phase,
    slot: Option<CallId>,
    /// Sendings since the last moment at which it certainly had not begun.
    tries: u32,
    sent: u64,
    /// Its round trip is to be measured.
    timed: bool,
    /// When it is sent again.
    due: u64,
    waker: Option<Waker>,
    /// Nobody wants the end any more.
    orphan: bool,
    /// Sent once, to a session that is forgotten: did it run before? The server may yet say that it did not.
    doubtful: bool,
    /// Its times are to be moved to the next look at the clock.
    early: bool,
}

/// Where the client stands with its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No address in use.
    Down,
    /// Introduced, not yet welcomed; when to ask again, and when to give up this address.
    Greeting {
        again: u64,
        give_up: u64,
    },
    Up,
}

#[derive(Clone, Copy)]
struct Slot {
    seq: u64,
    call: Option<usize>,
}

/// One call in so many is timed, for the patience with the next.
const TIMED: u64 = 8;
/// Slots kept for calls of high priority.
const HIGH_SLOTS: usize = 8;

/// How packets leave.
pub(crate) trait Send {
    /// Sends; what cannot leave is lost, and sent again in time.
    fn send(&mut self, tag: u64, packet: Packet<'_>);
}

/// The client's state.
pub(crate) struct Core {
    client: u64,
    session: u64,
    /// The session before this one.
    before: u64,
    incarnation: u64,
    limits: ClientLimits,
    /// Limits, ns.
    patience_min: u64,
    patience_max: u64,
    link: Link,
    calls: slab::Slab<Call>,
    slots: Vec<Slot>,
    usable: usize,
    free: Vec<u16>,
    free_high: Vec<u16>,
    waiting: VecDeque<usize>,
    waiting_high: VecDeque<usize>,
    out: Outbox,
    patience: Vec<Patience>,
    due: u64,
    wakers: usize,
    pub(crate) counts: ClientCounts,
}

impl Core {
    pub(crate) fn new(client: u64, limits: ClientLimits) -> Core {
        Core {
            client,
            session: 0,
            before: 0,
            incarnation: 0,
            patience_min: ns(limits.patience_min),
            patience_max: ns(limits.patience_max),
            limits,
            link: Link::Down,
            calls: slab::Slab::new(),
            slots: Vec::new(),
            usable: 0,
            free: Vec::new(),
            free_high: Vec::new(),
            waiting: VecDeque::new(),
            waiting_high: VecDeque::new(),
            out: Outbox::new(Kind::Calls),
            patience: vec![Patience::default(); super::super::method::PORTALS],
            due: u64::MAX,
            wakers: 0,
            counts: ClientCounts::default(),
        }
    }

    /// Begins a call; it leaves with the next flush. `Busy` if too many are under way.
    #[inline]
    pub(crate) fn start(&mut self, now: u64, start: Start, send: &mut impl Send) -> Result<usize> {
        if self.calls.len() >= self.limits.calls {
            return Err(Error::new(Failure::Busy, "too many calls are under way (ClientLimits::calls)"));
        }
        self.due = self.due.min(start.deadline);
        self.counts.calls += 1;
        let high = start.high;
        let call = Call {
            start,
            phase: Phase::Waiting,
            slot: None,
            tries: 0,
            sent: 0,
            timed: self.counts.calls % TIMED == 1,
            due: u64::MAX,
            waker: None,
            orphan: false,
            doubtful: false,
            early: true,
        };
        let key = self.calls.insert(call);
        let queue = if high { &mut self.waiting_high } else { &mut self.waiting };
        let first = queue.is_empty();
        if !(first && self.link == Link::Up && self.send_first(now, key, send)) {
            let queue = if high { &mut self.waiting_high } else { &mut self.waiting };
            queue.push_back(key);
        }
        Ok(key)
    }

    /// The call began so much later than [`Core::start`] was told. What travels is relative, so this is nobody else's business.
    #[inline]
    pub(crate) fn began_later(&mut self, key: usize, passed: u64) {
        if let Some(call) = self.calls.get_mut(key).filter(|c| c.early) {
            call.early = false;
            for time in [&mut call.start.deadline, &mut call.start.extend_to, &mut call.sent, &mut call.due] {
                *time = time.saturating_add(passed);
            }
        }
    }

    /// The end of a call, if it has ended; afterwards the name is dead.
    #[inline]
    pub(crate) fn take(&mut self, key: usize) -> Option<Result<Body>> {
        if !matches!(self.calls.get(key)?.phase, Phase::Ended(_)) {
            return None;
        }
        match self.calls.remove(key) {
            Call { phase: Phase::Ended(Ok(())), start, .. } => Some(Ok(start.body)),
            Call { phase: Phase::Ended(Err(e)), .. } => Some(Err(e)),
            _ => None,
        }
    }

    /// `true` once there is an end to take.
    pub(crate) fn has_ended(&self, key: usize) -> bool {
        matches!(self.calls.get(key), Some(Call { phase: Phase::Ended(_), .. }))
    }

    /// Whom to wake at the call's end.
    pub(crate) fn set_waker(&mut self, key: usize, waker: &Waker) {
        if let Some(call) = self.calls.get_mut(key)
            && !call.waker.as_ref().is_some_and(|w| w.will_wake(waker))
        {
            self.wakers += usize::from(call.waker.replace(waker.clone()).is_none());
        }
    }

    /// Somebody who waits for a call, to take over the waiting.
    pub(crate) fn any_waker(&mut self) -> Option<Waker> {
        let waker = self.calls.iter_mut().find_map(|(_, c)| c.waker.take());
        self.wakers -= usize::from(waker.is_some());
        waker
    }

    /// Somebody waits to be woken.
    #[inline]
    pub(crate) fn has_wakers(&self) -> bool {
        self.wakers > 0
    }

    /// Ends a call as cancelled, unless it has ended; the server is told if it may have it.
    pub(crate) fn cancel(&mut self, key: usize, send: &mut impl Send) {
        let Some(call) = self.calls.get(key) else { return };
        if matches!(call.phase, Phase::Ended(_)) {
            return;
        }
        let (id, tries) = (call.slot, call.tries);
        let fate = if tries == 0 { Fate::NotExecuted } else { Fate::Unknown };
        if let Some(id) = id.filter(|_| tries > 0) {
            self.send_back(Kind::Cancel, id, send);
        }
        self.end(key, Err(Error::new(Failure::Canceled, "cancelled").with_fate(fate)));
    }

    /// Nobody wants the call's end any more: cancels it if it has not ended.
    pub(crate) fn abandon(&mut self, key: usize, send: &mut impl Send) {
        if self.take(key).is_none()
            && let Some(call) = self.calls.get_mut(key)
        {
            call.orphan = true;
            self.cancel(key, send);
        }
    }

    /// The server's address is to be tried: introduces the client.
    pub(crate) fn connect(&mut self, now: u64, send: &mut impl Send) {
        let give_up = now + self.limits.connect.as_nanos() as u64;
        self.out.clear();
        self.hello(now, give_up, send);
    }

    /// The peer is gone, or did not answer.
    pub(crate) fn link_lost(&mut self) {
        if self.link != Link::Down {
            self.counts.links_lost += 1;
        }
        self.link = Link::Down;
        self.out.clear();
    }

    /// `true` while no address is in use.
    pub(crate) fn is_down(&self) -> bool {
        self.link == Link::Down
    }

    /// `true` while a server serves the client.
    pub(crate) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// The server's incarnation; 0 while none was met.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Calls that have not been taken.
    pub(crate) fn under_way(&self) -> usize {
        self.calls.len()
    }

    /// When [`Core::tick`] is to be called at the latest.
    pub(crate) fn due(&self) -> u64 {
        match self.link {
            Link::Greeting { again, .. } => self.due.min(again),
            _ => self.due,
        }
    }

    /// Sends what has not left yet.
    #[inline]
    pub(crate) fn flush(&mut self, send: &mut impl Send) {
        if !self.out.is_empty() && self.link == Link::Up {
            let tag = self.tag();
            self.out.take(self.client, self.session, |packet| send.send(tag, packet));
        }
    }

    /// A packet came. `share` makes a body of the packet's bytes from there on. Most packets need no look at the clock, which takes
    /// longer than everything else here.
    #[inline]
    pub(crate) fn receive(
        &mut self,
        now: impl Fn() -> u64,
        packet: &[u8],
        share: impl Fn(usize) -> Option<Body>,
        send: &mut impl Send,
    ) {
        let Some((head, rest)) = Head::decode(packet).filter(|(h, _)| h.client == self.client) else {
            self.counts.damaged += 1;
            return;
        };
        let mut records = Records::new(head.count, rest);
        match head.kind {
            Kind::Replies if head.session == self.session => {
                while let Some(record) = records.reply() {
                    let Ok((reply, payload)) = record else {
                        self.counts.damaged += 1;
                        break;
                    };
                    let large = payload.len() > COPY_MAX && head.count == 1;
                    let body = large.then(|| share(HEAD + records.at() - payload.len())).flatten();
                    let body = body.unwrap_or_else(|| Body::copy(payload));
                    self.reply(&now, reply, body);
                    if large {
                        self.send_back(Kind::Done, reply.id, send);
                    }
                }
                if !(self.waiting.is_empty() && self.waiting_high.is_empty()) {
                    self.fill_slots(now(), send);
                }
            }
            Kind::Welcome => {
                if let Some(Ok((reply, _))) = records.reply() {
                    self.welcome(now(), head.session, reply, send);
                }
            }
            Kind::Refused => {
                if let (Some(Ok((reply, _))), Link::Greeting { give_up, .. }) = (records.reply(), self.link) {
                    self.counts.retry_after += 1;
                    self.link = Link::Greeting { again: now() + u64::from(reply.arg).max(1) * 1000, give_up };
                }
            }
            Kind::Stranger
                if [self.session, self.before].contains(&head.session) && self.link != Link::Down =>
            {
                let now = now();
                while let Some(Ok((reply, _))) = records.reply() {
                    self.not_begun(reply.id, now);
                }
                if self.link == Link::Up && head.session == self.session {
                    self.connect(now, send);
                }
            }
            _ => {}
        }
    }

    /// Timers: deadlines, resends, greetings. `true`: the address in use does not answer.
    pub(crate) fn tick(&mut self, now: u64, send: &mut impl Send) -> bool {
        if let Link::Greeting { again, give_up } = self.link {
            if now >= give_up {
                self.link_lost();
                return true;
            }
            if now >= again {
                self.hello(now, give_up, send);
            }
        }
        if now < self.due {
            return false;
        }
        let mut lost = false;
        self.due = u64::MAX;
        let keys: Vec<usize> = self.calls.iter().map(|(key, _)| key).collect();
        for key in keys {
            lost |= self.tick_call(now, key, send);
        }
        self.fill_slots(now, send);
        self.flush(send);
        lost
    }

    fn tick_call(&mut self, now: u64, key: usize, send: &mut impl Send) -> bool {
        let Some(call) = self.calls.get(key) else { return false };
        if matches!(call.phase, Phase::Ended(_)) {
            return false;
        }
        if now >= call.start.deadline {
            let (tries, id) = (call.tries, call.slot);
            let fate = if tries == 0 { Fate::NotExecuted } else { Fate::Unknown };
            if let Some(id) = id.filter(|_| tries > 0) {
                self.send_back(Kind::Cancel, id, send);
            }
            let what = if self.link == Link::Up { "no answer in time" } else { "no server answered in time" };
            let kind = match (self.link, &self.calls[key].phase) {
                (Link::Up, Phase::Held) => Failure::Busy,
                (Link::Up, _) => Failure::TimedOut,
                _ => Failure::Unreachable,
            };
            self.counts.timed_out += 1;
            self.end(key, Err(Error::new(kind, what).with_fate(fate)));
            return false;
        }
        let mut lost = false;
        if now >= call.due && self.link == Link::Up && call.doubtful {
            self.doubt(now, key);
            return false;
        }
        if now >= call.due && self.link == Link::Up {
            let held = matches!(call.phase, Phase::Held);
            if !held {
                self.counts.resent += 1;
                // Silence for so long that another address may do better.
                lost = call.tries >= self.limits.tries;
            }
            self.send_call(now, key, send);
        }
        if let Some(call) = self.calls.get(key) {
            // Without a server nothing is sent again: the welcome sets new times.
            let again = if self.link == Link::Up { call.due } else { u64::MAX };
            self.due = self.due.min(call.start.deadline).min(again);
        }
        lost
    }

    fn tag(&self) -> u64 {
        TAG_TO_SERVER | self.client & TAG_CLIENT
    }

    fn hello(&mut self, now: u64, give_up: u64, send: &mut impl Send) {
        let head = Head { kind: Kind::Hello, count: 0, client: self.client, session: self.session };
        send.send(self.tag(), Packet::Whole(&head.encode()));
        let again = now + self.patience_min;
        self.link = Link::Greeting { again: again.min(give_up), give_up };
    }

    fn welcome(&mut self, now: u64, session: u64, reply: ReplyHead, send: &mut impl Send) {
        if !matches!(self.link, Link::Greeting { .. }) {
            return;
        }
        self.link = Link::Up;
        let forgotten = session != self.session;
        if self.incarnation != 0 && self.incarnation != reply.id.seq {
            self.counts.restarts += 1;
        }
        if forgotten {
            self.before = self.session;
        }
        (self.session, self.incarnation) = (session, reply.id.seq);
        let count = reply.arg.min(u32::from(self.limits.slots)) as usize;
        let keys: Vec<usize> = self.calls.iter().map(|(key, _)| key).collect();
        for key in keys {
            let call = &self.calls[key];
            match call.phase {
                Phase::Sent if forgotten && call.start.replay == Replay::Never => self.doubt(now, key),
                Phase::Sent | Phase::Held if call.slot.is_some_and(|id| usize::from(id.slot) >= count) => {
                    self.wait_again(key);
                }
                Phase::Sent | Phase::Held => self.send_call(now, key, send),
                _ => {}
            }
        }
        self.set_slots(count.max(1));
        self.fill_slots(now, send);
        self.flush(send);
    }

    /// The session that had the call is forgotten, and the call may have run.
    fn doubt(&mut self, now: u64, key: usize) {
        let call = &mut self.calls[key];
        if call.tries == 1 && !call.doubtful {
            call.doubtful = true;
            call.due = now + self.patience_min;
            self.due = self.due.min(call.due);
            return;
        }
        let what = "the server that had the call is gone, another answers";
        self.end(key, Err(Error::new(Failure::Restarted, what).with_fate(Fate::Unknown)));
    }

    /// The server has fewer slots than the last one: the call has to wait for one of them.
    fn wait_again(&mut self, key: usize) {
        let call = &mut self.calls[key];
        if let Some(id) = call.slot.take() {
            self.slots[usize::from(id.slot)].call = None;
        }
        call.phase = Phase::Waiting;
        if call.start.high { self.waiting_high.push_back(key) } else { self.waiting.push_back(key) }
    }

    /// Slots that may be used with this server. Sequences go on for ever, whoever is asked.
    fn set_slots(&mut self, count: usize) {
        if self.slots.len() < count {
            self.slots.resize(count, Slot { seq: 0, call: None });
        }
        self.free.clear();
        self.free_high.clear();
        for at in (0..count).rev().filter(|at| self.slots[*at].call.is_none()) {
            let high = at < HIGH_SLOTS && count > HIGH_SLOTS;
            if high { self.free_high.push(at as u16) } else { self.free.push(at as u16) }
        }
        self.usable = count;
    }

    /// Sends waiting calls while there are slots.
    #[inline]
    fn fill_slots(&mut self, now: u64, send: &mut impl Send) {
        if self.link != Link::Up {
            return;
        }
        for high in [true, false] {
            loop {
                let queue = if high { &mut self.waiting_high } else { &mut self.waiting };
                let Some(&key) = queue.front() else { break };
                let live =
                    matches!(self.calls.get(key), Some(Call { phase: Phase::Waiting, slot: None, .. }));
                if live && !self.send_first(now, key, send) {
                    break;
                }
                let queue = if high { &mut self.waiting_high } else { &mut self.waiting };
                queue.pop_front();
            }
        }
    }

    /// Gives the call a slot and sends it; `false` without a free one.
    #[inline]
    fn send_first(&mut self, now: u64, key: usize, send: &mut impl Send) -> bool {
        let high = self.calls[key].start.high;
        let free = if high && !self.free_high.is_empty() { &mut self.free_high } else { &mut self.free };
        let Some(at) = free.pop() else { return false };
        let slot = &mut self.slots[usize::from(at)];
        slot.seq += 1;
        slot.call = Some(key);
        self.calls[key].slot = Some(CallId { slot: at, seq: slot.seq });
        self.send_call(now, key, send);
        true
    }

    /// Sends a call that has a slot, for the first time or again.
    #[inline]
    fn send_call(&mut self, now: u64, key: usize, send: &mut impl Send) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let Some(id) = call.slot else { return };
        let s = &call.start;
        let (least, most) = (self.patience_min, self.patience_max);
        let wait = self.patience[usize::from(s.portal)].wait_ns(least, most);
        // Each time longer, for the network may be as slow as the server.
        let wait = (wait << call.tries.min(6)).min(most);
        let mut f = if s.high { flags::HIGH } else { 0 };
        if call.tries > 0 {
            f |= flags::RESENT;
        }
        let extension = s.extra.as_ref().map_or(&[][..], |x| &x.bytes);
        if !extension.is_empty() {
            f |= flags::EXTENDED;
        }
        let limit_us = if s.deadline == u64::MAX { 0 } else { us(s.extend_to.saturating_sub(now)).max(1) };
        let head = CallHead {
            id,
            len: s.body.len() as u32,
            portal: s.portal,
            flags: f,
            opcode: s.opcode,
            patience_us: us(wait),
            limit_us,
        };
        call.phase = Phase::Sent;
        call.tries += 1;
        call.sent = now;
        call.due = now + wait;
        self.due = self.due.min(call.due);
        let tag = TAG_TO_SERVER | self.client & TAG_CLIENT;
        if s.body.len() > COPY_MAX {
            let packet = Head { kind: Kind::Calls, count: 1, client: self.client, session: self.session };
            return tailed(&packet, &head.encode(), extension, &s.body, |packet| send.send(tag, packet));
        }
        self.out.call(&head, extension, &s.body);
        if self.out.is_full() {
            self.out.take(self.client, self.session, |packet| send.send(tag, packet));
        }
    }

    /// A record without payload: cancel, or done.
    fn send_back(&mut self, kind: Kind, id: CallId, send: &mut impl Send) {
        let record = CallHead { id, len: 0, portal: 0, flags: 0, opcode: 0, patience_us: 0, limit_us: 0 };
        let head = Head { kind, count: 1, client: self.client, session: self.session };
        // What is cancelled must not come after its cancelling.
        self.flush(send);
        send.send(self.tag(), Packet::Whole(&[head.encode(), record.encode()].concat()));
    }

    /// Says goodbye: the server can forget the client.
    pub(crate) fn bye(&mut self, send: &mut impl Send) {
        if self.link == Link::Up {
            let head = Head { kind: Kind::Bye, count: 0, client: self.client, session: self.session };
            send.send(self.tag(), Packet::Whole(&head.encode()));
            self.link = Link::Down;
        }
    }

    /// Ends everything that is under way.
    pub(crate) fn end_all(&mut self, kind: Failure, why: &str) {
        let keys: Vec<usize> = self.calls.iter().map(|(key, _)| key).collect();
        for key in keys {
            if !matches!(self.calls[key].phase, Phase::Ended(_)) {
                let fate = if self.calls[key].tries == 0 { Fate::NotExecuted } else { Fate::Unknown };
                self.end(key, Err(Error::new(kind, why).with_fate(fate)));
            }
        }
    }

    #[inline]
    fn find(&self, id: CallId) -> Option<usize> {
        let slot = self.slots.get(usize::from(id.slot)).filter(|s| s.seq == id.seq)?;
        slot.call.filter(|key| matches!(self.calls.get(*key), Some(Call { phase: Phase::Sent, .. })))
    }

    /// The server says that it did not begin this call and does not know of it.
    fn not_begun(&mut self, id: CallId, now: u64) {
        if let Some(key) = self.find(id) {
            let call = &mut self.calls[key];
            if call.tries == 1 {
                (call.phase, call.tries, call.due, call.doubtful) = (Phase::Held, 0, now, false);
                self.due = self.due.min(now);
            }
        }
    }

    #[inline]
    fn reply(&mut self, now: impl Fn() -> u64, reply: ReplyHead, body: Body) {
        let Some(key) = self.find(reply.id) else {
            self.counts.stale += 1;
            return;
        };
        let call = &mut self.calls[key];
        let words = |body: &Body| String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned();
        let not_begun = |kind, what: &str| Err(Error::new(kind, what));
        let result = match reply.status {
            Status::Ok => {
                let patience = &mut self.patience[usize::from(call.start.portal)];
                match call.tries {
                    1 => patience
                        .replied(call.timed.then(|| now().saturating_sub(call.sent)), reply.estimate_us),
                    _ => patience.estimated(reply.estimate_us),
                }
                Ok(body)
            }
            Status::Failed => Err(Error::failed(reply.arg, words(&body))),
            Status::Bulk => Err(Error::new(Failure::Bulk, words(&body)).with_fate(Fate::Executed)),
            Status::Malformed => Err(Error::new(Failure::Protocol, words(&body))),
            Status::Canceled => Err(Error::new(Failure::Canceled, "cancelled").with_fate(Fate::Unknown)),
            Status::NoService => not_begun(Failure::NoService, "the server has no such portal or opcode"),
            Status::Expired => not_begun(Failure::TimedOut, "its time was up before the server began it"),
            Status::RetryAfter => {
                self.counts.retry_after += 1;
                // None of its tries was begun or will be: the next has a number of its own.
                let slot = &mut self.slots[usize::from(reply.id.slot)];
                slot.seq += 1;
                call.slot = Some(CallId { slot: reply.id.slot, seq: slot.seq });
                (call.phase, call.tries, call.doubtful) = (Phase::Held, 0, false);
                // Not all at the same time.
                let wait = u64::from(reply.arg).max(1) * 1000;
                call.due = now() + wait + wait * (key as u64 % 16) / 16;
                self.due = self.due.min(call.due);
                return;
            }
            Status::Early => {
                self.counts.early += 1;
                let more = now() + u64::from(reply.arg) * 1000;
                call.due = call.due.max(more);
                call.start.deadline = call.start.deadline.max(more.min(call.start.extend_to));
                return;
            }
        };
        self.end(key, result);
    }

    #[inline]
    fn end(&mut self, key: usize, result: Result<Body>) {
        let Some(call) = self.calls.get_mut(key) else { return };
        call.phase = Phase::Ended(result.map(|body| call.start.body = body));
        call.start.extra = None;
        if let Some(id) = call.slot.take() {
            self.slots[usize::from(id.slot)].call = None;
            let high = usize::from(id.slot) < HIGH_SLOTS && self.usable > HIGH_SLOTS;
            if high {
                self.free_high.push(id.slot);
            } else if usize::from(id.slot) < self.usable {
                self.free.push(id.slot);
            }
        }
        if let Some(waker) = call.waker.take() {
            self.wakers -= 1;
            waker.wake();
        }
        if call.orphan {
            self.calls.remove(key);
        }
    }
}
