//! `exec` over protocol 2: this process is runtime and shim at once, on two connections.
//!
//! Owns the conversation that starts the process. The asymmetry to know: the token is claimed and the terminal's size
//! told before the process is started; the daemon keeps both until it runs. A signal is the shim's business first, and
//! the runtime's, who knows the process by name, where the daemon does not trust the agent to take it.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
    let passing = Passing { link: Arc::new(Link::new(writer)), leaving: Arc::default() };
    let watch = passing.clone();
    std::thread::spawn(move || watch.run(&signals, tty));

    if tty {
        passing.link.resize()?;
    }
    let cannot_run = args.cannot_run();
    let id = process_id();
    let mut owner = Owner { runtime, container: args.container.clone(), process: id.clone() };
    let command = ExecCmd { container: args.container.clone(), process: args.into_process(id) };
    owner.runtime.hyper("execcmd", &[token], &command).context(cannot_run)?;
    let stdin_is_terminal = io::stdin().is_terminal();
    let raw = if tty && stdin_is_terminal {
        Some(RawMode::enter().context("cannot put the terminal into raw mode")?)
    } else {
        None
    };
    pump::spawn_stdin(Arc::clone(&passing.link), StdinEnd::of(tty, stdin_is_terminal));
    let end = outputs(&mut reader, &mut Outputs::own()?, |answer| passing.answered(answer, &mut owner));
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
            if passing.link.signal(libc::SIGPIPE).is_ok() && is_refused(&mut reader) {
                owner.signal(libc::SIGPIPE);
            }
            passing.link.leave(true);
            Ok(ExitCode::from(CLOSED_PIPE))
        }
    }
}

/// Whether the last signal is refused. The command's output meanwhile is of no interest any more.
fn is_refused(reader: &mut ShimReader) -> bool {
    if reader.set_timeout(Some(PATIENCE)).is_err() {
        return false;
    }
    loop {
        match reader.read_event() {
            Ok(ShimEvent::Stdout(_) | ShimEvent::Stderr(_)) => {}
            Ok(event) => return event.refused().is_some(),
            Err(_) => return false,
        }
    }
}

/// The runtime that started the process.
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
    /// Set once a signal ends this process: nobody may then end it with another status.
    leaving: Arc<AtomicBool>,
}

impl Passing {
    /// Acts on signals for as long as the process lives.
    fn run(&self, signals: &SignalFd, tty: bool) {
        while let Ok(signal) = os::signals::next(signals) {
            match reaction(signal, tty) {
                Reaction::Resize => drop(self.link.resize()),
                // Without a connection the session is over, and the main thread about to say so.
                Reaction::PassOn => drop(self.link.signal(signal)),
                Reaction::Leave => {
                    self.leaving.store(true, Ordering::SeqCst);
                    let _ = self.link.signal(signal);
                    self.link.wait_for_answers(PATIENCE);
                    self.leave(signal);
                }
                Reaction::Ignore => {}
            }
        }
    }

    /// A size the agent does not take is forgotten; a signal it does not take ends this process.
    fn answered(&self, answer: &ShimEvent<'_>, owner: &mut Owner) {
        self.link.answered(answer, |signal, refused| {
            if signal == libc::SIGWINCH || refused.is_none() || owner.signal(signal) {
                return;
            }
            if !self.leaving.swap(true, Ordering::SeqCst) {
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
