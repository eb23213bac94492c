//! `exec` over protocol 1: a session's descriptor carries the I/O, commands of their own carry signals and sizes.
//!
//! Owns the conversation that starts the process, and the session. The asymmetry to know: agents that report exit
//! statuses on their control channel never tell it here, so a command of theirs has no end over this protocol.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::sys::signalfd::SignalFd;
use serde_json::value::to_raw_value;

use super::signals::{self, Control, Watch};
use super::{Args, CLOSED_PIPE, process_id};
use crate::cli::pump::{self, End, Outputs, StdinEnd, StdinSink};
use crate::cli::show;
use crate::client::{self, Client, Error, Event, STDIN_PAYLOAD_MAX, Session, SessionReader, SessionWriter, Stream};
use crate::os::console::{self, RawMode};
use crate::wire::hyper::{ExecCmd, Process, StreamSeq};

/// How long stderr's end may come after the exit status. Agents that never send it cost this much.
const LAST_WORDS: Duration = Duration::from_millis(200);

pub(super) fn run(args: Args, signals: SignalFd) -> anyhow::Result<ExitCode> {
    let mut client = args.socket.client()?;
    let vm = show::plain(&args.vm);
    client.set_slow_reader(args.slow_reader);
    client.attach(&args.vm).with_context(|| args.cannot_attach())?;
    let streams = if args.tty { 1 } else { 2 };
    let (io_base, fd) = client.allocate_io(streams).with_context(|| format!("no session at VM {vm}"))?;
    let (mut reader, writer) = Session::new(io_base, streams, fd).split();
    let writer = Arc::new(Mutex::new(writer));

    let id = process_id();
    let control = Control::new(args.socket.path(), &args.vm, &args.container, &id, io_base);
    let control = Arc::new(Mutex::new(control));
    let leaving = Arc::new(AtomicBool::new(false));
    let watch = Watch {
        control: Arc::clone(&control),
        writer: Arc::clone(&writer),
        tty: args.tty,
        leaving: Arc::clone(&leaving),
    };
    std::thread::spawn(move || watch.run(&signals));

    let stdin_is_terminal = io::stdin().is_terminal();
    let tty = args.tty;
    let sized = start(&mut client, args, id, io_base)?;
    if tty && !sized {
        signals::lock(&control).resize();
    }
    let raw = if tty && stdin_is_terminal {
        Some(RawMode::enter().context("cannot put the terminal into raw mode")?)
    } else {
        None
    };
    pump::spawn_stdin(writer, StdinEnd::of(tty, stdin_is_terminal));
    let end = outputs(&mut reader, streams > 1);
    drop(raw);
    while leaving.load(Ordering::SeqCst) {
        std::thread::park();
    }
    match end? {
        End::Status(status) => Ok(ExitCode::from(status)),
        End::Closed => {
            anyhow::bail!("the session ended without an exit status: VM {vm} is gone, or was removed")
        }
        End::NobodyReads => {
            // The command would run on with nobody listening: it gets what a local one would have got.
            signals::lock(&control).signal(nix::libc::SIGPIPE);
            Ok(ExitCode::from(CLOSED_PIPE))
        }
    }
}

/// Starts the process. A program may ask for its terminal's size first thing, and the protocol tells it only after the
/// start: so the size follows at once. Returns whether the agent took it.
fn start(client: &mut Client, args: Args, id: String, io_base: StreamSeq) -> anyhow::Result<bool> {
    let cannot_run = args.cannot_run();
    let size = console::own_window_size().filter(|_| args.tty);
    let stderr = if args.tty { 0 } else { io_base.0.saturating_add(1) };
    let container = args.container.clone();
    let process = Process { stdio: io_base.0, stderr, ..args.into_process(id) };
    let command = ExecCmd { container, process };
    let mut commands = vec![("execcmd", to_raw_value(&command)?)];
    if let Some(size) = size {
        commands.push(("winsize", to_raw_value(&signals::by_sequence(io_base, size))?));
    }
    let outcomes = client.hyper_each(commands).with_context(|| cannot_run.clone())?;
    let mut outcomes = outcomes.into_iter();
    outcomes.next().transpose().context(cannot_run)?;
    Ok(outcomes.next().is_some_and(|sized| sized.is_ok()))
}

/// Moves the process's outputs to own stdout and stderr until it has ended and both are complete.
///
/// # Errors
/// The session's, or own stdout's other than that nobody reads it.
fn outputs(reader: &mut SessionReader, has_stderr: bool) -> anyhow::Result<End> {
    let mut outputs = Outputs::own()?;
    let mut progress = Progress { status: None, stderr_ended: !has_stderr };
    loop {
        match one_batch(reader, &mut outputs, &mut progress) {
            Ok(true) => {}
            Ok(false) => return Ok(progress.status.map_or(End::Closed, End::Status)),
            Err(e) if pump::is_closed_stdout(&e) => return Ok(End::NobodyReads),
            Err(e) => match (e.downcast_ref::<Error>(), progress.status) {
                // The status was the last thing anybody waited for.
                (Some(Error::Overdue | Error::Lost), Some(status)) => return Ok(End::Status(status)),
                _ => return Err(e),
            },
        }
        match progress {
            Progress { status: Some(status), stderr_ended: true } => return Ok(End::Status(status)),
            Progress { status: Some(_), .. } => reader.set_timeout(Some(LAST_WORDS))?,
            Progress { status: None, .. } => {}
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    status: Option<u8>,
    stderr_ended: bool,
}

/// Writes what one read brought. `false` when the session was closed.
fn one_batch(reader: &mut SessionReader, outputs: &mut Outputs, progress: &mut Progress) -> anyhow::Result<bool> {
    let Some(batch) = reader.read_batch().context("the session broke")? else { return Ok(false) };
    let said = batch.filter_map(|event| match event {
        Ok(Event::Stdout(bytes)) => Some(Ok((Stream::Stdout, bytes))),
        Ok(Event::Stderr(bytes)) => Some(Ok((Stream::Stderr, bytes))),
        Ok(Event::Ended(stream)) => {
            progress.stderr_ended |= stream == Stream::Stderr;
            None
        }
        Ok(Event::ExitStatus(status)) => {
            progress.status = Some(status);
            None
        }
        Err(error) => Some(Err(error)),
    });
    outputs.write_batch(said)?;
    Ok(true)
}

impl StdinSink for Mutex<SessionWriter> {
    /// A little over what a pipe holds.
    const BUFFER: usize = 17 * STDIN_PAYLOAD_MAX;

    fn write_stdin(&self, bytes: &[u8]) -> client::Result<()> {
        self.lock().unwrap_or_else(PoisonError::into_inner).write_stdin(bytes)
    }

    fn end_stdin(&self) -> client::Result<()> {
        self.lock().unwrap_or_else(PoisonError::into_inner).end_stdin()
    }
}
