//! Pseudo-terminals, and how much a pipe or terminal holds.
//!
//! Nothing here reads or writes. The asymmetry to know: the master's end never waits, the slave's end does, because
//! a program expects that of its terminal.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{grantpt, posix_openpt, unlockpt};

/// Makes a terminal: the master's end (nonblocking) and the slave's.
///
/// # Errors
/// The kernel's: out of descriptors or of pseudo-terminals.
pub fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = posix_openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let peer = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags as an integer and no pointer; `master` is open for the whole call.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, peer) };
    let slave = Errno::result(slave)?;
    // SAFETY: the kernel made this descriptor in the call above, and nothing else knows its number yet.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok((master.into(), slave))
}

/// Sets a terminal's size in characters; its foreground processes get SIGWINCH when it changed.
///
/// # Errors
/// The kernel's, for a descriptor that is no terminal.
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`, which is ours and outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Ok(Errno::result(result).map(drop)?)
}

/// Bytes that could be read from a pipe or terminal right now.
///
/// # Errors
/// The kernel's, for a descriptor that cannot tell.
pub fn readable_bytes(fd: impl AsFd) -> io::Result<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which is ours and outlives the call.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    Errno::result(result)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_echoes_and_takes_a_size() {
        let (master, slave) = open().unwrap();
        set_size(master.as_fd(), 30, 100).unwrap();
        nix::unistd::write(&slave, b"hello").unwrap();
        let mut buf = [0; 16];
        let mut got = nix::unistd::read(&master, &mut buf);
        while got == Err(Errno::EAGAIN) {
            std::thread::yield_now();
            got = nix::unistd::read(&master, &mut buf);
        }
        assert_eq!(&buf[..got.unwrap()], b"hello");
    }

    #[test]
    fn a_pipe_tells_what_it_holds() {
        let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        assert_eq!(readable_bytes(&reader).unwrap(), 0);
        nix::unistd::write(&writer, b"12345").unwrap();
        assert_eq!(readable_bytes(&reader).unwrap(), 5);
    }

    #[test]
    fn a_file_has_no_size_in_characters() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(set_size(file.as_fd(), 1, 1).is_err());
    }
}
