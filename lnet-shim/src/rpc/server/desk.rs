//! The server's protocol without endpoint, clock or thread: packets come in, calls that are to run come out, answers go back.
//!
//! Used by a lane, and by tests in virtual time. A call runs as soon as it has come where [`Run`] has a hand free, else it waits
//! for [`Desk::next_call`]. One that did not end at once goes back in by [`Desk::answer`] (or is named by [`Desk::abandoned`]). What is
//! answered leaves at [`Desk::flush`] or before.

use super::super::body::Body;
use super::super::error::Result;
use super::super::outbox::{COPY_MAX, Outbox, Packet, RECORDS_MAX, tailed};
use super::super::session::{Admission, Answer, Session};
use super::super::wire::*;
use super::ServerLimits;
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

/// Who runs calls: implemented by a lane's floor, and by tests.
pub(crate) trait Run<To> {
    /// `true` if a call may begin before the next packet is looked at.
    fn is_free(&self, high: bool) -> bool;
    /// Begins a call of the client at `to`: its answer and the service's estimate, if it ended at once.
    fn run(&mut self, call: Arrival, to: &To) -> Option<(Answer, u32)>;
}

/// A received packet.
pub(crate) trait Arrived: Deref<Target = [u8]> {
    /// Its bytes from `at` on: shared with it where they are many.
    fn into_body(self, at: usize) -> Result<Body>;
}

/// A call of a packet that is to run.
struct Fresh {
    call: CallHead,
    extension: Extension,
    /// Where in the packet its payload begins.
    payload: usize,
}

impl Arrived for Message {
    fn into_body(self, at: usize) -> Result<Body> {
        Body::from_message(self, at)
    }
}

/// From a test, or one who tries to break the parsers.
impl Arrived for Vec<u8> {
    fn into_body(self, at: usize) -> Result<Body> {
        Ok(Body::copy(&self[at.min(self.len())..]))
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

impl Arrival {
    #[inline]
    fn new(now: u64, ticket: Ticket, call: &CallHead, extension: Extension, body: Body) -> Arrival {
        Arrival {
            ticket,
            portal: call.portal,
            opcode: call.opcode,
            high: call.flags & flags::HIGH != 0,
            patience_us: call.patience_us,
            arrived: now,
            deadline: if call.limit_us == 0 { u64::MAX } else { now + u64::from(call.limit_us) * 1000 },
            extension,
            body,
        }
    }
}

/// A client on this lane.
struct Line<To> {
    known: Arc<Known>,
    way: Way<To>,
}

/// The way back to a client.
struct Way<To> {
    /// Its line's place.
    at: usize,
    client: u64,
    session: u64,
    to: To,
    out: Outbox,
}

/// Where a client's calls come in.
struct Door<'a, To> {
    session: &'a mut Session,
    way: &'a mut Way<To>,
    limits: &'a ServerLimits,
}

/// A call that nobody wants any more.
pub(crate) struct Abandoned {
    pub(crate) ticket: Ticket,
    /// Its portal, if it had not begun; else its handler is to be dropped.
    pub(crate) waited: Option<u8>,
}

/// What waits for the lane.
#[derive(Default)]
struct Queues {
    high: VecDeque<Arrival>,
    normal: VecDeque<Arrival>,
    abandoned: Vec<Abandoned>,
    /// Lines with answers that have not left.
    dirty: Vec<usize>,
    counts: DeskCounts,
}

/// A call that has ended, and whose answer is not kept yet.
struct Ended {
    ticket: Ticket,
    answer: Answer,
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
    queues: Queues,
    /// The calls of the packet at hand.
    fresh: Vec<Fresh>,
    ended: Vec<Ended>,
}

impl<P: Post> Desk<P> {
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Desk {
            clients,
            lines: slab::Slab::new(),
            by_client: HashMap::new(),
            last: 0,
            queues: Queues::default(),
            fresh: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// What it met.
    pub(crate) fn counts(&self) -> DeskCounts {
        self.queues.counts
    }

    /// A packet came. `from` is asked only if the client's line does not tell. Gives the packet back unless its payload was kept: to
    /// give up its memory takes longer than to answer, and can wait until then.
    #[inline]
    pub(crate) fn receive<A: Arrived>(
        &mut self,
        now: u64,
        from: impl FnOnce(&A) -> P::To,
        packet: A,
        run: &mut impl Run<P::To>,
        post: &mut P,
    ) -> Option<A> {
        let Some((head, rest)) = Head::decode(&packet) else {
            self.queues.counts.damaged += 1;
            return None;
        };
        if head.kind == Kind::Hello {
            self.hello(now, head.client, from(&packet), post);
            return None;
        }
        let Some(at) = self.line(&head) else {
            self.stranger(&head, rest, from(&packet), post);
            return None;
        };
        match head.kind {
            Kind::Calls => return self.calls(now, at, head, packet, run, post),
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
            _ => self.queues.counts.damaged += 1,
        }
        None
    }

    /// The next call to run, those of high priority first.
    #[inline]
    pub(crate) fn next_call(&mut self) -> Option<Arrival> {
        self.queues.high.pop_front().or_else(|| self.queues.normal.pop_front())
    }

    /// The next call to run, of high priority only.
    #[inline]
    pub(crate) fn next_high(&mut self) -> Option<Arrival> {
        self.queues.high.pop_front()
    }

    /// Calls that wait.
    pub(crate) fn queued(&self) -> usize {
        self.queues.high.len() + self.queues.normal.len()
    }

    /// Calls that wait and whose client may lose its patience before `now`.
    pub(crate) fn impatient(&mut self, now: u64) -> Vec<(Ticket, u32)> {
        let late = |a: &&mut Arrival| now.saturating_sub(a.arrived) > u64::from(a.patience_us) * 750;
        let waiting = self.queues.high.iter_mut().chain(&mut self.queues.normal).filter(late);
        waiting
            .map(|a| {
                a.patience_us = a.patience_us.saturating_mul(2);
                (a.ticket, a.patience_us)
            })
            .collect()
    }

    /// Calls that nobody wants any more.
    #[inline]
    pub(crate) fn abandoned(&mut self) -> Vec<Abandoned> {
        std::mem::take(&mut self.queues.abandoned)
    }

    /// A call has ended that did not end at once.
    #[inline]
    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Answer, estimate_us: u32, post: &mut P) {
        let Some(line) = self.lines.get_mut(ticket.line).filter(|l| l.way.client == ticket.client) else {
            return;
        };
        self.queues.reply(&mut line.way, ticket.id, &answer, estimate_us, post);
        let left = line.way.out.is_empty();
        self.ended.push(Ended { ticket, answer });
        self.settle(left, post);
    }

