//! A shim's connection of protocol 2: one process's stdin out, its outputs, exit status and responses in.
//!
//! Owns the socket and a 64 KiB buffer; never holds more than that of what a process says. The asymmetry to know:
//! frames of output are handed out as they arrive, in pieces, so a connection may end inside one; the daemon sends
//! that frame again to whoever claims the token next, and [`ShimReader::skip`] leaves out what was seen of it.

use std::io::{IoSlice, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::runtime::{encode, refusal};
use super::{Error, Result, Stream, socket};
use crate::limits;
use crate::wire::cc2::{self, Command, HEADER_LEN, Header, Kind};

/// Most bytes of stdin in one frame: with its header one kernel buffer, which a socket with room takes whole.
pub const SHIM_STDIN_MAX: usize = limits::SEND_MAX - HEADER_LEN;

/// Bytes read at once.
const READ_BUFFER: usize = 64 * 1024;

/// The number of SIGWINCH.
const SIGWINCH: i32 = nix::libc::SIGWINCH;

/// What happened at the process, or was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShimEvent<'a> {
    /// It wrote these bytes to stdout.
    Stdout(&'a [u8]),
    /// It wrote these bytes to stderr.
    Stderr(&'a [u8]),
    /// It ended with this status. All its output came before.
    Exited(u8),
    /// The daemon answered a command; answers come in the order of the commands.
    Response {
        /// Which.
        command: Command,
        /// It was refused; the payload says why, see [`ShimEvent::refused`].
        error: bool,
        /// What it returned.
        payload: Vec<u8>,
    },
    /// The daemon closed the connection, between two frames.
    Closed,
}

impl ShimEvent<'_> {
    /// Why a command was refused, where this is such an answer.
    pub fn refused(&self) -> Option<Error> {
        match self {
            ShimEvent::Response { error: true, payload, .. } => Some(refusal(payload)),
            _ => None,
        }
    }
}

/// A frame of output of which only a part arrived before the connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    stream: Stream,
    /// Bytes of its payload that were handed out.
    seen: usize,
    /// Bytes of its payload.
    len: usize,
}

/// One shim's connection to the daemon.
#[derive(Debug)]
pub struct ShimClient {
    reader: ShimReader,
    writer: ShimWriter,
}

impl ShimClient {
    /// Connects to the daemon's proxy socket.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect(path: impl AsRef<Path>) -> Result<ShimClient> {
        socket::connect(path.as_ref()).map(ShimClient::from)
    }

    /// Claims a token: from now on this connection carries its session.
    ///
    /// # Errors
    /// [`Error::Refused`] when the token is unknown or claimed; [`Error::Lost`] when the daemon closed; else see
    /// [`Error`].
    pub fn connect_shim(&mut self, token: &str) -> Result<()> {
        self.writer.command(Command::ConnectShim, &cc2::ConnectShim { token: token.to_owned() })?;
        match self.reader.read_event()? {
            event @ ShimEvent::Response { command: Command::ConnectShim, .. } => event.refused().map_or(Ok(()), Err),
            ShimEvent::Closed => Err(Error::Lost),
            other => Err(Error::Protocol(format!("{other:?} before the response to ConnectShim"))),
        }
    }

    /// Bounds the time one read may wait; `None`, the default, waits for ever.
    ///
    /// # Errors
    /// [`Error::Io`] for a duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.reader.set_timeout(timeout)
    }

    /// The two directions, for two threads. The socket closes when both are dropped.
    pub fn split(self) -> (ShimReader, ShimWriter) {
        (self.reader, self.writer)
    }

    /// Gives the token up and closes the connection.
    ///
    /// # Errors
    /// As for [`ShimWriter::disconnect_shim`].
    pub fn disconnect_shim(self) -> Result<()> {
        self.writer.disconnect_shim()
    }

    /// See [`ShimWriter::signal`].
    ///
    /// # Errors
    /// As there.
    pub fn signal(&mut self, number: i32) -> Result<()> {
        self.writer.signal(number)
    }

    /// See [`ShimWriter::window_size`].
    ///
    /// # Errors
    /// As there.
    pub fn window_size(&mut self, columns: u16, rows: u16) -> Result<()> {
        self.writer.window_size(columns, rows)
    }

    /// See [`ShimWriter::write_stdin`].
    ///
    /// # Errors
    /// As there.
    pub fn write_stdin(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_stdin(bytes)
    }

    /// See [`ShimWriter::end_stdin`].
    ///
    /// # Errors
    /// As there.
    pub fn end_stdin(&mut self) -> Result<()> {
        self.writer.end_stdin()
    }

    /// See [`ShimReader::read_event`].
    ///
    /// # Errors
    /// As there.
    pub fn read_event(&mut self) -> Result<ShimEvent<'_>> {
        self.reader.read_event()
    }
}

