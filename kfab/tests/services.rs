//! The threads that let others look at an endpoint: they end with it, and lack of descriptors does not make them spin.

mod common;

use common::child::{self, Kid};
use common::{config, fabric, open, watched};
use kfab::prometheus::Exporter;
use kfab::{EndpointConfig, MONITOR_PREFIX, Monitor};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Waits for it; the watchdog ends what never comes true.
fn until(mut f: impl FnMut() -> bool) {
    while !f() {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn is_listed(name: &str) -> bool {
    let all = fs::read_to_string("/proc/net/unix").unwrap();
    all.lines().any(|l| l.ends_with(&format!("@{name}")))
}

/// The threads of a process by this name.
fn threads(pid: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|t| t.unwrap().path());
    let is = |t: &std::path::PathBuf| fs::read_to_string(t.join("comm")).is_ok_and(|c| c.trim() == name);
    tasks.filter(is).map(|t| t.to_string_lossy().into_owned()).collect()
}

#[test]
fn services_end_with_their_endpoint() {
    watched("services", || {
        let endpoint = Arc::new(open("tcp"));
        let monitor = Monitor::serve(&endpoint).unwrap();
        let exporter = Exporter::serve(&endpoint, "127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(monitor.name().starts_with(MONITOR_PREFIX) && is_listed(monitor.name()));
        drop(TcpStream::connect(exporter.address()).unwrap());
        let me = std::process::id();
        until(|| threads(me, "kfab-monitor").len() == 1 && threads(me, "kfab-metrics").len() == 1);
        drop(endpoint);
        // Nobody connects, and both handles are still held.
        until(|| !is_listed(monitor.name()));
        until(|| threads(me, "kfab-monitor").is_empty() && threads(me, "kfab-metrics").is_empty());
        TcpStream::connect(exporter.address()).expect_err("an exporter of nothing");
    });
}

#[test]
fn a_scraper_that_says_nothing_does_not_keep_the_endpoint_open() {
    watched("silent scraper", || {
        let endpoint = Arc::new(open("tcp"));
        let listen = vec![endpoint.address().ways()[0].to_string()];
        let exporter = Exporter::serve(&endpoint, "127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = TcpStream::connect(exporter.address()).unwrap();
        let mut half = TcpStream::connect(exporter.address()).unwrap();
        half.write_all(b"GET /met").unwrap();
        // Accepted, or about to be: whichever it is, its patience is 2 s.
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        drop(endpoint);
        fabric().open(EndpointConfig { listen, ..config("tcp") }).expect("the place is free again");
        drop(exporter);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        drop((silent, half));
    });
}

/// Not a test of its own: an endpoint with its services and no descriptor left, until it is told otherwise.
#[test]
fn child_main() {
    let Some(_) = child::role() else { return };
    let endpoint = Arc::new(open("tcp"));
    let monitor = Monitor::serve(&endpoint).unwrap();
    let exporter = Exporter::serve(&endpoint, "127.0.0.1:0".parse().unwrap()).unwrap();
    // What the endpoint sleeps on is made when it is first needed.
    let _ = endpoint.as_fd();
    let few = Rlimit { current: Some(64), maximum: getrlimit(Resource::Nofile).maximum };
    setrlimit(Resource::Nofile, few).unwrap();
    let mut all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!all.is_empty());
    child::listen(move |_| all.clear());
    child::say(&format!("full {} {} {}", std::process::id(), monitor.name(), exporter.address()));
    loop {
        std::thread::park();
    }
}

/// Processor time of a thread, in ticks of 10 ms.
fn ticks(task: &str) -> u64 {
    let stat = fs::read_to_string(format!("{task}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn services_without_descriptors_sleep_and_answer_later() {
    watched("descriptors", || {
        let mut kid = Kid::start("full", &[]);
        let said = kid.says("full");
        let [pid, name, address] = said.split(' ').collect::<Vec<_>>()[..] else { panic!("{said}") };
        let pid = pid.parse().unwrap();
        let mut scrape = TcpStream::connect(address).unwrap();
        write!(scrape, "GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut watch = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        watch.write_all(b"now\n").unwrap();
        let mut services = Vec::new();
        until(|| {
            services = ["kfab-monitor", "kfab-metrics"].iter().flat_map(|n| threads(pid, n)).collect();
            services.len() == 2
        });
        let used = || services.iter().map(|t| ticks(t)).collect::<Vec<_>>();
        let (before, begun) = (used(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        let (after, most) = (used(), begun.elapsed().as_millis() as u64 / 10 / 5);
        for (b, a) in before.iter().zip(&after) {
            assert!(a - b <= most, "{before:?} and {after:?} ticks: a service spins");
        }
        kid.tell("descriptors are back");
        let mut answer = String::new();
        scrape.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let mut line = [0; 1];
        watch.read_exact(&mut line).unwrap();
        assert_eq!(line, *b"{");
    });
}
