//! The price of RPC's software: a client and a server on two cores, 64 bytes there and back. For `perf` and `callgrind`.
//! Argument: calls (1000000).

use kfab::{EndpointConfig, Fabric, Wait};
use lnet_shim::rpc::{Book, Client, ClientConfig, Server, ServerConfig, Service};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let calls = std::env::args().nth(1).map_or(Ok(1_000_000), |n| n.parse())?;
    let fabric = Fabric::new((kfab_shm::Shm,));
    let endpoint = EndpointConfig { wait: Wait::Spin, ..Default::default() };
    let service = Service::new("echo", 6).on_bytes(1, |_, body| async move { Ok(body) });
    let config = ServerConfig { lanes: vec![endpoint.clone()], ..Default::default() };
    let server = Server::start(&fabric, config, vec![service])?;
    let config = ClientConfig { endpoint, ..Default::default() };
    let client = Client::open(&fabric, config, &Book::new(), &[&server.addresses()[0]])?;
    let start = Instant::now();
    for i in 0..calls {
        let bytes = [i as u8; 64];
        assert_eq!(*client.call_bytes(6, 1, &bytes[..]).wait()?, bytes);
    }
    println!("{:.0} ns a call", start.elapsed().as_nanos() as f64 / f64::from(calls));
    Ok(())
}
