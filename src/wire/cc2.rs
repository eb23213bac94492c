//! Protocol 2, cc-proxy 3.0's frames: a 12-byte header, then a payload. Seed 002.
//!
//! Headers are decoded without allocation; every length has a bound of its kind. Reserved bits are ignored on read
//! and zero on write. The asymmetry to know: a header may be longer than 12 bytes on read (the rest is skipped), and
//! is never on write; the error flag is a response's alone.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::members::Members;
use super::{DecodeError, SlowReader};
use crate::limits::{CC2_MESSAGE_MAX, CC2_RESPONSE_MAX, STREAM_FRAME_MAX};

/// The version this module speaks.
pub const VERSION: u16 = 2;
/// Bytes of a header as we write it, and of the part of every header that means something.
pub const HEADER_LEN: usize = 12;
/// The shortest header, in 32-bit words.
const HEADER_WORDS_MIN: u8 = 3;
/// The flag of a response that reports an error.
const ERROR_FLAG: u8 = 0x10;

/// The bits that mean something among a header's first 8 bytes.
const MEANT: u64 = 0xffff_ff00_0000_1fff;
/// What they are where a header of 12 bytes is in front of stdin.
const PLAIN_STDIN: u64 = 0x0002_0300_0000_0200;

/// What a command asks for. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// Register a VM.
    RegisterVm = 0,
    /// Make a VM invisible; its sessions go on.
    UnregisterVm = 1,
    /// Attach to a VM.
    AttachVm = 2,
    /// Forward a hyperstart command.
    Hyper = 3,
    /// Claim a token; the connection carries its session from now on.
    ConnectShim = 4,
    /// Give the token up.
    DisconnectShim = 5,
    /// Signal the session's process.
    Signal = 6,
}

impl Command {
    fn from_u8(opcode: u8) -> Option<Command> {
        const ALL: [Command; 7] = [
            Command::RegisterVm,
            Command::UnregisterVm,
            Command::AttachVm,
            Command::Hyper,
            Command::ConnectShim,
            Command::DisconnectShim,
            Command::Signal,
        ];
        ALL.get(usize::from(opcode)).copied()
    }
}

/// Which bytes a stream frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    /// Client to process.
    Stdin = 0,
    /// Process to client.
    Stdout = 1,
    /// Process to client.
    Stderr = 2,
    /// A log entry of a client, as JSON.
    Log = 3,
}

/// The one notification we send.
pub const PROCESS_EXITED: u8 = 0;

/// What a frame is: type and opcode together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A client asks.
    Command(Command),
    /// We answer; `error` when it failed.
    Response {
        /// Which command.
        command: Command,
        /// It failed; the payload says why.
        error: bool,
    },
    /// Bytes of a stream.
    Stream(Stream),
    /// News nobody answers; the opcode, since unknown ones are allowed.
    Notification(u8),
}

impl Kind {
    /// Decodes the type byte and the opcode.
    fn decode(flags: u8, opcode: u8) -> Option<Kind> {
        let error = flags & ERROR_FLAG != 0;
        match flags & 0x0f {
            0 if !error => Command::from_u8(opcode).map(Kind::Command),
            1 => Command::from_u8(opcode).map(|command| Kind::Response { command, error }),
            2 if !error => match opcode {
                0 => Some(Kind::Stream(Stream::Stdin)),
                1 => Some(Kind::Stream(Stream::Stdout)),
                2 => Some(Kind::Stream(Stream::Stderr)),
                3 => Some(Kind::Stream(Stream::Log)),
                _ => None,
            },
            3 if !error => Some(Kind::Notification(opcode)),
            _ => None,
        }
    }

    fn encode(self) -> (u8, u8) {
        match self {
            Kind::Command(command) => (0, command as u8),
            Kind::Response { command, error } => (1 | if error { ERROR_FLAG } else { 0 }, command as u8),
            Kind::Stream(stream) => (2, stream as u8),
            Kind::Notification(opcode) => (3, opcode),
        }
    }

    /// The longest payload accepted, in bytes: streams of payload may be long, a response may carry an agent's answer
    /// (`readfile`), everything else is a message.
    fn payload_max(self) -> u32 {
        match self {
            Kind::Stream(Stream::Stdin | Stream::Stdout | Stream::Stderr) => STREAM_FRAME_MAX,
            Kind::Response { .. } => CC2_RESPONSE_MAX,
            _ => CC2_MESSAGE_MAX,
        }
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Bytes of payload.
    pub payload: u32,
    /// Bytes of header behind the first 12, to be skipped.
    pub extra: u32,
}

impl Header {
    /// A header as we write it.
    pub fn new(kind: Kind, payload: u32) -> Header {
        Header { kind, payload, extra: 0 }
    }

