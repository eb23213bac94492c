//! Everything one shard knows about its links and sessions, and the rules by which bytes move between them.
//!
//! The shard reports what happened ([`Plane::received`], [`Plane::sent`], …), then calls [`Plane::flush`] once a turn
//! and carries out the [`Effect`]s. Nothing here waits, reads a clock or knows a descriptor. The asymmetry to know:
//! a received view is only lent to the plane; it takes references of its own for what it keeps.

use slab::Slab;

use super::events::{Effect, Gone, LinkId, Peer, Report, Sending, Sent, SessionId, Totals, Tuning};
use super::frames::{Cut, Piece, Step};
use super::link::{InFlight, Link};
use super::outbox::{Arena, Outbox};
use super::session::{Happening, Session, State};
use crate::buf::{BufView, Leases, Memory};
use crate::limits::{CC1_FRAME_MAX, CHUNK_LEN, SEND_MAX, TO_AGENT_BUFFER};
use crate::wire::admin::Flow;
use crate::wire::hyper::{FrameHeader, StreamSeq};

/// The data plane's state on one shard.
#[derive(Debug)]
pub struct Plane {
    tuning: Tuning,
    pub(super) links: Slab<Link>,
    pub(super) sessions: Slab<Session>,
    pub(super) arena: Arena,
    dirty_links: Vec<LinkId>,
    dirty_clients: Vec<SessionId>,
    dirty_inputs: Vec<SessionId>,
    views: Vec<BufView>,
    effects: Vec<Effect>,
    totals: Totals,
}

fn key(index: usize) -> u32 {
    u32::try_from(index).expect("slabs are bounded by the descriptors of a shard")
}

impl Plane {
    /// An empty plane.
    pub fn new(tuning: Tuning) -> Plane {
        Plane {
            tuning,
            links: Slab::new(),
            sessions: Slab::new(),
            arena: Arena::default(),
            dirty_links: Vec::new(),
            dirty_clients: Vec::new(),
            dirty_inputs: Vec::new(),
            views: Vec::new(),
            effects: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Adds a VM's stream channel. The shard receives from it at once.
    pub fn open_link(&mut self, vm: u64) -> LinkId {
        LinkId(key(self.links.insert(Link::new(vm))))
    }

    /// Adds a session with `streams` sequences from `base`. The shard receives from its client at once.
    pub fn open_session(&mut self, link: LinkId, base: StreamSeq, streams: u8) -> SessionId {
        let vm = self.links[link.0 as usize].vm;
        let session = Session::new(base, streams, link, vm);
        let seqs = session.seqs();
        let id = SessionId(key(self.sessions.insert(session)));
        let link = &mut self.links[link.0 as usize];
        link.sessions.push(id);
        seqs.for_each(|seq| link.routes.add(seq, id));
        id
    }

    /// Takes received bytes. The caller keeps its reference to their memory.
    pub fn received<L: Leases>(&mut self, mem: &mut Memory<L>, peer: Peer, view: BufView) {
        match peer {
            Peer::Agent(link) => self.agent_received(mem, link, view),
            Peer::Client(session) => self.client_received(mem, session, view),
        }
    }

    fn agent_received<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, view: BufView) {
        let mut rest = view;
        while rest.len > 0 {
            let link = &mut self.links[id.0 as usize];
            let taken = match link.reader.step(mem.bytes(rest), self.tuning.stream_frame_max) {
                Ok(Step::Whole(header)) => {
                    self.whole_to_client(mem, id, header, rest.first(header.len));
                    header.len
                }
                Ok(Step::Begin { header, taken }) => {
                    self.begin_to_client(mem, id, header);
                    taken
                }
                Ok(Step::Body { len }) => {
                    self.body_to_client(mem, id, rest.first(len));
                    len
                }
                Ok(Step::Kept) => return,
                Err(fault) => return self.link_gone(mem, id, Gone::Fault(fault)),
            };
            rest = rest.skip(taken);
        }
    }

    /// Counts a frame for a session and finds it; `None` when nobody wants it.
    fn route(&mut self, id: LinkId, header: FrameHeader) -> Option<SessionId> {
        let link = &mut self.links[id.0 as usize];
        let Some(session) = link.routes.find(header.seq) else {
            link.skipped += 1;
            self.totals.skipped += 1;
            return None;
        };
        let flow = Flow { frames: 1, bytes: u64::from(header.len) };
        link.flow_to_client += flow;
        self.totals.to_client += flow;
        let owner = &mut self.sessions[session.0 as usize];
        owner.flow_to_client += flow;
        if !owner.dirty {
            owner.dirty = true;
            self.dirty_clients.push(session);
        }
        Some(session)
    }

    fn whole_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, header: FrameHeader, frame: BufView) {
        let Some(session) = self.route(id, header) else { return };
        let out = &mut self.sessions[session.0 as usize].to_client;
        if header.len <= CC1_FRAME_MAX {
            out.push(&mut self.arena, mem, frame, true);
        } else {
            let mut cut = begin_cut(out, &mut self.arena, mem, header, CC1_FRAME_MAX);
            let payload = frame.skip(header.len - header.payload_len());
            continue_cut(out, &mut self.arena, mem, &mut cut, payload, CC1_FRAME_MAX);
        }
    }

