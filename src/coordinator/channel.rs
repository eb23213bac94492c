//! The task that owns one VM's control channel: it reads, writes and keeps the time for the rules in `control`.
//!
//! It never abandons a read: readiness is awaited, then bytes are taken. The asymmetry to know: it ends when the
//! agent closes, breaks the protocol, or when the coordinator drops its [`ControlHandle`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::control::{Action, CommandError, Control, Ticket};
use crate::limits::{CONTROL_OUTGOING_MAX, CONTROL_REPLY_MAX, READY_PATIENCE_MS};
use crate::wire::hyper::{Code, Message, MessageDecoder};

/// A command on its way to the channel's task.
#[derive(Debug)]
struct Command {
    code: Code,
    payload: Vec<u8>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<u8>, CommandError>>,
}

/// What `status` shows of a control channel.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ChannelStatus {
    /// The command in flight and whether it is overdue.
    pub(super) command: Option<(&'static str, bool)>,
    pub(super) queued: usize,
}

/// The coordinator's end of a control channel. Dropping the last one ends the channel.
#[derive(Debug, Clone)]
pub(super) struct ControlHandle {
    commands: mpsc::Sender<Command>,
    status: Rc<RefCell<ChannelStatus>>,
}

impl ControlHandle {
    /// Sends a command and waits for its answer, until `deadline` at the latest. It lets go of the channel before it
    /// waits, so that a command in flight does not keep alive what bye or a lost VM ends.
    pub(super) async fn command(
        self,
        code: Code,
        payload: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, CommandError> {
        let (reply, answer) = oneshot::channel();
        let gone = || CommandError::Gone("the VM's control channel has ended".to_owned());
        let command = Command { code, payload, deadline, reply };
        let sent = self.commands.try_send(command);
        drop(self);
        match sent {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(gone())),
            Err(mpsc::error::TrySendError::Full(_)) => Err(CommandError::Full),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }

    pub(super) fn status(&self) -> ChannelStatus {
        *self.status.borrow()
    }
}

/// The channel's task.
#[derive(Debug)]
pub(super) struct Channel {
    vm: String,
    stream: UnixStream,
    commands: mpsc::Receiver<Command>,
    status: Rc<RefCell<ChannelStatus>>,
    control: Control,
    decoder: MessageDecoder,
    began: Instant,
    /// Bytes of commands that the socket has not taken: of the one in flight, and of those answered before they were
    /// read.
    outgoing: Vec<u8>,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Vec<u8>, CommandError>>>,
    next_ticket: Ticket,
    ready: Option<oneshot::Sender<bool>>,
    events: mpsc::Sender<Message>,
    /// Messages nobody asked for.
    strays: u64,
}

impl Channel {
    /// A channel over a connected socket, and the handle commands go through. `ready` is told when the agent is up,
    /// and whether it was up before; `events` gets what it reports of its own accord.
    pub(super) fn new(
        vm: &str,
        stream: UnixStream,
        ready: oneshot::Sender<bool>,
        events: mpsc::Sender<Message>,
    ) -> (Channel, ControlHandle) {
        let (sender, commands) = mpsc::channel(crate::limits::CONTROL_QUEUE_MAX);
        let status = Rc::new(RefCell::new(ChannelStatus::default()));
        let handle = ControlHandle { commands: sender, status: Rc::clone(&status) };
        let channel = Channel {
            vm: vm.to_owned(),
            stream,
            commands,
            status,
            control: Control::new(Duration::ZERO, Duration::from_millis(READY_PATIENCE_MS)),
            decoder: MessageDecoder::new(CONTROL_REPLY_MAX),
            began: Instant::now(),
            outgoing: Vec::new(),
            waiting: HashMap::new(),
            next_ticket: 0,
            ready: Some(ready),
            events,
            strays: 0,
        };
        (channel, handle)
    }

