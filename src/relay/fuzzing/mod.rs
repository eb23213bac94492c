//! What holds for a plane whatever happens to it: any operations, chosen by a fuzzer's bytes, in the order and with
//! the answers that a shard gives.
//!
//! Every byte that comes out is held against what went in, buffers and chunks are counted, and at the end what was
//! held back must have come out and nothing may be left. The asymmetry to know: operations that make no sense just now
//! do nothing, so that every input is a run.

mod buffers;
mod operations;
mod peers;

use crate::buf::{ChunkPool, Direction, Memory, Source};
use crate::limits::{
    AGENT_SEND_MAX, CHUNK_LEN, SEND_MAX, SEND_PIECES_MAX, SHIM_INPUT_BUFFER, SHIM_REPLIES_BUFFER, TO_AGENT_BUFFER,
};
use crate::wire::fuzzing::Choices;

use super::{Effect, Gone, Peer, Plane, Report, Sent, Tuning};
use buffers::Buffers;
use peers::{Agent, Client, Send, Socket, agent_takes};

/// The longest payload that peers send on purpose.
const PAYLOAD_MAX: usize = 70_000;
/// Turns in which a world whose peers hold nothing back must come to rest.
const REST_TURNS: usize = 10_000;

/// Runs the operations that `data` chooses.
pub fn plane_operations(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut world = World::new(&mut choices);
    while let Some(operation) = choices.next() {
        world.operate(operation, &mut choices);
    }
    world.settle();
    world.leave();
}

/// A peer of the world; an entry is never used again, unlike the plane's identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Agent(usize),
    Client(usize),
}

#[derive(Debug)]
struct World {
    plane: Plane,
    tuning: Tuning,
    mem: Memory<Buffers>,
    agents: Vec<Agent>,
    clients: Vec<Client>,
    /// Sends in flight of peers that were closed.
    orphans: Vec<Send>,
    next_connection: u64,
    /// Things that happened, to tell a world at rest.
    progress: u64,
    /// Bytes that peers may still send.
    budget: usize,
}

impl World {
    fn new(choices: &mut Choices) -> World {
        let tuning = Tuning {
            agent_frame_max: choices.pick(&[4_096, 30, 700, 10_240]),
            stream_frame_max: choices.pick(&[1 << 20, 80_000]),
            session_buffer: choices.pick(&[64, 1, 4, 256]) * 1024,
            total_buffer: choices.pick(&[1 << 20, 64, 256, 1024]) * 1024,
        };
        let buffers = Buffers::new(choices.pick(&[4_096, 64, 1_000, 65_536]));
        World {
            plane: Plane::new(tuning),
            tuning,
            mem: Memory { leases: buffers, chunks: ChunkPool::default() },
            agents: Vec::new(),
            clients: Vec::new(),
            orphans: Vec::new(),
            next_connection: 1,
            progress: 0,
            budget: 4 << 20,
        }
    }

    fn socket(&mut self, at: At) -> &mut Socket {
        match at {
            At::Agent(index) => &mut self.agents[index].socket,
            At::Client(index) => &mut self.clients[index].socket,
        }
    }

    fn peer(&self, at: At) -> Peer {
        match at {
            At::Agent(index) => Peer::Agent(self.agents[index].link),
            At::Client(index) => Peer::Client(self.clients[index].session),
        }
    }

    /// Whom an effect is about: somebody whose socket is open.
    fn at(&self, peer: Peer) -> At {
        let found = match peer {
            Peer::Agent(link) => {
                self.agents.iter().position(|agent| agent.socket.open && agent.link == link).map(At::Agent)
            }
            Peer::Client(session) => {
                let is_it = |client: &Client| client.socket.open && client.session == session;
                self.clients.iter().position(is_it).map(At::Client)
            }
        };
        found.expect("an effect about somebody who is there")
    }

    fn client_of(&mut self, base: u64) -> &mut Client {
        self.clients.iter_mut().find(|client| client.base == base).expect("a session of ours")
    }

