//! The guest end: an agent that speaks hyperstart on two serial ports and runs real processes.
//!
//! It never writes to the host's side of anything but those two ports, and never drops a byte of a process's input or
//! output while both ends live. The asymmetry to know: output is bounded by the processes' own pipes (what the host
//! does not read is not taken from them), input by a buffer per process, since all of it comes on one channel.
//!
//! - `command`, `conversation`, `stdin`, `output`, `accounts`: the rules, without I/O.
//! - `pod`: containers and processes and what they go by.
//! - `line`, `outlet`: connections of the host, and the way out through them.
//! - `control`, `stream`, `process`, `guest`: what moves.
//!
//! # Behaviour a host can rely on
//!
//! READY is sent when the control channel is first connected, once ([`Config::ready_per_connection`] for vsock's
//! way). Commands are done one at a time and answered in order with ACK or with ERROR and a text. A frame or message
//! that breaks the framing ends its connection and nothing else; the next connection goes on with the same processes.
//!
//! A process's output is over when its pipes are closed; if a descendant still holds them after the process ended,
//! what the process wrote and what comes within [`crate::limits::GUEST_OUTPUT_GRACE_MS`] is delivered. Then an empty
//! frame for stderr and one for stdio follow, and at last one byte of status on stdio: the exit status, 128 and the
//! signal that killed it, 127 for a program that was not found, 126 for one that could not be run.
//!
//! A process that does not read its stdin is owed up to [`crate::limits::GUEST_STDIN_BUFFER`] bytes; above that the
//! stream channel, and with it every process's stdin, waits until it reads or ends. Nothing is dropped.

mod accounts;
mod command;
mod control;
mod conversation;
pub mod fuzzing;
mod guest;
mod line;
mod outlet;
mod output;
mod pod;
mod process;
mod stdin;
mod stream;

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::limits::{
    CONTROL_MESSAGE_MAX, GUEST_API_VERSION, GUEST_FRAME_DEFAULT, GUEST_STDIN_BUFFER, GUEST_STDIN_TOTAL,
};
use crate::os::process as os_process;
use crate::wire::hyper::StreamSeq;

use self::line::Dock;
use self::outlet::{Notices, Outlet};
use self::pod::Pod;
use self::stdin::StdinTable;

/// How the end of a process is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ExitReport {
    /// One byte on the stdio sequence, after EOF (hyperstart 0.7 and the Go agent).
    #[default]
    Frame,
    /// A processasyncevent on the control channel (1.x); processes need an id.
    Event,
}

/// What an agent is started with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Control channel: a socket is made there, or the character device there is opened.
    pub ctl: PathBuf,
    /// Stream channel, likewise.
    pub io: PathBuf,
    /// What `version` answers.
    pub api_version: u32,
    /// Send READY on every connection of the control channel (vsock), not only on the first (serial).
    pub ready_per_connection: bool,
    /// How ends are reported.
    pub exit_report: ExitReport,
    /// Send NEXT for every header and payload read from the control channel, as the C agents do.
    pub send_next: bool,
    /// Longest control channel message taken, header included, in bytes.
    pub control_max: usize,
    /// Longest frame written, header included, in bytes.
    pub frame_max: u32,
    /// Run every container in this root directory, whatever its `rootfs` says.
    pub ignore_rootfs: bool,
    /// This process is nothing but the agent: it adopts and reaps orphans, whoever started them, and ends on SIGTERM.
    /// Without it only the agent's own processes are waited for, so that it can run in a thread of something else.
    pub whole_process: bool,
}

impl Config {
    /// The defaults, on these two ports, in a thread of something else.
    pub fn new(ctl: impl Into<PathBuf>, io: impl Into<PathBuf>) -> Config {
        Config {
            ctl: ctl.into(),
            io: io.into(),
            api_version: GUEST_API_VERSION,
            ready_per_connection: false,
            exit_report: ExitReport::Frame,
            send_next: false,
            control_max: CONTROL_MESSAGE_MAX,
            frame_max: GUEST_FRAME_DEFAULT,
            ignore_rootfs: false,
            whole_process: false,
        }
    }
}

