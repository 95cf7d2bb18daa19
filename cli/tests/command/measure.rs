//! The measurements give figures of the promised shape over every provider, here and against a server.

use crate::run::{Dir, Running, kfab, run, server};
use serde_json::Value;

const PROVIDERS: [&str; 2] = ["shm", "tcp"];

fn number(v: &Value, field: &str) -> f64 {
    v[field].as_f64().unwrap_or_else(|| panic!("no {field} in {v}"))
}

/// A row with latencies in order.
fn check_latency(row: &Value) {
    let all = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "p9999_ns"].map(|f| number(row, f));
    assert!(all[0] > 0.0 && all.windows(2).all(|w| w[0] <= w[1]), "{row}");
    assert!(number(row, "mean_ns") >= all[0] && number(row, "max_ns") >= all[0], "{row}");
}

#[test]
fn every_test_runs_over_every_provider() {
    for provider in PROVIDERS {
        for (test, window) in [("lat", "1"), ("bw", "4"), ("rate", "64"), ("read", "4"), ("write", "4")] {
            for size in ["8", "5000", "300000"] {
                let args = ["perf", test, "--provider", provider, "--size", size, "--window", window];
                let e = run(&[&args[..], &["--duration", "0.05", "--json"]].concat()).ok();
                let document = e.json();
                assert_eq!(
                    (&document["test"], &document["provider"]),
                    (&test.into(), &provider.into()),
                    "{document}"
                );
                let rows = document["rows"].as_array().unwrap();
                assert_eq!(rows.len(), 1, "{document}");
                assert_eq!(rows[0]["size"].to_string(), size);
                assert!(number(&rows[0], "msg_per_s") > 0.0 && number(&rows[0], "bytes_per_s") > 0.0);
                if matches!(test, "lat" | "read" | "write") {
                    check_latency(&rows[0]);
                }
            }
        }
    }
}

#[test]
fn sockets_is_another_name_of_tcp() {
    let e =
        run(&["perf", "lat", "--provider", "sockets", "--size", "1,2,4", "--iterations", "500", "--json"])
            .ok();
    let document = e.json();
    assert_eq!(document["provider"], "tcp");
    let rows = document["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["count"].as_u64().unwrap()).collect::<Vec<_>>(), [500, 500, 500]);
}

#[test]
fn every_way_of_waiting_works() {
    for provider in PROVIDERS {
        for wait in ["spin", "adaptive", "sleep"] {
            let args = [
                "perf",
                "lat",
                "--provider",
                provider,
                "--wait",
                wait,
                "--size",
                "8,100000",
                "--iterations",
                "300",
            ];
            run(&args).ok();
        }
    }
}

#[test]
fn ping_pong_shows_every_provider_beside_the_limits() {
    let e = run(&["pingpong", "--size", "8,4096", "--duration", "0.05"]).ok();
    for word in ["shm", "tcp", "p99.99", "4 KiB", "one cache line", "memcpy", "TCP on loopback"] {
        assert!(e.out.contains(word), "{word:?} is not in:\n{}", e.out);
    }
    let e = run(&["pingpong", "--size", "8", "--duration", "0.05", "--provider", "tcp", "--json"]).ok();
    let document = e.json();
    assert_eq!(document["rows"].as_array().unwrap().len(), 1);
    check_latency(&document["rows"][0]);
    assert!(number(&document["rows"][0], "stream_msg_per_s") > 0.0);
    assert!(document["limits"].as_array().unwrap().iter().any(|l| l["name"] == "cache_line"));
}

#[test]
fn limits_have_the_names_that_others_rely_on() {
    let document = run(&["perf", "limit", "--json"]).ok().json();
    let rows = document["rows"].as_array().unwrap();
    let find = |name: &str, size: Option<u64>| {
        let row = rows.iter().find(|r| r["name"] == name && (size.is_none() || r["size"].as_u64() == size));
        row.unwrap_or_else(|| panic!("no {name} {size:?} in {document}"))
    };
    assert!(number(find("cache_line", None), "one_way_ns") > 0.0);
    for size in [64 << 10, 1 << 20, 4 << 20] {
        assert!(number(find("memcpy", Some(size)), "bytes_per_s") > 0.0);
    }
    for size in [8, 64 << 10] {
        assert!(number(find("tcp_pingpong", Some(size)), "one_way_ns") > 0.0);
    }
    assert!(number(find("tcp_stream", Some(1 << 20)), "bytes_per_s") > 0.0);
}

#[test]
fn wake_ups_are_compared_with_an_eventfd() {
    let document =
        run(&["perf", "wake", "--provider", "tcp", "--iterations", "20", "--asleep", "1", "--json"])
            .ok()
            .json();
    let names: Vec<_> = document["rows"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
    assert_eq!(names, ["kfab tcp", "eventfd"]);
    let provider = &document["providers"][0];
    assert!(number(provider, "wake_ratio") > 0.0, "{provider}");
    for name in ["receiver_cpu_percent", "idle_cpu_percent"] {
        assert!(number(provider, name) < 50.0, "{provider}");
    }
}

#[test]
fn figures_as_csv_and_as_a_plot() {
    let dir = Dir::new();
    let file = dir.file("plot.svg");
    let args =
        ["perf", "bw", "--provider", "tcp", "--size", "8..64", "--duration", "0.05", "--csv", "--svg", &file];
    let e = run(&args).ok();
    assert_eq!(e.out.lines().count(), 5, "{}", e.out);
    assert!(e.out.starts_with("test,provider,size,"), "{}", e.out);
    let plot = std::fs::read_to_string(&file).unwrap();
    assert!(plot.contains("<svg") && plot.contains("bandwidth, bytes/s"));
}

#[test]
fn against_a_server_by_its_address() {
    let dir = Dir::new();
    let key = dir.key("key");
    for more in [&[][..], &["--key-file", &key], &["--key-file", &key, "--plain"]] {
        let (_server, address) = server(more);
        for test in ["lat", "rate", "read", "write"] {
            let args = [
                "perf",
                test,
                &address,
                "--provider",
                "tcp",
                "--size",
                "8,70000",
                "--duration",
                "0.05",
                "--json",
            ];
            let document = run(&[&args[..], more].concat()).ok().json();
            assert_eq!(document["provider"], "tcp", "{document}");
        }
    }
    let server = Running::start(kfab(&["serve"]));
    let address = server.line();
    assert!(address.contains("shm:") && address.contains("tcp:"), "{address}");
    let document = run(&["pingpong", &address, "--size", "8", "--duration", "0.05", "--json"]).ok().json();
    assert_eq!(document["rows"][0]["provider"], "shm", "the best way is taken: {document}");
}
