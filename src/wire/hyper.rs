//! What guest agents speak: messages on the control channel, frames on the stream channel, and their JSON payloads.
//!
//! All integers are big endian. A message's length counts its 8-byte header, a frame's its 12-byte header.
//! The one asymmetry to know: a frame from the agent may be far longer than the one it accepts.

use serde::{Deserialize, Deserializer, Serialize};

use super::DecodeError;
use super::pending::Pending;

/// Bytes of the sequence, with which a stream frame begins.
pub const SEQ_LEN: usize = 8;

/// Bytes of a control channel message's header.
pub const MESSAGE_HEADER_LEN: usize = 8;
/// Bytes of a stream frame's header.
pub const FRAME_HEADER_LEN: usize = 12;
/// The same, in the type of a frame's length field.
pub(crate) const FRAME_HEADER: u32 = 12;
const _: () = assert!(FRAME_HEADER as usize == FRAME_HEADER_LEN);

/// What a control channel message is for. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Code {
    /// Ask for the API version; the ACK carries a `u32`.
    Version = 0,
    /// Start the pod.
    StartPod = 1,
    /// Deprecated.
    GetPod = 2,
    /// Deprecated.
    StopPod = 3,
    /// Stop everything.
    DestroyPod = 4,
    /// Deprecated.
    RestartContainer = 5,
    /// Run one more process in a container.
    ExecCmd = 6,
    /// Deprecated.
    FinishCmd = 7,
    /// The agent is up: once per boot on serial, per connection on vsock.
    Ready = 8,
    /// A command succeeded; may carry data.
    Ack = 9,
    /// A command failed; may carry text.
    Error = 10,
    /// Set a terminal's size.
    WinSize = 11,
    /// Is anybody there?
    Ping = 12,
    /// Deprecated.
    FinishPod = 13,
    /// `u32`: bytes the agent has just read from the control channel. Informative.
    Next = 14,
    /// JSON, then raw data.
    WriteFile = 15,
    /// Read one file.
    ReadFile = 16,
    /// Start a container with its first process.
    NewContainer = 17,
    /// Signal a container's first process.
    KillContainer = 18,
    /// Bring hot-plugged processors and memory on line.
    OnlineCpuMem = 19,
    /// Configure a network interface.
    SetupInterface = 20,
    /// Configure a route.
    SetupRoute = 21,
    /// Forget a container.
    RemoveContainer = 22,
    /// A process ended (API 1.x); comes at any time.
    ProcessAsyncEvent = 23,
    /// Signal one process (API 1.x); the same number is an event from 3.0-era Go agents.
    SignalProcess = 24,
    /// Remove a network interface (API 1.x).
    DeleteInterface = 25,
}

/// Codes in wire order with the names clients use for them.
const NAMES: [(Code, &str); 26] = [
    (Code::Version, "version"),
    (Code::StartPod, "startpod"),
    (Code::GetPod, "getpod"),
    (Code::StopPod, "stoppod"),
    (Code::DestroyPod, "destroypod"),
    (Code::RestartContainer, "restartcontainer"),
    (Code::ExecCmd, "execcmd"),
    (Code::FinishCmd, "finishcmd"),
    (Code::Ready, "ready"),
    (Code::Ack, "ack"),
    (Code::Error, "error"),
    (Code::WinSize, "winsize"),
    (Code::Ping, "ping"),
    (Code::FinishPod, "finishpod"),
    (Code::Next, "next"),
    (Code::WriteFile, "writefile"),
    (Code::ReadFile, "readfile"),
    (Code::NewContainer, "newcontainer"),
    (Code::KillContainer, "killcontainer"),
    (Code::OnlineCpuMem, "onlinecpumem"),
    (Code::SetupInterface, "setupinterface"),
    (Code::SetupRoute, "setuproute"),
    (Code::RemoveContainer, "removecontainer"),
    (Code::ProcessAsyncEvent, "processasyncevent"),
    (Code::SignalProcess, "signalprocess"),
    (Code::DeleteInterface, "deleteinterface"),
];

