//! Safe wrappers of system calls. Descriptors are `OwnedFd` from the call on, always close-on-exec.
//!
//! This module and `reactor` are the only places with `unsafe`.

pub mod console;
pub mod cpu;
pub mod fds;
pub mod region;
pub mod rlimit;
