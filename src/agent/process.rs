//! Starting processes and carrying their bytes: pipes or a terminal, stdin in, output out, EOF, status.
//!
//! Which processes may be started is decided elsewhere. The asymmetry to know: a command that names a program that
//! cannot be run succeeds, as a shell's line does: a sentence on its stderr, EOF, and status 127 or 126 tell why.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{getegid, geteuid, getgroups, pipe2};
use tokio::io::Interest;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::limits::GUEST_OUTPUT_GRACE_MS;
use crate::os::process::{Ending, Launch, LaunchError, launch};
use crate::os::terminal;
use crate::os::watched::Watched;
use crate::wire::hyper::{Code, Message, Process, StreamSeq};

use super::accounts::{self, Account};
use super::command::{Refusal, refuse};
use super::guest;
use super::output::{FrameRun, Tail};
use super::pod::{Entry, ProcessKey};
use super::{Agent, ExitReport};

/// Where programs are looked for when the command does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An output of a process, and the sequence it goes out on.
type Source = (Watched, StreamSeq);

/// Our ends of a process's standard streams.
#[derive(Debug)]
struct Ours {
    stdin: Option<Watched>,
    outputs: Vec<Source>,
    terminal: Option<Rc<OwnedFd>>,
}

/// The process's ends.
#[derive(Debug)]
struct Theirs {
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Starts a process in a root directory. It is known from the return on; a program that cannot be run is one that
/// ended at once.
pub(super) fn start(agent: &Rc<Agent>, container: &str, root: &Path, process: Process) -> Result<ProcessKey, Refusal> {
    agent.pod.borrow().check_new(container, &process)?;
    if agent.config.exit_report == ExitReport::Event && process.id.as_deref().unwrap_or("").is_empty() {
        return refuse("the process needs an id: its end is reported by it");
    }
    let account = accounts::resolve(
        &process,
        geteuid().as_raw(),
        &guest::text_file(root, "/etc/passwd"),
        &guest::text_file(root, "/etc/group"),
    )?;
    check_identity(&account, &process)?;
    let failed = |error: io::Error| Refusal(format!("cannot make the process's streams: {error}"));
    let streams = if process.terminal { open_terminal(&process, &account) } else { open_pipes(&process) };
    let (ours, theirs) = streams.map_err(failed)?;
    let program = process.args.first().cloned().unwrap_or_default();
    let plan = plan(&process, root, account, theirs);
    let outcome = launch(plan);
    let entry = Entry {
        container: container.to_owned(),
        id: process.id.filter(|id| !id.is_empty()),
        stdio: StreamSeq(process.stdio),
        stderr: StreamSeq(process.stderr),
        terminal: ours.terminal.clone(),
        pid: outcome.as_ref().ok().copied(),
        ending: watch::Sender::new(None),
        stdin_ready: Rc::new(Notify::new()),
    };
    Ok(match outcome {
        Ok(pid) => {
            tracing::debug!(pid, container, program, "started");
            attach(agent, entry, ours)
        }
        Err(error) => {
            tracing::info!(container, program, %error, "did not start");
            fail(agent, entry, &program, &error)
        }
    })
}

/// Without privilege only a process that runs as this agent does can be started.
fn check_identity(account: &Account, process: &Process) -> Result<(), Refusal> {
    if geteuid().is_root() {
        return Ok(());
    }
    let who = &account.identity;
    let named = |name: &Option<String>| name.as_deref().is_some_and(|name| !name.is_empty());
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let ours: Vec<u32> = getgroups().unwrap_or_default().into_iter().map(nix::unistd::Gid::as_raw).collect();
    let user_differs = named(&process.user) && who.uid != uid;
    let group_differs = (named(&process.user) || named(&process.group)) && who.gid != gid;
    let more_groups = !process.additional_groups.is_empty() && who.groups.iter().any(|gid| !ours.contains(gid));
    if user_differs || group_differs || more_groups {
        return refuse(format!("this agent is user {uid}, group {gid} without privilege and cannot become another"));
    }
    Ok(())
}

/// What the kernel needs to know.
fn plan(process: &Process, root: &Path, account: Account, theirs: Theirs) -> Launch {
    let mut env: Vec<(String, String)> = vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), account.home)];
    if process.terminal {
        env.push(("TERM".into(), "xterm".into()));
    }
    // A later one of the same name wins.
    env.extend(process.envs.iter().map(|var| (var.env.clone(), var.value.clone())));
    Launch {
        args: process.args.clone(),
        env,
        root: (root != Path::new("/")).then(|| root.to_owned()),
        workdir: Path::new("/").join(&process.workdir),
        identity: geteuid().is_root().then_some(account.identity),
        terminal: process.terminal,
        stdin: theirs.stdin,
        stdout: theirs.stdout,
        stderr: theirs.stderr,
    }
}

fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into())
}

fn do_not_wait(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A pipe for each sequence. Without a stdio sequence stdin and stdout are /dev/null; without one for stderr it
/// goes where stdout goes.
fn open_pipes(process: &Process) -> io::Result<(Ours, Theirs)> {
    let mut ours = Ours { stdin: None, outputs: Vec::new(), terminal: None };
    let mut output = |seq: u64| {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        do_not_wait(&reader)?;
        ours.outputs.push((Watched::new(reader, Interest::READABLE)?, StreamSeq(seq)));
        Ok::<OwnedFd, io::Error>(writer)
    };
    let stdout = if process.stdio == 0 { null()? } else { output(process.stdio)? };
    let stderr = if process.stderr == 0 { stdout.try_clone()? } else { output(process.stderr)? };
    let stdin = if process.stdio == 0 {
        null()?
    } else {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        do_not_wait(&writer)?;
        ours.stdin = Some(Watched::new(writer, Interest::WRITABLE)?);
        reader
    };
    Ok((ours, Theirs { stdin, stdout, stderr }))
}

/// A terminal for all three.
fn open_terminal(process: &Process, account: &Account) -> io::Result<(Ours, Theirs)> {
    let (master, slave) = terminal::open()?;
    if geteuid().is_root() {
        let owner = nix::unistd::Uid::from_raw(account.identity.uid);
        nix::unistd::fchown(&slave, Some(owner), None)?;
    }
    let ours = Ours {
        stdin: Some(Watched::new(master.try_clone()?, Interest::WRITABLE)?),
        outputs: vec![(Watched::new(master.try_clone()?, Interest::READABLE)?, StreamSeq(process.stdio))],
        terminal: Some(Rc::new(master)),
    };
    let theirs = Theirs { stdin: slave.try_clone()?, stdout: slave.try_clone()?, stderr: slave };
    Ok((ours, theirs))
}

/// Makes a started process known and lets its bytes move.
fn attach(agent: &Rc<Agent>, entry: Entry, ours: Ours) -> ProcessKey {
    let stdio = entry.stdio;
    let ready = Rc::clone(&entry.stdin_ready);
    let ending = entry.ending.subscribe();
    let key = agent.pod.borrow_mut().add(entry);
    let feeding = ours.stdin.map(|stdin| tokio::task::spawn_local(feed(Rc::clone(agent), stdio, stdin, ready)));
    let agent = Rc::clone(agent);
    tokio::task::spawn_local(async move {
        let mut outputs = ours.outputs.into_iter();
        let (first, second) = (outputs.next(), outputs.next());
        tokio::join!(pump(&agent, first, ending.clone()), pump(&agent, second, ending.clone()));
        finish(&agent, key, ending, feeding).await;
    });
    key
}

/// Makes a process known that did not start: what it would have said, then its end.
fn fail(agent: &Rc<Agent>, entry: Entry, program: &str, error: &LaunchError) -> ProcessKey {
    let reason = match error.status() {
        127 => "not found".to_owned(),
        _ => error.to_string(),
    };
    let end = if entry.terminal.is_some() { "\r\n" } else { "\n" };
    let text = format!("ringway agent: {program}: {reason}{end}");
    let seq = if entry.stderr.0 == 0 { entry.stdio } else { entry.stderr };
    entry.ending.send_replace(Some(Ending::Exited(error.status())));
    let ending = entry.ending.subscribe();
    let stdio = entry.stdio;
    let key = agent.pod.borrow_mut().add(entry);
    agent.pod.borrow_mut().stdin.discard(stdio);
    let agent = Rc::clone(agent);
    tokio::task::spawn_local(async move {
        if seq.0 != 0 {
            let mut run = agent.stream.turn().await;
            run.push(seq, text.as_bytes());
            agent.stream.flush(&mut run).await;
        }
        finish(&agent, key, ending, None).await;
    });
    key
}

/// Writes what is queued for a process to its stdin, as fast as it reads; returns at its end.
async fn feed(agent: Rc<Agent>, seq: StreamSeq, stdin: Watched, ready: Rc<Notify>) {
    loop {
        if agent.pod.borrow().stdin.is_finished(seq) {
            return;
        }
        if agent.pod.borrow().stdin.front(seq).is_empty() {
            ready.notified().await;
            continue;
        }
        let write = |fd: BorrowedFd<'_>| nix::unistd::write(fd, agent.pod.borrow().stdin.front(seq));
        let written = stdin.perform(Interest::WRITABLE, write).await;
        let mut pod = agent.pod.borrow_mut();
        match written {
            Ok(count) => pod.stdin.consume(seq, count),
            // It closed its stdin. That is its right, and no loss: it could not read it.
            Err(_) => pod.stdin.discard(seq),
        }
        agent.stdin_room.notify_one();
    }
}

/// Carries one output of a process to the host until it is over.
///
/// Once bytes are read they are sent: only the waiting in between can be interrupted.
async fn pump(agent: &Agent, source: Option<Source>, mut ending: watch::Receiver<Option<Ending>>) {
    let Some((source, seq)) = source else { return };
    let mut tail: Option<Tail> = None;
    let mut grace_end = Instant::now();
    while !tail.as_ref().is_some_and(Tail::is_over) {
        let grace_is_over = tail.is_some() && Instant::now() >= grace_end;
        if let Some(tail) = tail.as_mut().filter(|_| grace_is_over) {
            tail.end_grace();
        }
        // After the grace nothing is waited for: what is there is read, and when nothing is, that was all.
        let ready = tokio::select! {
            biased;
            _ = ending.wait_for(Option::is_some), if tail.is_none() => {
                tail = Some(Tail::new(terminal::readable_bytes(&source).unwrap_or(0)));
                grace_end = Instant::now() + Duration::from_millis(GUEST_OUTPUT_GRACE_MS);
                continue;
            }
            () = tokio::time::sleep_until(grace_end), if tail.is_some() && !grace_is_over => continue,
            ready = source.readable(), if !grace_is_over => ready.ok(),
            else => None,
        };
        let mut run = agent.stream.turn().await;
        match read_into(&mut run, &source, seq) {
            Ok(0) => return,
            Ok(count) => {
                agent.stream.flush(&mut run).await;
                if let Some(tail) = &mut tail {
                    tail.read(count);
                }
            }
            Err(Errno::EAGAIN) => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
                if let Some(tail) = &mut tail {
                    tail.found_empty();
                }
            }
            Err(Errno::EINTR) => {}
            // EIO is a terminal's way to say that nobody has it open any more.
            Err(_) => return,
        }
    }
}

