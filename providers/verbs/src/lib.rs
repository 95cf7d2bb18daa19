//! Frames and one-sided access over RDMA verbs: reliable connections of InfiniBand and RoCE cards.
//!
//! A port is one port of one card: an epoll descriptor, a completion queue, a shared receive queue, and for each connection a
//! queue pair with a TCP connection beside it. Programs name [`Verbs`]; all else is reached through the contract of `kfab-core`.
//!
//! # Choices
//! - **libibverbs is loaded at run time** (`libloading`) and bound by hand (`ffi`, about 30 calls and 20 structures): no build
//!   dependency, no cargo feature, no rdma-core needed to start. The ready-made bindings want cmake and libclang to build, which
//!   the default workspace must not. The layouts are checked against the C compiler and the installed header by `tests/layout.rs`.
//! - **Connections are greeted over TCP**, on the card's IP address: the way is `verbs:ADDRESS:PORT`. The key handshake fits there, and
//!   the kernel tells at once when the peer process dies. The queue pair is then connected by hand, which depends on no connection
//!   manager (some devices lose theirs when their link goes down), or through `rdma_cm`: always for iWARP cards, which have no other
//!   way, and for others where a device is named `CARD+cm`.
//! - **Receiver-not-ready cannot happen**: frames cost credits (`flow`, `memory`). Retries are bounded, queues never
//!   over-filled, and work that neither ends nor fails is given up by a deadline of our own.
//! - **Frames are not encrypted**: no card seals them. With a fabric key peers prove that they have it, and where the queue pairs
//!   are is exchanged sealed.
//!
//! The parts: `rail` outlives its card, `port` polls and sleeps, `connect` makes and ends connections (`side` their sockets, `manager` the kernel's connection manager,
//! `reaper` the slow ends), `flow` moves frames, `rma` memory, `memory` and `cache` hold what is registered, `room` says how much can be, `device` knows the cards, `networks` whom they lead to, `sys` has all `unsafe`.

#![deny(unsafe_code)]

mod cache;
mod connect;
mod device;
#[doc(hidden)]
#[allow(missing_docs)]
#[path = "sys/ffi.rs"]
pub mod ffi;
mod flow;
mod fuzz;
#[cfg(test)]
mod hostile;
mod link;
mod manager;
mod memory;
mod networks;
mod port;
mod rail;
mod reaper;
mod rma;
mod room;
mod side;
#[allow(unsafe_code)]
mod sys;
mod wire;

#[doc(hidden)]
pub use fuzz::fuzz_message;

use device::{Card, Gid};
use kfab_core::spi::{Caps, Delivery, Device, Port, PortConfig, Provider, ProviderLimit, Unavailable};
use kfab_core::{Error, Kind, Result};
use networks::Networks;
use std::net::SocketAddr;

/// The scheme of this provider's ways.
pub const SCHEME: &str = "verbs";

/// After shared memory (0), before sockets (10).
const RANK: u8 = 5;
/// Best size for the pieces of a large transfer.
const FRAGMENT: usize = 1 << 20;

/// The RDMA verbs provider.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verbs;

fn caps(card: &Card, weight: u32) -> Caps {
    Caps {
        delivery: Delivery::Connection,
        max_body: wire::MAX_BODY,
        eager_max: wire::MAX_BODY,
        fetch_min: wire::MAX_BODY,
        fragment: FRAGMENT,
        // iWARP cards check and place a write segment by segment (RFC 5041): one that is refused for its end has changed the memory before
        // it. And the sink of a read must be open to the peer's writes. There access is served by messages, whole or not at all.
        rma: !card.iwarp,
        zero_copy: true,
        sees_death: true,
        weight,
        rank: RANK,
        node: card.node,
    }
}

/// Everything that bounds a port here, by name.
fn limits() -> Vec<ProviderLimit> {
    let n = |name, value: usize, unit, meaning| ProviderLimit::new(name, value as u64, unit, meaning);
    vec![
        n("max_body", wire::MAX_BODY, "bytes", "of one frame; larger messages are fetched"),
        n(
            "frame_credits",
            wire::CREDITS.into(),
            "frames",
            "of a connection under way unasked; beyond, frames wait in the protocol",
        ),
        n(
            "reserve",
            wire::RESERVE.into(),
            "receives",
            "of a connection beyond its credits, for what returns credits and for the goodbye",
        ),
        n(
            "send_depth",
            port::SEND_DEPTH,
            "requests",
            "of a connection that the card has at once; beyond, frames wait in the protocol",
        ),
        n(
            "rma_waiting",
            link::RMA_WAITING_MAX,
            "operations",
            "of a connection that wait for the card; beyond, they fail with Limit",
        ),
        n(
            "cq_entries",
            port::CQ_MAX,
            "entries",
            "of the completion queue at most, half for receives: what connections are promised, and more fail",
        ),
        n("links", link::LINKS_MAX, "connections", "of a port at most, whatever max_conns says"),
        n("dials", connect::DIALS_MAX, "connections", "made at once; more wait for their turn"),
        n(
            "stalled_us",
            port::STALLED.as_micros() as usize,
            "us",
            "without a completion, then a connection that has work under way is broken",
        ),
        n(
            "close_us",
            connect::CLOSE_TIMEOUT.as_micros() as usize,
            "us",
            "a closing connection waits for the goodbye",
        ),
        n("extent", cache::EXTENT, "bytes", "of memory that are registered with the card at once"),
        n(
            "registrations",
            cache::ENTRIES_MAX,
            "registrations",
            "of a port's memory kept for further use; beyond, the longest unused goes",
        ),
        n("share", cache::SHARE, "registrations", "of the card for each that is kept, at least"),
    ]
}

