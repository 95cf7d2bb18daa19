//! A lane: one endpoint and one thread that receives calls, runs their handlers and sends the answers. Nothing is shared with
//! other lanes but the clients' sessions, so that a client may come back over another.

use super::super::error::Result;
use super::super::estimate::Estimate;
use super::super::faults::Dice;
use super::super::method::PORTALS;
use super::super::session::Answer;
use super::super::wire::{Status, TAG_CLIENT, TAG_TO_SERVER};
use super::clients::Clients;
use super::desk::{Abandoned, Arrival, Desk, Ticket};
use super::inbox::{Inbox, waker};
use super::out::Out;
use super::request::{Bulk, BulkMeter, Request};
use super::service::{Service, Work, answer};
use super::{LaneView, Registry, ServerConfig};
use kfab::{Endpoint, Message, Op, Wait};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Packets taken before their calls are run.
const PACKETS: usize = 8;
/// How often timers are looked at while calls run or wait.
const TICK: u64 = 2_000_000;
/// How often clients that are gone are looked for.
const SWEEP: u64 = 100_000_000;
/// How long a lane waits for a packet alone, and so how soon it ends when told to. Long enough for the fabric's shortest way.
const LOOK: Duration = Duration::from_millis(20);

struct Task {
    ticket: Ticket,
    service: usize,
    begun: u64,
    /// Until the client asks again, and since when.
    patience_us: u32,
    asked: u64,
    work: Work,
    meter: Option<Rc<BulkMeter>>,
}

/// What a call cost, for the statistics.
struct Ended {
    service: usize,
    queue_ns: u64,
    /// `None`: it ended at once, and shares its turn's time.
    service_ns: Option<u64>,
    bulk: Option<(u64, u64)>,
    job: Option<Box<str>>,
    status: Status,
}

/// One lane, on its thread.
pub(crate) struct Lane {
    endpoint: Arc<Endpoint>,
    receive: Option<Op<Message>>,
    desk: Desk<Out>,
    out: Out,
    services: Rc<Vec<Service>>,
    by_portal: [Option<usize>; PORTALS],
    view: Arc<LaneView>,
    inbox: Arc<Inbox>,
    tasks: slab::Slab<Task>,
    wakers: Vec<Waker>,
    ready: Vec<usize>,
    estimates: Vec<Estimate>,
    ended: Vec<Ended>,
    running_max: usize,
    /// How long it looks again and again, while handlers run, before it sleeps.
    spin: Duration,
    start: Instant,
    now: u64,
    last_traffic: u64,
    next_tick: u64,
    next_sweep: u64,
}

