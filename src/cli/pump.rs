//! The bytes of a process run from here: own stdin to the process, the process's outputs to own stdout and stderr.
//!
//! Owns no rules about what bytes mean, and knows neither protocol. The asymmetry to know: a stdout that nobody reads
//! any more is told to the caller, for a command ends with it; a stderr that nobody reads only loses what is written
//! to it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::{self, Stream};

/// Pieces written at once.
const PIECES: usize = 64;

/// What the end of own stdin becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StdinEnd {
    /// The process's stdin is a pipe: close it.
    Frame,
    /// The process has a terminal, own stdin is none: say it as a person would.
    ControlD,
    /// Both are terminals: the person said it already, or hung up.
    Nothing,
}

impl StdinEnd {
    /// What suits a command with a terminal (`tty`) and own stdin being one (`stdin_is_terminal`), or not.
    pub(super) fn of(tty: bool, stdin_is_terminal: bool) -> StdinEnd {
        match (tty, stdin_is_terminal) {
            (false, _) => StdinEnd::Frame,
            (true, true) => StdinEnd::Nothing,
            (true, false) => StdinEnd::ControlD,
        }
    }
}

/// How a process run from here ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It ended with this status, and its outputs are written.
    Status(u8),
    /// The daemon closed the session first.
    Closed,
    /// Own stdout is a pipe nobody reads any more.
    NobodyReads,
}

/// Where own stdin goes.
pub(super) trait StdinSink {
    /// Bytes read at once: whole frames, at least what a frame takes.
    const BUFFER: usize;

    /// Passes bytes on; blocks while they cannot be taken.
    fn write_stdin(&self, bytes: &[u8]) -> client::Result<()>;

    /// Closes the process's stdin.
    fn end_stdin(&self) -> client::Result<()>;
}

/// Moves own stdin to the process in a thread of its own, until either ends.
pub(super) fn spawn_stdin<S: StdinSink + Send + Sync + 'static>(sink: std::sync::Arc<S>, at_end: StdinEnd) {
    std::thread::spawn(move || {
        if let Err(error) = stdin(&*sink, at_end) {
            eprintln!("ringway: cannot read standard input: {error}\r");
        }
    });
}

/// Moves own stdin to the process until either ends.
///
/// # Errors
/// Own stdin's; the session's end is none, because the outputs tell about it.
fn stdin<S: StdinSink>(sink: &S, at_end: StdinEnd) -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; S::BUFFER];
    loop {
        let read = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                wait(input.as_fd(), PollFlags::POLLIN)?;
                continue;
            }
            // The terminal is gone: its end.
            Err(e) if e.raw_os_error() == Some(nix::libc::EIO) => break,
            Err(e) => {
                // The process must not wait for more of what cannot be read.
                let _ = sink.end_stdin();
                return Err(e);
            }
        };
        if sink.write_stdin(&buffer[..read]).is_err() {
            return Ok(());
        }
    }
    let _ = match at_end {
        StdinEnd::Frame => sink.end_stdin(),
        StdinEnd::ControlD => sink.write_stdin(&[0x04]),
        StdinEnd::Nothing => Ok(()),
    };
    Ok(())
}

/// An error of own stdout, which is told apart from the session's.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
struct StdoutError(io::Error);

/// Whether an error means that own stdout is a pipe nobody reads any more.
pub(super) fn is_closed_stdout(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StdoutError>().is_some_and(|e| e.0.kind() == io::ErrorKind::BrokenPipe)
}

/// Own stdout and stderr.
#[derive(Debug)]
pub(super) struct Outputs {
    stdout: File,
    stderr: File,
    /// A stdout that nobody reads only loses what is written to it.
    forgiving: bool,
}

impl Outputs {
    /// This process's own.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn own() -> io::Result<Outputs> {
        let stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        Ok(Outputs { stdout, stderr, forgiving: false })
    }

    /// From now on what cannot be written to stdout is lost, as with stderr.
    pub(super) fn forgive(mut self) -> Outputs {
        self.forgiving = true;
        self
    }

    /// Writes what one read brought, neighbours of one stream together.
    ///
    /// # Errors
    /// The session's, or own stdout's (see [`is_closed_stdout`]).
    pub(super) fn write_batch<'a>(
        &mut self,
        batch: impl Iterator<Item = client::Result<(Stream, &'a [u8])>>,
    ) -> anyhow::Result<()> {
        let mut pieces = [IoSlice::new(&[]); PIECES];
        let mut used = 0;
        let mut current = Stream::Stdout;
        for said in batch {
            let (stream, bytes) = said.context("the session broke")?;
            if used == PIECES || (stream != current && used > 0) {
                self.write(current, &mut pieces[..used])?;
                used = 0;
            }
            current = stream;
            pieces[used] = IoSlice::new(bytes);
            used += 1;
        }
        Ok(self.write(current, &mut pieces[..used])?)
    }

    fn write(&mut self, stream: Stream, pieces: &mut [IoSlice<'_>]) -> Result<(), StdoutError> {
        match stream {
            Stream::Stdout => match write_all(&mut self.stdout, pieces) {
                Err(_) if self.forgiving => Ok(()),
                written => written.map_err(StdoutError),
            },
            Stream::Stderr => {
                let _ = write_all(&mut self.stderr, pieces);
                Ok(())
            }
        }
    }
}

fn write_all(file: &mut File, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
    while !pieces.is_empty() {
        match file.write_vectored(pieces) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut pieces, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // Somebody else made it nonblocking: a terminal is shared with everyone on it.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(file.as_fd(), PollFlags::POLLOUT)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(fd, what)], PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(said: Vec<client::Result<(Stream, &[u8])>>) -> (anyhow::Result<()>, String, String) {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut files = Outputs { stdout, stderr, forgiving: false };
        let outcome = files.write_batch(said.into_iter());
        (outcome, contents(files.stdout), contents(files.stderr))
    }

    fn contents(mut file: File) -> String {
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn outputs_stay_apart_and_in_order() {
        let stdout = |text: &'static str| Ok((Stream::Stdout, text.as_bytes()));
        let stderr = |text: &'static str| Ok((Stream::Stderr, text.as_bytes()));
        let mut said = vec![stdout("a"), stderr("x"), stderr("y"), stdout("b")];
        said.extend(std::iter::repeat_with(|| stdout("c")).take(2 * PIECES));
        said.push(stderr("z"));
        let (outcome, stdout, stderr) = run(said);
        outcome.unwrap();
        assert_eq!(stdout, format!("ab{}", "c".repeat(2 * PIECES)));
        assert_eq!(stderr, "xyz");
    }

    #[test]
    fn the_session_s_errors_are_told() {
        let (outcome, ..) = run(vec![Ok((Stream::Stdout, b"a")), Err(client::Error::Protocol("bad".into()))]);
        assert!(format!("{:#}", outcome.unwrap_err()).contains("bad"));
    }

    #[test]
    fn what_the_end_of_stdin_becomes() {
        assert_eq!(StdinEnd::of(false, false), StdinEnd::Frame);
        assert_eq!(StdinEnd::of(false, true), StdinEnd::Frame);
        assert_eq!(StdinEnd::of(true, true), StdinEnd::Nothing);
        assert_eq!(StdinEnd::of(true, false), StdinEnd::ControlD);
    }
}
