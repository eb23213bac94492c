//! A blocking client of the daemon, for Rust programs and for our own subcommands: [`Client`] and [`Session`] speak
//! protocol 1, [`RuntimeClient`] and [`ShimClient`] protocol 2.
//!
//! Owns its connections and reads exactly one response for each request; never retries and never starts threads.
//! The asymmetry to know: protocol 1's reads never run ahead of the message they want, because the byte after
//! allocateIO's response carries a descriptor, and a plain read that swallowed it would lose that. Protocol 2 passes
//! no descriptors, so its reads take what is there.
//!
//! ```no_run
//! use ringway::client::{Client, Event, Session};
//! use ringway::wire::hyper::{ExecCmd, Process};
//!
//! let mut client = Client::connect("/run/ringway/proxy.sock")?;
//! client.attach("vm-1")?;
//! let (io_base, fd) = client.allocate_io(2)?;
//! let mut session = Session::new(io_base, 2, fd);
//! let process = Process {
//!     id: Some("exec-1".into()),
//!     stdio: io_base.0,
//!     stderr: io_base.0 + 1,
//!     args: vec!["uname".into(), "-r".into()],
//!     workdir: "/".into(),
//!     ..Process::default()
//! };
//! client.hyper("execcmd", &ExecCmd { container: "vm-1".into(), process })?;
//! while let Some(event) = session.read_event()? {
//!     if let Event::ExitStatus(status) = event {
//!         println!("it ended with {status}");
//!         break;
//!     }
//! }
//! # Ok::<(), ringway::client::Error>(())
//! ```

pub mod admin;
mod runtime;
mod session;
mod shim;
mod socket;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::limits;
use crate::os::fds;
use crate::wire::cc1;
use crate::wire::hyper::StreamSeq;
use crate::wire::{DecodeError, SlowReader};

pub use runtime::RuntimeClient;
pub use session::{Batch, Event, STDIN_PAYLOAD_MAX, Session, SessionReader, SessionWriter, Stream};
pub use shim::{SHIM_STDIN_MAX, ShimBatch, ShimClient, ShimEvent, ShimReader, ShimWriter, Unfinished};

/// What went wrong, and whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody answers at the socket: the daemon does not run, or this user may not connect.
    #[error("cannot connect to {}: {reason}; is the daemon running (`ringway doctor` tells)?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason. Part of the message, so not told again as its source.
        reason: io::Error,
    },
    /// The daemon, or the agent behind it, said no; the connection is sound and may be used further.
    #[error("{0}")]
    Refused(String),
    /// The daemon closed the connection, or died. What was asked may or may not have happened.
    #[error("the daemon closed the connection")]
    Lost,
    /// No answer within the time set by `set_timeout`. The connection cannot be used further.
    #[error("the daemon did not answer in time")]
    Overdue,
    /// The other end does not speak the protocol. The connection cannot be used further.
    #[error("the other end broke the protocol: {0}")]
    Protocol(String),
    /// The kernel refused something to this process.
    #[error("input or output failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Error {
        match e.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected => Error::Lost,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Overdue,
            io::ErrorKind::InvalidData => Error::Protocol(e.to_string()),
            _ => Error::Io(e),
        }
    }
}

impl From<DecodeError> for Error {
    fn from(e: DecodeError) -> Error {
        Error::Protocol(e.to_string())
    }
}

/// What this library's calls return.
pub type Result<T> = std::result::Result<T, Error>;

/// One connection to the daemon. Requests are answered in order, one at a time.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    slow_reader: Option<SlowReader>,
}

