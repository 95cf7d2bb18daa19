//! Frames over TCP: the provider that works wherever one port is open.
//!
//! A port is one listener, its connections and one epoll descriptor; several ports, each on its own interface, are rails.
//! Programs name [`Sockets`]; all else is reached through the provider contract of `kfab-core`.
//!
//! The way of a frame: `port` (accepts, bounds) -> `send` (coalesces, seals) -> socket -> `receive` (opens, parses) -> `link`
//! (delivers bodies straight into their landings) -> `port` (events). `wire` has the bytes, `stage` the memory, `net` interfaces
//! and sockets, `attempts` what is not up yet. `wire` and `receive` know no socket.
//!
//! *One open port* is enough, that of one of the two sides. All traffic of two peers goes over the connection that the other side has made.
//! A side that has never been called keeps it while it waits for messages, however idle, and makes it again when it breaks, so that
//! what the other has to say finds a way (`kfab-proto`); a connection that was forgotten on its way, without a word to either end, is
//! noticed within 3 s (`net::KEEP_IDLE`). The other side keeps what it has to say for `Limits::peer_timeout`.

#![forbid(unsafe_code)]

mod attempts;
mod fuzz;
mod link;
mod net;
mod port;
mod receive;
mod send;
mod stage;
mod table;
mod wire;

#[doc(hidden)]
pub use fuzz::fuzz_stream;

use kfab_core::Result;
use kfab_core::auth::greeting::Terms;
use kfab_core::spi::{Caps, Delivery, Device, Port, PortConfig, Provider, ProviderLimit, Unavailable};

/// The scheme of this provider's ways.
pub const SCHEME: &str = "tcp";

/// Messages up to this size go eagerly.
const EAGER_MAX: usize = 64 << 10;
/// Best size for the pieces of a large transfer.
const FRAGMENT: usize = 512 << 10;
/// Used after shared memory (0) and verbs.
const RANK: u8 = 10;

/// The TCP provider.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sockets;

fn caps(weight: u32, node: Option<u32>) -> Caps {
    Caps {
        delivery: Delivery::Connection,
        max_body: wire::MAX_BODY,
        eager_max: EAGER_MAX,
        fetch_min: 0,
        fragment: FRAGMENT,
        rma: false,
        zero_copy: true,
        sees_death: false,
        weight,
        rank: RANK,
        node,
    }
}

/// Everything that bounds a port here, by name.
fn limits() -> Vec<ProviderLimit> {
    let n = |name, value: usize, unit, meaning| ProviderLimit::new(name, value as u64, unit, meaning);
    vec![
        n("max_body", wire::MAX_BODY, "bytes", "of one frame"),
        n(
            "eager_max",
            EAGER_MAX,
            "bytes",
            "of a message that is sent unasked; larger ones are promised first",
        ),
        n("fragment", FRAGMENT, "bytes", "of a piece of a large message"),
        n(
            "queue_max",
            send::QUEUE_MAX,
            "bytes",
            "queued on a connection; beyond, frames wait in the protocol",
        ),
        n(
            "stage_bytes",
            stage::STAGE_BYTES,
            "bytes",
            "of a receiving connection's buffer; an idle one has none",
        ),
        n("descriptors", 1, "descriptors", "of a connection"),
        n(
            "backlog",
            net::BACKLOG as usize,
            "connections",
            "that wait to be accepted (cut to net.core.somaxconn)",
        ),
        n("max_ways", net::WAYS_MAX, "ways", "that a port tells its peers"),
        n(
            "silence_us",
            (net::KEEP_IDLE + net::KEEP_AGAIN * net::KEEP_TRIES).as_micros() as usize,
            "us",
            "until a connection to another host that was forgotten on its way is broken",
        ),
        n(
            "close_us",
            attempts::CLOSE_TIMEOUT.as_micros() as usize,
            "us",
            "a closing connection waits for the goodbye",
        ),
        n(
            "stranger_us",
            attempts::PATIENCE.as_micros() as usize,
            "us",
            "a silent stranger is safe when others wait",
        ),
    ]
}

impl Provider for Sockets {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    fn probe(&self) -> std::result::Result<Vec<Device>, Unavailable> {
        let all = net::interfaces()
            .map_err(|e| Unavailable { reason: format!("the interfaces cannot be listed: {e}") })?;
        if all.is_empty() {
            return Err(Unavailable { reason: "no network interface is up and has an address".to_owned() });
        }
        Ok(all.into_iter().map(device).collect())
    }

    fn limits(&self) -> Vec<ProviderLimit> {
        limits()
    }

    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        Ok(Box::new(open(config)?))
    }
}

fn open(config: &PortConfig) -> Result<port::TcpPort> {
    let rail = net::Rail::new(config.listen.as_deref(), config.device.as_deref())?;
    let terms = Terms { dialect: &wire::DIALECT, key: config.key.clone(), seal: config.encrypt };
    let mut caps = caps(config.weight(rail.speed, rail.node), rail.node);
    caps.zero_copy = !(terms.key.is_some() && terms.seal);
    let shared = link::Shared { pool: Default::default(), spare: None, bulk: false, terms };
    port::TcpPort::open(config, rail, shared, caps)
}

fn device(i: net::Interface) -> Device {
    let addrs: Vec<_> = i.addrs.iter().map(|a| a.ip().to_string()).collect();
    let speed = i.speed.map_or_else(|| "speed unknown".to_owned(), |s| format!("{s} Mbit/s"));
    let detail = format!("up, {}, {speed}", addrs.join(" "));
    let caps = caps(i.speed.unwrap_or(net::DEFAULT_SPEED), i.node);
    Device { scheme: SCHEME, name: i.name, detail, caps, left_out: None }
}
