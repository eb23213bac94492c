//! Safe wrappers of system calls. Descriptors are `OwnedFd` from the call on, always close-on-exec.
//!
//! This module and `reactor` are the only places with `unsafe`.

pub mod activation;
pub mod calls;
pub mod console;
pub mod cpu;
pub mod fds;
pub mod guest_socket;
pub mod heap;
pub mod listener;
pub mod process;
pub mod region;
pub mod rlimit;
pub mod rooted;
pub mod sandbox;
pub mod serial;
pub mod signals;
pub mod spill_dir;
pub mod terminal;
pub mod usage;
pub mod watched;
