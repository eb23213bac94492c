//! The control channel's rules under seeds: clients that command, an agent that answers late, twice, with a refusal or
//! never, and a clock that is an argument.
//!
//! The asymmetry to know: the agent answers with what it was sent, so that an answer that reaches another command than
//! its own shows.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ringway::coordinator::control::{Action, CommandError, Control, Ticket};
use ringway::limits::CONTROL_QUEUE_MAX;
use ringway::wire::hyper::{Code, MESSAGE_HEADER_LEN, Message};

use crate::random::Random;
use crate::seeds::{for_each_seed, replays};

/// Seeds that every run of the tests replays.
const SEEDS: u64 = 2_000;

/// Commands that clients send.
const CODES: [Code; 4] = [Code::ExecCmd, Code::WinSize, Code::Ping, Code::KillContainer];

/// A command that has not been answered.
#[derive(Debug)]
struct Waiting {
    payload: Vec<u8>,
    deadline: Duration,
}

#[derive(Debug)]
struct Line {
    random: Random,
    control: Control,
    now: Duration,
    next: Ticket,
    waiting: BTreeMap<Ticket, Waiting>,
    /// What the agent was sent and has not answered, oldest first.
    unanswered: VecDeque<Vec<u8>>,
    /// Events it sent that have not come out, and things nobody asked for.
    events: usize,
    strays: usize,
    /// It said READY, or answered.
    up: bool,
    trail: Vec<String>,
}

impl Drop for Line {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.trail.iter().rev().take(60).rev().for_each(|step| eprintln!("{step}"));
        }
    }
}

impl Line {
    fn new(seed: u64) -> Line {
        let mut random = Random::new(seed);
        let patience = Duration::from_millis(random.pick(&[0, 10, 1_000]));
        Line {
            random,
            control: Control::new(Duration::ZERO, patience),
            now: Duration::ZERO,
            next: 1,
            waiting: BTreeMap::new(),
            unanswered: VecDeque::new(),
            events: 0,
            strays: 0,
            up: false,
            trail: Vec::new(),
        }
    }

    fn note(&mut self, step: impl std::fmt::Debug) {
        self.trail.push(format!("{:?} {step:?}", self.now));
    }

    fn command(&mut self) {
        let (ticket, code) = (self.next, self.random.pick(&CODES));
        self.next += 1;
        let payload = format!("command {ticket}").into_bytes();
        let deadline = self.now + Duration::from_millis(self.random.pick(&[0, 1, 50, 500, 30_000]));
        self.note(("submit", ticket, deadline));
        self.waiting.insert(ticket, Waiting { payload: payload.clone(), deadline });
        self.control.submit(ticket, code, &payload, self.now, deadline);
        self.carry_out();
    }

    fn says(&mut self, code: u32, payload: Vec<u8>) {
        self.note(("agent", code, String::from_utf8_lossy(&payload)));
        self.control.received(Message { code, payload }, self.now);
        self.carry_out();
    }

    /// The agent says one of the things it may.
    fn speak(&mut self) {
        match self.random.below(12) {
            0 => self.says(Code::Ready as u32, Vec::new()),
            1 => self.says(Code::Next as u32, vec![0; 4]),
            2 => {
                self.events += 1;
                self.says(Code::ProcessAsyncEvent as u32, b"event".to_vec());
            }
            3 => {
                self.strays += 1;
                self.says(1_000, Vec::new());
            }
            4 if self.unanswered.is_empty() => {
                self.strays += 1;
                self.says(Code::Ack as u32, b"nobody's".to_vec());
            }
            _ => {
                if let Some(sent) = self.unanswered.pop_front() {
                    let code = if self.random.percent(80) { Code::Ack } else { Code::Error };
                    self.says(code as u32, sent);
                    assert!(self.control.is_ready(), "an agent that answers is up");
                }
            }
        }
    }

    /// Time passes, often exactly until something is due.
    fn wait(&mut self) {
        let some = Duration::from_millis(self.random.pick(&[0, 1, 7, 100, 5_000]));
        let due = self.control.next_tick().filter(|_| self.random.percent(50));
        self.now = due.map_or(self.now + some, |due| due.max(self.now));
        self.control.tick(self.now);
        self.carry_out();
        let late = self.waiting.iter().find(|(_, command)| command.deadline <= self.now);
        assert!(late.is_none(), "{late:?} was not answered in time");
        assert!(self.control.next_tick().is_none_or(|due| due > self.now), "something is still due");
        assert!(self.waiting.is_empty() || self.control.next_tick().is_some(), "nobody will answer");
    }

    fn carry_out(&mut self) {
        for action in self.control.take_actions() {
            self.note(&action);
            match action {
                Action::Write(bytes) => {
                    assert!(self.unanswered.is_empty(), "a command while another is in flight");
                    self.unanswered.push_back(bytes[MESSAGE_HEADER_LEN..].to_vec());
                }
                Action::Answer(ticket, answer) => self.answered(ticket, &answer),
                Action::Ready { .. } => assert!(!std::mem::replace(&mut self.up, true), "up twice"),
                Action::Event(_) => self.events -= 1,
                Action::Stray(_) => self.strays -= 1,
            }
        }
        assert_eq!((self.events, self.strays), (0, 0), "what nobody asked for is reported at once");
        assert!(self.control.queued() <= CONTROL_QUEUE_MAX);
    }

    fn answered(&mut self, ticket: Ticket, answer: &Result<Vec<u8>, CommandError>) {
        let Waiting { payload, deadline } = self.waiting.remove(&ticket).expect("a command is answered once");
        match answer {
            Ok(said) => assert_eq!(*said, payload, "the answer to another command"),
            Err(CommandError::Refused(said)) => assert_eq!(said.as_bytes(), payload, "the refusal of another command"),
            Err(CommandError::Overdue { .. } | CommandError::NoTurn { .. }) => assert!(deadline <= self.now),
            Err(CommandError::Full(most)) => {
                assert_eq!((self.control.queued(), *most), (CONTROL_QUEUE_MAX, CONTROL_QUEUE_MAX))
            }
            Err(CommandError::Gone(_)) => panic!("the channel has not ended"),
        }
    }

    /// Everything is answered at the latest when the channel ends.
    fn end(mut self) {
        self.note("end");
        self.control.ended("hung up");
        for action in self.control.take_actions() {
            let Action::Answer(ticket, Err(CommandError::Gone(_))) = action else { panic!("{action:?} at the end") };
            self.waiting.remove(&ticket).expect("a command is answered once");
        }
        assert!(self.waiting.is_empty(), "{:?} were not answered", self.waiting);
        assert_eq!(self.control.next_tick().filter(|_| self.up), None, "nothing is due at the end");
    }
}

fn run(seed: u64) {
    let mut line = Line::new(seed);
    let (steps, busy) = (line.random.pick(&[20, 200]), line.random.pick(&[20, 50, 90]));
    for _ in 0..steps {
        match line.random.below(100) {
            share if share < busy => line.command(),
            share if share % 2 == 0 => line.speak(),
            _ => line.wait(),
        }
    }
    if line.random.once_in(50) {
        (0..CONTROL_QUEUE_MAX + 10).for_each(|_| line.command());
    }
    line.end();
}

#[test]
fn control_channels() {
    for_each_seed(SEEDS, |seed| {
        if std::panic::catch_unwind(|| run(seed)).is_err() {
            panic!("the control channel of {}", replays(seed));
        }
    });
}