impl From<UnixStream> for ShimClient {
    fn from(socket: UnixStream) -> ShimClient {
        let socket = Arc::new(socket);
        let buffer = vec![0; READ_BUFFER].into_boxed_slice();
        let frames = Frames::default();
        let writer = ShimWriter { socket: Arc::clone(&socket), turn: Arc::default() };
        ShimClient { reader: ShimReader { socket, buffer, filled: 0, frames }, writer }
    }
}

/// The direction to the process. Clones write to the same connection, from any thread, whole frames each.
#[derive(Debug, Clone)]
pub struct ShimWriter {
    socket: Arc<UnixStream>,
    turn: Arc<Mutex<()>>,
}

impl ShimWriter {
    /// Writes bytes to the process's stdin, in frames of at most [`SHIM_STDIN_MAX`] bytes of payload. Blocks while the
    /// daemon takes no more; signals of other threads do not wait for that. Writing nothing does nothing: an empty
    /// frame would end stdin.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection is over, [`Error::Io`] otherwise. The frame at which it failed did not
    /// arrive, those before it may not have.
    pub fn write_stdin(&self, bytes: &[u8]) -> Result<()> {
        for payload in bytes.chunks(SHIM_STDIN_MAX) {
            // A socket that polls as writable has three quarters of its buffer free, so the frame is taken at once and
            // the turn is never held by a frame that is stuck halfway.
            self.wait_for_room()?;
            self.stdin_frame(payload)?;
        }
        Ok(())
    }

    /// Closes the process's stdin: an empty frame.
    ///
    /// # Errors
    /// As for [`ShimWriter::write_stdin`].
    pub fn end_stdin(&self) -> Result<()> {
        self.stdin_frame(&[])
    }

    /// Signals the process. The answer comes as a [`ShimEvent::Response`].
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection is over, [`Error::Io`] otherwise.
    pub fn signal(&self, number: i32) -> Result<()> {
        self.command(Command::Signal, &cc2::Signal { signal_number: i64::from(number), columns: 0, rows: 0 })
    }

    /// Tells the process's terminal its size, in characters. The answer comes as a [`ShimEvent::Response`].
    ///
    /// # Errors
    /// As for [`ShimWriter::signal`].
    pub fn window_size(&self, columns: u16, rows: u16) -> Result<()> {
        let (columns, rows) = (i64::from(columns), i64::from(rows));
        self.command(Command::Signal, &cc2::Signal { signal_number: i64::from(SIGWINCH), columns, rows })
    }

    /// Writes an entry into the daemon's log. Nobody answers.
    ///
    /// # Errors
    /// As for [`ShimWriter::signal`].
    pub fn log(&self, entry: &cc2::LogEntry) -> Result<()> {
        self.frame(&encode(Kind::Stream(cc2::Stream::Log), entry)?)
    }

    /// Gives the token up. Nothing is waited for: what is left to do is to drop both directions.
    ///
    /// # Errors
    /// As for [`ShimWriter::signal`].
    pub fn disconnect_shim(&self) -> Result<()> {
        self.frame(&cc2::encode(Kind::Command(Command::DisconnectShim), &[]))
    }

    /// Bounds the time one write may wait; `None`, the default, waits for ever.
    ///
    /// # Errors
    /// [`Error::Io`] for a duration of zero.
    pub fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        self.socket.set_write_timeout(timeout).map_err(Error::Io)
    }

    /// Ends the connection in both directions at once; a reader in another thread sees its end.
    pub fn shut_down(&self) {
        // Fails only where the other end is gone already, which is what was wanted.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn command<T: serde::Serialize>(&self, command: Command, payload: &T) -> Result<()> {
        self.frame(&encode(Kind::Command(command), payload)?)
    }

    fn frame(&self, frame: &[u8]) -> Result<()> {
        let _turn = self.turn();
        Ok((&*self.socket).write_all(frame)?)
    }

    fn stdin_frame(&self, payload: &[u8]) -> Result<()> {
        // Payloads come from `chunks(SHIM_STDIN_MAX)`, far below the field's end.
        let len = u32::try_from(payload.len()).unwrap_or(0);
        let header = Header::new(Kind::Stream(cc2::Stream::Stdin), len).encode();
        let _turn = self.turn();
        socket::write_all_vectored(&self.socket, &mut [IoSlice::new(&header), IoSlice::new(payload)])
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for_room(&self) -> Result<()> {
        loop {
            let mut polled = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut polled, PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(Error::Io(e.into())),
            }
        }
    }
}

