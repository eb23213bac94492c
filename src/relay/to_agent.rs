//! The rules towards agents: frames of clients checked, cut and owed, sessions written in turn, and clients held back
//! when their agent does not read.
//!
//! The asymmetry to know: there is one send at a time per link, made of whole frames of several sessions; a frame
//! that left in part is finished before anybody else has a turn.

use super::events::{Effect, Gone, LinkId, Peer, Sending, SessionId};
use super::frames::{Face, FrameRun, Step};
use super::link::InFlight;
use super::plane::{Plane, after_send};
use super::slow::Verdict;
use crate::buf::{BufView, Leases, Memory};
use crate::limits::SEND_PIECES_MAX;
use crate::wire::admin::Flow;
use crate::wire::hyper::FrameHeader;

impl Plane {
    pub(super) fn client_received<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, view: BufView) {
        let mut rest = view;
        while rest.len > 0 {
            let session = &mut self.sessions[id.0 as usize];
            if session.link.is_none() || !session.state.has_input() {
                return;
            }
            let step = session.reader.step::<FrameHeader>(mem.bytes(rest), self.tuning.stream_frame_max);
            self.mark_input(id);
            let taken = match step {
                Ok(Step::Whole(header)) => self.whole_to_agent(mem, id, header, rest),
                Ok(Step::Begin { header, taken }) => self.begin_to_agent(mem, id, header).map(|()| taken),
                Ok(Step::Body { len }) => {
                    let session = &mut self.sessions[id.0 as usize];
                    let cut = session.cut.as_mut().expect("a body follows its header");
                    let max = self.tuning.agent_frame_max;
                    session.to_agent.continue_frame(&mut self.arena, mem, cut, rest.first(len), max);
                    Ok(len)
                }
                Ok(Step::Skip { len }) => Ok(len),
                Ok(Step::Kept) => return,
                Err(fault) => Err(Gone::Fault(fault)),
            };
            match taken {
                Ok(taken) => rest = rest.skip(taken),
                Err(why) => return self.client_gone(mem, id, why),
            }
        }
    }

    /// Checks the sequence of frames and counts them.
    fn accept(&mut self, id: SessionId, header: FrameHeader, run: FrameRun) -> Result<(), Gone> {
        let session = &mut self.sessions[id.0 as usize];
        if header.seq != session.base {
            return Err(Gone::ForeignSequence { got: header.seq, want: session.base });
        }
        self.count_input(id, run);
        Ok(())
    }

    /// Counts frames of a client.
    pub(super) fn count_input(&mut self, id: SessionId, run: FrameRun) {
        let flow = Flow { frames: run.frames, bytes: u64::from(run.bytes) };
        self.totals.to_agent += flow;
        let session = &mut self.sessions[id.0 as usize];
        session.flow_to_agent += flow;
        if let Some(link) = session.link {
            self.links[link.0 as usize].flow_to_agent += flow;
        }
        self.mark_input(id);
    }

    /// Looks at what a session owes its agent at the end of the turn.
    pub(super) fn mark_input(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if !session.dirty_in {
            session.dirty_in = true;
            self.dirty_inputs.push(id);
        }
    }

    /// Takes the whole frame at the front of `rest`, and those of the same kind that follow it. Returns the number of
    /// bytes taken.
    fn whole_to_agent<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        header: FrameHeader,
        rest: BufView,
    ) -> Result<u32, Gone> {
        let max = self.tuning.agent_frame_max;
        let run = FrameRun::at_front(mem.bytes(rest), header, max);
        self.accept(id, header, run)?;
        let out = &mut self.sessions[id.0 as usize].to_agent;
        if header.len <= max {
            out.push(&mut self.arena, mem, rest.first(run.bytes), true);
        } else {
            let mut cut = out.begin_frame(&mut self.arena, mem, Face::Hyper(header.seq), header.payload_len(), max);
            let payload = rest.first(header.len).skip(header.len - header.payload_len());
            out.continue_frame(&mut self.arena, mem, &mut cut, payload, max);
        }
        Ok(run.bytes)
    }

    fn begin_to_agent<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        header: FrameHeader,
    ) -> Result<(), Gone> {
        let max = self.tuning.agent_frame_max;
        self.accept(id, header, FrameRun::of(header))?;
        let session = &mut self.sessions[id.0 as usize];
        let face = Face::Hyper(header.seq);
        let cut = session.to_agent.begin_frame(&mut self.arena, mem, face, header.payload_len(), max);
        session.cut = Some(cut);
        Ok(())
    }

    pub(super) fn agent_took<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, n: usize) {
        self.end_send(mem, id, n);
        if self.links[id.0 as usize].sending == Sending::Blocked {
            self.effects.push(Effect::WatchRoom(Peer::Agent(id)));
        }
    }

    /// The agent takes nothing any more, and what it wrote before may still be unread: what it is owed waits like that
    /// of an agent that does not read, until its link ends.
    pub(super) fn agent_refused<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId) {
        self.end_send(mem, id, 0);
    }

    /// A send of which the agent took `n` bytes is over.
    fn end_send<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, n: usize) {
        let mut in_flight = std::mem::take(&mut self.links[id.0 as usize].in_flight);
        let mut left = n;
        for share in &mut in_flight {
            let took = share.bytes.min(left);
            left -= took;
            share.bytes -= took;
            self.sessions[share.session.0 as usize].to_agent.consume(&mut self.arena, mem, took);
        }
        // Back into the queue: those cut short at its front and in order, because a frame of the first may have left
        // in part; those with more to say at its end.
        for share in in_flight.iter().rev().filter(|share| share.bytes > 0) {
            self.links[id.0 as usize].queue.push_front(share.session);
        }
        for share in in_flight.iter().filter(|share| share.bytes == 0) {
            let session = &mut self.sessions[share.session.0 as usize];
            session.queued = session.to_agent.ready() > 0;
            if session.queued {
                self.links[id.0 as usize].queue.push_back(share.session);
            }
            self.input_taken(share.session);
            self.resume_client(mem, share.session);
            self.end_if_done(mem, share.session);
        }
        in_flight.clear();
        let link = &mut self.links[id.0 as usize];
        link.in_flight = in_flight;
        if let Sending::Trying(asked) = link.sending {
            link.learn(asked, n);
        }
        link.sending = after_send(link.sending, n);
        self.mark_link(id);
    }

    /// Reads a paused client again once the agent has taken enough of what it sent. A frame that has not ended never
    /// holds it back: only reading can end it.
    pub(super) fn resume_client<L: Leases>(&mut self, mem: &Memory<L>, id: SessionId) {
        let (over, sending) = (self.is_over_total(mem), self.sending_of(id));
        let session = &mut self.sessions[id.0 as usize];
        let out = &session.to_agent;
        let is_low = out.ready() == 0 || (out.bytes() <= session.input_bound(sending) / 2 && !over);
        if session.paused && is_low && !session.is_overasked() {
            session.paused = false;
            if session.state.has_input() {
                self.effects.push(Effect::Resume(Peer::Client(id)));
            }
        }
    }

    /// The state of the send to a session's agent.
    fn sending_of(&self, id: SessionId) -> Sending {
        let link = self.sessions[id.0 as usize].link;
        link.map_or(Sending::Idle, |link| self.links[link.0 as usize].sending)
    }

    pub(super) fn mark_link(&mut self, id: LinkId) {
        let link = &mut self.links[id.0 as usize];
        if !link.dirty {
            link.dirty = true;
            self.dirty_links.push(id);
        }
    }

    pub(super) fn flush_input<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id.0 as usize).filter(|session| session.dirty_in) else { return };
        session.dirty_in = false;
        let Some(link_id) = session.link else { return };
        if !session.may_write() {
            return self.hold_until_started(mem, id);
        }
        session.to_agent.settle_open(&mut self.arena, mem);
        let link = &mut self.links[link_id.0 as usize];
        if session.to_agent.ready() > 0 && !session.queued {
            session.queued = true;
            link.queue.push_back(id);
        }
        if link.sending == Sending::Blocked {
            self.pin_input(mem, id);
        } else {
            self.pause_client(id, false);
        }
        self.mark_link(link_id);
    }

    /// The agent takes nothing just now: what a session owes it stays where it is while that is possible, and its
    /// client is not read.
    fn pin_input<L: Leases>(&mut self, mem: &Memory<L>, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if session.to_agent.has_leases() && !std::mem::replace(&mut session.pins_input, true) {
            self.pinning_input.push_back(id);
        }
        self.pause_client(id, self.is_over_total(mem));
    }

    /// Nothing of a session's may leave yet: moves it to chunks, and stops reading its client when it is too much, or
    /// all sessions' together is.
    pub(super) fn hold_input<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let over = self.is_over_total(mem);
        let session = &mut self.sessions[id.0 as usize];
        session.to_agent.settle(&mut self.arena, mem);
        self.pause_client(id, over);
    }

    /// Stops reading a client that sends faster than its agent takes, also when every try is taken whole.
    fn pause_client(&mut self, id: SessionId, over: bool) {
        let sending = self.sending_of(id);
        let session = &mut self.sessions[id.0 as usize];
        let full = session.to_agent.bytes() >= session.input_bound(sending) || over;
        let is_full = (full && session.to_agent.ready() > 0) || session.is_overasked();
        if !session.paused && session.state.has_input() && is_full {
            session.paused = true;
            self.effects.push(Effect::Pause(Peer::Client(id)));
            self.hold_shim(id);
            self.verdicts.push((id, Verdict::MayBeStuck));
        }
    }

    pub(super) fn flush_link<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId) {
        let Some(link) = self.links.get_mut(id.0 as usize).filter(|link| link.dirty) else { return };
        link.dirty = false;
        match link.sending {
            Sending::Trying(_) => {}
            Sending::Idle => self.send_to_agent(id),
            Sending::Blocked => {
                for index in 0..self.links[id.0 as usize].queue.len() {
                    self.pin_input(mem, self.links[id.0 as usize].queue[index]);
                }
            }
        }
    }

    /// Gathers whole frames of the sessions in turn, each its share, into one send.
    fn send_to_agent(&mut self, id: LinkId) {
        let link = &mut self.links[id.0 as usize];
        let most = link.budget;
        let share = most / link.queue.len().max(1);
        let begin = self.views.len();
        let (mut total, mut is_last) = (0, true);
        while let Some(&next) = link.queue.front() {
            let session = &mut self.sessions[next.0 as usize];
            let mark = self.views.len();
            let bytes = session.to_agent.plan(&self.arena, share, &mut self.views);
            let pieces = self.views.len() - begin;
            if total > 0 && (total + bytes > most || pieces > SEND_PIECES_MAX) {
                self.views.truncate(mark);
                break;
            }
            link.queue.pop_front();
            session.queued = bytes > 0;
            total += bytes;
            is_last &= session.to_agent.ready() == bytes && session.state.has_input() && !session.paused;
            if bytes > 0 {
                link.in_flight.push(InFlight { session: next, bytes });
            }
        }
        if total == 0 {
            link.sending = Sending::Idle;
            return;
        }
        is_last &= link.queue.is_empty();
        link.sending = Sending::Trying(total);
        self.effects.push(Effect::Send { peer: Peer::Agent(id), views: begin..self.views.len(), is_last });
    }
}
