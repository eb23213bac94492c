//! The measuring harness: `cargo run --release --example perf -- run`. What it is for, how it measures and how to read
//! what it writes is in `perf/README.md`.
//!
//! It starts daemons, mock VMs and clients of its own on Unix sockets in temporary folders, and leaves nothing behind
//! but its report.

mod churn;
mod clients;
mod compare;
mod daemons;
mod echo;
mod floor;
mod load;
mod machine;
mod measure;
mod neighbour;
mod pattern;
mod plot;
mod report;
mod rig;
mod run;
mod targets;
mod verdict;
mod vms;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};

use daemons::Spec;
use measure::Window;
use report::{About, Described, Report, Role};
use rig::{Contestant, Shape};
use run::Run;
use workloads::{Choice, Workload};

/// VMs of the density workload, unless limits or flags say less.
const DENSITY_VMS: usize = 2_000;
/// Descriptors this process holds for each VM of the density workload, with its four sessions and to spare.
const DESCRIPTORS_PER_VM: usize = 9;
/// Descriptors it needs besides.
const DESCRIPTORS_SPARE: usize = 200;
/// Descriptors there is a place for from the start.
const DESCRIPTORS_RESERVED: usize = 32 * 1024;

/// Measures daemons that multiplex the I/O of VMs: CPU time, latency, memory, and whether every byte arrives
#[derive(Debug, Parser)]
#[command(name = "perf", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure, and write results as JSON, as tables and as plots
    Run(RunFlags),
    /// Print the ratios between two reports, B to A; fails when one is worse than the threshold, or in one report only
    Compare {
        /// What was
        a: PathBuf,
        /// What is now
        b: PathBuf,
        #[command(flatten)]
        flags: compare::Flags,
    },
    /// Write a report's tables and plots again, beside it
    Render { results: PathBuf },
    /// Hold reports against the targets; fails when one does not hold, or was not measured
    Verdict {
        #[arg(required = true)]
        results: Vec<PathBuf>,
        /// Judge this contestant only; may be given several times [default: all daemons of our own]
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Do not fail because of targets that were not measured
        #[arg(long)]
        allow_missing: bool,
    },
    /// List the workloads
    List,
}

/// Where generator and daemon run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Placement {
    /// All on one CPU: stable, and without wake-ups across CPUs
    S,
    /// Wherever the kernel puts them
    X,
}

#[derive(Debug, clap::Args)]
struct RunFlags {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    workloads: Vec<Workload>,
    /// A daemon to measure: [NAME=]ringway [FLAG…] for this build's own, or [NAME=]cmd:COMMAND where {socket} stands
    /// for the socket's path (without it the daemon is started by socket activation); with ,protocol=2 at the end its
    /// clients speak protocol 2. May be given several times [default: ringway]
    #[arg(long = "daemon", value_name = "SPEC")]
    daemons: Vec<Spec>,
    /// Leave the floors out
    #[arg(long)]
    no_floor: bool,
    /// One shape and one payload of each workload, short samples: shows that all works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Measured time of each sample [default: 1, with --quick 0.2]
    #[arg(long)]
    seconds: Option<f64>,
    /// Load before the measured time [default: a quarter of it]
    #[arg(long, value_name = "SECONDS")]
    warmup: Option<f64>,
    /// Samples of each case and contestant [default: 5, with --quick 1]
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Without any progress for this long a daemon has stalled
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    patience: f64,
    /// Where generator and daemon run
    #[arg(long, value_enum, ignore_case = true, default_value_t = Placement::X)]
    pin: Placement,
    /// Shapes, VMs x sessions of each, instead of each workload's own, such as 1x16,64x4
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    shapes: Option<Vec<Shape>>,
    /// Bytes of payload in a frame, instead of each workload's own, such as 64,4096
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    payloads: Option<Vec<usize>>,
    /// VMs of the density workload [default: 2000, with --quick 50]
    #[arg(long, value_name = "N")]
    vms: Option<usize>,
    /// Count daemons' system calls with `perf stat`, in a short sample of their own after each (needs privileges)
    #[arg(long)]
    syscalls: bool,
    /// Where to write [default: perf/results/DATE-COMMIT]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keep what daemons say in this folder; some say a line for each frame [default: it is thrown away]
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

fn main() -> ExitCode {
    perform(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("perf: {error:#}");
        ExitCode::FAILURE
    })
}

