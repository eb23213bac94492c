//! The rules of one VM's control channel: one command at a time, first come first served, every command answered.
//!
//! Pure: messages and the time go in, [`Action`]s come out. The asymmetry to know: the agent may speak at any time
//! (READY, NEXT, events), and only ACK or ERROR while a command is in flight is an answer; a command whose deadline
//! has passed is answered with an error but stays in flight, so that its late answer is not taken for another's.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::CONTROL_QUEUE_MAX;
use crate::wire::hyper::{Code, Message};

/// Names one submitted command.
pub type Ticket = u64;

/// Time since some moment the caller chose.
pub type Instant = Duration;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The agent said no. Its own words, where it had any.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("the agent has not answered '{command}' within {}", human(*.after))]
    Overdue {
        /// The command.
        command: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// Its turn did not come in time: an earlier command is still not answered.
    #[error("the agent still works on '{command}': no turn for this one within {}", human(*.after))]
    NoTurn {
        /// The command in the way.
        command: &'static str,
        /// How long this one waited.
        after: Duration,
    },
    /// Too many wait already.
    #[error("{0} commands wait for this VM, the most that may (--max-commands-per-vm)")]
    Full(usize),
    /// The channel ended.
    #[error("{0}")]
    Gone(String),
}

/// A duration for people, to the nearest tenth of a second.
fn human(duration: Duration) -> String {
    let tenths = (duration.as_millis() + 50) / 100;
    match tenths % 10 {
        0 => format!("{} s", tenths / 10),
        tenth => format!("{}.{tenth} s", tenths / 10),
    }
}

/// What the channel's owner has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write these bytes, in one write where the socket takes them.
    Write(Vec<u8>),
    /// Answer a command.
    Answer(Ticket, Result<Vec<u8>, CommandError>),
    /// The agent is up.
    Ready {
        /// It was up before this channel was: it answered PING instead of saying READY.
        before: bool,
    },
    /// The agent reported an event of its own accord.
    Event(Message),
    /// The agent sent something nobody asked for; it was skipped.
    Stray(u32),
}

#[derive(Debug)]
struct Pending {
    ticket: Ticket,
    code: Code,
    bytes: Vec<u8>,
    since: Instant,
    deadline: Instant,
}

#[derive(Debug)]
struct InFlight {
    code: Code,
    /// Whom to answer; `None` for our own PING and once the deadline has passed.
    ticket: Option<Ticket>,
    overdue: bool,
    since: Instant,
    deadline: Instant,
}

/// One VM's control channel.
#[derive(Debug)]
pub struct Control {
    /// READY came, or the PING that replaces it was answered.
    up: bool,
    /// When to ask with PING, unless READY comes first.
    ask_at: Instant,
    asked: bool,
    in_flight: Option<InFlight>,
    queue: VecDeque<Pending>,
    actions: Vec<Action>,
}

impl Control {
    /// A channel connected at `now`. Without READY for `patience`, the agent is asked whether it was up before.
    pub fn new(now: Instant, patience: Duration) -> Control {
        Control {
            up: false,
            ask_at: now + patience,
            asked: false,
            in_flight: None,
            queue: VecDeque::new(),
            actions: Vec::new(),
        }
    }

    /// Submits a command. It is answered once, by `deadline` at the latest.
    pub fn submit(&mut self, ticket: Ticket, code: Code, payload: &[u8], now: Instant, deadline: Instant) {
        if self.queue.len() >= CONTROL_QUEUE_MAX {
            return self.actions.push(Action::Answer(ticket, Err(CommandError::Full(CONTROL_QUEUE_MAX))));
        }
        let bytes = Message::new(code, payload).encode();
        self.queue.push_back(Pending { ticket, code, bytes, since: now, deadline });
        self.pump(now);
    }

    /// The agent sent a message.
    pub fn received(&mut self, message: Message, now: Instant) {
        match Code::from_u32(message.code) {
            Some(Code::Next) => {}
            Some(Code::Ready) => self.is_up(false),
            Some(code @ (Code::Ack | Code::Error)) => self.answered(code, message),
            Some(Code::ProcessAsyncEvent | Code::SignalProcess) => self.actions.push(Action::Event(message)),
            _ => self.actions.push(Action::Stray(message.code)),
        }
        self.pump(now);
    }

