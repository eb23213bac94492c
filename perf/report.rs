//! Results: what was measured, as JSON and as Markdown tables.
//!
//! Every measure keeps its samples; medians and spreads are made from them. No path of this machine gets in.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::verdict;

/// The form of the JSON.
const FORM: u32 = 1;

/// A whole run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) form: u32,
    pub(crate) about: About,
    pub(crate) results: Vec<Entry>,
}

/// Where and how it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cpus: usize,
    pub(crate) pin: String,
    pub(crate) build: String,
    pub(crate) seconds: f64,
    pub(crate) rounds: usize,
    pub(crate) contestants: Vec<Described>,
    pub(crate) notes: Vec<String>,
}

/// One contestant.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Described {
    pub(crate) name: String,
    pub(crate) command: String,
    #[serde(default)]
    pub(crate) role: Role,
}

/// What a contestant is to the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// An older report does not say.
    #[default]
    Unknown,
    /// This project's daemon: targets are about it.
    Own,
    /// Another daemon, to be compared with.
    Peer,
    /// What the work costs without a daemon.
    Floor,
}

/// One contestant in one case of one workload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) workload: String,
    pub(crate) shape: String,
    /// Bytes of payload in a frame; 0 where it has none.
    pub(crate) payload: usize,
    pub(crate) contestant: String,
    pub(crate) measures: Vec<Measure>,
    /// What went wrong, once for each sample that failed.
    pub(crate) failures: Vec<String>,
}

/// One quantity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) better: Better,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) samples: Vec<f64>,
}

/// Which way is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Less,
    More,
    /// Told for the reader, and not judged.
    Neither,
}

/// One sample's quantities.
pub(crate) type Sample = Vec<(&'static str, Better, f64)>;

impl Entry {
    /// Adds a sample.
    pub(crate) fn add(&mut self, sample: Sample) {
        for (name, better, value) in sample {
            match self.measures.iter_mut().find(|measure| measure.name == name) {
                Some(measure) => measure.add(value),
                None => {
                    let mut measure = Measure::empty(name, better);
                    measure.add(value);
                    self.measures.push(measure);
                }
            }
        }
    }

    pub(crate) fn measure(&self, name: &str) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.name == name)
    }

    fn case(&self) -> (&str, &str, usize) {
        (&self.workload, &self.shape, self.payload)
    }
}

impl Measure {
    fn empty(name: &str, better: Better) -> Measure {
        Measure { name: name.to_owned(), better, median: 0.0, min: 0.0, max: 0.0, samples: Vec::new() }
    }

    fn add(&mut self, value: f64) {
        self.samples.push(value);
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let is_odd = sorted.len() % 2 == 1;
        self.median = if is_odd { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) };
        (self.min, self.max) = (sorted[0], sorted[sorted.len() - 1]);
    }
}

impl Report {
    pub(crate) fn new(about: About, results: Vec<Entry>) -> Report {
        Report { form: FORM, about, results }
    }

    pub(crate) fn read(path: &Path) -> Result<Report> {
        let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("{} is not a report", path.display()))?;
        ensure!(report.form == FORM, "{} has form {}; this program reads {FORM}", path.display(), report.form);
        Ok(report)
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        fs::write(self.file(folder, "json"), serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(self.file(folder, "md"), self.markdown()?)?;
        Ok(())
    }

    /// A file of this report: runs of both placements go into one folder.
    fn file(&self, folder: &Path, extension: &str) -> PathBuf {
        folder.join(format!("results-{}.{extension}", self.about.pin))
    }

    /// Tables, one for each workload, a row for each case and contestant.
    pub(crate) fn markdown(&self) -> Result<String> {
        let mut out = String::from("# Measurements\n\n");
        let about = &self.about;
        writeln!(
            out,
            "{}, commit {}, {} build. Linux {}, {}, {} CPUs; placement {}.",
            about.date, about.commit, about.build, about.kernel, about.processor, about.cpus, about.pin
        )?;
        writeln!(
            out,
            "Medians of {} samples of {} s, with the least and the most. Compare within a table: absolute \
            figures move with the machine.\n",
            about.rounds, about.seconds
        )?;
        for contestant in &about.contestants {
            writeln!(out, "- `{}`: {}", contestant.name, contestant.command)?;
        }
        for note in &about.notes {
            writeln!(out, "- Note: {note}")?;
        }
        let mut workloads: Vec<&str> = Vec::new();
        for entry in &self.results {
            if !workloads.contains(&entry.workload.as_str()) {
                workloads.push(&entry.workload);
            }
        }
        for workload in workloads {
            let entries: Vec<_> = self.results.iter().filter(|entry| entry.workload == workload).collect();
            table(&mut out, workload, &entries)?;
        }
        out.push_str(&verdict::section(self)?);
        Ok(out)
    }
}

fn table(out: &mut String, workload: &str, entries: &[&Entry]) -> Result<()> {
    let mut names: Vec<&str> = Vec::new();
    for measure in entries.iter().flat_map(|entry| &entry.measures) {
        if !names.contains(&measure.name.as_str()) {
            names.push(&measure.name);
        }
    }
    writeln!(out, "\n## {workload}\n")?;
    writeln!(out, "| VMs x sessions | payload | contestant | {} | failures |", names.join(" | "))?;
    writeln!(out, "|---|---|---|{}---|", "---|".repeat(names.len()))?;
    let mut last = None;
    for entry in entries {
        let is_new = last.replace(entry.case()) != Some(entry.case());
        let payload = if entry.payload == 0 { "–".to_owned() } else { entry.payload.to_string() };
        let (shape, payload) = if is_new { (entry.shape.as_str(), payload.as_str()) } else { ("", "") };
        write!(out, "| {shape} | {payload} | {} |", entry.contestant)?;
        for name in &names {
            match entry.measure(name) {
                Some(m) if m.samples.len() > 1 => {
                    write!(out, " **{}** ({} – {}) |", figure(m.median), figure(m.min), figure(m.max))?;
                }
                Some(m) => write!(out, " **{}** |", figure(m.median))?,
                None => out.push_str(" – |"),
            }
        }
        let failures = match entry.failures.as_slice() {
            [] => String::new(),
            [first, ..] => format!("{} x: {}", entry.failures.len(), first.replace('|', "/")),
        };
        writeln!(out, " {failures} |")?;
    }
    Ok(())
}

/// Three digits that mean something.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => grouped(value),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |rest| ("-", rest));
    let mut out = String::from(sign);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_figures() {
        let mut measure = Measure::empty("a", Better::Less);
        [3.0, 1.0, 2.0, 10.0].into_iter().for_each(|value| measure.add(value));
        assert_eq!((measure.median, measure.min, measure.max), (2.5, 1.0, 10.0));
        let shown: Vec<_> = [0.0, 0.03, 1.234, 45.67, 999.6, 1_234_567.0].into_iter().map(figure).collect();
        assert_eq!(shown, ["0", "0.0300", "1.23", "45.7", "1,000", "1,234,567"]);
    }
}
