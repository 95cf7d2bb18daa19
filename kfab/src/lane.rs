//! A lane: the machine, its ports and its memory under one lock, and the art of waiting on them.
//!
//! Who polls is a property of the lane at every moment: a caller that waits (it holds the lock for a batch of polls at a time), a
//! sleeper (`asleep`: somebody is in poll(2) on the ports' descriptors and everything is armed), or the helper thread. Whoever
//! polls while another sleeps has disarmed the ports and kicks the sleeper when it leaves.

use crate::config::{EndpointConfig, Wait};
use crate::doors::Doors;
use kfab_core::mem::{Buffer, Pool, PoolConfig};
use kfab_core::ring::{LaneGuard, LaneLock};
use kfab_core::spi::{Address, Port};
use kfab_core::{Error, Kind, Result};
use kfab_proto::{Direct, Io, Machine, OpId, Outcome, PeerId, Polled, SendOptions, Started, Want, WindowKey};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Polls made under one hold of the lock, and between two looks at the clock.
const BATCH: u32 = 64;
/// Short rounds that a receive is waited for at most.
const SHORT: u32 = 4096;
/// Short rounds to a full one, where there is one port and where others want to be looked at too.
const FULL: u32 = 512;
const FULL_OF_MANY: u32 = 32;
/// How long callers may be silent before the helper takes over.
pub(crate) const LOOK_IN: Duration = Duration::from_millis(2);
/// The longest sleep: a bound for what nobody thought of.
const LONGEST: Duration = Duration::from_secs(10);

/// What the lock protects.
pub(crate) struct State {
    pub(crate) machine: Machine,
    pub(crate) ports: Vec<Box<dyn Port>>,
    pub(crate) pool: Pool,
    start: Instant,
    pub(crate) now: u64,
    clock_age: u32,
    /// Somebody sleeps on the descriptors, ports armed.
    asleep: Option<Sleeper>,
    /// Sleepers that were woken and have not risen yet.
    kicked: u32,
    /// Counts sleeps, so that a late riser does not mistake its successor's sleep for its own.
    sleeps: u64,
    /// Threads that wait for an operation while another sleeps on the descriptors.
    followers: Vec<Thread>,
    /// Counts the callers' turns, for the helper to see whether they are active.
    pub(crate) turns: u64,
    /// Counts rounds of the machine.
    pub(crate) rounds: u64,
    /// Somebody asked to be woken by an operation's end: the helper must poll.
    pub(crate) watched: bool,
    /// The helper waits to be told that no caller sleeps on the descriptors any more.
    pub(crate) helper_idle: bool,
    /// An event loop of the user's sleeps on the armed ports, or will: whoever takes what comes tells it.
    looped: bool,
    /// Something was dealt with since an event loop last prepared to sleep: perhaps what it would sleep for.
    news: bool,
    doors: Option<Arc<Doors>>,
}

/// How a receive began. Large values in small clothes: moving them is what costs.
pub(crate) enum Begun {
    /// Its message came by the short way meanwhile.
    Here,
    /// It waits.
    Pending(OpId),
    /// It has ended already.
    Ended(Result<Box<Outcome>>),
}

impl Begun {
    #[inline(never)]
    fn from(r: Result<Started>) -> Begun {
        match r {
            Ok(Started::Pending(op)) => Begun::Pending(op),
            Ok(Started::Done(outcome)) => Begun::Ended(Ok(Box::new(outcome))),
            Err(e) => Begun::Ended(Err(e)),
        }
    }
}

/// Who sleeps on the descriptors.
#[derive(Clone, Copy)]
struct Sleeper {
    /// Until this time, lane clock.
    until: u64,
    number: u64,
    /// A caller's operation. `None`: it is the helper, which makes way for a caller.
    waits_for: Option<OpId>,
}

