//! What holds for an agent whatever its host sends on either channel: the rules, without processes.
//!
//! The asymmetry to know: a control connection is given the host's bytes as they are, a stream connection is made of
//! operations that a fuzzer's bytes choose, because there the processes have their say too.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use tokio::sync::{Notify, watch};

use super::accounts;
use super::command::{Command, Refusal, Target};
use super::conversation::{Conversation, Step, answer};
use super::output::FrameRun;
use super::pod::{Entry, Pod};
use super::stdin::{FrameReader, StdinTable, Taken};
use crate::limits::{AGENT_FRAME_CEILING, GUEST_STDIN_BUFFER, GUEST_STDIN_TOTAL, SEND_MAX};
use crate::os::process::Ending;
use crate::wire::DecodeError;
use crate::wire::fuzzing::{Choices, bytes, uneven, whole};
use crate::wire::hyper::{Code, FRAME_HEADER_LEN, FrameHeader, Message, MessageDecoder, Process, StreamSeq};

/// Bound on messages here: small, so that a fuzzer reaches it.
const MESSAGE_MAX: usize = 4_096;
/// Users and groups of every container here.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nana:x:1000:100:Ana:/users/ana:/bin/sh\n42:x:7:8::/seven:\n";
const GROUP: &str = "root:x:0:\nwheel:x:10:ana,root\nusers:x:100:\n";

/// The control channel: every message has one answer, in order; with announcements every byte of it is announced;
/// pieces do not matter; a pod in which nothing runs says who is who.
pub fn control_commands(data: &[u8]) {
    let (said, error) = converse(whole(data), false);
    for pieces in [bytes(data), uneven(data)] {
        assert_eq!(converse(pieces, false), (said.clone(), error.clone()), "pieces change the conversation");
    }
    let mut messages = MessageDecoder::new(MESSAGE_MAX);
    messages.push(data);
    let messages: Vec<Message> = std::iter::from_fn(|| messages.next_message().ok().flatten()).collect();
    assert_eq!(said.len(), messages.len(), "an answer to each message");
    assert!(said.iter().all(|said| [Code::Ack as u32, Code::Error as u32].contains(&said.code)));
    let (announced, again) = converse(whole(data), true);
    let (next, answers): (Vec<_>, Vec<_>) = announced.into_iter().partition(|said| said.code == Code::Next as u32);
    assert_eq!((answers, again), (said, error), "announcements change the answers");
    let count = |said: &Message| said.payload.first_chunk().map_or(0, |count| u32::from_be_bytes(*count) as usize);
    let read: usize = messages.iter().map(|message| message.encode().len()).sum();
    assert_eq!(next.iter().map(count).sum::<usize>(), read, "bytes announced, and bytes read");
}

/// What the host is sent, and why the connection ends.
fn converse(pieces: Vec<&[u8]>, announce: bool) -> (Vec<Message>, Option<DecodeError>) {
    let mut talk = Conversation::new(MESSAGE_MAX, announce);
    let mut guest = Guest::new();
    let mut said = Vec::new();
    for piece in pieces {
        talk.push(piece);
        loop {
            match talk.next_step() {
                Ok(Some(Step::Say(message))) => said.push(message),
                Ok(Some(Step::Run(command))) => said.push(answer(guest.execute(command))),
                Ok(None) => break,
                Err(error) => return (said, Some(error)),
            }
        }
    }
    (said, None)
}

/// A pod whose processes are names only.
struct Guest {
    pod: Pod,
    next_pid: i32,
}

impl Guest {
    fn new() -> Guest {
        Guest { pod: Pod::new(StdinTable::new(GUEST_STDIN_BUFFER, GUEST_STDIN_TOTAL)), next_pid: 2 }
    }

    fn execute(&mut self, command: Command) -> Result<Vec<u8>, Refusal> {
        let done = Ok(Vec::new());
        match command {
            Command::StartPod(pod) => {
                for new in pod.containers {
                    self.add_container(&new.id, new.process)?;
                }
                done
            }
            Command::NewContainer(new) => self.add_container(&new.id, new.process).and(done),
            Command::Exec(exec) => self.start(&exec.container, exec.process).map(|_| Vec::new()),
            Command::RemoveContainer(named) => {
                self.pod.remove_container(&named.container);
                assert!(!self.pod.has_container(&named.container));
                done
            }
            Command::KillContainer(kill) => {
                assert!((1..=64).contains(&kill.signal), "no signal: {}", kill.signal);
                let Some(pid) = self.pod.first_pid(&kill.container) else { return done };
                assert!(self.pod.ended(pid, Ending::Exited(0)));
                assert_eq!(self.pod.first_pid(&kill.container), None);
                done
            }
            Command::SignalProcess { target, .. } | Command::WinSize { target, .. } => self.find(&target).and(done),
            Command::WriteFile { file, data } => self.pod.root_of(&file.container).map(|_| data),
            Command::ReadFile(file) => self.pod.root_of(&file.container).and(done),
            Command::Version | Command::Ping | Command::DestroyPod | Command::OnlineCpuMem => done,
        }
    }

