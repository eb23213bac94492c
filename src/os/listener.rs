//! Listening Unix sockets: with the rights they are to have from their first moment, never stealing a live one.
//!
//! A socket file nobody listens on is replaced; one that somebody does is refused with that process's ID. The parent
//! directory is locked meanwhile, so that two daemons that start at once do not both win.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

use crate::limits::UNIX_PATH_MAX;
use crate::os::fds::peer_credentials;

/// Mode of a parent directory that had to be made.
const DIRECTORY_MODE: u32 = 0o750;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Longer than a socket's path can be.
    #[error("{path}: a socket's path has at most {UNIX_PATH_MAX} bytes, this one has {}", path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Somebody listens there.
    #[error("{path}: already served by process {pid}; stop it first, or choose another path")]
    Live {
        /// The path.
        path: PathBuf,
        /// Who listens.
        pid: i32,
    },
    /// Something else is in the way.
    #[error("{path}: exists and is not a socket; remove it, or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A listener whose socket file is removed when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, whose file gets `mode`.
    ///
    /// # Errors
    /// One message that says what to do.
    pub fn bind(path: &Path, mode: u32) -> Result<Listener, ListenError> {
        if path.as_os_str().len() > UNIX_PATH_MAX {
            return Err(ListenError::TooLong { path: path.to_owned() });
        }
        let failed = |error| ListenError::Io { path: path.to_owned(), error };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent).map_err(failed)?;
        let directory = fs::File::open(parent).map_err(failed)?;
        let _lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
        make_way(path)?;
        let bits = Mode::from_bits_truncate(0o777 & !mode);
        let before = umask(bits);
        let bound = UnixListener::bind(path);
        umask(before);
        let socket = bound.map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(Listener { socket, path: path.to_owned() })
    }

    /// A second descriptor of the listening socket, for a runtime that owns its descriptors.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn socket(&self) -> io::Result<UnixListener> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already, or in a directory that was taken away: nothing is left to tidy up.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes a stale socket file; refuses anything else that is in the way.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let failed = |error| ListenError::Io { path: path.to_owned(), error };
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(ListenError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(peer) => {
            let pid = peer_credentials(peer.as_fd()).map_or(0, |peer| peer.pid);
            Err(ListenError::Live { path: path.to_owned(), pid })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/proxy.sock");
        let first = Listener::bind(&path, 0o660).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o750));
        let live = Listener::bind(&path, 0o660).unwrap_err();
        assert!(matches!(live, ListenError::Live { pid, .. } if pid == i32::try_from(std::process::id()).unwrap()));
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale file");
        Listener::bind(&path, 0o600).unwrap();
    }

    #[test]
    fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path, 0o660), Err(ListenError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let long = dir.path().join("x".repeat(108));
        assert!(matches!(Listener::bind(&long, 0o660), Err(ListenError::TooLong { .. })));
    }
}
