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
    assert!(
        out.contains("client 9: 900 bytes") && out.contains("came late") && out.contains("withdrawn"),
        "{out}"
    );
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

/// What a program calls: `.name` of a method, `Name::name` of anything else that has a path.
fn calls(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    let before = lines.flat_map(|l| l.match_indices('(').map(move |(at, _)| &l[..at]));
    before.filter_map(|before| {
        let (before, _) = before.rsplit_once("::<").filter(|_| before.ends_with('>')).unwrap_or((before, ""));
        let word = |c: char| !c.is_alphanumeric() && c != '_';
        let name = before.rsplit(word).next().filter(|name| !name.is_empty())?;
        let before = &before[..before.len() - name.len()];
        match before.strip_suffix("::") {
            Some(path) => Some(format!("{}::{name}", path.rsplit(word).next()?)),
            None => before.ends_with('.').then(|| format!(".{name}")),
        }
    })
}

#[test]
fn calls_are_found() {
    let found = |text| calls(text).collect::<Vec<_>>();
    assert_eq!(found("a.b(c::d::e(1)?).f::<u8>(); g(2); h!(3)"), [".b", "d::e", ".f"]);
    assert_eq!(found("// a.b()\n  .c()"), [".c"]);
}

/// The smallest program stays small: 30 lines, 8 distinct calls, both sides.
#[test]
fn hello_is_small() {
    let text = include_str!("../hello.rs");
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.trim_start().starts_with("//"));
    let lines = lines.count();
    assert!(lines <= 30, "{lines} lines");
    // Of the standard library; what else is called is of kfab.
    let others = [
        "env::args",
        "env::current_exe",
        "str::from_utf8",
        "Command::new",
        ".arg",
        ".nth",
        ".spawn",
        ".to_string",
    ];
    let used: BTreeSet<String> = calls(text).filter(|c| !others.contains(&c.as_str())).collect();
    assert!(used.contains("Fabric::new") && used.contains(".send"), "{used:?}");
    assert!(used.len() <= 8, "{used:?}");
    let kfab_paths = text.matches("kfab::").count();
    assert_eq!(kfab_paths, 1, "names of kfab beside Fabric");
}
