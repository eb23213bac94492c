//! Opening the sockets of a VM on a client's behalf, and nothing else: a daemon with privileges must not be a way to
//! talk to sockets the client may not talk to.
//!
//! The path is opened once, without connecting; what it turned out to be is checked; and the connection is made to
//! that very file, whatever the path has become since. Opening may take as long as the path's file system likes: it
//! is nothing for a thread that serves others, unless the kernel has all it needs at hand
//! ([`GuestSocket::open_at_once`]).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{Mode, SFlag, fstat};

use crate::limits::UNIX_PATH_MAX;

/// Why a path is not connected to. The client is at fault, or the operator has to allow more.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Longer than a socket's path can be.
    #[error("socket path of {len} bytes: at most {UNIX_PATH_MAX}")]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// Relative to nobody knows what.
    #[error("{0}: not an absolute path")]
    Relative(String),
    /// It cannot be opened.
    #[error("{path}: {errno}")]
    Open {
        /// The path.
        path: String,
        /// Why.
        errno: Errno,
    },
    /// Some other kind of file.
    #[error("{0}: not a socket")]
    NotASocket(String),
    /// Neither the client's own nor below an allowed directory.
    #[error("{path}: owned by uid {owner}, not by the client (uid {client}), and not below any --vm-dir")]
    NotAllowed {
        /// The path.
        path: String,
        /// Who owns the socket.
        owner: u32,
        /// Who asked.
        client: u32,
    },
}

/// A socket file that may be connected to.
#[derive(Debug)]
pub struct GuestSocket {
    file: OwnedFd,
}

impl GuestSocket {
    /// Opens `path` for a client with this user ID. Sockets of its own are allowed anywhere, others below `vm_dirs`.
    ///
    /// # Errors
    /// What is wrong with the path.
    pub fn open(path: &str, client: u32, vm_dirs: &[PathBuf]) -> Result<GuestSocket, PathError> {
        check_path(path)?;
        let refused = |errno| PathError::Open { path: path.to_owned(), errno };
        let file = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(refused)?;
        let stat = fstat(&file).map_err(refused)?;
        let socket = GuestSocket { file };
        socket.check_kind(path, stat.st_mode)?;
        if stat.st_uid == client || socket.is_below(vm_dirs) {
            Ok(socket)
        } else {
            Err(PathError::NotAllowed { path: path.to_owned(), owner: stat.st_uid, client })
        }
    }

    /// Opens a client's own socket if that can be done without waiting for a file system: its path and its owner are
    /// in the kernel's caches (openat2(2), `RESOLVE_CACHED`, Linux 5.12). `None`: try [`GuestSocket::open`].
    pub fn open_at_once(path: &str, client: u32) -> Option<GuestSocket> {
        check_path(path).ok()?;
        let cached = ResolveFlag::from_bits_retain(libc::RESOLVE_CACHED);
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(cached);
        let socket = GuestSocket { file: openat2(AT_FDCWD, path, how).ok()? };
        let (mode, owner) = cached_owner(socket.file.as_fd())?;
        (socket.check_kind(path, mode).is_ok() && owner == client).then_some(socket)
    }

    fn check_kind(&self, path: &str, mode: libc::mode_t) -> Result<(), PathError> {
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFSOCK {
            Ok(())
        } else {
            Err(PathError::NotASocket(path.to_owned()))
        }
    }

    /// Connects to this very file, without waiting. The socket does not block.
    ///
    /// # Errors
    /// `WouldBlock` when as many wait for its listener as may; others as the kernel has them.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(&self.address())?)?;
        Ok(socket.into())
    }

    /// Where to connect to reach this very file.
    fn address(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    fn is_below(&self, dirs: &[PathBuf]) -> bool {
        let Ok(real) = std::fs::read_link(self.address()) else { return false };
        dirs.iter().filter_map(|dir| canonical(dir).ok()).any(|dir| real.starts_with(dir))
    }
}

fn check_path(path: &str) -> Result<(), PathError> {
    if path.len() > UNIX_PATH_MAX {
        return Err(PathError::TooLong { len: path.len() });
    }
    if !path.starts_with('/') {
        return Err(PathError::Relative(path.to_owned()));
    }
    Ok(())
}

/// A file's mode and owner as the kernel has them at hand: a file system that hangs is not asked.
fn cached_owner(file: BorrowedFd<'_>) -> Option<(libc::mode_t, u32)> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (flags, wanted) = (libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC, libc::STATX_TYPE | libc::STATX_UID);
    // SAFETY: the path is a string that ends with a zero, and `found` is a statx to write to; both outlive the call.
    let failed = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, wanted, found.as_mut_ptr()) };
    // SAFETY: it was zeroed, which is a statx.
    let found = unsafe { found.assume_init() };
    (failed == 0 && found.stx_mask & wanted == wanted).then_some((found.stx_mode.into(), found.stx_uid))
}

fn canonical(dir: &Path) -> io::Result<PathBuf> {
    std::fs::canonicalize(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn own_sockets_and_those_below_a_vm_dir() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let (path, me) = (path.to_str().unwrap(), nix::unistd::getuid().as_raw());
        let own = GuestSocket::open(path, me, &[]).unwrap();
        own.connect().unwrap();
        let at_once = GuestSocket::open_at_once(path, me).expect("its path was looked up just now");
        at_once.connect().unwrap();
        assert!(GuestSocket::open_at_once(path, me + 1).is_none(), "whose it is has to be looked at");
        let dirs = [dir.path().to_owned()];
        assert!(GuestSocket::open(path, me + 1, &dirs).is_ok());
        let elsewhere = [PathBuf::from("/proc")];
        assert!(matches!(GuestSocket::open(path, me + 1, &elsewhere), Err(PathError::NotAllowed { .. })));
    }

    #[test]
    fn a_link_out_of_the_vm_dir_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let vms = dir.path().join("vms");
        std::fs::create_dir(&vms).unwrap();
        let outside = dir.path().join("outside.sock");
        let _listener = UnixListener::bind(&outside).unwrap();
        let link = vms.join("ctl.sock");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        let stranger = nix::unistd::getuid().as_raw() + 1;
        let opened = GuestSocket::open(link.to_str().unwrap(), stranger, &[vms]);
        assert!(matches!(opened, Err(PathError::NotAllowed { .. })));
    }

    #[test]
    fn what_is_no_socket_is_refused() {
        let long = format!("/{}", "x".repeat(199));
        assert!(matches!(GuestSocket::open(&long, 0, &[]), Err(PathError::TooLong { len: 200 })));
        assert!(matches!(GuestSocket::open("ctl.sock", 0, &[]), Err(PathError::Relative(_))));
        assert!(matches!(GuestSocket::open("/proc/version", 0, &[]), Err(PathError::NotASocket(_))));
        for path in [&long, "ctl.sock", "/proc/version", "/nonexistent/ctl.sock"] {
            assert!(GuestSocket::open_at_once(path, 0).is_none(), "{path}");
        }
        let missing = GuestSocket::open("/nonexistent/ctl.sock", 0, &[]);
        assert!(matches!(missing, Err(PathError::Open { errno: Errno::ENOENT, .. })));
    }
}
