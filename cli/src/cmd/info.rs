//! `kfab info`: providers and why one is missing, limits with units, the machine's layout, what the system grants.

use crate::failure::{Failure, Result};
use crate::show::{self, table::Table};
use crate::system::{self, Fact};
use clap::Args;
use kfab::topo::Topology;
use kfab::{Caps, Fabric, Limits, PoolConfig, ProviderInfo};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// A limit of the protocol or of memory.
#[derive(Debug, Serialize)]
struct LimitRow {
    name: &'static str,
    value: u64,
    unit: &'static str,
    meaning: &'static str,
}

pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let providers = Fabric::with_config(crate::providers::providers(), Default::default()).info();
    let (limits, topology, facts) = (limits(), Topology::discover(), system::facts());
    if args.json {
        let document = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "providers": providers.iter().map(provider_json).collect::<Vec<_>>(),
            "limits": limits,
            "topology": topology,
            "system": facts,
        });
        let text = serde_json::to_string_pretty(&document).map_err(|e| Failure::failed(e.to_string()))?;
        return show::print(&format!("{text}\n"));
    }
    let mut out = format!("kfab {}\n\nPROVIDERS\n", env!("CARGO_PKG_VERSION"));
    out.extend(providers.iter().map(provider_text));
    out += "\nLIMITS (defaults; every one can be set, see the docs of `Limits` and `PoolConfig`)\n";
    let mut table = Table::new(1, &["name", "value", "unit"]);
    for l in &limits {
        table.row(vec![l.name.into(), l.value.to_string(), l.unit.into()]);
    }
    for (line, l) in table.text().lines().skip(1).zip(&limits) {
        out += &format!("  {line}  {}\n", l.meaning);
    }
    out += "\nMACHINE\n";
    out.extend(topology.to_string().lines().map(|l| format!("  {l}\n")));
    out += "\nSYSTEM\n";
    out.extend(facts.iter().map(fact_text));
    show::print(&out)
}

fn provider_json(p: &ProviderInfo) -> Value {
    match &p.devices {
        Ok(devices) => json!({ "scheme": p.scheme, "available": true, "devices": devices }),
        Err(why) => json!({ "scheme": p.scheme, "available": false, "reason": why.reason, "devices": [] }),
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
        "delivery by {}, frames to {max_body} B, eager to {eager_max} B, fragments of {fragment} B, rank {rank}{}{}{}{node}",
        format!("{delivery:?}").to_lowercase(),
        yes(rma, "one-sided without the peer"),
        yes(zero_copy, "zero copy"),
        yes(sees_death, "sees dead peers"),
    )
}

fn fact_text(f: &Fact) -> String {
    let hint = f.remedy.as_ref().map_or(String::new(), |r| format!("\n  {:<18}{r}", ""));
    format!("  {:<18}{}{hint}\n", f.name, f.value)
}

/// Every limit there is. Taking the structs apart without `..` keeps this list whole.
fn limits() -> Vec<LimitRow> {
    let Limits {
        credits,
        credit_bytes,
        max_message,
        max_ops,
        max_peers,
        max_unacked,
        max_unacked_bytes,
        coalesce_max,
        fetch_min,
        probe_after,
        peer_timeout,
        resend_after,
        ack_delay,
        idle_close,
        reconnect,
    } = Limits::default();
    let us = |d: Duration| d.as_micros() as u64;
    let row = |name, value, unit, meaning| LimitRow { name, value, unit, meaning };
    let mut all = vec![
        row("credits", credits.into(), "units", "memory that unasked messages of one peer may hold here"),
        row("credit_bytes", credit_bytes.into(), "bytes", "per unit"),
        row("max_message", max_message, "bytes", "largest message"),
        row("max_ops", max_ops as u64, "operations", "under way at once on an endpoint"),
        row("max_peers", max_peers as u64, "peers", "known at once to an endpoint"),
        row("max_unacked", max_unacked as u64, "frames", "to one peer without an acknowledgement"),
        row(
            "max_unacked_bytes",
            max_unacked_bytes as u64,
            "bytes",
            "of large transfers to one peer, unacknowledged",
        ),
        row("coalesce_max", coalesce_max as u64, "bytes", "messages up to this share a frame under backlog"),
        row(
            "fetch_min",
            fetch_min as u64,
            "bytes",
            "messages above this are fetched in one copy where possible",
        ),
        row("probe_after", us(probe_after), "us", "of silence, then a peer is probed"),
        row("peer_timeout", us(peer_timeout), "us", "of silence, then a peer is lost"),
        row("resend_after", us(resend_after), "us", "first resend on a lossy rail"),
        row("ack_delay", us(ack_delay), "us", "an acknowledgement waits for company"),
        row("idle_close", us(idle_close), "us", "unused connections are closed after this"),
        row("reconnect_first", us(reconnect.0), "us", "shortest pause between attempts to connect"),
        row("reconnect_last", us(reconnect.1), "us", "longest pause between attempts to connect"),
    ];
    let PoolConfig { region_bytes, max_bytes, node: _ } = PoolConfig::default();
    all.push(row("region_bytes", region_bytes as u64, "bytes", "of one slab of buffers"));
    all.push(row("max_bytes", max_bytes as u64, "bytes", "of all slabs of an endpoint"));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_limits_has_a_row_with_a_unit() {
        let fields = serde_json::to_value(Limits::default()).unwrap();
        let rows = limits();
        for name in fields.as_object().unwrap().keys() {
            let row = rows.iter().find(|r| r.name.starts_with(name.as_str()));
            assert!(row.is_some_and(|r| !r.unit.is_empty() && r.value > 0), "{name}");
        }
    }
}