    /// A call takes longer than its client may expect.
    pub(crate) fn early(&mut self, t: Ticket, us: u32, estimate_us: u32, post: &mut P) {
        let Some(line) = self.lines.get_mut(t.line).filter(|l| l.way.client == t.client) else { return };
        if line.known.lock().is_running(t.id) {
            let answer = Answer { status: Status::Early, arg: us, body: Body::EMPTY };
            self.queues.reply(&mut line.way, t.id, &answer, estimate_us, post);
        }
    }

    /// The client's address, for bulk data.
    pub(crate) fn to(&self, t: Ticket) -> Option<P::To> {
        self.lines.get(t.line).filter(|l| l.way.client == t.client).map(|l| l.way.to.clone())
    }

    /// Sends what is ready, then keeps the answers. A call that comes again in between, over another lane, still runs there; an
    /// answer that nobody waits for any more is a late packet to the client. A client's session is locked once for all of its calls
    /// that ended one after the other.
    #[inline]
    pub(crate) fn flush(&mut self, post: &mut P) {
        while let Some(at) = self.queues.dirty.pop() {
            if let Some(line) = self.lines.get_mut(at).filter(|l| !l.way.out.is_empty()) {
                line.way.send(post);
            }
        }
        let of_one =
            |a: &Ended, b: &Ended| (a.ticket.line, a.ticket.client) == (b.ticket.line, b.ticket.client);
        for run in self.ended.chunk_by_mut(of_one) {
            let Ticket { line, client, .. } = run[0].ticket;
            let Some(line) = self.lines.get(line).filter(|l| l.way.client == client) else { continue };
            let mut session = line.known.lock();
            for e in run {
                session.finish(e.ticket.id, std::mem::replace(&mut e.answer, Answer::empty(Status::Ok)));
            }
        }
        self.ended.clear();
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
        let fits = |l: &Line<P::To>| l.way.client == head.client && l.way.session == head.session;
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
            && let Some(line) = self.lines.get_mut(at).filter(|l| l.way.session == known.number)
        {
            line.way.to = from;
            return;
        }
        if let Some(at) = self.by_client.get(&client) {
            self.drop_line(*at);
        }
        let (at, session) = (self.lines.vacant_key(), known.number);
        let way = Way { at, client, session, to: from, out: Outbox::new(Kind::Replies) };
        self.by_client.insert(client, self.lines.insert(Line { known, way }));
    }

