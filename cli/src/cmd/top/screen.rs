//! The terminal: a head with the lane's depths and sums, and a table of peers and their rails.

use super::Watch;
use super::model::{Peer, View};
use crate::failure::{Failure, Result};
use crate::show::{table::Table, units};
use crate::stop;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table as Grid};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const HEAD: [&str; 11] =
    ["peer", "state", "sent", "", "received", "", "credits", "waiting", "stalls", "resent", "rtt"];

/// Draws until `q`, Esc or Ctrl-C, or until the endpoint is gone.
pub(super) fn run(watch: &mut Watch, command: &str, interval: Duration) -> Result<()> {
    let hint = "on something else: --once or --json";
    if !std::io::stdout().is_terminal() {
        return Err(Failure::unavailable("standard output is no terminal").hint(hint));
    }
    let mut view = View::new(watch.snapshot()?, Instant::now());
    let no_terminal = |e| Failure::unavailable(format!("this terminal cannot be drawn on: {e}")).hint(hint);
    let mut terminal = ratatui::try_init().map_err(no_terminal)?;
    let outcome = (|| {
        loop {
            terminal.draw(|f| draw(f, &view, command))?;
            let until = Instant::now() + interval;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                if stop::pressed()
                    || (event::poll(left.min(Duration::from_millis(100)))? && is_end(&event::read()?))
                {
                    return Ok(());
                }
            }
            view.advance(watch.snapshot()?, Instant::now());
        }
    })();
    ratatui::restore();
    outcome
}

fn is_end(e: &Event) -> bool {
    let Event::Key(k) = e else { return false };
    let control_c = k.code == KeyCode::Char('c') && k.modifiers.contains(KeyModifiers::CONTROL);
    k.kind == KeyEventKind::Press && (control_c || matches!(k.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// The lines above the table.
fn head(view: &View, command: &str) -> Vec<String> {
    let s = &view.now.stats;
    let (l, t) = (&s.lane, &s.lane.totals);
    let rates = view.totals();
    vec![
        format!("{command}  pid {}  {}", view.now.pid, view.now.name),
        format!("address    {}", s.address),
        format!(
            "sent       {}  {}   received  {}  {}",
            units::rate(rates.tx_messages),
            units::bandwidth(rates.tx_bytes),
            units::rate(rates.rx_messages),
            units::bandwidth(rates.rx_bytes)
        ),
        format!(
            "depths     operations {}  receives {}  unexpected {}  waiting for credit {}  unacknowledged {}",
            l.ops, l.posted, l.unexpected, l.deferred, l.unacked
        ),
        format!(
            "sums       stalls {}  resent {}  duplicates {}  fail-overs {}  peers lost {}",
            t.credit_stalls, t.resent, t.duplicates, t.failovers, t.lost
        ),
        format!(
            "endpoint   peers {}  connections {}  windows {}  memory {} of {} KiB in use",
            l.peers,
            l.conns,
            l.windows,
            s.pool.in_use >> 10,
            s.pool.bytes >> 10
        ),
    ]
}

fn peer_cells(view: &View, p: &Peer) -> Vec<String> {
    let r = view.peer(p);
    vec![
        format!("{}  {}", p.name, p.address.as_deref().unwrap_or("-")),
        if p.up { "up" } else { "down" }.to_owned(),
        units::rate(r.tx_messages),
        units::bandwidth(r.tx_bytes),
        units::rate(r.rx_messages),
        units::bandwidth(r.rx_bytes),
        format!("{}/{}", p.credits, p.credit_limit),
        p.deferred.to_string(),
        p.counters.credit_stalls.to_string(),
        p.counters.resent.to_string(),
        if p.rtt_ns == 0 { "-".to_owned() } else { units::time(p.rtt_ns as f64) },
    ]
}

fn rail_cells(view: &View, p: &Peer) -> Vec<Vec<String>> {
    let of = |r: &super::model::Rail| {
        let (tx, rx) = view.rail(p, r);
        let way = view.now.stats.ports.get(r.port).and_then(|p| p.ways.first()).map_or("?", String::as_str);
        let mut cells = vec![
            format!("  rail {}  {way}", r.rail),
            if r.active { "active" } else { "spare" }.to_owned(),
            format!("{} frames", r.tx_frames),
            units::bandwidth(tx),
            format!("{} frames", r.rx_frames),
            units::bandwidth(rx),
        ];
        cells.resize(HEAD.len(), String::new());
        cells[7] = format!("{} B", r.unacked_bytes);
        cells
    };
    p.rails.iter().map(of).collect()
}

/// Everything as plain text.
pub(super) fn plain(view: &View, command: &str) -> String {
    let mut out = head(view, command).join("\n");
    out += "\n\n";
    let mut table = Table::new(2, &HEAD);
    for p in &view.now.stats.peers {
        table.row(peer_cells(view, p));
        rail_cells(view, p).into_iter().for_each(|r| table.row(r));
    }
    out + &table.text()
}

fn draw(f: &mut Frame<'_>, view: &View, command: &str) {
    let lines = head(view, command);
    let areas = Layout::vertical([
        Constraint::Length(lines.len() as u16 + 2),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [top, middle, bottom] = areas.areas(f.area());
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    f.render_widget(Paragraph::new(lines).block(Block::bordered().title(" kfab top ")), top);
    let mut rows = Vec::new();
    for p in &view.now.stats.peers {
        let colour = if p.up { Color::Green } else { Color::Red };
        rows.push(Row::new(peer_cells(view, p).into_iter().map(Cell::from)).style(Style::new().fg(colour)));
        rows.extend(rail_cells(view, p).into_iter().map(|r| Row::new(r.into_iter().map(Cell::from))));
    }
    let mut widths = vec![Constraint::Min(24), Constraint::Length(7)];
    widths.extend([12, 11, 12, 11, 10, 9, 7, 7, 9].map(Constraint::Length));
    let grid = Grid::new(rows, widths)
        .header(Row::new(HEAD).bold())
        .block(Block::bordered().title(" peers and rails "));
    f.render_widget(grid, middle);
    f.render_widget(Line::from(vec![Span::raw(" q").bold(), Span::raw(" ends")]), bottom);
}

#[cfg(test)]
mod tests {
    use super::super::model::{Port, Rail, Snapshot};
    use super::*;

    fn view() -> View {
        let rails = vec![Rail { rail: 0, active: true, tx_frames: 12, ..Default::default() }];
        let peer = Peer {
            name: "peer 0.1".into(),
            up: true,
            credits: 7,
            credit_limit: 9,
            rails,
            ..Default::default()
        };
        let mut snap = Snapshot { pid: 42, name: "kfab-stats.42.0".into(), ..Default::default() };
        snap.stats.peers.push(peer);
        snap.stats.ports.push(Port { ways: vec!["shm:x".into()] });
        View::new(snap, Instant::now())
    }

    #[test]
    fn text_and_screen_show_peers_and_rails() {
        let text = plain(&view(), "prog");
        assert!(
            text.contains("peer 0.1") && text.contains("7/9") && text.contains("rail 0  shm:x"),
            "{text}"
        );
        let mut terminal = ratatui::Terminal::new(ratatui::backend::TestBackend::new(140, 20)).unwrap();
        terminal.draw(|f| draw(f, &view(), "prog")).unwrap();
        let shown = format!("{:?}", terminal.backend().buffer());
        assert!(
            shown.contains("peer 0.1") && shown.contains("12 frames") && shown.contains("active"),
            "{shown}"
        );
    }
}
