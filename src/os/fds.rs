//! Descriptors across `AF_UNIX` sockets: pairs, passing (unix(7), SCM_RIGHTS), and who is at the other end.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt,
    socketpair, sockopt,
};
use nix::{cmsg_space, libc};

/// Bytes a session's socket may hold for its client: a 32 KiB send must be taken whole or not at all, which takes
/// more than twice that (the kernel counts its own overhead).
pub const SEND_BUFFER: usize = 208 * 1024;

/// Who is at the other end of a Unix socket, as of its connect (SO_PEERCRED).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Process ID; 0 when it is not visible from here.
    pub pid: i32,
    /// Effective user ID.
    pub uid: u32,
    /// Effective group ID.
    pub gid: u32,
}

/// Reads the credentials of the process that connected.
///
/// # Errors
/// The kernel's, for a descriptor that is no Unix socket.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let cred = nix::sys::socket::getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(PeerCredentials { pid: cred.pid(), uid: cred.uid(), gid: cred.gid() })
}

/// Makes a connected pair of blocking stream sockets: ours, whose sends the kernel takes whole up to 32 KiB, and
/// the client's.
///
/// # Errors
/// The kernel's; out of descriptors is the likely one.
pub fn session_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    grow_send_buffer(ours.as_fd())?;
    Ok((ours, theirs))
}

/// Raises a socket's send buffer to [`SEND_BUFFER`] where it is smaller.
///
/// # Errors
/// The kernel's, for a descriptor that is no socket.
pub fn grow_send_buffer(socket: BorrowedFd<'_>) -> io::Result<()> {
    if nix::sys::socket::getsockopt(&socket, sockopt::SndBuf)? < SEND_BUFFER {
        setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER)?;
    }
    Ok(())
}

/// Whether the other end has closed, as far as the kernel knows now.
///
/// # Errors
/// The kernel's.
pub fn has_hung_up(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    // No event is asked for: hang-ups and errors are always reported.
    poll(&mut polled, PollTimeout::ZERO)?;
    Ok(polled[0].revents().is_some_and(|events| !events.is_empty()))
}

/// Sends `bytes`, then `byte` with `fd` attached, as two messages in one call that does not wait. Returns how many
/// bytes were sent: one more than there are in `bytes` when all was.
///
/// # Errors
/// `WouldBlock` when the peer's queue is full: nothing was sent. Others as the kernel has them.
pub fn send_then_fd(socket: BorrowedFd<'_>, bytes: &[u8], byte: u8, fd: BorrowedFd<'_>) -> io::Result<usize> {
    let (byte, mut rights) = ([byte], Rights::of(fd));
    let mut pieces = [IoSlice::new(bytes), IoSlice::new(&byte)];
    let [first, second] = &mut pieces;
    let mut messages = [message(first), message(second)];
    messages[1].msg_hdr.msg_control = (&raw mut rights).cast();
    messages[1].msg_hdr.msg_controllen = size_of::<Rights>();
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the messages point at `pieces` and `rights`, which outlive the call and which the kernel only reads.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), 2, flags) };
    let sent = Errno::result(sent)?;
    let taken = messages.iter().take(usize::try_from(sent).unwrap_or_default());
    Ok(taken.map(|message| message.msg_len as usize).sum())
}

/// A message of one piece, without an address.
fn message(piece: &mut IoSlice<'_>) -> libc::mmsghdr {
    // SAFETY: all zeros are a message header: null pointers and lengths of zero.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    // An IoSlice is laid out like an iovec.
    message.msg_hdr.msg_iov = std::ptr::from_mut(piece).cast();
    message.msg_hdr.msg_iovlen = 1;
    message
}

/// A control message that carries one descriptor, as the kernel wants it laid out (cmsg(3)).
#[repr(C)]
struct Rights {
    header: libc::cmsghdr,
    fd: RawFd,
}

impl Rights {
    fn of(fd: BorrowedFd<'_>) -> Rights {
        // SAFETY: all zeros are a control message's header: three numbers.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<RawFd>();
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        Rights { header, fd: fd.as_raw_fd() }
    }
}

/// Sends `byte` with `fd` attached, in one sendmsg that does not wait.
///
/// # Errors
/// `WouldBlock` when the peer's queue is full: nothing was sent. Others as the kernel has them.
pub fn send_with_fd(socket: BorrowedFd<'_>, byte: u8, fd: BorrowedFd<'_>) -> io::Result<()> {
    let byte = [byte];
    let fds = [fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&byte)], &rights, flags, None)?;
    Ok(())
}

/// Receives one byte and the one descriptor that travels with it.
///
/// # Errors
/// `UnexpectedEof` when the peer closed, `InvalidData` when the byte came without exactly one descriptor.
pub fn recv_with_fd(socket: BorrowedFd<'_>) -> io::Result<(u8, OwnedFd)> {
    let mut byte = [0_u8];
    let mut space = cmsg_space!([RawFd; 4]);
    let mut pieces = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut pieces, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel made these descriptors for this call, and nothing else knows their numbers yet.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let received = message.bytes;
    if received == 0 && fds.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match (fds.pop(), fds.is_empty()) {
        (Some(fd), true) => Ok((byte[0], fd)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "expected one byte with exactly one descriptor")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_come_before_the_descriptor() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (passed, mut other) = UnixStream::pair().unwrap();
        assert_eq!(send_then_fd(ours.as_fd(), b"response", b'F', passed.as_fd()).unwrap(), 9);
        let mut response = [0; 8];
        theirs.read_exact(&mut response).unwrap();
        assert_eq!(&response, b"response");
        let (byte, fd) = recv_with_fd(theirs.as_fd()).unwrap();
        assert_eq!(byte, b'F');
        UnixStream::from(fd).write_all(b"x").unwrap();
        other.read_exact(&mut response[..1]).unwrap();
    }

    #[test]
    fn without_room_for_all_bytes_no_descriptor_is_sent() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = send_then_fd(ours.as_fd(), &vec![7; 1 << 20], b'F', ours.as_fd()).unwrap();
        assert!(0 < sent && sent < 1 << 20);
        drop(ours);
        let mut read = Vec::new();
        theirs.read_to_end(&mut read).unwrap();
        assert_eq!(read.len(), sent, "our end was not passed on, so this ends");
    }
}
