//! Ten thousand calls over real endpoints that lose and delay: every call ends once, none runs twice.

mod common;

use common::{fabric, over, watchdog};
use kfab::{FaultAction, FaultRule};
use lnet_shim::rpc::*;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PORTAL: u8 = 6;
const MARK: Method<u32, u64> = Method::new(PORTAL, 1);
const CALLS: u32 = 10_000;

/// Makes the calls, 64 under way, and checks each; the client's and the server's counts.
fn ten_thousand(scheme: &str, faults: Faults, before: impl Fn(&Client)) -> (ClientCounts, ServerCounts) {
    let _watchdog = watchdog("ten thousand calls", 150);
    let fabric = fabric();
    let ran: Arc<Vec<AtomicU32>> = Arc::new((0..CALLS).map(|_| AtomicU32::new(0)).collect());
    let marks = ran.clone();
    let service = Service::new("marks", PORTAL).on(MARK, move |_, n| {
        marks[n as usize].fetch_add(1, Ordering::SeqCst);
        async move { Ok(u64::from(n) * 7) }
    });
    let config = ServerConfig { lanes: vec![over(scheme)], faults, ..Default::default() };
    let server = Server::start(&fabric, config, vec![service]).unwrap();
    // Where nothing is lost, nothing is to be sent again, however busy the machine is.
    let patience_min = if faults.drop > 0.0 { Duration::from_millis(10) } else { Duration::from_secs(5) };
    let limits = ClientLimits { patience_min, tries: 1000, ..Default::default() };
    let config = ClientConfig { endpoint: over(scheme), faults, limits, ..Default::default() };
    let client = Client::open(&fabric, config, &Book::new(), &[&server.addresses()[0]]).unwrap();
    assert_eq!(client.call(MARK, &0).wait().unwrap(), 0);
    before(&client);
    let mut under_way = VecDeque::new();
    let mut check = |(n, call): (u32, Call<u64>)| assert_eq!(call.wait().unwrap(), u64::from(n) * 7);
    for n in 1..CALLS {
        if under_way.len() == 64 {
            under_way.pop_front().map(&mut check);
        }
        under_way.push_back((n, client.call(MARK, &n).start()));
    }
    under_way.into_iter().for_each(check);
    std::thread::sleep(Duration::from_millis(50));
    let twice: Vec<_> = (0..CALLS).filter(|n| ran[*n as usize].load(Ordering::SeqCst) != 1).collect();
    assert!(twice.is_empty(), "not run once: {twice:?}");
    (client.counts(), server.counts())
}

#[test]
fn packets_that_are_lost_doubled_and_late() {
    let faults = Faults { drop: 0.1, duplicate: 0.05, delay: 0.1, late: Duration::from_millis(3), seed: 11 };
    let (client, server) = ten_thousand("shm", faults, |_| {});
    assert!(client.resent > 0 && server.desk.answered_again > 0, "{client:?} {server:?}");
    assert_eq!(client.damaged + server.desk.damaged, 0);
}

#[test]
fn frames_that_the_fabric_loses_and_delays_are_its_own_affair() {
    let (client, _) = ten_thousand("tcp", Faults::default(), |client| {
        let rule = |action, chance, seed| FaultRule { peer: None, port: None, action, chance, seed };
        client.endpoint().add_fault(rule(FaultAction::Drop, 0.1, 3)).unwrap();
        client.endpoint().add_fault(rule(FaultAction::Delay { ns: 2_000_000 }, 0.1, 4)).unwrap();
    });
    assert_eq!(client.damaged, 0);
}

/// The twin: nothing is sent again where nothing is lost.
#[test]
fn a_sound_network() {
    let (client, server) = ten_thousand("shm", Faults::default(), |_| {});
    assert_eq!((client.stale, server.desk.damaged, server.desk.strangers), (0, 0, 0));
}
