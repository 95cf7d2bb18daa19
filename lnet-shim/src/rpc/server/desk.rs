//! The server's protocol without endpoint, clock or thread: packets come in, calls that are to run come out, answers go back.
//!
//! Used by a lane, and by tests in virtual time. Every call that comes out of [`Desk::next_call`] goes back in by [`Desk::answer`] (or
//! is named by [`Desk::abandoned`]). What is answered leaves at [`Desk::flush`] or before.

use super::super::body::Body;
use super::super::error::Result;
use super::super::outbox::{COPY_MAX, Outbox, Packet, RECORDS_MAX, tailed};
use super::super::session::{Admission, Answer, Session};
use super::super::wire::*;
use super::clients::{Clients, Known};
use kfab::Message;
use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

/// How packets leave: implemented by a lane, and by tests. Must not call the desk.
pub(crate) trait Post {
    /// A client's address.
    type To: Clone;
    /// Sends. What cannot leave is lost; the client will ask again.
    fn post(&mut self, to: &Self::To, tag: u64, packet: Packet<'_>);
}

/// A received packet.
pub(crate) enum Arrived {
    Message(Message),
    /// From a test, or one who tries to break the parsers.
    Bytes(Vec<u8>),
}

impl Deref for Arrived {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Arrived::Message(m) => m,
            Arrived::Bytes(b) => b,
        }
    }
}

impl Arrived {
    pub(crate) fn into_body(self, at: usize) -> Result<Body> {
        match self {
            Arrived::Message(m) => Body::from_message(m, at),
            Arrived::Bytes(b) => Ok(Body::copy(&b[at.min(b.len())..])),
        }
    }
}

/// Names a call on its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    line: usize,
    pub(crate) client: u64,
    pub(crate) id: CallId,
}

/// A call that is to run.
pub(crate) struct Arrival {
    pub(crate) ticket: Ticket,
    pub(crate) portal: u8,
    pub(crate) opcode: u16,
    pub(crate) high: bool,
    pub(crate) patience_us: u32,
    /// When it came, and when nobody wants it any more; server time, ns.
    pub(crate) arrived: u64,
    pub(crate) deadline: u64,
    pub(crate) extension: Extension,
    pub(crate) body: Body,
}

/// A client on this lane.
struct Line<To> {
    client: u64,
    known: Arc<Known>,
    to: To,
    out: Outbox,
}

/// A call that has ended, and whose answer has not left yet.
struct Ended {
    ticket: Ticket,
    answer: Answer,
    estimate_us: u32,
}

/// Counts of what a desk met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeskCounts {
    /// Calls that came again and were answered from the cache.
    pub answered_again: u64,
    /// Calls that came again while they ran.
    pub still_running: u64,
    /// Late packets of calls that are over.
    pub stale: u64,
    /// Calls sent back with "retry after".
    pub retry_after: u64,
    /// Packets that broke the protocol.
    pub damaged: u64,
    /// Packets of sessions that are not known.
    pub strangers: u64,
}

/// One lane's desk.
pub(crate) struct Desk<P: Post> {
    clients: Arc<Clients>,
    lines: slab::Slab<Line<P::To>>,
    by_client: HashMap<u64, usize>,
    last: usize,
    high: VecDeque<Arrival>,
    normal: VecDeque<Arrival>,
    abandoned: Vec<Ticket>,
    ended: Vec<Ended>,
    dirty: Vec<usize>,
    pub(crate) counts: DeskCounts,
}

