//! Two rails between two network namespaces of the test's own making: striping, a cut link, a healed one, loss, shaping.
//!
//! Needs root, `ip`, `tc` and `nft`. Where a first try shows that namespaces cannot be made, or nothing filtered in them, the tests are
//! skipped; where they can, whatever else goes wrong fails.

mod common;

use common::child::{self, Kid};
use common::skip::skip;
use common::traffic::{self, Arrivals, Numbers, send_until};
use common::{config, node, relay, watched_for};
use kfab::{Endpoint, EndpointConfig, SendOptions};
use std::collections::VecDeque;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// One network at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Two namespaces, `a` and `b`, joined by two cables; gone when dropped.
struct Net {
    a: String,
    b: String,
    _alone: std::sync::MutexGuard<'static, ()>,
}

fn try_sh(line: &str) -> Result<(), String> {
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().map_err(|e| format!("{line}: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{line}: {}", String::from_utf8_lossy(&out.stderr)))
    }
}

fn sh(line: &str) {
    try_sh(line).unwrap_or_else(|e| panic!("{e}"));
}

/// Why namespaces and cables between them cannot be made, if they cannot.
fn probe() -> Result<(), String> {
    let name = format!("kfp{}", std::process::id());
    let made = try_sh(&format!("ip netns add {name}"))
        .and_then(|()| try_sh(&format!("ip -n {name} link add r0 type veth peer name r1")));
    let _ = try_sh(&format!("ip netns del {name}"));
    made
}

impl Net {
    /// `None` where this is not permitted: the test is skipped.
    fn new() -> Option<Net> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        static PROBE: OnceLock<Result<(), String>> = OnceLock::new();
        let alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(e) = PROBE.get_or_init(probe) {
            skip("namespaces", &format!("no network namespaces here: {e}"));
            return None;
        }
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let net = Net { a: format!("kfa{id}"), b: format!("kfb{id}"), _alone: alone };
        net.build();
        Some(net)
    }

    fn build(&self) {
        let (a, b) = (&self.a, &self.b);
        for n in [a, b] {
            // A process of this number may have been ended before it removed its own.
            let _ = try_sh(&format!("ip netns del {n}"));
            sh(&format!("ip netns add {n}"));
            sh(&format!("ip -n {n} link set lo up"));
        }
        for i in 0..2 {
            sh(&format!("ip -n {a} link add r{i} type veth peer name r{i} netns {b}"));
            for (n, host) in [(a, 1), (b, 2)] {
                sh(&format!("ip -n {n} addr add 10.77.{i}.{host}/24 dev r{i}"));
                sh(&format!("ip -n {n} link set r{i} up"));
            }
        }
    }

    /// Whether packets can be filtered here; where not, the test is skipped.
    fn can_filter(&self) -> bool {
        let tried = try_sh(&format!("ip netns exec {} nft add table inet probe", self.a));
        tried.map_err(|e| skip("firewall", &format!("packets cannot be filtered here: {e}"))).is_ok()
    }

    fn link(&self, rail: usize, state: &str) {
        sh(&format!("ip -n {} link set r{rail} {state}", self.a));
    }

    /// Shapes the rail to some Mbit/s, both ways.
    fn shape(&self, rail: usize, mbit: u32) {
        for n in [&self.a, &self.b] {
            sh(&format!(
                "ip netns exec {n} tc qdisc add dev r{rail} root tbf rate {mbit}mbit burst 64kb latency 50ms"
            ));
        }
    }

    /// Drops one packet of a hundred that come in by the rail, on both sides.
    fn lose(&self, rail: usize) {
        for n in [&self.a, &self.b] {
            for rule in [
                "add table inet loss".to_owned(),
                "add chain inet loss in { type filter hook input priority 0 ; }".to_owned(),
                format!("add rule inet loss in iifname r{rail} numgen random mod 100 == 0 drop"),
            ] {
                sh(&format!("ip netns exec {n} nft {rule}"));
            }
        }
    }

    /// Puts a cable in user space in a rail's place: so much delay from `a` to `b`, and from `b` to `a`. It lasts as long as what is
    /// returned.
    fn delay(&self, rail: usize, there: Duration, back: Duration) -> Cable {
        let folder = std::env::temp_dir().join(&self.a);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        sh(&format!("ip -n {} link del r{rail}", self.a));
        let path = |side: &str| folder.join(side).to_string_lossy().into_owned();
        let (a, b, card) = (path("a"), path("b"), format!("r{rail}"));
        let us = |d: Duration| d.as_micros().to_string();
        let ends = [
            Kid::start_in(&self.a, "cable", &[&card, &a, &b, &us(there)]),
            Kid::start_in(&self.b, "cable", &[&card, &b, &a, &us(back)]),
        ];
        let cable = Cable { ends, folder };
        for (end, n, host) in [(0, &self.a, 1), (1, &self.b, 2)] {
            cable.ends[end].says("ready");
            sh(&format!("ip -n {n} addr add 10.77.{rail}.{host}/24 dev r{rail}"));
            sh(&format!("ip -n {n} link set r{rail} up"));
        }
        cable
    }

    /// Lets nobody connect to `a`.
    fn wall(&self) {
        for rule in [
            "add table inet wall",
            "add chain inet wall in { type filter hook input priority 0 ; }",
            "add rule inet wall in tcp flags & (syn|ack) == syn drop",
        ] {
            sh(&format!("ip netns exec {} nft {rule}", self.a));
        }
    }

    /// The ports of `a` that connections to the server's lead from.
    fn ports(&self) -> Vec<String> {
        let all = Command::new("ip")
            .args(["netns", "exec", &self.a, "ss", "-Htn", "state", "established"])
            .output();
        let all = String::from_utf8(all.expect("ss").stdout).unwrap();
        let port = |line: &str| {
            let mut ends = line.split_whitespace().skip(2);
            let (here, there) = (ends.next()?, ends.next()?);
            there.ends_with(":7000").then(|| here.rsplit(':').next().unwrap().to_owned())
        };
        all.lines().filter_map(port).collect()
    }

    /// What is on this connection's way is lost from now on, both ways, and nobody is told.
    fn forget(&self, port: &str) {
        for rule in [
            "add chain inet wall out { type filter hook output priority 0 ; }".to_owned(),
            format!("add rule inet wall in tcp dport {port} drop"),
            format!("add rule inet wall out tcp sport {port} drop"),
        ] {
            sh(&format!("ip netns exec {} nft {rule}", self.a));
        }
    }

    /// A sink in `b` on these rails, and a source in `a` that sends to it.
    fn run(&self, rails: &str) -> Pair {
        let sink = Kid::start_in(&self.b, "sink", &[rails]);
        let address = sink.says("ready");
        let source = Kid::start_in(&self.a, "source", &[rails, &address]);
        source.says("ready");
        Pair { source, sink, patience: PATIENCE }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for n in [&self.a, &self.b] {
            let _ = try_sh(&format!("ip netns del {n}"));
        }
    }
}

