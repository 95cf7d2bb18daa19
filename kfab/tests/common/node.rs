//! A server for tests with several processes: it echoes what it gets and has a window to write into; and what its clients need.

use super::child;
use kfab::{Endpoint, EndpointConfig, Fabric, FabricConfig, FabricKey, Peer, Rights, WindowKey};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// A server's address and window.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) window: WindowKey,
}

impl Server {
    /// From what a child in the role `echo` says when it is ready.
    pub(crate) fn of(kid: &child::Kid) -> Server {
        let said = kid.says("ready");
        let (address, window) = said.split_once(' ').expect("address and window");
        Server { address: address.to_owned(), window: WindowKey::from_bytes(&bytes(window)).unwrap() }
    }
}

/// Hexadecimal digits of `b`.
pub(crate) fn hex(b: &[u8]) -> String {
    b.iter().map(|x| format!("{x:02x}")).collect()
}

/// What [`hex`] has written.
pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// A place that nobody listens on now, for a server that shall be found there again and again.
pub(crate) fn place(scheme: &str, name: &str) -> String {
    match scheme {
        "shm" => format!("shm:kfab-test.{}.{name}", std::process::id()),
        _ => {
            // Below those that the kernel gives to connections: a child that is started again must find it free.
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
            let ports = (0..11_000).map(|_| {
                let n = std::process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Relaxed));
                21_000 + (n % 11_000) as u16
            });
            format!("tcp:127.0.0.1:{}", { ports }.find(free).expect("a free port"))
        }
    }
}

/// A fabric of both providers, with a key of one repeated byte, or without.
pub(crate) fn fabric_with(key: Option<u8>) -> Fabric {
    let key = key.map(|k| FabricKey::from_bytes([k; 32]));
    Fabric::with_config((kfab_shm::Shm, kfab_sockets::Sockets), FabricConfig { key, plain: false })
}

/// A fabric with a key whose traffic is not encrypted: fast enough without optimisation.
pub(crate) fn plain_fabric() -> Fabric {
    let key = Some(FabricKey::from_bytes([1; 32]));
    Fabric::with_config((kfab_shm::Shm, kfab_sockets::Sockets), FabricConfig { key, plain: true })
}

/// Listens at these places (separated by commas) with only their providers.
pub(crate) fn at(places: &str) -> EndpointConfig {
    let listen: Vec<String> = places.split(',').map(str::to_owned).collect();
    let providers = listen.iter().map(|l| l.split_once(':').unwrap().0.to_owned()).collect();
    EndpointConfig { listen, providers, ..Default::default() }
}

/// The role `echo PLACES [KEY]`: gives every message back to its sender, for ever.
pub(crate) fn echo(args: &[String]) {
    child::listen(|_| {});
    let endpoint = fabric_with(args.get(1).map(|k| k.parse().unwrap())).open(at(&args[0])).unwrap();
    let window = endpoint.window(4 << 20, Rights::READ | Rights::WRITE).unwrap();
    child::say(&format!("ready {} {}", endpoint.address(), hex(&window.key().to_bytes())));
    let mut answers: Vec<kfab::Op<()>> = Vec::new();
    loop {
        // A receive ends early if its message's sender dies on the way.
        let Ok(m) = endpoint.recv().wait() else { continue };
        // The receiver may be gone: that is its own affair. A large answer does not hold up the next.
        answers.retain_mut(|a| !a.is_done());
        answers.push(m.from().send(&m));
    }
}

/// Sends a question that only the server at hand can know, and checks the echo.
pub(crate) fn ask(endpoint: &Endpoint, server: &Peer, question: &[u8]) -> kfab::Result<()> {
    let answer = endpoint.recv_with().from(server).post();
    server.send(question).wait()?;
    let answer = answer.wait()?;
    assert_eq!(&answer[..], question);
    Ok(())
}
