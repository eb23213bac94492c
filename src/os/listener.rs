//! Listening Unix sockets: with the rights they are to have from their first moment, never stealing a live one.
//!
//! A socket file nobody listens on is replaced; one that somebody does is refused with that process's ID. The parent
//! directory is locked meanwhile, so that two daemons that start at once do not both win.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
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
    /// Somebody listens there, so busy that a connection would have to wait.
    #[error("{path}: already served, by a process that accepts nobody just now; stop it, or choose another path")]
    LiveAndBusy {
        /// The path.
        path: PathBuf,
    },
    /// Others could replace the socket.
    #[error(
        "{path}: its directory belongs to user {owner} and has mode {mode:04o}, so that others could replace the \
         socket; choose a directory of your own or root's that others may not write to"
    )]
    Exposed {
        /// The path.
        path: PathBuf,
        /// Whose directory it is.
        owner: u32,
        /// The directory's mode.
        mode: u32,
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
    /// Device and inode of the file that is ours to remove.
    file: (u64, u64),
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
        let parent = directory_of(path);
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(parent).map_err(failed)?;
        let directory = fs::File::open(parent).map_err(failed)?;
        check_directory(path, &directory.metadata().map_err(failed)?)?;
        let _lock = Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno.into()))?;
        make_way(path)?;
        let bits = Mode::from_bits_truncate(0o777 & !mode);
        let before = umask(bits);
        let bound = UnixListener::bind(path);
        umask(before);
        let socket = bound.map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        let made = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Listener { socket, path: path.to_owned(), file: (made.dev(), made.ino()) })
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
        // Gone already, replaced by somebody else's, or in a directory that was taken away: nothing of ours is left.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The directory a path's file is in.
pub fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a directory in which somebody else could replace the socket: it must be ours or root's, and where others
/// may write to it, have the sticky bit, which leaves files to their owners.
fn check_directory(path: &Path, found: &fs::Metadata) -> Result<(), ListenError> {
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    let is_trusted = owner == 0 || owner == nix::unistd::geteuid().as_raw();
    let is_private = mode & 0o002 == 0 || mode & 0o1000 != 0;
    if is_trusted && is_private {
        return Ok(());
    }
    Err(ListenError::Exposed { path: path.to_owned(), owner, mode })
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
    // Without waiting: who listens and accepts nobody would hold up this start for as long.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asking = socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|errno| failed(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| failed(errno.into()))?;
    match connect(asking.as_raw_fd(), &address) {
        Ok(()) => {
            let pid = peer_credentials(asking.as_fd()).map_or(0, |peer| peer.pid);
            Err(ListenError::Live { path: path.to_owned(), pid })
        }
        Err(Errno::EAGAIN) => Err(ListenError::LiveAndBusy { path: path.to_owned() }),
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed),
        Err(errno) => Err(failed(errno.into())),
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

    #[test]
    fn a_listener_that_accepts_nobody_is_live_and_does_not_hold_up_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("busy.sock");
        let listening = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new(&path).unwrap();
        nix::sys::socket::bind(listening.as_raw_fd(), &address).unwrap();
        nix::sys::socket::listen(&listening, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let mut waiting = Vec::new();
        loop {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            match connect(client.as_raw_fd(), &address) {
                Ok(()) => waiting.push(client),
                Err(errno) => break assert_eq!(errno, Errno::EAGAIN),
            }
        }
        assert!(matches!(Listener::bind(&path, 0o660), Err(ListenError::LiveAndBusy { .. })));
        assert!(path.exists());
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.sock");
        let first = Listener::bind(&path, 0o660).unwrap();
        // The old file stays under another name, so that its number is not given to the new one.
        fs::rename(&path, dir.path().join("moved.sock")).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }

    #[test]
    fn a_directory_others_may_write_to_needs_the_sticky_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.sock");
        for (mode, is_fine) in [(0o777, false), (0o1777, true), (0o755, true), (0o770, true)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let outcome = Listener::bind(&path, 0o660);
            match outcome {
                Ok(_) => assert!(is_fine, "{mode:o}"),
                Err(error) => {
                    assert!(!is_fine && matches!(error, ListenError::Exposed { .. }), "{mode:o}: {error}");
                }
            }
        }
        if nix::unistd::geteuid().is_root() {
            nix::unistd::chown(dir.path(), Some(nix::unistd::Uid::from_raw(65_534)), None).unwrap();
            let error = Listener::bind(&path, 0o660).unwrap_err().to_string();
            assert!(error.contains("belongs to user 65534 and has mode 0770"), "{error}");
        }
    }
}