impl Code {
    /// The code with this number, if the protocol has one.
    pub fn from_u32(code: u32) -> Option<Code> {
        NAMES.get(usize::try_from(code).ok()?).map(|&(code, _)| code)
    }

    /// The code a client names in `hyperName`; `None` for names the protocol does not have.
    pub fn from_name(name: &str) -> Option<Code> {
        NAMES.iter().find(|&&(_, n)| n == name).map(|&(code, _)| code)
    }

    /// The name clients use.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }
}

/// One control channel message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The number on the wire; see [`Code::from_u32`].
    pub code: u32,
    /// JSON, raw bytes or nothing.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message with this code and payload.
    pub fn new(code: Code, payload: impl Into<Vec<u8>>) -> Message {
        Message { code: code as u32, payload: payload.into() }
    }

    /// The whole message, to be written with ONE write: agents panic on a header that arrives alone.
    ///
    /// # Panics
    /// Never for payloads below 4 GiB, which every caller's bound guarantees.
    pub fn encode(&self) -> Vec<u8> {
        let len = u32::try_from(MESSAGE_HEADER_LEN + self.payload.len()).expect("payload is bounded");
        let mut out = Vec::with_capacity(MESSAGE_HEADER_LEN + self.payload.len());
        out.extend_from_slice(&self.code.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&self.payload);
        out
    }
}

/// Puts control channel messages together from pieces of any size.
#[derive(Debug)]
pub struct MessageDecoder {
    pending: Pending,
    max: usize,
}

impl MessageDecoder {
    /// Accepts messages of up to `max` bytes, header included.
    pub fn new(max: usize) -> MessageDecoder {
        MessageDecoder { pending: Pending::default(), max }
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.push(bytes);
    }

    /// Whether a message has begun and not ended.
    pub fn is_mid_message(&self) -> bool {
        !self.pending.rest().is_empty()
    }

    /// Takes the next whole message, `None` while more bytes are needed.
    ///
    /// # Errors
    /// A length outside 8 ..= max. The channel cannot go on.
    pub fn next_message(&mut self) -> Result<Option<Message>, DecodeError> {
        let received = self.pending.rest();
        let Some((head, _)) = received.split_first_chunk::<MESSAGE_HEADER_LEN>() else { return Ok(None) };
        let code = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let len = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let len = check_length(len, MESSAGE_HEADER_LEN, self.max)?;
        let Some(payload) = received.get(MESSAGE_HEADER_LEN..len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.pending.take(len);
        Ok(Some(Message { code, payload }))
    }
}

fn check_length(len: u32, header: usize, max: usize) -> Result<usize, DecodeError> {
    let len64 = u64::from(len);
    if len64 < header as u64 {
        return Err(DecodeError::TooShort { len: len64, header });
    }
    if len64 > max as u64 {
        return Err(DecodeError::TooLong { len: len64, max: max as u64 });
    }
    usize::try_from(len).map_err(|_| DecodeError::TooLong { len: len64, max: max as u64 })
}

/// A number on the wire that names one direction-pair of one process's I/O. Never 0 for sequences we hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamSeq(pub u64);

impl std::fmt::Display for StreamSeq {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A stream frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whose bytes these are.
    pub seq: StreamSeq,
    /// Bytes of the frame, header included; at least 12 after [`FrameHeader::decode`].
    pub len: u32,
}

impl FrameHeader {
    /// Decodes and checks a header against `max`, the longest frame accepted (header included).
    ///
    /// # Errors
    /// A length outside 12 ..= max. The channel cannot go on.
    pub fn decode(bytes: [u8; FRAME_HEADER_LEN], max: u32) -> Result<FrameHeader, DecodeError> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, l0, l1, l2, l3] = bytes;
        let len = u32::from_be_bytes([l0, l1, l2, l3]);
        if len < FRAME_HEADER {
            return Err(DecodeError::TooShort { len: u64::from(len), header: FRAME_HEADER_LEN });
        }
        if len > max {
            return Err(DecodeError::TooLong { len: u64::from(len), max: u64::from(max) });
        }
        Ok(FrameHeader { seq: StreamSeq(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7])), len })
    }

    /// The header of a frame that carries `payload` bytes.
    pub fn for_payload(seq: StreamSeq, payload: u32) -> FrameHeader {
        FrameHeader { seq, len: payload + FRAME_HEADER }
    }

    /// Bytes after the header.
    pub fn payload_len(self) -> u32 {
        self.len - FRAME_HEADER
    }

    /// The header's bytes.
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let mut out = [0; FRAME_HEADER_LEN];
        out[..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..].copy_from_slice(&self.len.to_be_bytes());
        out
    }
}

