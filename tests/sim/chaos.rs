//! What peers do by themselves: write, stop reading, close, die, send garbage; and how a world comes to rest.
//!
//! The asymmetry to know: agents and clients write frames whenever there is room, but what goes wrong is rare, or
//! no world would live long enough to be interesting.

use crate::kernel::UNIX_PIECE;
use crate::model::{HEADER, frame, header};
use crate::peers::At;
use crate::random::{PAYLOAD_MAX, payload};
use crate::world::{Step, World};

/// Turns in which a world must have come to rest.
const REST_TURNS: usize = 20_000;

impl World {
    /// A few things happen.
    pub(crate) fn act(&mut self) {
        for _ in 0..self.random.below(self.shape.acts + 1) {
            self.populate();
            if self.random.percent(20) {
                self.coordinate();
            }
            let peers = self.open_peers();
            let at = self.random.pick(&peers);
            if self.random.once_in(self.shape.calm) {
                self.misfortune(at);
            } else if self.random.percent(self.shape.stalls) {
                let socket = self.socket(at);
                socket.reads = !socket.reads;
            } else {
                self.write_some(at);
            }
        }
    }

    /// Opens what is missing, now and then.
    pub(crate) fn populate(&mut self) {
        let live: Vec<usize> = (0..self.agents.len()).filter(|&index| self.agents[index].socket.open).collect();
        if live.is_empty() || (live.len() < self.shape.agents && self.random.percent(10)) {
            self.open_agent();
        } else if self.sessions.len() < self.shape.clients && self.random.percent(30) {
            let (agent, streams) = (self.random.pick(&live), self.random.pick(&[1, 2]));
            if self.random.percent(self.shape.tokens) {
                self.open_token(agent);
            } else {
                self.open_client(agent, streams);
            }
        }
    }

    /// Writes some of the frames a peer has begun to write, or begins new ones.
    fn write_some(&mut self, at: At) {
        if self.socket(at).half.is_empty() {
            for _ in 0..self.random.pick(&[1, 1, 1, 3, 10]) {
                self.begin_frame(at);
            }
        }
        let whole = self.random.percent(70);
        let fraction = self.random.below(101);
        let bound = self.shape.inbox;
        let socket = self.socket(at);
        if socket.shut {
            return socket.half.clear();
        }
        let n = socket.half.len().min(bound.saturating_sub(socket.inbox.len()));
        let n = if whole { n } else { n * fraction / 100 };
        let now = socket.half.drain(..n);
        socket.inbox.extend(now);
        self.note(Step::Act("writes", at, n));
    }

    fn begin_frame(&mut self, at: At) {
        if self.is_shim(at) {
            let bytes = self.some_shim_frame(at);
            return self.socket(at).half.extend(bytes);
        }
        let len = self.payload_len(at);
        let seq = match at {
            At::Agent(index) => self.some_seq(index),
            At::Client(index) => self.clients[index].base,
        };
        // Mostly one; sometimes a run of one session's.
        for _ in 0..self.random.pick(&[1, 1, 1, 1, 1, 1, 1, 5]) {
            let bytes = frame(seq, payload(&mut self.random, len));
            self.socket(at).half.extend(bytes);
        }
    }

    pub(crate) fn payload_len(&mut self, at: At) -> usize {
        let bound = self.shape.tuning.stream_frame_max as usize - HEADER;
        let cut = match at {
            At::Agent(_) if self.random.percent(50) => ringway::limits::CC2_FRAME_MAX as usize - HEADER,
            At::Agent(_) => ringway::limits::CC1_FRAME_MAX as usize - HEADER,
            At::Client(_) => self.shape.tuning.agent_frame_max as usize - HEADER,
        };
        let usual = self.shape.payload;
        let len = match self.random.below(100) {
            0..10 => 0,
            10..25 => 1,
            25..82 => self.random.below(usual + 1),
            82..87 => self.random.below(usual * 3 + 1),
            87..91 => cut,
            91..96 => cut + 1,
            96..99 => cut * 2 + self.random.below(3) - 1,
            _ => self.random.between(0, 30_000),
        };
        len.min(bound).min(PAYLOAD_MAX)
    }

