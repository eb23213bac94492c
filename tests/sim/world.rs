//! One simulated shard: a plane, its memory, its peers, and the driver between them, as the real shard does it.
//!
//! Everything the plane is told the model is told first; everything the plane asks for is held against the model.
//! The asymmetry to know: completions are events and their effects follow at once, sends are made only by `flush`.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use ringway::buf::{ChunkPool, Memory};
use ringway::limits::{CC1_FRAME_MAX, CC2_FRAME_MAX};
use ringway::relay::{Effect, Gone, LinkId, Peer, Plane, Sent, SessionId, Spilled};
use ringway::wire::SlowReader;
use ringway::wire::hyper::StreamSeq;

use crate::disk::{self, Disk};
use crate::leases::SimLeases;
use crate::model::{Owed, Reader};
use crate::peers::{Agent, Arrival, At, Client, SendOp, Socket};
use crate::random::Random;
use crate::sabotage::{Crime, Saboteur};
use crate::shape::Shape;
use crate::shim::Shim;

/// One step, as a failing seed prints it.
#[derive(Debug)]
#[expect(dead_code, reason = "printed")]
pub(crate) enum Step {
    Turn(u64),
    OpenAgent(usize, LinkId),
    OpenClient(usize, SessionId, u64),
    Order(String, usize),
    Act(&'static str, At, usize),
    Receive(At, usize),
    NoBuffers(At),
    Moved(At, usize),
    Deliver(At, Arrival),
    Sent(At, Sent),
    Effect(Effect),
    Send(At, usize),
    Spilled(usize, Spilled),
    Note(&'static str),
}

/// Turns from one beat to the next, where no script has its own.
const BEAT_EVERY: u64 = 64;
/// Steps a failing seed prints.
const STEPS_KEPT: usize = 200;

/// The last steps of a world; outlives it.
pub(crate) type Log = Rc<RefCell<VecDeque<Step>>>;

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) shape: Shape,
    pub(crate) plane: Plane,
    pub(crate) mem: Memory<SimLeases>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) clients: Vec<Client>,
    pub(crate) links: HashMap<LinkId, usize>,
    pub(crate) sessions: HashMap<SessionId, usize>,
    pub(crate) seqs: HashMap<u64, usize>,
    pub(crate) next_seq: u64,
    pub(crate) starved: [VecDeque<At>; 2],
    /// Sends in flight of peers that were closed.
    pub(crate) orphans: Vec<SendOp>,
    pub(crate) disk: Disk,
    pub(crate) saboteur: Saboteur,
    /// Things that happened, to tell a world at rest.
    pub(crate) progress: u64,
    /// The plane must ask for nothing just now.
    pub(crate) nothing_may_follow: bool,
    pub(crate) turns: u64,
    /// Nothing is held back any more.
    pub(crate) healed: bool,
    /// Nobody comes any more.
    pub(crate) leaving: bool,
    pub(crate) next_connection: u64,
    /// Pieces fed to sessions that their shims had sent before.
    pub(crate) fed: usize,
    log: Log,
}

impl World {
    pub(crate) fn new(random: Random, shape: Shape, saboteur: Saboteur, log: Log) -> World {
        let leases = SimLeases::new(shape.to_client, shape.to_agent);
        World {
            random,
            plane: disk::plane(&shape),
            disk: Disk::default(),
            shape,
            mem: Memory { leases, chunks: ChunkPool::default() },
            agents: Vec::new(),
            clients: Vec::new(),
            links: HashMap::new(),
            sessions: HashMap::new(),
            seqs: HashMap::new(),
            next_seq: 1,
            starved: [VecDeque::new(), VecDeque::new()],
            orphans: Vec::new(),
            saboteur,
            progress: 0,
            nothing_may_follow: false,
            turns: 0,
            healed: false,
            leaving: false,
            next_connection: 1,
            fed: 0,
            log,
        }
    }

    pub(crate) fn note(&self, step: Step) {
        let mut log = self.log.borrow_mut();
        if log.len() == STEPS_KEPT {
            log.pop_front();
        }
        log.push_back(step);
    }

    pub(crate) fn socket(&mut self, at: At) -> &mut Socket {
        match at {
            At::Agent(index) => &mut self.agents[index].socket,
            At::Client(index) => &mut self.clients[index].socket,
        }
    }

