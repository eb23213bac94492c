//! Everything one shard knows about its links and sessions, and the rules by which bytes move between them.
//!
//! The shard reports what happened ([`Plane::received`], [`Plane::sent`], …), then calls [`Plane::flush`] once a turn
//! and carries out the [`Effect`]s. Nothing here waits, reads a clock or knows a descriptor. The asymmetry to know:
//! a received view is only lent to the plane; it takes references of its own for what it keeps.

use std::collections::VecDeque;

use slab::Slab;

use super::events::{Effect, Gone, LinkId, Peer, Report, Sending, Sent, SessionId, Totals, Tuning};
use super::link::Link;
use super::outbox::Arena;
use super::route::RouteCache;
use super::session::{Happening, Session, State};
use super::slow::Verdict;
use super::spill::SpillBounds;
use crate::buf::{BufView, Direction, Leases, Memory};
use crate::limits::CHUNK_LEN;
use crate::wire::hyper::StreamSeq;

/// The data plane's state on one shard.
#[derive(Debug)]
pub struct Plane {
    pub(super) tuning: Tuning,
    pub(super) links: Slab<Link>,
    pub(super) sessions: Slab<Session>,
    pub(super) arena: Arena,
    pub(super) route_cache: RouteCache,
    pub(super) dirty_links: Vec<LinkId>,
    pub(super) dirty_clients: Vec<SessionId>,
    pub(super) dirty_inputs: Vec<SessionId>,
    /// Sessions with output in receive buffers that waits for their clients, oldest first.
    pub(super) pinning_output: VecDeque<SessionId>,
    /// Sessions with input in receive buffers that waits for their agents, oldest first.
    pub(super) pinning_input: VecDeque<SessionId>,
    /// What is to become of sessions once the effects of a flush have been carried out.
    pub(super) verdicts: Vec<(SessionId, Verdict)>,
    /// How much of slow clients' output may spill; `None`: nothing.
    pub(super) spill_bounds: Option<SpillBounds>,
    /// A session could not spill, and is to try again.
    pub(super) retries: bool,
    /// Shims that are not read for their agents' sake; some may be read again.
    pub(super) held: Vec<SessionId>,
    pub(super) views: Vec<BufView>,
    pub(super) effects: Vec<Effect>,
    pub(super) totals: Totals,
}

fn key(index: usize) -> u32 {
    u32::try_from(index).expect("slabs are bounded by the descriptors of a shard")
}

/// The session at a place of the slab.
pub(super) fn session_id(index: usize) -> SessionId {
    SessionId(key(index))
}

impl Plane {
    /// An empty plane.
    pub fn new(tuning: Tuning) -> Plane {
        Plane {
            tuning,
            links: Slab::new(),
            sessions: Slab::new(),
            arena: Arena::default(),
            route_cache: RouteCache::default(),
            dirty_links: Vec::new(),
            dirty_clients: Vec::new(),
            dirty_inputs: Vec::new(),
            pinning_output: VecDeque::new(),
            pinning_input: VecDeque::new(),
            verdicts: Vec::new(),
            spill_bounds: None,
            retries: false,
            held: Vec::new(),
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
    pub fn open_session(&mut self, link_id: LinkId, base: StreamSeq, streams: u8) -> SessionId {
        let vm = self.links[link_id.0 as usize].vm;
        let session = Session::new(base, streams, link_id, vm);
        let seqs = session.seqs();
        let id = SessionId(key(self.sessions.insert(session)));
        let link = &mut self.links[link_id.0 as usize];
        link.sessions.push(id);
        seqs.for_each(|seq| link.routes.add(seq, id));
        self.update_reading(link_id);
        id
    }

    /// Takes received bytes. The caller keeps its reference to their memory.
    pub fn received<L: Leases>(&mut self, mem: &mut Memory<L>, peer: Peer, view: BufView) {
        match peer {
            Peer::Agent(link) => self.agent_received(mem, link, view),
            Peer::Client(id) if self.sessions[id.0 as usize].shim.is_some() => self.shim_received(mem, id, view),
            Peer::Client(id) => self.client_received(mem, id, view),
        }
    }

    /// The client closed its writing half.
    pub fn input_ended<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let session = &self.sessions[id.0 as usize];
        if session.state == State::Deaf || session.shim.is_some() {
            return self.gone(mem, Peer::Client(id), Gone::Closed);
        }
        self.change(id, Happening::InputEnd);
        self.effects.push(Effect::WatchClose(id));
    }

    /// A peer is gone: closed, failed, or at fault.
    pub fn gone<L: Leases>(&mut self, mem: &mut Memory<L>, peer: Peer, why: Gone) {
        match peer {
            Peer::Agent(link) => self.link_gone(mem, link, why),
            Peer::Client(session) => {
                if !self.shim_gone(mem, session, &why) {
                    self.client_gone(mem, session, why);
                }
            }
        }
    }

    /// Changes a session's state, and closes its client's socket when that has no use any more.
    pub(super) fn change(&mut self, id: SessionId, happening: Happening) {
        let session = &mut self.sessions[id.0 as usize];
        let before = session.state;
        session.state = before.after(happening);
        if before == session.state {
            return;
        }
        if before.has_socket() && !session.state.has_socket() {
            self.effects.push(Effect::Close(Peer::Client(id)));
        }
        self.update_waiting(id);
    }

    pub(super) fn client_gone<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: Gone) {
        self.totals.faults += u64::from(why.is_fault());
        self.end_output(mem, id);
        let session = &mut self.sessions[id.0 as usize];
        session.to_agent.drop_open(&mut self.arena, mem);
        if !session.may_write() {
            session.to_agent.clear(&mut self.arena, mem);
        }
        session.cut = None;
        session.why = why;
        self.change(id, Happening::ClientGone);
        self.end_if_done(mem, id);
    }

