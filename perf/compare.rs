//! Two reports side by side: ratios of medians, and whether one is worse by more than a threshold.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::report::{Better, Entry, Measure, Report, figure};

/// Prints every ratio B/A; returns how many are worse than `threshold`.
pub(crate) fn run(a: &Path, b: &Path, threshold: f64, only: &[String]) -> Result<usize> {
    ensure!(threshold >= 1.0, "a threshold below 1 would fail what has not changed");
    let (a, b) = (Report::read(a)?, Report::read(b)?);
    if (&a.about.processor, a.about.cpus, &a.about.pin) != (&b.about.processor, b.about.cpus, &b.about.pin) {
        println!("These were measured on different machines or placements: the ratios say little.");
    }
    let (mut worse, mut compared) = (0, 0);
    for entry in &b.results {
        let Some(before) = a.results.iter().find(|before| key(before) == key(entry)) else { continue };
        if !only.is_empty() && !only.contains(&entry.contestant) {
            continue;
        }
        let (workload, shape, payload, contestant) = key(entry);
        let case = format!("{workload} {shape} {payload} B {contestant}");
        if entry.failures.len() > before.failures.len() {
            println!("{case}: fails ({})", entry.failures[0]);
            worse += 1;
        }
        for measure in &entry.measures {
            let Some(old) = before.measure(&measure.name) else { continue };
            let Some(ratio) = ratio(old, measure) else { continue };
            let is_worse = worsening(measure.better, ratio) > threshold;
            let mark = if is_worse { "  WORSE" } else { "" };
            println!("{case}: {} {} -> {}: {ratio:.3}{mark}", measure.name, figure(old.median), figure(measure.median));
            worse += usize::from(is_worse);
            compared += 1;
        }
    }
    ensure!(compared > 0, "the reports have nothing in common");
    println!("{compared} compared, {worse} worse by more than {threshold}.");
    Ok(worse)
}

fn key(entry: &Entry) -> (&str, &str, usize, &str) {
    (&entry.workload, &entry.shape, entry.payload, &entry.contestant)
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
