//! What a session with a token is to the model: its shim's frames read byte by byte, its process's end, and what one
//! connection is owed besides output.
//!
//! Nothing of the plane's code is used here. The asymmetry to know: output is owed by the session, whoever has its
//! token; answers are owed to one connection and end with it.

use std::collections::VecDeque;

use ringway::limits::{
    CC2_MESSAGE_MAX, SEND_MAX, SHIM_INPUT_BUFFER, SHIM_MESSAGES_MAX, SHIM_REPLIES_BUFFER, STREAM_FRAME_MAX,
    TO_AGENT_BUFFER,
};
use ringway::relay::Gone;

use crate::model::{HEADER, Look, Owed};
use crate::peers::Client;

/// Types of frames.
pub(crate) const COMMAND: u8 = 0;
/// The command that gives the token up.
const DISCONNECT: u8 = 5;
pub(crate) const RESPONSE: u8 = 1;
pub(crate) const STREAM: u8 = 2;
pub(crate) const NOTIFICATION: u8 = 3;
/// Opcodes of streams that a shim may send.
pub(crate) const STDIN: u8 = 0;
pub(crate) const LOG: u8 = 3;
/// The flag of a response that reports an error.
pub(crate) const ERROR: u8 = 0x10;

/// A frame's header.
pub(crate) fn header(kind: u8, opcode: u8, payload: usize) -> [u8; HEADER] {
    let mut out = [0, 2, 3, 0, 0, 0, kind, opcode, 0, 0, 0, 0];
    out[8..].copy_from_slice(&u32::try_from(payload).expect("short").to_be_bytes());
    out
}

/// A frame whose header is so many words longer than it has to be.
pub(crate) fn frame(kind: u8, opcode: u8, extra: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = header(kind, opcode, payload.len()).to_vec();
    out[2] += extra;
    out.resize(HEADER + usize::from(extra) * 4, 0xEE);
    out.extend_from_slice(payload);
    out
}

/// What the front of a shim's bytes means.
#[derive(Debug)]
pub(crate) enum Token<'a> {
    Begin { kind: u8, opcode: u8, payload: usize },
    Payload(&'a [u8]),
    Fault,
}

/// Reads a shim's frames.
#[derive(Debug, Default)]
pub(crate) struct ShimReader {
    head: Vec<u8>,
    skip: usize,
    left: usize,
}

impl ShimReader {
    /// The next token of `bytes`, which it shortens; `None` when they are used up.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<Token<'a>> {
        loop {
            if bytes.is_empty() {
                return None;
            }
            let part = match (self.skip, self.left) {
                (0, 0) => HEADER - self.head.len(),
                (0, left) => left,
                (skip, _) => skip,
            };
            let (now, rest) = bytes.split_at(part.min(bytes.len()));
            *bytes = rest;
            if self.skip > 0 {
                self.skip -= now.len();
            } else if self.left > 0 {
                self.left -= now.len();
                return Some(Token::Payload(now));
            } else {
                self.head.extend_from_slice(now);
                if self.head.len() == HEADER {
                    return Some(self.whole_header());
                }
            }
        }
    }

    fn whole_header(&mut self) -> Token<'static> {
        let head = std::mem::take(&mut self.head);
        let (kind, error, opcode) = (head[6] & 0x0F, head[6] & ERROR != 0, head[7]);
        let payload = crate::model::length_at(&head);
        let (known, bound) = match (kind, opcode) {
            (COMMAND, 0..=6) | (STREAM, LOG) | (NOTIFICATION, _) => (true, CC2_MESSAGE_MAX),
            (STREAM, STDIN) => (true, STREAM_FRAME_MAX),
            _ => (false, 0),
        };
        if head[..2] != [0, 2] || head[2] < 3 || !known || error || payload > bound as usize {
            return Token::Fault;
        }
        (self.skip, self.left) = (usize::from(head[2] - 3) * 4, payload);
        Token::Begin { kind, opcode, payload }
    }
}

/// A message of a shim: its connection, type, opcode and payload.
pub(crate) type Message = (u64, u8, u8, Vec<u8>);

/// What a shim's frame in progress is.
#[derive(Debug, Default)]
pub(crate) enum Current {
    #[default]
    Ignored,
    Input,
    Message(Message, usize),
}

/// What only sessions with a token have.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) connection: Option<u64>,
    pub(crate) reader: ShimReader,
    pub(crate) current: Current,
    pub(crate) replies: Owed,
    /// Messages that must be reported.
    pub(crate) messages: VecDeque<Message>,
    pub(crate) unanswered: usize,
    pub(crate) started: bool,
    pub(crate) terminal: bool,
    pub(crate) ended: [bool; 2],
    pub(crate) status: Option<u8>,
    pub(crate) in_order: bool,
    pub(crate) told: bool,
    /// The next payload byte is the status.
    pub(crate) status_comes: bool,
    /// Its socket refused output.
    pub(crate) deaf: bool,
    pub(crate) released: bool,
    /// It has asked to give its token up: its session goes with it.
    pub(crate) leaving: bool,
    /// The loss that must be reported: connection, why, bytes at risk.
    pub(crate) lost: Option<(u64, Gone, u64)>,
    /// This connection sent input before the process ran; it was reported.
    pub(crate) input_waits: bool,
    pub(crate) told_waiting: bool,
    /// Output taken before this connection.
    pub(crate) taken_before: usize,
    pub(crate) maybe_unread: u64,
}

