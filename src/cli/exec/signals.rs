//! What comes to an exec from outside: signals to pass on and changes of the terminal's size.
//!
//! Owns the rules for both protocols, and protocol 1's second connection, which is there because the first may be busy
//! with a command. Never runs in a signal handler: signals are blocked everywhere and read from a descriptor by one
//! thread. The asymmetry to know: a signal the agent does not take ends this process, a size it does not take is
//! forgotten.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::libc;
use nix::sys::signalfd::SignalFd;
use serde::Serialize;

use crate::client::{Client, Error, SessionWriter};
use crate::os::console::{self, WindowSize};
use crate::os::{self};
use crate::wire::hyper::{SignalProcess, StreamSeq, WinSize};

/// Time the agent has to take a signal.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Time the daemon has to take the end of stdin when this process leaves.
const LAST_WRITE: Duration = Duration::from_millis(500);

/// What is read from the descriptor.
const WATCHED: [i32; 7] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// Blocks the watched signals in this thread and all it starts later; they arrive at the descriptor instead.
///
/// # Errors
/// The kernel's.
pub(super) fn block() -> anyhow::Result<SignalFd> {
    os::signals::watch(WATCHED).context("cannot watch signals")
}

/// What a watched signal leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Tell the agent the terminal's new size.
    Resize,
    /// Pass it on; when the agent does not take it, end with 128 + its number.
    PassOn,
    /// Pass it on and end: the person, or the terminal, is gone.
    Leave,
    /// Nothing.
    Ignore,
}

pub(super) fn reaction(signal: i32, tty: bool) -> Reaction {
    match signal {
        libc::SIGWINCH if tty => Reaction::Resize,
        libc::SIGWINCH => Reaction::Ignore,
        // In raw mode the keyboard makes no signals: one of these is meant for ringway itself.
        libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT if tty => Reaction::Leave,
        _ => Reaction::PassOn,
    }
}

/// Says why this process ends though its command does not.
pub(super) fn say_refused(signal: i32) {
    eprintln!("ringway: the agent does not take signal {signal}: leaving the command alone\r");
}

/// The thread that reads signals.
pub(super) struct Watch {
    pub(super) control: Arc<Mutex<Control>>,
    pub(super) writer: Arc<Mutex<SessionWriter>>,
    pub(super) tty: bool,
    /// Set once this thread ends the process: the main thread must then not end it with another status.
    pub(super) leaving: Arc<AtomicBool>,
}

impl Watch {
    /// Acts on signals for as long as the process lives.
    pub(super) fn run(&self, signals: &SignalFd) {
        while let Ok(signal) = os::signals::next(signals) {
            match reaction(signal, self.tty) {
                Reaction::Resize => lock(&self.control).resize(),
                Reaction::PassOn if lock(&self.control).signal(signal) => {}
                Reaction::PassOn => {
                    say_refused(signal);
                    self.leave(signal);
                }
                Reaction::Leave => {
                    self.leaving.store(true, Ordering::SeqCst);
                    lock(&self.control).signal(signal);
                    self.leave(signal);
                }
                Reaction::Ignore => {}
            }
        }
    }

    /// Ends this process as the signal would have, after closing the command's stdin where that is possible soon.
    fn leave(&self, signal: i32) -> ! {
        self.leaving.store(true, Ordering::SeqCst);
        console::leave_raw_mode();
        if let Ok(mut writer) = self.writer.try_lock() {
            let _ = writer.set_timeout(Some(LAST_WRITE)).and_then(|()| writer.end_stdin());
        }
        std::process::exit(128 + signal)
    }
}

/// A connection for commands about the running process, made when first needed.
#[derive(Debug)]
pub(super) struct Control {
    socket: PathBuf,
    vm: String,
    container: String,
    process: String,
    seq: StreamSeq,
    client: Option<Client>,
}

/// Locks the control connection; a thread that panicked with it left it usable.
pub(super) fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    pub(super) fn new(socket: PathBuf, vm: &str, container: &str, process: &str, seq: StreamSeq) -> Control {
        let (vm, container, process) = (vm.to_owned(), container.to_owned(), process.to_owned());
        Control { socket, vm, container, process, seq, client: None }
    }

    /// Signals the process; whether the agent took it.
    pub(super) fn signal(&mut self, signal: i32) -> bool {
        let (container, process) = (self.container.clone(), self.process.clone());
        self.hyper("signalprocess", &SignalProcess { container, process, signal }).is_ok()
    }

    /// Tells the agent the terminal's size as it is now, by sequence and, where that is refused, by name.
    pub(super) fn resize(&mut self) {
        let Some(size) = console::own_window_size() else { return };
        if let Err(Error::Refused(_)) = self.hyper("winsize", &by_sequence(self.seq, size)) {
            let (container, process) = (self.container.clone(), self.process.clone());
            let by_name = WinSize { seq: 0, container, process, row: size.rows, column: size.columns };
            let _ = self.hyper("winsize", &by_name);
        }
    }

    fn hyper<T: Serialize>(&mut self, name: &str, data: &T) -> Result<(), Error> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let outcome = client.hyper(name, data);
        // After any other error the connection is of no further use.
        if matches!(outcome, Ok(()) | Err(Error::Refused(_))) {
            self.client = Some(client);
        }
        outcome
    }

    fn connect(&self) -> Result<Client, Error> {
        let mut client = Client::connect(&self.socket)?;
        client.set_timeout(Some(PATIENCE))?;
        client.attach(&self.vm)?;
        Ok(client)
    }
}

/// `winsize` as the oldest agents know it.
pub(super) fn by_sequence(seq: StreamSeq, size: WindowSize) -> WinSize {
    WinSize { seq: seq.0, row: size.rows, column: size.columns, ..WinSize::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_signals_lead_to() {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
            assert_eq!(reaction(signal, false), Reaction::PassOn);
            assert_eq!(reaction(signal, true), Reaction::Leave);
        }
        for signal in [libc::SIGUSR1, libc::SIGUSR2] {
            assert_eq!((reaction(signal, false), reaction(signal, true)), (Reaction::PassOn, Reaction::PassOn));
        }
        assert_eq!(reaction(libc::SIGWINCH, true), Reaction::Resize);
        assert_eq!(reaction(libc::SIGWINCH, false), Reaction::Ignore);
    }
}
