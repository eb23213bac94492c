//! `exec` over protocol 2: this process is runtime and shim at once, on two connections.
//!
//! Owns the conversation that starts the process. The asymmetry to know: the token is claimed and the terminal's size
//! told before the process is started; the daemon keeps both until it runs. Signals name the process on the runtime's
//! connection, where no stdin is in their way; the shim's carries those that come before there is a process, or that
//! are refused.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use nix::libc;
use nix::sys::signalfd::SignalFd;

use super::signals::{PATIENCE, Reaction, reaction, say_refused};
use super::{Args, CLOSED_PIPE, process_id};
use crate::cli::pump::{self, End, Outputs, StdinEnd};
use crate::cli::shim::link::{Link, outputs};
use crate::cli::show;
use crate::client::{self, Error, RuntimeClient, ShimClient, ShimEvent, ShimReader};
use crate::os;
use crate::os::console::{self, RawMode};
use crate::wire::hyper::{ExecCmd, SignalProcess};

/// A runtime's connection, attached to the VM, and the token it got.
pub(super) struct Attached {
    runtime: RuntimeClient,
    token: String,
}

/// Attaches to the VM.
///
/// # Errors
/// [`Error::Lost`] when the daemon does not serve protocol 2; else see [`Error`].
pub(super) fn attach(args: &Args) -> client::Result<Attached> {
    let mut runtime = RuntimeClient::connect(args.socket.path())?;
    runtime.set_slow_reader(args.slow_reader);
    let (_, mut tokens) = runtime.attach_vm(&args.vm, 1)?;
    let token = tokens.pop().ok_or_else(|| Error::Protocol("AttachVM was answered without a token".to_owned()))?;
    Ok(Attached { runtime, token })
}

pub(super) fn run(args: Args, attached: Attached, signals: SignalFd) -> anyhow::Result<ExitCode> {
    let Attached { runtime, token } = attached;
    let vm = show::plain(&args.vm);
    let mut shim = ShimClient::connect(args.socket.path())?;
    shim.connect_shim(&token).with_context(|| format!("no session at VM {vm}"))?;
    let (mut reader, writer) = shim.split();
    let tty = args.tty;
    let id = process_id();
    let owner = Owner { runtime, container: args.container.clone(), process: id.clone() };
    let passing = Passing::new(Link::new(writer), owner);
    let watch = passing.clone();
    std::thread::spawn(move || watch.run(&signals, tty));

    if tty {
        passing.link.resize()?;
    }
    let cannot_run = args.cannot_run();
    let command = ExecCmd { container: args.container.clone(), process: args.into_process(id) };
    passing.owner().runtime.hyper("execcmd", &[token], &command).context(cannot_run)?;
    let stdin_is_terminal = io::stdin().is_terminal();
    let raw = if tty && stdin_is_terminal {
        Some(RawMode::enter().context("cannot put the terminal into raw mode")?)
    } else {
        None
    };
    pump::spawn_stdin(Arc::clone(&passing.link), StdinEnd::of(tty, stdin_is_terminal));
    let end = outputs(&mut reader, &mut Outputs::own()?, |answer| passing.answered(answer));
    drop(raw);
    passing.wait_if_leaving();
    match end? {
        End::Status(status) => {
            passing.link.leave(false);
            Ok(ExitCode::from(status))
        }
        End::Closed => {
            anyhow::bail!("the session ended without an exit status: VM {vm} is gone, or was removed")
        }
        End::NobodyReads => {
            // The command would run on with nobody listening: it gets what a local one would have got.
            if !passing.owner().signal(libc::SIGPIPE) && passing.link.signal(libc::SIGPIPE).is_ok() {
                discard_until_answered(&mut reader);
            }
            passing.link.leave(true);
            Ok(ExitCode::from(CLOSED_PIPE))
        }
    }
}

/// The command's output is of no interest any more, the answer to the last signal is.
fn discard_until_answered(reader: &mut ShimReader) {
    if reader.set_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    while let Ok(ShimEvent::Stdout(_) | ShimEvent::Stderr(_)) = reader.read_event() {}
}

/// The runtime that started the process.
#[derive(Debug)]
struct Owner {
    runtime: RuntimeClient,
    container: String,
    process: String,
}

impl Owner {
    /// Signals the process by name; whether the agent took it.
    fn signal(&mut self, signal: i32) -> bool {
        let (container, process) = (self.container.clone(), self.process.clone());
        let named = SignalProcess { container, process, signal };
        self.runtime.set_timeout(Some(PATIENCE)).is_ok() && self.runtime.hyper("signalprocess", &[], &named).is_ok()
    }
}

/// Signals and sizes on their way to the process.
#[derive(Debug, Clone)]
struct Passing {
    link: Arc<Link>,
    owner: Arc<Mutex<Owner>>,
    /// Set once a signal ends this process: nobody may then end it with another status.
    leaving: Arc<AtomicBool>,
}

impl Passing {
    fn new(link: Link, owner: Owner) -> Passing {
        Passing { link: Arc::new(link), owner: Arc::new(Mutex::new(owner)), leaving: Arc::default() }
    }

    /// A thread that panicked with it left it usable.
    fn owner(&self) -> MutexGuard<'_, Owner> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on signals for as long as the process lives.
    fn run(&self, signals: &SignalFd, tty: bool) {
        while let Ok(signal) = os::signals::next(signals) {
            match reaction(signal, tty) {
                Reaction::Resize => drop(self.link.resize()),
                Reaction::PassOn => self.pass_on(signal),
                Reaction::Leave => {
                    self.leaving.store(true, Ordering::SeqCst);
                    self.pass_on(signal);
                    self.link.wait_for_answers(PATIENCE);
                    self.leave(signal);
                }
                Reaction::Ignore => {}
            }
        }
    }

    /// By name where that is possible at once and taken, else over the shim's connection.
    fn pass_on(&self, signal: i32) {
        // The runtime's connection is busy until the process has started.
        if !self.owner.try_lock().is_ok_and(|mut owner| owner.signal(signal)) {
            // Without a connection the session is over, and the main thread about to say so.
            let _ = self.link.signal(signal);
        }
    }

    /// A size the agent does not take is forgotten; a signal it does not take ends this process.
    fn answered(&self, answer: &ShimEvent<'_>) {
        self.link.answered(answer, |signal, refused| {
            let matters = refused.is_some() && signal != libc::SIGWINCH;
            if matters && !self.leaving.swap(true, Ordering::SeqCst) {
                say_refused(signal);
                self.leave(signal);
            }
        });
    }

    /// Ends this process as the signal would have, after closing the command's stdin.
    fn leave(&self, signal: i32) -> ! {
        console::leave_raw_mode();
        self.link.leave(true);
        std::process::exit(128 + signal)
    }

    /// Lets the thread that ends this process do so.
    fn wait_if_leaving(&self) {
        while self.leaving.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}