    fn peers(&self) -> Vec<At> {
        let agents = (0..self.agents.len()).filter(|&index| self.agents[index].socket.open).map(At::Agent);
        let clients = (0..self.clients.len()).filter(|&index| self.clients[index].socket.open).map(At::Client);
        agents.chain(clients).collect()
    }

    /// Ends a turn, as a shard does.
    fn turn(&mut self) {
        self.flush();
        while self.plane.carry_out_verdicts(&mut self.mem) {
            self.carry_out();
            self.flush();
        }
        self.plane.check();
        self.check_bounds();
    }

    fn flush(&mut self) {
        self.plane.flush(&mut self.mem);
        self.carry_out();
        self.plane.clear_views();
    }

    fn carry_out(&mut self) {
        let mut effects = Vec::new();
        self.plane.take_effects(&mut effects);
        for effect in effects {
            match effect {
                Effect::Send { peer, views, .. } => self.send(self.at(peer), views),
                Effect::WatchRoom(peer) => {
                    let socket = self.socket(self.at(peer));
                    assert!(socket.send.is_none() && !std::mem::replace(&mut socket.watches_room, true));
                }
                Effect::Pause(peer) => {
                    let socket = self.socket(self.at(peer));
                    assert!(!std::mem::replace(&mut socket.paused, true), "{peer:?} paused twice");
                    socket.late = 1;
                }
                Effect::Resume(peer) => {
                    let socket = self.socket(self.at(peer));
                    assert!(std::mem::replace(&mut socket.paused, false), "{peer:?} resumed and not paused");
                }
                Effect::ReceiveLess(_) => {}
                Effect::Spill(..) => unreachable!("there is nowhere to spill to"),
                Effect::WatchClose(session) => {
                    let socket = self.socket(self.at(Peer::Client(session)));
                    assert!(socket.ended, "watched for its end, and still sends");
                }
                Effect::Close(peer) => self.close(self.at(peer)),
                Effect::Report(report) => self.report(report),
            }
        }
    }

    fn send(&mut self, at: At, views: std::ops::Range<usize>) {
        let views = self.plane.views(views).to_vec();
        let bytes: Vec<u8> = views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
        let most = if matches!(at, At::Agent(_)) { AGENT_SEND_MAX } else { SEND_MAX };
        assert!(!bytes.is_empty() && bytes.len() <= most && views.len() <= SEND_PIECES_MAX);
        views.iter().for_each(|view| self.mem.retain(view.source));
        if let At::Client(index) = at {
            self.clients[index].check_may_be_sent(&bytes);
        }
        self.progress += 1;
        let socket = self.socket(at);
        assert!(socket.send.is_none() && !socket.watches_room, "{at:?} has a send in flight, or no room");
        socket.send = Some(Send { views, bytes });
    }

