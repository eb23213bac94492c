//! Carries out the plane's effects and holds each against the model.
//!
//! The asymmetry to know: closing forgets a peer at once, but a send of it that is in flight keeps its memory until
//! the kernel is done with it.

use std::ops::Range;

use ringway::limits::{AGENT_SEND_MAX, CHUNK_LEN, SEND_MAX, SEND_PIECES_MAX};
use ringway::relay::{Effect, Gone, Peer, Report};

use crate::model::{HEADER, length_at, seq_at};
use crate::peers::{Arrival, At, SendOp};
use crate::sabotage::Crime;
use crate::world::{Step, World};

impl World {
    pub(crate) fn carry_out_one(&mut self, effect: Effect) {
        self.note(Step::Effect(effect.clone()));
        assert!(!self.nothing_may_follow, "{effect:?} waited for a send that nothing waits for");
        match effect {
            Effect::Send { .. } => unreachable!("sends are made by flush"),
            Effect::Pause(peer) => self.pause(self.at(peer)),
            Effect::Resume(peer) => self.resume(self.at(peer)),
            // How much comes at once is random anyway.
            Effect::ReceiveLess(_) => {}
            Effect::WatchRoom(peer) => {
                let at = self.at(peer);
                let socket = self.socket(at);
                assert!(socket.open && socket.send.is_none(), "{at:?} is closed or has a send in flight");
                socket.watches_room = true;
            }
            Effect::WatchClose(session) => {
                let at = self.at(Peer::Client(session));
                let socket = self.socket(at);
                assert!(socket.open && !socket.watched, "{at:?} watched twice");
                socket.watched = true;
            }
            Effect::Close(peer) => self.close(self.at(peer)),
            Effect::Spill(session, op) => self.spill(session, op),
            Effect::Report(report) => self.report(report),
        }
    }

    fn pause(&mut self, at: At) {
        let over = self.is_over_total();
        let due = match at {
            At::Agent(index) => {
                let bound = self.shape.tuning.session_buffer;
                let mut clients = self.agents[index].clients.iter().map(|&client| &self.clients[client]);
                clients.any(|client| client.to_client.owed() >= bound) || self.is_useless(index)
            }
            At::Client(index) => {
                assert!(self.clients[index].speaks, "{at:?} sends nothing and is paused");
                let client = &self.clients[index];
                let agent = &self.agents[client.agent].socket;
                let stuck = agent.is_blocked() && client.to_agent.whole() > 0;
                client.input_is_full() || stuck
            }
        };
        assert!(due || over, "{at:?} paused below the bound");
        let late = if self.healed { 0 } else { self.random.below(3) };
        let socket = self.socket(at);
        assert!(socket.open && !socket.paused, "{at:?} paused twice or closed");
        (socket.paused, socket.late) = (true, late);
    }

    fn resume(&mut self, at: At) {
        if let At::Client(index) = at {
            assert!(self.clients[index].speaks, "{at:?} sends nothing and is resumed");
        }
        let lost = self.saboteur.strikes(Crime::LoseResume);
        let socket = self.socket(at);
        assert!(socket.open && socket.paused, "{at:?} resumed, and not paused or closed");
        socket.paused = lost;
    }

    pub(crate) fn is_over_total(&self) -> bool {
        self.mem.chunks.in_use() * CHUNK_LEN >= self.shape.tuning.total_buffer
    }