    /// Decodes and checks the first 12 bytes of a frame.
    ///
    /// # Errors
    /// Another version, a header below 12 bytes, a type or opcode the protocol does not have, an error flag where
    /// none may be, a payload over its bound. The connection cannot go on.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Header, DecodeError> {
        let [v0, v1, words, _, _, _, flags, opcode, l0, l1, l2, l3] = bytes;
        let version = u16::from_be_bytes([v0, v1]);
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        if words < HEADER_WORDS_MIN {
            return Err(DecodeError::TooShort { len: u64::from(words) * 4, header: HEADER_LEN });
        }
        let kind = Kind::decode(flags, opcode).ok_or(DecodeError::Kind { flags, opcode })?;
        let payload = u32::from_be_bytes([l0, l1, l2, l3]);
        let max = kind.payload_max();
        if payload > max {
            return Err(DecodeError::TooLong { len: u64::from(payload), max: u64::from(max) });
        }
        Ok(Header { kind, payload, extra: u32::from(words - HEADER_WORDS_MIN) * 4 })
    }

    /// Bytes of payload where [`Header::decode`] would find stdin and a header of 12 bytes: what nearly all frames of
    /// a shim are, told by one comparison.
    pub fn plain_stdin(bytes: [u8; HEADER_LEN]) -> Option<u32> {
        let [h0, h1, h2, h3, h4, h5, h6, h7, l0, l1, l2, l3] = bytes;
        let meant = u64::from_be_bytes([h0, h1, h2, h3, h4, h5, h6, h7]) & MEANT;
        let payload = u32::from_be_bytes([l0, l1, l2, l3]);
        (meant == PLAIN_STDIN && payload <= STREAM_FRAME_MAX).then_some(payload)
    }

    /// The header's 12 bytes. `extra` is not written.
    pub fn encode(self) -> [u8; HEADER_LEN] {
        let (flags, opcode) = self.kind.encode();
        let mut out = [0; HEADER_LEN];
        out[..2].copy_from_slice(&VERSION.to_be_bytes());
        out[2] = HEADER_WORDS_MIN;
        out[6] = flags;
        out[7] = opcode;
        out[8..].copy_from_slice(&self.payload.to_be_bytes());
        out
    }
}

/// A whole frame's bytes.
///
/// # Panics
/// Never for payloads below 4 GiB, which every caller's bound guarantees.
pub fn encode(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("payload is bounded");
    let mut out = Vec::with_capacity(HEADER_LEN + payload.len());
    out.extend_from_slice(&Header::new(kind, len).encode());
    out.extend_from_slice(payload);
    out
}

/// A whole frame, for those who do not stream payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Puts whole frames together from pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: super::pending::Pending,
}

impl Decoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.push(bytes);
    }

    /// Takes the next whole frame, `None` while more bytes are needed.
    ///
    /// # Errors
    /// Those of [`Header::decode`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        let rest = self.pending.rest();
        let Some((head, _)) = rest.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let header = Header::decode(*head)?;
        let begin = HEADER_LEN + header.extra as usize;
        let end = begin + header.payload as usize;
        if rest.len() < end {
            return Ok(None);
        }
        let payload = rest[begin..end].to_vec();
        self.pending.take(end);
        Ok(Some(Frame { kind: header.kind, payload }))
    }

    /// What has not been taken as a frame.
    pub fn rest(&self) -> &[u8] {
        self.pending.rest()
    }
}

/// Payload of `RegisterVM`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisterVm {
    /// The VM's name from now on.
    pub container_id: String,
    /// Path of the control channel's socket.
    pub ctl_serial: String,
    /// Path of the stream channel's socket.
    pub io_serial: String,
    /// Path of the console's socket; empty for none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub console: String,
    /// Tokens wanted.
    #[serde(rename = "numIOStreams", skip_serializing_if = "is_zero")]
    pub num_io_streams: i64,
    /// What is done when nobody reads their output; `None`: what the daemon does by default. Ours alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_reader: Option<SlowReader>,
}

impl<'de> Deserialize<'de> for RegisterVm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RegisterVm, D::Error> {
        let names = &["containerId", "ctlSerial", "ioSerial", "console", "numIOStreams", "slowReader"];
        let mut members = Members::read(deserializer, names)?;
        Ok(RegisterVm {
            container_id: members.take("containerId")?,
            ctl_serial: members.take("ctlSerial")?,
            io_serial: members.take("ioSerial")?,
            console: members.take("console")?,
            num_io_streams: members.take("numIOStreams")?,
            slow_reader: members.take("slowReader")?,
        })
    }
}

/// Payload of `AttachVM`, and of `UnregisterVM` without `num_io_streams`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachVm {
    /// The VM's name.
    pub container_id: String,
    /// Tokens wanted.
    #[serde(rename = "numIOStreams", skip_serializing_if = "is_zero")]
    pub num_io_streams: i64,
    /// What is done when nobody reads their output; `None`: what the daemon does by default. Ours alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_reader: Option<SlowReader>,
}

