//! Child processes: starting one in another root, identity and session, signalling it, collecting its status.
//!
//! Nothing here waits for a process to end. The one asymmetry to know: whoever calls [`reap_any`] also takes the
//! statuses of children that other code of the same process started, so only a program that owns its whole process
//! may; everyone else asks with [`reap`] for what it started.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, chroot, getpid, getppid, setgid, setgroups, setsid, setuid};

/// Bits of an error number that crosses from the child: the error itself, and above it where it happened.
const STAGE_SHIFT: u32 = 16;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User ID.
    pub uid: u32,
    /// Group ID.
    pub gid: u32,
    /// Supplementary group IDs.
    pub groups: Vec<u32>,
}

/// Everything that is needed to start one process.
#[derive(Debug)]
pub struct Launch {
    /// Program and arguments; the program is looked up in the new root, along the new `PATH`.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Directory that becomes the root; `None` keeps this one.
    pub root: Option<PathBuf>,
    /// Working directory, in the new root.
    pub workdir: PathBuf,
    /// `None` keeps this process's.
    pub identity: Option<Identity>,
    /// Whether standard input is a terminal that shall control the new session.
    pub terminal: bool,
    /// The child's standard input.
    pub stdin: OwnedFd,
    /// The child's standard output.
    pub stdout: OwnedFd,
    /// The child's standard error.
    pub stderr: OwnedFd,
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Stage {
    /// Making the process, or running the program.
    Exec = 0,
    /// A session of its own, and its terminal.
    Session = 1,
    /// The root directory.
    Root = 2,
    /// User and groups.
    Identity = 3,
    /// The working directory.
    Workdir = 4,
    /// The starter ended meanwhile.
    Parent = 5,
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", stage_text(*.stage))]
pub struct LaunchError {
    /// Where.
    pub stage: Stage,
    /// What the kernel said there.
    pub source: io::Error,
}

fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Exec => "cannot run",
        Stage::Session => "cannot make a session",
        Stage::Root => "cannot enter the root directory",
        Stage::Identity => "cannot become the user",
        Stage::Workdir => "cannot enter the working directory",
        Stage::Parent => "the agent ended",
    }
}

impl LaunchError {
    fn from_child(error: &io::Error) -> LaunchError {
        let raw = error.raw_os_error().unwrap_or(libc::EINVAL);
        let stage = match raw >> STAGE_SHIFT {
            1 => Stage::Session,
            2 => Stage::Root,
            3 => Stage::Identity,
            4 => Stage::Workdir,
            5 => Stage::Parent,
            _ => Stage::Exec,
        };
        let errno = raw & ((1 << STAGE_SHIFT) - 1);
        LaunchError { stage, source: io::Error::from_raw_os_error(errno) }
    }

    /// The exit status a shell gives for this: 127 when there is no such program, otherwise 126.
    pub fn status(&self) -> u8 {
        let missing = matches!(self.source.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR));
        if self.stage == Stage::Exec && missing { 127 } else { 126 }
    }
}

/// Marks an error with its stage, so that both fit in the number the child can send its parent.
fn at(stage: Stage) -> impl Fn(Errno) -> io::Error {
    move |errno| io::Error::from_raw_os_error(((stage as i32) << STAGE_SHIFT) | errno as i32)
}

/// What the child does between fork and exec, prepared so that it needs no memory and no lock there.
struct Entry {
    root: Option<CString>,
    workdir: CString,
    identity: Option<(Uid, Gid, Vec<Gid>)>,
    terminal: bool,
    parent: Pid,
}

impl Entry {
    fn new(launch: &Launch) -> io::Result<Entry> {
        let root = match &launch.root {
            Some(root) => Some(CString::new(root.as_os_str().as_bytes())?),
            None => None,
        };
        let identity = launch.identity.as_ref().map(|who| {
            let groups = who.groups.iter().copied().map(Gid::from_raw).collect();
            (Uid::from_raw(who.uid), Gid::from_raw(who.gid), groups)
        });
        let workdir = CString::new(launch.workdir.as_os_str().as_bytes())?;
        Ok(Entry { root, workdir, identity, terminal: launch.terminal, parent: getpid() })
    }

    /// Runs in the child; every call is one system call that signal-safety(7) allows.
    fn enter(&self) -> io::Result<()> {
        reset_signals();
        umask(Mode::from_bits_truncate(0o022));
        setsid().map_err(at(Stage::Session))?;
        if self.terminal {
            take_terminal().map_err(at(Stage::Session))?;
        }
        if let Some(root) = &self.root {
            chroot(root.as_c_str()).map_err(at(Stage::Root))?;
        }
        if let Some((uid, gid, groups)) = &self.identity {
            setgroups(groups).map_err(at(Stage::Identity))?;
            setgid(*gid).map_err(at(Stage::Identity))?;
            setuid(*uid).map_err(at(Stage::Identity))?;
        }
        // The root alone does not move the working directory into it, so this is never skipped.
        chdir(self.workdir.as_c_str()).map_err(at(Stage::Workdir))?;
        // After the identity: a change of credentials clears it.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(at(Stage::Parent))?;
        if getppid() != self.parent {
            return Err(at(Stage::Parent)(Errno::ESRCH));
        }
        close_others_on_exec();
        Ok(())
    }
}

