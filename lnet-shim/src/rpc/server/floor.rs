//! A lane's floor: the handlers, and the calls at work. A call that ends when it is begun, as most do, leaves nothing behind here but
//! its figures.

use super::super::body::Body;
use super::super::error::{Error, Result};
use super::super::estimate::Estimate;
use super::super::method::PORTALS;
use super::super::session::Answer;
use super::super::wire::Status;
use super::desk::{Abandoned, Arrival, Run, Ticket};
use super::inbox::{Inbox, waker};
use super::request::{Bulk, BulkMeter, Request};
use super::service::{First, Handler, Work, answer};
use super::stats::JobStats;
use super::{LaneView, Registry, ServerLimits};
use kfab::{Endpoint, Peer};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A call at work.
pub(super) struct Task {
    pub(super) ticket: Ticket,
    service: usize,
    begun: u64,
    /// Until the client asks again, and since when.
    patience_us: u32,
    asked: u64,
    work: Work,
    meter: Option<Rc<BulkMeter>>,
    /// For the bytes it moves.
    job: Option<Box<str>>,
}

/// What calls cost, for the statistics.
struct Ended {
    service: usize,
    /// So many calls, one after the other, with the same figures.
    calls: u64,
    /// `None`: counted when they began.
    queue_ns: Option<u64>,
    /// `None`: they ended at once, and share their turn's time.
    service_ns: Option<u64>,
    bulk: Option<(u64, u64)>,
    job: Option<Box<str>>,
    /// [`Status::Early`]: they have only begun.
    status: Status,
}

impl Ended {
    /// A call that ended at once.
    fn at_once(service: usize, queue_ns: u64, status: Status) -> Ended {
        Ended { service, calls: 1, queue_ns: Some(queue_ns), service_ns: None, bulk: None, job: None, status }
    }

    #[inline]
    fn is_like(&self, other: &Ended) -> bool {
        let key = |e: &Ended| (e.service, e.queue_ns, e.service_ns, e.status);
        let plain = |e: &Ended| e.bulk.is_none() && e.job.is_none();
        key(self) == key(other) && plain(self) && plain(other)
    }
}

/// What one lane runs, on its thread.
pub(super) struct Floor {
    endpoint: Arc<Endpoint>,
    view: Arc<LaneView>,
    inbox: Arc<Inbox>,
    /// By service and opcode.
    handlers: Vec<Vec<Option<Box<dyn Handler>>>>,
    by_portal: [Option<usize>; PORTALS],
    tasks: slab::Slab<Task>,
    wakers: Vec<Waker>,
    estimates: Vec<Estimate>,
    ended: Vec<Ended>,
    running_max: usize,
    /// More packets waited than the last turn took: calls queue up, so that those of high priority overtake.
    pub(super) behind: bool,
    start: Instant,
    pub(super) now: u64,
}

impl Floor {
    pub(super) fn new(
        endpoint: Arc<Endpoint>,
        registry: &Registry,
        view: Arc<LaneView>,
        limits: &ServerLimits,
        start: Instant,
    ) -> Floor {
        let handlers = registry.services.iter().map(|s| {
            let made = s.handlers.iter().map(|h| h.as_ref().map(|make| make()));
            made.collect()
        });
        Floor {
            endpoint,
            inbox: view.inbox.clone(),
            view,
            handlers: handlers.collect(),
            by_portal: registry.by_portal,
            tasks: slab::Slab::new(),
            wakers: Vec::new(),
            estimates: vec![Estimate::new(limits.history); registry.services.len()],
            ended: Vec::new(),
            running_max: limits.running,
            behind: false,
            start,
            now: 0,
        }
    }

