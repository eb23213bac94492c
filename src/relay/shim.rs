//! Sessions with a token: their output waits for whichever shim has the token, their input for the process.
//!
//! A shim's connection carries frames of protocol 2: stdin goes to the agent, stdout and stderr come from it, and
//! everything else is a message that goes to the coordinator and may be answered. The asymmetry to know: output
//! belongs to the session and waits for the next shim; answers belong to the connection and end with it.

use super::events::{Effect, Gone, Peer, Report, Sending, SessionId};
use super::frames::{Face, FrameRun, Head, Step};
use super::outbox::{Arena, Outbox};
use super::plane::Plane;
use super::session::{Happening, Session, State};
use crate::buf::{BufView, Leases, Memory};
use crate::limits::{CHUNK_LEN, SHIM_AT_RISK, SHIM_MESSAGES_MAX, SHIM_REPLIES_BUFFER};
use crate::wire::DecodeError;
use crate::wire::cc2::{self, Header, Kind, Stream};
use crate::wire::hyper::{FrameHeader, StreamSeq};

/// What the payload of the shim's frame in progress is.
#[derive(Debug, Default)]
enum Current {
    /// Input, cut by the session's `cut`.
    #[default]
    Stdin,
    /// A message being put together, of this many bytes.
    Message(Kind, Vec<u8>, u32),
    /// Nothing anybody wants.
    Ignored,
}

/// How a process ends, as far as it is known.
#[derive(Debug, Default)]
struct Exit {
    stdout_ended: bool,
    stderr_ended: bool,
    /// It has a terminal: there is no stderr that could end.
    terminal: bool,
    status: Option<u8>,
    /// The status came on the stream channel, behind all output; an event on the control channel has no order.
    in_order: bool,
    told: bool,
}

impl Exit {
    /// The status to tell now, if it is time.
    fn due(&self) -> Option<u8> {
        let all_output = self.stdout_ended && (self.stderr_ended || self.terminal);
        self.status.filter(|_| !self.told && (self.in_order || all_output))
    }
}

/// Whether a shim is not read because its agent does not take its input. [`Held::Lately`] and [`Held::Long`] are on the
/// plane's list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Held {
    /// It is read, or not read for another reason.
    #[default]
    No,
    /// It was paused, or some of its input taken, after the last beat.
    Lately,
    /// It has been paused since before the last beat, and none of its input was taken.
    Long,
    /// For longer: it is read although its input is not taken.
    ReadsAhead,
}

/// The part of a session that only those with a token have.
#[derive(Debug, Default)]
pub(super) struct Shim {
    /// The connection that has the token.
    connection: Option<u64>,
    current: Current,
    /// What this connection is owed besides output.
    pub(super) replies: Outbox,
    /// The send in flight is of replies.
    sending_replies: bool,
    /// Messages reported and not yet done with.
    unanswered: u32,
    /// The process runs: input may leave.
    pub(super) started: bool,
    /// The coordinator knows that input waits.
    told_waiting: bool,
    /// The shim has asked to give its token up: when it goes, nobody comes after it.
    leaving: bool,
    /// The token is given up: the connection ends when its replies are read.
    ending: bool,
    exit: Exit,
    /// Bytes of output the kernel took on this connection.
    taken: u64,
    /// Bytes of output that may have gone unread with earlier ones.
    pub(super) maybe_unread: u64,
}

impl Shim {
    /// Its connection gets no more answers.
    pub(super) fn forget_replies<L: Leases>(&mut self, arena: &mut Arena, mem: &mut Memory<L>) {
        self.replies.clear(arena, mem);
        self.sending_replies = false;
    }

    /// Its token is given up, whatever its connection is still owed.
    pub(super) fn give_up(&mut self) {
        self.ending = true;
    }

    /// Whether its connection has so many unanswered messages, or so many unread answers, that no more are read.
    pub(super) fn is_overasked(&self) -> bool {
        self.unanswered >= SHIM_MESSAGES_MAX || self.replies.bytes() >= SHIM_REPLIES_BUFFER
    }
}