/// Reads as much as one turn allows, to where it leaves from.
fn read_into(run: &mut FrameRun, source: &Watched, seq: StreamSeq) -> Result<usize, Errno> {
    let count = nix::sys::uio::readv(source, &mut run.places())?;
    run.seal(seq, count);
    Ok(count)
}

/// Output is over: tells the host, then how the process ended, and forgets it.
async fn finish(
    agent: &Agent,
    key: ProcessKey,
    mut ending: watch::Receiver<Option<Ending>>,
    feeding: Option<JoinHandle<()>>,
) {
    let Some((stdio, stderr)) = agent.pod.borrow().sequences(key) else { return };
    let mut run = agent.stream.turn().await;
    for seq in [stderr, stdio].into_iter().filter(|seq| seq.0 != 0) {
        run.push(seq, b"");
    }
    if ending.borrow().is_none() {
        agent.stream.flush(&mut run).await;
        drop(run);
        // Fails only when the process is forgotten already, which only this function does.
        let _ = ending.wait_for(Option::is_some).await;
        run = agent.stream.turn().await;
    }
    let status = ending.borrow().map_or(0, Ending::status);
    if agent.config.exit_report == ExitReport::Frame && stdio.0 != 0 {
        run.push(stdio, &[status]);
    }
    agent.stream.flush(&mut run).await;
    drop(run);
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    if agent.config.exit_report == ExitReport::Event {
        let event = agent.pod.borrow().finished_event(key, status);
        agent.notices.deliver(&Message::new(Code::ProcessAsyncEvent, event)).await;
    }
    // Nothing else ran since the last byte left: a host that answers with the same sequence or name finds it free.
    agent.pod.borrow_mut().retire(key);
    agent.stdin_room.notify_one();
    agent.finished.notify_waiters();
}