impl Lane {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        registry: &Registry,
        clients: Arc<Clients>,
        view: Arc<LaneView>,
        config: &ServerConfig,
        wait: Wait,
        start: Instant,
    ) -> Lane {
        let estimates = vec![Estimate::new(config.limits.history); registry.services.len()];
        let out = Out::new(Dice::new(config.faults, view.number as u64 + 1));
        Lane {
            endpoint,
            receive: None,
            desk: Desk::new(clients),
            out,
            inbox: view.inbox.clone(),
            services: Rc::new(registry.services.clone()),
            by_portal: registry.by_portal,
            view,
            tasks: slab::Slab::new(),
            wakers: Vec::new(),
            ready: Vec::new(),
            estimates,
            ended: Vec::new(),
            running_max: config.limits.running,
            spin: match wait {
                Wait::Spin => Duration::MAX,
                Wait::Adaptive(spin) => spin,
                Wait::Sleep => Duration::ZERO,
            },
            start,
            now: 0,
            last_traffic: 0,
            next_tick: 0,
            next_sweep: 0,
        }
    }

    /// Until it is told to stop, or its endpoint is closed.
    pub(crate) fn run(mut self) {
        while self.turn() {}
    }

    fn turn(&mut self) -> bool {
        let stop = self.inbox.take(&mut self.ready);
        let Ok(packets) = self.take_packets() else { return false };
        if packets == 0 {
            self.now = self.clock();
        }
        let woken = !self.ready.is_empty();
        while let Some(task) = self.ready.pop() {
            self.go_on(task);
        }
        self.work();
        if self.now >= self.next_tick {
            self.tick();
        }
        if packets > 0 {
            self.last_traffic = self.now;
        } else if !woken && !stop {
            self.idle();
        }
        !stop
    }

    /// Runs what has come, and sends the answers.
    #[inline]
    fn work(&mut self) {
        self.begin_calls();
        self.desk.flush(&mut self.out);
        for t in self.desk.abandoned() {
            self.abandon(&t);
        }
        self.share_time();
        self.count();
    }

    fn take_packets(&mut self) -> kfab::Result<usize> {
        for n in 0..PACKETS {
            let mut op = match self.receive.take() {
                Some(op) => op,
                None => self.endpoint.recv_tagged(TAG_TO_SERVER, TAG_CLIENT),
            };
            if !op.is_done() {
                self.receive = Some(op);
                return Ok(n);
            }
            let message = op.wait()?;
            if n == 0 {
                self.now = self.clock();
            }
            self.packet(message);
        }
        Ok(PACKETS)
    }

    fn packet(&mut self, message: Message) {
        self.out.now = self.now;
        self.desk.receive(self.now, |m: &Message| m.from(), message, &mut self.out);
    }

    fn begin_calls(&mut self) {
        while self.tasks.len() < self.running_max
            && let Some(arrival) = self.desk.next_call()
        {
            self.begin(arrival);
        }
        // Liveness traffic runs even where nothing else may begin.
        while let Some(arrival) = self.desk.next_high() {
            self.begin(arrival);
        }
    }

    /// Shares the turn's time among the calls that ended at once. After the answers have left: reading the clock takes time.
    fn share_time(&mut self) {
        let at_once = self.ended.iter().filter(|e| e.service_ns.is_none()).count() as u64;
        let Some(at_once) = NonZeroU64::new(at_once) else { return };
        let now = self.clock();
        let share = (now - self.now) / at_once;
        self.ended.iter_mut().for_each(|e| _ = e.service_ns.get_or_insert(share));
        let service = self.ended[0].service;
        self.estimates[service].took(now, share);
    }

    fn begin(&mut self, a: Arrival) {
        let Some(service) = self.by_portal[usize::from(a.portal)] else {
            return self.refuse(a.ticket, Status::NoService);
        };
        let queue_ns = self.now.saturating_sub(a.arrived);
        if self.now > a.deadline {
            let job = a.extension.job;
            self.ended.push(Ended {
                service,
                queue_ns,
                service_ns: None,
                bulk: None,
                job,
                status: Status::Expired,
            });
            return self.refuse(a.ticket, Status::Expired);
        }
        let services = self.services.clone();
        let Some(Some(begin)) = services[service].handlers.get(usize::from(a.opcode)) else {
            return self.refuse(a.ticket, Status::NoService);
        };
        let (job, meter) = (a.extension.job.clone(), self.meter(&a));
        let request = self.request(&a, meter.clone());
        let task = self.tasks.vacant_key();
        while self.wakers.len() <= task {
            self.wakers.push(waker(&self.inbox, self.wakers.len()));
        }
        let mut cx = Context::from_waker(&self.wakers[task]);
        let first = catch_unwind(AssertUnwindSafe(|| match begin(request, a.body) {
            Ok(mut work) => match work.as_mut().poll(&mut cx) {
                Poll::Ready(result) => Err(answer(result)),
                Poll::Pending => Ok(work),
            },
            Err(e) => Err(answer(Err(e))),
        }));
        match first.unwrap_or_else(|_| Err(panicked())) {
            Ok(work) => {
                let (begun, asked) = (self.now, a.arrived);
                let patience_us = a.patience_us;
                let t = Task { ticket: a.ticket, service, begun, patience_us, asked, work, meter };
                self.tasks.insert(t);
                self.ended.push(Ended {
                    service,
                    queue_ns,
                    service_ns: Some(0),
                    bulk: None,
                    job,
                    status: Status::Early,
                });
            }
            Err(answer) => {
                let (status, bulk) = (answer.status, meter.map(|m| (m.ns.get(), m.bytes.get())));
                self.ended.push(Ended { service, queue_ns, service_ns: None, bulk, job, status });
                let estimate_us = self.estimates[service].us();
                self.desk.answer(a.ticket, answer, estimate_us, &mut self.out);
            }
        }
    }

    fn meter(&self, a: &Arrival) -> Option<Rc<BulkMeter>> {
        (!a.extension.windows.is_empty()).then(Rc::default)
    }

    #[inline]
    fn request(&self, a: &Arrival, meter: Option<Rc<BulkMeter>>) -> Request {
        let bulk = meter.zip(self.desk.to(a.ticket).filter(|_| !a.extension.windows.is_empty())).map(
            |(meter, peer)| {
                let windows = a.extension.windows.clone();
                Box::new(Bulk { endpoint: self.endpoint.clone(), peer, windows, meter })
            },
        );
        let deadline = (a.deadline != u64::MAX).then(|| self.start + Duration::from_nanos(a.deadline));
        Request { client: a.ticket.client, high: a.high, deadline, job: a.extension.job.clone(), bulk }
    }

    fn refuse(&mut self, ticket: Ticket, status: Status) {
        self.desk.answer(ticket, Answer::empty(status), 0, &mut self.out);
    }

    /// Polls a task that was woken.
    fn go_on(&mut self, key: usize) {
        let Some(task) = self.tasks.get_mut(key) else { return };
        let mut cx = Context::from_waker(&self.wakers[key]);
        let poll = catch_unwind(AssertUnwindSafe(|| task.work.as_mut().poll(&mut cx)));
        let answer = match poll {
            Ok(Poll::Pending) => return,
            Ok(Poll::Ready(result)) => answer(result),
            Err(_) => panicked(),
        };
        let task = self.tasks.remove(key);
        let now = self.clock();
        let took = now.saturating_sub(task.begun);
        self.estimates[task.service].took(now, took);
        let bulk = task.meter.map(|m| (m.ns.get(), m.bytes.get()));
        let status = answer.status;
        let (service, service_ns) = (task.service, Some(took));
        self.ended.push(Ended { service, queue_ns: u64::MAX, service_ns, bulk, job: None, status });
        let estimate_us = self.estimates[task.service].us();
        self.desk.answer(task.ticket, answer, estimate_us, &mut self.out);
    }

    /// Drops the handler of a call that nobody wants any more, and counts it.
    fn abandon(&mut self, call: &Abandoned) {
        let service = match call.waited {
            Some(portal) => self.by_portal[usize::from(portal)],
            None => {
                let running = self.tasks.iter().find(|(_, task)| task.ticket == call.ticket);
                running.map(|(key, _)| key).map(|key| self.tasks.remove(key).service)
            }
        };
        if let Some(service) = service {
            let status = Status::Canceled;
            let (queue_ns, service_ns) = (u64::MAX, None);
            self.ended.push(Ended { service, queue_ns, service_ns, bulk: None, job: None, status });
        }
    }

    /// Hands the turn's figures over, with one lock for each run of calls of one service.
    fn count(&mut self) {
        let mut left = self.ended.drain(..).peekable();
        while let Some(first) = left.peek() {
            let service = first.service;
            let mut s = self.view.tallies[service].lock().unwrap_or_else(|e| e.into_inner());
            while let Some(e) = left.next_if(|e| e.service == service) {
                if e.queue_ns != u64::MAX {
                    s.queue_ns.saturating_record(e.queue_ns);
                }
                if let Some(job) = &e.job {
                    s.count_job(job, 1);
                }
                match e.status {
                    Status::Early => continue,
                    Status::Ok => s.ok += 1,
                    Status::Canceled => s.abandoned += 1,
                    Status::Expired => s.expired += 1,
                    _ => s.failed += 1,
                }
                s.service_ns.saturating_record(e.service_ns.unwrap_or(0));
                if let Some((ns, bytes)) = e.bulk {
                    s.bulk_ns.saturating_record(ns);
                    s.bulk_bytes += bytes;
                }
            }
        }
    }

    /// Timers: early replies, delayed packets, clients that are gone.
    fn tick(&mut self) {
        self.next_tick = self.now + TICK;
        self.out.tick(self.now);
        for (t, us) in self.desk.impatient(self.now) {
            self.desk.early(t, us, 0, &mut self.out);
        }
        for (_, task) in &mut self.tasks {
            if self.now.saturating_sub(task.asked) > u64::from(task.patience_us) * 750 {
                task.patience_us = task.patience_us.saturating_mul(2);
                task.asked = self.now;
                let estimate_us = self.estimates[task.service].us();
                self.desk.early(task.ticket, task.patience_us, estimate_us, &mut self.out);
            }
        }
        self.desk.flush(&mut self.out);
        *self.view.counts.lock().unwrap_or_else(|e| e.into_inner()) = self.desk.counts();
        if self.now >= self.next_sweep {
            self.next_sweep = self.now + SWEEP;
            self.desk.sweep(self.now);
        }
    }

    /// Nothing was there to do: waits. While no handler runs and nothing is late only a packet can change that, and the fabric
    /// waits for one best; a lane that has been idle for long sleeps for everything.
    fn idle(&mut self) {
        let since = Duration::from_nanos(self.now.saturating_sub(self.last_traffic));
        let quiet = self.tasks.is_empty() && self.desk.queued() == 0 && !self.out.is_busy();
        if quiet && since < self.spin.max(LOOK) {
            let message = self.receive.take().map(|op| op.wait_timeout(LOOK));
            if let Some(Ok(message)) = message {
                self.now = self.clock();
                self.last_traffic = self.now;
                self.packet(message);
                self.work();
            }
        } else if since >= self.spin {
            let limit = if quiet { 100 } else { 1 };
            let endpoint = &self.endpoint;
            self.inbox.sleep(&**endpoint, Duration::from_millis(limit), || endpoint.arm());
        }
    }

    #[inline]
    fn clock(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }
}

fn panicked() -> Answer {
    answer(Result::Err(super::super::error::Error::failed(u32::MAX, "the handler panicked")))
}
