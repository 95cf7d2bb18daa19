//! A run: hosts, traffic, faults, time; and the book that knows what must be true.

use crate::node::{Job, Node, contents, is_loss};
use kfab_core::spi::Delivery;
use kfab_core::{Error, Fate, Kind};
use kfab_proto::{FaultAction, FaultRule, WindowKey};
use kfab_sim::{Faults, Path, World, WorldConfig};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    Lossy,
    Cuts,
    Crashes,
    Everything,
    /// Fault rules of the API, at one node or another.
    Rules,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) delivery: Delivery,
    pub(crate) rails: u32,
    pub(crate) hosts: u32,
    pub(crate) rma: bool,
    pub(crate) trouble: Trouble,
    /// Messages per host.
    pub(crate) messages: u64,
    /// How likely a node disturbs one of its own operations, at each step.
    pub(crate) disturbance: f64,
    /// Mostly small messages, received in a row.
    pub(crate) talk: bool,
}

pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 33);
        x.wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (x >> 29)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub(crate) fn chance(&mut self, p: f64) -> bool {
        (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < p
    }
}

#[derive(Debug, Default)]
struct Entry {
    from: (u32, u32),
    to: u32,
    len: usize,
    ended: bool,
    failed: bool,
    /// The sender was told that the receiver has not got it, and never will.
    unsent: bool,
    /// Nobody watches what becomes of it.
    let_go: bool,
    delivered: bool,
    tagged: bool,
    ordered: bool,
    /// By which lives of the receiver it was received, and when: by the how manieth receive, as the how manieth of all (0: not known).
    received: Vec<(u32, (u64, u64))>,
}

/// A one-sided access with a notice.
#[derive(Debug)]
struct Told {
    from: (u32, u32),
    owner: (u32, u32),
    len: usize,
    write: bool,
    /// `true`: well.
    ended: Option<bool>,
    told: bool,
}

/// What was sent, how each send ended, who received what.
#[derive(Default)]
pub(crate) struct Book {
    entries: Vec<Entry>,
    notices: Vec<Told>,
    pub(crate) crashed: Vec<(u32, u32)>,
    pub(crate) disturbed: bool,
    /// Receives were given up, and their messages to others.
    pub(crate) withdrawn: bool,
    /// What the book takes for ordered is not sent so.
    pub(crate) without_order: bool,
    losses_allowed: bool,
}

impl Book {
    pub(crate) fn new_message(
        &mut self,
        from: (u32, u32),
        to: u32,
        len: usize,
        tagged: bool,
        ordered: bool,
    ) -> u64 {
        self.entries.push(Entry { from, to, len, tagged, ordered, ..Default::default() });
        self.entries.len() as u64 - 1
    }

    fn end(&mut self, id: u64) -> &mut Entry {
        let e = &mut self.entries[id as usize];
        assert!(!e.ended, "send {id} ended twice");
        e.ended = true;
        e
    }

    pub(crate) fn sent(&mut self, id: u64, delivered: bool) {
        self.end(id).delivered = delivered;
    }

    pub(crate) fn send_failed(&mut self, id: u64, e: &Error) {
        assert!(self.may_fail(e), "send {id} failed: {e:?}");
        let e = matches!(e.fate(), Fate::NotSent | Fate::Refused);
        let entry = self.end(id);
        (entry.failed, entry.unsent) = (true, e);
        assert!(
            !e || entry.received.is_empty(),
            "send {id} was received, and its sender told that not: {entry:?}"
        );
    }

    fn may_fail(&self, e: &Error) -> bool {
        let early = matches!(e.kind(), Kind::Canceled | Kind::TimedOut);
        (self.losses_allowed && is_loss(e)) || (self.disturbed && early)
    }

    pub(crate) fn let_go(&mut self, id: u64) {
        self.end(id).let_go = true;
    }

    /// It may be that its receiver gave it up, and nobody was there to be told.
    fn may_be_lost(&self, e: &Entry) -> bool {
        e.failed || (e.let_go && self.disturbed)
    }

    pub(crate) fn one_sided_failed(&mut self, e: &Error) {
        assert!(self.may_fail(e), "one-sided access failed: {e:?}");
    }