    fn stranger(&mut self, head: &Head, rest: &[u8], from: P::To, post: &mut P) {
        self.queues.counts.strangers += 1;
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

    /// The client's session is locked once for a packet, and not while its calls run.
    #[inline]
    fn calls<A: Arrived>(
        &mut self,
        now: u64,
        at: usize,
        head: Head,
        packet: A,
        run: &mut impl Run<P::To>,
        post: &mut P,
    ) -> Option<A> {
        let Line { known, way } = self.lines.get_mut(at)?;
        let (limits, queues) = (&self.clients.limits, &mut self.queues);
        {
            let mut door = Door { session: &mut known.lock(), way, limits };
            door.session.heard = now;
            let mut records = Records::new(head.count, &packet[HEAD..]);
            while let Some(record) = records.call() {
                let Ok((call, extension, payload)) = record else {
                    queues.counts.damaged += 1;
                    break;
                };
                let fresh = self.fresh.len();
                if let Some(extension) = queues.admit(&mut door, &call, extension, fresh, post) {
                    let payload = HEAD + records.at() - payload.len();
                    self.fresh.push(Fresh { call, extension, payload });
                }
            }
        }
        let before = self.ended.len();
        let mut packet = Some(packet);
        for Fresh { call, extension, payload } in self.fresh.drain(..) {
            let ticket = Ticket { line: way.at, client: way.client, id: call.id };
            let len = call.len as usize;
            // A large payload is shared with its packet, not copied.
            let body = if len > COPY_MAX && head.count == 1 {
                packet.take().and_then(|p| p.into_body(payload).ok())
            } else {
                packet.as_ref().map(|p| Body::copy(&p[payload..payload + len]))
            };
            let Some(body) = body else {
                queues.send_back(&mut Door { session: &mut known.lock(), way, limits }, ticket, post);
                continue;
            };
            let arrival = Arrival::new(now, ticket, &call, extension, body);
            if !(queues.none_waits(arrival.high) && run.is_free(arrival.high)) {
                queues.push(arrival);
            } else if let Some((answer, estimate_us)) = run.run(arrival, &way.to) {
                queues.reply(way, ticket.id, &answer, estimate_us, post);
                self.ended.push(Ended { ticket, answer });
            }
        }
        let left = way.out.is_empty() && self.ended.len() > before;
        self.settle(left, post);
        packet
    }

    /// After calls have ended: sends and keeps many answers together, and keeps at once those that have `left`.
    #[inline]
    fn settle(&mut self, left: bool, post: &mut P) {
        if left || self.ended.len() >= usize::from(RECORDS_MAX) {
            self.flush(post);
        }
    }

    fn cancel(&mut self, at: usize, head: Head, rest: &[u8]) {
        let Some(line) = self.lines.get(at) else { return };
        let mut records = Records::new(head.count, rest);
        while let Some(Ok((call, ..))) = records.call() {
            if line.known.lock().finish(call.id, Answer::empty(Status::Canceled)).is_some() {
                self.queues.give_up(Ticket { line: at, client: line.way.client, id: call.id });
            }
        }
    }

    fn bye(&mut self, at: usize) {
        let Some(line) = self.lines.get(at) else { return };
        let client = line.way.client;
        self.clients.leave(client, line.way.session);
        let running: Vec<CallId> = line.known.lock().running_calls().collect();
        running.into_iter().for_each(|id| self.queues.give_up(Ticket { line: at, client, id }));
        self.drop_line(at);
        self.by_client.remove(&client);
    }

    fn drop_line(&mut self, at: usize) {
        self.lines.try_remove(at);
    }
}

impl<To> Way<To> {
    /// Sends what is ready.
    #[inline]
    fn send<P: Post<To = To>>(&mut self, post: &mut P) {
        let (to, tag) = (&self.to, tag_of(self.client));
        self.out.take(self.client, self.session, |packet| post.post(to, tag, packet));
    }
}

impl Queues {
    /// What came with a call that is to run, after `fresh` others of its packet; another has been answered here.
    #[inline]
    fn admit<P: Post>(
        &mut self,
        door: &mut Door<'_, P::To>,
        call: &CallHead,
        extension: &[u8],
        fresh: usize,
        post: &mut P,
    ) -> Option<Extension> {
        let t = Ticket { line: door.way.at, client: door.way.client, id: call.id };
        match door.session.admit(call.id) {
            Admission::New { abandoned } => {
                if let Some(id) = abandoned {
                    self.give_up(Ticket { id, ..t });
                }
                return self.enter(door, t, call, extension, fresh, post);
            }
            Admission::Running => self.counts.still_running += 1,
            Admission::Again(answer) => {
                self.counts.answered_again += 1;
                self.reply(door.way, call.id, &answer, 0, post);
            }
            Admission::Stale => self.counts.stale += 1,
            Admission::NoSlot => self.counts.damaged += 1,
            Admission::Refused => self.say_retry(door, t, post),
        }
        None
    }

