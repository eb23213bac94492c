//! What shims and the coordinator do by themselves: claim tokens, send frames of every kind, answer, give up.
//!
//! The asymmetry to know: the coordinator may be late, so that it orders things of sessions and connections that are
//! over; what it knows to have ended it leaves alone.

use ringway::limits::CC2_MESSAGE_MAX;
use ringway::relay::Gone;

use crate::peers::At;
use crate::random::payload;
use crate::shim::{COMMAND, ERROR, LOG, NOTIFICATION, RESPONSE, STDIN, STREAM, frame, header};
use crate::world::World;

impl World {
    /// A few orders for one session with a token.
    pub(crate) fn coordinate(&mut self) {
        let live: Vec<usize> = self.live_tokens();
        if live.is_empty() {
            return;
        }
        let index = self.random.pick(&live);
        if self.shim(index).connection.is_none() && self.random.percent(70) {
            return self.send_a_shim(index);
        }
        if self.random.percent(self.shape.answers) {
            (0..self.random.pick(&[1, 1, 5, 70])).for_each(|_| self.answer_one(index));
            return;
        }
        match self.random.below(100) {
            0..35 if !self.shim(index).started => {
                let terminal = self.random.percent(30);
                self.started(index, terminal);
            }
            35..50 => {
                let status = self.random.next().to_le_bytes()[0];
                self.exited(index, status);
            }
            50..56 => {
                let connection = self.some_connection(index);
                let why = if self.random.percent(50) { Gone::TooLate } else { Gone::Ordered };
                self.drop_shim(index, connection, why);
            }
            56..60 if !self.shim(index).released => {
                let reply = self.some_reply();
                self.release_token(index, &reply);
            }
            60..63 => self.send_a_shim(index),
            _ => {}
        }
    }

    /// The process whose output an agent sends just now ends between two of the frames that a long one is cut into.
    pub(crate) fn end_between_frames(&mut self, agent: usize) {
        let Some(index) = self.agents[agent].current else { return };
        let client = &self.clients[index];
        if client.shim.is_some() && client.to_client.is_between() && !client.reported_ended {
            if !self.shim(index).started {
                self.started(index, true);
            }
            let status = self.random.next().to_le_bytes()[0];
            self.exited(index, status);
        }
    }

    pub(crate) fn live_tokens(&self) -> Vec<usize> {
        let live = self.sessions.values().copied().filter(|&index| self.clients[index].shim.is_some());
        let mut live: Vec<usize> = live.collect();
        live.sort_unstable();
        live
    }

    /// A shim connects, having sent a part of what it will.
    pub(crate) fn send_a_shim(&mut self, index: usize) {
        let at = At::Client(index);
        let (reply, mut bytes) = (self.some_reply(), Vec::new());
        for _ in 0..self.random.pick(&[0, 1, 4]) {
            bytes.extend(self.some_shim_frame(at));
        }
        let now = self.random.below(bytes.len() + 1);
        if self.connect_shim(index, &reply, &bytes[..now]).is_some() && self.clients[index].socket.open {
            self.socket(at).half = bytes.split_off(now);
        }
    }

    fn answer_one(&mut self, index: usize) {
        let (connection, reply) = (self.some_connection(index), self.some_reply());
        self.answer_shim(index, connection, &reply);
    }

    /// Mostly the one that is there.
    fn some_connection(&mut self, index: usize) -> u64 {
        let any = self.random.next() % self.next_connection;
        let stale = self.random.percent(10);
        self.shim(index).connection.filter(|_| !stale).unwrap_or(any)
    }

    fn some_reply(&mut self) -> Vec<u8> {
        let len = match self.random.below(100) {
            0..30 => return Vec::new(),
            30..80 => 0,
            80..96 => self.random.below(600),
            96..98 => 32 * 1024 - self.random.below(30),
            _ => self.random.below(100_000),
        };
        let (kind, opcode) = match self.random.below(3) {
            0 => (NOTIFICATION, 7),
            1 => (RESPONSE, 6),
            _ => (RESPONSE | ERROR, 4),
        };
        frame(kind, opcode, 0, payload(&mut self.random, len))
    }

    pub(crate) fn some_shim_frame(&mut self, at: At) -> Vec<u8> {
        if self.random.percent(2) {
            // More than may be unanswered, and nothing else.
            return frame(COMMAND, 6, 0, b"").repeat(70);
        }
        let (kind, opcode) = match self.random.below(100) {
            0..60 => (STREAM, STDIN),
            60..85 => (COMMAND, self.random.next().to_le_bytes()[0] % 7),
            85..95 => (STREAM, LOG),
            _ => (NOTIFICATION, self.random.next().to_le_bytes()[0]),
        };
        let len = match self.random.below(100) {
            _ if opcode == STDIN && kind == STREAM => self.payload_len(at),
            0 => CC2_MESSAGE_MAX as usize,
            1..10 => self.random.below(3_000),
            10..40 => 0,
            _ => self.random.below(60),
        };
        let extra = if self.random.percent(10) { self.random.pick(&[1, 2, 50, 252]) } else { 0 };
        let mut bytes = frame(kind, opcode, extra, payload(&mut self.random, len));
        if self.random.percent(5) {
            // Reserved: a reader ignores them.
            (bytes[4], bytes[6]) = (0xFF, bytes[6] | 0xE0);
        }
        bytes
    }

    /// A header that ends its connection.
    pub(crate) fn shim_garbage(&mut self) -> Vec<u8> {
        let mut bytes = header(STREAM, STDIN, 3);
        match self.random.below(8) {
            0 => bytes[1] = 1,
            1 => bytes[2] = 2,
            2 => bytes[6] = 4,
            3 => bytes[7] = 4,
            4 => bytes[7] = 1,
            5 => (bytes[6], bytes[7]) = (RESPONSE, 4),
            6 => bytes[6] |= ERROR,
            _ => bytes = header(COMMAND, 6, CC2_MESSAGE_MAX as usize + 1),
        }
        let mut bytes = bytes.to_vec();
        bytes.extend(payload(&mut self.random, 40));
        bytes
    }

    /// Once nothing is held back: every token gets a shim, its process runs and its messages are answered. Whether
    /// there was anything to do.
    pub(crate) fn attend(&mut self) -> bool {
        let mut busy = false;
        for index in if self.leaving { Vec::new() } else { self.live_tokens() } {
            let (doomed, shim) = (self.agents[self.clients[index].agent].doomed, self.shim(index));
            let (connection, started, unanswered) = (shim.connection, shim.started, shim.unanswered);
            if doomed || shim.released || (shim.leaving && connection.is_none()) {
                continue;
            }
            match connection {
                None => drop(self.connect_shim(index, &frame(RESPONSE, 4, 0, &[]), &[])),
                Some(connection) => {
                    (0..unanswered).for_each(|_| self.answer_shim(index, connection, &frame(RESPONSE, 6, 0, &[])));
                }
            }
            if !started {
                self.started(index, false);
            }
            busy |= connection.is_none() || unanswered > 0 || !started;
        }
        busy
    }
}