    fn close(&mut self, at: At) {
        let send = match at {
            At::Agent(index) => {
                let agent = &mut self.agents[index];
                assert!(agent.doomed, "{at:?} closed for no reason");
                std::mem::take(&mut agent.socket).send
            }
            At::Client(index) => {
                let client = &mut self.clients[index];
                let is_known = !(client.wild || self.agents[client.agent].wild);
                assert!(client.doomed || !is_known, "{at:?} closed for no reason");
                client.speaks = false;
                client.close()
            }
        };
        self.orphans.extend(send);
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::SessionEnded { base, .. } => {
                let client = self.client_of(base.0);
                assert!(std::mem::replace(&mut client.alive, false), "a session ended twice");
                assert!(!client.socket.open, "a session ended before its socket was closed");
                (client.hears, client.speaks) = (false, false);
            }
            Report::LinkEnded { vm, .. } => {
                let agent = self.agents.iter().find(|agent| agent.vm == vm).expect("a VM of ours");
                assert!(!agent.socket.open && agent.doomed, "a link ended and is still there");
            }
            Report::ShimMessage { base, connection, frame } => {
                let client = self.client_of(base.0);
                let is_wild = client.wild;
                let shim = client.shim.as_mut().expect("a session with a token");
                assert_eq!(shim.connection, Some(connection));
                assert!(is_wild || shim.messages.pop_front() == Some(frame), "the messages, in order");
            }
            Report::ShimGone { base, .. } => {
                let client = self.client_of(base.0);
                assert!(!client.socket.open && client.alive, "a shim is gone and still there");
                (client.doomed, client.deaf) = (false, false);
            }
            Report::InputWaits { base, .. } => {
                let shim = self.client_of(base.0).shim.as_ref();
                assert!(shim.is_some_and(|shim| !shim.started), "input waits for a process that runs");
            }
            Report::LinkBlocked { vm, by } => {
                let agent = self.client_of(by.0).agent;
                assert!(self.agents[agent].vm == vm && self.agents[agent].socket.paused);
            }
            Report::LinkUnblocked { .. } => {}
            Report::SpillBegan { .. } | Report::SpillStopped { .. } | Report::SpillEnded { .. } => {
                unreachable!("there is nowhere to spill to")
            }
        }
    }

    /// A send ended: so many of its bytes were taken, or the peer is gone.
    fn sent(&mut self, at: At, taken: Option<usize>) {
        let Some(send) = self.socket(at).send.take() else { return };
        self.progress += 1;
        let now: Vec<u8> = send.views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
        assert!(now == send.bytes, "what was being sent was changed");
        let bytes = &send.bytes[..taken.unwrap_or_default()];
        match at {
            At::Agent(index) => {
                let torn = &mut self.agents[index].socket.torn;
                agent_takes(index, torn, bytes, self.tuning.agent_frame_max, &mut self.clients);
            }
            At::Client(index) => {
                let client = &mut self.clients[index];
                client.take(bytes, !self.agents[client.agent].wild);
                // Its token is given up, and it has the last of its answers.
                client.doomed |= client.shim.as_ref().is_some_and(|shim| shim.released && shim.replies.is_empty());
            }
        }
        let sent = taken.map_or(Sent::Failed(Gone::Closed), Sent::Taken);
        let peer = self.peer(at);
        self.plane.sent(&mut self.mem, peer, sent);
        self.carry_out();
        self.release(&send);
    }

    /// Who waits for room has some.
    fn room(&mut self, at: At) {
        if std::mem::take(&mut self.socket(at).watches_room) {
            self.progress += 1;
            self.plane.room(self.peer(at));
            self.carry_out();
        }
    }

    fn release(&mut self, send: &Send) {
        send.views.iter().for_each(|view| self.mem.release(view.source));
    }

    /// Receives at most `most` bytes of what a peer sent.
    fn receive(&mut self, at: At, most: usize) {
        let socket = self.socket(at);
        let is_late = socket.paused && socket.late > 0;
        if !socket.open || socket.ended || socket.inbox.is_empty() || (socket.paused && !is_late) {
            return;
        }
        let inbox = std::mem::take(&mut socket.inbox);
        let direction = if matches!(at, At::Agent(_)) { Direction::ToClient } else { Direction::ToAgent };
        let most = &inbox[..inbox.len().min(most)];
        let Some(view) = self.mem.leases.fill(direction, most) else {
            self.socket(at).inbox = inbox;
            return self.between_turns(Plane::relieve);
        };
        let socket = self.socket(at);
        socket.inbox = inbox[view.len as usize..].to_vec();
        socket.late -= u8::from(is_late);
        self.progress += 1;
        let peer = self.peer(at);
        self.plane.received(&mut self.mem, peer, view);
        self.mem.release(view.source);
        self.carry_out();
    }

    /// Nobody is owed more than the bounds say, but for what was on its way when they were reached.
    fn check_bounds(&self) {
        let pool = 4 * self.mem.leases.bytes();
        let on_its_way = pool + PAYLOAD_MAX + 2 * SEND_MAX;
        let input = SHIM_INPUT_BUFFER.max(TO_AGENT_BUFFER) + on_its_way;
        // A header more for each frame that input is cut into.
        let input = input + input / (self.tuning.agent_frame_max as usize - 12) * 12;
        for session in self.plane.status().into_iter().flat_map(|link| link.sessions) {
            assert!(session.queued_to_client <= (self.tuning.session_buffer + on_its_way) as u64, "{session:?}");
            assert!(session.queued_to_agent <= input as u64, "{session:?}");
        }
        let orphans: usize = self.orphans.iter().map(|send| send.views.len()).sum();
        let answers = self.clients.iter().map(|client| 5 + client.owed_answers() / CHUNK_LEN * 2).sum::<usize>();
        let most = (self.tuning.total_buffer + 2 * on_its_way + SHIM_REPLIES_BUFFER) / CHUNK_LEN + orphans + answers;
        assert!(self.mem.chunks.in_use() <= most, "{} chunks in use, {most} at most", self.mem.chunks.in_use());
    }

    /// Nobody holds anything back any more: what was sent comes out.
    fn settle(&mut self) {
        for index in 0..self.clients.len() {
            self.attend(index);
        }
        for _ in 0..REST_TURNS {
            let before = self.progress;
            for at in self.peers() {
                self.receive(at, usize::MAX);
                let all = self.socket(at).send.as_ref().map(|send| send.bytes.len());
                self.sent(at, all);
                self.room(at);
            }
            self.turn();
            if self.progress == before {
                return self.check_rest();
            }
        }
        panic!("no rest");
    }

    fn check_rest(&mut self) {
        // A shim that broke the protocol at last left output behind that waits for the next one.
        let is_free = |client: &&Client| client.alive && client.shim.is_some() && !client.socket.open;
        let held: Vec<usize> = self.clients.iter().filter(is_free).map(|client| client.agent).collect();
        for at in self.peers() {
            let is_held = matches!(at, At::Agent(index) if held.contains(&index));
            let socket = self.socket(at);
            assert!(socket.send.is_none(), "{at:?} is sent to for ever");
            assert!(socket.torn.is_empty(), "{at:?} has a part of a frame");
            assert!(!socket.paused || socket.ended || is_held, "{at:?} is paused for ever");
        }
        let is_whole = |client: &&Client| client.socket.open && self.agents[client.agent].socket.open;
        for client in self.clients.iter().filter(is_whole) {
            let is_known = client.hears && !self.agents[client.agent].wild && !held.contains(&client.agent);
            client.to_client.iter().filter(|_| is_known).for_each(|flow| flow.check_whole());
            if client.speaks && !client.wild {
                client.to_agent.check_whole();
            }
        }
    }

    /// Everybody goes: nothing is left.
    fn leave(&mut self) {
        for index in 0..self.clients.len() {
            self.gone(At::Client(index), Gone::Closed);
        }
        for index in 0..self.agents.len() {
            self.gone(At::Agent(index), Gone::Closed);
        }
        self.turn();
        for send in std::mem::take(&mut self.orphans) {
            self.release(&send);
        }
        assert_eq!(self.plane.counts(), (0, 0), "links and sessions at the end");
        assert!(self.clients.iter().all(|client| !client.alive), "a session that has not ended");
        assert!(self.mem.leases.are_free() && self.mem.chunks.in_use() == 0, "memory held at the end");
    }

    /// Gives a session bytes that its shim had sent before it came here.
    fn feed(&mut self, index: usize, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK_LEN) {
            if !self.clients[index].socket.open {
                return;
            }
            let (chunk, len) = (self.mem.chunks.take(), u32::try_from(piece.len()).expect("one chunk"));
            self.mem.chunks.write(chunk, 0, piece);
            let source = Source::Chunk(chunk);
            let view = crate::buf::BufView { source, off: 0, len };
            let peer = self.peer(At::Client(index));
            self.plane.received(&mut self.mem, peer, view);
            self.mem.release(source);
            self.carry_out();
        }
    }
}
