//! What must hold after every turn, at rest, and at the end.
//!
//! The asymmetry to know: after a turn the plane may hold receive buffers only for sends that end before the next
//! one does; at rest it holds none, and at the end nothing at all.

use ringway::buf::{BufView, Direction, Leases, Source};
use ringway::limits::{CHUNK_LEN, SEND_MAX};

use crate::peers::{Arrival, At, Client, SendOp};
use crate::world::World;

/// Every so many turns the plane's status is compared with the model.
const STATUS_EVERY: u64 = 8;

impl World {
    pub(crate) fn audit(&mut self) {
        self.plane.check();
        self.check_leases();
        self.check_total();
        for index in 0..self.agents.len() {
            if self.agents[index].socket.open {
                self.check_agent(index);
            }
        }
        for index in 0..self.clients.len() {
            if !self.clients[index].reported_ended {
                self.check_client(index);
                self.check_input_waits(index);
            }
        }
        if self.turns.is_multiple_of(STATUS_EVERY) {
            self.check_status();
        }
        self.check_spills();
    }

    /// Without a send in flight nobody but the completions that wait to be reaped holds receive buffers, and who waits
    /// for room.
    fn check_leases(&mut self) {
        let peers = self.open_peers();
        if peers.iter().any(|&at| self.socket(at).is_trying()) {
            return;
        }
        for direction in [Direction::ToClient, Direction::ToAgent] {
            let held = self.refs_of_completions(direction);
            let pinned = self.mem.leases.refs(direction) - held;
            let is_waited_for = peers.iter().any(|&at| self.socket(at).is_blocked());
            assert!(pinned == 0 || is_waited_for, "the plane sleeps on receive buffers");
        }
    }

    /// Nobody waits for a buffer while others hold what is not taken.
    pub(crate) fn check_relieved(&mut self) {
        if self.open_peers().iter().any(|&at| self.socket(at).is_trying()) {
            return;
        }
        for direction in [Direction::ToClient, Direction::ToAgent] {
            let pinned = self.mem.leases.refs(direction) - self.refs_of_completions(direction);
            assert!(pinned == 0 || !self.mem.leases.is_scarce(direction), "what waits keeps scarce buffers");
        }
    }

    /// References to receive buffers that completions have, those of closed sockets included.
    fn refs_of_completions(&mut self, direction: Direction) -> usize {
        let is_one = |view: &BufView| matches!(view.source, Source::Lease(of, _) if of == direction);
        let arrived = |arrival: &&Arrival| matches!(arrival, Arrival::Bytes(view) if is_one(view));
        let peers = self.open_peers();
        let arrived: usize = peers.iter().map(|&at| self.socket(at).arrived.iter().filter(arrived).count()).sum();
        arrived + self.orphans.iter().flat_map(|send| &send.views).filter(|view| is_one(view)).count()
    }

    /// Owned memory stays under its bound, but for what sessions hold at least and for what was on its way.
    fn check_total(&self) {
        let orphaned: usize = self.orphans.iter().map(|send| send.views.len()).sum();
        let on_its_way = 4 * (self.shape.to_client.bytes() + self.shape.to_agent.bytes()) / CHUNK_LEN;
        let most = self.shape.tuning.total_buffer / CHUNK_LEN + 4 * self.sessions.len() + on_its_way + orphaned;
        let most = most + self.fed + self.chunks_of_replies() + self.chunks_of_spills();
        let chunks = self.mem.chunks.in_use();
        assert!(chunks <= most, "{chunks} chunks in use, {most} at most");
    }

    fn check_agent(&self, index: usize) {
        let agent = &self.agents[index];
        let is_due = agent.reported_blocked || self.is_useless(index);
        assert_eq!(agent.socket.paused, is_due, "agent {index} is paused, and has reason to be");
        let clients = || agent.clients.iter().map(|&client| &self.clients[client]).filter(|client| client.hears);
        if agent.socket.paused {
            let owes = |client: &Client| client.to_client.whole() > 0 || client.is_behind();
            assert!(clients().any(owes), "agent {index} is paused for nobody");
        }
        let bound = self.shape.tuning.session_buffer;
        let full = clients().filter(|client| !client.spilling).find(|client| {
            let output = client.socket.send.as_ref().is_some_and(|send| !send.replies);
            let (owed, trying) = (&client.to_client, client.socket.is_trying() && output);
            let (bytes, whole) =
                if trying { (owed.behind(), owed.has_unplanned()) } else { (owed.owed(), owed.whole() > 0) };
            bytes >= bound && whole
        });
        if let Some(client) = full {
            assert!(agent.socket.paused, "session {} is owed too much and its agent is read", client.base);
        }
    }

    fn check_client(&self, index: usize) {
        let client = &self.clients[index];
        let pool = self.shape.to_client.bytes();
        let most = self.shape.tuning.session_buffer + 4 * pool + 24 * 1024;
        let most = most + if client.shim.is_some() { SEND_MAX } else { 0 };
        if !client.spilling {
            assert!(client.to_client.owed() <= most, "client {index} is owed {} bytes", client.to_client.owed());
        }
        let cuts = 1 + client.to_agent.owed() / self.shape.tuning.agent_frame_max as usize;
        let bound = client.input_bound();
        let most = bound + 4 * self.shape.to_agent.bytes() * 2 + 24 * 1024 + cuts * 12;
        assert!(client.to_agent.owed() <= most, "agent is owed {} bytes", client.to_agent.owed());
        let (paused, open) = (client.socket.paused, client.socket.open);
        if open && client.speaks && paused {
            let is_due = client.to_agent.whole() > 0 || client.is_overasked();
            assert!(is_due, "client {index} is paused for nothing");
        }
        let floods = client.to_agent.behind() >= bound || client.is_overasked();
        if open && client.speaks && client.socket.heard && !self.agents[client.agent].doomed && floods {
            assert!(paused, "client {index} floods its agent and is read");
        }
    }

