//! Answers of the console as tables.

use crate::show::table::Table;
use crate::show::units;
use serde_json::Value;

pub(super) fn done(_: &Value) -> String {
    String::new()
}

/// The names of latencies' columns, and of their members in JSON.
const PERCENTILES: [&str; 5] = ["p50", "p90", "p99", "p99.9", "max"];

fn text(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn joined(v: &Value) -> String {
    list(v).map(text).collect::<Vec<_>>().join(",")
}

pub(super) fn session(v: &Value) -> String {
    if v.is_null() {
        return "no session\n".to_owned();
    }
    format!("session {}: {} nodes, {} batches\n", text(&v["name"]), v["nodes"], v["batches"])
}

pub(super) fn groups(v: &Value) -> String {
    let mut table = Table::new(2, &["group", "nodes"]);
    list(v).for_each(|g| table.row(vec![text(&g["name"]), joined(&g["nids"])]));
    table.text()
}

pub(super) fn batches(v: &Value) -> String {
    let mut table =
        Table::new(2, &["batch", "test", "size", "check", "concurrency", "from", "to", "running"]);
    for b in list(v) {
        if list(&b["tests"]).next().is_none() {
            table.row(vec![text(&b["name"]), "-".to_owned()]);
        }
        for t in list(&b["tests"]) {
            let mut row = vec![text(&b["name"])];
            row.extend(["test", "size", "check", "concurrency", "from", "to"].map(|k| text(&t[k])));
            row.push(text(&b["running"]));
            table.row(row);
        }
    }
    table.text()
}

/// Percentiles in the order of the columns; dashes where nothing was measured.
fn latencies(us: &Value) -> impl Iterator<Item = String> + use<'_> {
    let one = |us: &Value| us.as_f64().map_or("-".to_owned(), |us| units::time(us * 1e3));
    PERCENTILES.iter().map(move |name| one(&us[*name]))
}

pub(super) fn nodes(v: &Value) -> String {
    if v["running"] == true {
        return "it runs until `kfab lst stop`; `kfab lst stat` shows what it does\n".to_owned();
    }
    let head = ["node", "RPCs", "rate", "read", "written", "errors", "dropped"];
    let mut table = Table::new(1, &head);
    for n in list(&v["nodes"]) {
        let number = |k: &str| n[k].as_f64().unwrap_or(0.0);
        table.row(vec![
            text(&n["nid"]),
            text(&n["rpcs"]),
            units::rate(number("rpcs_per_second")),
            units::bandwidth(number("read_bytes_per_second")),
            units::bandwidth(number("written_bytes_per_second")),
            text(&n["errors"]),
            text(&n["dropped"]),
        ]);
    }
    let mut clients = Table::new(1, &[&["client"], &PERCENTILES[..]].concat());
    for c in list(&v["clients"]) {
        let mut row = vec![text(&c["nid"])];
        row.extend(latencies(&c["latency_us"]));
        clients.row(row);
    }
    let mut all = table.text();
    if list(&v["clients"]).next().is_some() {
        all += &format!("\n{}", clients.text());
    }
    for s in list(&v["silent"]) {
        all += &format!("{} does not answer any more: {}\n", text(&s["nid"]), text(&s["why"]));
    }
    if let Some(why) = v["not_stopped"].as_str() {
        all += &format!("the batch could not be stopped everywhere: {why}\n");
    }
    all
}

pub(super) fn load(v: &Value) -> String {
    let r = &v["report"];
    let number = |v: &Value| v.as_f64().unwrap_or(0.0);
    let ping = r["spec"]["kind"] == "Ping";
    let head = ["test", "size", "RPCs", "errors", "rate", "bandwidth"];
    let mut table = Table::new(1, &[&head[..], &PERCENTILES].concat());
    let mut row = vec![
        text(&r["spec"]["kind"]).to_lowercase(),
        if ping { "-".to_owned() } else { units::size(r["spec"]["size"].as_u64().unwrap_or(0) as usize) },
        text(&r["calls"]),
        text(&r["errors"]),
        units::rate(number(&r["rpcs_per_second"])),
        units::bandwidth(number(&r["mib_per_second"]) * f64::from(1 << 20)),
    ];
    row.extend(latencies(&r["latency_us"]));
    table.row(row);
    let left =
        v["session_left"].as_str().map(|why| format!("the session could not be ended everywhere: {why}\n"));
    table.text() + left.as_deref().unwrap_or("")
}
