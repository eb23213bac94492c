//! The peers of the fuzzed plane: what they sent, what they were sent, and whether that fits.
//!
//! Byte n of a stream is always the same, so a stream that was sent needs no copy to be compared with. The asymmetry
//! to know: a peer that sent garbage may mean anything by it, so only the framing of what comes of it is checked.

use std::collections::VecDeque;

use crate::buf::BufView;
use crate::limits::{CC1_FRAME_MAX, CC2_FRAME_MAX, CHUNK_LEN};
use crate::relay::{LinkId, SessionId};
use crate::wire::cc2::{self, Kind};
use crate::wire::hyper::{FRAME_HEADER_LEN, FrameHeader, StreamSeq};

/// One direction of one sequence: how much was sent, how much came out.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Flow {
    sent: u64,
    got: u64,
}

impl Flow {
    /// The next `len` bytes that its sender sends.
    pub(super) fn send(&mut self, len: usize) -> Vec<u8> {
        let begin = self.sent;
        self.sent += len as u64;
        (begin..self.sent).map(byte).collect()
    }

    /// Its receiver was sent these bytes; unless they may be anything, they are the next ones.
    fn receive(&mut self, bytes: &[u8], is_known: bool) {
        for (&got, at) in bytes.iter().zip(self.got..) {
            assert!(!is_known || got == byte(at), "byte {at} of a stream is another");
        }
        self.got += bytes.len() as u64;
        assert!(!is_known || self.got <= self.sent, "more came out than was sent");
    }

    /// Everything came out.
    pub(super) fn check_whole(self) {
        assert_eq!(self.got, self.sent, "bytes that came out, and that were sent");
    }
}

/// Byte `at` of every stream. 251 is prime, so that no buffer's length hides a shift.
fn byte(at: u64) -> u8 {
    (at % 251).to_le_bytes()[0]
}

/// A send in flight. It holds a reference to each view.
#[derive(Debug)]
pub(super) struct Send {
    pub(super) views: Vec<BufView>,
    pub(super) bytes: Vec<u8>,
}

/// One socket of the shard, and the peer's end of it.
#[derive(Debug, Default)]
pub(super) struct Socket {
    pub(super) open: bool,
    /// Sent by the peer, not received yet.
    pub(super) inbox: Vec<u8>,
    pub(super) paused: bool,
    /// Receives that the last pause came too late for.
    pub(super) late: u8,
    /// The peer sends no more.
    pub(super) ended: bool,
    pub(super) watches_room: bool,
    pub(super) send: Option<Send>,
    /// Sent to the peer, and no whole frame yet.
    pub(super) torn: Vec<u8>,
}

impl Socket {
    /// A connected one.
    pub(super) fn connected() -> Socket {
        Socket { open: true, ..Socket::default() }
    }
}

/// One VM's stream channel.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) socket: Socket,
    pub(super) vm: u64,
    pub(super) link: LinkId,
    /// It has reason to be closed.
    pub(super) doomed: bool,
    /// It has sent garbage.
    pub(super) wild: bool,
}

/// One session and its client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Socket,
    pub(super) session: SessionId,
    pub(super) base: u64,
    pub(super) streams: u8,
    pub(super) agent: usize,
    /// What only sessions with a token have.
    pub(super) shim: Option<Shim>,
    pub(super) to_client: [Flow; 2],
    pub(super) to_agent: Flow,
    /// Its session has not ended.
    pub(super) alive: bool,
    /// Its socket has reason to be closed.
    pub(super) doomed: bool,
    /// Its socket refused output.
    pub(super) deaf: bool,
    /// What its agent sends must reach it.
    pub(super) hears: bool,
    /// What it sends must reach its agent.
    pub(super) speaks: bool,
    /// What comes from it may be anything.
    pub(super) wild: bool,
}

/// What only sessions with a token have.
#[derive(Debug, Default)]
pub(super) struct Shim {
    pub(super) connection: Option<u64>,
    pub(super) started: bool,
    pub(super) released: bool,
    pub(super) stdout_ended: bool,
    exit_told: bool,
    /// Answers this connection is owed.
    pub(super) replies: VecDeque<Vec<u8>>,
    /// Messages that must be reported.
    pub(super) messages: VecDeque<cc2::Frame>,
}

impl Client {
    /// A frame of its agent for it, of `len` bytes of payload.
    pub(super) fn frame_for_it(&mut self, stream: u8, len: usize) -> Vec<u8> {
        let is_status = stream == 0 && len == 1 && self.shim.as_ref().is_some_and(|shim| shim.stdout_ended);
        if let Some(shim) = self.shim.as_mut().filter(|_| stream == 0 && len == 0) {
            shim.stdout_ended = true;
        }
        let payload = if is_status { vec![7] } else { self.to_client[usize::from(stream)].send(len) };
        hyper(self.base + u64::from(stream), &payload)
    }

