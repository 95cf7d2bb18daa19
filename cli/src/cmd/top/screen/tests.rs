//! What is drawn on screens of every width.

use super::*;
use crate::cmd::top::model::{Port, Snapshot};

fn view() -> View {
    let rails = vec![Rail { rail: 0, active: true, tx_frames: 12, ..Default::default() }];
    let peer =
        Peer { name: "peer 0.1".into(), up: true, credits: 7, credit_limit: 9, rails, ..Default::default() };
    let mut snap = Snapshot { pid: 42, name: "kfab-stats.42.0".into(), ..Default::default() };
    snap.stats.peers.push(peer);
    snap.stats.ports.push(Port { ways: vec!["shm:x".into()] });
    View::new(snap, Instant::now())
}

/// Everything that is large, after one second.
fn busy() -> View {
    let before = view();
    let mut now = before.now.clone();
    let Peer { counters, rails, .. } = &mut now.stats.peers[0];
    (counters.tx_messages, counters.tx_bytes) = (22_100, 1_450_000_000);
    (counters.rx_messages, counters.rx_bytes) = (153_000_000, 22_700_000_000);
    (counters.credit_stalls, counters.resent) = (1_234_567, 7_654_321);
    let rail = &mut rails[0];
    (rail.tx_frames, rail.rx_frames, rail.unacked_bytes) = (38_486, 123_456_789, 1_048_576);
    (rail.tx_bytes, rail.rx_bytes) = (1_460_000_000, 22_800_000_000);
    let peer = &mut now.stats.peers[0];
    peer.address = Some("tcp:192.168.100.17:41234".into());
    (peer.credits, peer.credit_limit, peer.deferred, peer.rtt_ns) = (65_536, 65_536, 123_456, 85_234);
    now.stats.lane.totals = now.stats.peers[0].counters.clone();
    now.stats.lane.deferred = 123_456;
    now.stats.address = "tcp:192.168.100.16:7000,shm:2f7c8a90-5b1e-44d3-9a52".into();
    now.stats.ports[0].ways = vec!["tcp:192.168.100.16:7000".into()];
    (now.stats.pool.in_use, now.stats.pool.bytes) = (123_456 << 10, 654_321 << 10);
    let start = Instant::now();
    let mut view = View::new(before.now, start);
    view.advance(now, start + Duration::from_secs(1));
    view
}

/// The lines of a screen of this size.
fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(width, height)).unwrap();
    terminal.draw(|f| draw(f, view, "prog")).unwrap();
    let cells = terminal.backend().buffer().content();
    cells.chunks(width.into()).map(|row| row.iter().map(|c| c.symbol()).collect()).collect()
}

/// Whatever stands on a narrow screen also stands on one without end, or ends in an ellipsis and is no figure.
#[test]
fn figures_are_whole_or_not_there_at_any_width() {
    let view = busy();
    let peer = &view.now.stats.peers[0];
    let rows = [vec![peer_cells(&view, peer)], rail_cells(&view, peer)].concat();
    let mut whole: Vec<String> = rows.concat().iter().map(|c| c.trim().to_owned()).collect();
    whole.extend(HEAD.map(str::to_owned));
    for (label, pieces) in head(&view, "prog") {
        whole.push(label.to_owned());
        whole.extend(pieces);
    }
    let inside = |line: &str| line.strip_prefix('│').and_then(|l| l.strip_suffix('│')).map(str::to_owned);
    let may_end =
        |piece: &str| piece.strip_suffix('…').is_some_and(|p| whole.iter().any(|w| w.starts_with(p)));
    let is_name = |piece: &str| ["peer ", "rail ", "tcp:"].iter().any(|p| piece.starts_with(p));
    for width in [20, 40, 60, 80, 120, 200] {
        let lines = screen(&view, width, 60);
        for line in lines.iter().filter_map(|l| inside(l)) {
            for piece in line.split("  ").map(str::trim).filter(|p| !p.is_empty()) {
                let parts = whole.iter().flat_map(|w| w.split("  ")).any(|w| w == piece);
                let named = may_end(piece) && (is_name(piece) || width < 40);
                assert!(parts || named, "{width}: {piece:?} in\n{}", lines.join("\n"));
            }
        }
    }
}

#[test]
fn the_most_important_columns_stay() {
    let view = busy();
    let table = |width| {
        let lines = screen(&view, width, 60);
        let at = lines.iter().position(|l| l.contains("peers and rails")).unwrap();
        lines[at + 1..].join("\n")
    };
    for (width, there, not) in [
        (40, &["peer 0.1", "1.45 GB/s", "22.7 GB/s", "rail 0", "1.46 GB/s", "state"][..], "22.1"),
        (60, &["1.45 GB/s", "22.7 GB/s", "state", "85.2 us"], "22.1"),
        (80, &["22.1 k/s", "1.45 GB/s", "153 M/s", "38486 frames", "active"], "65536"),
        (120, &["38486 frames", "123456789 frames", "85.2 us", "65536/65536", "192.168.100.17"], "7654321"),
        (160, &["1048576 B", "1234567", "7654321", "tcp:192.168.100.17:41234"], "…"),
    ] {
        let text = table(width);
        let missing: Vec<_> = there.iter().filter(|w| !text.contains(**w)).collect();
        assert!(missing.is_empty() && !text.contains(not), "{width}: {missing:?}, {not:?} in\n{text}");
        let titles: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(titles[..2], ["│peer", if text.contains("state") { "state" } else { "sent" }]);
        assert!(titles.contains(&"sent") && titles.contains(&"received"), "{titles:?}");
    }
}

#[test]
fn a_low_screen_has_room_for_peers() {
    let lines = screen(&busy(), 40, 16).join("\n");
    assert!(lines.contains("peer 0.1") && lines.contains("1.46 GB/s") && lines.contains("q ends"), "{lines}");
}

#[test]
fn text_and_screen_show_peers_and_rails() {
    let text = plain(&view(), "prog");
    assert!(text.contains("peer 0.1") && text.contains("7/9") && text.contains("rail 0  shm:x"), "{text}");
    let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(140, 20)).unwrap();
    terminal.draw(|f| draw(f, &view(), "prog")).unwrap();
    let shown = format!("{:?}", terminal.backend().buffer());
    assert!(shown.contains("peer 0.1") && shown.contains("12 frames") && shown.contains("active"), "{shown}");
}
