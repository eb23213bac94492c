//! What may happen to a plane: one function for each kind of operation, its details chosen by a fuzzer's bytes.
//!
//! The asymmetry to know: a frame is sent whole into its peer's inbox, and received from there in any pieces.

use crate::buf::Memory;
use crate::relay::{Gone, Plane};
use crate::wire::cc2::{self, Command, Kind, Stream};
use crate::wire::fuzzing::Choices;
use crate::wire::hyper::StreamSeq;

use super::buffers::Buffers;
use super::peers::{Agent, Client, Shim, Socket, hyper};
use super::{At, PAYLOAD_MAX, World};

/// Lengths of payload where something changes: nothing, a status, what is copied, cut, sent at once.
const LENGTHS: [usize; 16] =
    [0, 1, 2, 12, 13, 100, 512, 513, 1_000, 4_084, 4_085, 10_228, 10_229, 20_000, 33_000, PAYLOAD_MAX];
/// How many bytes one receive may take.
const PIECES: [usize; 8] = [usize::MAX, 1, 2, 11, 12, 13, 100, 1_000];
/// An operation with this bit is followed by another one in the same turn.
const SAME_TURN: u8 = 0x80;
/// A sequence that nobody has.
const NOBODY: u64 = 1 << 52;

impl World {
    pub(super) fn operate(&mut self, operation: u8, choices: &mut Choices) {
        match operation & 0x0f {
            0 => self.open_link(),
            1 => self.open_session(choices),
            2 => self.connect_shim(choices),
            3 | 4 => self.agent_sends(choices),
            5 | 6 => self.client_sends(choices),
            7 => self.shim_sends_message(choices),
            8 => self.somebody_sends_garbage(choices),
            9 | 10 => {
                if let Some(at) = self.some_peer(choices) {
                    self.receive(at, choices.pick(&PIECES));
                }
            }
            11 | 12 => self.end_send(choices),
            13 => {
                if let Some(at) = self.some_peer(choices) {
                    self.room(at);
                }
            }
            14 => self.somebody_leaves(choices),
            _ => self.coordinate(choices),
        }
        if operation & SAME_TURN == 0 {
            self.turn();
        }
    }

    fn some_peer(&self, choices: &mut Choices) -> Option<At> {
        let peers = self.peers();
        peers.get(choices.below(peers.len())).copied()
    }

    fn some_agent(&self, choices: &mut Choices) -> Option<usize> {
        let open: Vec<usize> = (0..self.agents.len()).filter(|&index| self.agents[index].socket.open).collect();
        open.get(choices.below(open.len())).copied()
    }

    /// A session that has not ended and is such a one.
    fn some_client(&self, choices: &mut Choices, is_one: impl Fn(&Client) -> bool) -> Option<usize> {
        let is_one = |&index: &usize| self.clients[index].alive && is_one(&self.clients[index]);
        let some: Vec<usize> = (0..self.clients.len()).filter(is_one).collect();
        some.get(choices.below(some.len())).copied()
    }

    /// A length of payload, as long as there is a budget.
    fn length(&mut self, choices: &mut Choices) -> usize {
        let len = choices.pick(&LENGTHS);
        let len = if self.budget < len { 0 } else { len };
        self.budget -= len;
        len
    }

    fn open_link(&mut self) {
        if self.agents.iter().filter(|agent| agent.socket.open).count() < 3 {
            let vm = self.agents.len() as u64 + 100;
            let link = self.plane.open_link(vm);
            self.agents.push(Agent { socket: Socket::connected(), vm, link, doomed: false, wild: false });
        }
    }

    fn open_session(&mut self, choices: &mut Choices) {
        let streams = choices.pick(&[1, 2, 0]);
        let Some(agent) = self.some_agent(choices) else { return };
        if self.clients.iter().filter(|client| client.alive).count() >= 6 {
            return;
        }
        let (link, base) = (self.agents[agent].link, 1 + 2 * self.clients.len() as u64);
        let has_token = streams == 0;
        let session = match streams {
            0 => self.plane.open_token(link, StreamSeq(base)),
            _ => self.plane.open_session(link, StreamSeq(base), streams),
        };
        self.clients.push(Client {
            socket: if has_token { Socket::default() } else { Socket::connected() },
            session,
            base,
            streams: if has_token { 2 } else { streams },
            agent,
            shim: has_token.then(Shim::default),
            to_client: Default::default(),
            to_agent: Default::default(),
            alive: true,
            doomed: false,
            deaf: false,
            hears: true,
            speaks: true,
            wild: false,
        });
        self.carry_out();
    }