    fn is_up(&mut self, before: bool) {
        if !self.up {
            self.up = true;
            self.actions.push(Action::Ready { before });
        }
    }

    fn answered(&mut self, code: Code, message: Message) {
        let Some(command) = self.in_flight.take() else { return self.actions.push(Action::Stray(message.code)) };
        // Whatever the answer to a PING says, somebody answered.
        self.is_up(true);
        let Some(ticket) = command.ticket else { return };
        let answer = match code {
            Code::Ack => Ok(message.payload),
            _ => Err(CommandError::Refused(refusal(command.code, &message.payload))),
        };
        self.actions.push(Action::Answer(ticket, answer));
    }

    /// Sends the next command when it is its turn.
    fn pump(&mut self, now: Instant) {
        if !self.up || self.in_flight.is_some() {
            return;
        }
        let Some(Pending { ticket, code, bytes, since, deadline }) = self.queue.pop_front() else { return };
        if self.queue.is_empty() {
            self.queue = VecDeque::new();
        }
        debug_assert!(since <= now, "submitted before it is sent");
        self.in_flight = Some(InFlight { code, ticket: Some(ticket), overdue: false, since, deadline });
        self.actions.push(Action::Write(bytes));
    }

    /// The time is `now`: asks an agent that has not said READY, answers what is overdue.
    pub fn tick(&mut self, now: Instant) {
        if !self.up && !self.asked && now >= self.ask_at {
            self.asked = true;
            let (code, deadline) = (Code::Ping, Instant::MAX);
            self.in_flight = Some(InFlight { code, ticket: None, overdue: false, since: now, deadline });
            self.actions.push(Action::Write(Message::new(Code::Ping, []).encode()));
        }
        if let Some(command) = &mut self.in_flight
            && command.deadline <= now
            && let Some(ticket) = command.ticket.take()
        {
            command.overdue = true;
            let after = command.deadline.saturating_sub(command.since);
            let error = CommandError::Overdue { command: command.code.name(), after };
            self.actions.push(Action::Answer(ticket, Err(error)));
        }
        let blocking = self.in_flight.as_ref().map_or("startup", |command| command.code.name());
        let actions = &mut self.actions;
        self.queue.retain(|pending| {
            let overdue = pending.deadline <= now;
            if overdue {
                let after = pending.deadline.saturating_sub(pending.since);
                let error = CommandError::NoTurn { command: blocking, after };
                actions.push(Action::Answer(pending.ticket, Err(error)));
            }
            !overdue
        });
    }

    /// When [`Control::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<Instant> {
        let ask = (!self.up && !self.asked).then_some(self.ask_at);
        let overdue = self.in_flight.iter().filter(|command| command.ticket.is_some()).map(|command| command.deadline);
        self.queue.iter().map(|pending| pending.deadline).chain(overdue).chain(ask).min()
    }

    /// The channel ended: nothing will be answered any more.
    pub fn ended(&mut self, why: &str) {
        let waiting = self.queue.drain(..).map(|pending| pending.ticket);
        let tickets = self.in_flight.take().and_then(|command| command.ticket).into_iter().chain(waiting);
        let gone = || Err(CommandError::Gone(why.to_owned()));
        self.actions.extend(tickets.map(|ticket| Action::Answer(ticket, gone())));
    }

    /// What to do, in order.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether the agent is up.
    pub fn is_ready(&self) -> bool {
        self.up
    }

    /// The command in flight, and whether its deadline has passed.
    pub fn command(&self) -> Option<(&'static str, bool)> {
        let command = self.in_flight.as_ref()?;
        Some((command.code.name(), command.overdue))
    }

    /// Bytes of memory it holds beyond its own size.
    pub fn memory(&self) -> usize {
        self.queue.capacity() * size_of::<Pending>() + self.actions.capacity() * size_of::<Action>()
    }

    /// Commands that wait for their turn.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }
}

