//! Daemons and agents as child processes in directories of their own, killed when dropped, and what they logged.
//!
//! The asymmetry to know: every wait is bounded by [`PATIENCE`], which only turns a hang into a failure and is never
//! part of what is tested.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringway::client::admin::AdminClient;
use ringway::wire::admin::{SessionStatus, Status, VmStatus};

use super::client::Client;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const BINARY: &str = env!("CARGO_BIN_EXE_ringway");

/// Asks until there is an answer.
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a process to end by itself.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    until("the end of a process", || child.try_wait().unwrap())
}

/// A `ringway` command with nothing of this process's own settings in its environment.
pub(crate) fn ringway(args: &[&str]) -> Command {
    bare(Command::new(BINARY), args)
}

/// The same, started by a shell after `script`; standard input is the shell's to use.
pub(crate) fn ringway_after(script: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{script} exec \"$0\" \"$@\""), BINARY]);
    bare(command, args)
}

fn bare(mut command: Command, args: &[&str]) -> Command {
    for name in ["RINGWAY_SOCKET", "RINGWAY_ADMIN_SOCKET", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID"] {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null());
    command
}

/// A daemon in a process of its own.
pub(crate) struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    /// Starts one with these flags, with two shards unless they say how many, which float, and waits until it
    /// answers.
    pub(crate) fn start(flags: &[&str]) -> Daemon {
        let shards: &[&str] = if flags.contains(&"--shards") { &[] } else { &["--shards", "2"] };
        Daemon::start_with(|_| ringway(&[&["serve", "--no-pin"], shards, flags].concat()))
    }

    /// Starts what `command` makes for a directory, and waits until it answers.
    pub(crate) fn start_with(command: impl FnOnce(&Path) -> Command) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let mut command = command(dir.path());
        command.env("RINGWAY_SOCKET", dir.path().join("proxy.sock"));
        let mut daemon = Daemon::spawn(command, dir);
        until("a daemon that answers", || {
            assert_eq!(daemon.child.try_wait().unwrap(), None, "it ended:\n{}", daemon.log());
            daemon.admin().status().ok()
        });
        daemon
    }

    fn spawn(mut command: Command, dir: tempfile::TempDir) -> Daemon {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (errors, shared) = (child.stderr.take().unwrap(), Arc::clone(&log));
        thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                *shared.lock().unwrap() += &(line + "\n");
            }
        });
        Daemon { child, dir, log }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("proxy.sock")
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket())
    }

    pub(crate) fn admin(&self) -> AdminClient {
        AdminClient::new(self.path("admin.sock")).unwrap()
    }

    pub(crate) fn status(&self) -> Status {
        self.admin().status().unwrap()
    }

    pub(crate) fn vm(&self, id: &str) -> Option<VmStatus> {
        self.status().vms.into_iter().find(|vm| vm.id == id)
    }

    pub(crate) fn session(&self, base: u64) -> Option<SessionStatus> {
        self.status().vms.into_iter().flat_map(|vm| vm.sessions).find(|session| session.io_base == base)
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for one log line that has all these parts.
    pub(crate) fn logged(&self, parts: &[&str]) -> String {
        let is_it = |line: &&str| parts.iter().all(|part| line.contains(part));
        until(&format!("a log line with {parts:?}"), || self.log().lines().find(is_it).map(str::to_owned))
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// Tells it to stop and waits; it must end well.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait();
        assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", self.log());
    }

    /// A `ringway` command that talks to this daemon.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = ringway(args);
        command.env("RINGWAY_SOCKET", self.socket());
        command
    }

    /// Registers a VM whose agent is a process of its own.
    pub(crate) fn agent(&self, id: &str, flags: &[&str]) -> Agent {
        let agent = Agent::start(self.dir.path(), id, flags);
        until("an agent that answers", || {
            let added = self.client().hello(id, &agent.ctl, &agent.io);
            match added {
                Ok(_) => Some(()),
                Err(error) if error.contains("cannot connect") || error.contains("ENOENT") => None,
                Err(error) => panic!("{error}"),
            }
        });
        agent
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the daemon's log ends:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// `ringway agent` in a process of its own.
pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) ctl: PathBuf,
    pub(crate) io: PathBuf,
}

impl Agent {
    pub(crate) fn start(dir: &Path, id: &str, flags: &[&str]) -> Agent {
        let (ctl, io) = (dir.join(format!("{id}.ctl")), dir.join(format!("{id}.io")));
        let mut command = ringway(&["agent", "--ctl", ctl.to_str().unwrap(), "--io", io.to_str().unwrap()]);
        let child = command.args(flags).stderr(Stdio::null()).spawn().unwrap();
        Agent { child, ctl, io }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // TERM first: it ends the processes it started. An agent that was killed by the test has ended already.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(10) && matches!(self.child.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
