//! The demo's processes: one daemon and an agent for each VM, in a directory of their own.
//!
//! Owns the children and the directory, and ends both on every way out, also by ^C. Never leaves a wait unbounded. The
//! asymmetry to know: the daemon is asked whether it is ready, an agent is not, because its first caller is the one it
//! says READY to.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::admin::AdminClient;
use crate::client::{Client, Error};
use crate::wire::admin::Status;

/// Time a child has to become ready.
const READY_PATIENCE: Duration = Duration::from_secs(20);

/// Time a child has to stop before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at a child.
const POLL: Duration = Duration::from_millis(10);

/// Bytes of a child's log that are shown when something went wrong.
const LOG_TAIL: usize = 4096;

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Stage {
    children: Arc<Children>,
    vms: Vec<String>,
}

/// What has to be gone at the end.
#[derive(Debug)]
struct Children {
    dir: PathBuf,
    running: Mutex<Vec<(String, Child)>>,
    /// Somebody interrupted the demo, and the thread that saw it ends the process.
    interrupted: AtomicBool,
}

impl Stage {
    /// Starts the daemon and the agents and registers each agent as a VM: `vm-1`, `vm-2`, ….
    pub(super) fn open(vms: u16, shards: u16) -> anyhow::Result<Stage> {
        let children = Arc::new(Children {
            dir: private_directory()?,
            running: Mutex::default(),
            interrupted: AtomicBool::new(false),
        });
        watch_signals(Arc::clone(&children))?;
        let names = (1..=vms).map(|n| format!("vm-{n}")).collect();
        let stage = Stage { children, vms: names };
        if let Err(error) = stage.start(shards) {
            stage.yield_to_interrupt();
            eprint!("{}", stage.logs());
            return Err(error);
        }
        Ok(stage)
    }

    fn start(&self, shards: u16) -> anyhow::Result<()> {
        let (socket, admin) = (self.socket(), self.file("admin.sock"));
        let shards = shards.to_string();
        let flags: [&std::ffi::OsStr; 6] = [
            "--socket".as_ref(),
            socket.as_ref(),
            "--admin-socket".as_ref(),
            admin.as_ref(),
            "--shards".as_ref(),
            shards.as_ref(),
        ];
        self.children.spawn("daemon", Command::new(own_program()?).arg("serve").args(flags))?;
        for vm in &self.vms {
            let (ctl, io) = self.serials(vm);
            let mut agent = Command::new(own_program()?);
            self.children.spawn(vm, agent.arg("agent").arg("--ctl").arg(ctl).arg("--io").arg(io))?;
        }
        self.children.wait_ready("daemon", || Client::connect(self.socket()).map(drop))?;
        let admin = self.admin()?;
        self.children.wait_ready("daemon", || admin.healthz())?;
        for vm in &self.vms {
            let (ctl, io) = self.serials(vm);
            // The agent's sockets may be a moment away, which the daemon reports as a refusal.
            self.children.wait_ready(vm, || self.client()?.hello(vm, &ctl, &io))?;
        }
        Ok(())
    }

    /// The VMs' names.
    pub(super) fn vms(&self) -> &[String] {
        &self.vms
    }

    /// A new connection to the daemon.
    pub(super) fn client(&self) -> Result<Client, Error> {
        let mut client = Client::connect(self.socket())?;
        client.set_timeout(Some(READY_PATIENCE))?;
        Ok(client)
    }

    /// What the daemon tells about itself.
    pub(super) fn status(&self) -> anyhow::Result<Status> {
        Ok(self.admin()?.status()?)
    }

    fn admin(&self) -> Result<AdminClient, Error> {
        AdminClient::new(self.file("admin.sock"))
    }

    fn socket(&self) -> PathBuf {
        self.file("proxy.sock")
    }

    fn serials(&self, vm: &str) -> (PathBuf, PathBuf) {
        (self.file(&format!("{vm}.ctl")), self.file(&format!("{vm}.io")))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.children.dir.join(name)
    }