    /// What came with a new call; `None` if it is sent back, because the queue might not hold it, or refused.
    #[inline]
    fn enter<P: Post>(
        &mut self,
        door: &mut Door<'_, P::To>,
        t: Ticket,
        call: &CallHead,
        extension: &[u8],
        fresh: usize,
        post: &mut P,
    ) -> Option<Extension> {
        let room = match call.flags & flags::HIGH != 0 {
            true => self.high.len() + fresh < door.limits.queue_high,
            false => self.normal.len() + fresh < door.limits.queue,
        };
        if !room {
            self.send_back(door, t, post);
            return None;
        }
        if extension.is_empty() {
            return Some(Extension::default());
        }
        let extension = Extension::decode(extension);
        if extension.is_none()
            && let Some(answer) = door.session.finish(t.id, Answer::empty(Status::Malformed))
        {
            self.reply(door.way, t.id, answer, 0, post);
        }
        extension
    }

    /// A call is not begun: it may come again, under another number.
    #[cold]
    fn send_back<P: Post>(&mut self, door: &mut Door<'_, P::To>, t: Ticket, post: &mut P) {
        if door.session.refuse(t.id) {
            self.say_retry(door, t, post);
        }
    }

    #[cold]
    fn say_retry<P: Post>(&mut self, door: &mut Door<'_, P::To>, t: Ticket, post: &mut P) {
        self.counts.retry_after += 1;
        let arg = door.limits.retry_after.as_micros() as u32;
        let answer = Answer { status: Status::RetryAfter, arg, body: Body::EMPTY };
        self.reply(door.way, t.id, &answer, 0, post);
    }

    /// Nobody wants this call any more, whether it waits or runs.
    #[cold]
    fn give_up(&mut self, ticket: Ticket) {
        let from = |queue: &mut VecDeque<Arrival>| {
            let at = queue.iter().position(|a| a.ticket == ticket)?;
            queue.remove(at)
        };
        let waited = from(&mut self.high).or_else(|| from(&mut self.normal)).map(|a| a.portal);
        self.abandoned.push(Abandoned { ticket, waited });
    }

    /// No call waits that goes before one that has just come.
    #[inline]
    fn none_waits(&self, high: bool) -> bool {
        self.high.is_empty() && (high || self.normal.is_empty())
    }

    #[inline]
    fn push(&mut self, call: Arrival) {
        if call.high { self.high.push_back(call) } else { self.normal.push_back(call) }
    }

    #[inline]
    fn reply<P: Post>(
        &mut self,
        way: &mut Way<P::To>,
        id: CallId,
        answer: &Answer,
        estimate_us: u32,
        post: &mut P,
    ) {
        let Answer { status, arg, body } = answer;
        let head = ReplyHead { id, len: body.len() as u32, status: *status, estimate_us, arg: *arg };
        if body.len() > COPY_MAX {
            let packet = Head { kind: Kind::Replies, count: 1, client: way.client, session: way.session };
            let (to, tag) = (&way.to, tag_of(way.client));
            return tailed(&packet, &head.encode(), &[], body, |packet| post.post(to, tag, packet));
        }
        if way.out.is_empty() {
            self.dirty.push(way.at);
        }
        way.out.reply(&head, body);
        if way.out.is_full() {
            way.send(post);
        }
    }
}

#[inline]
fn tag_of(client: u64) -> u64 {
    TAG_TO_CLIENT | client & TAG_CLIENT
}