    fn close(&mut self, at: At) {
        match at {
            At::Agent(index) => {
                assert!(self.agents[index].doomed, "{at:?} closed for no reason");
                self.links.remove(&self.agents[index].link);
            }
            At::Client(index) => {
                if self.is_stuck(index) {
                    self.expect_shim_gone(index, Gone::Closed);
                }
                let client = &self.clients[index];
                let drained = !client.hears || client.to_client.whole() == 0;
                let drained = drained && client.shim.as_ref().is_none_or(|shim| shim.replies.whole() == 0);
                let orphaned = self.agents[client.agent].doomed && drained;
                assert!(client.doomed || orphaned, "{at:?} closed for no reason or too early");
            }
        }
        let socket = self.socket(at);
        assert!(std::mem::replace(&mut socket.open, false), "{at:?} closed twice");
        let (arrived, send) = (std::mem::take(&mut socket.arrived), socket.send.take());
        self.orphans.extend(send);
        for arrival in arrived {
            if let Arrival::Bytes(view) = arrival {
                self.mem.release(view.source);
            }
        }
        self.starved.iter_mut().for_each(|queue| queue.retain(|&other| other != at));
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::SessionEnded { base, vm, .. } => {
                let index = self.seqs[&base.0];
                let client = &mut self.clients[index];
                assert!(!std::mem::replace(&mut client.reported_ended, true), "session {base} ended twice");
                assert!(!client.socket.open, "session {base} ended before its socket was closed");
                let agent = &self.agents[client.agent];
                assert_eq!(vm, agent.vm);
                assert!(agent.doomed || client.to_agent.whole() == 0, "session {base} ended, owing its agent");
                assert_eq!(self.sessions.remove(&client.session), Some(index));
            }
            Report::LinkEnded { vm, .. } => {
                let agent = self.agents.iter_mut().find(|agent| agent.vm == vm).expect("a VM of ours");
                assert!(!std::mem::replace(&mut agent.reported_ended, true), "link {vm} ended twice");
                assert!(!agent.socket.open, "link {vm} ended before its socket was closed");
            }
            Report::LinkBlocked { vm, by } => {
                let index = self.seqs[&by.0];
                let agent = &mut self.agents[self.clients[index].agent];
                assert!(agent.vm == vm && agent.socket.paused && !agent.reported_blocked);
                agent.reported_blocked = true;
            }
            Report::LinkUnblocked { vm } => {
                let agent = self.agents.iter_mut().find(|agent| agent.vm == vm).expect("a VM of ours");
                assert!(agent.reported_blocked, "unblocked, and was not blocked");
                agent.reported_blocked = false;
            }
            Report::SpillBegan { base, .. } | Report::SpillStopped { base, .. } | Report::SpillEnded { base, .. } => {
                assert!(self.shape.disk.is_some() && self.seqs.contains_key(&base.0), "nothing can spill");
            }
            other => self.report_of_shim(other),
        }
    }

    pub(crate) fn start_send(&mut self, peer: Peer, range: Range<usize>, is_last: bool) {
        assert!(!self.nothing_may_follow, "a send to {peer:?} waited for one that nothing waits for");
        let at = self.at(peer);
        let views = self.plane.views(range).to_vec();
        let bytes: Vec<u8> = views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
        self.note(Step::Send(at, bytes.len()));
        self.progress += 1;
        assert!(views.len() <= SEND_PIECES_MAX, "a send of {} pieces", views.len());
        let mut replies = false;
        let shares = match at {
            At::Agent(index) => self.plan_to_agent(index, &bytes),
            At::Client(index) if self.clients[index].shim.is_some() => {
                replies = self.plan_to_shim(index, &bytes);
                vec![(index, bytes.len())]
            }
            At::Client(index) => self.plan_to_client(index, &bytes),
        };
        let most = if matches!(at, At::Agent(_)) { AGENT_SEND_MAX } else { SEND_MAX };
        assert!(!bytes.is_empty() && bytes.len() <= most, "a send of {} bytes", bytes.len());
        views.iter().for_each(|view| self.mem.retain(view.source));
        let socket = self.socket(at);
        assert!(socket.open && socket.send.is_none(), "{at:?} has a send in flight or is closed");
        socket.send = Some(SendOp { views, shares, replies, total: bytes.len(), is_last, moved: 0, done: None });
    }

    fn plan_to_client(&mut self, index: usize, bytes: &[u8]) -> Vec<(usize, usize)> {
        let client = &mut self.clients[index];
        let torn = client.to_client.torn();
        assert!(torn == 0 || !client.socket.unix, "a torn frame on a socket that tears none");
        client.to_client.plan(bytes);
        let mut end = torn;
        while end < bytes.len() {
            assert!(bytes.len() - end >= HEADER, "a send ends inside a header");
            end += length_at(&bytes[end..]);
        }
        assert_eq!(end, bytes.len(), "a send to a client ends inside a frame");
        vec![(index, bytes.len())]
    }

    /// Whose frames a send to an agent has; each begins and ends on a frame's border.
    fn plan_to_agent(&mut self, index: usize, bytes: &[u8]) -> Vec<(usize, usize)> {
        let mut shares: Vec<(usize, usize)> = Vec::new();
        let mut at = 0;
        if let Some(torn) = self.agents[index].torn {
            at = self.clients[torn].to_agent.torn();
            assert!(at <= bytes.len(), "a send ends inside a torn frame");
            self.clients[torn].to_agent.plan(&bytes[..at]);
            shares.push((torn, at));
        }
        while at < bytes.len() {
            assert!(bytes.len() - at >= HEADER, "a send ends inside a header");
            let (seq, len) = (seq_at(&bytes[at..]), length_at(&bytes[at..]));
            let owner = *self.seqs.get(&seq).expect("a sequence of ours");
            assert!(self.clients[owner].agent == index, "a frame for another agent");
            assert!(len <= self.shape.tuning.agent_frame_max as usize, "a frame of {len} bytes to an agent");
            assert!(at + len <= bytes.len(), "a send to an agent ends inside a frame");
            self.clients[owner].to_agent.plan(&bytes[at..at + len]);
            match shares.last_mut() {
                Some(last) if last.0 == owner => last.1 += len,
                _ => shares.push((owner, len)),
            }
            at += len;
        }
        shares
    }

    /// A session with a whole frame for its agent has its turn before others have had many bytes taken.
    pub(crate) fn check_turns(&mut self, index: usize, send: &SendOp) {
        let live: Vec<usize> = self.agents[index].clients.clone();
        let live: Vec<usize> = live.into_iter().filter(|&client| !self.clients[client].reported_ended).collect();
        let mut served = Vec::new();
        let mut begin = 0;
        for &(client, len) in &send.shares {
            if begin < send.moved {
                served.push(client);
            }
            begin += len;
        }
        let most = 2 * AGENT_SEND_MAX + 2 * live.len() * self.shape.tuning.agent_frame_max as usize;
        for &client in &live {
            let may_write = self.clients[client].shim.as_ref().is_none_or(|shim| shim.started);
            let served = served.contains(&client);
            assert!(may_write || !served, "input before its process runs");
            let owed = &mut self.clients[client].to_agent;
            owed.passed_over =
                if served || !may_write || owed.whole() == 0 { 0 } else { owed.passed_over + send.moved };
            assert!(owed.passed_over <= most, "client {client} does not get its turn");
        }
    }
}
