//! Protocol 1 on the proxy socket: one request at a time, one response each.
//!
//! The asymmetry to know: a response is written whole before the next request is looked at, and allocateIO's
//! descriptor leaves in a message of its own behind it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tracing::{debug, info};

use super::{End, receive};
use crate::coordinator::{Coordinator, RequestError, VmRef};
use crate::limits::{CC1_MESSAGE_MAX, ECHO_MAX, REFUSALS_LOGGED};
use crate::os::fds::{PeerCredentials, send_then_fd, send_with_fd};
use crate::wire::cc1::{self, AllocateIo, ContainerRef, Decoder, FD_BYTE, Hello, Hyper, Request, Response};

/// Serves a client whose first bytes are `bytes`, to its end.
pub(super) async fn serve(stream: UnixStream, coordinator: Coordinator, peer: PeerCredentials, bytes: &[u8]) -> End {
    let mut decoder = Decoder::new(CC1_MESSAGE_MAX);
    decoder.push(bytes);
    Connection { stream, coordinator, peer, vm: None, has_left: false, refused: 0 }.run(decoder).await
}

/// One client.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    coordinator: Coordinator,
    peer: PeerCredentials,
    vm: Option<VmRef>,
    /// It left without waiting for an answer; what it asked before that is still done.
    has_left: bool,
    /// Requests refused.
    refused: u32,
}

/// A response, and the descriptor that follows it.
type Answer = (Response, Option<OwnedFd>);

impl Connection {
    async fn run(&mut self, mut decoder: Decoder) -> End {
        loop {
            let request = match decoder.next_message::<Request>() {
                Ok(Some(request)) => request,
                Ok(None) => match receive(&self.stream, |bytes| decoder.push(bytes)).await {
                    Ok(0) if decoder.pending() == 0 => return End::Closed,
                    Ok(0) => return End::Truncated,
                    Ok(_) => continue,
                    Err(error) => return error.into(),
                },
                Err(fault) => return fault.into(),
            };
            // Boxed, because it is large and most clients are silent most of the time.
            let (response, fd) = Box::pin(self.answer(&request)).await;
            self.coordinator.count(|counters| {
                counters.requests_ok += u64::from(response.success);
                counters.requests_failed += u64::from(!response.success);
            });
            if !response.success {
                let (request, error) = (short(&request.id), short(&response.error));
                self.refused = self.refused.saturating_add(1);
                match self.refused {
                    ..=REFUSALS_LOGGED => info!(pid = self.peer.pid, request, error, "request refused"),
                    _ => debug!(pid = self.peer.pid, request, error, "request refused"),
                }
            }
            match self.respond(&response, fd).await {
                Ok(()) => {}
                Err(error) if is_left(&error) => self.has_left = true,
                Err(error) => return error.into(),
            }
        }
    }

    async fn answer(&mut self, request: &Request) -> Answer {
        let data = request.data.as_deref();
        let outcome = match request.id.as_str() {
            "" => return (Response::fail("no 'id' field in request"), None),
            "hello" => self.hello(data).await.map(|()| Response::version()),
            "attach" => self.attach(data).map(|()| Response::version()),
            "allocateIO" => match self.allocate_io(data).await {
                Ok((base, fd)) => return (Response::io_base(base), Some(fd)),
                Err(refusal) => Err(refusal),
            },
            "hyper" => self.hyper(data).await.map(|()| Response::ok()),
            "bye" => self.bye(data).await.map(|()| Response::ok()),
            other => Err(Refusal(format!("no payload named '{}'", short(other)))),
        };
        (outcome.unwrap_or_else(|Refusal(error)| Response::fail(error)), None)
    }

    async fn hello(&mut self, data: Option<&RawValue>) -> Result<(), Refusal> {
        let hello: Hello = payload("hello", data)?;
        self.vm = Some(self.coordinator.hello(&hello, self.peer).await?);
        Ok(())
    }

    fn attach(&mut self, data: Option<&RawValue>) -> Result<(), Refusal> {
        let named: ContainerRef = payload("attach", data)?;
        self.vm = Some(self.coordinator.attach(short(&named.container_id))?);
        Ok(())
    }

    async fn allocate_io(&mut self, data: Option<&RawValue>) -> Result<(u64, OwnedFd), Refusal> {
        let asked: AllocateIo = payload("allocateIO", data)?;
        let vm = self.vm.as_ref().ok_or(RequestError::NotAttached)?;
        let (base, fd) = self.coordinator.allocate_io(vm, asked.n_streams, asked.slow_reader).await?;
        Ok((base.0, fd))
    }

    async fn hyper(&mut self, data: Option<&RawValue>) -> Result<(), Refusal> {
        let asked: Hyper = payload("hyper", data)?;
        let vm = self.vm.as_ref().ok_or(RequestError::NotAttached)?;
        let payload = asked.data.map(|data| data.get().as_bytes().to_vec()).unwrap_or_default();
        self.coordinator.hyper(vm, short(&asked.hyper_name), payload).await?;
        Ok(())
    }

    async fn bye(&mut self, data: Option<&RawValue>) -> Result<(), Refusal> {
        let named: ContainerRef = payload("bye", data)?;
        self.coordinator.bye(short(&named.container_id)).await?;
        if self.vm.as_ref().is_some_and(|vm| vm.id() == named.container_id) {
            self.vm = None;
        }
        Ok(())
    }

    async fn respond(&mut self, response: &Response, fd: Option<OwnedFd>) -> io::Result<()> {
        if self.has_left {
            return Ok(());
        }
        let bytes = cc1::encode(response);
        let Some(fd) = fd else { return self.stream.write_all(&bytes).await };
        // In one call, so that the client is woken once, by the response, and finds the descriptor behind it.
        let both = || send_then_fd(self.stream.as_fd(), &bytes, FD_BYTE, fd.as_fd());
        let sent = match self.stream.try_io(Interest::WRITABLE, both) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            sent => sent?,
        };
        if sent > bytes.len() {
            return Ok(());
        }
        self.stream.write_all(&bytes[sent..]).await?;
        self.stream.async_io(Interest::WRITABLE, || send_with_fd(self.stream.as_fd(), FD_BYTE, fd.as_fd())).await
    }
}

/// The beginning of a text a client chose, for the log and for answers that repeat it. No name of a VM or a command
/// is as long as the bound, so one that was cut is none.
fn short(text: &str) -> &str {
    let end = (0..=ECHO_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

/// Whether a failed write means that nobody is there any more.
fn is_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// What a client is told.
struct Refusal(String);

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Refusal {
        Refusal(error.to_string())
    }
}

/// Parses a request's payload. A missing one is an empty one: its members then are.
fn payload<T: for<'de> Deserialize<'de> + Default>(name: &str, data: Option<&RawValue>) -> Result<T, Refusal> {
    let Some(data) = data else { return Ok(T::default()) };
    serde_json::from_str(data.get()).map_err(|error| Refusal(format!("malformed {name} command: {error}")))
}
