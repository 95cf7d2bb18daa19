//! Tables for people.

use super::units;
use crate::bench::figures::{Latency, Row};

/// Cells in columns: the first two to the left, numbers to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Table {
    pub(crate) fn new(left: usize, head: &[&str]) -> Table {
        Table { rows: vec![head.iter().map(|s| (*s).to_owned()).collect()], left }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A line between groups.
    pub(crate) fn gap(&mut self) {
        self.rows.push(Vec::new());
    }

    pub(crate) fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (c, (cell, w)) in row.iter().zip(&widths).enumerate() {
                let w = *w;
                let gap = if c == 0 { "" } else { "  " };
                line += gap;
                line += &if c < self.left { format!("{cell:<w$}") } else { format!("{cell:>w$}") };
            }
            out += line.trim_end();
            out.push('\n');
        }
        out
    }
}

/// p50 to max.
pub(crate) fn latency_cells(l: Option<&Latency>) -> Vec<String> {
    match l {
        Some(l) => [l.p50_ns, l.p90_ns, l.p99_ns, l.p999_ns, l.p9999_ns, l.max_ns].map(units::time).to_vec(),
        None => vec!["-".to_owned(); 6],
    }
}

/// The rows of `kfab perf`.
pub(crate) fn perf(rows: &[Row]) -> String {
    let has_latency = rows.iter().any(|r| r.latency.is_some());
    let mut head = vec!["provider", "size"];
    if has_latency {
        head.extend(["p50", "p90", "p99", "p99.9", "p99.99", "max"]);
    }
    head.extend(["bandwidth", "messages", "count"]);
    let mut table = Table::new(1, &head);
    for r in rows {
        let mut cells = vec![r.provider.clone(), units::size(r.size)];
        if has_latency {
            cells.extend(latency_cells(r.latency.as_ref()));
        }
        cells.extend(match &r.rate {
            Some(r) => [units::bandwidth(r.bytes_per_s), units::rate(r.msg_per_s), r.count.to_string()],
            None => ["-"; 3].map(str::to_owned),
        });
        table.row(cells);
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut t = Table::new(1, &["name", "n"]);
        t.row(vec!["a".into(), "10".into()]);
        t.row(vec!["long one".into(), "7".into()]);
        assert_eq!(t.text(), "name       n\na         10\nlong one   7\n");
    }
}