/// What a client is told when the agent said no.
fn refusal(command: Code, payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    if text.is_empty() { format!("the agent refused '{}'", command.name()) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn up() -> Control {
        let mut control = Control::new(Duration::ZERO, SECOND);
        control.received(Message::new(Code::Ready, []), Duration::ZERO);
        assert_eq!(control.take_actions(), [Action::Ready { before: false }]);
        control
    }

    fn write(code: Code, payload: &[u8]) -> Action {
        Action::Write(Message::new(code, payload).encode())
    }

    fn ack(payload: &[u8]) -> Message {
        Message::new(Code::Ack, payload)
    }

    #[test]
    fn durations_are_rounded_to_tenths() {
        let cases = [(1_000_000, "1 s"), (999_700, "1 s"), (1_000_200, "1 s"), (1_500_000, "1.5 s"), (40_000, "0 s")];
        for (micros, text) in cases {
            assert_eq!(human(Duration::from_micros(micros)), text);
        }
    }

    #[test]
    fn one_command_at_a_time_in_order() {
        let mut control = up();
        control.submit(1, Code::StartPod, b"{}", Duration::ZERO, 30 * SECOND);
        control.submit(2, Code::Ping, b"", Duration::ZERO, 30 * SECOND);
        assert_eq!(control.take_actions(), [write(Code::StartPod, b"{}")]);
        control.received(Message::new(Code::Next, [0, 0, 0, 8]), SECOND);
        control.received(Message::new(Code::Ready, []), SECOND);
        assert_eq!(control.take_actions(), [], "NEXT and a late READY are no answers");
        control.received(ack(b"data"), SECOND);
        assert_eq!(control.take_actions(), [Action::Answer(1, Ok(b"data".to_vec())), write(Code::Ping, b"")]);
    }

    #[test]
    fn events_are_never_answers() {
        let mut control = up();
        control.submit(1, Code::Ping, b"", Duration::ZERO, SECOND);
        control.take_actions();
        for code in [Code::ProcessAsyncEvent, Code::SignalProcess] {
            let event = Message::new(code, *b"{}");
            control.received(event.clone(), Duration::ZERO);
            assert_eq!(control.take_actions(), [Action::Event(event)]);
        }
        control.received(Message { code: 77, payload: vec![] }, Duration::ZERO);
        assert_eq!(control.take_actions(), [Action::Stray(77)]);
        control.received(ack(b""), Duration::ZERO);
        assert_eq!(control.take_actions(), [Action::Answer(1, Ok(vec![]))]);
        control.received(ack(b""), Duration::ZERO);
        assert_eq!(control.take_actions(), [Action::Stray(9)], "an ACK nobody asked for");
    }

    #[test]
    fn an_agent_that_was_up_before_is_recognised_by_ping() {
        let mut control = Control::new(Duration::ZERO, SECOND);
        assert_eq!(control.next_tick(), Some(SECOND));
        control.submit(1, Code::Version, b"", Duration::ZERO, 30 * SECOND);
        control.tick(SECOND / 2);
        assert_eq!(control.take_actions(), []);
        control.tick(SECOND);
        assert_eq!(control.take_actions(), [write(Code::Ping, b"")]);
        control.tick(2 * SECOND);
        assert_eq!(control.take_actions(), [], "asked once");
        control.received(ack(b""), 2 * SECOND);
        assert_eq!(control.take_actions(), [Action::Ready { before: true }, write(Code::Version, b"")]);
    }

    #[test]
    fn a_ready_that_crosses_our_ping_does_not_shift_answers() {
        let mut control = Control::new(Duration::ZERO, SECOND);
        control.tick(SECOND);
        control.received(Message::new(Code::Ready, []), SECOND);
        control.submit(1, Code::Version, b"", SECOND, 30 * SECOND);
        assert_eq!(control.take_actions(), [write(Code::Ping, b""), Action::Ready { before: false }]);
        control.received(ack(b"pong"), SECOND);
        assert_eq!(control.take_actions(), [write(Code::Version, b"")]);
        control.received(ack(b"4242"), SECOND);
        assert_eq!(control.take_actions(), [Action::Answer(1, Ok(b"4242".to_vec()))]);
    }

    #[test]
    fn a_late_answer_belongs_to_the_command_that_was_late() {
        let mut control = up();
        control.submit(1, Code::StartPod, b"", Duration::ZERO, 2 * SECOND);
        control.submit(2, Code::Ping, b"", SECOND, 3 * SECOND);
        control.submit(3, Code::Ping, b"", SECOND, 9 * SECOND);
        control.take_actions();
        assert_eq!(control.next_tick(), Some(2 * SECOND));
        control.tick(2 * SECOND);
        let overdue = CommandError::Overdue { command: "startpod", after: 2 * SECOND };
        assert_eq!(overdue.to_string(), "the agent has not answered 'startpod' within 2 s");
        assert_eq!(control.take_actions(), [Action::Answer(1, Err(overdue))]);
        assert_eq!(control.command(), Some(("startpod", true)));
        control.tick(3 * SECOND);
        let no_turn = CommandError::NoTurn { command: "startpod", after: 2 * SECOND };
        assert_eq!(control.take_actions(), [Action::Answer(2, Err(no_turn))]);
        control.received(ack(b"late"), 4 * SECOND);
        assert_eq!(control.take_actions(), [write(Code::Ping, b"")]);
        control.received(ack(b""), 4 * SECOND);
        assert_eq!(control.take_actions(), [Action::Answer(3, Ok(vec![]))]);
    }

    #[test]
    fn a_clients_ping_is_overdue_like_any_command_and_ours_never() {
        let mut control = Control::new(Duration::ZERO, SECOND);
        control.tick(SECOND);
        control.tick(99 * SECOND);
        assert_eq!(control.command(), Some(("ping", false)), "the question whether it is up");
        let mut control = up();
        control.submit(1, Code::Ping, b"", Duration::ZERO, SECOND);
        control.tick(SECOND);
        assert_eq!(control.command(), Some(("ping", true)));
    }

    #[test]
    fn commands_that_come_after_their_deadline_are_answered() {
        let mut control = up();
        for ticket in [1, 2] {
            control.submit(ticket, Code::Ping, b"", 2 * SECOND, SECOND);
        }
        control.tick(2 * SECOND);
        let overdue = CommandError::Overdue { command: "ping", after: Duration::ZERO };
        let no_turn = CommandError::NoTurn { command: "ping", after: Duration::ZERO };
        let actions = control.take_actions();
        assert_eq!(actions[1..], [Action::Answer(1, Err(overdue)), Action::Answer(2, Err(no_turn))]);
    }

    #[test]
    fn the_end_answers_everybody() {
        let mut control = up();
        control.submit(1, Code::StartPod, b"", Duration::ZERO, SECOND);
        control.submit(2, Code::Ping, b"", Duration::ZERO, SECOND);
        control.take_actions();
        control.ended("the agent is gone");
        let gone = || Err(CommandError::Gone("the agent is gone".to_owned()));
        assert_eq!(control.take_actions(), [Action::Answer(1, gone()), Action::Answer(2, gone())]);
    }

    #[test]
    fn refusals_have_the_agents_words() {
        let mut control = up();
        for (payload, want) in [(&b"no such container\n\0"[..], "no such container"), (b"", "the agent refused 'ping'")]
        {
            control.submit(1, Code::Ping, b"", Duration::ZERO, SECOND);
            control.take_actions();
            control.received(Message::new(Code::Error, payload), Duration::ZERO);
            assert_eq!(control.take_actions(), [Action::Answer(1, Err(CommandError::Refused(want.to_owned())))]);
        }
    }

    #[test]
    fn a_full_queue_refuses_and_keeps_what_it_has() {
        let mut control = up();
        for ticket in 0..=CONTROL_QUEUE_MAX as u64 {
            control.submit(ticket, Code::Ping, b"", Duration::ZERO, SECOND);
        }
        control.take_actions();
        control.submit(9_999, Code::Ping, b"", Duration::ZERO, SECOND);
        assert_eq!(control.take_actions(), [Action::Answer(9_999, Err(CommandError::Full(CONTROL_QUEUE_MAX)))]);
        assert_eq!(control.queued(), CONTROL_QUEUE_MAX);
    }
}
