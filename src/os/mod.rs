//! Safe wrappers of system calls. Descriptors are `OwnedFd` from the call on, always close-on-exec.
//!
//! This module and `reactor` are the only places with `unsafe`.

pub mod fds;
pub mod process;
pub mod rooted;
pub mod serial;
pub mod terminal;
pub mod watched;