/// A cable in user space.
struct Cable {
    ends: [Kid; 2],
    folder: std::path::PathBuf,
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ends.iter_mut().for_each(Kid::kill);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

type Pair = traffic::Pair<2>;

/// How long single steps may take.
const PATIENCE: Duration = Duration::from_secs(40);

/// Not a test of its own: what the children do.
#[test]
fn child_main() {
    let Some(role) = child::role() else { return };
    match role[0].as_str() {
        "sink" => sink(&role[1]),
        "source" => source(&role[1], &role[2]),
        "slow" => slow(),
        "waits" => waits(&role[1]),
        "cable" => {
            let delay = Duration::from_micros(role[4].parse().unwrap());
            relay::end_of_cable(&role[1], &role[2], &role[3], delay);
        }
        other => panic!("{other}"),
    }
}

/// An endpoint with a port on each of these rails; `host` is 1 or 2.
fn on_rails(rails: &str, host: u32) -> Endpoint {
    let rails: Vec<_> = rails.split(',').collect();
    let c = EndpointConfig {
        listen: rails.iter().map(|i| format!("tcp:10.77.{i}.{host}:7000")).collect(),
        devices: rails.iter().map(|i| format!("tcp:r{i}")).collect(),
        ..config("tcp")
    };
    // Separate networks with nobody else in them: the key is only what listening beyond loopback asks for.
    node::plain_fabric().open(c).unwrap()
}

/// A server that answers each question when it is told to.
fn slow() {
    let e = on_rails("0", 2);
    let (tx, told) = std::sync::mpsc::channel();
    child::listen(move |_| tx.send(()).unwrap());
    child::say(&format!("ready {}", e.address()));
    loop {
        let m = e.recv().wait().unwrap();
        child::say("asked");
        told.recv().unwrap();
        m.from().send_with(&m, SendOptions { delivered: true, ..Default::default() }).wait().unwrap();
        child::say("answered");
    }
}

/// A client that asks two questions, one after the other.
fn waits(address: &str) {
    let e = on_rails("0", 1);
    child::listen(|_| {});
    let to = e.peer(address).unwrap();
    for question in [b"one", b"two"] {
        to.send(question).wait().unwrap();
        assert_eq!(&e.recv().wait().unwrap()[..], question);
        child::say("got");
    }
}

/// Receives that the sink has posted: so many large messages can be on their way at once.
const RECEIVES: usize = 4;

/// Receives numbered messages, each exactly once and whole.
fn sink(rails: &str) {
    let e = Arc::new(on_rails(rails, 2));
    let (count, gap) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    child::say(&format!("ready {}", e.address()));
    let (seen_by, seen_gap, seen_e) = (count.clone(), gap.clone(), e.clone());
    let mut arrivals = Arrivals::<2>::new();
    child::listen(move |word| match word {
        "gap" => child::say(&format!("gap {}", seen_gap.swap(0, Ordering::Relaxed))),
        _ => child::say(&arrivals.line(&seen_e, seen_by.load(Ordering::Relaxed))),
    });
    let mut numbers = Numbers::default();
    let mut last = Instant::now();
    let mut posted: VecDeque<_> = (0..RECEIVES).map(|_| e.recv()).collect();
    while let Some(next) = posted.pop_front() {
        let m = next.wait().unwrap();
        posted.push_back(e.recv());
        gap.fetch_max(last.elapsed().as_millis() as u64, Ordering::Relaxed);
        last = Instant::now();
        numbers.take(&m, length);
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Mostly 1 MiB, some of 100 bytes.
fn length(n: u64) -> usize {
    if n % 10 == 9 { 100 } else { 1 << 20 }
}

/// Sends until told to stop.
fn source(rails: &str, address: &str) {
    let e = on_rails(rails, 1);
    let to = e.peer(address).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    child::listen(move |_| stopped.store(true, Ordering::Relaxed));
    child::say("ready");
    let n = send_until(&e, &to, length, |_| stop.load(Ordering::Relaxed));
    child::say(&format!("sent {n}"));
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn large_traffic_uses_both_rails_and_survives_the_loss_of_one() {
    watched_for("two rails", 200, || {
        let Some(net) = Net::new() else { return };
        // It is the rails that are slow, not the processors: where those are, what a rail delivers says little of the rail.
        for r in 0..2 {
            net.shape(r, 400);
        }
        let mut pair = net.run("0,1");
        let start = pair.got();
        pair.more(200);
        let s = pair.shares(start);
        println!("shares of two equal rails: {s:.2?}");
        assert!(s.iter().all(|s| *s > 0.2), "{s:?}");
        for cut in [0, 1] {
            pair.ask("gap");
            net.link(cut, "down");
            std::thread::sleep(Duration::from_millis(1500));
            println!("rail {cut} cut: traffic stood still for {} ms", pair.ask("gap")[0]);
            let took = pair.more(50);
            println!("rail {cut} cut: then 50 messages in {took:?}");
            let before = pair.got();
            pair.more(50);
            let s = pair.shares(before);
            assert!(s[1 - cut] > 0.95, "the other rail carries it all: {s:?}");
            net.link(cut, "up");
            let healed = Instant::now();
            loop {
                let before = pair.got();
                pair.more(20);
                if pair.shares(before)[cut] > 0.2 {
                    break;
                }
                assert!(healed.elapsed() < Duration::from_secs(30), "rail {cut} is not used again");
            }
            println!("rail {cut} healed: used again after {:?}", healed.elapsed());
        }
        pair.finish();
    });
}

#[test]
fn both_rails_cut_and_healed_in_time_lose_nothing() {
    watched_for("both cut", 120, || {
        let Some(net) = Net::new() else { return };
        let mut pair = net.run("0,1");
        pair.more(50);
        for _ in 0..2 {
            net.link(0, "down");
            net.link(1, "down");
            std::thread::sleep(Duration::from_millis(1500));
            net.link(0, "up");
            net.link(1, "up");
            println!("both cut for 1.5 s: 50 messages arrived {:?} after the healing", pair.more(50));
        }
        pair.finish();
    });
}

#[test]
fn two_shaped_rails_carry_more_than_one() {
    watched_for("shaped", 120, || {
        let Some(net) = Net::new() else { return };
        for r in 0..2 {
            net.shape(r, 50);
        }
        let mut rates = Vec::new();
        for rails in ["0", "0,1"] {
            let mut pair = net.run(rails);
            pair.more(10);
            let n = 30;
            rates.push(n as f64 / pair.more(n).as_secs_f64());
            pair.finish();
        }
        println!("one rail {:.1} messages/s, two {:.1}: x{:.2}", rates[0], rates[1], rates[1] / rates[0]);
        assert!(rates[1] > 1.3 * rates[0], "{rates:?}");
    });
}

/// Each rail gets what it can carry: the slow one is not waited for. How well is printed.
#[test]
fn two_rails_of_unlike_speed_are_both_used_to_the_full() {
    watched_for("unlike", 150, || {
        let Some(net) = Net::new() else { return };
        net.shape(0, 50);
        net.shape(1, 200);
        let mut rates = Vec::new();
        for (rails, n) in [("0", 30), ("1", 80), ("0,1", 120)] {
            let mut pair = net.run(rails);
            pair.more(20);
            let start = pair.got();
            rates.push(n as f64 / pair.more(n).as_secs_f64());
            if rails == "0,1" {
                let s = pair.shares(start);
                println!("shares {s:.2?}, the links' 0.20 and 0.80");
                assert!(s.iter().all(|s| *s > 0.02), "{s:?}");
            }
            pair.finish();
        }
        let of_sum = rates[2] / (rates[0] + rates[1]);
        println!(
            "50 Mbit/s {:.1} messages/s, 200 Mbit/s {:.1}, both {:.1}: x{of_sum:.2} of the sum",
            rates[0], rates[1], rates[2]
        );
    });
}

#[test]
fn one_rail_that_loses_packets_delays_and_loses_nothing() {
    watched_for("loss", 120, || {
        let Some(net) = Net::new() else { return };
        if !net.can_filter() {
            return;
        }
        net.lose(1);
        let mut pair = net.run("0,1");
        let start = pair.got();
        let took = pair.more(200);
        println!("1 % loss on one of two rails: 200 messages in {took:?}, shares {:.2?}", pair.shares(start));
        pair.finish();
    });
}

/// Only the server can be connected to. Its answer comes, also when the connection by which it was asked is silently lost while it
/// thinks.
#[test]
fn one_open_port_is_enough() {
    watched_for("one open port", 120, || {
        let Some(net) = Net::new() else { return };
        if !net.can_filter() {
            return;
        }
        net.wall();
        let mut server = Kid::start_in(&net.b, "slow", &[]);
        let client = Kid::start_in(&net.a, "waits", &[&server.says("ready")]);
        server.says("asked");
        server.tell("answer");
        client.says("got");
        server.says("answered");
        server.says("asked");
        let ports = net.ports();
        assert_eq!(ports.len(), 1, "{ports:?}");
        net.forget(&ports[0]);
        let begun = Instant::now();
        server.tell("answer");
        client.says("got");
        println!("the answer took {:?} after its connection was lost", begun.elapsed());
        server.says("answered");
    });
}

/// The round trip of a small packet over a rail, by ping(8) if there is one.
fn ping(net: &Net, rail: usize) -> Option<String> {
    let line = format!("ip netns exec {} ping -c 3 -i 0.2 -q 10.77.{rail}.2", net.a);
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap()).args(words).output().ok()?;
    String::from_utf8_lossy(&out.stdout).lines().find(|l| l.starts_with("rtt")).map(str::to_owned)
}

/// Acknowledgements of the slow rail come late, and later one way than the other: nothing is lost or doubled, and neither rail is
/// taken for dead. How the traffic is shared is printed.
#[test]
fn a_rail_with_more_delay_one_way_than_the_other_loses_nothing() {
    watched_for("asymmetric delay", 150, || {
        for (there, back) in [(2, 40), (40, 2)] {
            let Some(net) = Net::new() else { return };
            let ms = Duration::from_millis;
            if let Err(e) = std::fs::metadata("/dev/net/tun") {
                return skip("tun", &format!("no /dev/net/tun: {e}"));
            }
            let _cable = net.delay(1, ms(there), ms(back));
            println!("rail 1, {there} ms there and {back} ms back: {:?}", ping(&net, 1));
            // The slow rail alone works.
            let mut pair = net.run("1");
            let alone = pair.more(20);
            pair.finish();
            let mut pair = net.run("0,1");
            let start = pair.got();
            let took = pair.more(10);
            let s = pair.shares(start);
            println!("20 messages over rail 1 alone in {alone:?}; 10 over both in {took:?}, shares {s:.2?}");
            // The slow one may have had nothing to do. It is not taken for dead: without the other, which breaks in the middle of a
            // piece, it carries the rest.
            net.link(0, "down");
            pair.more(5);
            let start = pair.got();
            pair.more(10);
            assert!(pair.shares(start)[1] > 0.95);
            pair.finish();
        }
    });
}
