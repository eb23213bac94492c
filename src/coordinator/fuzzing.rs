//! What holds for a VM's control channel whatever its agent and its clients do, and whenever.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::control::{Action, Control, Ticket};
use crate::limits::CONTROL_QUEUE_MAX;
use crate::wire::fuzzing::Choices;
use crate::wire::hyper::{Code, Message};

/// Commands that clients send here.
const COMMANDS: [Code; 4] = [Code::ExecCmd, Code::Ping, Code::NewContainer, Code::Version];
/// What agents send by number, those among it that no protocol has.
const CODES: u32 = 30;

/// Every command is answered once, by its deadline at the latest; one is in flight at a time, in the order they came;
/// only ACK and ERROR answer.
pub fn control_channel(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut channel = Channel::new();
    while let Some(operation) = choices.next() {
        match operation % 8 {
            0 | 1 => channel.submit(choices.pick(&COMMANDS), choices.below(50)),
            2 => channel.receive(u32::from(choices.next().unwrap_or_default()) % CODES),
            3 | 4 => channel.receive(Code::Ack as u32),
            5 => channel.receive(Code::Error as u32),
            6 => channel.receive(Code::Ready as u32),
            _ => channel.wait(choices.below(40)),
        }
    }
    channel.control.ended("the end");
    channel.carry_out();
    assert!(channel.waiting.is_empty(), "commands without an answer");
}

/// A control channel between clients and an agent.
struct Channel {
    control: Control,
    now: Duration,
    /// Deadlines of commands without an answer.
    waiting: BTreeMap<Ticket, Duration>,
    /// Commands whose turn has not come, in order.
    queued: VecDeque<(Ticket, Vec<u8>)>,
    /// The command the agent has not answered; ours has no ticket.
    in_flight: Option<Option<Ticket>>,
    answered: BTreeSet<Ticket>,
    next_ticket: Ticket,
}

impl Channel {
    fn new() -> Channel {
        Channel {
            control: Control::new(Duration::ZERO, Duration::from_secs(10)),
            now: Duration::ZERO,
            waiting: BTreeMap::new(),
            queued: VecDeque::new(),
            in_flight: None,
            answered: BTreeSet::new(),
            next_ticket: 0,
        }
    }

    fn submit(&mut self, code: Code, seconds: usize) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let deadline = self.now + Duration::from_secs(seconds as u64);
        let payload = ticket.to_be_bytes();
        self.waiting.insert(ticket, deadline);
        self.queued.push_back((ticket, Message::new(code, payload).encode()));
        self.control.submit(ticket, code, &payload, self.now, deadline);
        self.carry_out();
        assert!(self.control.queued() <= CONTROL_QUEUE_MAX);
    }

    fn receive(&mut self, code: u32) {
        if [Code::Ack as u32, Code::Error as u32].contains(&code) {
            self.in_flight = None;
        }
        self.control.received(Message { code, payload: Vec::new() }, self.now);
        self.carry_out();
    }

    /// Time passes, and the rules are asked when they said.
    fn wait(&mut self, seconds: usize) {
        let until = self.now + Duration::from_secs(seconds as u64);
        while let Some(at) = self.control.next_tick().filter(|&at| at <= until) {
            self.now = self.now.max(at);
            self.control.tick(self.now);
            self.carry_out();
            assert!(self.control.next_tick().is_none_or(|next| next > self.now), "a tick that changed nothing");
        }
        self.now = until;
        assert!(self.waiting.values().all(|&deadline| deadline > self.now), "a command is late");
    }

    fn carry_out(&mut self) {
        for action in self.control.take_actions() {
            match action {
                Action::Write(bytes) => {
                    let next = self.queued.iter().position(|(_, command)| *command == bytes);
                    // Those before it have been answered without their turn.
                    let skipped = self.queued.drain(..next.unwrap_or_default());
                    skipped.for_each(|(ticket, _)| assert!(self.answered.contains(&ticket), "a turn passed over"));
                    let ticket = next.and_then(|_| self.queued.pop_front()).map(|(ticket, _)| ticket);
                    assert!(ticket.is_some() || bytes == Message::new(Code::Ping, []).encode(), "nobody's command");
                    assert!(self.in_flight.replace(ticket).is_none(), "two commands in flight");
                }
                Action::Answer(ticket, _) => {
                    assert!(self.waiting.remove(&ticket).is_some() && self.answered.insert(ticket), "answered twice");
                }
                Action::Ready { .. } => assert!(self.control.is_ready()),
                Action::Event(message) => {
                    assert!([Code::ProcessAsyncEvent as u32, Code::SignalProcess as u32].contains(&message.code));
                }
                Action::Stray(_) => {}
            }
        }
    }
}
