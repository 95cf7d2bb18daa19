//! One simulated process: a machine, its ports, and an application that sends, receives and keeps books.

use crate::run::{Book, Plan, Rng};
use kfab_core::mem::{Buffer, Pool, PoolConfig, WindowMem};
use kfab_core::spi::{Address, Port, Rights};
use kfab_core::{Error, Kind};
use kfab_proto::*;
use kfab_sim::World;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Wake, Waker};

/// What an operation of the application was for.
#[derive(Debug)]
pub(crate) enum Job {
    Send {
        id: u64,
        delivered: bool,
        len: usize,
    },
    /// `nth` of its kind to be begun. `mark`: when it ended.
    Recv {
        tagged: bool,
        nth: u64,
        mark: Arc<Mark>,
        /// Bytes of memory that it has, or will have.
        room: usize,
    },
    Read {
        at: usize,
        len: usize,
        owner: (u32, u32),
        told: Option<u64>,
        room: usize,
    },
    Write {
        told: Option<u64>,
        len: usize,
    },
    Notice,
}

impl Job {
    /// Bytes of the pool that it accounts for.
    fn room(&self) -> usize {
        match self {
            Job::Send { len, .. } | Job::Write { len, .. } => block(*len),
            Job::Recv { room, .. } | Job::Read { room, .. } => *room,
            Job::Notice => 0,
        }
    }
}

/// Bytes that a pool takes for a buffer of `len`.
fn block(len: usize) -> usize {
    len.next_power_of_two().max(256)
}

fn blocks(buffers: &[Buffer]) -> usize {
    buffers.iter().map(|b| block(b.len())).sum()
}

/// The moment at which something ends, told by a waker: the machine says what ended, not what ended first.
#[derive(Debug)]
pub(crate) struct Mark {
    clock: Arc<AtomicU64>,
    at: AtomicU64,
}

impl Wake for Mark {
    fn wake(self: Arc<Self>) {
        self.at.store(self.clock.fetch_add(1, Relaxed) + 1, Relaxed);
    }
}

pub(crate) struct Node {
    pub(crate) host: u32,
    pub(crate) life: u32,
    pub(crate) machine: Machine,
    pub(crate) ports: Vec<Box<dyn Port>>,
    pub(crate) pool: Pool,
    pub(crate) jobs: BTreeMap<OpId, Job>,
    pub(crate) peers: BTreeMap<u32, PeerId>,
    pub(crate) window: Option<(WindowId, WindowKey, WindowMem)>,
    pub(crate) sent: u64,
    /// It talks: so many messages at most, like the others.
    talk: Option<u64>,
    /// When the application sends again.
    pub(crate) next_burst: u64,
    /// Receives posted: untagged and tagged.
    pub(crate) posted: [usize; 2],
    /// Receives begun, of either kind.
    begun: [u64; 2],
    /// Counts ends.
    clock: Arc<AtomicU64>,
    /// Messages that the application keeps, and the bytes of each.
    held: Vec<(Outcome, usize)>,
    /// A notice is waited for.
    listens: bool,
    /// Fault rules in force.
    rules: Vec<FaultId>,
}

/// Bytes of every node's window: byte i is `i * 7 + host`.
pub(crate) const WINDOW: usize = 100_000;
/// Behind them a place for writes with a notice, one at a time, whose bytes are [`contents`].
const PLACE: usize = 40_000;
/// No message is longer.
const LONGEST: usize = 209_000;
/// Bytes in frames that a peer's messages come or go in together, and in hellos.
const FRAMES: usize = 64 << 10;

pub(crate) fn limits() -> Limits {
    let ms = std::time::Duration::from_millis;
    Limits {
        credits: 64,
        probe_after: ms(50),
        peer_timeout: ms(3000),
        reconnect: (ms(5), ms(100)),
        max_unacked_bytes: 256 << 10,
        ..Limits::default()
    }
}

fn credit_bytes(host: u32) -> u32 {
    1024 << (host % 3)
}

