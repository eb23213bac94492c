//! Whether a report keeps what `targets` promises: every target for every daemon of our own, one row for each case.
//!
//! Medians are judged; the spread stands beside them. What a run did not measure is said too, since a promise that
//! nobody looked at is not kept.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::report::{Better, Described, Entry, Measure, Report, Role, figure};
use crate::targets::{Bound, TARGETS, Target};

/// What came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    NotMeasured,
}

/// A target in one case, for one contestant.
#[derive(Debug)]
struct Row {
    case: String,
    contestant: String,
    target: String,
    measured: String,
    holds: Holds,
}

/// A quantity with its spread.
#[derive(Debug, Clone, Copy)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(measure: &Measure) -> Spread {
        Spread { median: measure.median, min: measure.min, max: measure.max }
    }

    /// The ratio of two, at its furthest apart.
    fn over(self, other: Spread) -> Spread {
        Spread { median: self.median / other.median, min: self.min / other.max, max: self.max / other.min }
    }

    /// The ratio of two measures of the same samples, which drift together.
    fn of_pairs(one: &Measure, other: &Measure) -> Spread {
        let mut ratios: Vec<f64> = one.samples.iter().zip(&other.samples).map(|(one, other)| one / other).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |place: usize| ratios.get(place).copied().unwrap_or(f64::NAN);
        Spread { median: at(ratios.len() / 2), min: at(0), max: at(ratios.len().saturating_sub(1)) }
    }
}

/// Prints a table for each report, of some contestants or all of our own; true when every target holds and, unless
/// they may, none is left unmeasured.
pub(crate) fn run(reports: &[PathBuf], only: &[String], allow_missing: bool) -> Result<bool> {
    let mut is_well = true;
    for path in reports {
        let report = Report::read(path)?;
        let own = report.about.contestants.iter().any(|contestant| contestant.role == Role::Own);
        ensure!(own, "{} has no daemon of our own, or does not say which it is", path.display());
        let mut rows = rows(&report);
        rows.retain(|row| only.is_empty() || only.contains(&row.contestant));
        ensure!(!rows.is_empty(), "{} has no target for these contestants", path.display());
        println!("Commit {}, {}, placement {}\n", report.about.commit, report.about.date, report.about.pin);
        println!("{}", table(&rows.iter().collect::<Vec<_>>())?);
        println!("{}\n", summary(&rows));
        let count = |holds| rows.iter().any(|row| row.holds == holds);
        is_well &= !count(Holds::No) && (allow_missing || !count(Holds::NotMeasured));
    }
    Ok(is_well)
}

/// The section of a run's tables: what was measured. Nothing where no target was.
pub(crate) fn section(report: &Report) -> Result<String> {
    let rows = rows(report);
    let measured: Vec<_> = rows.iter().filter(|row| row.holds != Holds::NotMeasured).collect();
    if measured.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("\n## Verdict\n\n{}\n{}\n", table(&measured)?, summary(&rows)))
}

fn table(rows: &[&Row]) -> Result<String> {
    let mut out = String::from("| case | contestant | target | measured | holds |\n|---|---|---|---|---|\n");
    for Row { case, contestant, target, measured, holds } in rows.iter().copied() {
        let holds = match holds {
            Holds::Yes => "yes",
            Holds::No => "**no**",
            Holds::NotMeasured => "not measured",
        };
        writeln!(out, "| {case} | {contestant} | {target} | {measured} | {holds} |")?;
    }
    Ok(out)
}

fn summary(rows: &[Row]) -> String {
    let count = |holds| rows.iter().filter(|row| row.holds == holds).count();
    let (yes, no, not) = (count(Holds::Yes), count(Holds::No), count(Holds::NotMeasured));
    format!("{yes} hold, {no} do not, {not} were not measured.")
}

fn rows(report: &Report) -> Vec<Row> {
    let is_own = |contestant: &&Described| contestant.role == Role::Own;
    let own: Vec<_> = report.about.contestants.iter().filter(is_own).collect();
    let mut rows = Vec::new();
    for target in TARGETS.iter().filter(|target| target.pin.is_none_or(|pin| pin == report.about.pin)) {
        let has_flag = |contestant: &Described| target.flag.is_none_or(|flag| contestant.command.contains(flag));
        let judged: Vec<_> = own.iter().filter(|contestant| has_flag(contestant)).collect();
        for (shape, payload) in cases(report, target) {
            for contestant in &judged {
                rows.push(row(report, target, (&shape, payload), &contestant.name));
            }
            if let (true, Some(flag)) = (judged.is_empty(), target.flag) {
                let row = row(report, target, (&shape, payload), "");
                rows.push(Row { measured: format!("no contestant has `{flag}`"), ..row });
            }
        }
    }
    rows
}

