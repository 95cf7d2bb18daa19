//! The server: services on lanes.

mod clients;
mod desk;
mod floor;
mod inbox;
mod lane;
mod out;
mod request;
mod service;
mod stats;

pub(crate) use clients::Clients;
pub use desk::DeskCounts;
#[cfg(test)]
pub(crate) use desk::Ticket;
pub(crate) use desk::{Arrival, Desk, Post, Run};
pub use request::{Bulk, DEPTH, PIECE, Request};
pub use service::Service;
pub use stats::{JobStats, ServiceStats};

use super::faults::Faults;
use super::method::PORTALS;
use inbox::Inbox;
use kfab::{Endpoint, EndpointConfig, Fabric, Progress};
use lane::Lane;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a server may hold, and for how long.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Clients known at a time (default 4096); more are told to come back.
    pub clients: usize,
    /// Calls that a client may have under way (default 256).
    pub slots: u16,
    /// Bytes of replies kept for a client in case it asks again (default 8 MiB); above that, its new calls are told to come back.
    pub cache_bytes: usize,
    /// Calls that may wait on a lane (default 4096); more are told to come back.
    pub queue: usize,
    /// The same for the high-priority class (default 256).
    pub queue_high: usize,
    /// Handlers at work on a lane at a time (default 1024).
    pub running: usize,
    /// How soon a call that was sent back may come again (default 1 ms).
    pub retry_after: Duration,
    /// A client not heard for this long is forgotten, its calls are dropped (default 60 s).
    pub linger: Duration,
    /// How far back the estimate of the service time looks (default 600 s, as Lustre's at_history).
    pub history: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            clients: 4096,
            slots: 256,
            cache_bytes: 8 << 20,
            queue: 4096,
            queue_high: 256,
            running: 1024,
            retry_after: Duration::from_millis(1),
            linger: Duration::from_secs(60),
            history: Duration::from_secs(600),
        }
    }
}

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// One lane for each: where it listens, its partition, its limits, and how it waits while there is nothing to do. Their `progress`
    /// is not used: a lane polls itself.
    pub lanes: Vec<EndpointConfig>,
    /// Bounds.
    pub limits: ServerLimits,
    /// What befalls packets on their way out (default nothing).
    pub faults: Faults,
}

impl Default for ServerConfig {
    /// One lane, anywhere.
    fn default() -> Self {
        ServerConfig {
            lanes: vec![EndpointConfig::default()],
            limits: ServerLimits::default(),
            faults: Faults::default(),
        }
    }
}

/// The services of a server, found by portal.
pub(crate) struct Registry {
    services: Vec<Service>,
    by_portal: [Option<usize>; PORTALS],
}

/// What can be seen of a lane from outside.
#[derive(Debug)]
pub(crate) struct LaneView {
    number: usize,
    inbox: Arc<Inbox>,
    tallies: Vec<Mutex<ServiceStats>>,
    counts: Mutex<DeskCounts>,
}

struct LaneHandle {
    endpoint: Arc<Endpoint>,
    view: Arc<LaneView>,
    thread: Option<JoinHandle<()>>,
}

/// A running server: one thread for each lane. Dropping it ends the lanes and drops the handlers at work; clients see the server
/// as lost.
pub struct Server {
    lanes: Vec<LaneHandle>,
    clients: Arc<Clients>,
}

impl Server {
    /// Opens the lanes' endpoints and serves. Two services on one portal are `InvalidArgument`.
    pub fn start(fabric: &Fabric, config: ServerConfig, services: Vec<Service>) -> kfab::Result<Server> {
        let mut by_portal = [None; PORTALS];
        for (at, service) in services.iter().enumerate() {
            if by_portal[usize::from(service.portal)].replace(at).is_some() {
                let what = format!("two services on portal {}", service.portal);
                return Err(kfab::Error::new(kfab::Kind::InvalidArgument, "server", what));
            }
        }
        let registry = Arc::new(Registry { services, by_portal });
        let clients = Arc::new(Clients::new(random()?, config.limits.clone()));
        let mut server = Server { lanes: Vec::new(), clients };
        let start = Instant::now();
        for (number, endpoint) in config.lanes.iter().enumerate() {
            let lane = server.lane(fabric, number, endpoint, &config, &registry, start)?;
            server.lanes.push(lane);
        }
        Ok(server)
    }