    /// No call is at work.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Another call may begin.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.tasks.len() < self.running_max
    }

    /// Polls a call that was woken: its answer and the service's estimate, if it has ended.
    pub(super) fn go_on(&mut self, key: usize) -> Option<(Ticket, Answer, u32)> {
        let task = self.tasks.get_mut(key)?;
        let mut cx = Context::from_waker(&self.wakers[key]);
        let poll = catch_unwind(AssertUnwindSafe(|| task.work.as_mut().poll(&mut cx)));
        let answer = match poll {
            Ok(Poll::Pending) => return None,
            Ok(Poll::Ready(result)) => answer(result),
            Err(_) => panicked(),
        };
        let task = self.tasks.remove(key);
        let now = self.clock();
        let took = now.saturating_sub(task.begun);
        self.estimates[task.service].took(now, took);
        self.ended.push(Ended {
            queue_ns: None,
            service_ns: Some(took),
            bulk: task.meter.map(|m| (m.ns.get(), m.bytes.get())),
            job: task.job,
            ..Ended::at_once(task.service, 0, answer.status)
        });
        Some((task.ticket, answer, self.estimates[task.service].us()))
    }

    /// Drops the handler of a call that nobody wants any more, and counts it.
    pub(super) fn abandon(&mut self, call: &Abandoned) {
        let service = match call.waited {
            Some(portal) => self.by_portal[usize::from(portal)],
            None => {
                let running = self.tasks.iter().find(|(_, task)| task.ticket == call.ticket);
                running.map(|(key, _)| key).map(|key| self.tasks.remove(key).service)
            }
        };
        if let Some(service) = service {
            self.ended.push(Ended { queue_ns: None, ..Ended::at_once(service, 0, Status::Canceled) });
        }
    }

    /// Calls at work whose clients may lose their patience: how long they may take from now on, and the service's estimate, us.
    pub(super) fn impatient(&mut self) -> impl Iterator<Item = (Ticket, u32, u32)> + '_ {
        let (now, estimates) = (self.now, &self.estimates);
        self.tasks.iter_mut().filter_map(move |(_, task)| {
            if now.saturating_sub(task.asked) <= u64::from(task.patience_us) * 750 {
                return None;
            }
            task.patience_us = task.patience_us.saturating_mul(2);
            task.asked = now;
            Some((task.ticket, task.patience_us, estimates[task.service].us()))
        })
    }

    /// Shares the turn's time among the calls that ended at once, and hands the figures over. After the answers have left: reading
    /// the clock takes time. `true` if it was read.
    #[inline]
    pub(super) fn count(&mut self) -> bool {
        let at_once = self.ended.iter().filter(|e| e.service_ns.is_none()).map(|e| e.calls).sum();
        let mut share = 0;
        let at_once = NonZeroU64::new(at_once);
        if let Some(at_once) = at_once {
            let now = self.clock();
            share = (now - self.now) / at_once;
            self.now = now;
            estimate_shares(&mut self.estimates, &self.ended, now, share);
        }
        // One lock for each run of calls of one service.
        let mut left = self.ended.drain(..).peekable();
        while let Some(first) = left.peek() {
            let service = first.service;
            let mut s = self.view.tallies[service].lock().unwrap_or_else(|e| e.into_inner());
            while let Some(e) = left.next_if(|e| e.service == service) {
                if let Some(ns) = e.queue_ns {
                    s.queue_ns.saturating_record_n(ns, e.calls);
                }
                if let Some(job) = &e.job {
                    let calls = if e.queue_ns.is_some() { e.calls } else { 0 };
                    s.count_job(job, JobStats { calls, bulk_bytes: e.bulk.map_or(0, |(_, bytes)| bytes) });
                }
                match e.status {
                    Status::Early => continue,
                    Status::Ok => s.ok += e.calls,
                    Status::Canceled => s.abandoned += e.calls,
                    Status::Expired => s.expired += e.calls,
                    _ => s.failed += e.calls,
                }
                s.service_ns.saturating_record_n(e.service_ns.unwrap_or(share), e.calls);
                if let Some((ns, bytes)) = e.bulk {
                    s.bulk_ns.saturating_record(ns);
                    s.bulk_bytes += bytes;
                }
            }
        }
        at_once.is_some()
    }

    #[inline]
    pub(super) fn clock(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    #[inline]
    fn tally(&mut self, ended: Ended) {
        match self.ended.last_mut() {
            Some(last) if last.is_like(&ended) => last.calls += 1,
            _ => self.ended.push(ended),
        }
    }

    #[inline]
    fn bulk(&self, a: &mut Arrival, to: &Peer) -> Option<Box<Bulk>> {
        let windows = std::mem::take(&mut a.extension.windows);
        if windows.is_empty() {
            return None;
        }
        let (endpoint, peer) = (self.endpoint.clone(), to.clone());
        Some(Box::new(Bulk { endpoint, peer, windows, meter: Rc::default() }))
    }
}