impl<'de> Deserialize<'de> for AttachVm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AttachVm, D::Error> {
        let mut members = Members::read(deserializer, &["containerId", "numIOStreams", "slowReader"])?;
        Ok(AttachVm {
            container_id: members.take("containerId")?,
            num_io_streams: members.take("numIOStreams")?,
            slow_reader: members.take("slowReader")?,
        })
    }
}

/// Response payload of `RegisterVM` and `AttachVM`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Registered {
    /// Where shims connect, and with what.
    pub io: IoBase,
}

impl<'de> Deserialize<'de> for Registered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Registered, D::Error> {
        let mut members = Members::read(deserializer, &["io"])?;
        Ok(Registered { io: members.take("io")? })
    }
}

/// Where shims connect, and with what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IoBase {
    /// `unix://` and the proxy socket's path.
    #[serde(rename = "URL")]
    pub url: String,
    /// One token per session; `null` when none were asked for.
    pub tokens: Option<Vec<String>>,
}

impl<'de> Deserialize<'de> for IoBase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<IoBase, D::Error> {
        let mut members = Members::read(deserializer, &["URL", "tokens"])?;
        Ok(IoBase { url: members.take("URL")?, tokens: members.take("tokens")? })
    }
}

/// Payload of `Hyper`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hyper {
    /// Which hyperstart command.
    pub hyper_name: String,
    /// The session of the process it starts: none or one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<String>,
    /// The command's payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl<'de> Deserialize<'de> for Hyper {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hyper, D::Error> {
        let mut members = Members::read(deserializer, &["hyperName", "tokens", "data"])?;
        Ok(Hyper {
            hyper_name: members.take("hyperName")?,
            tokens: members.take("tokens")?,
            data: members.take_raw("data"),
        })
    }
}

/// Payload of `ConnectShim`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ConnectShim {
    /// The session's token.
    pub token: String,
}

impl<'de> Deserialize<'de> for ConnectShim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ConnectShim, D::Error> {
        let mut members = Members::read(deserializer, &["token"])?;
        Ok(ConnectShim { token: members.take("token")? })
    }
}

/// Payload of `Signal`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Signal {
    /// Its number.
    pub signal_number: i64,
    /// SIGWINCH: columns of the terminal, in characters.
    #[serde(skip_serializing_if = "is_zero")]
    pub columns: i64,
    /// SIGWINCH: rows of the terminal, in characters.
    #[serde(skip_serializing_if = "is_zero")]
    pub rows: i64,
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Signal, D::Error> {
        let mut members = Members::read(deserializer, &["signalNumber", "columns", "rows"])?;
        Ok(Signal {
            signal_number: members.take("signalNumber")?,
            columns: members.take("columns")?,
            rows: members.take("rows")?,
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Payload of a failed response.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ErrorResponse {
    /// What the client shows its user.
    pub msg: String,
}

impl<'de> Deserialize<'de> for ErrorResponse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ErrorResponse, D::Error> {
        let mut members = Members::read(deserializer, &["msg"])?;
        Ok(ErrorResponse { msg: members.take("msg")? })
    }
}

/// Payload of a log stream frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LogEntry {
    /// `shim` or `runtime`.
    pub source: String,
    /// The container it is about.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container_id: String,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// The text.
    pub msg: String,
}

impl<'de> Deserialize<'de> for LogEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<LogEntry, D::Error> {
        let mut members = Members::read(deserializer, &["source", "containerId", "level", "msg"])?;
        Ok(LogEntry {
            source: members.take("source")?,
            container_id: members.take("containerId")?,
            level: members.take("level")?,
            msg: members.take("msg")?,
        })
    }
}

/// Bytes of a token before it is written down.
pub const TOKEN_LEN: usize = 32;

/// The secret that names one process's session: 32 random bytes, on the wire as URL-safe base64 with padding.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionToken([u8; TOKEN_LEN]);

impl SessionToken {
    /// A token of these bytes, which must come from the system's random source.
    pub fn new(bytes: [u8; TOKEN_LEN]) -> SessionToken {
        SessionToken(bytes)
    }

    /// The token a client names; `None` for text that is no token.
    pub fn parse(text: &str) -> Option<SessionToken> {
        let mut bytes = [0; TOKEN_LEN];
        // The decoder wants room for what the text could be at most; a longer text is no token.
        let decoded = URL_SAFE.decode(text).ok().filter(|decoded| decoded.len() == TOKEN_LEN)?;
        bytes.copy_from_slice(&decoded);
        Some(SessionToken(bytes))
    }

    /// Its first 64 bits, for a table; a token that begins alike may be another.
    pub fn beginning(self) -> u64 {
        let (beginning, _) = self.0.split_first_chunk().expect("a token is longer");
        u64::from_ne_bytes(*beginning)
    }
}

impl std::fmt::Display for SessionToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&URL_SAFE.encode(self.0))
    }
}

impl std::fmt::Debug for SessionToken {
    /// Secrets do not belong into logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SessionToken(…)")
    }
}
