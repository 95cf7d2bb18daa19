//! Never slower without saying so: a provider that could not be opened, and a peer that is reached by a worse way than it has, are in the
//! log and in the events.

mod common;

use common::{config, fabric, watched};
use kfab::{Endpoint, EndpointConfig, Error, Fabric, FabricConfig, FabricEvent, FabricKey, Kind, Provider};
use kfab_core::spi::{Device, Port, PortConfig, Unavailable};
use kfab_sockets::Sockets;
use std::fmt::{Debug, Write as _};
use std::sync::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, span};

/// Shared memory on a machine that has none.
struct NoShm;

impl Provider for NoShm {
    fn scheme(&self) -> &'static str {
        kfab_shm::SCHEME
    }

    fn probe(&self) -> Result<Vec<Device>, Unavailable> {
        Ok(Vec::new())
    }

    fn open(&self, _: &PortConfig) -> kfab::Result<Box<dyn Port>> {
        Err(Error::new(Kind::Unavailable, "open", "no memory to share"))
    }
}

/// The warnings of this program: a line each.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Log;

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, m: &Metadata<'_>) -> bool {
        m.target() == "kfab" && *m.level() <= Level::WARN
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, e: &tracing::Event<'_>) {
        let mut line = Line(String::new());
        e.record(&mut line);
        LINES.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn lines() -> Vec<String> {
    std::mem::take(&mut LINES.lock().unwrap())
}

/// What is said of the way by which `a` comes to a peer with all ways.
fn meet(a: &Endpoint) -> (String, Option<String>) {
    let b = fabric().endpoint().unwrap();
    let to_b = a.peer(&b.address().to_string()).unwrap();
    to_b.send(b"x").wait().unwrap();
    assert_eq!(&b.recv().wait().unwrap()[..], b"x");
    let ups = a.events().0.into_iter().filter_map(|e| match e {
        FabricEvent::PeerUp { via, fallback, .. } => Some((via, fallback)),
        _ => None,
    });
    let [up] = &ups.collect::<Vec<_>>()[..] else { panic!("one peer, up once") };
    up.clone()
}

#[test]
fn a_worse_way_is_never_taken_in_silence() {
    watched("fallback", || {
        tracing::subscriber::set_global_default(Log).unwrap();
        let without = Fabric::new((NoShm, Sockets));
        let a = without.endpoint().unwrap();
        assert_eq!(a.unavailable(), ["shm: no memory to share"]);
        let [line] = &lines()[..] else { panic!("one warning") };
        assert!(line.contains("provider=\"shm\"") && line.contains("no memory to share"), "{line}");

        let (via, fallback) = meet(&a);
        let fallback = fallback.expect("said");
        assert_eq!(via, "tcp");
        assert!(fallback.starts_with("shm:") && fallback.contains("no memory to share"), "{fallback}");
        let [line] = &lines()[..] else { panic!("one warning") };
        assert!(line.contains("peer_up") && line.contains(&fallback), "{line}");

        // The twins: nothing is missing; and what is not there because nobody wants it is not missed.
        let all = fabric().endpoint().unwrap();
        assert_eq!(meet(&all), ("shm".to_owned(), None));
        let chosen = without.open(config("tcp")).unwrap();
        assert_eq!(meet(&chosen), ("tcp".to_owned(), None));
        assert_eq!(lines(), Vec::<String>::new());

        // Nor is a place beyond this host opened so: once for all of them, and not where there is a key.
        let at = |place: &str| EndpointConfig { listen: vec![place.into()], ..config("tcp") };
        for place in ["tcp:0.0.0.0:0", "tcp:[::]:0"] {
            let open = without.open(at(place)).unwrap();
            let [line] = &lines()[..] else { panic!("one warning of {place}") };
            assert!(line.contains(place) && line.contains("no key"), "{line} of {open:?}");
        }
        let keyed = FabricConfig { key: Some(FabricKey::generate().unwrap()), ..Default::default() };
        let keyed = Fabric::with_config((Sockets,), keyed).open(at("tcp:0.0.0.0:0")).unwrap();
        let here = without.open(at("tcp:127.0.0.1:0")).unwrap();
        assert_eq!(lines(), Vec::<String>::new(), "of {keyed:?} or {here:?}");
    });
}
