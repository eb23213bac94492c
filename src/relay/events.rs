//! What goes into a plane and what comes out of it: peers, endings, effects, reports, bounds and totals.
//!
//! Plain data. The asymmetry to know: identifiers of links and sessions are this plane's own and are reused;
//! outside they are known by VM number and first sequence.

use super::spill::SpillOp;
use crate::wire::DecodeError;
use crate::wire::admin::{Flow, SessionStatus};
use crate::wire::cc2;
use crate::wire::hyper::StreamSeq;

/// A link of this plane. Reused after [`Effect::Close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkId(pub u32);

/// A session of this plane. Reused after its [`Report::SessionEnded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub u32);

/// The other end of a socket of the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A VM's agent.
    Agent(LinkId),
    /// A session's client.
    Client(SessionId),
}

/// How a send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// The kernel took this many bytes; fewer than asked when the peer does not keep up.
    Taken(usize),
    /// The peer takes nothing any more. What it wrote before may still be unread.
    Failed(Gone),
}

/// Why a link or a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gone {
    /// The peer closed its end.
    #[error("closed by the peer")]
    Closed,
    /// The kernel reported an error.
    #[error("{0}")]
    Error(String),
    /// The peer broke the protocol.
    #[error("protocol broken by the peer: {0}")]
    Fault(DecodeError),
    /// A client used a sequence that is not its own.
    #[error("protocol broken by the client: sequence {got} in a session that owns {want}")]
    ForeignSequence {
        /// What it used.
        got: StreamSeq,
        /// What it owns.
        want: StreamSeq,
    },
    /// Nothing came of it in time.
    #[error("no process was started for it in time")]
    TooLate,
    /// Its client does not read, and it is to end then.
    #[error("the client does not read: it is owed more than {0} bytes")]
    TooSlow(usize),
    /// What had been spilled of its output cannot be had.
    #[error("its spill file failed: {0}")]
    Spill(String),
    /// We were told to end it.
    #[error("ended on request")]
    Ordered,
}

impl Gone {
    /// Whether the peer broke the protocol.
    pub fn is_fault(&self) -> bool {
        matches!(self, Gone::Fault(_) | Gone::ForeignSequence { .. })
    }

    /// Whether the session ended although its client was there and owed output.
    pub fn is_loss(&self) -> bool {
        matches!(self, Gone::TooSlow(_) | Gone::Spill(_))
    }
}

/// What the shard has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send the pieces `views` of [`Plane::views`](super::Plane::views) in one call, as much as fits now. Answer with
    /// [`Plane::sent`](super::Plane::sent) before anything else is waited for, unless it is the last.
    Send {
        /// To whom.
        peer: Peer,
        /// Which views.
        views: std::ops::Range<usize>,
        /// Nothing waits for its end: that it was taken whole may be reported with whatever happens next.
        is_last: bool,
    },
    /// A send came short: report with [`Plane::room`](super::Plane::room) when the peer takes bytes again.
    WatchRoom(Peer),
    /// Stop receiving from a peer. What was already received may still be reported.
    Pause(Peer),
    /// Receive from it again.
    Resume(Peer),
    /// Receive from it piece by piece, for as long as it sends much.
    ReceiveLess(Peer),
    /// The client will send no more: report when it closes altogether.
    WatchClose(SessionId),
    /// Close the socket and forget the peer. Nothing may be reported of it any more.
    Close(Peer),
    /// Do something with a session's spill file. Answer with [`Plane::spilled`](super::Plane::spilled), unless it is to
    /// be closed.
    Spill(SessionId, SpillOp),
    /// Tell the coordinator.
    Report(Report),
}

/// News for the coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// A session is over and forgotten.
    SessionEnded {
        /// Its first sequence.
        base: StreamSeq,
        /// Its VM.
        vm: u64,
        /// Why its client's side ended.
        why: Gone,
    },
    /// A VM's stream channel is gone.
    LinkEnded {
        /// Its VM.
        vm: u64,
        /// Why.
        why: Gone,
    },
    /// A shim sent something that is not input.
    ShimMessage {
        /// Its session.
        base: StreamSeq,
        /// Its connection.
        connection: u64,
        /// A command or a log entry.
        frame: cc2::Frame,
    },
    /// A shim is gone; its token is free.
    ShimGone {
        /// Its session.
        base: StreamSeq,
        /// Its connection.
        connection: u64,
        /// Why.
        why: Gone,
        /// At most this many bytes of output may have gone unread.
        at_risk: u64,
    },
    /// A shim's input waits for its process.
    InputWaits {
        /// Its session.
        base: StreamSeq,
        /// Its connection.
        connection: u64,
    },
    /// A VM's stream channel is not read any more, because of a client that does not read.
    LinkBlocked {
        /// Its VM.
        vm: u64,
        /// Its session.
        by: StreamSeq,
    },
    /// It is read again.
    LinkUnblocked {
        /// Its VM.
        vm: u64,
    },
    /// A session's output goes to a file from now on.
    SpillBegan {
        /// Its VM.
        vm: u64,
        /// Its first sequence.
        base: StreamSeq,
    },
    /// Nothing more can be written to it just now; its VM waits if that lasts. Told once for each file.
    SpillStopped {
        /// Its VM.
        vm: u64,
        /// Its first sequence.
        base: StreamSeq,
        /// Why.
        why: String,
    },
    /// All of it is in memory again.
    SpillEnded {
        /// Its VM.
        vm: u64,
        /// Its first sequence.
        base: StreamSeq,
    },
}

/// The state of the one send a peer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// None in flight; new bytes are tried at once.
    Idle,
    /// This many bytes are being tried, without waiting.
    Trying(usize),
    /// The last try came short: the next is made when the peer takes bytes again.
    Blocked,
}

/// Bounds an operator may set.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Longest frame sent to an agent, header included, bytes.
    pub agent_frame_max: u32,
    /// Longest frame accepted from anybody, header included, bytes.
    pub stream_frame_max: u32,
    /// Bytes a session may owe its client before its link stops being read.
    pub session_buffer: usize,
    /// Bytes of chunks all sessions of this plane may hold together.
    pub total_buffer: usize,
}

/// Totals of a plane since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Whole frames routed to clients.
    pub to_client: Flow,
    /// Whole frames accepted for agents.
    pub to_agent: Flow,
    /// Frames from agents that no session wanted.
    pub skipped: u64,
    /// Times a link stopped being read because of a client.
    pub blocked: u64,
    /// Peers that broke the protocol.
    pub faults: u64,
    /// Sessions that ended because their clients did not read.
    pub too_slow: u64,
    /// Bytes written to spill files.
    pub spill_written: u64,
    /// Bytes read back from them.
    pub spill_read: u64,
    /// Times nothing more could be written for want of space.
    pub spill_full: u64,
    /// Operations on spill files that failed for another reason.
    pub spill_errors: u64,
    /// Sessions whose output goes to a file now.
    pub spilling: u64,
    /// Bytes of space spill files have now.
    pub spill_space: u64,
}

/// One VM as its shard sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStatus {
    /// The VM's number.
    pub vm: u64,
    /// Whole frames routed to its clients.
    pub to_client: Flow,
    /// Whole frames accepted for its agent.
    pub to_agent: Flow,
    /// Session because of which it is not read.
    pub blocked_by: Option<u64>,
    /// Its sessions.
    pub sessions: Vec<SessionStatus>,
}
