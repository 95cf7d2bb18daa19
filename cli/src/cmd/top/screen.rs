//! The terminal: a head with the lane's depths and sums, and a table of peers and their rails.

use super::Watch;
use super::model::{Peer, Rail, View};
use crate::failure::{Failure, Result};
use crate::show::{table::Table, units};
use crate::stop;
use ratatui::Frame;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Row, Table as Grid};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const HEAD: [&str; 11] =
    ["peer", "state", "sent", "", "received", "", "credits", "waiting", "stalls", "resent", "rtt"];

/// Columns behind the first, the most important first; those beside each other come together. `[0]` is the room for addresses.
const BY_IMPORTANCE: [&[usize]; 9] = [&[3, 5], &[1], &[2, 4], &[10], &[0], &[6], &[7], &[8], &[9]];
/// Widths of headings and of usual figures, so that columns do not come and go with them.
const USUAL: [usize; 11] = [0, 6, 8, 9, 8, 9, 9, 7, 6, 6, 7];
/// Of names without addresses.
const NAME: usize = 8;
/// Names with addresses need no more than this.
const ADDRESS: usize = 32;
/// Of what lines of the head are about.
const LABEL: usize = 11;
const GAP: usize = 2;

/// Draws until `q`, Esc or Ctrl-C, or until the endpoint is gone.
pub(super) fn run(watch: &mut Watch, command: &str, interval: Duration) -> Result<()> {
    let hint = "on something else: --once or --json";
    if !std::io::stdout().is_terminal() {
        return Err(Failure::unavailable("standard output is no terminal").hint(hint));
    }
    let mut view = View::new(watch.snapshot()?, Instant::now());
    let no_terminal = |e| Failure::unavailable(format!("this terminal cannot be drawn on: {e}")).hint(hint);
    let mut terminal = ratatui::try_init().map_err(no_terminal)?;
    stop::before_exit(give_back);
    let outcome = (|| {
        loop {
            terminal.draw(|f| draw(f, &view, command))?;
            let until = Instant::now() + interval;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                stop::check()?;
                if event::poll(left.min(Duration::from_millis(100)))? && is_end(&event::read()?)? {
                    return Ok(());
                }
            }
            view.advance(watch.snapshot()?, Instant::now());
        }
    })();
    drop(terminal);
    give_back();
    // What fails once a signal came is its doing: after a hangup there is no terminal.
    stop::check().and(outcome)
}

/// The terminal is again as it was.
fn give_back() {
    ratatui::restore();
    let _ = execute!(std::io::stdout(), Show);
}

/// A raw terminal makes no signal of Ctrl-C.
fn is_end(e: &Event) -> Result<bool> {
    let Event::Key(k) = e else { return Ok(false) };
    if k.kind != KeyEventKind::Press {
        return Ok(false);
    }
    match k.code {
        KeyCode::Char('c') if k.modifiers.contains(KeyModifiers::CONTROL) => Err(Failure::interrupted()),
        code => Ok(matches!(code, KeyCode::Char('q') | KeyCode::Esc)),
    }
}

/// The lines above the table: what they are about, and what is to be said, each piece whole.
fn head(view: &View, command: &str) -> Vec<(&'static str, Vec<String>)> {
    let s = &view.now.stats;
    let (l, t) = (&s.lane, &s.lane.totals);
    let r = view.totals();
    let counts = |all: &[(&str, u64)]| all.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>();
    let mut endpoint = counts(&[("peers", l.peers), ("connections", l.conns), ("windows", l.windows)]);
    endpoint.push(format!("memory {}/{} KiB", s.pool.in_use >> 10, s.pool.bytes >> 10));
    vec![
        ("", vec![command.to_owned(), format!("pid {}", view.now.pid), view.now.name.clone()]),
        ("address", vec![s.address.clone()]),
        ("sent", vec![units::rate(r.tx_messages), units::bandwidth(r.tx_bytes)]),
        ("received", vec![units::rate(r.rx_messages), units::bandwidth(r.rx_bytes)]),
        (
            "depths",
            counts(&[
                ("operations", l.ops),
                ("receives", l.posted),
                ("unexpected", l.unexpected),
                ("waiting for credit", l.deferred),
                ("unacknowledged", l.unacked),
            ]),
        ),
        (
            "sums",
            counts(&[
                ("stalls", t.credit_stalls),
                ("resent", t.resent),
                ("duplicates", t.duplicates),
                ("fail-overs", t.failovers),
                ("peers lost or closed", t.lost),
            ]),
        ),
        ("endpoint", endpoint),
    ]
}

/// Lines of this width. No piece is divided; one that is too long for a line of its own ends in an ellipsis.
fn wrapped(label: &str, pieces: &[String], width: usize) -> Vec<String> {
    let indent = if label.is_empty() { 0 } else { LABEL };
    let (mut lines, mut line, mut used) = (Vec::new(), format!("{label:<indent$}"), indent);
    for piece in pieces {
        let gap = if used == indent { 0 } else { GAP };
        let wide = piece.chars().count();
        if gap > 0 && used + gap + wide > width {
            lines.push(std::mem::replace(&mut line, format!("{:indent$}{piece}", "")));
            used = indent + wide;
        } else {
            line += &format!("{:gap$}{piece}", "");
            used += gap + wide;
        }
    }
    lines.push(line);
    lines.iter().map(|l| cut(l, width)).collect()
}

