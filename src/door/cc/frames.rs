//! Protocol 2 on the proxy socket: runtimes, and shims until and after they have a token.
//!
//! A connection begins here; with ConnectShim its socket moves to the session's shard, and only what is not input
//! comes back, to be answered in order. The asymmetry to know: a bad frame ends the connection without an answer,
//! a bad payload of a command is answered with an error.

use std::cell::RefCell;
use std::rc::Rc;

use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tracing::{debug, error, info, warn};

use super::{End, receive};
use crate::coordinator::{Attendant, Backlog, Coordinator, Mover, RequestError, ShimLink, VmRef};
use crate::limits::REFUSALS_LOGGED;
use crate::os::fds::PeerCredentials;
use crate::wire::cc1::Hello;
use crate::wire::cc2::{
    self, AttachVm, Command, ConnectShim, Decoder, ErrorResponse, Frame, Header, Hyper, IoBase, Kind, LogEntry,
    RegisterVm, Registered, Signal, Stream,
};
use crate::wire::{DecodeError, SlowReader};

/// Serves a client whose first bytes are `bytes`, until it ends or is a shim.
pub(super) async fn serve(stream: UnixStream, coordinator: Coordinator, peer: PeerCredentials, bytes: &[u8]) -> End {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let about = About { peer, vm: None, refused: 0 };
    match (Client { coordinator, about, shim: None }).serve(stream, decoder).await {
        Ok(()) => End::Moved,
        Err(end) => end,
    }
}

/// What a request came to.
enum Outcome {
    /// Send this payload as a success.
    Done(Vec<u8>),
    /// Send these frames, then a success.
    After(Vec<u8>),
    /// Move the connection to the shard of this token.
    Claim(String),
    /// Give the token up.
    Release,
}

/// What is known of a client.
#[derive(Debug, Clone)]
struct About {
    peer: PeerCredentials,
    vm: Option<VmRef>,
    /// Requests refused.
    refused: u32,
}

/// A shim, whose connection is on its shard: a few words while it sends nothing but input.
#[derive(Debug)]
struct Shim {
    about: RefCell<About>,
    messages: Backlog<Frame>,
}

impl Attendant for Shim {
    fn attend(self: Rc<Self>, coordinator: &Coordinator, shim: ShimLink, message: Frame) {
        if self.messages.add(message) {
            let about = self.about.borrow().clone();
            let client = Client { coordinator: coordinator.clone(), about, shim: Some(shim) };
            tokio::task::spawn_local(client.serve_shim(shim, self));
        }
    }
}

/// One client, while it is served.
#[derive(Debug)]
struct Client {
    coordinator: Coordinator,
    about: About,
    shim: Option<ShimLink>,
}

