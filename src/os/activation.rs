//! Sockets a service manager opened for us (sd_listen_fds(3)).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, sockopt};
use std::os::fd::AsRawFd;

/// The one listening Unix socket passed to this process; `None` when none was.
///
/// # Errors
/// More than one descriptor, or one that is no listening Unix stream socket: the service's fault.
pub fn listener() -> io::Result<Option<UnixListener>> {
    let fds = sd_notify::listen_fds()?;
    // SAFETY: the service manager passed these descriptors to this process, as the variables checked by `listen_fds`
    // say, which it removes; nobody else in the process knows them.
    let fds: Vec<OwnedFd> = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect();
    let mut fds = fds.into_iter();
    let Some(fd) = fds.next() else { return Ok(None) };
    if fds.next().is_some() {
        return Err(io::Error::other("socket activation passed several sockets: ringway takes one (ListenStream=)"));
    }
    let family = getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family();
    let listens = getsockopt(&fd, sockopt::AcceptConn)?;
    if family != Some(AddressFamily::Unix) || !listens {
        return Err(io::Error::other("socket activation passed something that is no listening Unix socket"));
    }
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}