    /// Every peer whose socket is open, agents first.
    pub(crate) fn open_peers(&self) -> Vec<At> {
        let agents = self.agents.iter().enumerate().filter(|(_, agent)| agent.socket.open);
        let clients = self.clients.iter().enumerate().filter(|(_, client)| client.socket.open);
        agents.map(|(index, _)| At::Agent(index)).chain(clients.map(|(index, _)| At::Client(index))).collect()
    }

    pub(crate) fn peer(&self, at: At) -> Peer {
        match at {
            At::Agent(index) => Peer::Agent(self.agents[index].link),
            At::Client(index) => Peer::Client(self.clients[index].session),
        }
    }

    /// Who an effect is about. Effects about a peer that was closed are faults.
    pub(crate) fn at(&self, peer: Peer) -> At {
        match peer {
            Peer::Agent(link) => At::Agent(*self.links.get(&link).expect("an effect about a link that is gone")),
            Peer::Client(session) => {
                At::Client(*self.sessions.get(&session).expect("an effect about a session that is gone"))
            }
        }
    }

    pub(crate) fn open_agent(&mut self) -> usize {
        let index = self.agents.len();
        let vm = index as u64 + 1000;
        let link = self.plane.open_link(vm);
        assert!(self.links.insert(link, index).is_none(), "a link's identifier given twice");
        self.note(Step::OpenAgent(index, link));
        self.agents.push(Agent {
            socket: Socket::new(self.shape.unix_agents, self.shape.agent_room),
            vm,
            link,
            reader: Reader::default(),
            current: None,
            clients: Vec::new(),
            torn: None,
            doomed: false,
            reported_blocked: false,
            reported_ended: false,
        });
        index
    }

    pub(crate) fn open_client(&mut self, agent: usize, streams: u8) -> usize {
        let index = self.clients.len();
        let base = self.next_seq;
        self.next_seq += u64::from(streams);
        let session = self.plane.open_session(self.agents[agent].link, StreamSeq(base), streams);
        let socket = Socket::new(self.shape.unix_clients, self.shape.client_room);
        self.add_client(Client {
            socket,
            base,
            streams: u64::from(streams),
            agent,
            session,
            shim: None,
            reader: Reader::default(),
            to_client: Owed::new(CC1_FRAME_MAX as usize),
            to_agent: Owed::new(self.shape.tuning.agent_frame_max as usize),
            hears: true,
            speaks: true,
            spilling: false,
            slow_reader: SlowReader::Spill,
            doomed: false,
            reported_ended: false,
        });
        index
    }

    /// A session with a token, and no shim yet.
    pub(crate) fn open_token(&mut self, agent: usize) -> usize {
        let (index, base) = (self.clients.len(), self.next_seq);
        self.next_seq += 2;
        let session = self.plane.open_token(self.agents[agent].link, StreamSeq(base));
        let mut socket = Socket::new(true, self.shape.client_room);
        socket.open = false;
        self.add_client(Client {
            socket,
            base,
            streams: 2,
            agent,
            session,
            shim: Some(Box::new(Shim::new())),
            reader: Reader::default(),
            to_client: Owed::to_shim(CC2_FRAME_MAX as usize),
            to_agent: Owed::new(self.shape.tuning.agent_frame_max as usize),
            hears: true,
            speaks: false,
            spilling: false,
            slow_reader: SlowReader::Spill,
            doomed: false,
            reported_ended: false,
        });
        index
    }

    fn add_client(&mut self, client: Client) {
        let (index, session, base) = (self.clients.len(), client.session, client.base);
        assert!(self.sessions.insert(session, index).is_none(), "a session's identifier given twice");
        self.note(Step::OpenClient(index, session, base));
        (base..self.next_seq).for_each(|seq| assert!(self.seqs.insert(seq, index).is_none()));
        self.agents[client.agent].clients.push(index);
        self.clients.push(client);
        self.choose_policy(index);
    }

