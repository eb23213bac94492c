//! What a daemon or a floor used: CPU time, memory, descriptors, system calls, over a window of time.
//!
//! CPU time of a process is the sum of its threads' `schedstat`, in nanoseconds; what threads used that have ended
//! since is only in `stat`, whose clock ticks are coarse, so `stat` is taken where it is clearly the larger.
//! What the generator used in that time, this process without the floor under test, is told beside it.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

/// How far `stat` must be ahead of the threads' sum before it is believed: several clock ticks.
const TICKS_NOISE_NS: u64 = 50_000_000;
/// What `perf` calls the start of a system call.
const SYSCALLS: &str = "raw_syscalls:sys_enter";

/// Whose resources are measured.
#[derive(Debug, Clone)]
pub(crate) enum Subject {
    /// A daemon.
    Process(u32),
    /// A floor: a thread of this process, which counts its own system calls.
    Thread(i32, Arc<AtomicU64>),
}

/// What a subject, and the generator, have used since their start.
#[derive(Debug)]
struct Used {
    threads_ns: u64,
    process_ns: u64,
    syscalls: Option<u64>,
    generator: Generator,
}

/// What this process has used since its start, without the floor under test.
#[derive(Debug)]
struct Generator {
    /// With threads that have ended.
    total_ns: u64,
    /// Each thread, by its ID.
    threads: BTreeMap<String, u64>,
}

impl Generator {
    fn used(subject: &Subject) -> Result<Generator> {
        let mut threads = thread_times("/proc/self/task")?;
        let usage = getrusage(UsageWho::RUSAGE_SELF)?;
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        let mut total_ns = u64::try_from(micros).unwrap_or(0) * 1_000;
        if let Subject::Thread(tid, _) = subject {
            total_ns = total_ns.saturating_sub(threads.remove(&tid.to_string()).unwrap_or(0));
        }
        Ok(Generator { total_ns, threads })
    }

    /// What it used since `before`, and the most that one thread of it did.
    fn since(&self, before: &Generator) -> (u64, u64) {
        let grown = |(id, now): (&String, &u64)| now - before.threads.get(id).unwrap_or(&0).min(now);
        let busiest = self.threads.iter().map(grown).max().unwrap_or(0);
        (self.total_ns.saturating_sub(before.total_ns), busiest)
    }
}

impl Subject {
    fn used(&self) -> Result<Used> {
        let generator = Generator::used(self)?;
        match self {
            Subject::Process(pid) => {
                let threads_ns = thread_times(&format!("/proc/{pid}/task"))?.values().sum();
                Ok(Used { threads_ns, process_ns: stat_ns(*pid)?, syscalls: None, generator })
            }
            Subject::Thread(tid, syscalls) => {
                let threads_ns = schedstat(&format!("/proc/self/task/{tid}/schedstat"))?;
                let syscalls = Some(syscalls.load(Ordering::Relaxed));
                Ok(Used { threads_ns, process_ns: 0, syscalls, generator })
            }
        }
    }

    /// The largest resident memory since [`Subject::reset_peak`], bytes; `None` for a floor.
    pub(crate) fn peak_memory(&self) -> Option<u64> {
        self.status_kib("VmHWM:").map(|kib| kib * 1024)
    }

    /// Resident memory now, bytes; `None` for a floor.
    pub(crate) fn memory(&self) -> Option<u64> {
        self.status_kib("VmRSS:").map(|kib| kib * 1024)
    }