impl<P: Post> Desk<P> {
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Desk {
            clients,
            lines: slab::Slab::new(),
            by_client: HashMap::new(),
            last: 0,
            high: VecDeque::new(),
            normal: VecDeque::new(),
            abandoned: Vec::new(),
            ended: Vec::new(),
            dirty: Vec::new(),
            counts: DeskCounts::default(),
        }
    }

    /// A packet came.
    pub(crate) fn receive(&mut self, now: u64, from: impl FnOnce() -> P::To, packet: Arrived, post: &mut P) {
        let Some((head, rest)) = Head::decode(&packet) else {
            self.counts.damaged += 1;
            return;
        };
        if head.kind == Kind::Hello {
            return self.hello(now, head.client, from(), post);
        }
        let Some(at) = self.line(&head) else { return self.stranger(&head, rest, from(), post) };
        match head.kind {
            Kind::Calls => self.calls(now, at, head, packet, post),
            Kind::Cancel => {
                self.lines[at].known.lock().heard = now;
                self.cancel(at, head, rest);
            }
            Kind::Done => {
                let mut records = Records::new(head.count, rest);
                while let Some(Ok((call, ..))) = records.call() {
                    self.lines[at].known.lock().known(call.id);
                }
            }
            Kind::Bye => self.bye(at),
            _ => self.counts.damaged += 1,
        }
    }

    /// The next call to run, those of high priority first.
    #[inline]
    pub(crate) fn next_call(&mut self) -> Option<Arrival> {
        self.high.pop_front().or_else(|| self.normal.pop_front())
    }

    /// The next call to run, of high priority only.
    pub(crate) fn next_high(&mut self) -> Option<Arrival> {
        self.high.pop_front()
    }

    /// Calls that wait.
    pub(crate) fn queued(&self) -> usize {
        self.high.len() + self.normal.len()
    }

    /// Calls that wait and whose client may lose its patience before `now`.
    pub(crate) fn impatient(&mut self, now: u64) -> Vec<(Ticket, u32)> {
        let late = |a: &&mut Arrival| now.saturating_sub(a.arrived) > u64::from(a.patience_us) * 750;
        let waiting = self.high.iter_mut().chain(&mut self.normal).filter(late);
        waiting
            .map(|a| {
                a.patience_us = a.patience_us.saturating_mul(2);
                (a.ticket, a.patience_us)
            })
            .collect()
    }

    /// Running calls that nobody wants any more: their handlers are to be dropped.
    pub(crate) fn abandoned(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.abandoned)
    }

    /// A call has ended.
    #[inline]
    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Answer, estimate_us: u32, post: &mut P) {
        self.ended.push(Ended { ticket, answer, estimate_us });
        if self.ended.len() >= usize::from(RECORDS_MAX) {
            self.settle(post);
        }
    }

    /// A call takes longer than its client may expect.
    pub(crate) fn early(&mut self, t: Ticket, us: u32, estimate_us: u32, post: &mut P) {
        let Some(line) = self.lines.get(t.line).filter(|l| l.client == t.client) else { return };
        if line.known.lock().is_running(t.id) {
            let answer = Answer { status: Status::Early, arg: us, body: Body::EMPTY };
            self.reply(t.line, t.id, &answer, estimate_us, post);
        }
    }

    /// The client's address, for bulk data.
    pub(crate) fn to(&self, t: Ticket) -> Option<P::To> {
        self.lines.get(t.line).filter(|l| l.client == t.client).map(|l| l.to.clone())
    }

    /// Sends what is ready.
    #[inline]
    pub(crate) fn flush(&mut self, post: &mut P) {
        self.settle(post);
        while let Some(at) = self.dirty.pop() {
            if let Some(line) = self.lines.get_mut(at).filter(|l| !l.out.is_empty()) {
                let (to, tag) = (&line.to, tag_of(line.client));
                line.out.take(line.client, line.known.number, |packet| post.post(to, tag, packet));
            }
        }
    }

    /// Forgets clients that have not been heard for too long; their calls are abandoned.
    pub(crate) fn sweep(&mut self, now: u64) {
        let linger = self.clients.limits.linger.as_nanos() as u64;
        let gone = |l: &Line<P::To>| now.saturating_sub(l.known.lock().heard) > linger;
        let gone: Vec<usize> = self.lines.iter().filter(|(_, l)| gone(l)).map(|(at, _)| at).collect();
        gone.into_iter().for_each(|at| self.bye(at));
    }

    /// The line of a packet, if its session is known here.
    #[inline]
    fn line(&mut self, head: &Head) -> Option<usize> {
        let fits = |l: &Line<P::To>| l.client == head.client && l.known.number == head.session;
        if self.lines.get(self.last).is_some_and(fits) {
            return Some(self.last);
        }
        let at = *self.by_client.get(&head.client)?;
        self.lines.get(at).filter(|l| fits(l))?;
        self.last = at;
        Some(at)
    }

    fn hello(&mut self, now: u64, client: u64, from: P::To, post: &mut P) {
        let limits = &self.clients.limits;
        let reply =
            |status, seq, arg| ReplyHead { id: CallId { slot: 0, seq }, len: 0, status, estimate_us: 0, arg };
        let say = |kind, session, record: ReplyHead, post: &mut P| {
            let head = Head { kind, count: 1, client, session };
            let bytes = [head.encode(), record.encode()].concat();
            post.post(&from, tag_of(client), Packet::Whole(&bytes));
        };
        let Some(known) = self.clients.enter(client, now) else {
            let after = limits.retry_after.as_micros() as u32;
            return say(Kind::Refused, 0, reply(Status::RetryAfter, 0, after), post);
        };
        known.lock().heard = now;
        let incarnation = self.clients.incarnation >> 16;
        say(Kind::Welcome, known.number, reply(Status::Ok, incarnation, u32::from(limits.slots)), post);
        if let Some(&at) = self.by_client.get(&client)
            && let Some(line) = self.lines.get_mut(at).filter(|l| l.known.number == known.number)
        {
            line.to = from;
            return;
        }
        if let Some(at) = self.by_client.get(&client) {
            self.drop_line(*at);
        }
        let at = self.lines.insert(Line { client, known, to: from, out: Outbox::new(Kind::Replies) });
        self.by_client.insert(client, at);
    }

    fn stranger(&mut self, head: &Head, rest: &[u8], from: P::To, post: &mut P) {
        self.counts.strangers += 1;
        let mut out = Outbox::new(Kind::Stranger);
        let mut records = Records::new(head.count, rest);
        while let Some(Ok((call, ..))) = records.call() {
            let status = Status::Expired;
            out.reply(&ReplyHead { id: call.id, len: 0, status, estimate_us: 0, arg: 0 }, &[]);
        }
        if head.kind == Kind::Calls {
            out.take(head.client, head.session, |packet| post.post(&from, tag_of(head.client), packet));
        }
    }

    /// The client's session is locked once for a packet.
    fn calls(&mut self, now: u64, at: usize, head: Head, packet: Arrived, post: &mut P) {
        let Some(known) = self.lines.get(at).map(|l| l.known.clone()) else { return };
        let mut session = known.lock();
        session.heard = now;
        if head.count == 1 && packet.len() > HEAD + COPY_MAX {
            return self.large(&mut session, now, at, packet, post);
        }
        let mut records = Records::new(head.count, &packet[HEAD..]);
        while let Some(record) = records.call() {
            let Ok((call, extension, payload)) = record else {
                self.counts.damaged += 1;
                return;
            };
            if let Some(t) = self.admit(&mut session, at, &call, post)
                && let Some(extension) = self.enter(&mut session, t, &call, extension, post)
            {
                self.queue(now, t, &call, extension, Body::copy(payload));
            }
        }
    }

    /// A packet of one call with a large payload: shared, not copied.
    fn large(&mut self, session: &mut Session, now: u64, at: usize, packet: Arrived, post: &mut P) {
        let mut records = Records::new(1, &packet[HEAD..]);
        let Some(Ok((call, extension, payload))) = records.call() else {
            self.counts.damaged += 1;
            return;
        };
        let begins = HEAD + records.at() - payload.len();
        if let Some(t) = self.admit(session, at, &call, post)
            && let Some(extension) = self.enter(session, t, &call, extension, post)
        {
            match packet.into_body(begins) {
                Ok(body) => self.queue(now, t, &call, extension, body),
                Err(_) => self.send_back(session, t, post),
            }
        }
    }

    #[inline]
    fn admit(&mut self, session: &mut Session, at: usize, call: &CallHead, post: &mut P) -> Option<Ticket> {
        let t = Ticket { line: at, client: self.lines.get(at)?.client, id: call.id };
        match session.admit(call.id) {
            Admission::New { abandoned } => {
                self.abandoned.extend(abandoned.map(|id| Ticket { id, ..t }));
                return Some(t);
            }
            Admission::Running => self.counts.still_running += 1,
            Admission::Again(answer) => {
                self.counts.answered_again += 1;
                self.reply(at, call.id, &answer, 0, post);
            }
            Admission::Stale => self.counts.stale += 1,
            Admission::NoSlot => self.counts.damaged += 1,
            Admission::Full => self.say_retry(t, post),
        }
        None
    }

    /// What came with the call; `None` if it is sent back, because the queue is full, or refused.
    #[inline]
    fn enter(
        &mut self,
        session: &mut Session,
        t: Ticket,
        call: &CallHead,
        extension: &[u8],
        post: &mut P,
    ) -> Option<Extension> {
        let limits = &self.clients.limits;
        let room = match call.flags & flags::HIGH != 0 {
            true => self.high.len() < limits.queue_high,
            false => self.normal.len() < limits.queue,
        };
        if !room {
            self.send_back(session, t, post);
            return None;
        }
        if extension.is_empty() {
            return Some(Extension::default());
        }
        let extension = Extension::decode(extension);
        if extension.is_none()
            && let Some(answer) = session.finish(t.id, Answer::empty(Status::Malformed))
        {
            self.reply(t.line, t.id, answer, 0, post);
        }
        extension
    }

    /// A call is not begun: it may come again.
    #[cold]
    fn send_back(&mut self, session: &mut Session, t: Ticket, post: &mut P) {
        if session.forget(t.id) {
            self.say_retry(t, post);
        }
    }

    #[cold]
    fn say_retry(&mut self, t: Ticket, post: &mut P) {
        self.counts.retry_after += 1;
        let arg = self.clients.limits.retry_after.as_micros() as u32;
        let answer = Answer { status: Status::RetryAfter, arg, body: Body::EMPTY };
        self.reply(t.line, t.id, &answer, 0, post);
    }

    #[inline]
    fn queue(&mut self, now: u64, t: Ticket, call: &CallHead, extension: Extension, body: Body) {
        let high = call.flags & flags::HIGH != 0;
        let arrival = Arrival {
            ticket: t,
            portal: call.portal,
            opcode: call.opcode,
            high,
            patience_us: call.patience_us,
            arrived: now,
            deadline: if call.limit_us == 0 { u64::MAX } else { now + u64::from(call.limit_us) * 1000 },
            extension,
            body,
        };
        if high { self.high.push_back(arrival) } else { self.normal.push_back(arrival) }
    }

    /// Keeps the answers of calls that have ended and puts them into packets. A client's session is locked once for all of its calls
    /// that ended one after the other.
    fn settle(&mut self, post: &mut P) {
        let mut ended = std::mem::take(&mut self.ended);
        let of_one =
            |a: &Ended, b: &Ended| (a.ticket.line, a.ticket.client) == (b.ticket.line, b.ticket.client);
        for run in ended.chunk_by_mut(of_one) {
            let Ticket { line, client, .. } = run[0].ticket;
            let Some(known) = self.lines.get(line).filter(|l| l.client == client).map(|l| l.known.clone())
            else {
                continue;
            };
            let mut session = known.lock();
            for e in run {
                let answer = std::mem::replace(&mut e.answer, Answer::empty(Status::Ok));
                if let Some(answer) = session.finish(e.ticket.id, answer) {
                    self.reply(line, e.ticket.id, answer, e.estimate_us, post);
                }
            }
        }
        ended.clear();
        self.ended = ended;
    }

    fn cancel(&mut self, at: usize, head: Head, rest: &[u8]) {
        let Some(line) = self.lines.get(at) else { return };
        let mut records = Records::new(head.count, rest);
        while let Some(Ok((call, ..))) = records.call() {
            if line.known.lock().finish(call.id, Answer::empty(Status::Canceled)).is_some() {
                let t = Ticket { line: at, client: line.client, id: call.id };
                self.high.retain(|a| a.ticket != t);
                self.normal.retain(|a| a.ticket != t);
                self.abandoned.push(t);
            }
        }
    }

    fn bye(&mut self, at: usize) {
        let Some(line) = self.lines.get(at) else { return };
        let client = line.client;
        self.clients.leave(client, line.known.number);
        let running: Vec<CallId> = line.known.lock().running_calls().collect();
        self.abandoned.extend(running.into_iter().map(|id| Ticket { line: at, client, id }));
        self.high.retain(|a| a.ticket.client != client);
        self.normal.retain(|a| a.ticket.client != client);
        self.drop_line(at);
        self.by_client.remove(&client);
    }

    fn drop_line(&mut self, at: usize) {
        self.lines.try_remove(at);
    }

    #[inline]
    fn reply(&mut self, at: usize, id: CallId, answer: &Answer, estimate_us: u32, post: &mut P) {
        let Some(line) = self.lines.get_mut(at) else { return };
        let Answer { status, arg, body } = answer;
        let head = ReplyHead { id, len: body.len() as u32, status: *status, estimate_us, arg: *arg };
        let (to, tag, number) = (&line.to, tag_of(line.client), line.known.number);
        if body.len() > COPY_MAX {
            let packet = Head { kind: Kind::Replies, count: 1, client: line.client, session: number };
            return tailed(&packet, &head.encode(), &[], body, |packet| post.post(to, tag, packet));
        }
        if line.out.is_empty() {
            self.dirty.push(at);
        }
        line.out.reply(&head, body);
        if line.out.is_full() {
            line.out.take(line.client, number, |packet| post.post(to, tag, packet));
        }
    }
}

#[inline]
fn tag_of(client: u64) -> u64 {
    TAG_TO_CLIENT | client & TAG_CLIENT
}
