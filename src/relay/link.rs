//! One VM's stream channel on its shard: whose frame is arriving, and whose turn it is to write.
//!
//! The asymmetry to know: towards the agent there is one write at a time, of whole frames of several sessions;
//! `InFlight` remembers whose bytes are in it.

use std::collections::VecDeque;

use super::events::{Sending, SessionId};
use super::frames::{Cut, FrameReader};
use super::route::RouteTable;
use crate::limits::{AGENT_SEND_LEAST, AGENT_SEND_MAX};
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

impl What {
    pub(super) fn is_output(&self) -> bool {
        matches!(self, What::Payload(_))
    }
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
    /// Bytes of the next send to the agent: about what it took last time, so that behind a slow one nobody waits for
    /// long until it is his turn.
    pub(super) budget: usize,
    pub(super) in_flight: Vec<InFlight>,
    /// Sessions of this VM.
    pub(super) sessions: Vec<SessionId>,
    /// Sessions that are owed too much for its bytes to be read.
    pub(super) blockers: usize,
    /// Sessions whose clients are behind.
    pub(super) waiting: usize,
    /// Its bytes are not read.
    pub(super) paused: bool,
    /// Already on the list of links to write to this turn.
    pub(super) dirty: bool,
    pub(super) flow_to_client: Flow,
    pub(super) flow_to_agent: Flow,
    pub(super) skipped: u64,
}

impl Link {
    /// What a send of which `n` of `asked` bytes were taken says about the next one.
    pub(super) fn learn(&mut self, asked: usize, n: usize) {
        let next = if n < asked { n } else { 2 * self.budget };
        self.budget = next.clamp(AGENT_SEND_LEAST, AGENT_SEND_MAX);
    }

    /// Whole frames its agent has sent, wanted or not.
    pub(super) fn frames(&self) -> u64 {
        self.flow_to_client.frames + self.skipped
    }

    pub(super) fn new(vm: u64) -> Link {
        Link {
            vm,
            routes: RouteTable::default(),
            reader: FrameReader::default(),
            current: None,
            queue: VecDeque::new(),
            sending: Sending::Idle,
            budget: AGENT_SEND_MAX,
            in_flight: Vec::new(),
            sessions: Vec::new(),
            blockers: 0,
            waiting: 0,
            paused: false,
            dirty: false,
            flow_to_client: Flow::default(),
            flow_to_agent: Flow::default(),
            skipped: 0,
        }
    }
}
