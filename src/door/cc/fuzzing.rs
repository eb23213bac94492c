//! What holds for the conversation of any client, whatever it sends: the rules of both protocols, driven as the
//! daemon drives them, with a coordinator that knows one VM and every command.
//!
//! The asymmetry to know: a protocol 2 client may become a shim, and then the rules of its shard go on from the very
//! byte where these stop.

use std::ops::Range;

use super::commands::{self, Said};
use super::requests::{Ask, Refusal};
use crate::buf::{BufView, ChunkPool, Direction, Leases, Memory, Source};
use crate::coordinator::RequestError;
use crate::limits::{AGENT_FRAME_DEFAULT, CC1_MESSAGE_MAX, CHUNK_LEN, ECHO_MAX, STREAM_FRAME_MAX};
use crate::relay::{Effect, Peer, Plane, Report, Sent, SessionId, Tuning};
use crate::wire::DecodeError;
use crate::wire::cc1::{self, Request, Response};
use crate::wire::cc2::{self, Command, Decoder, Frame, Kind};
use crate::wire::fuzzing::{bytes, uneven, whole};
use crate::wire::hyper::{Code, FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// The one VM there is.
const VM: &str = "c";
/// Bytes of an error beside what it repeats of a request.
const WORDS_MAX: usize = 256;

/// Protocol 1: every request has one response, in order, which its client can read and which repeats little of what it
/// sent; pieces do not matter.
pub fn cc1_conversation(data: &[u8]) {
    let (requests, responses, end) = messages(whole(data));
    for pieces in [bytes(data), uneven(data)] {
        assert_eq!(messages(pieces), (requests, responses.clone(), end.clone()), "pieces change the conversation");
    }
    let mut decoder = cc1::Decoder::new(usize::MAX);
    decoder.push(&responses);
    for _ in 0..requests {
        let response: Response = decoder.next_message().expect("what we write").expect("a response to each request");
        assert_eq!(response.success, response.error.is_empty(), "an error has a text");
        assert!(response.error.len() <= ECHO_MAX + WORDS_MAX, "{} bytes of error", response.error.len());
    }
    assert_eq!(decoder.pending(), 0, "a response to nothing");
}

/// The number of requests in `pieces`, the bytes that answer them, and why the connection ends, if it does.
fn messages(pieces: Vec<&[u8]>) -> (usize, Vec<u8>, Option<DecodeError>) {
    let (mut decoder, mut requests, mut responses) = (cc1::Decoder::new(CC1_MESSAGE_MAX), 0, Vec::new());
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_message::<Request>() {
                Ok(Some(request)) => {
                    requests += 1;
                    responses.extend(cc1::encode(&answer(Ask::of(&request))));
                }
                Ok(None) => break,
                Err(fault) => return (requests, responses, Some(fault)),
            }
        }
    }
    (requests, responses, None)
}

fn answer(asked: Result<Ask, Refusal>) -> Response {
    match asked {
        Ok(Ask::Attach(named) | Ask::Bye(named)) if named.container_id != VM => {
            Response::fail(RequestError::Unknown(named.container_id).to_string())
        }
        Ok(Ask::Hyper(asked)) if Code::from_name(&asked.hyper_name).is_none() => {
            Response::fail(RequestError::UnknownCommand(asked.hyper_name).to_string())
        }
        Ok(Ask::Hello(_) | Ask::Attach(_)) => Response::version(),
        Ok(Ask::AllocateIo(_)) => Response::io_base(1),
        Ok(Ask::Hyper(_) | Ask::Bye(_)) => Response::ok(),
        Err(Refusal(error)) => Response::fail(error),
    }
}

