//! What the program says of cards beside what `ibv_devinfo` says, and its measurements over them.
//!
//! The guest's script writes, each after a line of [`NEXT`]: `kfab info --json`, `ibv_devinfo -v`, then what measurements print.
//! One of its cables is cut, so that not all ports are in one state. No figure is held against another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Counts;

/// Parts what is printed.
const NEXT: &str = "-----";

pub(super) const SCRIPT: &str = "next() { echo -----; }; lab link 1 down && \
    next && @kfab-cli/kfab info --json && next && ibv_devinfo -v && \
    next && @kfab-cli/kfab pingpong --provider verbs --size 8,64KiB --iterations 200 --wait adaptive --json && \
    { @kfab-cli/kfab serve --provider verbs --listen verbs:10.8.0.2:7000 --wait adaptive >/dev/null & } && server=$! && \
    lab wait-port 7000 && next && \
    @kfab-cli/kfab perf lat verbs:10.8.0.2:7000 --size 8,64KiB --iterations 100 --wait adaptive --json && next && \
    @kfab-cli/kfab perf write verbs:10.8.0.2:7000 --size 8,64KiB --iterations 100 --wait adaptive --json && kill $server";

/// The sizes in [`SCRIPT`].
const SIZES: [u64; 2] = [8, 64 << 10];

/// A port as both name it.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    state: String,
    mbit_s: u64,
    gids: BTreeSet<Ipv6Addr>,
}

type Ports = BTreeMap<String, Port>;

/// Five looks: the cards, and the figures of each measurement.
pub(super) fn judge(_: &str, said: &str) -> anyhow::Result<Counts> {
    let parts: Vec<&str> = said.split(&format!("{NEXT}\n")).skip(1).collect();
    let [info, devinfo, pingpong, lat, write] = parts[..] else {
        anyhow::bail!("{} parts, not five", parts.len());
    };
    let (ours, theirs) = (of_kfab(info)?, of_devinfo(devinfo)?);
    ensure!(ours == theirs, "kfab says {ours:#?}\nibv_devinfo says {theirs:#?}");
    let states: BTreeSet<&str> = ours.values().map(|p| p.state.as_str()).collect();
    ensure!(states == BTreeSet::from(["ACTIVE", "DOWN"]), "one cable was to be cut: {states:?}");
    for (what, text) in [("lat", pingpong), ("lat", lat), ("write", write)] {
        figures(what, text).with_context(|| format!("{what}: {text}"))?;
    }
    Ok(Counts { passed: parts.len() as u64 - 1, ..Counts::default() })
}

/// One row for each size, over verbs, with figures that are some.
fn figures(what: &str, text: &str) -> anyhow::Result<()> {
    let said: Value = serde_json::from_str(text)?;
    let rows = said["rows"].as_array().context("no rows")?;
    ensure!(rows.iter().filter_map(|r| r["size"].as_u64()).eq(SIZES), "not a row for each size");
    for row in rows {
        ensure!(row["test"] == what && row["provider"] == "verbs", "another test: {row}");
        let figure = |name: &str| row[name].as_f64().filter(|n| *n > 0.0);
        for name in ["count", "min_ns", "p50_ns", "max_ns", "msg_per_s", "bytes_per_s"] {
            ensure!(figure(name).is_some(), "no {name}: {row}");
        }
        ensure!(figure("min_ns") <= figure("p50_ns") && figure("p50_ns") <= figure("max_ns"), "{row}");
    }
    Ok(())
}

/// From lines like `port 1 on a0, ACTIVE, 10000 Mbit/s, GIDs 10.8.0.1 fe80::1`.
fn of_kfab(text: &str) -> anyhow::Result<Ports> {
    let said: Value = serde_json::from_str(text)?;
    let providers = said["providers"].as_array().context("no providers")?;
    let verbs = providers.iter().find(|p| p["scheme"] == "verbs").context("no verbs")?;
    let port = |device: &Value| {
        let detail = device["detail"].as_str()?;
        let mut parts = detail.split(", ").skip(1);
        let (state, speed, gids) = (parts.next()?, parts.next()?, parts.next()?);
        let gid = |text: &str| {
            text.parse().or_else(|_| text.parse().map(|v4: std::net::Ipv4Addr| v4.to_ipv6_mapped()))
        };
        let gids = gids.strip_prefix("GIDs ")?.split(' ').map(gid).collect::<Result<_, _>>().ok()?;
        let mbit_s = speed.strip_suffix(" Mbit/s")?.parse().ok()?;
        // What cannot be used says so.
        let left_out = device["left_out"].as_str().is_some();
        (left_out == (state != "ACTIVE")).then_some(())?;
        Some((device["name"].as_str()?.to_owned(), Port { state: state.to_owned(), mbit_s, gids }))
    };
    let devices = verbs["devices"].as_array().context("no devices")?;
    devices.iter().map(|d| port(d).with_context(|| format!("not a card: {d}"))).collect()
}

