//! The story: a few commands in two VMs, what each said, and how the daemon routed it.
//!
//! Every line of output is expected beforehand; the story fails at the first that is not so. Shows nothing that differs
//! from run to run, except memory and CPU time in the last lines.

use std::collections::HashMap;
use std::fmt::Write;

use anyhow::ensure;

use super::stage::Stage;
use super::work::{Input, Outcome, Task};
use crate::cli::show::{self, Align, Table};
use crate::cli::status::sequences;
use crate::wire::admin::Status;

/// Bytes through `cat` in each VM.
const BULK: u64 = 4 * 1024 * 1024;

/// A command, how the story calls it, and what must come of it.
struct Scene {
    task: Task,
    shown: &'static str,
    stdout: &'static str,
    stderr: &'static str,
    status: u8,
}

fn scenes(first: &str, second: &str) -> Vec<Scene> {
    let scene = |vm: &str, script: &'static str, input, stdout, stderr, status| Scene {
        task: Task::new(vm, &["sh", "-c", script], Input::Text(input)),
        shown: script,
        stdout,
        stderr,
        status,
    };
    vec![
        scene(first, "echo hello from a guest", "", "hello from a guest\n", "", 0),
        scene(second, "sort | head -n 2", "pear\napple\nmango\n", "apple\nmango\n", "", 0),
        scene(first, "echo a result; echo a complaint >&2", "", "a result\n", "a complaint\n", 0),
        scene(second, "exit 3", "", "", "", 3),
    ]
}

/// Tells it.
pub(super) fn run(stage: &Stage) -> anyhow::Result<()> {
    let [first, second] = stage.vms() else { anyhow::bail!("the story needs two VMs") };
    // What was refused while the agents' sockets were a moment away is no part of the story.
    let refused_before = stage.status()?.counters.requests_failed;
    show::print(&format!("One daemon, two VMs ({first}, {second}), each command a session of its own:\n\n"))?;
    let mut played = Vec::new();
    for scene in scenes(first, second) {
        let outcome = scene.task.prepare(stage)?.run(|_| ())?;
        show::print(&transcript(&scene, &outcome))?;
        check(&scene, &outcome)?;
        played.push((scene.shown, outcome));
    }
    played.extend(bulk(stage, [first, second])?);
    let status = stage.status()?;
    show::print(&format!("\nHow the daemon routed it:\n\n{}", routes(&status, &played)))?;
    ensure_routed(&status, &played)?;
    drop(played);
    show::print(&summary(&status, refused_before))?;
    Ok(())
}

/// What was typed, and what came back where.
fn transcript(scene: &Scene, outcome: &Outcome) -> String {
    let mut out = String::new();
    let mut lines = |label: &str, text: &str| {
        for line in text.lines() {
            let _ = writeln!(out, "         {label:<7} {}", show::plain(line));
        }
    };
    lines(
        "stdin",
        match scene.task.input {
            Input::Text(text) => text,
            Input::Random { .. } => "",
        },
    );
    lines("stdout", &String::from_utf8_lossy(&outcome.stdout));
    lines("stderr", &String::from_utf8_lossy(&outcome.stderr));
    lines("status", &outcome.status.to_string());
    format!("  {:<5} $ {}\n{out}", scene.task.vm, scene.shown)
}

fn check(scene: &Scene, outcome: &Outcome) -> anyhow::Result<()> {
    let shown = scene.shown;
    ensure!(outcome.stdout == scene.stdout.as_bytes(), "'{shown}' should have said {:?}", scene.stdout);
    ensure!(outcome.stderr == scene.stderr.as_bytes(), "'{shown}' should have complained {:?}", scene.stderr);
    ensure!(outcome.status == scene.status, "'{shown}' should have ended with status {}", scene.status);
    Ok(())
}

