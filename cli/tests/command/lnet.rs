//! `kfab lnet` and `kfab lst`: nodes as processes, over kfi (shared memory, sockets; in the lab RDMA cards) and over tcp.

use crate::run::{Ended, LIMIT, Running, kfab, run};
use rustix::process::Signal;
use serde_json::Value;
use std::sync::atomic::{AtomicU32, Ordering};

/// A node and what it is called.
struct Node {
    process: Running,
    name: String,
}

/// Whether RDMA cards are demanded, as in `cargo xtask lab`: then they are what kfi runs over.
fn in_lab() -> bool {
    std::env::var_os("KFAB_LAB_RDMA").is_some()
}

/// What kfi runs over where any provider will do.
fn any() -> &'static str {
    if in_lab() { "verbs" } else { "shm" }
}

/// A name that no other test has.
fn name(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Node {
    fn start(what: &str, more: &[&str]) -> Node {
        let name = name(what);
        let mut args = vec!["lnet", "node", "--name", &name];
        args.extend(more);
        let process = Running::start(kfab(&args));
        assert_eq!(process.line(), name);
        Node { process, name }
    }

    /// A node on kfi over one provider.
    fn kfi(nid: &str, provider: &str) -> Node {
        Node::start("kfi", &["--net", nid, "--provider", provider])
    }

    /// A node on tcp, without privileges.
    fn tcp(nid: &str, port: &str) -> Node {
        let node = Node::start("tcp", &[]);
        let more = ["--port", port, "--accept", "trusted", "--source-ports", "any"];
        node.lnet(&[&["net", "add", nid][..], &more].concat()).ok();
        node
    }

    fn ask(&self, command: &str, args: &[&str]) -> Ended {
        run(&[&[command][..], args, &["--node", &self.name]].concat())
    }

    fn lnet(&self, args: &[&str]) -> Ended {
        self.ask("lnet", args)
    }

    fn lst(&self, args: &[&str]) -> Ended {
        self.ask("lst", args)
    }

    fn json(&self, args: &[&str]) -> Value {
        self.lnet(&[args, &["--json"]].concat()).ok().json()
    }

    /// Tells this node where the first interface of another is.
    fn knows(&self, other: &Node) {
        let net = other.json(&["net", "show"]);
        let ni = &net[0]["interfaces"][0];
        let entry = format!("{}={}", ni["nid"].as_str().unwrap(), ni["address"].as_str().unwrap());
        self.lnet(&["book", "set", &entry]).ok();
        assert!(self.lnet(&["book", "show"]).ok().out.contains(ni["address"].as_str().unwrap()));
    }
}

/// An address of this machine that no other test has.
fn address(host: u32) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (pid, n) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{host}@tcp", 20 + pid % 200, n % 250)
}

/// Two nodes that reach each other, and their NIDs, on each kind of network.
fn pairs() -> Vec<(Node, Node, [String; 2])> {
    let kfi = |provider| {
        let (a, b) = (Node::kfi("57@kfi", provider), Node::kfi("58@kfi", provider));
        a.knows(&b);
        (a, b, ["57@kfi", "58@kfi"].map(str::to_owned))
    };
    if in_lab() {
        return vec![kfi("verbs")];
    }
    let nids = [address(1), address(2)];
    let [a, b] = [&nids[0], &nids[1]].map(|nid| Node::tcp(nid, "20401"));
    vec![kfi("shm"), kfi("tcp"), (a, b, nids)]
}

#[test]
fn nodes_ping_discover_and_show_each_other() {
    for (a, b, nids) in pairs() {
        let [a_nid, b_nid] = [&nids[0][..], &nids[1][..]];
        let pong = a.json(&["ping", b_nid]);
        assert_eq!((&pong["primary"], &pong["interfaces"][0][1]), (&b_nid.into(), &true.into()), "{pong}");
        assert!(a.lnet(&["ping", b_nid]).ok().out.contains("multi-rail, discovery"));
        let found = a.json(&["discover", b_nid]);
        assert_eq!((&found["multi_rail"], &found["discovered"]), (&true.into(), &true.into()), "{found}");
        // Pushed to: the other knows us as well.
        let peers = b.json(&["peer", "show", a_nid]);
        assert_eq!(peers["peers"][0]["multi_rail"], true, "{peers}");
        let verbose = a.lnet(&["peer", "show", "-v"]).ok().out;
        for word in ["status", "up", "health", "credits", "min", b_nid, "1000"] {
            assert!(verbose.contains(word), "{word}:\n{verbose}");
        }
        let stats = a.json(&["stats"]);
        assert!(stats["sent"]["get"].as_u64().unwrap() >= 3, "{stats}");
        assert!(a.lnet(&["stats"]).ok().out.contains("answers that never came"));
        assert!(a.lnet(&["net", "show"]).ok().out.contains(a_nid));
        a.lnet(&["net", "del", a_nid]).ok();
        assert_eq!(a.json(&["net", "show"]), Value::Array(vec![]));
    }
}

