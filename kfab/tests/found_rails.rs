//! Rails that nobody names: an endpoint opens a port on each device that its provider calls a rail, leaves out what cannot be used
//! and says so. What is named is never left out.
//!
//! One test needs two cables with a card at each end, as `cargo xtask lab --cards 4 --wire switch` makes them; elsewhere it says what
//! is missing and does nothing. `KFAB_LAB_RDMA=1` demands them.

mod common;

use common::watched_for;
use kfab::{Endpoint, EndpointConfig, Error, Fabric, Kind, Limits};
use kfab_core::spi::{Device, Port, PortConfig, Provider, Unavailable};
use kfab_sockets::Sockets;
use kfab_verbs::Verbs;
use std::process::Command;
use std::time::Duration;

/// TCP whose interfaces are rails by these names.
struct Railed(&'static [&'static str]);

impl Provider for Railed {
    fn scheme(&self) -> &'static str {
        Sockets.scheme()
    }

    fn probe(&self) -> Result<Vec<Device>, Unavailable> {
        Sockets.probe()
    }

    fn rails(&self, listen: Option<&str>) -> Vec<String> {
        match listen {
            Some(text) if !text.starts_with("0.0.0.0:") => Vec::new(),
            _ => self.0.iter().map(|n| (*n).to_owned()).collect(),
        }
    }

    fn open(&self, config: &PortConfig) -> kfab::Result<Box<dyn Port>> {
        assert_eq!(config.weight(10, Some(0)), 10, "distances of an endpoint that runs anywhere");
        Sockets.open(config)
    }
}

/// Shared memory that the system refuses.
struct RefusedShm;

impl Provider for RefusedShm {
    fn scheme(&self) -> &'static str {
        kfab_shm::SCHEME
    }

    fn probe(&self) -> Result<Vec<Device>, Unavailable> {
        Ok(Vec::new())
    }

    fn open(&self, _: &PortConfig) -> kfab::Result<Box<dyn Port>> {
        Err(Error::os("open", "a name", std::io::Error::from_raw_os_error(2)))
    }
}

fn open(rails: &'static [&'static str], config: EndpointConfig) -> kfab::Result<Endpoint> {
    Fabric::new((Railed(rails),)).open(config)
}

fn ways(e: &Endpoint) -> Vec<String> {
    e.address().ways().iter().map(ToString::to_string).collect()
}

#[test]
fn each_rail_gets_a_port_and_what_cannot_be_used_is_named() {
    let all: EndpointConfig = EndpointConfig::default();
    let e = open(&["lo", "no-such-card", "lo"], all.clone()).unwrap();
    assert_eq!(e.address().ways().len(), 2);
    let [why] = e.unavailable() else { panic!("{:?}", e.unavailable()) };
    assert!(why.starts_with("tcp: ") && why.contains("no-such-card"), "{why}");

    let refused = open(&["no-such-card", "nor-this"], all.clone()).expect_err("opened on nothing");
    assert!(refused.to_string().contains("no-such-card"), "{refused}");
    assert_eq!(refused.kind(), Kind::Unavailable);

    let named = EndpointConfig { devices: vec!["tcp:lo".into()], ..all.clone() };
    let e = open(&["no-such-card", "lo"], named).unwrap();
    assert_eq!((e.address().ways().len(), e.unavailable().len()), (1, 0));

    let at = EndpointConfig { listen: vec!["tcp:127.0.0.1:0".into()], ..all };
    let e = open(&["no-such-card", "lo"], at).unwrap();
    assert_eq!((e.address().ways().len(), e.unavailable().len()), (1, 0));
}

#[test]
fn what_was_asked_for_is_never_left_out() {
    watched_for("asked", 60, || {
        let all = Fabric::new((RefusedShm, Sockets));
        // Nobody asked for it: left out, with the system's words.
        let e = all.endpoint().unwrap();
        let [why] = e.unavailable() else { panic!("{:?}", e.unavailable()) };
        assert!(why.starts_with("shm: a name: No such file"), "{why}");
        assert_eq!(all.open(common::config("shm")).expect_err("opened").kind(), Kind::Unreachable);

        // A device, or a place, that is named.
        let devices = ["tcp:lo", "tcp:no-such-card"].map(String::from).to_vec();
        let refused =
            common::fabric().open(EndpointConfig { devices, ..Default::default() }).expect_err("opened");
        assert_eq!(refused.kind(), Kind::Unavailable);
        assert!(refused.to_string().contains("no-such-card"), "{refused}");
        let elsewhere = EndpointConfig { listen: vec!["tcp:127.0.0.1:0".into()], ..common::config("shm") };
        let refused = common::fabric().open(elsewhere).expect_err("opened");
        assert_eq!(refused.kind(), Kind::InvalidArgument);
        assert!(refused.to_string().contains("tcp:127.0.0.1:0"), "{refused}");
    });
}