    /// Makes the peak what is resident now.
    pub(crate) fn reset_peak(&self) {
        if let Subject::Process(pid) = self {
            // Where the kernel does not offer it the peak is the process's whole life's.
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    /// Descriptors open; `None` for a floor. Descriptors registered with a ring alone are not among them.
    pub(crate) fn descriptors(&self) -> Option<u64> {
        let Subject::Process(pid) = self else { return None };
        Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
    }

    /// Descriptors registered with rings; `None` where the kernel does not list them, and for a daemon without a ring.
    pub(crate) fn registered(&self) -> Option<u64> {
        let Subject::Process(pid) = self else { return None };
        let mut rings = 0;
        let mut count = 0;
        for ring in fs::read_dir(format!("/proc/{pid}/fdinfo")).ok()?.flatten() {
            let text = fs::read_to_string(ring.path()).unwrap_or_default();
            // One line for each descriptor behind the one that says how many there could be.
            let Some((_, files)) = text.split_once("UserFiles:") else { continue };
            let is_file = |line: &&str| line.trim_start().split(':').next().is_some_and(|at| at.parse::<u32>().is_ok());
            count += files.lines().skip(1).take_while(is_file).count() as u64;
            rings += 1;
        }
        (rings > 0).then_some(count)
    }

    fn status_kib(&self, key: &str) -> Option<u64> {
        let Subject::Process(pid) = self else { return None };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// CPU time of each thread, nanoseconds.
fn thread_times(folder: &str) -> Result<BTreeMap<String, u64>> {
    let mut times = BTreeMap::new();
    for task in fs::read_dir(folder).with_context(|| format!("the daemon has gone: {folder}"))?.flatten() {
        // A thread that ends while we look is in `stat`.
        let time = schedstat(&task.path().join("schedstat").to_string_lossy()).unwrap_or(0);
        times.insert(task.file_name().to_string_lossy().into_owned(), time);
    }
    Ok(times)
}

fn schedstat(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("{path} cannot be read"))?;
    let first = text.split_whitespace().next().with_context(|| format!("{path} is empty"))?;
    Ok(first.parse()?)
}

fn stat_ns(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the daemon has gone")?;
    // The name is in parentheses and may hold spaces; utime and stime are fields 14 and 15 (proc_pid_stat(5)).
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok()).unwrap_or(100);
    Ok(ticks * 1_000_000_000 / per_second)
}

/// How long to look.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Load before the clock starts.
    pub(crate) warmup: Duration,
    /// The measured time.
    pub(crate) measured: Duration,
    /// Without any progress for this long a daemon has stalled.
    pub(crate) patience: Duration,
    /// Count a daemon's system calls, which slows it down.
    pub(crate) counting: bool,
}

impl Window {
    /// A quarter of it, to find out what a rate is.
    pub(crate) fn shorter(&self) -> Window {
        Window { warmup: self.warmup / 4, measured: self.measured / 4, ..*self }
    }

    /// A short one in which system calls are counted.
    pub(crate) fn counting(&self) -> Window {
        Window { counting: true, ..self.shorter() }
    }
}

/// Whether `perf stat` is there and may count system calls of other processes.
pub(crate) fn can_count() -> bool {
    let mut perf = Command::new("perf");
    perf.args(["stat", "-a", "-e", SYSCALLS, "--", "true"]).stdin(Stdio::null()).stdout(Stdio::null());
    perf.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// System calls per second of a process, over `time`.
fn syscalls_per_second(pid: u32, time: Duration) -> Option<f64> {
    let seconds = time.as_secs_f64();
    let (pid, sleep) = (pid.to_string(), seconds.to_string());
    let mut perf = Command::new("perf");
    perf.args(["stat", "-x", ",", "-e", SYSCALLS, "-p", &pid, "--", "sleep", &sleep]).stdin(Stdio::null());
    let said = perf.output().ok()?.stderr;
    let count: f64 = String::from_utf8_lossy(&said).split(',').next()?.trim().parse().ok()?;
    Some(count / seconds)
}

/// What main thread and load threads tell each other.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Units done: bytes of payload received, or round trips.
    pub(crate) done: AtomicU64,
    /// Bytes of payload sent.
    pub(crate) sent: AtomicU64,
    /// The measured time runs.
    pub(crate) measuring: AtomicBool,
    /// No new load; finish what was begun.
    pub(crate) stop: AtomicBool,
    /// Nothing more will be sent.
    pub(crate) sent_all: AtomicBool,
    /// Somebody failed.
    pub(crate) abort: AtomicBool,
}

impl Progress {
    pub(crate) fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Acquire)
    }

    pub(crate) fn set(flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
    }

    /// Runs a load thread's work; its failure ends the others.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().inspect_err(|_| Progress::set(&self.abort))
    }
}