impl Shim {
    pub(crate) fn new() -> Shim {
        Shim {
            connection: None,
            reader: ShimReader::default(),
            current: Current::Ignored,
            replies: Owed::to_shim(usize::MAX),
            messages: VecDeque::new(),
            unanswered: 0,
            started: false,
            terminal: false,
            ended: [false; 2],
            status: None,
            in_order: false,
            told: false,
            status_comes: false,
            deaf: false,
            released: false,
            leaving: false,
            lost: None,
            input_waits: false,
            told_waiting: false,
            taken_before: 0,
            maybe_unread: 0,
        }
    }

    /// A connection begins.
    pub(crate) fn connect(&mut self, connection: u64, taken: usize) {
        self.connection = Some(connection);
        (self.reader, self.current) = (ShimReader::default(), Current::Ignored);
        self.replies = Owed::to_shim(usize::MAX);
        (self.unanswered, self.deaf, self.taken_before) = (0, false, taken);
        (self.input_waits, self.told_waiting) = (false, false);
    }

    /// It ends, and with it what it was owed.
    pub(crate) fn lose_connection(&mut self) {
        self.connection = None;
        self.replies.forgive();
        (self.unanswered, self.current) = (0, Current::Ignored);
    }

    /// The message in progress, if it is whole.
    pub(crate) fn finish_message(&mut self) {
        match std::mem::take(&mut self.current) {
            Current::Message(message, want) if message.3.len() == want => {
                self.unanswered += 1;
                self.leaving |= (message.1, message.2) == (COMMAND, DISCONNECT);
                self.messages.push_back(message);
            }
            other => self.current = other,
        }
    }
}

impl Client {
    /// An agent's frame for it.
    pub(crate) fn begin_output(&mut self, seq: u64, payload: usize) {
        let offset = usize::try_from(seq - self.base).expect("0 or 1");
        let Some(shim) = &mut self.shim else { return self.to_client.begin(Look::Hyper(seq), payload) };
        if payload == 0 {
            self.to_client.frames += 1;
            shim.ended[offset] = true;
        } else if payload == 1 && offset == 0 && shim.ended[0] {
            self.to_client.frames += 1;
            shim.status_comes = true;
        } else {
            self.to_client.begin(Look::Shim(if offset == 0 { 1 } else { 2 }), payload);
        }
        self.expect_exit();
    }

    pub(crate) fn more_output(&mut self, payload: &[u8]) {
        match self.shim.as_mut().filter(|shim| shim.status_comes) {
            Some(shim) => (shim.status, shim.in_order, shim.status_comes) = (Some(payload[0]), true, false),
            None => self.to_client.payload(payload),
        }
        self.expect_exit();
    }

    /// The exit status is owed as soon as it is known and the output is over.
    pub(crate) fn expect_exit(&mut self) {
        let Some(shim) = &mut self.shim else { return };
        let output_over = shim.ended[0] && (shim.ended[1] || shim.terminal);
        let Some(status) = shim.status.filter(|_| shim.in_order || output_over) else { return };
        if !shim.told && !shim.released && !self.to_client.is_open() {
            shim.told = true;
            self.to_client.push(&frame(NOTIFICATION, 0, 0, &[status]));
        }
    }

    /// Whether it takes nothing just now, or gets less than there is.
    pub(crate) fn is_behind(&self) -> bool {
        let replies = self.shim.as_ref().map_or(0, |shim| shim.replies.whole());
        let owed = self.to_client.whole() + replies;
        let is_more = self.socket.send.as_ref().is_some_and(|send| owed >= send.total + SEND_MAX);
        let is_given_up = self.shim.as_ref().is_some_and(|shim| shim.released);
        let is_kept = self.shim.as_ref().is_some_and(|shim| shim.connection.is_none() || shim.deaf);
        (self.socket.is_blocked() || is_more || (self.spilling && !is_kept)) && !is_given_up
    }

    /// The most it may owe its agent and be read.
    pub(crate) fn input_bound(&self) -> usize {
        if self.shim.is_some() { SHIM_INPUT_BUFFER } else { TO_AGENT_BUFFER }
    }

    /// Whether its shim asks more than is answered.
    pub(crate) fn is_overasked(&self) -> bool {
        let is_due =
            |shim: &Shim| shim.unanswered >= SHIM_MESSAGES_MAX as usize || shim.replies.owed() >= SHIM_REPLIES_BUFFER;
        self.shim.as_deref().is_some_and(is_due)
    }

    /// Whether there is reason not to read it, however much memory is left.
    pub(crate) fn input_is_full(&self) -> bool {
        let is_held = self.shim.as_ref().is_some_and(|shim| !shim.started);
        let bound = if is_held { SHIM_INPUT_BUFFER } else { TO_AGENT_BUFFER };
        self.to_agent.owed() >= bound || self.is_overasked()
    }

    /// Whether its token, if it has one, has a shim with nothing to wait for.
    pub(crate) fn is_served(&self) -> bool {
        let idle = |shim: &Shim| shim.connection.is_some() && shim.unanswered == 0 && shim.replies.whole() == 0;
        self.shim.as_ref().is_none_or(|shim| shim.started && idle(shim))
    }

    /// Everything that was to be reported of its shim was.
    pub(crate) fn check_told(&self) {
        let Some(shim) = &self.shim else { return };
        assert!(shim.lost.is_none(), "session {}: a lost connection is not reported", self.base);
        assert!(shim.messages.is_empty(), "session {}: a message is not reported", self.base);
    }
}
