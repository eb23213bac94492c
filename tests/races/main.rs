//! What a shard and the coordinator share, in every order that their accesses can happen in (loom).
//!
//! `src/shard/mailbox.rs` and `src/reactor/wake.rs` are compiled here once more as they are, and by the names of
//! `std`, `crossbeam_queue`, `nix` and `tokio` they find this crate, whose atomics, queue, eventfd and notification
//! are `played` with loom's. So the program has no hooks for tests, and what is checked is what runs. The asymmetry to
//! know: the queue's own accesses are crossbeam's to check; here it is one step.

#![expect(dead_code, unreachable_pub, reason = "of the program's files only a part is used")]

extern crate std as real;

extern crate self as crossbeam_queue;
extern crate self as nix;
extern crate self as std;
extern crate self as tokio;

#[path = "../../src/shard/mailbox.rs"]
mod mailbox;
mod played;
mod schedules;
#[path = "../../src/reactor/wake.rs"]
mod wake;

pub use real::{collections, io, os};
pub use ringway::{relay, wire};

pub use played::ArrayQueue;

/// `std::sync` and `tokio::sync`.
pub mod sync {
    pub use real::sync::Arc;

    pub use crate::played::{Notify, oneshot};

    /// `std::sync::atomic`.
    pub mod atomic {
        pub use core::sync::atomic::Ordering;

        pub use crate::played::AtomicBool;
    }
}

/// `nix::sys`.
pub mod sys {
    /// `nix::sys::eventfd`.
    pub mod eventfd {
        pub use crate::played::{EfdFlags, EventFd};
    }
}

/// Short queues, so that few messages fill them.
mod limits {
    pub(crate) const MAILBOX_LEN: usize = 2;
}

mod reactor {
    pub(crate) use crate::wake::Waker;
}