/// What an agent's frame is to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Bytes to send on, looking like this.
    Output(Face),
    /// The end of one of its streams.
    End,
    /// The exit status.
    Status,
}

impl Session {
    /// Whether its token was given up: nobody waits for its output, even while its connection has replies to read.
    pub(super) fn is_given_up(&self) -> bool {
        self.shim.as_ref().is_some_and(|shim| shim.ending)
    }

    /// Whether its shim has asked to give the token up: when the shim goes, nobody comes after it.
    pub(super) fn goes_with_its_shim(&self) -> bool {
        self.shim.as_ref().is_some_and(|shim| shim.ending || shim.leaving)
    }

    /// Whether what is being sent to its client is answers, not output.
    pub(super) fn sends_replies(&self) -> bool {
        self.shim.as_ref().is_some_and(|shim| shim.sending_replies)
    }

    /// How an agent's frame looks to the client when it is output and nothing else, whatever came before.
    pub(super) fn face_of(&self, header: FrameHeader) -> Option<Face> {
        if self.shim.is_none() {
            return Some(Face::Hyper(header.seq));
        }
        let stream = if header.seq == self.base { Stream::Stdout } else { Stream::Stderr };
        (header.payload_len() > 1).then_some(Face::Shim(stream))
    }

    /// What an agent's frame is to this session.
    pub(super) fn role(&mut self, header: FrameHeader) -> Role {
        let Some(shim) = &mut self.shim else { return Role::Output(Face::Hyper(header.seq)) };
        let is_stdout = header.seq == self.base;
        let exit = &mut shim.exit;
        match header.payload_len() {
            0 if is_stdout => exit.stdout_ended = true,
            0 => exit.stderr_ended = true,
            1 if is_stdout && exit.stdout_ended => return Role::Status,
            _ if is_stdout => return Role::Output(Face::Shim(Stream::Stdout)),
            _ => return Role::Output(Face::Shim(Stream::Stderr)),
        }
        Role::End
    }
}

impl Plane {
    /// Adds a session with a token: two sequences from `base`, and no client yet.
    pub fn open_token(&mut self, link: super::LinkId, base: StreamSeq) -> SessionId {
        let id = self.open_session(link, base, 2);
        let session = &mut self.sessions[id.0 as usize];
        session.state = State::Detached;
        session.shim = Some(Box::default());
        id
    }

    fn shim(&mut self, id: SessionId) -> Option<&mut Shim> {
        self.sessions.get_mut(id.0 as usize)?.shim.as_deref_mut()
    }

