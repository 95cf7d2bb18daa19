//! The RPC layer over real endpoints, in one process: what a user of it relies on.

mod common;

use common::{fabric, over, until};
use kfab::{EndpointConfig, Rights};
use lnet_shim::nid::Nid;
use lnet_shim::rpc::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const PORTAL: u8 = 6;
const ADD: Method<(u32, u32), u64> = Method::new(PORTAL, 1);
const FAIL: Method<String, ()> = Method::new(PORTAL, 2);
const SLEEP: Method<u64, u64> = Method::new(PORTAL, 3);
const WRITE: Method<u64, u32> = Method::new(PORTAL, 4);
const READ: Method<(u64, u8), ()> = Method::new(PORTAL, 5);
const WHO: Method<(), (String, bool)> = Method::new(PORTAL, 6);
const BLOCK: Method<u64, ()> = Method::new(PORTAL, 7);
const PANIC: Method<(), ()> = Method::new(PORTAL, 8);
const LATER: Method<u64, u64> = Method::new(PORTAL, 9);
const HOLD: Method<(), ()> = Method::new(PORTAL, 10);
const ECHO: u16 = 20;

fn checksum(parts: &[kfab::Buffer]) -> u32 {
    parts.iter().flat_map(|b| b.iter()).fold(0u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(*b)))
}

/// Wakes its task after a while, from a thread of its own.
async fn sleep(ms: u64) {
    let until = Instant::now() + Duration::from_millis(ms);
    std::future::poll_fn(|cx| {
        if Instant::now() >= until {
            return std::task::Poll::Ready(());
        }
        let waker = cx.waker().clone();
        std::thread::spawn(move || {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            waker.wake();
        });
        std::task::Poll::Pending
    })
    .await;
}

/// Set when [`HOLD`] may end.
static LET_GO: AtomicBool = AtomicBool::new(false);

