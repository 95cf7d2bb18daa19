//! Counters as text for Prometheus (exposition format 0.0.4): [`text`] for programs that have an HTTP server, and [`Exporter`], the
//! smallest one that answers `GET /metrics`, for those that have none. Feature `prometheus`; it brings no dependency.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let fabric = kfab::Fabric::new((kfab_sockets::Sockets,));
//! let endpoint = std::sync::Arc::new(fabric.endpoint()?);
//! let exporter = kfab::prometheus::Exporter::serve(&endpoint, "127.0.0.1:9400".parse()?)?;
//! println!("http://{}/metrics", exporter.address());
//! # Ok(()) }
//! ```
//!
//! Counters are read at each scrape; events ([`FabricEvent`]) are counted by name through a subscription of the exporter's own.

use crate::observe::{EndpointStats, Events, Patience, PeerStats, Woken, wait_for_news};
use crate::{Endpoint, FabricEvent, PeerCounters, PeerInfo, ProviderLimit, RailHealth, RailInfo};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use std::fmt::Write as _;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest request head, bytes.
const MAX_HEAD: usize = 8 << 10;
/// How long one scrape may take, from its connection to its last byte.
const PATIENCE: Duration = Duration::from_secs(2);
/// Peers with series of their own.
const MAX_PEERS: usize = 1024;

/// What bounds it, by name.
pub(crate) fn limits() -> [ProviderLimit; 3] {
    let n = |name, value, unit, meaning| ProviderLimit::new(name, value, unit, meaning);
    [
        n("scrape_head", MAX_HEAD as u64, "bytes", "of a scraper's request head; a longer one is hung up on"),
        n("scrape_peers", MAX_PEERS as u64, "peers", "with series of their own; the rest are in the sums"),
        n("scrape_us", PATIENCE.as_micros() as u64, "us", "that one scrape may take"),
    ]
}

/// A running exporter: a thread that sleeps between scrapes and answers them one after the other. Ends when dropped, or with the endpoint,
/// which it does not keep open. Binds where it is told and asks for no key: keep it on an address that only scrapers reach.
#[derive(Debug)]
pub struct Exporter {
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Serves the counters of `endpoint` at `http://AT/metrics`.
    ///
    /// # Errors
    /// When nothing can listen there (the error names the address), or descriptors or threads have run out.
    pub fn serve(endpoint: &Arc<Endpoint>, at: SocketAddr) -> io::Result<Exporter> {
        let listener = TcpListener::bind(at).map_err(|e| io::Error::new(e.kind(), format!("{at}: {e}")))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        endpoint.ends.tell(&stop);
        let mut counted = Counted { events: endpoint.subscribe(), by_name: Default::default() };
        let (endpoint, end) = (Arc::downgrade(endpoint), stop.clone());
        let thread = std::thread::Builder::new().name("kfab-metrics".into()).stack_size(256 << 10);
        let thread = Some(thread.spawn(move || run(&endpoint, &listener, &end, &mut counted))?);
        Ok(Exporter { address, stop, thread })
    }

    /// Where it listens: the port that was chosen, if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // Nothing else writes to it, so there is room.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

/// Events so far, in the order of [`FabricEvent::NAMES`], and those that came too fast to be counted.
struct Counted {
    events: Events,
    by_name: [u64; FabricEvent::NAMES.len() + 1],
}

impl Counted {
    fn update(&mut self) {
        let (new, missed) = self.events.read();
        for e in new {
            let i = FabricEvent::NAMES.iter().position(|n| *n == e.name());
            self.by_name[i.unwrap_or(FabricEvent::NAMES.len())] += 1;
        }
        self.by_name[FabricEvent::NAMES.len()] += missed;
    }

