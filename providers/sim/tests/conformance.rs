//! The conformance suite on the simulator: every delivery promise, with and without one-sided access, virtual and real time.

use kfab_conformance::{Maker, Rig, Victim};
use kfab_core::Result;
use kfab_core::spi::{Delivery, Port, PortConfig, Provider, Way};
use kfab_sim::{Clock, Sim, World, WorldConfig};

struct SimRig {
    sim: Sim,
}

impl Rig for SimRig {
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        self.sim.open(config)
    }

    fn idle(&self) {
        let world = self.sim.world();
        if self.real_time() {
            std::thread::sleep(std::time::Duration::from_micros(50));
        } else if !world.step() {
            world.advance(1_000_000);
        }
    }

    fn real_time(&self) -> bool {
        self.sim.world().clock() == Clock::Real
    }

    fn malformed(&self) -> Vec<String> {
        ["", "x", "1", "1.", ".1", "1.2.3", "-1.0", "+1.0", "1.0 ", "4294967296.0"]
            .map(str::to_owned)
            .to_vec()
    }

    fn nobody(&self) -> Option<Way> {
        Some(Way::new("sim", "77.0"))
    }

    fn listen_at(&self, way: &Way) -> Option<String> {
        Some(way.rest.clone())
    }

    fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
        let world = self.sim.world().clone();
        let port = match world.open(&PortConfig::default()) {
            Ok(port) => port,
            Err(e) => return Some(Err(std::io::Error::other(e))),
        };
        let way = port.ways().remove(0);
        let host = way.rest.split('.').next().and_then(|host| host.parse().ok()).expect("HOST.PORT");
        let mut port = Some(port);
        Some(Ok(Victim::new(way, move || {
            world.crash(host);
            drop(port.take());
        })))
    }
}

fn rig(config: WorldConfig) -> Maker {
    Box::new(move || Box::new(SimRig { sim: Sim::new(&World::new(11, config.clone())) }))
}

fn main() {
    let clean = |d| WorldConfig { sees_death: true, ..WorldConfig::new(d) };
    let [datagram, connection, process] =
        [Delivery::Datagram, Delivery::Connection, Delivery::Process].map(clean);
    kfab_conformance::main(vec![
        ("datagram", rig(datagram.clone())),
        ("connection", rig(connection.clone())),
        ("process", rig(process.clone())),
        ("datagram-rma", rig(datagram.clone().with_rma())),
        ("connection-rma", rig(connection.clone().with_rma())),
        ("process-rma", rig(process.clone().with_rma())),
        ("tiny-queues", rig(WorldConfig { queue_frames: 6, batch: 2, late_take: 1.0, ..connection.clone() })),
        ("datagram-real", rig(datagram.real_time())),
        ("connection-real", rig(connection.real_time())),
        ("process-rma-real", rig(process.with_rma().real_time())),
    ]);
}
