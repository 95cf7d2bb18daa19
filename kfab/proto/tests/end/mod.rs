//! One host of a simulated world: a machine, its ports and its memory. Used by the tests beside this folder.

use kfab_core::mem::{Pool, PoolConfig};
use kfab_core::spi::{Address, Port};
use kfab_proto::{Io, Limits, Machine};
use kfab_sim::World;

pub(crate) struct End {
    pub(crate) machine: Machine,
    pub(crate) ports: Vec<Box<dyn Port>>,
    pub(crate) pool: Pool,
}

impl End {
    /// A host with a port at each of these rails, in this order; its peers are told all of them.
    pub(crate) fn new(world: &World, host: u32, rails: &[u32], limits: Limits) -> End {
        End::known_as(u64::from(host) + 1, world, host, rails, limits)
    }

    /// The same, with an identity of its own: a host that was restarted has another.
    pub(crate) fn known_as(identity: u64, world: &World, host: u32, rails: &[u32], limits: Limits) -> End {
        let ports: Vec<_> = rails.iter().map(|r| world.port(host, *r)).collect();
        let mut machine = Machine::new(limits, identity, false);
        machine.set_address(&Address::new(ports.iter().flat_map(|p| p.ways()).collect()));
        End { machine, ports, pool: Pool::new(PoolConfig::default()) }
    }

    pub(crate) fn with<R>(&mut self, now: u64, f: impl FnOnce(&mut Machine, &mut Io<'_>) -> R) -> R {
        f(&mut self.machine, &mut Io { ports: &mut self.ports, now: now + 1, pool: &self.pool })
    }
}
