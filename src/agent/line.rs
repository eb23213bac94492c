//! Connections of the host: where they come from, and bytes through them.
//!
//! What the bytes mean is not known here. The asymmetry to know: on a socket the host's going ends the connection
//! for good; a device's line is the same one again and again, and is waited for until somebody is at its other end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::Interest;

use crate::os::serial::{self, Port, SocketFile};
use crate::os::watched::Watched;

/// How often an absent host, or an accept that failed, is looked at again.
const PATIENCE: Duration = Duration::from_millis(100);

/// One connection with the host.
#[derive(Debug)]
pub(super) struct Line {
    fd: Watched,
}

impl Line {
    fn new(fd: OwnedFd) -> io::Result<Line> {
        Ok(Line { fd: Watched::new(fd, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Reads some bytes; 0 is the end of the connection.
    pub(super) async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        self.fd.perform(Interest::READABLE, |fd| nix::unistd::read(fd, buf)).await
    }

    /// Writes some bytes in one write. Nothing is written when this is dropped before it is done.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.fd.perform(Interest::WRITABLE, |fd| nix::unistd::write(fd, bytes)).await
    }

    /// Writes all of it.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.write(bytes).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Whether the host has gone, even with bytes of its still unread.
    pub(super) fn host_is_gone(&self) -> bool {
        serial::peer_is_gone(&self.fd)
    }

    /// Ends the connection; a reader sees its end after what was already received.
    pub(super) fn hang_up(&self) {
        serial::hang_up(&self.fd);
    }
}

/// Where connections come from, one at a time.
#[derive(Debug)]
pub(super) enum Dock {
    Socket {
        listener: Watched,
        /// Held for its drop, which removes the file.
        _file: SocketFile,
    },
    Device {
        line: Rc<Line>,
        used: std::cell::Cell<bool>,
    },
}

impl Dock {
    /// Opens the port at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Dock> {
        match Port::open(path)? {
            Port::Socket { listener, file } => {
                Ok(Dock::Socket { listener: Watched::new(listener, Interest::READABLE)?, _file: file })
            }
            Port::Device(fd) => Ok(Dock::Device { line: Rc::new(Line::new(fd)?), used: false.into() }),
        }
    }

    /// Waits for the next connection.
    pub(super) async fn next_line(&self) -> Rc<Line> {
        match self {
            Dock::Socket { listener, .. } => loop {
                let accepted = listener.perform(Interest::READABLE, serial::accept).await;
                match accepted.and_then(Line::new) {
                    Ok(line) => return Rc::new(line),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection of the host");
                        tokio::time::sleep(PATIENCE).await;
                    }
                }
            },
            Dock::Device { line, used } => {
                while used.get() {
                    tokio::time::sleep(PATIENCE).await;
                    used.set(line.host_is_gone());
                }
                used.set(true);
                Rc::clone(line)
            }
        }
    }
}
