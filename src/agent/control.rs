//! The control channel: serves one connection after the other and does what commands say.
//!
//! No payload passes here. The asymmetry to know: commands are done one at a time and answered in order, but what
//! they started goes on after the connection they came on.

use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::libc::{SIGCONT, SIGHUP, SIGKILL, SIGTERM};
use nix::unistd::geteuid;
use tokio::time::{Instant, timeout_at};

use crate::limits::{GUEST_FLUSH_MS, GUEST_TERM_GRACE_MS};
use crate::os::process as os_process;
use crate::os::terminal;
use crate::wire::hyper::{Code, Message, NewContainer};

use super::command::{Command, Refusal, StartPod, Target, refuse};
use super::conversation::{Conversation, Step, answer};
use super::line::{Dock, Line};
use super::{Agent, guest, process};

/// Bytes read from the control channel at a time.
const READ_LEN: usize = 16 * 1024;

/// Serves the host's connections, for ever.
pub(super) async fn serve(agent: Rc<Agent>, dock: Rc<Dock>) {
    let mut ready_said = false;
    loop {
        let line = dock.next_line().await;
        tracing::debug!("the host connected to the control channel");
        if agent.config.ready_per_connection || !ready_said {
            ready_said |= agent.notices.say(&line, &Message::new(Code::Ready, "")).await.is_ok();
        }
        agent.notices.set_line(Some(Rc::clone(&line)));
        match converse(&agent, &line).await {
            Ok(()) => tracing::debug!("the host left the control channel"),
            Err(error) => tracing::warn!("control channel connection dropped: {error:#}"),
        }
        line.hang_up();
        agent.notices.set_line(None);
    }
}

/// One connection, until its end.
async fn converse(agent: &Rc<Agent>, line: &Line) -> anyhow::Result<()> {
    let mut talk = Conversation::new(agent.config.control_max, agent.config.send_next);
    let mut buf = vec![0; READ_LEN];
    loop {
        while let Some(step) = talk.next_step()? {
            let last = matches!(step, Step::Run(Command::DestroyPod));
            let message = match step {
                Step::Say(message) => message,
                Step::Run(command) => answer(execute(agent, command).await),
            };
            let said = agent.notices.say(line, &message).await;
            if last {
                agent.stop.notify_one();
            }
            said?;
        }
        let count = line.read(&mut buf).await?;
        if count == 0 {
            anyhow::ensure!(!talk.is_mid_message(), "it ended in the middle of a message");
            return Ok(());
        }
        talk.push(&buf[..count]);
    }
}

/// Does one command; what it returns is the ACK's data or the ERROR's text.
async fn execute(agent: &Rc<Agent>, command: Command) -> Result<Vec<u8>, Refusal> {
    if agent.stopping.get() {
        return refuse("this agent is stopping");
    }
    let nothing = Vec::new();
    match command {
        Command::Version => Ok(agent.config.api_version.to_be_bytes().to_vec()),
        Command::Ping => Ok(nothing),
        Command::StartPod(pod) => start_pod(agent, pod).map(|()| nothing),
        Command::DestroyPod => {
            end_everything(agent).await;
            Ok(nothing)
        }
        Command::Exec(exec) => {
            let root = agent.pod.borrow().root_of(&exec.container)?;
            process::start(agent, &exec.container, &root, exec.process).map(|_| nothing)
        }
        Command::NewContainer(new) => new_container(agent, *new).map(|()| nothing),
        Command::KillContainer(kill) => kill_container(agent, &kill.container, kill.signal).map(|()| nothing),
        Command::RemoveContainer(remove) => remove_container(agent, &remove.container).map(|()| nothing),
        Command::SignalProcess { target, signal } => signal_process(agent, &target, signal).map(|()| nothing),
        Command::WinSize { target, rows, columns } => set_size(agent, &target, rows, columns).map(|()| nothing),
        Command::WriteFile { file, data } => {
            let root = agent.pod.borrow().root_of(&file.container)?;
            guest::write_file(&root, &file.file, &data).map(|()| nothing)
        }
        Command::ReadFile(file) => {
            let root = agent.pod.borrow().root_of(&file.container)?;
            guest::read_file(&root, &file.file)
        }
        Command::OnlineCpuMem => {
            let count = guest::bring_online(Path::new("/sys/devices/system"))?;
            tracing::info!(count, "processors and memory blocks brought on line");
            Ok(nothing)
        }
    }
}

fn start_pod(agent: &Rc<Agent>, pod: StartPod) -> Result<(), Refusal> {
    if agent.pod.borrow().started {
        return refuse("the pod is started already");
    }
    guest::set_hostname(&pod.hostname);
    agent.pod.borrow_mut().share_dir = pod.share_dir;
    for container in pod.containers {
        new_container(agent, container)?;
    }
    agent.pod.borrow_mut().started = true;
    Ok(())
}