    /// A shim has claimed the token; `reply` answers it. The shard receives from it at once. `false` when the session
    /// has a shim, or is none that could.
    pub fn connect_shim<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        connection: u64,
        reply: &[u8],
    ) -> bool {
        let Some(session) = self.sessions.get_mut(id.0 as usize).filter(|s| s.state == State::Detached) else {
            return false;
        };
        session.reader = super::frames::FrameReader::default();
        self.change(id, Happening::ShimCame);
        let Some(shim) = &mut self.sessions[id.0 as usize].shim else { return false };
        shim.connection = Some(connection);
        (shim.taken, shim.told_waiting, shim.current) = (0, false, Current::Stdin);
        self.reply(mem, id, reply);
        true
    }

    /// The coordinator is done with one message of a connection; `reply` is what that is to be sent, if anything.
    pub fn answer_shim<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, connection: u64, reply: &[u8]) {
        let Some(shim) = self.shim(id).filter(|shim| shim.connection == Some(connection)) else { return };
        shim.unanswered = shim.unanswered.saturating_sub(1);
        self.reply(mem, id, reply);
        self.resume_client(mem, id);
    }

    /// The token is given up: the connection gets `reply` and ends, and nobody gets its output any more.
    pub fn release_token<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, reply: &[u8]) {
        if self.shim(id).is_none() {
            return;
        }
        self.reply(mem, id, reply);
        self.remove_routes(id);
        self.unblock_link(id);
        let session = &mut self.sessions[id.0 as usize];
        let Some(shim) = &mut session.shim else { return };
        shim.ending = true;
        let is_over = shim.replies.ready() == 0 || session.state == State::Detached;
        self.update_waiting(id);
        if is_over {
            self.gone(mem, Peer::Client(id), Gone::Ordered);
        }
    }

    /// Ends a connection, if it still has the token. Input that never reached a process is forgotten.
    pub fn drop_shim<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, connection: u64, why: Gone) {
        let Some(shim) = self.shim(id).filter(|shim| shim.connection == Some(connection)) else { return };
        if !shim.started {
            self.sessions[id.0 as usize].to_agent.clear(&mut self.arena, mem);
        }
        self.gone(mem, Peer::Client(id), why);
    }

    /// The session's process runs: its input may leave.
    pub fn started<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, terminal: bool) {
        let Some(shim) = self.shim(id) else { return };
        (shim.started, shim.exit.terminal) = (true, terminal);
        self.mark_input(id);
        self.tell_exit(mem, id);
    }

    /// The agent reported on its control channel that the process ended.
    pub fn exited<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, status: u8) {
        let Some(shim) = self.shim(id) else { return };
        shim.exit.status = Some(status);
        self.tell_exit(mem, id);
    }

    /// The exit status came on the stream channel.
    pub(super) fn exit_status<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, status: u8) {
        let Some(shim) = self.shim(id) else { return };
        (shim.exit.status, shim.exit.in_order) = (Some(status), true);
        self.tell_exit(mem, id);
    }

    /// Tells the shim the exit status once it has all output.
    pub(super) fn tell_exit<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        let current = session.link.and_then(|link| self.links[link.0 as usize].current);
        // Also between two of the frames that a long one of the agent is cut into.
        let is_mid_frame = current.is_some_and(|current| current.session == id && current.what.is_output());
        let Some(shim) = session.shim.as_mut().filter(|shim| !shim.ending && !is_mid_frame) else { return };
        let Some(status) = shim.exit.due().filter(|_| !session.to_client.is_open()) else { return };
        shim.exit.told = true;
        let frame = cc2::encode(Kind::Notification(cc2::PROCESS_EXITED), &[status]);
        session.to_client.push_bytes(&mut self.arena, mem, &frame, true);
        self.mark_client(id);
    }

    /// Owes bytes to the connection: whole frames.
    fn reply<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, bytes: &[u8]) {
        let session = &mut self.sessions[id.0 as usize];
        let Some(shim) = session.shim.as_mut().filter(|_| session.state.has_output()) else { return };
        // A long frame leaves in several sends; nothing comes between them, because answers go first.
        for piece in bytes.chunks(CHUNK_LEN) {
            shim.replies.push_bytes(&mut self.arena, mem, piece, true);
        }
        if shim.is_overasked() {
            self.mark_input(id);
        }
        self.mark_client(id);
    }

    /// Lists what to send next: answers first, then output.
    pub(super) fn plan_output(&mut self, id: SessionId) -> usize {
        let session = &mut self.sessions[id.0 as usize];
        if let Some(shim) = &mut session.shim {
            shim.sending_replies = shim.replies.ready() > 0;
            if shim.sending_replies {
                return shim.replies.plan(&self.arena, crate::limits::SEND_MAX, &mut self.views);
            }
        }
        session.oldest().plan(&self.arena, crate::limits::SEND_MAX, &mut self.views)
    }

    /// The kernel took the first `n` bytes of what was planned.
    pub(super) fn consume_output<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, n: usize) {
        let session = &mut self.sessions[id.0 as usize];
        if let Some(shim) = &mut session.shim {
            if shim.sending_replies {
                return shim.replies.consume(&mut self.arena, mem, n);
            }
            shim.taken += n as u64;
        }
        session.oldest().consume(&mut self.arena, mem, n);
    }

    /// Whether a session's token was given up and its connection has its replies: it is to end.
    pub(super) fn is_released(&mut self, id: SessionId) -> bool {
        self.shim(id).is_some_and(|shim| shim.ending && shim.replies.ready() == 0)
    }

    /// A session's shim is gone. `false` when the session has no token to free, and goes with its client.
    pub(super) fn shim_gone<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: &Gone) -> bool {
        let session = &mut self.sessions[id.0 as usize];
        let stays = session.link.is_some() && session.state.after(Happening::ShimGone) == State::Detached;
        let stays = stays && !session.goes_with_its_shim();
        let Some(shim) = session.shim.as_mut().filter(|_| stays) else { return false };
        let Some(connection) = shim.connection.take() else { return true };
        self.totals.faults += u64::from(why.is_fault());
        let at_risk = shim.taken.min(SHIM_AT_RISK);
        shim.maybe_unread += at_risk;
        shim.forget_replies(&mut self.arena, mem);
        (shim.unanswered, shim.current) = (0, Current::Stdin);
        session.to_agent.drop_open(&mut self.arena, mem);
        (session.cut, session.paused) = (None, false);
        let (base, why) = (session.base, why.clone());
        self.set_sending(id, Sending::Idle);
        self.change(id, Happening::ShimGone);
        self.mark_client(id);
        self.effects.push(Effect::Report(Report::ShimGone { base, connection, why, at_risk }));
        true
    }

    /// A shim's socket refused output: it closed, and what it had sent may still be unread. Output waits for the next.
    pub(super) fn shim_refused<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) -> bool {
        let session = &mut self.sessions[id.0 as usize];
        let Some(shim) = session.shim.as_mut() else { return false };
        shim.forget_replies(&mut self.arena, mem);
        self.set_sending(id, Sending::Idle);
        self.change(id, Happening::OutputRefused);
        self.mark_client(id);
        true
    }

    /// A session's client is not read any more. A shim is looked at again in later beats.
    pub(super) fn hold_shim(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if session.shim.is_some() && session.held == Held::No {
            session.held = Held::Lately;
            self.held.push(id);
        }
    }

    /// The agent took a session's input.
    pub(super) fn input_taken(&mut self, id: SessionId) {
        let held = &mut self.sessions[id.0 as usize].held;
        if *held == Held::ReadsAhead {
            self.held.push(id);
        }
        if *held != Held::No {
            *held = Held::Lately;
        }
    }

    /// Whether shims wait for the next [`Plane::beat`].
    pub fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Some time has passed: shims whose input was not taken for a whole beat are read ahead, up to a bound, so that a
    /// signal behind it is seen. Call it between turns.
    pub fn beat<L: Leases>(&mut self, mem: &mut Memory<L>) {
        let mut held = std::mem::take(&mut self.held);
        held.retain(|&id| self.stays_held(mem, id));
        self.held = held;
    }

    fn stays_held<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) -> bool {
        let Some(session) = self.sessions.get_mut(id.0 as usize) else { return false };
        session.held = match session.held {
            _ if !session.paused => Held::No,
            Held::Lately => Held::Long,
            Held::Long => Held::ReadsAhead,
            other => other,
        };
        let stays = session.held == Held::Long;
        self.resume_client(mem, id);
        stays
    }

    /// Input of a shim whose process does not run yet.
    pub(super) fn hold_until_started<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        self.hold_input(mem, id);
        let session = &mut self.sessions[id.0 as usize];
        let (base, waits) = (session.base, session.to_agent.ready() > 0);
        let Some(shim) = &mut session.shim else { return };
        if let Some(connection) = shim.connection.filter(|_| waits && !shim.told_waiting) {
            shim.told_waiting = true;
            self.effects.push(Effect::Report(Report::InputWaits { base, connection }));
        }
    }

    /// Takes bytes of a shim.
    pub(super) fn shim_received<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, view: BufView) {
        let mut rest = view;
        while rest.len > 0 {
            let session = &mut self.sessions[id.0 as usize];
            if session.link.is_none() || !session.state.has_input() {
                return;
            }
            if !session.reader.is_mid_frame()
                && let Some(run) = FrameRun::restamp(mem.bytes_mut(rest), session.base, self.tuning.agent_frame_max)
            {
                // Nearly all that shims send: the payload stays where it is.
                session.to_agent.push(&mut self.arena, mem, rest.first(run.bytes), true);
                self.count_input(id, run);
                rest = rest.skip(run.bytes);
                continue;
            }
            let step = session.reader.step::<Header>(mem.bytes(rest), 0);
            let taken = match step {
                Ok(Step::Whole(header)) => {
                    let frame = rest.first(header.frame());
                    self.whole_from_shim(mem, id, header, frame).map(|()| header.frame())
                }
                Ok(Step::Begin { header, taken }) => self.begin_from_shim(mem, id, header).map(|()| taken),
                Ok(Step::Skip { len }) => Ok(len),
                Ok(Step::Body { len }) => {
                    self.body_from_shim(mem, id, rest.first(len));
                    Ok(len)
                }
                Ok(Step::Kept) => return,
                Err(fault) => Err(fault),
            };
            match taken {
                Ok(taken) => rest = rest.skip(taken),
                Err(fault) => return self.gone(mem, Peer::Client(id), Gone::Fault(fault)),
            }
        }
    }

    fn whole_from_shim<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        header: Header,
        frame: BufView,
    ) -> Result<(), DecodeError> {
        self.begin_from_shim(mem, id, header)?;
        if header.payload > 0 {
            self.body_from_shim(mem, id, frame.skip(frame.len - header.payload));
        }
        Ok(())
    }

    fn begin_from_shim<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        header: Header,
    ) -> Result<(), DecodeError> {
        let max = self.tuning.agent_frame_max;
        let current = match header.kind {
            Kind::Stream(Stream::Stdin) => {
                let as_hyper = FrameHeader::for_payload(self.sessions[id.0 as usize].base, header.payload);
                self.count_input(id, FrameRun::of(as_hyper));
                let session = &mut self.sessions[id.0 as usize];
                let face = Face::Hyper(session.base);
                session.cut = Some(session.to_agent.begin_frame(&mut self.arena, mem, face, header.payload, max));
                Current::Stdin
            }
            kind @ (Kind::Command(_) | Kind::Stream(Stream::Log)) => Current::Message(kind, Vec::new(), header.payload),
            Kind::Notification(_) => Current::Ignored,
            Kind::Response { .. } => return Err(DecodeError::OutOfPlace("a response")),
            Kind::Stream(Stream::Stdout | Stream::Stderr) => {
                return Err(DecodeError::OutOfPlace("output of a process"));
            }
        };
        if let Some(shim) = self.shim(id) {
            shim.current = current;
        }
        self.finish_message(id);
        Ok(())
    }

    fn body_from_shim<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, payload: BufView) {
        let max = self.tuning.agent_frame_max;
        let session = &mut self.sessions[id.0 as usize];
        let Some(shim) = &mut session.shim else { return };
        match &mut shim.current {
            Current::Stdin => {
                self.mark_input(id);
                let session = &mut self.sessions[id.0 as usize];
                let cut = session.cut.as_mut().expect("input follows its header");
                session.to_agent.continue_frame(&mut self.arena, mem, cut, payload, max);
            }
            Current::Message(_, gathered, _) => {
                gathered.extend_from_slice(mem.bytes(payload));
                self.finish_message(id);
            }
            Current::Ignored => {}
        }
    }

    /// Reports a message that has come whole.
    fn finish_message(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        let base = session.base;
        let Some(shim) = &mut session.shim else { return };
        let Some(connection) = shim.connection else { return };
        match std::mem::take(&mut shim.current) {
            Current::Message(kind, payload, want) if payload.len() == want as usize => {
                shim.unanswered += 1;
                shim.current = Current::Ignored;
                shim.leaving |= kind == Kind::Command(cc2::Command::DisconnectShim);
                let frame = cc2::Frame { kind, payload };
                self.effects.push(Effect::Report(Report::ShimMessage { base, connection, frame }));
                self.mark_input(id);
            }
            other => shim.current = other,
        }
    }
}
