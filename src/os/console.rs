//! The terminal a person sits at: its size, and raw mode that always ends.
//!
//! Owns the one saved setting of this process's standard input; never touches another terminal. The asymmetry to
//! know: raw mode is entered once and may be left many times, because every way out of the process leaves it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// A terminal's size, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// The size of the terminal behind `fd`; `None` when there is no terminal or it has no size.
pub fn window_size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one `winsize` (ioctl_tty(2)), `size` is one, and it outlives the call.
    let result = unsafe { nix::libc::ioctl(fd.as_raw_fd(), nix::libc::TIOCGWINSZ, &raw mut size) };
    nix::errno::Errno::result(result).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// The size of the terminal this process is on, if it is on one.
pub fn own_window_size() -> Option<WindowSize> {
    window_size(io::stdin().as_fd())
        .or_else(|| window_size(io::stdout().as_fd()))
        .or_else(|| window_size(io::stderr().as_fd()))
}

/// How far raw mode has come; it goes one way only.
#[derive(Debug)]
enum Raw {
    /// Never entered.
    Before,
    /// Entered; what the terminal was set to before.
    Entered(Termios),
    /// Left for good: the process is on its way out.
    Left,
}

static RAW: Mutex<Raw> = Mutex::new(Raw::Before);

/// Standard input's terminal in raw mode, for as long as this lives.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts standard input's terminal into raw mode, once in the life of a process. A panic anywhere in the process
    /// leaves it too, also where panics abort.
    ///
    /// # Errors
    /// The kernel's; `ENOTTY` when standard input is no terminal. `Interrupted` when raw mode was entered or left
    /// before: another thread is ending the process.
    pub fn enter() -> io::Result<RawMode> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                leave_raw_mode();
                previous(info);
            }));
        });
        // Held over both calls: whoever leaves comes before all of it or after all of it.
        let mut state = RAW.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*state, Raw::Before) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        *state = Raw::Entered(before);
        Ok(RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        leave_raw_mode();
    }
}

/// Gives standard input's terminal the settings it had before raw mode, for good. Call it before
/// `std::process::exit`. A terminal that is gone needs no restoring, so errors are ignored.
pub fn leave_raw_mode() {
    let mut state = RAW.lock().unwrap_or_else(PoisonError::into_inner);
    if let Raw::Entered(before) = std::mem::replace(&mut *state, Raw::Left) {
        let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &before);
    }
}
