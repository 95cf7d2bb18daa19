//! Our RPC.
use crate::load::{Job, Load, median, rate};
use kfab::{EndpointConfig, Fabric, Rights, Wait};
use lnet_shim::rpc::{Body, Book, Call, Client, ClientConfig, Server, ServerConfig, Service};
use std::collections::VecDeque;
const PORTAL: u8 = 6;
const ECHO: u16 = 1;
const WRITE: u16 = 2;
const READ: u16 = 3;
fn endpoint(system: &str) -> EndpointConfig {
    let scheme = if system == "shm" { "shm" } else { "tcp" };
    EndpointConfig { providers: vec![scheme.into()], wait: Wait::Spin, ..Default::default() }
}
fn fabric() -> Fabric {
    Fabric::new((kfab_shm::Shm, kfab_sockets::Sockets))
}
pub fn serve(system: &str) -> anyhow::Result<()> {
    let service = Service::new("bench", PORTAL)
        .on_bytes(ECHO, |_, body| async move { Ok(body) })
        .on_bytes(WRITE, |request, _| async move {
            let bulk = request.bulk()?;
            drop(bulk.get(0, bulk.readable() as usize).await?);
            Ok(b"ok".into())
        })
        .on_bytes(READ, |request, _| async move {
            let bulk = request.bulk()?;
            let buffer = bulk.buffer(bulk.writable() as usize)?;
            bulk.put(0, &[buffer]).await?;
            Ok(b"ok".into())
        });
    let config = ServerConfig { lanes: vec![endpoint(system)], ..Default::default() };
    let server = Server::start(&fabric(), config, vec![service])?;
    println!("{}", server.addresses()[0]);
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
pub fn measure(system: &str, address: &str, load: &Load) -> anyhow::Result<f64> {
    let config = ClientConfig { endpoint: endpoint(system), ..Default::default() };
    let client = Client::open(&fabric(), config, &Book::new(), &[address])?;
    let bytes = vec![7u8; load.size];
    match load.job {
        Job::Latency => median(load.length, || {
            let back = client.call_bytes(PORTAL, ECHO, &bytes[..]).wait()?;
            anyhow::ensure!(back.len() == bytes.len());
            Ok(())
        }),
        Job::Rate => {
            let mut calls: VecDeque<Call<Body>> = VecDeque::with_capacity(load.flight);
            rate(load.length, || {
                for _ in 0..1000 {
                    if calls.len() == load.flight
                        && let Some(call) = calls.pop_front()
                    {
                        anyhow::ensure!(call.wait()?.len() == bytes.len());
                    }
                    calls.push_back(client.call_bytes(PORTAL, ECHO, &bytes[..]).start());
                }
                Ok(1000)
            })
        }
        Job::Read | Job::Write => {
            let write = load.job == Job::Write;
            // What is written is a buffer of the client's, as in `kfab perf bw`; what is read goes to memory that peers may write.
            let window = || match write {
                true => client.window_of(client.buffer(load.size)?),
                false => client.window(load.size, Rights::WRITE),
            };
            let mut windows: VecDeque<_> =
                (0..load.flight.min(16)).map(|_| window()).collect::<Result<_, _>>()?;
            let mut calls: VecDeque<(Call<Body>, _)> = VecDeque::new();
            let opcode = if write { WRITE } else { READ };
            let per_s = rate(load.length, || {
                for _ in 0..50 {
                    if windows.is_empty()
                        && let Some((call, window)) = calls.pop_front()
                    {
                        call.wait()?;
                        windows.push_back(window);
                    }
                    let window = windows.pop_front().expect("one was given back");
                    calls.push_back((client.call_bytes(PORTAL, opcode, b"").window(&window).start(), window));
                }
                Ok(50)
            })?;
            Ok(per_s * load.size as f64)
        }
    }
}
