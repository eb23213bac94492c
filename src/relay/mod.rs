//! The rules of the data plane, pure: events in, effects out; no descriptor, no clock, no ring.
//!
//! A [`Plane`] is everything one shard knows about its links and sessions. The shard tells it what was received,
//! sent and lost; it answers with [`Effect`]s. The simulator drives the very same code. The asymmetry to know:
//! a link serves many sessions, so a client that does not read is that client's own affair until its outbox is
//! full, while an agent that does not read concerns every session of its VM.

pub mod events;
pub mod frames;
pub mod fuzzing;
mod inspect;
pub mod link;
pub mod outbox;
pub mod plane;
pub mod route;
pub mod session;
mod shim;
mod slow;
pub mod spill;
mod to_agent;
mod to_client;

pub use events::{Effect, Gone, LinkId, LinkStatus, Peer, Report, Sent, SessionId, Totals, Tuning};
pub use plane::Plane;
pub use spill::{SpillBounds, SpillFault, SpillOp, SpillSpace, Spilled};