struct Dropped(Arc<AtomicU64>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn service(dropped: &Arc<AtomicU64>) -> Service {
    let (dropped, held) = (dropped.clone(), dropped.clone());
    Service::new("test", PORTAL)
        .on(ADD, |_, (a, b)| async move { Ok(u64::from(a) + u64::from(b)) })
        .on(FAIL, |_, why: String| async move { Err(Error::failed(17, why)) })
        .on(SLEEP, move |_, ms| {
            let guard = Dropped(dropped.clone());
            async move {
                sleep(ms).await;
                drop(guard);
                Ok(ms)
            }
        })
        .on(HOLD, move |_, ()| {
            let guard = Dropped(held.clone());
            async move {
                while !LET_GO.load(Ordering::SeqCst) {
                    sleep(5).await;
                }
                drop(guard);
                Ok(())
            }
        })
        .on(WRITE, |request, at| async move {
            let bulk = request.bulk()?;
            Ok(checksum(&bulk.get(at, (bulk.readable() - at) as usize).await?))
        })
        .on(READ, |request, (at, byte)| async move {
            let bulk = request.bulk()?;
            let mut buffer = bulk.buffer((bulk.writable() - at) as usize)?;
            buffer.get_mut().expect("a new buffer has one owner").fill(byte);
            bulk.put(at, &[buffer]).await
        })
        .on(WHO, |request, ()| async move { Ok((request.job().unwrap_or("").to_owned(), request.is_high())) })
        .on(BLOCK, |_, ms| async move {
            std::thread::sleep(Duration::from_millis(ms));
            Ok(())
        })
        .on(PANIC, |_, ()| async move { panic!("on purpose") })
        .on(LATER, |request, n| async move {
            assert!(request.remaining().is_some());
            sleep(1).await;
            sleep(1).await;
            Ok(n + 1)
        })
        .on_bytes(ECHO, |_, body| async move { Ok(body) })
}

struct Pair {
    server: Server,
    client: Client,
    dropped: Arc<AtomicU64>,
    _watchdog: std::sync::mpsc::Sender<()>,
}

fn pair_with(scheme: &str, server: ServerConfig, client: ClientConfig) -> Pair {
    let dropped = Arc::default();
    let server = ServerConfig { lanes: vec![over(scheme); server.lanes.len()], ..server };
    let server = Server::start(&fabric(), server, vec![service(&dropped)]).unwrap();
    let addresses = server.addresses();
    let names: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let client = ClientConfig { endpoint: over(scheme), ..client };
    let client = Client::open(&fabric(), client, &Book::new(), &names).unwrap();
    Pair { server, client, dropped, _watchdog: common::watchdog("a call", 60) }
}

fn pair(scheme: &str) -> Pair {
    pair_with(scheme, ServerConfig::default(), ClientConfig::default())
}

#[test]
fn calls_are_answered_whatever_their_size() {
    for scheme in ["shm", "tcp"] {
        let p = pair(scheme);
        assert_eq!(p.client.call(ADD, &(2, u32::MAX)).wait().unwrap(), 2 + u64::from(u32::MAX));
        for len in [0, 1, 64, 65, 1000, 2048, 2049, 10_000, 1 << 20] {
            let bytes: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
            let back = p.client.call_bytes(PORTAL, ECHO, bytes.clone()).wait().unwrap();
            assert!(*back == bytes[..], "{len} bytes over {scheme}");
        }
        let e = p.client.call_bytes(PORTAL, ECHO, vec![0; (1 << 20) + 1]).wait().unwrap_err();
        assert_eq!(e.kind(), Kind::Invalid);
        let stats = &p.server.stats()[0];
        until("counted", || p.server.stats()[0].ok == 10);
        assert_eq!((stats.name.as_str(), stats.failed), ("test", 0));
    }
}

#[test]
fn errors_say_what_happened_and_whether_it_ran() {
    let p = pair("shm");
    let e = p.client.call(FAIL, &"no such object".to_owned()).wait().unwrap_err();
    assert_eq!((e.kind(), e.fate()), (Kind::Failed(17), Fate::Executed));
    assert!(e.context().contains("no such object"));
    for (portal, opcode) in [(PORTAL, 99), (7, 1)] {
        let e = p.client.call_bytes(portal, opcode, b"").wait().unwrap_err();
        assert_eq!((e.kind(), e.fate()), (Kind::NoService, Fate::NotExecuted));
    }
    let e = p.client.call_bytes(PORTAL, ADD.opcode(), b"\xff").wait().unwrap_err();
    assert_eq!((e.kind(), e.fate()), (Kind::Protocol, Fate::NotExecuted));
    let e = p.client.call(PANIC, &()).wait().unwrap_err();
    assert_eq!(e.kind(), Kind::Failed(u32::MAX));
    assert_eq!(p.client.call(WRITE, &0).wait().unwrap_err().kind(), Kind::Bulk);
    assert_eq!(p.client.call(ADD, &(1, 1)).wait().unwrap(), 2);
}

#[test]
fn many_calls_from_one_thread_and_from_many() {
    for scheme in ["shm", "tcp"] {
        let p = pair(scheme);
        let calls: Vec<_> = (0..1000).map(|i| p.client.call(ADD, &(i, 1)).start()).collect();
        for (i, call) in calls.into_iter().enumerate() {
            assert_eq!(call.wait().unwrap(), i as u64 + 1);
        }
        std::thread::scope(|s| {
            for t in 0..4 {
                let client = p.client.clone();
                s.spawn(move || {
                    for i in 0..200 {
                        assert_eq!(client.call(ADD, &(i, t)).wait().unwrap(), u64::from(i + t));
                    }
                });
            }
        });
        until("counted", || p.server.stats()[0].ok == 1800);
    }
}

#[test]
fn calls_are_awaited_in_our_loop_and_in_a_foreign_one() {
    let p = pair("shm");
    let client = &p.client;
    let work = |i: u64| async move { client.call(LATER, &i).await.unwrap() };
    let all = p.client.block_on(async {
        let (a, b) = futures_lite::future::zip(work(1), work(2)).await;
        a + b
    });
    assert_eq!(all, 5);
    let foreign = std::thread::scope(|s| {
        let threads: Vec<_> =
            (0..4).map(|i| s.spawn(move || futures_lite::future::block_on(work(i)))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum::<u64>()
    });
    assert_eq!(foreign, 10);
    let call = p.client.call(LATER, &7);
    assert_eq!(futures_lite::future::block_on(async { call.await }).unwrap(), 8);
}

#[test]
fn the_server_moves_bulk_data_both_ways_in_fragments() {
    for scheme in ["shm", "tcp"] {
        let p = pair(scheme);
        let big: Vec<u8> = (0..3 << 20).map(|i: u32| (i ^ (i >> 9)) as u8).collect();
        let small: Vec<u8> = (0..1000).map(|i: u32| i as u8).collect();
        let windows: Vec<_> = [&big, &small]
            .map(|bytes| {
                let mut buffer = p.client.buffer(bytes.len()).unwrap();
                buffer.get_mut().unwrap().copy_from_slice(bytes);
                p.client.window_of(buffer).unwrap()
            })
            .into();
        let all = [&big[5..], &small[..]].concat();
        let sum = p.client.call(WRITE, &5).window(&windows[0]).window(&windows[1]).wait().unwrap();
        assert_eq!(sum, checksum(&[all.into()]), "{scheme}");

        let into =
            [p.client.window(2 << 20, Rights::WRITE).unwrap(), p.client.window(777, Rights::WRITE).unwrap()];
        p.client.call(READ, &(100, 9)).window(&into[0]).window(&into[1]).wait().unwrap();
        for (window, untouched) in into.iter().zip([100, 0]) {
            let mut bytes = vec![1; window.len()];
            window.read_at(0, &mut bytes);
            assert!(bytes[..untouched].iter().all(|b| *b == 0) && bytes[untouched..].iter().all(|b| *b == 9));
        }
        until("counted", || p.server.stats()[0].bulk_bytes > 5 << 20);
        let moved = p.server.stats()[0].bulk_ns.len();
        assert_eq!(moved, 2);
        drop((windows, into));
        assert_eq!(p.client.endpoint().stats().lane.windows, 0);
    }
}

#[test]
fn a_call_closes_its_windows_at_its_end_though_nobody_takes_it() {
    let p = pair("shm");
    let window = p.client.window(100, Rights::WRITE).unwrap();
    let call = p.client.call(READ, &(0, 7)).window(&window).start();
    drop(window);
    let open = || p.client.endpoint().stats().lane.windows;
    assert_eq!(open(), 1);
    until("the window is closed", || {
        p.client.flush();
        open() == 0
    });
    call.wait().unwrap();
}

#[test]
fn jobs_and_priority_travel_and_are_counted() {
    let config = ClientConfig { job: Some("cp.500".into()), ..Default::default() };
    let p = pair_with("shm", ServerConfig::default(), config);
    assert_eq!(p.client.call(WHO, &()).wait().unwrap(), ("cp.500".into(), false));
    assert_eq!(p.client.call(WHO, &()).job("dd.7").high().wait().unwrap(), ("dd.7".into(), true));
    assert_eq!(p.client.call(WHO, &()).job(&"x".repeat(33)).wait().unwrap_err().kind(), Kind::Invalid);
    until("counted", || p.server.stats()[0].jobs.len() == 2);
    assert_eq!(p.server.stats()[0].jobs["dd.7"], JobStats { calls: 1, bulk_bytes: 0 });
    // Bytes both ways, of calls that ended when their data had moved.
    let read = p.client.window(300_000, Rights::WRITE).unwrap();
    p.client.call(READ, &(0, 5)).job("dd.7").window(&read).wait().unwrap();
    let written = p.client.window(70_000, Rights::READ).unwrap();
    p.client.call(WRITE, &0).job("dd.7").window(&written).wait().unwrap();
    p.client.call(WRITE, &0).window(&written).wait().unwrap();
    until("bytes are counted", || p.server.stats()[0].bulk_bytes == 440_000);
    let jobs = &p.server.stats()[0].jobs;
    assert_eq!(jobs["dd.7"], JobStats { calls: 3, bulk_bytes: 370_000 });
    assert_eq!(jobs["cp.500"], JobStats { calls: 2, bulk_bytes: 70_000 });
}

#[test]
fn a_cancelled_call_drops_its_handler_and_a_late_one_ends_in_time() {
    let p = pair("shm");
    let call = p.client.call(SLEEP, &10_000).start();
    until("running", || {
        p.client.flush();
        p.server.stats()[0].queue_ns.len() == 1
    });
    assert_eq!(call.cancel().unwrap_err().kind(), Kind::Canceled);
    until("dropped", || p.dropped.load(Ordering::SeqCst) == 1);

    let began = Instant::now();
    let e = p.client.call(SLEEP, &10_000).limit(Duration::from_millis(50)).wait().unwrap_err();
    assert_eq!((e.kind(), e.fate()), (Kind::TimedOut, Fate::Unknown));
    assert!(began.elapsed() < Duration::from_secs(5));
    until("dropped", || p.dropped.load(Ordering::SeqCst) == 2);
    drop(p.client.call(SLEEP, &10_000).start());
    // The late one is over for the server when its time is, or when the client says so: whichever it hears of first.
    let over = || (p.server.stats()[0].abandoned, p.server.stats()[0].expired);
    until("counted", || over().0 + over().1 == 3);
    assert!(over().0 >= 2, "{:?}", over());
    assert_eq!(p.client.call(ADD, &(1, 1)).wait().unwrap(), 2);
}

#[test]
fn a_call_cancelled_while_it_waits_counts_and_never_begins() {
    let limits = ServerLimits { running: 1, ..Default::default() };
    let p = pair_with("shm", ServerConfig { limits, ..Default::default() }, ClientConfig::default());
    let first = p.client.call(HOLD, &()).start();
    until("running", || {
        p.client.flush();
        p.server.stats()[0].queue_ns.len() == 1
    });
    let second = p.client.call(SLEEP, &10_000).start();
    p.client.flush();
    assert_eq!(second.cancel().unwrap_err().kind(), Kind::Canceled);
    until("counted", || p.server.stats()[0].abandoned == 1);
    LET_GO.store(true, Ordering::SeqCst);
    first.wait().unwrap();
    assert_eq!((p.server.stats()[0].queue_ns.len(), p.dropped.load(Ordering::SeqCst)), (1, 1));
}

#[test]
fn a_slow_server_says_so_and_is_not_asked_again_and_again() {
    let limits = ClientLimits {
        patience_min: Duration::from_millis(300),
        limit: Duration::from_millis(1500),
        ..Default::default()
    };
    let p = pair_with("shm", ServerConfig::default(), ClientConfig { limits, ..Default::default() });
    assert_eq!(p.client.call(SLEEP, &3000).wait().unwrap(), 3000);
    let counts = p.client.counts();
    assert!(counts.early >= 1 && counts.resent <= 1, "{counts:?}");
    // The estimate has come with the reply: the next is waited for without being asked for.
    assert_eq!(p.client.call(SLEEP, &900).wait().unwrap(), 900);
    assert_eq!(p.client.counts().early, counts.early);
}

#[test]
fn overload_is_sent_back_and_comes_again() {
    let limits = ServerLimits { queue: 4, running: 2, slots: 64, ..Default::default() };
    let p = pair_with("shm", ServerConfig { limits, ..Default::default() }, ClientConfig::default());
    let calls: Vec<_> = (0..60).map(|_| p.client.call(SLEEP, &3).start()).collect();
    for call in calls {
        assert_eq!(call.wait().unwrap(), 3);
    }
    assert!(p.client.counts().retry_after > 0);
    until("counted", || p.server.counts().desk.retry_after > 0);
    assert_eq!(p.server.stats()[0].ok, 60);
}

#[test]
fn liveness_traffic_passes_a_full_server() {
    let limits = ServerLimits { queue: 2, running: 1, ..Default::default() };
    let p = pair_with("shm", ServerConfig { limits, ..Default::default() }, ClientConfig::default());
    let slow: Vec<_> = (0..20).map(|_| p.client.call(SLEEP, &25_000).start()).collect();
    until("full", || {
        p.client.flush();
        p.server.counts().desk.retry_after > 0
    });
    assert!(p.client.call(WHO, &()).high().wait().unwrap().1);
    assert_eq!(p.dropped.load(Ordering::SeqCst), 0, "it waited for a slow one");
    drop(slow);
}

#[test]
fn a_client_comes_back_over_another_lane_and_nothing_runs_twice() {
    let config = ServerConfig { lanes: vec![EndpointConfig::default(); 2], ..Default::default() };
    let limits = ClientLimits { patience_min: Duration::from_millis(30), tries: 1, ..Default::default() };
    let p = pair_with("tcp", config, ClientConfig { limits, ..Default::default() });
    assert_eq!(p.client.call(ADD, &(1, 1)).wait().unwrap(), 2);
    // The lane sleeps in its handler: no early reply, so the client turns to the other one.
    let blocked = p.client.call(BLOCK, &700).start();
    let other = p.client.call(ADD, &(20, 1)).start();
    assert_eq!(other.wait().unwrap(), 21);
    blocked.wait().unwrap();
    assert!(p.client.counts().links_lost > 0);
    until("counted", || p.server.stats()[0].ok >= 3);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(p.server.stats()[0].ok, 3);
    assert_eq!(p.server.counts().clients, 1);
}

#[test]
fn a_restarted_server_is_seen_and_calls_fail_or_are_replayed() {
    for replay in [Replay::Never, Replay::Always] {
        let _watchdog = common::watchdog("a call", 60);
        let dropped = Arc::default();
        let start = |listen: &str| {
            let lane = EndpointConfig { listen: vec![listen.into()], ..over("tcp") };
            Server::start(
                &fabric(),
                ServerConfig { lanes: vec![lane], ..Default::default() },
                vec![service(&dropped)],
            )
        };
        let server = start("tcp:127.0.0.1:0").unwrap();
        let address = server.addresses()[0].clone();
        let mut book = Book::new();
        book.add("57@kfi".parse::<Nid>().unwrap(), &address);
        let config = ClientConfig { endpoint: over("tcp"), ..Default::default() };
        let client = Client::open(&fabric(), config, &book, &["57@kfi"]).unwrap();
        assert_eq!(client.call(ADD, &(1, 1)).wait().unwrap(), 2);
        let first = client.incarnation();
        assert_eq!(first, server.incarnation());
        let call = client.call(SLEEP, &500).replay(replay).start();
        client.flush();
        until("running", || server.stats()[0].queue_ns.len() == 2);
        drop(server);
        let server = start(&address).unwrap();
        match (replay, call.wait()) {
            (Replay::Never, Err(e)) => assert_eq!((e.kind(), e.fate()), (Kind::Restarted, Fate::Unknown)),
            (Replay::Always, Ok(500)) => {}
            (_, other) => panic!("{replay:?}: {other:?}"),
        }
        assert_eq!(client.call(ADD, &(1, 2)).wait().unwrap(), 3);
        assert_eq!(client.incarnation(), server.incarnation());
        assert_ne!(client.incarnation(), first);
        assert_eq!(client.counts().restarts, 1);
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_in_time() {
    let _watchdog = common::watchdog("a call", 60);
    let limits = ClientLimits { connect: Duration::from_millis(200), ..Default::default() };
    let config = ClientConfig { endpoint: over("tcp"), limits, ..Default::default() };
    let client = Client::open(&fabric(), config, &Book::new(), &["tcp:127.0.0.1:9"]).unwrap();
    let e = client.call(ADD, &(1, 1)).limit(Duration::from_millis(600)).wait().unwrap_err();
    assert_eq!((e.kind(), e.fate()), (Kind::Unreachable, Fate::NotExecuted));
}

#[test]
fn clients_that_leave_or_fall_silent_are_forgotten() {
    let limits = ServerLimits { linger: Duration::from_secs(1), clients: 2, ..Default::default() };
    let p = pair_with("shm", ServerConfig { limits, ..Default::default() }, ClientConfig::default());
    assert_eq!(p.client.call(ADD, &(1, 1)).wait().unwrap(), 2);
    assert_eq!(p.server.counts().clients, 1);
    until("forgotten", || p.server.counts().clients == 0);
    assert_eq!(p.client.call(ADD, &(2, 2)).wait().unwrap(), 4);
    assert_eq!(p.server.counts().clients, 1);
    let Pair { server, client, .. } = p;
    drop(client);
    until("gone", || server.counts().clients == 0);
}
