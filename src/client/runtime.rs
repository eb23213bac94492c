//! A runtime's connection of protocol 2: VMs are registered and hyperstart commands sent, one at a time.
//!
//! Owns its connection and what was read past the last response. The asymmetry to know: a process's I/O does not pass
//! here; a command that starts one names a token, and a [`ShimClient`](super::ShimClient) claims it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, Result, raw, socket, utf8_path};
use crate::limits;
use crate::wire::SlowReader;
use crate::wire::cc2::{self, Command, Kind};

/// Bytes read at once.
const READ_BUFFER: usize = 4 * 1024;

/// One runtime's connection to the daemon. Commands are answered in order, one at a time.
#[derive(Debug)]
pub struct RuntimeClient {
    socket: UnixStream,
    decoder: cc2::Decoder,
    slow_reader: Option<SlowReader>,
}

impl RuntimeClient {
    /// Connects to the daemon's proxy socket.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub fn connect(path: impl AsRef<Path>) -> Result<RuntimeClient> {
        socket::connect(path.as_ref()).map(RuntimeClient::from)
    }

    /// Says what is to be done when nobody reads the output of tokens asked for from now on; `None`: what the daemon
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

    /// Registers the VM `id` whose agent listens at the sockets `ctl` and `io`, with its `console` where there is one,
    /// and attaches this client to it. Returns when the agent is ready: the URL shims connect to, and `streams` tokens.
    ///
    /// # Errors
    /// [`Error::Refused`] when the name is taken or the agent cannot be reached; else see [`Error`].
    pub fn register_vm(
        &mut self,
        id: &str,
        ctl: &Path,
        io: &Path,
        console: Option<&Path>,
        streams: u32,
    ) -> Result<(String, Vec<String>)> {
        let payload = cc2::RegisterVm {
            container_id: id.to_owned(),
            ctl_serial: utf8_path(ctl)?,
            io_serial: utf8_path(io)?,
            console: console.map(utf8_path).transpose()?.unwrap_or_default(),
            num_io_streams: i64::from(streams),
            slow_reader: self.slow_reader,
        };
        registered(&self.request(Command::RegisterVm, &payload)?)
    }

    /// Attaches this client to the registered VM `id`. Returns what [`RuntimeClient::register_vm`] does.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon does not know it; else see [`Error`]. A daemon that serves only protocol 1
    /// closes the connection: [`Error::Lost`].
    pub fn attach_vm(&mut self, id: &str, streams: u32) -> Result<(String, Vec<String>)> {
        let (container_id, num_io_streams) = (id.to_owned(), i64::from(streams));
        let payload = cc2::AttachVm { container_id, num_io_streams, slow_reader: self.slow_reader };
        registered(&self.request(Command::AttachVm, &payload)?)
    }

    /// Makes the VM `id` invisible; its running sessions go on until the VM is gone.
    ///
    /// # Errors
    /// [`Error::Refused`] when the daemon does not know it; else see [`Error`].
    pub fn unregister_vm(&mut self, id: &str) -> Result<()> {
        let payload = cc2::AttachVm { container_id: id.to_owned(), ..cc2::AttachVm::default() };
        self.request(Command::UnregisterVm, &payload).map(drop)
    }

    /// Sends the hyperstart command `name` to the attached VM's agent and waits for its answer, whose data is returned
    /// as it came. `data` becomes the command's JSON; `&()` sends none. A command that starts a process takes none or
    /// one of the `tokens`, and its `process` must leave the sequences 0; with a token the daemon waits for that
    /// token's shim first.
    ///
    /// # Errors
    /// [`Error::Refused`] with the agent's text, or the daemon's; else see [`Error`].
    pub fn hyper<T: Serialize + ?Sized>(&mut self, name: &str, tokens: &[String], data: &T) -> Result<Vec<u8>> {
        let data = Some(raw(data)?).filter(|data| data.get() != "null");
        self.request(Command::Hyper, &cc2::Hyper { hyper_name: name.to_owned(), tokens: tokens.to_vec(), data })
    }

    /// Writes an entry into the daemon's log. Nobody answers.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn log(&mut self, entry: &cc2::LogEntry) -> Result<()> {
        let frame = encode(Kind::Stream(cc2::Stream::Log), entry)?;
        Ok(self.socket.write_all(&frame)?)
    }

    fn request<T: Serialize>(&mut self, command: Command, payload: &T) -> Result<Vec<u8>> {
        self.socket.write_all(&encode(Kind::Command(command), payload)?)?;
        loop {
            let frame = self.read_frame()?;
            match frame.kind {
                Kind::Response { command: answered, error } if answered == command => {
                    return if error { Err(refusal(&frame.payload)) } else { Ok(frame.payload) };
                }
                // News for shims, or of a later daemon.
                Kind::Notification(_) => {}
                other => return Err(Error::Protocol(format!("{other:?} instead of the response to {command:?}"))),
            }
        }
    }

    fn read_frame(&mut self) -> Result<cc2::Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            let mut buffer = [0; READ_BUFFER];
            let read = socket::read_some(&self.socket, &mut buffer)?;
            if read == 0 {
                return Err(Error::Lost);
            }
            self.decoder.push(&buffer[..read]);
        }
    }
}

impl From<UnixStream> for RuntimeClient {
    fn from(socket: UnixStream) -> RuntimeClient {
        RuntimeClient { socket, decoder: cc2::Decoder::default(), slow_reader: None }
    }
}

/// A whole frame with a JSON payload. One that is too long is refused here: the daemon would close the connection.
pub(super) fn encode<T: Serialize>(kind: Kind, payload: &T) -> Result<Vec<u8>> {
    let payload = serde_json::to_vec(payload).map_err(|e| Error::Refused(format!("the payload is no JSON: {e}")))?;
    let max = limits::CC2_MESSAGE_MAX as usize;
    if payload.len() > max {
        return Err(Error::Refused(format!("{kind:?}: the payload is over the protocol's bound of {max} bytes")));
    }
    Ok(cc2::encode(kind, &payload))
}

/// What a failed response says. One that cannot be read is shown as it came.
pub(super) fn refusal(payload: &[u8]) -> Error {
    let said = serde_json::from_slice::<cc2::ErrorResponse>(payload);
    Error::Refused(said.map_or_else(|_| String::from_utf8_lossy(payload).into_owned(), |said| said.msg))
}

fn registered(payload: &[u8]) -> Result<(String, Vec<String>)> {
    let answer: cc2::Registered = from_json(payload)?;
    Ok((answer.io.url, answer.io.tokens.unwrap_or_default()))
}

fn from_json<'de, T: Deserialize<'de>>(payload: &'de [u8]) -> Result<T> {
    serde_json::from_slice(payload).map_err(|e| Error::Protocol(format!("the response's payload: {e}")))
}
