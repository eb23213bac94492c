//! A nonblocking descriptor whose readiness the event loop of this thread watches.
//!
//! It never changes which descriptor it is, nor lets anyone else change it: the event loop knows it by its number.
//! The one asymmetry to know: [`Watched::perform`] forgets readiness by itself when the system call would wait;
//! after [`Watched::readable`] that is up to the caller.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// The descriptor and its registration.
#[derive(Debug)]
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Takes a nonblocking descriptor. Only inside a runtime with I/O.
    ///
    /// # Errors
    /// The kernel's; a regular file cannot be watched (EPERM).
    pub fn new(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
        // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped. It is private here and only lent
        // out shared, so it is dropped with the registration and never replaced before.
        let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Ok(Watched(registered?))
    }

    /// Makes a nonblocking system call when the descriptor is ready for it, again until it need not wait.
    ///
    /// # Errors
    /// The call's own.
    pub async fn perform<R>(
        &self,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> nix::Result<R>,
    ) -> io::Result<R> {
        self.0.async_io(interest, |fd| Ok(call(fd.as_fd())?)).await
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// The event loop's, when it ends.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