    /// One turn of the shard: reap some completions, then send.
    pub(crate) fn turn(&mut self) {
        self.turns += 1;
        self.note(Step::Turn(self.turns));
        let is_short = self.starved.iter().any(|queue| !queue.is_empty()) && self.plane.pins();
        if !self.healed && self.random.percent(2) {
            self.plane.rest(&mut self.mem);
        }
        self.run_kernel();
        let before = self.progress;
        self.reap();
        let relieved = is_short && self.progress == before;
        if relieved {
            self.plane.relieve(&mut self.mem);
            self.progress += 1;
        }
        self.run_disk();
        if self.turns.is_multiple_of(BEAT_EVERY) {
            self.beat();
        }
        self.flush();
        if relieved {
            self.check_relieved();
        }
        self.end_last_sends();
        self.audit();
    }

    /// Time passes.
    pub(crate) fn beat(&mut self) {
        self.plane.beat(&mut self.mem);
        let mut effects = Vec::new();
        self.plane.take_effects(&mut effects);
        self.progress += effects.len() as u64;
        effects.into_iter().for_each(|effect| self.carry_out_one(effect));
    }

    /// Ends some of the sends that the plane says nothing waits for: nothing may come of it. That the shard may learn
    /// of it late is shown by that.
    fn end_last_sends(&mut self) {
        for at in self.open_peers() {
            if self.socket(at).send.as_ref().is_some_and(|send| send.is_last) && self.random.percent(50) {
                self.end_try(at);
                if self.socket(at).send.as_ref().is_some_and(|send| send.moved == send.total) {
                    self.nothing_may_follow = true;
                    self.deliver_sent(at);
                }
            }
        }
        self.flush();
        self.nothing_may_follow = false;
    }

    /// Reaps completions in any order, in order per peer and direction; tries end before the turn does.
    fn reap(&mut self) {
        let all = if self.healed { 100 } else { self.shape.reap };
        loop {
            let ready: Vec<At> = self.open_peers().into_iter().filter(|&at| self.socket(at).has_completion()).collect();
            if ready.is_empty() || (all < 100 && self.random.percent(100 / (1 + ready.len()))) {
                break;
            }
            let at = self.random.pick(&ready);
            self.reap_one(at);
            // Orders of the coordinator come between completions: identifiers are reused before the turn ends.
            if !self.healed && self.random.percent(5) {
                self.populate();
                self.coordinate();
            }
        }
        for at in self.open_peers() {
            if self.socket(at).is_trying() {
                self.end_try(at);
                self.deliver_sent(at);
            }
        }
    }

    fn reap_one(&mut self, at: At) {
        let coin = self.random.percent(50);
        let socket = self.socket(at);
        let sent = socket.send.as_ref().is_some_and(|send| send.done.is_some());
        if sent && (coin || socket.arrived.is_empty()) {
            return self.deliver_sent(at);
        }
        let arrival = socket.arrived.pop_front().expect("something arrived");
        self.deliver(at, arrival);
    }

    fn deliver(&mut self, at: At, arrival: Arrival) {
        self.progress += 1;
        self.note(Step::Deliver(at, arrival));
        let peer = self.peer(at);
        let failed = || Gone::Error("reset".to_owned());
        match (arrival, at) {
            (Arrival::Bytes(view), _) => return self.deliver_bytes(at, view),
            (Arrival::Room, _) if self.saboteur.strikes(Crime::LoseRoom) => {}
            (Arrival::Room, _) => self.plane.room(peer),
            (Arrival::End, At::Agent(index)) => {
                self.expect_link_death(index);
                self.plane.gone(&mut self.mem, peer, Gone::Closed);
            }
            (Arrival::End, At::Client(index)) => {
                self.expect_input_end(index);
                self.plane.input_ended(&mut self.mem, self.clients[index].session);
            }
            (Arrival::Reset | Arrival::HangUp, At::Client(index)) => {
                let why = if arrival == Arrival::Reset { failed() } else { Gone::Closed };
                if self.clients[index].shim.is_some() {
                    self.expect_shim_gone(index, why.clone());
                } else {
                    self.expect_client_death(index);
                }
                self.plane.gone(&mut self.mem, peer, why);
            }
            (Arrival::Reset | Arrival::HangUp, At::Agent(index)) => {
                self.expect_link_death(index);
                self.plane.gone(&mut self.mem, peer, failed());
            }
        }
        self.carry_out(at);
    }

