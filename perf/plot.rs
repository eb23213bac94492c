//! Plots of a report, as SVG: costs and rates by payload, latencies by quantile, single figures by contestant.
//!
//! Everything is drawn on white and told apart without colours too: own daemons are filled marks on whole lines, peers
//! are hollow marks on dashed lines, floors are small marks on dots. Values are on a logarithmic axis; whiskers are the
//! least and the most of the samples.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::{
    Color, DrawingArea, EmptyElement, IntoDrawingArea, IntoFont, PathElement, Polygon, RGBColor, SVGBackend,
    ShapeStyle, Text, WHITE,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Entry, Measure, Report, Role, figure};

const SIZE: (u32, u32) = (960, 520);
/// Height of the title's lines, and width of the legend.
const TITLE: u32 = 62;
const LEGEND: u32 = 170;
/// Left, right, upper and lower edge of the plot, in pixels of the area below the title.
const PLOT: (i32, i32, i32, i32) = (84, 780, 6, 400);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const FAINT: RGBColor = RGBColor(0x66, 0x66, 0x66);
const GRID: RGBColor = RGBColor(0xd8, 0xd8, 0xd8);

/// Measures by payload: name, part of the file's name, title.
const BY_PAYLOAD: &[(&str, &str, &str)] = &[
    ("CPU ns/frame", "cpu", "CPU time per frame (ns)"),
    ("MB/s", "rate", "Payload that arrived (MB/s)"),
    ("syscalls/frame", "syscalls", "System calls per frame"),
];
/// Measures beside each other, in groups: names, part of the file's name, title.
type Groups = &'static [&'static [&'static str]];
const BESIDE: &[(Groups, &str, &str)] = &[
    (
        &[&["p50 µs alone", "p99 µs alone", "p99.9 µs alone"], &["p50 µs", "p99 µs", "p99.9 µs"]],
        "neighbour",
        "Round trips alone, and beside a flood (µs)",
    ),
    (&[&["p50 µs", "p99 µs", "p99.9 µs", "max µs"]], "latency", "Round trips (µs)"),
    (&[&["MB/s without it", "MB/s"]], "rate", "Payload of the others, without and with a slow reader (MB/s)"),
];
/// Measures that are one figure for each contestant: name, part of the file's name, title.
const SINGLE: &[(&str, &str, &str)] = &[
    ("bytes/session", "memory", "Resident memory per idle session (bytes)"),
    ("VMs/s", "rate", "VMs registered, pinged and unregistered per second"),
    ("starts/s", "rate", "Processes started per second"),
];

/// Writes the charts into a folder.
pub(crate) fn write(report: &Report, folder: &Path) -> Result<()> {
    let mut done: Vec<(&str, &str)> = Vec::new();
    for entry in &report.results {
        let (workload, shape) = (entry.workload.as_str(), entry.shape.as_str());
        if done.contains(&(workload, shape)) {
            continue;
        }
        done.push((workload, shape));
        let is_here = |entry: &&Entry| entry.workload == workload && entry.shape == shape;
        let entries: Vec<_> = report.results.iter().filter(is_here).collect();
        for (name, chart) in charts(report, &entries) {
            let stem = format!("{workload}-{}-{name}-{}", shape.replace(' ', ""), report.about.pin);
            let file = folder.join(stem + ".svg");
            chart.draw(&file).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        }
    }
    Ok(())
}

/// All that can be drawn of one workload and shape, with a part of the file's name each.
fn charts<'a>(report: &'a Report, entries: &[&'a Entry]) -> Vec<(String, Chart<'a>)> {
    let payloads: BTreeSet<usize> = entries.iter().map(|entry| entry.payload).collect();
    let mut charts = Vec::new();
    let has = |name: &str| entries.iter().any(|entry| entry.measure(name).is_some());
    let case = format!("{}, VMs x sessions {}", entries[0].workload, entries[0].shape);
    let placement = if report.about.pin == "S" { "S (all on one CPU)" } else { "X (left to the kernel)" };
    let chart = |title: &str, more: &str| Chart {
        title: format!("{title}: {case}{more}"),
        note: format!(
            "placement {placement}; medians of {} samples of {} s, whiskers: least and most; commit {}",
            report.about.rounds, report.about.seconds, report.about.commit
        ),
        ticks: Vec::new(),
        axis: String::new(),
        series: report.about.contestants.iter().map(|c| Series { name: &c.name, role: c.role, runs: vec![] }).collect(),
    };
    for (measure, file, title) in BY_PAYLOAD.iter().filter(|_| payloads.len() > 1).filter(|(name, ..)| has(name)) {
        charts.push(((*file).to_owned(), chart(title, "").by_payload(entries, &payloads, measure)));
    }
    for &payload in &payloads {
        let entries: Vec<_> = entries.iter().copied().filter(|entry| entry.payload == payload).collect();
        let (more, at) = if payload == 0 {
            (String::new(), String::new())
        } else {
            (format!(", {payload} B"), format!("-{payload}"))
        };
        let fits = |(groups, ..): &&(Groups, &str, &str)| groups.iter().all(|group| has(group[0]) && has(group[1]));
        // The first that fits: what follows it has a part of it.
        if let Some((groups, file, title)) = BESIDE.iter().find(fits) {
            charts.push((format!("{file}{at}"), chart(title, &more).beside(&entries, groups)));
        }
        for (measure, file, title) in SINGLE.iter().filter(|(name, ..)| has(name)) {
            charts.push((format!("{file}{at}"), chart(title, &more).single(&entries, measure)));
        }
    }
    // System calls of daemons are counted on demand only; a floor's alone say nothing.
    charts.retain(|(_, chart)| chart.series.iter().any(|series| series.role != Role::Floor));
    charts.retain(|(_, chart)| chart.points().any(|(_, [median, ..])| *median > 0.0));
    charts
}

/// A place on the horizontal axis, and the median, least and most there.
type Point = (f64, [f64; 3]);

#[derive(Debug)]
struct Series<'a> {
    name: &'a str,
    role: Role,
    /// Points that a line joins.
    runs: Vec<Vec<Point>>,
}

