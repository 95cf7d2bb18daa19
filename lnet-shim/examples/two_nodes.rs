//! Two nodes in one process: ping, discovery, a put, a get, and a self-test load in both directions.
//!
//! `cargo run --release -p lnet-shim --example two_nodes`

use std::time::Duration;

use futures_lite::future::block_on;
use lnet_shim::command;
use lnet_shim::core::{Access, EventQueue, MeParams, SharedBytes, TargetOptions, Unlink};
use lnet_shim::nid::{Nid, ProcessId};
use lnet_shim::node::{NiConfig, Node, NodeParams};
use lnet_shim::selftest::load::{Kind, LoadSpec, Progress};
use lnet_shim::selftest::{Agent, AgentParams, Check};
use lnet_shim::tcp::TcpParams;

fn node(nid: Nid) -> lnet_shim::Result<Node> {
    let node = Node::new(NodeParams::default())?;
    node.add_tcp(NiConfig::new(nid), TcpParams::unprivileged(6988))?;
    Ok(node)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (a, b): (Nid, Nid) = ("127.0.0.11@tcp".parse()?, "127.0.0.12@tcp".parse()?);
    let (client, server) = (node(a)?, node(b)?);
    let timeout = Duration::from_secs(5);

    let events = EventQueue::new(64);
    let memory = SharedBytes::zeroed(4096);
    let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(9, 0x42) };
    let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::PutGet) };
    server.attach(entry, memory.memory(), options, &events.sink())?;

    let target = ProcessId::lnet(b);
    block_on(client.put_bytes(target, 9, 0x42, b"hello".to_vec(), timeout))?;
    let back = block_on(client.get_bytes(target, 9, 0x42, 0, 5, timeout))?;
    println!("{:?}: {}", events.try_recv().map(|e| e.kind), String::from_utf8_lossy(&back));

    let _agent = Agent::start(server, AgentParams::default())?;
    for (kind, concurrency) in [
        (Kind::Ping, 1),
        (Kind::Ping, 8),
        (Kind::Read, 1),
        (Kind::Read, 8),
        (Kind::Write, 1),
        (Kind::Write, 8),
    ] {
        let (duration, check) = (Duration::from_secs(1), Check::Simple);
        let spec =
            LoadSpec { kind, size: 1 << 20, check, concurrency, duration, timeout, ..LoadSpec::default() };
        let r = command::lst(&client, &[b], spec, false, &Progress::default())?.report;
        println!(
            "{kind:?} x{concurrency}: {:.0} RPC/s, {:.0} MiB/s, p50 {:.0} us, p99 {:.0} us, {} errors",
            r.rpcs_per_second, r.mib_per_second, r.latency_us.p50, r.latency_us.p99, r.errors
        );
    }
    Ok(())
}