/// What cannot even be sent, because nobody at that address takes the connection, is over in time all the same.
#[test]
fn a_ping_that_is_swallowed_ends_in_time() {
    let nids = [address(1), address(2)];
    let node = Node::tcp(&nids[0], "20402");
    let at: std::net::SocketAddr = format!("{}:20402", nids[1].split('@').next().unwrap()).parse().unwrap();
    let listener = std::net::TcpListener::bind(at).unwrap();
    // Nobody accepts: once its queue is full, who knocks gets no answer. The queue of a standard listener is long: shorten it.
    rustix::net::listen(&listener, 0).unwrap();
    let knock = || std::net::TcpStream::connect_timeout(&at, std::time::Duration::from_millis(200));
    let knocked: Vec<_> = std::iter::from_fn(|| knock().ok()).take(8).collect();
    assert!(knocked.len() < 8, "they are all let in");
    let begun = std::time::Instant::now();
    node.lnet(&["ping", &nids[1], "--timeout", "0.5"]).code(3).says(&["TimedOut"]);
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
}

#[test]
fn faults_drop_and_delay() {
    let (a, b) = (Node::kfi("57@kfi", any()), Node::kfi("58@kfi", any()));
    a.knows(&b);
    let rule =
        b.json(&["fault", "drop", "add", "--src", "57@kfi", "--type", "get", "--rate", "1"])["id"].clone();
    a.lnet(&["ping", "58@kfi", "--timeout", "0.3"]).code(3).says(&["ping 58@kfi", "TimedOut"]);
    // The answer did not come in time; the question may come later still.
    assert!(crate::run::wait_until(LIMIT, || b.json(&["fault", "drop", "list"])[0]["struck"] != 0));
    let rules = b.json(&["fault", "drop", "list"]);
    assert_eq!((&rules[0]["id"], &rules[0]["struck"]), (&rule, &1.into()), "{rules}");
    assert!(b.lnet(&["fault", "drop", "list"]).ok().out.contains("Drop"));
    assert_eq!(b.json(&["fault", "delay", "list"]), Value::Array(vec![]));
    b.lnet(&["fault", "delay", "del", &rule.to_string()]).code(1).says(&["no such rule"]);
    assert_eq!(b.json(&["fault", "drop", "del", &rule.to_string()])["removed"], 1);
    a.lnet(&["ping", "58@kfi"]).ok();
    // Two seconds there, two back.
    a.lnet(&["fault", "delay", "add", "--by", "0.2"]).ok();
    let pong = a.json(&["ping", "58@kfi"]);
    assert!(pong["time_us"].as_f64().unwrap() >= 400_000.0, "{pong}");
    a.lnet(&["fault", "delay", "add", "--by", "0.2", "--local", "60@kfi"]).ok();
    assert_eq!(a.json(&["fault", "delay", "list"])[1]["local"], "60@kfi");
    assert!(a.lnet(&["fault", "delay", "list"]).ok().out.contains("60@kfi"));
    a.lnet(&["fault", "delay", "add"]).code(2).says(&["--by"]);
    a.lnet(&["fault", "drop", "add", "--error", "local_eror"]).code(2).says(&["local_error"]);
    a.lnet(&["fault", "drop", "add", "--src", "10.0.0.x@tcp"]).code(2).says(&["character 8"]);
}

