//! The state of a world and its agenda: what is due when. All under one lock; `flow`, `life` and `rma` are its other rooms.

use crate::config::{Clock, WorldConfig};
use crate::half::Half;
use crate::net::{Net, Place};
use crate::rma::Exposed;
use crate::rng::Rng;
use crate::trace::Trace;
use crate::wake::Wake;
use crate::wire::Flight;
use kfab_core::Result;
use kfab_core::auth::FabricKey;
use kfab_core::spi::{Caps, Event};
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Instant;

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum What {
    Arrive(Box<Flight>),
    /// A dialing end asks again, or gives up.
    Redial(u64),
    /// A closing end says goodbye again, or gives up.
    Refin(u64),
    /// A connection's frames did not get through for too long.
    Stuck {
        conn: u64,
        epoch: u64,
    },
    /// What waited for a path can go on.
    Release(u64),
    /// A late take ends.
    Taken(u64),
    /// An end learns that its peer is dead.
    Death(u64),
    /// A stalled host goes on, if this is the latest stall.
    Resume {
        host: u32,
        stall: u64,
    },
}

#[derive(Debug)]
struct Due {
    at: u64,
    seq: u64,
    what: What,
}

impl PartialEq for Due {
    fn eq(&self, o: &Due) -> bool {
        (self.at, self.seq) == (o.at, o.seq)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, o: &Due) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Due {
    fn cmp(&self, o: &Due) -> Ordering {
        (self.at, self.seq).cmp(&(o.at, o.seq))
    }
}

#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) crashed: bool,
    pub(crate) stalled: bool,
    /// Counts stalls.
    pub(crate) stall: u64,
}

/// A port as the world sees it.
#[derive(Debug)]
pub(crate) struct PortState {
    pub(crate) place: Place,
    pub(crate) caps: Caps,
    pub(crate) key: Option<FabricKey>,
    pub(crate) max_conns: usize,
    pub(crate) connect_timeout_ns: u64,
    pub(crate) conns: usize,
    /// What goes out first: ends of takes and of one-sided operations, room.
    pub(crate) urgent: VecDeque<Event>,
    /// Connections with something to report.
    pub(crate) ready: VecDeque<u64>,
    /// Connections with frames that wait for a flush.
    pub(crate) unflushed: Vec<u64>,
    pub(crate) exposed: BTreeMap<u64, Exposed>,
    pub(crate) wake: Wake,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: WorldConfig,
    pub(crate) rng: Rng,
    pub(crate) now: u64,
    /// Real time: the latest time a caller said, and when.
    said: Option<(u64, Instant)>,
    seq: u64,
    agenda: BinaryHeap<Reverse<Due>>,
    pub(crate) ports: BTreeMap<u64, PortState>,
    pub(crate) places: BTreeMap<Place, u64>,
    pub(crate) hosts: BTreeMap<u32, Host>,
    pub(crate) halves: BTreeMap<u64, Half>,
    /// The accepting end of each dialing end.
    pub(crate) accepted: BTreeMap<u64, u64>,
    pub(crate) net: Net,
    pub(crate) trace: Trace,
    pub(crate) next_id: u64,
}

impl Inner {
    pub(crate) fn new(seed: u64, config: WorldConfig) -> Inner {
        Inner {
            net: Net::new(config.faults.clone()),
            trace: Trace::new(config.trace),
            config,
            rng: Rng::new(seed),
            // Never 0, which some callers keep for "not yet".
            now: 1,
            said: None,
            seq: 0,
            agenda: BinaryHeap::new(),
            ports: BTreeMap::new(),
            places: BTreeMap::new(),
            hosts: BTreeMap::new(),
            halves: BTreeMap::new(),
            accepted: BTreeMap::new(),
            next_id: 1,
        }
    }

    pub(crate) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    // ---- time ----

    pub(crate) fn schedule(&mut self, at: u64, what: What) {
        self.seq += 1;
        self.agenda.push(Reverse(Due { at, seq: self.seq, what }));
        if self.config.clock == Clock::Real {
            let in_ns = at.saturating_sub(self.real_now());
            self.ports.values_mut().for_each(|p| p.wake.at(at, in_ns));
        }
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.agenda.peek().map(|Reverse(d)| d.at)
    }

    /// Does everything due until `until` and moves the clock there.
    pub(crate) fn run_until(&mut self, until: u64) {
        while let Some(Reverse(d)) = self.agenda.peek()
            && d.at <= until
        {
            let Some(Reverse(d)) = self.agenda.pop() else { break };
            self.now = self.now.max(d.at);
            self.happen(d.what);
        }
        self.now = self.now.max(until);
    }

