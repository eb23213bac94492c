//! Tests of the daemon as it is run: the real binary in processes of its own, clients and agents at its sockets.

mod bad_agents;
mod bad_frames;
mod bad_requests;
mod bad_sessions;
mod carried;
mod client;
mod cycles;
mod exec;
mod findings;
mod framed;
mod guest;
mod harness;
mod hello;
mod idle;
mod lifecycle;
mod lives;
mod messages;
mod placement;
mod reclaims;
mod scene;
mod shims;
mod spill;
mod starts;
mod status;
mod streams;