/// The contents of message `id`.
pub(crate) fn contents(id: u64, len: usize) -> Vec<u8> {
    let mut v: Vec<u8> = (0..len).map(|i| (id as usize * 131 + i * 7 + i / 251) as u8).collect();
    v[..8].copy_from_slice(&id.to_le_bytes());
    v
}

impl Node {
    pub(crate) fn new(world: &World, host: u32, life: u32, plan: &Plan, seed: u64) -> Node {
        let rails = plan.rails;
        let ports: Vec<_> = (0..rails).map(|r| world.port(host, r)).collect();
        // In every third run connections are closed when nothing has gone over them for a while, and made again.
        let idle_close = std::time::Duration::from_millis(if seed.is_multiple_of(3) { 20 } else { 600_000 });
        // Each host counts credit in its own way.
        let limits = Limits { idle_close, credit_bytes: credit_bytes(host), ..limits() };
        let mut machine =
            Machine::new(limits, seed ^ (u64::from(host) << 32) ^ u64::from(life) << 48 | 1, false);
        machine.set_address(&Address::new(ports.iter().flat_map(|p| p.ways()).collect()));
        let pool = Pool::new(PoolConfig { region_bytes: 1 << 20, max_bytes: 64 << 20, ..Default::default() });
        let mut n = Node {
            host,
            life,
            machine,
            ports,
            pool,
            jobs: BTreeMap::new(),
            peers: BTreeMap::new(),
            window: None,
            sent: 0,
            talk: plan.talk.then_some(plan.messages),
            next_burst: 0,
            posted: [0; 2],
            begun: [0; 2],
            clock: Arc::default(),
            held: Vec::new(),
            listens: false,
            rules: Vec::new(),
        };
        let bytes: Vec<u8> = (0..WINDOW).map(|i| (i * 7 + host as usize) as u8).collect();
        let memory = n.pool.alloc_window(WINDOW + PLACE).unwrap();
        memory.write(0, &bytes);
        let shared = WindowMemory::Shared(memory.clone());
        let (id, key) = n.with(1, |m, io| m.open_window(io, shared, Rights::READ | Rights::WRITE)).unwrap();
        n.window = Some((id, key, memory));
        n
    }