    fn connect_shim(&mut self, choices: &mut Choices) {
        let is_free = |client: &Client| client.shim.is_some();
        let Some(index) = self.some_client(choices, is_free) else { return };
        let answer = self.answer(choices);
        if self.claim(index, answer) && choices.below(2) == 1 {
            let len = self.length(choices);
            let input = self.clients[index].input(len);
            let (now, later) = input.split_at(input.len() / 2);
            self.clients[index].socket.inbox.extend_from_slice(later);
            self.feed(index, now);
        }
    }

    /// A shim claims a token; whether it was free.
    fn claim(&mut self, index: usize, answer: Vec<u8>) -> bool {
        let (connection, session) = (self.next_connection, self.clients[index].session);
        self.next_connection += 1;
        let is_free = self.plane.connect_shim(&mut self.mem, session, connection, &answer);
        let client = &mut self.clients[index];
        assert!(!(is_free && client.socket.open), "a token that somebody has is given again");
        assert!(is_free || client.socket.open || !client.hears, "a token nobody has is not given");
        if let Some(shim) = client.shim.as_mut().filter(|_| is_free) {
            shim.connection = Some(connection);
            shim.replies.push_back(answer);
            client.socket = Socket::connected();
        }
        self.carry_out();
        is_free
    }

    /// The frame that answers something.
    fn answer(&mut self, choices: &mut Choices) -> Vec<u8> {
        let len = self.length(choices);
        cc2::encode(Kind::Response { command: Command::ConnectShim, error: len % 2 == 1 }, &vec![0x61; len])
    }

    fn agent_sends(&mut self, choices: &mut Choices) {
        let (stream, len) = (choices.below(2), self.length(choices));
        let Some(index) = self.some_client(choices, |_| true) else { return };
        let client = &mut self.clients[index];
        let agent = &mut self.agents[client.agent];
        if agent.socket.open && !agent.socket.ended {
            let stream = u8::try_from(stream).unwrap_or_default().min(client.streams - 1);
            agent.socket.inbox.extend(client.frame_for_it(stream, len));
        }
    }

    fn client_sends(&mut self, choices: &mut Choices) {
        let len = self.length(choices);
        let Some(index) = self.some_client(choices, |client| client.socket.open) else { return };
        let client = &mut self.clients[index];
        if !client.socket.ended {
            let input = client.input(len);
            client.socket.inbox.extend(input);
        }
    }

    fn shim_sends_message(&mut self, choices: &mut Choices) {
        let kind = choices.pick(&[
            Kind::Command(Command::Signal),
            Kind::Stream(Stream::Log),
            Kind::Notification(9),
            Kind::Command(Command::ConnectShim),
            Kind::Command(Command::DisconnectShim),
        ]);
        let len = self.length(choices);
        let is_shim = |client: &Client| client.socket.open && client.shim.is_some();
        let Some(index) = self.some_client(choices, is_shim) else { return };
        let client = &mut self.clients[index];
        let frame = cc2::Frame { kind, payload: vec![0x7b; len] };
        client.socket.inbox.extend(cc2::encode(frame.kind, &frame.payload));
        if kind == Kind::Command(Command::DisconnectShim) {
            client.hears = false;
        }
        if let Some(shim) = client.shim.as_mut().filter(|_| !matches!(kind, Kind::Notification(_))) {
            shim.messages.push_back(frame);
        }
    }

    /// Bytes that may break a protocol or not, or a frame for nobody.
    fn somebody_sends_garbage(&mut self, choices: &mut Choices) {
        let len = choices.below(40);
        let Some(at) = self.some_peer(choices) else { return };
        match at {
            At::Agent(index) if len == 0 => {
                let frame = hyper(NOBODY, &[0x21; 600]);
                self.agents[index].socket.inbox.extend(frame);
            }
            At::Agent(index) => {
                let agent = &mut self.agents[index];
                (agent.wild, agent.doomed) = (true, true);
                agent.socket.inbox.extend(choices.take(len));
            }
            At::Client(index) => {
                let client = &mut self.clients[index];
                client.wild = true;
                client.hears = false;
                client.socket.inbox.extend(choices.take(len));
            }
        }
    }

    fn end_send(&mut self, choices: &mut Choices) {
        let how = choices.below(8);
        let Some(at) = self.some_peer(choices) else { return };
        let Some(len) = self.socket(at).send.as_ref().map(|send| send.bytes.len()) else { return };
        let taken = match (how, at) {
            (0..4, _) => len,
            // What is sent to a shim is taken whole or not at all.
            (4, _) => 0,
            (_, At::Client(index)) if self.clients[index].shim.is_some() => 0,
            (5, _) => len / 2,
            (6, _) => len - 1,
            (_, At::Agent(_)) => 1,
            (_, At::Client(index)) => {
                let client = &mut self.clients[index];
                (client.hears, client.doomed, client.deaf) = (false, true, true);
                return self.sent(at, None);
            }
        };
        self.sent(at, Some(taken));
    }