    /// The client's socket refused output. What it sent before may still be unread, and is not lost.
    fn output_refused<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId, why: Gone) {
        let session = &self.sessions[id.0 as usize];
        if session.state.after(Happening::OutputRefused) != State::Deaf || session.goes_with_its_shim() {
            return self.gone(mem, Peer::Client(id), why);
        }
        if self.shim_refused(mem, id) {
            self.verdicts.push((id, Verdict::MayBeStuck));
        } else {
            self.end_output(mem, id);
            self.change(id, Happening::OutputRefused);
        }
        // Unread answers may have been why it was not read.
        self.resume_client(mem, id);
    }

    pub(super) fn link_gone<L: Leases>(&mut self, mem: &mut Memory<L>, id: LinkId, why: Gone) {
        self.totals.faults += u64::from(why.is_fault());
        let link = self.links.remove(id.0 as usize);
        self.effects.push(Effect::Close(Peer::Agent(id)));
        for session_id in link.sessions {
            let session = &mut self.sessions[session_id.0 as usize];
            session.seqs().for_each(|seq| self.route_cache.forget(id, seq));
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
            // A status that waited for the end of a frame: the frame has none.
            self.tell_exit(mem, session_id);
            self.change(session_id, Happening::LinkGone);
            self.end_if_done(mem, session_id);
        }
        self.effects.push(Effect::Report(Report::LinkEnded { vm: link.vm, why }));
    }

    /// Forgets a session that owes nothing to anybody any more.
    pub(super) fn end_if_done<L: Leases>(&mut self, mem: &mut Memory<L>, id: SessionId) {
        let session = &self.sessions[id.0 as usize];
        if session.owed() == 0 && session.sending == Sending::Idle {
            self.change(id, Happening::ClientDrained);
        }
        if self.sessions[id.0 as usize].to_agent.bytes() == 0 {
            self.change(id, Happening::AgentDrained);
        }
        if self.sessions[id.0 as usize].state != State::Done {
            return;
        }
        self.drop_spill(mem, id);
        let mut session = self.sessions.remove(id.0 as usize);
        if session.pins_output {
            self.pinning_output.retain(|&other| other != id);
        }
        if session.pins_input {
            self.pinning_input.retain(|&other| other != id);
        }
        session.to_client.clear(&mut self.arena, mem);
        session.to_agent.clear(&mut self.arena, mem);
        if let Some(shim) = &mut session.shim {
            shim.replies.clear(&mut self.arena, mem);
        }
        if let Some(link) = session.link {
            self.links[link.0 as usize].sessions.retain(|&other| other != id);
        }
        let Session { base, vm, why, link, .. } = session;
        self.effects.push(Effect::Report(Report::SessionEnded { base, vm, why }));
        link.into_iter().for_each(|link| self.update_reading(link));
    }

    /// A send ended.
    pub fn sent<L: Leases>(&mut self, mem: &mut Memory<L>, peer: Peer, sent: Sent) {
        match (peer, sent) {
            (Peer::Client(id), Sent::Failed(why)) => self.output_refused(mem, id, why),
            (Peer::Agent(id), Sent::Failed(_)) => self.agent_refused(mem, id),
            (Peer::Client(id), Sent::Taken(n)) => self.client_took(mem, id, n),
            (Peer::Agent(id), Sent::Taken(n)) => self.agent_took(mem, id, n),
        }
    }

    /// A peer whose last send came short takes bytes again.
    pub fn room(&mut self, peer: Peer) {
        match peer {
            Peer::Client(id) if self.sessions[id.0 as usize].sending == Sending::Blocked => {
                self.set_sending(id, Sending::Idle);
                self.mark_client(id);
            }
            Peer::Agent(id) if self.links[id.0 as usize].sending == Sending::Blocked => {
                self.links[id.0 as usize].sending = Sending::Idle;
                self.mark_link(id);
            }
            Peer::Client(_) | Peer::Agent(_) => {}
        }
    }

    pub(super) fn is_over_total<L: Leases>(&self, mem: &Memory<L>) -> bool {
        mem.chunks.in_use() * CHUNK_LEN >= self.tuning.total_buffer
    }

    /// Ends every link, as if each VM had gone: what clients are owed still goes to those that read.
    pub fn drain<L: Leases>(&mut self, mem: &mut Memory<L>) {
        let links: Vec<usize> = self.links.iter().map(|(index, _)| index).collect();
        for index in links {
            self.link_gone(mem, LinkId(key(index)), Gone::Ordered);
        }
    }

    /// Ends the turn: sends what is owed, and stops feeders that are too fast.
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

    /// Whether receive buffers hold what waits for peers that do not read.
    pub fn pins(&self) -> bool {
        !(self.pinning_output.is_empty() && self.pinning_input.is_empty())
    }

    /// Moves what waits for peers that do not read out of the receive buffers, oldest first, until half of them are
    /// free. For when somebody is not received from for lack of one and nothing else happens. What is being tried
    /// stays: its send has its pieces.
    pub fn relieve<L: Leases>(&mut self, mem: &mut Memory<L>) {
        for direction in [Direction::ToClient, Direction::ToAgent] {
            while mem.leases.is_scarce(direction) && self.settle_pinned(mem, direction) {}
        }
    }

    /// Moves the oldest of a direction's pinned bytes; `false` when there are none.
    fn settle_pinned<L: Leases>(&mut self, mem: &mut Memory<L>, direction: Direction) -> bool {
        let Some(id) = self.pinning(direction).pop_front() else { return false };
        let session = &mut self.sessions[id.0 as usize];
        let link = session.link.map(|link| &self.links[link.0 as usize]);
        let is_stuck = match direction {
            Direction::ToClient => session.sending == Sending::Blocked,
            Direction::ToAgent => link.is_some_and(|link| link.sending == Sending::Blocked),
        };
        let (pins, out) = match direction {
            Direction::ToClient => (&mut session.pins_output, &mut session.to_client),
            Direction::ToAgent => (&mut session.pins_input, &mut session.to_agent),
        };
        *pins = false;
        if is_stuck {
            out.settle(&mut self.arena, mem);
        }
        true
    }

    fn pinning(&mut self, direction: Direction) -> &mut VecDeque<SessionId> {
        match direction {
            Direction::ToClient => &mut self.pinning_output,
            Direction::ToAgent => &mut self.pinning_input,
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

    /// Nothing happens: gives back what only traffic needs, and with it the receive buffers of peers that do not read.
    /// Call it between turns.
    pub fn rest<L: Leases>(&mut self, mem: &mut Memory<L>) {
        while self.pins() {
            self.settle_pinned(mem, Direction::ToClient);
            self.settle_pinned(mem, Direction::ToAgent);
        }
        self.arena.rest();
        for list in [&mut self.dirty_clients, &mut self.dirty_inputs, &mut self.held] {
            list.shrink_to_fit();
        }
        self.verdicts.shrink_to_fit();
        self.dirty_links.shrink_to_fit();
        self.pinning_output.shrink_to_fit();
        self.pinning_input.shrink_to_fit();
        self.views.shrink_to_fit();
        self.effects.shrink_to_fit();
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
        self.sessions.iter().filter(|(_, s)| s.state.has_output()).map(|(_, session)| session.owed()).sum()
    }
}

/// What follows a send of which `n` bytes were taken.
pub(super) fn after_send(sending: Sending, n: usize) -> Sending {
    match sending {
        Sending::Trying(asked) if n == asked => Sending::Idle,
        Sending::Trying(_) => Sending::Blocked,
        Sending::Idle | Sending::Blocked => unreachable!("a send ended that was not made"),
    }
}
