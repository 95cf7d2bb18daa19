//! An endpoint that speaks to a server's lane without keeping to its ways does no harm to the others there.

mod common;

use common::{fabric, on_all, over};
use kfab::{Buffer, EndpointConfig, Progress};
use lnet_shim::rpc::*;
use std::time::{Duration, Instant};

const PORTAL: u8 = 7;
const DOUBLE: Method<u64, u64> = Method::new(PORTAL, 1);
/// The tag of what goes to a server, for a client of this number.
const TO_SERVER: u64 = 0x5201 << 48 | 77;

fn answers(client: &Client, n: u64, when: &str) {
    let answer = client.call(DOUBLE, &n).limit(Duration::from_secs(10)).wait();
    assert_eq!(answer.unwrap_or_else(|e| panic!("{when}: {e}")), 2 * n);
}

/// Promises a large packet and does not send it, then goes in the middle of it.
#[test]
fn a_packet_that_never_comes_stops_nobody() {
    on_all("never comes", |scheme| {
        let service = Service::new("double", PORTAL).on(DOUBLE, |_, n| async move { Ok(2 * n) });
        let config = ServerConfig { lanes: vec![over(scheme)], ..Default::default() };
        let server = Server::start(&fabric(), config, vec![service]).unwrap();
        let address = server.addresses()[0].clone();
        let config = ClientConfig { endpoint: over(scheme), ..Default::default() };
        let client = Client::open(&fabric(), config, &Book::new(), &[&address]).unwrap();
        answers(&client, 1, "first");
        for (i, pause) in [0, 100].into_iter().enumerate() {
            let bad = fabric().open(EndpointConfig { progress: Progress::Inline, ..over(scheme) }).unwrap();
            let to = bad.peer(&address).unwrap();
            to.send("hello").wait().unwrap();
            // The lane is busy, or has been idle for long.
            std::thread::sleep(Duration::from_millis(pause));
            let large = || vec![Buffer::adopt(vec![1; 100_000]), Buffer::adopt(vec![2; 3 << 20])];
            let sends: Vec<_> = (0..3).map(|_| to.send_tagged(TO_SERVER, large())).collect();
            // Long enough for the promise to leave, and for the answer to come, which is not read.
            std::thread::sleep(Duration::from_millis(50));
            let begun = Instant::now();
            (0..20).for_each(|n| answers(&client, n, &format!("beside a slow one, {i} over {scheme}")));
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}, {i} over {scheme}", begun.elapsed());
            drop((sends, bad));
            (0..20).for_each(|n| answers(&client, n, &format!("after it went, {i} over {scheme}")));
        }
    });
}
