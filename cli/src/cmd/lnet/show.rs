//! Answers of a node as tables.

use crate::show::table::Table;
use serde_json::Value;

/// What has nothing to tell.
pub(super) fn done(_: &Value) -> String {
    String::new()
}

/// A cell: text as it is, numbers as they are, nothing as a dash.
fn cell(v: &Value) -> String {
    match v {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

fn cells(v: &Value, keys: &[&str]) -> Vec<String> {
    keys.iter().map(|k| cell(&v[*k])).collect()
}

fn list(v: &Value) -> impl Iterator<Item = &Value> {
    v.as_array().into_iter().flatten()
}

fn status(up: &Value) -> String {
    if *up == true { "up" } else { "down" }.to_owned()
}

/// Messages of all types.
fn total(counts: &Value) -> u64 {
    ["put", "get", "ack", "reply"].iter().filter_map(|k| counts[*k].as_u64()).sum()
}

pub(super) fn nets(v: &Value) -> String {
    let head =
        ["net", "nid", "status", "health", "credits", "min", "max", "sent", "received", "dropped", "address"];
    let (mut table, mut placed) = (Table::new(3, &head), Vec::new());
    for net in list(v) {
        for ni in list(&net["interfaces"]) {
            let mut row = vec![cell(&net["net"]), cell(&ni["nid"])];
            row.push(status(&ni["up"]));
            row.extend(cells(ni, &["health", "credits", "min_credits", "max_credits"]));
            row.extend(["sent", "received", "dropped"].iter().map(|k| total(&ni[*k]).to_string()));
            row.push(cell(&ni["address"]));
            table.row(row);
            let nid = cell(&ni["nid"]);
            placed.extend(list(&ni["placement"]).map(|p| format!("{nid}, {}\n", cell(p))));
        }
    }
    table.text() + &placed.concat()
}

pub(super) fn all_peers(v: &Value, verbose: bool) -> String {
    let mut text = peers(v["peers"].as_array().map_or(&[][..], Vec::as_slice), verbose);
    if verbose && list(&v["connections"]).next().is_some() {
        let mut table = Table::new(2, &["connection", "kind", "version", "queued", "remote"]);
        for c in list(&v["connections"]) {
            let mut row = vec![cell(&c["peer"])];
            row.extend(cells(c, &["kind", "version", "queued_bytes", "remote"]));
            table.row(row);
        }
        text += &format!("\n{}", table.text());
    }
    text
}

pub(super) fn peers(all: &[Value], verbose: bool) -> String {
    if !verbose {
        let mut table = Table::new(2, &["peer", "nids", "multi-rail", "discovered"]);
        for p in all {
            let nids: Vec<String> = list(&p["interfaces"]).map(|i| cell(&i["nid"])).collect();
            table.row(vec![
                cell(&p["primary"]),
                nids.join(","),
                cell(&p["multi_rail"]),
                cell(&p["discovered"]),
            ]);
        }
        return table.text();
    }
    let head = [
        "peer",
        "nid",
        "status",
        "health",
        "credits",
        "min",
        "max",
        "sent",
        "received",
        "dropped",
        "multi-rail",
        "discovered",
    ];
    let mut table = Table::new(3, &head);
    for p in all {
        for i in list(&p["interfaces"]) {
            let mut row = vec![cell(&p["primary"]), cell(&i["nid"]), status(&i["up"])];
            row.extend(cells(i, &["health", "credits", "min_credits", "max_credits"]));
            row.extend(["sent", "received", "dropped"].iter().map(|k| total(&i[*k]).to_string()));
            row.extend(cells(p, &["multi_rail", "discovered"]));
            table.row(row);
        }
    }
    table.text()
}

pub(super) fn routes(v: &Value) -> String {
    let mut table = Table::new(3, &["net", "gateway", "status", "health", "hops", "priority"]);
    for r in list(v) {
        let mut row = cells(r, &["net", "gateway"]);
        row.push(status(&r["up"]));
        row.extend(cells(r, &["health", "hops", "priority"]));
        table.row(row);
    }
    table.text()
}

pub(super) fn book(v: &Value) -> String {
    let mut table = Table::new(2, &["nid", "addresses"]);
    for e in list(v) {
        let all: Vec<String> = list(&e["addresses"]).map(cell).collect();
        table.row(vec![cell(&e["nid"]), all.join(";")]);
    }
    table.text()
}

pub(super) fn ping(v: &Value) -> String {
    let nids: Vec<String> =
        list(&v["interfaces"]).map(|i| format!("  {} {}\n", cell(&i[0]), status(&i[1]))).collect();
    let features: Vec<String> = list(&v["features"]).map(cell).collect();
    let time = v["time_us"].as_f64().unwrap_or(0.0);
    format!(
        "{}-{} answers in {}: {}\n{}",
        cell(&v["pid"]),
        cell(&v["nid"]),
        crate::show::units::time(time * 1e3),
        features.join(", "),
        nids.concat()
    )
}

pub(super) fn stats(v: &Value) -> String {
    let mut table = Table::new(1, &["messages", "put", "get", "ack", "reply", "bytes"]);
    for way in ["sent", "received"] {
        let mut row = vec![way.to_owned()];
        row.extend(cells(&v[way], &["put", "get", "ack", "reply", "bytes"]));
        table.row(row);
    }
    let mut rest = Table::new(1, &["counter", "value"]);
    for (name, value) in [
        ("under way", &v["messages"]),
        ("under way at most", &v["messages_max"]),
        ("dropped, nothing matched", &v["core"]["drop_count"]),
        ("dropped, bytes", &v["core"]["drop_length"]),
        ("dropped by fault rules", &v["fault_drops"]),
        ("waiting at lazy portals", &v["core"]["parked"]),
        ("waiting, bytes", &v["core"]["parked_bytes"]),
        ("send failures", &v["send_failures"]),
        ("sent again", &v["resends"]),
        ("answers that never came", &v["response_timeouts"]),
    ] {
        rest.row(vec![name.to_owned(), cell(value)]);
    }
    format!("{}\n{}", table.text(), rest.text())
}

pub(super) fn fault_added(v: &Value) -> String {
    format!("rule {}\n", v["id"])
}

pub(super) fn faults_removed(v: &Value) -> String {
    format!("{} removed\n", v["removed"])
}

pub(super) fn faults(v: &Value) -> String {
    let mut table = Table::new(
        6,
        &["rule", "from", "to", "at", "type", "action", "portal", "how often", "seen", "struck"],
    );
    for f in list(v) {
        let mut row = cells(f, &["id", "src", "dst", "local", "kind"]);
        row.push(flat(&f["action"]));
        row.push(cell(&f["portal"]));
        row.push(flat(&f["frequency"]));
        row.extend(cells(f, &["seen", "struck"]));
        table.row(row);
    }
    table.text()
}

/// `{"Fail":"LocalError"}` as `Fail LocalError`, `{"OneIn":10}` as `1 in 10`, a time in seconds.
fn flat(v: &Value) -> String {
    if let Some(n) = v["OneIn"].as_u64() {
        return format!("1 in {n}");
    }
    let Some((name, inner)) = v.as_object().and_then(|o| o.iter().next()) else { return cell(v) };
    match (inner["secs"].as_f64(), inner["nanos"].as_f64()) {
        (Some(s), Some(ns)) => format!("{name} {} s", s + ns / 1e9),
        _ => format!("{name} {}", cell(inner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_in_words() {
        assert_eq!(flat(&json!("Drop")), "Drop");
        assert_eq!(flat(&json!({"Fail": "LocalError"})), "Fail LocalError");
        assert_eq!(flat(&json!({"Delay": {"secs": 2, "nanos": 500_000_000}})), "Delay 2.5 s");
        assert_eq!(total(&json!({"put": 1, "get": 2, "ack": 3, "reply": 4, "bytes": 99})), 10);
    }
}
