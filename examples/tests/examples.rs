//! Runs every example as its own process, with a watchdog, and looks at what it says.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// Cargo builds the examples beside the tests: target/PROFILE/{deps/THIS_TEST, examples/NAME}.
fn program(name: &str) -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let dir = me.parent().and_then(|p| p.parent()).unwrap().join("examples");
    dir.join(name)
}

/// What the example prints; it must end well and in time.
fn run(name: &str) -> String {
    let mut child = Command::new(program(name))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{name}: {e}"));
    let mut out = child.stdout.take().unwrap();
    let mut err = child.stderr.take().unwrap();
    let out = std::thread::spawn(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).map(|_| text)
    });
    let err = std::thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let started = Instant::now();
    let status = loop {
        if let Some(s) = child.try_wait().unwrap() {
            break s;
        }
        if started.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{name} hangs; it said:\n{}", out.join().unwrap().unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let (out, err) = (out.join().unwrap().unwrap(), err.join().unwrap().unwrap());
    assert!(status.success(), "{name}: {status}\n{out}\n{err}");
    out
}

#[test]
fn hello() {
    let out = run("hello");
    assert!(out.contains("server: hello\n") && out.contains("client: hello yourself\n"), "{out}");
}

#[test]
fn async_tokio() {
    let out = run("async_tokio");
    assert!(out.contains("client 9: 900 bytes") && out.contains("withdrawn"), "{out}");
}

#[test]
fn event_loop() {
    let out = run("event_loop");
    assert!(out.contains("loop: [3, 3, 3, 3]") && out.contains("the sum is 24"), "{out}");
}

#[test]
fn windows() {
    let out = run("windows");
    assert!(out.contains("written by the owner") && out.contains("\"there\""), "{out}");
}

#[test]
fn faults() {
    let out = run("faults");
    assert!(out.contains("exactly once") && out.contains("stalled:") && out.contains("goes on"), "{out}");
}

#[test]
fn rails() {
    let out = run("rails");
    assert!(
        out.contains("two rails: rail") && out.contains("port 0 cut") && out.contains("port 0 back"),
        "{out}"
    );
}

/// The smallest program stays small: 30 lines, 8 distinct calls, both sides.
#[test]
fn hello_is_small() {
    let text = include_str!("../hello.rs");
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with("//"));
    let lines = lines.count();
    assert!(lines <= 30, "{lines} lines");
    let all = ["Fabric::new", ".endpoint(", ".address(", ".peer(", ".send(", ".recv(", ".wait()?", ".from("];
    let used: BTreeSet<&str> = all.into_iter().filter(|c| text.contains(c)).collect();
    assert_eq!(used.len(), 8, "{used:?}");
    let kfab_paths = text.matches("kfab::").count();
    assert_eq!(kfab_paths, 1, "names of kfab beside Fabric");
}