    fn deliver_bytes(&mut self, at: At, view: ringway::buf::BufView) {
        let bytes = self.mem.bytes(view).to_vec();
        self.socket(at).heard = true;
        match at {
            At::Agent(index) => self.expect_from_agent(index, &bytes),
            At::Client(index) => self.expect_from_client(index, &bytes),
        }
        if self.saboteur.strikes(Crime::CorruptByte) {
            self.mem.leases.corrupt(view, bytes.len() / 2);
        }
        let peer = self.peer(at);
        if !self.saboteur.strikes(Crime::LoseReceived) {
            self.plane.received(&mut self.mem, peer, view);
        }
        self.carry_out(at);
        if let At::Agent(index) = at
            && self.random.percent(self.shape.answers)
        {
            self.end_between_frames(index);
        }
        if !self.saboteur.strikes(Crime::KeepLease) {
            self.mem.release(view.source);
        }
        if self.saboteur.strikes(Crime::ReleaseTwice) {
            self.mem.release(view.source);
        }
    }

    fn deliver_sent(&mut self, at: At) {
        self.progress += 1;
        let send = self.socket(at).send.take().expect("a send in flight");
        let sent = match send.done.expect("its completion is there") {
            true => Sent::Taken(send.moved),
            false => Sent::Failed(Gone::Error("broken pipe".to_owned())),
        };
        self.note(Step::Sent(at, sent.clone()));
        self.expect_sent(at, &send, &sent);
        let peer = self.peer(at);
        let held = self.held_back(&send);
        if !self.saboteur.strikes(Crime::LoseSent) {
            self.plane.sent(&mut self.mem, peer, sent);
        }
        self.carry_out(at);
        self.check_released(at, &held);
        if !self.saboteur.strikes(Crime::KeepSent) {
            self.release(&send);
        }
    }

    pub(crate) fn release(&mut self, send: &SendOp) {
        send.views.iter().for_each(|view| self.mem.release(view.source));
    }

    /// Carries out what an event about `at` led to.
    pub(crate) fn carry_out(&mut self, at: At) {
        let mut effects = Vec::new();
        self.plane.take_effects(&mut effects);
        for effect in effects {
            assert!(!matches!(effect, Effect::Send { .. }), "a send outside of flush");
            self.carry_out_one(effect);
        }
        let (doomed, open) = match at {
            At::Agent(index) => (self.agents[index].doomed, self.agents[index].socket.open),
            At::Client(index) => (self.clients[index].doomed, self.clients[index].socket.open),
        };
        assert!(!(doomed && open), "{at:?} should have been closed");
        if let At::Client(index) = at {
            self.clients[index].check_told();
        }
    }

    /// Ends every link, as a stopping daemon does.
    pub(crate) fn drain(&mut self) {
        self.note(Step::Note("drain"));
        (0..self.agents.len())
            .filter(|&index| self.agents[index].socket.open)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|index| self.expect_link_death(index));
        self.plane.drain(&mut self.mem);
        let mut effects = Vec::new();
        self.plane.take_effects(&mut effects);
        effects.into_iter().for_each(|effect| self.carry_out_one(effect));
    }

    fn flush(&mut self) {
        self.flush_once();
        let mut over = self.is_over_total();
        while self.plane.carry_out_verdicts(&mut self.mem) {
            self.expect_too_slow(over);
            // A session that ends waits for what its agent is being sent; closing its socket ends the shard's wait.
            self.agents.iter_mut().filter_map(|agent| agent.socket.send.as_mut()).for_each(|send| send.is_last = false);
            self.flush_once();
            over = self.is_over_total();
        }
    }

    fn flush_once(&mut self) {
        self.plane.flush(&mut self.mem);
        let mut effects = Vec::new();
        self.plane.take_effects(&mut effects);
        self.saboteur.swap_sends(&mut effects);
        for effect in effects {
            match effect {
                Effect::Send { peer, views, is_last } => {
                    let is_last = is_last || self.saboteur.strikes(Crime::CallSendLast);
                    self.start_send(peer, views, is_last);
                }
                other => self.carry_out_one(other),
            }
        }
        self.plane.clear_views();
    }
}
