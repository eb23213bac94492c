//! One session: its state, what its two peers are owed, and when it holds its link or its client back.
//!
//! [`State::after`] is the only place where a session's state changes. The asymmetry to know: when the client goes,
//! what it had sent still goes to the agent; when the VM goes, what it had sent still goes to the client.

use super::events::{Gone, LinkId, Sending};
use super::frames::{Cut, FrameReader};
use super::outbox::Outbox;
use super::shim::{Held, Shim};
use super::spill::Spill;
use crate::limits::{SEND_MAX, SHIM_INPUT_BUFFER, TO_AGENT_BUFFER};
use crate::wire::SlowReader;
use crate::wire::admin::{Flow, SessionStatus};
use crate::wire::hyper::StreamSeq;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Bytes move both ways.
    Open,
    /// The client will send no more; it still reads.
    InputEnded,
    /// The client takes no more output; what it sends still goes to the agent.
    Deaf,
    /// No shim has its token; output is kept for the next one.
    Detached,
    /// The VM is gone; the client gets what was received, then EOF.
    Draining,
    /// The client is gone; the agent gets the whole frames it had sent.
    Leaving,
    /// Nothing is owed to anybody: the session is forgotten.
    Done,
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Happening {
    /// The client closed its writing half.
    InputEnd,
    /// The client's socket refused output: it closed, and what it had sent may still be unread.
    OutputRefused,
    /// The client closed, was killed, or broke the protocol.
    ClientGone,
    /// The shim is gone, and its token is free for another.
    ShimGone,
    /// A shim has claimed the token.
    ShimCame,
    /// The VM's stream channel is gone.
    LinkGone,
    /// Nothing is owed to the client any more.
    ClientDrained,
    /// Nothing is owed to the agent any more.
    AgentDrained,
}

impl State {
    /// The state after `happening`.
    #[must_use]
    pub fn after(self, happening: Happening) -> State {
        use Happening as H;
        use State as S;
        match (self, happening) {
            (S::Open, H::InputEnd) => S::InputEnded,
            (S::Open, H::OutputRefused) => S::Deaf,
            (S::InputEnded, H::OutputRefused) | (S::Deaf, H::InputEnd) => S::Leaving,
            (S::Open | S::InputEnded | S::Deaf | S::Detached, H::ClientGone) => S::Leaving,
            (S::Open | S::InputEnded | S::Deaf, H::ShimGone) => S::Detached,
            (S::Detached, H::ShimCame) => S::Open,
            (S::Open | S::InputEnded, H::LinkGone) => S::Draining,
            (S::Draining, H::ClientGone | H::OutputRefused | H::ClientDrained) => S::Done,
            (S::Leaving, H::LinkGone | H::AgentDrained) | (S::Deaf | S::Detached, H::LinkGone) => S::Done,
            (state, _) => state,
        }
    }

    /// Whether the client's socket is still with us.
    pub fn has_socket(self) -> bool {
        matches!(self, State::Open | State::InputEnded | State::Deaf | State::Draining)
    }

    /// Whether the client is sent output.
    pub fn has_output(self) -> bool {
        matches!(self, State::Open | State::InputEnded | State::Draining)
    }

    /// Whether what the client sends goes to the agent.
    pub fn has_input(self) -> bool {
        matches!(self, State::Open | State::Deaf)
    }

    /// The word for it in `status`.
    pub fn name(self) -> &'static str {
        match self {
            State::Open => "open",
            State::InputEnded => "input-ended",
            State::Deaf => "output-refused",
            State::Detached => "detached",
            State::Draining => "draining",
            State::Leaving => "leaving",
            State::Done => "done",
        }
    }
}

