//! A lane: one endpoint and one thread that receives calls, runs their handlers and sends the answers. Nothing is shared with
//! other lanes but the clients' sessions, so that a client may come back over another.

use super::super::faults::Dice;
use super::super::wire::{TAG_CLIENT, TAG_TO_SERVER};
use super::clients::Clients;
use super::desk::{Desk, Run};
use super::floor::Floor;
use super::inbox::Inbox;
use super::out::Out;
use super::{LaneView, Registry, ServerConfig};
use kfab::{Endpoint, Message, Op, Wait};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Packets taken before the lane looks at anything else.
const PACKETS: usize = 8;
/// How often timers are looked at while calls run or wait.
const TICK: u64 = 2_000_000;
/// How often clients that are gone are looked for.
const SWEEP: u64 = 100_000_000;
/// How long a lane waits for a packet alone, and so how soon it ends when told to. Long enough for the fabric's shortest way.
const LOOK: Duration = Duration::from_millis(20);

/// One lane, on its thread.
pub(crate) struct Lane {
    endpoint: Arc<Endpoint>,
    receive: Option<Op<Message>>,
    /// Packets that have been read, until the answers have left.
    read: Vec<Message>,
    desk: Desk<Out>,
    out: Out,
    floor: Floor,
    view: Arc<LaneView>,
    inbox: Arc<Inbox>,
    ready: Vec<usize>,
    /// How long it looks again and again, while handlers run, before it sleeps.
    spin: Duration,
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
        let out = Out::new(Dice::new(config.faults, view.number as u64 + 1));
        Lane {
            floor: Floor::new(endpoint.clone(), registry, view.clone(), &config.limits, start),
            endpoint,
            receive: None,
            read: Vec::new(),
            desk: Desk::new(clients),
            out,
            inbox: view.inbox.clone(),
            view,
            ready: Vec::new(),
            spin: match wait {
                Wait::Spin => Duration::MAX,
                Wait::Adaptive(spin) => spin,
                Wait::Sleep => Duration::ZERO,
            },
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
            self.floor.now = self.floor.clock();
        }
        self.floor.behind = packets == PACKETS;
        let woken = !self.ready.is_empty();
        while let Some(task) = self.ready.pop() {
            if let Some((ticket, answer, estimate_us)) = self.floor.go_on(task) {
                self.desk.answer(ticket, answer, estimate_us, &mut self.out);
            }
        }
        self.begin_calls();
        self.settle();
        if self.floor.now >= self.next_tick {
            self.tick();
        }
        if packets > 0 {
            self.last_traffic = self.floor.now;
        } else if !woken && !stop {
            self.idle();
        }
        !stop
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
            match op.wait() {
                Ok(message) => {
                    if n == 0 {
                        self.floor.now = self.floor.clock();
                    }
                    self.packet(message);
                }
                Err(e) if e.kind() == kfab::Kind::Closed => return Err(e),
                // One client's packet, lost with it or larger than our memory. The others are still there.
                Err(e) => {
                    tracing::debug!(target: "kfab", "lane {}: a packet was lost: {e}", self.view.number)
                }
            }
        }
        Ok(PACKETS)
    }

    /// Runs what a packet brought, unless it is to wait.
    #[inline]
    fn packet(&mut self, message: Message) {
        let now = self.floor.now;
        self.out.now = now;
        let from = |m: &Message| m.from();
        self.read.extend(self.desk.receive(now, from, message, &mut self.floor, &mut self.out));
    }

    /// Begins calls that waited.
    fn begin_calls(&mut self) {
        while self.desk.queued() > 0 {
            let next = if self.floor.has_room() { self.desk.next_call() } else { self.desk.next_high() };
            let Some(call) = next else { return };
            let ticket = call.ticket;
            let Some(to) = self.desk.to(ticket) else { continue };
            if let Some((answer, estimate_us)) = self.floor.run(call, &to) {
                self.desk.answer(ticket, answer, estimate_us, &mut self.out);
            }
        }
    }

    /// Sends the answers, then does what could wait until they had left. `true` if the clock was read.
    #[inline]
    fn settle(&mut self) -> bool {
        self.desk.flush(&mut self.out);
        self.read.clear();
        for call in self.desk.abandoned() {
            self.floor.abandon(&call);
        }
        self.floor.count()
    }

    /// Timers: early replies, delayed packets, clients that are gone.
    fn tick(&mut self) {
        let now = self.floor.now;
        self.next_tick = now + TICK;
        // It may be getting a large packet of a slow client. That comes all the same; the others are not to wait for it.
        self.receive = None;
        self.out.tick(now);
        for (ticket, us) in self.desk.impatient(now) {
            self.desk.early(ticket, us, 0, &mut self.out);
        }
        for (ticket, us, estimate_us) in self.floor.impatient() {
            self.desk.early(ticket, us, estimate_us, &mut self.out);
        }
        self.desk.flush(&mut self.out);
        *self.view.counts.lock().unwrap_or_else(|e| e.into_inner()) = self.desk.counts();
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.desk.sweep(now);
        }
    }

    /// Nothing was there to do: waits. While no handler runs and nothing is late only a packet can change that, and the fabric
    /// waits for one best; a lane that has been idle for long sleeps for everything.
    fn idle(&mut self) {
        let since = Duration::from_nanos(self.floor.now.saturating_sub(self.last_traffic));
        let quiet = self.floor.is_empty() && self.desk.queued() == 0 && !self.out.is_busy();
        if quiet && since < self.spin.max(LOOK) {
            let message = self.receive.take().map(|op| op.wait_timeout(LOOK));
            if let Some(Ok(message)) = message {
                self.floor.now = self.floor.clock();
                self.last_traffic = self.floor.now;
                self.packet(message);
                self.settle();
            }
        } else if since >= self.spin {
            let limit = if quiet { 100 } else { 1 };
            let endpoint = &self.endpoint;
            self.inbox.sleep(&**endpoint, Duration::from_millis(limit), || endpoint.arm());
        }
    }
}