#[derive(Debug)]
struct Chart<'a> {
    title: String,
    note: String,
    ticks: Vec<(f64, String)>,
    axis: String,
    series: Vec<Series<'a>>,
}

fn spread(measure: &Measure) -> Option<[f64; 3]> {
    let spread = [measure.median, measure.min, measure.max];
    spread.iter().all(|value| value.is_finite()).then_some(spread)
}

impl<'a> Chart<'a> {
    fn by_payload(mut self, entries: &[&'a Entry], payloads: &BTreeSet<usize>, measure: &str) -> Chart<'a> {
        let place = |payload: usize| (payload as f64).log2();
        self.ticks = payloads.iter().map(|&payload| (place(payload), bytes(payload))).collect();
        self.axis = "payload of a frame (bytes, logarithmic)".to_owned();
        for series in &mut self.series {
            let own = entries.iter().filter(|entry| entry.contestant == series.name);
            let point = |entry: &&&Entry| Some((place(entry.payload), spread(entry.measure(measure)?)?));
            let mut points: Vec<Point> = own.filter_map(|entry| point(&entry)).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            series.runs = vec![points];
        }
        self.without_absent()
    }

    /// Measures as columns; contestants a little apart in each.
    fn beside(mut self, entries: &[&'a Entry], groups: Groups) -> Chart<'a> {
        let taken = |name: &&&str| entries.iter().any(|entry| entry.measure(name).is_some());
        let names: Vec<&str> = groups.iter().copied().flatten().filter(taken).copied().collect();
        self.ticks = names.iter().enumerate().map(|(at, name)| (at as f64, (*name).to_owned())).collect();
        let contestants = self.series.len() as f64;
        for (number, series) in self.series.iter_mut().enumerate() {
            let apart = ((number as f64 + 0.5) / contestants - 0.5) * 0.4;
            let Some(entry) = entries.iter().find(|entry| entry.contestant == series.name) else { continue };
            let point = |name: &&str| {
                let at = names.iter().position(|other| other == name)?;
                Some((at as f64 + apart, spread(entry.measure(name)?)?))
            };
            series.runs = groups.iter().map(|group| group.iter().filter_map(point).collect()).collect();
        }
        self.without_absent()
    }

    /// Contestants as columns.
    fn single(mut self, entries: &[&'a Entry], measure: &str) -> Chart<'a> {
        let find = |name: &str| entries.iter().find(|entry| entry.contestant == name)?.measure(measure);
        self.series.retain(|series| find(series.name).and_then(spread).is_some());
        for (at, series) in self.series.iter_mut().enumerate() {
            self.ticks.push((at as f64, series.name.to_owned()));
            series.runs =
                find(series.name).and_then(spread).map(|spread| vec![(at as f64, spread)]).into_iter().collect();
        }
        self
    }

    fn without_absent(mut self) -> Chart<'a> {
        self.series.retain(|series| series.runs.iter().any(|run| !run.is_empty()));
        self
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|series| series.runs.iter().flatten())
    }

    fn draw(&self, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(file, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (head, body) = area.split_vertically(TITLE);
        head.draw(&Text::new(self.title.clone(), (16, 14), ("sans-serif", 19).into_font().color(&INK)))?;
        let has_zero = self.points().any(|(_, spread)| spread.contains(&0.0));
        let note = if has_zero { format!("{}; 0 is at the lower edge", self.note) } else { self.note.clone() };
        head.draw(&Text::new(note, (16, 40), ("sans-serif", 13).into_font().color(&FAINT)))?;
        let (left, right) = body.split_horizontally(SIZE.0 - LEGEND);
        let looks = looks(&self.series);
        self.plot(&left, &looks)?;
        legend(&right, &self.series, &looks)?;
        area.present()?;
        Ok(())
    }

    fn plot(&self, area: &Area<'_>, looks: &[Look]) -> Result<(), Box<dyn std::error::Error>> {
        let frame = self.frame();
        self.grid(area, &frame)?;
        for (series, look) in self.series.iter().zip(looks).rev() {
            for run in &series.runs {
                let line: Vec<_> = run.iter().map(|(across, [median, ..])| frame.place(*across, *median)).collect();
                match look.dash {
                    _ if line.len() < 2 => {}
                    None => area.draw(&PathElement::new(line, look.line()))?,
                    Some((dash, gap)) => area.draw(&DashedPathElement::new(line, dash, gap, look.line()))?,
                }
            }
        }
        // Marks over all lines, the first contestants' last.
        for (series, look) in self.series.iter().zip(looks).rev() {
            for (across, [median, least, most]) in series.runs.iter().flatten() {
                let [middle, low, high] = [median, least, most].map(|value| frame.place(*across, *value));
                let thin = look.colour.stroke_width(1);
                area.draw(&PathElement::new([low, high], thin))?;
                for (x, y) in [low, high] {
                    area.draw(&PathElement::new([(x - 4, y), (x + 4, y)], thin))?;
                }
                area.draw(&(EmptyElement::at(middle) + look.inside() + look.outline()))?;
            }
        }
        Ok(())
    }

    fn frame(&self) -> Frame {
        let values = self.points().flat_map(|(_, spread)| *spread).filter(|value| *value > 0.0);
        let least = values.fold(f64::INFINITY, f64::min).log10();
        let most = self.points().map(|(_, spread)| spread[2]).fold(0.0, f64::max).log10();
        let room = ((most - least) * 0.06).max(0.05);
        let (first, last) = (self.ticks[0].0, self.ticks[self.ticks.len() - 1].0);
        let margin = if self.axis.is_empty() { 0.5 } else { 0.4 };
        Frame { across: (first - margin, last + margin), up: (least - room, most + room) }
    }

    /// Lines and labels of both axes.
    fn grid(&self, area: &Area<'_>, frame: &Frame) -> Result<(), Box<dyn std::error::Error>> {
        let (left, right, top, bottom) = PLOT;
        let (bold, light) = steps(frame.up.0, frame.up.1);
        let level = |step: &f64| frame.place(frame.across.0, 10_f64.powf(*step)).1;
        for (steps, colour) in [(&light, GRID.mix(0.4)), (&bold, GRID.mix(1.0))] {
            for y in steps.iter().map(level) {
                area.draw(&PathElement::new([(left, y), (right, y)], colour.stroke_width(1)))?;
            }
        }
        let font = ("sans-serif", 14).into_font().color(&INK);
        let to_left = font.pos(Pos::new(HPos::Right, VPos::Center));
        for step in &bold {
            let label = short(rounded(10_f64.powf(*step)));
            area.draw(&Text::new(label, (left - 8, level(step)), to_left.clone()))?;
        }
        let below = font.pos(Pos::new(HPos::Center, VPos::Top));
        for (at, name) in &self.ticks {
            let x = frame.place(*at, 1.0).0;
            area.draw(&PathElement::new([(x, top), (x, bottom)], GRID.stroke_width(1)))?;
            area.draw(&Text::new(name.clone(), (x, bottom + 8), below.clone()))?;
        }
        area.draw(&Text::new(self.axis.clone(), (i32::midpoint(left, right), bottom + 30), below))?;
        area.draw(&PathElement::new([(left, top), (left, bottom), (right, bottom)], FAINT.stroke_width(1)))?;
        Ok(())
    }
}

/// What the plot's edges stand for: places across, and logarithms up.
#[derive(Debug)]
struct Frame {
    across: (f64, f64),
    up: (f64, f64),
}

impl Frame {
    #[expect(clippy::cast_possible_truncation, reason = "a pixel within the plot")]
    fn place(&self, across: f64, value: f64) -> (i32, i32) {
        let (left, right, top, bottom) = PLOT;
        let part = |value: f64, (from, to): (f64, f64)| (value - from) / (to - from);
        let x = f64::from(left) + part(across, self.across) * f64::from(right - left);
        let height = part(value.log10(), self.up).max(0.0);
        let y = f64::from(bottom) - height * f64::from(bottom - top);
        (x.round() as i32, y.round() as i32)
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn legend(area: &Area<'_>, series: &[Series<'_>], looks: &[Look]) -> Result<(), Box<dyn std::error::Error>> {
    for (at, (series, look)) in (0..).zip(series.iter().zip(looks)) {
        let y = 16 + 26 * at;
        let line = [(8, y), (48, y)];
        match look.dash {
            None => area.draw(&PathElement::new(line, look.line()))?,
            Some((dash, gap)) => area.draw(&DashedPathElement::new(line, dash, gap, look.line()))?,
        }
        area.draw(&(EmptyElement::at((28, y)) + look.inside() + look.outline()))?;
        let font = ("sans-serif", 14).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(series.name.to_owned(), (56, y), font))?;
    }
    Ok(())
}

/// How a contestant is drawn.
#[derive(Debug)]
struct Look {
    colour: RGBColor,
    /// Pixels of a dash, and of the gap after it.
    dash: Option<(i32, i32)>,
    width: u32,
    is_filled: bool,
    /// The mark's corners, in pixels from its middle.
    corners: Vec<(i32, i32)>,
}

impl Look {
    fn line(&self) -> ShapeStyle {
        self.colour.stroke_width(self.width)
    }

    fn inside(&self) -> Polygon<(i32, i32)> {
        Polygon::new(self.corners.clone(), if self.is_filled { self.colour.filled() } else { WHITE.filled() })
    }

    fn outline(&self) -> PathElement<(i32, i32)> {
        let around = self.corners.iter().chain(self.corners.first()).copied();
        PathElement::new(around.collect::<Vec<_>>(), self.colour.stroke_width(2))
    }
}

fn looks(series: &[Series<'_>]) -> Vec<Look> {
    const CIRCLE: &[(i32, i32)] = &[(5, 0), (4, 3), (0, 5), (-4, 3), (-5, 0), (-4, -3), (0, -5), (4, -3)];
    const SQUARE: &[(i32, i32)] = &[(-4, -4), (4, -4), (4, 4), (-4, 4)];
    const DIAMOND: &[(i32, i32)] = &[(0, -5), (5, 0), (0, 5), (-5, 0)];
    const UP: &[(i32, i32)] = &[(0, -6), (6, 4), (-6, 4)];
    const DOWN: &[(i32, i32)] = &[(0, 4), (4, -3), (-4, -3)];
    // Colours that most kinds of colour blindness leave apart (Okabe and Ito).
    let own = [(0x00, 0x72, 0xb2), (0x00, 0x9e, 0x73), (0x56, 0xb4, 0xe9), (0x30, 0x30, 0x90)];
    let peer = [(0xd5, 0x5e, 0x00), (0xcc, 0x79, 0xa7), (0xe6, 0x9f, 0x00), (0x80, 0x40, 0x20)];
    let floor = [(0x30, 0x30, 0x30), (0x80, 0x80, 0x80)];
    let mut seen: Vec<Role> = Vec::new();
    let look = |one: &Series<'_>| {
        let at = seen.iter().filter(|role| **role == one.role).count();
        seen.push(one.role);
        let pick = |colours: &[(u8, u8, u8)]| {
            let (red, green, blue) = colours[at % colours.len()];
            RGBColor(red, green, blue)
        };
        let (colour, dash, width, shapes): (_, _, _, &[&[(i32, i32)]]) = match one.role {
            Role::Own | Role::Unknown => (pick(&own), None, 2, &[CIRCLE, SQUARE, DIAMOND, UP]),
            Role::Peer => (pick(&peer), Some([(10, 6), (4, 4)][at % 2]), 2, &[SQUARE, UP, DIAMOND, CIRCLE]),
            Role::Floor => (pick(&floor), Some([(2, 4), (2, 8)][at % 2]), 1, &[DOWN, DIAMOND]),
        };
        let corners = shapes[at % shapes.len()].to_vec();
        Look { colour, dash, width, is_filled: one.role != Role::Peer, corners }
    };
    series.iter().map(look).collect()
}

/// Powers of ten, and steps between them where those alone are too few, between two logarithms; and lesser ones.
fn steps(bottom: f64, top: f64) -> (Vec<f64>, Vec<f64>) {
    let within = |factors: &[f64]| {
        let mut found = Vec::new();
        let mut decade = bottom.floor();
        while decade <= top {
            found.extend(factors.iter().map(|factor| decade + factor.log10()));
            decade += 1.0;
        }
        found.retain(|step| (bottom..=top).contains(step));
        found
    };
    let light = within(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    let choices: [&[f64]; 3] = [&[1.0], &[1.0, 2.0, 5.0], &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]];
    let bold = choices.into_iter().map(within).find(|steps| steps.len() >= 4);
    (bold.unwrap_or_else(|| vec![bottom, f64::midpoint(bottom, top), top]), light)
}

/// Without the noise of a logarithm that was undone.
fn rounded(value: f64) -> f64 {
    let unit = 10_f64.powf(value.log10().floor() - 3.0);
    (value / unit).round() * unit
}

/// A figure without zeros that say nothing.
fn short(value: f64) -> String {
    let shown = figure(value);
    if shown.contains('.') { shown.trim_end_matches('0').trim_end_matches('.').to_owned() } else { shown }
}

fn bytes(count: usize) -> String {
    match count {
        whole if whole % 1024 == 0 => format!("{} KiB", whole / 1024),
        other => short(other as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_steps() {
        let (bold, _) = steps(0.9, 5.1);
        assert_eq!(bold, [1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!(steps(1.9, 3.1).0.len() >= 4 && steps(2.0, 2.4).0.len() >= 3 && steps(2.01, 2.05).0.len() == 3);
        assert_eq!([bytes(64), bytes(4096), bytes(10_228)], ["64", "4 KiB", "10,228"]);
        assert_eq!([0.05, 1.5, 200.0].map(short), ["0.05", "1.5", "200"]);
    }
}
