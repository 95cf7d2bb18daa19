//! Tests of `selftest`.

use super::load::{Kind, LoadSpec, Progress};
use super::*;
use crate::core::*;
use crate::nid::{Nid, ProcessId};
use crate::node::{NiConfig, Node, NodeParams};
use crate::tcp::TcpParams;
use crate::wire::lst::{LstBody, Service, SessionId};
use futures_lite::future::block_on;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(20);

fn node(text: &str, port: u16) -> (Node, ProcessId) {
    let nid: Nid = text.parse().unwrap();
    let node = Node::new(NodeParams::default()).unwrap();
    node.add_tcp(NiConfig::new(nid), TcpParams::unprivileged(port)).unwrap();
    (node, ProcessId::lnet(nid))
}

fn until(what: &str, mut f: impl FnMut() -> bool) {
    let start = Instant::now();
    while !f() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn patterns_hold_and_break() {
    for len in [1usize, 8, 12, 4096, 5000, 1 << 20] {
        for how in [Check::None, Check::Simple, Check::Full] {
            let mut data = vec![0x55; len];
            fill(&mut data, how);
            assert!(check(&data, how), "{len} {how:?}");
            data[0] ^= 1;
            assert_eq!(check(&data, how), how == Check::None);
            data[0] ^= 1;
            *data.last_mut().unwrap() ^= 1;
            assert_eq!(check(&data, how), how == Check::None, "{len} {how:?}");
            assert_eq!(Check::from_number(how.number()), Some(how));
        }
    }
    let mut data = vec![0; 16];
    fill(&mut data, Check::Full);
    assert_eq!(data[..8], [0xb3, 0xee, 0xb2, 0xee, 0xb1, 0xee, 0xb0, 0xee]);
}

#[test]
fn loads_run_without_errors_and_damage_is_seen() {
    let ((a, _), (b, b_id)) = (node("127.0.5.1@tcp", 19885), node("127.0.5.2@tcp", 19885));
    let agent = Agent::start(b.clone(), AgentParams::default()).unwrap();
    let rpc = Rpc::new(a);
    for (kind, size, check, concurrency) in [
        (Kind::Ping, 8, Check::None, 8),
        (Kind::Read, 1 << 20, Check::Full, 1),
        (Kind::Write, 1 << 20, Check::Full, 4),
        (Kind::Read, 1, Check::Simple, 8),
        (Kind::Write, 4096, Check::Simple, 8),
    ] {
        let spec =
            LoadSpec { kind, size, check, concurrency, loops: 5, timeout: WAIT, ..LoadSpec::default() };
        let report = load::run(&rpc, &[b_id], spec, &Progress::default()).unwrap();
        assert_eq!((report.calls, report.errors), (5 * u64::from(concurrency), 0), "{spec:?}");
        assert!(report.latency_us.p50 > 1.0 && report.latency_us.max >= report.latency_us.p50);
        serde_json::to_string(&report).unwrap();
    }
    // Data that does not hold the pattern is refused by the server.
    let bad = SharedBytes::zeroed(4096);
    let body = |ids: rpc::Ids| LstBody::Brw {
        reply_id: ids.reply_id,
        bulk_id: ids.bulk_id,
        op: 2,
        len: 4096,
        check: 3,
    };
    let reply = block_on(rpc.call(b_id, Service::Brw, body, Bulk::From(bad.memory()), WAIT)).unwrap();
    assert_eq!(reply, LstBody::BrwReply { status: errno::BAD_DATA });
    let body = |ids: rpc::Ids| LstBody::Brw {
        reply_id: ids.reply_id,
        bulk_id: ids.bulk_id,
        op: 2,
        len: 0,
        check: 3,
    };
    let reply = block_on(rpc.call(b_id, Service::Brw, body, Bulk::None, WAIT)).unwrap();
    assert_eq!(reply, LstBody::BrwReply { status: errno::INVALID });
    // Counted is what went well, and no question about it.
    let body = |ids: rpc::Ids| LstBody::Stat { reply_id: ids.reply_id, session: SessionId::NONE, kind: 0 };
    for _ in 0..2 {
        let reply = block_on(rpc.call(b_id, Service::Stat, body, Bulk::None, WAIT)).unwrap();
        let LstBody::StatReply { rpc: counts, .. } = reply else { panic!("{reply:?}") };
        assert_eq!((counts.bulk_put, counts.bulk_get), (5 << 20 | 40, 20 << 20 | 160 << 10));
        assert_eq!((counts.received, counts.sent), (147, 147));
    }
    drop(agent);
    let objects = b.with_engine(|e, _| e.core().objects());
    until("descriptors go", || b.with_engine(|e, _| e.core().objects().1) == 2 || objects.1 == 2);
}

#[test]
fn a_console_makes_sessions_and_drives_tests_between_others() {
    let (console_node, _) = node("127.0.6.1@tcp", 19886);
    let ((b, b_id), (c, c_id)) = (node("127.0.6.2@tcp", 19886), node("127.0.6.3@tcp", 19886));
    let _agents = [b, c].map(|n| Agent::start(n, AgentParams::default()).unwrap());
    let mut console = Console::new(console_node.clone(), "rw", WAIT);
    block_on(async {
        console.add_node(b_id, false).await.unwrap();
        console.add_node(c_id, false).await.unwrap();
        let mut other = Console::new(console_node.clone(), "other", WAIT);
        assert_eq!(other.add_node(b_id, false).await.unwrap_err().kind(), crate::ErrorKind::Denied);
        let distribute = Distribute::Ratio { clients: 1, servers: 1 };
        let spec =
            |kind| TestSpec { kind, size: 65536, check: Check::Full, concurrency: 2, loops: 10, distribute };
        for kind in [Kind::Ping, Kind::Read, Kind::Write] {
            console.add_test(1, &[b_id], &[c_id], spec(kind)).await.unwrap();
        }
        console.run(1, &[b_id]).await.unwrap();
        let active = |batch, id| *block_on(console.active(batch, &[id]))[0].as_ref().unwrap();
        until("the batch ends", || active(1, b_id) == 0);
        let (client, server) = (console.stat(b_id).await.unwrap(), console.stat(c_id).await.unwrap());
        assert_eq!((client.framework.brw_errors, client.framework.ping_errors), (0, 0));
        assert_eq!((server.rpc.bulk_put, server.rpc.bulk_get), (20 * 65536, 20 * 65536));
        assert_eq!((server.rpc.received, server.rpc.sent), (60, 60), "the console's own calls are none");
        let latency = |batch| block_on(console.batch_stat(b_id, batch)).unwrap().unwrap().latency;
        assert!(latency(1).is_some() && latency(2).is_none());
        // For ever, until stopped.
        console.add_test(2, &[c_id], &[b_id], TestSpec { loops: 0, ..spec(Kind::Ping) }).await.unwrap();
        console.run(2, &[c_id]).await.unwrap();
        assert_eq!(active(2, c_id), 1);
        console.stop(2, &[c_id]).await.unwrap();
        until("the batch stops", || active(2, c_id) == 0);
        assert!(console.run(99, &[c_id]).await.is_err());
        // More than a client may have in flight is not begun.
        let spec = TestSpec { concurrency: 256, distribute: Distribute::All, ..spec(Kind::Ping) };
        let error = console.add_test(3, &[b_id], &[c_id; 5], spec).await.unwrap_err();
        assert!(
            error.kind() == crate::ErrorKind::Invalid && error.to_string().contains("are 1280"),
            "{error}"
        );
        assert!(console.run(3, &[b_id]).await.is_err());
        let session = console.stat(b_id).await;
        assert!(session.is_ok());
        console.end().await.unwrap();
        other.add_node(b_id, false).await.unwrap();
        other.end().await.unwrap();
    });
}

#[test]
fn clients_are_dealt_out_to_servers() {
    let servers: Vec<ProcessId> = (1..=3).map(|i| ProcessId { nid: Nid::LO, pid: i }).collect();
    let pids = |d: Distribute, i| d.servers_of(i, &servers).iter().map(|s| s.pid).collect::<Vec<_>>();
    assert_eq!(pids("all".parse().unwrap(), 5), [1, 2, 3]);
    let two: Distribute = "2:1".parse().unwrap();
    assert_eq!((0..7).map(|i| pids(two, i)[0]).collect::<Vec<_>>(), [1, 1, 2, 2, 3, 3, 1]);
    assert_eq!(pids("1:2".parse().unwrap(), 1), [3]);
    assert!("0:1".parse::<Distribute>().is_err() && "x".parse::<Distribute>().is_err());
}

#[test]
fn silent_consoles_lose_their_session() {
    let ((a, _), (b, b_id)) = (node("127.0.7.1@tcp", 19887), node("127.0.7.2@tcp", 19887));
    let params = AgentParams { session_timeout: Duration::from_millis(300), ..AgentParams::default() };
    let _agent = Agent::start(b, params).unwrap();
    let mut first = Console::new(a.clone(), "first", WAIT);
    block_on(first.add_node(b_id, false)).unwrap();
    let mut second = Console::new(a, "second", WAIT);
    until("the session dies", || block_on(second.add_node(b_id, false)).is_ok());
    assert!(block_on(first.stat(b_id)).is_err());
    block_on(first.add_node(b_id, true)).unwrap();
}

/// The clients behind one that is gone are told all the same.
#[test]
fn a_dead_client_keeps_no_batch_running() {
    let (console_node, _) = node("127.0.11.1@tcp", 19891);
    let names = ["127.0.11.2@tcp", "127.0.11.3@tcp", "127.0.11.4@tcp"];
    let [(dead, dead_id), (b, b_id), (c, c_id)] = names.map(|n| node(n, 19891));
    let [gone, _b, _c] = [dead, b, c].map(|n| Agent::start(n, AgentParams::default()).unwrap());
    let clients = [dead_id, b_id];
    let mut console = Console::new(console_node, "rw", Duration::from_secs(3));
    let distribute = Distribute::All;
    let spec =
        TestSpec { kind: Kind::Ping, size: 8, check: Check::None, concurrency: 1, loops: 0, distribute };
    block_on(async {
        for id in [dead_id, b_id, c_id] {
            console.add_node(id, false).await.unwrap();
        }
        console.add_test(1, &clients, &[c_id], spec).await.unwrap();
        console.run(1, &clients).await.unwrap();
        drop(gone);
        let running = console.active(1, &clients).await;
        assert!(running[0].is_err() && matches!(running[1], Ok(1)), "{running:?}");
        assert!(console.stop(1, &clients).await.is_err());
        until("the living client stops", || matches!(block_on(console.active(1, &[b_id]))[0], Ok(0)));
        // Nor is one half begun.
        assert!(console.run(1, &[b_id, dead_id]).await.is_err());
        until("it was stopped again", || matches!(block_on(console.active(1, &[b_id]))[0], Ok(0)));
        let stats = console.stats(&[dead_id, c_id]).await;
        assert!(stats[0].is_err() && stats[1].is_ok());
        assert!(console.end().await.is_err());
    });
}

/// A console that says nothing else still says that it is there; nobody else is kept by it, and nothing once it is gone.
#[test]
fn a_quiet_console_keeps_its_session() {
    let ((a, _), (b, b_id)) = (node("127.0.14.1@tcp", 19890), node("127.0.14.2@tcp", 19890));
    let params = AgentParams { session_timeout: Duration::from_secs(2), ..AgentParams::default() };
    let _agent = Agent::start(b, params).unwrap();
    let mut quiet = Console::new(a.clone(), "quiet", WAIT);
    block_on(quiet.add_node(b_id, false)).unwrap();
    std::thread::sleep(Duration::from_secs(6));
    let mut other = Console::new(a, "other", WAIT);
    assert_eq!(block_on(other.add_node(b_id, false)).unwrap_err().kind(), crate::ErrorKind::Denied);
    block_on(quiet.stat(b_id)).unwrap();
    drop(quiet);
    until("the session dies with its console", || block_on(other.add_node(b_id, false)).is_ok());
}

#[test]
fn calls_to_nobody_end() {
    let ((a, _), (_b, b_id)) = (node("127.0.8.1@tcp", 19888), node("127.0.8.2@tcp", 19888));
    let rpc = Rpc::new(a.clone());
    let spec = LoadSpec { loops: 1, timeout: Duration::from_millis(200), ..LoadSpec::default() };
    let report = load::run(&rpc, &[b_id], spec, &Progress::default()).unwrap();
    assert_eq!((report.calls, report.errors), (0, 1));
    until("nothing is left", || a.with_engine(|e, _| e.core().objects().1) == 2);
}