    /// Serves the channel to its end and says why it ended; `None` when the coordinator ended it.
    pub(super) async fn run(mut self) -> Option<String> {
        let why = loop {
            self.carry_out();
            match self.step().await {
                Ok(true) => {}
                Ok(false) => break None,
                Err(why) => break Some(why),
            }
        };
        self.control.ended(why.as_deref().unwrap_or("the VM was unregistered"));
        self.carry_out();
        why
    }

    /// Waits for the next thing to happen and takes it in; `false` when the coordinator let go.
    async fn step(&mut self) -> Result<bool, String> {
        if self.outgoing.len() > CONTROL_OUTGOING_MAX {
            return Err("the agent answers commands without reading them".to_owned());
        }
        let next_tick = self.control.next_tick().map(|at| self.began + at);
        let tick = async {
            match next_tick {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            readable = self.stream.readable() => {
                readable.map_err(|error| error.to_string())?;
                self.read()?;
            }
            writable = self.stream.writable(), if !self.outgoing.is_empty() => {
                writable.map_err(|error| error.to_string())?;
                self.write()?;
            }
            command = self.commands.recv() => match command {
                Some(command) => self.submit(command),
                None => return Ok(false),
            },
            () = tick => {}
        }
        self.control.tick(self.began.elapsed());
        Ok(true)
    }

    fn submit(&mut self, command: Command) {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.insert(ticket, command.reply);
        let deadline = command.deadline.saturating_duration_since(self.began);
        self.control.submit(ticket, command.code, &command.payload, self.began.elapsed(), deadline);
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
                Ok(Some(message)) => self.control.received(message, self.began.elapsed()),
                Ok(None) => return Ok(()),
                Err(fault) => return Err(format!("the agent broke the protocol on its control channel: {fault}")),
            }
        }
    }

    fn write(&mut self) -> Result<(), String> {
        match self.stream.try_write(&self.outgoing) {
            Ok(n) => drop(self.outgoing.drain(..n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("control channel: {error}")),
        }
        Ok(())
    }

    fn carry_out(&mut self) {
        for action in self.control.take_actions() {
            match action {
                Action::Write(bytes) => {
                    // An agent may answer what it has not read: the rest of that goes first.
                    self.outgoing.extend(bytes);
                    // An error shows again, with its reason, when the socket is read.
                    let _ = self.write();
                }
                Action::Answer(ticket, answer) => {
                    if let Some(reply) = self.waiting.remove(&ticket) {
                        // The client has left: nobody misses the answer.
                        let _ = reply.send(answer);
                    }
                }
                Action::Ready { before } => {
                    if let Some(ready) = self.ready.take() {
                        let _ = ready.send(before);
                    }
                }
                Action::Event(event) => {
                    debug!(vm = self.vm, code = event.code, "the agent reported an event");
                    if self.events.try_send(event).is_err() {
                        warn!(vm = self.vm, "the agent reports more events than can be taken: one was skipped");
                    }
                }
                Action::Stray(code) => {
                    self.strays += 1;
                    // The first, the second, the fourth, …: an agent cannot fill the log.
                    if self.strays.is_power_of_two() {
                        let count = self.strays;
                        warn!(vm = self.vm, code, count, "skipped a message from the agent nobody asked for");
                    }
                }
            }
        }
        *self.status.borrow_mut() = ChannelStatus { command: self.control.command(), queued: self.control.queued() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel() -> (Channel, ControlHandle, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ready, _) = oneshot::channel();
        let (mut channel, handle) = Channel::new("vm", ours, ready, mpsc::channel(1).0);
        channel.control.received(crate::wire::hyper::Message::new(Code::Ready, []), Duration::ZERO);
        channel.carry_out();
        (channel, handle, theirs)
    }

    /// A command that is answered before the agent has read any of it.
    fn answered_unread(channel: &mut Channel) {
        let (reply, _) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(60);
        channel.submit(Command { code: Code::StartPod, payload: vec![b'x'; 100_000], deadline, reply });
        channel.carry_out();
        channel.control.received(crate::wire::hyper::Message::new(Code::Ack, []), channel.began.elapsed());
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
}
