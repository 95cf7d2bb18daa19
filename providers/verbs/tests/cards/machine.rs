//! What the machine says: cards, counters, objects that the kernel holds, links cut by the lab.

use kfab_core::spi::Provider;
use kfab_verbs::Verbs;
use std::collections::BTreeMap;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The test run must find cards.
pub(crate) fn demanded() -> bool {
    std::env::var_os("KFAB_LAB_RDMA").is_some()
}

/// The names of the cards, or why there is none.
pub(crate) fn cards() -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Verbs.probe().map_err(|u| u.reason)?.into_iter().map(|d| d.name).collect();
    names.sort();
    Ok(names)
}

/// All counters of all cards whose name has `word` in it, by path.
pub(crate) fn counters(word: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for card in cards().unwrap_or_default() {
        let dir = format!("/sys/class/infiniband/{card}/ports/1/hw_counters");
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            if name.contains(word)
                && let Some(n) = std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse().ok())
            {
                all.insert(format!("{card}/{name}"), n);
            }
        }
    }
    assert!(!all.is_empty(), "no counter is called {word}");
    all
}

/// What the kernel holds for each card, by name: `rdma resource show`, without the numbers that cards get as they come and without
/// contexts, of which librdmacm keeps one of its own.
pub(crate) fn resources() -> Vec<String> {
    let out = Command::new("rdma").args(["resource", "show"]).output().expect("the rdma tool (iproute2)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8_lossy(&out.stdout);
    let mut lines: Vec<String> =
        said.lines().filter_map(|l| Some(l.split_once(": ")?.1.trim().to_owned())).collect();
    lines.sort();
    without(&lines, "ctx")
}

/// Waits until the kernel holds what it held before.
pub(crate) fn expect_resources(before: &[String]) {
    expect(before, resources);
}

/// Waits until `now` is what it was: the kernel takes its time with objects of processes that died.
pub(crate) fn expect(before: &[String], now: impl Fn() -> Vec<String>) {
    let until = Instant::now() + Duration::from_secs(100);
    while now() != before {
        assert!(Instant::now() < until, "left behind: {:?}, before: {before:?}", now());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Lines of `rdma resource show` without one of their numbers.
pub(crate) fn without(lines: &[String], what: &str) -> Vec<String> {
    let one = |line: &String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|w| *w == what).unwrap_or(words.len());
        let kept = words.iter().enumerate().filter(|(i, _)| *i != at && *i != at + 1);
        kept.map(|(_, w)| *w).collect::<Vec<_>>().join(" ")
    };
    lines.iter().map(one).collect()
}

/// One number of `rdma resource show`.
pub(crate) fn count(lines: &[String], card: &str, what: &str) -> u64 {
    let line = lines.iter().find(|l| l.contains(card)).expect("a line for each card");
    let mut words = line.split_whitespace().skip_while(|w| *w != what);
    words.nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// The local key of this process' registration of so many bytes on a card. Where peers have a key, it is the same on soft-RoCE.
pub(crate) fn registration(card: &str, bytes: usize) -> Option<u64> {
    let out = Command::new("rdma").args(["resource", "show", "mr"]).output().expect("the rdma tool");
    let said = String::from_utf8_lossy(&out.stdout);
    let words = [format!("dev {card} "), format!("mrlen {bytes} "), format!("pid {} ", std::process::id())];
    let line = said.lines().find(|l| words.iter().all(|w| l.contains(w)))?;
    let key = line.split_once(" lkey 0x")?.1.split(' ').next()?;
    u64::from_str_radix(key, 16).ok()
}

/// Where the connection manager of this process listens at an address.
pub(crate) fn manager_at(ip: &str) -> u16 {
    let out = Command::new("rdma").args(["resource", "show", "cm_id"]).output().expect("the rdma tool");
    let (said, mine) = (String::from_utf8_lossy(&out.stdout), format!("pid {} ", std::process::id()));
    let line =
        said.lines().find(|l| l.contains("LISTEN") && l.contains(&mine) && l.contains(&format!("{ip}:")));
    let after = line.and_then(|l| l.split_once(&format!("src-addr {ip}:"))).expect("a listener").1;
    after.split(' ').next().and_then(|n| n.parse().ok()).expect("a port")
}

/// A program that asks the connection manager at a place for a connection.
pub(crate) fn stranger(ip: &str, port: u16) -> Child {
    let port = port.to_string();
    let words = ["-c", "-a", ip, "-p", &port, "-C", "1"];
    Command::new("rping").args(words).spawn().expect("rping (rdmacm-utils)")
}

/// Begins to take a card out; that ends when nobody holds it any more.
pub(crate) fn take_out(card: &str) -> Child {
    Command::new("rdma").args(["link", "delete", card]).spawn().expect("the rdma tool")
}

/// Puts a card back onto its interface.
pub(crate) fn put_in(card: &str) {
    let (kind, interface) = (card.split('_').next().expect("a card of the lab"), interface_of(card));
    let words = ["link", "add", card, "type", kind, "netdev", interface];
    assert!(Command::new("rdma").args(words).status().expect("the rdma tool").success());
}

/// `lab link 0 HOW`.
pub(crate) fn link(how: &str) {
    let s = Command::new("lab").args(["link", "0", how]).status().expect("the lab's helper");
    assert!(s.success(), "lab link 0 {how}");
}

/// Where an IPv4 address is in the table of a card's first port.
pub(crate) fn gid_index(card: &str, ip: &str) -> Option<usize> {
    let gid = ip.parse::<std::net::Ipv4Addr>().expect("an address").to_ipv6_mapped();
    let line = |index: &usize| {
        std::fs::read_to_string(format!("/sys/class/infiniband/{card}/ports/1/gids/{index}")).ok()
    };
    (0..16).find(|index| line(index).and_then(|l| l.trim().parse().ok()) == Some(gid))
}

/// Takes an address from a card's interface, gives it another and the first again, with the route to the peer that went with it.
pub(crate) fn move_address(card: &str, ip: &str, other: &str, peer: &str) {
    let interface = interface_of(card);
    ip_tool(&["addr", "del", &format!("{ip}/24"), "dev", interface]);
    for one in [other, ip] {
        ip_tool(&["addr", "add", &format!("{one}/24"), "dev", interface, "noprefixroute"]);
    }
    ip_tool(&["route", "replace", peer, "dev", interface, "src", ip, "table", "100"]);
}

pub(crate) fn forget_address(card: &str, ip: &str) {
    ip_tool(&["addr", "del", &format!("{ip}/24"), "dev", interface_of(card)]);
}

fn ip_tool(words: &[&str]) {
    let done = Command::new("ip").args(words).status().expect("the ip tool (iproute2)");
    assert!(done.success(), "ip {words:?}");
}

/// As the lab names both: `rxe_b0` on `b0`.
fn interface_of(card: &str) -> &str {
    card.split_once('_').expect("a card of the lab").1
}