/// A few MiB through `cat` in both VMs at once.
fn bulk(stage: &Stage, vms: [&String; 2]) -> anyhow::Result<Vec<(&'static str, Outcome)>> {
    let tasks = [(vms[0], 1), (vms[1], 2)].map(|(vm, seed)| Task::new(vm, &["cat"], Input::Random { seed, len: BULK }));
    // Sessions are made one after the other, so that their sequences are the same each time.
    let [one, two] = tasks.each_ref().map(|task| task.prepare(stage));
    let prepared = [one?, two?];
    let outcomes = std::thread::scope(|scope| {
        let threads = prepared.map(|prepared| scope.spawn(|| prepared.run(|_| ())));
        threads.map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a session's thread panicked"))))
    });
    let mut played = Vec::new();
    for (task, outcome) in tasks.iter().zip(outcomes) {
        let outcome = outcome?;
        let (sent, received) = (&outcome.sent, &outcome.received);
        let mut text =
            format!("  {:<5} $ cat   ({} of random bytes, in both VMs at once)\n", task.vm, show::bytes(BULK));
        let _ = writeln!(text, "         sent     sha256 {}", sent.sha256);
        let _ = writeln!(text, "         received sha256 {}", received.sha256);
        show::print(&text)?;
        ensure!(sent.bytes == BULK && sent == received, "{}: what came back is not what was sent", task.vm);
        ensure!(outcome.status == 0, "{}: cat ended with status {}", task.vm, outcome.status);
        played.push(("cat", outcome));
    }
    Ok(played)
}

/// Sequences, the VM and the shard that serves it, for each session still open. The amounts are payload as we saw it:
/// the daemon counts headers and empty frames too, whose number depends on who was faster.
fn routes(status: &Status, played: &[(&'static str, Outcome)]) -> String {
    let ours: HashMap<u64, _> = played.iter().map(|(name, outcome)| (outcome.io_base.0, (*name, outcome))).collect();
    let mut table = Table::new(&[
        ("SEQUENCES", Align::Left),
        ("VM", Align::Left),
        ("SHARD", Align::Left),
        ("STDIN", Align::Right),
        ("STDOUT", Align::Right),
        ("COMMAND", Align::Left),
    ]);
    let mut rows: Vec<_> = status.vms.iter().flat_map(|vm| vm.sessions.iter().map(move |s| (s, vm))).collect();
    rows.sort_by_key(|(session, _)| session.io_base);
    for (session, vm) in rows {
        let (name, sent, received) = match ours.get(&session.io_base) {
            Some((name, outcome)) => (*name, show::bytes(outcome.sent.bytes), show::bytes(outcome.received.bytes)),
            None => ("not ours", String::new(), String::new()),
        };
        let (vm, shard) = (show::plain(&vm.id), vm.shard.to_string());
        table.row([sequences(session), vm, shard, sent, received, name.to_owned()]);
    }
    table.render("  ")
}

/// The daemon's own account must agree with ours.
fn ensure_routed(status: &Status, played: &[(&'static str, Outcome)]) -> anyhow::Result<()> {
    for (name, outcome) in played {
        let session = status.vms.iter().flat_map(|vm| &vm.sessions).find(|s| s.io_base == outcome.io_base.0);
        let Some(session) = session else { anyhow::bail!("the daemon does not list the session of '{name}'") };
        let counted = session.to_client.bytes;
        ensure!(counted > outcome.received.bytes, "the daemon counts {counted} bytes for '{name}', too few");
    }
    let stale: u64 = status.shards.iter().map(|shard| shard.stale_completions).sum();
    ensure!(stale == 0, "the daemon counts {stale} stale completions");
    Ok(())
}

fn summary(status: &Status, refused_before: u64) -> String {
    let counters = &status.counters;
    let mut frames = crate::wire::admin::Flow::default();
    for shard in &status.shards {
        frames += shard.to_client;
        frames += shard.to_agent;
    }
    format!(
        "\n{} VMs, {} sessions, {} moved in frames, {} requests refused, {} peers at fault.\n\
         The daemon used {} of memory and {} ms of CPU time. All as it should be.\n",
        counters.vms_added,
        counters.sessions_opened,
        show::bytes(frames.bytes),
        counters.requests_failed.saturating_sub(refused_before),
        counters.clients_faulty + status.shards.iter().map(|shard| shard.faulty_peers).sum::<u64>(),
        show::bytes(status.memory_bytes),
        status.cpu_us / 1000,
    )
}