    pub(crate) fn received(&mut self, by: (u32, u32), when: (u64, u64), bytes: &[u8]) {
        let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let e = self.entries.get_mut(id as usize).unwrap_or_else(|| panic!("message {id} was never sent"));
        assert_eq!(e.to, by.0, "message {id} went to the wrong host");
        assert_eq!(bytes.len(), e.len, "message {id} has another length");
        assert_eq!(bytes, contents(id, e.len), "message {id} has other contents");
        assert!(!e.unsent, "message {id} is received, and its sender was told that not");
        assert!(e.received.iter().all(|(life, _)| *life != by.1), "message {id} was delivered twice");
        e.received.push((by.1, when));
    }

    pub(crate) fn new_notice(&mut self, from: (u32, u32), owner: (u32, u32), len: usize, write: bool) -> u64 {
        self.notices.push(Told { from, owner, len, write, ended: None, told: false });
        self.notices.len() as u64 - 1
    }

    /// `true` if every write into an owner's place has ended well and was told.
    pub(crate) fn place_is_free(&self, owner: (u32, u32)) -> bool {
        let mut writes = self.notices.iter().filter(|t| t.write && t.owner == owner);
        writes.all(|t| t.told && t.ended == Some(true))
    }

    pub(crate) fn access_ended(&mut self, id: Option<u64>, well: bool) {
        let Some(id) = id else { return };
        let t = &mut self.notices[id as usize];
        assert!(t.ended.replace(well).is_none(), "access {id} ended twice");
    }

    pub(crate) fn noticed(&mut self, by: (u32, u32), id: u64) -> (usize, bool) {
        let t = self.notices.get_mut(id as usize).unwrap_or_else(|| panic!("{id} was never told"));
        assert_eq!(t.owner, by, "notice {id} went to another");
        assert!(!std::mem::replace(&mut t.told, true), "notice {id} was told twice");
        (t.len, t.write)
    }

    fn all_told(&self) -> bool {
        self.notices.iter().all(|t| t.told || t.ended == Some(false))
    }

    fn all_received(&self) -> bool {
        self.entries.iter().all(|e| self.may_be_lost(e) || !e.received.is_empty())
    }

    fn check(&self) -> Result<(), String> {
        for (id, e) in self.entries.iter().enumerate() {
            let sender_died = self.crashed.contains(&e.from);
            if !e.ended && !sender_died {
                return Err(format!("send {id} never ended: {e:?}"));
            }
            if e.received.len() > 1 {
                return Err(format!("message {id} was delivered to two lives of its receiver"));
            }
            let receiver_died = self.crashed.iter().any(|(h, _)| *h == e.to);
            if e.delivered && e.received.is_empty() && !receiver_died && !sender_died {
                return Err(format!("message {id} was reported delivered and never was: {e:?}"));
            }
            if !self.losses_allowed && !self.may_be_lost(e) && e.received.is_empty() {
                return Err(format!("message {id} was lost: {e:?}"));
            }
        }
        for (id, t) in self.notices.iter().enumerate() {
            if t.ended.is_none() && !self.crashed.contains(&t.from) {
                return Err(format!("access {id} never ended: {t:?}"));
            }
            if !t.told && !self.losses_allowed && t.ended != Some(false) {
                return Err(format!("notice {id} was lost: {t:?}"));
            }
        }
        Ok(())
    }
}

impl Book {
    /// Nothing that was sent to a peer before an ordered message is received after it. Of messages with a tag and without each have
    /// receives of their own, so they are compared among themselves.
    ///
    /// A whole message ends its receive when it is delivered. A large one has found its receive then, and ends it later: in a `steady` run,
    /// where no receive waits a second time, receives are found in the order in which they were begun.
    fn check_order(&self, steady: bool) -> Result<(), String> {
        let mut before: BTreeMap<_, Vec<(usize, (u64, u64))>> = BTreeMap::new();
        for (id, e) in self.entries.iter().enumerate() {
            for (life, (nth, end)) in e.received.iter().filter(|(_, (_, end))| *end > 0) {
                let before = before.entry((e.from, e.to, *life, e.tagged)).or_default();
                let late = before.iter().filter(|_| e.ordered).find(|(b, (n, at))| {
                    let whole = self.entries[*b].len <= WHOLE;
                    at > end && (whole || steady && n > nth)
                });
                if let Some((late, when)) = late {
                    let late = (late, &self.entries[*late]);
                    return Err(format!(
                        "message {id}, which is ordered, came before {when:?} {late:?}: {e:?}"
                    ));
                }
                before.push((id, (*nth, *end)));
            }
        }
        Ok(())
    }
}

