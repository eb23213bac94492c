//! Protocol 1 on the proxy socket: one request at a time, one response each.
//!
//! The asymmetry to know: a response is written whole before the next request is looked at, and allocateIO's
//! descriptor leaves in a message of its own behind it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tracing::{debug, info};

use super::gate::Visitor;
use super::requests::{Ask, Refusal, short};
use super::{End, receive};
use crate::coordinator::{Coordinator, RequestError, VmRef};
use crate::limits::{CC1_MESSAGE_MAX, REFUSALS_LOGGED};
use crate::os::fds::{send_then_fd, send_with_fd};
use crate::wire::cc1::{self, AllocateIo, ContainerRef, Decoder, FD_BYTE, Hello, Hyper, Request, Response};

/// Serves a client whose first bytes are `bytes`, to its end.
pub(super) async fn serve(stream: UnixStream, coordinator: Coordinator, visitor: Visitor, bytes: &[u8]) -> End {
    let mut decoder = Decoder::new(CC1_MESSAGE_MAX);
    decoder.push(bytes);
    let mut connection = Connection { stream, coordinator, visitor, vm: None, has_left: false, refused: 0 };
    let end = connection.run(decoder).await;
    end.linger().await;
    end
}

/// One client.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    coordinator: Coordinator,
    visitor: Visitor,
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
                    Ok(_) => match self.visitor.presence.holds(decoder.pending()) {
                        Ok(()) => continue,
                        Err(excess) => {
                            // It has sent no whole request, and is answered all the same: it is told why it ends.
                            let _ = self.respond(&Response::fail(excess.to_string()), None).await;
                            return excess.into();
                        }
                    },
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
                    ..=REFUSALS_LOGGED => info!(pid = self.visitor.peer.pid, request, error, "request refused"),
                    _ => debug!(pid = self.visitor.peer.pid, request, error, "request refused"),
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
        let outcome = match Ask::of(request) {
            Ok(Ask::Hello(hello)) => self.hello(&hello).await.map(|()| Response::version()),
            Ok(Ask::Attach(named)) => self.attach(&named).map(|()| Response::version()),
            Ok(Ask::AllocateIo(asked)) => match self.allocate_io(&asked).await {
                Ok((base, fd)) => return (Response::io_base(base), Some(fd)),
                Err(refusal) => Err(refusal),
            },
            Ok(Ask::Hyper(asked)) => self.hyper(asked).await.map(|()| Response::ok()),
            Ok(Ask::Bye(named)) => self.bye(&named).await.map(|()| Response::ok()),
            Err(refusal) => Err(refusal),
        };
        (outcome.unwrap_or_else(|Refusal(error)| Response::fail(error)), None)
    }

    async fn hello(&mut self, hello: &Hello) -> Result<(), Refusal> {
        self.vm = Some(self.coordinator.hello(hello, self.visitor.peer).await?);
        Ok(())
    }

    fn attach(&mut self, named: &ContainerRef) -> Result<(), Refusal> {
        self.vm = Some(self.coordinator.attach(&named.container_id)?);
        Ok(())
    }

    async fn allocate_io(&mut self, asked: &AllocateIo) -> Result<(u64, OwnedFd), Refusal> {
        let vm = self.vm.as_ref().ok_or(RequestError::NotAttached)?;
        let user = self.visitor.presence.user();
        let (base, fd) = self.coordinator.allocate_io(vm, asked.n_streams, user, asked.slow_reader).await?;
        Ok((base.0, fd))
    }

    async fn hyper(&mut self, asked: Hyper) -> Result<(), Refusal> {
        let vm = self.vm.as_ref().ok_or(RequestError::NotAttached)?;
        let payload = asked.data.map(|data| data.get().as_bytes().to_vec()).unwrap_or_default();
        self.coordinator.hyper(vm, &asked.hyper_name, payload).await?;
        Ok(())
    }

    async fn bye(&mut self, named: &ContainerRef) -> Result<(), Refusal> {
        self.coordinator.bye(&named.container_id).await?;
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

/// Whether a failed write means that nobody is there any more.
fn is_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
