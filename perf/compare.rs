//! Two reports side by side: ratios of medians, whether one is worse by more than a threshold, and what only one of
//! them has: a case that is gone is no case that got better.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::report::{Better, Entry, Measure, Report, figure};

/// What of the reports is compared, and how strictly.
#[derive(Debug, clap::Args)]
pub(crate) struct Flags {
    /// By how much anything may be worse: 1.1 is ten percent
    #[arg(long, default_value_t = 1.1)]
    threshold: f64,
    /// Compare this contestant only; may be given several times [default: all]
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Compare this contestant of A with that one of B, which may have another name; may be given several times
    /// [default: contestants of the same name]
    #[arg(long, value_name = "A=B", value_parser = parse_pair, conflicts_with = "only")]
    pair: Vec<(String, String)>,
    /// Do not fail because of contestants, cases and measures that only one of the reports has
    #[arg(long)]
    allow_missing: bool,
}

fn parse_pair(text: &str) -> Result<(String, String)> {
    let (a, b) = text.split_once('=').context("a pair is the name in A, '=' and the name in B")?;
    Ok((a.to_owned(), b.to_owned()))
}

impl Flags {
    /// Contestants to compare: the name in A, and that in B.
    fn pairs(&self, a: &Report, b: &Report) -> Vec<(String, String)> {
        if !self.pair.is_empty() {
            return self.pair.clone();
        }
        let mut names: Vec<&String> = Vec::new();
        for name in a.results.iter().chain(&b.results).map(|entry| &entry.contestant) {
            if !names.contains(&name) && (self.only.is_empty() || self.only.contains(name)) {
                names.push(name);
            }
        }
        names.into_iter().map(|name| (name.clone(), name.clone())).collect()
    }
}

/// Prints every ratio B/A; true when nothing is worse than the threshold and nothing is missing that must not.
pub(crate) fn run(a: &Path, b: &Path, flags: &Flags) -> Result<bool> {
    ensure!(flags.threshold >= 1.0, "a threshold below 1 would fail what has not changed");
    let (a, b) = (Report::read(a)?, Report::read(b)?);
    if (&a.about.processor, a.about.cpus, &a.about.pin) != (&b.about.processor, b.about.cpus, &b.about.pin) {
        println!("These were measured on different machines or placements: the ratios say little.");
    }
    let mut tally = Tally::default();
    for (name_a, name_b) in flags.pairs(&a, &b) {
        let of = |report: &Report, name: &str| report.results.iter().any(|entry| entry.contestant == name);
        match (of(&a, &name_a), of(&b, &name_b)) {
            (true, true) => tally.contestant((&a, &name_a), (&b, &name_b), flags.threshold),
            (true, false) => tally.misses(format_args!("{name_b}: not in B")),
            (false, true) => tally.misses(format_args!("{name_a}: not in A")),
            (false, false) => tally.misses(format_args!("{name_a}: in neither")),
        }
    }
    ensure!(tally.compared > 0, "the reports have nothing in common");
    let Tally { compared, worse, missing } = tally;
    println!("{compared} compared, {worse} worse by more than {}, {missing} in one report only.", flags.threshold);
    Ok(worse == 0 && (missing == 0 || flags.allow_missing))
}

#[derive(Debug, Default)]
struct Tally {
    compared: usize,
    worse: usize,
    missing: usize,
}

impl Tally {
    fn misses(&mut self, what: impl std::fmt::Display) {
        println!("{what}  MISSING");
        self.missing += 1;
    }

    /// Compares one contestant, all cases.
    fn contestant(&mut self, (a, name_a): (&Report, &str), (b, name_b): (&Report, &str), threshold: f64) {
        let both = if name_a == name_b { name_a.to_owned() } else { format!("{name_a} -> {name_b}") };
        let named = |entry: &&Entry, name: &str| entry.contestant == name;
        for old in a.results.iter().filter(|entry| named(entry, name_a)) {
            match b.results.iter().filter(|entry| named(entry, name_b)).find(|new| case(new) == case(old)) {
                Some(new) => self.entry(old, new, &both, threshold),
                None => self.misses(format_args!("{} {both}: not in B", shown(old))),
            }
        }
        for new in b.results.iter().filter(|entry| named(entry, name_b)) {
            if !a.results.iter().filter(|entry| named(entry, name_a)).any(|old| case(old) == case(new)) {
                self.misses(format_args!("{} {both}: not in A", shown(new)));
            }
        }
    }

    fn entry(&mut self, old: &Entry, new: &Entry, contestant: &str, threshold: f64) {
        let case = format!("{} {contestant}", shown(new));
        if new.failures.len() > old.failures.len() {
            println!("{case}: fails ({})", new.failures[0]);
            self.worse += 1;
        }
        for before in old.measures.iter().filter(is_judged) {
            let Some(now) = new.measure(&before.name) else {
                self.misses(format_args!("{case}: {}: not in B", before.name));
                continue;
            };
            let Some(ratio) = ratio(before, now) else { continue };
            let is_worse = worsening(now.better, ratio) > threshold;
            let mark = if is_worse { "  WORSE" } else { "" };
            println!("{case}: {} {} -> {}: {ratio:.3}{mark}", now.name, figure(before.median), figure(now.median));
            self.worse += usize::from(is_worse);
            self.compared += 1;
        }
        for now in new.measures.iter().filter(is_judged).filter(|now| old.measure(&now.name).is_none()) {
            self.misses(format_args!("{case}: {}: not in A", now.name));
        }
    }
}

fn case(entry: &Entry) -> (&str, &str, usize) {
    (&entry.workload, &entry.shape, entry.payload)
}

fn shown(entry: &Entry) -> String {
    let (workload, shape, payload) = case(entry);
    if payload == 0 { format!("{workload} {shape}") } else { format!("{workload} {shape} {payload} B") }
}

fn is_judged(measure: &&Measure) -> bool {
    measure.better != Better::Neither
}

fn ratio(old: &Measure, new: &Measure) -> Option<f64> {
    (old.median > 0.0).then(|| new.median / old.median)
}

/// By how much it is worse; below 1 it is better.
fn worsening(better: Better, ratio: f64) -> f64 {
    match better {
        Better::Less => ratio,
        Better::More => 1.0 / ratio,
        Better::Neither => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worse_depends_on_the_measure() {
        assert!(worsening(Better::Less, 1.2) > 1.1);
        assert!(worsening(Better::More, 1.2) < 1.1);
        assert!(worsening(Better::More, 0.5) > 1.9);
        assert!(worsening(Better::Neither, 9.0) < 1.0);
    }
}