/// Starts a process as a session leader that is killed when the calling thread ends. Returns its process ID.
///
/// Returns once the program runs or could not be run; between them the caller waits.
///
/// # Errors
/// Where and why it failed. No process is left in that case.
pub fn launch(launch: Launch) -> Result<i32, LaunchError> {
    let entry = Entry::new(&launch).map_err(|error| LaunchError::from_child(&error))?;
    let Some((program, args)) = launch.args.split_first() else {
        return Err(LaunchError { stage: Stage::Exec, source: io::Error::from_raw_os_error(libc::ENOENT) });
    };
    let mut command = Command::new(program);
    command.args(args).env_clear().envs(launch.env);
    command.stdin(Stdio::from(launch.stdin)).stdout(Stdio::from(launch.stdout)).stderr(Stdio::from(launch.stderr));
    // SAFETY: between fork and exec only async-signal-safe calls are allowed, since other threads' locks may be held
    // for ever in the copy. `Entry::enter` makes plain system calls on memory that `Entry` owns and allocates nothing;
    // the closure owns the entry, so it lives as long as `command`.
    unsafe { command.pre_exec(move || entry.enter()) };
    let child = command.spawn().map_err(|error| LaunchError::from_child(&error))?;
    // Process IDs are positive and fit: the kernel's own type for them is an int.
    Ok(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Gives every signal its default action: what the agent's own starter ignored (nohup, a background job) is not
/// the new process's business, and a terminal's ^C must reach it.
fn reset_signals() {
    for number in 1..=64 {
        // SAFETY: signal(2) touches no memory of ours, and the default action runs no code of ours. The numbers it
        // does not take (SIGKILL, SIGSTOP, the C library's own) are refused without effect.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Makes the terminal on descriptor 0 the controlling one of the session this process leads.
fn take_terminal() -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer, no pointer; descriptor 0 is the child's own standard input.
    let result = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
    Errno::result(result).map(drop)
}

/// Descriptors this process inherited from its own starter do not reach the new program. Kernels without
/// close_range(2) leave them: every descriptor of ours is close-on-exec by itself.
fn close_others_on_exec() {
    // SAFETY: close_range(2) with this flag closes nothing now and touches no memory; it marks descriptors of this
    // child, which is about to exec.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Exited(u8),
    /// This signal killed it.
    Killed(u8),
}

impl Ending {
    /// The status as a shell shows it: a signal's is 128 more than its number.
    pub fn status(self) -> u8 {
        match self {
            Ending::Exited(status) => status,
            Ending::Killed(signal) => 128_u8.saturating_add(signal),
        }
    }

    fn from_wait(status: libc::c_int) -> Option<Ending> {
        let byte = |n: libc::c_int| u8::try_from(n & 0xff).unwrap_or(u8::MAX);
        if libc::WIFEXITED(status) {
            Some(Ending::Exited(byte(libc::WEXITSTATUS(status))))
        } else if libc::WIFSIGNALED(status) {
            Some(Ending::Killed(byte(libc::WTERMSIG(status))))
        } else {
            None
        }
    }
}

/// Collects one child that has ended, whoever started it; `None` while none has, or there is none.
pub fn reap_any() -> Option<(i32, Ending)> {
    wait_now(-1)
}

/// Collects this child if it has ended.
pub fn reap(pid: i32) -> Option<Ending> {
    wait_now(pid).map(|(_, ending)| ending)
}

fn wait_now(pid: i32) -> Option<(i32, Ending)> {
    let mut status = 0;
    // SAFETY: `status` is ours and outlives the call. Not nix's waitpid: it fails on a real-time signal after the
    // child is already gone.
    let found = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    (found > 0).then_some(found).zip(Ending::from_wait(status))
}

/// Sends a signal to one process.
///
/// # Errors
/// The kernel's: ESRCH, EPERM, or EINVAL for a number that is none.
pub fn signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: kill(2) touches no memory.
    let result = unsafe { libc::kill(pid, number) };
    Ok(Errno::result(result).map(drop)?)
}

/// Sends a signal to every process of the group this process leads.
///
/// # Errors
/// As [`signal`].
pub fn signal_group(leader: i32, number: i32) -> io::Result<()> {
    signal(-leader, number)
}

/// Makes this process the one that orphaned descendants are given to (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// The kernel's.
pub fn adopt_orphans() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Children of this process right now; empty where the kernel does not list them.
pub fn children() -> Vec<i32> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into()
    }

    fn plain(args: &[&str], workdir: &str) -> Launch {
        Launch {
            args: args.iter().map(ToString::to_string).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            root: None,
            workdir: workdir.into(),
            identity: None,
            terminal: false,
            stdin: null(),
            stdout: null(),
            stderr: null(),
        }
    }

    fn wait_for(pid: i32) -> Ending {
        loop {
            if let Some(ending) = reap(pid) {
                return ending;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn a_process_ends_with_its_status() {
        let pid = launch(plain(&["sh", "-c", "exit 7"], "/")).unwrap();
        assert_eq!(wait_for(pid), Ending::Exited(7));
    }

    #[test]
    fn real_time_signals_are_statuses_too() {
        let pid = launch(plain(&["sleep", "1000"], "/")).unwrap();
        signal(pid, 40).unwrap();
        let ending = wait_for(pid);
        assert_eq!((ending, ending.status()), (Ending::Killed(40), 168));
    }

    #[test]
    fn failures_name_their_stage_and_the_shells_status() {
        let missing = launch(plain(&["no-such-program"], "/")).unwrap_err();
        assert_eq!((missing.stage, missing.status()), (Stage::Exec, 127));
        let directory = launch(plain(&["/"], "/")).unwrap_err();
        assert_eq!((directory.stage, directory.status()), (Stage::Exec, 126));
        let workdir = launch(plain(&["true"], "/no/such/directory")).unwrap_err();
        assert_eq!((workdir.stage, workdir.status()), (Stage::Workdir, 126));
        assert!(workdir.to_string().contains("working directory"), "{workdir}");
    }

    #[test]
    fn an_empty_command_is_refused() {
        assert_eq!(launch(plain(&[], "/")).unwrap_err().status(), 127);
    }
}
