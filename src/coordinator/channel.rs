//! The task that owns one VM's control channel: it reads, writes and keeps the time for the rules in `control`.
//!
//! It never abandons a read: readiness is awaited, then bytes are taken. There is one such task for each VM and most
//! sleep most of the time, so it is polled by hand: what only a command needs (a timer, queues, bytes) is made for it
//! and given back. The asymmetry to know: it ends when the agent closes, breaks the protocol, or when the coordinator
//! drops its [`ControlHandle`].

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::{debug, warn};

use super::control::{Action, CommandError, Control, Ticket};
use crate::limits::{CONTROL_OUTGOING_MAX, CONTROL_REPLY_MAX, READY_PATIENCE_MS};
use crate::wire::hyper::{Code, Message, MessageDecoder};

/// How a command ended.
type Answer = Result<Vec<u8>, CommandError>;

/// A command on its way to the channel's task.
#[derive(Debug)]
struct Command {
    code: Code,
    payload: Vec<u8>,
    deadline: Instant,
    reply: oneshot::Sender<Answer>,
}

/// What `status` shows of a control channel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ChannelStatus {
    /// The command in flight and whether it is overdue.
    pub(super) command: Option<(&'static str, bool)>,
    pub(super) queued: usize,
}

/// What the channel's task and its handles share.
#[derive(Debug)]
struct Shared {
    control: RefCell<Control>,
    /// Commands the task has not looked at.
    commands: RefCell<VecDeque<Command>>,
    /// Handles there are; without one the channel ends.
    handles: Cell<u32>,
    /// The task has ended.
    ended: Cell<bool>,
    task: RefCell<Waker>,
}

impl Shared {
    /// Makes the task look.
    fn wake(&self) {
        self.task.borrow().wake_by_ref();
    }

    fn next_command(&self) -> Option<Command> {
        let mut commands = self.commands.borrow_mut();
        let next = commands.pop_front();
        if next.is_none() {
            *commands = VecDeque::new();
        }
        next
    }
}

/// The coordinator's end of a control channel. Dropping the last one ends the channel.
#[derive(Debug)]
pub(super) struct ControlHandle(Rc<Shared>);

impl Clone for ControlHandle {
    fn clone(&self) -> ControlHandle {
        self.0.handles.set(self.0.handles.get() + 1);
        ControlHandle(Rc::clone(&self.0))
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        let left = self.0.handles.get() - 1;
        self.0.handles.set(left);
        if left == 0 {
            self.0.wake();
        }
    }
}

impl ControlHandle {
    /// Sends a command and waits for its answer, until `deadline` at the latest. It lets go of the channel before it
    /// waits, so that a command in flight does not keep alive what bye or a lost VM ends. It is refused when `most`
    /// wait already.
    pub(super) async fn command(self, code: Code, payload: Vec<u8>, deadline: Instant, most: usize) -> Answer {
        let gone = || Err(CommandError::Gone("the VM's control channel has ended".to_owned()));
        if self.0.ended.get() {
            return gone();
        }
        if self.0.commands.borrow().len() + self.0.control.borrow().queued() >= most {
            return Err(CommandError::Full(most));
        }
        let (reply, answer) = oneshot::channel();
        self.0.commands.borrow_mut().push_back(Command { code, payload, deadline, reply });
        self.0.wake();
        drop(self);
        answer.await.unwrap_or_else(|_| gone())
    }

    pub(super) fn status(&self) -> ChannelStatus {
        let control = self.0.control.borrow();
        ChannelStatus { command: control.command(), queued: control.queued() }
    }
}

/// The channel's task.
#[derive(Debug)]
pub(super) struct Channel {
    vm: Rc<str>,
    stream: UnixStream,
    shared: Rc<Shared>,
    decoder: MessageDecoder,
    began: Instant,
    /// Wakes the task when the rules have something to do, or before.
    timer: Option<Pin<Box<Sleep>>>,
    /// Bytes of commands that the socket has not taken: of the one in flight, and of those answered before they were
    /// read.
    outgoing: Vec<u8>,
    /// Who waits for an answer, by ticket, which rise.
    waiting: VecDeque<(Ticket, oneshot::Sender<Answer>)>,
    next_ticket: Ticket,
    ready: Option<oneshot::Sender<bool>>,
    /// Messages nobody asked for.
    strays: u64,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.shared.ended.set(true);
        // Whoever waits for these is told by the end of the question.
        self.shared.commands.take();
    }
}

impl Channel {
    /// A channel over a connected socket, and the handle commands go through. `ready` is told when the agent is up,
    /// and whether it was up before.
    pub(super) fn new(vm: Rc<str>, stream: UnixStream, ready: oneshot::Sender<bool>) -> (Channel, ControlHandle) {
        let shared = Rc::new(Shared {
            control: RefCell::new(Control::new(Duration::ZERO, Duration::from_millis(READY_PATIENCE_MS))),
            commands: RefCell::default(),
            handles: Cell::new(1),
            ended: Cell::default(),
            task: RefCell::new(Waker::noop().clone()),
        });
        let handle = ControlHandle(Rc::clone(&shared));
        let channel = Channel {
            vm,
            stream,
            shared,
            decoder: MessageDecoder::new(CONTROL_REPLY_MAX),
            began: Instant::now(),
            timer: None,
            outgoing: Vec::new(),
            waiting: VecDeque::new(),
            next_ticket: 0,
            ready: Some(ready),
            strays: 0,
        };
        (channel, handle)
    }