    /// A sequence an agent uses: mostly one of its sessions, sometimes an old one, a future one or anybody's.
    fn some_seq(&mut self, index: usize) -> u64 {
        let strays = self.next_seq + 3;
        let own = &self.agents[index].clients;
        if own.is_empty() || self.random.percent(5) {
            return self.random.next() % strays;
        }
        // The newest are most likely to live.
        let recent = own.len().min(self.shape.clients);
        let client = own[own.len() - 1 - self.random.below(recent)];
        let Self { clients, random, .. } = self;
        clients[client].base + random.next() % clients[client].streams
    }

    fn misfortune(&mut self, at: At) {
        match self.random.below(10) {
            0..3 => self.close_peer(at),
            3..5 => self.kill_peer(at),
            5..8 if matches!(at, At::Client(_)) => self.half_close(at),
            8 => self.write_garbage(at),
            _ => self.drop_unfinished(at),
        }
    }

    /// The peer closes: what it wrote can still be received.
    pub(crate) fn close_peer(&mut self, at: At) {
        self.note(Step::Act("closes", at, 0));
        let socket = self.socket(at);
        (socket.shut, socket.closed, socket.reads) = (true, true, false);
        socket.half.clear();
    }

    /// The peer closes with something unread: the socket fails once what it wrote is received, and of that a reset of
    /// a connection may take any part.
    pub(crate) fn kill_peer(&mut self, at: At) {
        self.close_peer(at);
        let (keeps, part) = (self.healed || self.random.percent(70), self.random.below(101));
        let socket = self.socket(at);
        socket.reset = true;
        if !keeps {
            socket.inbox.truncate(socket.inbox.len() * part / 100);
        }
    }

    /// The peer will write no more.
    pub(crate) fn half_close(&mut self, at: At) {
        self.note(Step::Act("half-closes", at, 0));
        let socket = self.socket(at);
        socket.shut = true;
        socket.half.clear();
    }

    fn write_garbage(&mut self, at: At) {
        if self.is_shim(at) {
            let bytes = self.shim_garbage();
            self.note(Step::Act("writes garbage", at, bytes.len()));
            let socket = self.socket(at);
            if !socket.shut {
                socket.half.extend(bytes);
            }
            return;
        }
        let over = self.shape.tuning.stream_frame_max as usize + 1;
        let seq = match at {
            At::Agent(index) => self.some_seq(index),
            At::Client(index) if self.random.percent(50) => self.clients[index].base,
            At::Client(index) => self.clients[index].base + 1,
        };
        let len = self.random.pick(&[0, 11, HEADER, 40, over, u32::MAX as usize]);
        self.note(Step::Act("writes garbage", at, len));
        let socket = self.socket(at);
        if !socket.shut {
            socket.half.extend(header(seq, len));
        }
    }

    /// The peer falls silent in the middle of a frame and then dies.
    fn drop_unfinished(&mut self, at: At) {
        self.write_some(at);
        self.close_peer(at);
    }

    /// Everybody reads, nothing is short; some finish the frame they are in, others stay silent.
    pub(crate) fn heal(&mut self) {
        self.note(Step::Note("heal"));
        self.healed = true;
        for at in self.open_peers() {
            let silent = self.random.percent(50);
            let socket = self.socket(at);
            socket.reads = !socket.closed;
            socket.room = socket.room.max(UNIX_PIECE);
            let rest = std::mem::take(&mut socket.half);
            if !(silent || socket.shut) {
                socket.inbox.extend(rest);
            }
        }
    }

    /// Takes turns until nothing happens any more, and checks that nothing had to.
    pub(crate) fn come_to_rest(&mut self) {
        for _ in 0..REST_TURNS {
            let before = self.progress;
            self.turn();
            if self.progress == before && !self.attend() {
                return self.check_rest();
            }
        }
        panic!("no rest after {REST_TURNS} turns");
    }

    /// Everybody leaves, one after the other.
    pub(crate) fn farewell(&mut self) {
        self.note(Step::Note("farewell"));
        self.leaving = true;
        if self.random.percent(10) {
            self.drain();
        }
        while let peers = self.open_peers()
            && !peers.is_empty()
        {
            let at = self.random.pick(&peers);
            match self.random.below(3) {
                0 => self.close_peer(at),
                1 => self.kill_peer(at),
                _ if matches!(at, At::Client(_)) && !self.socket(at).shut => self.half_close(at),
                _ => self.close_peer(at),
            }
            self.turn();
        }
        self.come_to_rest();
        self.check_end();
    }
}
