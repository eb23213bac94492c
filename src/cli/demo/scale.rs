//! The scaled run: many sessions at once, each pushing random bytes through `cat`, every checksum compared.
//!
//! Owns a thread for each session and the progress bar. The numbers it prints are of this program and the agents
//! together on one host: an impression, no benchmark.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::stage::Stage;
use super::work::{Input, Outcome, Task};
use crate::cli::show;
use crate::wire::admin::Status;

/// Runs `sessions` sessions of `bytes` bytes each, spread over the stage's VMs.
pub(super) fn run(stage: &Stage, sessions: u16, bytes: u64) -> anyhow::Result<()> {
    let vms = stage.vms();
    let tasks: Vec<Task> = (0..sessions)
        .zip(vms.iter().cycle())
        .map(|(n, vm)| Task::new(vm, &["cat"], Input::Random { seed: u64::from(n) << 32, len: bytes }))
        .collect();
    let total = bytes.saturating_mul(u64::from(sessions));
    let (vms, sessions) = (show::many(vms.len() as u64, "VM"), show::many(u64::from(sessions), "session"));
    show::print(&format!("{vms}, {sessions}, {} through cat each\n", show::bytes(bytes)))?;
    let before = stage.status()?;
    let bar = progress_bar(total)?;
    let begun = Instant::now();
    let outcomes = run_all(stage, &tasks, &bar);
    let elapsed = begun.elapsed();
    bar.finish_and_clear();
    // While the sessions are still open, so that what they take is counted.
    let after = stage.status()?;
    for (task, outcome) in tasks.iter().zip(outcomes) {
        check(task, bytes, &outcome.with_context(|| format!("a session of {}", task.vm))?)?;
    }
    show::print(&summary(&before, &after, total, elapsed))?;
    Ok(())
}

fn run_all(stage: &Stage, tasks: &[Task], bar: &ProgressBar) -> Vec<anyhow::Result<Outcome>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            tasks.iter().map(|task| scope.spawn(|| task.prepare(stage)?.run(|bytes| bar.inc(bytes)))).collect();
        let panicked = |_| Err(anyhow::anyhow!("a session's thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
    })
}

/// Draws on standard error, and only where that is a terminal.
fn progress_bar(total: u64) -> anyhow::Result<ProgressBar> {
    let style =
        ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}")?;
    Ok(ProgressBar::new(total).with_style(style))
}

fn check(task: &Task, bytes: u64, outcome: &Outcome) -> anyhow::Result<()> {
    let (vm, seq) = (&task.vm, outcome.io_base);
    ensure!(outcome.sent.bytes == bytes, "session {seq} of {vm}: only {} bytes could be sent", outcome.sent.bytes);
    ensure!(outcome.sent == outcome.received, "session {seq} of {vm}: what came back is not what was sent");
    ensure!(outcome.stderr.is_empty(), "session {seq} of {vm}: cat complained");
    ensure!(outcome.status == 0, "session {seq} of {vm}: cat ended with status {}", outcome.status);
    Ok(())
}

fn summary(before: &Status, after: &Status, total: u64, elapsed: Duration) -> String {
    let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = total.saturating_mul(1000) / ms;
    let cpu_ms = after.cpu_us.saturating_sub(before.cpu_us) / 1000;
    let moved = total.saturating_mul(2);
    let per_gib = moved.checked_div(1 << 20).filter(|&mib| mib > 0).map_or(0, |mib| cpu_ms.saturating_mul(1024) / mib);
    format!(
        "{} each way in {}: {}/s each way, every checksum right\n\
         daemon: CPU time {cpu_ms} ms ({per_gib} ms for each GiB moved), memory {}, {} descriptors\n",
        show::bytes(total),
        show::span(ms),
        show::bytes(rate),
        show::bytes(after.memory_bytes),
        after.open_fds,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_both_ways_once_each() {
        let before = Status { cpu_us: 1_000_000, ..Status::default() };
        let after = Status { cpu_us: 1_512_000, memory_bytes: 20 << 20, open_fds: 30, ..Status::default() };
        let text = summary(&before, &after, 1 << 30, Duration::from_millis(2000));
        assert!(text.starts_with("1.0 GiB each way in 2.0 s: 512 MiB/s each way"), "{text}");
        assert!(text.contains("CPU time 512 ms (256 ms for each GiB moved), memory 20 MiB, 30 descriptors"), "{text}");
        assert!(summary(&before, &after, 0, Duration::ZERO).contains("0 B/s each way"));
    }
}
