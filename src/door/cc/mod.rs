//! The proxy socket's door: clients of both protocols, one task each, one request at a time.
//!
//! A connection's first two bytes tell the protocols apart: protocol 2 begins 00 02, protocol 1 with a length that is
//! below 128 KiB. A client that sends slowly, or does not read its responses, holds up its own task and nothing
//! else. The asymmetry to know: a protocol 2 shim leaves this thread; everybody else stays.

mod commands;
mod frames;
pub mod fuzzing;
mod gate;
mod messages;
mod requests;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

pub use self::gate::{Allowed, Gate};

use self::gate::Visitor;
use super::sparing::Sparing;
use crate::coordinator::{Coordinator, Excess};
use crate::limits::FAULT_PAUSE_MS;
use crate::os::fds::PeerCredentials;
use crate::wire::DecodeError;

/// Pause after a failed accept: out of descriptors is not cured by trying at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause before a connection closes that broke its protocol.
const FAULT_PAUSE: Duration = Duration::from_millis(FAULT_PAUSE_MS);

/// Accepts clients for ever, those that `gate` lets in, at most `clients` at once; more wait in the backlog. Shims do
/// not count once they are on their shard, where sessions are bounded.
pub async fn serve(listener: UnixListener, coordinator: Coordinator, gate: Gate, clients: usize) {
    let places = Arc::new(Semaphore::new(clients));
    let faults = Rc::new(Sparing::default());
    let mut failures = 0_u64;
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                failures = 0;
                if let Some((stream, visitor)) = gate.admit(stream, &coordinator) {
                    let (coordinator, faults) = (coordinator.clone(), Rc::clone(&faults));
                    tokio::task::spawn_local(converse(stream, coordinator, visitor, place, faults));
                }
            }
            Err(error) => {
                failures += 1;
                // The first, the second, the fourth, … in a row: this may go on for long.
                if failures.is_power_of_two() {
                    warn!(%error, failures, "cannot accept a client; trying again every {ACCEPT_PAUSE:?}");
                }
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
    /// It has a token: its connection is a shard's now.
    #[error("moved to a shard")]
    Moved,
    /// The client closed in the middle of a message.
    #[error("closed by the client in the middle of a message")]
    Truncated,
    /// The client broke the protocol.
    #[error("protocol broken by the client: {0}")]
    Fault(#[from] DecodeError),
    /// Its user's connections hold too much.
    #[error("{0}")]
    Excess(#[from] Excess),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl End {
    /// Stays for a moment where the client is at fault; whoever calls it still has the socket.
    async fn linger(&self) {
        if matches!(self, End::Fault(_) | End::Excess(_)) {
            tokio::time::sleep(FAULT_PAUSE).await;
        }
    }
}

async fn converse(
    stream: UnixStream,
    coordinator: Coordinator,
    visitor: Visitor,
    place: OwnedSemaphorePermit,
    faults: Rc<Sparing>,
) {
    coordinator.count(|counters| counters.clients_accepted += 1);
    coordinator.client_count(1);
    let PeerCredentials { pid, uid, .. } = visitor.peer;
    let end = speak(stream, coordinator.clone(), visitor).await;
    drop(place);
    match end {
        End::Closed => debug!(pid, uid, "client closed"),
        End::Moved => debug!(pid, uid, "client became a shim"),
        End::Io(error) => debug!(pid, uid, %error, "client lost"),
        end @ (End::Truncated | End::Fault(_) | End::Excess(_)) => {
            coordinator.count(|counters| counters.clients_faulty += 1);
            if let Some(unsaid) = faults.may_say(Instant::now()) {
                warn!(pid, uid, unsaid, "connection ended: {end}");
            }
        }
    }
    coordinator.client_count(-1);
}

/// Finds out which protocol the client speaks, and speaks it.
async fn speak(stream: UnixStream, coordinator: Coordinator, visitor: Visitor) -> End {
    let mut first = Vec::new();
    while first.len() < 2 {
        match receive(&stream, |bytes| first.extend_from_slice(bytes)).await {
            Ok(0) if first.is_empty() => return End::Closed,
            Ok(0) => return End::Truncated,
            Ok(_) => {}
            Err(error) => return error.into(),
        }
    }
    if first.starts_with(&[0, 2]) {
        frames::serve(stream, coordinator, visitor, &first).await
    } else {
        messages::serve(stream, coordinator, visitor, &first).await
    }
}

/// Receives some bytes and returns how many; 0 at the end. A client that is silent has no buffer.
async fn receive(stream: &UnixStream, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match receive_now(stream, &mut take) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// Receives what is there. Its buffer must not be in `receive`, where it would be part of every client's task.
fn receive_now(stream: &UnixStream, take: &mut impl FnMut(&[u8])) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let n = stream.try_read(&mut buffer)?;
    take(&buffer[..n]);
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_is_silent_has_no_buffer() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let waiting = size_of_val(&receive(&stream, |_| ()));
        assert!(waiting <= 256, "{waiting} bytes of its task");
    }
}