/// Fails when there was no progress for too long.
#[derive(Debug)]
pub(crate) struct Stall {
    last: Instant,
    done: u64,
    patience: Duration,
}

impl Stall {
    pub(crate) fn new(patience: Duration) -> Stall {
        Stall { last: Instant::now(), done: 0, patience }
    }

    pub(crate) fn check(&mut self, done: u64) -> Result<()> {
        if done != self.done {
            (self.done, self.last) = (done, Instant::now());
        } else if self.last.elapsed() > self.patience {
            bail!("stalled: nothing arrived for {:?}", self.patience);
        }
        Ok(())
    }
}

/// What happened in a window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed {
    pub(crate) wall: Duration,
    pub(crate) cpu_ns: u64,
    pub(crate) units: u64,
    pub(crate) syscalls: Option<f64>,
    pub(crate) peak: Option<u64>,
    /// CPU time of the generator, and that of its busiest thread.
    pub(crate) generator_ns: u64,
    pub(crate) busiest_ns: u64,
}

/// Looks at a subject twice.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    subject: &'a Subject,
    before: Used,
    begin: Instant,
}

impl Meter<'_> {
    pub(crate) fn start(subject: &Subject) -> Result<Meter<'_>> {
        Ok(Meter { subject, before: subject.used()?, begin: Instant::now() })
    }

    /// What was used since; `units` says what was done in that time.
    pub(crate) fn stop(self, units: impl FnOnce() -> u64) -> Result<Observed> {
        let (after, units, wall) = (self.subject.used()?, units(), self.begin.elapsed());
        let before = self.before;
        let process_ns = after.process_ns.saturating_sub(before.process_ns);
        let threads_ns = after.threads_ns.saturating_sub(before.threads_ns);
        let cpu_ns = if process_ns > threads_ns + TICKS_NOISE_NS { process_ns } else { threads_ns };
        let syscalls = after.syscalls.zip(before.syscalls).map(|(after, before)| (after - before) as f64);
        let (generator_ns, busiest_ns) = after.generator.since(&before.generator);
        let peak = self.subject.peak_memory();
        Ok(Observed { wall, cpu_ns, units, syscalls, peak, generator_ns, busiest_ns })
    }
}

/// Waits through the warm-up, then through the measured time, and tells the load to stop.
pub(crate) fn observe(subject: &Subject, window: &Window, progress: &Progress) -> Result<Observed> {
    let sleep = |time: Duration| {
        let end = Instant::now() + time;
        while !Progress::is(&progress.abort) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(Duration::from_millis(100)));
        }
    };
    let look = || {
        sleep(window.warmup);
        subject.reset_peak();
        let (units, meter) = (progress.done.load(Ordering::Relaxed), Meter::start(subject)?);
        Progress::set(&progress.measuring);
        let rate = match subject {
            Subject::Process(pid) if window.counting => syscalls_per_second(*pid, window.measured),
            _ => {
                sleep(window.measured);
                None
            }
        };
        let observed = meter.stop(|| progress.done.load(Ordering::Relaxed) - units);
        progress.measuring.store(false, Ordering::Release);
        // `perf` takes a moment to begin and to end: its rate holds for all of the time.
        observed.map(|seen| Observed {
            syscalls: seen.syscalls.or(rate.map(|rate| rate * seen.wall.as_secs_f64())),
            ..seen
        })
    };
    let observed = look();
    Progress::set(&progress.stop);
    observed
}
