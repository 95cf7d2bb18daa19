//! `kfab info`: providers and why one is missing, limits with units, the machine's layout, what the system grants.

use crate::failure::{Failure, Result};
use crate::show::{self, table::Table};
use crate::system::{self, Fact};
use clap::Args;
use kfab::topo::Topology;
use kfab::{Caps, Fabric, Limits, PoolConfig, PortLimits, ProviderInfo};
use serde::Serialize;
use serde_json::{Value, json};

#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// A limit of the protocol or of memory.
#[derive(Debug, Serialize)]
struct LimitRow {
    name: String,
    value: u64,
    unit: &'static str,
    meaning: &'static str,
}

pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let providers = Fabric::with_config(crate::providers::providers(), Default::default()).info();
    let (limits, fixed) = (limits(), fixed_limits());
    let (topology, facts) = (Topology::discover(), system::facts());
    if args.json {
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "providers": providers.iter().map(provider_json).collect::<Vec<_>>(),
            "limits": limits.iter().chain(&fixed).collect::<Vec<_>>(),
            "topology": topology,
            "system": facts,
        });
        let text = serde_json::to_string_pretty(&document).map_err(|e| Failure::failed(e.to_string()))?;
        return show::print(&format!("{text}\n"));
    }
    let mut out = format!("kfab {}\n\nPROVIDERS\n", env!("CARGO_PKG_VERSION"));
    out.extend(providers.iter().map(provider_text));
    out += "\nLIMITS (defaults; every one can be set, see the docs of `Limits`, `PortLimits` and `PoolConfig`)\n";
    out += &limits_text(limits.iter().map(|l| (l.name.as_str(), l.value, l.unit, l.meaning)));
    out += "\nLIMITS (fixed)\n";
    out += &limits_text(fixed.iter().map(|l| (l.name.as_str(), l.value, l.unit, l.meaning)));
    for p in providers.iter().filter(|p| !p.limits.is_empty()) {
        out += &format!("\nLIMITS OF {} (fixed)\n", p.scheme);
        out += &limits_text(p.limits.iter().map(|l| (l.name, l.value, l.unit, l.meaning)));
    }
    out += "\nMACHINE\n";
    out.extend(topology.to_string().lines().map(|l| format!("  {l}\n")));
    out += "\nSYSTEM\n";
    out.extend(facts.iter().map(fact_text));
    show::print(&out)
}

fn limits_text<'a>(rows: impl Iterator<Item = (&'a str, u64, &'a str, &'a str)> + Clone) -> String {
    let mut table = Table::new(1, &["name", "value", "unit"]);
    for (name, value, unit, _) in rows.clone() {
        table.row(vec![name.into(), value.to_string(), unit.into()]);
    }
    let lines = table.text();
    lines.lines().skip(1).zip(rows).map(|(line, row)| format!("  {line}  {}\n", row.3)).collect()
}

fn provider_json(p: &ProviderInfo) -> Value {
    match &p.devices {
        Ok(devices) => {
            json!({ "scheme": p.scheme, "available": true, "devices": devices, "limits": p.limits })
        }
        Err(why) => {
            json!({ "scheme": p.scheme, "available": false, "reason": why.reason, "devices": [], "limits": p.limits })
        }
    }
}

fn provider_text(p: &ProviderInfo) -> String {
    let devices = match &p.devices {
        Ok(d) => d,
        Err(why) => return format!("  {:<8}unavailable: {}\n", p.scheme, why.reason),
    };
    let mut out = String::new();
    let mut last: Option<String> = None;
    for (i, d) in devices.iter().enumerate() {
        let scheme = if i == 0 { p.scheme } else { "" };
        out += &format!("  {scheme:<8}{:<10}{}\n", d.name, d.detail);
        if let Some(why) = &d.left_out {
            out += &format!("  {:<8}{:<10}left out: {why}\n", "", "");
            continue;
        }
        let caps = caps_text(&d.caps);
        if last.as_ref() != Some(&caps) {
            out += &format!("  {:<8}{:<10}{caps}\n", "", "");
            last = Some(caps);
        }
    }
    out
}

fn caps_text(c: &Caps) -> String {
    let Caps {
        delivery,
        max_body,
        eager_max,
        fetch_min,
        fragment,
        rma,
        zero_copy,
        sees_death,
        weight: _,
        rank,
        node: _,
    } = c;
    let yes = |b: &bool, what: &str| if *b { format!(", {what}") } else { String::new() };
    let node = c.node.map_or(String::new(), |n| format!(", node {n}"));
    format!(
        "delivery by {}, frames to {max_body} B, eager to {eager_max} B, {}fragments of {fragment} B, rank {rank}{}{}{}{node}",
        format!("{delivery:?}").to_lowercase(),
        if *fetch_min > 0 { format!("fetched above {fetch_min} B, ") } else { String::new() },
        yes(rma, "one-sided without the peer"),
        yes(zero_copy, "zero copy"),
        yes(sees_death, "sees dead peers"),
    )
}

