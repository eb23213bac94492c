//! The simulated kernel: receives into the groups' buffers, sends into sockets with little room.
//!
//! The asymmetry to know: a send ends within the turn that reaps it and may take anything from nothing to all.

use ringway::buf::Direction;

use crate::peers::{Arrival, At, Socket};
use crate::shape::Pieces;
use crate::world::{Step, World};

/// Receives of one turn and peer while nothing is held back.
const EAGER: usize = 4;

/// What an `AF_UNIX` stream queues at once: a longer send is cut there, a shorter one is taken whole or not at all.
pub(crate) const UNIX_PIECE: usize = 36_544;

impl World {
    /// What the kernel and the readers do before a turn.
    pub(crate) fn run_kernel(&mut self) {
        self.read_at_the_far_ends();
        self.rearm();
        let peers = self.open_peers();
        if self.healed {
            (0..EAGER).for_each(|_| peers.iter().for_each(|&at| self.receive(at)));
        } else if !peers.is_empty() {
            for _ in 0..self.random.below(3 * peers.len() + 1) {
                let at = self.random.pick(&peers);
                self.receive(at);
            }
        }
        for at in peers {
            if self.healed || self.random.percent(60) {
                self.move_send(at);
            }
            let tell = self.healed || self.random.percent(60);
            let in_vain = !self.healed && self.random.percent(1);
            let socket = self.socket(at);
            if socket.watches_room && (in_vain || (tell && socket.has_room())) {
                socket.watches_room = false;
                socket.arrived.push_back(Arrival::Room);
            }
            if socket.watched && socket.closed {
                socket.watched = false;
                socket.arrived.push_back(Arrival::HangUp);
            }
        }
        if !self.orphans.is_empty() && (self.healed || self.random.percent(30)) {
            let index = self.random.below(self.orphans.len());
            let send = self.orphans.swap_remove(index);
            self.progress += 1;
            self.release(&send);
        }
    }

    fn read_at_the_far_ends(&mut self) {
        for at in self.open_peers() {
            let (all, much) = (self.healed || self.random.percent(40), self.random.below(20_000));
            let socket = self.socket(at);
            if socket.reads && socket.unread > 0 {
                socket.unread = if all { 0 } else { socket.unread.saturating_sub(much) };
                self.progress += 1;
            }
        }
    }

    /// Arms the receives that found no buffer, oldest first, one for each buffer there is.
    fn rearm(&mut self) {
        for (index, direction) in [Direction::ToClient, Direction::ToAgent].into_iter().enumerate() {
            for _ in 0..self.mem.leases.credits(direction) {
                let Some(at) = self.starved[index].pop_front() else { break };
                self.socket(at).starved = false;
                self.receive(at);
            }
        }
    }

    /// One receive, if one is armed and there is something.
    pub(crate) fn receive(&mut self, at: At) {
        let want = self.wanted(at);
        let (direction, queue) = match at {
            At::Agent(_) => (Direction::ToClient, 0),
            At::Client(_) => (Direction::ToAgent, 1),
        };
        let mut inbox = std::mem::take(&mut self.socket(at).inbox);
        let socket = self.socket(at);
        if !socket.receives() || (inbox.is_empty() && !socket.shut) {
            socket.inbox = inbox;
            return;
        }
        socket.late = socket.late.saturating_sub(1);
        if inbox.is_empty() {
            socket.ended = true;
            socket.arrived.push_back(if socket.reset { Arrival::Reset } else { Arrival::End });
            return;
        }
        let view = self.mem.leases.receive(direction, &inbox[..want.min(inbox.len())]);
        if let Some(view) = view {
            inbox.drain(..view.len as usize);
            self.socket(at).arrived.push_back(Arrival::Bytes(view));
            self.note(Step::Receive(at, view.len as usize));
        } else {
            self.socket(at).starved = true;
            self.starved[queue].push_back(at);
            self.note(Step::NoBuffers(at));
        }
        self.progress += 1;
        self.socket(at).inbox = inbox;
    }

    fn wanted(&mut self, at: At) -> usize {
        let there = self.socket(at).inbox.len().max(1);
        if self.shape.pieces != Pieces::Full && self.random.percent(20) {
            return self.up_to_border(at).unwrap_or(there).min(there);
        }
        match self.shape.pieces {
            Pieces::Full => there,
            Pieces::Any | Pieces::Crumbs if self.healed && self.random.percent(70) => there,
            Pieces::Crumbs if self.random.percent(70) => self.random.between(1, 3),
            Pieces::Any | Pieces::Crumbs => self.random.between(1, there),
        }
    }

    /// Bytes up to where a frame that is sent on ends, if one of an agent is being received.
    fn up_to_border(&mut self, at: At) -> Option<usize> {
        let At::Agent(index) = at else { return None };
        let agent = &self.agents[index];
        let lacks = self.clients[agent.current?].to_client.lacks();
        (agent.socket.arrived.is_empty() && lacks > 0).then_some(lacks)
    }

    /// Ends a try now, at the latest.
    pub(crate) fn end_try(&mut self, at: At) {
        if self.socket(at).send.as_ref().is_some_and(|send| send.done.is_none()) {
            self.move_send(at);
        }
    }

    /// Moves bytes of a send to the peer, as many as there is room for.
    fn move_send(&mut self, at: At) {
        let short = !self.healed && self.random.percent(self.shape.short);
        let fraction = self.random.below(101);
        let socket = self.socket(at);
        let Some(send) = socket.send.as_ref().filter(|send| send.done.is_none()) else { return };
        if socket.closed {
            socket.send.as_mut().expect("it is there").done = Some(false);
            self.progress += 1;
            return;
        }
        let left = send.total - send.moved;
        let fits = left.min(socket.room - socket.unread);
        let whole = if socket.unix && fits < left { fits / UNIX_PIECE * UNIX_PIECE } else { fits };
        let now = match (socket.unix, short) {
            (true, true) => whole * fraction / 100 / UNIX_PIECE * UNIX_PIECE,
            (false, true) => whole * fraction / 100,
            (_, false) => whole,
        };
        self.progress += u64::from(now > 0);
        self.take(at, now);
        let send = self.socket(at).send.as_mut().expect("it is there");
        send.done = Some(true);
    }

    /// The socket takes the next `n` bytes of its send, which must be what the model says.
    fn take(&mut self, at: At, n: usize) {
        if n == 0 {
            return;
        }
        self.note(Step::Moved(at, n));
        let Socket { send, unread, .. } = self.socket(at);
        *unread += n;
        let send = send.as_mut().expect("a send in flight");
        let from = send.moved;
        send.moved += n;
        let (views, shares, replies) = (send.views.clone(), send.shares.clone(), send.replies);
        let bytes: Vec<u8> = views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
        let mut begin = 0;
        for (client, len) in shares {
            let (low, high) = (begin.max(from), (begin + len).min(from + n));
            if low < high {
                let client = &mut self.clients[client];
                let owed = match &mut client.shim {
                    _ if matches!(at, At::Agent(_)) => &mut client.to_agent,
                    Some(shim) if replies => &mut shim.replies,
                    _ => &mut client.to_client,
                };
                owed.take(&bytes[low..high]);
            }
            begin += len;
        }
    }
}