    fn add_container(&mut self, id: &str, process: Process) -> Result<(), Refusal> {
        assert!(!id.is_empty(), "a container without a name");
        self.pod.add_container(id, "/".into());
        let key = self.start(id, process)?;
        self.pod.set_first(id, key);
        Ok(())
    }

    fn start(&mut self, container: &str, process: Process) -> Result<u64, Refusal> {
        self.pod.root_of(container)?;
        self.pod.check_new(container, &process)?;
        assert!(process.args.first().is_some_and(|program| !program.is_empty()), "nothing to run");
        let account = accounts::resolve(&process, 0, PASSWD, GROUP)?;
        assert!(account.identity.groups.is_sorted_by(|a, b| a < b), "a group twice");
        self.next_pid += 1;
        let key = self.pod.add(Entry {
            container: container.to_owned(),
            id: process.id.clone(),
            stdio: StreamSeq(process.stdio),
            stderr: StreamSeq(process.stderr),
            terminal: None,
            pid: Some(self.next_pid),
            ending: watch::Sender::new(None),
            stdin_ready: Rc::new(Notify::new()),
        });
        if process.stdio != 0 {
            let found = self.pod.find(&Target::Seq(StreamSeq(process.stdio)))?;
            assert_eq!(found.pid, Some(self.next_pid), "another process has this one's sequence");
            assert!(self.pod.check_new(container, &process).is_err(), "a sequence given twice");
        }
        Ok(key)
    }

    /// A process that goes by what the command says.
    fn find(&self, target: &Target) -> Result<(), Refusal> {
        let found = self.pod.find(target)?;
        match target {
            Target::Seq(seq) => assert!([found.stdio, found.stderr].contains(seq)),
            Target::Named { container, process } => {
                assert_eq!(&found.container, container);
                assert!(process.is_empty() || found.id.as_ref() == Some(process));
            }
        }
        Ok(())
    }
}

/// The stream channel: input reaches its process to the byte and in order, what is held is counted, and output comes
/// out whole and once on however many connections it takes.
pub fn agent_stream(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut stream = Stream::new(choices.pick(&[10_240, 128, 4_096]));
    while let Some(operation) = choices.next() {
        let seq = StreamSeq(u64::from(operation >> 4));
        match operation & 0x0f {
            0 => stream.open(seq, choices.below(2) == 1),
            1 if !stream.table.is_known(seq) => stream.table.open_output(seq),
            1 => {}
            2 => stream.forget(seq),
            3 => stream.discard(seq),
            4..=7 => stream.frame(seq, choices.pick(&LENGTHS)),
            8 => stream.receive(choices.take(16)),
            9 | 10 => stream.consume(seq, choices.pick(&LENGTHS)),
            11 => stream.push_output(seq, choices.below(40)),
            12 => stream.read_output(seq, choices.pick(&LENGTHS)),
            13 | 14 => stream.write_output(choices.pick(&LENGTHS)),
            _ => stream.break_connection(),
        }
        stream.check();
    }
    stream.write_output(usize::MAX);
    assert_eq!(stream.delivered.len(), stream.produced.len(), "frames that came out, and that went in");
}

/// Lengths where something changes.
const LENGTHS: [usize; 8] = [1, 0, 12, 100, 117, 1_000, 10_000, 40_000];
/// Bytes that one process, and that all of them may be owed here.
const STDIN_MAX: (usize, usize) = (5_000, 20_000);

/// What one process is owed, as the model has it.
#[derive(Debug, Default)]
struct Owed {
    bytes: VecDeque<u8>,
    terminal: bool,
    ended: bool,
}

/// One connection of the stream channel after the other.
struct Stream {
    reader: FrameReader,
    table: StdinTable,
    owed: BTreeMap<StreamSeq, Owed>,
    /// Garbage was received, and the connection has ended for it.
    is_broken: bool,
    run: FrameRun,
    frame_max: u32,
    /// Frames that went into the run.
    produced: Vec<(StreamSeq, Vec<u8>)>,
    /// Bytes of this connection that make no whole frame yet.
    torn: Vec<u8>,
    /// Frames that came out.
    delivered: Vec<(StreamSeq, Vec<u8>)>,
}

impl Stream {
    fn new(frame_max: u32) -> Stream {
        Stream {
            reader: FrameReader::new(AGENT_FRAME_CEILING),
            table: StdinTable::new(STDIN_MAX.0, STDIN_MAX.1),
            owed: BTreeMap::new(),
            is_broken: false,
            run: FrameRun::new(frame_max),
            frame_max,
            produced: Vec::new(),
            torn: Vec::new(),
            delivered: Vec::new(),
        }
    }

    fn open(&mut self, seq: StreamSeq, terminal: bool) {
        if !self.table.is_known(seq) {
            self.table.open(seq, terminal);
            self.owed.insert(seq, Owed { terminal, ..Owed::default() });
        }
    }

