//! Signals that arrive at a descriptor instead of a handler.
//!
//! Owns nothing but that descriptor. The asymmetry to know: signals are named by number, because real-time signals
//! have no names, and containers are stopped with some of them.

use std::io;

use nix::libc;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocks the signals in this thread and all it starts later; they arrive at the descriptor instead. Numbers that are
/// no signals are left out, as are SIGKILL and SIGSTOP, which cannot be blocked.
///
/// # Errors
/// The kernel's.
pub fn watch(numbers: impl IntoIterator<Item = i32>) -> io::Result<SignalFd> {
    let mut set = *SigSet::empty().as_ref();
    for number in numbers {
        // SAFETY: `set` is a valid set, made by nix, ours, and outlives the call; a number that is no signal is
        // refused without effect.
        unsafe { libc::sigaddset(&raw mut set, number) };
    }
    // SAFETY: the set came from nix and only sigaddset changed it since.
    let set = unsafe { SigSet::from_sigset_t_unchecked(set) };
    set.thread_block()?;
    Ok(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?)
}

/// The next signal's number; blocks until one arrives.
///
/// # Errors
/// The kernel's.
pub fn next(signals: &SignalFd) -> io::Result<i32> {
    loop {
        match signals.read_signal() {
            // The kernel's numbers are below 65.
            Ok(Some(info)) => return Ok(i32::try_from(info.ssi_signo).unwrap_or(libc::SIGTERM)),
            Ok(None) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_signals_arrive_too() {
        let number = libc::SIGRTMIN() + 3;
        let signals = watch([number, libc::SIGUSR1, 0, 1_000]).unwrap();
        let (process, thread) = (nix::unistd::getpid().as_raw(), nix::unistd::gettid().as_raw());
        let sent = |number: i32| {
            // SAFETY: tgkill(2) touches no memory; both signals are blocked in this thread.
            unsafe { libc::syscall(libc::SYS_tgkill, process, thread, number) }
        };
        assert_eq!((sent(libc::SIGUSR1), sent(number)), (0, 0));
        assert_eq!((next(&signals).unwrap(), next(&signals).unwrap()), (libc::SIGUSR1, number));
    }
}
