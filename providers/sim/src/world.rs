//! The handle to a world: opens ports, moves time, makes faults.

use crate::config::{Clock, Faults, Path, WorldConfig};
use crate::net::Place;
use crate::port::{SimPort, parse_place};
use crate::state::{Inner, What};
use crate::trace::WorldStats;
use kfab_core::spi::{Caps, Port, PortConfig};
use kfab_core::{Error, Kind, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// The first host given to ports that did not ask for one.
const FIRST_OWN_HOST: u32 = 1 << 31;

/// A fabric in one process. A run is a pure function of the seed, the configuration and the calls made; clones are the same world.
///
/// Ports and the handle may be used from any threads (one lock), but only a single thread gives a repeatable run.
#[derive(Clone, Debug)]
pub struct World(Arc<Mutex<Inner>>);

impl World {
    /// An empty world at time 1.
    pub fn new(seed: u64, config: WorldConfig) -> World {
        World(Arc::new(Mutex::new(Inner::new(seed, config))))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic of another user cannot leave the tables half changed in a way that matters to a test that already failed.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    // ---- ports ----

    /// Opens a port on a host and rail.
    ///
    /// # Panics
    /// If a live port is there already; use [`World::open`] for an error.
    pub fn port(&self, host: u32, rail: u32) -> Box<dyn Port> {
        let config = PortConfig { listen: Some(format!("{host}.{rail}")), ..PortConfig::default() };
        self.open(&config).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Opens a port: key, limits and place from `config`. `Kind::AddressInUse` if a live port is there,
    /// `Kind::Unavailable` while its host is crashed.
    pub fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        let caps = self.lock().config.caps();
        self.open_with(config, caps)
    }

    /// As [`World::open`], with other sizes, weight, rank or node; the delivery promise, `rma` and `sees_death` are the world's.
    pub fn open_with(&self, config: &PortConfig, caps: Caps) -> Result<Box<dyn Port>> {
        let mut w = self.lock();
        let place = match &config.listen {
            Some(text) => parse_place("open", text)?,
            None => w.own_place(),
        };
        if w.host_is_dead(place.host) {
            return Err(Error::new(Kind::Unavailable, "open", format!("host {} is crashed", place.host)));
        }
        if w.places.contains_key(&place) {
            let text = format!("sim:{}.{} has a port already", place.host, place.rail);
            return Err(Error::new(Kind::AddressInUse, "open", text));
        }
        let of_world = w.config.caps();
        let caps = Caps {
            delivery: of_world.delivery,
            rma: of_world.rma,
            sees_death: of_world.sees_death,
            max_body: caps.max_body.min(of_world.max_body),
            ..caps
        };
        let timeout = u64::try_from(config.connect_timeout.as_nanos()).unwrap_or(u64::MAX);
        let id = w.add_port(place, caps.clone(), config.key.clone(), config.max_conns, timeout)?;
        let fd = w.ports[&id].wake.fd.clone();
        drop(w);
        Ok(Box::new(SimPort { world: self.clone(), id, place, caps, fd }))
    }

    // ---- time ----

    /// Whose time it is.
    pub fn clock(&self) -> Clock {
        self.lock().config.clock
    }

    /// The world's time, ns. Starts at 1.
    pub fn now(&self) -> u64 {
        self.lock().real_now()
    }

    /// Moves virtual time on by `ns`; everything due meanwhile happens, in order.
    pub fn advance(&self, ns: u64) {
        let mut w = self.lock();
        let until = w.now.saturating_add(ns);
        w.run_until(until);
    }

    /// When the next thing in the network is due (absolute, ns); `None` if nothing is under way. Ports may have events even so.
    pub fn next_event(&self) -> Option<u64> {
        self.lock().next_due()
    }

    /// Moves virtual time to [`World::next_event`]; `false` if there is none.
    pub fn step(&self) -> bool {
        let mut w = self.lock();
        let Some(at) = w.next_due() else { return false };
        let at = at.max(w.now);
        w.run_until(at);
        true
    }

    /// From now on a late `take` takes up to this long ([`WorldConfig::late_ns`]).
    pub fn set_late_ns(&self, ns: u64) {
        self.lock().config.late_ns = ns;
    }

    // ---- links ----

    /// From now on links that match `path` behave like this. Of several rules that match, the one set last wins.
    pub fn set_faults(&self, path: Path, faults: Faults) {
        self.lock().net.set_faults(path, faults);
    }

    /// Forgets all rules of [`World::set_faults`]; the configuration's faults apply again.
    pub fn clear_faults(&self) {
        self.lock().net.clear_faults();
    }

    /// Nothing passes the links that match `path` any more, in the direction it names. What is under way is lost
    /// (with [`Delivery::Connection`](kfab_core::spi::Delivery::Connection): waits, and breaks the connection after a while).
    pub fn cut(&self, path: Path) {
        self.lock().net.cut(path);
    }

    /// Undoes one [`World::cut`].
    pub fn heal(&self, path: Path) {
        let mut w = self.lock();
        w.net.heal(path);
        w.release_held();
    }

    /// Cuts two hosts off from each other, both directions, all rails.
    pub fn cut_pair(&self, a: u32, b: u32) {
        self.cut(Path::one_way(a, b));
        self.cut(Path::one_way(b, a));
    }

    /// Undoes [`World::cut_pair`].
    pub fn heal_pair(&self, a: u32, b: u32) {
        self.heal(Path::one_way(a, b));
        self.heal(Path::one_way(b, a));
    }

    /// Cuts each host of one side off from each of the other.
    pub fn partition(&self, side: &[u32], other: &[u32]) {
        side.iter().for_each(|a| other.iter().for_each(|b| self.cut_pair(*a, *b)));
    }

    /// Undoes all cuts.
    pub fn heal_all(&self) {
        let mut w = self.lock();
        w.net.heal_all();
        w.release_held();
    }

    /// A rail dies: nothing passes ports on it; with [`WorldConfig::sees_rail_death`] its connections are `Broken` at once.
    pub fn rail_down(&self, rail: u32) {
        self.lock().rail_down(rail);
    }

    /// The rail works again, for new connections (and for those that were not told of its death).
    pub fn rail_up(&self, rail: u32) {
        let mut w = self.lock();
        w.net.set_rail(rail, true);
        w.release_held();
    }

    // ---- hosts ----

    /// The host dies at once, with all its ports: their handles report nothing any more and accept everything into nowhere
    /// (drop them). Peers learn of it as [`WorldConfig::sees_death`] says.
    pub fn crash(&self, host: u32) {
        self.lock().crash(host);
    }

    /// The host can open ports again, at the same places. Peers that still hold old connections are told with the next frame they send.
    pub fn restart(&self, host: u32) {
        self.lock().restart(host);
    }

    /// Polls of the host's ports return nothing until [`World::resume`]; the network still fills its queues.
    pub fn stall(&self, host: u32) {
        let mut w = self.lock();
        w.host(host).stall += 1;
        w.set_stalled(host, true);
    }

    /// [`World::stall`] for `ns`.
    pub fn stall_for(&self, host: u32, ns: u64) {
        self.stall(host);
        let mut w = self.lock();
        let (at, stall) = (w.now.saturating_add(ns), w.host(host).stall);
        w.schedule(at, What::Resume { host, stall });
    }

    /// Ends a stall.
    pub fn resume(&self, host: u32) {
        self.lock().set_stalled(host, false);
    }

    // ---- what happened ----

    /// Counters since the beginning.
    pub fn stats(&self) -> WorldStats {
        self.lock().trace.stats
    }

    /// A digest of everything that happened so far and when: two runs with the same fingerprint were the same run.
    pub fn fingerprint(&self) -> u64 {
        self.lock().trace.fingerprint()
    }

    /// The latest entries of the log, oldest first, if [`WorldConfig::trace`] keeps any: print it for a failing seed.
    pub fn trace(&self) -> Vec<String> {
        self.lock().trace.lines()
    }

    /// What callers of the ports did against the contract (posting before `Up`, taking what does not wait, too large a body);
    /// the first 64. A test of the protocol asserts that this is empty.
    pub fn violations(&self) -> Vec<String> {
        self.lock().trace.violations.clone()
    }

    /// Connections that have not ended, counted at each end.
    pub fn open_ends(&self) -> usize {
        self.lock().halves.len()
    }
}

impl Inner {
    fn own_place(&mut self) -> Place {
        let mut host = FIRST_OWN_HOST;
        while self.hosts.contains_key(&host) {
            host += 1;
        }
        Place { host, rail: 0 }
    }

    pub(crate) fn arm(&mut self, port: u64) -> bool {
        let now = self.real_now();
        let real = self.config.clock == Clock::Real;
        let due = self.next_due().filter(|_| real);
        if self.has_work(port) || due.is_some_and(|d| d <= now) {
            return false;
        }
        if let Some(p) = self.ports.get_mut(&port) {
            p.wake.arm();
            if let Some(d) = due {
                p.wake.at(d, d - now);
            }
        }
        true
    }
}
