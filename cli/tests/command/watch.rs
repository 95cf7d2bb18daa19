//! What can be seen: `info`, `top` and the counters for Prometheus.

use crate::run::{Ended, Running, catches, kfab, run, server, wait_until};
use crate::skip::skip;
use crate::terminal::Terminal;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::time::Duration;

#[test]
fn info_names_everything() {
    let e = run(&["info"]).ok();
    for word in [
        "shm",
        "tcp",
        "credits",
        "peer_timeout",
        "bytes",
        "CPUs",
        "open files",
        "locked memory",
        "membarrier",
        "pidfd",
        "CMA",
    ] {
        assert!(e.out.contains(word), "{word:?} is not in:\n{}", e.out);
    }
    let can_be_set = e.out.split("every one can be set").nth(1).unwrap().split("\n\n").next().unwrap();
    assert!(can_be_set.contains("credits") && !can_be_set.contains("max_events"), "{can_be_set}");
    let document = run(&["info", "--json"]).ok().json();
    let schemes: Vec<_> =
        document["providers"].as_array().unwrap().iter().map(|p| p["scheme"].clone()).collect();
    assert!(schemes.contains(&"shm".into()) && schemes.contains(&"tcp".into()), "{schemes:?}");
    assert!(
        document["limits"].as_array().unwrap().iter().all(|l| l["unit"].is_string() && l["value"].is_u64())
    );
    assert!(document["topology"].is_object());
}

#[test]
fn top_sees_the_traffic_of_a_server() {
    let (server, address) = server(&[]);
    let pid = server.pid().to_string();
    let args = ["perf", "rate", &address, "--provider", "tcp", "--size", "8", "--duration", "600"];
    let client = Running::start(kfab(&args));
    let seen = wait_until(Duration::from_secs(30), || {
        let document = run(&["top", &pid, "--json"]).ok().json();
        document["stats"]["lane"]["totals"]["rx_messages"].as_u64().unwrap() > 100
    });
    assert!(seen, "{:?}", run(&["top", &pid, "--json"]));
    let document = run(&["top", &pid, "--json"]).ok().json();
    let fewest = |counters: &serde_json::Value| counters["min_credits"].clone();
    assert!(fewest(&document["stats"]["lane"]["totals"]).is_u64(), "{document}");
    assert!(fewest(&document["stats"]["peers"][0]["counters"]).is_u64(), "{document}");
    let text = run(&["top", &pid, "--once", "--interval", "200"]).ok().out;
    run(&["top", &pid]).code(3).says(&["no terminal", "--once"]);
    for word in ["peer 0.0", "rail 0", "tcp:127.0.0.1", "credits", "stalls", "unexpected"] {
        assert!(text.contains(word), "{word:?} is not in:\n{text}");
    }
    client.signal(Signal::INT);
    client.end().code(130);
    server.signal(Signal::INT);
    server.end().code(130);
    run(&["top", &pid]).code(3);
}

/// What was never measured is no number.
#[test]
fn json_of_top_has_null_for_what_is_not_known_yet() {
    let (server, _) = server(&[]);
    let document = run(&["top", &server.pid().to_string(), "--json"]).ok().json();
    let totals = document["stats"]["lane"]["totals"].as_object().unwrap();
    assert!(totals["min_credits"].is_null() && totals["rx_messages"] == 0, "{document}");
}

/// The counter has both, and its name says so.
#[test]
fn a_peer_that_closed_in_order_is_not_called_lost() {
    let (server, address) = server(&[]);
    run(&["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--iterations", "20"]).ok();
    let top = ["top", &server.pid().to_string(), "--once", "--interval", "50"];
    let seen = wait_until(Duration::from_secs(30), || run(&top).ok().out.contains("peers lost or closed 1"));
    assert!(seen, "{}", run(&top).out);
}

/// `top` on a terminal, once it draws and catches the signal.
fn top_that_draws(pid: u32, signal: Signal) -> (Running, Terminal) {
    let terminal = Terminal::new(80, 24);
    let top = Running::start_on(kfab(&["top", &pid.to_string()]), &terminal);
    let draws = || terminal.shown().contains("rails") && catches(top.pid(), signal);
    assert!(wait_until(Duration::from_secs(30), draws), "{:?}", terminal.shown());
    (top, terminal)
}