#[test]
fn what_cannot_be_is_said_by_name() {
    let a = Node::kfi("57@kfi", any());
    a.lnet(&["ping", "99@kfi"]).code(3).says(&["Unreachable", "book"]);
    a.lnet(&["ping", "5x@kfi"]).code(2).says(&["5x@kfi"]);
    a.lnet(&["net", "add", "1@o2ib"]).code(2).says(&["1@o2ib"]);
    a.lnet(&["net", "add", "57@kfi"]).code(1);
    // Both ports are listened on.
    let tcp = address(9);
    let ports = ["--port", "20402", "--bulk-port", "20403", "--accept", "trusted", "--source-ports", "any"];
    a.lnet(&[&["net", "add", &tcp][..], &ports].concat()).ok();
    for port in [20402, 20403] {
        std::net::TcpStream::connect((tcp.trim_end_matches("@tcp"), port)).unwrap();
    }
    a.lnet(&["net", "del", &tcp]).ok();
    a.lnet(&["net", "del", "60@kfi"]).code(1).says(&["60@kfi"]);
    a.lnet(&["peer", "show", "60@kfi"]).code(1).says(&["no such peer"]);
    a.lnet(&["book", "set", "60@kfi"]).code(2).says(&["NID=ADDRESS"]);
    a.lnet(&["book", "set", "60@kfi=here"]).code(2).says(&["SCHEME"]);
    a.lnet(&["route", "add", "tcp9", "1.2.3.4@tcp"]).code(2).says(&["gateway"]);
    a.lnet(&["route", "add", "smoke", "60@kfi"]).code(2).says(&["smoke"]);
    a.lnet(&["route", "add", "tcp9", "60@kfi", "--hops", "2"]).ok();
    assert_eq!(a.json(&["route", "show"])[0]["net"], "tcp9");
    a.lnet(&["route", "del", "tcp9", "60@kfi"]).ok();
    a.lnet(&["route", "del", "tcp9", "60@kfi"]).code(1).says(&["no route"]);
    a.lst(&["group", "add", "g", "57@kfi"]).code(1).says(&["no session", "session new"]);
    a.lst(&["load", "58@kfi", "--size", "2MiB"]).code(2).says(&["1 MiB"]);
    a.lst(&["load", "58@kfi", "--distribute", "2:1"]).code(2).says(&["--distribute", "one client"]);
    a.lst(&["load", "58@kfi", "--check", "some"]).code(2).says(&["simple"]);
    run(&["lnet", "stats", "--node", "nobody-of-these-tests"]).code(3).says(&["nobody-of-these-tests"]);
    run(&["lnet", "node", "--name", &a.name]).code(3).says(&["already"]);
    run(&["lnet", "node", "--name", "a/b"]).code(2).says(&["letters"]);
    a.process.signal(Signal::INT);
    a.process.end().code(130);
}

#[test]
fn a_node_reports_latencies_of_a_load() {
    for (a, _b, nids) in pairs() {
        let b_nid = &nids[1][..];
        for (test, size, check) in
            [("ping", "1", "none"), ("read", "1MiB", "full"), ("write", "5000", "simple")]
        {
            let args =
                ["load", b_nid, "--test", test, "--size", size, "--check", check, "--concurrency", "4"];
            let shown =
                a.lst(&[&args[..], &["--loop", "10", "--duration", "60", "--json"]].concat()).ok().json();
            let report = &shown["report"];
            assert_eq!((&report["calls"], &report["errors"]), (&40.into(), &0.into()), "{test}: {report}");
            let latencies = ["p50", "p90", "p99", "p99.9", "max"]
                .map(|name| report["latency_us"][name].as_f64().expect(name));
            assert!(latencies.is_sorted() && latencies[0] > 0.0, "{latencies:?}");
        }
        let table = a.lst(&["load", b_nid, "--loop", "5"]).ok().out;
        assert!(table.contains("p99.9") && table.contains("ping"), "{table}");
    }
}

