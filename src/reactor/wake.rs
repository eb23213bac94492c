//! Waking a shard that sleeps in its ring: an eventfd, written only when the sleeper said that it sleeps.
//!
//! The order that makes a wake-up impossible to lose: the sleeper announces sleep, then looks at its queue once more;
//! the waker fills the queue, then looks for the announcement. Both sides use sequentially consistent accesses.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

#[derive(Debug)]
struct Shared {
    sleeping: AtomicBool,
    event: EventFd,
}

/// One end of the wake-up; any number of threads may hold one.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// A waker for one sleeper.
    ///
    /// # Errors
    /// The kernel's: out of descriptors.
    pub fn new() -> io::Result<Waker> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Waker(Arc::new(Shared { sleeping: AtomicBool::new(false), event })))
    }

    /// Wakes the sleeper if it sleeps. Fill its queue first.
    pub fn wake(&self) {
        if self.0.sleeping.swap(false, Ordering::SeqCst) {
            // The counter is at 0 or 1, far from where a write would block or fail.
            let _ = self.0.event.write(1);
        }
    }

    /// The sleeper says that it will sleep. It must look at its queue once more before it does.
    pub fn announce_sleep(&self) {
        self.0.sleeping.store(true, Ordering::SeqCst);
    }

    /// The sleeper is awake.
    pub fn awake(&self) {
        self.0.sleeping.store(false, Ordering::SeqCst);
    }

    /// The descriptor that becomes readable.
    pub(super) fn event(&self) -> &EventFd {
        &self.0.event
    }
}