#[test]
fn top_gives_the_terminal_back_however_it_ends() {
    const ALTERNATE: &str = "\x1b[?1049h";
    let (server, _) = server(&[]);
    let given_back = |e: Ended, terminal: &Terminal| {
        let back = || {
            let text = terminal.shown();
            let after = text.rsplit(ALTERNATE).next().unwrap();
            after.contains("\x1b[?1049l") && after.contains("\x1b[?25h")
        };
        assert!(terminal.shown().contains(ALTERNATE));
        assert!(wait_until(Duration::from_secs(10), back), "{e:?}: {:?}", terminal.shown());
        assert!(terminal.is_cooked(), "{e:?}");
    };
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let (top, terminal) = top_that_draws(server.pid(), signal);
        top.signal(signal);
        given_back(top.end().code(130), &terminal);
    }
    for (key, code) in [(&b"\x03"[..], 130), (b"q", 0)] {
        let (top, terminal) = top_that_draws(server.pid(), Signal::INT);
        terminal.type_in(key);
        given_back(top.end().code(code), &terminal);
    }
    // The endpoint stands still, so that `top` waits for it: the second signal does not wait.
    let (top, terminal) = top_that_draws(server.pid(), Signal::INT);
    server.signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(1500));
    top.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    top.signal(Signal::TERM);
    given_back(top.end().code(130), &terminal);
}

#[test]
fn logs_have_colours_on_a_terminal_only() {
    let lat = ["perf", "lat", "--provider", "tcp", "--size", "8", "--iterations", "20", "--csv"];
    let command = || {
        let mut c = kfab(&lat);
        c.env("KFAB_LOG", "trace").env_remove("NO_COLOR");
        c
    };
    let e = Running::start(command()).end().ok();
    assert!(e.err.contains("kfab") && !e.err.contains('\x1b'), "{e:?}");
    let on_terminal = |c| {
        let terminal = Terminal::new(80, 24);
        Running::start_on(c, &terminal).end().ok();
        assert!(wait_until(Duration::from_secs(10), || terminal.shown().contains("kfab")));
        terminal.shown()
    };
    // The progress bar moves the cursor, and colours nothing.
    assert!(on_terminal(command()).contains("\x1b[2m"));
    let mut without = command();
    without.env("NO_COLOR", "1");
    assert!(!on_terminal(without).contains("\x1b[2m"));
}

/// Only root can try: it runs `top` as nobody.
#[test]
fn strangers_see_nothing() {
    let (server, _) = server(&[]);
    let pid = server.pid().to_string();
    run(&["top", &pid, "--json"]).ok();
    if !rustix::process::geteuid().is_root() {
        return skip("users", "only root runs a program as another user");
    }
    let mut stranger = kfab(&["top", &pid, "--json"]);
    stranger.uid(65_534).gid(65_534).stdin(std::process::Stdio::null()).current_dir("/");
    match stranger.output() {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            skip("users", "the program lies where nobody cannot reach it");
        }
        r => {
            let e = r.unwrap();
            assert_eq!(e.status.code(), Some(3), "{}", String::from_utf8_lossy(&e.stdout));
            assert!(e.stdout.is_empty() && String::from_utf8_lossy(&e.stderr).contains("another user"));
        }
    }
}

fn scrape(at: &str, path: &str) -> String {
    let mut s = TcpStream::connect(at).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(s, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    s.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn prometheus_counts_what_was_received() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (_server, address) = server(&["--prometheus", &port]);
    let value = || {
        let text = scrape(&port, "/metrics");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        let line = text.lines().find(|l| l.starts_with("kfab_rx_messages_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value(), 0.0);
    run(&["perf", "rate", &address, "--provider", "tcp", "--size", "8", "--iterations", "1000"]).ok();
    assert!(value() >= 1000.0, "{}", value());
    assert!(scrape(&port, "/other").starts_with("HTTP/1.1 404"));
    // A scraper that says nothing does not keep others out for ever.
    let _silent = TcpStream::connect(&port).unwrap();
    assert!(value() >= 1000.0);
}