    fn somebody_leaves(&mut self, choices: &mut Choices) {
        let how = choices.below(4);
        let Some(at) = self.some_peer(choices) else { return };
        match at {
            At::Client(index) if how < 2 => self.input_ended(index),
            At::Client(index) if how == 2 && self.clients[index].shim.is_some() => self.refuse_output(index),
            _ => self.gone(at, Gone::Closed),
        }
    }

    /// A client sends no more, once all it sent was received.
    fn input_ended(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if !client.socket.inbox.is_empty() || client.socket.ended || client.socket.paused {
            return;
        }
        client.socket.ended = true;
        client.doomed |= client.deaf || client.shim.is_some();
        self.plane.input_ended(&mut self.mem, self.clients[index].session);
        self.carry_out();
    }

    /// A shim's socket refuses what is being sent to it.
    fn refuse_output(&mut self, index: usize) {
        if self.clients[index].socket.send.is_some() {
            let client = &mut self.clients[index];
            (client.doomed, client.deaf) = (true, true);
            self.sent(At::Client(index), None);
        }
    }

    /// A peer is gone, whatever it had sent.
    pub(super) fn gone(&mut self, at: At, why: Gone) {
        if !self.socket(at).open {
            return;
        }
        match at {
            At::Agent(index) => {
                self.agents[index].doomed = true;
                let mine = |client: &&mut Client| client.agent == index;
                for client in self.clients.iter_mut().filter(mine) {
                    (client.doomed, client.hears, client.speaks) = (true, false, false);
                }
            }
            At::Client(index) => {
                let client = &mut self.clients[index];
                (client.doomed, client.speaks) = (true, false);
                client.hears &= client.shim.is_some();
            }
        }
        let peer = self.peer(at);
        self.plane.gone(&mut self.mem, peer, why);
        self.carry_out();
        assert!(!self.socket(at).open, "{at:?} is gone and still there");
    }

    /// What a shard does when nothing else happens.
    pub(super) fn between_turns(&mut self, act: fn(&mut Plane, &mut Memory<Buffers>)) {
        self.turn();
        act(&mut self.plane, &mut self.mem);
        self.carry_out();
    }

    /// What the coordinator does: for sessions with a token, and for all.
    fn coordinate(&mut self, choices: &mut Choices) {
        let what = choices.below(11);
        match what {
            0 => return self.between_turns(Plane::relieve),
            1 => return self.between_turns(Plane::rest),
            10 => return self.between_turns(Plane::beat),
            2 => {
                self.mem.chunks.trim();
                let orphans = std::mem::take(&mut self.orphans);
                return orphans.iter().for_each(|send| self.release(send));
            }
            _ => {}
        }
        let answer = self.answer(choices);
        let Some(index) = self.some_client(choices, |client| client.shim.is_some()) else { return };
        let (session, mem) = (self.clients[index].session, &mut self.mem);
        let client = &mut self.clients[index];
        let Some(shim) = &mut client.shim else { return };
        match what {
            3 | 4 => {
                shim.started = true;
                self.plane.started(mem, session, what == 4);
            }
            5 => self.plane.exited(mem, session, 3),
            6 | 7 => {
                let connection = shim.connection.unwrap_or_default();
                if shim.connection.is_some() && !client.deaf {
                    shim.replies.push_back(answer.clone());
                }
                self.plane.answer_shim(mem, session, connection, &answer);
            }
            8 => {
                client.doomed = true;
                (client.speaks, client.hears) = (false, client.hears);
                self.plane.drop_shim(mem, session, shim.connection.unwrap_or_default(), Gone::TooLate);
            }
            _ => {
                shim.released = true;
                (client.hears, client.doomed) = (false, true);
                if shim.connection.is_some() && !client.deaf {
                    shim.replies.push_back(answer.clone());
                }
                self.plane.release_token(mem, session, &answer);
            }
        }
        self.carry_out();
    }

    /// A session gets what it waits for: a shim, its process, the end of one that cannot be reached.
    pub(super) fn attend(&mut self, index: usize) {
        if self.clients[index].deaf {
            self.gone(At::Client(index), Gone::Closed);
        }
        let client = &mut self.clients[index];
        let Some(shim) = client.shim.as_mut().filter(|_| client.alive) else { return };
        shim.started = true;
        let (session, is_free) = (client.session, !client.socket.open);
        self.plane.started(&mut self.mem, session, false);
        self.carry_out();
        if is_free && self.clients[index].alive {
            let answer = cc2::encode(Kind::Response { command: Command::ConnectShim, error: false }, b"");
            self.claim(index, answer);
        }
    }
}
