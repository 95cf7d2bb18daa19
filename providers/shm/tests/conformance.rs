//! The conformance suite on shared memory, without a key and with one.

use kfab_conformance::{Maker, Rig, Victim};
use kfab_core::Result;
use kfab_core::auth::FabricKey;
use kfab_core::spi::{Port, PortConfig, Provider, Way};
use kfab_shm::Shm;

struct ShmRig {
    key: Option<FabricKey>,
    child: &'static str,
}

impl Rig for ShmRig {
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        let mut config = config.clone();
        config.key = config.key.or_else(|| self.key.clone());
        Shm.open(&config)
    }

    fn malformed(&self) -> Vec<String> {
        let bad = [
            "",
            "x",
            "@",
            "x@",
            "@00000000",
            "x@0000000",
            "x@000000000",
            "x@0000000g",
            "a/b@00000000",
            "a b@00000000",
        ];
        bad.map(str::to_owned).to_vec()
    }

    fn nobody(&self) -> Option<Way> {
        let port = Shm.open(&PortConfig::default()).expect("another port");
        // Its name is free again when this returns.
        port.ways().pop()
    }

    fn listen_at(&self, way: &Way) -> Option<String> {
        Some(way.rest.clone())
    }

    fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
        Some(Victim::child(self.child))
    }
}

fn rig(key: Option<FabricKey>, child: &'static str) -> Maker {
    Box::new(move || Box::new(ShmRig { key: key.clone(), child }))
}

fn main() {
    let key = FabricKey::from_bytes([42; 32]);
    let open = |key: Option<FabricKey>| move || Shm.open(&PortConfig { key, ..PortConfig::default() });
    kfab_conformance::serve_if_child("shm", open(None));
    kfab_conformance::serve_if_child("shm-key", open(Some(key.clone())));
    kfab_conformance::main(vec![("shm", rig(None, "shm")), ("shm-key", rig(Some(key), "shm-key"))]);
}
