//! Sessions with tokens: the coordinator's orders and the plane's reports, each held against the model.
//!
//! Orders are obeyed between completions and their effects follow at once, as on a shard. The asymmetry to know: a
//! connection that is lost costs its session nothing but what the connection itself was owed.

use ringway::buf::{BufView, Source};
use ringway::limits::{CHUNK_LEN, SEND_MAX, SHIM_AT_RISK};
use ringway::relay::{Gone, Peer, Report, Sent};
use ringway::wire::cc2::{Kind, Stream};

use crate::kernel::UNIX_PIECE;
use crate::model::{HEADER, Look, length_at};
use crate::peers::{At, SendOp, Socket};
use crate::shim::{COMMAND, Current, LOG, NOTIFICATION, STDIN, STREAM, Shim, Token};
use crate::world::{Step, World};

impl World {
    pub(crate) fn is_shim(&self, at: At) -> bool {
        matches!(at, At::Client(index) if self.clients[index].shim.is_some())
    }

    pub(crate) fn shim(&mut self, index: usize) -> &mut Shim {
        self.clients[index].shim.as_mut().expect("a session with a token")
    }

    /// A shim that has sent `unparsed` so far claims the token. Its connection, if it gets it.
    pub(crate) fn connect_shim(&mut self, index: usize, reply: &[u8], unparsed: &[u8]) -> Option<u64> {
        let connection = self.next_connection;
        self.next_connection += 1;
        self.note(Step::Order(format!("connect {connection}"), index));
        let client = &mut self.clients[index];
        let room = self.shape.client_room.max(UNIX_PIECE);
        let shim = client.shim.as_mut().expect("a session with a token");
        let free = shim.connection.is_none() && !shim.released && !shim.leaving && !self.agents[client.agent].doomed;
        if free {
            shim.connect(connection, client.to_client.reported);
            shim.replies.push(reply);
            client.socket = Socket::new(true, room);
            client.speaks = true;
        }
        let got = self.plane.connect_shim(&mut self.mem, client.session, connection, reply);
        assert_eq!(got, free, "client {index}: a token that is free is given, and no other");
        if !got {
            return None;
        }
        self.obeyed(index);
        for piece in unparsed.chunks(CHUNK_LEN) {
            if !self.clients[index].socket.open {
                break;
            }
            self.feed(index, piece);
        }
        Some(connection)
    }

    fn feed(&mut self, index: usize, piece: &[u8]) {
        self.fed += 1;
        let chunk = self.mem.chunks.take();
        self.mem.chunks.write(chunk, 0, piece);
        let source = Source::Chunk(chunk);
        self.expect_from_client(index, piece);
        let view = BufView { source, off: 0, len: u32::try_from(piece.len()).expect("short") };
        self.plane.received(&mut self.mem, Peer::Client(self.clients[index].session), view);
        self.mem.release(source);
        self.obeyed(index);
    }

    pub(crate) fn answer_shim(&mut self, index: usize, connection: u64, reply: &[u8]) {
        self.note(Step::Order(format!("answer {connection} with {}", reply.len()), index));
        let client = &mut self.clients[index];
        let shim = client.shim.as_mut().expect("a session with a token");
        if shim.connection == Some(connection) {
            shim.unanswered = shim.unanswered.saturating_sub(1);
            if !shim.deaf {
                shim.replies.push(reply);
            }
        }
        self.plane.answer_shim(&mut self.mem, client.session, connection, reply);
        self.obeyed(index);
    }

    pub(crate) fn release_token(&mut self, index: usize, reply: &[u8]) {
        self.note(Step::Order(format!("release with {}", reply.len()), index));
        let client = &mut self.clients[index];
        let session = client.session;
        let shim = client.shim.as_mut().expect("a session with a token");
        let listens = shim.connection.is_some() && !shim.deaf;
        (shim.released, client.hears) = (true, false);
        if listens {
            shim.replies.push(reply);
        }
        if !listens || shim.replies.whole() == 0 {
            self.expect_client_death(index);
        }
        self.plane.release_token(&mut self.mem, session, reply);
        self.obeyed(index);
    }

    pub(crate) fn drop_shim(&mut self, index: usize, connection: u64, why: Gone) {
        self.note(Step::Order(format!("drop {connection}"), index));
        let session = self.clients[index].session;
        let shim = self.shim(index);
        if shim.connection == Some(connection) {
            if !shim.started {
                self.clients[index].to_agent.forgive();
            }
            self.expect_shim_gone(index, why.clone());
        }
        self.plane.drop_shim(&mut self.mem, session, connection, why);
        self.obeyed(index);
    }