/// One session on its shard.
#[derive(Debug)]
pub(super) struct Session {
    /// First sequence: stdin and stdout. Also the session's name outside.
    pub(super) base: StreamSeq,
    /// Sequences it has: 1 or 2.
    pub(super) streams: u8,
    /// Its VM; `None` once that is gone.
    pub(super) link: Option<LinkId>,
    pub(super) state: State,
    /// Its VM's number outside, also when that is gone.
    pub(super) vm: u64,
    /// Why its client's side ended, once it has.
    pub(super) why: Gone,
    pub(super) to_client: Outbox,
    pub(super) to_agent: Outbox,
    /// What it is owed before `to_client`, when that is more than its bound.
    pub(super) spill: Option<Box<Spill>>,
    /// What is done when its client does not read.
    pub(super) slow_reader: SlowReader,
    /// The send to its client.
    pub(super) sending: Sending,
    /// Frames in the client's bytes.
    pub(super) reader: FrameReader,
    /// The client's frame being sent on in pieces.
    pub(super) cut: Option<Cut>,
    /// What only sessions with a token have.
    pub(super) shim: Option<Box<Shim>>,
    /// Already on the list of sessions whose outbox to the client changed this turn.
    pub(super) dirty: bool,
    /// Already on the list of sessions whose outbox to the agent changed this turn.
    pub(super) dirty_in: bool,
    /// Counted by its link among those whose clients are behind.
    pub(super) waits: bool,
    /// On the list of sessions with output in receive buffers.
    pub(super) pins_output: bool,
    /// On the list of sessions with input in receive buffers.
    pub(super) pins_input: bool,
    /// In its link's queue of sessions with whole frames for the agent, or in its write in flight.
    pub(super) queued: bool,
    /// Its client's bytes are not read: the agent does not keep up.
    pub(super) paused: bool,
    /// Whether it is not read because its agent takes nothing, where it is a shim.
    pub(super) held: Held,
    /// Its link's bytes are not read because of it.
    pub(super) blocks: bool,
    pub(super) flow_to_client: Flow,
    pub(super) flow_to_agent: Flow,
}

impl Session {
    pub(super) fn new(base: StreamSeq, streams: u8, link: LinkId, vm: u64) -> Session {
        Session {
            base,
            streams,
            link: Some(link),
            state: State::Open,
            vm,
            why: Gone::Closed,
            to_client: Outbox::default(),
            to_agent: Outbox::default(),
            spill: None,
            slow_reader: SlowReader::default(),
            sending: Sending::Idle,
            reader: FrameReader::default(),
            cut: None,
            shim: None,
            dirty: false,
            dirty_in: false,
            waits: false,
            pins_output: false,
            pins_input: false,
            queued: false,
            paused: false,
            held: Held::No,
            blocks: false,
            flow_to_client: Flow::default(),
            flow_to_agent: Flow::default(),
        }
    }

    /// What `status` shows of it.
    pub(super) fn status(&self) -> SessionStatus {
        SessionStatus {
            io_base: self.base.0,
            streams: self.streams,
            state: self.state.name().to_owned(),
            to_client: self.flow_to_client,
            to_agent: self.flow_to_agent,
            queued_to_client: (self.spilled_or_before() + self.to_client.bytes()) as u64,
            queued_to_agent: self.to_agent.bytes() as u64,
            slow: self.sending == Sending::Blocked,
            token: self.shim.is_some(),
            maybe_unread: self.shim.as_ref().map_or(0, |shim| shim.maybe_unread),
            slow_reader: self.slow_reader,
            spilled: self.spill.as_ref().map_or(0, |spill| spill.in_file()),
            spill_stopped: self.spill.as_ref().and_then(|spill| spill.stopped().map(str::to_owned)),
        }
    }

    /// Bytes of whole frames its client is owed, what answers its commands included.
    pub(super) fn owed(&self) -> usize {
        let replies = self.shim.as_ref().map_or(0, |shim| shim.replies.ready());
        self.spilled_or_before() + self.to_client.ready() + replies
    }

    /// Bytes its client is owed before what is in `to_client`.
    fn spilled_or_before(&self) -> usize {
        self.spill.as_ref().map_or(0, |spill| spill.bytes())
    }

    /// What its client is sent next.
    pub(super) fn oldest(&mut self) -> &mut Outbox {
        match &mut self.spill {
            Some(spill) => &mut spill.head,
            None => &mut self.to_client,
        }
    }

    /// Bytes it may owe its agent before its client stops being read; `sending` is its link's. While the agent takes
    /// nothing there is nothing to be gained by reading more, but for what a shim says behind its input.
    pub(super) fn input_bound(&self, sending: Sending) -> usize {
        match sending {
            _ if self.reads_ahead() => SHIM_INPUT_BUFFER,
            Sending::Blocked => 0,
            _ => TO_AGENT_BUFFER,
        }
    }