/// The direction from the process.
#[derive(Debug)]
pub struct ShimReader {
    socket: Arc<UnixStream>,
    buffer: Box<[u8]>,
    filled: usize,
    frames: Frames,
}

impl ShimReader {
    /// The next thing that happened.
    ///
    /// # Errors
    /// [`Error::Lost`] when the daemon closed inside a frame, [`Error::Overdue`] past the time set by
    /// [`ShimReader::set_timeout`] (try again), [`Error::Protocol`], [`Error::Io`].
    pub fn read_event(&mut self) -> Result<ShimEvent<'_>> {
        loop {
            if let Some(found) = self.frames.next(&self.buffer[..self.filled])? {
                return Ok(found.event(&self.buffer));
            }
            if !self.fill()? {
                return Ok(ShimEvent::Closed);
            }
        }
    }

    /// All that one read of up to 64 KiB brought, so that it can be written on with few system calls; `None` when
    /// the daemon closed the connection between two frames. A batch may hold no event, and never holds
    /// [`ShimEvent::Closed`].
    ///
    /// # Errors
    /// As for [`ShimReader::read_event`].
    pub fn read_batch(&mut self) -> Result<Option<ShimBatch<'_>>> {
        if self.frames.at >= self.filled && !self.frames.is_complete() && !self.fill()? {
            return Ok(None);
        }
        Ok(Some(ShimBatch { bytes: &self.buffer[..self.filled], frames: &mut self.frames }))
    }

    /// Bounds the time one read may wait; `None`, the default, waits for ever.
    ///
    /// # Errors
    /// [`Error::Io`] for a duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.socket.set_read_timeout(timeout).map_err(Error::Io)
    }

    /// The frame of output the connection ended in, if it did.
    pub fn unfinished(&self) -> Option<Unfinished> {
        let frames = &self.frames;
        let (stream, left, len) = match frames.state {
            State::Payload { taker: Taker::Output(stream), left, len } => (stream, left, len),
            State::Extra { taker: Taker::Output(stream), len, .. } => (stream, len, len),
            // None begun: what was to be left out still is.
            _ => return frames.skip,
        };
        let seen = len - left + frames.leave_out;
        (left > 0 && seen > 0).then_some(Unfinished { stream, seen, len })
    }

    /// Leaves out what an earlier connection already handed out of a frame, when that frame is the first of output
    /// here. The daemon resumes there: "at the first frame not accepted whole".
    pub fn skip(&mut self, unfinished: Option<Unfinished>) {
        self.frames.skip = unfinished;
    }

    fn fill(&mut self) -> Result<bool> {
        (self.filled, self.frames.at) = (0, 0);
        self.filled = socket::read_some(&self.socket, &mut self.buffer)?;
        if self.filled == 0 && self.frames.is_inside_frame() {
            return Err(Error::Lost);
        }
        Ok(self.filled > 0)
    }
}

/// The events of one read. What is not taken from it comes again with the next batch.
#[derive(Debug)]
pub struct ShimBatch<'a> {
    bytes: &'a [u8],
    frames: &'a mut Frames,
}

impl<'a> Iterator for ShimBatch<'a> {
    type Item = Result<ShimEvent<'a>>;

    fn next(&mut self) -> Option<Result<ShimEvent<'a>>> {
        let bytes = self.bytes;
        self.frames.next(bytes).map(|found| found.map(|found| found.event(bytes))).transpose()
    }
}

/// An event, by where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Output(Stream, Range<usize>),
    Exited(u8),
    Response { command: Command, error: bool, payload: Vec<u8> },
}

impl Found {
    fn event(self, bytes: &[u8]) -> ShimEvent<'_> {
        match self {
            Found::Output(Stream::Stdout, range) => ShimEvent::Stdout(&bytes[range]),
            Found::Output(Stream::Stderr, range) => ShimEvent::Stderr(&bytes[range]),
            Found::Exited(status) => ShimEvent::Exited(status),
            Found::Response { command, error, payload } => ShimEvent::Response { command, error, payload },
        }
    }
}

/// Who gets a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    /// The caller, as it arrives.
    Output(Stream),
    /// The message being put together: a response or an exit status.
    Message(Kind),
    /// Nobody: the rest of a longer header, news that mean nothing here.
    Nobody,
}

/// Where in a frame the bytes at hand are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the first 12 bytes, of which this many are there.
    Header { have: usize },
    /// In what a longer header has behind them: this many bytes are left of it, then comes the payload.
    Extra { left: usize, taker: Taker, len: usize },
    /// In the payload.
    Payload { taker: Taker, left: usize, len: usize },
}