    /// Input of its own, of `len` bytes of payload.
    pub(super) fn input(&mut self, len: usize) -> Vec<u8> {
        let payload = self.to_agent.send(len);
        match self.shim {
            Some(_) => cc2::encode(Kind::Stream(cc2::Stream::Stdin), &payload),
            None => hyper(self.base, &payload),
        }
    }

    /// A send to it begins: with the rest of an answer, or with a frame that it may have.
    pub(super) fn check_may_be_sent(&self, bytes: &[u8]) {
        let given_up = self.shim.as_ref().is_some_and(|shim| shim.released);
        if given_up && self.socket.torn.is_empty() {
            let header = bytes.first_chunk().map(|head| cc2::Header::decode(*head));
            let is_answer = matches!(header, Some(Ok(cc2::Header { kind: Kind::Response { .. }, .. })));
            assert!(is_answer, "output for a token that was given up");
        }
    }

    /// It was sent these bytes; `is_known`: what its agent sends is no garbage.
    pub(super) fn take(&mut self, bytes: &[u8], is_known: bool) {
        self.socket.torn.extend_from_slice(bytes);
        let torn = std::mem::take(&mut self.socket.torn);
        let mut rest = &torn[..];
        while let Some(taken) =
            if self.shim.is_some() { self.shim_frame(rest, is_known) } else { self.frame(rest, is_known) }
        {
            rest = &rest[taken..];
        }
        self.socket.torn = rest.to_vec();
    }

    /// Looks at the frame at the front of `bytes`, if there is a whole one; returns its length.
    fn frame(&mut self, bytes: &[u8], is_known: bool) -> Option<usize> {
        let (seq, payload) = whole_frame(bytes, CC1_FRAME_MAX)?;
        let stream = seq.checked_sub(self.base).filter(|&stream| stream < u64::from(self.streams));
        let stream = usize::from(stream.expect("a sequence of its own") == 1);
        self.to_client[stream].receive(payload, is_known);
        Some(FRAME_HEADER_LEN + payload.len())
    }

    fn shim_frame(&mut self, bytes: &[u8], is_known: bool) -> Option<usize> {
        let (head, rest) = bytes.split_first_chunk()?;
        let header = cc2::Header::decode(*head).expect("a header that a shim can read");
        let payload = rest.get(..header.payload as usize)?;
        let len = cc2::HEADER_LEN + payload.len();
        let shim = self.shim.as_mut().expect("a session with a token");
        match header.kind {
            Kind::Stream(stream @ (cc2::Stream::Stdout | cc2::Stream::Stderr)) => {
                assert!(len <= CC2_FRAME_MAX as usize && header.extra == 0);
                self.to_client[usize::from(stream == cc2::Stream::Stderr)].receive(payload, is_known);
            }
            Kind::Notification(cc2::PROCESS_EXITED) => {
                assert!(payload.len() == 1 && !std::mem::replace(&mut shim.exit_told, true), "an exit told twice");
            }
            _ => assert_eq!(shim.replies.pop_front().as_deref(), bytes.get(..len), "the answers, in order"),
        }
        Some(len)
    }

    /// Bytes of answers its connection is owed.
    pub(super) fn owed_answers(&self) -> usize {
        self.shim.as_ref().map_or(0, |shim| shim.replies.iter().map(|reply| reply.len().max(CHUNK_LEN)).sum())
    }

    /// Its connection is closed, whatever was under way.
    pub(super) fn close(&mut self) -> Option<Send> {
        let send = std::mem::take(&mut self.socket).send;
        if let Some(shim) = &mut self.shim {
            (shim.connection, shim.replies) = (None, VecDeque::new());
            shim.messages.clear();
        }
        send
    }
}

/// A stream frame's bytes.
pub(super) fn hyper(seq: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a short frame");
    [&FrameHeader::for_payload(StreamSeq(seq), len).encode()[..], payload].concat()
}

/// The sequence and payload of the frame at the front of `bytes`, of at most `max` bytes, if it is whole.
fn whole_frame(bytes: &[u8], max: u32) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk()?;
    let header = FrameHeader::decode(*head, max).expect("a header that its receiver accepts");
    Some((header.seq.0, rest.get(..header.payload_len() as usize)?))
}

/// An agent was sent `bytes` behind those of `torn`: frames of at most `max` bytes, of its own sessions.
pub(super) fn agent_takes(index: usize, torn: &mut Vec<u8>, bytes: &[u8], max: u32, clients: &mut [Client]) {
    torn.extend_from_slice(bytes);
    let mut taken = 0;
    while let Some((seq, payload)) = whole_frame(&torn[taken..], max) {
        let client = clients.iter_mut().find(|client| client.base == seq).expect("a session's first sequence");
        assert_eq!(client.agent, index, "input for another agent");
        assert!(client.shim.as_ref().is_none_or(|shim| shim.started), "input before its process runs");
        // What one shim left unsent is missing before what the next one sends.
        let is_known = !client.wild && (client.speaks || client.shim.is_none());
        client.to_agent.receive(payload, is_known);
        taken += FRAME_HEADER_LEN + payload.len();
    }
    torn.drain(..taken);
}