/// A running agent; its tasks share it on one thread.
#[derive(Debug)]
struct Agent {
    config: Config,
    pod: RefCell<Pod>,
    stream: Outlet,
    notices: Notices,
    /// Some stdin was taken by its process.
    stdin_room: Notify,
    /// An unknown sequence waits for its answer.
    strays: Notify,
    /// A process was reaped or retired.
    finished: Notify,
    /// The answer to destroypod is out.
    stop: Notify,
    /// No new commands.
    stopping: Cell<bool>,
}

impl Agent {
    fn new(config: Config) -> Agent {
        Agent {
            pod: RefCell::new(Pod::new(StdinTable::new(GUEST_STDIN_BUFFER, GUEST_STDIN_TOTAL))),
            stream: Outlet::new(config.frame_max),
            notices: Notices::new(),
            stdin_room: Notify::new(),
            strays: Notify::new(),
            finished: Notify::new(),
            stop: Notify::new(),
            stopping: Cell::new(false),
            config,
        }
    }

    /// Collects every child that has ended.
    fn reap(&self) {
        if self.config.whole_process {
            while let Some((pid, ending)) = os_process::reap_any() {
                if !self.pod.borrow_mut().ended(pid, ending) {
                    tracing::debug!(pid, ?ending, "reaped an orphan");
                }
            }
        } else {
            let pids = self.pod.borrow().pids(None);
            for pid in pids {
                if let Some(ending) = os_process::reap(pid) {
                    self.pod.borrow_mut().ended(pid, ending);
                }
            }
        }
        self.finished.notify_waiters();
    }

    /// Kills what was left to this process by processes that have ended. Returns whether nothing was.
    fn kill_orphans(&self) -> bool {
        if !self.config.whole_process {
            return true;
        }
        let children = os_process::children();
        for &pid in &children {
            // One that is just gone needs no signal.
            let _ = os_process::signal(pid, nix::libc::SIGKILL);
        }
        children.is_empty()
    }

    fn next_stray(&self) -> Option<StreamSeq> {
        self.pod.borrow_mut().next_stray()
    }
}

/// Runs an agent until destroypod, or SIGTERM when it has the process to itself. No process of its is left then.
///
/// # Errors
/// A port that cannot be opened, or a kernel that lacks something; nothing that a host does.
pub fn run(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no event loop")?;
    tokio::task::LocalSet::new().block_on(&runtime, serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let children = signal(SignalKind::child()).context("cannot watch for ended processes")?;
    if config.whole_process && std::process::id() != 1 {
        os_process::adopt_orphans().context("cannot adopt orphans")?;
    }
    let open = |path: &PathBuf| Dock::open(path).with_context(|| format!("cannot serve on {}", path.display()));
    let (control, stream) = (Rc::new(open(&config.ctl)?), Rc::new(open(&config.io)?));
    tracing::info!(ctl = %config.ctl.display(), io = %config.io.display(), "agent started");
    let whole_process = config.whole_process;
    let agent = Rc::new(Agent::new(config));
    tokio::task::spawn_local(reap_children(Rc::clone(&agent), children));
    tokio::task::spawn_local(control::serve(Rc::clone(&agent), Rc::clone(&control)));
    tokio::task::spawn_local(stream::serve(Rc::clone(&agent), Rc::clone(&stream)));
    tokio::task::spawn_local(stream::answer_strays(Rc::clone(&agent)));
    tokio::select! {
        () = agent.stop.notified() => tracing::info!("the pod was destroyed"),
        name = termination(whole_process) => {
            tracing::info!("ending on {name}");
            control::end_everything(&agent).await;
        }
    }
    Ok(())
}

async fn reap_children(agent: Rc<Agent>, mut children: Signal) {
    loop {
        agent.reap();
        children.recv().await;
    }
}

/// Waits for a signal that asks the whole process to end; for ever when it is not ours to end.
async fn termination(whole_process: bool) -> &'static str {
    let watch = |kind| signal(kind).ok().filter(|_| whole_process);
    let (Some(mut terminate), Some(mut interrupt)) = (watch(SignalKind::terminate()), watch(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