    fn begin_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, header: FrameHeader) {
        let current = self.route(id, header).map(|session| {
            let out = &mut self.sessions[session.0 as usize].to_client;
            (session, begin_cut(out, &mut self.arena, mem, header, CC1_FRAME_MAX))
        });
        self.links[id.0 as usize].current = current.filter(|(_, cut)| !cut.is_done());
    }

    fn body_to_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, payload: BufView) {
        let Some((session, mut cut)) = self.links[id.0 as usize].current else { return };
        let owner = &mut self.sessions[session.0 as usize];
        continue_cut(&mut owner.to_client, &mut self.arena, mem, &mut cut, payload, CC1_FRAME_MAX);
        if !owner.dirty {
            owner.dirty = true;
            self.dirty_clients.push(session);
        }
        self.links[id.0 as usize].current = (!cut.is_done()).then_some((session, cut));
    }

    fn client_received<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, view: BufView) {
        let mut rest = view;
        while rest.len > 0 {
            let session = &mut self.sessions[id.0 as usize];
            if session.link.is_none() || !session.state.has_input() {
                return;
            }
            if !session.dirty_in {
                session.dirty_in = true;
                self.dirty_inputs.push(id);
            }
            let taken = match session.reader.step(mem.bytes(rest), self.tuning.stream_frame_max) {
                Ok(Step::Whole(header)) => self.whole_to_agent(mem, id, header, rest.first(header.len)),
                Ok(Step::Begin { header, taken }) => self.begin_to_agent(mem, id, header).map(|()| taken),
                Ok(Step::Body { len }) => {
                    let cut = session.cut.as_mut().expect("a body follows its header");
                    let max = self.tuning.agent_frame_max;
                    continue_cut(&mut session.to_agent, &mut self.arena, mem, cut, rest.first(len), max);
                    Ok(len)
                }
                Ok(Step::Kept) => return,
                Err(fault) => Err(Gone::Fault(fault)),
            };
            match taken {
                Ok(taken) => rest = rest.skip(taken),
                Err(why) => return self.client_gone(mem, id, why),
            }
        }
    }

    /// Checks a frame's sequence and counts it.
    fn accept(&mut self, id: SessionId, header: FrameHeader) -> Result<(), Gone> {
        let session = &mut self.sessions[id.0 as usize];
        if header.seq != session.base {
            return Err(Gone::ForeignSequence { got: header.seq, want: session.base });
        }
        let flow = Flow { frames: 1, bytes: u64::from(header.len) };
        session.flow_to_agent += flow;
        self.totals.to_agent += flow;
        if let Some(link) = session.link {
            self.links[link.0 as usize].flow_to_agent += flow;
        }
        Ok(())
    }

    fn whole_to_agent<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        header: FrameHeader,
        frame: BufView,
    ) -> Result<u32, Gone> {
        let max = self.tuning.agent_frame_max;
        self.accept(id, header)?;
        let out = &mut self.sessions[id.0 as usize].to_agent;
        if header.len <= max {
            out.push(&mut self.arena, mem, frame, true);
        } else {
            let mut cut = begin_cut(out, &mut self.arena, mem, header, max);
            let payload = frame.skip(header.len - header.payload_len());
            continue_cut(out, &mut self.arena, mem, &mut cut, payload, max);
        }
        Ok(header.len)
    }

    fn begin_to_agent<L: Leases>(
        &mut self,
        mem: &mut Memory<L>,
        id: SessionId,
        header: FrameHeader,
    ) -> Result<(), Gone> {
        let max = self.tuning.agent_frame_max;
        self.accept(id, header)?;
        let session = &mut self.sessions[id.0 as usize];
        session.cut = Some(begin_cut(&mut session.to_agent, &mut self.arena, mem, header, max));
        Ok(())
    }

    /// The client closed its writing half.
    pub fn input_ended<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        if self.sessions[id.0 as usize].state == State::Deaf {
            return self.client_gone(mem, id, Gone::Closed);
        }
        self.change(id, Happening::InputEnd);
        self.effects.push(Effect::WatchClose(id));
    }

    /// A peer is gone: closed, failed, or at fault.
    pub fn gone<L: Leases>(&mut self, mem: &mut Memory<L>, peer: Peer, why: Gone) {
        match peer {
            Peer::Agent(link) => self.link_gone(mem, link, why),
            Peer::Client(session) => self.client_gone(mem, session, why),
        }
    }

    /// Changes a session's state, and closes its client's socket when that has no use any more.
    fn change(&mut self, id: SessionId, happening: Happening) {
        let session = &mut self.sessions[id.0 as usize];
        let had_socket = session.state.has_socket();
        session.state = session.state.after(happening);
        if had_socket && !session.state.has_socket() {
            self.effects.push(Effect::Close(Peer::Client(id)));
        }
    }

    fn client_gone<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: Gone) {
        self.totals.faults += u64::from(why.is_fault());
        self.end_output(mem, id);
        let session = &mut self.sessions[id.0 as usize];
        session.to_agent.drop_open(&mut self.arena, mem);
        session.cut = None;
        session.why = why;
        self.change(id, Happening::ClientGone);
        self.end_if_done(mem, id);
    }

    /// The client's socket refused output. What it sent before may still be unread, and is not lost.
    fn output_refused<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: Gone) {
        if self.sessions[id.0 as usize].state.after(Happening::OutputRefused) != State::Deaf {
            return self.client_gone(mem, id, why);
        }
        self.end_output(mem, id);
        self.change(id, Happening::OutputRefused);
    }

    /// Forgets what a client is owed, and its routes: nobody wants that output any more.
    fn end_output<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        self.unblock_link(id);
        let session = &mut self.sessions[id.0 as usize];
        session.to_client.clear(&mut self.arena, mem);
        session.sending = Sending::Idle;
        if let Some(link) = session.link {
            let link = &mut self.links[link.0 as usize];
            session.seqs().for_each(|seq| link.routes.remove(seq));
            link.current = link.current.filter(|&(owner, _)| owner != id);
        }
    }

    fn link_gone<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, why: Gone) {
        self.totals.faults += u64::from(why.is_fault());
        let link = self.links.remove(id.0 as usize);
        self.effects.push(Effect::Close(Peer::Agent(id)));
        for session_id in link.sessions {
            let session = &mut self.sessions[session_id.0 as usize];
            session.link = None;
            session.to_client.drop_open(&mut self.arena, mem);
            session.to_agent.clear(&mut self.arena, mem);
            (session.cut, session.queued, session.blocks) = (None, false, false);
            if std::mem::take(&mut session.paused) && session.state.has_input() {
                self.effects.push(Effect::Resume(Peer::Client(session_id)));
            }
            if session.state.has_output() {
                session.why = Gone::Ordered;
            }
            self.change(session_id, Happening::LinkGone);
            self.end_if_done(mem, session_id);
        }
        self.effects.push(Effect::Report(Report::LinkEnded { vm: link.vm, why }));
    }

    /// Forgets a session that owes nothing to anybody any more.
    fn end_if_done<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let session = &self.sessions[id.0 as usize];
        if session.to_client.bytes() == 0 && session.sending == Sending::Idle {
            self.change(id, Happening::ClientDrained);
        }
        if self.sessions[id.0 as usize].to_agent.bytes() == 0 {
            self.change(id, Happening::AgentDrained);
        }
        if self.sessions[id.0 as usize].state != State::Done {
            return;
        }
        let mut session = self.sessions.remove(id.0 as usize);
        session.to_client.clear(&mut self.arena, mem);
        session.to_agent.clear(&mut self.arena, mem);
        if let Some(link) = session.link {
            self.links[link.0 as usize].sessions.retain(|&other| other != id);
        }
        let Session { base, vm, why, .. } = session;
        self.effects.push(Effect::Report(Report::SessionEnded { base, vm, why }));
    }

    /// A send ended.
    pub fn sent<L: Leases>(&mut self, mem: &mut Memory<L>, peer: Peer, sent: Sent) {
        match (peer, sent) {
            (Peer::Client(id), Sent::Failed(why)) => self.output_refused(mem, id, why),
            (Peer::Agent(id), Sent::Failed(why)) => self.link_gone(mem, id, why),
            (Peer::Client(id), Sent::Taken(n)) => self.client_took(mem, id, n),
            (Peer::Agent(id), Sent::Taken(n)) => self.agent_took(mem, id, n),
        }
    }

    fn client_took<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, n: usize) {
        let session = &mut self.sessions[id.0 as usize];
        session.to_client.consume(&mut self.arena, mem, n);
        session.sending = after_send(session.sending, n, session.to_client.ready());
        if !session.dirty && session.to_client.ready() > 0 {
            session.dirty = true;
            self.dirty_clients.push(id);
        }
        if session.blocks && self.is_low(mem, id) {
            self.unblock_link(id);
        }
        self.end_if_done(mem, id);
    }

    /// Whether a session owes its client little enough for its link to be read again. A frame that has not ended
    /// never holds it back: only reading can end it.
    fn is_low<L: Leases>(&self, mem: &Memory<L>, id: SessionId) -> bool {
        let out = &self.sessions[id.0 as usize].to_client;
        out.ready() == 0 || (out.bytes() <= self.tuning.session_buffer / 2 && !self.is_over_total(mem))
    }

    fn is_over_total<L: Leases>(&self, mem: &Memory<L>) -> bool {
        mem.chunks.in_use() * CHUNK_LEN >= self.tuning.total_buffer
    }

    fn unblock_link(&mut self, id: SessionId) {
        let session = &mut self.sessions[id.0 as usize];
        if !std::mem::take(&mut session.blocks) {
            return;
        }
        let Some(link_id) = session.link else { return };
        let link = &mut self.links[link_id.0 as usize];
        link.blockers -= 1;
        if link.blockers == 0 {
            self.effects.push(Effect::Resume(Peer::Agent(link_id)));
            self.effects.push(Effect::Report(Report::LinkUnblocked { vm: link.vm }));
        }
    }

    fn agent_took<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, n: usize) {
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
            self.resume_client(mem, share.session);
            self.end_if_done(mem, share.session);
        }
        in_flight.clear();
        let link = &mut self.links[id.0 as usize];
        link.in_flight = in_flight;
        link.sending = after_send(link.sending, n, link.queue.len());
        self.mark_link(id);
    }

    /// Reads a paused client again once the agent has taken enough of what it sent. A frame that has not ended never
    /// holds it back: only reading can end it.
    fn resume_client<L: Leases>(&mut self, mem: &Memory<L>, id: SessionId) {
        let over = self.is_over_total(mem);
        let session = &mut self.sessions[id.0 as usize];
        let out = &session.to_agent;
        if session.paused && (out.ready() == 0 || (out.bytes() <= TO_AGENT_BUFFER / 2 && !over)) {
            session.paused = false;
            if session.state.has_input() {
                self.effects.push(Effect::Resume(Peer::Client(id)));
            }
        }
    }

    fn mark_link(&mut self, id: LinkId) {
        let link = &mut self.links[id.0 as usize];
        if !link.dirty {
            link.dirty = true;
            self.dirty_links.push(id);
        }
    }

    /// Ends every link, as if each VM had gone: what clients are owed still goes to those that read.
    pub fn drain<L: Leases>(&mut self, mem: &mut Memory<L>) {
        let links: Vec<usize> = self.links.iter().map(|(index, _)| index).collect();
        for index in links {
            self.link_gone(mem, LinkId(key(index)), Gone::Ordered);
        }
    }

    /// Ends the turn: sends what is owed, stops feeders that are too fast, and moves what must wait out of the
    /// receive buffers. Afterwards no lease is held but by sends that do not wait.
    pub fn flush<L: Leases>(&mut self, mem: &mut Memory<L>) {
        for index in 0..self.dirty_inputs.len() {
            self.flush_input(mem, self.dirty_inputs[index]);
        }
        self.dirty_inputs.clear();
        for index in 0..self.dirty_links.len() {
            self.flush_link(mem, self.dirty_links[index]);
        }
        self.dirty_links.clear();
        for index in 0..self.dirty_clients.len() {
            self.flush_client(mem, self.dirty_clients[index]);
        }
        self.dirty_clients.clear();
    }

    fn flush_input<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id.0 as usize).filter(|session| session.dirty_in) else { return };
        session.dirty_in = false;
        let Some(link_id) = session.link else { return };
        session.to_agent.settle_open(&mut self.arena, mem);
        let link = &mut self.links[link_id.0 as usize];
        if session.to_agent.ready() > 0 && !session.queued {
            session.queued = true;
            link.queue.push_back(id);
        }
        if matches!(link.sending, Sending::Waiting(_)) {
            self.hold_input(mem, id);
        } else {
            self.pause_client(id, false);
        }
        self.mark_link(link_id);
    }

    /// The agent does not keep up: moves a session's bytes for it to chunks, and stops reading its client when they
    /// are too many, or all sessions' together are.
    fn hold_input<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let over = self.is_over_total(mem);
        let session = &mut self.sessions[id.0 as usize];
        session.to_agent.settle(&mut self.arena, mem);
        self.pause_client(id, over);
    }

    /// Stops reading a client that sends faster than its agent takes, also when every try is taken whole.
    fn pause_client(&mut self, id: SessionId, over: bool) {
        let session = &mut self.sessions[id.0 as usize];
        let full = session.to_agent.bytes() >= TO_AGENT_BUFFER || over;
        if !session.paused && session.state.has_input() && full && session.to_agent.ready() > 0 {
            session.paused = true;
            self.effects.push(Effect::Pause(Peer::Client(id)));
        }
    }

    fn flush_link<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId) {
        let Some(link) = self.links.get_mut(id.0 as usize).filter(|link| link.dirty) else { return };
        link.dirty = false;
        let wait = match link.sending {
            Sending::Trying(_) | Sending::Waiting(_) => return,
            Sending::Idle => false,
            Sending::Blocked => true,
        };
        if wait {
            for index in 0..self.links[id.0 as usize].queue.len() {
                self.hold_input(mem, self.links[id.0 as usize].queue[index]);
            }
        }
        self.send_to_agent(id, wait);
    }

    /// Gathers whole frames of the sessions in turn, each its share, into one send.
    fn send_to_agent(&mut self, id: LinkId, wait: bool) {
        let link = &mut self.links[id.0 as usize];
        let share = SEND_MAX / link.queue.len().max(1);
        let begin = self.views.len();
        let mut total = 0;
        while let Some(&next) = link.queue.front() {
            let session = &mut self.sessions[next.0 as usize];
            let mark = self.views.len();
            let bytes = session.to_agent.plan(&self.arena, share, &mut self.views);
            let pieces = self.views.len() - begin;
            if total > 0 && (total + bytes > SEND_MAX || pieces > crate::limits::SEND_PIECES_MAX) {
                self.views.truncate(mark);
                break;
            }
            link.queue.pop_front();
            session.queued = bytes > 0;
            total += bytes;
            if bytes > 0 {
                link.in_flight.push(InFlight { session: next, bytes });
            }
        }
        if total == 0 {
            link.sending = Sending::Idle;
            return;
        }
        link.sending = if wait { Sending::Waiting(total) } else { Sending::Trying(total) };
        self.effects.push(Effect::Send { peer: Peer::Agent(id), views: begin..self.views.len(), wait });
    }

    fn flush_client<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let Some(session) = self.sessions.get_mut(id.0 as usize).filter(|session| session.dirty) else { return };
        session.dirty = false;
        if !session.state.has_output() {
            return;
        }
        session.to_client.settle_open(&mut self.arena, mem);
        let wait = match session.sending {
            Sending::Trying(_) => return,
            Sending::Waiting(_) => {
                session.to_client.settle(&mut self.arena, mem);
                return self.block_link(mem, id, None);
            }
            Sending::Idle => false,
            Sending::Blocked => {
                session.to_client.settle(&mut self.arena, mem);
                true
            }
        };
        let begin = self.views.len();
        let bytes = session.to_client.plan(&self.arena, SEND_MAX, &mut self.views);
        if bytes > 0 {
            session.sending = if wait { Sending::Waiting(bytes) } else { Sending::Trying(bytes) };
            self.effects.push(Effect::Send { peer: Peer::Client(id), views: begin..self.views.len(), wait });
        }
        self.block_link(mem, id, (!wait).then_some(bytes));
    }

    /// Stops reading a link when one of its clients is owed too much: behind the bytes just `tried`, so that a client
    /// that keeps up but gets less a turn than its agent sends is bounded too, or with those that wait.
    fn block_link<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, tried: Option<usize>) {
        let over = tried.is_none() && self.is_over_total(mem);
        let tried = tried.unwrap_or(0);
        let session = &mut self.sessions[id.0 as usize];
        let full = session.to_client.bytes() - tried >= self.tuning.session_buffer || over;
        let Some(link_id) = session.link else { return };
        if session.blocks || session.to_client.ready() == tried || !full {
            return;
        }
        session.blocks = true;
        let link = &mut self.links[link_id.0 as usize];
        link.blockers += 1;
        if link.blockers == 1 {
            self.totals.blocked += 1;
            self.effects.push(Effect::Pause(Peer::Agent(link_id)));
            self.effects.push(Effect::Report(Report::LinkBlocked { vm: link.vm, by: session.base }));
        }
    }

    /// Takes the effects since the last call, in order, leaving `into`'s memory behind for the next ones.
    pub fn take_effects(&mut self, into: &mut Vec<Effect>) {
        into.clear();
        std::mem::swap(&mut self.effects, into);
    }

    /// The pieces of an [`Effect::Send`].
    pub fn views(&self, range: std::ops::Range<usize>) -> &[BufView] {
        &self.views[range]
    }

    /// Forgets the lists of pieces: all sends have been made.
    pub fn clear_views(&mut self) {
        self.views.clear();
    }

    /// Totals since the plane was made.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Number of links and of sessions.
    pub fn counts(&self) -> (usize, usize) {
        (self.links.len(), self.sessions.len())
    }

    /// Bytes owed to clients that have not left.
    pub fn owed_to_clients(&self) -> usize {
        self.sessions.iter().map(|(_, session)| session.to_client.ready()).sum()
    }
}