/// Says that something is missing where it is.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// A name and as much of its address as is worth showing.
fn named(text: &str, width: usize) -> String {
    match text.rsplit_once("  ") {
        Some((name, _)) if text.chars().count() > width && name.chars().count() + 6 > width => {
            name.to_owned()
        }
        _ => cut(text, width),
    }
}

/// The columns for which there is room, with their widths. A column that would have to be cut is left out; only the addresses in the
/// first give way.
fn columns(rows: &[Vec<String>], name: usize, width: usize) -> Vec<(usize, usize)> {
    let widest = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let wide = |c: usize| widest(c).max(USUAL[c]);
    let mut left = width.saturating_sub(name);
    let mut shown = vec![(0, name)];
    for group in BY_IMPORTANCE {
        let more = match group {
            [0] => widest(0).min(ADDRESS).saturating_sub(name),
            _ => group.iter().map(|&c| GAP + wide(c)).sum(),
        };
        if more > left {
            continue;
        }
        left -= more;
        match group {
            [0] => shown[0].1 += more,
            _ => shown.extend(group.iter().map(|&c| (c, wide(c)))),
        }
    }
    shown[0].1 += left;
    shown.sort_unstable();
    shown
}

/// The heading of a column among those that are shown.
fn heading(column: usize, shown: &[(usize, usize)]) -> &'static str {
    let has = |c: usize| shown.iter().any(|s| s.0 == c);
    match column {
        3 | 5 if !has(column - 1) => HEAD[column - 1],
        c => HEAD[c],
    }
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

fn rail_name(r: &Rail) -> String {
    format!("  rail {}", r.rail)
}

fn rail_cells(view: &View, p: &Peer) -> Vec<Vec<String>> {
    let of = |r: &Rail| {
        let (tx, rx) = view.rail(p, r);
        let way = view.now.stats.ports.get(r.port).and_then(|p| p.ways.first()).map_or("?", String::as_str);
        let mut cells = vec![
            format!("{}  {way}", rail_name(r)),
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
    let lines = head(view, command).into_iter().flat_map(|(label, all)| wrapped(label, &all, usize::MAX));
    let mut out: String = lines.map(|l| l + "\n").collect();
    out.push('\n');
    let mut table = Table::new(2, &HEAD);
    for p in &view.now.stats.peers {
        table.row(peer_cells(view, p));
        rail_cells(view, p).into_iter().for_each(|r| table.row(r));
    }
    out + &table.text()
}

fn draw(f: &mut Frame<'_>, view: &View, command: &str) {
    let inside = usize::from(f.area().width.saturating_sub(2));
    let head = head(view, command);
    let mut lines: Vec<String> = head.iter().flat_map(|(label, all)| wrapped(label, all, inside)).collect();
    // On a low screen the peers need room too.
    lines.truncate(usize::from(f.area().height / 2).saturating_sub(2).max(1));
    let areas = Layout::vertical([
        Constraint::Length(lines.len() as u16 + 2),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [top, middle, bottom] = areas.areas(f.area());
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    f.render_widget(Paragraph::new(lines).block(Block::bordered().title(" kfab top ")), top);
    f.render_widget(grid(view, inside), middle);
    f.render_widget(Line::from(vec![Span::raw(" q").bold(), Span::raw(" ends")]), bottom);
}

/// Peers and their rails, as much of them as fits.
fn grid(view: &View, inside: usize) -> Grid<'static> {
    let (mut rows, mut styles, mut name) = (Vec::new(), Vec::new(), NAME);
    for p in &view.now.stats.peers {
        rows.push(peer_cells(view, p));
        styles.push(Style::new().fg(if p.up { Color::Green } else { Color::Red }));
        rows.extend(rail_cells(view, p));
        styles.resize(rows.len(), Style::new());
        let rails = p.rails.iter().map(|r| rail_name(r).len());
        name = rails.chain([p.name.chars().count(), name]).max().unwrap_or(name);
    }
    let shown = columns(&rows, name, inside);
    let cells = |row: &Vec<String>| {
        let cell = |&(c, width): &(usize, usize)| if c == 0 { named(&row[c], width) } else { row[c].clone() };
        Row::new(shown.iter().map(cell).collect::<Vec<_>>())
    };
    let rows: Vec<Row<'_>> = rows.iter().zip(styles).map(|(row, style)| cells(row).style(style)).collect();
    let titles: Vec<&str> = shown.iter().map(|&(c, _)| heading(c, &shown)).collect();
    Grid::new(rows, shown.iter().map(|&(_, width)| Constraint::Length(width as u16)))
        .column_spacing(GAP as u16)
        .header(Row::new(titles).bold())
        .block(Block::bordered().title(" peers and rails "))
}

#[cfg(test)]
mod tests;
