//! Protocol 2's side of the control plane: tokens, shims and the processes they belong to.
//!
//! Waits are waits of one request: nothing is locked meanwhile, so any number of processes start at once. The
//! asymmetry to know: a process waits for its shim before it starts, a shim's input and signals wait for the process
//! after it connected.

use std::fmt::Debug;
use std::rc::Rc;

use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::registry::{RequestError, VmRef, VmState};
use super::tokens::{Progress, Target, TokenEntry};
use super::users::User;
use super::{Coordinator, out_of};
use crate::limits::TOKENS_PER_REQUEST;
use crate::os::fds::PeerCredentials;
use crate::relay::{self, Gone};
use crate::shard::{Order, TokenOrder};
use crate::wire::SlowReader;
use crate::wire::cc2::{self, Frame, Kind, SessionToken, Signal, TOKEN_LEN};
use crate::wire::hyper::{
    Code, KillContainer, MESSAGE_HEADER_LEN, Message, ProcessEvent, SignalProcess, StreamSeq, WinSize,
};
use crate::wire::process::{self, StartCommand};

/// The first agents' API that can signal any process.
const API_SIGNALS: u32 = 4_244;

const SIGKILL: i64 = 9;
const SIGTERM: i64 = 15;
const SIGWINCH: i64 = 28;

/// A shim's connection on its shard, as its door names it.
#[derive(Debug, Clone, Copy)]
pub struct ShimLink {
    base: StreamSeq,
    connection: u64,
}

/// Who deals with what a shim sends besides input. Kept for as long as the shim has its token.
pub trait Attendant: Debug {
    /// A message came. They come in the order in which they were sent, and the shard lets no more of them be under way
    /// than [`SHIM_MESSAGES_MAX`](crate::limits::SHIM_MESSAGES_MAX).
    fn attend(self: Rc<Self>, coordinator: &Coordinator, shim: ShimLink, message: Frame);
}

/// A connection that is to move to a shard.
#[derive(Debug)]
pub struct Mover {
    /// Who is at its other end.
    pub client: PeerCredentials,
    /// Its socket.
    pub stream: UnixStream,
    /// Bytes it sent that nobody has looked at.
    pub unparsed: Vec<u8>,
    /// Bytes it is owed.
    pub reply: Vec<u8>,
}

impl Coordinator {
    /// Whether a VM that has no session yet could have this many with tokens.
    ///
    /// # Errors
    /// What the client is told.
    pub fn check_tokens(count: i64) -> Result<(), RequestError> {
        let most = TOKENS_PER_REQUEST;
        if (0..=most).contains(&count) { Ok(()) } else { Err(RequestError::Tokens { asked: count, most }) }
    }

