//! One process's I/O over the session's socket: stdin frames out, events in.
//!
//! Owns the socket and a 64 KiB buffer; never holds more than that of what a process says. The asymmetry to know:
//! what is written is cut into frames an agent takes, what is read is handed out as it arrives, so a long frame
//! becomes several [`Event`]s and frames have no meaning to the caller.

use std::io::{IoSlice, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::{Error, Result, socket};
use crate::limits;
use crate::wire::hyper::{FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// Most bytes of stdin in one frame: what every agent takes, without the header.
pub const STDIN_PAYLOAD_MAX: usize = limits::AGENT_FRAME_DEFAULT as usize - FRAME_HEADER_LEN;

/// Bytes read at once.
const READ_BUFFER: usize = 64 * 1024;

/// Frames in one gathered write: as many as 64 KiB of stdin become.
const FRAMES_PER_WRITE: usize = 17;

/// One of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The session's first sequence.
    Stdout,
    /// The session's second sequence.
    Stderr,
}

/// What happened at the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// It wrote these bytes to stdout.
    Stdout(&'a [u8]),
    /// It wrote these bytes to stderr.
    Stderr(&'a [u8]),
    /// One of its outputs ended.
    Ended(Stream),
    /// It ended with this status. Comes after the end of stdout; not from agents that report statuses elsewhere.
    ExitStatus(u8),
}

/// Both directions of a session.
#[derive(Debug)]
pub struct Session {
    reader: SessionReader,
    writer: SessionWriter,
}

impl Session {
    /// Takes what [`Client::allocate_io`](super::Client::allocate_io) returned; `streams` is what it was asked for.
    pub fn new(io_base: StreamSeq, streams: u8, fd: OwnedFd) -> Session {
        let socket = Arc::new(UnixStream::from(fd));
        let stderr = (streams > 1).then(|| StreamSeq(io_base.0.saturating_add(1)));
        let frames = Frames::new(io_base, stderr);
        let buffer = vec![0; READ_BUFFER].into_boxed_slice();
        Session {
            reader: SessionReader { socket: Arc::clone(&socket), buffer, filled: 0, frames },
            writer: SessionWriter { socket, stdio: io_base },
        }
    }

    /// The two directions, for two threads. The socket closes when both are dropped.
    pub fn split(self) -> (SessionReader, SessionWriter) {
        (self.reader, self.writer)
    }

    /// See [`SessionWriter::write_stdin`].
    ///
    /// # Errors
    /// As there.
    pub fn write_stdin(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_stdin(bytes)
    }

    /// See [`SessionWriter::end_stdin`].
    ///
    /// # Errors
    /// As there.
    pub fn end_stdin(&mut self) -> Result<()> {
        self.writer.end_stdin()
    }

    /// See [`SessionReader::read_event`].
    ///
    /// # Errors
    /// As there.
    pub fn read_event(&mut self) -> Result<Option<Event<'_>>> {
        self.reader.read_event()
    }
}

/// The direction to the process.
#[derive(Debug)]
pub struct SessionWriter {
    socket: Arc<UnixStream>,
    stdio: StreamSeq,
}

impl SessionWriter {
    /// Writes bytes to the process's stdin, in frames of at most [`STDIN_PAYLOAD_MAX`] bytes of payload, many to a
    /// system call. Blocks while the daemon takes no more. Writing nothing does nothing.
    ///
    /// # Errors
    /// [`Error::Lost`] when the session is over, [`Error::Io`] otherwise; some of the bytes may have gone out.
    pub fn write_stdin(&mut self, bytes: &[u8]) -> Result<()> {
        for group in bytes.chunks(STDIN_PAYLOAD_MAX * FRAMES_PER_WRITE) {
            let mut headers = [[0; FRAME_HEADER_LEN]; FRAMES_PER_WRITE];
            for (header, payload) in headers.iter_mut().zip(group.chunks(STDIN_PAYLOAD_MAX)) {
                *header = encode_header(self.stdio, payload.len());
            }
            let mut pieces = [IoSlice::new(&[]); 2 * FRAMES_PER_WRITE];
            let mut used = 0;
            for (header, payload) in headers.iter().zip(group.chunks(STDIN_PAYLOAD_MAX)) {
                pieces[used] = IoSlice::new(header);
                pieces[used + 1] = IoSlice::new(payload);
                used += 2;
            }
            socket::write_all_vectored(&self.socket, &mut pieces[..used])?;
        }
        Ok(())
    }

    /// Closes the process's stdin: an empty frame. Agents ignore it where the process has a terminal.
    ///
    /// # Errors
    /// As for [`SessionWriter::write_stdin`].
    pub fn end_stdin(&mut self) -> Result<()> {
        (&*self.socket).write_all(&encode_header(self.stdio, 0)).map_err(Error::from)
    }

    /// Bounds the time one write may wait; `None`, the default, waits for ever.
    ///
    /// # Errors
    /// [`Error::Io`] for a duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.socket.set_write_timeout(timeout).map_err(Error::Io)
    }

    /// Ends the session in both directions at once; a reader in another thread sees its end.
    pub fn shut_down(&self) {
        // Fails only where the other end is gone already, which is what was wanted.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

/// The direction from the process.
#[derive(Debug)]
pub struct SessionReader {
    socket: Arc<UnixStream>,
    buffer: Box<[u8]>,
    filled: usize,
    frames: Frames,
}

impl SessionReader {
    /// The next thing that happened; `None` when the daemon closed the session between two frames.
    ///
    /// # Errors
    /// [`Error::Lost`] when it was closed inside a frame, [`Error::Overdue`] past the time set by
    /// [`SessionReader::set_timeout`] (try again), [`Error::Protocol`], [`Error::Io`].
    pub fn read_event(&mut self) -> Result<Option<Event<'_>>> {
        loop {
            if let Some(found) = self.frames.next(&self.buffer[..self.filled])? {
                return Ok(Some(found.event(&self.buffer)));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    /// All that one read of up to 64 KiB brought, so that it can be written on with few system calls; `None` when
    /// the daemon closed the session between two frames. A batch may hold no event.
    ///
    /// # Errors
    /// As for [`SessionReader::read_event`].
    pub fn read_batch(&mut self) -> Result<Option<Batch<'_>>> {
        if self.frames.at >= self.filled && !self.fill()? {
            return Ok(None);
        }
        Ok(Some(Batch { bytes: &self.buffer[..self.filled], frames: &mut self.frames }))
    }

    /// Bounds the time one read may wait; `None`, the default, waits for ever.
    ///
    /// # Errors
    /// [`Error::Io`] for a duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.socket.set_read_timeout(timeout).map_err(Error::Io)
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
pub struct Batch<'a> {
    bytes: &'a [u8],
    frames: &'a mut Frames,
}

impl<'a> Iterator for Batch<'a> {
    type Item = Result<Event<'a>>;

    fn next(&mut self) -> Option<Result<Event<'a>>> {
        let bytes = self.bytes;
        self.frames.next(bytes).map(|found| found.map(|found| found.event(bytes))).transpose()
    }
}

/// An event, by where its bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Output(Stream, Range<usize>),
    Ended(Stream),
    ExitStatus(u8),
}

impl Found {
    fn event(self, bytes: &[u8]) -> Event<'_> {
        match self {
            Found::Output(Stream::Stdout, range) => Event::Stdout(&bytes[range]),
            Found::Output(Stream::Stderr, range) => Event::Stderr(&bytes[range]),
            Found::Ended(stream) => Event::Ended(stream),
            Found::ExitStatus(status) => Event::ExitStatus(status),
        }
    }
}