    pub(crate) fn with<R>(&mut self, now: u64, f: impl FnOnce(&mut Machine, &mut Io<'_>) -> R) -> R {
        let mut io = Io { ports: &mut self.ports, now: now + 1, pool: &self.pool };
        f(&mut self.machine, &mut io)
    }

    pub(crate) fn meet(&mut self, now: u64, host: u32, rails: u32) -> PeerId {
        // Some know a host by a part of its address only, and learn later that somebody who has called them is the same.
        let ways = if (self.host + host).is_multiple_of(2) { rails } else { 1 };
        let ways: Vec<String> = (0..ways).map(|r| format!("sim:{host}.{r}")).collect();
        let address: Address = ways.join(",").parse().unwrap();
        let id = self.with(now, |m, io| m.peer(io, &address)).unwrap();
        self.peers.insert(host, id);
        id
    }

    fn begin(&mut self, r: kfab_core::Result<Option<OpId>>, job: Job, book: &mut Book) {
        let done = |o: Option<OpId>| o.map_or(Started::Done(Outcome::Unit), Started::Pending);
        self.start(r.map(done), job, book);
    }

    fn start(&mut self, r: kfab_core::Result<Started>, job: Job, book: &mut Book) {
        match r {
            Ok(Started::Pending(op)) => {
                assert!(self.jobs.insert(op, job).is_none(), "an operation's name is used twice");
            }
            Ok(Started::Done(o)) => self.ended_now(job, o, book),
            Err(e) => self.ended(job, Err(e), book),
        }
    }

    /// One of a conversation of small messages: nothing about it is to be unusual.
    fn talks(&self, rng: &mut Rng) -> bool {
        self.talk.is_some() && rng.chance(0.95)
    }

    pub(crate) fn send(&mut self, now: u64, to: u32, rng: &mut Rng, book: &mut Book) {
        let talks = self.talks(rng);
        let len = match rng.below(10) {
            _ if talks => 8 + rng.below(33) as usize,
            0..=4 => 8 + rng.below(33) as usize,
            5..=7 => 41 + rng.below(5000) as usize,
            _ => 9000 + rng.below(200_000) as usize,
        };
        let (tagged, ordered) = (rng.chance(if talks { 0.3 } else { 0.5 }), !talks && rng.chance(0.3));
        let id = book.new_message((self.host, self.life), to, len, tagged, ordered);
        let bytes = contents(id, len);
        let options = SendOptions {
            tag: tagged.then_some(id & 3),
            ordered: ordered && !book.without_order,
            delivered: !talks && rng.chance(0.3),
        };
        let peer = self.peers[&to];
        let job = Job::Send { id, delivered: options.delivered, len };
        let payload = match !talks && rng.chance(0.5) {
            true => Payload::Buffer(self.pool.copy_from(&bytes).unwrap()),
            false => Payload::Bytes(&bytes),
        };
        let (shortly, in_slab) = (talks || rng.chance(0.5), matches!(payload, Payload::Buffer(_)));
        let r = self.with(now, |m, io| {
            if shortly && m.send_now(io, peer, &bytes, in_slab, &options) {
                return Ok(None);
            }
            match payload {
                Payload::Buffer(b) if shortly => {
                    let mut from = Some(b);
                    let promised = m.promise_now(io, peer, &mut from, &options);
                    promised.map_or_else(
                        || m.send(io, peer, Payload::Buffer(from.unwrap()), options),
                        |op| Ok(Some(op)),
                    )
                }
                payload => m.send(io, peer, payload, options),
            }
        });
        self.sent += 1;
        self.begin(r, job, book);
    }

    /// Keeps a few receives of either kind posted.
    pub(crate) fn keep_receiving(&mut self, now: u64, rng: &mut Rng, book: &mut Book) {
        for tagged in [false, true] {
            while self.posted[usize::from(tagged)] < if self.talk.is_some() { 1 } else { 3 } {
                self.receive(now, tagged, rng, book);
            }
        }
        // An owner that is slow to look: notices wait, and with them their senders' credits.
        if !self.listens && rng.chance(0.3) {
            self.listens = true;
            let window = self.window.as_ref().map(|w| w.0).unwrap();
            let r = self.machine.recv_notice(window);
            self.start(r, Job::Notice, book);
        }
    }

    /// Buffers for at least `len` bytes, unlike each other: single bytes, none, a few, many.
    fn vector(&self, len: usize, rng: &mut Rng) -> Vec<Buffer> {
        let mut lens = Vec::new();
        while lens.iter().sum::<usize>() < len {
            lens.push(match rng.below(8) {
                0..=1 => 1,
                2 => 0,
                3..=4 => 1 + rng.below(100) as usize,
                5 => 4096,
                6 => rng.below(len as u64) as usize,
                _ => len,
            });
        }
        lens.into_iter().map(|n| self.pool.alloc(n).unwrap()).collect()
    }

    /// Posts a receive, sometimes with a buffer or several, sometimes on the short way.
    fn receive(&mut self, now: u64, tagged: bool, rng: &mut Rng, book: &mut Book) {
        let tag = tagged.then_some((0, 3));
        let talks = self.talks(rng);
        let (want, shortly) = (Want { tag, from: None }, talks || rng.chance(0.5));
        let mut out = Direct {
            body: (!talks && rng.chance(0.3)).then(|| self.pool.alloc(300_000).unwrap()),
            ..Direct::EMPTY
        };
        self.posted[usize::from(tagged)] += 1;
        self.begun[usize::from(tagged)] += 1;
        let mark = Arc::new(Mark { clock: self.clock.clone(), at: AtomicU64::new(0) });
        let room = block(out.body.as_ref().map_or(LONGEST, Buffer::len));
        let mut job = Job::Recv { tagged, nth: self.begun[usize::from(tagged)], mark, room };
        if !talks && rng.chance(0.25) {
            let into = self.vector(300_000, rng);
            if let Job::Recv { room, .. } = &mut job {
                *room = blocks(&into);
            }
            let r = self.with(now, |m, io| m.recv_all(io, want, into));
            return self.start_marked(r, job, book);
        }
        let r = self.with(now, |m, io| {
            if shortly && m.recv_now(io, &want, &mut out) {
                return Ok(Started::Done(Outcome::Message(message(&mut out))));
            }
            let posted = if shortly { m.post_recv(io, &want, &mut out.body) } else { None };
            posted.map_or_else(|| m.recv(io, want, out.body.take()), |op| Ok(Started::Pending(op)))
        });
        // One with somebody to wake is not for the short way.
        if shortly { self.start(r, job, book) } else { self.start_marked(r, job, book) }
    }

    fn start_marked(&mut self, r: kfab_core::Result<Started>, job: Job, book: &mut Book) {
        if let (Ok(Started::Pending(op)), Job::Recv { mark, .. }) = (&r, &job) {
            self.machine.set_waker(*op, &Waker::from(mark.clone()));
        }
        self.start(r, job, book);
    }

    /// The receives under way, of one kind or of both.
    fn receives(&self, kind: Option<bool>) -> Vec<OpId> {
        let fits = |j: &Job| matches!(j, Job::Recv { tagged, .. } if kind.is_none_or(|k| k == *tagged));
        self.jobs.iter().filter(|(_, j)| fits(j)).map(|(op, _)| *op).collect()
    }

    /// Waits a little for one of the receives, on the short way.
    fn wait_shortly(&mut self, now: u64, rng: &mut Rng, book: &mut Book) {
        let receives = self.receives(None);
        if !receives.is_empty() {
            let op = receives[rng.below(receives.len() as u64) as usize];
            let _ = self.wait_on(now, op, rng.below(8), book);
        }
    }

    /// What the last round found; `Here`: the receive has got its message.
    fn wait_on(&mut self, now: u64, op: OpId, rounds: u64, book: &mut Book) -> Polled {
        let mut last = Polled::Nothing;
        for _ in 0..rounds {
            if self.machine.has_ended(op) {
                return Polled::Busy;
            }
            let mut out = Direct::EMPTY;
            last = self.with(now, |m, io| m.poll_for(io, op, &mut out));
            match last {
                Polled::Busy => {}
                Polled::Nothing | Polled::Due => return last,
                Polled::Here => {
                    let job = self.jobs.remove(&op).unwrap();
                    self.ended_now(job, Outcome::Message(message(&mut out)), book);
                    return last;
                }
            }
        }
        last
    }

    /// A row of receives with answers in between, and nothing else, for as long as something comes.
    fn converse(&mut self, now: u64, most: u64, rng: &mut Rng, book: &mut Book) {
        for _ in 0..80 {
            let tagged = rng.chance(0.3);
            let came = match self.receives(Some(tagged)).first() {
                Some(op) => self.wait_on(now, *op, 4, book),
                None => {
                    let before = self.jobs.len();
                    self.receive(now, tagged, rng, book);
                    if self.jobs.len() == before { Polled::Here } else { Polled::Busy }
                }
            };
            match came {
                Polled::Nothing => return,
                Polled::Due => drop(self.with(now, |m, io| m.poll(io))),
                Polled::Here if rng.chance(0.5) && self.sent < most => {
                    let others: Vec<u32> = self.peers.keys().copied().collect();
                    self.send(now, others[rng.below(others.len() as u64) as usize], rng, book);
                }
                Polled::Here | Polled::Busy => {}
            }
        }
    }

    pub(crate) fn one_sided(
        &mut self,
        now: u64,
        owner: (u32, u32),
        key: &WindowKey,
        rng: &mut Rng,
        book: &mut Book,
    ) {
        let peer = self.peers[&owner.0];
        // Writes stay in the second half, each writing what is there already; so reads know what to expect.
        let at = rng.below(WINDOW as u64 - 1) as usize;
        let len = 1 + rng.below((WINDOW - at) as u64) as usize;
        if rng.chance(0.5) {
            let bytes: Vec<u8> = (at..at + len).map(|i| (i * 7 + owner.0 as usize) as u8).collect();
            let r = self.with(now, |m, io| m.write(io, peer, key, at as u64, bytes.as_slice().into(), None));
            self.begin(r, Job::Write { told: None, len }, book);
        } else {
            let told = rng.chance(0.5).then(|| book.new_notice((self.host, self.life), owner, len, false));
            let (into, several) = (self.pool.alloc(len).unwrap(), rng.chance(0.5));
            let mut parts = self.vector(len, rng);
            let over = parts.iter().map(Buffer::len).sum::<usize>() - len;
            parts.last_mut().map(|last| last.truncate(last.len() - over)).unwrap();
            let room = block(len).max(blocks(&parts));
            let r = self.with(now, |m, io| match several {
                true => m.read(io, peer, key, at as u64, parts, told),
                false => m.read(io, peer, key, at as u64, into, told),
            });
            self.start(r, Job::Read { at, len, owner, told, room }, book);
        }
        if book.place_is_free(owner) {
            let len = 8 + rng.below(PLACE as u64 - 8) as usize;
            let id = book.new_notice((self.host, self.life), owner, len, true);
            let bytes = contents(id, len);
            let r = self
                .with(now, |m, io| m.write(io, peer, key, WINDOW as u64, bytes.as_slice().into(), Some(id)));
            self.begin(r, Job::Write { told: Some(id), len }, book);
        }
    }

    fn noticed(&mut self, n: &Notice, book: &mut Book) {
        let (len, write) = book.noticed((self.host, self.life), n.value);
        assert_eq!((n.bytes, n.access == Rights::WRITE), (len as u64, write), "{n:?}");
        if write {
            let mut bytes = vec![0; len];
            self.window.as_ref().unwrap().2.read(WINDOW, &mut bytes);
            assert!(bytes == contents(n.value, len), "told of write {} before it was there", n.value);
        }
    }

    pub(crate) fn add_rule(&mut self, now: u64, rule: FaultRule) {
        let id = self.with(now, |m, io| m.add_fault(io, rule)).unwrap();
        self.rules.push(id);
    }

    pub(crate) fn without_rules(&mut self, now: u64) {
        for id in std::mem::take(&mut self.rules) {
            self.with(now, |m, _| m.remove_fault(id)).expect("a rule that was added");
        }
    }

    /// An operation of whatever kind is cancelled, given a deadline, or let go; those that wait for nobody's sending rather than receives.
    pub(crate) fn disturb(&mut self, now: u64, rng: &mut Rng, book: &mut Book) {
        let waits = |j: &Job| matches!(j, Job::Recv { .. } | Job::Notice);
        // What has ended meanwhile, as it was cancelled above all, is not let go as if it went on.
        let live = self.jobs.iter().filter(|(op, _)| !self.machine.has_ended(**op));
        let (receives, others): (Vec<_>, Vec<_>) = live.partition(|(_, j)| waits(j));
        let ops = if others.is_empty() || rng.chance(0.2) { receives } else { others };
        let ops: Vec<OpId> = ops.into_iter().map(|(op, _)| *op).collect();
        if ops.is_empty() {
            return;
        }
        let op = ops[rng.below(ops.len() as u64) as usize];
        (book.disturbed, book.withdrawn) = (true, true);
        match rng.below(3) {
            0 => drop(self.with(now, |m, io| m.cancel(io, op, Kind::Canceled))),
            1 => self.machine.set_deadline(op, now + 1 + rng.below(3_000_000)),
            _ => {
                self.with(now, |m, io| m.detach(io, op));
                match self.jobs.remove(&op).unwrap() {
                    Job::Send { id, .. } => book.let_go(id),
                    Job::Read { told, .. } | Job::Write { told, .. } => book.access_ended(told, true),
                    Job::Recv { tagged, .. } => self.posted[usize::from(tagged)] -= 1,
                    Job::Notice => self.listens = false,
                }
            }
        }
    }

    pub(crate) fn poll(&mut self, now: u64, rng: &mut Rng, book: &mut Book) {
        match self.talk {
            Some(most) => {
                self.converse(now, most, rng, book);
                if rng.chance(0.7) {
                    return self.reap(book);
                }
            }
            _ if rng.chance(0.5) => self.wait_shortly(now, rng, book),
            _ => {}
        }
        self.with(now, |m, io| m.poll(io));
        self.reap(book);
    }

    pub(crate) fn reap(&mut self, book: &mut Book) {
        let ops: Vec<OpId> = self.jobs.keys().copied().collect();
        for op in ops {
            if let Some(r) = self.machine.take(op) {
                let job = self.jobs.remove(&op).unwrap();
                assert!(self.machine.take(op).is_none(), "an operation ended twice");
                self.ended(job, r, book);
            }
        }
    }

    /// It ends at this moment.
    fn ended_now(&mut self, job: Job, o: Outcome, book: &mut Book) {
        if let Job::Recv { mark, .. } = &job {
            mark.wake_by_ref();
        }
        self.ended(job, Ok(o), book);
    }

    fn ended(&mut self, job: Job, r: kfab_core::Result<Outcome>, book: &mut Book) {
        match (job, r) {
            (Job::Send { id, delivered, .. }, Ok(Outcome::Unit)) => book.sent(id, delivered),
            (Job::Send { id, .. }, Err(e)) => book.send_failed(id, &e),
            (Job::Recv { tagged, nth, mark, room }, Ok(Outcome::Message(m))) => {
                self.posted[usize::from(tagged)] -= 1;
                book.received((self.host, self.life), (nth, mark.at.load(Relaxed)), m.bytes());
                self.hold(Outcome::Message(m), room);
            }
            (Job::Recv { tagged, nth, mark, room }, Ok(Outcome::Parts(p))) => {
                self.posted[usize::from(tagged)] -= 1;
                book.received(
                    (self.host, self.life),
                    (nth, mark.at.load(Relaxed)),
                    &p.slices().collect::<Vec<_>>().concat(),
                );
                self.hold(Outcome::Parts(p), room);
            }
            (Job::Recv { tagged, .. }, Err(e)) => {
                self.posted[usize::from(tagged)] -= 1;
                assert!(
                    matches!(e.kind(), Kind::Canceled | Kind::TimedOut | Kind::PeerLost | Kind::Protocol),
                    "a receive failed: {e:?}"
                );
                book.disturbed |= e.kind() == Kind::Canceled;
            }
            (Job::Read { at, len, owner, told, .. }, Ok(Outcome::Buffer(b))) => {
                check_window(&b, at, len, owner.0);
                book.access_ended(told, true);
            }
            (Job::Read { at, len, owner, told, .. }, Ok(Outcome::Buffers(v))) => {
                check_window(&v.iter().map(|b| &b[..]).collect::<Vec<_>>().concat(), at, len, owner.0);
                book.access_ended(told, true);
            }
            (Job::Write { told, .. }, Ok(Outcome::Unit)) => book.access_ended(told, true),
            (Job::Read { told, .. } | Job::Write { told, .. }, Err(e)) => {
                book.access_ended(told, false);
                book.one_sided_failed(&e);
            }
            (Job::Notice, r) => {
                self.listens = false;
                match r {
                    Ok(Outcome::Notice(n)) => self.noticed(&n, book),
                    Err(e) if matches!(e.kind(), Kind::Canceled | Kind::TimedOut) => {}
                    other => panic!("a wait for a notice ended with {other:?}"),
                }
            }
            (j, o) => panic!("{j:?} ended with {o:?}"),
        }
    }

    /// A slow application: keeps some messages a while.
    fn hold(&mut self, message: Outcome, room: usize) {
        self.held.push((message, room));
        if self.held.len() > 8 {
            self.held.clear();
        }
    }

    /// A word to a peer, with which all credit goes back that is owed.
    pub(crate) fn say(&mut self, now: u64, to: u32, book: &mut Book) {
        let id = book.new_message((self.host, self.life), to, 8, false, false);
        let (peer, bytes) = (self.peers[&to], contents(id, 8));
        let options = SendOptions { delivered: true, ..SendOptions::default() };
        let r = self.with(now, |m, io| m.send(io, peer, Payload::Bytes(&bytes), options));
        self.begin(r, Job::Send { id, delivered: true, len: 8 }, book);
    }

    /// What is in use is accounted for: the window, what operations under way have, what the application keeps; by each host what credit
    /// allows for messages that wait here, also from its earlier `lives`, and for those of ours that may have to be sent again. Credit
    /// counts bytes, and a block may be twice as large.
    pub(crate) fn check_memory(&self, lives: &[u32]) -> Result<(), String> {
        let allowed = |host: u32| 2 * limits().credits as usize * credit_bytes(host) as usize;
        let of = |(host, life)| allowed(self.host) * (1 + life as usize) + allowed(host) + FRAMES;
        let theirs: usize = (0..).zip(lives.iter().copied()).map(of).sum();
        let jobs: usize = self.jobs.values().map(Job::room).sum();
        let held: usize = self.held.iter().map(|(_, room)| room).sum();
        let (in_use, bound) = (self.pool.stats().in_use, block(WINDOW + PLACE) + jobs + held + theirs);
        if in_use <= bound {
            return Ok(());
        }
        let parts = format!("{jobs} of operations, {held} held, {theirs} by credit");
        Err(format!("host {}: {in_use} bytes are in use, more than {bound}: {parts}", self.host))
    }

    /// After everything: nothing may be left.
    pub(crate) fn check_empty(&mut self, now: u64, credits: bool) -> Result<(), String> {
        self.held.clear();
        let s = self.machine.stats();
        let lost = |what: &str, n: usize| {
            if n == 0 { Ok(()) } else { Err(format!("host {}: {n} {what} left: {s:?}", self.host)) }
        };
        lost("operations of the application", self.jobs.len())?;
        lost("operations", s.ops)?;
        lost("deferred messages", s.deferred)?;
        lost("unexpected messages", s.unexpected)?;
        for (host, id) in &self.peers {
            // Where rails break, the last word about credit may be lost with one: it comes with the next traffic.
            let Some(i) = self.machine.peer_info(*id).filter(|i| i.up && credits) else { continue };
            // Up to a quarter comes back only with the next traffic: no message is spent on it.
            if i.credits <= i.credit_limit * 3 / 4 {
                return Err(format!(
                    "host {}: {} of {} credits to {host}",
                    self.host, i.credits, i.credit_limit
                ));
            }
        }
        let (id, ..) = self.window.take().unwrap();
        self.with(now, |m, io| {
            m.close_window(io, id);
            m.close(io);
        });
        self.ports.clear();
        self.machine = Machine::new(limits(), 1, false);
        let p = self.pool.stats();
        if p.in_use != 0 {
            Err(format!("host {}: {} bytes of memory left", self.host, p.in_use))
        } else {
            Ok(())
        }
    }
}

fn check_window(b: &[u8], at: usize, len: usize, host: u32) {
    assert_eq!(b.len(), len);
    for (i, x) in b.iter().enumerate() {
        assert_eq!(*x, ((at + i) * 7 + host as usize) as u8, "byte {} of host {host}'s window", at + i);
    }
}

/// A message that came by the short way, as one that came by the long.
fn message(out: &mut Direct) -> Message {
    let data = match out.body.take() {
        None => Data::Inline(out.small.inline),
        Some(buffer) => Data::Buffer { buffer, len: out.small.body_len },
    };
    Message { from: out.from, tag: out.tag, data, nth: out.nth }
}

/// What an error may be while peers crash.
pub(crate) fn is_loss(e: &Error) -> bool {
    matches!(
        e.kind(),
        Kind::PeerLost | Kind::Unreachable | Kind::AccessDenied | Kind::Protocol | Kind::Canceled
    )
}