/// Protocol 2: every command has one response, in order; a shim's input reaches its agent and its commands the
/// coordinator; pieces do not matter.
pub fn cc2_conversation(data: &[u8]) {
    let outcome = Conversation::of(whole(data));
    for pieces in [bytes(data), uneven(data)] {
        assert!(Conversation::of(pieces).agrees_with(&outcome), "pieces change the conversation: {outcome:?}");
    }
    let Outcome { commands, to_client, to_agent, is_cut_off, .. } = outcome;
    let mut decoder = Decoder::default();
    decoder.push(&to_client);
    for asked in commands {
        let Some(Frame { kind, payload }) = decoder.next_frame().expect("what we write") else {
            assert!(is_cut_off, "a response to each command");
            break;
        };
        let Kind::Response { command, error } = kind else { panic!("{kind:?} is no response") };
        assert_eq!(command, asked, "responses in order");
        assert_eq!(error, !payload.is_empty(), "an error has a text");
        assert!(payload.len() <= ECHO_MAX + WORDS_MAX, "{} bytes of error", payload.len());
    }
    assert!(decoder.rest().is_empty(), "a response to nothing");
    let mut rest = &to_agent[..];
    while let Some((head, after)) = rest.split_first_chunk::<FRAME_HEADER_LEN>() {
        let header = FrameHeader::decode(*head, AGENT_FRAME_DEFAULT).expect("a frame that agents accept");
        assert_eq!(header.seq, BASE, "a frame of this session");
        rest = &after[header.payload_len() as usize..];
    }
}

/// The session whose token a client claims, whatever the token.
const BASE: StreamSeq = StreamSeq(1);

/// What came of a conversation.
#[derive(Debug, Default)]
struct Outcome {
    /// What was asked, in order.
    commands: Vec<Command>,
    to_client: Vec<u8>,
    to_agent: Vec<u8>,
    fault: Option<DecodeError>,
    /// A shim broke the protocol: answers that it had not been sent are lost.
    is_cut_off: bool,
}

impl Outcome {
    /// Whether both are the same, but for answers lost with the connection.
    fn agrees_with(&self, other: &Outcome) -> bool {
        let lost = |a: &Outcome, b: &Outcome| a.is_cut_off && b.to_client.starts_with(&a.to_client);
        let answers = self.to_client == other.to_client || lost(self, other) || lost(other, self);
        let said = |outcome: &Outcome| (outcome.commands.clone(), outcome.to_agent.clone(), outcome.fault.clone());
        answers && said(self) == said(other)
    }
}

/// One connection of protocol 2, from its first byte.
#[derive(Debug)]
struct Conversation {
    decoder: Decoder,
    plane: Plane,
    mem: Memory<NoBuffers>,
    session: SessionId,
    is_shim: bool,
    is_over: bool,
    /// A message of a shim ended the conversation. Input behind it may have been received with it, or never.
    was_ended_by_shim: bool,
    outcome: Outcome,
}

impl Conversation {
    fn of(pieces: Vec<&[u8]>) -> Outcome {
        let mut plane = Plane::new(Tuning {
            agent_frame_max: AGENT_FRAME_DEFAULT,
            stream_frame_max: STREAM_FRAME_MAX,
            session_buffer: usize::MAX,
            total_buffer: usize::MAX,
        });
        let link = plane.open_link(1);
        let session = plane.open_token(link, BASE);
        let mut conversation = Conversation {
            decoder: Decoder::default(),
            plane,
            mem: Memory { leases: NoBuffers, chunks: ChunkPool::default() },
            session,
            is_shim: false,
            is_over: false,
            was_ended_by_shim: false,
            outcome: Outcome::default(),
        };
        conversation.plane.started(&mut conversation.mem, session, false);
        for piece in pieces {
            match conversation.is_shim {
                true => conversation.feed(piece),
                false => conversation.receive(piece),
            }
        }
        if conversation.was_ended_by_shim {
            conversation.outcome.to_agent.clear();
        }
        conversation.outcome
    }

    /// Bytes of a client that is no shim yet.
    fn receive(&mut self, piece: &[u8]) {
        self.decoder.push(piece);
        while !self.is_over {
            match commands::next_frame(&mut self.decoder) {
                Ok(Some(frame)) => {
                    let answer = self.hear(&frame);
                    if self.is_shim {
                        let unparsed = std::mem::take(&mut self.decoder).rest().to_vec();
                        assert!(self.plane.connect_shim(&mut self.mem, self.session, 1, &answer));
                        self.carry_out();
                        return self.feed(&unparsed);
                    }
                    self.outcome.to_client.extend(answer);
                }
                Ok(None) => return,
                Err(fault) => self.end(fault),
            }
        }
    }

    fn end(&mut self, fault: DecodeError) {
        (self.is_over, self.outcome.fault) = (true, Some(fault));
    }