    fn text(&self) -> String {
        let mut t = Text(String::new());
        let names = FabricEvent::NAMES.iter().chain([&"missed"]);
        let samples = names.zip(self.by_name).map(|(n, c)| (format!("{{event=\"{n}\"}}"), c as f64));
        t.metric("events_total", "counter", "Events by name.", samples);
        t.0
    }
}

fn run(endpoint: &Weak<Endpoint>, listener: &TcpListener, stop: &OwnedFd, counted: &mut Counted) {
    let mut rests = false;
    while let Woken::News(ready) = wait_for_news(stop, listener.as_fd(), std::iter::empty(), rests) {
        rests = false;
        if !ready[0] {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else {
            rests = true;
            continue;
        };
        let patience = Patience { stop, until: Instant::now() + PATIENCE };
        // A scraper that fails tries again.
        let _ = answer(stream, patience, endpoint, counted);
    }
}

fn answer(
    mut s: TcpStream,
    patience: Patience<'_>,
    endpoint: &Weak<Endpoint>,
    counted: &mut Counted,
) -> io::Result<()> {
    s.set_nonblocking(true)?;
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > MAX_HEAD {
            return Ok(());
        }
        patience.wait(s.as_fd(), PollFlags::IN)?;
        let mut part = [0; 1024];
        match s.read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(n) => head.extend_from_slice(&part[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    let (status, body) = if head.starts_with(b"GET /metrics ") || head.starts_with(b"GET /metrics?") {
        // Held for as long as it takes to look, not for as long as a scraper takes to read.
        let Some(stats) = endpoint.upgrade().map(|e| e.stats()) else { return Ok(()) };
        counted.update();
        ("200 OK", text(&stats) + &counted.text())
    } else {
        ("404 Not Found", "try /metrics\n".to_owned())
    };
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let len = body.len();
    let all = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
    );
    patience.write(&s, all.as_bytes())
}

/// A text under construction: each metric's head is followed by all its samples, as the format wants.
struct Text(String);

impl Text {
    fn metric(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        // Writing to a String cannot fail.
        let _ = write!(self.0, "# HELP kfab_{name} {help}\n# TYPE kfab_{name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "kfab_{name}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: usize) {
        self.metric(name, kind, help, [(String::new(), value as f64)]);
    }
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All of an endpoint's counters, as one text. The label `peer` is [`crate::PeerId`] as text, of which each peer that comes gets another,
/// also one that was here before. The first 1024 peers have series; the sums are of all.
pub fn text(stats: &EndpointStats) -> String {
    let mut t = Text(String::new());
    let (lane, listed) = (&stats.lane, listed(stats));
    t.one("peers", "gauge", "Peers known.", lane.peers);
    t.one("peers_unlisted", "gauge", "Those without series of their own.", stats.peers.len() - listed.len());
    t.one("connections", "gauge", "Connections open.", lane.conns);
    t.one("operations", "gauge", "Operations under way.", lane.ops);
    t.one("receives_posted", "gauge", "Receives that wait for a message.", lane.posted);
    t.one("messages_unexpected", "gauge", "Messages that wait for a receive.", lane.unexpected);
    let left = "Credit units of messages that wait of peers that are gone.";
    t.one("left_behind_units", "gauge", left, lane.left_behind as usize);
    t.one("messages_deferred", "gauge", "Messages that wait for credit.", lane.deferred);
    t.one("frames_unacked", "gauge", "Frames that wait for an acknowledgement.", lane.unacked);
    t.one("windows", "gauge", "Windows open.", lane.windows);
    t.one("notices", "gauge", "Notices that wait to be taken.", lane.notices);
    t.one("pool_regions", "gauge", "Regions of the memory pool.", stats.pool.regions);
    t.one("pool_bytes", "gauge", "Bytes of the memory pool.", stats.pool.bytes);
    t.one("pool_used_bytes", "gauge", "Bytes of the memory pool in use.", stats.pool.in_use);
    counters(&mut t, stats);
    peers(&mut t, listed);
    rails(&mut t, listed);
    t.0
}

fn listed(stats: &EndpointStats) -> &[PeerStats] {
    &stats.peers[..stats.peers.len().min(MAX_PEERS)]
}

type Pick = fn(&PeerCounters) -> u64;

fn counters(t: &mut Text, stats: &EndpointStats) {
    let all: [(&str, &str, Pick); 10] = [
        ("tx_messages_total", "Messages sent.", |c| c.tx_messages),
        ("tx_bytes_total", "Bytes of messages sent.", |c| c.tx_bytes),
        ("rx_messages_total", "Messages received.", |c| c.rx_messages),
        ("rx_bytes_total", "Bytes of messages received.", |c| c.rx_bytes),
        ("coalesced_total", "Messages that left with others in one frame.", |c| c.coalesced),
        ("credit_stalls_total", "Times a send waited for credit.", |c| c.credit_stalls),
        ("resent_total", "Frames sent again.", |c| c.resent),
        ("duplicates_total", "Frames that came twice.", |c| c.duplicates),
        ("failovers_total", "Times traffic moved to another rail.", |c| c.failovers),
        ("losses_total", "Times a peer was lost, or closed its endpoint.", |c| c.lost),
    ];
    for (name, help, pick) in all {
        t.metric(name, "counter", help, [(String::new(), pick(&stats.lane.totals) as f64)]);
        let of = |p: &PeerStats| (format!("{{peer=\"{}\"}}", label(&p.name)), pick(&p.info.counters) as f64);
        t.metric(&format!("peer_{name}"), "counter", help, listed(stats).iter().map(of));
    }
    let samples = fewest(stats.lane.totals.min_credits).map(|c| (String::new(), c));
    t.metric("min_credits", "gauge", "The fewest credits ever free to any peer.", samples);
}

/// Nothing, before the first message.
fn fewest(credits: u32) -> Option<f64> {
    (credits != u32::MAX).then_some(f64::from(credits))
}

fn peers(t: &mut Text, listed: &[PeerStats]) {
    let mut gauge = |name: &str, help: &str, pick: fn(&PeerInfo) -> f64| {
        let of = |p: &PeerStats| (format!("{{peer=\"{}\"}}", label(&p.name)), pick(&p.info));
        t.metric(name, "gauge", help, listed.iter().map(of));
    };
    gauge("peer_up", "1 if the peer can be reached now.", |i| f64::from(u8::from(i.up)));
    gauge("peer_credits", "Credits free.", |i| f64::from(i.credits));
    gauge("peer_credit_limit", "Credits that the peer gives.", |i| f64::from(i.credit_limit));
    gauge("peer_unacked", "Frames to the peer without an acknowledgement.", |i| i.unacked as f64);
    gauge("peer_unacked_bytes", "Bytes of large messages without one.", |i| i.unacked_bytes as f64);
    gauge("peer_transfers", "Large transfers to the peer under way.", |i| i.transfers as f64);
    gauge("peer_deferred", "Messages to the peer that wait for credit.", |i| i.deferred as f64);
    gauge("peer_rtt_seconds", "Smoothed round trip; 0 where never measured.", |i| i.rtt_ns as f64 / 1e9);
    let of = |p: &PeerStats| {
        let name = format!("{{peer=\"{}\"}}", label(&p.name));
        fewest(p.info.counters.min_credits).map(|c| (name, c))
    };
    let samples = listed.iter().filter_map(of);
    t.metric("peer_min_credits", "gauge", "The fewest credits ever free to the peer.", samples);
}

fn rails(t: &mut Text, listed: &[PeerStats]) {
    let mut metric = |name: &str, kind: &str, help: &str, pick: fn(&RailInfo) -> f64| {
        let of = |p: &PeerStats| {
            let peer = label(&p.name);
            let one = move |r: &RailInfo| {
                let via = label(&r.scheme);
                (format!("{{peer=\"{peer}\",rail=\"{}\",via=\"{via}\"}}", r.rail), pick(r))
            };
            p.info.rails.iter().map(one).collect::<Vec<_>>()
        };
        t.metric(name, kind, help, listed.iter().flat_map(of));
    };
    metric("rail_active", "gauge", "1 if traffic goes over the rail now.", |r| f64::from(u8::from(r.active)));
    metric("rail_tx_bytes_total", "counter", "Bytes sent over the rail.", |r| r.tx_bytes as f64);
    metric("rail_rx_bytes_total", "counter", "Bytes received over the rail.", |r| r.rx_bytes as f64);
    metric("rail_tx_frames_total", "counter", "Frames sent over the rail.", |r| r.tx_frames as f64);
    metric("rail_rx_frames_total", "counter", "Frames received over the rail.", |r| r.rx_frames as f64);
    metric("rail_unacked_bytes", "gauge", "Bytes sent and not acknowledged.", |r| r.unacked_bytes as f64);
    metric("rail_unacked", "gauge", "Frames sent and not acknowledged.", |r| r.unacked as f64);
    metric("rail_one_sided_bytes", "gauge", "Bytes of one-sided transfers under way.", |r| {
        r.one_sided_bytes as f64
    });
    metric("rail_resent_total", "counter", "Frames sent again over the rail.", |r| r.resent as f64);
    metric("rail_healthy", "gauge", "1 if the rail takes what it is given.", |r| {
        f64::from(u8::from(r.health == RailHealth::Good))
    });
}