    pub(crate) fn started(&mut self, index: usize, terminal: bool) {
        self.note(Step::Order(format!("started, terminal {terminal}"), index));
        let shim = self.shim(index);
        (shim.started, shim.terminal) = (true, terminal);
        self.clients[index].expect_exit();
        self.plane.started(&mut self.mem, self.clients[index].session, terminal);
        self.obeyed(index);
    }

    pub(crate) fn exited(&mut self, index: usize, status: u8) {
        self.note(Step::Order(format!("exited with {status}"), index));
        self.shim(index).status = Some(status);
        self.clients[index].expect_exit();
        self.plane.exited(&mut self.mem, self.clients[index].session, status);
        self.obeyed(index);
    }

    /// Carries out what an order led to.
    fn obeyed(&mut self, index: usize) {
        self.progress += 1;
        self.carry_out(At::Client(index));
    }

    pub(crate) fn expect_from_shim(&mut self, index: usize, mut bytes: &[u8]) {
        let client = &mut self.clients[index];
        let owed_before = client.to_agent.whole();
        let shim = client.shim.as_mut().expect("a session with a token");
        let connection = shim.connection.expect("bytes of a shim that is there");
        while let Some(token) = shim.reader.next(&mut bytes) {
            match (token, &mut shim.current) {
                (Token::Begin { kind: STREAM, opcode: STDIN, payload }, current) => {
                    *current = Current::Input;
                    client.to_agent.begin(Look::Hyper(client.base), payload);
                }
                (Token::Begin { kind: NOTIFICATION, .. }, current) => *current = Current::Ignored,
                (Token::Begin { kind, opcode, payload }, current) => {
                    *current = Current::Message((connection, kind, opcode, Vec::new()), payload);
                    shim.finish_message();
                }
                (Token::Payload(_), Current::Ignored) => {}
                (Token::Payload(payload), Current::Input) => client.to_agent.payload(payload),
                (Token::Payload(payload), Current::Message(message, _)) => {
                    message.3.extend_from_slice(payload);
                    shim.finish_message();
                }
                (Token::Fault, _) => {
                    let any = ringway::wire::DecodeError::Version(0);
                    return self.expect_shim_gone(index, Gone::Fault(any));
                }
            }
        }
        shim.input_waits |= !shim.started && client.to_agent.whole() > owed_before;
    }

    /// A shim's connection is lost; its session goes on if it may.
    pub(crate) fn expect_shim_gone(&mut self, index: usize, why: Gone) {
        let client = &mut self.clients[index];
        let shim = client.shim.as_mut().expect("a session with a token");
        if shim.released || shim.leaving || self.agents[client.agent].doomed {
            return self.expect_client_death(index);
        }
        let connection = shim.connection.expect("a shim that is there");
        let at_risk = SHIM_AT_RISK.min((client.to_client.reported - shim.taken_before) as u64);
        shim.lost = Some((connection, why, at_risk));
        shim.maybe_unread += at_risk;
        shim.lose_connection();
        (client.doomed, client.speaks) = (true, false);
        client.to_agent.cut_off();
        client.to_client.rewind();
    }

    /// A shim that is gone and may be given up before its last bytes were read: one direction is not read because of
    /// the other. How full memory was when that was decided is not known any more.
    pub(crate) fn is_stuck(&self, index: usize) -> bool {
        let client = &self.clients[index];
        let deaf = client.shim.as_ref().is_some_and(|shim| shim.deaf && shim.connection.is_some());
        let owes = client.to_client.owed() > 0 || client.to_agent.owed() > 0;
        deaf && !client.doomed && (owes || client.is_overasked())
    }

    /// The VM of a session is gone: a shim that listens gets what there is, and nobody else anything.
    pub(crate) fn expect_link_gone(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let Some(shim) = client.shim.as_ref().filter(|_| !client.reported_ended) else { return };
        if shim.connection.is_none() || shim.deaf {
            let speaks = client.speaks;
            self.expect_client_death(index);
            // It may be read again before it is closed.
            self.clients[index].speaks = speaks;
            return;
        }
        client.expect_exit();
    }