/// The cases a target is about; those that were measured where it does not say which.
fn cases(report: &Report, target: &Target) -> Vec<(String, usize)> {
    if let (false, Some(payload)) = (target.shapes.is_empty(), target.payload) {
        return target.shapes.iter().map(|shape| ((*shape).to_owned(), payload)).collect();
    }
    let mut cases: Vec<(String, usize)> = Vec::new();
    for entry in report.results.iter().filter(|entry| entry.workload == target.workload) {
        let case = (entry.shape.clone(), entry.payload);
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    if cases.is_empty() {
        cases.push(("any".to_owned(), 0));
    }
    cases
}

fn row(report: &Report, target: &Target, (shape, payload): (&str, usize), contestant: &str) -> Row {
    let size = if payload == 0 { String::new() } else { format!(", {payload} B") };
    let (measured, holds) = judge(report, target, (shape, payload), contestant);
    Row {
        case: format!("{} {shape}{size}", target.workload),
        contestant: contestant.to_owned(),
        target: promise(target),
        measured,
        holds,
    }
}

fn promise(target: &Target) -> String {
    let measure = target.measure;
    match target.bound {
        Bound::AtMost(most) => format!("{measure} ≤ {most}"),
        Bound::PartOfPeer(part) => format!("{measure} ≤ {} of the better peer's", factor(part)),
        Bound::BelowPeer => format!("{measure} below the better peer's"),
        Bound::TimesPeer(times) => format!("{measure} ≥ {} the better peer's", factor(times)),
        Bound::TimesFloor(floor, times) => format!("{measure} ≤ {} {floor}'s", factor(times)),
        Bound::PartOf(other, part) => format!("{measure} ≥ {} {other}", factor(part)),
        Bound::TimesOf(other, times) => format!("{measure} ≤ {} {other}", factor(times)),
    }
}

fn judge(report: &Report, target: &Target, case: (&str, usize), contestant: &str) -> (String, Holds) {
    let entry = |name: &str| {
        let is_case = |entry: &&Entry| {
            entry.workload == target.workload
                && (entry.shape.as_str(), entry.payload) == case
                && entry.contestant == name
        };
        report.results.iter().find(is_case)
    };
    let Some(own) = entry(contestant) else { return ("–".to_owned(), Holds::NotMeasured) };
    if let Some(failure) = own.failures.first() {
        return (format!("{} failures: {}", own.failures.len(), failure.replace('|', "/")), Holds::No);
    }
    let Some(value) = own.measure(target.measure) else { return ("–".to_owned(), Holds::NotMeasured) };
    let bound = target.bound;
    let decide = |value: f64| if fits(bound, value) { Holds::Yes } else { Holds::No };
    let absent = |what: &str| (format!("{}; {what}", figure(value.median)), Holds::NotMeasured);
    let against = |other: &Measure, name: &str, ratio: Spread| {
        let [median, min, max] = [ratio.median, ratio.min, ratio.max].map(factor);
        let (own, other) = (figure(value.median), figure(other.median));
        (format!("{median} ({min} – {max}): {own} against {other} {name}"), decide(ratio.median))
    };
    let apart = |other: &Measure, name: &str| against(other, name, Spread::of(value).over(Spread::of(other)));
    match bound {
        Bound::AtMost(_) => {
            let shown = format!("{} ({} – {})", figure(value.median), figure(value.min), figure(value.max));
            (shown, decide(value.median))
        }
        Bound::PartOfPeer(_) | Bound::BelowPeer | Bound::TimesPeer(_) => {
            let is_peer = |contestant: &&Described| contestant.role == Role::Peer;
            let peers = report.about.contestants.iter().filter(is_peer).filter_map(|peer| {
                let measure = entry(&peer.name)?.measure(target.measure)?;
                Some((peer.name.as_str(), measure))
            });
            let order = |a: &(&str, &Measure), b: &(&str, &Measure)| a.1.median.total_cmp(&b.1.median);
            let best = if bound.better() == Better::More { peers.max_by(order) } else { peers.min_by(order) };
            best.map_or_else(|| absent("no peer got through"), |(name, measure)| apart(measure, &format!("of {name}")))
        }
        Bound::TimesFloor(floor, _) => match entry(floor).and_then(|entry| entry.measure(target.measure)) {
            Some(measure) => apart(measure, &format!("of {floor}")),
            None => absent("no floor beside it"),
        },
        Bound::PartOf(other, _) | Bound::TimesOf(other, _) => match own.measure(other) {
            Some(measure) => against(measure, "otherwise", Spread::of_pairs(value, measure)),
            None => absent("nothing beside it"),
        },
    }
}

/// Whether a value, or a ratio where the bound is one, is good enough.
fn fits(bound: Bound, value: f64) -> bool {
    match bound {
        Bound::AtMost(most) | Bound::PartOfPeer(most) | Bound::TimesFloor(_, most) | Bound::TimesOf(_, most) => {
            value <= most
        }
        Bound::BelowPeer => value < 1.0,
        Bound::TimesPeer(least) | Bound::PartOf(_, least) => value >= least,
    }
}

/// A ratio: as a fraction where it is a small one.
fn factor(ratio: f64) -> String {
    match ratio {
        small if small > 0.0 && small <= 0.5 => {
            let part = 1.0 / small;
            if (part - part.round()).abs() < 1e-9 { format!("1/{part:.0}") } else { format!("1/{}", figure(part)) }
        }
        even if (even * 100.0 - (even * 100.0).round()).abs() < 1e-9 => format!("{even} ×"),
        other => format!("{other:.2} ×"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_told() {
        let shown: Vec<_> = [1.0 / 50.0, 0.5, 0.015, 0.9, 2.0, 1.2399].into_iter().map(factor).collect();
        assert_eq!(shown, ["1/50", "1/2", "1/66.7", "0.9 ×", "2 ×", "1.24 ×"]);
    }

    #[test]
    fn bounds_have_a_side() {
        assert!(fits(Bound::PartOfPeer(0.02), 0.02) && !fits(Bound::PartOfPeer(0.02), 0.021));
        assert!(fits(Bound::BelowPeer, 0.99) && !fits(Bound::BelowPeer, 1.0));
        assert!(fits(Bound::TimesPeer(2.0), 2.0) && !fits(Bound::TimesPeer(2.0), 1.9));
        assert!(fits(Bound::TimesOf("a", 3.0), 3.0) && !fits(Bound::TimesOf("a", 3.0), 3.1));
        assert!(fits(Bound::PartOf("a", 0.9), 0.95) && !fits(Bound::PartOf("a", 0.9), 0.89));
    }
}