impl Provider for Verbs {
    fn scheme(&self) -> &'static str {
        SCHEME
    }

    /// The ports of all cards, and what stands in the way of using one. If none can be used: why the first cannot. Opens each card
    /// for a moment.
    fn probe(&self) -> std::result::Result<Vec<Device>, Unavailable> {
        let cards = device::cards().map_err(|reason| Unavailable { reason })?;
        let look = |card: Card| Device {
            scheme: SCHEME,
            detail: card.detail(),
            caps: caps(&card, card.speed),
            left_out: device::obstacle(&card),
            name: card.label,
        };
        let all: Vec<Device> = cards.into_iter().map(look).collect();
        if let Some(reason) = all.first().and_then(|d| d.left_out.clone())
            && all.iter().all(|d| d.left_out.is_some())
        {
            return Err(Unavailable { reason });
        }
        Ok(all)
    }

    /// Every port of every card, unless an address to listen at says which one. Those that cannot be used are among them, so that
    /// `open` says why.
    fn rails(&self, listen: Option<&str>) -> Vec<String> {
        match listen.map(str::parse::<SocketAddr>) {
            Some(Err(_)) => Vec::new(),
            Some(Ok(at)) if !at.ip().is_unspecified() => Vec::new(),
            _ => device::cards().unwrap_or_default().into_iter().map(|c| c.label).collect(),
        }
    }

    fn limits(&self) -> Vec<ProviderLimit> {
        limits()
    }

    /// `listen` is `ADDRESS:PORT` with an address of a card; `device` names a card (with `/PORT` where it has several) or its
    /// interface; with `+cm` after it (or alone) queue pairs are connected through the connection manager. With neither, the fastest
    /// card whose port is up, at any port.
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        Ok(Box::new(rail(config)?))
    }
}

fn rail(config: &PortConfig) -> Result<rail::Rail> {
    let (card, managed) = asked(config);
    let cards = device::cards().map_err(|why| Error::new(Kind::Unavailable, "open", why))?;
    let (card, gid, at) = choose(config, card, cards.clone())?;
    let caps = caps(&card, config.weight(card.speed, card.node));
    let managed = managed || card.iwarp;
    let plan =
        rail::Plan { config: config.clone(), caps, managed, networks: Networks::around(at.ip(), &cards) };
    rail::Rail::open(plan, card, gid, at)
}

/// The card that is asked for, if one is, and whether the connection manager is.
fn asked(config: &PortConfig) -> (Option<&str>, bool) {
    let device = config.device.as_deref().unwrap_or_default();
    let (name, managed) = device.strip_suffix("+cm").map_or((device, false), |name| (name, true));
    ((!name.is_empty()).then_some(name), managed)
}

/// Which card, by which of its addresses, and where to listen.
fn choose(
    config: &PortConfig,
    device: Option<&str>,
    mut cards: Vec<Card>,
) -> Result<(Card, Gid, SocketAddr)> {
    let unavailable = |why: String| Error::new(Kind::Unavailable, "open", why);
    let listen = match &config.listen {
        Some(text) => Some(text.parse::<SocketAddr>().map_err(|_| {
            Error::new(Kind::InvalidArgument, "open", format!("{text:?} is not ADDRESS:PORT"))
        })?),
        None => None,
    };
    if let Some(name) = device {
        let all: Vec<String> = cards.iter().map(|c| c.label.clone()).collect();
        cards.retain(|c| c.is_called(name));
        if cards.is_empty() {
            return Err(unavailable(format!("no RDMA card {name:?}; there are {}", all.join(", "))));
        }
    }
    let wanted = listen.filter(|a| !a.ip().is_unspecified());
    let mut why = wanted
        .map_or("no card has an address".to_owned(), |a| format!("no RDMA card has the address {}", a.ip()));
    for card in cards {
        let gid = card.gids.iter().find(|g| wanted.is_none_or(|a| g.ip() == a.ip())).cloned();
        // A card whose GID is no IP address (InfiniBand) may be named together with an address to listen at.
        let gid = gid.or_else(|| card.gids.first().filter(|_| device.is_some()).cloned());
        let Some(gid) = gid else { continue };
        // A port that was named and is down is opened: it is used when it comes up.
        if !card.active() && device.is_none() {
            why = format!("{} port {} is {}", card.name, card.port, card.state);
            continue;
        }
        let port = listen.map_or(0, |a| a.port());
        let at = wanted.unwrap_or_else(|| SocketAddr::new(gid.ip(), port));
        return Ok((card, gid, at));
    }
    Err(unavailable(why))
}