impl Client {
    /// Connects to the daemon's proxy socket.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Client> {
        socket::connect(path.as_ref()).map(Client::from)
    }

    /// Says what is to be done when the client of a session made from now on does not read; `None`: what the daemon
    /// does by default.
    pub fn set_slow_reader(&mut self, policy: Option<SlowReader>) {
        self.slow_reader = policy;
    }

    /// Bounds the time each answer may take; `None`, the default, waits as long as the daemon does.
    ///
    /// # Errors
    /// [`Error::Io`] for a duration of zero.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<()> {
        self.socket.set_read_timeout(timeout).map_err(Error::Io)
    }

    /// Registers the VM `id` whose agent listens at the sockets `ctl` and `io`, and attaches this client to it.
    /// Returns when the agent is ready.
    ///
    /// # Errors
    /// [`Error::Refused`] when the name is taken or the agent cannot be reached; else see [`Error`].
    pub fn hello(&mut self, id: &str, ctl: &Path, io: &Path) -> Result<()> {
        let hello = cc1::Hello { container_id: id.to_owned(), ctl_serial: utf8_path(ctl)?, io_serial: utf8_path(io)? };
        self.request("hello", &hello).map(drop)
    }

    /// Attaches this client to the registered VM `id`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon does not know it; else see [`Error`].
    pub fn attach(&mut self, id: &str) -> Result<()> {
        self.request("attach", &cc1::ContainerRef { container_id: id.to_owned() }).map(drop)
    }

    /// Makes a session with `streams` sequences (1, or 2 with stderr of its own) at the attached VM. Returns the
    /// first sequence and the session's socket, which [`Session::new`] takes.
    ///
    /// # Errors
    /// [`Error::Refused`] when not attached or out of something; else see [`Error`].
    pub fn allocate_io(&mut self, streams: u8) -> Result<(StreamSeq, OwnedFd)> {
        let asked = cc1::AllocateIo { n_streams: i64::from(streams), slow_reader: self.slow_reader };
        let data = self.request("allocateIO", &asked)?;
        let data = data.ok_or_else(|| Error::Protocol("allocateIO was answered without data".to_owned()))?;
        let allocated: cc1::AllocateIoResult =
            serde_json::from_value(data).map_err(|e| Error::Protocol(format!("allocateIO's answer: {e}")))?;
        let (byte, fd) = fds::recv_with_fd(self.socket.as_fd())?;
        if byte != cc1::FD_BYTE {
            return Err(Error::Protocol(format!("the session's descriptor came with byte {byte:#04x}, not 'F'")));
        }
        Ok((StreamSeq(allocated.io_base), fd))
    }

    /// Sends the hyperstart command `name` to the attached VM's agent and waits for its answer. `data` becomes the
    /// command's JSON; `&()` sends none.
    ///
    /// # Errors
    /// [`Error::Refused`] with the agent's text, or the daemon's; else see [`Error`].
    pub fn hyper<T: Serialize + ?Sized>(&mut self, name: &str, data: &T) -> Result<()> {
        self.request("hyper", &hyper(name, raw(data)?)).map(drop)
    }

    /// Sends several hyperstart commands at once; the agent gets them in this order with nothing of this client in
    /// between. Returns what became of each: one that is refused does not keep the next from being sent.
    ///
    /// # Errors
    /// When the connection is of no further use, that is, anything but [`Error::Refused`].
    pub fn hyper_each(&mut self, commands: Vec<(&str, Box<RawValue>)>) -> Result<Vec<Result<()>>> {
        let mut requests = Vec::new();
        let count = commands.len();
        for (name, data) in commands {
            requests.extend(encode("hyper", &hyper(name, data))?);
        }
        self.socket.write_all(&requests)?;
        let mut outcomes = Vec::with_capacity(count);
        for _ in 0..count {
            match self.read_response() {
                Ok(_) => outcomes.push(Ok(())),
                Err(Error::Refused(text)) => outcomes.push(Err(Error::Refused(text))),
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    /// Unregisters the VM `id`: its sockets and all its sessions are closed.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon does not know it; else see [`Error`].
    pub fn bye(&mut self, id: &str) -> Result<()> {
        self.request("bye", &cc1::ContainerRef { container_id: id.to_owned() }).map(drop)
    }

    fn request<T: Serialize>(&mut self, id: &str, data: &T) -> Result<Option<serde_json::Value>> {
        self.socket.write_all(&encode(id, data)?)?;
        self.read_response()
    }

    fn read_response(&mut self) -> Result<Option<serde_json::Value>> {
        let response: cc1::Response = self.read_message()?;
        if response.success { Ok(response.data) } else { Err(Error::Refused(response.error)) }
    }

    /// Reads one message and not a byte more.
    fn read_message(&mut self) -> Result<cc1::Response> {
        let mut decoder = cc1::Decoder::new(limits::CONTROL_REPLY_MAX);
        let mut header = [0; cc1::HEADER_LEN];
        self.socket.read_exact(&mut header)?;
        decoder.push(&header);
        // Checks the length against the bound before anything is allocated for it.
        if let Some(response) = decoder.next_message()? {
            return Ok(response);
        }
        let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let mut body = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(limits::CONTROL_REPLY_MAX)];
        self.socket.read_exact(&mut body)?;
        decoder.push(&body);
        decoder.next_message()?.ok_or_else(|| Error::Protocol("a message without an end".to_owned()))
    }
}

impl From<UnixStream> for Client {
    fn from(socket: UnixStream) -> Client {
        Client { socket, slow_reader: None }
    }
}

/// A whole request. One that is too long is refused here: the daemon would close the connection.
fn encode<T: Serialize>(id: &str, data: &T) -> Result<Vec<u8>> {
    let request = cc1::encode(&cc1::Request { id: id.to_owned(), data: Some(raw(data)?) });
    let max = limits::CC1_MESSAGE_MAX;
    if request.len() - cc1::HEADER_LEN > max {
        return Err(Error::Refused(format!("{id}: the request is over the protocol's bound of {max} bytes")));
    }
    Ok(request)
}

fn hyper(name: &str, data: Box<RawValue>) -> cc1::Hyper {
    let data = (data.get() != "null").then_some(data);
    cc1::Hyper { hyper_name: name.to_owned(), data }
}

fn raw<T: Serialize + ?Sized>(data: &T) -> Result<Box<RawValue>> {
    serde_json::value::to_raw_value(data).map_err(|e| Error::Refused(format!("the command's data is no JSON: {e}")))
}

/// The daemon takes paths as JSON, hence as text.
fn utf8_path(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Error::Refused(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}
