//! A shim's connection as its threads share it: one reads own stdin, one signals, the main one what the daemon says.
//!
//! Owns the writing half and what was asked and not yet answered; the reading half stays with the main thread, which
//! alone replaces a connection that was lost. The asymmetry to know: while there is no connection, stdin and signals
//! wait for the next one; log entries do not, they are lost.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::libc;

use crate::cli::pump::{End, Outputs, StdinSink, is_closed_stdout};
use crate::client::{self, Error, SHIM_STDIN_MAX, ShimEvent, ShimReader, ShimWriter, Stream};
use crate::os::console;
use crate::wire::cc2::LogEntry;

/// Time the daemon has to take the last frames when this process leaves.
const LAST_WRITE: Duration = Duration::from_millis(500);

/// The connection, for all threads.
#[derive(Debug)]
pub(in crate::cli) struct Link {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// `None` between two connections.
    writer: Option<ShimWriter>,
    /// Connections so far.
    count: u64,
    /// Signals sent on this connection and not answered, oldest first.
    asked: VecDeque<i32>,
}

impl Link {
    /// A link over a connection whose token is claimed.
    pub(in crate::cli) fn new(writer: ShimWriter) -> Link {
        let state = State { writer: Some(writer), count: 1, asked: VecDeque::new() };
        Link { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The connection is gone: whoever wants to write waits from now on.
    pub(super) fn lost(&self) {
        let mut state = self.lock();
        state.writer = None;
        state.asked.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// There is a connection again.
    pub(super) fn renew(&self, writer: ShimWriter) {
        let mut state = self.lock();
        state.writer = Some(writer);
        state.count += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Signals the process. The answer comes to whoever reads.
    ///
    /// # Errors
    /// The connection's.
    pub(in crate::cli) fn signal(&self, number: i32) -> client::Result<()> {
        self.ask(number, |writer| writer.signal(number))
    }

    /// Tells the process the size of the terminal this process is on, if it is on one. The answer comes to whoever
    /// reads.
    ///
    /// # Errors
    /// The connection's.
    pub(in crate::cli) fn resize(&self) -> client::Result<()> {
        let Some(size) = console::own_window_size() else { return Ok(()) };
        self.ask(libc::SIGWINCH, |writer| writer.window_size(size.columns, size.rows))
    }

    /// Asks under the lock, so that answers are matched in the order of the frames.
    fn ask(&self, number: i32, send: impl FnOnce(&ShimWriter) -> client::Result<()>) -> client::Result<()> {
        let (mut state, writer) = self.connected();
        state.asked.push_back(number);
        send(&writer)
    }

    /// Takes an answer, and hands over the signal it is about and why it was refused, if it was. The signal counts as
    /// answered when `handle` is done with it.
    pub(in crate::cli) fn answered(&self, answer: &ShimEvent<'_>, handle: impl FnOnce(i32, Option<Error>)) {
        let asked = self.lock().asked.front().copied();
        let Some(number) = asked else { return };
        handle(number, answer.refused());
        // The reader alone takes from this end, and alone starts over.
        self.lock().asked.pop_front();
        self.changed.notify_all();
    }

    /// Waits until every signal is answered, or the time is over.
    pub(in crate::cli) fn wait_for_answers(&self, patience: Duration) {
        let pending = |state: &mut State| !state.asked.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), patience, pending));
    }

    /// Writes an entry into the daemon's log, if there is a connection.
    pub(super) fn log(&self, entry: &LogEntry) {
        let writer = self.lock().writer.clone();
        if let Some(writer) = writer {
            // An entry that cannot be written tells of something that was shown or is shown elsewhere.
            let _ = writer.log(entry);
        }
    }

    /// Gives the token up, after closing the process's stdin if `end_stdin`. What goes wrong here no longer matters.
    pub(in crate::cli) fn leave(&self, end_stdin: bool) {
        let writer = self.lock().writer.clone();
        let Some(writer) = writer else { return };
        let _ = writer.set_timeout(Some(LAST_WRITE));
        if end_stdin {
            let _ = writer.end_stdin();
        }
        let _ = writer.disconnect_shim();
    }

    /// Writes to the connection there is, or to the next one when that fails.
    fn insist(&self, write: impl Fn(&ShimWriter) -> client::Result<()>) -> client::Result<()> {
        loop {
            let (state, writer) = self.connected();
            let count = state.count;
            drop(state);
            match write(&writer) {
                Ok(()) => return Ok(()),
                Err(Error::Overdue) => return Err(Error::Overdue),
                Err(_) => {
                    // The reader has to notice too, whatever the reason was.
                    writer.shut_down();
                    drop(self.changed.wait_while(self.lock(), |state| state.count == count));
                }
            }
        }
    }

    /// Waits for a connection.
    fn connected(&self) -> (MutexGuard<'_, State>, ShimWriter) {
        let mut state = self.lock();
        loop {
            if let Some(writer) = state.writer.clone() {
                return (state, writer);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A thread that panicked with the state left it usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StdinSink for Link {
    /// One frame: the one at which a connection fails did not arrive, so it is what the next one gets first.
    const BUFFER: usize = SHIM_STDIN_MAX;

    fn write_stdin(&self, bytes: &[u8]) -> client::Result<()> {
        self.insist(|writer| writer.write_stdin(bytes))
    }

    fn end_stdin(&self) -> client::Result<()> {
        self.insist(ShimWriter::end_stdin)
    }
}

/// Moves the process's outputs to own stdout and stderr until it has ended or the connection has. `answered` gets the
/// daemon's answers.
///
/// # Errors
/// The connection's other than that it ended, or own stdout's other than that nobody reads it.
pub(in crate::cli) fn outputs(
    reader: &mut ShimReader,
    outputs: &mut Outputs,
    mut answered: impl FnMut(&ShimEvent<'_>),
) -> anyhow::Result<End> {
    let mut status = None;
    loop {
        let batch = match reader.read_batch() {
            Ok(Some(batch)) => batch,
            Ok(None) | Err(Error::Lost) => return Ok(End::Closed),
            Err(error) => return Err(error).context("the session broke"),
        };
        let said = batch.filter_map(|event| match event {
            Ok(ShimEvent::Stdout(bytes)) => Some(Ok((Stream::Stdout, bytes))),
            Ok(ShimEvent::Stderr(bytes)) => Some(Ok((Stream::Stderr, bytes))),
            Ok(ShimEvent::Exited(ended)) => {
                status = Some(ended);
                None
            }
            Ok(answer @ ShimEvent::Response { .. }) => {
                answered(&answer);
                None
            }
            Ok(ShimEvent::Closed) => None,
            Err(error) => Some(Err(error)),
        });
        match outputs.write_batch(said) {
            Err(error) if is_closed_stdout(&error) => return Ok(End::NobodyReads),
            written => written?,
        }
        if let Some(status) = status {
            return Ok(End::Status(status));
        }
    }
}
