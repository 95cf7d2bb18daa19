//! However a command ends, it ends: with figures on Ctrl-C, with an error when the other side dies, and with no process left.

use crate::run::{Dir, Running, catches_ctrl_c, kfab, processes_with, run, server, wait_until};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// A measurement that would take a minute, with a mark in the child's command line.
fn long(key: &str) -> Running {
    let args =
        ["perf", "lat", "--provider", "tcp", "--size", "8,64", "--duration", "60", "--warmup", "10", "--csv"];
    Running::start(kfab(&[&args[..], &["--key-file", key]].concat()))
}

/// Processor time of a process so far, in hundredths of a second (proc_pid_stat(5), utime and stime).
fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum()
}

#[test]
fn ctrl_c_prints_the_figures_so_far_and_leaves_no_process() {
    let dir = Dir::new();
    let key = dir.key("key-of-the-interrupted");
    let running = long(&key);
    assert!(wait_until(Duration::from_secs(20), || processes_with(&key).len() == 2), "no peer process");
    // It spins: so much processor time means that it has measured for a while, however busy the machine is.
    assert!(wait_until(Duration::from_secs(50), || cpu_ticks(running.pid()) > 150), "it does not measure");
    running.signal(Signal::INT);
    let started = Instant::now();
    let e = running.end().code(130);
    assert!(started.elapsed() < Duration::from_secs(20));
    let lines: Vec<&str> = e.out.lines().collect();
    assert!(lines.len() == 2 && lines[1].starts_with("lat,tcp,8,1,"), "{e:?}");
    assert!(
        wait_until(Duration::from_secs(10), || processes_with(&key).is_empty()),
        "{:?}",
        processes_with(&key)
    );
}

/// Bytes that the peer process of a measurement has received so far.
fn peer_got(pid: u32) -> Option<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let children = tasks.filter_map(|t| std::fs::read_to_string(t.path().join("children")).ok());
    let peer = children.filter_map(|c| c.split_whitespace().next().map(str::to_owned)).next()?;
    let top: serde_json::Value = serde_json::from_str(&run(&["top", &peer, "--json"]).out).ok()?;
    top["stats"]["lane"]["totals"]["rx_bytes"].as_u64()
}

/// The first row is there once large messages come, and the warm-up of the second takes many of them.
#[test]
fn ctrl_c_in_a_warm_up_keeps_the_rows_before() {
    let args = ["perf", "lat", "--provider", "tcp", "--size", "8,4MiB", "--iterations", "50", "--csv"];
    let running = Running::start(kfab(&[&args[..], &["--warmup", "2000"]].concat()));
    let large_come = || peer_got(running.pid()) > Some(4 << 20);
    assert!(wait_until(Duration::from_secs(80), large_come), "it does not measure");
    running.signal(Signal::INT);
    let e = running.end().code(130);
    assert!(e.out.lines().count() == 2 && e.out.contains("\nlat,tcp,8,1,50,"), "{e:?}");
}

#[test]
fn a_killed_command_takes_its_peer_process_along() {
    let dir = Dir::new();
    let key = dir.key("key-of-the-killed");
    let running = long(&key);
    assert!(wait_until(Duration::from_secs(20), || processes_with(&key).len() == 2), "no peer process");
    running.signal(Signal::KILL);
    running.end();
    assert!(
        wait_until(Duration::from_secs(10), || processes_with(&key).is_empty()),
        "{:?}",
        processes_with(&key)
    );
}

#[test]
fn a_server_killed_in_the_middle_is_an_error() {
    let (server, address) = server(&[]);
    let args = ["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--duration", "60"];
    let client = Running::start(kfab(&args));
    std::thread::sleep(Duration::from_millis(1500));
    server.signal(Signal::KILL);
    let e = client.end();
    assert!(matches!(e.code, Some(1 | 3)), "{e:?}");
}

#[test]
fn a_client_killed_in_the_middle_leaves_a_server_that_serves_the_next() {
    let (server, address) = server(&[]);
    let args = ["perf", "rate", "--provider", "tcp", &address, "--size", "8", "--duration", "60"];
    let client = Running::start(kfab(&args));
    std::thread::sleep(Duration::from_millis(1000));
    client.signal(Signal::KILL);
    client.end();
    run(&["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--duration", "0.1"]).ok();
    server.signal(Signal::INT);
    let e = server.end().code(130);
    assert!(e.err.contains("served"), "{e:?}");
}

/// Interrupts a command after a while; its document. Where the machine is so busy that not even one figure comes before the command's
/// patience ends, again after a longer while.
fn interrupted(args: &[&str], after: Duration) -> serde_json::Value {
    for longer in [1, 4, 16, 32] {
        let running = Running::start(kfab(args));
        assert!(wait_until(Duration::from_secs(50), || catches_ctrl_c(running.pid())), "{args:?}");
        std::thread::sleep(after * longer);
        running.signal(Signal::INT);
        let e = running.end();
        if e.code == Some(130) && !e.out.is_empty() {
            return e.json();
        }
    }
    panic!("{args:?} shows nothing when interrupted");
}

#[test]
fn limits_and_wake_ups_interrupted_show_what_they_have() {
    let limits = interrupted(&["perf", "limit", "--json"], Duration::from_millis(300));
    assert_eq!(limits["rows"][0]["name"], "cache_line", "{limits}");
    let pingpong = interrupted(&["pingpong", "--json"], Duration::from_millis(100));
    assert_eq!(pingpong["limits"][0]["name"], "cache_line", "{pingpong}");
    // In its sleep, after the wake-ups.
    let wake = ["perf", "wake", "--provider", "tcp", "--iterations", "4", "--asleep", "20", "--json"];
    let wakes = interrupted(&wake, Duration::from_secs(3));
    assert_eq!(
        (wakes["rows"][0]["name"].as_str(), wakes["rows"][1]["name"].as_str()),
        (Some("kfab tcp"), Some("eventfd"))
    );
    assert!(wakes["rows"][0]["p50_ns"].as_f64().unwrap() > 0.0, "{wakes}");
}

#[test]
fn a_server_interrupted_in_the_middle_of_a_request_says_what_it_served() {
    let (server, address) = server(&[]);
    let args = ["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--duration", "60"];
    let client = Running::start(kfab(&args));
    assert!(wait_until(Duration::from_secs(50), || cpu_ticks(server.pid()) > 50), "nothing is measured");
    // In the middle, where the server waits for it.
    client.signal(Signal::STOP);
    server.signal(Signal::INT);
    let e = server.end().code(130).says(&["served", "refused 0", "messages in"]);
    assert!(!e.err.contains(" 0 messages in"), "{e:?}");
}

#[test]
fn a_server_ends_by_sigterm_and_by_a_hangup_that_is_not_ignored() {
    for signal in [Signal::TERM, Signal::HUP] {
        let (server, _) = server(&[]);
        server.signal(signal);
        server.end().code(130).says(&["served"]);
    }
    // As nohup(1) starts it.
    let mut c = std::process::Command::new("sh");
    let script = "trap '' HUP; exec \"$0\" serve --provider tcp --listen tcp:127.0.0.1:0";
    c.args(["-c", script, env!("CARGO_BIN_EXE_kfab")]);
    let server = Running::start(c);
    let address = server.line();
    server.signal(Signal::HUP);
    run(&["perf", "lat", "--provider", "tcp", &address, "--size", "8", "--iterations", "20"]).ok();
    server.signal(Signal::TERM);
    server.end().code(130).says(&["served"]);
}