/// The frames' structure, across reads that end anywhere.
#[derive(Debug)]
struct Frames {
    stdio: StreamSeq,
    stderr: Option<StreamSeq>,
    /// Where to go on in the bytes at hand.
    at: usize,
    /// A header that has not arrived whole, and how much of it has.
    header: [u8; FRAME_HEADER_LEN],
    header_len: usize,
    /// Payload still to come of the frame begun, and whose it is.
    payload: Option<(Kind, usize)>,
    stdout_ended: bool,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Output(Stream),
    Status,
}

impl Frames {
    fn new(stdio: StreamSeq, stderr: Option<StreamSeq>) -> Frames {
        let header = [0; FRAME_HEADER_LEN];
        Frames { stdio, stderr, at: 0, header, header_len: 0, payload: None, stdout_ended: false }
    }

    fn is_inside_frame(&self) -> bool {
        self.header_len > 0 || self.payload.is_some()
    }

    /// The next event in `bytes`; `None` when they are used up.
    fn next(&mut self, bytes: &[u8]) -> Result<Option<Found>> {
        while self.at < bytes.len() {
            if let Some((kind, left)) = self.payload {
                return Ok(Some(self.take_payload(kind, left, bytes)));
            }
            let take = (FRAME_HEADER_LEN - self.header_len).min(bytes.len() - self.at);
            self.header[self.header_len..][..take].copy_from_slice(&bytes[self.at..][..take]);
            self.at += take;
            self.header_len += take;
            if self.header_len == FRAME_HEADER_LEN {
                self.header_len = 0;
                if let Some(ended) = self.begin_frame()? {
                    return Ok(Some(Found::Ended(ended)));
                }
            }
        }
        Ok(None)
    }

    fn take_payload(&mut self, kind: Kind, left: usize, bytes: &[u8]) -> Found {
        let take = left.min(bytes.len() - self.at);
        let range = self.at..self.at + take;
        self.at += take;
        self.payload = (left > take).then_some((kind, left - take));
        match kind {
            Kind::Output(stream) => Found::Output(stream, range),
            Kind::Status => Found::ExitStatus(bytes[range.start]),
        }
    }

