//! Protocol 1, cc-proxy 2.0's messages: an 8-byte header (data length, reserved), then JSON. Seed 003.
//!
//! The JSON is read as Go's decoder reads it, because the programs that write it were tested against that: names in
//! any case, `null` the same as absent, unknown members skipped, and the header's reserved word not looked at.
//!
//! Requests carry an `id` and `data` that stays raw until the handler knows its type; every request gets one
//! response. The asymmetry to know: allocateIO's response is followed by a byte [`FD_BYTE`] that carries a descriptor.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::members::Members;
use super::pending::Pending;
use super::{DecodeError, SlowReader};

/// Bytes of a message's header.
pub const HEADER_LEN: usize = 8;

/// The protocol's version, as clients are told it.
pub const VERSION: u64 = 1;

/// The byte a descriptor travels with, in a message of its own.
pub const FD_BYTE: u8 = b'F';

/// A request as it came.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    /// Name of the payload; empty when the client sent none.
    pub id: String,
    /// The payload, not yet parsed; `None` when the client sent none or `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

/// Payload of `hello`: where a VM's agent is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The VM's name from now on.
    pub container_id: String,
    /// Path of the control channel's socket.
    pub ctl_serial: String,
    /// Path of the stream channel's socket.
    pub io_serial: String,
}

/// Payload of `attach` and `bye`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRef {
    /// The VM's name.
    pub container_id: String,
}

/// Payload of `allocateIO`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AllocateIo {
    /// Sequences wanted: 1, or 2 with stderr of its own.
    pub n_streams: i64,
    /// What is done when the client does not read; `None`: what the daemon does by default. Ours alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_reader: Option<SlowReader>,
}

/// Payload of `hyper`.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hyper {
    /// Which hyperstart command.
    pub hyper_name: String,
    /// Its payload, passed through byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

/// Response data of `allocateIO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AllocateIoResult {
    /// First of the sequences allocated.
    pub io_base: u64,
}

/// A response. Member order is the wire's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Response {
    /// Whether the request succeeded.
    pub success: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// What it returned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Request, D::Error> {
        let mut members = Members::read(deserializer, &["id", "data"])?;
        Ok(Request { id: members.take("id")?, data: members.take_raw("data") })
    }
}

impl<'de> Deserialize<'de> for Hello {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hello, D::Error> {
        let mut members = Members::read(deserializer, &["containerId", "ctlSerial", "ioSerial"])?;
        Ok(Hello {
            container_id: members.take("containerId")?,
            ctl_serial: members.take("ctlSerial")?,
            io_serial: members.take("ioSerial")?,
        })
    }
}

impl<'de> Deserialize<'de> for ContainerRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ContainerRef, D::Error> {
        let mut members = Members::read(deserializer, &["containerId"])?;
        Ok(ContainerRef { container_id: members.take("containerId")? })
    }
}

impl<'de> Deserialize<'de> for AllocateIo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<AllocateIo, D::Error> {
        let mut members = Members::read(deserializer, &["nStreams", "slowReader"])?;
        Ok(AllocateIo { n_streams: members.take("nStreams")?, slow_reader: members.take("slowReader")? })
    }
}

impl<'de> Deserialize<'de> for Hyper {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hyper, D::Error> {
        let mut members = Members::read(deserializer, &["hyperName", "data"])?;
        Ok(Hyper { hyper_name: members.take("hyperName")?, data: members.take_raw("data") })
    }
}

impl<'de> Deserialize<'de> for Response {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Response, D::Error> {
        let mut members = Members::read(deserializer, &["success", "error", "data"])?;
        Ok(Response { success: members.take("success")?, error: members.take("error")?, data: members.take("data")? })
    }
}

impl Response {
    /// Success without data.
    pub fn ok() -> Response {
        Response { success: true, error: String::new(), data: None }
    }

    /// Success of a `hello` or an `attach`: the clients of cc-proxy 2.1 and later refuse one without the version.
    pub fn version() -> Response {
        Response { success: true, error: String::new(), data: Some(serde_json::json!({ "version": VERSION })) }
    }

    /// Success of an `allocateIO`.
    pub fn io_base(base: u64) -> Response {
        Response { success: true, error: String::new(), data: Some(serde_json::json!({ "ioBase": base })) }
    }

    /// Failure; `error` is what the client shows its user.
    pub fn fail(error: impl Into<String>) -> Response {
        Response { success: false, error: error.into(), data: None }
    }
}

/// A message's bytes: header and JSON.
///
/// # Panics
/// Never: requests and responses serialize, and are far below 4 GiB by the bounds their parts have.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    serde_json::to_writer(&mut out, message).expect("plain data serializes");
    let len = u32::try_from(out.len() - HEADER_LEN).expect("messages are bounded");
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// Puts messages together from pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    pending: Pending,
    max: usize,
}

impl Decoder {
    /// Accepts messages of up to `max` bytes of JSON.
    pub fn new(max: usize) -> Decoder {
        Decoder { pending: Pending::default(), max }
    }

    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.push(bytes);
    }

    /// Bytes received and not yet taken as a message.
    pub fn pending(&self) -> usize {
        self.pending.rest().len()
    }

    /// Takes the next whole message, `None` while more bytes are needed.
    ///
    /// # Errors
    /// A length over the bound, or JSON that is not a `T`. The connection cannot go on.
    pub fn next_message<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, DecodeError> {
        let received = self.pending.rest();
        let Some((head, body)) = received.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let too_long = DecodeError::TooLong { len: u64::from(len), max: self.max as u64 };
        let len = usize::try_from(len).ok().filter(|&len| len <= self.max).ok_or(too_long)?;
        let Some(json) = body.get(..len) else { return Ok(None) };
        let parsed = serde_json::from_slice(json);
        self.pending.take(HEADER_LEN + len);
        parsed.map(Some).map_err(|e| DecodeError::Json(e.to_string()))
    }
}