    /// Whether its shim is read for what comes behind its input: a signal, or its end.
    fn reads_ahead(&self) -> bool {
        let is_due = |shim: &Shim| !shim.started || self.held == Held::ReadsAhead || self.state == State::Deaf;
        self.shim.as_deref().is_some_and(is_due)
    }

    /// Whether nothing changes for it when its client has taken `bytes`, but that it is owed them no more.
    pub(super) fn ends_with(&self, bytes: usize) -> bool {
        let is_open = matches!(self.state, State::Open | State::InputEnded);
        is_open && self.owed() == bytes && !self.waits && !self.blocks && !self.paused && !self.is_given_up()
    }

    /// Whether its client is behind with its output: it takes nothing just now, or gets less than there is.
    pub(super) fn is_behind(&self) -> bool {
        let behind = match self.sending {
            _ if self.spill.is_some() => !self.retains(),
            Sending::Idle => false,
            Sending::Trying(bytes) => self.owed() >= bytes + SEND_MAX,
            Sending::Blocked => true,
        };
        behind && !self.is_given_up()
    }

    /// Whether its shim asks more than is answered and read, so that no more of it is read.
    pub(super) fn is_overasked(&self) -> bool {
        self.shim.as_ref().is_some_and(|shim| shim.is_overasked())
    }

    /// Whether its shim is gone and the end of what it sent cannot be reached: either is not read because the other
    /// is not. The token must be free for a shim that reads.
    pub(super) fn is_stuck(&self) -> bool {
        self.shim.is_some() && self.state == State::Deaf && (self.paused || self.blocks)
    }

    /// Whether output is kept although nobody is sent it.
    pub(super) fn retains(&self) -> bool {
        self.shim.is_some() && matches!(self.state, State::Detached | State::Deaf)
    }

    /// Whether its whole frames for the agent may leave: a shim's wait for the process.
    pub(super) fn may_write(&self) -> bool {
        self.shim.as_ref().is_none_or(|shim| shim.started)
    }

    /// The sequences it has.
    pub(super) fn seqs(&self) -> impl Iterator<Item = StreamSeq> + use<> {
        let base = self.base.0;
        (base..base + u64::from(self.streams)).map(StreamSeq)
    }
}

#[cfg(test)]
mod tests {
    use super::super::link::Link;
    use super::super::shim::Shim;
    use super::{Happening as H, Session, State as S};

    #[test]
    fn an_idle_session_is_small() {
        // There are tens of thousands. Who needs more for a rare case boxes it.
        assert!(size_of::<Session>() <= 280, "{} bytes", size_of::<Session>());
        assert!(size_of::<Shim>() <= 128, "{} bytes for a token", size_of::<Shim>());
        assert!(size_of::<Link>() <= 280, "{} bytes for a VM", size_of::<Link>());
    }

    #[test]
    fn the_transition_table() {
        let happenings = [
            H::InputEnd,
            H::OutputRefused,
            H::ClientGone,
            H::ShimGone,
            H::ShimCame,
            H::LinkGone,
            H::ClientDrained,
            H::AgentDrained,
        ];
        let (open, ended, deaf, detached) = (S::Open, S::InputEnded, S::Deaf, S::Detached);
        let (draining, leaving, done) = (S::Draining, S::Leaving, S::Done);
        let table = [
            (open, [ended, deaf, leaving, detached, open, draining, open, open]),
            (ended, [ended, leaving, leaving, detached, ended, draining, ended, ended]),
            (deaf, [leaving, deaf, leaving, detached, deaf, done, deaf, deaf]),
            (detached, [detached, detached, leaving, detached, open, done, detached, detached]),
            (draining, [draining, done, done, draining, draining, draining, done, draining]),
            (leaving, [leaving, leaving, leaving, leaving, leaving, done, leaving, done]),
            (done, [done; 8]),
        ];
        for (state, row) in table {
            for (happening, want) in happenings.into_iter().zip(row) {
                assert_eq!(state.after(happening), want, "{state:?} after {happening:?}");
            }
        }
    }
}
