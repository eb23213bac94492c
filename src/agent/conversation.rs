//! The rules of one control channel connection: bytes in, steps out, answers in the order of the commands.
//!
//! Nothing here acts or waits. The asymmetry to know: an ERROR answers one command and the conversation goes on;
//! an `Err` from [`Conversation::next_step`] is the end of the connection.

use std::collections::VecDeque;

use crate::wire::DecodeError;
use crate::wire::hyper::{Code, MESSAGE_HEADER_LEN, Message, MessageDecoder};

use super::command::{Command, Refusal};

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Send this to the host.
    Say(Message),
    /// Run this, then hand its answer to the host, then ask for the next step.
    Run(Command),
}

/// One connection's state.
#[derive(Debug)]
pub(super) struct Conversation {
    decoder: MessageDecoder,
    announce_reads: bool,
    /// What follows from the message just taken: at most two NEXT and one step.
    waiting: VecDeque<Step>,
}

impl Conversation {
    /// Takes messages of up to `max` bytes; with `announce_reads` each is followed by NEXT messages, one for its
    /// header and one for its payload, as the C agents do.
    pub(super) fn new(max: usize, announce_reads: bool) -> Conversation {
        Conversation { decoder: MessageDecoder::new(max), announce_reads, waiting: VecDeque::new() }
    }

    /// Adds received bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// Whether a message has begun and not ended.
    pub(super) fn is_mid_message(&self) -> bool {
        self.decoder.is_mid_message()
    }

    /// The next step; `None` until more bytes come.
    pub(super) fn next_step(&mut self) -> Result<Option<Step>, DecodeError> {
        if let Some(step) = self.waiting.pop_front() {
            return Ok(Some(step));
        }
        let Some(message) = self.decoder.next_message()? else { return Ok(None) };
        if self.announce_reads {
            self.waiting.push_back(Step::Say(read_bytes(MESSAGE_HEADER_LEN)));
            if !message.payload.is_empty() {
                self.waiting.push_back(Step::Say(read_bytes(message.payload.len())));
            }
        }
        self.waiting.push_back(match Command::parse(message) {
            Ok(command) => Step::Run(command),
            Err(refusal) => Step::Say(answer(Err(refusal))),
        });
        Ok(self.waiting.pop_front())
    }
}

/// ACK with data, or ERROR with text.
pub(super) fn answer(result: Result<Vec<u8>, Refusal>) -> Message {
    match result {
        Ok(data) => Message::new(Code::Ack, data),
        Err(refusal) => Message::new(Code::Error, refusal.0),
    }
}

fn read_bytes(count: usize) -> Message {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    Message::new(Code::Next, count.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commands_come_in_order_whatever_the_pieces() {
        let mut bytes = Message::new(Code::Ping, "").encode();
        bytes.extend(Message { code: 77, payload: vec![] }.encode());
        bytes.extend(Message::new(Code::Version, "").encode());
        for piece in 1..bytes.len() {
            let mut talk = Conversation::new(100, false);
            let mut steps = Vec::new();
            for chunk in bytes.chunks(piece) {
                talk.push(chunk);
                while let Some(step) = talk.next_step().unwrap() {
                    steps.push(step);
                }
            }
            assert_eq!(steps.len(), 3);
            assert_eq!(steps[0], Step::Run(Command::Ping));
            assert!(matches!(&steps[1], Step::Say(m) if m.code == Code::Error as u32));
            assert_eq!(steps[2], Step::Run(Command::Version));
            assert!(!talk.is_mid_message());
        }
    }

    #[test]
    fn reads_are_announced_before_the_answer() {
        let mut talk = Conversation::new(100, true);
        talk.push(&Message::new(Code::RemoveContainer, "{}").encode());
        assert_eq!(talk.next_step().unwrap(), Some(Step::Say(Message::new(Code::Next, 8_u32.to_be_bytes()))));
        assert_eq!(talk.next_step().unwrap(), Some(Step::Say(Message::new(Code::Next, 2_u32.to_be_bytes()))));
        assert!(matches!(talk.next_step().unwrap(), Some(Step::Say(m)) if m.code == Code::Error as u32));
        assert_eq!(talk.next_step().unwrap(), None);
    }

    #[test]
    fn broken_framing_ends_the_conversation() {
        let mut short = Conversation::new(100, false);
        short.push(&[0, 0, 0, 12, 0, 0, 0, 7]);
        assert!(short.next_step().is_err());
        let mut long = Conversation::new(100, false);
        long.push(&[0, 0, 0, 12, 0, 0, 0, 101]);
        assert!(long.next_step().is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), code in 0_u32..30) {
            let mut talk = Conversation::new(10_240, true);
            talk.push(&Message { code, payload: bytes.clone() }.encode());
            talk.push(&bytes);
            while let Ok(Some(_)) = talk.next_step() {}
        }
    }
}