/// One lane. Named in a sealed trait's signature, hence `pub`; its module is private.
pub struct Lane {
    state: LaneLock<State>,
    /// `None` once it is closed: what other threads keep of the lane holds no descriptors.
    doors: Mutex<Option<Arc<Doors>>>,
    pub(crate) wait: Wait,
    pub(crate) address: Address,
    pub(crate) helper: Mutex<Option<JoinHandle<()>>>,
    pub(crate) placement: Mutex<Vec<kfab_topo::Placement>>,
    closed: AtomicBool,
    /// The process that opened it: a child that was forked off must keep its hands from it.
    home: u32,
}

impl State {
    /// The machine and what it works with.
    #[inline]
    pub(crate) fn split(&mut self) -> (&mut Machine, Io<'_>) {
        (&mut self.machine, Io { ports: &mut self.ports, now: self.now, pool: &self.pool })
    }

    /// One round of the machine.
    pub(crate) fn poll(&mut self) -> bool {
        self.clock_age = 0;
        self.poll_again()
    }

    /// One of many rounds in a row: the clock is read now and then, as timers are coarse and a spinning caller is not. The first
    /// round after a pause must be [`State::poll`]: events taken with an old time would be timed out by the next look at it.
    #[inline(always)]
    pub(crate) fn poll_again(&mut self) -> bool {
        if self.clock_age == 0 {
            self.read_clock();
            self.clock_age = BATCH / 2;
        }
        self.clock_age -= 1;
        self.rounds += 1;
        let (machine, mut io) = self.split();
        let moved = machine.poll(&mut io);
        if moved {
            self.tell_loop();
        }
        moved
    }

    /// Something was dealt with: an event loop that sleeps on the ports would find nothing there any more.
    #[inline(always)]
    fn tell_loop(&mut self) {
        self.news = true;
        if self.looped {
            self.looped = false;
            if let Some(d) = &self.doors {
                d.tell();
            }
        }
    }

    pub(crate) fn read_clock(&mut self) {
        self.now = self.start.elapsed().as_nanos() as u64 + 1;
    }

    /// A time of the system's monotonic clock on the lane's clock.
    pub(crate) fn lane_time(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).map_or(u64::MAX, |ns| ns.saturating_add(1))
    }

    /// The ports were looked at, and so disarmed: an event loop that sleeps on them must not miss the next event.
    #[inline(always)]
    fn arm_for_loop(&mut self) {
        if self.looped && !self.arm() {
            self.tell_loop();
        }
    }

    /// Arms all ports; `false` if one has work.
    fn arm(&mut self) -> bool {
        self.ports.iter_mut().all(|p| p.arm())
    }
}

impl Lane {
    pub(crate) fn open(ports: Vec<Box<dyn Port>>, config: &EndpointConfig, keyed: bool) -> Result<Arc<Lane>> {
        let mut pool = config.pool.clone();
        if let Some(p) = &config.partition {
            pool.node = pool.node.or(p.memory_node);
        }
        let mut machine = Machine::new(config.limits.clone(), kfab_core::auth::random_u64()?, keyed);
        let address = Address::new(ports.iter().flat_map(|p| p.ways()).collect());
        machine.set_address(&address);
        let doors = Arc::new(Doors::open(&ports)?);
        let mut state = State {
            machine,
            ports,
            pool: Pool::new(pool),
            start: Instant::now(),
            now: 1,
            clock_age: 0,
            asleep: None,
            kicked: 0,
            sleeps: 0,
            followers: Vec::new(),
            turns: 0,
            rounds: 0,
            watched: false,
            helper_idle: false,
            looped: false,
            news: false,
            doors: Some(doors.clone()),
        };
        state.read_clock();
        let lane = Arc::new(Lane {
            state: LaneLock::new(state),
            doors: Mutex::new(Some(doors)),
            wait: config.wait,
            address,
            helper: Mutex::new(None),
            placement: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
            home: std::process::id(),
        });
        crate::progress::start(&lane, config)?;
        Ok(lane)
    }

