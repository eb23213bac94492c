//! One VM's stream channel on its shard: whose frame is arriving, and whose turn it is to write.
//!
//! The asymmetry to know: towards the agent there is one write at a time, of whole frames of several sessions;
//! `InFlight` remembers whose bytes are in it.

use std::collections::VecDeque;

use super::events::{Sending, SessionId};
use super::frames::{Cut, FrameReader};
use super::route::RouteTable;
use crate::wire::admin::Flow;

/// A session's share of the write in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    pub(super) session: SessionId,
    pub(super) bytes: usize,
}

/// A frame of the agent that has begun and not ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    pub(super) session: SessionId,
    pub(super) what: What,
}

/// What its payload is.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Bytes for the client.
    Payload(Cut),
    /// The process's exit status, for a shim.
    Status,
}

/// One VM's stream channel.
#[derive(Debug)]
pub(super) struct Link {
    /// The VM's number outside.
    pub(super) vm: u64,
    pub(super) routes: RouteTable,
    /// Frames in the agent's bytes.
    pub(super) reader: FrameReader,
    /// The agent's frame in progress, when it did not arrive whole. `None`: skipped.
    pub(super) current: Option<Current>,
    /// Sessions with whole frames for the agent, in turn.
    pub(super) queue: VecDeque<SessionId>,
    pub(super) sending: Sending,
    pub(super) in_flight: Vec<InFlight>,
    /// Sessions of this VM.
    pub(super) sessions: Vec<SessionId>,
    /// Sessions because of which its bytes are not read.
    pub(super) blockers: usize,
    /// Already on the list of links to write to this turn.
    pub(super) dirty: bool,
    pub(super) flow_to_client: Flow,
    pub(super) flow_to_agent: Flow,
    pub(super) skipped: u64,
}

impl Link {
    pub(super) fn new(vm: u64) -> Link {
        Link {
            vm,
            routes: RouteTable::default(),
            reader: FrameReader::default(),
            current: None,
            queue: VecDeque::new(),
            sending: Sending::Idle,
            in_flight: Vec::new(),
            sessions: Vec::new(),
            blockers: 0,
            dirty: false,
            flow_to_client: Flow::default(),
            flow_to_agent: Flow::default(),
            skipped: 0,
        }
    }
}