    fn check_status(&self) {
        for link in self.plane.status() {
            let blocked =
                self.agents.iter().any(|agent| agent.vm == link.vm && agent.socket.open && agent.reported_blocked);
            assert_eq!(link.blocked_by.is_some(), blocked, "blocked in the status of VM {}", link.vm);
            for session in link.sessions {
                let client = &self.clients[self.seqs[&session.io_base]];
                assert!(!client.reported_ended, "a session that ended has a status");
                assert_eq!(session.queued_to_client, client.to_client.owed() as u64, "{session:?} to its client");
                assert_eq!(session.queued_to_agent, client.to_agent.owed() as u64, "{session:?} to its agent");
                assert_eq!(session.to_client.frames, client.to_client.frames, "{session:?} frames to its client");
                assert_eq!(session.to_agent.frames, client.to_agent.frames, "{session:?} frames to its agent");
                let unread = client.shim.as_ref().map_or(0, |shim| shim.maybe_unread);
                assert_eq!((session.token, session.maybe_unread), (client.shim.is_some(), unread));
            }
        }
    }

    /// Whether reading an agent would serve nobody: all its clients are behind with what they are owed.
    pub(crate) fn is_useless(&self, index: usize) -> bool {
        let clients = self.agents[index].clients.iter().map(|&client| &self.clients[client]);
        let mut clients = clients.filter(|client| !client.reported_ended).peekable();
        clients.peek().is_some() && clients.all(Client::is_behind)
    }

    /// Sessions of a send whose agent is blocked and whose client is paused.
    pub(crate) fn held_back(&self, send: &SendOp) -> Vec<(usize, bool, bool)> {
        let paused = |&(client, _): &(usize, usize)| {
            let held = &self.clients[client];
            (client, self.agents[held.agent].reported_blocked, held.socket.paused)
        };
        send.shares.iter().map(paused).collect()
    }

    /// Who was paused and is read again after a send owes half of its bound at most, or nothing whole.
    pub(crate) fn check_released(&self, at: At, held: &[(usize, bool, bool)]) {
        for &(index, agent_blocked, client_paused) in held {
            let client = &self.clients[index];
            let agent = &self.agents[client.agent];
            if matches!(at, At::Client(_))
                && agent_blocked
                && !agent.reported_blocked
                && client.hears
                && !client.spilling
            {
                let (owed, most) = (&client.to_client, self.shape.tuning.session_buffer / 2);
                assert!(owed.whole() == 0 || owed.owed() <= most, "client {index} is owed too much to go on");
            }
            if matches!(at, At::Agent(_)) && client_paused && !client.socket.paused {
                let owed = &client.to_agent;
                assert!(owed.whole() == 0 || owed.owed() <= client.input_bound() / 2, "client {index} owes too much");
            }
        }
    }

    /// Nothing happens any more: everything that could be delivered was.
    pub(crate) fn check_rest(&mut self) {
        for at in self.open_peers() {
            let socket = self.socket(at);
            assert!(!socket.closed, "{at:?} is gone and nobody noticed");
            assert!(!socket.paused || socket.ended, "{at:?} is paused for ever");
            assert!(socket.inbox.is_empty() && !socket.starved, "{at:?} is not received from");
            assert!(socket.send.is_none() && socket.arrived.is_empty(), "{at:?} has completions at rest");
        }
        for (index, client) in self.clients.iter().enumerate().filter(|(_, client)| !client.reported_ended) {
            assert_eq!(client.to_client.whole(), 0, "client {index} is still owed output");
            assert!(client.is_served(), "client {index} has a token and is not served");
            assert_eq!(client.to_agent.whole(), 0, "client {index}'s agent is still owed input");
            assert!(client.socket.open, "client {index} is closed and its session has not ended");
            assert!(!client.socket.closed, "client {index} left and nobody noticed");
            assert!(!self.agents[client.agent].doomed, "client {index} outlives its agent and is owed nothing");
        }
        assert!(self.orphans.is_empty() && self.refs() == 0, "receive buffers held at rest");
        self.check_no_spills();
    }

    fn refs(&self) -> usize {
        self.mem.leases.refs(Direction::ToClient) + self.mem.leases.refs(Direction::ToAgent)
    }

    /// Everybody is gone: nothing is left.
    pub(crate) fn check_end(&mut self) {
        assert_eq!(self.plane.counts(), (0, 0), "links and sessions at the end");
        assert_eq!(self.mem.chunks.in_use(), 0, "chunks at the end");
        assert_eq!(self.refs(), 0, "receive buffers at the end");
        assert!(self.clients.iter().all(|client| client.reported_ended), "a session has not ended");
        assert!(self.agents.iter().all(|agent| agent.reported_ended), "a link has not ended");
        assert!(self.links.is_empty() && self.sessions.is_empty());
        self.check_no_spills();
    }

    /// Bytes the far end of a peer has been sent.
    pub(crate) fn taken(&self, at: At) -> usize {
        match at {
            At::Agent(index) => {
                self.agents[index].clients.iter().map(|&client| self.clients[client].to_agent.taken).sum()
            }
            At::Client(index) => self.clients[index].to_client.taken,
        }
    }
}