/// The frames' structure, across reads that end anywhere.
#[derive(Debug)]
struct Frames {
    /// Where to go on in the bytes at hand.
    at: usize,
    header: [u8; HEADER_LEN],
    state: State,
    /// The payload so far of a message.
    message: Vec<u8>,
    /// What of the first output frame is not to be handed out.
    skip: Option<Unfinished>,
    /// Bytes still to be left out of the frame begun.
    leave_out: usize,
}

impl Default for Frames {
    fn default() -> Frames {
        let state = State::Header { have: 0 };
        Frames { at: 0, header: [0; HEADER_LEN], state, message: Vec::new(), skip: None, leave_out: 0 }
    }
}

impl Frames {
    fn is_inside_frame(&self) -> bool {
        self.state != State::Header { have: 0 }
    }

    /// Whether a frame's last byte was handled and its event is still to be told.
    fn is_complete(&self) -> bool {
        matches!(self.state, State::Payload { left: 0, .. })
    }

    /// The next event in `bytes`; `None` when they are used up.
    fn next(&mut self, bytes: &[u8]) -> Result<Option<Found>> {
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            match self.state {
                State::Payload { taker, left: 0, .. } => {
                    self.state = State::Header { have: 0 };
                    if let Some(found) = self.finish(taker)? {
                        return Ok(Some(found));
                    }
                }
                _ if rest.is_empty() => return Ok(None),
                State::Header { have } => self.take_header(have, rest)?,
                State::Extra { left, taker, len } => {
                    let take = left.min(rest.len());
                    self.at += take;
                    self.state = match left - take {
                        0 => State::Payload { taker, left: len, len },
                        left => State::Extra { left, taker, len },
                    };
                }
                State::Payload { taker, left, len } => {
                    let take = left.min(rest.len());
                    let range = self.at..self.at + take;
                    self.at += take;
                    self.state = State::Payload { taker, left: left - take, len };
                    if let Some(found) = self.take_payload(taker, bytes, range) {
                        return Ok(Some(found));
                    }
                }
            }
        }
    }

    fn take_header(&mut self, have: usize, rest: &[u8]) -> Result<()> {
        let take = (HEADER_LEN - have).min(rest.len());
        self.header[have..][..take].copy_from_slice(&rest[..take]);
        self.at += take;
        self.state = State::Header { have: have + take };
        if have + take == HEADER_LEN {
            self.begin_frame()?;
        }
        Ok(())
    }

    /// Acts on a whole header.
    fn begin_frame(&mut self) -> Result<()> {
        let header = Header::decode(self.header)?;
        let taker = match header.kind {
            Kind::Stream(cc2::Stream::Stdout) => Taker::Output(Stream::Stdout),
            Kind::Stream(cc2::Stream::Stderr) => Taker::Output(Stream::Stderr),
            Kind::Response { .. } | Kind::Notification(cc2::PROCESS_EXITED) => Taker::Message(header.kind),
            Kind::Notification(_) => Taker::Nobody,
            other => return Err(Error::Protocol(format!("the daemon sent {other:?}, which only clients send"))),
        };
        // Bounded by `Header::decode`, far below what a usize holds.
        let (len, extra) = (header.payload as usize, header.extra as usize);
        if let Taker::Output(stream) = taker {
            let again = self.skip.take().filter(|seen| (seen.stream, seen.len) == (stream, len));
            self.leave_out = again.map_or(0, |again| again.seen);
        }
        self.state = match extra {
            0 => State::Payload { taker, left: len, len },
            left => State::Extra { left, taker, len },
        };
        Ok(())
    }

    fn take_payload(&mut self, taker: Taker, bytes: &[u8], range: Range<usize>) -> Option<Found> {
        match taker {
            Taker::Nobody => None,
            Taker::Message(_) => {
                self.message.extend_from_slice(&bytes[range]);
                None
            }
            Taker::Output(stream) => {
                let known = self.leave_out.min(range.len());
                self.leave_out -= known;
                let new = range.start + known..range.end;
                (!new.is_empty()).then_some(Found::Output(stream, new))
            }
        }
    }

    /// The event of a frame whose payload is complete.
    fn finish(&mut self, taker: Taker) -> Result<Option<Found>> {
        let payload = std::mem::take(&mut self.message);
        match taker {
            Taker::Message(Kind::Response { command, error }) => Ok(Some(Found::Response { command, error, payload })),
            Taker::Message(_) => match payload[..] {
                [status] => Ok(Some(Found::Exited(status))),
                _ => Err(Error::Protocol(format!("an exit status of {} bytes", payload.len()))),
            },
            Taker::Output(_) | Taker::Nobody => Ok(None),
        }
    }
}
