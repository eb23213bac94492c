//! Protocol 2's rules of what a client may send: a frame becomes something to do, or what the client is told.
//!
//! Nothing here acts or waits. The asymmetry to know: a frame out of place ends its connection, a command out of
//! place is refused.

use serde::Deserialize;

use super::requests::{Refusal, malformed, short};
use crate::coordinator::RequestError;
use crate::wire::DecodeError;
use crate::wire::cc2::{
    AttachVm, Command, ConnectShim, Decoder, Frame, Header, Hyper, Kind, LogEntry, RegisterVm, Signal, Stream,
};

/// What a client says.
#[derive(Debug)]
pub(super) enum Said {
    /// It asks for something, and waits for the answer.
    Asked(Command, Asked),
    /// A line for the log.
    Log(LogEntry),
    /// News that mean nothing to us.
    News(u8),
}

/// What a client asks for, or what it is told instead.
pub(super) type Asked = Result<Ask, Refusal>;

/// What a client asks for.
#[derive(Debug)]
pub(super) enum Ask {
    /// Register a VM.
    Register(RegisterVm),
    /// Make a VM invisible.
    Unregister(AttachVm),
    /// Speak about a VM that is registered.
    Attach(AttachVm),
    /// A command for its agent.
    Hyper(Hyper),
    /// Claim this token.
    Connect(String),
    /// Give the token up.
    Disconnect,
    /// Signal the process.
    Signal(Signal),
}

/// What `frame` says. A shim's stdin and whatever else goes through its shard is out of place here.
pub(super) fn read(frame: &Frame, is_shim: bool) -> Result<Said, DecodeError> {
    match frame.kind {
        Kind::Command(command) => Ok(Said::Asked(command, Ask::of(command, &frame.payload, is_shim))),
        Kind::Stream(Stream::Log) => {
            let entry = serde_json::from_slice(&frame.payload);
            entry.map(Said::Log).map_err(|error| DecodeError::Json(error.to_string()))
        }
        Kind::Notification(opcode) => Ok(Said::News(opcode)),
        kind => Err(out_of_place(kind)),
    }
}

/// The next frame of a connection that is no shim's. One that may not be here is refused as soon as its header is
/// known: its payload may be long.
pub(super) fn next_frame(decoder: &mut Decoder) -> Result<Option<Frame>, DecodeError> {
    if let Some(frame) = decoder.next_frame()? {
        return Ok(Some(frame));
    }
    let Some((head, _)) = decoder.rest().split_first_chunk() else { return Ok(None) };
    match Header::decode(*head)?.kind {
        Kind::Command(_) | Kind::Notification(_) | Kind::Stream(Stream::Log) => Ok(None),
        kind => Err(out_of_place(kind)),
    }
}

/// What is wrong about a frame no client may send here.
fn out_of_place(kind: Kind) -> DecodeError {
    DecodeError::OutOfPlace(match kind {
        Kind::Stream(Stream::Stdin) => "stdin before ConnectShim",
        Kind::Stream(_) => "output of a process",
        _ => "a response",
    })
}

impl Ask {
    fn of(command: Command, payload: &[u8], is_shim: bool) -> Asked {
        match command {
            Command::RegisterVm => parse(payload).map(Ask::Register),
            Command::UnregisterVm => parse(payload).map(|named| Ask::Unregister(cut(named))),
            Command::AttachVm => parse(payload).map(|named| Ask::Attach(cut(named))),
            Command::Hyper => parse(payload).map(|asked: Hyper| {
                let tokens = asked.tokens.iter().map(|token| short(token).to_owned()).collect();
                Ask::Hyper(Hyper { hyper_name: short(&asked.hyper_name).to_owned(), tokens, ..asked })
            }),
            Command::ConnectShim if is_shim => Err(RequestError::AlreadyAShim.into()),
            Command::ConnectShim => {
                parse(payload).map(|claim: ConnectShim| Ask::Connect(short(&claim.token).to_owned()))
            }
            Command::DisconnectShim | Command::Signal if !is_shim => Err(RequestError::NotAShim.into()),
            Command::DisconnectShim => Ok(Ask::Disconnect),
            Command::Signal => parse(payload).map(Ask::Signal),
        }
    }
}

/// A name of which answers repeat no more than they may.
fn cut(named: AttachVm) -> AttachVm {
    AttachVm { container_id: short(&named.container_id).to_owned(), ..named }
}

/// Parses a command's payload.
fn parse<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(payload).map_err(|error| malformed("payload", &error))
}