    /// Makes `count` sessions with tokens for a VM.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn tokens(
        &self,
        vm: &VmRef,
        count: i64,
        user: &Rc<User>,
        slow_reader: Option<SlowReader>,
    ) -> Result<Option<Vec<String>>, RequestError> {
        let slow_reader = slow_reader.unwrap_or(self.0.settings.slow_reader);
        Coordinator::check_tokens(count)?;
        let count = usize::try_from(count).unwrap_or_default();
        let mut made = Vec::with_capacity(count);
        let shard = {
            let mut registry = self.0.registry.borrow_mut();
            let mut tokens = self.0.tokens.borrow_mut();
            let shard = registry.usable(vm)?.room_for(count, vm, self.0.settings.sessions_per_vm)?.shard;
            for _ in 0..count {
                let mut token = random_token()?;
                while tokens.is_taken(token) {
                    token = random_token()?;
                }
                made.push((registry.sequences(2)?, token));
            }
            // The last thing that can fail: from here on they are all there.
            user.take_sessions(count)?;
            let mut owners = self.0.owners.borrow_mut();
            for &(base, token) in &made {
                tokens.add(token, base, vm.key, shard);
                owners.insert(base.0, Rc::clone(user));
            }
            registry.usable(vm)?.tokens += count;
            shard
        };
        self.count(|counters| counters.sessions_opened += count as u64);
        for &(base, _) in &made {
            self.post(shard, Order::OpenToken { vm: vm.key, base, slow_reader }).await;
        }
        let texts: Vec<String> = made.iter().map(|(_, token)| token.to_string()).collect();
        Ok((!texts.is_empty()).then_some(texts))
    }

    /// Makes a VM invisible; its processes go on, and so do its channels until nobody could miss them.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn unregister(&self, id: &str) -> Result<(), RequestError> {
        let vm = self.0.registry.borrow().find(id)?;
        self.0.registry.borrow_mut().hide(vm.key);
        info!(vm = id, "VM unregistered; its processes go on");
        self.close_if_unused(vm.key).await;
        Ok(())
    }

    /// Closes a VM without a name that nobody could miss.
    async fn close_if_unused(&self, key: u64) {
        let closed = {
            let mut registry = self.0.registry.borrow_mut();
            let is_idle = registry.hidden.get(&key).is_some_and(|(_, vm)| vm.sessions == 0);
            let goes = is_idle && !self.0.tokens.borrow().is_used(key);
            if goes { registry.remove(key) } else { None }
        };
        if let Some(vm) = closed {
            self.post(vm.shard, Order::CloseLink { vm: key }).await;
        }
    }

    /// Logs what a VM's console prints, line by line.
    pub fn watch_console(&self, vm: &VmRef, path: &str, client: PeerCredentials) {
        let (coordinator, vm, path) = (self.clone(), vm.clone(), path.to_owned());
        tokio::task::spawn_local(async move {
            let deadline = Instant::now() + coordinator.0.settings.deadline;
            let connected = async {
                let [opened] = coordinator.open(&vm, [&path], client, deadline).await?;
                let stream = coordinator.connect(&vm, &path, opened, deadline).await?;
                UnixStream::from_std(stream).map_err(out_of)
            };
            match connected.await {
                Ok(stream) => super::console::log_lines(&vm.id, stream).await,
                Err(error) => warn!(vm = vm.id(), %error, "the VM's console cannot be read"),
            }
        });
    }

    /// Moves a connection to the shard of the token it claims; its messages go to `attendant` from then on.
    ///
    /// # Errors
    /// What the client is told; the connection is given back.
    pub async fn connect_shim(
        &self,
        token: &str,
        mover: Mover,
        attendant: Rc<dyn Attendant>,
    ) -> Result<(), (RequestError, UnixStream)> {
        let Mover { client, stream, unparsed, mut reply } = mover;
        let claimed = {
            let mut tokens = self.0.tokens.borrow_mut();
            tokens.find(token).and_then(|base| {
                let connection = tokens.claim(base, token, client.pid, attendant)?;
                let shard = tokens.entry(base).map_or(0, |entry| entry.shard);
                match self.0.registry.borrow_mut().take_socket(shard) {
                    Ok(()) => Ok((base, connection)),
                    Err(full) => {
                        tokens.unclaim(base, connection);
                        Err(full)
                    }
                }
            })
        };
        let (base, connection) = match claimed {
            Ok(claimed) => claimed,
            Err(error) => return Err((error, stream)),
        };
        // What the socket takes now leaves before the shard is woken, and the rest from there. One that has failed
        // tells its shard so.
        reply.drain(..stream.try_write(&reply).unwrap_or(0));
        match stream.into_std().and_then(super::into_blocking) {
            Ok(fd) => {
                debug!(session = base.0, connection, "shim connected");
                self.tell(base, TokenOrder::Connect { connection, fd, unparsed, reply }).await;
            }
            Err(error) => {
                // The socket is lost with the attempt; its client sees it close and comes back.
                self.unclaim(base, connection);
                warn!(session = base.0, %error, "a shim's socket cannot be moved");
            }
        }
        Ok(())
    }

    /// A connection is gone: its token is free, and so is its place on the shard.
    fn unclaim(&self, base: StreamSeq, connection: u64) {
        if let Some(shard) = self.0.tokens.borrow_mut().unclaim(base, connection) {
            self.0.registry.borrow_mut().give_socket(shard);
        }
    }

    /// Tells a session's shard something about it.
    async fn tell(&self, base: StreamSeq, order: TokenOrder) {
        let shard = self.0.tokens.borrow_mut().entry(base).map(|entry| entry.shard);
        if let Some(shard) = shard {
            self.post(shard, Order::Token(base, order)).await;
        }
    }

    /// A shim's message has been dealt with; `reply` goes to it.
    pub async fn answer(&self, shim: ShimLink, reply: Vec<u8>) {
        self.tell(shim.base, TokenOrder::Answer { connection: shim.connection, reply }).await;
    }

    /// Ends a shim's connection by its own fault; the token is free again.
    pub async fn fault(&self, shim: ShimLink, why: crate::wire::DecodeError) {
        let why = Gone::Fault(why);
        self.tell(shim.base, TokenOrder::Drop { connection: shim.connection, why }).await;
    }

    /// A shim gives its token up: `reply` goes to it, then the session ends.
    pub async fn disconnect_shim(&self, shim: ShimLink, reply: Vec<u8>) {
        self.tell(shim.base, TokenOrder::Release { reply }).await;
    }

    /// Forwards a hyperstart command; one that starts a process gets its session's sequences.
    ///
    /// # Errors
    /// What the client is told.
    pub async fn hyper_with_tokens(&self, vm: &VmRef, command: cc2::Hyper) -> Result<Vec<u8>, RequestError> {
        let cc2::Hyper { hyper_name: name, tokens, data } = command;
        let first = match Code::from_name(&name) {
            None => return Err(RequestError::UnknownCommand(name)),
            Some(Code::NewContainer) => true,
            Some(Code::ExecCmd) => false,
            Some(_) if !tokens.is_empty() => return Err(RequestError::NeedlessTokens { name, count: tokens.len() }),
            Some(_) => {
                let payload = data.map(|data| data.get().as_bytes().to_vec()).unwrap_or_default();
                return self.hyper(vm, &name, payload).await;
            }
        };
        match tokens.as_slice() {
            [] => {
                let base = self.tokenless(vm)?;
                let command = process::assign(data.as_deref(), base.0)?;
                self.hyper(vm, &name, command.payload).await
            }
            [token] => {
                let base = self.usable_token(vm, token)?;
                let command = process::assign(data.as_deref(), base.0)?;
                self.start(vm, &name, base, token, command, first).await
            }
            several => Err(RequestError::ManyTokens(several.len())),
        }
    }

    /// Sequences for one process without a token: nobody has them, so its output is skipped. Each has its own, since
    /// agents refuse or mix up two processes that share theirs.
    fn tokenless(&self, vm: &VmRef) -> Result<StreamSeq, RequestError> {
        let mut registry = self.0.registry.borrow_mut();
        registry.usable(vm)?;
        registry.sequences(2)
    }

    /// The session of a token with which a process of this VM can be started.
    fn usable_token(&self, vm: &VmRef, token: &str) -> Result<StreamSeq, RequestError> {
        let mut tokens = self.0.tokens.borrow_mut();
        let base = tokens.find(token)?;
        match tokens.entry(base).filter(|entry| entry.vm == vm.key) {
            None => Err(RequestError::UnknownToken(token.to_owned())),
            Some(entry) if entry.progress != Progress::Waiting => Err(RequestError::TokenUsed(token.to_owned())),
            Some(_) => Ok(base),
        }
    }

    /// Starts a process with a token, once the token's shim is there.
    async fn start(
        &self,
        vm: &VmRef,
        name: &str,
        base: StreamSeq,
        token: &str,
        command: StartCommand,
        first: bool,
    ) -> Result<Vec<u8>, RequestError> {
        let len = command.payload.len() + MESSAGE_HEADER_LEN;
        if len > self.0.settings.control_message_max {
            return Err(RequestError::MessageTooLong(len));
        }
        let has_shim = |entry: &TokenEntry| (entry.claim.is_some()).then_some(());
        let waited = self.wait_for(base, has_shim).await;
        // Its VM may have gone meanwhile, and the token been given up or used.
        self.0.registry.borrow_mut().usable(vm)?;
        self.usable_token(vm, token)?;
        waited.map_err(|Waited| RequestError::NoShim(token.to_owned()))?;
        let container = if first { &command.new_container } else { &command.container };
        let target = Target { container: container.clone(), process: command.process.clone(), first };
        self.0.tokens.borrow_mut().set(base, Progress::Starting(Rc::new(target)));
        let answer = self.hyper(vm, name, command.payload).await;
        let progress = {
            let mut tokens = self.0.tokens.borrow_mut();
            match tokens.entry(base).map(|entry| entry.progress.clone()) {
                Some(Progress::Starting(target)) if answer.is_ok() => Progress::Running(target),
                _ => Progress::Waiting,
            }
        };
        self.0.tokens.borrow_mut().set(base, progress);
        if answer.is_ok() {
            self.tell(base, TokenOrder::Started { terminal: command.terminal }).await;
        }
        answer
    }

    /// Waits until `look` finds what it looks for in a session's entry.
    async fn wait_for<T>(&self, base: StreamSeq, look: impl Fn(&TokenEntry) -> Option<T>) -> Result<T, Waited> {
        let deadline = Instant::now() + self.0.settings.shim_patience;
        loop {
            let changed = match self.0.tokens.borrow_mut().entry(base) {
                None => return Err(Waited),
                Some(entry) => match look(entry) {
                    Some(found) => return Ok(found),
                    None => entry.change(),
                },
            };
            timeout_at(deadline, changed.notified()).await.map_err(|_| Waited)?;
        }
    }

    /// Signals a shim's process. Returns whole frames for the shim that come before the response.
    ///
    /// # Errors
    /// What the client is told; [`RequestError::NotStarted`] ends the connection.
    pub async fn signal(&self, shim: ShimLink, signal: &Signal) -> Result<Vec<u8>, RequestError> {
        let number = signal.signal_number;
        if !(1..=64).contains(&number) {
            return Err(RequestError::SignalNumber(number));
        }
        let size = (u16::try_from(signal.rows).unwrap_or(0), u16::try_from(signal.columns).unwrap_or(0));
        if number == SIGWINCH && (size.0 == 0 || size.1 == 0) {
            return Err(RequestError::WindowSize);
        }
        if (number == SIGKILL || number == SIGTERM) && self.cancel(shim.base) {
            return Ok(cc2::encode(Kind::Notification(cc2::PROCESS_EXITED), &[0]));
        }
        let running = |entry: &TokenEntry| match &entry.progress {
            _ if !entry.is_claimed_by(shim.connection) => Some((entry.vm, None)),
            Progress::Running(target) => Some((entry.vm, Some(Rc::clone(target)))),
            Progress::Cancelled => Some((entry.vm, None)),
            Progress::Waiting | Progress::Starting(_) => None,
        };
        let found = self.wait_for(shim.base, running).await;
        let Ok((key, target)) = found else {
            let why = Gone::TooLate;
            self.tell(shim.base, TokenOrder::Drop { connection: shim.connection, why }).await;
            return Err(RequestError::NotStarted);
        };
        let target = target.ok_or(RequestError::NotStarted)?;
        let vm = self.reference(key)?;
        let (name, payload) = if number == SIGWINCH {
            ("winsize", self.window_size(&vm, shim.base, &target, size).await?)
        } else {
            self.signal_command(&vm, &target, i32::try_from(number).unwrap_or(0)).await?
        };
        self.hyper(&vm, name, payload).await?;
        Ok(Vec::new())
    }

    /// Ends a session whose process has not started, so that it never will. `false` when it has.
    fn cancel(&self, base: StreamSeq) -> bool {
        let mut tokens = self.0.tokens.borrow_mut();
        let waits = tokens.entry(base).is_some_and(|entry| entry.progress == Progress::Waiting);
        if waits {
            tokens.set(base, Progress::Cancelled);
        }
        waits
    }

    fn reference(&self, key: u64) -> Result<VmRef, RequestError> {
        let mut registry = self.0.registry.borrow_mut();
        let (id, _) = registry.by_key(key).ok_or_else(|| RequestError::Unknown(format!("#{key}")))?;
        Ok(VmRef { key, id: id.into() })
    }

    async fn window_size(
        &self,
        vm: &VmRef,
        base: StreamSeq,
        target: &Target,
        (row, column): (u16, u16),
    ) -> Result<Vec<u8>, RequestError> {
        // Agents of either age take no member they do not know.
        let size = if self.api(vm).await? >= API_SIGNALS && !target.process.is_empty() {
            let (container, process) = (target.container.clone(), target.process.clone());
            WinSize { container, process, row, column, ..WinSize::default() }
        } else {
            WinSize { seq: base.0, row, column, ..WinSize::default() }
        };
        Ok(json(&size))
    }

    async fn signal_command(
        &self,
        vm: &VmRef,
        target: &Target,
        signal: i32,
    ) -> Result<(&'static str, Vec<u8>), RequestError> {
        if target.first {
            return Ok(("killcontainer", json(&KillContainer { container: target.container.clone(), signal })));
        }
        let api = self.api(vm).await?;
        if api < API_SIGNALS || target.process.is_empty() {
            return Err(RequestError::CannotSignal(api));
        }
        let (container, process) = (target.container.clone(), target.process.clone());
        Ok(("signalprocess", json(&SignalProcess { container, process, signal })))
    }

    /// The version of hyperstart's API a VM's agent has; 0 for one that does not say.
    async fn api(&self, vm: &VmRef) -> Result<u32, RequestError> {
        if let Some(api) = self.0.registry.borrow_mut().usable(vm)?.api {
            return Ok(api);
        }
        let answer = self.hyper(vm, Code::Version.name(), Vec::new()).await?;
        let api = answer.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        self.0.registry.borrow_mut().usable(vm)?.api = Some(api);
        Ok(api)
    }

    /// The agent reported something of its own accord.
    pub(super) async fn agent_event(&self, vm: u64, event: Message) {
        let parsed: Option<ProcessEvent> = serde_json::from_slice(&event.payload).ok();
        let Some(ProcessEvent { container, process, event, status }) = parsed else {
            return warn!(vm, code = event.code, "skipped an event of the agent that is no event");
        };
        if event != "finished" {
            return debug!(vm, event, "skipped an event of the agent");
        }
        let base = self.0.tokens.borrow().of_process(vm, &container, &process);
        if let Some(base) = base {
            // A shell's view of a status: its low eight bits.
            let status = status.to_le_bytes()[0];
            self.tell(base, TokenOrder::Exited { status }).await;
        }
    }

    /// What a shard reports of sessions with a token.
    pub(super) async fn take_token_report(&self, report: relay::Report) {
        match report {
            relay::Report::ShimMessage { base, connection, frame } => {
                let attendant = self.0.tokens.borrow_mut().attendant(base, connection);
                if let Some(attendant) = attendant {
                    attendant.attend(self, ShimLink { base, connection }, frame);
                }
            }
            relay::Report::ShimGone { base, connection, why, at_risk } => {
                self.unclaim(base, connection);
                self.count(|counters| counters.shims_lost += 1);
                let known = self.0.tokens.borrow_mut().entry(base).map(|entry| (entry.vm, entry.pid));
                let Some((key, pid)) = known else { return };
                let (vm, session) = (self.name(key), base.0);
                if why.is_fault() {
                    self.count(|counters| counters.clients_faulty += 1);
                    warn!(pid, vm, session, connection, %why, at_risk, "shim's connection ended by its own fault");
                } else {
                    info!(pid, vm, session, connection, %why, at_risk, "shim gone without disconnecting");
                }
                self.close_if_unused(key).await;
            }
            relay::Report::InputWaits { base, connection } => {
                let coordinator = self.clone();
                tokio::task::spawn_local(async move { coordinator.watch_input(base, connection).await });
            }
            _ => {}
        }
    }

    /// Ends a connection whose input waits for a process that does not start.
    async fn watch_input(&self, base: StreamSeq, connection: u64) {
        let running = |entry: &TokenEntry| match entry.progress {
            _ if !entry.is_claimed_by(connection) => Some(()),
            Progress::Running(_) => Some(()),
            _ => None,
        };
        if self.wait_for(base, running).await.is_err() {
            self.tell(base, TokenOrder::Drop { connection, why: Gone::TooLate }).await;
        }
    }

    /// A VM's session has ended: its token, if it had one, is nobody's any more. Whether it had a socket.
    pub(super) async fn forget_session(&self, key: u64, base: StreamSeq) -> bool {
        if let Some(owner) = self.0.owners.borrow_mut().remove(&base.0) {
            owner.give_sessions(1);
        }
        let entry = self.0.tokens.borrow_mut().remove(base);
        let had_socket = entry.as_ref().is_none_or(|entry| entry.claim.is_some());
        self.0.registry.borrow_mut().end_session(key, entry.is_some());
        self.close_if_unused(key).await;
        had_socket
    }

    /// A VM without a name died: nothing is left to keep.
    pub(super) fn forget_if_hidden(&self, key: u64) {
        let mut registry = self.0.registry.borrow_mut();
        if registry.hidden.get(&key).is_some_and(|(_, vm)| matches!(vm.state, VmState::Gone(_))) {
            registry.remove(key);
        }
    }
}

/// What was waited for did not come.
#[derive(Debug)]
struct Waited;

fn random_token() -> Result<SessionToken, RequestError> {
    let mut bytes = [0; TOKEN_LEN];
    getrandom::fill(&mut bytes).map_err(|error| out_of(std::io::Error::other(error.to_string())))?;
    Ok(SessionToken::new(bytes))
}

fn json<T: serde::Serialize>(payload: &T) -> Vec<u8> {
    serde_json::to_vec(payload).expect("plain data serializes")
}