/// All of a run's state.
struct Run {
    world: World,
    nodes: Vec<Option<Node>>,
    lives: Vec<u32>,
    rng: Rng,
    book: Book,
    plan: Plan,
    seed: u64,
}

const MS: u64 = 1_000_000;
/// No message up to this length is promised first and fetched later (`Limits::fetch_min`).
const WHOLE: usize = 2048;

pub(crate) fn run(seed: u64, plan: &Plan, trace: bool) -> Result<(), String> {
    let mut r = Run::new(seed, plan, trace);
    let out = r.play(false);
    if trace {
        r.world.trace().iter().for_each(|l| eprintln!("{l}"));
        for n in r.nodes.iter_mut().flatten() {
            eprintln!("host {}: {:?}", n.host, n.machine);
            for (op, j) in &n.jobs {
                let text: String = n.machine.describe(*op).chars().take(300).collect();
                eprintln!("  {j:?}: {text}");
            }
            for (h, p) in &n.peers {
                eprintln!("  to {h}: {:?}", n.machine.peer_info(*p));
            }
        }
    }
    out
}

/// The same, but nothing is sent in order, and the book believes so.
pub(crate) fn run_without_order(seed: u64, plan: &Plan) -> Result<(), String> {
    let mut r = Run::new(seed, plan, false);
    r.book.without_order = true;
    r.play(false)
}

/// The same, but one message is taken from the book's view of the world.
pub(crate) fn run_with_a_lost_message(seed: u64, plan: &Plan) -> Result<(), String> {
    Run::new(seed, plan, false).play(true)
}

impl Run {
    fn new(seed: u64, plan: &Plan, trace: bool) -> Run {
        let mut c = WorldConfig::new(plan.delivery);
        c.rma = plan.rma;
        c.trace = if trace { crate::number("KFAB_TRACE").unwrap_or(300) as usize } else { 0 };
        c.sees_rail_death = seed.is_multiple_of(2);
        let world = World::new(seed, c);
        let new = |h| Some(Node::new(&world, h, 0, plan, seed));
        let nodes = (0..plan.hosts).map(new).collect();
        let losses_allowed = matches!(plan.trouble, Trouble::Crashes | Trouble::Everything);
        Run {
            nodes,
            lives: vec![0; plan.hosts as usize],
            rng: Rng(seed.wrapping_mul(0x9e37_79b9) ^ 0x5eed),
            book: Book { losses_allowed, ..Default::default() },
            plan: plan.clone(),
            seed,
            world,
        }
    }

    fn play(&mut self, lose_one: bool) -> Result<(), String> {
        let hosts = self.plan.hosts;
        for a in 0..hosts {
            for b in (0..hosts).filter(|b| *b != a) {
                self.nodes[a as usize].as_mut().unwrap().meet(0, b, self.plan.rails);
            }
        }
        let trouble_ends = 1500 * MS;
        let mut next_trouble = 20 * MS;
        let mut steps = 0u64;
        loop {
            let now = self.world.now();
            let strikes = now >= next_trouble && now < trouble_ends;
            self.act(now, strikes);
            if strikes {
                self.trouble();
                next_trouble = now + self.rng.below(150 * MS);
            } else if now >= trouble_ends && next_trouble != u64::MAX {
                self.heal();
                next_trouble = u64::MAX;
            }
            self.settle(now)?;
            if next_trouble == u64::MAX && self.quiet() {
                break;
            }
            steps += 1;
            if now > 60_000 * MS || steps > 3_000_000 {
                return Err(format!("not quiet after {} ms and {steps} steps", now / MS));
            }
            self.pass_time(now);
        }
        self.finish(lose_one)
    }

