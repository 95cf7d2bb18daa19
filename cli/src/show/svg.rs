//! Plots as SVG: latency percentiles by size, or bandwidth by size. Both axes logarithmic.

use super::units;
use crate::bench::figures::{Latency, Row};
use crate::failure::{Failure, Result};
use plotters::prelude::*;
use std::path::Path;

type Series = (String, Vec<(f64, f64)>);

/// Draws the rows of one test into `file`.
pub(crate) fn draw(file: &Path, rows: &[Row]) -> Result<()> {
    let text = render(rows)?;
    std::fs::write(file, text).map_err(|e| Failure::failed(format!("{}: {e}", file.display())))
}

fn render(rows: &[Row]) -> Result<String> {
    let latency = rows.iter().any(|r| r.latency.is_some() && matches!(r.test, "lat"));
    let series = if latency { percentiles(rows) } else { bandwidths(rows) };
    let mut text = String::new();
    let title = match rows.first() {
        Some(r) => format!("kfab perf {}", r.test),
        None => return Err(Failure::failed("there is nothing to plot")),
    };
    let axis = if latency { "one-way latency, ns" } else { "bandwidth, bytes/s" };
    plot(&mut text, &title, axis, &series).map_err(|e| Failure::failed(format!("plotting: {e}")))?;
    Ok(text)
}

fn providers(rows: &[Row]) -> Vec<&str> {
    let mut all: Vec<&str> = rows.iter().map(|r| r.provider.as_str()).collect();
    all.dedup();
    all
}

fn percentiles(rows: &[Row]) -> Vec<Series> {
    type Pick = fn(&Latency) -> f64;
    let picks: [(&str, Pick); 4] =
        [("p50", |l| l.p50_ns), ("p99", |l| l.p99_ns), ("p99.9", |l| l.p999_ns), ("p99.99", |l| l.p9999_ns)];
    let mut out = Vec::new();
    for p in providers(rows) {
        for (name, pick) in picks {
            let mine = rows.iter().filter(|r| r.provider == p);
            let points = mine.filter_map(|r| Some((r.size as f64, pick(r.latency.as_ref()?)))).collect();
            out.push((format!("{p} {name}"), points));
        }
    }
    out
}

fn bandwidths(rows: &[Row]) -> Vec<Series> {
    let point = |r: &Row| Some((r.size as f64, r.rate.as_ref()?.bytes_per_s));
    let of = |p: &str| rows.iter().filter(|r| r.provider == p).filter_map(point).collect();
    providers(rows).into_iter().map(|p| (p.to_owned(), of(p))).collect()
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (lo, hi) = values.filter(|v| *v > 0.0).fold((f64::MAX, 0.0f64), |(l, h), v| (l.min(v), h.max(v)));
    if hi == 0.0 { (1.0, 10.0) } else { (lo / 1.5, hi * 1.5) }
}

fn plot(
    text: &mut String,
    title: &str,
    axis: &str,
    series: &[Series],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || series.iter().flat_map(|s| &s.1);
    let ((x0, x1), (y0, y1)) = (bounds(points().map(|p| p.0)), bounds(points().map(|p| p.1)));
    let root = SVGBackend::with_string(text, (900, 560)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d((x0..x1).log_scale().base(2.0), (y0..y1).log_scale())?;
    let size = |x: &f64| units::size(x.round() as usize);
    chart.configure_mesh().x_desc("message size").y_desc(axis).x_label_formatter(&size).draw()?;
    for (i, (name, points)) in series.iter().enumerate() {
        let colour = Palette99::pick(i).to_rgba();
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3))?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    root.present()?;
    drop(chart);
    drop(root);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_series_and_sizes() {
        let row = |size: usize| Row {
            test: "lat",
            provider: "shm".into(),
            size,
            latency: Some(Latency { p50_ns: size as f64, p99_ns: 2.0 * size as f64, ..Default::default() }),
            ..Default::default()
        };
        let text = render(&[row(8), row(4096)]).unwrap();
        assert!(text.contains("<svg") && text.contains("shm p99.9") && text.contains("</svg>"));
        assert!(render(&[]).is_err());
    }
}
