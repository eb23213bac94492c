//! Ringway: a host-side I/O multiplexer. One daemon per container host routes stream frames between the agents
//! inside the guests and the programs on the host that want their I/O, on io_uring.
//!
//! Start with ARCHITECTURE.md; the layers below are listed from the lowest to the highest.

pub mod limits;
pub mod wire;

pub mod os;

pub mod agent;
pub mod cli;