    /// What the applications do at this moment. If trouble `strikes` next, it is to meet traffic.
    fn act(&mut self, now: u64, strikes: bool) {
        let keys: BTreeMap<u32, (u32, WindowKey)> = self
            .nodes
            .iter()
            .flatten()
            .filter_map(|n| Some((n.host, (n.life, n.window.as_ref()?.1.clone()))))
            .collect();
        let (rng, book, messages) = (&mut self.rng, &mut self.book, self.plan.messages);
        let disturbance = match self.plan.trouble {
            Trouble::Everything => 0.002,
            _ => self.plan.disturbance,
        };
        for n in self.nodes.iter_mut().flatten() {
            n.keep_receiving(now, rng, book);
            if n.sent < messages && (now >= n.next_burst || strikes && rng.chance(0.5)) {
                // Close together, and all over the time that trouble has.
                let most = if rng.chance(0.6) { MS } else { 150 * MS };
                n.next_burst = now + rng.below(most);
                let others: Vec<u32> = n.peers.keys().copied().collect();
                let to = others[rng.below(others.len() as u64) as usize];
                for _ in 0..=rng.below(12) {
                    n.send(now, to, rng, book);
                }
                if rng.chance(0.2)
                    && let Some((life, key)) = keys.get(&to)
                {
                    n.one_sided(now, (to, *life), key, rng, book);
                }
                // What has just begun is disturbed most.
                if disturbance > 0.0 && rng.chance(0.5) {
                    n.disturb(now, rng, book);
                }
            }
            if rng.chance(disturbance) {
                n.disturb(now, rng, book);
            }
        }
    }

    fn settle(&mut self, now: u64) -> Result<(), String> {
        let bound = 64 * self.plan.hosts as usize;
        for n in self.nodes.iter_mut().flatten() {
            n.poll(now, &mut self.rng, &mut self.book);
            // A message that was given back waits in the memory of its receive.
            if !self.book.withdrawn {
                n.check_memory(&self.lives)?;
            }
            let s = n.machine.stats();
            if s.unexpected > bound {
                return Err(format!(
                    "host {} holds {} unexpected messages; credits allow {bound}",
                    n.host, s.unexpected
                ));
            }
        }
        Ok(())
    }

    fn pass_time(&mut self, now: u64) {
        let timers = self.nodes.iter().flatten().filter_map(|n| n.machine.deadline(&n.ports));
        let due = timers.chain(self.world.next_event()).min().unwrap_or(now + MS);
        // Applications act at least every 50 us of virtual time; a due timer must be reached, not approached.
        let step = due.saturating_sub(now).clamp(1, 50_000);
        self.world.advance(step);
    }

    fn quiet(&mut self) -> bool {
        let idle = |n: &mut Node| {
            let done = n.sent >= self.plan.messages;
            let only_receives = n.jobs.values().all(|j| matches!(j, Job::Recv { .. } | Job::Notice));
            let s = n.machine.stats();
            done && only_receives && s.unacked == 0 && s.deferred == 0 && s.unexpected == 0
        };
        self.nodes.iter_mut().all(|n| n.as_mut().is_some_and(idle))
            && (self.book.losses_allowed || (self.book.all_received() && self.book.all_told()))
    }

    fn trouble(&mut self) {
        let (a, b) = (
            self.rng.below(u64::from(self.plan.hosts)) as u32,
            self.rng.below(u64::from(self.plan.hosts)) as u32,
        );
        let kind = match self.plan.trouble {
            Trouble::None => return,
            Trouble::Lossy => 0,
            Trouble::Cuts => 1 + self.rng.below(4),
            Trouble::Crashes => 5 + self.rng.below(2),
            Trouble::Everything => self.rng.below(7),
            Trouble::Rules => return self.rule(a as usize),
        };
        let r = &mut self.rng;
        match kind {
            0 => {
                let f = Faults {
                    loss: r.below(30) as f64 / 100.0,
                    duplicate: r.below(20) as f64 / 100.0,
                    reorder: r.below(40) as f64 / 100.0,
                    reorder_ns: r.below(3 * MS),
                    delay_max_ns: 2_000 + r.below(MS),
                    ..Faults::default()
                };
                self.world.set_faults(Path::rail(r.below(u64::from(self.plan.rails)) as u32), f);
            }
            1 => self.world.cut(Path::one_way(a, b)),
            2 => self.world.rail_down(r.below(u64::from(self.plan.rails)) as u32),
            3 => {
                self.world.heal_all();
                (0..self.plan.rails).for_each(|r| self.world.rail_up(r));
            }
            4 => self.world.stall_for(a, r.below(300 * MS)),
            _ => self.crash_or_restart(a),
        }
    }

