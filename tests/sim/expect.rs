//! The model's side of every event: what each peer is owed after it.
//!
//! The asymmetry to know: when a client goes, its agent is still owed what it sent in whole frames; when an agent
//! goes, its clients are still owed theirs.

use ringway::relay::{Gone, Sent};

use crate::model::{Look, Token};
use crate::peers::{At, SendOp};
use crate::world::World;

impl World {
    pub(crate) fn expect_from_agent(&mut self, index: usize, mut bytes: &[u8]) {
        let bound = self.shape.tuning.stream_frame_max as usize;
        let agent = &mut self.agents[index];
        while let Some(token) = agent.reader.next(&mut bytes, bound) {
            match token {
                Token::Begin { seq, payload } => {
                    let owner = self.seqs.get(&seq).copied();
                    agent.current =
                        owner.filter(|&client| self.clients[client].agent == index && self.clients[client].hears);
                    if let Some(client) = agent.current {
                        self.clients[client].begin_output(seq, payload);
                    }
                }
                Token::Payload(payload) => {
                    if let Some(client) = agent.current.filter(|&client| self.clients[client].hears) {
                        self.clients[client].more_output(payload);
                    }
                }
                Token::Fault => return self.expect_link_death(index),
            }
        }
    }

    pub(crate) fn expect_from_client(&mut self, index: usize, mut bytes: &[u8]) {
        let bound = self.shape.tuning.stream_frame_max as usize;
        let client = &mut self.clients[index];
        if self.agents[client.agent].doomed {
            return;
        }
        assert!(client.speaks, "the simulator received bytes after their end");
        if client.shim.is_some() {
            return self.expect_from_shim(index, bytes);
        }
        while let Some(token) = client.reader.next(&mut bytes, bound) {
            match token {
                Token::Begin { seq, payload } if seq == client.base => client.to_agent.begin(Look::Hyper(seq), payload),
                Token::Payload(payload) => client.to_agent.payload(payload),
                Token::Begin { .. } | Token::Fault => return self.expect_client_death(index),
            }
        }
    }

    pub(crate) fn expect_link_death(&mut self, index: usize) {
        let agent = &mut self.agents[index];
        agent.doomed = true;
        for client in agent.clients.clone() {
            self.clients[client].to_client.cut_off();
            self.clients[client].to_agent.forgive();
            self.expect_link_gone(client);
        }
    }

    pub(crate) fn expect_client_death(&mut self, index: usize) {
        let client = &mut self.clients[index];
        (client.doomed, client.hears, client.speaks) = (true, false, false);
        client.to_client.forgive();
        client.to_agent.cut_off();
        if let Some(shim) = &mut client.shim {
            shim.lose_connection();
            if !shim.started {
                client.to_agent.forgive();
            }
        }
    }

    pub(crate) fn expect_input_end(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.shim.is_some() {
            return self.expect_shim_gone(index, Gone::Closed);
        }
        client.speaks = false;
        if !client.hears {
            self.expect_client_death(index);
        }
    }

    pub(crate) fn expect_sent(&mut self, at: At, send: &SendOp, sent: &Sent) {
        match at {
            At::Agent(index) => {
                for &(client, _) in &send.shares {
                    self.clients[client].to_agent.report();
                }
                self.check_turns(index, send);
                let torn = send.shares.iter().find(|&&(client, _)| self.clients[client].to_agent.torn() > 0);
                self.agents[index].torn = torn.map(|share| share.0);
                if matches!(sent, Sent::Failed(_)) {
                    // As the shard does: the link ends when what the agent had written has been received.
                    let socket = &mut self.agents[index].socket;
                    (socket.shut, socket.refuses) = (true, true);
                }
            }
            At::Client(index) if self.clients[index].shim.is_some() => self.expect_sent_to_shim(index, send, sent),
            At::Client(index) => {
                let client = &mut self.clients[index];
                client.to_client.report();
                if !matches!(sent, Sent::Failed(_)) {
                    return;
                }
                if !client.speaks || self.agents[client.agent].doomed {
                    return self.expect_client_death(index);
                }
                client.hears = false;
                client.to_client.forgive();
            }
        }
    }
}
