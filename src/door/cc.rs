//! The proxy socket's door: protocol 1 clients, one task each, one request at a time.
//!
//! A client that sends slowly, or does not read its responses, holds up its own task and nothing else. The asymmetry
//! to know: a response is written whole before the next request is looked at, and allocateIO's descriptor leaves in a
//! sendmsg of its own behind it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use crate::coordinator::{Coordinator, RequestError, VmRef};
use crate::limits::{CC1_MESSAGE_MAX, ECHO_MAX, REFUSALS_LOGGED};
use crate::os::fds::{PeerCredentials, peer_credentials, send_with_fd};
use crate::wire::DecodeError;
use crate::wire::cc1::{self, AllocateIo, ContainerRef, Decoder, FD_BYTE, Hello, Hyper, Request, Response};

/// Pause after a failed accept: out of descriptors is not cured by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts clients for ever, at most `clients` at once; more wait in the backlog.
pub async fn serve(listener: UnixListener, coordinator: Coordinator, clients: usize) {
    let places = Arc::new(Semaphore::new(clients));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let coordinator = coordinator.clone();
                tokio::task::spawn_local(async move {
                    Connection::serve(stream, coordinator).await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a client; trying again in {ACCEPT_PAUSE:?}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The client closed.
    #[error("closed by the client")]
    Closed,
    /// The client closed where it should have gone on.
    #[error("closed by the client in the middle of a message")]
    Truncated,
    /// The client broke the protocol.
    #[error("protocol broken by the client: {0}")]
    Fault(#[from] DecodeError),
    /// The client speaks a protocol this daemon does not.
    #[error("the client speaks protocol 2, which this daemon does not serve")]
    Protocol2,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
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
    /// Its first bytes have come.
    has_begun: bool,
    /// Requests refused.
    refused: u32,
}

/// A response, and the descriptor that follows it.
type Answer = (Response, Option<OwnedFd>);

impl Connection {
    async fn serve(stream: UnixStream, coordinator: Coordinator) {
        let peer = match peer_credentials(stream.as_fd()) {
            Ok(peer) => peer,
            Err(error) => return warn!(%error, "a client without credentials was turned away"),
        };
        coordinator.count(|counters| counters.clients_accepted += 1);
        coordinator.client_count(1);
        let mut connection =
            Connection { stream, coordinator, peer, vm: None, has_left: false, has_begun: false, refused: 0 };
        let (pid, uid) = (peer.pid, peer.uid);
        match connection.run().await {
            End::Closed => debug!(pid, uid, "client closed"),
            End::Io(error) => debug!(pid, uid, %error, "client lost"),
            end @ (End::Truncated | End::Fault(_) | End::Protocol2) => {
                connection.coordinator.count(|counters| counters.clients_faulty += 1);
                warn!(pid, uid, "connection ended: {end}");
            }
        }
        connection.coordinator.client_count(-1);
    }

    async fn run(&mut self) -> End {
        let mut decoder = Decoder::new(CC1_MESSAGE_MAX);
        loop {
            let request = match decoder.next_message::<Request>() {
                Ok(Some(request)) => request,
                Ok(None) => match self.receive(&mut decoder).await {
                    Ok(()) => continue,
                    Err(end) => return end,
                },
                Err(fault) => return fault.into(),
            };
            let (response, fd) = self.answer(&request).await;
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

    /// Receives more bytes. Nothing is allocated for a client that is silent.
    async fn receive(&mut self, decoder: &mut Decoder) -> Result<(), End> {
        let mut buffer = [0; 4096];
        let n = loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => break read?,
            }
        };
        if n == 0 {
            return Err(if decoder.pending() == 0 { End::Closed } else { End::Truncated });
        }
        // The first bytes of a connection tell the protocols apart: a protocol 1 length is below 128 KiB.
        if !std::mem::replace(&mut self.has_begun, true) && buffer[..n].starts_with(&[0, 2]) {
            return Err(End::Protocol2);
        }
        decoder.push(&buffer[..n]);
        Ok(())
    }

    async fn answer(&mut self, request: &Request) -> Answer {
        let data = request.data.as_deref();
        let outcome = match request.id.as_str() {
            "" => return (Response::fail("no 'id' field in request"), None),
            "hello" => self.hello(data).await,
            "attach" => self.attach(data),
            "allocateIO" => match self.allocate_io(data).await {
                Ok((base, fd)) => return (Response::io_base(base), Some(fd)),
                Err(refusal) => Err(refusal),
            },
            "hyper" => self.hyper(data).await,
            "bye" => self.bye(data).await,
            other => Err(Refusal(format!("no payload named '{}'", short(other)))),
        };
        (outcome.map_or_else(|Refusal(error)| Response::fail(error), |()| Response::ok()), None)
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
        let (base, fd) = self.coordinator.allocate_io(vm, asked.n_streams).await?;
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
        self.stream.write_all(&cc1::encode(response)).await?;
        let Some(fd) = fd else { return Ok(()) };
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
