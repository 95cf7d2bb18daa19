//! The shared-memory provider (scheme `shm`): the processes of one host and one user, at the speed of a cache line.
//!
//! A port listens on an abstract Unix socket; a way is `NAME@BOOT` (see `name`). A connection is a sealed memfd with two
//! rings ([`kfab_core::ring`]), handed over that socket, plus the peer's eventfd to wake it and its pidfd to see it die. All
//! of it are descriptors and mappings: nothing has a name in a file system, so a killed process leaves nothing behind and a
//! new one may take its name at once.
//!
//! Who is let in: processes of the same user id (SO_PEERCRED), and with a fabric key those that prove to have it. What a
//! peer can do: it writes into the segment of its own connection (checked, an error there is `Down { Hostile }` for that
//! connection) and into slabs of windows it was given the right to write. A right to one window maps the slab it lies in, so
//! windows of one slab are kept apart by agreement, not by the processor; the same user could use ptrace as well.
//!
//! The rooms: `port` (the contract), `conns` (the table), `greet` (from socket to connection), `link` (a connection that is
//! up), `sleep` (who is looked at, who rings), `rma` (one-sided access), `wire` and `ctl` (control messages), `mem` and `sys`
//! (all that is `unsafe`).

mod conns;
mod ctl;
mod fuzz;
mod greet;
mod link;
mod mem;
mod name;
mod port;
mod regions;
mod rma;
mod sleep;
mod sys;
mod wire;

#[doc(hidden)]
pub use fuzz::{fuzz_message, fuzz_ring};

use kfab_core::spi::{Caps, Delivery, Device, Port, PortConfig, Provider, ProviderLimit, Unavailable};
use kfab_core::{Error, Kind, Result};

/// The scheme of this provider's ways.
pub const SCHEME: &str = "shm";

/// The largest body of one frame: a quarter of a ring's data.
pub(crate) const MAX_BODY: usize = 64 << 10;
/// Messages up to this size are copied through the ring; larger ones are fetched from the sender's slab.
const EAGER_MAX: usize = 8 << 10;
/// The one device.
const DEVICE: &str = "memfd";

/// The shared-memory provider.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shm;

fn caps() -> Caps {
    Caps {
        delivery: Delivery::Process,
        max_body: MAX_BODY,
        eager_max: EAGER_MAX,
        fetch_min: 0,
        fragment: MAX_BODY,
        rma: true,
        zero_copy: true,
        sees_death: true,
        weight: 100_000,
        rank: 0,
        node: None,
    }
}

/// Everything that bounds a port here, by name.
fn limits() -> Vec<ProviderLimit> {
    let n = |name, value: usize, unit, meaning| ProviderLimit::new(name, value as u64, unit, meaning);
    vec![
        n("max_body", MAX_BODY, "bytes", "of one frame"),
        n(
            "eager_max",
            EAGER_MAX,
            "bytes",
            "of a message that goes through the ring; larger ones are fetched",
        ),
        n(
            "segment_bytes",
            mem::SEGMENT_BYTES,
            "bytes",
            "address space of a connection; pages are taken when touched",
        ),
        n("descriptors", 3, "descriptors", "of a connection"),
        n(
            "max_windows",
            mem::MAX_SLOTS as usize,
            "windows",
            "open on a port; beyond, opening fails with Limit",
        ),
        n("max_maps", mem::MAX_MAPS, "regions", "of one peer mapped; beyond, the longest unused is unmapped"),
        n(
            "max_waiting",
            link::MAX_WAITING,
            "operations",
            "of a connection that wait for memory to be mapped",
        ),
        n("max_region", rma::MAX_REGION, "bytes", "of a peer's region that is mapped"),
        n(
            "backlog",
            ctl::BACKLOG as usize,
            "connections",
            "that wait to be accepted; beyond, dials are repeated",
        ),
        n("max_name", name::MAX_NAME, "bytes", "of the name in an address"),
        n("revoke_us", rma::PATIENCE.as_micros() as usize, "us", "a closing window waits for a peer in it"),
    ]
}

impl Provider for Shm {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn probe(&self) -> std::result::Result<Vec<Device>, Unavailable> {
        let boot = name::boot().map_err(|e| Unavailable { reason: e.to_string() })?;
        kfab_core::sys::sealed_memfd("kfab-probe", 4096, true)
            .map_err(|e| Unavailable { reason: format!("sealed memory files cannot be made here: {e}") })?;
        let barrier = if kfab_core::sys::has_heavy_barrier() { "membarrier" } else { "full fences" };
        let detail = format!("processes of this user on this host ({boot}), {barrier}");
        Ok(vec![Device { scheme: SCHEME, name: DEVICE.to_owned(), detail, caps: caps(), left_out: None }])
    }

    fn limits(&self) -> Vec<ProviderLimit> {
        limits()
    }

    /// Listens on `config.listen` (a name of 1 to 80 letters, digits, `.`, `_`, `-`) or on a random name. `Kind::AddressInUse`
    /// if a living process has that name. `encrypt` has no meaning here: memory of two processes is not overheard by others.
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        if let Some(d) = config.device.as_deref().filter(|d| *d != DEVICE) {
            let why = format!("shm has no device {d:?}, only {DEVICE:?}");
            return Err(Error::new(Kind::Unavailable, "open", why));
        }
        Ok(Box::new(port::ShmPort::open(config)?))
    }
}