    /// Does what a frame says, and returns what answers it.
    fn hear(&mut self, frame: &Frame) -> Vec<u8> {
        let (command, asked) = match commands::read(frame, self.is_shim) {
            Ok(Said::Asked(command, asked)) => (command, asked),
            Ok(Said::Log(_) | Said::News(_)) => return Vec::new(),
            Err(fault) => {
                self.end(fault);
                return Vec::new();
            }
        };
        self.outcome.commands.push(command);
        self.is_shim |= matches!(asked, Ok(commands::Ask::Connect(_)));
        match asked.and_then(obey) {
            Ok(()) => cc2::encode(Kind::Response { command, error: false }, b""),
            Err(Refusal(error)) => cc2::encode(Kind::Response { command, error: true }, error.as_bytes()),
        }
    }

    /// Bytes of a shim.
    fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK_LEN).filter(|piece| !piece.is_empty()) {
            if self.is_over {
                return;
            }
            let (chunk, len) = (self.mem.chunks.take(), u32::try_from(piece.len()).expect("one chunk"));
            self.mem.chunks.write(chunk, 0, piece);
            let source = Source::Chunk(chunk);
            self.plane.received(&mut self.mem, Peer::Client(self.session), BufView { source, off: 0, len });
            self.mem.release(source);
            self.carry_out();
        }
    }

    /// Carries out what the plane asks for, until it asks for nothing: peers take everything.
    fn carry_out(&mut self) {
        let mut effects = Vec::new();
        loop {
            self.plane.take_effects(&mut effects);
            if effects.is_empty() {
                self.plane.flush(&mut self.mem);
                self.plane.take_effects(&mut effects);
            }
            if effects.is_empty() {
                return;
            }
            for effect in effects.drain(..) {
                self.carry_out_one(effect);
            }
            self.plane.clear_views();
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Send { peer, views, .. } => {
                let views = self.plane.views(views).to_vec();
                let bytes: Vec<u8> = views.iter().flat_map(|&view| self.mem.bytes(view)).copied().collect();
                match peer {
                    Peer::Agent(_) => self.outcome.to_agent.extend_from_slice(&bytes),
                    Peer::Client(_) => self.outcome.to_client.extend_from_slice(&bytes),
                }
                self.plane.sent(&mut self.mem, peer, Sent::Taken(bytes.len()));
            }
            Effect::Report(Report::ShimMessage { connection, frame, .. }) if !self.is_over => {
                let is_release = frame.kind == Kind::Command(Command::DisconnectShim);
                let answer = self.hear(&frame);
                self.plane.answer_shim(&mut self.mem, self.session, connection, &answer);
                self.is_over |= is_release;
                self.was_ended_by_shim |= self.is_over;
            }
            Effect::Close(Peer::Client(_)) => (self.is_over, self.outcome.is_cut_off) = (true, true),
            _ => {}
        }
    }
}

/// Does what is asked for, if it can be done here.
fn obey(ask: commands::Ask) -> Result<(), Refusal> {
    match ask {
        commands::Ask::Unregister(named) | commands::Ask::Attach(named) if named.container_id != VM => {
            Err(RequestError::Unknown(named.container_id).into())
        }
        commands::Ask::Hyper(asked) if Code::from_name(&asked.hyper_name).is_none() => {
            Err(RequestError::UnknownCommand(asked.hyper_name).into())
        }
        commands::Ask::Hyper(cc2::Hyper { mut tokens, .. }) if !tokens.is_empty() => {
            Err(RequestError::UnknownToken(tokens.remove(0)).into())
        }
        _ => Ok(()),
    }
}

/// No receive buffers: what a client sends is in chunks.
#[derive(Debug)]
struct NoBuffers;

impl Leases for NoBuffers {
    fn bytes(&self, _: Direction, _: u16, _: Range<usize>) -> &[u8] {
        unreachable!("nothing is in a receive buffer")
    }

    fn bytes_mut(&mut self, _: Direction, _: u16, _: Range<usize>) -> &mut [u8] {
        unreachable!("nothing is in a receive buffer")
    }

    fn is_scarce(&self, _: Direction) -> bool {
        false
    }

    fn retain(&mut self, _: Direction, _: u16) {
        unreachable!("nothing is in a receive buffer")
    }

    fn release(&mut self, _: Direction, _: u16) {
        unreachable!("nothing is in a receive buffer")
    }
}
