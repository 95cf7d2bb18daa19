//! `kill -9` in the middle of bulk data, with real processes: calls end, memory returns to its level, no window stays open.

mod common;

use common::killed::{Part, ready};
use common::{fabric, over, until, watchdog};
use kfab::{Endpoint, Rights};
use lnet_shim::rpc::*;
use std::time::{Duration, Instant};

const PORTAL: u8 = 6;
const WRITE: Method<(), u64> = Method::new(PORTAL, 1);
const READ: Method<(), u64> = Method::new(PORTAL, 2);
const SIZE: usize = 4 << 20;
/// A child's part, and where its server is.
const PART: &str = "KFAB_RPC_TEST_PART";
const SERVER: &str = "KFAB_RPC_TEST_SERVER";
const SCHEME: &str = "KFAB_RPC_TEST_SCHEME";

fn server(scheme: &str) -> Server {
    let service = Service::new("bulk", PORTAL)
        .on(WRITE, |request, ()| async move {
            let bulk = request.bulk()?;
            let got = bulk.get(0, bulk.readable() as usize).await?;
            Ok(got.iter().map(|b| b.len() as u64).sum())
        })
        .on(READ, |request, ()| async move {
            let bulk = request.bulk()?;
            let buffer = bulk.buffer(bulk.writable() as usize)?;
            let len = buffer.len() as u64;
            bulk.put(0, &[buffer]).await.map(|()| len)
        });
    let limits = ServerLimits { linger: Duration::from_secs(3), ..Default::default() };
    let config = ServerConfig { lanes: vec![over(scheme)], limits, ..Default::default() };
    Server::start(&fabric(), config, vec![service]).unwrap()
}

fn client(scheme: &str, address: &str) -> Client {
    let config = ClientConfig { endpoint: over(scheme), ..Default::default() };
    Client::open(&fabric(), config, &Book::new(), &[address]).unwrap()
}

/// Bulk data in both directions, four calls under way, until a call fails or `go_on` says so. The error.
fn load(client: &Client, mut go_on: impl FnMut(u64) -> bool) -> Option<Error> {
    let mut moved = 0;
    while go_on(moved) {
        let from = client.window(SIZE, Rights::READ).unwrap();
        let into = client.window(SIZE, Rights::WRITE).unwrap();
        let limit = Duration::from_secs(3);
        let calls: Vec<_> = (0..2)
            .flat_map(|_| {
                let write = client.call(WRITE, &()).window(&from).limit(limit).start();
                [write, client.call(READ, &()).window(&into).limit(limit).start()]
            })
            .collect();
        for call in calls {
            match call.wait() {
                Ok(len) => moved += len,
                Err(e) => return Some(e),
            }
        }
    }
    None
}

/// Not a test of its own: what the children run.
#[test]
fn child() {
    let Ok(part) = std::env::var(PART) else { return };
    let scheme = std::env::var(SCHEME).unwrap();
    match part.as_str() {
        "server" => {
            let server = server(&scheme);
            ready(&server.addresses()[0]);
            std::thread::sleep(Duration::from_secs(90));
        }
        _ => {
            let client = client(&scheme, &std::env::var(SERVER).unwrap());
            let mut told = false;
            let ended = load(&client, |moved| {
                if moved > 0 && !std::mem::replace(&mut told, true) {
                    ready("moving");
                }
                true
            });
            panic!("{ended:?}");
        }
    }
}

fn part(part: &str, scheme: &str, server: &str) -> Part {
    Part::start("child", &[(PART, part), (SCHEME, scheme), (SERVER, server)])
}

fn assert_ok(e: Option<Error>) {
    assert!(e.is_none(), "{e:?}");
}

fn in_use(endpoint: &Endpoint) -> usize {
    endpoint.stats().pool.in_use
}

#[test]
fn a_killed_server_ends_every_call_and_leaves_no_window_open() {
    for scheme in ["shm", "tcp"] {
        let _watchdog = watchdog("a killed server", 100);
        let server = part("server", scheme, "");
        let client = client(scheme, &server.word);
        assert_ok(load(&client, |moved| moved == 0));
        let level = in_use(client.endpoint());
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            server.kill();
        });
        let began = Instant::now();
        let e = load(&client, |_| true).expect("an error");
        assert!(matches!(e.kind(), Kind::Unreachable | Kind::TimedOut), "{scheme}: {e}");
        assert!(began.elapsed() < Duration::from_secs(20));
        killer.join().unwrap();
        until("no window is open", || client.endpoint().stats().lane.windows == 0);
        until("memory is back", || in_use(client.endpoint()) <= level);
    }
}

#[test]
fn a_killed_client_is_forgotten_with_all_it_held() {
    for scheme in ["shm", "tcp"] {
        let _watchdog = watchdog("a killed client", 100);
        let server = server(scheme);
        let endpoint = server.endpoints().next().unwrap();
        let address = server.addresses()[0].clone();
        assert_ok(load(&client(scheme, &address), |moved| moved == 0));
        until("the first client has left", || server.counts().clients == 0);
        let level = in_use(endpoint);
        let killed = part("client", scheme, &address);
        assert_eq!(server.counts().clients, 1);
        killed.kill();
        until("the client is forgotten", || server.counts().clients == 0);
        until("memory is back", || in_use(endpoint) <= level);
        assert_eq!(endpoint.stats().lane.windows, 0);
        assert_ok(load(&client(scheme, &address), |moved| moved == 0));
    }
}