    /// A node gets a fault rule, or loses those it has.
    fn rule(&mut self, host: usize) {
        let (now, rng) = (self.world.now(), &mut self.rng);
        let Some(n) = &mut self.nodes[host] else { return };
        if rng.chance(0.4) {
            return n.without_rules(now);
        }
        let (action, chance) = match rng.below(5) {
            0 => (FaultAction::Drop, 0.1),
            1 => (FaultAction::Delay { ns: rng.below(5 * MS) }, 0.3),
            2 => (FaultAction::Duplicate, 0.3),
            3 => (FaultAction::Cut, 1.0),
            _ => (FaultAction::Stall, 1.0),
        };
        let port = rng.chance(0.5).then(|| rng.below(u64::from(self.plan.rails)) as usize);
        n.add_rule(now, FaultRule { peer: None, port, action, chance, seed: rng.next() });
    }

    fn crash_or_restart(&mut self, host: u32) {
        let h = host as usize;
        if let Some(n) = self.nodes[h].take() {
            self.book.crashed.push((host, n.life));
            self.world.crash(host);
            drop(n);
        } else {
            self.revive(host);
        }
    }

    fn revive(&mut self, host: u32) {
        let h = host as usize;
        self.world.restart(host);
        self.lives[h] += 1;
        let now = self.world.now();
        let mut n = Node::new(&self.world, host, self.lives[h], &self.plan, self.seed);
        for b in (0..self.plan.hosts).filter(|b| *b != host) {
            n.meet(now, b, self.plan.rails);
        }
        self.nodes[h] = Some(n);
    }

    fn heal(&mut self) {
        self.world.clear_faults();
        self.world.heal_all();
        (0..self.plan.rails).for_each(|r| self.world.rail_up(r));
        let now = self.world.now();
        self.nodes.iter_mut().flatten().for_each(|n| n.without_rules(now));
        for h in 0..self.plan.hosts {
            self.world.resume(h);
            if self.nodes[h as usize].is_none() {
                self.revive(h);
            }
        }
    }

    /// A word of each to each, after all trouble: it carries the credit that is owed, and may find out that the other was restarted.
    fn say_goodbye(&mut self) -> Result<(), String> {
        let begun = self.world.now();
        for n in self.nodes.iter_mut().flatten() {
            let others: Vec<u32> = n.peers.keys().copied().collect();
            others.into_iter().for_each(|to| n.say(begun, to, &mut self.book));
        }
        while !self.quiet() {
            let now = self.world.now();
            if now > begun + 30_000 * MS {
                return Err("the last words are not heard".into());
            }
            for n in self.nodes.iter_mut().flatten() {
                n.keep_receiving(now, &mut self.rng, &mut self.book);
            }
            self.settle(now)?;
            self.world.advance(MS / 4);
        }
        Ok(())
    }

    fn finish(&mut self, lose_one: bool) -> Result<(), String> {
        if lose_one {
            self.book.entries[0].received.clear();
        }
        self.say_goodbye()?;
        // Late acknowledgements and credits may still be on their way.
        for _ in 0..400 {
            let now = self.world.now();
            for n in self.nodes.iter_mut().flatten() {
                n.keep_receiving(now, &mut self.rng, &mut self.book);
            }
            self.settle(now)?;
            self.world.advance(MS);
        }
        self.book.check()?;
        if !self.book.withdrawn {
            let mut nodes = self.nodes.iter_mut().flatten();
            let steady = nodes.all(|n| n.life == 0 && n.machine.stats().totals.failovers == 0);
            self.book.check_order(steady)?;
        }
        let v = self.world.violations();
        if !v.is_empty() {
            return Err(format!("the machine broke the port's contract: {v:?}"));
        }
        let now = self.world.now();
        for n in self.nodes.iter_mut().flatten() {
            let ops: Vec<_> = n.jobs.keys().copied().collect();
            for op in ops {
                n.with(now, |m, io| m.cancel(io, op, Kind::Canceled));
            }
            n.reap(&mut self.book);
        }
        for n in self.nodes.iter_mut().flatten() {
            n.check_empty(now, true)?;
        }
        Ok(())
    }
}