    /// A poll says what time it is.
    pub(crate) fn tick(&mut self, now_ns: u64) {
        let mut until = self.now;
        if self.config.clock == Clock::Real && now_ns >= self.now {
            self.said = Some((now_ns, Instant::now()));
            until = now_ns;
        }
        self.run_until(until);
    }

    /// The time now, as the callers' clock would say it.
    pub(crate) fn real_now(&self) -> u64 {
        let Some((said, at)) = self.said else { return self.now };
        let since = u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX);
        said.saturating_add(since).max(self.now)
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Arrive(f) => self.arrive(*f),
            What::Redial(conn) => self.redial(conn),
            What::Refin(conn) => self.refin(conn),
            What::Stuck { conn, epoch } => self.stuck(conn, epoch),
            What::Release(conn) => self.release(conn),
            What::Taken(conn) => self.finish_take(conn),
            What::Death(conn) => self.told_of_death(conn),
            What::Resume { host, stall } => {
                if self.host(host).stall == stall {
                    self.set_stalled(host, false);
                }
            }
        }
    }

    /// Lets go of the memory of a port's frames under way: they carry copies from now on.
    pub(crate) fn settle_flights_of(&mut self, place: Place) {
        let mut all = std::mem::take(&mut self.agenda).into_vec();
        for Reverse(d) in &mut all {
            if let What::Arrive(f) = &mut d.what
                && f.from == place
                && let crate::wire::Msg::Data(p) = &mut f.msg
            {
                p.load.settle();
            }
        }
        self.agenda = all.into();
    }

    // ---- hosts and ports ----

    pub(crate) fn host(&mut self, host: u32) -> &mut Host {
        self.hosts.entry(host).or_default()
    }

    pub(crate) fn host_is_dead(&self, host: u32) -> bool {
        self.hosts.get(&host).is_some_and(|h| h.crashed)
    }

    pub(crate) fn host_is_stalled(&self, host: u32) -> bool {
        self.hosts.get(&host).is_some_and(|h| h.stalled)
    }

    pub(crate) fn set_stalled(&mut self, host: u32, stalled: bool) {
        self.host(host).stalled = stalled;
        let here = self.places.iter().filter(|(p, _)| p.host == host && !stalled);
        let ports: Vec<u64> = here.map(|(_, id)| *id).collect();
        for id in ports {
            if self.has_work(id) {
                self.wake(id);
            }
        }
    }

    pub(crate) fn add_port(
        &mut self,
        place: Place,
        caps: Caps,
        key: Option<FabricKey>,
        max_conns: usize,
        connect_timeout_ns: u64,
    ) -> Result<u64> {
        let id = self.fresh_id();
        self.host(place.host);
        let state = PortState {
            place,
            caps,
            key,
            max_conns,
            connect_timeout_ns,
            conns: 0,
            urgent: VecDeque::new(),
            ready: VecDeque::new(),
            unflushed: Vec::new(),
            exposed: BTreeMap::new(),
            wake: Wake::new()?,
        };
        self.ports.insert(id, state);
        self.places.insert(place, id);
        Ok(id)
    }

    /// Wakes a sleeping port.
    pub(crate) fn wake(&mut self, port: u64) {
        let now = self.now;
        if let Some(p) = self.ports.get_mut(&port)
            && !self.hosts.get(&p.place.host).is_some_and(|h| h.stalled)
        {
            p.wake.at(now, 0);
        }
    }

    pub(crate) fn has_work(&self, port: u64) -> bool {
        let Some(p) = self.ports.get(&port) else { return false };
        let idle = p.urgent.is_empty() && p.ready.is_empty() && p.unflushed.is_empty();
        !idle && !self.host_is_stalled(p.place.host)
    }

    /// Puts an event out of the stream's order at the head of what a port reports.
    pub(crate) fn report(&mut self, port: u64, e: Event) {
        if let Some(p) = self.ports.get_mut(&port) {
            p.urgent.push_back(e);
            self.wake(port);
        }
    }

    /// Lists a connection that has something to report.
    pub(crate) fn make_ready(&mut self, conn: u64) {
        if let Some(h) = self.halves.get_mut(&conn)
            && h.has_work()
            && !h.in_ready
        {
            h.in_ready = true;
            let port = h.port;
            if let Some(p) = self.ports.get_mut(&port) {
                p.ready.push_back(conn);
            }
            self.wake(port);
        }
    }

    pub(crate) fn note(&mut self, what: &'static str, from: Place, to: Place, conn: u64, number: u64) {
        self.trace.note(self.now, what, from, to, conn, number);
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.trace.violation(self.now, what);
    }
}