    pub(crate) fn expect_sent_to_shim(&mut self, index: usize, send: &SendOp, sent: &Sent) {
        let client = &mut self.clients[index];
        let shim = client.shim.as_mut().expect("a session with a token");
        if send.replies {
            shim.replies.report();
        } else {
            client.to_client.report();
        }
        let done = shim.released && shim.replies.whole() == 0;
        if matches!(sent, Sent::Failed(_)) {
            if self.agents[client.agent].doomed || shim.released || shim.leaving {
                return self.expect_client_death(index);
            }
            shim.deaf = true;
            shim.replies.forgive();
            client.to_client.rewind();
        } else if done {
            self.expect_client_death(index);
        }
    }

    /// Checks a send to a shim; whether it is of answers.
    pub(crate) fn plan_to_shim(&mut self, index: usize, bytes: &[u8]) -> bool {
        let client = &mut self.clients[index];
        let shim = client.shim.as_mut().expect("a session with a token");
        assert!(shim.connection.is_some() && !shim.deaf, "a send to a shim that is not there");
        assert_eq!(client.to_client.torn(), 0, "an output frame of which a part was taken");
        let torn = shim.replies.torn();
        let is_output = |bytes: &[u8]| bytes[6] == STREAM || (bytes[6], bytes[7]) == (NOTIFICATION, 0);
        let replies = torn > 0 || !is_output(bytes);
        let mut end = torn.min(bytes.len());
        while end < bytes.len() {
            assert!(bytes.len() - end >= HEADER, "a send ends inside a header");
            assert!(replies != is_output(&bytes[end..]), "answers and output in one send");
            let len = HEADER + length_at(&bytes[end..]);
            let goes_on = len > SEND_MAX && bytes.len() - end < len;
            end = if goes_on { bytes.len() } else { end + len };
        }
        assert_eq!(end, bytes.len(), "a send to a shim ends inside a frame");
        if replies {
            shim.replies.plan(bytes);
        } else {
            assert!(!shim.released, "output for a token that was given up");
            client.to_client.plan(bytes);
        }
        replies
    }

    pub(crate) fn report_of_shim(&mut self, report: Report) {
        match report {
            Report::ShimMessage { base, connection, frame } => {
                let index = self.seqs[&base.0];
                let want = self.shim(index).messages.pop_front().expect("a message that was sent");
                let (kind, opcode) = match frame.kind {
                    Kind::Command(command) => (COMMAND, command as u8),
                    Kind::Stream(Stream::Log) => (STREAM, LOG),
                    other => panic!("{other:?} is no message"),
                };
                assert!(want == (connection, kind, opcode, frame.payload), "another message than was sent");
            }
            Report::ShimGone { base, connection, why, at_risk } => {
                let index = self.seqs[&base.0];
                let client = &mut self.clients[index];
                let shim = client.shim.as_mut().expect("a session with a token");
                let (want, cause, risk) = shim.lost.take().expect("a connection that was lost");
                assert_eq!((connection, at_risk), (want, risk), "the connection lost and what it may have cost");
                assert!(why == cause || (why.is_fault() && cause.is_fault()), "lost by {why}, not by {cause}");
                assert!(!client.socket.open, "a connection is lost and not closed");
                client.doomed = false;
            }
            Report::InputWaits { base, connection } => {
                let index = self.seqs[&base.0];
                let owes = self.clients[index].to_agent.whole() > 0;
                let shim = self.shim(index);
                assert!(owes && !shim.started && !shim.told_waiting, "no input waits, or it was told");
                assert_eq!(shim.connection, Some(connection), "input of another connection waits");
                shim.told_waiting = true;
            }
            other => panic!("not about a shim: {other:?}"),
        }
    }

    /// After a turn: input that waits for its process was reported.
    pub(crate) fn check_input_waits(&self, index: usize) {
        let client = &self.clients[index];
        let Some(shim) = client.shim.as_ref().filter(|shim| !shim.started && shim.connection.is_some()) else { return };
        let waits = shim.input_waits && !self.agents[client.agent].doomed;
        assert!(!waits || shim.told_waiting, "client {index}: its input waits, and nobody was told");
    }

    /// Chunks that answers may occupy.
    pub(crate) fn chunks_of_replies(&self) -> usize {
        let shims = self.clients.iter().filter_map(|client| client.shim.as_ref());
        shims.map(|shim| 3 + 2 * shim.replies.owed() / CHUNK_LEN).sum()
    }
}