/// What follows a send of which `n` bytes were taken, with `more` left to send.
fn after_send(sending: Sending, n: usize, more: usize) -> Sending {
    match sending {
        Sending::Trying(asked) if n == asked => Sending::Idle,
        Sending::Trying(_) => Sending::Blocked,
        Sending::Waiting(_) if more == 0 => Sending::Idle,
        Sending::Waiting(_) => Sending::Blocked,
        Sending::Idle | Sending::Blocked => unreachable!("a send ended that was not made"),
    }
}

/// Begins to send a received frame on, in frames of at most `max` bytes.
fn begin_cut<L: Leases>(
    out: &mut Outbox,
    arena: &mut Arena,
    mem: &mut Memory<L>,
    header: FrameHeader,
    max: u32,
) -> Cut {
    let mut cut = Cut::new(header);
    let first = cut.begin(max);
    push_piece(out, arena, mem, first, None);
    cut
}

/// Sends on more of its payload.
fn continue_cut<L: Leases>(
    out: &mut Outbox,
    arena: &mut Arena,
    mem: &mut Memory<L>,
    cut: &mut Cut,
    payload: BufView,
    max: u32,
) {
    let mut rest = payload;
    while let Some(piece) = cut.next(rest.len, max) {
        push_piece(out, arena, mem, piece, Some(rest));
        if let Piece::Payload { len, .. } = piece {
            rest = rest.skip(len);
        }
    }
}

fn push_piece<L: Leases>(
    out: &mut Outbox,
    arena: &mut Arena,
    mem: &mut Memory<L>,
    piece: Piece,
    payload: Option<BufView>,
) {
    match (piece, payload) {
        (Piece::Header { header, last }, _) => out.push_bytes(arena, mem, &header.encode(), last),
        (Piece::Payload { len, last }, Some(payload)) => out.push(arena, mem, payload.first(len), last),
        (Piece::Payload { .. }, None) => unreachable!("a cut begins with a header"),
    }
}
