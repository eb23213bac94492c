//! Protocol 2 on the proxy socket: runtimes, and shims until and after they have a token.
//!
//! A connection begins here; with ConnectShim its socket moves to the session's shard, and only what is not input
//! comes back, to be answered in order. The asymmetry to know: a bad frame ends the connection without an answer,
//! a bad payload of a command is answered with an error.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tracing::{debug, error, info, warn};

use super::commands::{self, Ask, Asked, Said};
use super::gate::Visitor;
use super::requests::Refusal;
use super::{End, receive};
use crate::coordinator::{Attendant, Backlog, Coordinator, Mover, Presence, RequestError, ShimLink, User, VmRef};
use crate::limits::REFUSALS_LOGGED;
use crate::os::fds::PeerCredentials;
use crate::wire::cc1::Hello;
use crate::wire::cc2::{self, Command, Decoder, ErrorResponse, Frame, IoBase, Kind, LogEntry, RegisterVm, Registered};
use crate::wire::{DecodeError, SlowReader};

/// Serves a client whose first bytes are `bytes`, until it ends or is a shim.
pub(super) async fn serve(stream: UnixStream, coordinator: Coordinator, visitor: Visitor, bytes: &[u8]) -> End {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    let Visitor { peer, presence } = visitor;
    let about = About { peer, user: Rc::clone(presence.user()), vm: None, refused: 0 };
    match (Client { coordinator, about, shim: None }).serve(stream, decoder, &presence).await {
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
    user: Rc<User>,
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
    async fn serve(&mut self, stream: UnixStream, decoder: Decoder, presence: &Presence) -> Result<(), End> {
        let mut held = Some(stream);
        let end = self.converse(&mut held, decoder, presence).await;
        if let Err(end) = &end {
            end.linger().await;
        }
        end
    }

    /// Serves the connection that is held, until it moves.
    async fn converse(
        &mut self,
        held: &mut Option<UnixStream>,
        mut decoder: Decoder,
        presence: &Presence,
    ) -> Result<(), End> {
        while let Some(stream) = held {
            let Some(frame) = commands::next_frame(&mut decoder)? else {
                match receive(stream, |bytes| decoder.push(bytes)).await? {
                    0 if decoder.rest().is_empty() => return Err(End::Closed),
                    0 => return Err(End::Truncated),
                    _ => presence.holds(decoder.rest().len())?,
                }
                continue;
            };
            let Some((command, asked)) = self.read(&frame)? else { continue };
            // Boxed, because it is large and most clients are silent most of the time.
            let reply = match Box::pin(self.obey(asked)).await {
                Ok(Outcome::Claim(token)) => match self.claim(command, &token, held, &decoder).await {
                    Some(error) => self.refuse(command, &error),
                    None => return Ok(()),
                },
                other => {
                    let outcome = other.and_then(|outcome| within_bounds(outcome, presence, decoder.rest().len()));
                    self.reply(command, outcome)
                }
            };
            let Some(stream) = held else { return Ok(()) };
            match stream.write_all(&reply).await {
                // It left without waiting for an answer; what it asked before that is still done.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written?,
            }
        }
        Ok(())
    }

    /// Moves the connection that is held to its token's shard. Where that fails it is held as before.
    async fn claim(
        &mut self,
        command: Command,
        token: &str,
        held: &mut Option<UnixStream>,
        decoder: &Decoder,
    ) -> Option<RequestError> {
        let (client, reply, unparsed) = (self.about.peer, success(command, &[]), decoder.rest().to_vec());
        let mover = Mover { client, stream: held.take()?, unparsed, reply };
        let shim = Shim { about: RefCell::new(self.about.clone()), messages: Backlog::default() };
        match self.coordinator.connect_shim(token, mover, Rc::new(shim)).await {
            Ok(()) => {
                self.coordinator.count(|counters| counters.requests_ok += 1);
                None
            }
            Err((error, back)) => {
                *held = Some(back);
                Some(error)
            }
        }
    }

    /// Serves what a shim has sent besides input.
    async fn serve_shim(mut self, shim: ShimLink, rest: Rc<Shim>) {
        while let Some(frame) = rest.messages.next() {
            let (command, asked) = match self.read(&frame) {
                Ok(Some(said)) => said,
                Ok(None) => {
                    self.coordinator.answer(shim, Vec::new()).await;
                    continue;
                }
                // Counted and logged when its shard says that it has ended. What it sent behind it is nobody's.
                Err(fault) => return self.coordinator.fault(shim, fault).await,
            };
            let outcome = self.obey(asked).await;
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
    fn read(&self, frame: &Frame) -> Result<Option<(Command, Asked)>, DecodeError> {
        match commands::read(frame, self.shim.is_some())? {
            Said::Asked(command, asked) => return Ok(Some((command, asked))),
            Said::Log(entry) => self.log(entry),
            Said::News(opcode) => debug!(pid = self.about.peer.pid, opcode, "ignored a notification"),
        }
        Ok(None)
    }

    /// Puts a client's log entry into ours.
    fn log(&self, entry: LogEntry) {
        let LogEntry { source, container_id: container, level, msg } = entry;
        let (pid, msg) = (self.about.peer.pid, on_one_line(&msg));
        match level.as_str() {
            "error" => error!(pid, source, container, "{msg}"),
            "warn" => warn!(pid, source, container, "{msg}"),
            "info" => info!(pid, source, container, "{msg}"),
            _ => debug!(pid, source, container, "{msg}"),
        }
    }

    async fn obey(&mut self, asked: Asked) -> Result<Outcome, Refusal> {
        match asked? {
            Ask::Register(asked) => self.register(asked).await.map(Outcome::Done),
            Ask::Unregister(named) => {
                self.coordinator.unregister(&named.container_id).await?;
                self.about.vm = None;
                Ok(Outcome::Done(Vec::new()))
            }
            Ask::Attach(named) => {
                let vm = self.coordinator.attach(&named.container_id)?;
                self.attached(vm, named.num_io_streams, named.slow_reader).await.map(Outcome::Done)
            }
            Ask::Hyper(asked) => {
                let vm = self.about.vm.as_ref().ok_or(RequestError::NotAttached)?;
                Ok(Outcome::Done(self.coordinator.hyper_with_tokens(vm, asked).await?))
            }
            Ask::Connect(token) => Ok(Outcome::Claim(token)),
            Ask::Disconnect => Ok(Outcome::Release),
            Ask::Signal(signal) => {
                let shim = self.shim.ok_or(RequestError::NotAShim)?;
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
        let tokens = self.coordinator.tokens(&vm, tokens, &self.about.user, slow_reader).await?;
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

/// An outcome whose response the user may hold, beside `unparsed` bytes of this connection's requests: an agent's
/// answer may be long, and its client in no hurry to read it.
fn within_bounds(outcome: Outcome, presence: &Presence, unparsed: usize) -> Result<Outcome, Refusal> {
    let response = match &outcome {
        Outcome::Done(payload) | Outcome::After(payload) => payload.len(),
        Outcome::Claim(_) | Outcome::Release => 0,
    };
    presence.holds(unparsed + response).map_err(RequestError::from)?;
    Ok(outcome)
}

fn success(command: Command, payload: &[u8]) -> Vec<u8> {
    cc2::encode(Kind::Response { command, error: false }, payload)
}
