//! A run: every case of every workload, contestants in turn, round after round.
//!
//! A load's contestants stand ready beside each other and are measured alternately (A B C A B C …), so that what
//! changes on the machine changes for all. One that fails is set up afresh, and left out of a case after two
//! failures; the failures are reported.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use crate::report::{Entry, Report, Sample};
use crate::rig::{Contestant, Rig, Shape};
use crate::workloads::{Choice, Workload};

/// Failures after which a contestant is left out of a case.
const FAILURES_MAX: usize = 2;

/// What is run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) contestants: Vec<Contestant>,
    pub(crate) choice: Choice,
    pub(crate) rounds: usize,
}

impl Run {
    /// Runs everything. The report is written after each case, so that a run that is broken off leaves what it has.
    pub(crate) fn go(&self, report: &mut Report, folder: &Path) -> Result<()> {
        let bar = ProgressBar::new(self.samples() as u64);
        bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} (left: {eta}) {msg}")?);
        for &workload in &self.workloads {
            for shape in workload.shapes(&self.choice) {
                if workload.is_load() {
                    self.loads(workload, shape, &bar, report, folder)?;
                } else {
                    report.results.extend(self.churns(workload, shape, &bar));
                    report.write(folder)?;
                }
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    fn samples(&self) -> usize {
        let of = |workload: &Workload| {
            let admitted = self.contestants.iter().filter(|contestant| workload.admits(contestant)).count();
            workload.shapes(&self.choice).len() * workload.payloads(&self.choice).len() * admitted * self.rounds
        };
        self.workloads.iter().map(of).sum()
    }

    fn entries(&self, workload: Workload, shape: Shape, payload: usize) -> Vec<(&Contestant, Entry)> {
        let admitted = self.contestants.iter().filter(|contestant| workload.admits(contestant));
        let entry = |contestant: &Contestant| Entry {
            workload: workload.name(),
            shape: if shape.sessions == 0 { shape.vms.to_string() } else { shape.to_string() },
            payload,
            contestant: contestant.name().to_owned(),
            measures: Vec::new(),
            failures: Vec::new(),
        };
        admitted.map(|contestant| (contestant, entry(contestant))).collect()
    }

    fn loads(
        &self,
        workload: Workload,
        shape: Shape,
        bar: &ProgressBar,
        report: &mut Report,
        folder: &Path,
    ) -> Result<()> {
        let mut rigs: Vec<Option<Rig>> = self.contestants.iter().map(|_| None).collect();
        for payload in workload.payloads(&self.choice) {
            let mut entries = self.entries(workload, shape, payload);
            for _ in 0..self.rounds {
                for (at, (contestant, entry)) in entries.iter_mut().enumerate() {
                    bar.set_message(format!("{} {shape}, {payload} B: {}", entry.workload, entry.contestant));
                    if entry.failures.len() < FAILURES_MAX {
                        let rig = &mut rigs[at];
                        record(entry, self.load(workload, contestant, shape, payload, rig), bar);
                    }
                    bar.inc(1);
                }
            }
            report.results.extend(entries.into_iter().map(|(_, entry)| entry));
            report.write(folder)?;
        }
        Ok(())
    }

    /// One sample on a rig that is there or is set up now; after a failure it is there no more.
    fn load(
        &self,
        workload: Workload,
        contestant: &Contestant,
        shape: Shape,
        payload: usize,
        place: &mut Option<Rig>,
    ) -> Result<Sample> {
        let mut rig = match place.take() {
            Some(rig) => rig,
            None => {
                let contestant = workload.variant_of(contestant);
                Rig::set_up(&contestant, shape, self.choice.logs.as_ref()).context("setting up")?
            }
        };
        let sample = workload.sample(&mut rig, payload, &self.choice)?;
        *place = Some(rig);
        Ok(sample)
    }

    fn churns(&self, workload: Workload, shape: Shape, bar: &ProgressBar) -> Vec<Entry> {
        let mut entries = self.entries(workload, shape, 0);
        for _ in 0..self.rounds {
            for (contestant, entry) in &mut entries {
                bar.set_message(format!("{}: {}", entry.workload, entry.contestant));
                if entry.failures.len() < FAILURES_MAX {
                    record(entry, workload.churn(contestant, shape, &self.choice), bar);
                }
                bar.inc(1);
            }
        }
        entries.into_iter().map(|(_, entry)| entry).collect()
    }
}

fn record(entry: &mut Entry, sample: Result<Sample>, bar: &ProgressBar) {
    match sample.and_then(whole) {
        Ok(sample) => entry.add(sample),
        Err(error) => {
            let text = format!("{error:#}");
            let case = format!("{} {} {} B", entry.workload, entry.shape, entry.payload);
            bar.println(format!("{case}, {}: {text}", entry.contestant));
            entry.failures.push(text);
        }
    }
}

/// A sample of numbers: costs are infinite where nothing was done.
fn whole(sample: Sample) -> Result<Sample> {
    let is_whole = sample.iter().all(|(.., value)| value.is_finite());
    ensure!(is_whole, "nothing arrived in the measured time");
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Better;

    #[test]
    fn a_sample_of_nothing_is_a_failure() {
        let sample = |cost: f64| vec![("CPU ns/frame", Better::Less, cost)];
        assert!(whole(sample(0.0)).is_ok());
        assert!(whole(sample(1.0 / 0.0)).is_err() && whole(sample(f64::NAN)).is_err());
    }
}