    fn forget(&mut self, seq: StreamSeq) {
        self.table.remove(seq);
        self.owed.remove(&seq);
        assert!(!self.table.is_known(seq));
    }

    fn discard(&mut self, seq: StreamSeq) {
        self.table.discard(seq);
        self.owed.remove(&seq);
        assert!(self.table.front(seq).is_empty() && self.table.is_finished(seq));
    }

    /// The host sends a whole frame, in two pieces.
    fn frame(&mut self, seq: StreamSeq, len: usize) {
        let len = len.min(AGENT_FRAME_CEILING as usize - FRAME_HEADER_LEN);
        let frame = frame(seq, &pattern(len));
        let (first, second) = frame.split_at(frame.len() / 3);
        if !self.reader.is_mid_frame() {
            self.receive(first);
            self.receive(second);
        }
    }

    /// The host sends these bytes.
    fn receive(&mut self, bytes: &[u8]) {
        if self.is_broken {
            (self.reader, self.is_broken) = (FrameReader::new(AGENT_FRAME_CEILING), false);
        }
        let space = self.reader.space();
        space[..bytes.len()].copy_from_slice(bytes);
        self.reader.received(bytes.len());
        loop {
            match self.reader.next_frame() {
                Ok(Some((seq, payload))) => {
                    let taken = self.table.push(seq, payload);
                    let owed = self.owed.get_mut(&seq).filter(|owed| !owed.ended);
                    assert_eq!(taken == Taken::Queued, owed.is_some(), "whether anybody wants it");
                    let Some(owed) = owed else { continue };
                    owed.bytes.extend(payload);
                    owed.ended = payload.is_empty() && !owed.terminal;
                }
                Ok(None) => return,
                Err(_) => return self.is_broken = true,
            }
        }
    }

    fn consume(&mut self, seq: StreamSeq, count: usize) {
        let front = self.table.front(seq);
        let count = count.min(front.len());
        if let Some(owed) = self.owed.get_mut(&seq) {
            assert!(owed.bytes.drain(..count).eq(front[..count].iter().copied()), "other bytes than were sent");
        }
        self.table.consume(seq, count);
    }

    /// A short frame joins the run.
    fn push_output(&mut self, seq: StreamSeq, len: usize) {
        self.run.push(seq, &pattern(len));
        self.produced.push((seq, pattern(len)));
    }

    /// A process's output is read into the run.
    fn read_output(&mut self, seq: StreamSeq, len: usize) {
        if !self.run.is_empty() || len == 0 {
            return;
        }
        let output = pattern(len);
        let mut left = &output[..];
        for place in &mut self.run.places() {
            let (now, later) = left.split_at(left.len().min(place.len()));
            place[..now.len()].copy_from_slice(now);
            left = later;
        }
        assert!(left.is_empty(), "no place for a read");
        self.run.seal(seq, len);
        let most = self.frame_max as usize - FRAME_HEADER_LEN;
        self.produced.extend(output.chunks(most).map(|payload| (seq, payload.to_vec())));
    }

    /// The host takes so many bytes.
    fn write_output(&mut self, mut left: usize) {
        while left > 0 && !self.run.is_empty() {
            let piece = self.run.piece();
            assert!(!piece.is_empty() && piece.len() <= SEND_MAX.max(self.frame_max as usize));
            let count = piece.len().min(left);
            self.torn.extend_from_slice(&piece[..count]);
            self.run.advance(count);
            left -= count;
        }
        while let Some((head, rest)) = self.torn.split_first_chunk::<FRAME_HEADER_LEN>() {
            let header = FrameHeader::decode(*head, self.frame_max).expect("a frame that its host accepts");
            let Some(payload) = rest.get(..header.payload_len() as usize) else { return };
            let frame = (header.seq, payload.to_vec());
            assert_eq!(self.produced.get(self.delivered.len()), Some(&frame), "frames out of order, or twice");
            self.delivered.push(frame);
            self.torn.drain(..header.len as usize);
        }
    }

    /// The connection breaks: what the host has of a frame is lost, and sent again on the next one.
    fn break_connection(&mut self) {
        self.torn.clear();
        self.run.rewind();
    }

    fn check(&self) {
        let held: usize = self.owed.values().map(|owed| owed.bytes.len()).sum();
        assert_eq!(self.table.held(), held, "bytes held");
        let over = self.owed.values().any(|owed| owed.bytes.len() > STDIN_MAX.0);
        assert_eq!(self.table.is_full(), over || held > STDIN_MAX.1, "whether the channel waits");
        for (&seq, owed) in &self.owed {
            assert_eq!(self.table.is_finished(seq), owed.ended && owed.bytes.is_empty());
            assert_eq!(self.table.front(seq).is_empty(), owed.bytes.is_empty());
        }
    }
}

fn frame(seq: StreamSeq, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a short frame");
    [&FrameHeader::for_payload(seq, len).encode()[..], payload].concat()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..=250).cycle().take(len).collect()
}
