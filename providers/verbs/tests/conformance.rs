//! The conformance suite on this machine's RDMA cards, two of them where there are two; once as a card is connected by itself, once through
//! the connection manager. `KFAB_LAB_RDMA=1` demands cards: without
//! it a machine that has none skips the suite and says why.

use kfab_conformance::{Maker, Rig, Victim};
use kfab_core::Result;
use kfab_core::spi::{Port, PortConfig, Provider, Way};
use kfab_verbs::Verbs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Ports on the first two cards in turn, so that frames cross the wire.
struct CardRig {
    turn: AtomicUsize,
    /// Comes after the card's name: `+cm`, or nothing.
    manner: &'static str,
}

impl CardRig {
    fn new(manner: &'static str) -> CardRig {
        CardRig { turn: AtomicUsize::new(0), manner }
    }
}

fn demanded() -> bool {
    std::env::var_os("KFAB_LAB_RDMA").is_some()
}

fn cards() -> std::result::Result<Vec<String>, String> {
    Verbs.probe().map(|all| all.into_iter().map(|d| d.name).take(2).collect()).map_err(|u| u.reason)
}

impl Rig for CardRig {
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        let mut config = config.clone();
        if config.listen.is_none() && config.device.is_none() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let card = cards().ok().and_then(|c| c.get(turn % c.len().max(1)).cloned());
            config.device = card.map(|c| c + self.manner);
        }
        Verbs.open(&config)
    }

    fn malformed(&self) -> Vec<String> {
        vec!["nonsense".into(), "1.2.3.4".into(), "1.2.3.4:99999".into(), "[fe80::1".into()]
    }

    fn nobody(&self) -> Option<Way> {
        let port = self.open(&PortConfig::default()).expect("another port");
        let way = port.ways().remove(0);
        let (ip, _) = way.rest.rsplit_once(':').expect("IP:PORT");
        Some(Way::new("verbs", format!("{ip}:1")))
    }

    fn listen_at(&self, way: &Way) -> Option<String> {
        Some(way.rest.clone())
    }

    fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
        Some(Victim::child("verbs"))
    }

    fn demanded(&self) -> bool {
        demanded()
    }

    /// Guests of the lab stand on busy hosts.
    fn patience(&self) -> Duration {
        Duration::from_secs(300)
    }
}

fn main() {
    kfab_conformance::serve_if_child("verbs", || CardRig::new("").open(&PortConfig::default()));
    match cards() {
        Ok(names) => eprintln!("on {}", names.join(" and ")),
        Err(why) if demanded() => {
            eprintln!("KFAB_LAB_RDMA demands RDMA cards: {why}");
            std::process::exit(1);
        }
        Err(why) => eprintln!("skipped: {why}"),
    }
    let maker = |manner| -> Maker { Box::new(move || -> Box<dyn Rig> { Box::new(CardRig::new(manner)) }) };
    kfab_conformance::main(vec![("verbs", maker("")), ("verbs-cm", maker("+cm"))]);
}
