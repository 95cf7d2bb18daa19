//! Nodes in network namespaces of their own, with the real ports: large NIDs, port 988, privileged source ports; and two
//! namespaces joined by a virtual cable. Skipped where namespaces cannot be made; where they can, whatever goes wrong fails.

#[path = "../../kfab/tests/common/skip.rs"]
mod skip;

use rustix::thread::CapabilitySet;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_lite::future::block_on;
use lnet_shim::core::{Access, EventQueue, MeParams, SharedBytes, TargetOptions, Unlink};
use lnet_shim::nid::{Nid, ProcessId};
use lnet_shim::node::{NiConfig, Node, NodeParams};
use lnet_shim::selftest::load::Kind;
use lnet_shim::selftest::{Agent, AgentParams, Check, Console, Distribute, TestSpec};
use lnet_shim::tcp::TcpParams;

const WAIT: Duration = Duration::from_secs(20);
const ROLE: &str = "LNET_SHIM_TEST_ROLE";

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

fn can_make_namespaces() -> bool {
    static PROBE: OnceLock<Result<(), String>> = OnceLock::new();
    let probe = || {
        let made = Command::new("unshare").args(["-n", "ip", "link", "set", "lo", "up"]).output();
        let made = made.map_err(|e| format!("unshare: {e}"))?;
        made.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&made.stderr).into_owned())
    };
    let can = PROBE.get_or_init(probe);
    can.as_ref().map_err(|e| skip::skip("namespaces", &format!("no network namespaces here: {e}"))).is_ok()
}

/// This test again, as `role`, after the shell commands `setup`, in the namespace that `enter` enters.
fn again(test: &str, role: &str, enter: &str, setup: &str) -> Command {
    let me = std::env::current_exe().unwrap();
    let script = format!("{setup} && exec {} --exact {test} --nocapture", me.display());
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec {enter} sh -c '{script}'")]).env(ROLE, role);
    command
}