fn new_container(agent: &Rc<Agent>, new: NewContainer) -> Result<(), Refusal> {
    if agent.pod.borrow().has_container(&new.id) {
        return refuse(format!("container '{}' exists already", new.id));
    }
    if !matches!(new.restart_policy.as_str(), "" | "never") {
        tracing::warn!(container = new.id, policy = new.restart_policy, "restart policy ignored: nothing is restarted");
    }
    let mut root = if agent.config.ignore_rootfs {
        "/".into()
    } else {
        guest::container_root(&agent.pod.borrow().share_dir, &new.id, &new.rootfs)?
    };
    if root != Path::new("/") && !geteuid().is_root() {
        tracing::warn!(container = new.id, "no privilege to change the root directory: the container gets this one");
        root = "/".into();
    }
    agent.pod.borrow_mut().add_container(&new.id, root.clone());
    match process::start(agent, &new.id, &root, new.process) {
        Ok(key) => {
            agent.pod.borrow_mut().set_first(&new.id, key);
            Ok(())
        }
        Err(refusal) => {
            agent.pod.borrow_mut().remove_container(&new.id);
            Err(refusal)
        }
    }
}

/// KILL ends all of a container, as the end of a PID namespace's first process would; others are for the first.
fn kill_container(agent: &Agent, container: &str, signal: i32) -> Result<(), Refusal> {
    let pod = agent.pod.borrow();
    if !pod.has_container(container) {
        return refuse(format!("no container '{container}'"));
    }
    if signal == SIGKILL {
        signal_groups(&pod.pids(Some(container)), SIGKILL);
        return Ok(());
    }
    match pod.first_pid(container) {
        Some(pid) => send(pid, signal),
        None => refuse(format!("the first process of container '{container}' has ended")),
    }
}

fn signal_process(agent: &Agent, target: &Target, signal: i32) -> Result<(), Refusal> {
    match agent.pod.borrow().find(target)?.pid {
        Some(pid) => send(pid, signal),
        None => refuse("the process has ended"),
    }
}

fn send(pid: i32, signal: i32) -> Result<(), Refusal> {
    os_process::signal(pid, signal).map_err(|error| Refusal(format!("cannot send signal {signal}: {error}")))
}

/// Each process leads a group of its own. One that is just gone needs no signal.
fn signal_groups(leaders: &[i32], signal: i32) {
    for &pid in leaders {
        let _ = os_process::signal_group(pid, signal);
    }
}

fn remove_container(agent: &Agent, container: &str) -> Result<(), Refusal> {
    let mut pod = agent.pod.borrow_mut();
    if !pod.has_container(container) {
        return refuse(format!("no container '{container}'"));
    }
    if pod.first_pid(container).is_some() {
        return refuse(format!("container '{container}' is running: kill it first"));
    }
    signal_groups(&pod.pids(Some(container)), SIGKILL);
    pod.remove_container(container);
    Ok(())
}

fn set_size(agent: &Agent, target: &Target, rows: u16, columns: u16) -> Result<(), Refusal> {
    let pod = agent.pod.borrow();
    let Some(master) = &pod.find(target)?.terminal else { return refuse("the process has no terminal") };
    terminal::set_size(master.as_fd(), rows, columns)
        .map_err(|error| Refusal(format!("cannot set the terminal's size: {error}")))
}

/// Ends every process: TERM (on terminals HUP too, which interactive shells heed), a moment, KILL; then gives the
/// host a moment to take the last output and statuses.
pub(super) async fn end_everything(agent: &Agent) {
    agent.stopping.set(true);
    let leaders = agent.pod.borrow().pids(None);
    signal_groups(&leaders, SIGTERM);
    signal_groups(&agent.pod.borrow().terminal_pids(), SIGHUP);
    signal_groups(&leaders, SIGCONT);
    let grace = Instant::now() + Duration::from_millis(GUEST_TERM_GRACE_MS);
    wait_until(agent, grace, |agent| agent.pod.borrow().pids(None).is_empty()).await;
    signal_groups(&leaders, SIGKILL);
    let flushed = Instant::now() + Duration::from_millis(GUEST_FLUSH_MS);
    // Each one that is killed may leave children of its own behind, which become ours.
    wait_until(agent, flushed, |agent| {
        let pod = agent.pod.borrow();
        let delivered = pod.unfinished() == 0 || !(agent.stream.has_line() || agent.notices.has_line());
        agent.kill_orphans() && pod.pids(None).is_empty() && delivered
    })
    .await;
}

/// Waits until it is so, or the time has come.
async fn wait_until(agent: &Agent, end: Instant, is_so: impl Fn(&Agent) -> bool) {
    loop {
        let progress = agent.finished.notified();
        if is_so(agent) || timeout_at(end, progress).await.is_err() {
            return;
        }
    }
}