fn perform(task: Task) -> Result<ExitCode> {
    match task {
        Task::Run(flags) => run(flags),
        Task::Compare { a, b, flags } => Ok(status(compare::run(&a, &b, &flags)?)),
        Task::Render { results } => {
            let report = Report::read(&results)?;
            let folder = results.parent().context("a report is in a folder")?;
            report.write(folder)?;
            plot::write(&report, folder)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Verdict { results, only, allow_missing } => Ok(status(verdict::run(&results, &only, allow_missing)?)),
        Task::List => {
            for workload in Workload::value_variants() {
                println!("{:12} {}", workload.name(), workload.help());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn status(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(flags: RunFlags) -> Result<ExitCode> {
    let mut notes = Vec::new();
    let payload_is_right = |payload: &usize| (1..=128 * 1024).contains(payload);
    ensure!(flags.payloads.iter().flatten().all(payload_is_right), "a payload has 1 to 131072 bytes");
    let seconds = flags.seconds.unwrap_or(if flags.quick { 0.2 } else { 1.0 });
    let rounds = flags.rounds.unwrap_or(if flags.quick { 1 } else { 5 });
    ensure!(rounds > 0, "there must be at least one round");
    let duration = |seconds: f64| Duration::try_from_secs_f64(seconds).context("this is no time");
    let window = Window {
        warmup: duration(flags.warmup.unwrap_or(seconds / 4.0))?,
        measured: duration(seconds)?,
        patience: duration(flags.patience)?,
        counting: false,
    };
    rig::prepare_logs(flags.logs.as_deref())?;
    let contestants = contestants(flags.daemons, !flags.no_floor)?;
    let density = density(flags.vms.unwrap_or(if flags.quick { 50 } else { DENSITY_VMS }), &mut notes)?;
    if flags.pin == Placement::S {
        // Everything started from here on inherits it.
        let cpus = ringway::os::cpu::allowed()?;
        ringway::os::cpu::pin(*cpus.last().context("no CPU")?)?;
    }
    let all = || Workload::value_variants().to_vec();
    let workloads = if flags.workloads.is_empty() { all() } else { flags.workloads };
    let count = counts(flags.syscalls, &mut notes);
    let choice = Choice {
        count,
        shapes: flags.shapes,
        payloads: flags.payloads,
        quick: flags.quick,
        density,
        logs: flags.logs,
        window,
    };
    let about = about(&contestants, flags.pin, seconds, rounds, notes)?;
    let folder = flags.out.unwrap_or_else(|| PathBuf::from(format!("perf/results/{}-{}", about.date, about.commit)));
    let mut report = Report::new(about, Vec::new());
    let run = Run { workloads, contestants, choice, rounds };
    run.go(&mut report, &folder)?;
    plot::write(&report, &folder)?;
    print!("{}", report.markdown()?);
    println!("\nWritten to {}.", folder.display());
    let has_failed = report.results.iter().any(|entry| !entry.failures.is_empty());
    Ok(status(!has_failed))
}

/// The daemons, built where they are this build's own, and the floors.
fn contestants(specs: Vec<Spec>, floors: bool) -> Result<Vec<Contestant>> {
    let specs = if specs.is_empty() { vec!["ringway".parse()?] } else { specs };
    if specs.iter().any(Spec::is_own) {
        daemons::build_own()?;
    }
    let floors = [floor::Kind::Copy, floor::Kind::Epoll].into_iter().filter(|_| floors).map(Contestant::Floor);
    let contestants: Vec<_> = specs.into_iter().map(Contestant::Daemon).chain(floors).collect();
    for (at, contestant) in contestants.iter().enumerate() {
        let is_taken = contestants[..at].iter().any(|other| other.name() == contestant.name());
        ensure!(!is_taken, "two contestants are called {}; name one with NAME=", contestant.name());
    }
    Ok(contestants)
}

/// Whether system calls are counted.
fn counts(wanted: bool, notes: &mut Vec<String>) -> bool {
    let can = wanted && measure::can_count();
    if wanted && !can {
        let text = "syscalls: `perf stat` is not there or may not count; those of daemons are left out";
        eprintln!("{text}");
        notes.push(text.to_owned());
    }
    can
}

/// As many VMs as the limit on descriptors lets this process have.
fn density(wanted: usize, notes: &mut Vec<String>) -> Result<usize> {
    let limit = usize::try_from(ringway::os::rlimit::raise_descriptors()?).unwrap_or(usize::MAX);
    // The kernel's table of them must not grow in measured time, which takes it milliseconds.
    ringway::os::rlimit::reserve_descriptors(limit.min(DESCRIPTORS_RESERVED) as u64)?;
    let most = limit.saturating_sub(DESCRIPTORS_SPARE) / DESCRIPTORS_PER_VM;
    if wanted > most {
        let text = format!("density: {most} VMs instead of {wanted}; the limit on descriptors is {limit}");
        eprintln!("{text}");
        notes.push(text);
    }
    Ok(wanted.min(most).max(1))
}

fn about(contestants: &[Contestant], pin: Placement, seconds: f64, rounds: usize, notes: Vec<String>) -> Result<About> {
    let described = |contestant: &Contestant| Described {
        name: contestant.name().to_owned(),
        role: match contestant {
            Contestant::Daemon(spec) if spec.is_own() => Role::Own,
            Contestant::Daemon(_) => Role::Peer,
            Contestant::Floor(_) => Role::Floor,
        },
        command: match contestant {
            Contestant::Daemon(spec) => format!("`{}`, protocol {}", spec.shown(), spec.protocol),
            Contestant::Floor(floor::Kind::Copy) => "bytes copied and not looked at".to_owned(),
            Contestant::Floor(floor::Kind::Epoll) => "frames found, gathered and written, and nothing else".to_owned(),
        },
    };
    Ok(About {
        date: machine::today()?,
        commit: machine::commit(),
        kernel: machine::kernel(),
        processor: machine::processor(),
        cpus: machine::cpus(),
        pin: format!("{pin:?}"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned(),
        seconds,
        rounds,
        contestants: contestants.iter().map(described).collect(),
        notes,
    })
}