/// One environment variable of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Name.
    pub env: String,
    /// Value.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub value: String,
}

/// The process of `newcontainer` and `execcmd`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Unique per process for 1.x agents; older ones ignore it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Give it a terminal; `stderr` is then 0.
    #[serde(deserialize_with = "null_is_absent")]
    pub terminal: bool,
    /// Sequence of stdin and stdout.
    #[serde(deserialize_with = "null_is_absent")]
    pub stdio: u64,
    /// Sequence of stderr; 0 when there is none of its own.
    #[serde(deserialize_with = "null_is_absent", skip_serializing_if = "is_zero")]
    pub stderr: u64,
    /// Program and arguments.
    #[serde(deserialize_with = "null_is_absent")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(deserialize_with = "null_is_absent")]
    pub envs: Vec<EnvVar>,
    /// Working directory.
    #[serde(deserialize_with = "null_is_absent")]
    pub workdir: String,
    /// User name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Supplementary group names or numbers.
    #[serde(deserialize_with = "null_is_absent", skip_serializing_if = "Vec::is_empty")]
    pub additional_groups: Vec<String>,
}

/// Go programs write a slice that was never set as `null`.
fn null_is_absent<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Payload of `execcmd`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecCmd {
    /// The container to run in.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub container: String,
    /// What to run.
    pub process: Process,
}

/// Payload of `newcontainer`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewContainer {
    /// Container ID, unique in the pod.
    pub id: String,
    /// Directory that becomes the process's root.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub rootfs: String,
    /// Image name; informative.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub image: String,
    /// The first process.
    pub process: Process,
    /// `never`, `always`, `onFailure`; only `never` (or absent) is honoured.
    #[serde(default, deserialize_with = "null_is_absent", skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// Ask the agent to create missing directories.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub initialize: bool,
}

/// Payload of `killcontainer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillContainer {
    /// Whose first process.
    pub container: String,
    /// Signal number.
    pub signal: i32,
}

/// Payload of `signalprocess`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalProcess {
    /// Container the process runs in.
    pub container: String,
    /// The process's `id`.
    pub process: String,
    /// Signal number.
    pub signal: i32,
}

/// Payload of `processasyncevent`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessEvent {
    /// The container.
    #[serde(default)]
    pub container: String,
    /// The process's `id`.
    #[serde(default)]
    pub process: String,
    /// `finished` is the one known.
    #[serde(default)]
    pub event: String,
    /// Exit status.
    #[serde(default)]
    pub status: i32,
}

/// Payload of `removecontainer`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveContainer {
    /// Which.
    pub container: String,
}

/// Payload of `winsize`: by sequence (0.7) or by container and process (1.x).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WinSize {
    /// The session's `stdio` sequence.
    #[serde(default, deserialize_with = "null_is_absent", skip_serializing_if = "is_zero")]
    pub seq: u64,
    /// 1.x: the container.
    #[serde(default, deserialize_with = "null_is_absent", skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// 1.x: the process's `id`.
    #[serde(default, deserialize_with = "null_is_absent", skip_serializing_if = "String::is_empty")]
    pub process: String,
    /// Rows of the terminal, in characters.
    pub row: u16,
    /// Columns of the terminal, in characters.
    pub column: u16,
}

/// Payload of `writefile` (followed by the file's bytes) and `readfile`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCommand {
    /// Container whose root the path starts at.
    #[serde(default, deserialize_with = "null_is_absent")]
    pub container: String,
    /// The path.
    pub file: String,
}