fn node(nids: &[&str]) -> Node {
    let node = Node::new(NodeParams::default()).unwrap();
    for text in nids {
        let nid: Nid = text.parse().unwrap();
        // A fresh IPv6 address may still be tentative for a moment.
        let start = Instant::now();
        while let Err(error) = node.add_tcp(NiConfig::new(nid), TcpParams::default()) {
            assert!(start.elapsed() < WAIT, "{error}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    node
}

fn serve(node: &Node) -> SharedBytes {
    let memory = SharedBytes::zeroed(1 << 20);
    let options = TargetOptions { manage_remote: true, ..TargetOptions::new(Access::PutGet) };
    let entry = MeParams { unlink: Unlink::Retain, ..MeParams::new(9, 7) };
    // Nobody reads the events: drop the queue, and they are discarded.
    let sink = EventQueue::new(4).sink();
    node.attach(entry, memory.memory(), options, &sink).unwrap();
    memory
}

fn use_peer(a: &Node, b: Nid, rails: usize) {
    let start = Instant::now();
    while let Err(error) = block_on(a.discover(b, false)) {
        assert!(start.elapsed() < WAIT, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let info = block_on(a.discover(b, false)).unwrap();
    assert!(info.multi_rail && info.interfaces.len() == rails, "{info:?}");
    assert_eq!(block_on(a.ping(b, WAIT)).unwrap().info.entries().len(), rails);
    let target = ProcessId::lnet(b);
    let bytes: Vec<u8> = (0..1usize << 20).map(|i| (i * 31) as u8).collect();
    for _ in 0..8 {
        assert_eq!(block_on(a.put_bytes(target, 9, 7, bytes.clone(), WAIT)).unwrap() as usize, bytes.len());
    }
    assert_eq!(block_on(a.get_bytes(target, 9, 7, 0, bytes.len(), WAIT)).unwrap(), bytes);
}

#[test]
fn large_nids_on_port_988() {
    if role().is_some() {
        let (a, b) = (node(&["fd77::11@tcp"]), node(&["fd77::12@tcp"]));
        let _memory = serve(&b);
        use_peer(&a, "fd77::12@tcp".parse().unwrap(), 1);
        let all = a.connections();
        assert!(all.len() == 3 && all.iter().all(|c| c.version == 4), "{all:?}");
        return;
    }
    if !can_make_namespaces() {
        return;
    }
    let setup = "ip link set lo up && ip addr add fd77::11/128 dev lo && ip addr add fd77::12/128 dev lo";
    assert!(again("large_nids_on_port_988", "both", "unshare -n", setup).status().unwrap().success());
}

#[test]
fn two_namespaces_with_two_rails() {
    match role().as_deref() {
        Some("server") => {
            let node = node(&["10.77.0.12@tcp", "10.78.0.12@tcp"]);
            let _memory = serve(&node);
            // Until the parent closes our standard input.
            let _ = std::io::stdin().read_line(&mut String::new());
            return;
        }
        Some(_) => {
            let a = node(&["10.77.0.11@tcp", "10.78.0.11@tcp"]);
            return use_peer(&a, "10.77.0.12@tcp".parse().unwrap(), 2);
        }
        None => {}
    }
    if !can_make_namespaces() {
        return;
    }
    let name = "two_namespaces_with_two_rails";
    // The server's namespace is the process's own; the cable is made inside it and one end pushed into a child of it.
    let server_setup = "ip link set lo up && for i in 7 8; do ip link add v$i type veth peer name w$i && \
        ip addr add 10.7$i.0.12/24 dev v$i && ip link set v$i up; done";
    let mut server = again(name, "server", "unshare -n", server_setup).stdin(Stdio::piped()).spawn().unwrap();
    let (up, pid) = (Instant::now(), server.id());
    let ready = || {
        let inside =
            Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "ip", "link", "show", "v8"]).output();
        inside.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).contains("UP"))
    };
    while !ready() {
        assert!(up.elapsed() < WAIT, "the server's namespace is not there");
        std::thread::sleep(Duration::from_millis(50));
    }
    // The client makes its namespace from within the server's, then is given the other ends.
    let client_setup = "ip link set lo up && for i in 7 8; do n=0; until ip link show w$i >/dev/null 2>&1 || \
        test $n -gt 100; do sleep 0.1; n=$((n+1)); done; ip addr add 10.7$i.0.11/24 dev w$i && ip link set w$i up; done";
    let mut client = again(name, "client", "unshare -n", client_setup).spawn().unwrap();
    let give = format!("for i in 7 8; do ip link set w$i netns {}; done", client.id());
    // What is given before it has made one stays where it is.
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
    wait_for("the client's namespace", || namespace(&client.id().to_string()) != namespace("self"));
    let given =
        Command::new("nsenter").args(["-t", &pid.to_string(), "-n", "sh", "-c", &give]).status().unwrap();
    let result = client.wait().unwrap();
    drop(server.stdin.take());
    let _ = server.wait();
    assert!(given.success() && result.success());
}

/// What `ip link` says is done to an interface of this namespace.
fn set_link(name: &str, state: &str) {
    assert!(Command::new("ip").args(["link", "set", name, state]).status().unwrap().success());
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < WAIT, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The far end of one cable is pulled: our interface there is down, and traffic goes by the other until it is plugged in again.
#[test]
fn an_interface_without_carrier_is_left() {
    if role().is_some() {
        let (a, b) = (node(&["10.77.0.11@tcp", "10.78.0.11@tcp"]), node(&["10.77.0.12@tcp"]));
        let (_memory, b_nid) = (serve(&b), b.primary());
        use_peer(&a, b_nid, 1);
        let first = || a.with_engine(|e, _| e.nis().remove(0));
        set_link("v7", "down");
        wait_for("the interface is down", || !first().up);
        assert_eq!(first().health, 1000, "the link, not a failure");
        assert_eq!(block_on(b.ping(a.primary(), WAIT)).unwrap().info.small[0].status, 0xdead_face);
        let before = first().sent.put;
        for _ in 0..6 {
            block_on(a.put_bytes(ProcessId::lnet(b_nid), 9, 7, vec![1; 8], WAIT)).unwrap();
        }
        assert_eq!(first().sent.put, before);
        set_link("v7", "up");
        wait_for("the interface is up", || first().up);
        for _ in 0..6 {
            block_on(a.put_bytes(ProcessId::lnet(b_nid), 9, 7, vec![1; 8], WAIT)).unwrap();
        }
        assert!(first().sent.put > before);
        return;
    }
    if !can_make_namespaces() {
        return;
    }
    let setup = "ip link set lo up && for i in 7 8; do ip link add v$i type veth peer name w$i && \
        ip link set v$i up && ip link set w$i up && ip addr add 10.7$i.0.11/24 dev w$i; done && \
        ip addr add 10.77.0.12/32 dev lo";
    assert!(
        again("an_interface_without_carrier_is_left", "both", "unshare -n", setup)
            .status()
            .unwrap()
            .success()
    );
}

/// Lists of servers go to clients by 20-byte NIDs.
#[test]
fn a_self_test_among_large_nids() {
    if role().is_some() {
        let nids = ["fd77::11@tcp", "fd77::12@tcp", "fd77::13@tcp"];
        let [console, client, server] = nids.map(|n| node(&[n]));
        let _agents = [client, server].map(|n| Agent::start(n, AgentParams::default()).unwrap());
        let [_, client, server] = nids.map(|n| ProcessId::lnet(n.parse().unwrap()));
        let spec = TestSpec {
            kind: Kind::Read,
            size: 65536,
            check: Check::Full,
            concurrency: 2,
            loops: 5,
            distribute: Distribute::All,
        };
        let mut console = Console::new(console, "large", WAIT);
        for node in [client, server] {
            block_on(console.add_node(node, false)).unwrap();
        }
        block_on(console.add_test(1, &[client], &[server], spec)).unwrap();
        block_on(console.run(1, &[client])).unwrap();
        wait_for("the batch ends", || matches!(block_on(console.active(1, &[client]))[0], Ok(0)));
        let (sent, served) =
            (block_on(console.stat(client)).unwrap(), block_on(console.stat(server)).unwrap());
        assert_eq!((sent.framework.brw_errors, served.rpc.bulk_put), (0, 10 * 65536));
        return;
    }
    if !can_make_namespaces() {
        return;
    }
    let setup = "ip link set lo up && for i in 1 2 3; do ip addr add fd77::1$i/128 dev lo; done";
    assert!(again("a_self_test_among_large_nids", "all", "unshare -n", setup).status().unwrap().success());
}

/// As nobody who may bind low ports: the words say what is missing, and what to do.
#[test]
fn without_the_right_to_low_ports_it_is_said_which() {
    if role().is_some() {
        // A right of this thread alone, which is the one that binds.
        let mut rights = rustix::thread::capabilities(None).unwrap();
        rights.effective.remove(CapabilitySet::NET_BIND_SERVICE);
        rustix::thread::set_capabilities(None, rights).unwrap();
        let node = Node::new(NodeParams::default()).unwrap();
        let refused = |params: TcpParams| {
            let error = node.add_tcp(NiConfig::new("127.0.0.1@tcp".parse().unwrap()), params).unwrap_err();
            assert_eq!(error.kind(), lnet_shim::ErrorKind::Denied, "{error}");
            error.to_string()
        };
        let any = |port| TcpParams { port, bulk_port: port, ..TcpParams::unprivileged(port) };
        let words = refused(any(988));
        assert!(words.contains("port 988") && words.contains("CAP_NET_BIND_SERVICE"), "{words}");
        let words = refused(TcpParams { bulk_port: 989, ..any(19_880) });
        assert!(words.contains("port 989") && words.contains("CAP_NET_BIND_SERVICE"), "{words}");
        let words = refused(TcpParams { port: 19_880, bulk_port: 19_880, ..TcpParams::default() });
        assert!(words.contains("privileged ports") && words.contains("CAP_NET_BIND_SERVICE"), "{words}");
        node.add_tcp(NiConfig::new("127.0.0.1@tcp".parse().unwrap()), any(19_880)).unwrap();
        return;
    }
    if !can_make_namespaces() {
        return;
    }
    // A new namespace has the usual border of 1024, whatever a container has set outside.
    let test = "without_the_right_to_low_ports_it_is_said_which";
    assert!(again(test, "both", "unshare -n", "ip link set lo up").status().unwrap().success());
}
