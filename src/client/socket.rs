//! What every connection of this library does with its socket: connect, read what is there, write gathered pieces.
//!
//! Owns nothing. The asymmetry to know: a connection that was reset reads as one that was closed, because a daemon
//! that is killed with bytes of ours unread resets it, and for a reader that is the end like any other.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Error, Result};

/// Connects to the daemon's socket.
pub(super) fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).map_err(|reason| Error::Connect { path: path.to_path_buf(), reason })
}

/// Reads what is there, at least one byte; 0 at the end.
pub(super) fn read_some(mut socket: &UnixStream, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match socket.read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(0),
            other => return Ok(other?),
        }
    }
}

/// Writes all pieces, in as few system calls as the kernel lets.
pub(super) fn write_all_vectored(mut socket: &UnixStream, mut pieces: &mut [IoSlice<'_>]) -> Result<()> {
    while !pieces.is_empty() {
        match socket.write_vectored(pieces) {
            Ok(0) => return Err(Error::Lost),
            Ok(n) => IoSlice::advance_slices(&mut pieces, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