    /// Serves the channel to its end and says why it ended; `None` when the coordinator ended it. `event` gets what
    /// the agent reports of its own accord, and says whether that could be taken.
    pub(super) async fn run(&mut self, event: impl Fn(Message) -> bool) -> Option<String> {
        let why = loop {
            self.carry_out(&event);
            match self.step().await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(why) => break Some(why),
            }
        };
        self.shared.control.borrow_mut().ended(why.as_deref().unwrap_or("the VM was unregistered"));
        self.carry_out(&event);
        why
    }

    /// Waits for the next thing to happen and takes it in; `false` when the coordinator let go.
    async fn step(&mut self) -> Result<bool, String> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, String>> {
        if self.outgoing.len() > CONTROL_OUTGOING_MAX {
            return Poll::Ready(Err("the agent answers commands without reading them".to_owned()));
        }
        let mut is_new = false;
        while let Some(command) = self.shared.next_command() {
            self.submit(command);
            is_new = true;
        }
        if !is_new && self.shared.handles.get() == 0 {
            return Poll::Ready(Ok(false));
        }
        match self.poll_socket(cx) {
            Ok(moved) => is_new |= moved,
            Err(why) => return Poll::Ready(Err(why)),
        }
        is_new |= self.poll_timer(cx);
        if is_new {
            self.shared.control.borrow_mut().tick(self.began.elapsed());
            return Poll::Ready(Ok(true));
        }
        self.shared.task.borrow_mut().clone_from(cx.waker());
        Poll::Pending
    }

    /// Reads and writes what it can; whether it did.
    fn poll_socket(&mut self, cx: &mut Context<'_>) -> Result<bool, String> {
        let mut moved = false;
        if let Poll::Ready(readable) = self.stream.poll_read_ready(cx) {
            readable.map_err(|error| error.to_string())?;
            self.read()?;
            moved = true;
        }
        if !self.outgoing.is_empty()
            && let Poll::Ready(writable) = self.stream.poll_write_ready(cx)
        {
            writable.map_err(|error| error.to_string())?;
            self.write()?;
            moved = true;
        }
        Ok(moved)
    }

    /// Whether it may be time for the rules to act. There is a timer only while they wait for something; one that is
    /// early for what they wait for now stays.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(at) = self.shared.control.borrow().next_tick().map(|at| self.began + at) else {
            self.timer = None;
            return false;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        let is_time = timer.as_mut().poll(cx).is_ready();
        if is_time {
            self.timer = None;
        }
        is_time
    }

    fn submit(&mut self, command: Command) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, command.reply));
        let deadline = command.deadline.saturating_duration_since(self.began);
        let now = self.began.elapsed();
        self.shared.control.borrow_mut().submit(ticket, command.code, &command.payload, now, deadline);
    }

    fn read(&mut self) -> Result<(), String> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.try_read(&mut buffer) {
            Ok(0) if self.decoder.is_mid_message() => return Err("the agent closed in the middle of a message".into()),
            Ok(0) => return Err("the agent closed its control channel".into()),
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(format!("control channel: {error}")),
        }
        loop {
            match self.decoder.next_message() {
                Ok(Some(message)) => self.shared.control.borrow_mut().received(message, self.began.elapsed()),
                Ok(None) => return Ok(()),
                Err(fault) => return Err(format!("the agent broke the protocol on its control channel: {fault}")),
            }
        }
    }

    fn write(&mut self) -> Result<(), String> {
        match self.stream.try_write(&self.outgoing) {
            Ok(n) if n == self.outgoing.len() => self.outgoing = Vec::new(),
            Ok(n) => drop(self.outgoing.drain(..n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("control channel: {error}")),
        }
        Ok(())
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Ok(position) = self.waiting.binary_search_by_key(&ticket, |(ticket, _)| *ticket)
            && let Some((_, reply)) = self.waiting.remove(position)
        {
            // The client has left: nobody misses the answer.
            let _ = reply.send(answer);
        }
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }

    fn carry_out(&mut self, event: &impl Fn(Message) -> bool) {
        let actions = self.shared.control.borrow_mut().take_actions();
        for action in actions {
            match action {
                Action::Write(bytes) => {
                    // An agent may answer what it has not read: the rest of that goes first.
                    if self.outgoing.is_empty() {
                        self.outgoing = bytes;
                    } else {
                        self.outgoing.extend(bytes);
                    }
                    // An error shows again, with its reason, when the socket is read.
                    let _ = self.write();
                }
                Action::Answer(ticket, answer) => self.answer(ticket, answer),
                Action::Ready { before } => {
                    if let Some(ready) = self.ready.take() {
                        let _ = ready.send(before);
                    }
                }
                Action::Event(message) => {
                    debug!(vm = &*self.vm, code = message.code, "the agent reported an event");
                    if !event(message) {
                        warn!(vm = &*self.vm, "the agent reports more events than can be taken: one was skipped");
                    }
                }
                Action::Stray(code) => {
                    self.strays += 1;
                    // The first, the second, the fourth, …: an agent cannot fill the log.
                    if self.strays.is_power_of_two() {
                        let count = self.strays;
                        warn!(vm = &*self.vm, code, count, "skipped a message from the agent nobody asked for");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (Channel, ControlHandle, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ready, _) = oneshot::channel();
        let (mut channel, handle) = Channel::new("vm".into(), ours, ready);
        channel.shared.control.borrow_mut().received(Message::new(Code::Ready, []), Duration::ZERO);
        channel.carry_out(&|_| false);
        (channel, handle, theirs)
    }

    /// A command that is answered before the agent has read any of it.
    fn answered_unread(channel: &mut Channel) {
        let (reply, _) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        channel.submit(Command { code: Code::StartPod, payload: vec![b'x'; 100_000], deadline, reply });
        channel.carry_out(&|_| false);
        channel.shared.control.borrow_mut().received(Message::new(Code::Ack, []), channel.began.elapsed());
    }

    #[tokio::test]
    async fn a_command_goes_out_whole_behind_the_rest_of_one_answered_early() {
        let (mut channel, _handle, agent) = channel();
        let message = 8 + 100_000;
        for _ in 0..8 {
            answered_unread(&mut channel);
        }
        let mut taken = 0;
        let mut buffer = vec![0; 1 << 20];
        while !channel.outgoing.is_empty() || taken < 8 * message {
            tokio::select! {
                ready = agent.readable() => {
                    ready.unwrap();
                    taken += agent.try_read(&mut buffer).unwrap_or(0);
                }
                ready = channel.stream.writable(), if !channel.outgoing.is_empty() => {
                    ready.unwrap();
                    channel.write().unwrap();
                }
            }
        }
        assert_eq!(taken, 8 * message);
    }

    #[tokio::test]
    async fn an_agent_that_answers_and_never_reads_is_given_up() {
        let (mut channel, _handle, _agent) = channel();
        for _ in 0..100 {
            answered_unread(&mut channel);
        }
        assert_eq!(channel.step().await.unwrap_err(), "the agent answers commands without reading them");
    }

    #[tokio::test]
    async fn a_channel_s_task_is_small() {
        let (mut channel, _handle, _agent) = channel();
        let (own, shared) = (size_of::<Channel>(), size_of::<Shared>());
        let task = size_of_val(&channel.run(|_| false));
        // There is one for each VM. Who needs more for a rare case boxes it.
        assert!(own + shared + task <= 800, "{own} + {shared} + {task} bytes");
    }

    #[tokio::test]
    async fn a_channel_at_rest_has_no_timer_and_no_memory_of_its_commands() {
        let (mut channel, handle, _agent) = channel();
        let mut answers = Vec::new();
        for _ in 0..20 {
            let (reply, answer) = oneshot::channel();
            let deadline = Instant::now() + Duration::from_secs(60);
            let command = Command { code: Code::Ping, payload: Vec::new(), deadline, reply };
            handle.0.commands.borrow_mut().push_back(command);
            answers.push(answer);
        }
        assert!(channel.step().await.unwrap());
        channel.carry_out(&|_| false);
        poll_fn(|cx| Poll::Ready(channel.poll_timer(cx))).await;
        assert!(channel.timer.is_some() && handle.status().queued == 19);
        for answer in answers {
            channel.shared.control.borrow_mut().received(Message::new(Code::Ack, []), channel.began.elapsed());
            channel.carry_out(&|_| false);
            assert_eq!(answer.await.unwrap(), Ok(Vec::new()));
        }
        poll_fn(|cx| Poll::Ready(channel.poll_timer(cx))).await;
        assert!(channel.timer.is_none(), "an idle VM wakes nobody");
        let capacities = (channel.waiting.capacity(), channel.outgoing.capacity());
        assert_eq!((capacities, channel.shared.commands.borrow().capacity()), ((0, 0), 0));
        assert_eq!(channel.shared.control.borrow().memory(), 0);
    }

    #[tokio::test]
    async fn a_channel_without_a_handle_ends_and_one_that_ended_takes_no_command() {
        let (mut channel, handle, _agent) = channel();
        let other = handle.clone();
        let deadline = Instant::now() + Duration::from_secs(60);
        let command = tokio::join!(other.command(Code::Ping, Vec::new(), deadline, 1), async {
            drop(handle);
            channel.run(|_| false).await
        });
        let unregistered = CommandError::Gone("the VM was unregistered".to_owned());
        assert_eq!((command.0.unwrap_err(), command.1), (unregistered, None));
    }
}
