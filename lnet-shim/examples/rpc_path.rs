//! The price of RPC's software: a client and a server on two cores, 64 bytes there and back. For `perf` and `callgrind`.
//! Arguments: calls (1000000), and how many are under way at a time (1).

use kfab::{EndpointConfig, Fabric, Wait};
use lnet_shim::rpc::{Body, Book, Call, Client, ClientConfig, Server, ServerConfig, Service};
use std::collections::VecDeque;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let number = |at, default| std::env::args().nth(at).map_or(Ok(default), |n| n.parse::<u32>());
    let (calls, flight) = (number(1, 1_000_000)?, number(2, 1)?);
    let fabric = Fabric::new((kfab_shm::Shm,));
    let endpoint = EndpointConfig { wait: Wait::Spin, ..Default::default() };
    let service = Service::new("echo", 6).on_bytes(1, |_, body| async move { Ok(body) });
    let config = ServerConfig { lanes: vec![endpoint.clone()], ..Default::default() };
    let server = Server::start(&fabric, config, vec![service])?;
    let config = ClientConfig { endpoint, ..Default::default() };
    let client = Client::open(&fabric, config, &Book::new(), &[&server.addresses()[0]])?;
    let (mut under_way, start) = (VecDeque::<(Call<Body>, u8)>::new(), Instant::now());
    let check = |body: Body, i: u8| assert_eq!(*body, [i; 64]);
    for i in 0..calls {
        let i = i as u8;
        if flight == 1 {
            check(client.call_bytes(6, 1, &[i; 64]).wait()?, i);
            continue;
        }
        if under_way.len() as u32 == flight
            && let Some((call, i)) = under_way.pop_front()
        {
            check(call.wait()?, i);
        }
        under_way.push_back((client.call_bytes(6, 1, &[i; 64]).start(), i));
    }
    for (call, i) in under_way {
        check(call.wait()?, i);
    }
    println!("{:.0} ns a call", start.elapsed().as_nanos() as f64 / f64::from(calls));
    Ok(())
}