    /// Acts on a whole header; returns the stream that an empty frame ended.
    fn begin_frame(&mut self) -> Result<Option<Stream>> {
        let header = FrameHeader::decode(self.header, limits::STREAM_FRAME_MAX)?;
        let stream = match header.seq {
            seq if seq == self.stdio => Stream::Stdout,
            seq if Some(seq) == self.stderr => Stream::Stderr,
            seq => return Err(Error::Protocol(format!("a frame of sequence {seq}, which is not this session's"))),
        };
        let len = usize::try_from(header.payload_len()).unwrap_or(usize::MAX);
        if len == 0 {
            self.stdout_ended |= stream == Stream::Stdout;
            return Ok(Some(stream));
        }
        let is_status = len == 1 && stream == Stream::Stdout && self.stdout_ended;
        self.payload = Some((if is_status { Kind::Status } else { Kind::Output(stream) }, len));
        Ok(None)
    }
}

fn encode_header(seq: StreamSeq, payload: usize) -> [u8; FRAME_HEADER_LEN] {
    // Payloads come from `chunks(STDIN_PAYLOAD_MAX)`, far below the field's end.
    FrameHeader::for_payload(seq, u32::try_from(payload).unwrap_or(0)).encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn frame(seq: u64, payload: &[u8]) -> Vec<u8> {
        [&encode_header(StreamSeq(seq), payload.len())[..], payload].concat()
    }

    /// Everything said, with the bytes of each stream put together.
    fn parse(wire: &[u8], cut: usize) -> (Vec<u8>, Vec<u8>, Vec<Found>) {
        let mut frames = Frames::new(StreamSeq(5), Some(StreamSeq(6)));
        let (mut out, mut err, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        for piece in wire.chunks(cut) {
            frames.at = 0;
            while let Some(found) = frames.next(piece).unwrap() {
                match found {
                    Found::Output(Stream::Stdout, range) => out.extend_from_slice(&piece[range]),
                    Found::Output(Stream::Stderr, range) => err.extend_from_slice(&piece[range]),
                    other => rest.push(other),
                }
            }
        }
        assert!(!frames.is_inside_frame());
        (out, err, rest)
    }

    #[test]
    fn events_do_not_depend_on_where_reads_end() {
        let wire = [frame(5, b"one "), frame(6, b"x"), frame(5, b"two"), frame(6, b""), frame(5, b""), frame(5, &[7])];
        let wire = wire.concat();
        for cut in 1..=wire.len() {
            let (out, err, rest) = parse(&wire, cut);
            assert_eq!((out.as_slice(), err.as_slice()), (&b"one two"[..], &b"x"[..]), "reads of {cut}");
            let expected = [Found::Ended(Stream::Stderr), Found::Ended(Stream::Stdout), Found::ExitStatus(7)];
            assert_eq!(rest, expected, "reads of {cut}");
        }
    }

    #[test]
    fn one_byte_before_the_end_is_output() {
        let (out, _, rest) = parse(&[frame(5, b"a"), frame(5, b"")].concat(), 64);
        assert_eq!((out.as_slice(), rest.as_slice()), (&b"a"[..], &[Found::Ended(Stream::Stdout)][..]));
    }

    #[test]
    fn foreign_sequences_and_bad_lengths_break_the_session() {
        let mut frames = Frames::new(StreamSeq(5), None);
        assert!(matches!(frames.next(&frame(6, b"a")), Err(Error::Protocol(_))));
        let mut frames = Frames::new(StreamSeq(5), None);
        let short = FrameHeader { seq: StreamSeq(5), len: 11 }.encode();
        assert!(matches!(frames.next(&short), Err(Error::Protocol(_))));
    }

    #[test]
    fn stdin_is_cut_into_frames_an_agent_takes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (_, mut writer) = Session::new(StreamSeq(9), 1, ours.into()).split();
        let sent: Vec<u8> = (0..STDIN_PAYLOAD_MAX * 20 + 1).map(|n| n.to_le_bytes()[0]).collect();
        let copy = sent.clone();
        let thread = std::thread::spawn(move || {
            writer.write_stdin(&copy).unwrap();
            writer.write_stdin(b"").unwrap();
            writer.end_stdin().unwrap();
        });
        let mut wire = Vec::new();
        (&theirs).read_to_end(&mut wire).unwrap();
        thread.join().unwrap();
        let (mut rest, mut got, mut lengths) = (wire.as_slice(), Vec::new(), Vec::new());
        while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*head, limits::AGENT_FRAME_DEFAULT).unwrap();
            assert_eq!(header.seq, StreamSeq(9));
            let len = usize::try_from(header.payload_len()).unwrap();
            got.extend_from_slice(&after[..len]);
            lengths.push(len);
            rest = &after[len..];
        }
        assert!(got == sent && rest.is_empty());
        assert_eq!(lengths, [vec![STDIN_PAYLOAD_MAX; 20], vec![1, 0]].concat());
    }
}