#[test]
fn a_console_runs_tests_between_groups() {
    for (a, b, nids) in pairs() {
        let [a_nid, b_nid] = [&nids[0][..], &nids[1][..]];
        // The console is a node of its own, which a third one would be too.
        a.lst(&["session", "new", "rw"]).ok();
        a.lst(&["session", "new", "again"]).code(1).says(&["rw"]);
        a.lst(&["group", "add", "clients", a_nid]).ok();
        a.lst(&["group", "add", "servers", b_nid]).ok();
        a.lst(&["batch", "add", "bulk"]).ok();
        for test in ["read", "write"] {
            let sides = ["--batch", "bulk", "--from", "clients", "--to", "servers", "--test", test];
            let load = ["--size", "1MiB", "--check", "full", "--concurrency", "8", "--distribute", "1:1"];
            a.lst(&[&["test", "add"][..], &sides, &load].concat()).ok();
        }
        assert!(a.lst(&["batch", "list"]).ok().out.contains("write"));
        assert!(a.lst(&["group", "list"]).ok().out.contains(b_nid));
        // A guest of the lab takes seconds for what other machines do in milliseconds.
        let seconds = if in_lab() { "20" } else { "1.5" };
        let done = a.lst(&["run", "bulk", "--for", seconds, "--json"]).ok().json();
        assert_eq!(done["client_errors"], 0, "{done}");
        assert!(done["clients"][0]["latency_us"]["p50"].as_f64().expect("latencies") > 0.0, "{done}");
        let server = &done["nodes"][0];
        for key in ["rpcs_per_second", "read_bytes_per_second", "written_bytes_per_second"] {
            assert!(server[key].as_f64().unwrap() > 0.0, "{key}: {done}");
        }
        // Another console is not let in, unless it insists.
        b.lst(&["session", "new", "other"]).ok();
        let other = b.lst(&["group", "add", "all", b_nid]);
        other.code(1).says(&["refuses"]);
        b.lst(&["session", "end"]).ok();
        a.lst(&["run", "bulk"]).ok();
        let stat = a.lst(&["stat", "servers", "--interval", "0.5", "--json"]).ok().json();
        assert!(stat["nodes"][0]["rpcs"].as_u64().unwrap() > 2, "{stat}");
        a.lst(&["stop", "bulk"]).ok();
        a.lst(&["session", "end"]).ok();
        assert_eq!(a.lst(&["session", "show"]).ok().out, "no session\n");
    }
}

/// A session of `a` with a group of each node, and a batch of pings from `b` to each of them.
fn session(a: &Node, b: &Node, groups: &[(&str, &str)], test: &[&str]) {
    a.knows(b);
    a.lst(&["session", "new", "rw"]).ok();
    for (group, nid) in groups {
        a.lst(&["group", "add", group, nid]).ok();
        a.lst(&["batch", "add", group]).ok();
    }
    for (group, _) in groups {
        let sides = ["test", "add", "--batch", group, "--from", "b", "--to", group];
        a.lst(&[&sides[..], test].concat()).ok();
    }
}

/// A batch that went wrong does not spoil the figures of the next, and only calls of tests are counted.
#[test]
fn a_run_counts_its_own_batch() {
    let [a, b, c] = ["57@kfi", "58@kfi", "59@kfi"].map(|nid| Node::kfi(nid, any()));
    for (one, other) in [(&a, &c), (&b, &a), (&b, &c)] {
        one.knows(other);
    }
    let groups = [("b", "58@kfi"), ("a", "57@kfi"), ("c", "59@kfi")];
    session(&a, &b, &groups, &["--concurrency", "2", "--loop", "10"]);
    b.lnet(&["fault", "drop", "add", "--dst", "59@kfi", "--error", "local_error"]).ok();
    let bad = a.lst(&["run", "c", "--for", "60", "--json"]).code(1).says(&["20 calls failed"]).json();
    assert_eq!((&bad["client_errors"], &bad["nodes"][0]["rpcs"]), (&20.into(), &0.into()), "{bad}");
    for _ in 0..2 {
        let good = a.lst(&["run", "a", "--for", "60", "--json"]).ok().json();
        assert_eq!((&good["client_errors"], &good["nodes"][0]["rpcs"]), (&0.into(), &20.into()), "{good}");
    }
}

#[test]
fn a_batch_that_has_ended_can_be_changed_and_one_that_runs_cannot() {
    let (a, b) = (Node::kfi("57@kfi", any()), Node::kfi("58@kfi", any()));
    b.knows(&a);
    session(&a, &b, &[("b", "58@kfi"), ("a", "57@kfi")], &["--loop", "1"]);
    a.lst(&["group", "add", "all", "57@kfi", "58@kfi"]).ok();
    assert!(a.lst(&["session", "show"]).ok().out.contains("2 nodes"), "{:?}", a.lst(&["session", "show"]));
    a.lst(&["run", "a"]).ok();
    // It ends by itself.
    let add =
        |test: &[&str]| a.lst(&[&["test", "add", "--batch", "a", "--from", "b", "--to", "a"], test].concat());
    assert!(crate::run::wait_until(LIMIT, || add(&[]).code == Some(0)));
    a.lst(&["run", "a"]).ok();
    add(&[]).code(1).says(&["batch a is running", "lst stop"]);
    a.lst(&["run", "a", "--for", "1"]).code(1).says(&["batch a is running"]);
    a.lst(&["stop", "a"]).ok();
    // More calls than a client may have in flight.
    a.lst(&["group", "add", "many", "57@kfi", "57@kfi", "57@kfi", "57@kfi", "57@kfi"]).ok();
    let many = ["test", "add", "--batch", "b", "--from", "b", "--to", "many", "--concurrency", "256"];
    a.lst(&many).code(2).says(&["256 calls in flight to each of 5 servers", "1024 in all"]);
}