/// From `NAME: VALUE` lines; a card begins with its `hca_id`. All cards here have one port.
fn of_devinfo(text: &str) -> anyhow::Result<Ports> {
    let mut ports = Ports::new();
    let mut card = String::new();
    let (mut lanes, mut per_lane) = (0, 0.0);
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once(':') else { continue };
        let value = value.trim();
        if name == "hca_id" {
            card = value.to_owned();
            let port = Port { state: String::new(), mbit_s: 0, gids: BTreeSet::new() };
            ports.insert(card.clone(), port);
        }
        let Some(port) = ports.get_mut(&card) else { continue };
        let first = value.split([' ', ',', 'X']).next().unwrap_or_default();
        match name {
            "state" => port.state = first.trim_start_matches("PORT_").to_owned(),
            "active_width" => lanes = first.parse()?,
            "active_speed" => per_lane = first.parse()?,
            _ if name.starts_with("GID[") => {
                port.gids.insert(first.parse()?);
            }
            _ => {}
        }
        port.mbit_s = (f64::from(lanes) * per_lane * 1000.0) as u64;
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVINFO: &str = "hca_id:\trxe_a0\n\tfw_ver:\t0.0.0\n\t\tport:\t1\n\t\t\tstate:\t\tPORT_ACTIVE (4)\n\
        \t\t\tactive_width:\t1X (1)\n\t\t\tactive_speed:\t10.0 Gbps (8)\n\
        \t\t\tGID[  0]:\tfe80::1, RoCE v2\n\t\t\tGID[  1]:\t::ffff:10.8.0.1, RoCE v2\n\n\
        hca_id:\trxe_a1\n\t\t\tstate:\t\tPORT_DOWN (1)\n\t\t\tactive_width:\t4X (2)\n\t\t\tactive_speed:\t2.5 Gbps (1)\n\
        \t\t\tGID[  0]:\tfe80::2, RoCE v2\n";

    fn info(state: &str, gid: &str) -> String {
        let devices = serde_json::json!([
            { "name": "rxe_a0", "left_out": null,
                "detail": format!("port 1 on a0, {state}, 10000 Mbit/s, GIDs {gid} fe80::1") },
            { "name": "rxe_a1", "left_out": "down", "detail": "port 1 on a1, DOWN, 10000 Mbit/s, GIDs fe80::2" },
        ]);
        serde_json::json!({ "providers": [{ "scheme": "verbs", "devices": devices }] }).to_string()
    }

    fn measured(what: &str, p50: f64) -> String {
        let row = |size: u64| {
            serde_json::json!({ "test": what, "provider": "verbs", "size": size, "count": 9, "min_ns": 1.0, "p50_ns": p50,
                "max_ns": 3.0, "msg_per_s": 1.0, "bytes_per_s": 1.0 })
        };
        serde_json::json!({ "rows": SIZES.map(row) }).to_string()
    }

    fn all(info: &str, write: &str) -> String {
        let lat = measured("lat", 2.0);
        ["lab: up", info, DEVINFO, &lat, &lat, write].join(&format!("\n{NEXT}\n"))
    }

    #[test]
    fn what_agrees_passes_and_what_does_not_is_told() {
        let (good, write) = (info("ACTIVE", "10.8.0.1"), measured("write", 2.0));
        assert_eq!(judge("", &all(&good, &write)).unwrap().passed, 4);
        let bad = [
            (info("ACTIVE", "10.8.0.9"), write.clone()),
            (info("INIT", "10.8.0.1"), write.clone()),
            (good.replace("rxe_a1", "rxe_b1"), write.clone()),
            (good.replace("10000 Mbit/s, GIDs fe80::2", "2500 Mbit/s, GIDs fe80::2"), write.clone()),
            (good.clone(), measured("write", 0.0)),
            (good.clone(), measured("write", 4.0)),
            (good.clone(), measured("read", 2.0)),
            (good.clone(), measured("write", 2.0).replace("65536", "8")),
        ];
        for (info, write) in bad {
            assert!(judge("", &all(&info, &write)).is_err(), "{info} {write}");
        }
        assert!(judge("", "").is_err());
    }
}
