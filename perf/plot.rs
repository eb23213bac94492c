//! Plots of a report, as SVG: one chart for each workload and shape that was measured with more than one payload.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::chart::SeriesLabelPosition;
use plotters::prelude::{
    ChartBuilder, Color, IntoDrawingArea, IntoLogRange, LineSeries, Palette, Palette99, PathElement, SVGBackend, WHITE,
};
use plotters::style::BLACK;

use crate::report::{Entry, Report, figure};

const SIZE: (u32, u32) = (800, 500);

/// Writes the charts into a folder.
pub(crate) fn write(report: &Report, folder: &Path) -> Result<()> {
    let mut cases: Vec<(&str, &str)> = Vec::new();
    for entry in &report.results {
        let case = (entry.workload.as_str(), entry.shape.as_str());
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    for (workload, shape) in cases {
        let is_here = |entry: &&Entry| entry.workload == workload && entry.shape == shape;
        let entries: Vec<_> = report.results.iter().filter(is_here).collect();
        for (name, short) in [("CPU ns/frame", "cpu"), ("MB/s", "rate"), ("p99 µs", "p99")] {
            let lines = lines(&entries, name);
            if lines.iter().any(|(_, points)| points.len() > 1) {
                let file = folder.join(format!("{workload}-{}-{short}.svg", shape.replace(' ', "")));
                let title = format!("{workload}, {shape}: {name} by payload in bytes");
                draw(&file, &title, &lines).map_err(|error| anyhow!("{}: {error}", file.display()))?;
            }
        }
    }
    Ok(())
}

type Lines<'a> = Vec<(&'a str, Vec<(f64, f64)>)>;

/// Each contestant's points, by payload.
fn lines<'a>(entries: &[&'a Entry], name: &str) -> Lines<'a> {
    let mut lines: Lines<'a> = Vec::new();
    for entry in entries {
        let Some(measure) = entry.measure(name).filter(|measure| measure.median > 0.0) else { continue };
        let point = (entry.payload as f64, measure.median);
        match lines.iter_mut().find(|(contestant, _)| *contestant == entry.contestant) {
            Some((_, points)) => points.push(point),
            None => lines.push((&entry.contestant, vec![point])),
        }
    }
    lines
}

fn draw(file: &Path, title: &str, lines: &Lines<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let points = || lines.iter().flat_map(|(_, points)| points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        let least = points().map(of).fold(f64::INFINITY, f64::min);
        let most = points().map(of).fold(0.0, f64::max);
        (least * 0.8..most * 1.25).log_scale()
    };
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(70)
        .build_cartesian_2d(bounds(|point| point.0), bounds(|point| point.1))?;
    let label = |value: &f64| figure(*value);
    chart.configure_mesh().x_label_formatter(&label).y_label_formatter(&label).draw()?;
    for (at, (contestant, points)) in lines.iter().enumerate() {
        let style = Palette99::pick(at).stroke_width(2);
        let series = LineSeries::new(points.iter().copied(), style).point_size(3);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
        chart.draw_series(series)?.label(*contestant).legend(legend);
    }
    let labels = &mut chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperLeft);
    labels.background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
    area.present()?;
    Ok(())
}
