//! Which CPUs this process may use, putting a thread on one of them, and how much of it a thread used.

use std::io;
use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::{Pid, gettid};

/// What makes a thread's number into its CPU clock's: "of one thread", and "as the scheduler accounts it".
const THREAD_CLOCK: i32 = 0b110;

/// The CPUs the calling thread may run on, ascending.
///
/// # Errors
/// The kernel's.
pub fn allowed() -> io::Result<Vec<u32>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    let cpus = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
    Ok(cpus.filter_map(|cpu| u32::try_from(cpu).ok()).collect())
}

/// Puts the calling thread on one CPU.
///
/// # Errors
/// The kernel's: a CPU this process may not use.
pub fn pin(cpu: u32) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu as usize)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

/// The CPU clock of one thread of this process. Reading it takes nothing from that thread.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(ClockId);

impl ThreadClock {
    /// The calling thread's.
    pub fn of_this_thread() -> ThreadClock {
        // What pthread_getcpuclockid(3) answers: the number's complement, shifted, and the kind of clock.
        ThreadClock(ClockId::from_raw((!gettid().as_raw() << 3) | THREAD_CLOCK))
    }

    /// CPU time the thread has used, user and system; `None` when it has ended. Any thread may ask.
    pub fn used(self) -> Option<Duration> {
        self.0.now().ok().map(Duration::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_threads_clock_runs_while_it_works_and_ends_with_it() {
        let (made, is_made) = mpsc::channel();
        let (ending, may_end) = mpsc::channel::<()>();
        let worker = thread::spawn(move || {
            let clock = ThreadClock::of_this_thread();
            while clock.used().unwrap() < Duration::from_millis(20) {}
            made.send(clock).unwrap();
            may_end.recv().unwrap_err();
        });
        let clock = is_made.recv().unwrap();
        let used = clock.used().unwrap();
        assert!(used >= Duration::from_millis(20), "{used:?}");
        drop(ending);
        worker.join().unwrap();
    }

    #[test]
    fn a_thread_that_sleeps_uses_nothing_whatever_others_do() {
        let (made, is_made) = mpsc::channel();
        let (ending, may_end) = mpsc::channel::<()>();
        let sleeper = thread::spawn(move || {
            made.send(ThreadClock::of_this_thread()).unwrap();
            may_end.recv().unwrap_err();
        });
        let (theirs, ours) = (is_made.recv().unwrap(), ThreadClock::of_this_thread());
        let begin = ours.used().unwrap();
        while ours.used().unwrap() < begin + Duration::from_millis(50) {}
        assert!(theirs.used().unwrap() < Duration::from_millis(25), "{:?}", theirs.used());
        drop(ending);
        sleeper.join().unwrap();
    }
}
