//! The conformance suite on sockets: IPv4 and IPv6, without a key, authenticated only, and encrypted.

use kfab_conformance::{Maker, Rig, Victim};
use kfab_core::Result;
use kfab_core::auth::FabricKey;
use kfab_core::spi::{Port, PortConfig, Provider, Way};
use kfab_sockets::Sockets;

#[derive(Clone)]
struct TcpRig {
    host: &'static str,
    key: Option<FabricKey>,
    encrypt: bool,
    child: &'static str,
}

impl Rig for TcpRig {
    fn open(&self, config: &PortConfig) -> Result<Box<dyn Port>> {
        let mut config = config.clone();
        config.listen.get_or_insert_with(|| format!("{}:0", self.host));
        config.key = config.key.or_else(|| self.key.clone());
        config.encrypt &= self.encrypt;
        Sockets.open(&config)
    }

    fn malformed(&self) -> Vec<String> {
        let bad = [
            "",
            "nonsense",
            "1.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:99999",
            "1.2.3.4:x",
            "::1:7",
            "[::1]",
            "[::1:7",
            "1.2.3:4 ",
        ];
        bad.map(str::to_owned).to_vec()
    }

    fn nobody(&self) -> Option<Way> {
        let l = std::net::TcpListener::bind(format!("{}:0", self.host)).expect("a free port");
        // It is free again when this returns.
        Some(Way::new("tcp", l.local_addr().expect("its address").to_string()))
    }

    fn listen_at(&self, way: &Way) -> Option<String> {
        Some(way.rest.clone())
    }

    fn spawn_peer(&self) -> Option<std::io::Result<Victim>> {
        Some(Victim::child(self.child))
    }
}

fn main() {
    let key = Some(FabricKey::from_bytes([42; 32]));
    let plain = TcpRig { host: "127.0.0.1", key: None, encrypt: true, child: "tcp" };
    let mut rigs = vec![plain.clone()];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        rigs.push(TcpRig { host: "[::1]", child: "tcp6", ..plain.clone() });
    } else {
        eprintln!("tcp6 is left out: this host has no IPv6");
    }
    rigs.push(TcpRig { key: key.clone(), encrypt: false, child: "tcp-auth", ..plain.clone() });
    rigs.push(TcpRig { key, child: "tcp-key", ..plain });
    for r in &rigs {
        let peer = r.clone();
        kfab_conformance::serve_if_child(r.child, move || peer.open(&PortConfig::default()));
    }
    let makers = rigs.into_iter().map(|r| {
        let maker: Maker = Box::new({
            let r = r.clone();
            move || Box::new(r.clone())
        });
        (r.child, maker)
    });
    kfab_conformance::main(makers.collect());
}