    /// Does not return once somebody interrupted the demo: what fails then fails because of that.
    pub(super) fn yield_to_interrupt(&self) {
        while self.children.interrupted.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// The ends of the logs of all children, for when something went wrong.
    pub(super) fn logs(&self) -> String {
        let mut out = String::new();
        for name in std::iter::once("daemon").chain(self.vms.iter().map(String::as_str)) {
            let log = std::fs::read(self.file(&format!("{name}.log"))).unwrap_or_default();
            let tail = &log[log.len().saturating_sub(LOG_TAIL)..];
            for line in String::from_utf8_lossy(tail).lines() {
                out.push_str(&format!("{name}: {line}\n"));
            }
        }
        out
    }

    /// Unregisters the VMs and stops everything.
    ///
    /// # Errors
    /// When the daemon refuses, or ends otherwise than it should.
    pub(super) fn close(&self) -> anyhow::Result<()> {
        let mut client = self.client()?;
        for vm in &self.vms {
            client.bye(vm).with_context(|| format!("cannot remove {vm}"))?;
        }
        match self.children.stop() {
            Some(status) if !status.success() => bail!("the daemon stopped with {status}"),
            _ => Ok(()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.children.end();
    }
}

impl Children {
    fn spawn(&self, name: &str, command: &mut Command) -> anyhow::Result<()> {
        let log = File::create(self.dir.join(format!("{name}.log"))).context("cannot make a log file")?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        for inherited in ["RINGWAY_SOCKET", "RINGWAY_ADMIN_SOCKET", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET"] {
            command.env_remove(inherited);
        }
        let child = command.spawn().with_context(|| format!("cannot start the {name} process"))?;
        self.lock().push((name.to_owned(), child));
        Ok(())
    }

    /// Tries until it works, the child is gone, or patience is.
    fn wait_ready(&self, name: &str, mut attempt: impl FnMut() -> Result<(), Error>) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let Err(error) = attempt() else { return Ok(()) };
            if let Some(status) = self.ended(name) {
                bail!("the {name} process ended with {status} before it was ready");
            }
            if begun.elapsed() > READY_PATIENCE {
                return Err(error).with_context(|| format!("{name} did not become ready"));
            }
            std::thread::sleep(POLL);
        }
    }

    fn ended(&self, name: &str) -> Option<ExitStatus> {
        let mut running = self.lock();
        let (_, child) = running.iter_mut().find(|(running, _)| running == name)?;
        child.try_wait().ok().flatten()
    }

    /// Asks all to stop, kills those that do not, and returns how the daemon ended.
    fn stop(&self) -> Option<ExitStatus> {
        let mut running = self.lock();
        for (_, child) in running.iter_mut() {
            // A child that was waited for has no process ID any more that would be safe to signal.
            if matches!(child.try_wait(), Ok(None)) {
                let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
            }
        }
        let begun = Instant::now();
        let mut daemon = None;
        for (name, mut child) in running.drain(..) {
            let status = loop {
                match child.try_wait() {
                    Ok(None) if begun.elapsed() < STOP_PATIENCE => std::thread::sleep(POLL),
                    Ok(None) => {
                        let _ = child.kill();
                        break child.wait().ok();
                    }
                    other => break other.ok().flatten(),
                }
            };
            if name == "daemon" {
                daemon = status;
            }
        }
        daemon
    }

    fn end(&self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, Child)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the children and the process when somebody interrupts it. Handlers rather than a blocked mask: children would
/// inherit the mask and never see a signal.
fn watch_signals(children: Arc<Children>) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hangup) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::spawn(move || {
        let number = runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => Signal::SIGINT,
                _ = terminate.recv() => Signal::SIGTERM,
                _ = hangup.recv() => Signal::SIGHUP,
            }
        });
        children.interrupted.store(true, Ordering::SeqCst);
        children.end();
        std::process::exit(128 + number as i32)
    });
    Ok(())
}

fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// A new directory only this user can enter, with room for socket names in its path.
fn private_directory() -> anyhow::Result<PathBuf> {
    let temporary = std::env::temp_dir();
    let above = if temporary.as_os_str().len() > 60 { Path::new("/tmp") } else { temporary.as_path() };
    let template = above.join("ringway-demo-XXXXXX");
    nix::unistd::mkdtemp(&template).with_context(|| format!("cannot make a directory in {}", above.display()))
}
