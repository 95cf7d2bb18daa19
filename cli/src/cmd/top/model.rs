//! What a snapshot says, and the rates between two. Fields that a newer or older endpoint lacks read as zero.

use serde::Deserialize;
use serde_json::Value;
use std::time::Instant;

/// One line of the monitor.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Snapshot {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) stats: Stats,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    pub(super) address: String,
    pub(super) lane: Lane,
    pub(super) pool: Pool,
    pub(super) ports: Vec<Port>,
    pub(super) peers: Vec<Peer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Lane {
    pub(super) peers: u64,
    pub(super) conns: u64,
    pub(super) ops: u64,
    pub(super) posted: u64,
    pub(super) unexpected: u64,
    pub(super) deferred: u64,
    pub(super) unacked: u64,
    pub(super) windows: u64,
    pub(super) totals: Counters,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pool {
    pub(super) bytes: u64,
    pub(super) in_use: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Port {
    pub(super) ways: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) address: Option<String>,
    pub(super) up: bool,
    pub(super) credits: u64,
    pub(super) credit_limit: u64,
    pub(super) deferred: u64,
    pub(super) rtt_ns: u64,
    pub(super) rails: Vec<Rail>,
    pub(super) counters: Counters,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rail {
    pub(super) rail: u32,
    pub(super) port: usize,
    pub(super) active: bool,
    pub(super) tx_bytes: u64,
    pub(super) rx_bytes: u64,
    pub(super) tx_frames: u64,
    pub(super) rx_frames: u64,
    pub(super) unacked_bytes: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Counters {
    pub(super) tx_messages: u64,
    pub(super) tx_bytes: u64,
    pub(super) rx_messages: u64,
    pub(super) rx_bytes: u64,
    pub(super) credit_stalls: u64,
    pub(super) resent: u64,
    pub(super) duplicates: u64,
    pub(super) failovers: u64,
    pub(super) lost: u64,
}

/// Makes nothing of numbers that stand for what was never measured: the fewest credits before there were any, and a round trip.
pub(super) fn null_unknown(snapshot: &mut Value) {
    let null = |of: Option<&mut Value>, field: &str, unknown: u64| {
        if let Some(v) = of.and_then(|v| v.get_mut(field)).filter(|v| v.as_u64() == Some(unknown)) {
            *v = Value::Null;
        }
    };
    null(snapshot.pointer_mut("/stats/lane/totals"), "min_credits", u32::MAX.into());
    let peers = snapshot.pointer_mut("/stats/peers").and_then(Value::as_array_mut);
    for peer in peers.into_iter().flatten() {
        null(peer.get_mut("counters"), "min_credits", u32::MAX.into());
        null(Some(peer), "rtt_ns", 0);
    }
}

/// Per second, since the snapshot before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) tx_messages: f64,
    pub(super) tx_bytes: f64,
    pub(super) rx_messages: f64,
    pub(super) rx_bytes: f64,
}

/// The last two snapshots.
pub(super) struct View {
    pub(super) now: Snapshot,
    before: Snapshot,
    at: Instant,
    seconds: f64,
}

impl View {
    pub(super) fn new(now: Snapshot, at: Instant) -> View {
        View { before: now.clone(), now, at, seconds: 0.0 }
    }

    pub(super) fn advance(&mut self, next: Snapshot, at: Instant) {
        self.seconds = at.duration_since(self.at).as_secs_f64();
        self.at = at;
        self.before = std::mem::replace(&mut self.now, next);
    }

    fn per_second(&self, now: u64, before: u64) -> f64 {
        if self.seconds > 0.0 { now.saturating_sub(before) as f64 / self.seconds } else { 0.0 }
    }

    fn rates_of(&self, now: &Counters, before: &Counters) -> Rates {
        Rates {
            tx_messages: self.per_second(now.tx_messages, before.tx_messages),
            tx_bytes: self.per_second(now.tx_bytes, before.tx_bytes),
            rx_messages: self.per_second(now.rx_messages, before.rx_messages),
            rx_bytes: self.per_second(now.rx_bytes, before.rx_bytes),
        }
    }

    pub(super) fn totals(&self) -> Rates {
        self.rates_of(&self.now.stats.lane.totals, &self.before.stats.lane.totals)
    }

    /// A peer that is new has been there since the last look.
    pub(super) fn peer(&self, p: &Peer) -> Rates {
        let before = self.before.stats.peers.iter().find(|b| b.name == p.name);
        before.map_or(Rates::default(), |b| self.rates_of(&p.counters, &b.counters))
    }

    /// Bytes per second sent and received over a rail.
    pub(super) fn rail(&self, p: &Peer, r: &Rail) -> (f64, f64) {
        let before = self.before.stats.peers.iter().find(|b| b.name == p.name);
        let before = before.and_then(|b| b.rails.iter().find(|x| x.rail == r.rail));
        before.map_or((0.0, 0.0), |b| {
            (self.per_second(r.tx_bytes, b.tx_bytes), self.per_second(r.rx_bytes, b.rx_bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn unknown_is_null_and_everything_else_stays() {
        let fabric = kfab::Fabric::with_config(crate::providers::providers(), Default::default());
        let (a, b) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
        let peer = a.peer(&b.address().to_string()).unwrap();
        let snap = || serde_json::json!({ "pid": 1, "stats": a.stats() });
        let shown = |mut v: Value| {
            null_unknown(&mut v);
            v
        };
        let fresh = shown(snap());
        assert!(fresh["stats"]["lane"]["totals"]["min_credits"].is_null(), "{fresh}");
        let known = &fresh["stats"]["peers"][0];
        assert!(known["counters"]["min_credits"].is_null() && known["rtt_ns"].is_null(), "{fresh}");
        assert_eq!((&known["counters"]["lost"], &fresh["pid"]), (&0.into(), &1.into()));
        peer.send(b"one").wait_timeout(Duration::from_secs(10)).unwrap();
        b.recv().wait_timeout(Duration::from_secs(10)).unwrap();
        let later = snap();
        let shown = shown(later.clone());
        assert!(shown["stats"]["lane"]["totals"]["min_credits"].is_u64(), "{shown}");
        assert_eq!(shown["stats"]["lane"], later["stats"]["lane"]);
        // What is none is left as it is.
        let mut none = serde_json::json!([1, { "stats": 2 }]);
        null_unknown(&mut none);
        assert_eq!(none, serde_json::json!([1, { "stats": 2 }]));
    }

    #[test]
    fn a_real_snapshot_is_understood_and_rates_are_differences() {
        let fabric = kfab::Fabric::with_config(crate::providers::providers(), Default::default());
        let (a, b) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
        let peer = a.peer(&b.address().to_string()).unwrap();
        peer.send(b"one").wait_timeout(Duration::from_secs(10)).unwrap();
        b.recv().wait_timeout(Duration::from_secs(10)).unwrap();
        let snap = || -> Snapshot {
            let line = serde_json::json!({ "pid": 1, "name": "n", "stats": a.stats() });
            serde_json::from_value(line).unwrap()
        };
        let start = Instant::now();
        let mut view = View::new(snap(), start);
        assert_eq!(view.now.stats.lane.totals.tx_messages, 1);
        assert_eq!(view.now.stats.peers[0].counters.tx_bytes, 3);
        assert!(view.now.stats.peers[0].up && !view.now.stats.peers[0].rails.is_empty());
        peer.send(b"two").wait_timeout(Duration::from_secs(10)).unwrap();
        view.advance(snap(), start + Duration::from_millis(500));
        assert_eq!(view.totals().tx_messages, 2.0);
        assert_eq!(view.peer(&view.now.stats.peers[0]).tx_bytes, 6.0);
    }
}