impl Run<Peer> for Floor {
    #[inline]
    fn is_free(&self, high: bool) -> bool {
        // Liveness traffic runs even where nothing else may begin.
        !self.behind && (high || self.has_room())
    }

    #[inline]
    fn run(&mut self, mut a: Arrival, to: &Peer) -> Option<(Answer, u32)> {
        let Some(service) = self.by_portal[usize::from(a.portal)] else {
            return Some((Answer::empty(Status::NoService), 0));
        };
        let queue_ns = self.now.saturating_sub(a.arrived);
        if self.now > a.deadline {
            let job = a.extension.job;
            self.tally(Ended { job, ..Ended::at_once(service, queue_ns, Status::Expired) });
            return Some((Answer::empty(Status::Expired), 0));
        }
        let bulk = self.bulk(&mut a, to);
        let Some(Some(handler)) = self.handlers[service].get_mut(usize::from(a.opcode)) else {
            return Some((Answer::empty(Status::NoService), 0));
        };
        let (meter, job) = (bulk.as_ref().map(|b| b.meter.clone()), a.extension.job);
        let deadline = (a.deadline != u64::MAX).then(|| self.start + Duration::from_nanos(a.deadline));
        let request = Request { client: a.ticket.client, high: a.high, deadline, job: job.clone(), bulk };
        let task = self.tasks.vacant_key();
        while self.wakers.len() <= task {
            self.wakers.push(waker(&self.inbox, self.wakers.len()));
        }
        let mut cx = Context::from_waker(&self.wakers[task]);
        let body = a.body;
        let first = catch_unwind(AssertUnwindSafe(|| match handler.begin(request, body, &mut cx) {
            First::Ended(result) => Ok(answer(result)),
            First::GoesOn(work) => Err(work),
        }));
        match first.unwrap_or_else(|_| Ok(panicked())) {
            Ok(answer) => {
                let bulk = meter.map(|m| (m.ns.get(), m.bytes.get()));
                self.tally(Ended { bulk, job, ..Ended::at_once(service, queue_ns, answer.status) });
                Some((answer, self.estimates[service].us()))
            }
            Err(work) => {
                let (ticket, patience_us) = (a.ticket, a.patience_us);
                let (begun, asked) = (self.now, a.arrived);
                let bytes_for = if meter.is_some() { job.clone() } else { None };
                let task = Task { ticket, service, begun, patience_us, asked, work, meter, job: bytes_for };
                self.tasks.insert(task);
                let begun =
                    Ended { service_ns: Some(0), job, ..Ended::at_once(service, queue_ns, Status::Early) };
                self.ended.push(begun);
                None
            }
        }
    }
}

/// Each service whose calls ended at once took that share of the turn for each; no other service took anything.
#[inline]
fn estimate_shares(estimates: &mut [Estimate], ended: &[Ended], now: u64, share: u64) {
    for e in ended.iter().filter(|e| e.service_ns.is_none()) {
        estimates[e.service].took(now, share);
    }
}

fn panicked() -> Answer {
    answer(Result::<Body>::Err(Error::failed(u32::MAX, "the handler panicked")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turns_time_counts_for_the_services_it_was_spent_on() {
        let mut estimates = vec![Estimate::new(Duration::from_secs(4)); 4];
        let long = Ended { service_ns: Some(9), ..Ended::at_once(0, 0, Status::Ok) };
        let at_once = |service| Ended::at_once(service, 0, Status::Ok);
        estimate_shares(&mut estimates, &[long, at_once(1), at_once(3)], 1, 70_000);
        assert_eq!(estimates.iter().map(Estimate::us).collect::<Vec<_>>(), [0, 70, 0, 70]);
    }
}