fn fact_text(f: &Fact) -> String {
    let hint = f.remedy.as_ref().map_or(String::new(), |r| format!("\n  {:<18}{r}", ""));
    format!("  {:<18}{}{hint}\n", f.name, f.value)
}

/// Units and meanings, in the order in which they are shown.
const MEANINGS: [(&str, &str, &str); 21] = [
    ("credits", "units", "memory that unasked messages of one peer may hold here"),
    ("credit_bytes", "bytes", "per unit"),
    ("max_message", "bytes", "largest message"),
    ("max_ops", "operations", "under way at once on an endpoint"),
    ("max_peers", "peers", "known at once to an endpoint"),
    ("max_left_behind", "units", "that wait of peers that are gone, then nobody new is let in"),
    ("max_unacked", "frames", "to one peer without an acknowledgement"),
    ("max_unacked_bytes", "bytes", "of large transfers to one peer, unacknowledged"),
    ("coalesce_max", "bytes", "messages up to this share a frame under backlog"),
    ("fetch_min", "bytes", "messages above this are fetched in one copy where possible"),
    ("probe_after", "us", "of silence, then a peer is probed"),
    ("peer_timeout", "us", "of silence, then a peer is lost"),
    ("rail_timeout", "us", "of silence on one rail while others talk, then it is cut"),
    ("resend_after", "us", "first resend on a lossy rail"),
    ("ack_delay", "us", "an acknowledgement waits for company"),
    ("idle_close", "us", "unused connections are closed after this"),
    ("reconnect_first", "us", "shortest pause between attempts to connect"),
    ("reconnect_last", "us", "longest pause between attempts to connect"),
    ("connect_timeout", "us", "a connection that is not up by then has failed"),
    ("max_conns", "connections", "of one port, made and accepted"),
    ("max_connecting", "connections", "of one port under way at once; more wait"),
];

/// A number as it is, a time in microseconds.
fn number(v: &Value) -> Option<u64> {
    match (v["secs"].as_u64(), v["nanos"].as_u64()) {
        (Some(s), Some(ns)) => Some(s * 1_000_000 + ns / 1000),
        _ => v.as_u64(),
    }
}

/// Every limit that can be set, by its own name; [`MEANINGS`] tells the rest.
fn limits() -> Vec<LimitRow> {
    let mut found: Vec<(String, u64)> = Vec::new();
    let protocol = serde_json::to_value(Limits::default()).unwrap_or_default();
    let ports = serde_json::to_value(PortLimits::default()).unwrap_or_default();
    for (name, value) in [&protocol, &ports].into_iter().flat_map(Value::as_object).flatten() {
        match value.as_array() {
            Some(pair) => {
                let ends = pair.iter().filter_map(number).zip(["first", "last"]);
                found.extend(ends.map(|(n, end)| (format!("{name}_{end}"), n)));
            }
            None => found.extend(number(value).map(|n| (name.clone(), n))),
        }
    }
    let PoolConfig { region_bytes, max_bytes, keep_bytes, node: _ } = PoolConfig::default();
    let place = |name: &str| MEANINGS.iter().position(|m| m.0 == name);
    found.sort_by_key(|(name, _)| place(name).unwrap_or(usize::MAX));
    let row = |(name, value): (String, u64)| {
        let (_, unit, meaning) = place(&name).map_or(("", "", ""), |i| MEANINGS[i]);
        LimitRow { name, value, unit, meaning }
    };
    let mut rows: Vec<LimitRow> = found.into_iter().map(row).collect();
    let mut pool = |name: &str, value: usize, meaning| {
        rows.push(LimitRow { name: name.to_owned(), value: value as u64, unit: "bytes", meaning });
    };
    pool("region_bytes", region_bytes, "of one slab of buffers");
    pool("max_bytes", max_bytes, "of all slabs of an endpoint");
    pool("keep_bytes", keep_bytes, "of them, kept for the next buffers above 64 MiB");
    rows
}

/// Those that cannot.
fn fixed_limits() -> Vec<LimitRow> {
    let row = |l: kfab::ProviderLimit| {
        let (name, value, unit, meaning) = (l.name.to_owned(), l.value, l.unit, l.meaning);
        LimitRow { name, value, unit, meaning }
    };
    kfab::fixed_limits().into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_limits_has_a_row_with_a_unit() {
        let fields = serde_json::to_value(Limits::default()).unwrap();
        let rows = limits();
        let ports = serde_json::to_value(PortLimits::default()).unwrap();
        for name in fields.as_object().unwrap().keys().chain(ports.as_object().unwrap().keys()) {
            let row = rows.iter().find(|r| r.name.starts_with(name.as_str()));
            assert!(row.is_some_and(|r| !r.unit.is_empty() && r.value > 0), "{name}");
        }
        for fixed in ["max_events", "max_rules", "max_ways", "max_address", "watchers"] {
            assert!(fixed_limits().iter().any(|r| r.name == fixed), "{fixed}");
            assert!(!rows.iter().any(|r| r.name == fixed), "{fixed} cannot be set");
        }
    }
}