    fn lane(
        &self,
        fabric: &Fabric,
        number: usize,
        endpoint: &EndpointConfig,
        config: &ServerConfig,
        registry: &Arc<Registry>,
        start: Instant,
    ) -> kfab::Result<LaneHandle> {
        let (partition, wait) = (endpoint.partition.clone(), endpoint.wait);
        let endpoint = fabric.open(EndpointConfig { progress: Progress::Inline, ..endpoint.clone() })?;
        let endpoint = Arc::new(endpoint);
        let os = |what: &str, e| kfab::Error::os("server", what, e);
        let inbox =
            Arc::new(Inbox::new().map_err(|e| os("eventfd (is the fd limit reached? ulimit -n)", e))?);
        let tallies = registry.services.iter().map(|s| Mutex::new(ServiceStats::new(&s.name, s.portal)));
        let view = Arc::new(LaneView { number, inbox, tallies: tallies.collect(), counts: Mutex::default() });
        let (registry, clients, config) = (registry.clone(), self.clients.clone(), config.clone());
        let (e, v) = (endpoint.clone(), view.clone());
        let run = move || {
            if let Some(p) = &partition {
                let placed = p.bind_current_thread("rpc lane");
                if !placed.is_met() {
                    tracing::warn!(target: "lnet", "{placed}");
                }
            }
            Lane::new(e, &registry, clients, v, &config, wait, start).run();
        };
        let thread = std::thread::Builder::new().name(format!("rpc-lane-{number}")).spawn(run);
        Ok(LaneHandle { endpoint, view, thread: Some(thread.map_err(|e| os("starting a lane", e))?) })
    }

    /// The kfab address of each lane: what a book of names has for this server's NIDs.
    pub fn addresses(&self) -> Vec<String> {
        self.lanes.iter().map(|l| l.endpoint.address().to_string()).collect()
    }

    /// Another one after every start.
    pub fn incarnation(&self) -> u64 {
        self.clients.incarnation >> 16
    }

    /// What each service has done, all lanes together.
    pub fn stats(&self) -> Vec<ServiceStats> {
        let mut all: Vec<ServiceStats> = Vec::new();
        for lane in &self.lanes {
            for (at, tally) in lane.view.tallies.iter().enumerate() {
                let tally = tally.lock().unwrap_or_else(|e| e.into_inner());
                match all.get_mut(at) {
                    Some(sum) => sum.add(&tally),
                    None => all.push(tally.clone()),
                }
            }
        }
        all
    }

    /// What the protocol met, all lanes together; a few milliseconds old.
    pub fn counts(&self) -> ServerCounts {
        let (clients, cached_bytes) = self.clients.counts();
        let mut desk = DeskCounts::default();
        for lane in &self.lanes {
            let c = *lane.view.counts.lock().unwrap_or_else(|e| e.into_inner());
            desk.answered_again += c.answered_again;
            desk.still_running += c.still_running;
            desk.stale += c.stale;
            desk.retry_after += c.retry_after;
            desk.damaged += c.damaged;
            desk.strangers += c.strangers;
        }
        ServerCounts { clients, cached_bytes, desk }
    }

    /// The lanes' endpoints: their memory, peers and rails.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.lanes.iter().map(|l| &*l.endpoint)
    }
}

/// What a server holds and has met.
#[derive(Clone, Copy, Debug)]
pub struct ServerCounts {
    /// Clients known.
    pub clients: usize,
    /// Bytes of replies kept for them.
    pub cached_bytes: usize,
    /// Counts of all lanes.
    pub desk: DeskCounts,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|l| l.view.inbox.stop());
        for thread in self.lanes.iter_mut().filter_map(|l| l.thread.take()) {
            // A lane that panicked has said so already.
            let _ = thread.join();
        }
    }
}

/// Random bits from the system.
pub(crate) fn random() -> kfab::Result<u64> {
    let mut b = [0; 8];
    rustix::rand::getrandom(&mut b, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| kfab::Error::os("rpc", "random numbers", e))?;
    Ok(u64::from_ne_bytes(b))
}