/// Ctrl-C shows what was done until then. Over shared memory: a guest of the lab needs longer over its cards than a node may take to say it.
#[test]
fn ctrl_c_shows_the_figures_so_far() {
    let (a, b) = (Node::kfi("57@kfi", "shm"), Node::kfi("58@kfi", "shm"));
    b.knows(&a);
    session(&a, &b, &[("b", "58@kfi"), ("a", "57@kfi")], &[]);
    let sent = |node: &Node| node.json(&["stats"])["sent"]["put"].as_u64().unwrap();
    let interrupted = |args: &[&str], busy: &Node| {
        let running = Running::start(kfab(&[&["lst"], args, &["--json", "--node", &a.name]].concat()));
        assert!(crate::run::wait_until(LIMIT, || crate::run::catches_ctrl_c(running.pid())));
        let before = sent(busy);
        assert!(crate::run::wait_until(LIMIT, || sent(busy) > before + 300), "{args:?}");
        running.signal(Signal::INT);
        running.end().code(130).json()
    };
    let run = interrupted(&["run", "a", "--for", "600"], &b);
    assert!(run["nodes"][0]["rpcs"].as_u64().unwrap() > 16, "{run}");
    assert!(run["clients"][0]["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{run}");
    assert_eq!(a.lst(&["batch", "list", "--json"]).ok().json()[1]["running"], 0);
    a.lst(&["run", "a"]).ok();
    let stat = interrupted(&["stat", "a", "--interval", "600"], &b);
    assert!(stat["nodes"][0]["rpcs"].as_u64().unwrap() > 0, "{stat}");
    a.lst(&["session", "end"]).ok();
    let load = interrupted(&["load", "58@kfi", "--duration", "600"], &a);
    assert!(load["report"]["calls"].as_u64().unwrap() > 16, "{load}");
}

#[test]
fn a_partitioned_interface_says_where_it_runs() {
    let a = Node::start("partitions", &["--provider", any()]);
    a.lnet(&["net", "add", "61@kfi", "--partitioned"]).ok();
    let net = a.json(&["net", "show"]);
    let placed = net[0]["interfaces"][0]["placement"].as_array().unwrap();
    assert!(placed[0].as_str().unwrap().starts_with("lane 0: CPU"), "{net}");
    assert!(a.lnet(&["net", "show"]).ok().out.contains("61@kfi, lane 0: CPU"));
}

/// One client dies in the middle: the other goes on, the figures are shown, and the batch is stopped.
#[test]
fn a_run_outlives_a_client() {
    let [a, b, c] = ["57@kfi", "58@kfi", "59@kfi"].map(|nid| Node::kfi(nid, any()));
    for (one, other) in [(&a, &b), (&a, &c), (&b, &c), (&b, &a)] {
        one.knows(other);
    }
    let timeout = if in_lab() { "10" } else { "2" };
    a.lst(&["session", "new", "rw", "--timeout", timeout]).ok();
    a.lst(&["group", "add", "clients", "58@kfi", "57@kfi"]).ok();
    a.lst(&["group", "add", "servers", "59@kfi"]).ok();
    a.lst(&["batch", "add", "pings"]).ok();
    a.lst(&["test", "add", "--batch", "pings", "--from", "clients", "--to", "servers"]).ok();
    let run = Running::start(kfab(&["lst", "run", "pings", "--for", "10", "--json", "--node", &a.name]));
    assert!(crate::run::wait_until(LIMIT, || b.json(&["stats"])["sent"]["put"].as_u64() > Some(16)));
    b.process.signal(Signal::KILL);
    let done = run.end().code(1).says(&["fell silent"]).json();
    assert_eq!(
        (&done["silent"][0]["nid"], done["client_errors"].as_u64()),
        (&"58@kfi".into(), Some(0)),
        "{done}"
    );
    assert_eq!((&done["clients"][0]["nid"], &done["clients"][1]), (&"57@kfi".into(), &Value::Null), "{done}");
    assert!(done["nodes"][0]["rpcs"].as_u64().unwrap() > 2 && done["not_stopped"].is_string(), "{done}");
    assert!(done["seconds"].as_f64().unwrap() >= 10.0, "{done}");
    let batch = a.lst(&["batch", "list", "--json"]).ok().json();
    assert_eq!(batch[0]["running"], 0, "{batch}");
}

#[test]
fn a_killed_node_is_gone_and_its_name_free() {
    let (a, b) = (Node::kfi("57@kfi", any()), Node::kfi("58@kfi", any()));
    a.knows(&b);
    a.lnet(&["ping", "58@kfi"]).ok();
    let load = {
        let args = ["lst", "load", "58@kfi", "--test", "read", "--size", "1MiB", "--concurrency", "4"];
        let timeout = if in_lab() { "10" } else { "2" };
        let more = ["--duration", "60", "--timeout", timeout, "--loop", "1000000", "--node", &a.name];
        Running::start(kfab(&[&args[..], &more].concat()))
    };
    let begun = || b.json(&["stats"])["sent"]["put"].as_u64() > Some(16);
    assert!(crate::run::wait_until(LIMIT, begun), "{}", b.json(&["stats"]));
    b.process.signal(Signal::KILL);
    assert_eq!(b.process.end().code, None);
    a.lnet(&["ping", "58@kfi", "--timeout", "2"]).code(3);
    run(&["lnet", "stats", "--node", &b.name]).code(3);
    // Whoever ordered the load goes away: the load ends too, and nothing is left of it.
    load.signal(Signal::INT);
    load.end().code(130);
    let rest = || {
        let stats = a.json(&["stats"]);
        stats["messages"] == 0
    };
    assert!(crate::run::wait_until(LIMIT, rest));
    let again =
        Running::start(kfab(&["lnet", "node", "--name", &b.name, "--net", "58@kfi", "--provider", any()]));
    assert_eq!(again.line(), b.name);
}

#[test]
fn a_load_whose_target_dies_shows_what_was_done_and_fails() {
    let (a, b) = (Node::kfi("57@kfi", any()), Node::kfi("58@kfi", any()));
    a.knows(&b);
    // Long enough for a guest on a busy host to get the load going.
    let (duration, timeout) = if in_lab() { ("30", "10") } else { ("3", "1") };
    let more = ["--duration", duration, "--timeout", timeout, "--json", "--node", &a.name];
    let load = Running::start(kfab(&[&["lst", "load", "58@kfi"][..], &more].concat()));
    let begun = || b.json(&["stats"])["sent"]["put"].as_u64() > Some(16);
    assert!(crate::run::wait_until(LIMIT, begun), "{}", b.json(&["stats"]));
    b.process.signal(Signal::KILL);
    let done = load.end().code(1).says(&["calls failed"]).json();
    let count = |what: &str| done["report"][what].as_u64().unwrap();
    assert!(count("calls") > 0 && count("errors") > 0, "{done}");
    assert!(done["session_left"].is_string(), "{done}");
}

#[test]
fn a_console_that_is_busy_says_so() {
    let a = Node::kfi("57@kfi", any());
    a.lst(&["session", "new", "rw"]).ok();
    a.lst(&["group", "add", "all", "57@kfi"]).ok();
    let long = Running::start(kfab(&["lst", "stat", "all", "--interval", "600", "--node", &a.name]));
    let busy = || {
        let asked = a.lst(&["group", "list"]);
        asked.code != Some(0) && asked.code(1).says(&["another command"]).err.contains("Ctrl-C")
    };
    assert!(crate::run::wait_until(LIMIT, busy));
    // Ctrl-C there ends it, and the console answers again.
    long.signal(Signal::INT);
    let table = long.end().code(130).out;
    assert!(table.contains("57@kfi"), "{table}");
    assert!(crate::run::wait_until(LIMIT, || a.lst(&["group", "list"]).code == Some(0)));
    a.lst(&["session", "end"]).ok();
}
