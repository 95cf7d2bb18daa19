//! Runs every example as its own process, with a watchdog, and looks at what it says.

mod common;

use std::collections::BTreeSet;

/// What the example prints; it must end well and in time.
fn run(name: &str) -> String {
    let ended = common::run(&mut common::program(name));
    assert!(ended.good, "{name}:\n{}\n{}", ended.text(), ended.err);
    ended.text()
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

/// What the README shows is this program, which compiles and runs.
#[test]
fn the_readme_shows_hello() {
    let readme = include_str!("../../README.md");
    let shown = readme.split("```rust\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let lines: Vec<_> = include_str!("../hello.rs").lines().filter(|l| !l.starts_with("//!")).collect();
    assert_eq!(shown.lines().collect::<Vec<_>>(), lines);
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
