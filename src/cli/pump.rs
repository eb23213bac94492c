//! The bytes of an exec session: own stdin to the process, the process's outputs to own stdout and stderr.
//!
//! Owns no rules about what bytes mean. The asymmetry to know: a stdout that nobody reads any more ends the command, as
//! it would a local one; a stderr that nobody reads only loses what is written to it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::client::{Error, Event, STDIN_PAYLOAD_MAX, SessionReader, SessionWriter, Stream};

/// Bytes of stdin read at once: whole frames, a little over what a pipe holds.
const STDIN_BUFFER: usize = 17 * STDIN_PAYLOAD_MAX;

/// Pieces written at once.
const PIECES: usize = 64;

/// How long stderr's end may come after the exit status. Agents that never send it cost this much.
const LAST_WORDS: Duration = Duration::from_millis(200);

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

/// How an exec session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The process ended with this status, and its outputs are written.
    Status(u8),
    /// The daemon closed the session first.
    Closed,
    /// Own stdout is a pipe nobody reads any more.
    NobodyReads,
}

/// Moves own stdin to the process until either ends.
///
/// # Errors
/// Own stdin's; the session's end is none, because the outputs tell about it.
pub(super) fn stdin(writer: &Mutex<SessionWriter>, at_end: StdinEnd) -> io::Result<()> {
    let mut input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut buffer = vec![0; STDIN_BUFFER];
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
                let _ = lock(writer).end_stdin();
                return Err(e);
            }
        };
        if lock(writer).write_stdin(&buffer[..read]).is_err() {
            return Ok(());
        }
    }
    let _ = match at_end {
        StdinEnd::Frame => lock(writer).end_stdin(),
        StdinEnd::ControlD => lock(writer).write_stdin(&[0x04]),
        StdinEnd::Nothing => Ok(()),
    };
    Ok(())
}

fn lock(writer: &Mutex<SessionWriter>) -> std::sync::MutexGuard<'_, SessionWriter> {
    writer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves the process's outputs to own stdout and stderr until it has ended and both are complete.
///
/// # Errors
/// The session's, or own stdout's other than that nobody reads it.
pub(super) fn outputs(reader: &mut SessionReader, has_stderr: bool) -> anyhow::Result<End> {
    let mut outputs = Outputs {
        stdout: File::from(io::stdout().as_fd().try_clone_to_owned()?),
        stderr: File::from(io::stderr().as_fd().try_clone_to_owned()?),
    };
    let mut progress = Progress { status: None, stderr_ended: !has_stderr };
    loop {
        match one_batch(reader, &mut outputs, &mut progress) {
            Ok(true) => {}
            Ok(false) => return Ok(progress.status.map_or(End::Closed, End::Status)),
            Err(e) if is_closed_pipe(&e) => return Ok(End::NobodyReads),
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

/// An error of own stdout, which is told apart from the session's.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
struct StdoutError(io::Error);

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StdoutError>().is_some_and(|e| e.0.kind() == io::ErrorKind::BrokenPipe)
}

#[derive(Debug, Clone, Copy)]
struct Progress {
    status: Option<u8>,
    stderr_ended: bool,
}

struct Outputs {
    stdout: File,
    stderr: File,
}

impl Outputs {
    fn write(&mut self, stream: Stream, pieces: &mut [IoSlice<'_>]) -> Result<(), StdoutError> {
        match stream {
            Stream::Stdout => write_all(&mut self.stdout, pieces).map_err(StdoutError),
            Stream::Stderr => {
                let _ = write_all(&mut self.stderr, pieces);
                Ok(())
            }
        }
    }
}

/// Writes what one read brought, neighbours of one stream together. `false` when the session was closed.
fn one_batch(reader: &mut SessionReader, outputs: &mut Outputs, progress: &mut Progress) -> anyhow::Result<bool> {
    let Some(batch) = reader.read_batch().context("the session broke")? else { return Ok(false) };
    let mut pieces = [IoSlice::new(&[]); PIECES];
    let mut used = 0;
    let mut current = Stream::Stdout;
    for event in batch {
        let (stream, bytes) = match event.context("the session broke")? {
            Event::Stdout(bytes) => (Stream::Stdout, bytes),
            Event::Stderr(bytes) => (Stream::Stderr, bytes),
            Event::Ended(stream) => {
                progress.stderr_ended |= stream == Stream::Stderr;
                continue;
            }
            Event::ExitStatus(status) => {
                progress.status = Some(status);
                continue;
            }
        };
        if used == PIECES || (stream != current && used > 0) {
            outputs.write(current, &mut pieces[..used])?;
            used = 0;
        }
        current = stream;
        pieces[used] = IoSlice::new(bytes);
        used += 1;
    }
    outputs.write(current, &mut pieces[..used])?;
    Ok(true)
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
    use crate::client::Session;
    use crate::wire::hyper::{FrameHeader, StreamSeq};
    use std::os::unix::net::UnixStream;

    fn run(frames: &[(u64, &[u8])]) -> (anyhow::Result<bool>, Option<u8>, String, String) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        for (seq, payload) in frames {
            let header = FrameHeader::for_payload(StreamSeq(*seq), u32::try_from(payload.len()).unwrap());
            ours.write_all(&[&header.encode()[..], payload].concat()).unwrap();
        }
        let (mut reader, _writer) = Session::new(StreamSeq(1), 2, theirs.into()).split();
        let mut files = Outputs { stdout: tempfile::tempfile().unwrap(), stderr: tempfile::tempfile().unwrap() };
        let mut progress = Progress { status: None, stderr_ended: false };
        let outcome = one_batch(&mut reader, &mut files, &mut progress);
        (outcome, progress.status, contents(files.stdout), contents(files.stderr))
    }

    fn contents(mut file: File) -> String {
        let mut text = String::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn outputs_stay_apart_and_in_order() {
        let mut frames: Vec<(u64, &[u8])> = vec![(1, b"a"), (2, b"x"), (2, b"y"), (1, b"b")];
        frames.extend(std::iter::repeat_n((1, &b"c"[..]), 2 * PIECES));
        frames.extend([(2, &b"z"[..]), (2, b""), (1, b""), (1, &[9])]);
        let (outcome, status, stdout, stderr) = run(&frames);
        assert!(outcome.unwrap());
        assert_eq!(status, Some(9));
        assert_eq!(stdout, format!("ab{}", "c".repeat(2 * PIECES)));
        assert_eq!(stderr, "xyz");
    }

    #[test]
    fn a_foreign_frame_is_said_to_be_one() {
        let (outcome, ..) = run(&[(1, b"a"), (3, b"x")]);
        assert!(format!("{:#}", outcome.unwrap_err()).contains("sequence 3"));
    }
}