impl Client {
    /// Serves a connection that is still here; returns when it has moved to a shard.
    async fn serve(&mut self, mut stream: UnixStream, mut decoder: Decoder) -> Result<(), End> {
        loop {
            let Some(frame) = decoder.next_frame()? else {
                look_ahead(&decoder)?;
                match receive(&stream, |bytes| decoder.push(bytes)).await? {
                    0 if decoder.rest().is_empty() => return Err(End::Closed),
                    0 => return Err(End::Truncated),
                    _ => continue,
                }
            };
            let Some(command) = self.read(&frame)? else { continue };
            // Boxed, because it is large and most clients are silent most of the time.
            let reply = match Box::pin(self.obey(command, &frame.payload)).await {
                Ok(Outcome::Claim(token)) => {
                    let (client, reply) = (self.about.peer, success(command, &[]));
                    let mover = Mover { client, stream, unparsed: decoder.rest().to_vec(), reply };
                    let shim = Shim { about: RefCell::new(self.about.clone()), messages: Backlog::default() };
                    match self.coordinator.connect_shim(&token, mover, Rc::new(shim)).await {
                        Ok(()) => {
                            self.coordinator.count(|counters| counters.requests_ok += 1);
                            return Ok(());
                        }
                        Err((error, back)) => {
                            stream = back;
                            self.refuse(command, &error)
                        }
                    }
                }
                other => self.reply(command, other),
            };
            match stream.write_all(&reply).await {
                // It left without waiting for an answer; what it asked before that is still done.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
    }

    /// Serves what a shim has sent besides input.
    async fn serve_shim(mut self, shim: ShimLink, rest: Rc<Shim>) {
        while let Some(frame) = rest.messages.next() {
            let command = match self.read(&frame) {
                Ok(Some(command)) => command,
                Ok(None) => {
                    self.coordinator.answer(shim, Vec::new()).await;
                    continue;
                }
                // Counted and logged when its shard says that it has ended. What it sent behind it is nobody's.
                Err(fault) => return self.coordinator.fault(shim, fault).await,
            };
            let outcome = self.obey(command, &frame.payload).await;
            let is_release = matches!(outcome, Ok(Outcome::Release));
            let reply = self.reply(command, outcome);
            if is_release {
                self.coordinator.disconnect_shim(shim, reply).await;
            } else {
                self.coordinator.answer(shim, reply).await;
            }
            rest.about.borrow_mut().clone_from(&self.about);
        }
    }

    /// Sorts a frame: a command to obey, or something that needs no answer.
    fn read(&self, frame: &Frame) -> Result<Option<Command>, DecodeError> {
        match frame.kind {
            Kind::Command(command) => Ok(Some(command)),
            Kind::Stream(Stream::Log) => {
                self.log(&frame.payload)?;
                Ok(None)
            }
            Kind::Notification(opcode) => {
                debug!(pid = self.about.peer.pid, opcode, "ignored a notification");
                Ok(None)
            }
            kind => Err(out_of_place(kind)),
        }
    }

    /// Puts a client's log entry into ours.
    fn log(&self, payload: &[u8]) -> Result<(), DecodeError> {
        let entry: LogEntry = serde_json::from_slice(payload).map_err(|e| DecodeError::Json(e.to_string()))?;
        let LogEntry { source, container_id: container, level, msg } = entry;
        let (pid, msg) = (self.about.peer.pid, on_one_line(&msg));
        match level.as_str() {
            "error" => error!(pid, source, container, "{msg}"),
            "warn" => warn!(pid, source, container, "{msg}"),
            "info" => info!(pid, source, container, "{msg}"),
            _ => debug!(pid, source, container, "{msg}"),
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command, payload: &[u8]) -> Result<Outcome, Refusal> {
        match command {
            Command::RegisterVm => self.register(parse(payload)?).await.map(Outcome::Done),
            Command::UnregisterVm => {
                let named: AttachVm = parse(payload)?;
                self.coordinator.unregister(&named.container_id).await?;
                self.about.vm = None;
                Ok(Outcome::Done(Vec::new()))
            }
            Command::AttachVm => {
                let named: AttachVm = parse(payload)?;
                let vm = self.coordinator.attach(&named.container_id)?;
                self.attached(vm, named.num_io_streams, named.slow_reader).await.map(Outcome::Done)
            }
            Command::Hyper => {
                let asked: Hyper = parse(payload)?;
                let vm = self.about.vm.as_ref().ok_or(RequestError::NotAttached)?;
                Ok(Outcome::Done(self.coordinator.hyper_with_tokens(vm, asked).await?))
            }
            Command::ConnectShim if self.shim.is_some() => Err(RequestError::AlreadyAShim.into()),
            Command::ConnectShim => Ok(Outcome::Claim(parse::<ConnectShim>(payload)?.token)),
            Command::DisconnectShim if self.shim.is_some() => Ok(Outcome::Release),
            Command::DisconnectShim => Err(RequestError::NotAShim.into()),
            Command::Signal => {
                let shim = self.shim.ok_or(RequestError::NotAShim)?;
                let signal: Signal = parse(payload)?;
                Ok(Outcome::After(self.coordinator.signal(shim, &signal).await?))
            }
        }
    }

    async fn register(&mut self, asked: RegisterVm) -> Result<Vec<u8>, Refusal> {
        let RegisterVm { container_id, ctl_serial, io_serial, console, num_io_streams, slow_reader } = asked;
        // Before anything is connected: a registration that is refused leaves nothing behind.
        Coordinator::check_tokens(num_io_streams)?;
        let hello = Hello { container_id, ctl_serial, io_serial };
        let vm = self.coordinator.hello(&hello, self.about.peer).await?;
        if !console.is_empty() {
            self.coordinator.watch_console(&vm, &console, self.about.peer);
        }
        self.attached(vm, num_io_streams, slow_reader).await
    }

    async fn attached(&mut self, vm: VmRef, tokens: i64, slow_reader: Option<SlowReader>) -> Result<Vec<u8>, Refusal> {
        let tokens = self.coordinator.tokens(&vm, tokens, slow_reader).await?;
        self.about.vm = Some(vm);
        let registered = Registered { io: IoBase { url: self.coordinator.url(), tokens } };
        Ok(serde_json::to_vec(&registered).expect("plain data serializes"))
    }

    /// The frames that answer a command.
    fn reply(&mut self, command: Command, outcome: Result<Outcome, Refusal>) -> Vec<u8> {
        let reply = match outcome {
            Ok(Outcome::Done(payload)) => success(command, &payload),
            Ok(Outcome::After(mut frames)) => {
                frames.extend(success(command, &[]));
                frames
            }
            Ok(Outcome::Claim(_) | Outcome::Release) => success(command, &[]),
            Err(Refusal(error)) => return self.refuse(command, &error),
        };
        self.coordinator.count(|counters| counters.requests_ok += 1);
        reply
    }

    fn refuse(&mut self, command: Command, error: &dyn std::fmt::Display) -> Vec<u8> {
        self.coordinator.count(|counters| counters.requests_failed += 1);
        self.about.refused = self.about.refused.saturating_add(1);
        // Not the reason: it may name a token, and tokens are secrets.
        match self.about.refused {
            ..=REFUSALS_LOGGED => info!(pid = self.about.peer.pid, ?command, "request refused"),
            _ => debug!(pid = self.about.peer.pid, ?command, "request refused"),
        }
        let payload = serde_json::to_vec(&ErrorResponse { msg: error.to_string() }).expect("plain data serializes");
        cc2::encode(Kind::Response { command, error: true }, &payload)
    }
}

/// A client's text with its control characters spelled out: it must not begin a line of its own in our log.
fn on_one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

/// Refuses a frame that may not be here as soon as its header is known: its payload may be long.
fn look_ahead(decoder: &Decoder) -> Result<(), DecodeError> {
    let Some((head, _)) = decoder.rest().split_first_chunk() else { return Ok(()) };
    match Header::decode(*head)?.kind {
        Kind::Command(_) | Kind::Notification(_) | Kind::Stream(Stream::Log) => Ok(()),
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

fn success(command: Command, payload: &[u8]) -> Vec<u8> {
    cc2::encode(Kind::Response { command, error: false }, payload)
}

/// What a client is told.
struct Refusal(String);

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Refusal {
        Refusal(error.to_string())
    }
}

/// Parses a command's payload.
fn parse<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(payload).map_err(|error| Refusal(format!("malformed payload: {error}")))
}