#[test]
fn all_rails_listen_where_it_is_said() {
    let any = EndpointConfig { listen: vec!["tcp:0.0.0.0:0".into()], ..Default::default() };
    let first = open(&["lo"], any).unwrap();
    let port = ways(&first)[0].rsplit(':').next().unwrap().to_owned();
    let same = EndpointConfig { listen: vec![format!("tcp:0.0.0.0:{port}")], ..Default::default() };
    let taken = open(&["no-such-card", "lo"], same.clone()).expect_err("opened twice");
    assert_eq!(taken.kind(), Kind::AddressInUse, "{taken}");
    drop(first);
    assert_eq!(ways(&open(&["lo"], same).unwrap()), [format!("tcp:127.0.0.1:{port}")]);
}

/// Whether both cables are here; if not, the reason is printed.
fn cables_are_here() -> bool {
    let why = match Verbs.probe() {
        Err(why) => why.reason,
        Ok(all) if all.len() == 4 => return true,
        Ok(all) => format!("two cables with a card at each end are needed, there are {} cards", all.len()),
    };
    assert!(std::env::var_os("KFAB_LAB_RDMA").is_none(), "KFAB_LAB_RDMA demands cards: {why}");
    println!("skipped: {why}");
    false
}

fn link(rail: usize, how: &str) {
    let done = Command::new("lab").args(["link", &rail.to_string(), how]).status().expect("the lab's helper");
    assert!(done.success(), "lab link {rail} {how}");
}

fn rdma(words: &str) {
    let done = Command::new("rdma").args(words.split(' ')).status().expect("the rdma tool");
    assert!(done.success(), "rdma {words}");
}

fn on_all_cards() -> Endpoint {
    let limits = Limits { peer_timeout: Duration::from_secs(40), ..Default::default() };
    Fabric::new((Verbs,)).open(EndpointConfig { limits, ..Default::default() }).unwrap()
}

/// Large messages from `a` to `b`, looked at, until so many of its ports carry something; the bytes that each of them got meanwhile.
fn talk(a: &Endpoint, b: &Endpoint, rails: usize) -> Vec<u64> {
    let to = a.peer(&b.address().to_string()).unwrap();
    let received = || {
        let mut got = vec![0; b.address().ways().len()];
        for r in b.stats().peers.into_iter().flat_map(|p| p.info.rails) {
            got[r.port] += r.rx_bytes;
        }
        got
    };
    let before = received();
    for n in (0..=u8::MAX).cycle() {
        let receive = b.recv();
        to.send(&vec![n; 1 << 20][..]).wait().unwrap();
        let m = receive.wait().unwrap();
        assert!(m.len() == 1 << 20 && m.chunks(4096).all(|c| c == [n; 4096]), "message {n} is damaged");
        // A connection made anew counts from nothing.
        let got: Vec<u64> =
            received().iter().zip(&before).map(|(n, b)| n.checked_sub(*b).unwrap_or(*n)).collect();
        if n > 16 && got.iter().filter(|bytes| **bytes > 1 << 20).count() >= rails {
            return got;
        }
    }
    unreachable!("the watchdog ends it")
}

#[test]
fn every_card_is_a_rail_as_soon_as_its_link_is_up() {
    if !cables_are_here() {
        return;
    }
    watched_for("all cards", 300, || {
        let (a, b) = (on_all_cards(), on_all_cards());
        assert_eq!((b.address().ways().len(), b.unavailable()), (4, &[][..]));
        println!("bytes by card: {:?}", talk(&a, &b, 4));
        drop((a, b));

        link(1, "down");
        let down = Verbs.probe().unwrap().into_iter().filter(|d| d.left_out.is_some()).map(|d| d.name);
        let mut down: Vec<String> = down.collect();
        down.sort();
        assert_eq!(down, ["rxe_a1", "rxe_b1"]);
        let (a, b) = (on_all_cards(), on_all_cards());
        assert_eq!((b.address().ways().len(), b.unavailable()), (4, &[][..]));
        let got = talk(&a, &b, 2);
        println!("bytes by card, two of them down: {got:?}");
        assert_eq!(got[2..], [0, 0], "a card whose link is down carried something");
        link(1, "up");
        println!("bytes by card, all up again: {:?}", talk(&a, &b, 4));

        // This ends when nobody holds the card any more.
        rdma("link delete rxe_b1");
        println!("bytes by card, one taken out: {:?}", talk(&a, &b, 3));
        rdma("link add rxe_b1 type rxe netdev b1");
        println!("bytes by card, all there again: {:?}", talk(&a, &b, 4));
    });
}
