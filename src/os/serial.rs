//! The two places a guest's serial port can be: a Unix socket that is listened on, or a character device.
//!
//! Nothing here reads or writes. The asymmetry to know: a listener makes one connection after another, a device is
//! one descriptor for ever, whose other end comes and goes without telling.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, UnixAddr, accept4, bind, listen, shutdown, socket,
};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use crate::limits::UNIX_PATH_MAX;

/// A port, opened.
#[derive(Debug)]
pub enum Port {
    /// Connections are accepted one at a time.
    Socket {
        /// Listens, nonblocking.
        listener: OwnedFd,
        /// Its name in the file system.
        file: SocketFile,
    },
    /// A character device, nonblocking.
    Device(OwnedFd),
}

impl Port {
    /// Opens the character device at `path`, or listens on a Unix socket there.
    ///
    /// # Errors
    /// The kernel's; `AddrInUse` when somebody listens there, `AlreadyExists` when the path is something else.
    pub fn open(path: &Path) -> io::Result<Port> {
        match fs::symlink_metadata(path).and_then(|_| fs::metadata(path)) {
            Ok(found) if found.file_type().is_char_device() => open_device(path).map(Port::Device),
            Ok(found) if found.file_type().is_socket() => {
                remove_stale(path)?;
                listen_at(path)
            }
            Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "exists and is neither socket nor device")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => listen_at(path),
            Err(error) => Err(error),
        }
    }
}

fn open_device(path: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let device: OwnedFd = File::options().read(true).write(true).custom_flags(flags).open(path)?.into();
    if let Ok(mut settings) = tcgetattr(&device) {
        // A terminal line (ttyS0) would otherwise edit and echo the bytes. virtio ports have no such settings.
        cfmakeraw(&mut settings);
        tcsetattr(&device, SetArg::TCSANOW, &settings)?;
    }
    Ok(device)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another program listens there")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Listens on a Unix socket that only its owner may connect to.
fn listen_at(path: &Path) -> io::Result<Port> {
    if path.as_os_str().len() > UNIX_PATH_MAX {
        let text = format!("a socket's path has at most {UNIX_PATH_MAX} bytes: choose a shorter one");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
    let found = fs::symlink_metadata(path)?;
    let file = SocketFile { path: path.to_owned(), identity: (found.dev(), found.ino()) };
    // Whoever connects runs programs as this user. Nobody can before listen.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&listener, Backlog::new(8)?)?;
    Ok(Port::Socket { listener, file })
}

/// Accepts one connection, nonblocking.
///
/// # Errors
/// EAGAIN when nobody waits; others as the kernel has them.
pub fn accept(listener: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)?;
    // SAFETY: the kernel made this descriptor in the call above, and nothing else knows its number yet.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// The name of a listening socket. The file goes when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that a successor's file at the same path is left alone.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            // Nothing is left to do about a file that cannot be removed: the next start replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the peer of a socket has closed, however many of its bytes are still unread.
pub fn peer_is_gone(fd: impl AsFd) -> bool {
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
    let mut asked = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let answered = poll(&mut asked, PollTimeout::ZERO).unwrap_or(0);
    answered > 0 && asked[0].revents().is_some_and(|events| events.intersects(gone))
}

/// Ends a socket's connection in both directions; bytes already received can still be read. No effect on a device.
pub fn hang_up(fd: impl AsFd) {
    // A device is no socket and says so; a socket whose peer is gone already is what was wanted.
    let _ = shutdown(fd.as_fd().as_raw_fd(), Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("port");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let port = Port::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let Port::Socket { listener, .. } = &port else { panic!("not a socket") };
        assert_eq!(accept(listener.as_fd()).unwrap_err(), nix::errno::Errno::EAGAIN);
        assert_eq!(Port::open(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(port);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "kept").unwrap();
        assert_eq!(Port::open(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"kept");
    }

    #[test]
    fn a_character_device_is_opened() {
        let (_master, slave) = crate::os::terminal::open().unwrap();
        let path = fs::read_link(format!("/proc/self/fd/{}", slave.as_raw_fd())).unwrap();
        assert!(matches!(Port::open(&path).unwrap(), Port::Device(_)));
    }

    #[test]
    fn a_peer_that_closed_is_noticed_before_its_bytes_are_read() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        nix::unistd::write(&theirs, b"last words").unwrap();
        assert!(!peer_is_gone(&ours));
        drop(theirs);
        assert!(peer_is_gone(&ours));
        hang_up(&ours);
        let mut buf = [0; 32];
        assert_eq!(nix::unistd::read(&ours, &mut buf).unwrap(), 10);
    }
}