    #[inline]
    pub(crate) fn lock(&self) -> LaneGuard<'_, State> {
        self.state.lock()
    }

    /// Between two holds of the lock: lets others have it.
    pub(crate) fn make_way(&self) {
        self.state.make_way();
    }

    /// Runs a verb under the lock. If somebody sleeps who must now wake earlier, wakes them.
    #[inline(always)]
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Machine, &mut Io<'_>) -> R) -> R {
        let mut s = self.lock();
        if s.asleep.is_some() {
            // Nobody has polled for a while: the lane's clock is old.
            s.read_clock();
        }
        let (machine, mut io) = s.split();
        let r = f(machine, &mut io);
        self.tell_sleeper(&mut s);
        r
    }

    /// An operation that nobody watches any more: what it has got goes to others.
    #[inline(never)]
    pub(crate) fn let_go(&self, op: OpId) {
        if !self.is_at_home() {
            return;
        }
        self.with(|m, io| m.detach(io, op));
        self.lock().tell_loop();
    }

    /// What an operation ended with and nobody took: it goes to others.
    #[cold]
    pub(crate) fn give_back(&self, outcome: Outcome) {
        if !self.is_at_home() {
            return;
        }
        self.with(|m, _| m.give_back(outcome));
        self.lock().tell_loop();
    }

    /// What was just done may concern the one who sleeps: wakes it then.
    #[inline(always)]
    pub(crate) fn tell_sleeper(&self, s: &mut State) {
        if s.asleep.is_some() {
            self.after_verb(s);
        }
    }

    #[cold]
    fn after_verb(&self, s: &mut State) {
        let Some(Sleeper { until, waits_for, .. }) = s.asleep else { return };
        let sooner = s.machine.deadline(&s.ports).is_some_and(|due| due < until);
        // A verb may end another's operation: a message is given back, a window closed.
        let ended = waits_for.is_some_and(|op| s.machine.has_ended(op));
        if sooner || ended || s.machine.wants_poll() {
            self.wake_sleeper(s);
        }
    }

    /// The caller has polled, and so disarmed the ports, while another sleeps: that one must arm them again.
    #[inline]
    pub(crate) fn leave(&self, s: &mut State) {
        s.arm_for_loop();
        if s.asleep.is_some() {
            self.wake_sleeper(s);
        }
    }

    #[cold]
    fn wake_sleeper(&self, s: &mut State) {
        s.asleep = None;
        s.kicked += 1;
        self.at_doors(|d| d.kick());
    }

    /// Sends by the short way; `false`, and nothing has happened, if that cannot take it.
    #[inline(always)]
    pub(crate) fn send_now(&self, to: PeerId, bytes: &[u8], in_slab: bool, options: &SendOptions) -> bool {
        let mut s = self.lock();
        if s.asleep.is_some() {
            drop(s);
            return self.send_beside_sleeper(to, bytes, in_slab, options);
        }
        let (machine, mut io) = s.split();
        machine.send_now(&mut io, to, bytes, in_slab, options)
    }

    /// The same while somebody sleeps: the clock is old, and what is sent may need a timer.
    #[cold]
    #[inline(never)]
    fn send_beside_sleeper(&self, to: PeerId, bytes: &[u8], in_slab: bool, options: &SendOptions) -> bool {
        self.with(|machine, io| machine.send_now(io, to, bytes, in_slab, options))
    }

    /// A round, if that may bring what keeps a first message to a peer from leaving. Who only sends never looks, and else would find
    /// out when it waits, with a queue behind it.
    pub(crate) fn look_for_credit(&self, to: PeerId) {
        let mut s = self.lock();
        if s.asleep.is_none() && s.machine.has_stalled(to) {
            s.poll();
            s.arm_for_loop();
        }
    }

    /// Sends what the receiver fetches, by the short way; `None`, and nothing has happened, if that cannot take it.
    #[inline(always)]
    pub(crate) fn promise_now(
        &self,
        to: PeerId,
        from: &mut Option<Buffer>,
        options: &SendOptions,
    ) -> Option<OpId> {
        let mut s = self.lock();
        if s.asleep.is_some() {
            return None;
        }
        let (machine, mut io) = s.split();
        machine.promise_now(&mut io, to, from, options)
    }

    /// Writes by the short way; `false`, and nothing has happened, if that cannot take it.
    #[inline(always)]
    pub(crate) fn write_now(&self, to: PeerId, key: &WindowKey, offset: u64, bytes: &[u8]) -> bool {
        let mut s = self.lock();
        let (machine, mut io) = s.split();
        machine.write_now(&mut io, to, key, offset, bytes)
    }

    /// Reads by the short way; the buffer back as it was, if that cannot take it.
    #[inline(always)]
    pub(crate) fn read_now(
        &self,
        from: PeerId,
        key: &WindowKey,
        offset: u64,
        into: Buffer,
    ) -> std::result::Result<Buffer, Buffer> {
        let mut s = self.lock();
        let (machine, mut io) = s.split();
        machine.read_now(&mut io, from, key, offset, into)
    }

    /// Starts a receive. Its buffer, if it brings one, lies where the message will.
    #[inline(always)]
    pub(crate) fn recv(&self, want: Want, out: &mut Direct) -> Begun {
        let mut s = self.lock();
        s.turns += 1;
        if s.asleep.is_some() {
            drop(s);
            return Begun::from(self.with(|m, io| m.recv(io, want, out.body.take())));
        }
        let (machine, mut io) = s.split();
        if machine.recv_now(&mut io, &want, out) {
            return Begun::Here;
        }
        match machine.post_recv(&mut io, &want, &mut out.body) {
            Some(op) => Begun::Pending(op),
            None => Begun::from(machine.recv(&mut io, want, out.body.take())),
        }
    }

    /// Spins for an operation on the short way, for as long as it is short; what a receive gets is in `out`. `false`: it has ended
    /// otherwise, or is to be waited for as everything.
    #[inline(always)]
    pub(crate) fn wait_shortly(&self, op: OpId, out: &mut Direct) -> bool {
        let mut s = self.lock();
        s.turns += 1;
        if s.asleep.is_some() || self.wait == Wait::Sleep || s.machine.has_ended(op) {
            return false;
        }
        let mut until = None;
        let full = if s.ports.len() > 1 { FULL_OF_MANY } else { FULL };
        for i in 1..=SHORT {
            let (machine, mut io) = s.split();
            match machine.poll_for(&mut io, op, out) {
                Polled::Here => {
                    s.arm_for_loop();
                    return true;
                }
                Polled::Nothing if !i.is_multiple_of(full) => continue,
                Polled::Busy => {
                    s.tell_loop();
                    if s.machine.has_ended(op) {
                        return false;
                    }
                    continue;
                }
                Polled::Nothing | Polled::Due => {}
            }
            if s.poll() && s.machine.has_ended(op) {
                return false;
            }
            // Where a round is a system call, the rounds together are more than the caller wants to spin.
            if let Wait::Adaptive(d) = self.wait {
                let now = Instant::now();
                if until.get_or_insert(now.checked_add(d)).is_some_and(|t| now >= t) {
                    return false;
                }
            }
        }
        false
    }

    /// Spins for an operation that hands nothing over, for as long as it is short: `true` if it has ended well.
    #[inline]
    pub(crate) fn wait_for_unit(&self, op: OpId) -> bool {
        let take = || {
            let mut s = self.lock();
            s.turns += 1;
            s.machine.take_unit(op)
        };
        take() || {
            let mut nothing = Direct::EMPTY;
            self.wait_shortly(op, &mut nothing);
            take()
        }
    }

    /// Waits for the end of an operation, in the lane's way of waiting. `None`: the deadline passed first.
    pub(crate) fn wait_for(&self, op: OpId, deadline: Option<Instant>) -> Option<Result<Outcome>> {
        let (mut polls, mut begun) = (BATCH, None);
        loop {
            let mut s = self.lock();
            s.turns += 1;
            if let Some(r) = s.machine.take(op) {
                self.hand_back(s);
                return Some(r);
            }
            let spin_until = match self.wait {
                Wait::Spin => None,
                Wait::Adaptive(d) => begun.get_or_insert_with(Instant::now).checked_add(d),
                Wait::Sleep => Some(*begun.get_or_insert_with(Instant::now)),
            };
            s.clock_age = 0;
            for _ in 0..polls {
                // No pause between polls: on some processors it takes longer than the message does.
                if s.poll_again() && s.machine.has_ended(op) {
                    break;
                }
            }
            // Also one that a timer ended, in a round that moved nothing.
            if let Some(r) = s.machine.take(op) {
                self.leave(&mut s);
                self.hand_back(s);
                return Some(r);
            }
            if spin_until.is_none() && deadline.is_none() && s.asleep.is_none() {
                drop(s);
                self.state.make_way();
                continue;
            }
            let now = Instant::now();
            if deadline.is_some_and(|d| now >= d) {
                self.leave(&mut s);
                self.hand_back(s);
                return None;
            }
            if spin_until.is_some_and(|t| now >= t) {
                if let Some(r) = self.sleep(s, op, deadline) {
                    return Some(r);
                }
                // What woke us was not for us: back to sleep as soon as it is dealt with.
                polls = 1;
            } else {
                self.leave(&mut s);
                drop(s);
                self.state.make_way();
            }
        }
    }

    /// Sleeps until there is news: on the descriptors, or beside another caller that sleeps there.
    fn sleep(
        &self,
        mut s: LaneGuard<'_, State>,
        op: OpId,
        deadline: Option<Instant>,
    ) -> Option<Result<Outcome>> {
        match s.asleep {
            Some(Sleeper { waits_for: Some(_), .. }) => {
                self.sleep_beside(s, op, deadline);
                return None;
            }
            Some(_) => self.wake_sleeper(&mut s),
            None => {}
        }
        self.sleep_on_ports(s, deadline, Some(op));
        let mut s = self.lock();
        s.poll();
        s.arm_for_loop();
        let r = s.machine.take(op);
        if r.is_some() {
            self.hand_back(s);
        }
        r
    }

    /// Waits until our operation ends (the sleeper polls for all) or we are to take the sleeper's place.
    fn sleep_beside(&self, mut s: LaneGuard<'_, State>, op: OpId, deadline: Option<Instant>) {
        s.machine.set_waker(op, &Waker::from(Arc::new(Unpark(std::thread::current()))));
        s.followers.push(std::thread::current());
        // We have polled, and so disarmed the ports.
        self.wake_sleeper(&mut s);
        drop(s);
        let most = deadline.map_or(LONGEST, |d| d.saturating_duration_since(Instant::now()));
        std::thread::park_timeout(most.min(Duration::from_millis(100)));
        let me = std::thread::current().id();
        self.lock().followers.retain(|t| t.id() != me);
    }

    /// The caller goes: unless another sleeps on the descriptors, one that waits beside it does from now on, or the helper looks after the
    /// lane again.
    #[inline]
    fn hand_back(&self, mut s: LaneGuard<'_, State>) {
        if s.asleep.is_some() {
            return;
        }
        if let Some(t) = s.followers.pop() {
            t.unpark();
        } else if s.helper_idle {
            s.helper_idle = false;
            // Not at once: a caller that comes back soon needs it no more, and the message is the caller's first.
            self.at_doors(|d| d.alarm(LOOK_IN));
        }
    }

    /// The helper: sleeps until it is needed, at most so long.
    pub(crate) fn rest(&self, most: Option<Duration>) {
        self.at_doors(|d| d.await_alarm(most));
    }

    /// Arms everything and sleeps in poll(2). Returns after news, a kick, a timer, or at once if there is work.
    pub(crate) fn sleep_on_ports(
        &self,
        mut s: LaneGuard<'_, State>,
        deadline: Option<Instant>,
        waits_for: Option<OpId>,
    ) {
        s.read_clock();
        if !s.arm() {
            return;
        }
        let due = s
            .machine
            .deadline(&s.ports)
            .unwrap_or(u64::MAX)
            .min(deadline.map_or(u64::MAX, |d| s.lane_time(d)));
        let until = due.min(s.now + LONGEST.as_nanos() as u64);
        if until <= s.now {
            return;
        }
        s.sleeps += 1;
        let number = s.sleeps;
        s.asleep = Some(Sleeper { until, number, waits_for });
        let wait = Duration::from_nanos(until - s.now);
        drop(s);
        self.at_doors(|d| d.sleep(wait));
        let mut s = self.lock();
        if s.asleep.is_some_and(|a| a.number == number) {
            s.asleep = None;
        } else {
            // Kicked, and nobody else who was is still to rise.
            s.kicked = s.kicked.saturating_sub(1);
            if s.kicked == 0 {
                self.at_doors(|d| d.forget_kicks());
            }
        }
    }

    pub(crate) fn is_asleep(&self, s: &State) -> bool {
        s.asleep.is_some()
    }

    /// Somebody awaits an operation: if nobody sleeps on the descriptors for them, the helper must.
    pub(crate) fn watch(&self, mut s: LaneGuard<'_, State>) {
        s.watched = true;
        s.arm_for_loop();
        if s.asleep.is_some() {
            return self.wake_sleeper(&mut s);
        }
        drop(s);
        self.at_doors(|d| d.alarm(Duration::ZERO));
    }

    /// For the user's own event loop: everything armed, or `false` because there is work, or was, and perhaps another thread did it.
    pub(crate) fn arm_for_user(&self) -> bool {
        let mut s = self.lock();
        self.at_doors(|d| d.forget_told());
        s.looped = !std::mem::take(&mut s.news) && s.arm();
        s.looped
    }

    /// The descriptors, while the lane is open.
    pub(crate) fn doors(&self) -> Option<Arc<Doors>> {
        self.doors.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Each of these is a system call: a lock and a share are nothing beside it.
    fn at_doors(&self, f: impl FnOnce(&Doors)) {
        if let Some(d) = self.doors() {
            f(&d);
        }
    }

    /// `true` in the process that opened it. `false` after a fork, in the child: rings, sockets and slabs are the parent's, the helper is
    /// not there, and the lock may be held by a thread that is not there either. A system call: not for the way of a message.
    pub(crate) fn is_at_home(&self) -> bool {
        self.home == std::process::id()
    }

    /// `Closed`, for operation `op`, where [`Lane::is_at_home`] is false.
    pub(crate) fn check_home(&self, op: &'static str) -> Result<()> {
        if self.is_at_home() {
            return Ok(());
        }
        let (home, here) = (self.home, std::process::id());
        let why = format!(
            "inherited by a fork: it is of process {home}, and this is {here}, which may open its own"
        );
        Err(Error::new(Kind::Closed, op, why))
    }

    /// Ends everything: operations, helper, ports. In a forked child nothing: what it inherited stays as it is until it ends.
    pub(crate) fn close(self: &Arc<Lane>) {
        if !self.is_at_home() {
            self.closed.store(true, Ordering::Relaxed);
            // The ports' ends would be the parent's.
            std::mem::forget(self.clone());
            return;
        }
        {
            let mut s = self.lock();
            s.read_clock();
            let (machine, mut io) = s.split();
            machine.close(&mut io);
            // Give the goodbyes a chance to leave; the ports drop what they could not send.
            for _ in 0..4 {
                s.poll();
            }
            // Counted: another that was kicked and has not risen yet takes only its own kick along.
            self.wake_sleeper(&mut s);
        }
        self.at_doors(|d| d.alarm(Duration::ZERO));
        let helper = self.helper.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(h) = helper.filter(|h| h.thread().id() != std::thread::current().id()) {
            let _ = h.join();
        }
        self.closed.store(true, Ordering::Relaxed);
        let mut s = self.lock();
        s.ports.clear();
        s.machine.forget_all();
        // Spares of other threads keep the lane, empty.
        s.pool = Pool::new(PoolConfig { max_bytes: 0, ..PoolConfig::default() });
        s.doors = None;
        drop(s);
        *self.doors.lock().unwrap_or_else(|e| e.into_inner()) = None;
    }

    /// `true` after [`Lane::close`].
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn closed() -> Error {
        Error::new(Kind::Closed, "endpoint", "the endpoint is closed")
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
