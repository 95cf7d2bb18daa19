//! The provider: opens ports in one shared world.

use crate::port::SCHEME;
use crate::world::World;
use kfab_core::Result;
use kfab_core::spi::{Device, Port, PortConfig, Provider, Unavailable};

/// Opens ports in one world. [`PortConfig::listen`] is `HOST.RAIL`; without it each port is a host of its own on rail 0.
#[derive(Clone, Debug)]
pub struct Sim {
    world: World,
}

impl Sim {
    /// A provider for this world.
    pub fn new(world: &World) -> Sim {
        Sim { world: world.clone() }
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }
}

impl Provider for Sim {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn probe(&self) -> std::result::Result<Vec<Device>, Unavailable> {
        let caps = self.world.lock().config.caps();
        let detail = format!("simulated fabric, {:?} delivery, {:?} time", caps.delivery, self.world.clock());
        Ok(vec![Device { scheme: SCHEME, name: "world".to_owned(), detail, caps, left_out: None }])
    }

    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        self.world.open(config)
    }
}
